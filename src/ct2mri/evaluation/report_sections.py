"""Parts of the report's page below the summary: their words, charts and tables."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct2mri.evaluation import charts
from ct2mri.evaluation.case_pictures import ROLES, worst_median_best
from ct2mri.evaluation.cells import heading, summary_row
from ct2mri.evaluation.tables import tables_below
from ct2mri.evaluation.uncertainty import GROUPS, LEVELS, NOT_ERROR

_PLACES = 20
"""Places along a patient at which the changes of different cases are put together."""

_FIRST = ("Slice continuity", "Edges, in mm", "By the CT's HU", "By label", "Uncertainty")
"""Titles of `tables.tables_below` in the page's order; a challenge's numbers come before, slices last."""
_LAST = "Slice by slice"

_TITLES = {"By the CT's HU": "Errors by tissue", "By label": "Errors by label"}
_TEXTS = {
    "Slice continuity": "How much neighbouring slices differ, compared with the truth. Too smooth is as "
    "wrong as flicker: a ratio of 1 is best.",
    "Edges, in mm": "How far the prediction's edges lie from the CT's. The truth's edges do not lie exactly "
    "on the CT's either (registration, chemical shift), so read the first row beside the third.",
    "Uncertainty": f"{NOT_ERROR} Here both are measured against the truth.",
}
_MARKS = "Point: mean; line: 95 % interval; diamond: noise floor."
_BELOW = {
    "Slice continuity": "First row: change ratio along the patient, median over the cases, and the band that "
    "holds the middle 80 % of them; dashed: 1, as the truth. Below, the cases shown above.",
    "By the CT's HU": _MARKS,
    "By label": _MARKS,
    "Uncertainty": f"Left: voxels in {GROUPS} groups of rising spread; each case a thin line, the mean with "
    "points. Points above the dashed line: the model is surer than it is right. A flat line: spread does not "
    "tell where errors are. Right: points below the dashed line: surer than it is right.",
}


def sections_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Every kind of measures below the summary, as the template takes it."""
    tables = dict(tables_below(report["measures"]))
    order = [title for title in tables if title not in (*_FIRST, _LAST)]
    order += [title for title in (*_FIRST, _LAST) if title in tables]
    return [_section(report, title, tables[title]) for title in order]


def _section(report: dict[str, Any], title: str, groups: Sequence[str]) -> dict[str, Any]:
    draw = {
        "Slice continuity": _continuity,
        "By the CT's HU": _tissues,
        "By label": _tissues,
        "Uncertainty": _spread,
    }
    drawn = draw[title](report, groups) if title in draw else []
    table = {
        "title": title,
        "about": "Mean over patients.",
        "first": "Measure",
        "groups": [
            {
                "name": group.rpartition(".")[2].replace("_", " ") if len(groups) > 1 else "",
                "rows": [
                    summary_row(report, name)
                    for name, of in report["measures"].items()
                    if of["group"] == group and not name.endswith(".gmsd")
                ],
            }
            for group in groups
        ],
    }
    return {
        "id": title.partition(",")[0].lower().replace(" ", "-").replace("'", ""),
        "title": _TITLES.get(title, title),
        "text": _TEXTS.get(title, ""),
        "charts": drawn,
        "columns": len(groups) if title == "Slice continuity" else 0,
        "below": _BELOW.get(title, "") if drawn else "",
        "tables": [table],
    }


def _continuity(report: dict[str, Any], groups: Sequence[str]) -> list[dict[str, Any]]:
    """Change ratios of all cases along the patient, then the changes themselves of the cases shown."""
    shown = []
    for group in groups:
        plane = group.rpartition(".")[2]
        ratios = [ratio for case in report["cases"] if (ratio := _ratio_along(case, plane)) is not None]
        if ratios:
            places = (np.arange(_PLACES) + 0.5) * 100 / _PLACES
            low, middle, high = np.percentile(ratios, [10, 50, 90], axis=0)
            mean = report["summary"][f"{group}.ratio"]["mean"]
            drawn = charts.band(
                places.tolist(), low.tolist(), middle.tolist(), high.tolist(),
                (f"{_way(plane)}, % of the body", "prediction / truth"),
                f"Change ratio of {plane} slices along the patient, {len(ratios)} cases; mean {mean:.3f}.",
            )  # fmt: skip
            shown.append({"title": f"{plane.capitalize()} slices, all cases", "about": "", "svg": drawn})
    for role, case_id in worst_median_best(report["cases"]):
        case = next(case for case in report["cases"] if case["case_id"] == case_id)
        for group in groups:
            plane = group.rpartition(".")[2]
            profile = _patient_order(case, plane)
            if profile is None:
                continue
            steps, predicted, true = profile
            drawn = charts.two_lines(
                steps, true, predicted, (f"mm {_way(plane)}", "mean |change|"),
                f"Change from slice to slice across {plane} slices of case {case_id}, truth and prediction.",
            )  # fmt: skip
            shown.append({"title": f"{ROLES[role]}, {plane}", "about": case_id, "svg": drawn})
    return shown


