"""From raw pairs of volumes to a prepared data set: two passes, one to decide the plan, one to follow it."""

import hashlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ct2mri.data.cases import CASE_FORMAT_VERSION, PreparedCase, write_case
from ct2mri.data.geometry import grid_with_spacing, resample
from ct2mri.data.intensity import (
    TARGET_STEP,
    border_padding,
    defaced,
    scale_target,
    target_reference,
)
from ct2mri.data.layouts import RawCase, RawData, find_cases
from ct2mri.data.plan import Plan, PreparedSource, Split, prepare_source
from ct2mri.data.plausibility import (
    BODY_THRESHOLD,
    SourceFacts,
    fingerprint,
    measure_source,
    require_ct,
    require_finite,
)
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.files import read_json, write_json
from ct2mri.options import PrepareOptions

# A wide window that holds every CT value, and a narrow one in which soft tissues are told apart.
_DEFAULT_WINDOWS = [[-1024.0, 3000.0], [-160.0, 240.0]]
_DEFAULT_MARGIN_MM = 8.0

# HU between which every T1-, T2- or proton-weighted target shows signal: soft tissue and fat.
_SIGNAL_HU = (-200.0, 250.0)

# Share of the body that the target must show for the pair to be one of the same patient and place.
_SMALLEST_OVERLAP = 0.05

_UNFINISHED = ".unfinished-plan.json"


def prepare(options: PrepareOptions) -> None:
    """Turn raw pairs of volumes into a prepared data set and its plan; see `PrepareOptions`.

    A plan that the data set holds already is followed, as edited; complete cases are not prepared again.

    Raises:
        RequestError: the request contradicts itself or the data set's plan, or no case can be used.
    """
    raw = find_cases(options.raw, options.layout)
    left_out = dict(raw.left_out)
    splits = _read_splits(options, raw)
    decisions = _decisions(options, splits)
    plan, is_draft = _known_plan(options, decisions)
    if plan is None or is_draft:
        _clean(options.dataset / "cases")
    if plan is None:
        plan = _decide_plan(options, raw, splits, left_out)
        is_draft = True
        write_json(options.dataset / _UNFINISHED, {"options": decisions, "plan": asdict(plan)})
    _print_plan(plan)

    prepared: dict[str, PreparedCase] = {}
    status: dict[str, str] = {}
    cases = [case for case in raw.cases if case.case_id not in left_out]
    with tqdm(cases, desc="prepare", unit="case", file=sys.stderr) as progress:
        for case in progress:
            folder = options.dataset / "cases" / case.case_id
            inputs = {"plan": _plan_hash(plan), **case.inputs()}
            try:
                if plan.split.side(case.patient_id) is None:
                    raise RequestError("its patient is on no side of the plan's split")
                complete = _complete_case(folder, inputs)
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
    (options.dataset / _UNFINISHED).unlink(missing_ok=True)


# What was asked, and which plan that means


def _read_splits(options: PrepareOptions, raw: RawData) -> dict[str, list[str]] | None:
    """The split file asked for, or the one that lies in the raw folder."""
    path = options.splits
    if path is None:
        path = options.raw / "splits.json"
        if not path.is_file():
            return None
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise RequestError(f"The split file {path} cannot be read as JSON ({error}).") from error
    sides = ("train", "validation", "test")
    if (
        not isinstance(content, dict)
        or not content.get("train")
        or any(key not in sides or not isinstance(ids, list) for key, ids in content.items())
    ):
        raise RequestError(
            f"The split file {path} must hold lists of patient identifiers under train, validation and test "
            "(train at least)."
        )
    splits = {side: [str(patient_id) for patient_id in content.get(side, [])] for side in sides}
    if not {case.patient_id for case in raw.cases} & {p for ids in splits.values() for p in ids}:
        raise RequestError(
            f"The split file {path} names none of the patients in {options.raw} "
            f"(e.g. {raw.cases[0].patient_id}); a patient's identifier is the name of its folder."
        )
    print(f"Split: as {path} says.")
    return splits


