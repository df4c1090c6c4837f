"""Working in the page: open a CT, wait for its translation, cancel, reload, read what failed."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_driving import choose, drop_files, marked_ct, open_page, pixels, settle, until, wait_for_images
from serving import Serving, serving

import tiny
from ct2mri.data.dicom_write import save_dicom_series
from ct2mri.data.io import save_volume


@pytest.fixture(scope="module")
def server(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A viewer with a real model at its smallest, which begins with one CT."""
    folder = tmp_path_factory.mktemp("work")
    tiny.pipeline().save_pretrained(folder / "model")
    save_volume(marked_ct(shape=(24, 28, 20)), folder / "first" / "ct.nii.gz")
    with serving(folder / "results", str(folder / "first"), "--models", str(folder / "model")) as found:
        found.until("/api/status", lambda status: status["initial"]["pending"] == 0)
        yield found


@pytest.fixture(scope="module")
def page(chromium: Any, server: Serving) -> Iterator[Any]:
    with open_page(chromium, server.address) as opened:
        wait_for_images(opened)
        yield opened


def wait_for_state(page: Any, number: int, state: str) -> Any:
    """The newest job but `number`, once it is in a state."""
    row = page.locator(".job").nth(number)
    row.locator(".state", has_text=state).wait_for()
    return row


def test_a_dropped_ct_is_opened_and_translated(page: Any, server: Serving, tmp_path: Path) -> None:
    save_volume(marked_ct(shape=(20, 24, 16)), tmp_path / "dropped_ct.nii.gz")
    drop_files(page, [tmp_path / "dropped_ct.nii.gz"])
    page.locator(".layer .name", has_text="dropped_ct").wait_for()
    page.locator("#steps").fill("2")
    page.locator("#seed").fill("7")
    page.get_by_role("button", name="Translate CT to MR").click()
    row = wait_for_state(page, 0, "Done")
    assert "2 steps, seed 7, 1 sample" in row.inner_text()
    assert row.get_by_role("link", name="NIfTI").is_visible()
    result = page.locator(".layer[data-role=result]")
    result.wait_for()
    assert result.get_by_role("checkbox").is_checked()
    wait_for_images(page)
    assert pixels(page, ".tile[data-plane=axial]").std() > 3
    assert "seed 7" in page.locator("#safety .made").inner_text()
    with page.expect_download() as saved:
        row.get_by_role("link", name="NIfTI").click()
    assert Path(saved.value.path()).stat().st_size > 1000
    assert saved.value.suggested_filename.endswith((".nii", ".nii.gz"))


def test_an_image_that_was_chosen_stays_chosen_when_a_job_ends(page: Any, tmp_path: Path) -> None:
    """Else the next press of the button translates another patient than the one just chosen."""
    save_volume(marked_ct(shape=(18, 20, 16)), tmp_path / "other_ct.nii.gz")
    drop_files(page, [tmp_path / "other_ct.nii.gz"])
    page.locator(".layer .name", has_text="other_ct").wait_for()
    image = page.locator("#translate-volume")
    assert "other_ct" in image.locator("option:checked").inner_text()  # the one that is shown
    page.locator("#steps").fill("300")
    page.get_by_role("button", name="Translate CT to MR").click()
    page.locator(".job .said", has_text="Stage").wait_for()
    image.select_option(label="CT: ct")
    wait_for_state(page, 0, "Done")
    page.locator(".layer[data-role=result]").wait_for()
    assert image.locator("option:checked").inner_text() == "CT: ct"


def test_reloading_in_the_middle_goes_on_and_cancelling_ends(page: Any, server: Serving) -> None:
    before = page.locator(".job").count()
    choose(page, "Coronal")
    page.locator("#steps").fill("1000")
    page.locator("#samples").fill("64")  # more than any machine does before it is cancelled
    page.get_by_role("button", name="Translate CT to MR").click()
    page.locator(".job .said", has_text="Stage").wait_for()
    page.reload(wait_until="commit")
    # The page takes up the job where it is, and the view as it was.
    page.locator(".job .said", has_text="Stage").wait_for()
    wait_for_images(page, 1)
    assert page.locator(".tile[data-plane=coronal]").is_visible()
    assert page.locator(".job").count() == before + 1
    row = page.locator(".job[data-state=running]")
    said = row.locator(".said")
    seen = said.inner_text()
    until(
        page, f"document.querySelector('.job[data-state=running] .said').textContent !== {json.dumps(seen)}"
    )
    assert 0 < float(row.get_by_role("progressbar").get_attribute("value")) < 1
    row.get_by_role("button", name="Cancel").click()
    row = wait_for_state(page, 0, "Cancelled")
    row.get_by_role("button", name="Delete").click()
    until(page, f"document.querySelectorAll('.job').length === {before}")
    assert len(server.get("/api/jobs")) == before


def test_what_cannot_be_opened_or_translated_is_said_in_a_sentence(page: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.nii").write_bytes(b"this is no volume" * 100)
    drop_files(page, [tmp_path / "broken.nii"])
    notice = page.locator(".notice", has_text="broken.nii")
    notice.wait_for()
    assert len(notice.inner_text()) > 30
    assert page.locator(".uploads li").count() == 0
    notice.get_by_role("button").click()
    assert page.locator(".notice").count() == 0
    # An MR in place of a CT.
    ct = marked_ct(shape=(20, 24, 16))
    mr = ct.with_array((np.abs(ct.array) / 5).astype(np.float32))
    save_volume(mr, tmp_path / "no_ct.nii.gz")
    drop_files(page, [tmp_path / "no_ct.nii.gz"])
    page.locator(".layer .name", has_text="no_ct").wait_for()
    page.locator("#translate-volume").select_option(
        label=page.locator("#translate-volume option", has_text="no_ct").inner_text()
    )
    page.locator("#steps").fill("1")
    page.locator("#start").click()
    row = wait_for_state(page, 0, "Failed")
    assert row.locator(".said").inner_text().endswith((".", "`."))


@pytest.mark.parametrize("packed", [False, True])
def test_a_dicom_series_is_opened_as_a_folder_or_a_zip(page: Any, tmp_path: Path, packed: bool) -> None:
    folder = tmp_path / ("zipped" if packed else "series")
    save_dicom_series(
        marked_ct(shape=(24, 28, 12)),
        folder,
        modality="CT",
        origin=None,
        series_description="marked head",
        derivation="drawn by a test",
        model="none",
    )
    names = page.locator(".layer .name")
    before = page.locator("#case option").count()
    if packed:
        with zipfile.ZipFile(tmp_path / "zipped.zip", "w") as archive:
            for file in sorted(folder.iterdir()):
                archive.write(file, file.name)
        drop_files(page, [tmp_path / "zipped.zip"])
    else:
        page.locator("#folder").set_input_files(folder)
    until(page, f"document.querySelectorAll('#case option').length > {before}")
    settle(page)
    assert names.count() >= 1
    assert "CT" in page.locator(".layer .role").first.inner_text()
