"""Deciding the plan of a data set from what was asked and from a look at every case."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ct2mri.data.cases import UNFINISHED
from ct2mri.data.layouts import RawCase, RawData
from ct2mri.data.pairs import check_pair
from ct2mri.data.plan import Plan, Split
from ct2mri.data.plausibility import BODY_THRESHOLD, SourceFacts, fingerprint, measure_source
from ct2mri.errors import RequestError
from ct2mri.files import read_json
from ct2mri.options import PrepareOptions

# A wide window that holds every CT value, and a narrow one in which soft tissues are told apart.
_DEFAULT_WINDOWS = [[-1024.0, 3000.0], [-160.0, 240.0]]
_DEFAULT_MARGIN_MM = 8.0


def read_splits(options: PrepareOptions, raw: RawData) -> dict[str, list[str]] | None:
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


def decisions_of(options: PrepareOptions, splits: dict[str, list[str]] | None) -> dict[str, Any]:
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


def known_plan(options: PrepareOptions, decisions: dict[str, Any]) -> tuple[Plan, bool] | None:
    """The plan that the data set holds, and whether its target scale is still to be measured.

    Raises:
        RequestError: the data set was prepared by another request.
    """
    finished, unfinished = options.dataset / "plan.json", options.dataset / UNFINISHED
    if unfinished.is_file():
        content = read_json(unfinished)
        if content["is_draft"] and content["options"] == decisions:
            print("Going on with the plan of the run that was cut off.")
            return Plan.from_dict(content["plan"]), True
    if finished.is_file():
        plan = Plan.read(finished)
        summary = options.dataset / "prepare.json"
        before = read_json(summary)["options"] if summary.is_file() else decisions
        changed = [name for name, value in decisions.items() if before.get(name) != value]
        if options.plan is None and (changed := [name for name in changed if name != "plan"]):
            name = changed[0]
            raise RequestError(
                f"{options.dataset} was prepared with another {name} ({before.get(name)} before, "
                f"{decisions[name]} now); edit its plan.json and run again, or name another folder."
            )
        if not changed or options.plan is None:
            print(f"Following {finished}.")
            return plan, False
    return None


def decide_plan(
    options: PrepareOptions, raw: RawData, splits: dict[str, list[str]] | None, left_out: dict[str, str]
) -> tuple[Plan, bool]:
    """Decide the plan; cases that cannot be used are added to `left_out`.

    A given plan is followed as it is where its split names patients of the raw data. Where it comes from
    other patients, or a split is given, its settings are kept, and split, fingerprint and target scale are
    those of these data.

    Returns:
        The plan, and whether its target scale is still to be measured.

    Raises:
        RequestError: the request is not allowed or contradicts itself, or no case can be used.
    """
    in_hu = not raw.pictures
    if options.plan is None:
        settings = _default_settings(options, in_hu)
    else:
        settings = Plan.read(options.plan)
        _refuse_contradictions(options, raw, settings)
        if splits is None and {case.patient_id for case in raw.cases} & set(settings.split.patient_ids):
            return settings, False
    if splits is None:
        _require_fractions(options.validation_fraction, options.test_fraction)
    facts = _survey(raw.cases, in_hu, left_out)
    usable = sorted({case.patient_id for case in raw.cases if case.case_id in facts})
    if splits is None:
        split = draw_split(usable, options.validation_fraction, options.test_fraction, options.seed)
    else:
        split = _split_as_told(splits, usable, options.seed)
    train = set(split.train)
    trained = [facts[c.case_id] for c in raw.cases if c.case_id in facts and c.patient_id in train]
    if not trained:
        raise RequestError("No case of a training patient can be used; look at the reasons above.")
    spacing = settings.spacing
    if in_hu and options.plan is None and options.spacing is None:
        i, j, k = (round(float(np.median([f.spacing[axis] for f in trained])), 3) for axis in range(3))
        spacing = (i, j, k)
    plan = replace(
        settings,
        split=split,
        fingerprint=fingerprint(trained),
        spacing=spacing,
        anatomy=options.anatomy or settings.anatomy,
    )
    return plan, True


def _default_settings(options: PrepareOptions, in_hu: bool) -> Plan:
    """A plan of what was asked and our defaults; nobody in its split yet, nothing measured."""
    spacing: tuple[float, float, float] | None = None
    if options.spacing is not None:
        if len(options.spacing) != 3:
            raise RequestError(f"--spacing takes three voxel edges in mm, got {options.spacing}.")
        spacing = (options.spacing[0], options.spacing[1], options.spacing[2])
    windows = options.windows or (_DEFAULT_WINDOWS if in_hu else [[0.0, 255.0]])
    return Plan(
        source_units="HU" if in_hu else "grey",
        spacing=spacing,
        crop_margin_mm=_DEFAULT_MARGIN_MM if in_hu else None,
        source_windows=[[float(value) for value in window] for window in windows],
        body_threshold=BODY_THRESHOLD if in_hu else None,
        target_percentile=options.target_percentile,
        target_scale=1.0,  # measured when all cases are prepared
        split=Split(options.seed, [], [], []),
        fingerprint=None,
    )


def _refuse_contradictions(options: PrepareOptions, raw: RawData, given: Plan) -> None:
    if options.spacing is not None or options.windows is not None:
        raise RequestError(
            "--plan says spacing and windows already; leave out --spacing and --windows, or edit it."
        )
    if (given.source_units == "HU") != (not raw.pictures):
        raise RequestError(
            f"{options.plan} is for sources in {given.source_units}, {options.raw} holds "
            f"{'volumes in HU' if not raw.pictures else 'grey pictures'}; take a plan for such data."
        )


def _survey(cases: Sequence[RawCase], in_hu: bool, left_out: dict[str, str]) -> dict[str, SourceFacts]:
    """Check and measure every case; those that cannot be used are added to `left_out`."""
    facts: dict[str, SourceFacts] = {}
    with tqdm(cases, desc="look", unit="case", file=sys.stderr) as progress:
        for case in progress:
            try:
                source, target, mask = case.load()
                check_pair(source, target, in_hu)
                facts[case.case_id] = measure_source(source, in_hu=in_hu, mask=mask)
            except RequestError as error:
                left_out[case.case_id] = str(error)
                tqdm.write(f"{case.case_id}: LEFT OUT: {error}", file=sys.stdout)
    if not facts:
        name, reason = next(iter(left_out.items()))
        raise RequestError(f"None of {len(left_out)} cases can be used; the first, {name}: {reason}")
    return facts


def draw_split(patients: Sequence[str], validation_fraction: float, test_fraction: float, seed: int) -> Split:
    """Draw patients for validation and test, at least one for each that is asked for; the others train.

    Raises:
        RequestError: the fractions leave nobody to train on, or there are too few patients.
    """
    _require_fractions(validation_fraction, test_fraction)
    needed = 1 + (validation_fraction > 0) + (test_fraction > 0)
    if len(patients) < needed:
        raise RequestError(
            f"{len(patients)} usable patients cannot be split into training, validation and test; "
            f"bring at least {needed}, or set --validation_fraction or --test_fraction to 0."
        )
    validation = max(1, round(validation_fraction * len(patients))) if validation_fraction else 0
    test = max(1, round(test_fraction * len(patients))) if test_fraction else 0
    order = [str(p) for p in np.random.default_rng(seed).permutation(sorted(patients))]
    held_out = validation + test
    return Split(
        seed, sorted(order[held_out:]), sorted(order[:validation]), sorted(order[validation:held_out])
    )


def _require_fractions(validation_fraction: float, test_fraction: float) -> None:
    if validation_fraction < 0 or test_fraction < 0 or validation_fraction + test_fraction >= 1:
        raise RequestError(
            f"The shares for validation ({validation_fraction:g}) and test ({test_fraction:g}) must be 0 or "
            "more and add up to less than 1."
        )


def _split_as_told(splits: dict[str, list[str]], usable: Sequence[str], seed: int) -> Split:
    """The split of a file, without patients that are not there."""
    Split(seed, **splits)  # refuses a patient on two sides, also one that is not there
    return Split(seed, **{side: sorted(set(ids) & set(usable)) for side, ids in splits.items()})
