"""Small charts as SVG that takes its colours from the page, so that it follows light, dark and print."""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Colours that stand for the page's own: matplotlib writes them, `_svg` replaces them.
_TEXT, _MUTED, _LINE, _FILL = "#010203", "#010204", "#010205", "#010206"
_FIRST, _SECOND = "#010207", "#010208"
_VARIABLES = {
    _TEXT: "--text", _MUTED: "--muted", _LINE: "--line", _FILL: "--fill", _FIRST: "--first",
    _SECOND: "--second",
}  # fmt: skip

_WIDTH = 3.6  # inches
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ct2mri",
    "font.size": 9,
    "text.parse_math": False,  # a $ in the name of a centre or system is a $
    "text.color": _TEXT,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _TEXT,
    "ytick.labelcolor": _TEXT,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def box_plot(
    groups: Mapping[str, Sequence[float]], floor: float | None, label: str, spoken: str
) -> Markup | None:
    """A horizontal box a group: quartiles, whiskers to 1.5 of their distance, and every value as a point.

    Args:
        groups: name → values, from top to bottom.
        floor: the noise floor, a dashed line; None where not defined.
        label: of the axis.
        spoken: what the chart says, for those who do not see it.

    Returns:
        None where there is no value.
    """
    shown = {name: list(values) for name, values in groups.items() if len(values)}
    if not shown:
        return None
    with rc_context(_SETTINGS):
        figure, axes = _axes(0.75 + 0.5 * len(shown))
        rng = np.random.default_rng(0)
        for row, values in enumerate(shown.values()):
            line = {"color": _TEXT, "linewidth": 1.2}
            axes.boxplot(
                [values], positions=[row], orientation="horizontal", widths=0.5, showfliers=False,
                patch_artist=True, manage_ticks=False, boxprops={"facecolor": _FILL, "edgecolor": _TEXT},
                whiskerprops=line, capprops=line, medianprops={"color": _TEXT, "linewidth": 2},
            )  # fmt: skip
            places = row + rng.uniform(-0.16, 0.16, len(values))
            axes.plot(values, places, "o", color=_FIRST, markersize=3.2, alpha=0.8, markeredgewidth=0)
        if floor is not None:
            axes.axvline(floor, color=_SECOND, linestyle="--", linewidth=1.4)
        axes.set_yticks(range(len(shown)), list(shown))
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(label)
        if list(shown) == [""]:
            axes.set_yticks([])
        return _svg(figure, spoken)


def two_lines(
    x: Sequence[float],
    truth: Sequence[float],
    prediction: Sequence[float],
    labels: tuple[str, str],
    spoken: str,
) -> Markup:
    """The same quantity of truth (dashed) and prediction along an axis.

    Args:
        x: places.
        truth, prediction: values at each place.
        labels: of the two axes.
        spoken: what the chart says.
    """
    with rc_context(_SETTINGS):
        figure, axes = _axes(2.2)
        axes.plot(x, truth, color=_SECOND, linewidth=1.6, linestyle="--", label="truth")
        axes.plot(x, prediction, color=_FIRST, linewidth=1.6, label="prediction")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.legend(loc="best")
        return _svg(figure, spoken)


def band(
    x: Sequence[float],
    low: Sequence[float],
    middle: Sequence[float],
    high: Sequence[float],
    labels: tuple[str, str],
    spoken: str,
) -> Markup:
    """A line with a band around it, on a logarithmic axis with a line at 1."""
    with rc_context(_SETTINGS):
        figure, axes = _axes(2.2)
        axes.fill_between(x, low, high, color=_FILL, linewidth=0)
        axes.plot(x, middle, color=_FIRST, linewidth=1.8)
        axes.axhline(1, color=_SECOND, linestyle="--", linewidth=1.4)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        reach = max(1.2, *(max(value, 1 / value) for value in (*low, *high)))
        axes.set_ylim(1 / reach / 1.05, reach * 1.05)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        return _svg(figure, spoken)


