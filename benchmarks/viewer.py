"""Measure the viewer: memory at rest, a volume's way to the page, how soon and smoothly that shows it.

    python benchmarks/viewer.py
    python benchmarks/viewer.py --shape 512 512 300 --repeats 5

The page is opened in headless Chromium (with Playwright), whose graphics the processor computes: a volume is
shown once a picture of the screen holds its axial plane. The processor time is that of all of the browser's
processes.

A volume goes to the page as plain NIfTI. Whether it would be there sooner compressed is measured beside it:
the same server sends the same bytes as .nii.gz, compressed beforehand, and the client unpacks them. All is
the way between two processes of one machine (loopback).
"""

import argparse
import gzip
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from ct2mri import __version__, save_volume
from ct2mri.data.volume import Volume
from ct2mri.viewer.client import ViewerClient


def seconds(work: Callable[[], object], repeats: int) -> str:
    """Median and range of some repeats."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return spread(found)


def spread(found: list[float]) -> str:
    """Median and range in seconds."""
    return f"{statistics.median(found):6.2f} s ({min(found):.2f} to {max(found):.2f})"


def head(shape: tuple[int, int, int]) -> Volume:
    """A ball of soft tissue with the noise of a CT, in air: whole HU, as badly compressible as a patient."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    radius = np.sqrt(sum(axis**2 for axis in axes))
    noise = np.random.default_rng(0).normal(0, 12, shape)
    array = np.rint(np.where(radius < 0.8, 40, -1000) + noise).astype(np.float32)
    return Volume(array, np.diag([0.9, 0.9, 1.0, 1.0]))


def memory(process: int) -> str:
    """What a process holds in memory."""
    words = Path(f"/proc/{process}/status").read_text().splitlines()
    (resident,) = (line.split()[1] for line in words if line.startswith("VmRSS"))
    return f"{int(resident) / 1024:6.0f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", type=int, nargs=3, default=(256, 256, 160))
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    shape = (chosen.shape[0], chosen.shape[1], chosen.shape[2])
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        save_volume(head(shape), root / "ct.nii.gz", dtype="int16")
        command = [sys.executable, "-m", "ct2mri", "view", str(root / "ct.nii.gz"), "--no-browser"]
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--results", str(root / "results")], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        started = time.perf_counter() - start
        try:
            client = ViewerClient(address)
            base, token = address.split("/?token=")
            while json.loads(fetched(base, token, "status"))["initial"]["pending"]:
                time.sleep(0.1)
            rows = [
                ("started, until it listens", f"{started:6.2f} s"),
                ("memory at rest", memory(process.pid)),
            ]
            rows += page_rows(address, chosen.repeats)
            uploaded: list[str] = []
            rows.append(
                ("upload of .nii.gz, until it can be shown",
                 seconds(lambda: uploaded.append(client.upload(root / "ct.nii.gz")), chosen.repeats))
            )  # fmt: skip
            rows.append(("memory after it", memory(process.pid)))
            volumes = root / "results" / "volumes"
            plain = volumes / uploaded[0].removesuffix("-source") / "source.nii"
            for level in (1, 6):
                packed = gzip.compress(plain.read_bytes(), level)
                size = f"{len(packed) / 2**20:.0f} MiB"
                # Put in the place of another volume, so that the same code sends it.
                (volumes / uploaded[-1].removesuffix("-source") / "source.nii").write_bytes(packed)
                rows.append(
                    (f"to the client as .nii.gz, level {level} ({size}), unpacked",
                     seconds(lambda: gzip.decompress(voxels(base, token, uploaded[-1])), chosen.repeats))
                )  # fmt: skip
            size = f"{plain.stat().st_size / 2**20:.0f} MiB"
            rows.append(
                (f"to the client as plain NIfTI ({size})",
                 seconds(lambda: voxels(base, token, uploaded[0]), chosen.repeats))
            )  # fmt: skip
        finally:
            process.terminate()
            process.wait()
    print(f"{' × '.join(map(str, shape))} voxels, ct2mri {__version__}, {platform.machine()}, {date.today()}")
    for words, figure in rows:
        print(f"{words:58} {figure}")


FLAGS = [
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--no-sandbox",
    "--disable-gpu-rasterization",
]
STEPS = 60
SCROLL = """async steps => {
    const frame = () => new Promise(done => requestAnimationFrame(done));
    const canvas = document.querySelector(".pane canvas");
    canvas.focus();
    const times = [];
    for (let step = 0; step < steps; step++) {
        const start = performance.now();
        const key = step < steps / 2 ? "PageUp" : "PageDown";
        canvas.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
        await frame();
        await frame();
        times.push(performance.now() - start);
    }
    return times;
}"""
"""Presses a key for each slice, and waits until the frame after the drawn one begins: two frames at least."""


def page_rows(address: str, repeats: int) -> list[tuple[str, str]]:
    """How soon the page shows the volume, and how long a slice and a window take."""
    shown, processor, scrolling, windowing = [], [], [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for turn in range(repeats + 1):
            context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="dark")
            page = context.new_page()
            before, start = processor_time(os.getpid()), time.perf_counter()
            page.goto(address, wait_until="commit")
            while page.locator(".tile").count() < 3 or axial(page).std() < 20:
                time.sleep(0.02)
            if turn == 0:  # the browser has started only now, and the files are in memory
                context.close()
                continue
            shown.append(time.perf_counter() - start)
            processor.append(processor_time(os.getpid()) - before)
            scrolling += page.evaluate(SCROLL, STEPS)
            was, start = axial(page), time.perf_counter()
            page.keyboard.press("p")
            while np.abs(axial(page) - was).mean() < 5:
                pass
            windowing.append(time.perf_counter() - start)
            context.close()
        browser.close()
    steps = np.sort(scrolling)
    return [
        ("page opened, until the volume is on the screen", spread(shown)),
        ("  processor time of the browser", spread(processor)),
        ("another window, until it is on the screen", spread(windowing)),
        ("next slice in three planes, until its frame is over",
         f"{np.median(steps):6.0f} ms (9 of 10 below {steps[int(0.9 * len(steps))]:.0f} ms)"),
    ]  # fmt: skip


def axial(page: Any) -> np.ndarray:
    """What the screen shows of the axial plane."""
    box = page.locator(".tile[data-plane=axial]").bounding_box()
    return np.asarray(Image.open(io.BytesIO(page.screenshot(clip=box))).convert("L"), dtype=np.float32)


def processor_time(process: int) -> float:
    """Seconds that the children of a process and theirs have computed."""
    ticks = 0
    waiting = [str(process)]
    while waiting:
        task = Path("/proc") / waiting.pop()
        try:
            for thread in (task / "task").iterdir():
                waiting += (thread / "children").read_text().split()
            if task.name != str(process):
                words = (task / "stat").read_text().rpartition(")")[2].split()
                ticks += int(words[11]) + int(words[12])
        except FileNotFoundError:  # it has ended
            pass
    return ticks / os.sysconf("SC_CLK_TCK")


def fetched(base: str, token: str, path: str) -> bytes:
    """What the API answers."""
    request = Request(f"{base}/api/{path}", headers={"Authorization": f"Bearer {token}"})
    with urlopen(request, timeout=600) as answer:
        content: bytes = answer.read()
    return content


def voxels(base: str, token: str, volume: str) -> bytes:
    """The bytes of a volume, as the page gets them."""
    return fetched(base, token, f"volumes/{volume}/data.nii")


if __name__ == "__main__":
    main()
