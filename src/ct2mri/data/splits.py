"""Who is trained on, validated on and held out: drawn, told by a file, and for patients who come later."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ct2mri.data.layouts import RawData
from ct2mri.data.plan import Split
from ct2mri.errors import RequestError
from ct2mri.files import read_json
from ct2mri.options.data import PrepareOptions

Side = Literal["train", "validation", "test"]
SIDES: tuple[Side, ...] = ("train", "validation", "test")

ToldSplit = dict[Side, list[str]]


def read_splits(options: PrepareOptions, raw: RawData) -> ToldSplit | None:
    """The split with a centre held out, the split file asked for, or the one that lies in the raw folder.

    Raises:
        RequestError: the file cannot be read, names a patient twice, or none who is there; or there is no
            such centre.
    """
    if options.hold_out_centre is not None:
        if options.splits is not None:
            raise RequestError("--splits and --hold_out_centre both tell the split; give one of them.")
        # With another plan than before, a data set is decided anew, and its split with it.
        joins = (options.dataset / "plan.json").is_file() and options.plan is None
        return hold_out_centre(raw, options.hold_out_centre, options.validation_fraction, options.seed, joins)
    path = options.splits
    if path is None:
        path = options.raw / "splits.json"
        if not path.is_file():
            return None
    told = _read_told(path)
    if not {case.patient_id for case in raw.cases} & {p for ids in told.values() for p in ids}:
        raise RequestError(
            f"The split file {path} names none of the patients in {options.raw} "
            f"(e.g. {raw.cases[0].patient_id}); take their identifiers as the layout knows them."
        )
    print(f"Split: as {path} says.")
    return told


def _read_told(path: Path) -> ToldSplit:
    if not path.is_file():
        raise RequestError(
            f"There is no split file {path}; give a JSON file with lists of patient identifiers under train, "
            "validation and test."
        )
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise RequestError(f"The split file {path} cannot be read as JSON ({error}); repair it.") from error
    if (
        not isinstance(content, dict)
        or not content.get("train")
        or any(key not in SIDES or not isinstance(ids, list) for key, ids in content.items())
    ):
        raise RequestError(
            f"The split file {path} must hold lists of patient identifiers under train, validation and test "
            "(train at least)."
        )
    told: ToldSplit = {side: [str(patient_id) for patient_id in content.get(side, [])] for side in SIDES}
    Split(0, **told)  # refuses a patient on two sides, also one that is not there
    return told


def hold_out_centre(
    raw: RawData, centre: str, validation_fraction: float, seed: int, joins: bool = False
) -> ToldSplit:
    """All patients of a centre for the test; of the others some, drawn, for validation.

    Args:
        raw: whose patients they are.
        centre: the centre.
        validation_fraction: share of the others for validation.
        seed: of that draw.
        joins: whether these patients join a data set that has its split, so that they may be of one side
            alone; then nobody is drawn here (`side_of_newcomer` does that).

    Raises:
        RequestError: nobody is of that centre, or nobody of another.
    """
    centre_of = {case.patient_id: case.centre for case in raw.cases}
    known = sorted({name for name in centre_of.values() if name is not None})
    if centre not in known and not (joins and known):
        raise RequestError(
            f"--hold_out_centre {centre}: the {raw.layout} layout tells "
            + (
                f"the centres {', '.join(known)}; give one of them."
                if known
                else "no centres; give --splits."
            )
        )
    others = [patient_id for patient_id, name in centre_of.items() if name != centre]
    if not others and not joins:
        raise RequestError(f"All patients are of centre {centre}, which leaves nobody to train on.")
    train, validation = sorted(others), list[str]()
    if not joins:
        drawn = draw_split(others, validation_fraction, 0, seed)
        train, validation = drawn.train, drawn.validation
    held_out = sorted(set(centre_of) - set(others))
    print(f"Split: centre {centre} held out, {len(held_out)} patients; {len(others)} of other centres.")
    return {"train": train, "validation": validation, "test": held_out}


def split_as_told(told: ToldSplit, usable: Iterable[str], seed: int) -> Split:
    """The split of a file, without patients that are not there."""
    there = set(usable)
    return Split(seed, **{side: sorted(set(ids) & there) for side, ids in told.items()})


def only_adds(before: ToldSplit, now: ToldSplit) -> bool:
    """Whether a split file only names more patients than before, none of them on another side."""
    return all(set(ids) <= set(now[side]) for side, ids in before.items())


def holds_out_the_same(before: ToldSplit, now: ToldSplit) -> bool:
    """Whether two splits, each with a centre held out, agree on who of both is held out."""
    others_before, others_now = ({*told["train"], *told["validation"]} for told in (before, now))
    return not (others_before & {*now["test"]} or others_now & {*before["test"]})


def draw_split(patients: Sequence[str], validation_fraction: float, test_fraction: float, seed: int) -> Split:
    """Draw patients for validation and test, at least one for each that is asked for; the others train.

    Raises:
        RequestError: the fractions leave nobody to train on, or there are too few patients.
    """
    require_fractions(validation_fraction, test_fraction)
    needed = 1 + (validation_fraction > 0) + (test_fraction > 0)
    if len(patients) < needed:
        raise RequestError(
            f"{len(patients)} usable {'patient' if len(patients) == 1 else 'patients'} cannot be split into "
            f"training, validation and test; bring at least {needed}, or set --validation_fraction or "
            "--test_fraction to 0."
        )
    validation = max(1, round(validation_fraction * len(patients))) if validation_fraction else 0
    test = max(1, round(test_fraction * len(patients))) if test_fraction else 0
    if validation + test >= len(patients):
        raise RequestError(
            f"The shares for validation ({validation_fraction:g}) and test ({test_fraction:g}) take all "
            f"{len(patients)} patients, which leaves nobody to train on; give smaller ones, or more patients."
        )
    order = [str(p) for p in np.random.default_rng(seed).permutation(sorted(patients))]
    held_out = validation + test
    return Split(
        seed, sorted(order[held_out:]), sorted(order[:validation]), sorted(order[validation:held_out])
    )


def require_fractions(validation_fraction: float, test_fraction: float) -> None:
    """Refuse shares that leave nobody to train on.

    Raises:
        RequestError: they are negative, or add up to 1 or more.
    """
    if validation_fraction < 0 or test_fraction < 0 or validation_fraction + test_fraction >= 1:
        raise RequestError(
            f"The shares for validation ({validation_fraction:g}) and test ({test_fraction:g}) must be 0 or "
            "more and add up to less than 1."
        )


def side_of_newcomer(patient_id: str, options: PrepareOptions, told: ToldSplit | None) -> Side | None:
    """The side of a patient who comes to a data set that has its split already.

    As the split file or the centre that is held out tells, else by a number drawn from the seed and the
    identifier alone, so that neither the order in which patients come nor who comes with them matters.

    Returns:
        The side; None where there is a split file and it does not name the patient.
    """
    test_fraction = options.test_fraction
    if told is not None:
        side = told_side(patient_id, told)
        if options.hold_out_centre is None or side in (None, "test"):
            return side
        test_fraction = 0.0  # the centre is the test, and nobody else
    digest = hashlib.sha256(f"{options.seed}:{patient_id}".encode()).digest()
    drawn = int.from_bytes(digest[:8], "big") / 2**64
    if drawn < test_fraction:
        return "test"
    return "validation" if drawn < test_fraction + options.validation_fraction else "train"


def told_side(patient_id: str, told: ToldSplit) -> Side | None:
    """The side on which a split file names a patient; None where it does not."""
    return next((side for side in SIDES if patient_id in told[side]), None)


def with_newcomers(split: Split, sides: dict[str, Side]) -> Split:
    """A split with more patients, each on the side given."""
    return Split(
        split.seed,
        **{
            side: sorted({*getattr(split, side), *(p for p, s in sides.items() if s == side)})
            for side in SIDES
        },
    )
