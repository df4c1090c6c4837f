"""Reports of `evaluate` and `compare`, written by the real commands and read in the page."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_driving import look_alike_mr, marked_ct, open_page, pixels, settle, until
from serving import serving

from ct2mri.cli import main
from ct2mri.data.io import save_volume

SHAPE = (24, 28, 20)
TRIES = """async () => {
    const tried = await fetch("/api/status").then(() => "reached", () => "refused");
    let parent;
    try { parent = window.parent.document.title; } catch { parent = "refused"; }
    let cookie;
    try { cookie = document.cookie; } catch { cookie = "refused"; }
    return [tried, parent, cookie];
}"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two evaluations of four cases each, and their comparison."""
    root = tmp_path_factory.mktemp("reports")
    ct = marked_ct(shape=SHAPE)
    for number, case in enumerate("abcd"):
        truth = look_alike_mr(ct, 1 + number / 10)
        save_volume(ct, root / "ct" / f"{case}.nii.gz")
        save_volume(truth, root / "mr" / f"{case}.nii.gz")
        for system, error in (("fair", 60.0), ("good", 20.0)):
            noise = np.random.default_rng([number, len(system)]).standard_normal(SHAPE).astype(np.float32)
            wrong = truth.with_array(truth.array + np.float32(error * (number + 1)) * noise)
            save_volume(wrong, root / system / f"{case}.nii.gz")
    for system in ("fair", "good"):
        where = ["--sources", str(root / "ct"), "-o", str(root / f"report of {system}")]
        assert main(["evaluate", str(root / system), str(root / "mr"), *where]) in (None, 0)
    evaluated = [root / "report of fair", root / "report of good"]
    assert main(["compare", *map(str, evaluated), "-o", str(root / "comparison")]) in (None, 0)
    return [*evaluated, root / "comparison"]


@pytest.fixture(scope="module")
def address(reports: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("viewer") / "results", *map(str, reports)) as server:
        yield server.address


@pytest.fixture(scope="module")
def page(chromium: Any, address: str) -> Iterator[Any]:
    with open_page(chromium, address) as opened:
        yield opened


def opened(page: Any, name: str) -> Any:
    """The frame of a report, once it is there; the page fails at its end if anything in it was blocked."""
    page.locator("#reports").get_by_role("button", name=name, exact=True).click()
    frame = page.frame_locator(f"#reports iframe[title='Report {name}']")
    frame.locator("table[data-sorted]").first.wait_for()
    return frame


def rows(frame: Any) -> list[str]:
    return [row.split()[0] for row in frame.locator("#table-cases tbody tr").all_inner_texts()]


def test_the_page_begins_with_the_report_that_was_given(page: Any) -> None:
    page.locator("#reports iframe").wait_for()
    assert page.get_by_role("link", name="Reports", exact=True).get_attribute("aria-current") == "page"
    assert page.locator("#reports li button").all_inner_texts() == [
        "report of fair",
        "report of good",
        "comparison",
    ]
    frame = page.frame_locator("#reports iframe")
    assert "fair" in page.locator("#reports iframe").get_attribute("title")
    frame.locator("h1").wait_for()


def turned_by_its_heading(frame: Any) -> list[str]:
    """The table of cases as a click on its first heading sorts it; another click turns it round."""
    heading = frame.locator("#table-cases thead button").first
    heading.click()
    first = rows(frame)
    heading.click()
    assert rows(frame) == first[::-1] != first
    return first


def test_an_evaluation_shows_pictures_and_sorts_its_table(page: Any) -> None:
    frame = opened(page, "report of good")
    pictures = frame.locator(".pictures img")
    assert pictures.count() >= 4
    assert pictures.evaluate_all("all => all.every(image => image.complete && image.naturalWidth > 20)")
    pictures.first.scroll_into_view_if_needed()
    settle(page)
    assert pixels(page, "#reports iframe").std() > 20
    first = turned_by_its_heading(frame)
    assert sorted(first) == list("abcd")
    frame.locator("[data-for=table-cases] input").fill("c")
    assert frame.locator("#table-cases tbody tr:visible").count() < 4


def test_a_comparison_shows_charts_and_sorts_its_table(page: Any) -> None:
    frame = opened(page, "comparison")
    assert frame.locator("svg").count() >= 1
    frame.locator("svg").first.scroll_into_view_if_needed()
    settle(page)
    assert pixels(page, "#reports iframe").std() > 10
    turned_by_its_heading(frame)


@pytest.mark.parametrize("name", ["report of fair", "comparison"])
def test_a_report_opens_in_a_tab_of_its_own(page: Any, name: str) -> None:
    line = page.locator("#reports li", has_text=name)
    with page.expect_popup() as popup:
        line.get_by_role("link").click()
    alone = popup.value
    said: list[str] = []
    alone.on("console", lambda message: said.append(message.text))
    alone.wait_for_load_state()
    alone.reload()
    alone.locator("#table-cases thead button").first.click()
    assert alone.locator("#table-cases tbody tr").count() >= 4
    assert said == []
    until(alone, "document.documentElement.scrollWidth <= window.innerWidth", 10)
    alone.close()


def test_a_report_reaches_neither_the_viewer_nor_the_network(chromium: Any, address: str) -> None:
    with open_page(chromium, address, ignore="Content Security Policy") as page:
        page.locator("#reports iframe").wait_for()
        frame = opened(page, "comparison")
        answers = frame.locator("body").evaluate(TRIES)
    assert answers == ["refused", "refused", "refused"]
