"""Time a translation, stage by stage, against a loop that draws one slice at a time.

    python benchmarks/translate.py                       # the starter model, a phantom head of 128³ voxels
    python benchmarks/translate.py --model MODEL --repeats 5

The straightforward loop is the same 2D network with one slice a batch, as the published scripts run it. Both
run in turn inside one process, so that their ratio holds on a machine whose speed drifts.
"""

import argparse
import platform
import resource
import statistics
import time
from collections.abc import Callable
from datetime import date

import numpy as np
import torch

from ct2mri import TranslationPipeline, Volume, __version__
from ct2mri.data.geometry import Box, crop_or_pad
from ct2mri.data.phantom import draw_phantom
from ct2mri.data.plan import prepare_source
from ct2mri.diffusion import SeededNoise
from ct2mri.pipeline import starter_folder


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def head(edge: int) -> Volume:
    """A phantom head's CT cropped or padded to edge³ voxels of 1.75 mm."""
    ct = draw_phantom("head", 1_000_000, 1.75).ct
    lower = tuple((n - edge) // 2 for n in ct.spatial_shape)
    return crop_or_pad(ct, Box(lower, tuple(n + edge for n in lower)), -1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a pipeline folder (default: the starter)")
    parser.add_argument("--edge", type=int, default=128, help="voxels along each axis (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()

    pipeline = TranslationPipeline.from_pretrained(arguments.model or starter_folder())
    ct = head(arguments.edge)
    prepared = prepare_source(ct, pipeline.plan)
    condition = {"source": torch.from_numpy(prepared.array)}
    noise = SeededNoise(0)
    times: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        times.setdefault(name, []).append(seconds(work))

    for repeat in range(arguments.repeats + 1):
        timed("whole: volume to volume", lambda: pipeline.translate(ct))
        timed(
            "reading the plan: orient, resample, mask, crop, window",
            lambda: prepare_source(ct, pipeline.plan),
        )
        for stage in pipeline.stages:
            timed(
                f"{stage.kind}, {stage.num_inference_steps} steps", lambda s=stage: s.sample(condition, noise)
            )
            if stage.kind == "slices":
                batch_size, stage.batch_size = stage.batch_size, 1
                timed("slices, one at a time", lambda s=stage: s.sample(condition, noise))
                stage.batch_size = batch_size
                condition["draft"] = stage.sample(condition, noise)
        if repeat == 0:  # warm-up
            times.clear()

    shape = "×".join(map(str, ct.spatial_shape))
    working = "×".join(map(str, prepared.grid.shape))
    print(f"ct2mri {__version__}, torch {torch.__version__}, {date.today()}, {platform.machine()}, ", end="")
    print(f"{torch.get_num_threads()} threads; input {shape}, working grid {working}; ", end="")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"medians of {arguments.repeats}; peak memory of the process {peak:.1f} GiB\n")
    whole = statistics.median(times["whole: volume to volume"])
    print("| | s | share of the whole |\n|---|---|---|")
    for name, values in times.items():
        print(f"| {name} | {statistics.median(values):.2f} | {statistics.median(values) / whole:.2f} |")
    if "slices, one at a time" in times:
        batched = next(
            values for name, values in times.items() if name.startswith("slices, ") and "steps" in name
        )
        ratios = np.array(times["slices, one at a time"]) / np.array(batched)
        print(f"\nOne slice at a time takes {np.median(ratios):.2f} times as long as batches.")


if __name__ == "__main__":
    main()