def _decisions(options: PrepareOptions, splits: dict[str, list[str]] | None) -> dict[str, Any]:
    """What of the request the plan depends on."""
    given = None if options.plan is None else hashlib.sha256(_plan_bytes(options.plan)).hexdigest()
    return {
        "plan": given,
        "anatomy": options.anatomy,
        "spacing": options.spacing,
        "windows": options.windows,
        "target_percentile": options.target_percentile,
        "validation_fraction": options.validation_fraction,
        "test_fraction": options.test_fraction,
        "splits": splits,
        "seed": options.seed,
    }


def _plan_bytes(path: Path) -> bytes:
    Plan.read(path)
    return path.read_bytes()


def _known_plan(options: PrepareOptions, decisions: dict[str, Any]) -> tuple[Plan | None, bool]:
    """The plan to follow where one is there already, and whether its target scale is still to be measured."""
    finished, unfinished = options.dataset / "plan.json", options.dataset / _UNFINISHED
    if unfinished.is_file():
        content = read_json(unfinished)
        if content["options"] == decisions:
            print("Going on with the plan of the run that was cut off.")
            return Plan.from_dict(content["plan"]), True
    if finished.is_file():
        plan = Plan.read(finished)
        summary = options.dataset / "prepare.json"
        before = read_json(summary)["options"] if summary.is_file() else decisions
        changed = [name for name, value in decisions.items() if before[name] != value]
        if options.plan is None and (changed := [name for name in changed if name != "plan"]):
            name = changed[0]
            raise RequestError(
                f"{options.dataset} was prepared with another {name} ({before[name]} before, {decisions[name]} "
                "now); edit its plan.json and run again, or name another folder."
            )
        if not changed or options.plan is None:
            print(f"Following {finished}.")
            return plan, False
    return None, False


def _decide_plan(
    options: PrepareOptions, raw: RawData, splits: dict[str, list[str]] | None, left_out: dict[str, str]
) -> Plan:
    """Look at every case and decide; cases that cannot be used are added to `left_out`."""
    in_hu = raw.layout == "pairs"
    given = None if options.plan is None else Plan.read(options.plan)
    if given is not None:
        _refuse_contradictions(options, raw, given)
    facts = _survey(raw.cases, in_hu, left_out)
    usable = sorted({case.patient_id for case in raw.cases if case.case_id in facts})
    if splits is not None:
        split = _split_as_told(splits, usable, options.seed)
    elif given is not None and set(given.split.patient_ids) & set(usable):
        split = given.split
    else:
        split = draw_split(usable, options.validation_fraction, options.test_fraction, options.seed)
    trained = [
        facts[case.case_id] for case in raw.cases if case.case_id in facts and case.patient_id in split.train
    ]
    if not trained:
        raise RequestError("No case of a training patient can be used; look at the reasons above.")
    if given is not None:
        return replace(
            given, split=split, fingerprint=fingerprint(trained), anatomy=options.anatomy or given.anatomy
        )
    spacing: tuple[float, float, float] | None = None
    if options.spacing is not None:
        if len(options.spacing) != 3:
            raise RequestError(f"--spacing takes three voxel edges in mm, got {options.spacing}.")
        spacing = (options.spacing[0], options.spacing[1], options.spacing[2])
    elif in_hu:
        i, j, k = (round(float(np.median([f.spacing[axis] for f in trained])), 3) for axis in range(3))
        spacing = (i, j, k)
    windows = options.windows or (_DEFAULT_WINDOWS if in_hu else [[0.0, 255.0]])
    return Plan(
        source_windows=[[float(value) for value in window] for window in windows],
        target_percentile=options.target_percentile,
        target_scale=1.0,  # measured when all cases are prepared
        split=split,
        fingerprint=fingerprint(trained),
        spacing=spacing,
        crop_margin_mm=_DEFAULT_MARGIN_MM if in_hu else None,
        body_threshold=BODY_THRESHOLD if in_hu else None,
        anatomy=options.anatomy,
        source_units="HU" if in_hu else "grey",
    )


def _refuse_contradictions(options: PrepareOptions, raw: RawData, given: Plan) -> None:
    if options.spacing is not None or options.windows is not None:
        raise RequestError(
            "--plan says spacing and windows already; leave out --spacing and --windows, or edit it."
        )
    if (given.source_units == "HU") != (raw.layout == "pairs"):
        raise RequestError(
            f"{options.plan} is for sources in {given.source_units}, {options.raw} holds "
            f"{'volumes in HU' if raw.layout == 'pairs' else 'grey pictures'}; take a plan made for such data."
        )


