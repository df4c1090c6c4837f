"""The phantom that the viewer begins with, looked at and translated by the starter; makes pictures for docs/.

Run by hand: `pytest -m slow tests/viewer/test_page_pictures.py`. Where the variable CT2MRI_RUN names the
folder of a training on phantoms, its picture is made too.
"""

import io
import os
from pathlib import Path
from typing import Any

import pytest
from page_driving import choose, drop_files, open_page, pixels, settle, until, wait_for_images
from PIL import Image
from serving import serving

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"
SIZE = {"width": 1280, "height": 800}
TRANSLATION_MS = 900_000
LARGEST = 200_000
COLOURS = 160


def keep_picture(page: Any, name: str) -> None:
    """A picture of the screen for the docs, in few colours, so that it is small."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    few = picture.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(DOCS / name, optimize=True)
    assert (DOCS / name).stat().st_size < LARGEST


def test_a_phantom_is_looked_at_and_translated(chromium: Any, tmp_path: Path) -> None:
    with serving(tmp_path / "results") as server, open_page(chromium, server.address, viewport=SIZE) as page:
        wait_for_images(page)
        page.locator("#start").click()
        page.locator(".job[data-state=done]").wait_for(timeout=TRANSLATION_MS)
        page.locator(".layer[data-role=result]").wait_for()
        choose(page, "Side by side")
        page.locator(".layer[data-role=draft]").get_by_role("checkbox").uncheck()
        choose(page, "Axial")
        wait_for_images(page, 2)
        choose(page, "Three planes")
        wait_for_images(page, 6)
        for index in range(2):
            assert pixels(page, ".tile[data-plane=axial]", index).std() > 20
        keep_picture(page, "viewer-side.png")
        result = page.locator(".layer[data-role=result]")
        result.get_by_role("button", name="More").click()
        if page.locator(".layer[data-role=error]").count() == 0:
            result.get_by_role("button", name="Error against the truth").click()
        error = page.locator(".layer[data-role=error]")
        error.wait_for()
        result.get_by_role("button", name="More").click()
        page.locator(".layer[data-role=target]").get_by_role("checkbox").check()
        error.get_by_role("checkbox").check()
        choose(page, "Axial")
        wait_for_images(page, 4)
        settle(page)
        keep_picture(page, "viewer-error.png")
        # What cannot be done: a file that is no volume, and an MR in place of a CT.
        (tmp_path / "cut_short.nii").write_bytes(b"not all of a volume" * 100)
        drop_files(page, [tmp_path / "cut_short.nii"])
        page.locator(".notice").wait_for()
        with page.expect_download() as saved:
            page.locator(".job").get_by_role("link", name="NIfTI").click()
        saved.value.save_as(tmp_path / "an_mr.nii")
        drop_files(page, [tmp_path / "an_mr.nii"])
        page.locator(".layer .name", has_text="an_mr").wait_for()
        page.locator("#start").click()
        page.locator(".job[data-state=failed]").wait_for(timeout=TRANSLATION_MS)
        choose(page, "Layers")
        choose(page, "Three planes")
        wait_for_images(page)
        keep_picture(page, "viewer-refused.png")


def test_a_training(chromium: Any, tmp_path: Path) -> None:
    run = os.environ.get("CT2MRI_RUN")
    if run is None:
        pytest.skip("CT2MRI_RUN names no run to make a picture of.")
    size = {"width": 1280, "height": 1060}
    with (
        serving(tmp_path / "results", run) as server,
        open_page(chromium, server.address, viewport=size, color_scheme="light") as page,
    ):
        page.locator(".chart").first.wait_for()
        until(page, "document.querySelector('.pictures img').naturalWidth > 0")
        settle(page)
        keep_picture(page, "viewer-training.png")
