"""`ct2mri evaluate`: predicted volumes against real ones, as tables, JSON, CSV and a page."""

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ct2mri import __version__
from ct2mri.data.cases import PreparedDataset
from ct2mri.errors import RequestError
from ct2mri.evaluation import statistics
from ct2mri.evaluation.case_pictures import CasePictures, case_columns, worst_median_best
from ct2mri.evaluation.catalogue import describe
from ct2mri.evaluation.matching import Matches, counterparts
from ct2mri.evaluation.measure import FLOOR, Labels, measure
from ct2mri.evaluation.pairing import Pair, labels_of, pairs_of_dataset, pairs_of_files, spread_of
from ct2mri.evaluation.report import write_page
from ct2mri.evaluation.stability import read_stability, require_same_cases
from ct2mri.evaluation.stability_report import add_stability
from ct2mri.evaluation.tables import format_report
from ct2mri.evaluation.uncertainty import calibrate
from ct2mri.files import atomic_path, require_place, write_json
from ct2mri.options.evaluation import EvaluateOptions

REPORT_FORMAT_VERSION = 2

# Of a case with a source, beside the libraries: measured on a phantom head of 2 million voxels.
_BYTES_PER_VOXEL = 125


def evaluate(options: EvaluateOptions) -> None:
    """Compare predictions with targets, print tables, and write evaluation.json, .csv and .html.

    Raises:
        RequestError: nothing to compare with, nothing matches, grids differ, a voxel is not finite, or a
            preset for CT meets other images.
    """
    if options.output is not None:
        require_place(options.output)
    report = evaluation_of(options)
    print(format_report(report))
    if options.output is not None:
        write_json(options.output / "evaluation.json", report)
        _write_csv(options.output / "evaluation.csv", report)
        write_page(report, pictures_of(options, report), options.output / "evaluation.html")
        print(f"Written: {options.output / 'evaluation.html'}, evaluation.json and evaluation.csv")


@contextmanager
def _enough_memory(case_id: str) -> Iterator[None]:
    """Say in one sentence that memory ran out over a case."""
    try:
        yield
    except MemoryError as error:
        raise RequestError(
            f"Case {case_id}: memory ran out ({error}); a comparison takes about "
            f"{_BYTES_PER_VOXEL} bytes a voxel: free some, or crop prediction and target to fewer voxels."
        ) from error


@dataclass(frozen=True)
class _Beside:
    """Files that are given beside predictions and targets, by case."""

    true_labels: dict[str, Path]
    predicted_labels: dict[str, Path]
    spreads: dict[str, Path]


