"""A tiny prepared data set and a run of `train vqvae` on it."""

from pathlib import Path

import pytest
from training_tiny import Tiny, write_dataset

from ct2mri.training.fit import train_vqvae


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A tiny prepared data set with drafts."""
    data = write_dataset(tmp_path_factory.mktemp("tiny") / "data", drafts=True)
    return Tiny(data)


@pytest.fixture(scope="session")
def vqvae_run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of `train vqvae`."""
    run = tmp_path_factory.mktemp("vqvae") / "run"
    train_vqvae(tiny.vqvae(run))
    return run
