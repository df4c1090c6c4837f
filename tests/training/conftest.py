"""A tiny prepared data set, and options small enough to train on it within seconds."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ct2mri.data.cases import write_case
from ct2mri.data.plan import Plan, Split
from ct2mri.data.volume import Grid


def write_dataset(root: Path, *, cases: int = 5, drafts: bool = False) -> Path:
    """Balls with a kernel: the target is a curve of the source; sizes differ by case, some voxels are invalid."""
    names = [f"p{number}" for number in range(cases)]
    Plan(
        source_windows=[[-1024.0, 3000.0], [-160.0, 240.0]],
        target_percentile=99.5,
        target_scale=100.0,
        split=Split(seed=0, train=names[:-1], validation=names[-1:], test=[]),
        fingerprint=None,
        spacing=(2.0, 2.0, 2.0),
        crop_margin_mm=4.0,
        body_threshold=-300.0,
        anatomy="head",
    ).write(root / "plan.json")
    for number, name in enumerate(names):
        generator = np.random.default_rng(number)
        shape = (12 + number % 2, 14, 11)
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
            target_reference=100.0,
            inputs={},
            notes=[],
        )
        if drafts:
            case.write_draft((target + 0.1 * generator.standard_normal(shape)).clip(-1, 1))
    return root


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set without drafts."""
    return write_dataset(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Writes a prepared data set of one's own."""
    return lambda **settings: write_dataset(tmp_path / "data", **settings)
