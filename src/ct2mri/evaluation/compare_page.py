"""The page that `ct2mri compare` writes: all systems side by side, one self-contained HTML file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ct2mri.evaluation import charts, statistics
from ct2mri.evaluation.catalogue import describe, digits
from ct2mri.evaluation.cells import heading, minus, number
from ct2mri.evaluation.report import SAFETY, environment
from ct2mri.evaluation.tables import TABLE, tables_below
from ct2mri.files import atomic_path

_TITLES = {"By the CT's HU": "Errors by tissue", "By label": "Errors by label"}
_VERDICTS = {"better": "better", "worse": "worse", "unclear": "no clear difference"}
_SYMBOLS = {"better": "▲", "worse": "▼", "unclear": "~"}
_OF_CASES = ("mae", "psnr", "ssim", "ms_gmsd")


def write_page(comparison: dict[str, Any], path: Path) -> None:
    """Write the page, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(page(comparison), encoding="utf-8")


def page(comparison: dict[str, Any]) -> str:
    """The page as HTML: nothing fetched, readable without scripts.

    Args:
        comparison: what `compare.comparison_of` made.
    """
    names = [system["name"] for system in comparison["systems"]]
    main = [name for name in TABLE if name in comparison["measures"]]
    sections = []
    for title, groups in tables_below(comparison["measures"]):
        measures = [
            name
            for name, of in comparison["measures"].items()
            if of["group"] in groups and not name.endswith(".gmsd")
        ]
        sections.append(
            {
                "id": title.partition(",")[0].lower().replace(" ", "-").replace("'", ""),
                "title": _TITLES.get(title, title),
                "table": _table(comparison, measures, comparison, with_group=True),
            }
        )
    parts: list[tuple[str, str]] = [
        ("summary", "Summary"),
        ("patients", "Patients, one by one"),
        ("cases", "All cases"),
    ]
    if comparison["centres"]:
        parts.append(("centres", "By centre"))
    parts += [
        *((str(section["id"]), str(section["title"])) for section in sections),
        ("settings", "Settings"),
    ]
    settings = comparison["settings"][""]
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            names=names,
            first=names[0],
            about=_about(comparison),
            safety=SAFETY,
            missing=missing_lines(comparison),
            parts=[{"id": name, "title": title} for name, title in parts],
            summary=_table(comparison, main, comparison, with_group=False),
            statistics=comparison["statistics"],
            plots=_plots(comparison, main),
            case_table=_case_table(comparison),
            centres=[
                {"name": centre, "table": _table(comparison, main, of_centre, with_group=False)}
                for centre, of_centre in comparison["centres"].items()
            ],
            sections=sections,
            settings=[(term, settings[term]) for term in ("mask", "data_range", "normalisation", "ssim")],
            systems=comparison["systems"],
        )
    )


def _about(comparison: dict[str, Any]) -> str:
    patients = len({case["patient_id"] for case in comparison["cases"]})
    cases = len(comparison["cases"])
    return (
        f"{patients} patient{'s' * (patients != 1)}, {cases} case{'s' * (cases != 1)}, "
        f"images {'in HU' if comparison['in_hu'] else 'without units'}. ct2mri {comparison['ct2mri']}."
    )


def missing_lines(comparison: dict[str, Any]) -> list[str]:
    """Which cases and measures only some of the systems have."""
    lines = [
        f"Without a number of {name}, so in no comparison: {', '.join(case_ids)}."
        for name, case_ids in comparison["missing"].items()
        if case_ids
    ]
    if comparison["not_in_all"]:
        lines.append(
            f"Measured of some systems only, so not compared: {', '.join(comparison['not_in_all'])}."
        )
    return lines


def label_of(measure: str, in_hu: bool) -> str:
    """A measure's heading; of one that is best near a number, the distance from it."""
    better = describe(measure, in_hu).better
    if better.startswith("near "):
        return f"|{heading(measure, in_hu)} − {better.removeprefix('near ')}|"
    return heading(measure, in_hu)


