"""From raw pairs of volumes to a prepared data set: one pass to decide the plan, one to follow it.

Both passes work on several cases at a time and go on where they were cut off. What is complete stays, so a
data set grows by the patients that are new.
"""

import shutil
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ct2mri.data.cases import UNFINISHED, PreparedCase
from ct2mri.data.deciding import (
    Decided,
    decide_plan,
    decisions_of,
    keep_for_resuming,
    known_plan,
    no_case_left,
    settings_of,
)
from ct2mri.data.layouts import RawData, find_cases
from ct2mri.data.layouts.cases import visible_folders
from ct2mri.data.persons import name_as_before
from ct2mri.data.plan import Plan
from ct2mri.data.prepare_case import complete_case, inputs_of, plan_hash, prepare_case
from ct2mri.data.prepare_report import (
    Outcome,
    Work,
    counted,
    print_dry_run,
    print_newcomers,
    print_plan,
    write_summary,
)
from ct2mri.data.splits import (
    Side,
    ToldSplit,
    read_splits,
    side_of_newcomer,
    told_side,
    with_newcomers,
)
from ct2mri.data.survey import LOOKS, most_common, refuse_unlike, target_contrast
from ct2mri.data.workers import over_cases
from ct2mri.errors import CasesLeftOutError, RequestError, require_seed
from ct2mri.options.data import PrepareOptions

_RANGE_OFF = 0.05  # of what is mapped to [−1, 1], by which a given plan's range may miss it without a word


def prepare(options: PrepareOptions) -> None:
    """Turn raw pairs of volumes into a prepared data set and its plan; see `PrepareOptions`.

    A plan that the data set holds already is followed, as edited; complete cases are not prepared again.
    Cases of the data set that the raw folder does not hold stay, as long as the plan is the one that they
    were prepared by.

    Raises:
        RequestError: the request contradicts itself or the data set's plan, or no case can be used.
        CasesLeftOutError: with `options.strict`, cases were left out; all others are prepared.
    """
    require_seed(options.seed)
    place, given = options.dataset.resolve(), options.raw.resolve()
    if place == given or given in place.parents:
        raise RequestError(
            f"The prepared data set {options.dataset} would lie among the raw data in {options.raw}; "
            "give a folder elsewhere."
        )
    _require_own_cases(options)
    raw = find_cases(options.raw, options)
    name_as_before(raw, options.dataset)
    if not raw.cases:
        raise no_case_left(raw.left_out)
    for note in raw.notes:
        print(f"Note: {note}")
    told = read_splits(options, raw)
    decisions = decisions_of(options, told)
    decided = known_plan(options, decisions)
    if options.dry_run:
        plan = settings_of(options, raw) if decided is None else decided.plan
        work = _all_work(raw, told) if decided is None else _sort(options, raw, told, decided)
        _tell_replaced(options.dataset, work, plan)
        print_dry_run(raw, plan, work, measured=decided is not None)
        _be_strict(options, work.left_out)
        return
    if decided is None:
        decided = decide_plan(options, raw, told)
    print_plan(decided.plan)
    keep_for_resuming(options, decisions, decided)
    work = _sort(options, raw, told, decided)
    _tell_replaced(options.dataset, work, decided.plan)
    outcome = _prepare_cases(options, work, decided)
    _remove_stale(options.dataset, set(outcome.prepared))
    outcome.plan.write(options.dataset / "plan.json")
    write_summary(options.dataset, raw, decisions, outcome)
    (options.dataset / UNFINISHED).unlink()
    (options.dataset / LOOKS).unlink(missing_ok=True)
    _be_strict(options, outcome.left_out)


def _require_own_cases(options: PrepareOptions) -> None:
    """Refuse a folder whose `cases` are something else, which would be replaced or removed."""
    cases = options.dataset / "cases"
    for path in visible_folders(cases) if cases.is_dir() else []:
        if not (path / "case.json").is_file():
            raise RequestError(
                f"{path} is no case of a prepared data set (it has no case.json), and a data set keeps its "
                f"cases in {cases}; move it away, or give another folder."
            )


def _all_work(raw: RawData, told: ToldSplit | None) -> Work:
    """Everything is to be done, but for patients whom a split file does not name."""
    work = Work(todo=[], kept={}, newcomers={}, left_out=dict(raw.left_out))
    for case in raw.cases:
        side = None if told is None else told_side(case.patient_id, told)
        if side is not None:
            work.newcomers[case.patient_id] = side
        if told is not None and side is None:
            work.left_out[case.case_id] = "its patient is not in the split file; add it to one side"
        else:
            work.todo.append(case)
    return work


def _sort(options: PrepareOptions, raw: RawData, told: ToldSplit | None, decided: Decided) -> Work:
    """Tell what is complete from what is to be done."""
    folder = options.dataset / "cases"
    work = Work(todo=[], kept={}, newcomers={}, left_out={**raw.left_out, **decided.left_out})
    for case in raw.cases:
        if case.case_id in work.left_out:
            continue
        side: Side | None = decided.plan.split.side(case.patient_id)
        if side is None and case.patient_id not in decided.taken_out:
            side = side_of_newcomer(case.patient_id, options, told)
            if side is not None:
                work.newcomers[case.patient_id] = side
        if side is None:
            work.left_out[case.case_id] = "its patient is on no side of the split (plan.json); add it to one"
        elif complete := complete_case(folder / case.case_id, inputs_of(case, decided.plan)):
            work.kept[case.case_id] = complete
        else:
            work.todo.append(case)
    work.kept |= _cases_of_other_folders(
        folder, decided.plan, {case.case_id for case in raw.cases} | set(work.left_out)
    )
    return work


