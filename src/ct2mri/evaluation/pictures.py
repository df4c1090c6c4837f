"""One picture to look at a translation with: three planes of CT, draft, result, truth and error.

Radiological display: the patient's right is on the left of axial and coronal planes, and sagittal planes face
left. All panels of a sheet share one scale in mm.
"""

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from ct2mri.data.cases import SLICE_AXIS, Orientation
from ct2mri.data.geometry import to_canonical
from ct2mri.data.intensity import body_mask
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.files import atomic_path
from ct2mri.marking import safety_sentence_of

# A sheet shows MR made from CT.
SAFETY_SENTENCE = safety_sentence_of("ct", "mr")

BONE_WINDOW = (-450.0, 1050.0)  # HU
SOFT_TISSUE_WINDOW = (-110.0, 190.0)  # HU
EDGE_LEVELS = (-300.0, 250.0)  # HU: skin and bone
ERROR_RANGE = 30.0  # per cent of the MR window, both ways

# Where each plane's left, right, upper and lower border lie in the patient.
MARKS: dict[Orientation, str] = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}

_BODY_THRESHOLD = -300.0  # HU
_MARGIN_MM = 8.0
_THINNEST_PLANE = 4  # voxels: a plane that shows fewer is a strip without use

_BACKGROUND, _TEXT, _MUTED, _WARNING, _MARK = "#0d1015", "#e8ecf1", "#98a3b3", "#ffb454", "#ffd75e"
_EDGE_COLOURS = ("#35d0ff", "#ff8a3d")
_ERROR_COLOURS = LinearSegmentedColormap.from_list(
    "signed_error", ["#a8d8ff", "#2f7fe0", "#0b2a55", "#000000", "#5a1508", "#e0552a", "#ffd0a8"], N=257
)

# Inches.
_PANEL, _GAP, _LEFT, _RIGHT, _TOP, _TITLES, _BOTTOM = 2.25, 0.07, 0.38, 0.14, 0.6, 0.46, 1.12
_DPI = 140


@dataclass(frozen=True, eq=False)
class Panel:
    """One column of the sheet: a volume and how it is shown.

    Attributes:
        title: what it is.
        subtitle: its window.
        array: (i, j, k), axes in RAS order.
        window: values shown as the first and the last colour.
        colours: a matplotlib colour map or its name.
        edges: a CT (i, j, k) in HU whose edges are drawn over it, or None.
    """

    title: str
    subtitle: str
    array: NDArray[np.float32]
    window: tuple[float, float]
    colours: Colormap | str = "gray"
    edges: NDArray[np.float32] | None = None


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
    centre = [round(float(np.mean(index))) for index in np.nonzero(body)]
    box = _box(body, spacing)
    planes = _planes(box)

    extents = [size.stop - size.start for size in box]
    size_mm = {plane: _plane_size(extents, spacing, plane) for plane in planes}
    inch_per_mm = _PANEL / max(width for width, _ in size_mm.values())
    heights = [max(size_mm[plane][1] * inch_per_mm, 0.5) for plane in planes]
    figure_width = _LEFT + len(panels) * (_PANEL + _GAP) - _GAP + _RIGHT
    figure_height = _TOP + _TITLES + sum(heights) + _GAP * (len(planes) - 1) + _BOTTOM
    figure = Figure(figsize=(figure_width, figure_height), facecolor=_BACKGROUND)

    top = figure_height - _TOP - _TITLES
    for row, (plane, height) in enumerate(zip(planes, heights, strict=True)):
        top -= height
        for column, panel in enumerate(panels):
            left = _LEFT + column * (_PANEL + _GAP)
            axes = figure.add_axes(
                (left / figure_width, top / figure_height, _PANEL / figure_width, height / figure_height)
            )
            axes.set_label(f"{plane}: {panel.title}")
            _draw_panel(
                axes, panel, plane, centre[SLICE_AXIS[plane]], box, spacing, (_PANEL, height), inch_per_mm
            )
            if row == 0:
                _write_title(axes, panel)
            if column == 0:
                _draw_scale_bar(axes, size_mm[plane], inch_per_mm)
                axes.text(
                    -0.075, 0.5, plane, transform=axes.transAxes, rotation=90, color=_MUTED, fontsize=10,
                    va="center", ha="center",
                )  # fmt: skip
        top -= _GAP
    _write_frame(figure, panels, title, facts)
    return figure


