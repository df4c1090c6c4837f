"""The phantom that the viewer begins with, looked at and translated by the starter; makes pictures for docs/.

Run by hand: `pytest -m slow tests/viewer/test_page_pictures.py`. Where the variable CT2MRI_RUN names the
folder of a training on phantoms, its picture is made too.
"""

import os
from pathlib import Path
from typing import Any

import pytest
from page_driving import choose, open_page, pixels, settle, until, wait_for_images
from serving import serving

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"
SIZE = {"width": 1440, "height": 900}
TRANSLATION_MS = 900_000


def test_a_phantom_is_looked_at_and_translated(chromium: Any, tmp_path: Path) -> None:
    with serving(tmp_path / "results") as server, open_page(chromium, server.address, viewport=SIZE) as page:
        wait_for_images(page)
        page.locator(".layer[data-role=target]").get_by_role("checkbox").check()
        choose(page, "Side by side")
        wait_for_images(page, 6)
        for index in range(2):
            assert pixels(page, ".tile[data-plane=axial]", index).std() > 20
        page.screenshot(path=DOCS / "viewer-side.png")
        page.locator("#start").click()
        page.locator(".job[data-state=done]").wait_for(timeout=TRANSLATION_MS)
        wait_for_images(page, 9)
        assert pixels(page, ".tile[data-plane=axial]", 2).std() > 20
        result = page.locator(".layer[data-role=result]")
        result.get_by_role("button", name="More").click()
        result.get_by_role("button", name="Error against the truth").click()
        page.locator(".layer[data-role=error]").wait_for()
        wait_for_images(page, 12)


def test_a_training(chromium: Any, tmp_path: Path) -> None:
    run = os.environ.get("CT2MRI_RUN")
    if run is None:
        pytest.skip("CT2MRI_RUN names no run to make a picture of.")
    with (
        serving(tmp_path / "results", run) as server,
        open_page(chromium, server.address, viewport=SIZE, color_scheme="light") as page,
    ):
        page.locator(".chart").first.wait_for()
        until(page, "document.querySelector('.pictures img').naturalWidth > 0")
        settle(page)
        page.screenshot(path=DOCS / "viewer-training.png")
