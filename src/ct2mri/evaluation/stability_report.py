"""How stability is told: the table that `ct2mri stability` prints, and the appendix of the report's page."""

from collections.abc import Mapping, Sequence
from typing import Any

from ct2mri.evaluation import charts
from ct2mri.evaluation.cells import minus
from ct2mri.evaluation.stability import MEASURES, MOST_ALTERED, shares_of_error
from ct2mri.evaluation.statistics import summarise_patients

_HEADINGS = ("source, mean |change|", "result, mean |change|", "SSIM", "altered interior", "largest part, ml")
OF_ERROR = "of the error"
_TERMS = dict(zip(MEASURES, _HEADINGS, strict=True))


def add_stability(report: dict[str, Any], found: Mapping[str, Any]) -> None:
    """Take what `ct2mri stability` found into an evaluation, with each change as a share of the error.

    Raises:
        RequestError: they are not of the same cases or units.
    """
    patient_of = {case["case_id"]: case["patient_id"] for case in report["cases"]}
    shares = shares_of_error(found, report["cases"], report["in_hu"])
    kept = ("request", "in_hu", "source_in_hu", "changes", "settings", "statistics", "summary", "verdict")
    report["stability"] = {
        **{name: found[name] for name in kept},
        "patients": len({case["patient_id"] for case in found["cases"]}),
        "of_error": {name: summarise_patients(of, patient_of).to_json() for name, of in shares.items()},
    }


def format_stability(found: Mapping[str, Any]) -> str:
    """The table of an evaluation's or of `ct2mri stability`'s finding, and what it says."""
    rows = [["", *_headings(found)]]
    for name, words in found["changes"].items():
        rows.append([words, *(str(cell["words"]) or "–" for cell in _cells(found, name))])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        f"{row[0]:{widths[0]}}  "
        + "  ".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    return "\n".join(
        [
            *lines,
            "",
            found["verdict"]["sentence"],
            f"Altered: {found['settings']['altered']}.",
            f"Rule: {found['settings']['rule']}. Means over patients.",
        ]
    )


def appendix(report: Mapping[str, Any]) -> dict[str, Any]:
    """The page's appendix as the template takes it; empty where stability was not measured."""
    found = report.get("stability")
    if found is None:
        return {}
    request = found["request"]
    rows = [
        {"label": words, "cells": _cells(found, name), "guilty": name in found["verdict"]["hallucinates"]}
        for name, words in found["changes"].items()
    ]
    sampler = "" if request["sampler"] is None else f", sampler {request['sampler']}"
    count = found["patients"]
    return {
        "sentence": found["verdict"]["sentence"],
        "guilty": bool(found["verdict"]["hallucinates"]),
        "about": f"Model {request['model']['name']}, {request['num_inference_steps']} "
        f"step{'s' * (request['num_inference_steps'] != 1)}{sampler}, mean of {request['samples']} "
        f"sample{'s' * (request['samples'] != 1)}; {count} patient{'s' * (count != 1)}. "
        "Each source was changed before anything prepared it and translated again; results are compared in "
        "one frame.",
        "headings": _headings(found),
        "rows": rows,
        "charts": _charts(report, found),
        "terms": [(_TERMS.get(name, name), words) for name, words in found["settings"].items()],
    }


def _headings(found: Mapping[str, Any]) -> list[str]:
    units = [", HU" * found["source_in_hu"], ", HU" * found["in_hu"], "", "", ""]
    headings = [heading + unit for heading, unit in zip(_HEADINGS, units, strict=True)]
    return [*headings, OF_ERROR] if "of_error" in found else headings


def _cells(found: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    of = found["summary"][name]
    formats = {
        "source_change": "{:.1f}" if found["source_in_hu"] else "{:.4g}",
        "change": "{:.1f}" if found["in_hu"] else "{:.4f}",
        "ssim": "{:.4f}",
        "altered": "{:.2%}",
        "largest_ml": "{:.1f}",
    }
    cells = [_cell(of[measure], style) for measure, style in formats.items()]
    return [*cells, _cell(found["of_error"][name], "{:.0%}")] if "of_error" in found else cells


def _cell(of: Mapping[str, Any], style: str) -> dict[str, Any]:
    mean, interval = of["mean"], of["interval"]
    return {
        "value": mean,
        "words": "" if mean is None else minus(style.format(mean)),
        "about": "" if interval is None else " to ".join(minus(style.format(end)) for end in interval),
    }


def _charts(report: Mapping[str, Any], found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each change beside the model's own error, and the share of the interior that altered."""
    error = report["summary"]["mae"]["mean"]
    shown = []
    changes: list[tuple[str, float, Sequence[float] | None, float | None]] = []
    altered: list[tuple[str, float, Sequence[float] | None, float | None]] = []
    for name, words in found["changes"].items():
        of = found["of_error"][name]
        if of["mean"] is not None and error is not None:
            changes.append((words, of["mean"], of["interval"], 1.0))
        share = found["summary"][name]["altered"]
        if share["mean"] is not None:
            interval = None if share["interval"] is None else [100 * end for end in share["interval"]]
            altered.append((words, 100 * share["mean"], interval, 100 * MOST_ALTERED))
    if changes:
        spoken = "Change over error: " + ", ".join(f"{row[0]} {row[1]:.2f}" for row in changes) + "."
        drawn = charts.intervals(changes, "", spoken, zero=False)
        shown.append({"title": "Mean |change| over mean |error|", "about": "diamond: as large", "svg": drawn})
    if altered:
        spoken = "Altered interior: " + ", ".join(f"{row[0]} {row[1]:.2f} %" for row in altered) + "."
        drawn = charts.intervals(altered, "%", spoken, zero=False)
        shown.append({"title": "Altered interior", "about": "diamond: what the rule allows", "svg": drawn})
    return shown
