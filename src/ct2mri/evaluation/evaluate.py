"""`ct2mri evaluate`: predicted volumes against real ones, as a table, JSON and CSV."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ct2mri.data.cases import PreparedDataset
from ct2mri.errors import RequestError
from ct2mri.evaluation.metrics import METRICS, evaluate_volumes, noise_floor
from ct2mri.evaluation.pairing import Matches, pairs_of_dataset, pairs_of_files
from ct2mri.files import atomic_path, write_json
from ct2mri.options import EvaluateOptions

REPORT_FORMAT_VERSION = 1
HEADINGS = {"mae": "MAE", "rmse": "RMSE", "nmse": "NMSE", "psnr": "PSNR dB", "ssim": "SSIM"}


def evaluate(options: EvaluateOptions) -> None:
    """Compare predictions with targets, print a table, and write evaluation.json and evaluation.csv.

    Raises:
        RequestError: nothing to compare with, nothing matches, grids differ, or a voxel is not finite.
    """
    if (options.targets is None) == (options.data is None):
        raise RequestError(
            "Give what to compare with once: either TARGETS (a volume or a folder), or --data DATASET."
        )
    if options.data is not None:
        if options.masks is not None:
            raise RequestError("--masks goes with TARGETS; a prepared data set has its own masks.")
        matches, pairs = pairs_of_dataset(options.predictions, PreparedDataset(options.data), options.split)
    else:
        assert options.targets is not None
        matches, pairs = pairs_of_files(options.predictions, options.targets, options.masks)
    cases = []
    for pair in tqdm(pairs, total=len(matches.case_ids), desc="evaluate", unit="case", leave=False):
        try:
            scores = evaluate_volumes(
                pair.prediction,
                pair.target,
                pair.mask,
                1.0,
                normalisation=pair.normalisation,
                mask_name=pair.mask_name,
            )
        except RequestError as error:
            raise RequestError(f"Case {pair.case_id}: {error}") from error
        floor = noise_floor(pair.target, pair.mask, 1.0)
        cases.append({"case_id": pair.case_id, **scores, "factors": pair.factors, "noise_floor": floor})
    summary, floor_summary = summarise(cases), summarise([case["noise_floor"] for case in cases])
    rows = [(str(case["case_id"]), format_scores(case)) for case in cases]
    rows += [("mean ± deviation", format_summary(summary)), ("noise floor", format_summary(floor_summary))]
    print(format_table(rows))
    print(_legend(cases, matches))
    if options.output is not None:
        report = {
            "format_version": REPORT_FORMAT_VERSION,
            "predictions": str(options.predictions),
            "targets": str(options.targets or f"{options.data}, {options.split} cases"),
            "cases": cases,
            "summary": summary,
            "noise_floor": {
                **floor_summary,
                "settings": "the target moved by one voxel against itself, mean over the axes",
            },
            "without_prediction": matches.without_prediction,
            "without_target": matches.without_target,
        }
        write_json(options.output / "evaluation.json", report)
        _write_csv(options.output / "evaluation.csv", cases)
        print(f"Written: {options.output / 'evaluation.json'} and evaluation.csv")


def summarise(cases: Sequence[Any]) -> dict[str, dict[str, float | int | None]]:
    """Mean and sample standard deviation of each metric over the cases where it is defined."""
    summary: dict[str, dict[str, float | int | None]] = {}
    for name in METRICS:
        values = [case[name] for case in cases if case[name] is not None]
        summary[name] = {
            "mean": float(np.mean(values)) if values else None,
            "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "cases": len(values),
        }
    return summary


def format_scores(scores: Any) -> dict[str, str]:
    """One case's numbers as words for a table."""
    return {
        name: scores["notes"].get(name, "").split(":")[0]
        if scores[name] is None
        else _digits(name, scores[name])
        for name in METRICS
    }


def format_summary(summary: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Means and deviations as words for a table."""
    words = {}
    for name, of in summary.items():
        deviation = "" if of["deviation"] is None else f" ± {_digits(name, of['deviation'])}"
        words[name] = "not defined" if of["mean"] is None else _digits(name, of["mean"]) + deviation
    return words


def format_table(rows: Sequence[tuple[str, dict[str, str]]]) -> str:
    """Rows of labels and numbers under the names of the metrics, aligned."""
    lines = [("", HEADINGS), *rows]
    label_width = max(len(label) for label, _ in lines)
    widths = {name: max(len(words[name]) for _, words in lines) for name in METRICS}
    return "\n".join(
        f"{label:{label_width}}  " + "  ".join(f"{words[name]:>{widths[name]}}" for name in METRICS)
        for label, words in lines
    )


def _digits(name: str, value: float) -> str:
    return f"{value:.2f}" if name == "psnr" else f"{value:.4f}"


def _legend(cases: list[dict[str, Any]], matches: Matches) -> str:
    """What the numbers of the table mean, and which cases are not in it."""
    settings = cases[0]["settings"]
    normalisations = {case["settings"]["normalisation"] for case in cases}
    lines = [
        f"Inside the mask ({settings['mask']}); data range {settings['data_range']:g}; "
        f"normalisation: {'; or '.join(sorted(normalisations))}.",
        f"SSIM: {'; or '.join(sorted({case['settings']['ssim'] for case in cases}))}.",
        "Noise floor: the target moved by one voxel against itself.",
    ]
    if matches.without_prediction:
        lines.append(f"Not predicted, so not in the table: {', '.join(matches.without_prediction)}.")
    if matches.without_target:
        lines.append(f"Without a target, so not in the table: {', '.join(matches.without_target)}.")
    return "\n".join(lines)


def _write_csv(path: Path, cases: list[dict[str, Any]]) -> None:
    """One line a case; a number that is not defined is an empty field, with its reason in the last one."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", *METRICS, "voxels", "notes"])
        for case in cases:
            notes = "; ".join(f"{name}: {note}" for name, note in case["notes"].items())
            writer.writerow([case["case_id"], *(case[name] for name in METRICS), case["voxels"], notes])
