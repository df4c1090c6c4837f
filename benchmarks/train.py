"""Time the training of each stage against a straightforward loop over the same network, batch and crop.

    python benchmarks/train.py                                      # small networks, for two CPU cores
    python benchmarks/train.py --config brain --stages slices --batch_size 32 --device cuda
    python benchmarks/train.py --config brain --stages vqvae latents --device cuda

The straightforward loop works as the published scripts are known to: slices of one orientation in an HDF5
file, or whole volumes in memory, read by the training process itself; items mirrored (and cropped) one by
one; float32; the noise as target; AdamW; no averaged weights, no compilation. In the 3D stage it encodes its
volumes anew in every step. Ours is `ct2mri train` itself, with its logs, averages and checks. Both take turns
in one process on whole slices and volumes (the VQ-VAE on the preset's crops), and what counts is the median
step, validations aside. Images are of a phantom head, weights untrained.
"""

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import torch
from torch.nn import functional

import ct2mri.training.speed
from ct2mri.cli import parse
from ct2mri.data.cases import SLICE_AXIS, PreparedCase, write_case
from ct2mri.data.geometry import Box, crop_or_pad
from ct2mri.data.phantom import draw_phantom
from ct2mri.data.plan import Plan, Split
from ct2mri.data.volume import Grid
from ct2mri.devices import choose_device
from ct2mri.files import write_json
from ct2mri.models import VQVAE, ScalableUNet
from ct2mri.options.training import TrainLatentsOptions, TrainOptions, TrainSlicesOptions, TrainVqvaeOptions
from ct2mri.stages import save_vqvae
from ct2mri.training.fit import train_latents, train_slices, train_vqvae
from ct2mri.training.module import make_unet
from machine import hardware, peak_memory, table, times_as_long, versions

CASES = 5  # one of them for validation: whole batches of the others
WINDOWS = [[-1024.0, 3000.0], [-160.0, 240.0]]


def write_dataset(root: Path, shape: tuple[int, int, int]) -> list[PreparedCase]:
    """One phantom head under several names, cropped or padded to a shape, with its target as draft."""
    names = [f"p{number}" for number in range(CASES)]
    split = Split(seed=0, train=names[:-1], validation=names[-1:], test=[])
    Plan(
        source_windows=WINDOWS,
        target_percentile=99.5,
        target_range=(0.0, 100.0),
        split=split,
        fingerprint=None,
        spacing=(2.0, 2.0, 2.0),
        crop_margin_mm=4.0,
        body_threshold=-300.0,
        anatomy="head",
    ).write(root / "plan.json")
    phantom = draw_phantom("head", 0, 2.0)
    lower = tuple((have - want) // 2 for have, want in zip(phantom.ct.spatial_shape, shape, strict=True))
    box = Box(lower, tuple(low + size for low, size in zip(lower, shape, strict=True)))
    ct, mr = crop_or_pad(phantom.ct, box, -1000).array, crop_or_pad(phantom.mr, box, 0).array
    source = np.stack([(ct - low) / (high - low) * 2 - 1 for low, high in WINDOWS]).clip(-1, 1)
    target = (mr / np.percentile(mr, 99.5) * 2 - 1).astype(np.float32)
    cases = []
    for name in names:
        case = write_case(
            root / "cases" / name,
            patient_id=name,
            grid=Grid(shape, np.diag([2.0, 2.0, 2.0, 1.0])),
            source=source.astype(np.float32),
            target=target,
            mask=ct > -300,
            valid=np.ones(shape, dtype=bool),
            target_range=(0.0, 100.0),
            inputs={},
            notes=[],
        )
        case.write_draft(target.clip(-1, 1))
        cases.append(case)
    write_json(root / "draft.json", {"model": "none", "seed": 0, "out_of_fold": True})
    return cases[:-1]


def random_crop(
    arrays: list[np.ndarray], edges: list[int], generator: np.random.Generator
) -> list[np.ndarray]:
    """The same place of each array (·, *spatial), mirrored or not."""
    spatial = arrays[0].shape[1:]
    starts = [int(generator.integers(0, n - edge + 1)) for n, edge in zip(spatial, edges, strict=True)]
    place = (slice(None), *(slice(s, s + edge) for s, edge in zip(starts, edges, strict=True)))
    flip = generator.random() < 0.5
    return [np.ascontiguousarray(array[place][:, ::-1] if flip else array[place]) for array in arrays]


def on_device(items: list[list[np.ndarray]], device: torch.device) -> list[torch.Tensor]:
    """Items, each a list of arrays, to batches."""
    return [torch.from_numpy(np.stack(arrays)).to(device) for arrays in zip(*items, strict=True)]


def predicted_noise_loss(
    network: ScalableUNet, target: torch.Tensor, condition: torch.Tensor
) -> torch.Tensor:
    """L1 on the noise, at timesteps drawn evenly."""
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, device=target.device), 0)
    timestep = torch.randint(0, 1000, (len(target),), device=target.device)
    level = alphas[timestep].reshape(-1, *[1] * (target.ndim - 1))
    noise = torch.randn_like(target)
    noisy = level.sqrt() * target + (1 - level).sqrt() * noise
    return functional.l1_loss(network(noisy, timestep, condition), noise)