def _way(plane: str) -> str:
    return {
        "axial": "from inferior to superior",
        "coronal": "from posterior to anterior",
        "sagittal": "from left to right",
    }[plane]


def _patient_order(case: dict[str, Any], plane: str) -> tuple[list[float], list[float], list[float]] | None:
    """Places in mm, changes of prediction and truth, in the order that `_way` tells; None without steps."""
    profile = case["profiles"].get(plane)
    if not profile or not profile["steps"]:
        return None
    steps = np.array(profile["steps"], dtype=float) * profile["slice_mm"]
    predicted, true = profile["change_prediction"], profile["change_target"]
    if case["orientation"][profile["axis"]] in "LPI":
        return (steps.max() - steps[::-1]).tolist(), predicted[::-1], true[::-1]
    return (steps - steps.min()).tolist(), predicted, true


def _ratio_along(case: dict[str, Any], plane: str) -> NDArray[np.float64] | None:
    """The change ratio at `_PLACES` places along the patient; None where it is not defined everywhere."""
    profile = _patient_order(case, plane)
    if profile is None or len(profile[0]) < 2:
        return None
    steps, predicted, true = (np.array(part) for part in profile)
    if (predicted <= 0).any() or (true <= 0).any():
        return None
    share = (steps - steps[0]) / (steps[-1] - steps[0])
    places = (np.arange(_PLACES) + 0.5) / _PLACES
    ratios: NDArray[np.float64] = np.exp(np.interp(places, share, np.log(predicted / true)))
    return ratios


def _tissues(report: dict[str, Any], groups: Sequence[str]) -> list[dict[str, Any]]:
    shown = []
    for last in ("mae", "bias", "dice"):
        rows = []
        for group in groups:
            name = f"{group}.{last}"
            of = report["summary"].get(name)
            if of is None or of["mean"] is None:
                continue
            floor = report["noise_floor"][name]["mean"]
            label = group.rpartition(".")[2].replace("_", " ")
            rows.append((label, of["mean"], of["interval"], floor))
        if rows:
            label = heading(f"{groups[0]}.{last}", report["in_hu"])
            spoken = f"{label} by region: " + ", ".join(f"{row[0]} {row[1]:.4g}" for row in rows) + "."
            drawn = charts.intervals(rows, "", spoken, zero=last == "bias")
            about = "prediction less truth" if last == "bias" else ""
            shown.append({"title": label, "about": about, "svg": drawn})
    return shown


def _spread(report: dict[str, Any], groups: Sequence[str]) -> list[dict[str, Any]]:
    """Error against spread, and the share of the truth inside against the stated one."""
    unit = "HU" if report["in_hu"] else "1 = data range"
    of_cases = [case["spread_groups"] for case in report["cases"] if case["spread_groups"]]
    shown = []
    curves = [(of["deviation"], of["error"]) for of in of_cases]
    full = [curve for curve in curves if len(curve[0]) == GROUPS]
    if full:
        mean = np.mean(full, axis=0).tolist()
        drawn = charts.against_diagonal(
            curves, (mean[0], mean[1]),
            (f"expected deviation ({unit})", "actual error"),
            f"Error against spread: {mean[1][0]:.3g} at the lowest, {mean[1][-1]:.3g} at the highest spread.",
        )  # fmt: skip
        shown.append({"title": "Does error rise with spread?", "about": "root mean squares", "svg": drawn})
    stated = [float(level) for level in LEVELS]
    inside = [
        [100 * case["values"][f"uncertainty.inside_{level}"] for level in LEVELS]
        for case in report["cases"]
        if case["values"].get(f"uncertainty.inside_{LEVELS[0]}") is not None
    ]
    if inside:
        mean_inside = np.mean(inside, axis=0).tolist()
        drawn = charts.against_diagonal(
            [(stated, of) for of in inside], (stated, mean_inside), ("stated, %", "truth inside, %"),
            "Share of the truth inside the stated interval: "
            + ", ".join(f"{of:.0f} % of {level} %" for of, level in zip(mean_inside, LEVELS, strict=True))
            + ".",
        )  # fmt: skip
        shown.append({"title": "What share of the truth lies inside?", "about": "", "svg": drawn})
    return shown
