"""`ct2mri compare`: two or more systems on the same cases, as tables, JSON, CSV and one page."""

import csv
import json
from collections.abc import Sequence
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ct2mri import __version__
from ct2mri.errors import RequestError
from ct2mri.evaluation.catalogue import describe, digits
from ct2mri.evaluation.compare_page import missing_lines, write_page
from ct2mri.evaluation.evaluate import REPORT_FORMAT_VERSION, evaluation_of
from ct2mri.evaluation.statistics import LEVEL, SETTINGS, compare_systems, summarise_patients
from ct2mri.evaluation.tables import TABLE
from ct2mri.files import atomic_path, read_json, require_place, write_json
from ct2mri.options.evaluation import CompareOptions, EvaluateOptions, MeasureOptions

COMPARISON_FORMAT_VERSION = 1

_REPORT = "evaluation.json"
_SAME_TRUTH = 1e-6
"""Largest relative difference of two noise floors, which the truth alone makes."""

_TOLD_BY_FLOOR = {"mae": "targets", "regions.*.mae": "sources", "labels.*.mae": "label maps"}
"""Noise floors, and what they are of, prediction or not."""


def compare(options: CompareOptions) -> None:
    """Compare systems with the first of them, print a table, and write comparison.json, .csv and .html.

    Raises:
        RequestError: fewer than two systems, no case in common, or reports that were not measured alike.
    """
    if options.output is not None:
        require_place(options.output)
    comparison = comparison_of(options)
    print(format_comparison(comparison))
    if options.output is not None:
        write_json(options.output / "comparison.json", comparison)
        _write_csv(options.output / "comparison.csv", comparison)
        write_page(comparison, options.output / "comparison.html")
        print(f"Written: {options.output / 'comparison.html'}, comparison.json and comparison.csv")


