"""Time what `--compile` costs for each new size, on a model's networks: block by block, and as a whole.

    python benchmarks/compiling.py                     # the starter model, ten minutes of two cores

Block by block, with sizes left open, is what `--compile` does in use; as a whole, anew for each size, is what
it does in training. Each way has a process and a cache of its own, in which it meets one size after the
other; a second process then meets them in the other order, and finds on disk what the first one compiled.
"Compiled" is the time of later calls over that of the network as it is, in turns.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ct2mri import TranslationPipeline
from ct2mri.devices import choose_device
from ct2mri.models import ScalableUNet
from ct2mri.models.compiling import compile_blocks, compile_whole, why_not_compiled
from ct2mri.pipeline import starter_folder
from machine import hardware, in_turns, table, times_as_long, versions

# Even on all levels, odd on some, and another even one: slices, and latents.
SIZES: dict[int, list[tuple[int, ...]]] = {
    2: [(120, 152), (117, 149), (112, 160)],
    3: [(24, 32, 24), (23, 31, 22), (28, 28, 32)],
}
BATCH = {2: 4, 3: 1}


@dataclass(frozen=True)
class Case:
    """One way to compile one network.

    Attributes:
        model: a pipeline's folder.
        device: that computes.
        spatial_dims: 2 for its network of slices, 3 for that of latents.
        blocks: block by block, or as a whole.
        turned: the sizes in the other order.
        repeats: of later calls.
    """

    model: str
    device: str
    spatial_dims: int
    blocks: bool
    turned: bool
    repeats: int


def measured(case: Case) -> list[tuple[float, float]]:
    """For each size, seconds of its first call, and the time of later ones over that of the network as it is.

    Raises:
        SystemExit: nothing can be compiled here.
    """
    device = choose_device(case.device)
    plain, compiled = (_network(case.model, case.spatial_dims, device) for _ in range(2))
    if case.blocks:
        compile_blocks(compiled)
    else:
        compile_whole(compiled)
    found = []
    for size in reversed(SIZES[case.spatial_dims]) if case.turned else SIZES[case.spatial_dims]:
        batch = BATCH[case.spatial_dims]
        sample = torch.randn(batch, compiled.sample_channels, *size, device=device)
        condition = torch.randn(batch, compiled.condition_channels, *size, device=device)
        if case.spatial_dims == 2:
            condition = condition.contiguous(memory_format=torch.channels_last)
        given = sample, torch.full((batch,), 999, device=device), condition
        _call(plain, *given)
        start = time.perf_counter()
        _call(compiled, *given)
        first = time.perf_counter() - start
        if sentence := why_not_compiled():
            raise SystemExit(sentence)
        turns = in_turns(
            {"plain": partial(_call, plain, *given), "compiled": partial(_call, compiled, *given)},
            case.repeats,
        )
        found.append((first, times_as_long(turns["compiled"], turns["plain"])))
    return found[::-1] if case.turned else found


def _call(network: nn.Module, *given: Tensor) -> None:
    with torch.inference_mode():
        network(*given)
    if given[0].device.type == "cuda":
        torch.cuda.synchronize(given[0].device)


def _network(model: str, spatial_dims: int, device: torch.device) -> ScalableUNet:
    stages = TranslationPipeline.from_pretrained(model, device.type).stages
    for stage in stages:
        for network in stage.networks:
            if isinstance(network, ScalableUNet) and network.spatial_dims == spatial_dims:
                network.eval()
                if spatial_dims == 2:
                    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                return network
    raise SystemExit(f"{model} has no {spatial_dims}D network.")


def alone(case: Case) -> list[tuple[float, float]]:
    """What is measured in a process that has compiled nothing yet."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(measured, case).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", default=str(starter_folder()), help="a pipeline folder (default: the starter)"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 3], choices=[2, 3], help="of the networks")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()

    rows = []
    for dims in arguments.dims:
        for blocks in (True, False):
            with tempfile.TemporaryDirectory() as cache:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
                told = (arguments.model, arguments.device, dims, blocks)
                first = alone(Case(*told, turned=False, repeats=arguments.repeats))
                second = alone(Case(*told, turned=True, repeats=1))
            for place, (size, (cold, share), (warm, _)) in enumerate(
                zip(SIZES[dims], first, second, strict=True), start=1
            ):
                rows.append(
                    (
                        f"{dims}D",
                        "blocks, for all sizes" if blocks else "whole, for each size",
                        f"{place}: {'×'.join(map(str, size))}",
                        f"{cold:.1f} s",
                        f"{warm:.1f} s",
                        f"{share:.2f}×",
                    )
                )
    print(f"{hardware(arguments.device)}\n{versions('torch')}, {torch.get_num_threads()} threads\n")
    header = [
        "network",
        "compiled",
        "size",
        "its first call",
        "in the next process (other order)",
        "later calls",
    ]
    print(table(header, rows))


if __name__ == "__main__":
    main()
