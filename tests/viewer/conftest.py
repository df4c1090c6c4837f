"""A viewer that runs and a browser that looks at it, for the tests of the page."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_driving import FLAGS, chromium_path, look_alike_mr, marked_ct
from serving import serving

from ct2mri.data.io import save_volume


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Headless Chromium, the same for all tests of a process."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright for Python is not installed.")
    path = chromium_path()
    if path is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium).")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def case_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two cases: one with a CT, truth, draft, result, error and spread, and one oblique CT."""
    given = tmp_path_factory.mktemp("given")
    folder = given / "marked head"
    folder.mkdir()
    ct = marked_ct()
    truth, result = look_alike_mr(ct), look_alike_mr(ct, 0.9)
    error = result.with_array(result.array - truth.array)
    volumes = {"ct": ct, "mr": truth, "draft": look_alike_mr(ct, 0.7), "result": result, "error": error}
    volumes["spread"] = error.with_array(np.abs(error.array))
    for name, volume in volumes.items():
        save_volume(volume, folder / f"{name}.nii.gz")
    save_volume(marked_ct(tilt=25), given / "oblique head" / "ct.nii.gz")
    return given


@pytest.fixture(scope="session")
def address(chromium: Any, case_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a viewer that shows `case_folder`."""
    with serving(tmp_path_factory.mktemp("viewer") / "results", str(case_folder)) as server:
        server.until("/api/status", lambda status: status["initial"]["pending"] == 0)
        yield server.address
