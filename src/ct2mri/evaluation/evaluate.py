"""`ct2mri evaluate`: predicted volumes against real ones, as tables, JSON and CSV."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ct2mri import __version__
from ct2mri.data.cases import PreparedDataset
from ct2mri.errors import RequestError
from ct2mri.evaluation import statistics
from ct2mri.evaluation.catalogue import describe, digits
from ct2mri.evaluation.measure import FLOOR, Labels, measure
from ct2mri.evaluation.metrics import METRICS
from ct2mri.evaluation.pairing import (
    Matches,
    Pair,
    counterparts,
    labels_of,
    pairs_of_dataset,
    pairs_of_files,
)
from ct2mri.files import atomic_path, write_json
from ct2mri.options import EvaluateOptions

REPORT_FORMAT_VERSION = 2

TABLE: tuple[str, ...] = tuple(name for name in METRICS if name != "gmsd")
"""Measures of the tables; GMSD, which MS-GMSD contains, is in the files alone."""


def evaluate(options: EvaluateOptions) -> None:
    """Compare predictions with targets, print tables, and write evaluation.json and evaluation.csv.

    Raises:
        RequestError: nothing to compare with, nothing matches, grids differ, a voxel is not finite, or a
            preset for CT meets other images.
    """
    report = evaluation_of(options)
    print(format_report(report))
    if options.output is not None:
        write_json(options.output / "evaluation.json", report)
        _write_csv(options.output / "evaluation.csv", report)
        print(f"Written: {options.output / 'evaluation.json'} and evaluation.csv")


def evaluation_of(options: EvaluateOptions) -> dict[str, Any]:
    """What `evaluate` writes as evaluation.json; docs/evaluation.md explains its fields.

    Raises:
        RequestError: as for `evaluate`.
    """
    matches, pairs = _pairs(options)
    people = _people(options.cases, matches.case_ids)
    true_labels = counterparts(options.labels, "labels", matches.case_ids)
    predicted_labels = counterparts(options.predicted_labels, "labels", matches.case_ids)
    if predicted_labels and not true_labels:
        raise RequestError("--predicted_labels are compared with --labels; give both.")
    cases: list[dict[str, Any]] = []
    in_hu = False
    for pair in tqdm(pairs, total=len(matches.case_ids), desc="evaluate", unit="case", leave=False):
        if pair.case_id in people:
            patient_id, centre = people[pair.case_id]
            pair = replace(pair, patient_id=patient_id, centre=centre)
        remarks = list(pair.notes)
        labels = None
        if true_labels:
            true, said = labels_of(true_labels[pair.case_id], pair.grid)
            remarks += said
            predicted = None
            if predicted_labels:
                predicted, said = labels_of(predicted_labels[pair.case_id], pair.grid)
                remarks += said
            labels = Labels(true, predicted)
        try:
            measured, floor = measure(pair, labels, options.preset)
        except RequestError as error:
            raise RequestError(f"Case {pair.case_id}: {error}") from error
        in_hu = pair.in_hu
        cases.append(
            {
                "case_id": pair.case_id,
                "patient_id": pair.patient_id,
                "centre": pair.centre,
                "voxels": int(pair.mask.sum()),
                "spacing": list(pair.grid.spacing),
                "shape": list(pair.grid.shape),
                "values": measured.values,
                "notes": measured.notes,
                "settings": measured.settings,
                "factors": pair.factors,
                "remarks": remarks,
                "profiles": measured.profiles,
                "noise_floor": {"values": floor.values, "notes": floor.notes},
            }
        )
    names = list(dict.fromkeys(name for case in cases for name in case["values"]))
    centres = sorted({case["centre"] for case in cases if case["centre"] is not None})
    return {
        "format_version": REPORT_FORMAT_VERSION,
        "ct2mri": __version__,
        "options": {
            name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()
        },
        "in_hu": in_hu,
        "measures": {name: describe(name, in_hu).to_json() for name in names},
        "statistics": {**statistics.SETTINGS, "noise_floor": FLOOR},
        "cases": cases,
        "summary": summarise(cases, names),
        "centres": {
            centre: summarise([case for case in cases if case["centre"] == centre], names)
            for centre in centres
        },
        "noise_floor": summarise([{**case, **case["noise_floor"]} for case in cases], names),
        "without_prediction": matches.without_prediction,
        "without_target": matches.without_target,
    }


def summarise(cases: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each measure over the patients for whom it is defined: the fields of `statistics.Summary`."""
    patient_of = {case["case_id"]: case["patient_id"] for case in cases}
    return {
        name: statistics.summarise_patients(
            {case["case_id"]: case["values"].get(name) for case in cases}, patient_of
        ).to_json()
        for name in names
    }


