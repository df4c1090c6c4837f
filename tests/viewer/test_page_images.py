"""Looking at a case in the page, as a person would: planes, marks, values, layers, layouts, keys, themes."""

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from page_driving import MARKER_RIGHT_MM, choose, open_page, pixels, settle, until, wait_for_images

ZONE = """
document.activeElement.closest("header, #open, #layers, #toolbar, #panes, #translate")?.id
    || document.activeElement.closest("header")?.tagName || ""
"""


@pytest.fixture(scope="module")
def page(chromium: Any, address: str) -> Iterator[Any]:
    """The case of six volumes, all read, its CT alone in three planes."""
    with open_page(chromium, address) as opened:
        until(opened, "document.querySelectorAll('.layer').length === 6")
        wait_for_images(opened, 6)
        yield opened


@pytest.fixture(autouse=True)
def from_the_start(page: Any) -> None:
    """Every test begins with the CT alone, in three planes, right on the left, not enlarged."""
    page.mouse.move(5, 5)
    choose(page, "Layers")
    choose(page, "Three planes")
    for name, pressed in (
        ("R on left", "true"),
        ("Voxels", "false"),
        ("+ 3D", "false"),
        ("Crosshair", "true"),
    ):
        button = page.locator("#toolbar").get_by_role("button", name=name, exact=True)
        if button.get_attribute("aria-pressed") != pressed:
            button.click()
    layer(page, "source").get_by_role("button", name="alone").click()
    choose(page, "Reset")
    wait_for_images(page)


def layer(page: Any, role: str) -> Any:
    return page.locator(f".layer[data-role={role}]")


def value(page: Any, role: str) -> float:
    """The number that a layer shows for the place under the pointer."""
    text = layer(page, role).locator("output").inner_text()
    return float(re.sub(r"[^0-9.\-]", "", text.replace("a.u.", "")))


def tile(plane: str) -> str:
    return f".tile[data-plane={plane}]"


def place(page: Any) -> str:
    return str(page.locator("#position .mm").inner_text())


def rightwards(where: str) -> float:
    """How far to the patient's right a place is, in mm."""
    side, mm = where.split()[1:3]
    return float(mm) * (1 if side == "R" else -1)


def bright_side(picture: np.ndarray) -> str:
    """The half of a picture that the bright ball is in: what a narrow window far up shows white."""
    white = (picture.min(-1) > 240).sum(0)
    half = len(white) // 2
    return "left" if white[:half].sum() > white[half:].sum() else "right"


def tissue(picture: np.ndarray) -> float:
    """The grey of what is neither black nor white: of the head's soft tissue."""
    grey = picture.max(-1)
    return float(np.median(grey[(grey > 10) & (grey < 245) & (np.ptp(picture.astype(int), axis=-1) < 6)]))


def set_window(page: Any, role: str, low: float, high: float) -> None:
    own = layer(page, role)
    own.get_by_role("button", name="More").click()
    own.get_by_label("Lowest value").fill(str(low))
    own.get_by_label("Highest value").fill(str(high))
    own.get_by_label("Highest value").press("Tab")
    own.get_by_role("button", name="More").click()
    settle(page)


def test_every_plane_and_3d_show_an_image(page: Any) -> None:
    for plane in ("axial", "coronal", "sagittal"):
        picture = pixels(page, tile(plane))
        assert picture.std() > 30, plane
    for plane in ("Axial", "Coronal", "Sagittal"):
        choose(page, plane)
        wait_for_images(page, 1)
        assert pixels(page, tile(plane.lower())).std() > 30, plane
    choose(page, "3D")
    wait_for_images(page, 0)
    assert pixels(page, ".pane").std() > 15


def test_marks_name_the_side_that_the_marker_is_on(page: Any) -> None:
    set_window(page, "source", 1500, 2000)
    for radiological, side, left in ((True, "left", "R"), (False, "right", "L")):
        for plane in ("axial", "coronal"):
            assert page.locator(f"{tile(plane)} .at-left").inner_text() == left
            assert bright_side(pixels(page, tile(plane))) == side, (plane, radiological)
        assert page.locator(f"{tile('sagittal')} .at-left").inner_text() == "A"
        choose(page, "R on left")
        settle(page)
    layer(page, "source").get_by_role("button", name="More").click()
    layer(page, "source").locator(".look select").first.select_option("soft")
    layer(page, "source").get_by_role("button", name="More").click()


def test_oblique_planes_say_where_they_lie(page: Any) -> None:
    page.locator("#case").select_option("oblique head")
    until(page, "document.querySelectorAll('.layer').length === 1")
    wait_for_images(page)
    until(page, f"document.querySelector({json.dumps(tile('axial') + ' .at-top')}).textContent === 'AS'")
    marks = {
        plane: [page.locator(f"{tile(plane)} .at-{side}").inner_text() for side in ("left", "top")]
        for plane in ("axial", "coronal", "sagittal")
    }
    # Turned by 25 degrees about the axis to the right, so that the front is lifted.
    assert marks == {"axial": ["R", "AS"], "coronal": ["R", "SP"], "sagittal": ["AS", "SP"]}
    set_window(page, "source", 1500, 2000)
    assert bright_side(pixels(page, tile("axial"))) == "left"
    page.locator("#case").select_option("marked head")
    until(page, "document.querySelectorAll('.layer').length === 6")
    until(page, f"document.querySelector({json.dumps(tile('axial') + ' .at-top')}).textContent === 'A'")