def _survey(cases: Sequence[RawCase], in_hu: bool, left_out: dict[str, str]) -> dict[str, SourceFacts]:
    """Check and measure every case; those that cannot be used are added to `left_out`."""
    facts: dict[str, SourceFacts] = {}
    with tqdm(cases, desc="look", unit="case", file=sys.stderr) as progress:
        for case in progress:
            try:
                source, target, mask = case.load()
                _check_pair(source, target, in_hu)
                facts[case.case_id] = measure_source(source, in_hu=in_hu, mask=mask)
            except RequestError as error:
                left_out[case.case_id] = str(error)
                tqdm.write(f"{case.case_id}: LEFT OUT: {error}", file=sys.stdout)
    if not facts:
        name, reason = next(iter(left_out.items()))
        raise RequestError(f"None of {len(left_out)} cases can be used; the first, {name}: {reason}")
    return facts


def draw_split(patients: Sequence[str], validation_fraction: float, test_fraction: float, seed: int) -> Split:
    """Draw patients for validation and test, at least one for each that is asked for, the others for training.

    Raises:
        RequestError: the fractions leave nobody to train on, or there are too few patients.
    """
    if validation_fraction < 0 or test_fraction < 0 or validation_fraction + test_fraction >= 1:
        raise RequestError(
            f"The shares for validation ({validation_fraction:g}) and test ({test_fraction:g}) must be 0 or more "
            "and add up to less than 1."
        )
    needed = 1 + (validation_fraction > 0) + (test_fraction > 0)
    if len(patients) < needed:
        raise RequestError(
            f"{len(patients)} usable patients cannot be split into training, validation and test; bring at least "
            f"{needed}, or set --validation_fraction or --test_fraction to 0."
        )
    validation = max(1, round(validation_fraction * len(patients))) if validation_fraction else 0
    test = max(1, round(test_fraction * len(patients))) if test_fraction else 0
    order = [str(p) for p in np.random.default_rng(seed).permutation(sorted(patients))]
    held_out = validation + test
    return Split(
        seed, sorted(order[held_out:]), sorted(order[:validation]), sorted(order[validation:held_out])
    )


def _split_as_told(splits: dict[str, list[str]], usable: Sequence[str], seed: int) -> Split:
    """The split of a file, without patients that are not there."""
    Split(seed, **splits)  # refuses a patient on two sides, also one that is not there
    return Split(seed, **{side: sorted(set(ids) & set(usable)) for side, ids in splits.items()})


# One case


def _check_pair(source: Volume, target: Volume, in_hu: bool) -> None:
    """Refuse a pair that cannot be used, whatever the plan.

    Raises:
        RequestError: with the reason.
    """
    if in_hu:
        require_ct(source)
    else:
        require_finite(source)
        if source.spatial_shape != target.spatial_shape:
            raise RequestError(
                f"its pictures differ in size: source {source.spatial_shape}, target {target.spatial_shape}"
            )
    try:
        require_finite(target)
    except RequestError as error:
        raise RequestError(f"in the target: {error}") from error
    if target.metadata.get("modality") == "CT":
        raise RequestError("the target's header says that it is a CT; give the MR")
    if not (target.array > 0).any() or target.array.min() == target.array.max():
        raise RequestError(f"the target shows nothing (all voxels are {target.array.max():g} or less)")
    i, j, k = (max(edge, 10.0) for edge in source.spacing)
    if not _seen(target, grid_with_spacing(source.grid, (i, j, k))).any():
        raise RequestError(
            "the grids of source and target do not overlap; they are of different patients or frames of reference"
        )


def _seen(target: Volume, grid: Any) -> NDArray[np.bool_]:
    """Where a grid lies within a volume's field of view."""
    ones = target.with_array(np.ones(target.spatial_shape, dtype=np.float32))
    return resample(ones, grid, interpolation="nearest", fill=0).array > 0.5


@dataclass(frozen=True, eq=False)
class PreparedTarget:
    """A target volume on the working grid of its source.

    Attributes:
        array: float32 (i, j, k), scaled, not clipped.
        valid: bool (i, j, k), where the target was seen.
        reference: the target's own value that was mapped to 1.
        seen_share: share of the body inside the target's field of view.
        defaced_cm3: volume of the blocks blanked inside the body.
    """

    array: NDArray[np.float32]
    valid: NDArray[np.bool_]
    reference: float
    seen_share: float
    defaced_cm3: float


