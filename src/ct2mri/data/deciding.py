"""Deciding the plan of a data set from what was asked and from a look at every case."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ct2mri.data.cases import UNFINISHED
from ct2mri.data.intensity import AIR_HU
from ct2mri.data.layouts import RawData
from ct2mri.data.plan import Plan, SourceUnits, Split, modality_in_hu
from ct2mri.data.plausibility import BODY_THRESHOLD, fingerprint
from ct2mri.data.prepare_case import plan_hash
from ct2mri.data.splits import (
    ToldSplit,
    draw_split,
    holds_out_the_same,
    only_adds,
    require_fractions,
    split_as_told,
)
from ct2mri.data.survey import most_common, refuse_unlike, survey
from ct2mri.errors import RequestError
from ct2mri.files import read_json, write_json
from ct2mri.options.data import PrepareOptions

# Of a CT: a wide window that holds every value, and a narrow one in which soft tissues are told apart.
# Without units: up to a little above the percentile that a source is divided by.
_DEFAULT_WINDOWS: dict[SourceUnits, list[list[float]]] = {
    "HU": [[AIR_HU, 3000.0], [-160.0, 240.0]],
    "grey": [[0.0, 255.0]],
    "relative": [[0.0, 1.25]],
}
_DEFAULT_TARGET_WINDOW = [AIR_HU, 3000.0]
_DEFAULT_MARGIN_MM = 8.0
_SOURCE_PERCENTILE = 99.5

# What of the request the plan depends on, beside the modalities and the files of a plan and of a split.
_ASKED = (
    "source_series",
    "target_series",
    "anatomy",
    "spacing",
    "windows",
    "register",
    "bias_correction",
    "remove_table",
    "target_scaling",
    "target_percentile",
    "target_window",
    "enhance_contrast",
    "validation_fraction",
    "test_fraction",
    "seed",
)

# Of these, fields of a given plan under the same name; they may not be asked for beside it.
_IN_PLAN = (
    "bias_correction",
    "remove_table",
    "target_scaling",
    "target_percentile",
    "target_window",
    "enhance_contrast",
)


# Fields of the plan that say which of a target's own values are mapped to −1 and 1.
_SCALING = ("target_scaling", "target_percentile", "enhance_contrast", "bias_correction")


@dataclass(frozen=True)
class Decided:
    """The plan to work by, and what is known beside it.

    Attributes:
        plan: the plan.
        is_draft: whether its target range is still to be measured, when all cases are prepared.
        contrast: the MR contrast of the targets, where it is known.
        left_out: cases that cannot be used, and why.
        taken_out: patients whom a person took out of the split, or left out of the plan that was given.
        range_is_old: whether the target range was measured before a person edited how targets are scaled.
    """

    plan: Plan
    is_draft: bool
    contrast: str | None
    left_out: dict[str, str]
    taken_out: set[str]
    range_is_old: bool = False


def scaling_of(plan: Plan) -> dict[str, Any]:
    """What of a plan its target range depends on, as JSON holds it."""
    return {name: getattr(plan, name) for name in _SCALING}


def decisions_of(options: PrepareOptions, told: ToldSplit | None) -> dict[str, Any]:
    """What of the request the plan depends on, as JSON holds it."""
    given = None if options.plan is None else hashlib.sha256(_plan_bytes(options.plan)).hexdigest()
    asked = {name: getattr(options, name) for name in _ASKED}
    modalities = {"source": options.source.lower(), "target": options.target.lower()}
    beside = {"splits": told, "hold_out_centre": options.hold_out_centre}
    decisions: dict[str, Any] = json.loads(json.dumps({"plan": given, **asked, **modalities, **beside}))
    return decisions


def _plan_bytes(path: Path) -> bytes:
    Plan.read(path)
    return path.read_bytes()


def known_plan(options: PrepareOptions, decisions: dict[str, Any]) -> Decided | None:
    """The plan that the data set holds, where it was made by the same request.

    Raises:
        RequestError: the data set was prepared by another request.
    """
    finished, unfinished = options.dataset / "plan.json", options.dataset / UNFINISHED
    if unfinished.is_file():
        content = read_json(unfinished)
        if content["is_draft"] and content["options"] == decisions:
            print("Going on with the plan of the run that was cut off.")
            return Decided(Plan.from_dict(content["plan"]), True, content["contrast"], {}, set())
    if not finished.is_file():
        return None
    plan = Plan.read(finished)
    summary = options.dataset / "prepare.json"
    content = read_json(summary) if summary.is_file() else {"options": decisions, "cases": []}
    before = content["options"]
    changed = [name for name, value in decisions.items() if name in before and before[name] != value]
    told_before, told = before.get("splits"), decisions["splits"]
    if "splits" in changed and told_before and told:
        # Who of the other centres is drawn for validation hangs on who is there; those of before stay.
        alike = only_adds if options.hold_out_centre is None else holds_out_the_same
        if alike(told_before, told):
            changed.remove("splits")
    if options.plan is not None:
        if changed:
            return None
    elif changed := [name for name in changed if name != "plan"]:
        name = changed[0]
        what = f"{name} ({before[name]} before, {decisions[name]} now)"
        raise RequestError(
            f"{options.dataset} was prepared with another {what if name != 'splits' else 'split file'}; edit "
            "its plan.json and run again, or name another folder."
        )
    print(f"Following {finished}.")
    on_a_side = {case["patient_id"] for case in content["cases"] if case.get("split") is not None}
    taken_out = {*on_a_side, *content.get("taken_out", [])} - set(plan.split.patient_ids)
    range_is_old = content.get("scaling", scaling_of(plan)) != scaling_of(plan)
    return Decided(plan, False, None, {}, taken_out, range_is_old)


def keep_for_resuming(options: PrepareOptions, decisions: dict[str, Any], decided: Decided) -> None:
    """Write down by which plan the data set is being prepared; `known_plan` reads it after a kill."""
    content = {
        "options": decisions,
        "is_draft": decided.is_draft,
        "contrast": decided.contrast,
        "plan": asdict(decided.plan),
    }
    write_json(options.dataset / UNFINISHED, content)


def decide_plan(options: PrepareOptions, raw: RawData, told: ToldSplit | None) -> Decided:
    """Decide the plan.

    A given plan is followed as it is where its split names patients of the raw data. Where it comes from
    other patients, or a split is given, its settings are kept, and split, fingerprint and target range are
    those of these data.

    Raises:
        RequestError: the request is not allowed or contradicts itself, or no case can be used.
    """
    settings = settings_of(options, raw)
    patients = {case.patient_id for case in raw.cases}
    if told is None and patients & set(settings.split.patient_ids):
        _refuse_fractions(options)
        return Decided(settings, False, None, {}, patients - set(settings.split.patient_ids))
    if told is None:
        require_fractions(options.validation_fraction, options.test_fraction)
    settings = replace(settings, split=Split(options.seed, [], [], []), fingerprint=None)
    looks, left_out = survey(raw.cases, settings, plan_hash(settings), options.dataset, options.workers)
    contrast = most_common(look.contrast for look in looks.values())
    for name, look in list(looks.items()):
        try:
            refuse_unlike(look.contrast, contrast, options)
        except RequestError as error:
            left_out[name] = str(error)
            del looks[name]
    if not looks:
        raise no_case_left({**raw.left_out, **left_out})
    usable = sorted({case.patient_id for case in raw.cases if case.case_id in looks})
    if told is None:
        split = draw_split(usable, options.validation_fraction, options.test_fraction, options.seed)
    else:
        split = split_as_told(told, usable, options.seed)
    train = set(split.train)
    trained = [looks[c.case_id].facts for c in raw.cases if c.case_id in looks and c.patient_id in train]
    if not trained:
        raise RequestError("No case of a training patient can be used; look at the reasons above.")
    spacing = settings.spacing
    if not raw.pictures and options.plan is None and options.spacing is None:
        # Edges are often a field of view over 512, e.g. 0.48828125 mm. Rounded to thousandths, the grid would
        # miss such a volume's own voxels by half of one, and resampling would blur it for nothing.
        i, j, k = (round(float(np.median([f.spacing[axis] for f in trained])), 6) for axis in range(3))
        spacing = (i, j, k)
    plan = replace(
        settings,
        split=split,
        fingerprint=fingerprint(trained),
        spacing=spacing,
    )
    return Decided(plan, True, contrast, left_out, set())


def _refuse_fractions(options: PrepareOptions) -> None:
    """Refuse shares beside a plan that says already who is trained on."""
    defaults = {field.name: field.default for field in fields(PrepareOptions)}
    for name in ("validation_fraction", "test_fraction"):
        if getattr(options, name) != defaults[name]:
            raise RequestError(
                f"{options.plan} says already who is trained on and who is held out, so --{name} "
                f"({getattr(options, name):g}) would do nothing; leave it out, or edit the plan's split."
            )


def no_case_left(left_out: dict[str, str]) -> RequestError:
    """The error that says that nothing remains, with the first reason."""
    name, reason = next(iter(left_out.items()))
    return RequestError(f"None of {len(left_out)} cases can be used; the first, {name}: {reason}")


def settings_of(options: PrepareOptions, raw: RawData) -> Plan:
    """The given plan, or one of what was asked and our defaults, with nobody in its split.

    Raises:
        RequestError: the request is not allowed, or contradicts the given plan or the raw data.
    """
    if options.plan is not None:
        given = Plan.read(options.plan)
        _refuse_contradictions(options, raw, given)
        return replace(given, anatomy=options.anatomy or given.anatomy)
    spacing: tuple[float, float, float] | None = None
    if options.spacing is not None:
        if len(options.spacing) != 3:
            raise RequestError(f"--spacing takes three voxel edges in mm, got {options.spacing}.")
        spacing = (options.spacing[0], options.spacing[1], options.spacing[2])
    if raw.pictures and options.register != "none":
        raise RequestError("--register is for volumes, and these are pictures; leave it out.")
    source_units = _source_units(options, raw)
    in_hu = not raw.pictures and modality_in_hu(options.target)
    if options.target_window is not None and not in_hu:
        raise RequestError(
            f"--target_window is for targets in HU, and {options.target} has no units here; leave it out."
        )
    if options.target_scaling == "zscore" and in_hu:
        raise RequestError(
            f"--target_scaling is for targets without units, and {options.target} is in HU, which a window "
            "scales; give --target_window, or leave both out."
        )
    window = _target_window(options) if in_hu else None
    if in_hu and options.target_percentile != PrepareOptions.target_percentile:
        raise RequestError(
            f"--target_percentile is for targets without units, and {options.target} is in HU, which a "
            "window scales; give --target_window, or leave both out."
        )
    windows = _DEFAULT_WINDOWS[source_units] if options.windows is None else options.windows
    return Plan(
        source_modality=options.source.lower(),
        target_modality=options.target.lower(),
        source_units=source_units,
        source_percentile=_SOURCE_PERCENTILE if source_units == "relative" else None,
        spacing=spacing,
        crop_margin_mm=None if raw.pictures else _DEFAULT_MARGIN_MM,
        source_windows=[[float(value) for value in window] for window in windows],
        body_threshold=BODY_THRESHOLD if source_units == "HU" else None,
        remove_table=options.remove_table and not raw.pictures,
        target_units="HU" if in_hu else "relative",
        target_scaling="window" if in_hu else options.target_scaling,
        target_percentile=options.target_percentile,
        target_window=window,
        # Measured when all cases are prepared, but for a window.
        target_range=(0.0, 1.0) if window is None else (window[0], window[1]),
        enhance_contrast=options.enhance_contrast,
        bias_correction=options.bias_correction,
        registration=options.register,
        split=Split(options.seed, [], [], []),
        fingerprint=None,
        anatomy=options.anatomy,
        # What these data are is not documented, so a model of them stands on this.
        assumptions=list(raw.notes) if raw.layout == "published" else [],
    )


def _source_units(options: PrepareOptions, raw: RawData) -> SourceUnits:
    if raw.pictures:
        return "grey"
    return "HU" if modality_in_hu(options.source) else "relative"


def _target_window(options: PrepareOptions) -> list[float]:
    window: Sequence[float] = options.target_window or _DEFAULT_TARGET_WINDOW
    if len(window) != 2 or not window[0] < window[1]:
        raise RequestError(f"--target_window takes two values in HU, the lower first; got {list(window)}.")
    return [float(window[0]), float(window[1])]


def _refuse_contradictions(options: PrepareOptions, raw: RawData, given: Plan) -> None:
    if options.spacing is not None or options.windows is not None:
        raise RequestError(
            "--plan says spacing and windows already; leave out --spacing and --windows, or edit it."
        )
    defaults = {field.name: field.default for field in fields(PrepareOptions)}
    in_plan = {name: getattr(given, name) for name in _IN_PLAN} | {"register": given.registration}
    for name, value in in_plan.items():
        if getattr(options, name) not in (defaults[name], value):
            raise RequestError(
                f"{options.plan} has another {name} ({value}) than --{name} ({getattr(options, name)}); "
                "leave that out, or edit the plan."
            )
    asked = (options.source.lower(), options.target.lower())
    if asked != (given.source_modality, given.target_modality):
        raise RequestError(
            f"{options.plan} translates {given.source_modality} into {given.target_modality}, asked is "
            f"{asked[0]} into {asked[1]}; give --source {given.source_modality} --target "
            f"{given.target_modality}, or another plan."
        )
    if given.source_units != _source_units(options, raw):
        raise RequestError(
            f"{options.plan} is for sources in {given.source_units}, {options.raw} holds "
            f"{'grey pictures' if raw.pictures else f'volumes in {_source_units(options, raw)} units'}; take "
            "a plan for such data."
        )