def format_scores(scores: Any) -> dict[str, str]:
    """One volume's numbers as words for a table.

    Args:
        scores: of `evaluate_volumes`.
    """
    return {name: _words(name, scores[name], scores["notes"]) for name in TABLE}


def format_table(rows: Sequence[tuple[str, dict[str, str]]], in_hu: bool = False) -> str:
    """Rows of labels and words under the names of the measures, aligned.

    Args:
        rows: a label, and measure → words; the first row tells the columns.
        in_hu: whether the images are in HU.
    """
    columns = list(rows[0][1])
    headings = {}
    for name in columns:
        of = describe(name, in_hu)
        headings[name] = f"{of.label} {of.unit}" if of.unit in ("dB", "HU", "ml") else of.label
    lines = [("", headings), *rows]
    label_width = max(len(label) for label, _ in lines)
    widths = {name: max(len(words[name]) for _, words in lines) for name in columns}
    return "\n".join(
        f"{label:{label_width}}  " + "  ".join(f"{words[name]:>{widths[name]}}" for name in columns)
        for label, words in lines
    )


def format_report(report: dict[str, Any]) -> str:
    """All tables of an evaluation, and what they mean."""
    in_hu, summary, floor = report["in_hu"], report["summary"], report["noise_floor"]
    rows = [
        (
            case["case_id"],
            {name: _words(name, case["values"][name], case["notes"], in_hu) for name in TABLE},
        )
        for case in report["cases"]
    ]
    for label, of in [
        ("mean ± deviation", _means(summary, in_hu)),
        ("95 % interval", _intervals(summary, in_hu)),
        ("noise floor", _means(floor, in_hu)),
    ]:
        rows.append((label, {name: of[name] for name in TABLE}))
    parts = [format_table(rows, in_hu)]
    for title, groups in _tables(report["measures"]):
        rows = []
        for group in groups:
            names = {name: of for name, of in report["measures"].items() if of["group"] == group}
            columns = {name: name.rpartition(".")[2] for name in names if not name.endswith(".gmsd")}
            for label, words in [
                (group.rpartition(".")[2], _means(summary, in_hu)),
                ("  noise floor", _means(floor, in_hu)),
            ]:
                rows.append((label, {short: words[name] for name, short in columns.items()}))
        wanted = list(dict.fromkeys(short for _, words in rows for short in words))
        rows = [(label, {short: words.get(short, "") for short in wanted}) for label, words in rows]
        parts.append(f"{title}, mean ± deviation\n{format_table(rows, in_hu)}")
    if report["centres"]:
        rows = []
        for centre, of_centre in report["centres"].items():
            words = _means(of_centre, in_hu)
            label = f"{centre} ({of_centre['mae']['patients']} patients)"
            rows.append((label, {name: words[name] for name in TABLE}))
        parts.append(f"By centre, mean ± deviation\n{format_table(rows, in_hu)}")
    return "\n\n".join([*parts, _legend(report)])


def _pairs(options: EvaluateOptions) -> tuple[Matches, Iterator[Pair]]:
    if (options.targets is None) == (options.data is None):
        raise RequestError(
            "Give what to compare with once: either TARGETS (a volume or a folder), or --data DATASET."
        )
    if options.data is None:
        assert options.targets is not None
        return pairs_of_files(
            options.predictions,
            options.targets,
            options.masks,
            options.sources,
            in_hu=options.units == "HU" or options.preset is not None,
            resampled=options.resample,
        )
    if options.masks is not None or options.sources is not None:
        raise RequestError(
            "--masks and --sources go with TARGETS; a prepared data set has its own masks and sources."
        )
    if options.units != "relative":
        raise RequestError("--units goes with TARGETS; a prepared data set's plan tells the units.")
    dataset = PreparedDataset(options.data)
    return pairs_of_dataset(options.predictions, dataset, options.split, resampled=options.resample)