def test_pointer_reads_every_loaded_layer_where_it_is(page: Any) -> None:
    choose(page, "Axial")
    layer(page, "result").get_by_role("checkbox").check()
    wait_for_images(page, 1)
    box = page.locator(tile("axial")).bounding_box()
    scale = page.locator(f"{tile('axial')} .bar").bounding_box()["width"] / float(
        page.locator(f"{tile('axial')} .length").inner_text().split()[0]
    )
    centre_x, centre_y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(centre_x - MARKER_RIGHT_MM * scale, centre_y)
    until(page, "document.querySelector('#position .mm').textContent.startsWith('Pointer R 4')")
    assert value(page, "source") == pytest.approx(2500, abs=1)
    assert value(page, "result") < 60
    # The same way to the left of the patient is soft tissue.
    page.mouse.move(centre_x + MARKER_RIGHT_MM * scale, centre_y)
    until(page, "document.querySelector('#position .mm').textContent.startsWith('Pointer L 4')")
    assert value(page, "source") == pytest.approx(40, abs=40)
    assert value(page, "result") == pytest.approx(500, abs=120)
    page.mouse.move(5, 5)


def test_dragging_moves_the_crosshair_of_every_pane(page: Any) -> None:
    layer(page, "result").get_by_role("checkbox").check()
    choose(page, "Side by side")
    choose(page, "Axial")
    wait_for_images(page, 2)
    box = page.locator(tile("axial")).first.bounding_box()
    before = [text.split("\n")[0] for text in page.locator(".tile:visible .where").all_inner_texts()]
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.wheel(0, 300)
    settle(page)
    slices = page.locator(".tile:visible .where").all_inner_texts()
    assert slices[0] == slices[1] != before[0]
    page.mouse.down()
    page.mouse.move(x + 40, y + 30, steps=3)
    page.mouse.up()
    settle(page)
    places = page.evaluate("() => JSON.parse(sessionStorage['ct2mri-place-marked head'])")
    assert places[0] < -5 and places[1] < -5
    halves = [pixels(page, tile("axial"), index) for index in (0, 1)]
    assert np.abs(halves[0].astype(int) - halves[1]).mean() > 3
    page.mouse.move(5, 5)


