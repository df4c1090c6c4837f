"""Judging cases beside one another: copies, a patient on two sides of the split, cases unlike the others."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ct2mri.data.check_case import VolumeFacts
from ct2mri.data.check_rules import SEVERITIES, CaseReport, Finding

# A case stands out from its data set beyond these.
_LESS_INFORMATION = 0.6  # of the median
_OTHER_SPACING = 1.5  # times the median
_ENOUGH_CASES = 5


@dataclass(frozen=True)
class DataReport:
    """What is known of a data set.

    Attributes:
        data: its folder.
        kind: what it is: a layout's name, or "prepared".
        modalities: the words for source and target.
        cases: worst first.
        findings: about the set as a whole, worst first.
    """

    data: str
    kind: str
    modalities: tuple[str, str]
    cases: list[CaseReport]
    findings: list[Finding]

    def counts(self) -> dict[str, int]:
        """Cases by their worst finding; "fine" are those with none."""
        worst = Counter[str](case.worst or "fine" for case in self.cases)
        return {name: worst[name] for name in (*SEVERITIES, "fine")}

    @property
    def is_pictures(self) -> bool:
        """Whether the cases are pictures, whose pixels have no true size."""
        return any(case.measured is not None and 1 in case.measured.source.shape for case in self.cases)


def judge_set(reports: Sequence[CaseReport]) -> dict[str, list[Finding]]:
    """What is wrong with cases beside one another: case → findings."""
    found: dict[str, list[Finding]] = defaultdict(list)
    measured = {report.case_id: report for report in reports if report.measured is not None}
    _judge_copies(measured, found)
    _judge_outliers(measured, found)
    return found


def _judge_copies(reports: Mapping[str, CaseReport], found: dict[str, list[Finding]]) -> None:
    """The same voxels in two cases, and patients whose identifiers hardly differ."""
    copies: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))  # case → other → roles
    for role in ("source", "target"):
        holders: dict[str, list[str]] = defaultdict(list)
        for name, report in reports.items():
            facts: VolumeFacts = getattr(report.measured, role)
            if not facts.shows_nothing:
                holders[facts.digest].append(name)
        for names in holders.values():
            for name in names:
                for other in names:
                    if other != name:
                        copies[name][other].append(role)
    for name, others in copies.items():
        for other, roles in others.items():
            found[name].append(_copy_finding(reports[name], reports[other], roles))
    alike: dict[str, set[str]] = defaultdict(set)
    patients = {name: r.patient_id for name, r in reports.items() if r.patient_id is not None}
    for patient_id in patients.values():
        alike[_plain(patient_id)].add(patient_id)
    for name, patient_id in patients.items():
        namesakes = sorted(alike[_plain(patient_id)] - {patient_id})
        if namesakes:
            found[name].append(
                Finding(
                    "warning",
                    f"Patient {patient_id} may be the same person as {', '.join(namesakes)}; give both one "
                    "identifier if so, or they may fall on two sides of the split.",
                )
            )


def _copy_finding(report: CaseReport, other: CaseReport, roles: Sequence[str]) -> Finding:
    are = "is, voxel for voxel, that" if len(roles) == 1 else "are, voxel for voxel, those"
    same = f"The {' and the '.join(roles)} {are} of {other.case_id}"
    if other.patient_id == report.patient_id:
        return Finding("note", f"{same}, of the same patient.")
    if report.split != other.split:
        return Finding(
            "error",
            f"{same}, and these are on two sides of the split ({report.split or 'none'} and "
            f"{other.split or 'none'}), so that a model would be tested on what it was trained on; keep one "
            "of them, or give both one patient identifier.",
        )
    return Finding(
        "error",
        f"{same}, under another patient's name; keep one of them, or give both one patient identifier.",
    )


def _plain(patient_id: str) -> str:
    return "".join(letter for letter in patient_id.casefold() if letter.isalnum())


def _judge_outliers(reports: Mapping[str, CaseReport], found: dict[str, list[Finding]]) -> None:
    """Cases unlike most of their data set."""
    shared = {
        name: pair.information * max(1.0, pair.mirrored_fit or 0.0, *pair.turned.values())
        for name, report in reports.items()
        if report.measured and (pair := report.measured.pair) and pair.information is not None
    }
    if len(shared) >= _ENOUGH_CASES:
        median = float(np.median(list(shared.values())))
        for name, information in shared.items():
            if information < _LESS_INFORMATION * median:
                found[name].append(
                    Finding(
                        "warning",
                        "Source and target share much less than in other cases even where they fit best "
                        f"(mutual information {information:.2f}, median {median:.2f}): they may be of "
                        "different patients, or the target of another contrast.",
                    )
                )
    if len(reports) < _ENOUGH_CASES:
        return
    edges = {name: r.measured.source.spacing for name, r in reports.items() if r.measured}
    usual = np.median(np.sort(list(edges.values()), axis=1), axis=0)
    for name, spacing in edges.items():
        ratio = np.sort(spacing) / usual
        if ratio.max() > _OTHER_SPACING or ratio.min() < 1 / _OTHER_SPACING:
            found[name].append(
                Finding(
                    "note",
                    f"The source has voxels of {_spoken(spacing)} mm, unlike the other cases' "
                    f"({_spoken(usual)} mm, sorted).",
                )
            )


def judge_split(reports: Sequence[CaseReport]) -> list[Finding]:
    """What is wrong with the split of a data set that has one."""
    sides = Counter(report.split for report in reports)
    found = []
    if sides["train"] == 0:
        found.append(Finding("error", "No case is on the training side of the split."))
    for side in ("validation", "test"):
        if sides[side] == 0:
            found.append(Finding("warning", f"No case is on the {side} side of the split."))
    return found


def _spoken(edges: Iterable[float]) -> str:
    return "×".join(f"{edge:.3g}" for edge in edges)
