"""Time a translation, stage by stage, against the straightforward loop of the same networks.

    python benchmarks/translate.py                                     # the starter, a phantom head of 128³
    python benchmarks/translate.py --published --size 160 224 168 --steps 10 --device cuda --compile
    python benchmarks/translate.py --precision bf16 --edge 64

The straightforward loop is how the published scripts work: one slice at a time, float32, eager, channels
first, the volume whole in 3D. It and ours run in turn inside one process, so that their ratio holds on a
machine whose speed drifts. With MONAI (pip install monai einops), its DiffusionModelUNet of about as many
parameters is timed beside our 2D network, on one batch of slices.
"""

import argparse
import platform
import resource
import statistics
import time
from collections.abc import Callable
from datetime import date
from typing import Any

import numpy as np
import torch
from torch import nn

from ct2mri import TranslationPipeline, Volume, __version__
from ct2mri.data.geometry import Box, crop_or_pad
from ct2mri.data.phantom import draw_phantom
from ct2mri.data.replay import prepare_source
from ct2mri.devices import choose_device
from ct2mri.diffusion import NoiseSettings, SeededNoise
from ct2mri.models import VQVAE, ScalableUNet
from ct2mri.pipeline import starter_folder
from ct2mri.stages import LatentsStage, SlicesStage


