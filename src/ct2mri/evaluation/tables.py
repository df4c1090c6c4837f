"""The tables that `ct2mri evaluate` prints, and the words for its numbers."""

from collections.abc import Sequence
from typing import Any

from ct2mri.evaluation import statistics
from ct2mri.evaluation.catalogue import describe, digits
from ct2mri.evaluation.measure import FLOOR
from ct2mri.evaluation.metrics import METRICS
from ct2mri.evaluation.stability_report import format_stability

TABLE: tuple[str, ...] = tuple(name for name in METRICS if name != "gmsd")
"""Measures of the tables; GMSD, which MS-GMSD contains, is in the files alone."""


def format_scores(scores: Any) -> dict[str, str]:
    """One volume's numbers as words for a table.

    Args:
        scores: of `evaluate_volumes`.
    """
    return {name: in_words(name, scores[name], scores["notes"]) for name in TABLE}


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
            {name: in_words(name, case["values"][name], case["notes"], in_hu) for name in TABLE},
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
    for title, groups in tables_below(report["measures"]):
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
        rows.append(
            ("noise floor", {name: words for name, words in _means(floor, in_hu).items() if name in TABLE})
        )
        parts.append(f"By centre, mean ± deviation\n{format_table(rows, in_hu)}")
    if "stability" in report:
        parts.append(f"Stability of the model under small changes\n{format_stability(report['stability'])}")
    return "\n\n".join([*parts, _legend(report)])


def tables_below(measures: dict[str, dict[str, str]]) -> list[tuple[str, list[str]]]:
    """The tables below the main one: a title, and the groups that are its rows."""
    groups = list(dict.fromkeys(of["group"] for of in measures.values() if of["group"]))
    titles = {
        "continuity": "Slice continuity",
        "edges": "Edges, in mm",
        "regions": "By the CT's HU",
        "labels": "By label",
        "uncertainty": "Uncertainty",
    }
    tables: dict[str, list[str]] = {}
    for group in groups:
        kind = group.partition(".")[0]
        title = kind if kind.startswith("synthrad") else titles.get(kind, "Slice by slice")
        tables.setdefault(title, []).append(group)
    return list(tables.items())


def in_words(name: str, value: float | None, notes: dict[str, str], in_hu: bool = False) -> str:
    """A number as a table shows it, or the first words of why there is none."""
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