def intervals(
    rows: Sequence[tuple[str, float, Sequence[float] | None, float | None]],
    label: str,
    spoken: str,
    *,
    zero: bool,
) -> Markup:
    """A point and its interval a row.

    Args:
        rows: name, value, interval (low, high) or None, and noise floor or None; from top to bottom.
        label: of the axis.
        spoken: what the chart says.
        zero: draw a line at 0, which is neither better nor worse.
    """
    with rc_context(_SETTINGS):
        figure, axes = _axes(0.75 + 0.32 * len(rows))
        for row, (_, value, interval, floor) in enumerate(rows):
            if interval is not None:
                axes.plot(interval, [row, row], color=_FIRST, linewidth=2.4, solid_capstyle="butt")
            axes.plot([value], [row], "o", color=_FIRST, markersize=6)
            if floor is not None:
                axes.plot([floor], [row], "D", color=_SECOND, markersize=5, fillstyle="none")
        if zero:
            axes.axvline(0, color=_TEXT, linewidth=1)
        axes.set_yticks(range(len(rows)), [row[0] for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(label)
        return _svg(figure, spoken)


def against_diagonal(
    curves: Sequence[tuple[Sequence[float], Sequence[float]]],
    mean: tuple[Sequence[float], Sequence[float]],
    labels: tuple[str, str],
    spoken: str,
) -> Markup:
    """Thin curves, their mean as a thick one with points, and the diagonal on which all would lie."""
    with rc_context(_SETTINGS):
        figure, axes = _axes(2.9)
        for x, y in curves:
            axes.plot(x, y, color=_FIRST, linewidth=0.8, alpha=0.35)
        axes.plot(*mean, "o-", color=_FIRST, linewidth=2, markersize=4)
        highest = 1.05 * max(max(max(part, default=0) for part in curve) for curve in (*curves, mean))
        axes.plot([0, highest], [0, highest], color=_SECOND, linestyle="--", linewidth=1.4)
        axes.set_xlim(0, highest)
        axes.set_ylim(0, highest)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        return _svg(figure, spoken)


def paired(systems: Sequence[str], values: Sequence[Sequence[float]], label: str, spoken: str) -> Markup:
    """A thin line a patient across systems, and the means.

    Args:
        systems: names, from left to right.
        values: each patient's value of each system.
        label: of the axis.
        spoken: what the chart says.
    """
    with rc_context(_SETTINGS):
        figure, axes = _axes(2.4)
        places = range(len(systems))
        for of_patient in values:
            axes.plot(places, of_patient, "o-", color=_FIRST, linewidth=0.8, markersize=3, alpha=0.45)
        axes.plot(places, np.mean(values, axis=0), "D-", color=_SECOND, linewidth=2, markersize=6)
        axes.set_xticks(places, list(systems))
        axes.set_xlim(-0.4, len(systems) - 0.6)
        axes.grid(visible=False, axis="x")
        axes.set_ylabel(label)
        return _svg(figure, spoken)


def _axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure, spoken: str) -> Markup:
    """A figure as an SVG element in the colours and letters of the page it stands in."""
    packed = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(packed, format="svg", transparent=True, metadata=metadata)
    text = packed.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = re.sub(
        r' id="(?:figure|axes|patch|line2d|text|matplotlib|xtick|ytick|legend|[A-Z])[^"]*"', "", text
    )
    # Names of markers and clips are the same in every figure, and a page has many.
    own = hashlib.sha256(text.encode()).hexdigest()[:8]
    text = re.sub(r'(id="|url\(#|href="#)', lambda found: f"{found[0]}{own}-", text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    head = f'<svg class="chart" role="img" aria-label="{escape(spoken)}" {box[0]}>'
    return Markup(re.sub(r"<svg[^>]*>", lambda _: head, text, count=1))
