"""A tiny prepared data set, and options small enough to train on it within seconds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ct2mri.data.cases import write_case
from ct2mri.data.plan import Plan, Split
from ct2mri.data.volume import Grid
from ct2mri.files import write_json
from ct2mri.options.training import (
    TrainBaselineOptions,
    TrainLatentsOptions,
    TrainSlicesOptions,
    TrainVqvaeOptions,
)


def write_dataset(
    root: Path, *, cases: int = 5, drafts: bool = False, size: tuple[int, int, int] = (12, 14, 11)
) -> Path:
    """Balls whose target is a curve of the source; their sizes differ, and some voxels are invalid."""
    names = [f"p{number}" for number in range(cases)]
    Plan(
        source_windows=[[-1024.0, 3000.0], [-160.0, 240.0]],
        target_percentile=99.5,
        target_range=(0.0, 100.0),
        split=Split(seed=0, train=names[:-1], validation=names[-1:], test=[]),
        fingerprint=None,
        spacing=(2.0, 2.0, 2.0),
        crop_margin_mm=4.0,
        body_threshold=-300.0,
        anatomy="head",
    ).write(root / "plan.json")
    for number, name in enumerate(names):
        generator = np.random.default_rng(number)
        shape = (size[0] + number % 2, *size[1:])
        axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
        radius = np.sqrt(sum(axis**2 for axis in axes))
        mask = radius < 0.9
        source = np.where(mask, 0.5 - radius, -1.0) + 0.05 * generator.standard_normal(shape)
        source = np.stack([source, source**2]).clip(-1, 1).astype(np.float32)
        target = np.where(mask, 1.2 * np.cos(2 * source[0]) - 0.2, -1.0).astype(np.float32)
        valid = np.ones(shape, dtype=bool)
        valid[:, :, -2:] = False
        case = write_case(
            root / "cases" / name,
            patient_id=name,
            grid=Grid(shape, np.diag([2.0, 2.0, 2.0, 1.0])),
            source=source,
            target=target,
            mask=mask,
            valid=valid,
            target_range=(0.0, 100.0),
            inputs={},
            notes=[],
        )
        if drafts:
            case.write_draft((target + 0.1 * generator.standard_normal(shape)).clip(-1, 1))
    if drafts:
        write_json(root / "draft.json", {"model": "made up", "seed": 0, "out_of_fold": True})
    return root


TINY_UNET = {
    "base_channels": 8,
    "channel_multipliers": [1, 2],
    "attention_levels": [1],
    "norm_num_groups": 4,
    "num_heads": 2,
}
TINY_VQVAE = {
    "hidden_channels": [8, 8],
    "num_res_blocks": 1,
    "embedding_dim": 2,
    "num_embeddings": 16,
    "crop_size": [8, 8, 8],
}
TINY_TRAINING = {
    "batch_size": 4,
    "max_steps": 6,
    "warmup_steps": 2,
    "validate_every": 3,
    "validation_cases": 1,
    "device": "cpu",
}


@dataclass(frozen=True)
class Tiny:
    """A prepared data set with drafts, and options to train on it; what is given goes before what is tiny."""

    data: Path

    def slices(self, run: Path, **given: Any) -> TrainSlicesOptions:
        return TrainSlicesOptions(
            **{"data": self.data, "output_dir": run, "folds": 0, **TINY_TRAINING, **TINY_UNET, **given}
        )

    def baseline(self, run: Path, kind: str, **given: Any) -> TrainBaselineOptions:
        return TrainBaselineOptions(
            **{"data": self.data, "output_dir": run, "kind": kind, **TINY_TRAINING, **TINY_UNET, **given}
        )

    def vqvae(self, run: Path, **given: Any) -> TrainVqvaeOptions:
        return TrainVqvaeOptions(
            **{"data": self.data, "output_dir": run, **TINY_TRAINING, **TINY_VQVAE, **given}
        )

    def latents(self, run: Path, vqvae: Path, **given: Any) -> TrainLatentsOptions:
        return TrainLatentsOptions(
            **{"data": self.data, "output_dir": run, "vqvae": vqvae, **TINY_TRAINING, **TINY_UNET, **given}
        )
