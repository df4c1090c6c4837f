"""The page that `ct2mri check` writes: one self-contained HTML file, a row a case, worst first."""

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from ct2mri.data.check_case import Measured, VolumeFacts
from ct2mri.data.check_rules import SEVERITIES, CaseReport, hand
from ct2mri.data.check_set import DataReport
from ct2mri.files import atomic_path

_SYMBOLS = {"error": "✕", "warning": "!", "note": "i", "fine": "✓"}
_SPOKEN = {"error": "Error", "warning": "Warning", "note": "Note", "fine": "Fine"}


def write_page(report: DataReport, path: Path) -> None:
    """Write the page, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(page(report), encoding="utf-8")


def page(report: DataReport) -> str:
    """The page as HTML: pictures inside, nothing fetched, usable without scripts."""
    environment = Environment(
        loader=PackageLoader("ct2mri.data", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    unit = "pixels" if report.is_pictures else "mm"
    headings = [
        ("Case", "text"),
        ("Verdict", "number"),
        ("Picture", "none"),
        ("Findings", "number"),
        ("Seen, %", "number"),
        (f"Shift, {unit}", "number"),
        (f"Outlines, {unit}", "number"),
        ("Left–right", "text"),
        ("Air, HU", "number"),
        ("Bone, %", "number"),
        ("Grids", "number"),
    ]
    kind = "a prepared data set" if report.kind == "prepared" else f"raw data, layout {report.kind}"
    return environment.get_template("check.html.j2").render(
        name=Path(report.data).resolve().name,
        about=f"{kind}; {report.modalities[0]} to {report.modalities[1]}",
        counts=report.counts(),
        findings=report.findings,
        cases=[_row(case) for case in report.cases],
        headings=[{"text": text, "kind": sorting} for text, sorting in headings],
        unit=unit,
        symbols=_SYMBOLS,
        spoken=_SPOKEN,
    )


def _row(case: CaseReport) -> dict[str, Any]:
    measured = case.measured
    pair = measured.pair if measured else None
    units = measured.in_units if measured else None
    width, height = Image.open(io.BytesIO(case.thumbnail)).size if case.thumbnail else (0, 0)
    whose = []
    if case.patient_id not in (None, case.case_id):
        whose.append(f"patient {case.patient_id}")
    whose += [f"{what} {value}" for what, value in (("centre", case.centre), ("side:", case.split)) if value]
    return {
        "case_id": case.case_id,
        "whose": whose,
        "severity": case.worst or "fine",
        "rank": SEVERITIES.index(case.worst) if case.worst else len(SEVERITIES),
        "picture": base64.b64encode(case.thumbnail).decode() if case.thumbnail else None,
        "width": width,
        "height": height,
        "findings": case.findings,
        "seen": 100 * pair.seen_share if pair else None,
        "shift": pair.shift_mm if pair else None,
        "edges": pair.edge_distance_mm if pair else None,
        "hand": hand(pair) if pair else "–",
        "air": units.air_hu if units else None,
        "bone": 100 * units.bone_share if units and units.bone_share is not None else None,
        "voxels": measured.source.shape[0] * measured.source.shape[1] * measured.source.shape[2]
        if measured
        else 0,
        "grids": _grids(measured) if measured else ["not read"],
    }


def _grids(measured: Measured) -> list[str]:
    """What the volumes' grids and headers tell, in a few lines."""
    lines = [_grid("source", measured.source), _grid("target", measured.target)]
    if lines[0].partition(": ")[2] == lines[1].partition(": ")[2]:
        lines = [_grid("both", measured.source)]
    for role, facts in (("source", measured.source), ("target", measured.target)):
        told = [f"{key.replace('_', ' ')} {_spoken(value)}" for key, value in facts.told.items()]
        if told:
            lines.append(f"{role}: {', '.join(told)}")
    return lines


def _grid(role: str, facts: VolumeFacts) -> str:
    size = "×".join(map(str, facts.shape))
    edges = "×".join(f"{edge:.3g}" for edge in facts.spacing)
    return f"{role}: {size} voxels of {edges} mm, {facts.orientation}"


def _spoken(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