def _tell_replaced(dataset: Path, work: Work, plan: Plan) -> None:
    """Say which complete cases make way for others of their name: repaired images, or somebody else's."""
    replaced = []
    for case in work.todo:
        try:
            before = PreparedCase.read(dataset / "cases" / case.case_id)
        except RequestError:
            continue
        inputs = inputs_of(case, plan)
        if before.inputs != inputs and before.inputs.get("plan") == inputs["plan"]:
            replaced.append(case.case_id)
    if replaced:
        were = "was" if len(replaced) == 1 else "were"
        more = ", …" if len(replaced) > 3 else ""
        print(
            f"Note: {counted(len(replaced), 'case')} of the data set {were} prepared of other files than "
            f"these ({', '.join(replaced[:3])}{more}) and will be replaced; if these are other patients of "
            "the same names, stop here and rename them."
        )


def _cases_of_other_folders(folder: Path, plan: Plan, here: set[str]) -> dict[str, PreparedCase]:
    """Cases of the data set, prepared by the very plan, that this raw folder knows nothing of."""
    cases: dict[str, PreparedCase] = {}
    for path in sorted(folder.glob("*/case.json")):
        if path.parent.name.startswith(".") or path.parent.name in here:
            continue
        try:
            case = PreparedCase.read(path.parent)
        except RequestError:
            continue
        if case.inputs.get("plan") == plan_hash(plan) and plan.split.side(case.patient_id) is not None:
            cases[case.case_id] = case
    return cases


def _prepare_cases(options: PrepareOptions, work: Work, decided: Decided) -> Outcome:
    """Prepare what is to be done, and measure what the plan still lacks.

    Raises:
        RequestError: no case remains, or none of a training patient.
    """
    plan, left_out, prepared = decided.plan, work.left_out, dict(work.kept)
    for name in work.kept:
        print(f"{name}: is up to date")

    def contrasts() -> Iterable[str | None]:
        return (target_contrast(case.facts, case.facts["target"], plan) for case in prepared.values())

    contrast = decided.contrast or most_common(contrasts())
    work_on = partial(prepare_case, plan=plan, contrast=contrast, options=options)
    for raw_case, result in over_cases(work_on, work.todo, options.workers, "prepare"):
        if isinstance(result, RequestError):
            left_out[raw_case.case_id] = str(result)
            tqdm.write(f"{raw_case.case_id}: LEFT OUT: {result}")
        else:
            prepared[raw_case.case_id] = result
            tqdm.write(f"{raw_case.case_id}: {'; '.join(result.notes)}")
    if contrast is None:  # nobody had looked before
        contrast = most_common(contrasts())
        for name, case in list(prepared.items()):
            try:
                refuse_unlike(target_contrast(case.facts, case.facts["target"], plan), contrast, options)
            except RequestError as error:
                left_out[name] = str(error)
                del prepared[name]
    if not prepared:
        raise no_case_left(left_out)
    there = {case.patient_id for case in prepared.values()}
    newcomers = {patient: side for patient, side in work.newcomers.items() if patient in there}
    if newcomers:
        plan = replace(plan, split=with_newcomers(plan.split, newcomers))
        print_newcomers(newcomers)
    if plan.target_scaling != "window":
        plan = _with_target_range(plan, decided, prepared.values(), given=options.plan is not None)
    return Outcome(
        plan=plan,
        prepared=dict(sorted(prepared.items())),
        kept=set(work.kept),
        left_out=left_out,
        taken_out=decided.taken_out,
    )


def _with_target_range(plan: Plan, decided: Decided, cases: Iterable[PreparedCase], *, given: bool) -> Plan:
    """The plan with what it means by −1 and 1: the medians over the training cases of what became them.

    Args:
        plan: the plan.
        decided: whether that is still to be measured.
        cases: all cases.
        given: whether the plan was given; its range then stays as it is.

    Raises:
        RequestError: it is still to be measured, and no training case is there.
    """
    train = set(plan.split.train)
    ranges = [case.target_range for case in cases if case.patient_id in train]
    if decided.is_draft and not ranges:
        raise RequestError("No case of a training patient could be prepared; look at the reasons above.")
    if not ranges:
        return plan
    low, high = (float(end) for end in np.median(ranges, axis=0))
    before = plan.target_range
    if decided.range_is_old:
        print(
            f"The plan scales targets otherwise than before: its target_range is measured anew, {low:.6g} "
            f"to {high:.6g} ({before[0]:.6g} to {before[1]:.6g} before)."
        )
    elif (
        given
        and not decided.is_draft
        and not np.allclose((low, high), before, atol=_RANGE_OFF * (high - low))
    ):
        print(
            f"Note: The plan's target_range is {before[0]:.6g} to {before[1]:.6g}, and in the training cases "
            f"{low:.6g} to {high:.6g} are mapped to -1 and 1: results will not have the brightness of these "
            "cases. Unless that is meant, edit target_range."
        )
    return replace(plan, target_range=(low, high)) if decided.is_draft or decided.range_is_old else plan


def _remove_stale(dataset: Path, current: set[str]) -> None:
    """Remove cases that are no longer usable or of another plan, and halves of a killed run's files."""
    for path in visible_folders(dataset / "cases"):
        if path.name not in current:
            shutil.rmtree(path)
            print(f"{path.name}: removed from the data set, for it is no longer among the usable cases")
    for pattern in (".partial-*", ".replaced-*"):
        for path in (dataset / "cases").glob(pattern):
            shutil.rmtree(path)
    for path in dataset.glob(".*-partial-*"):
        path.unlink()


def _be_strict(options: PrepareOptions, left_out: dict[str, str]) -> None:
    if options.strict and left_out:
        raise CasesLeftOutError(
            f"Left out {'would be' if options.dry_run else 'were'} {counted(len(left_out), 'case')}, for the "
            "reasons above; repair or remove what is at fault, or do without --strict."
        )