def prepare_target(source: Volume, target: Volume, prepared: PreparedSource, plan: Plan) -> PreparedTarget:
    """Bring a target volume onto its source's working grid and scale it.

    Not valid are voxels outside the target's field of view, its borders of exact zeros (volumes), and blocks
    inside the body that were blanked (see `defaced`). The reference value is the plan's percentile over the
    valid body. A gain of the scanner cancels: the same target times 10 gives the same array, bit for bit, as
    long as its file holds the products exactly (whole numbers do).

    Raises:
        RequestError: the target shows next to nothing of the body, or no signal in it.
    """
    # The gain goes first, in float64, so that nothing after it can tell one gain from another.
    native = target.array.astype(np.float64)
    gain = float(np.percentile(native[native > 0], 99.5))
    level = target.with_array(np.rint(native / (gain * TARGET_STEP)) * TARGET_STEP)
    on_grid = resample(level, prepared.grid, fill=0).array

    seen = _seen(target, prepared.grid)
    body = int(np.count_nonzero(prepared.mask))
    seen_share = np.count_nonzero(seen & prepared.mask) / body
    if seen_share < _SMALLEST_OVERLAP:
        raise RequestError(
            f"the target shows {100 * seen_share:.1f} % of the body; the grids of source and target hardly overlap"
        )
    at_floor = (native == 0) | (native == native.min())
    dark = resample(target.with_array(at_floor), prepared.grid, fill=0).array > 0.999
    valid = seen
    if plan.source_units == "HU":
        measured = target.with_array(~border_padding(target.array))
        valid = seen & (resample(measured, prepared.grid, fill=0).array > 0.999)
        hu = resample(source, prepared.grid, fill=plan.source_fill).array
        tissue = (hu > _SIGNAL_HU[0]) & (hu < _SIGNAL_HU[1])
    else:
        # Grey values scaled one by one tell air from the rest, but not bone from soft tissue.
        low, high = plan.source_windows[0]
        tissue = prepared.array[0] > -0.9 if high > low else prepared.mask
    blocks = defaced(dark, prepared.mask, tissue, prepared.grid.spacing)
    valid = valid & ~blocks
    counted = valid & prepared.mask
    if np.count_nonzero(counted) < _SMALLEST_OVERLAP * body:
        raise RequestError("the target is blank or padding over almost all of the body")
    reference = target_reference(on_grid, counted, plan.target_percentile)
    if reference <= 0:
        raise RequestError(
            f"the target's percentile {plan.target_percentile:g} inside the body is not above 0"
        )
    return PreparedTarget(
        scale_target(on_grid, reference),
        valid,
        reference * gain,
        float(seen_share),
        float(np.count_nonzero(blocks & prepared.mask) * np.prod(prepared.grid.spacing) / 1000),
    )


def _prepare_case(case: RawCase, plan: Plan, folder: Path, inputs: dict[str, Any]) -> PreparedCase:
    """Prepare one pair and write it.

    Raises:
        RequestError: it cannot be used, with the reason.
    """
    source, target, mask = case.load()
    _check_pair(source, target, plan.source_units == "HU")
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
    return write_case(
        folder,
        patient_id=case.patient_id,
        grid=prepared.grid,
        source=prepared.array,
        target=result.array,
        mask=prepared.mask,
        valid=result.valid,
        target_reference=result.reference,
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


def _target_scale(plan: Plan, cases: Any) -> float:
    """The median reference over the training cases."""
    references = [case.target_reference for case in cases if case.patient_id in plan.split.train]
    if not references:
        raise RequestError("No case of a training patient could be prepared; look at the reasons above.")
    return float(np.median(references))


def _clean(folder: Path) -> None:
    """Remove what a killed run left behind."""
    for pattern in (".partial-*", ".replaced-*"):
        for leftover in folder.glob(pattern):
            shutil.rmtree(leftover)


def _remove_stale(folder: Path, current: set[str]) -> None:
    """Remove cases of an earlier run that this one left out or did not find."""
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
