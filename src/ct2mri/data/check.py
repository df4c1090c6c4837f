"""`ct2mri check`: what is wrong with raw or prepared data, before a week of training."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ct2mri.data.cases import PreparedDataset
from ct2mri.data.check_case import Pair, as_meant, measure
from ct2mri.data.check_page import write_page
from ct2mri.data.check_picture import thumbnail
from ct2mri.data.check_rules import CaseReport, Finding, hand, judge_case, sorted_findings, worst_first
from ct2mri.data.check_set import DataReport, judge_set, judge_split
from ct2mri.data.intensity import unscale_target, unscale_window
from ct2mri.data.layouts import RawCase, find_cases
from ct2mri.data.plan import Plan, modality_in_hu
from ct2mri.data.splits import read_splits
from ct2mri.data.volume import Volume
from ct2mri.data.workers import over_cases
from ct2mri.errors import CasesLeftOutError, RequestError
from ct2mri.files import read_json, require_place, write_json
from ct2mri.options.data import CheckOptions, PrepareOptions

FORMAT_VERSION = 1


def check(options: CheckOptions) -> None:
    """Tell what is wrong with raw or prepared data; see `CheckOptions`.

    Raises:
        RequestError: there is nothing to check.
        CasesLeftOutError: some case has an error, and `strict` was asked for.
    """
    data = options.data
    is_prepared = (data / "plan.json").is_file() and (data / "cases").is_dir()
    folder = options.output or data.resolve().parent / f"{data.resolve().name}-check"
    require_place(folder)
    report = _check_prepared(options) if is_prepared else _check_raw(options)
    write_json(folder / "check.json", as_json(report))
    write_page(report, folder / "check.html")
    print_report(report)
    print(f"To look at: {folder / 'check.html'} (the same as numbers: check.json)")
    errors = report.counts()["error"]
    if options.strict and errors:
        raise CasesLeftOutError(
            f"{errors} of {len(report.cases)} cases have an error; {folder / 'check.html'} names them."
        )


def _check_raw(options: CheckOptions) -> DataReport:
    raw = find_cases(options.data, options)
    findings = [Finding("warning", note) for note in raw.notes]
    told = None
    try:
        told = read_splits(PrepareOptions(raw=options.data, dataset=options.data, splits=options.splits), raw)
    except RequestError as error:
        findings.append(Finding("error", str(error)))
    side_of = {patient: side for side, ids in (told or {}).items() for patient in ids}
    words = (options.source, options.target)
    work = partial(check_raw_case, modalities=words, in_hu=_in_hu(words, raw.pictures))
    reports = []
    for case, result in over_cases(work, raw.cases, options.workers, "check"):
        if isinstance(result, RequestError):
            unread = Finding("error", f"It cannot be read: {result}")
            reports.append(CaseReport(case.case_id, case.patient_id, case.centre, None, None, [unread]))
        else:
            reports.append(replace(result, split=side_of.get(case.patient_id)))
    reports += [
        CaseReport(name, None, None, None, None, [Finding("error", f"It is no pair: {reason}.")])
        for name, reason in raw.left_out.items()
    ]
    if told is not None:
        findings += judge_split(reports)
    return _together(options.data, raw.layout, words, reports, findings)


def check_raw_case(case: RawCase, modalities: tuple[str, str], in_hu: tuple[bool, bool]) -> CaseReport:
    """Check one raw case by itself."""
    source, target, mask = case.load()
    pair = Pair(source, target, mask, None, (case.source_name, case.target_name), modalities, in_hu)
    return _report(pair, case.case_id, case.patient_id, case.centre, None)


def _check_prepared(options: CheckOptions) -> DataReport:
    dataset = PreparedDataset(options.data)
    plan = dataset.plan
    findings = [Finding("note", f"Assumed: {assumption}") for assumption in plan.assumptions]
    summary = options.data / "prepare.json"
    if summary.is_file():
        left_out = [case for case in read_json(summary)["cases"] if case["status"] == "left out"]
        findings += [
            Finding("note", f"Left out by prepare: {case['case_id']}: {case['reason']}.") for case in left_out
        ]
    work = partial(check_prepared_case, data=options.data, plan=plan)
    reports = []
    for case_id, result in over_cases(work, dataset.case_ids(), options.workers, "check"):
        if isinstance(result, RequestError):
            patient_id = dataset.case(case_id).patient_id
            unread = Finding("error", f"It cannot be read: {result}")
            result = CaseReport(case_id, patient_id, None, plan.split.side(patient_id), None, [unread])
        reports.append(result)
    findings += judge_split(reports)
    return _together(
        options.data, "prepared", (plan.source_modality, plan.target_modality), reports, findings
    )


def check_prepared_case(case_id: str, data: Path, plan: Plan) -> CaseReport:
    """Check one prepared case by itself."""
    case = PreparedDataset(data).case(case_id)
    # The widest window shows most of the source.
    channel = int(np.argmax([high - low for low, high in plan.source_windows]))
    in_hu = (plan.source_units == "HU", plan.target_units == "HU")
    source = unscale_window(case.source[channel], plan.source_windows[channel])
    target = unscale_target(case.target, case.target_range)
    told = [case.facts.get(role) for role in ("source", "target")]
    source_facts, target_facts = (facts if isinstance(facts, dict) else {} for facts in told)
    pair = Pair(
        Volume(source, case.affine, source_facts),
        Volume(target, case.affine, target_facts),
        Volume(np.asarray(case.mask), case.affine),
        Volume(np.asarray(case.valid), case.affine),
        ("prepared", "prepared"),
        (plan.source_modality, plan.target_modality),
        in_hu,
        windowed=True,
    )
    return _report(pair, case.case_id, case.patient_id, case.centre, plan.split.side(case.patient_id))


def _report(pair: Pair, case_id: str, patient_id: str, centre: str | None, split: str | None) -> CaseReport:
    measured, coarse = measure(pair)
    findings = judge_case(measured, is_picture=1 in pair.source.spatial_shape)
    meant = as_meant(pair.source, pair.in_hu[0]), as_meant(pair.target, pair.in_hu[1])
    picture = None if coarse is None else thumbnail(*meant, coarse, pair.in_hu)
    return CaseReport(case_id, patient_id, centre, split, measured, findings, picture)


def _in_hu(words: tuple[str, str], pictures: bool) -> tuple[bool, bool]:
    source, target = (modality_in_hu(word) and not pictures for word in words)
    return source, target


def _together(
    data: Path, kind: str, modalities: tuple[str, str], reports: Sequence[CaseReport], findings: list[Finding]
) -> DataReport:
    """The report of a whole data set, with what shows only beside other cases."""
    beside = judge_set(reports)
    cases = [
        replace(report, findings=sorted_findings([*report.findings, *beside.get(report.case_id, [])]))
        for report in reports
    ]
    return DataReport(str(data), kind, modalities, worst_first(cases), sorted_findings(findings))


def as_json(report: DataReport) -> dict[str, Any]:
    """The report as JSON holds it: everything but the pictures."""
    cases = []
    for case in report.cases:
        content = asdict(case)
        del content["thumbnail"]
        pair = case.measured and case.measured.pair
        cases.append({**content, "worst": case.worst, "left_right": hand(pair) if pair else None})
    return {
        "format_version": FORMAT_VERSION,
        "data": report.data,
        "kind": report.kind,
        "modalities": list(report.modalities),
        "counts": report.counts(),
        "findings": [asdict(finding) for finding in report.findings],
        "cases": cases,
    }


# On the terminal

_HEADINGS = (
    "case",
    "worst",
    "voxels",
    "mm",
    "air HU",
    "bone %",
    "seen %",
    "shift mm",
    "edges mm",
    "left-right",
)


def print_report(report: DataReport) -> None:
    """Print a table, one line a case, worst first, and then the findings but for notes."""
    rows = [_HEADINGS, *(_row(case) for case in report.cases)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print()
    for finding in report.findings:
        print(f"{finding.severity}: {finding.text}")
    for case in report.cases:
        for finding in case.findings:
            if finding.severity != "note":
                print(f"{case.case_id}: {finding.severity}: {finding.text}")
    counts = report.counts()
    number = len(report.cases)
    print(
        f"{number} {'case' if number == 1 else 'cases'}: {counts['error']} with errors, "
        f"{counts['warning']} with warnings, {counts['note'] + counts['fine']} without either."
    )
    sys.stdout.flush()


def _row(case: CaseReport) -> tuple[str, ...]:
    measured = case.measured
    units = measured.in_units if measured else None
    pair = measured.pair if measured else None
    return (
        case.case_id,
        case.worst or "-",
        "×".join(map(str, measured.source.shape)) if measured else "-",
        "×".join(f"{edge:.3g}" for edge in measured.source.spacing) if measured else "-",
        _number(units.air_hu if units else None, 0),
        _number(100 * units.bone_share if units and units.bone_share is not None else None, 1),
        _number(100 * pair.seen_share if pair else None, 0),
        _number(pair.shift_mm if pair else None, 1),
        _number(pair.edge_distance_mm if pair else None, 1),
        hand(pair) if pair else "-",
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
