"""A run that trains and a report, as the page shows them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_driving import open_page, settle, until
from serving import Serving, serving

from ct2mri.training.log import RunLog


def log_steps(run: Path, first: int, last: int) -> None:
    """Logs steps as a training does, with a validation and its picture at the last."""
    log = RunLog(run, first - 1)
    for step in range(first, last + 1):
        log.train(step, {"loss": 1 / step, "learning_rate": 1e-4})
    picture = np.arange(64 * 96, dtype=np.uint8).reshape(64, 96)
    log.validate(last, {"loss": 1.1 / last, "psnr": 20.0 + last}, {"axial": picture})
    log.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "slices of heads"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"stage": "slices", "options": {"max_steps": 60}}))
    log_steps(folder, 1, 20)
    return folder


@pytest.fixture(scope="module")
def server(chromium: Any, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("viewer") / "results", str(run)) as found:
        yield found


@pytest.fixture(scope="module")
def page(chromium: Any, server: Serving) -> Iterator[Any]:
    with open_page(chromium, server.address) as opened:
        opened.locator(".chart").first.wait_for()
        yield opened


def test_a_run_is_followed_as_its_files_grow(page: Any, run: Path) -> None:
    assert page.get_by_role("link", name="Training", exact=True).get_attribute("aria-current") == "page"
    loss = page.locator("[data-chart=loss]")
    assert "0.055" in loss.inner_text() and "0.05" in loss.inner_text()
    assert loss.locator("polyline").count() == 2
    said = loss.locator("desc").text_content()
    assert "at step 20" in said
    assert page.locator("[data-chart=psnr]").is_visible()
    image = page.get_by_role("img", name="Validation picture")
    assert "step 20" in image.get_attribute("alt")
    log_steps(run, 21, 40)
    until(page, "document.querySelector('[data-chart=loss] desc').textContent.includes('at step 40')")
    until(page, "document.querySelector('.pictures img').alt.includes('step 40')")
    until(page, "document.querySelector('.pictures img').naturalWidth > 0")
    # One who looks back stays there while the run goes on.
    page.get_by_label("Step of the pictures").press("ArrowLeft")
    assert "step 20" in image.get_attribute("alt")
    log_steps(run, 41, 60)
    until(page, "document.querySelector('[data-chart=loss] desc').textContent.includes('at step 60')")
    assert "step 20" in image.get_attribute("alt")


def test_axe_finds_no_serious_fault_in_the_other_sections(page: Any) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed."
    )
    for section in ("Training", "Reports"):
        page.get_by_role("link", name=section, exact=True).click()
        settle(page)
        found = axe.Axe().run(page).response["violations"]
        serious = [(each["id"], each["nodes"]) for each in found if each["impact"] in ("serious", "critical")]
        assert serious == []
    page.get_by_role("link", name="Training", exact=True).click()