def plain_slices(
    options: TrainSlicesOptions, cases: list[PreparedCase], folder: Path, device: torch.device
) -> Iterator[None]:
    """A step at each `next`: slices of one orientation and size at a time, from HDF5."""
    path = folder / "slices.h5"
    if not path.exists():
        with h5py.File(path, "w") as file:
            for orientation in options.orientations:
                axis = SLICE_AXIS[orientation]
                for name in ("source", "target"):
                    stacks = [np.moveaxis(np.array(getattr(case, name)), axis - 3, 0) for case in cases]
                    file[f"{orientation}/{name}"] = np.concatenate(stacks)
    network = make_unet(options, spatial_dims=2, sample_channels=1, condition_channels=len(WINDOWS)).to(
        device
    )
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-5)
    generator = np.random.default_rng(0)
    with h5py.File(path, "r") as file:
        while True:
            stack = file[options.orientations[generator.integers(len(options.orientations))]]
            items = []
            for index in generator.integers(0, len(stack["target"]), options.batch_size):
                source, target = stack["source"][index], stack["target"][index][None]
                edges = [min(n, options.crop_size or n) for n in target.shape[1:]]
                items.append(random_crop([source, target], edges, generator))
            source, target = on_device(items, device)
            loss = predicted_noise_loss(network, target, source)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            loss.item()
            yield


def plain_vqvae(
    options: TrainVqvaeOptions, cases: list[PreparedCase], folder: Path, device: torch.device
) -> Iterator[None]:
    """Likewise, crops of whole volumes held in memory."""
    volumes = [np.array(case.target)[None] for case in cases]
    network = vqvae_of(options).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-5)
    generator = np.random.default_rng(0)
    while True:
        chosen = generator.integers(0, len(volumes), options.batch_size)
        edges = [min(n, edge) for n, edge in zip(volumes[0].shape[1:], options.crop_size, strict=True)]
        (image,) = on_device([random_crop([volumes[n]], edges, generator) for n in chosen], device)
        reconstruction, vq_loss, _ = network(image)
        loss = functional.mse_loss(reconstruction, image) + vq_loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()
        yield


def vqvae_of(options: TrainVqvaeOptions) -> VQVAE:
    """The VQ-VAE of these options, whose codebook learns by gradient, as published."""
    return VQVAE(
        hidden_channels=options.hidden_channels,
        num_res_blocks=options.num_res_blocks,
        embedding_dim=options.embedding_dim,
        num_embeddings=options.num_embeddings,
        codebook_update="gradient",
    )


def plain_latents(
    options: TrainLatentsOptions,
    vqvae: VQVAE,
    cases: list[PreparedCase],
    device: torch.device,
) -> Iterator[None]:
    """Likewise, crops of targets and drafts, encoded in every step."""
    volumes = [[np.array(case.target)[None], np.array(case.draft)[None]] for case in cases]
    channels = vqvae.embedding_dim
    network = make_unet(options, spatial_dims=3, sample_channels=channels, condition_channels=channels).to(
        device
    )
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-5)
    generator = np.random.default_rng(0)
    shape = volumes[0][0].shape[1:]
    edges = [min(n, edge) for n, edge in zip(shape, options.crop_size or shape, strict=True)]
    while True:
        chosen = generator.integers(0, len(volumes), options.batch_size)
        target, draft = on_device([random_crop(volumes[n], edges, generator) for n in chosen], device)
        with torch.no_grad():
            target, draft = vqvae.encode(target), vqvae.encode(draft)
        loss = predicted_noise_loss(network, target, draft)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()
        yield


def median_step(loop: Iterator[None], steps: int, clock: Callable[[], float]) -> float:
    """Seconds of the median step."""
    seconds = []
    for _ in range(steps):
        start = clock()
        next(loop)
        seconds.append(clock() - start)
    return statistics.median(seconds)


