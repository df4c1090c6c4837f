"""From raw pairs of volumes to a prepared data set: two passes, one to decide the plan, one to follow it."""

import hashlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ct2mri.data.cases import CASE_FORMAT_VERSION, UNFINISHED, PreparedCase, write_case
from ct2mri.data.deciding import decide_plan, decisions_of, known_plan, read_splits
from ct2mri.data.layouts import RawCase, RawData, find_cases
from ct2mri.data.pairs import check_pair, prepare_target
from ct2mri.data.plan import Plan, prepare_source
from ct2mri.errors import RequestError
from ct2mri.files import write_json
from ct2mri.options import PrepareOptions


def prepare(options: PrepareOptions) -> None:
    """Turn raw pairs of volumes into a prepared data set and its plan; see `PrepareOptions`.

    A plan that the data set holds already is followed, as edited; complete cases are not prepared again.

    Raises:
        RequestError: the request contradicts itself or the data set's plan, or no case can be used.
    """
    raw = find_cases(options.raw, options)
    left_out = dict(raw.left_out)
    splits = read_splits(options, raw)
    decisions = decisions_of(options, splits)
    plan, is_draft = known_plan(options, decisions) or decide_plan(options, raw, splits, left_out)
    _print_plan(plan)
    unfinished = {"options": decisions, "is_draft": is_draft, "plan": asdict(plan)}
    write_json(options.dataset / UNFINISHED, unfinished)

    prepared: dict[str, PreparedCase] = {}
    status: dict[str, str] = {}
    cases = [case for case in raw.cases if case.case_id not in left_out]
    with tqdm(cases, desc="prepare", unit="case", file=sys.stderr) as progress:
        for case in progress:
            folder = options.dataset / "cases" / case.case_id
            inputs = {"plan": _plan_hash(plan), **case.inputs()}
            try:
                in_split = plan.split.side(case.patient_id) is not None
                complete = _complete_case(folder, inputs) if in_split else None
                prepared[case.case_id] = complete or _prepare_case(case, plan, folder, inputs)
                status[case.case_id] = "kept" if complete else "prepared"
                said = "is up to date" if complete else "; ".join(prepared[case.case_id].notes)
                tqdm.write(f"{case.case_id}: {said}", file=sys.stdout)
            except RequestError as error:
                left_out[case.case_id] = str(error)
                tqdm.write(f"{case.case_id}: LEFT OUT: {error}", file=sys.stdout)
    if not prepared:
        name, reason = next(iter(left_out.items()))
        raise RequestError(f"None of {len(left_out)} cases can be used; the first, {name}: {reason}")
    if is_draft:
        plan = replace(plan, target_scale=_target_scale(plan, prepared.values()))
    _remove_stale(options.dataset / "cases", set(prepared))
    plan.write(options.dataset / "plan.json")
    _write_summary(options.dataset, raw, decisions, plan, prepared, status, left_out)
    (options.dataset / UNFINISHED).unlink(missing_ok=True)


# One case


def _prepare_case(case: RawCase, plan: Plan, folder: Path, inputs: dict[str, Any]) -> PreparedCase:
    """Prepare one pair and write it.

    Raises:
        RequestError: it cannot be used, with the reason.
    """
    source, target, mask = case.load()
    check_pair(source, target, plan.source_units == "HU")
    if plan.split.side(case.patient_id) is None:
        raise RequestError("its patient is on no side of the plan's split (plan.json); add it to one")
    prepared = prepare_source(source, plan, mask)
    result = prepare_target(source, target, prepared, plan)
    notes = [
        f"{_spoken(source.spatial_shape)} voxels of {_spoken(source.spacing)} mm → "
        f"{_spoken(prepared.grid.shape)} of {_spoken(prepared.grid.spacing)} mm",
        f"target {result.reference:.4g} → 1",
    ]
    if result.seen_share < 0.999:
        notes.append(f"target shows {100 * result.seen_share:.0f} % of the body")
    if result.defaced_cm3 > 0:
        notes.append(f"{result.defaced_cm3:.0f} cm³ blanked in the target")
    notes += source.metadata.get("warnings", []) + target.metadata.get("warnings", [])
    return write_case(
        folder,
        patient_id=case.patient_id,
        grid=prepared.grid,
        source=prepared.array,
        target=result.array,
        mask=prepared.mask,
        valid=result.valid,
        target_range=(0.0, result.reference),
        inputs=inputs,
        notes=notes,
    )


