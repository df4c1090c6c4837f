"""Time `ct2mri prepare` with one worker and with two, and measure the memory that a worker takes.

    python benchmarks/prepare.py                         # 6 patients of 1.2 mm, under three minutes
    python benchmarks/prepare.py --spacing 1.0 --patients 12 --workers 1 2 4

All numbers of workers take turns within one run, so that their ratio holds on a machine whose speed drifts.
Each preparation is a process of its own, whose peak memory and whose workers' the system tells.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ct2mri.data.geometry import grid_with_spacing, resample
from ct2mri.data.io import save_volume
from ct2mri.data.phantom import draw_phantom
from ct2mri.data.prepare import prepare
from ct2mri.options.data import PrepareOptions
from machine import hardware, table, versions


def write_patients(raw: Path, patients: int, spacing: float) -> tuple[int, int, int]:
    """One phantom head, resampled from 2 mm, under several names; the shape of its volumes."""
    phantom = draw_phantom("head", 0, 2.0)
    grid = grid_with_spacing(phantom.ct.grid, (spacing, spacing, spacing))
    first = raw / "p0"
    for name, volume, air in (("ct", phantom.ct, -1000), ("mr", phantom.mr, 0)):
        fine = resample(volume, grid, fill=air)
        save_volume(fine.with_array(np.rint(fine.array)), first / f"{name}.nii.gz")
    for number in range(1, patients):
        shutil.copytree(first, raw / f"p{number}")
    return grid.shape


def one_run(raw: Path, dataset: Path, workers: int) -> None:
    """Prepare, and print the time in seconds and peak memories in MB as JSON."""
    start = time.perf_counter()
    prepare(PrepareOptions(raw=raw, dataset=dataset, workers=workers))
    peaks = {
        name: resource.getrusage(who).ru_maxrss / 1024
        for name, who in (("command", resource.RUSAGE_SELF), ("worker", resource.RUSAGE_CHILDREN))
    }
    print(json.dumps({"seconds": time.perf_counter() - start} | peaks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=6)
    parser.add_argument("--spacing", type=float, default=1.2, help="voxel edge in mm (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=3, metavar=("RAW", "DATASET", "WORKERS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        raw, dataset, workers = arguments.one
        one_run(Path(raw), Path(dataset), int(workers))
        return

    runs: dict[int, list[dict[str, float]]] = {workers: [] for workers in arguments.workers}
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        shape = write_patients(raw, arguments.patients, arguments.spacing)
        for repeat in range(arguments.repeats):
            for workers in arguments.workers:
                dataset = Path(folder) / f"set-{repeat}-{workers}"
                words = [sys.executable, __file__, "--one", str(raw), str(dataset), str(workers)]
                done = subprocess.run(words, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
                runs[workers].append(json.loads(done.stdout.splitlines()[-1]))
                shutil.rmtree(dataset)

    megavoxels = float(np.prod(shape)) / 1e6
    print(hardware())
    print(versions("numpy", "SimpleITK"))
    print(
        f"{arguments.patients} patients, CT and MR of {'×'.join(map(str, shape))} voxels ({megavoxels:.1f} "
        f"million) as .nii.gz; medians of {arguments.repeats} runs"
    )

    def median(workers: int, name: str) -> float:
        return statistics.median(run[name] for run in runs[workers])

    slowest = median(arguments.workers[0], "seconds")
    rows = []
    for workers in arguments.workers:
        seconds = median(workers, "seconds")
        rows.append(
            [
                workers,
                f"{seconds:.1f} s",
                f"{seconds / arguments.patients:.1f} s",
                f"{slowest / seconds:.2f}×",
                f"{median(workers, 'worker'):.0f} MB",
                f"{median(workers, 'command'):.0f} MB",
            ]
        )
    header = ["workers", "time", "a case", "speed", "peak memory of a worker", "of the command"]
    print(f"\n{table(header, rows)}")


if __name__ == "__main__":
    main()
