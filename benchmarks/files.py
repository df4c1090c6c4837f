"""Time what a translation does beside its networks: reading, preparing and writing a volume.

    python benchmarks/files.py                       # 160 × 224 × 168 voxels, under a minute

Processor time of one core, which says how many processes it takes to keep a card busy. The volume is a
phantom head with noise added, since smooth volumes compress better than scans do.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ct2mri.data.geometry import Box, crop_or_pad, grid_with_spacing, resample
from ct2mri.data.io import load_volume, save_volume
from ct2mri.data.phantom import draw_phantom
from ct2mri.data.replay import prepare_source
from ct2mri.data.volume import Volume
from ct2mri.pipeline import TranslationPipeline, starter_folder
from machine import hardware, table, versions

SPACING = 1.2


def head(shape: tuple[int, int, int]) -> tuple[Volume, Volume]:
    """A phantom head's CT and MR with noise, cropped or padded to a shape."""
    phantom = draw_phantom("head", 0, 2.0)
    generator = np.random.default_rng(0)
    volumes = []
    for volume, air, noise in ((phantom.ct, -1000, 8), (phantom.mr, 0, 3)):
        fine = resample(volume, grid_with_spacing(volume.grid, (SPACING,) * 3), fill=air)
        lower = tuple((have - want) // 2 for have, want in zip(fine.spatial_shape, shape, strict=True))
        box = Box(lower, tuple(low + size for low, size in zip(lower, shape, strict=True)))
        cropped = crop_or_pad(fine, box, air)
        noisy = cropped.array + (cropped.array != air) * generator.normal(0, noise, shape)
        volumes.append(cropped.with_array(noisy.astype(np.float32)))
    return volumes[0].with_array(np.rint(volumes[0].array)), volumes[1]


def processor_time(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the median run."""
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=[160, 224, 168])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    ct, mr = head(tuple(arguments.shape))
    plan = TranslationPipeline.from_pretrained(starter_folder()).plan
    rows = []

    def measure(name: str, work: Callable[[], object]) -> None:
        rows.append([name, f"{processor_time(work, arguments.repeats):.2f} s"])

    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".nii", ".nii.gz"):
            source, target = Path(folder) / f"ct{suffix}", Path(folder) / f"mr{suffix}"
            save_volume(ct, source, dtype="int16")
            measure(f"read the CT, `{suffix}`, int16", lambda path=source: load_volume(path))
            measure(f"write the MR, `{suffix}`, float32", lambda path=target: save_volume(mr, path))
        measure("prepare: resample, find the body, crop, window", lambda: prepare_source(ct, plan))
    print(hardware())
    print(versions("numpy", "nibabel", "SimpleITK"))
    print(f"{'×'.join(map(str, arguments.shape))} voxels of {SPACING} mm; medians of {arguments.repeats}\n")
    print(table(["step", "processor time"], rows))


if __name__ == "__main__":
    main()
