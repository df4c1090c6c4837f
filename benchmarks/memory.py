"""Measure the memory that `ct2mri translate` takes, against the volume's size and the memory it may take.

    python benchmarks/memory.py                                            # two small volumes
    python benchmarks/memory.py --shapes 512x512x400 --max-memory 8GiB     # much work for a CPU

Every translation is a process of its own, on the CPU; what it held at most is what the system tells when it
ends. The volume is a phantom head stretched until it fills all of it, with voxels of the very size that the
model works on: nothing is cropped away and no slice left out, the most work and memory that a volume of that
shape can take. With `--head` its voxels are of the size at which a head fills the volume, as in a scan.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from ct2mri import Volume, __version__, save_volume
from ct2mri.data.geometry import resample
from ct2mri.data.intensity import body_mask
from ct2mri.data.phantom import draw_phantom
from ct2mri.data.plan import Plan
from ct2mri.data.volume import Grid
from ct2mri.pipeline import starter_folder

GIB = 2**30


def stretched_head(shape: tuple[int, int, int], spacing: tuple[float, float, float] | None = None) -> Volume:
    """A phantom head's CT in HU that touches all six sides of a volume.

    With voxels of `spacing` mm, or without one of such as make the head its own size.
    """
    ct = draw_phantom("head", 1_000_000, 1.75).ct
    body = body_mask(ct.array, ct.spacing, -300.0)
    inside = np.argwhere(body)
    lower, upper = inside.min(axis=0), inside.max(axis=0)
    affine = ct.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ lower
    affine[:3, :3] *= (upper - lower) / np.maximum(np.array(shape) - 1, 1)
    stretched = resample(ct, Grid(shape, affine), fill=-1000)
    return stretched if spacing is None else Volume(stretched.array, np.diag([*spacing, 1.0]))


@dataclass(frozen=True)
class Run:
    """What one translation took: GiB at most, seconds, and what its sidecar warns of."""

    peak: float
    seconds: float
    warnings: list[str]


def measured(ct: Path, output: Path, model: Path, more: list[str]) -> Run:
    """Translate in a process of its own."""
    command = [sys.executable, "-m", "ct2mri", "translate", str(ct), "-o", str(output), "--model", str(model)]
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--steps", "1", "--device", "cpu", *more], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"ct2mri translate ended with status {status}")
    sidecar = output.with_name(f"{output.stem}.json")
    warnings = json.loads(sidecar.read_text())["warnings"]
    return Run(usage.ru_maxrss * 1024 / GIB, time.perf_counter() - start, warnings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--shapes", nargs="+", default=["96x96x96", "192x192x144"], help="volumes to translate"
    )
    parser.add_argument(
        "--max-memory", nargs="+", default=["none", "1GiB"], help="what each may take; `none` for no limit"
    )
    parser.add_argument("--model", type=Path, help="a pipeline folder (default: the starter)")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--head", action="store_true", help="voxels of the size of a scan's of a head")
    arguments = parser.parse_args()

    model = arguments.model or starter_folder()
    spacing = Plan.read(model / "plan.json").spacing or (1.0, 1.0, 1.0)
    print(f"ct2mri {__version__}, {date.today()}, {platform.machine()}, {os.cpu_count()} cores, one step\n")
    print(
        "| voxels | --max-memory | peak | bytes a voxel | time | how |\n|---|---|---|---|---|---|", flush=True
    )
    with tempfile.TemporaryDirectory() as work:
        for name in arguments.shapes:
            i, j, k = (int(edge) for edge in name.split("x"))
            ct = Path(work) / f"{name}.nii"
            save_volume(stretched_head((i, j, k), None if arguments.head else spacing), ct)
            for limit in arguments.max_memory:
                bound = [] if limit == "none" else ["--max-memory", limit]
                run = measured(ct, Path(work) / "mr.nii", model, [*bound, "--precision", arguments.precision])
                how = [w for w in run.warnings if "window" in w or "Memory" in w]
                each = run.peak * GIB / (i * j * k)
                row = f"{name} | {limit} | {run.peak:.2f} GiB | {each:.0f} | {run.seconds:.0f} s"
                print(f"| {row} | {' '.join(how) or 'whole'} |", flush=True)
                for path in Path(work).glob("mr.*"):
                    path.unlink()


if __name__ == "__main__":
    main()