def test_layers_windows_opacity_and_voxels_change_what_is_seen(page: Any) -> None:
    choose(page, "Axial")
    choose(page, "Crosshair")
    wait_for_images(page, 1)
    seen = [pixels(page, tile("axial"))]

    def changed(what: str) -> None:
        for _ in range(200):
            settle(page)
            now = pixels(page, tile("axial"))
            if np.abs(now.astype(int) - seen[-1]).mean() > 0.5:
                seen.append(now)
                return
        raise AssertionError(f"{what} changes nothing on the screen")

    assert tissue(seen[-1]) == pytest.approx(255 * (40 + 160) / 400, abs=8), "the soft tissue window"
    page.keyboard.press("p")
    changed("the next window")
    assert tissue(seen[-1]) == pytest.approx(255 * (40 + 500) / 2000, abs=8), "the bone window"
    choose(page, "Voxels")
    changed("nearest neighbour")
    layer(page, "result").get_by_role("checkbox").check()
    changed("the result over it")
    layer(page, "result").get_by_label("Opacity").fill("0.4")
    changed("opacity")
    layer(page, "error").get_by_role("checkbox").check()
    changed("the error over both")
    colour = np.ptp(seen[-1].astype(int), axis=-1)
    assert (colour > 60).mean() > 0.1, "errors are in colour"
    across, height = colour.shape[1] // 2, colour.shape[0]
    assert colour[height // 30 : height // 12, across + 40 : across + 200].max() < 12, "no error is clear"
    layer(page, "result").get_by_label("Opacity").fill("1")


def test_the_curtain_shows_one_volume_on_each_side(page: Any) -> None:
    choose(page, "Axial")
    choose(page, "Crosshair")
    wait_for_images(page, 1)
    source = pixels(page, "#panes")
    choose(page, "Curtain")
    wait_for_images(page, 2)
    slider = page.get_by_label("Curtain", exact=True)
    slider.fill("1")
    settle(page)
    at_right = pixels(page, "#panes")
    slider.fill("0")
    settle(page)
    at_left = pixels(page, "#panes")
    slider.fill("0.5")
    settle(page)
    half = pixels(page, "#panes")
    middle, rows = half.shape[1] // 2, slice(60, half.shape[0] - 60)
    assert source.shape[1] == half.shape[1]
    left, right = np.s_[rows, : middle - 20], np.s_[rows, middle + 20 :]
    assert np.abs(half[left].astype(int) - at_right[left]).mean() < 1
    assert np.abs(half[right].astype(int) - at_left[right]).mean() < 1
    assert np.abs(at_right[right].astype(int) - at_left[right]).mean() > 5
    edge = page.locator(".edge").bounding_box()
    page.mouse.move(edge["x"] + 8, edge["y"] + 80)
    page.mouse.down()
    page.mouse.move(edge["x"] + 108, edge["y"] + 80, steps=3)
    page.mouse.up()
    assert float(slider.input_value()) > 0.55


def test_keys_alone_reach_everything(page: Any) -> None:
    page.locator("body").press("a")
    wait_for_images(page, 1)
    page.locator(".pane canvas").first.focus()
    start = place(page)
    where = page.locator(f"{tile('axial')} .where").inner_text()
    page.keyboard.press("ArrowLeft")
    until(page, f"document.querySelector('#position .mm').textContent !== {json.dumps(start)}")
    # To the next voxel's centre, of 4 mm each, from wherever the crosshair was between two.
    moved = rightwards(place(page)) - rightwards(start)
    assert 2 <= moved <= 6.1, "left on the screen is the patient's right"
    page.keyboard.press("Shift+PageUp")
    settle(page)
    assert page.locator(f"{tile('axial')} .where").inner_text() != where
    page.keyboard.press("4")
    assert (
        layer(page, "draft").get_by_role("checkbox").is_checked()
        or layer(page, "result").get_by_role("checkbox").is_checked()
    )
    page.keyboard.press("Shift+Digit1")
    assert page.locator(".layer input[type=checkbox]:checked").count() == 1
    page.keyboard.press("r")
    settle(page)
    assert page.locator(f"{tile('axial')} .at-left").inner_text() == "L"
    page.keyboard.press("r")
    page.keyboard.press("?")
    sheet = page.get_by_role("dialog", name="Keys and mouse")
    assert sheet.is_visible()
    page.keyboard.press("Escape")
    assert not sheet.is_visible()
    page.keyboard.press("g")
    assert page.evaluate("document.activeElement.closest('#translate') !== null")
    # Letters typed into a field are text, not keys.
    page.locator("#seed").focus()
    page.keyboard.press("c")
    assert page.locator(tile("axial")).is_visible()


def test_tab_goes_through_the_page_in_order(page: Any) -> None:
    page.locator("body").evaluate("body => { body.tabIndex = -1; body.focus(); }")
    met = []
    for _ in range(70):
        page.keyboard.press("Tab")
        met.append(page.evaluate(ZONE))
        if met[-1] == "translate":
            break
    order = [name for index, name in enumerate(met) if name and name != met[index - 1]]
    assert order == ["HEADER", "open", "layers", "toolbar", "panes", "translate"]


def test_the_safety_sentence_is_always_on_the_screen(page: Any) -> None:
    def seen() -> bool:
        box = page.locator("#safety .sentence").bounding_box()
        return bool(box and box["y"] + box["height"] <= page.viewport_size["height"] + 1)

    assert "not for diagnosis" in page.locator("#safety").inner_text()
    assert seen()
    page.set_viewport_size({"width": 400, "height": 780})
    settle(page)
    assert seen()
    for section in ("Training", "Reports", "Images"):
        page.get_by_role("link", name=section, exact=True).click()
        assert seen()
    page.set_viewport_size({"width": 1280, "height": 800})


@pytest.mark.parametrize("width", [400, 800, 1280])
def test_nothing_overlaps_or_sticks_out(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    wait_for_images(page)
    try:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for number in range(3):
            inside = page.locator(".tile").nth(number)
            boxes = [
                box for box in (span.bounding_box() for span in inside.locator(":scope > span").all()) if box
            ]
            for index, a in enumerate(boxes):
                for b in boxes[index + 1 :]:
                    apart = (
                        a["x"] + a["width"] <= b["x"] + 1
                        or b["x"] + b["width"] <= a["x"] + 1
                        or a["y"] + a["height"] <= b["y"] + 1
                        or b["y"] + b["height"] <= a["y"] + 1
                    )
                    assert apart, (number, a, b)
    finally:
        page.set_viewport_size({"width": 1280, "height": 800})


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_axe_finds_no_serious_fault(page: Any, theme: str) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed."
    )
    page.emulate_media(color_scheme=theme)
    layer(page, "result").get_by_role("button", name="More").click()
    found = axe.Axe().run(page).response["violations"]
    layer(page, "result").get_by_role("button", name="More").click()
    serious = [
        (each["id"], [node["html"] for node in each["nodes"]])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_the_theme_is_the_systems_until_another_is_chosen(page: Any) -> None:
    def shade() -> int:
        return int(page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]"))

    page.emulate_media(color_scheme="light")
    assert shade() > 200
    page.emulate_media(color_scheme="dark")
    assert shade() < 50
    button = page.locator("#theme")
    button.click()
    button.click()
    assert button.inner_text() == "Theme: light"
    assert shade() > 200
    button.click()
    assert shade() < 50
