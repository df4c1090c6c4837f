"""Fixtures that several test modules share."""

import os
from pathlib import Path

import pytest

# Several tests run side by side on few cores; libraries that each take all cores slow one another down.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that need it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data for tests is not there ({folder.name} folder beside the checkout)")
    return folder


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of reference vectors of the published networks."""
    return Path(__file__).parent / "reference"