def _people(path: Path | None, case_ids: Sequence[str]) -> dict[str, tuple[str, str | None]]:
    """Case → patient and centre, from a CSV table."""
    if path is None:
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"case_id", "patient_id"} <= set(reader.fieldnames or ()):
                raise RequestError(
                    f"{path} has the columns {', '.join(reader.fieldnames or ()) or 'none'}; it needs "
                    "case_id and patient_id, and may have centre."
                )
            people = {row["case_id"]: (row["patient_id"], row.get("centre") or None) for row in reader}
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(
            f"{path} is no CSV table ({error}); give one with case_id and patient_id."
        ) from error
    lacking = [case_id for case_id in case_ids if not people.get(case_id, ("",))[0]]
    if lacking:
        raise RequestError(f"{path} has no patient_id for {', '.join(lacking)}; add a line for every case.")
    return people


def _tables(measures: dict[str, dict[str, str]]) -> list[tuple[str, list[str]]]:
    """The tables below the main one: a title, and the groups that are its rows."""
    groups = list(dict.fromkeys(of["group"] for of in measures.values() if of["group"]))
    titles = {
        "continuity": "Slice continuity",
        "edges": "Edges, in mm",
        "regions": "By the CT's HU",
        "labels": "By label",
    }
    tables: dict[str, list[str]] = {}
    for group in groups:
        kind = group.partition(".")[0]
        title = kind if kind.startswith("synthrad") else titles.get(kind, "Slice by slice")
        tables.setdefault(title, []).append(group)
    return list(tables.items())


def _words(name: str, value: float | None, notes: dict[str, str], in_hu: bool = False) -> str:
    return notes.get(name, "").split(":")[0] if value is None else digits(name, value, in_hu)


def _means(summary: dict[str, dict[str, Any]], in_hu: bool) -> dict[str, str]:
    """Means and deviations as words for a table."""
    words = {}
    for name, of in summary.items():
        deviation = "" if of["deviation"] is None else f" ± {digits(name, of['deviation'], in_hu)}"
        words[name] = "not defined" if of["mean"] is None else digits(name, of["mean"], in_hu) + deviation
    return words


def _intervals(summary: dict[str, dict[str, Any]], in_hu: bool) -> dict[str, str]:
    return {
        name: ""
        if of["interval"] is None
        else " to ".join(digits(name, end, in_hu) for end in of["interval"])
        for name, of in summary.items()
    }


def _legend(report: dict[str, Any]) -> str:
    """What the numbers of the tables mean, and which cases are not in them."""
    cases = report["cases"]
    settings = [case["settings"][""] for case in cases]

    def all_of(name: str) -> str:
        return "; or ".join(sorted({str(of[name]) for of in settings}))

    patients = len({case["patient_id"] for case in cases})
    lines = [
        f"Inside the mask ({all_of('mask')}); data range {settings[0]['data_range']:g}; "
        f"normalisation: {all_of('normalisation')}.",
        f"SSIM: {all_of('ssim')}.",
        f"Means over {patients} patient{'s' * (patients != 1)} ({statistics.SETTINGS['unit']}); interval: "
        f"{statistics.SETTINGS['interval']}.",
        f"Noise floor: {FLOOR}.",
    ]
    for name in TABLE:
        reasons = [case["notes"][name] for case in cases if name in case["notes"]]
        if reasons:
            others = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            lines.append(f"{describe(name, False).label} without a number: {reasons[0]}{others}.")
    remarks = [f"Case {case['case_id']}: {remark}" for case in cases for remark in case["remarks"]]
    lines += remarks[:3] + (
        [f"And {len(remarks) - 3} more remarks, in evaluation.json."] if len(remarks) > 3 else []
    )
    if report["without_prediction"]:
        lines.append(f"Not predicted, so not in the table: {', '.join(report['without_prediction'])}.")
    if report["without_target"]:
        lines.append(f"Without a target, so not in the table: {', '.join(report['without_target'])}.")
    return "\n".join(lines)


def _write_csv(path: Path, report: dict[str, Any]) -> None:
    """One line a case; a number that is not defined is an empty field, with its reason in the last one."""
    names = list(report["measures"])
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", "patient_id", "centre", *names, "voxels", "notes"])
        for case in report["cases"]:
            notes = "; ".join(f"{name}: {note}" for name, note in case["notes"].items())
            numbers = [case["values"].get(name) for name in names]
            writer.writerow(
                [case["case_id"], case["patient_id"], case["centre"], *numbers, case["voxels"], notes]
            )
