"""What `prepare` says: what it would do, by which plan, and what became of every case."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ct2mri.data.cases import PreparedCase
from ct2mri.data.deciding import scaling_of
from ct2mri.data.layouts import RawCase, RawData
from ct2mri.data.plan import Plan
from ct2mri.data.prepare_case import spoken
from ct2mri.data.splits import SIDES, Side
from ct2mri.files import write_json

_SPOKEN_SIDES: dict[Side, str] = {
    "train": "for training",
    "validation": "for validation",
    "test": "for the test",
}


@dataclass
class Work:
    """What is to be done about each case.

    Attributes:
        todo: cases to prepare.
        kept: complete cases that stay.
        newcomers: patients that the plan's split does not name yet → the side they come to.
        left_out: cases that cannot be used, and why.
    """

    todo: list[RawCase]
    kept: dict[str, PreparedCase]
    newcomers: dict[str, Side]
    left_out: dict[str, str]


@dataclass(frozen=True)
class Outcome:
    """What became of it.

    Attributes:
        plan: the plan, complete.
        prepared: the cases of the data set, by name.
        kept: those of them that were complete before.
        left_out: cases that cannot be used, and why.
        taken_out: patients whom a person took out of the split.
    """

    plan: Plan
    prepared: dict[str, PreparedCase]
    kept: set[str]
    left_out: dict[str, str]
    taken_out: set[str]


def print_plan(plan: Plan, measured: bool = True) -> None:
    """Say what the plan does; `measured` is false before anybody has looked at the cases."""
    if plan.spacing is not None:
        grid = f"voxels of {spoken(plan.spacing)} mm"
    elif measured or plan.source_units == "grey":
        grid = "each case's own grid"
    else:
        grid = "voxels of the median size"
    looks = plan.fingerprint.looks_like if plan.fingerprint else None
    anatomy = plan.anatomy or (f"{looks} by its looks" if looks else "not named")
    windows = " and ".join(f"{low:g} to {high:g}" for low, high in plan.source_windows)
    unit = {"HU": " HU", "grey": "", "relative": f" times percentile {plan.source_percentile or 0:g}"}
    print(
        f"Plan: {plan.source_modality} to {plan.target_modality}; {grid}; source windows {windows}"
        f"{unit[plan.source_units]}; target scaled by {_scaling(plan)}; anatomy {anatomy}."
    )
    also = [
        said
        for said, wanted in (
            ("pairs are registered rigidly", plan.registration == "rigid"),
            ("the shading of MR is corrected", plan.bias_correction),
            ("outside the body the source is filled", plan.remove_table),
            ("the target's local contrast is enhanced", plan.enhance_contrast),
        )
        if wanted
    ]
    if also:
        print(f"  {'; '.join(also)}")
    for assumption in plan.assumptions:
        print(f"  assumed: {assumption}")


def _scaling(plan: Plan) -> str:
    if plan.target_window is not None:
        low, high = plan.target_window
        return f"the window {low:g} to {high:g} HU"
    return "z-score" if plan.target_scaling == "zscore" else f"percentile {plan.target_percentile:g}"


def print_dry_run(raw: RawData, plan: Plan, work: Work, *, measured: bool) -> None:
    """Say what would be done; `measured` is false where the plan is still to be decided."""
    patients = {case.patient_id for case in raw.cases}
    pairs, people = counted(len(raw.cases), "pair"), counted(len(patients), "patient")
    print(f"Layout {raw.layout}: {pairs} of {people}{_centres(raw)}.")
    print_plan(plan, measured)
    for case in raw.cases:
        if case.case_id not in work.left_out:
            state = "is up to date" if case.case_id in work.kept else "would be prepared"
            side = plan.split.side(case.patient_id) or work.newcomers.get(case.patient_id)
            what = f"{case.source_name} and {case.target_name} of patient {case.patient_id}"
            print(f"  {case.case_id}: {what}{f' ({side})' if side else ''} {state}")
    _print_left_out(work.left_out)
    unknown = not work.newcomers and not plan.split.patient_ids
    sides = "; who is trained on is drawn once all have been looked at" if unknown else ""
    print(
        f"To prepare: {counted(len(work.todo), 'case')}; up to date: {len(work.kept)}; left out: "
        f"{len(work.left_out)}{sides}. Nothing was written, and no voxels were looked at."
    )


def _centres(raw: RawData) -> str:
    counts = Counter(case.centre for case in raw.cases if case.centre is not None)
    told = ", ".join(f"{centre} {count}" for centre, count in sorted(counts.items()))
    return f" (centres: {told})" if told else ""


def counted(number: int, word: str) -> str:
    """A number with its word, e.g. "1 case", "2 cases"."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def print_newcomers(newcomers: dict[str, Side]) -> None:
    """Say to which side patients came who were not in the plan's split."""
    for side in SIDES:
        names = sorted(patient for patient, its_side in newcomers.items() if its_side == side)
        if names:
            print(f"New patients {_SPOKEN_SIDES[side]}: {', '.join(names)}.")
    print("  The plan keeps its scale and fingerprint; edit its split to move patients.")


def write_summary(dataset: Path, raw: RawData, decisions: dict[str, Any], outcome: Outcome) -> None:
    """Write `prepare.json`, and say what became of all."""
    plan, prepared, left_out = outcome.plan, outcome.prepared, outcome.left_out
    cases: list[dict[str, Any]] = [
        {
            "case_id": case_id,
            "patient_id": case.patient_id,
            "centre": case.centre,
            "split": plan.split.side(case.patient_id),
            "status": "prepared",
            "notes": case.notes,
        }
        for case_id, case in prepared.items()
    ]
    cases += [{"case_id": name, "status": "left out", "reason": left_out[name]} for name in sorted(left_out)]
    write_json(
        dataset / "prepare.json",
        {
            "format_version": 2,
            "layout": raw.layout,
            "options": decisions,
            "counts": {"prepared": len(prepared), "left out": len(left_out)},
            "taken_out": sorted(outcome.taken_out),
            "scaling": scaling_of(plan),
            "cases": cases,
        },
    )
    sides = Counter(plan.split.side(case.patient_id) for case in prepared.values())
    kept = len(outcome.kept & set(prepared))
    there = {case.case_id for case in raw.cases}
    if others := sorted(set(prepared) - there):
        print(
            f"Not in this raw folder, and kept: {counted(len(others), 'case')} of the data set (e.g. "
            f"{others[0]}); remove what should not stay from {dataset / 'cases'}."
        )
    print(
        f"{len(prepared)} of {counted(len(prepared) + len(left_out), 'case')} prepared in {dataset}"
        f"{f' ({kept} of them were up to date)' if kept else ''}: "
        f"{', '.join(f'{sides[side]} {_SPOKEN_SIDES[side]}' for side in SIDES)}; {len(left_out)} left out."
    )
    _print_left_out(left_out)
    for name, case in prepared.items():
        for sentence in case.registration["warnings"] if case.registration is not None else []:
            print(f"  doubtful registration: {name}: {sentence} See {case.folder / 'registration.png'}")


def _print_left_out(left_out: dict[str, str]) -> None:
    for name in sorted(left_out):
        print(f"  left out: {name}: {left_out[name]}")