def evaluation_of(options: EvaluateOptions) -> dict[str, Any]:
    """What `evaluate` writes as evaluation.json; docs/evaluation.md explains its fields.

    Raises:
        RequestError: as for `evaluate`.
    """
    matches, load = _pairs(options)
    people = _people(options.cases, matches.case_ids)
    beside = _Beside(
        counterparts(options.labels, "labels", matches.case_ids),
        counterparts(options.predicted_labels, "labels", matches.case_ids),
        counterparts(options.uncertainty, "spread", matches.case_ids),
    )
    stability = None if options.stability is None else read_stability(options.stability)
    if beside.predicted_labels and not beside.true_labels:
        raise RequestError("--predicted_labels are compared with --labels; give both.")
    cases: list[dict[str, Any]] = []
    in_hu = False
    for case_id in tqdm(matches.case_ids, desc="evaluate", unit="case", leave=False):
        with _enough_memory(case_id):
            pair = load(case_id)
            if pair.case_id in people:
                patient_id, centre = people[pair.case_id]
                pair = replace(pair, patient_id=patient_id, centre=centre)
            in_hu = pair.in_hu
            if stability is not None:
                require_same_cases(stability, matches.case_ids, in_hu)
            cases.append(_measured_case(pair, beside, options))
    names = list(dict.fromkeys(name for case in cases for name in case["values"]))
    centres = sorted({case["centre"] for case in cases if case["centre"] is not None})
    report = {
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
    if stability is not None:
        add_stability(report, stability)
    return report


def _measured_case(pair: Pair, beside: _Beside, options: EvaluateOptions) -> dict[str, Any]:
    """What evaluation.json holds of one case.

    Raises:
        RequestError: the images cannot be measured so.
    """
    remarks = list(pair.notes)
    labels = None
    if beside.true_labels:
        true, said = labels_of(beside.true_labels[pair.case_id], pair.grid)
        remarks += said
        predicted = None
        if beside.predicted_labels:
            predicted, said = labels_of(beside.predicted_labels[pair.case_id], pair.grid)
            remarks += said
        labels = Labels(true, predicted)
    of_spread = None
    if beside.spreads:
        of_spread = spread_of(beside.spreads[pair.case_id], pair, options.resample)
        remarks += of_spread[3]
    try:
        measured, floor = measure(pair, labels, options.preset)
        groups: dict[str, list[float]] = {}
        if of_spread is not None:
            spread, seen, samples, _ = of_spread
            calibration = calibrate(pair.prediction, pair.target, spread, pair.mask & seen, samples)
            measured.add("uncertainty", calibration.values, calibration.notes)
            measured.settings["uncertainty"] = calibration.settings
            groups = calibration.groups
            if pair.unscaled:
                measured.withdraw(pair.unscaled)
                groups = {}
    except RequestError as error:
        raise RequestError(f"Case {pair.case_id}: {error}") from error
    return {
        "case_id": pair.case_id,
        "patient_id": pair.patient_id,
        "centre": pair.centre,
        "voxels": int(pair.mask.sum()),
        "spacing": list(pair.grid.spacing),
        "shape": list(pair.grid.shape),
        "orientation": pair.grid.orientation,
        "values": measured.values,
        "notes": measured.notes,
        "settings": measured.settings,
        "factors": pair.factors,
        "remarks": remarks,
        "profiles": measured.profiles,
        "spread_groups": groups,
        "noise_floor": {"values": floor.values, "notes": floor.notes},
    }


def pictures_of(options: EvaluateOptions, report: dict[str, Any]) -> list[CasePictures]:
    """Pictures of the worst, the median and the best case of a report that was just made."""
    matches, load = _pairs(options)
    spreads = counterparts(options.uncertainty, "spread", matches.case_ids)
    pictures = []
    for role, case_id in tqdm(worst_median_best(report["cases"]), desc="draw", unit="case", leave=False):
        pair = load(case_id)
        spread = spread_of(spreads[case_id], pair, options.resample)[0] if spreads else None
        pictures.append(CasePictures(role, case_id, case_columns(pair, spread)))
    return pictures


def summarise(cases: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each measure over the patients for whom it is defined: the fields of `statistics.Summary`."""
    patient_of = {case["case_id"]: case["patient_id"] for case in cases}
    return {
        name: statistics.summarise_patients(
            {case["case_id"]: case["values"].get(name) for case in cases}, patient_of
        ).to_json()
        for name in names
    }


def _pairs(options: EvaluateOptions) -> tuple[Matches, Callable[[str], Pair]]:
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
            people: dict[str, tuple[str, str | None]] = {}
            for row in reader:
                whose = (row["patient_id"], row.get("centre") or None)
                if people.setdefault(row["case_id"], whose) != whose:
                    raise RequestError(
                        f"{path} gives case {row['case_id']} to two patients or centres; leave one line for "
                        "each case."
                    )
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(
            f"{path} is no CSV table ({error}); give one with case_id and patient_id."
        ) from error
    lacking = [case_id for case_id in case_ids if not people.get(case_id, ("",))[0]]
    if lacking:
        raise RequestError(f"{path} has no patient_id for {', '.join(lacking)}; add a line for every case.")
    return people


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