def options_of(stage: str, arguments: argparse.Namespace, root: Path) -> Any:
    """The preset's options for a few steps on the data set that was made."""
    words = ["--config", arguments.config, "--data", str(root / "data"), "--output_dir", str(root / stage)]
    if stage == "latents":
        words += ["--vqvae", str(root / "vqvae-model")]
    options: TrainOptions = parse(f"train {stage}", words)
    changed: dict[str, Any] = {
        "max_steps": arguments.steps + 1,  # the first one starts things
        "validate_every": arguments.steps + 1,
        "validation_cases": 1,
        "resume": "never",
        "device": arguments.device,
        "workers": arguments.workers,
        "batch_size": arguments.batch_size or options.batch_size,
    }
    if stage != "vqvae":
        changed["crop_size"] = None  # ours would vary the size of crops
    # The same work in both loops: one pass of the same network over the same voxels. What a recipe does
    # besides costs time by choice.
    if stage == "slices":
        changed |= {"folds": 0, "neighbours": 0, "hu_shift": 0.0, "restart_from_estimate": False}
    if stage == "latents":
        changed |= {"condition": ["draft"], "hu_shift": 0.0, "image_weight": 0.0, "latent_target": "latents"}
    return replace(options, **changed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="demo", help="preset of the networks (default: %(default)s)")
    parser.add_argument(
        "--shape",
        type=int,
        nargs=3,
        help="voxels of the volumes (default: 64 80 64 on a CPU, 160 224 168 on a card)",
    )
    parser.add_argument("--stages", nargs="+", default=["slices", "vqvae", "latents"])
    parser.add_argument("--batch_size", type=int, help="default: the preset's")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count what the processor spent on this process alone, where other work disturbs the clock",
    )
    parser.add_argument("--workers", type=int, help="default: the training's own")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    arguments.shape = arguments.shape or ([64, 80, 64] if device.type == "cpu" else [160, 224, 168])

    clock = time.process_time if arguments.processor_time else time.perf_counter
    ct2mri.training.speed.time = SimpleNamespace(
        perf_counter=clock
    )  # so that ours is timed by the same clock
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cases = write_dataset(root / "data", tuple(arguments.shape))
        vqvae = vqvae_of(options_of("vqvae", arguments, root)).eval().requires_grad_(False)
        save_vqvae(vqvae, root / "vqvae-model" / "best")
        vqvae.to(device)
        for stage in arguments.stages:
            options = options_of(stage, arguments, root)
            loop, train = {
                "slices": lambda o: (plain_slices(o, cases, root, device), train_slices),
                "vqvae": lambda o: (plain_vqvae(o, cases, root, device), train_vqvae),
                "latents": lambda o: (plain_latents(o, vqvae, cases, device), train_latents),
            }[stage](options)
            next(loop)
            plain, ours, waiting = list[float](), list[float](), list[float]()
            for _ in range(arguments.repeats):
                plain.append(median_step(loop, arguments.steps, clock))
                train(options)
                with (root / stage / "train.csv").open(newline="") as file:
                    taken = list(csv.DictReader(file))[1:]
                ours.append(statistics.median(float(step["seconds"]) for step in taken))
                waiting.append(
                    sum(float(step["waiting"]) for step in taken)
                    / sum(float(step["seconds"]) for step in taken)
                )
            crop = options.crop_size if options.crop_size is not None else arguments.shape
            crop = f"{crop}²" if isinstance(crop, int) else "×".join(map(str, crop))
            rows.append(
                [
                    stage,
                    f"{options.batch_size} × {crop}",
                    f"{options.batch_size / statistics.median(plain):.2f}",
                    f"{options.batch_size / statistics.median(ours):.2f}",
                    f"{times_as_long(plain, ours):.2f}×",
                    f"{statistics.median(waiting):.1%}",
                ]
            )
    print(f"\n{hardware(str(device))}, {torch.get_num_threads()} threads")
    print(versions("torch", "lightning"))
    print(
        f"{'processor time' if arguments.processor_time else 'time by the clock'}; "
        f"preset {arguments.config}, volumes of {'×'.join(map(str, arguments.shape))}, float32 in the "
        f"straightforward loop; medians of {arguments.repeats} turns of {arguments.steps} steps; peak memory "
        f"of the process {peak_memory():.1f} GiB"
    )
    header = [
        "stage",
        "batch × crop",
        "straightforward images/s",
        "ours images/s",
        "ours is",
        "ours waits for data",
    ]
    print(f"\n{table(header, rows)}")


if __name__ == "__main__":
    main()
