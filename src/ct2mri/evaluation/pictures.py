"""One picture to look at a translation with: three planes of CT, draft, result, truth and error.

Radiological display: the patient's right is on the left of axial and coronal planes, and sagittal planes face
left. All panels of a sheet share one scale in mm.
"""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ct2mri.data.geometry import to_canonical
from ct2mri.data.intensity import body_mask
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.evaluation.panels import (
    BONE_WINDOW,
    ERROR_COLOURS,
    SOFT_TISSUE_WINDOW,
    Panel,
    View,
    brightest_shown,
    in_hu,
)
from ct2mri.files import atomic_path
from ct2mri.marking import safety_sentence_of

# A sheet shows MR made from CT.
SAFETY_SENTENCE = safety_sentence_of("ct", "mr")

ERROR_RANGE = 30.0  # per cent of the MR window, both ways

_BODY_THRESHOLD = -300.0  # HU

_BACKGROUND, _TEXT, _MUTED, _WARNING = "#0d1015", "#e8ecf1", "#98a3b3", "#ffb454"

# Inches.
_PANEL, _GAP, _LEFT, _RIGHT, _TOP, _TITLES, _BOTTOM = 2.25, 0.07, 0.38, 0.14, 0.6, 0.46, 1.12
_DPI = 140


def picture_sheet(
    path: str | Path,
    ct: Volume,
    result: Volume,
    *,
    draft: Volume | None = None,
    truth: Volume | None = None,
    title: str,
    facts: str,
) -> None:
    """Write a picture sheet as PNG: CT in two windows, draft, result, truth, signed error, CT edges.

    Args:
        path: PNG file to write.
        ct: HU.
        result: synthetic MR on the CT's grid.
        draft: the 2D stage's MR on the same grid, in the result's units.
        truth: real MR on the same grid, in the result's units.
        title: headline, e.g. what was translated.
        facts: line under it: model, seed, steps.

    Raises:
        RequestError: the volumes lie on different grids.
    """
    figure = draw_sheet(ct, result, draft=draft, truth=truth, title=title, facts=facts)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI, metadata={"Description": SAFETY_SENTENCE})


def draw_sheet(
    ct: Volume, result: Volume, *, draft: Volume | None, truth: Volume | None, title: str, facts: str
) -> Figure:
    """Draw what `picture_sheet` writes."""
    for name, volume in (("result", result), ("draft", draft), ("truth", truth)):
        if volume is not None and not volume.grid.matches(ct.grid, tolerance_mm=0.05):
            raise RequestError(
                f"A picture sheet shows volumes on one grid, but the {name} ({volume.spatial_shape}) does "
                f"not lie on the CT's ({ct.spatial_shape}); resample it first."
            )
    canonical = to_canonical(ct)[0]
    source, spacing = canonical.array, canonical.spacing
    body = body_mask(source, spacing, _BODY_THRESHOLD)
    if not body.any():
        body = np.ones_like(body)
    panels = _panels(source, body, result, draft, truth)
    view = View.around(body, spacing, _PANEL)
    heights = [view.height(plane) for plane in view.planes]
    figure_width = _LEFT + len(panels) * (_PANEL + _GAP) - _GAP + _RIGHT
    figure_height = _TOP + _TITLES + sum(heights) + _GAP * (len(heights) - 1) + _BOTTOM
    figure = Figure(figsize=(figure_width, figure_height), facecolor=_BACKGROUND)

    top = figure_height - _TOP - _TITLES
    for row, (plane, height) in enumerate(zip(view.planes, heights, strict=True)):
        top -= height
        for column, panel in enumerate(panels):
            left = _LEFT + column * (_PANEL + _GAP)
            axes = figure.add_axes(
                (left / figure_width, top / figure_height, _PANEL / figure_width, height / figure_height)
            )
            axes.set_label(f"{plane}: {panel.title}")
            view.draw(axes, panel, plane, scale_bar=column == 0)
            if row == 0:
                _write_title(axes, panel)
            if column == 0:
                axes.text(
                    -0.075, 0.5, plane, transform=axes.transAxes, rotation=90, color=_MUTED, fontsize=10,
                    va="center", ha="center",
                )  # fmt: skip
        top -= _GAP
    _write_frame(figure, panels, title, facts)
    return figure