def plane_of(array: NDArray[Any], orientation: Orientation, index: int) -> NDArray[Any]:
    """One slice of a RAS array (i, j, k) as it is shown: (rows from the top, columns from the left)."""
    # Right and superior come first along columns and rows in radiological display, so every axis is reversed;
    # the sagittal plane's columns run from anterior.
    plane: NDArray[Any] = np.take(array, index, axis=SLICE_AXIS[orientation])
    return plane[::-1, ::-1].T


def _hu(window: tuple[float, float]) -> str:
    return f"{window[0]:.0f} to {window[1]:.0f} HU".replace("-", "−")


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
    # Fat is more than twice as bright as brain on T1; where it is rare enough, it may saturate.
    brightest = float(min(np.percentile(reference[body], 99.5), 1.75 * np.median(reference[body])))
    window = (0.0, brightest if brightest > 0 else 1.0)
    subtitle = f"MR 0 to {window[1]:.4g}"
    panels = [
        Panel("CT, bone", _hu(BONE_WINDOW), source, BONE_WINDOW),
        Panel("CT, soft tissue", _hu(SOFT_TISSUE_WINDOW), source, SOFT_TISSUE_WINDOW),
    ]
    titles = {"draft": "draft (2D stage)", "result": "result: synthetic MR", "truth": "truth"}
    panels += [Panel(titles[name], subtitle, array, window) for name, array in shown.items()]
    if "truth" in shown:
        error = np.where(body, shown["result"] - shown["truth"], 0) * (100 / window[1])
        panels.append(
            Panel(
                "signed error", "result − truth, in the body", error.astype(np.float32),
                (-ERROR_RANGE, ERROR_RANGE), _ERROR_COLOURS,
            )
        )  # fmt: skip
    panels.append(
        Panel(
            "CT edges on the result", "skin (−300 HU), bone (250 HU)", shown["result"], window, edges=source
        )
    )
    return panels


def _box(body: NDArray[np.bool_], spacing: tuple[float, float, float]) -> list[slice]:
    """The body's box with a margin around it."""
    box = []
    for axis, edge in enumerate(spacing):
        inside = np.flatnonzero(body.any(axis=tuple(other for other in range(3) if other != axis)))
        margin = round(_MARGIN_MM / edge)
        box.append(
            slice(max(int(inside[0]) - margin, 0), min(int(inside[-1]) + 1 + margin, body.shape[axis]))
        )
    return box


def _planes(box: list[slice]) -> list[Orientation]:
    """The planes worth showing: all three, but for those of which a thin volume has a strip alone."""
    thinnest: dict[Orientation, int] = {
        plane: min(size.stop - size.start for axis, size in enumerate(box) if axis != SLICE_AXIS[plane])
        for plane in MARKS
    }
    return [plane for plane in MARKS if thinnest[plane] >= min(_THINNEST_PLANE, max(thinnest.values()))]


def _plane_size(
    extents: list[int], spacing: tuple[float, float, float], plane: Orientation
) -> tuple[float, float]:
    """Width and height of a plane in mm."""
    width, height = (extents[axis] * spacing[axis] for axis in range(3) if axis != SLICE_AXIS[plane])
    return width, height