def _complete_case(folder: Path, inputs: dict[str, Any]) -> PreparedCase | None:
    """The case as prepared before, if it was made of the same files by the same plan."""
    if not (folder / "case.json").is_file():
        return None
    try:
        case = PreparedCase.read(folder)
    except RequestError:
        return None
    return case if case.inputs == inputs else None


def _plan_hash(plan: Plan) -> str:
    """A digest of what of the plan the arrays depend on."""
    parts = [
        CASE_FORMAT_VERSION,
        plan.source_units,
        plan.spacing,
        plan.crop_margin_mm,
        plan.source_windows,
        plan.body_threshold,
        plan.target_percentile,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


# What the data set says about itself


def _target_scale(plan: Plan, cases: Iterable[PreparedCase]) -> float:
    """The median reference over the training cases."""
    references = [case.target_range[1] for case in cases if case.patient_id in plan.split.train]
    if not references:
        raise RequestError("No case of a training patient could be prepared; look at the reasons above.")
    return float(np.median(references))


def _remove_stale(folder: Path, current: set[str]) -> None:
    """Remove cases of an earlier run that this one left out or did not find, and halves of a killed run's."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name not in current:
            shutil.rmtree(path)
            if not path.name.startswith("."):
                print(f"{path.name}: removed from the data set, for it is no longer among the usable cases")


def _print_plan(plan: Plan) -> None:
    grid = "each case's own grid" if plan.spacing is None else f"voxels of {_spoken(plan.spacing)} mm"
    looks = plan.fingerprint.looks_like if plan.fingerprint else None
    anatomy = plan.anatomy or (f"{looks} by its looks" if looks else "not named")
    print(f"Plan: {grid}; windows {plan.source_windows}; anatomy {anatomy}.")
    for assumption in plan.assumptions:
        print(f"  assumed: {assumption}")


def _write_summary(
    dataset: Path,
    raw: RawData,
    decisions: dict[str, Any],
    plan: Plan,
    prepared: dict[str, PreparedCase],
    status: dict[str, str],
    left_out: dict[str, str],
) -> None:
    cases: list[dict[str, Any]] = [
        {
            "case_id": case_id,
            "patient_id": case.patient_id,
            "split": plan.split.side(case.patient_id),
            "status": "prepared",
            "notes": case.notes,
        }
        for case_id, case in prepared.items()
    ]
    cases += [{"case_id": name, "status": "left out", "reason": reason} for name, reason in left_out.items()]
    counts = {"prepared": len(prepared), "left out": len(left_out)}
    write_json(
        dataset / "prepare.json",
        {"format_version": 1, "layout": raw.layout, "options": decisions, "counts": counts, "cases": cases},
    )
    kept = Counter(status.values())["kept"]
    sides = Counter(plan.split.side(case.patient_id) for case in prepared.values())
    print(
        f"{len(prepared)} of {len(prepared) + len(left_out)} cases prepared in {dataset}"
        f"{f' ({kept} of them were up to date)' if kept else ''}: {sides['train']} for training, "
        f"{sides['validation']} for validation, {sides['test']} for the test; {len(left_out)} left out."
    )
    for name, reason in left_out.items():
        print(f"  left out: {name}: {reason}")


def _spoken(numbers: Sequence[float]) -> str:
    return "×".join(f"{number:.4g}" for number in numbers)
