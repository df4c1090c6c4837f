"""What may name a patient stays out of titles, addresses and the terminal; so does the token."""

import os
import signal
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from page_driving import drop_files, marked_ct, open_page, until, wait_for_images
from serving import PATIENCE, serving

import tiny
from ct2mri.data.dicom_write import save_dicom_series
from ct2mri.data.io import save_volume
from ct2mri.viewer.client import ViewerClient

NAME = "DOE_JANE"


def test_names_of_files_are_in_no_title_address_or_log(chromium: Any, tmp_path: Path) -> None:
    ct = marked_ct(shape=(20, 24, 16))
    given, dropped = tmp_path / "given", tmp_path / "dropped"
    for suffix in ("nii.gz", "mha", "nrrd"):
        save_volume(ct, given / f"{NAME}-{suffix[:3]}_ct.{suffix}")
        save_volume(ct, dropped / f"{NAME}_ct.{suffix}")
    (dropped / f"{NAME}.nii").write_bytes(b"no volume" * 99)
    (given / f"{NAME}-broken.nii").write_bytes(b"no volume" * 99)
    series = dropped / f"{NAME} series"
    words = {"series_description": "head", "derivation": "drawn", "model": "none"}
    save_dicom_series(ct, series, modality="CT", origin=None, **words)
    for file in list(series.iterdir()):
        file.rename(series / f"{file.stem}.{NAME}")
    with zipfile.ZipFile(dropped / f"{NAME}.zip", "w") as archive:
        for file in series.iterdir():
            archive.write(file, f"{NAME}/{file.name}")
    tiny.pipeline().save_pretrained(tmp_path / "model")
    seen = []
    with (
        serving(tmp_path / "results", str(given), "--models", str(tmp_path / "model")) as server,
        open_page(chromium, server.address, ignore="Failed to load resource") as page,
    ):
        page.on("request", lambda request: seen.append(request.url))
        wait_for_images(page)
        page.reload(wait_until="commit")
        until(page, "document.querySelectorAll('#case option').length === 3")
        wait_for_images(page)
        drop_files(page, [file for file in sorted(dropped.iterdir()) if file.is_file()])
        page.locator("#folder").set_input_files(series)
        until(page, "document.querySelectorAll('#case option').length === 8", 90)
        until(page, "document.querySelectorAll('.uploads li').length === 0")
        assert page.locator(".notice", has_text=NAME).count() == 2, "those that cannot be read are named"
        page.locator("#steps").fill("1")
        page.locator("#start").click()
        page.locator(".job[data-state=done]").wait_for()
        with page.expect_download() as saved:
            page.locator(".job").get_by_role("link", name="NIfTI").click()
        seen += [page.title(), page.url, saved.value.suggested_filename]
        client = ViewerClient(server.address)
        for path in (dropped / f"{NAME}_ct.nii.gz", series):
            assert client.upload(path)
        assert server.client.get(f"/api/volumes/{NAME}").status_code == 422
    assert sum("/files?name=" in address for address in seen) >= 8
    assert [words for words in seen if "DOE" in words or "JANE" in words] == []
    assert "DOE" not in server.log.read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="Other users of Windows cannot read command lines.")
def test_the_browser_is_opened_without_the_token_on_its_command_line(chromium: Any, tmp_path: Path) -> None:
    """The browser is a script that notes its command line; then Chromium opens what it was told to open."""
    told, script = tmp_path / "told", tmp_path / "browser"
    script.write_text(f'#!/bin/sh\nprintf "%s" "$*" > "{told}.part" && mv "{told}.part" "{told}"\n')
    script.chmod(0o700)
    save_volume(marked_ct(shape=(20, 24, 16)), tmp_path / "ct.nii")
    results = tmp_path / "my results"
    command = [sys.executable, "-m", "ct2mri", "view", str(tmp_path / "ct.nii"), "--results", str(results)]
    environment = {**os.environ, "BROWSER": f"{script} %s", "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--device", "cpu"], stdout=log, env=environment)
    try:
        end = time.monotonic() + PATIENCE
        while not told.exists():
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.05)
        token = (tmp_path / "log").read_text().split("?token=")[1].split()[0]
        address = told.read_text()
        assert address.startswith("file://") and token not in address
        (door,) = results.glob("*.html")
        assert stat.S_IMODE(door.stat().st_mode) == 0o600 and token in door.read_text()
        with open_page(chromium, address) as page:
            page.wait_for_url(lambda url: url.startswith("http://127.0.0.1:") and url.endswith("/"))
            wait_for_images(page)
            assert token not in page.url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=PATIENCE)
    assert not door.exists()