def _draw_panel(
    axes: Axes,
    panel: Panel,
    plane: Orientation,
    index: int,
    box: list[slice],
    spacing: tuple[float, float, float],
    panel_inches: tuple[float, float],
    inch_per_mm: float,
) -> None:
    """Show one plane of one panel, centred, in true proportions, with its orientation marks."""
    axis = SLICE_AXIS[plane]
    inner = tuple(slice(None) if other == axis else size for other, size in enumerate(box))
    image = plane_of(panel.array[inner], plane, index)
    column_mm, row_mm = (spacing[other] for other in range(3) if other != axis)
    width, height = image.shape[1] * column_mm, image.shape[0] * row_mm
    axes.imshow(
        image, cmap=panel.colours, vmin=panel.window[0], vmax=panel.window[1], interpolation="bilinear",
        extent=(0, width, height, 0), aspect="auto",
    )  # fmt: skip
    if panel.edges is not None:
        ct = plane_of(panel.edges[inner], plane, index)
        if min(ct.shape) > 1:
            columns = (np.arange(ct.shape[1]) + 0.5) * column_mm
            rows = (np.arange(ct.shape[0]) + 0.5) * row_mm
            for level, colour in zip(EDGE_LEVELS, _EDGE_COLOURS, strict=True):
                if ct.min() < level < ct.max():
                    axes.contour(
                        columns, rows, ct, levels=[level], colors=[colour], linewidths=0.7, linestyles="solid"
                    )
    spare_x, spare_y = (
        (panel_inches[0] / inch_per_mm - width) / 2,
        (panel_inches[1] / inch_per_mm - height) / 2,
    )
    axes.set_xlim(-spare_x, width + spare_x)
    axes.set_ylim(height + spare_y, -spare_y)
    axes.set_facecolor("black")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    places = [(0.025, 0.5), (0.975, 0.5), (0.5, 0.975), (0.5, 0.025)]
    alignments = [("left", "center"), ("right", "center"), ("center", "top"), ("center", "bottom")]
    for letter, (x, y), (horizontal, vertical) in zip(MARKS[plane], places, alignments, strict=True):
        axes.text(
            x, y, letter, transform=axes.transAxes, color=_MARK, fontsize=9, fontweight="bold",
            ha=horizontal, va=vertical, path_effects=[withStroke(linewidth=2.2, foreground="black")],
        )  # fmt: skip


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


def _draw_scale_bar(axes: Axes, size_mm: tuple[float, float], inch_per_mm: float) -> None:
    """A bar of a round length in mm at the lower left."""
    length = max(step for step in (1, 2, 5, 10, 20, 50, 100, 200) if step == 1 or step <= size_mm[0] / 3)
    left, right = axes.get_xlim()
    bottom, _ = axes.get_ylim()
    x, y = left + 0.08 / inch_per_mm, bottom - 0.1 / inch_per_mm
    assert x + length < right
    outline = [withStroke(linewidth=3.5, foreground="black")]
    axes.plot(
        [x, x + length], [y, y], color=_TEXT, linewidth=2.2, solid_capstyle="butt", path_effects=outline
    )
    axes.text(
        x, y - 0.05 / inch_per_mm, f"{length} mm", color=_TEXT, fontsize=8, ha="left", va="bottom",
        path_effects=outline,
    )  # fmt: skip


def _write_frame(figure: Figure, panels: list[Panel], title: str, facts: str) -> None:
    """Headline, colour bar of the error, safety sentence, and how to read the display."""
    width, height = figure.get_size_inches()
    left = _LEFT / width
    figure.text(left, 1 - 0.16 / height, title, color=_TEXT, fontsize=14, fontweight="bold", va="top")
    figure.text(left, 1 - 0.42 / height, facts, color=_MUTED, fontsize=9.5, va="top")
    columns = [column for column, panel in enumerate(panels) if panel.colours is _ERROR_COLOURS]
    for column in columns:
        x = _LEFT + column * (_PANEL + _GAP)
        bar = figure.add_axes(
            ((x + 0.1) / width, (_BOTTOM - 0.2) / height, (_PANEL - 0.2) / width, 0.1 / height)
        )
        bar.set_label("colour bar of the error")
        ramp = np.linspace(-ERROR_RANGE, ERROR_RANGE, 256)[None]
        bar.imshow(ramp, cmap=_ERROR_COLOURS, aspect="auto", extent=(-ERROR_RANGE, ERROR_RANGE, 0, 1))
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