def _panels(
    source: NDArray[np.float32],
    body: NDArray[np.bool_],
    result: Volume,
    draft: Volume | None,
    truth: Volume | None,
) -> list[Panel]:
    """The columns of the sheet, from left to right."""
    shown = {
        name: to_canonical(volume)[0].array
        for name, volume in (("draft", draft), ("result", result), ("truth", truth))
        if volume is not None
    }
    reference = shown.get("truth", shown["result"])
    window = (0.0, brightest_shown(reference, body))
    subtitle = f"MR 0 to {window[1]:.4g}"
    panels = [
        Panel("CT, bone", in_hu(BONE_WINDOW), source, BONE_WINDOW),
        Panel("CT, soft tissue", in_hu(SOFT_TISSUE_WINDOW), source, SOFT_TISSUE_WINDOW),
    ]
    titles = {"draft": "draft (2D stage)", "result": "result: synthetic MR", "truth": "truth"}
    panels += [Panel(titles[name], subtitle, array, window) for name, array in shown.items()]
    if "truth" in shown:
        error = np.where(body, shown["result"] - shown["truth"], 0) * (100 / window[1])
        panels.append(
            Panel(
                "signed error", "result − truth, in the body", error.astype(np.float32),
                (-ERROR_RANGE, ERROR_RANGE), ERROR_COLOURS,
            )
        )  # fmt: skip
    panels.append(
        Panel(
            "CT edges on the result", "skin (−300 HU), bone (250 HU)", shown["result"], window, edges=source
        )
    )
    return panels


def _write_title(axes: Axes, panel: Panel) -> None:
    """A panel's title and its window, above it."""
    axes.annotate(
        panel.title, (0.5, 1), (0, 17), xycoords="axes fraction", textcoords="offset points", color=_TEXT,
        fontsize=10.5, fontweight="bold", ha="center",
    )  # fmt: skip
    axes.annotate(
        panel.subtitle, (0.5, 1), (0, 5), xycoords="axes fraction", textcoords="offset points", color=_MUTED,
        fontsize=8.5, ha="center",
    )  # fmt: skip


def _write_frame(figure: Figure, panels: list[Panel], title: str, facts: str) -> None:
    """Headline, colour bar of the error, safety sentence, and how to read the display."""
    width, height = figure.get_size_inches()
    left = _LEFT / width
    # Names of files and models stand in both, and may hold a $.
    headline: dict[str, Any] = {"va": "top", "parse_math": False}
    figure.text(left, 1 - 0.16 / height, title, color=_TEXT, fontsize=14, fontweight="bold", **headline)
    figure.text(left, 1 - 0.42 / height, facts, color=_MUTED, fontsize=9.5, **headline)
    columns = [column for column, panel in enumerate(panels) if panel.colours is ERROR_COLOURS]
    for column in columns:
        x = _LEFT + column * (_PANEL + _GAP)
        bar = figure.add_axes(
            ((x + 0.1) / width, (_BOTTOM - 0.2) / height, (_PANEL - 0.2) / width, 0.1 / height)
        )
        bar.set_label("colour bar of the error")
        ramp = np.linspace(-ERROR_RANGE, ERROR_RANGE, 256)[None]
        bar.imshow(ramp, cmap=ERROR_COLOURS, aspect="auto", extent=(-ERROR_RANGE, ERROR_RANGE, 0, 1))
        bar.set_yticks([])
        bar.set_xticks([-ERROR_RANGE, 0, ERROR_RANGE], [f"−{ERROR_RANGE:.0f}", "0", f"+{ERROR_RANGE:.0f}"])
        bar.tick_params(colors=_TEXT, labelsize=8, length=2, pad=1.5)
        bar.set_xlabel("too dark   % of MR window   too bright", color=_MUTED, fontsize=8, labelpad=1)
        for spine in bar.spines.values():
            spine.set_color(_MUTED)
            spine.set_linewidth(0.5)
    # Beside the colour bar where there is one, so the sentence wraps at its left edge.
    room = (_LEFT + columns[0] * (_PANEL + _GAP) if columns else width - _RIGHT) - _LEFT - 0.2
    sentence = textwrap.fill(SAFETY_SENTENCE, int(room / 0.094))
    figure.text(
        left, (_BOTTOM - 0.14) / height, sentence, color=_WARNING, fontsize=10.5, fontweight="bold", va="top",
        linespacing=1.35,
    )  # fmt: skip
    convention = textwrap.fill(
        "Radiological display: the patient's right (R) is on the left of axial and coronal planes; sagittal "
        "planes face left. One mm scale for all panels; all MR panels share one window.",
        int(room / 0.066),
    )
    figure.text(left, 0.12 / height, convention, color=_MUTED, fontsize=8.5, va="bottom", linespacing=1.35)
