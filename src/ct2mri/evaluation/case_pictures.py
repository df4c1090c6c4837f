"""Pictures of one case for the report: a column a volume, three planes below one another."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from ct2mri.data.geometry import to_canonical
from ct2mri.data.volume import Volume
from ct2mri.evaluation.pairing import Pair
from ct2mri.evaluation.panels import (
    BONE_WINDOW,
    EDGE_LEVELS,
    ERROR_COLOURS,
    SOFT_TISSUE_WINDOW,
    Panel,
    View,
    brightest_shown,
    in_hu,
)

ERROR_REACH = 0.25
"""Error that has the last colour, of images without units, whose data range is 1."""
ERROR_REACH_HU = 300.0

ROLES = {"worst": "Worst case", "median": "Median case", "best": "Best case", "only": "The only case"}

_WIDTH, _GAP, _DPI = 2.25, 0.05, 140  # inches
_QUALITY = 86
_SPREAD_COLOURS = "inferno"


@dataclass(frozen=True)
class Column:
    """One volume of a case, as a picture.

    Attributes:
        title: what it is.
        subtitle: its window.
        planes: shown from top to bottom.
        jpeg: the picture.
        size: its width and height in pixels.
        scale: value and colour ("#rrggbb") of the ends and places between them; empty where shown in greys.
    """

    title: str
    subtitle: str
    planes: list[str]
    jpeg: bytes
    size: tuple[int, int]
    scale: list[tuple[float, str]]


@dataclass(frozen=True)
class CasePictures:
    """One case of the report.

    Attributes:
        role: why it is shown: "worst", "median", "best" or "only".
        case_id: which case.
        columns: from left to right.
    """

    role: str
    case_id: str
    columns: list[Column]


def worst_median_best(cases: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Role and case of those shown, by MAE, which has a number wherever the mask has a voxel.

    Args:
        cases: of a report.
    """
    ranked = sorted(
        (case for case in cases if case["values"]["mae"] is not None),
        key=lambda case: (-case["values"]["mae"], case["case_id"]),
    )
    if len(ranked) < 2:
        return [("only", case["case_id"]) for case in ranked]
    shown = {"worst": ranked[0], "median": ranked[len(ranked) // 2], "best": ranked[-1]}
    if len(ranked) == 2:
        del shown["median"]
    return [(role, case["case_id"]) for role, case in shown.items()]


def case_columns(pair: Pair, spread: NDArray[np.float32] | None) -> list[Column]:
    """Source (in two windows where it is a CT), prediction, truth, signed error, edges and spread of a case.

    Args:
        pair: the case.
        spread: standard deviation over samples, (i, j, k), in units of the prediction; None where not known.
    """
    mask = _canonical(pair.mask, pair) > 0.5
    body = mask if mask.any() else np.ones_like(mask)
    view = View.around(body, to_canonical(Volume(pair.target, pair.grid.affine))[0].spacing, _WIDTH)
    return [_column(panel, view) for panel in _panels(pair, spread, body)]


def _panels(pair: Pair, spread: NDArray[np.float32] | None, body: NDArray[np.bool_]) -> list[Panel]:
    prediction, target = _canonical(pair.prediction, pair), _canonical(pair.target, pair)
    panels = []
    if pair.source is not None:
        source = _canonical(pair.source, pair)
        if pair.source_in_hu:
            panels += [
                Panel("CT, bone", in_hu(BONE_WINDOW), source, BONE_WINDOW),
                Panel("CT, soft tissue", in_hu(SOFT_TISSUE_WINDOW), source, SOFT_TISSUE_WINDOW),
            ]
        else:
            low, high = min(0.0, float(np.percentile(source, 1))), float(np.percentile(source[body], 99.5))
            panels.append(Panel("Source", _range((low, high)), source, (low, max(high, low + 1e-6))))
    if pair.in_hu:
        window, words, reach, unit = BONE_WINDOW, in_hu(BONE_WINDOW), ERROR_REACH_HU, " HU"
    else:
        window, reach, unit = (0.0, brightest_shown(target, body)), ERROR_REACH, ""
        words = _range(window)
    error = np.where(body, prediction - target, 0).astype(np.float32)
    panels += [
        Panel("Prediction", words, prediction, window),
        Panel("Truth", words, target, window),
        Panel(
            "Signed error",
            "prediction − truth, " + ("HU" if pair.in_hu else "data range 1"),
            error,
            (-reach, reach),
            ERROR_COLOURS,
        ),
    ]
    if pair.ct is not None:
        ct = _canonical(pair.ct, pair)
        levels, outlines = EDGE_LEVELS, "at −300 and 250 HU"
        if not pair.ct_in_hu:
            low, high = np.percentile(ct, [1, 99])
            levels = (float(low + 0.25 * (high - low)), float(low + 0.75 * (high - low)))
            outlines = "at 25 and 75 % of its range"
        panels.append(
            Panel("Prediction, CT edges", outlines, prediction, window, edges=ct, edge_levels=levels)
        )
    if spread is not None:
        deviation = np.where(body, _canonical(spread, pair), 0).astype(np.float32)
        highest = float(np.percentile(deviation[body], 99.5)) or 1.0
        panels.append(
            Panel(
                "Spread over samples", f"0 to {highest:.3g}{unit}", deviation, (0.0, highest), _SPREAD_COLOURS
            )
        )
    return panels


def _column(panel: Panel, view: View) -> Column:
    heights = [view.height(plane) for plane in view.planes]
    total = sum(heights) + _GAP * (len(heights) - 1)
    figure = Figure(figsize=(_WIDTH, total), facecolor="black", dpi=_DPI)
    top = total
    for plane, height in zip(view.planes, heights, strict=True):
        top -= height
        axes = figure.add_axes((0, top / total, 1, height / total))
        view.draw(axes, panel, plane, scale_bar=True)
        top -= _GAP
    drawn, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", facecolor="black")
    image = Image.open(drawn).convert("RGB")
    # Without subsampling, or the colours of thin outlines and letters run out.
    image.save(packed, "JPEG", quality=_QUALITY, optimize=True, subsampling=0)
    return Column(
        panel.title, panel.subtitle, list(view.planes), packed.getvalue(), image.size, _scale(panel)
    )


def _scale(panel: Panel) -> list[tuple[float, str]]:
    """Values and colours along a window, for a labelled bar."""
    if panel.colours == "gray":
        return []
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    colours = panel.colours if isinstance(panel.colours, Colormap) else colormaps[panel.colours]
    low, high = panel.window
    return [(low + share * (high - low), to_hex(colours(share))) for share in np.linspace(0, 1, 13).tolist()]


def _canonical(array: NDArray[np.float32] | NDArray[np.bool_], pair: Pair) -> NDArray[np.float32]:
    return to_canonical(Volume(array.astype(np.float32), pair.grid.affine))[0].array


def _range(window: tuple[float, float]) -> str:
    return f"{window[0]:.3g} to {window[1]:.3g}".replace("-", "−")