def head(edge: int) -> Volume:
    """A phantom head's CT cropped or padded to edge³ voxels of 1.75 mm."""
    ct = draw_phantom("head", 1_000_000, 1.75).ct
    lower = tuple((n - edge) // 2 for n in ct.spatial_shape)
    return crop_or_pad(ct, Box(lower, tuple(n + edge for n in lower)), -1000)


def random_stages(
    slices: ScalableUNet, vqvae: VQVAE, latents: ScalableUNet
) -> list[SlicesStage | LatentsStage]:
    """Both stages of the published form, around networks with random weights."""
    nn.init.normal_(vqvae.quantizer.codebook)
    settings: dict[str, Any] = {"sampler": "ddim", "num_inference_steps": 10}
    return [
        SlicesStage(slices, NoiseSettings(), **settings),
        LatentsStage(
            latents,
            vqvae,
            NoiseSettings(),
            latents_mean=[0.0] * 2,
            latents_std=[1.0] * 2,
            condition=["draft"],
            draft={},
            **settings,
        ),
    ]


def published_sizes(channels: int) -> list[SlicesStage | LatentsStage]:
    """The stages with networks of the published sizes."""
    return random_stages(
        ScalableUNet(2, 1, channels), VQVAE(embedding_dim=2), ScalableUNet(3, 2, 2, 2, base_channels=64)
    )


def made(arguments: argparse.Namespace, device: torch.device) -> TranslationPipeline:
    """The pipeline that is asked for; the same weights at every call."""
    pipeline = TranslationPipeline.from_pretrained(arguments.model or starter_folder(), arguments.device)
    if arguments.published:
        torch.manual_seed(0)
        pipeline = TranslationPipeline(pipeline.plan, published_sizes(pipeline.plan.channels)).to(device)
    if arguments.steps is not None:
        for stage in pipeline.stages:
            stage.num_inference_steps = arguments.steps
    return pipeline


class Timer:
    """Times work in turn, and keeps every time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: dict[str, list[float]] = {}

    def __call__(self, name: str, work: Callable[[], object]) -> None:
        self._wait()
        start = time.perf_counter()
        work()
        self._wait()
        self.times.setdefault(name, []).append(time.perf_counter() - start)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def ratio(self, name: str, over: str) -> float:
        """Median of the ratios, each of two times that were taken in one turn."""
        return float(np.median(np.array(self.times[name]) / np.array(self.times[over])))


def straightforward(pipeline: TranslationPipeline) -> None:
    """Have the stages compute as the published scripts do."""
    pipeline.compute_with(precision="32", batch_size=1)
    for stage in pipeline.stages:
        for network in stage.networks:
            network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def monai_beside(
    timer: Timer, ours: ScalableUNet, size: tuple[int, int], batch: int, repeats: int
) -> str | None:
    """Time MONAI's network on a batch of slices beside ours; a row, or None where MONAI is not installed."""
    try:
        import einops  # noqa: F401  # of which MONAI's attention is made
        from monai.networks.nets import DiffusionModelUNet
    except ImportError:
        return None
    wanted = sum(p.numel() for p in ours.parameters())
    theirs = None
    for width in range(8, 257, 8):  # the widest that has no more parameters
        candidate = DiffusionModelUNet(
            spatial_dims=2,
            in_channels=1 + ours.condition_channels,
            out_channels=1,
            channels=(width, 2 * width, 4 * width, 4 * width),
            attention_levels=(False, False, False, True),
            num_res_blocks=1,
            norm_num_groups=8,
            num_head_channels=max(8, width),
        )
        if sum(p.numel() for p in candidate.parameters()) > wanted and theirs is not None:
            break
        theirs = candidate
    assert theirs is not None
    theirs = theirs.eval().to(timer.device)
    height, width = (-(-edge // 8) * 8 for edge in size)  # it takes multiples of 8 alone
    sample = torch.randn(batch, 1, height, width, device=timer.device)
    condition = torch.randn(batch, ours.condition_channels, height, width, device=timer.device)
    steps = torch.full((batch,), 999, device=timer.device)
    with torch.inference_mode():
        for _ in range(repeats + 1):
            timer("MONAI", lambda: theirs(torch.cat([sample, condition], dim=1), steps))
            timer("ours", lambda: ours(sample, steps, condition))
    for name in ("MONAI", "ours"):
        timer.times[name] = timer.times[name][1:]
    counts = [sum(p.numel() for p in n.parameters()) / 1e6 for n in (theirs, ours)]
    each = statistics.median(timer.times["ours"]) / batch * 1000
    return (
        f"MONAI's DiffusionModelUNet of {counts[0]:.2f} million parameters takes "
        f"{timer.ratio('MONAI', 'ours'):.2f} times as long as our network of {counts[1]:.2f} million with "
        f"its second encoder, which takes {each:.1f} ms a slice and step (both eager, float32, channels "
        f"first, {batch} slices of {height}×{width})."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a pipeline folder (default: the starter)")
    parser.add_argument("--published", action="store_true", help="networks of the published sizes, untrained")
    parser.add_argument("--edge", type=int, default=128, help="voxels along each axis (default: %(default)s)")
    parser.add_argument("--size", type=int, nargs=3, help="working grid of random voxels, instead of a head")
    parser.add_argument("--steps", type=int, help="in every stage (default: the model's own)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--max-memory")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()

    device = choose_device(arguments.device)
    pipeline, plain = made(arguments, device), made(arguments, device)
    pipeline.compute_with(
        max_memory=arguments.max_memory, precision=arguments.precision, compile=arguments.compile
    )
    straightforward(plain)

    timer = Timer(device)
    ct = head(arguments.edge)
    if arguments.size is None:
        prepared = prepare_source(ct, pipeline.plan)
        source, mask = prepared.array, prepared.mask
    else:
        random = np.random.default_rng(0)
        shape = (pipeline.plan.channels, *arguments.size)
        source = (random.random(shape, dtype=np.float32) * 2 - 1).astype(np.float32)
        mask = np.ones(arguments.size, dtype=bool)
    noise = SeededNoise(0)
    condition, inside = {"source": torch.from_numpy(source)}, torch.from_numpy(mask)
    far: dict[str, float] = {}

    def stages(of: TranslationPipeline, name: str) -> None:
        shown = dict(condition)
        for stage in of.stages:
            timer(f"{stage.kind}, {name}", lambda s=stage: shown.update(draft=s.sample(shown, noise)))
            drawn = shown["draft"]
            if name == "ours":
                results[stage.kind] = drawn
            else:
                error = float(((drawn - results[stage.kind])[0][inside] ** 2).mean())
                far[stage.kind] = 10 * np.log10(4 / error) if error > 0 else np.inf

    results: dict[str, torch.Tensor] = {}
    for repeat in range(arguments.repeats + 1):
        if arguments.size is None:
            timer("volume to volume, ours", lambda: pipeline.translate(ct))
            timer("to the working grid", lambda: prepare_source(ct, pipeline.plan))
        timer("array to array, ours", lambda: pipeline.sample(source, mask=mask))
        stages(pipeline, "ours")
        stages(plain, "straightforward")
        if repeat == 0:  # warm-up
            first = {name: values[0] for name, values in timer.times.items()}
            timer.times.clear()

    slices = pipeline.stages[0]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(f"ct2mri {__version__}, torch {torch.__version__}, {date.today()}, {where}, ", end="")
    print(f"{torch.get_num_threads()} threads; working grid {'×'.join(map(str, source.shape[1:]))}; ", end="")
    print(
        f"{', '.join(f'{s.kind} {s.num_inference_steps} steps' for s in pipeline.stages)}; precision ", end=""
    )
    print(f"{pipeline.execution.computes_in(device)}, compiled {arguments.compile}; ", end="")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**30
    print(f"medians of {arguments.repeats} after a warm-up; peak memory {peak:.1f} GiB\n")
    print("| | s | straightforward loop | ratio | PSNR between them, in the body |\n|---|---|---|---|---|")
    for name, values in timer.times.items():
        stage, _, which = name.partition(", ")
        if which == "straightforward":
            continue
        row = f"| {name} | {statistics.median(values):.2f} |"
        if stage in far:
            other = f"{stage}, straightforward"
            row += f" {statistics.median(timer.times[other]):.2f} | {timer.ratio(other, name):.2f}× |"
            row += f" {far[stage]:.1f} dB |"
        else:
            row += " | | |"
        print(row)
    print(f"\nThe first volume took {first['array to array, ours']:.1f} s from array to array.")

    if isinstance(slices, SlicesStage) and not arguments.compile:
        size = (source.shape[1], source.shape[2])
        plain_network = plain.stages[0].networks[0]
        assert isinstance(plain_network, ScalableUNet)
        said = monai_beside(timer, plain_network, size, 4, arguments.repeats)
        print(
            f"\n{said or 'MONAI is not installed, so its network was not timed: pip install monai einops.'}"
        )


if __name__ == "__main__":
    main()
