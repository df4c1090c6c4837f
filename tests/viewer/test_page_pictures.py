"""The starter's demo looked at and translated in the page; makes the pictures in docs/.

Run by hand: `pytest -m slow tests/viewer/test_page_pictures.py`. Where the variable CT2MRI_RUN names the
folder of a training on phantoms, its picture is made too.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_driving import choose, open_page, pixels, settle, until, wait_for_images
from serving import serving

from ct2mri.data.intensity import body_mask, target_reference
from ct2mri.data.io import load_volume, save_volume
from ct2mri.data.plausibility import BODY_THRESHOLD
from ct2mri.demo import show_phantom
from ct2mri.options import DemoOptions
from ct2mri.pipeline import TranslationPipeline, starter_folder

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"
SIZE = {"width": 1440, "height": 900}


@pytest.fixture(scope="module")
def demo_case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `ct2mri demo` writes of its phantom, the truth on the result's scale, and the error."""
    folder = tmp_path_factory.mktemp("demo") / "phantom head"
    pipeline = TranslationPipeline.from_pretrained(starter_folder(), "cpu")
    show_phantom(pipeline, folder, DemoOptions(output=folder.parent, device="cpu"))
    ct, mr, result = (load_volume(folder / f"{name}.nii.gz") for name in ("ct", "mr", "synthetic_mr"))
    body = body_mask(ct.array, ct.spacing, BODY_THRESHOLD)
    scale = pipeline.plan.target_range[1] / target_reference(mr.array, body, pipeline.plan.target_percentile)
    save_volume(mr.with_array(mr.array * np.float32(scale)), folder / "mr.nii.gz")
    save_volume(mr.with_array(result.array - mr.array * np.float32(scale)), folder / "error.nii.gz")
    return folder


def test_the_demo_side_by_side_and_its_error(chromium: Any, demo_case: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "results", str(demo_case)) as server:
        server.until("/api/status", lambda status: status["initial"]["pending"] == 0)
        with open_page(chromium, server.address, viewport=SIZE) as page:
            wait_for_images(page, 6)
            for index in range(2):
                assert pixels(page, ".tile[data-plane=axial]", index).std() > 20
            page.screenshot(path=DOCS / "viewer-side.png")
            page.emulate_media(color_scheme="light")
            choose(page, "Layers")
            choose(page, "Axial")
            page.locator(".layer[data-role=error]").get_by_role("checkbox").check()
            wait_for_images(page, 1)
            page.screenshot(path=DOCS / "viewer-error.png")


def test_a_phantom_is_drawn_and_translated_in_the_page(chromium: Any, tmp_path: Path) -> None:
    with serving(tmp_path / "results") as server, open_page(chromium, server.address, viewport=SIZE) as page:
        wait_for_images(page)
        page.locator("#start").click()
        page.locator(".job[data-state=done]").wait_for(timeout=900_000)
        page.locator(".layer[data-role=result]").wait_for()
        wait_for_images(page)
        assert pixels(page, ".tile[data-plane=coronal]").std() > 20


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
