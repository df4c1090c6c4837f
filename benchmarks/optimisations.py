"""Measure on a CPU what each way to compute faster brings, one by one, on the networks of a model.

    python benchmarks/optimisations.py                        # the starter model, a minute of CPU time

Each way is timed beside the plain one in turn, in the time that the processor spent on this process alone,
so that other work on the machine counts little; given is the median of the ratios. One thread.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ct2mri import TranslationPipeline, __version__
from ct2mri.data.phantom import draw_phantom
from ct2mri.data.replay import prepare_source
from ct2mri.pipeline import starter_folder
from ct2mri.stages import LatentsStage, SlicesStage


def cpu_seconds(work: Callable[[], Tensor]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def computing(work: Callable[[], Tensor], half: bool = False, learning: bool = False) -> Callable[[], Tensor]:
    """The work, with gradients or not, and under autocast to bf16 or not."""

    def run() -> Tensor:
        with torch.inference_mode(not learning), torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            return work()

    return run


def psnr(one: Tensor, other: Tensor) -> float:
    """In dB, over the range of the other."""
    error = float(((one - other) ** 2).mean())
    return float(10 * np.log10(float(other.max() - other.min()) ** 2 / error)) if error else float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a pipeline folder of a 2D and a 3D stage (default: the starter)")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    pipeline = TranslationPipeline.from_pretrained(arguments.model or starter_folder(), "cpu")
    slices, latents = pipeline.stages
    assert isinstance(slices, SlicesStage) and isinstance(latents, LatentsStage)
    network, refiner, vqvae = slices.network, latents.network, latents.vqvae
    for module in (network, refiner, vqvae):
        module.eval()
    other = (
        TranslationPipeline.from_pretrained(arguments.model or starter_folder(), "cpu").stages[0].networks[0]
    )
    other.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    head = prepare_source(draw_phantom("head", 1_000_000, 4.0).ct, pipeline.plan).array
    stack = torch.from_numpy(head).movedim(3, 0)
    middle = slices.with_neighbours(stack, torch.arange(len(stack) // 2 - 8, len(stack) // 2 + 8))
    z = torch.randn(1, refiner.sample_channels, 24, 24, 24)
    shown = torch.randn(1, refiner.condition_channels, 24, 24, 24)
    image = torch.from_numpy(head[None, :1, 32:96, 32:96, 32:96])
    codes = torch.randn(1, vqvae.embedding_dim, 16, 16, 16)

    def draw(which: nn.Module, batch: int, last: bool = False) -> Callable[[], Tensor]:
        """16 slices, `batch` at a time."""
        order = torch.channels_last if last else torch.contiguous_format

        def run() -> Tensor:
            drawn = []
            for part in middle.split(batch):
                start = torch.zeros(len(part), 1, *part.shape[2:])
                steps = torch.full((len(part),), slices.noise.last_timestep)
                drawn.append(which(start, steps, part.contiguous(memory_format=order)))
            return torch.cat(drawn)

        return run

    def learn(which: nn.Module, last: bool = False) -> Callable[[], Tensor]:
        """A gradient from 16 slices, of which 4 go through the network together."""
        work = draw(which, 4, last)

        def run() -> Tensor:
            drawn = work()
            drawn.square().mean().backward()  # type: ignore[no-untyped-call]
            which.zero_grad()
            return drawn.detach()

        return run

    def update(fused: bool) -> Callable[[], Tensor]:
        """A step of AdamW for the 2D network."""
        weights = [nn.Parameter(parameter.detach().clone()) for parameter in network.parameters()]
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimiser = torch.optim.AdamW(weights, lr=1e-4, fused=fused)

        def run() -> Tensor:
            for _ in range(20):
                optimiser.step()
            return weights[0].detach().clone()

        return run

    steps = torch.full((1,), latents.noise.last_timestep)
    size = "×".join(map(str, middle.shape[2:]))
    comparisons: list[tuple[str, Callable[[], Tensor], Callable[[], Tensor]]] = [
        (f"2D, {size}: 16 slices a batch", draw(network, 1), draw(network, 16)),
        (f"2D, {size}: 4 slices a batch", draw(network, 1), draw(network, 4)),
        ("2D, 4 slices a batch: channels last", draw(network, 4), draw(other, 4, last=True)),
        ("2D, 4 slices, channels last: bf16", draw(other, 4, last=True), draw(other, 4, last=True)),
        ("3D U-Net, 24³ latents: bf16", lambda: refiner(z, steps, shown), lambda: refiner(z, steps, shown)),
        ("VQ-VAE encoder, 64³ voxels: bf16", lambda: vqvae.encode(image), lambda: vqvae.encode(image)),
        ("VQ-VAE decoder, 16³ latents: bf16", lambda: vqvae.decode(codes), lambda: vqvae.decode(codes)),
        ("2D, a gradient of 16 slices, 4 a batch: channels last", learn(network), learn(other, last=True)),
        ("2D, 20 steps of AdamW: fused", update(False), update(True)),
    ]
    features = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in _cpu_flags()]
    print(f"ct2mri {__version__}, torch {torch.__version__}, {date.today()}, {platform.machine()} ", end="")
    print(f"({', '.join(features)}), one thread, medians of {arguments.repeats}, in CPU time\n")
    print("| what | plain | so | ratio | PSNR to plain |\n|---|---|---|---|---|", flush=True)
    for name, plain, so in comparisons:
        learning = "gradient" in name or "AdamW" in name
        before, after = computing(plain, learning=learning), computing(so, name.endswith("bf16"), learning)
        distance = psnr(after(), before())
        pairs = [(cpu_seconds(before), cpu_seconds(after)) for _ in range(arguments.repeats)]
        ratio = statistics.median(first / second for first, second in pairs)
        first, second = (statistics.median(times) for times in zip(*pairs, strict=True))
        far = "equal" if distance == float("inf") else f"{distance:.0f} dB"
        print(f"| {name} | {first:.2f} s | {second:.2f} s | {ratio:.2f}× | {far} |", flush=True)


def _cpu_flags() -> list[str]:
    """What Linux tells of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return next((line.split() for line in lines if line.startswith("flags")), [])


if __name__ == "__main__":
    main()