def comparison_of(options: CompareOptions) -> dict[str, Any]:
    """What `compare` writes as comparison.json; docs/evaluation.md explains its fields.

    Raises:
        RequestError: as for `compare`.
    """
    names = _names(options)
    _refuse_what_reports_tell(options)
    reports = {name: _report(path, options) for name, path in zip(names, options.systems, strict=True)}
    shared, missing = _shared_cases(reports)
    _require_alike(reports, shared)
    first = {case["case_id"]: case for case in reports[names[0]]["cases"]}
    in_hu = reports[names[0]]["in_hu"]
    every = list(dict.fromkeys(name for report in reports.values() for name in report["measures"]))
    measures = [name for name in every if all(name in report["measures"] for report in reports.values())]
    patient_of = {case_id: first[case_id]["patient_id"] for case_id in shared}
    centre_of = {case_id: first[case_id]["centre"] for case_id in shared}
    values = {
        name: {
            case["case_id"]: {measure: case["values"].get(measure) for measure in measures}
            for case in report["cases"]
            if case["case_id"] in shared
        }
        for name, report in reports.items()
    }
    centres = sorted({centre for centre in centre_of.values() if centre is not None})

    def against_first(case_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """System → measure → comparison with the first system, of some cases."""
        return {
            name: {
                measure: _compared(
                    {case_id: values[name][case_id][measure] for case_id in case_ids},
                    {case_id: values[names[0]][case_id][measure] for case_id in case_ids},
                    patient_of,
                    measure,
                )
                for measure in measures
            }
            for name in names[1:]
        }

    def floor_of(case_ids: Sequence[str]) -> dict[str, float | None]:
        """Measure → mean noise floor over patients, of a measure best near a number its distance."""
        return {
            measure: summarise_patients(
                {
                    case_id: distance_from_best(measure, first[case_id]["noise_floor"]["values"].get(measure))
                    for case_id in case_ids
                },
                patient_of,
            ).mean
            for measure in measures
        }

    of_centre = {
        centre: [case_id for case_id in shared if centre_of[case_id] == centre] for centre in centres
    }
    return {
        "format_version": COMPARISON_FORMAT_VERSION,
        "ct2mri": __version__,
        "systems": [
            {"name": name, "path": str(path), "predictions": reports[name]["options"]["predictions"]}
            for name, path in zip(names, options.systems, strict=True)
        ],
        "in_hu": in_hu,
        "measures": {name: describe(name, in_hu).to_json() for name in measures},
        "not_in_all": [name for name in every if name not in measures],
        "statistics": SETTINGS,
        "settings": reports[names[0]]["cases"][0]["settings"],
        "cases": [
            {
                "case_id": case_id,
                "patient_id": patient_of[case_id],
                "centre": centre_of[case_id],
                "values": {name: values[name][case_id] for name in names},
            }
            for case_id in shared
        ],
        "missing": missing,
        "differences": against_first(shared),
        "noise_floor": floor_of(shared),
        "centres": {
            centre: {"differences": against_first(case_ids), "noise_floor": floor_of(case_ids)}
            for centre, case_ids in of_centre.items()
        },
    }


def distance_from_best(measure: str, value: float | None) -> float | None:
    """A number of which lower (or higher) is better: of a measure best near a number, how far from it.

    Too smooth and flicker would otherwise cancel in a mean, and a difference would not tell which is better.
    """
    better = describe(measure, False).better
    if value is None or not better.startswith("near "):
        return value
    return abs(value - float(better.removeprefix("near ")))


def verdict(measure: str, of: dict[str, Any]) -> str:
    """Whether a system is "better" or "worse" than the first, or "unclear".

    Both the interval and the test must tell, since an interval of few patients is too narrow; of fewer than
    six patients the test never does.
    """
    better = describe(measure, False).better
    if better == "neither" or of["interval"] is None or of["interval"][0] <= 0 <= of["interval"][1]:
        return "unclear"
    if of["p_value"] is None or of["p_value"] >= 1 - LEVEL:
        return "unclear"
    return "better" if (of["difference"] > 0) == (better == "higher") else "worse"


def format_comparison(comparison: dict[str, Any]) -> str:
    """The comparison of the main measures as text."""
    names = [system["name"] for system in comparison["systems"]]
    lines = []
    for name in names[1:]:
        lines.append(f"{name} less {names[0]}, mean over patients of the paired differences")
        lines.append(
            f"{'':14}  {names[0][:12]:>12}  {name[:12]:>12}  {'difference':>12}  "
            f"{f'{LEVEL:.0%} interval':>24}   p      noise floor  verdict"
        )
        for measure in (measure for measure in TABLE if measure in comparison["measures"]):
            of = comparison["differences"][name][measure]
            label = comparison["measures"][measure]["label"]
            if of["difference"] is None:
                lines.append(f"{label:14}  no patient has a number from both")
                continue
            numbers = [
                digits(measure, of[field], comparison["in_hu"])
                for field in ("mean_b", "mean_a", "difference")
            ]
            interval = " to ".join(digits(measure, end, comparison["in_hu"]) for end in of["interval"] or [])
            p_value = "–" if of["p_value"] is None else f"{of['p_value']:.3f}"
            floor = comparison["noise_floor"][measure]
            floor_words = "–" if floor is None else digits(measure, floor, comparison["in_hu"])
            lines.append(
                f"{label:14}  {numbers[0]:>12}  {numbers[1]:>12}  {numbers[2]:>12}  {interval or '–':>24}"
                f"   {p_value:5}  {floor_words:>11}  {of['verdict']}"
            )
        lines.append("")
    patients = len({case["patient_id"] for case in comparison["cases"]})
    lines.append(
        f"{patients} patient{'s' * (patients != 1)} ({SETTINGS['unit']}). Interval: {SETTINGS['interval']}. "
        f"Test: {SETTINGS['test']}."
    )
    lines.append(
        f"Better, worse: the interval leaves 0 out and p is under {1 - LEVEL:.2g}, which takes six patients."
    )
    lines += missing_lines(comparison)
    return "\n".join(lines)


def _compared(
    of: dict[str, float | None], first: dict[str, float | None], patient_of: dict[str, str], measure: str
) -> dict[str, Any]:
    compared = compare_systems(
        {case_id: distance_from_best(measure, value) for case_id, value in of.items()},
        {case_id: distance_from_best(measure, value) for case_id, value in first.items()},
        patient_of,
    ).to_json()
    return {**compared, "verdict": verdict(measure, compared)}


def _names(options: CompareOptions) -> list[str]:
    if len(options.systems) < 2:
        raise RequestError("A comparison needs two systems or more; give another report or folder.")
    names = options.names or [path.resolve().name for path in options.systems]
    if len(names) != len(options.systems):
        raise RequestError(
            f"--names gives {len(names)} names for {len(options.systems)} systems; give one for each."
        )
    if len(set(names)) < len(names):
        raise RequestError(
            f"The systems are called {', '.join(names)}, which does not tell them apart; give --names."
        )
    return names


def _refuse_what_reports_tell(options: CompareOptions) -> None:
    """Refuse settings of a measurement where nothing is measured, since all systems are reports."""
    if not all(_report_file(path).is_file() for path in options.systems):
        return
    defaults = {field.name: field.default for field in fields(MeasureOptions)} | {"targets": None}
    for name, value in defaults.items():
        if getattr(options, name) != value:
            raise RequestError(
                f"--{name} says how predictions are measured, and all systems are reports, which were "
                "measured already; leave it out, or give folders of predictions."
            )


def _report_file(path: Path) -> Path:
    """Where a system's report lies, if it is one: in its folder, or the JSON file itself."""
    return path / _REPORT if path.is_dir() or path.suffix != ".json" else path


def _report(path: Path, options: CompareOptions) -> dict[str, Any]:
    """A report that `evaluate` wrote, or one made now of a folder of predictions."""
    file = _report_file(path)
    if file.is_file():
        try:
            report: dict[str, Any] = read_json(file)
            version = report["format_version"]
            if version == REPORT_FORMAT_VERSION:
                _ = [report[name] for name in ("options", "in_hu", "measures", "cases", "noise_floor")]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise RequestError(f"{file} is no report of `ct2mri evaluate`; evaluate again.") from error
        if version != REPORT_FORMAT_VERSION:
            raise RequestError(
                f"{file} has the format {version}, and this version of ct2mri reads {REPORT_FORMAT_VERSION}; "
                "evaluate again."
            )
        return report
    if not path.exists():
        raise RequestError(f"There is no file or folder {path}; give a report or a folder of predictions.")
    if options.targets is None and options.data is None:
        raise RequestError(
            f"{path} holds no {_REPORT}; give a folder that `ct2mri evaluate -o` wrote, or --targets or "
            "--data to measure predictions against."
        )
    shared = {field.name: getattr(options, field.name) for field in fields(MeasureOptions)}
    return evaluation_of(EvaluateOptions(predictions=path, targets=options.targets, **shared))


def _shared_cases(reports: dict[str, dict[str, Any]]) -> tuple[list[str], dict[str, list[str]]]:
    """The cases of all systems, and those that each lacks."""
    cases = {name: {case["case_id"] for case in report["cases"]} for name, report in reports.items()}
    every = set().union(*cases.values())
    shared = sorted(set.intersection(*cases.values()))
    if not shared:
        examples = "; ".join(f"{name}: {', '.join(sorted(of)[:3])}" for name, of in cases.items())
        raise RequestError(f"The systems have no case in common ({examples}); evaluate the same cases.")
    return shared, {name: sorted(every - of) for name, of in cases.items()}


def _require_alike(reports: dict[str, dict[str, Any]], shared: Sequence[str]) -> None:
    """Refuse reports whose numbers do not mean the same.

    Raises:
        RequestError: a case differs in grid, mask, truth, source, label map, patient, centre or settings.
    """
    (first_name, first), *others = reports.items()
    cases = {case["case_id"]: case for case in first["cases"]}
    for name, report in others:
        both = f"{first_name} and {name}"
        if report["in_hu"] != first["in_hu"]:
            raise RequestError(f"{both} are measured in different units (HU or not); evaluate them alike.")
        for case in report["cases"]:
            if case["case_id"] not in shared:
                continue
            one = cases[case["case_id"]]
            for field in ("shape", "spacing", "voxels", "patient_id", "centre"):
                if case[field] != one[field]:
                    words = "voxels in the mask" if field == "voxels" else field
                    raise RequestError(
                        f"Case {case['case_id']} of {both} differs in {words} ({one[field]} and "
                        f"{case[field]}); evaluate both against the same targets, masks and patients."
                    )
            for group in one["settings"].keys() & case["settings"].keys() - {"uncertainty"}:
                for term in one["settings"][group].keys() | case["settings"][group].keys():
                    values = [of["settings"][group].get(term) for of in (one, case)]
                    if values[0] != values[1]:
                        raise RequestError(
                            f"Case {case['case_id']} of {both} was measured with different settings: "
                            f"{term} is {values[0]!r} and {values[1]!r}; evaluate both alike."
                        )
            for of_floor, words in _TOLD_BY_FLOOR.items():
                floors = [_floors(of, of_floor) for of in (one, case)]
                if all(floors) and _differ(*floors):
                    raise RequestError(
                        f"Case {case['case_id']} of {both} was measured against different {words} (their "
                        "noise floors differ); evaluate both against the same."
                    )


def _floors(case: dict[str, Any], pattern: str) -> dict[str, float | None]:
    """The noise floors of a case whose names fit a pattern."""
    values: dict[str, float | None] = case["noise_floor"]["values"]
    return {name: value for name, value in values.items() if fnmatchcase(name, pattern)}


def _differ(one: dict[str, float | None], other: dict[str, float | None]) -> bool:
    """Whether noise floors are not of the same images: they have other names, or other numbers."""

    def alike(a: float | None, b: float | None) -> bool:
        return a == b if a is None or b is None else abs(a - b) <= _SAME_TRUTH * abs(a)

    return one.keys() != other.keys() or not all(alike(one[name], other[name]) for name in one)


def _write_csv(path: Path, comparison: dict[str, Any]) -> None:
    """One line a system, measure and centre; the centre is empty where all patients are meant."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "system", "compared_with", "centre", "measure", "patients", "mean", "mean_of_compared_with",
                "difference", "interval_low", "interval_high", "higher", "lower", "p_value", "verdict",
                "note",
            ]
        )  # fmt: skip
        first = comparison["systems"][0]["name"]
        of_centres = [(centre, of["differences"]) for centre, of in comparison["centres"].items()]
        for centre, differences in [("", comparison["differences"]), *of_centres]:
            for name, measures in differences.items():
                for measure, of in measures.items():
                    low, high = of["interval"] or (None, None)
                    writer.writerow(
                        [
                            name, first, centre, measure, of["patients"], of["mean_a"], of["mean_b"],
                            of["difference"], low, high, of["a_higher"], of["b_higher"], of["p_value"],
                            of["verdict"], of["note"],
                        ]
                    )  # fmt: skip