def _table(
    comparison: dict[str, Any],
    measures: Sequence[str],
    part: dict[str, Any],
    *,
    with_group: bool,
) -> list[dict[str, Any]]:
    """A row a measure: noise floor, the first system's mean, then mean, difference and test of each other.

    Args:
        comparison: the comparison.
        measures: which rows.
        part: `differences` and `noise_floor` of all patients, or of those of a centre.
        with_group: name the measures' groups as well.
    """
    in_hu, rows = comparison["in_hu"], []
    differences = part["differences"]
    for measure in measures:
        others = []
        for name, of_system in differences.items():
            of = of_system[measure]
            difference = number(measure, of["difference"], in_hu)
            if of["difference"] is not None and of["difference"] > 0:
                difference["words"] = f"+{difference['words']}"
            difference["about"] = " to ".join(
                minus(digits(measure, end, in_hu)) for end in of["interval"] or []
            )
            p_value = of["p_value"]
            told = of["difference"] is not None and describe(measure, in_hu).better != "neither"
            others.append(
                {
                    "name": name,
                    "mean": number(measure, of["mean_a"], in_hu),
                    "difference": difference,
                    "p": "" if p_value is None else ("< 0.001" if p_value < 0.001 else f"{p_value:.3f}"),
                    "note": of["note"],
                    "higher": f"{of['a_higher']} : {of['b_higher']}",
                    "verdict": of["verdict"],
                    "words": _VERDICTS[of["verdict"]] if told else "",
                    "symbol": _SYMBOLS[of["verdict"]],
                }
            )
        firsts = [of_system[measure]["mean_b"] for of_system in differences.values()]
        group = describe(measure, in_hu).group.rpartition(".")[2].replace("_", " ")
        better = describe(measure, in_hu).better
        rows.append(
            {
                "label": f"{group}: {label_of(measure, in_hu)}" if with_group else label_of(measure, in_hu),
                "better": {"higher": "higher", "neither": "–"}.get(better, "lower"),
                "floor": number(measure, part["noise_floor"][measure], in_hu),
                "first": number(measure, firsts[0], in_hu),
                "others": others,
            }
        )
    return rows


def _plots(comparison: dict[str, Any], measures: Sequence[str]) -> list[dict[str, Any]]:
    """A line a patient across the systems, for each measure that all have."""
    names = [system["name"] for system in comparison["systems"]]
    patient_of = {case["case_id"]: case["patient_id"] for case in comparison["cases"]}
    shown = []
    for measure in measures:
        of_cases = {
            case["case_id"]: [case["values"][name][measure] for name in names] for case in comparison["cases"]
        }
        of_cases = {case_id: of for case_id, of in of_cases.items() if None not in of}
        if not of_cases:
            continue
        of_systems = [
            statistics.average_by_patient({case_id: of[i] for case_id, of in of_cases.items()}, patient_of)
            for i in range(len(names))
        ]
        label = heading(measure, comparison["in_hu"])
        values = [[of[patient_id] for of in of_systems] for patient_id in of_systems[0]]
        means = [sum(column) / len(column) for column in zip(*values, strict=True)]
        spoken = f"{label} of {len(values)} patients, mean " + ", ".join(
            f"{digits(measure, mean, comparison['in_hu'])} of {name}"
            for name, mean in zip(names, means, strict=True)
        )
        better = describe(measure, comparison["in_hu"]).better
        shown.append(
            {
                "title": label,
                "about": f"{better} is better",
                "svg": charts.paired(names, values, "", f"{spoken}."),
            }
        )
    return shown


def _case_table(comparison: dict[str, Any]) -> dict[str, Any]:
    names = [system["name"] for system in comparison["systems"]]
    in_hu = comparison["in_hu"]
    measures = [
        measure
        for measure in _OF_CASES
        if any(case["values"][name][measure] is not None for case in comparison["cases"] for name in names)
    ]
    rows = []
    for case in comparison["cases"]:
        whose = [f"patient {case['patient_id']}"] if case["patient_id"] != case["case_id"] else []
        whose += [f"centre {case['centre']}"] if case["centre"] else []
        cells = [
            number(measure, case["values"][name][measure], in_hu) for measure in measures for name in names
        ]
        rows.append({"name": case["case_id"], "about": ", ".join(whose), "cells": cells})
    headings = [{"text": "Case", "kind": "text"}]
    headings += [
        {"text": f"{heading(measure, in_hu)}: {name}", "kind": "number"}
        for measure in measures
        for name in names
    ]
    return {
        "caption": f"{len(rows)} case{'s' * (len(rows) != 1)} that all systems have; a dash: not defined. "
        "Headings sort.",
        "headings": headings,
        "rows": rows,
    }
