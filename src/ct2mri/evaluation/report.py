"""The page that `ct2mri evaluate` writes: one self-contained HTML file of numbers, charts and pictures."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ct2mri.evaluation import charts, statistics
from ct2mri.evaluation.case_pictures import ROLES, CasePictures, Column
from ct2mri.evaluation.catalogue import describe, digits
from ct2mri.evaluation.cells import heading, minus, number, summary_row
from ct2mri.evaluation.report_sections import sections_of
from ct2mri.evaluation.stability_report import appendix
from ct2mri.evaluation.tables import TABLE
from ct2mri.files import atomic_path

SAFETY = (
    "The predicted images are synthetic, not acquired: lesions may be missing or invented, however good the "
    "numbers are. Research use only; not for diagnosis, contouring or dose planning."
)


def write_page(report: dict[str, Any], pictures: Sequence[CasePictures], path: Path) -> None:
    """Write the page, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(page(report, pictures), encoding="utf-8")


def environment() -> Environment:
    """Where the pages' templates are."""
    return Environment(
        loader=PackageLoader("ct2mri.evaluation", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )


def page(report: dict[str, Any], pictures: Sequence[CasePictures]) -> str:
    """The page as HTML: pictures inside, nothing fetched, readable without scripts.

    Args:
        report: what `evaluate.evaluation_of` made.
        pictures: of some of its cases.
    """
    sections = sections_of(report)
    centres = _centres(report)
    stability = appendix(report)
    parts = [
        ("summary", "Summary"),
        ("spread-of-cases", "Patients, one by one"),
        *([("pictures", _pictures_title(pictures))] if pictures else []),
        ("cases", "All cases"),
        *((section["id"], section["title"]) for section in sections),
        *([("centres", "By centre")] if centres else []),
        *([("stability", "Appendix: stability")] if stability else []),
        ("settings", "Settings"),
    ]
    options = report["options"]
    return (
        environment()
        .get_template("evaluation.html.j2")
        .render(
            name=Path(options["predictions"]).resolve().name,
            about=_about(report),
            safety=SAFETY,
            missing=missing_lines(report),
            parts=[{"id": name, "title": title} for name, title in parts],
            summary={
                "title": "Summary",
                "about": f"Means over {_count(report)}; the patient is the unit, never the slice.",
                "first": "Whole volume",
                "groups": [{"name": "", "rows": [summary_row(report, name) for name in TABLE]}],
            },
            floor=f"Noise floor: {report['statistics']['noise_floor']}. Numbers near it are as good as the "
            "registration allows to tell.",
            key_settings=_key_settings(report),
            boxes=_boxes(report),
            pictures=[_pictures_of(report, case) for case in pictures],
            pictures_title=_pictures_title(pictures),
            case_table=_case_table(report),
            sections=sections,
            centres=centres,
            stability=stability,
            settings=_settings(report),
        )
    )


def missing_lines(report: dict[str, Any]) -> list[str]:
    """Which cases have no counterpart."""
    return [
        f"{words}: {', '.join(report[field])}."
        for field, words in (("without_prediction", "Not predicted"), ("without_target", "Without a target"))
        if report[field]
    ]


def _count(report: dict[str, Any]) -> str:
    patients = len({case["patient_id"] for case in report["cases"]})
    cases = len(report["cases"])
    return (
        f"{patients} patient{'s' * (patients != 1)} ({cases} case{'s' * (cases != 1)})"
        if cases != patients
        else f"{patients} patient{'s' * (patients != 1)}"
    )


def _about(report: dict[str, Any]) -> str:
    options = report["options"]
    against = (
        f"the {options['split']} cases of the data set {Path(options['data']).resolve().name}"
        if options["data"]
        else f"{Path(options['targets']).resolve().name}"
    )
    units = "in HU" if report["in_hu"] else "without units"
    return f"Against {against}: {_count(report)}, images {units}. ct2mri {report['ct2mri']}."


def _key_settings(report: dict[str, Any]) -> list[tuple[str, str]]:
    settings = [case["settings"][""] for case in report["cases"]]

    def all_of(name: str) -> str:
        return "; or ".join(sorted({str(of[name]) for of in settings}))

    return [
        ("Mask", all_of("mask")),
        ("Data range", f"{settings[0]['data_range']:g}{' HU' if report['in_hu'] else ''}"),
        ("Normalisation", all_of("normalisation")),
        ("SSIM", all_of("ssim")),
        ("Interval", report["statistics"]["interval"]),
    ]


def _settings(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Every setting of the first case, by group, and the command's arguments."""
    shown = [
        {"title": group or "Whole volume", "terms": [(term, _said(words)) for term, words in of.items()]}
        for group, of in report["cases"][0]["settings"].items()
    ]
    shown.append({"title": "Statistics", "terms": list(report["statistics"].items())})
    arguments = [
        (name, _said(value)) for name, value in report["options"].items() if value not in (None, False)
    ]
    shown.append({"title": "Arguments of the command", "terms": arguments})
    return shown


def _said(value: object) -> str:
    return " × ".join(map(str, value)) if isinstance(value, list) else str(value)


def _boxes(report: dict[str, Any]) -> list[dict[str, Any]]:
    in_hu = report["in_hu"]
    centres = list(report["centres"]) if len(report["centres"]) > 1 else []
    shown = []
    for name in TABLE:
        groups = {"": _by_patient(report["cases"], name)}
        if centres:
            groups = {"all": groups[""]} | {
                centre: _by_patient([case for case in report["cases"] if case["centre"] == centre], name)
                for centre in centres
            }
        of, floor = report["summary"][name], report["noise_floor"][name]["mean"]
        if of["mean"] is None:
            continue
        label = heading(name, in_hu)
        spoken = (
            f"Box plot of {label}: median {digits(name, of['median'], in_hu)} of {of['patients']} patients"
            + (f", noise floor {digits(name, floor, in_hu)}." if floor is not None else ".")
        )
        drawn = charts.box_plot(groups, floor, "", spoken)
        better = describe(name, in_hu).better
        shown.append({"title": label, "about": f"{better} is better", "svg": drawn})
    return shown


def _by_patient(cases: Sequence[dict[str, Any]], name: str) -> list[float]:
    patient_of = {case["case_id"]: case["patient_id"] for case in cases}
    values = {case["case_id"]: case["values"].get(name) for case in cases}
    return list(statistics.average_by_patient(values, patient_of).values())


def _pictures_title(pictures: Sequence[CasePictures]) -> str:
    roles = [case.role for case in pictures]
    if len(roles) < 2:
        return "The case"
    return f"{', '.join(roles[:-1]).capitalize()} and {roles[-1]} case"


def _pictures_of(report: dict[str, Any], case: CasePictures) -> dict[str, Any]:
    of = next(entry for entry in report["cases"] if entry["case_id"] == case.case_id)
    shown = [
        f"{heading(name, report['in_hu'])} {digits(name, of['values'][name], report['in_hu'])}"
        for name in ("mae", "psnr", "ssim", "ms_gmsd")
        if of["values"][name] is not None
    ]
    return {
        "role": case.role,
        "heading": f"{ROLES[case.role]}: {case.case_id}",
        "numbers": " · ".join(shown),
        "columns": [_column(case.case_id, column) for column in case.columns],
    }


def _column(case_id: str, column: Column) -> dict[str, Any]:
    ends: list[tuple[str, str]] = []
    if column.scale:
        values = [column.scale[place][0] for place in (0, len(column.scale) // 2, -1)]
        signed = values[0] < 0
        words = ("too low", "", "too high") if signed else ("", "", "")
        written = [f"{value:+.3g}" if signed and value else f"{value:.3g}" for value in values]
        ends = [(minus(value), word) for value, word in zip(written, words, strict=True)]
    return {
        "title": column.title,
        "subtitle": column.subtitle,
        "data": base64.b64encode(column.jpeg).decode(),
        "size": column.size,
        "alt": f"Case {case_id}, {column.title} ({column.subtitle}): {', '.join(column.planes)} plane"
        + "s" * (len(column.planes) > 1),
        "gradient": ", ".join(colour for _, colour in column.scale),
        "ends": ends,
    }


def _case_table(report: dict[str, Any]) -> dict[str, Any]:
    in_hu, cases = report["in_hu"], report["cases"]
    names = [name for name in TABLE if any(_has_words(case, name) for case in cases)]
    names += [name for name in ("continuity.axial.ratio", "edges.median_mm") if name in report["measures"]]
    spoken = {"continuity.axial.ratio": "axial change ratio", "edges.median_mm": "edges from the CT's, mm"}
    remarks = any(case["remarks"] for case in cases)
    rows = []
    for case in sorted(cases, key=lambda case: -(case["values"]["mae"] or 0)):
        whose = [f"patient {case['patient_id']}"] if case["patient_id"] != case["case_id"] else []
        whose += [f"centre {case['centre']}"] if case["centre"] else []
        row: dict[str, Any] = {
            "name": case["case_id"],
            "about": ", ".join(whose),
            "cells": [
                number(name, case["values"].get(name), in_hu, case["notes"].get(name, "")) for name in names
            ],
        }
        if remarks:
            row["words"] = " ".join(case["remarks"])
        rows.append(row)
    foot: dict[str, Any] = {
        "name": "noise floor, mean",
        "cells": [number(name, report["noise_floor"][name]["mean"], in_hu) for name in names],
        **({"words": ""} if remarks else {}),
    }
    headings = [{"text": "Case", "kind": "text"}]
    headings += [{"text": spoken.get(name, heading(name, in_hu)), "kind": "number"} for name in names]
    headings += [{"text": "Remarks", "kind": "none"}] if remarks else []
    return {
        "caption": f"{len(cases)} case{'s' * (len(cases) != 1)}, largest MAE first; a dash: "
        "not defined. Headings sort.",
        "headings": headings,
        "rows": rows,
        "foot": foot,
        "sorted_by": 1 + names.index("mae") if "mae" in names else 0,
    }


def _has_words(case: dict[str, Any], name: str) -> bool:
    """Whether a case has a number, or a word worth a column, such as "identical"."""
    return case["values"][name] is not None or not case["notes"][name].startswith("not defined")


def _centres(report: dict[str, Any]) -> dict[str, Any]:
    if not report["centres"]:
        return {}
    in_hu = report["in_hu"]
    names = [name for name in TABLE if report["summary"][name]["mean"] is not None]
    rows = []
    for centre, of_centre in report["centres"].items():
        cells = []
        for name in names:
            of = of_centre[name]
            cell = number(name, of["mean"], in_hu)
            if of["deviation"] is not None:
                cell["words"] += f" ± {digits(name, of['deviation'], in_hu)}"
            cell["about"] = " to ".join(minus(digits(name, end, in_hu)) for end in of["interval"] or [])
            cells.append(cell)
        rows.append({"name": centre, "patients": of_centre["mae"]["patients"], "cells": cells})
    floor = [number(name, report["noise_floor"][name]["mean"], in_hu) for name in names]
    return {"headings": [heading(name, in_hu) for name in names], "rows": rows, "floor": floor}
