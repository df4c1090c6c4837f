"""The page under fingers, on a tablet held upright."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from page_driving import choose, open_page, pixels, settle, until, wait_for_images

Place = tuple[float, float]


@pytest.fixture(scope="module")
def page(chromium: Any, address: str) -> Iterator[Any]:
    tablet = {"viewport": {"width": 820, "height": 1100}, "has_touch": True, "is_mobile": True}
    with open_page(chromium, address, **tablet) as opened:
        until(opened, "document.querySelectorAll('.layer').length === 6")
        wait_for_images(opened, 6)
        opened.locator(".layer[data-role=source]").get_by_role("button", name="alone").tap()
        choose(opened, "Layers")
        choose(opened, "Axial")
        wait_for_images(opened, 1)
        yield opened


def slide(page: Any, *ways: tuple[Place, Place], steps: int = 6) -> None:
    """Fingers that go down together, each move along their way, and are lifted."""
    session = page.context.new_cdp_session(page)
    for step in range(steps + 1):
        share = step / steps
        points = [
            {"x": x0 + share * (x1 - x0), "y": y0 + share * (y1 - y0), "id": number}
            for number, ((x0, y0), (x1, y1)) in enumerate(ways)
        ]
        kind = "touchMove" if step else "touchStart"
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        settle(page)
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    session.detach()
    settle(page)
    settle(page)


def centre(page: Any) -> Place:
    box = page.locator(".tile[data-plane=axial]").first.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def place(page: Any) -> list[float]:
    """The crosshair in mm towards R, A, S; of nothing else, as no pointer rests anywhere."""
    words = page.locator("#position .mm").inner_text().split()
    assert words[0] == "Crosshair"
    return [float(words[i + 1]) * (1 if words[i] in "RAS" else -1) for i in (1, 3, 5)]


def pixels_per_mm(page: Any) -> float:
    tile = page.locator(".tile[data-plane=axial]").first
    width = tile.locator(".bar").bounding_box()["width"]
    return float(width / float(tile.locator(".length").inner_text().split()[0]))


def test_a_tap_places_the_crosshair_and_so_does_the_next(page: Any) -> None:
    x, y = centre(page)
    scale = pixels_per_mm(page)
    for right, anterior in ((40, 30), (-50, -20), (10, 60)):
        page.touchscreen.tap(x - right * scale, y - anterior * scale)
        settle(page)
        settle(page)
        assert place(page)[:2] == pytest.approx([right, anterior], abs=3)


def test_a_finger_draws_the_crosshair_along(page: Any) -> None:
    x, y = centre(page)
    scale = pixels_per_mm(page)
    slide(page, ((x, y), (x - 45 * scale, y - 25 * scale)))
    assert place(page)[:2] == pytest.approx([45, 25], abs=3)


def test_two_fingers_zoom(page: Any) -> None:
    x, y = centre(page)
    before, was, at = pixels_per_mm(page), pixels(page, ".pane"), place(page)
    slide(page, ((x - 50, y), (x - 125, y)), ((x + 50, y), (x + 125, y)))
    assert pixels_per_mm(page) == pytest.approx(2.5 * before, rel=0.1)
    assert np.abs(pixels(page, ".pane").astype(int) - was).mean() > 5
    assert place(page) == at
    slide(page, ((x - 125, y), (x - 30, y)), ((x + 125, y), (x + 30, y)))
    assert pixels_per_mm(page) == pytest.approx(before, rel=0.01)


def test_two_fingers_go_through_the_slices(page: Any) -> None:
    x, y = centre(page)
    start = place(page)
    slide(page, ((x - 30, y), (x - 30, y - 48)), ((x + 30, y), (x + 30, y - 48)))
    upwards = place(page)
    # Six slices of 4.5 mm, the first to the middle of its voxel.
    assert 5 * 4.5 <= upwards[2] - start[2] <= 7 * 4.5
    slide(page, ((x - 30, y), (x - 30, y + 24)), ((x + 30, y), (x + 30, y + 24)))
    assert place(page)[2] == pytest.approx(upwards[2] - 3 * 4.5, abs=0.2)


def test_a_finger_draws_the_curtain(page: Any) -> None:
    choose(page, "Curtain")
    wait_for_images(page, 2)
    edge = page.locator(".edge").bounding_box()
    x, y = edge["x"] + edge["width"] / 2, edge["y"] + 120
    slide(page, ((x, y), (x + 100, y)))
    slider = page.get_by_label("Curtain", exact=True)
    width = page.locator("#panes").bounding_box()["width"]
    assert float(slider.input_value()) == pytest.approx(0.5 + 100 / width, abs=0.02)
    choose(page, "Layers")


def test_a_finger_turns_3d(page: Any) -> None:
    choose(page, "3D")
    wait_for_images(page, 0)
    box = page.locator(".pane canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    was = pixels(page, ".pane")
    slide(page, ((x, y), (x + 120, y)), steps=2)
    assert np.abs(pixels(page, ".pane").astype(int) - was).mean() > 2
    choose(page, "Axial")
    wait_for_images(page, 1)


def test_the_page_scrolls_beside_the_images_and_buttons_are_tapped(page: Any) -> None:
    page.set_viewport_size({"width": 400, "height": 780})
    settle(page)
    page.locator("#toolbar").get_by_role("button", name="Coronal", exact=True).tap()
    until(page, f"document.querySelector({json.dumps('.tile[data-plane=coronal]')})?.checkVisibility()")
    layers = page.locator("#layers-title")
    layers.scroll_into_view_if_needed()
    box = layers.bounding_box()
    before = page.evaluate("scrollY")
    slide(page, ((box["x"] + 5, box["y"]), (box["x"] + 5, box["y"] - 150)), steps=4)
    until(page, f"scrollY > {before}", 30)
