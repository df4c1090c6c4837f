"""Markdown tables of reports: means over patients, and paired differences from the first."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ct2mri.evaluation.compare import distance_from_best
from ct2mri.evaluation.statistics import Comparison, compare_systems
from ct2mri.files import read_json

COLUMNS = {
    "psnr": ("PSNR dB", 2),
    "ssim": ("SSIM", 4),
    "mae": ("MAE", 4),
    "ms_gmsd": ("MS-GMSD", 4),
    "continuity.axial.ratio": ("axial change ratio", 3),
    "continuity.axial.uneven": ("axial unevenness", 3),
}
"""Measure → its heading, and how many decimals it is shown with."""

FLOOR = "noise floor: truth moved by one voxel"


def paired_table(
    reports: Mapping[str, Path],
    shown: Sequence[str],
    differences: Sequence[str],
    facts: Mapping[str, Mapping[str, str]],
) -> str:
    """A row a system, and below them the noise floor.

    Of a measure that is best near a number, the difference is of the distances from it.

    Args:
        reports: what the system is called → the folder that `ct2mri evaluate` wrote.
        shown: measures whose means are shown.
        differences: measures whose paired differences from the first system are shown.
        facts: of each system, heading → words.
    """
    evaluations = {label: read_json(report / "evaluation.json") for label, report in reports.items()}
    first_label, first = next(iter(evaluations.items()))
    patient_of = {case["case_id"]: case["patient_id"] for case in first["cases"]}
    heads = list(next(iter(facts.values()), {}))
    compared = [f"{_distance(metric)} − that of the first" for metric in differences]
    headings = ["", *heads, *(COLUMNS[metric][0] for metric in shown), *compared]
    rows = list[list[str]]()

    def numbers(evaluation: dict, metric: str) -> dict[str, float | None]:
        return {
            case["case_id"]: distance_from_best(metric, case["values"].get(metric))
            for case in evaluation["cases"]
        }

    for label, evaluation in evaluations.items():
        cells = [label, *(facts[label][head] for head in heads)]
        cells += [mean_in_words(evaluation["summary"], metric) for metric in shown]
        for metric in differences:
            found = compare_systems(numbers(evaluation, metric), numbers(first, metric), patient_of)
            cells.append("" if label == first_label else difference_in_words(found, COLUMNS[metric][1]))
        rows.append(cells)
    cells = [FLOOR, *("" for _ in heads), *(mean_in_words(first["noise_floor"], metric) for metric in shown)]
    return markdown(headings, [*rows, [*cells, *("" for _ in differences)]])


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = (headings, ["---"] * len(headings), *rows)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def mean_in_words(summary: dict, metric: str) -> str:
    """A measure's mean over patients."""
    mean = summary[metric]["mean"] if metric in summary else None
    return "not defined" if mean is None else f"{mean:.{COLUMNS[metric][1]}f}"


def difference_in_words(found: Comparison, digits: int) -> str:
    """Mean difference, its interval and the p-value of the signed-rank test."""
    if found.difference is None:
        return "not defined"
    words = f"{found.difference:+.{digits}f}"
    if found.interval is not None:
        words += f" [{found.interval[0]:+.{digits}f}, {found.interval[1]:+.{digits}f}]"
    return words if found.p_value is None else f"{words}, p {found.p_value:.2g}"


def _distance(metric: str) -> str:
    heading = COLUMNS[metric][0]
    return f"distance of {heading} from 1" if metric.endswith(".ratio") else heading
