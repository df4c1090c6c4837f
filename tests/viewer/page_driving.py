"""Driving the page: volumes to show, and what the screen shows of them."""

import base64
import io
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ct2mri.data.volume import Volume

WAIT_MS = 300_000
"""Waits are generous: graphics are computed by a processor that may be busy with other things."""

MARKER_RIGHT_MM = 46.0
"""How far the bright ball of `marked_ct` lies to the patient's right."""

FLAGS = [
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu-rasterization",
]
"""Software WebGL 2, so that a machine without graphics shows the same pixels."""


def chromium_path() -> str | None:
    return next((path for path in map(shutil.which, ("chromium", "chromium-browser")) if path), None)


def marked_ct(tilt: float = 0.0, shape: tuple[int, int, int] = (44, 52, 36)) -> Volume:
    """A head of simple shapes in HU with a bright ball on its right, turned about x by `tilt` degrees."""
    spacing = np.array([176.0, 208.0, 162.0]) / np.array(shape)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    mm = (index - (np.array(shape) - 1) / 2) * spacing
    rng = np.random.default_rng(0)
    head = np.sqrt(((mm / np.array([72.0, 88.0, 68.0])) ** 2).sum(-1))
    array = np.full(shape, -1000.0)
    array[head < 1] = 40 + rng.normal(0, 6, shape)[head < 1]
    array[(head < 1) & (head > 0.88)] = 1100
    array[np.linalg.norm(mm / np.array([12.0, 26.0, 12.0]), axis=-1) < 1] = 8
    # World x grows to the right (RAS), and so does the first index here.
    array[np.linalg.norm(mm - np.array([MARKER_RIGHT_MM, 0.0, 0.0]), axis=-1) < 11] = 2500
    angle = np.radians(tilt)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Volume(array.astype(np.float32), affine)


def look_alike_mr(ct: Volume, brightness: float = 1.0) -> Volume:
    """An MR of the same head: bright where tissue is soft, dark in bone and air."""
    soft = np.clip(1 - np.abs(ct.array - 40) / 300, 0, 1)
    rng = np.random.default_rng(1)
    return ct.with_array((600 * brightness * soft + rng.normal(0, 8, soft.shape)).clip(0).astype(np.float32))


@contextmanager
def open_page(chromium: Any, address: str, *, ignore: str | None = None, **context: Any) -> Iterator[Any]:
    """A page at an address; fails if the page threw or wrote an error to the console, those ignored aside."""
    options = {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark", **context}
    browser_context = chromium.new_context(**options)
    opened = browser_context.new_page()
    opened.set_default_timeout(WAIT_MS)
    said: list[str] = []
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    opened.goto(address, wait_until="commit")
    try:
        yield opened
    finally:
        browser_context.close()
    heard = [words for words in said if ignore is None or ignore not in words]
    assert heard == [], heard


def until(page: Any, expression: str, seconds: float = WAIT_MS / 1000) -> None:
    """Until an expression of JavaScript is true. (The page's policy stops Playwright's own waiting.)"""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"not so after {seconds:.0f} s: {expression}"
        time.sleep(0.05)


def wait_for_images(page: Any, planes: int = 3) -> None:
    """Until so many planes are shown."""
    shown = "[...document.querySelectorAll('.tile')].filter(tile => tile.checkVisibility()).length"
    until(page, f"{shown} === {planes}")
    settle(page)


def settle(page: Any) -> None:
    """Until what was asked for is drawn."""
    frame = "requestAnimationFrame"
    page.evaluate(f"new Promise(done => {frame}(() => {frame}(() => setTimeout(done, 60))))")


def pixels(page: Any, selector: str, index: int = 0) -> NDArray[np.uint8]:
    """What the screen shows inside an element: (rows, columns, RGB)."""
    box = page.locator(selector).nth(index).bounding_box()
    shot = page.screenshot(clip=box)
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))


def choose(page: Any, label: str) -> None:
    """Presses a button of the toolbar."""
    page.locator("#toolbar").get_by_role("button", name=label, exact=True).click()


def drop_files(page: Any, paths: list[Path]) -> None:
    """Drops files on the page, as from a folder on the desktop."""
    files = [(path.name, base64.b64encode(path.read_bytes()).decode()) for path in paths]
    page.evaluate(
        """files => {
            const transfer = new DataTransfer();
            for (const [name, content] of files) {
                const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
                transfer.items.add(new File([bytes], name));
            }
            for (const type of ["dragenter", "dragover", "drop"]) {
                const options = { bubbles: true, cancelable: true, dataTransfer: transfer };
                document.querySelector("#panes").dispatchEvent(new DragEvent(type, options));
            }
        }""",
        files,
    )
