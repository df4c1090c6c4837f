"""Preparing one case by a plan, as a worker process does it."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ct2mri.data.cases import CASE_FORMAT_VERSION, PreparedCase, write_case
from ct2mri.data.layouts import RawCase
from ct2mri.data.pairs import PreparedTarget, prepare_target
from ct2mri.data.plan import Plan
from ct2mri.data.replay import PreparedSource, prepare_source
from ct2mri.data.survey import check_case, refuse_unlike, target_contrast
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.options.data import PrepareOptions

if TYPE_CHECKING:
    from ct2mri.data.registration import Registration

# What headers tell of a scan that says something of its voxels and nothing of its patient.
_HEADER_FACTS = (
    "modality",
    "manufacturer",
    "slice_thickness",
    "kvp",
    "kernel",
    "contrast_agent",
    "cbct",
    "mr_contrast",
)

# Fields of the plan that say who is trained on and what results mean, and change no array.
_NOT_IN_ARRAYS = ("format_version", "anatomy", "split", "fingerprint", "assumptions", "target_range")


def plan_hash(plan: Plan) -> str:
    """A digest of what of the plan a case's arrays depend on."""
    fields = {name: value for name, value in asdict(plan).items() if name not in _NOT_IN_ARRAYS}
    return hashlib.sha256(json.dumps([CASE_FORMAT_VERSION, fields]).encode()).hexdigest()


def inputs_of(case: RawCase, plan: Plan) -> dict[str, Any]:
    """What a prepared case is made of, as JSON holds it."""
    inputs: dict[str, Any] = json.loads(json.dumps({"plan": plan_hash(plan), **case.inputs()}))
    return inputs


def complete_case(folder: Path, inputs: dict[str, Any]) -> PreparedCase | None:
    """The case as prepared before, if it is whole and was made of the same files by the same plan."""
    if not (folder / "case.json").is_file():
        return None
    try:
        case = PreparedCase.read(folder)
    except RequestError:
        return None
    return case if case.inputs == inputs and case.is_whole() else None


def prepare_case(case: RawCase, plan: Plan, contrast: str | None, options: PrepareOptions) -> PreparedCase:
    """Prepare one pair and write it to the data set.

    Args:
        case: the pair.
        plan: the plan to follow.
        contrast: the MR contrast of the data set's targets, where it is known.
        options: for the place of the data set, the seed of the registration, and whether a series was chosen.

    Raises:
        RequestError: it cannot be used, with the reason.
    """
    inputs = inputs_of(case, plan)
    source, target, mask = case.load()
    refuse_unlike(target_contrast(case.facts, target.metadata, plan), contrast, options)
    check_case(source, target, plan)
    facts = {**case.facts, "source": _header_facts(source), "target": _header_facts(target)}
    if case.person is not None:
        facts["person"] = case.person
    warnings = _cbct_warnings(facts, plan)
    warnings += source.metadata.get("warnings", []) + target.metadata.get("warnings", [])
    registration, write_picture = None, None
    if plan.registration == "rigid":
        source, target = _named(source, plan.source_units), _named(target, plan.target_units)
        registration, target, write_picture = _registered(source, target, mask, options.seed)
        warnings += registration.quality.warnings
    prepared = prepare_source(source, plan, mask)
    result = prepare_target(source, target, prepared, plan)
    return write_case(
        options.dataset / "cases" / case.case_id,
        patient_id=case.patient_id,
        grid=prepared.grid,
        source=prepared.array,
        target=result.array,
        mask=prepared.mask,
        valid=result.valid,
        target_range=result.target_range,
        inputs=inputs,
        notes=[*_notes(source, prepared, result, registration), *warnings],
        centre=case.centre,
        facts=facts,
        registration=None
        if registration is None
        else {"matrix": registration.matrix.tolist(), **registration.quality.to_json()},
        write_also=write_picture,
    )


def _named(volume: Volume, units: str) -> Volume:
    """The volume with the modality that the plan means: most files name none, and lowest values mislead."""
    modality = "CT" if units == "HU" else "MR"
    return Volume(volume.array, volume.affine, {**volume.metadata, "modality": modality})


def _registered(
    source: Volume, target: Volume, mask: Volume | None, seed: int
) -> "tuple[Registration, Volume, Callable[[Path], None]]":
    """The registration, the target where it belongs, and what draws it into the case's folder."""
    from ct2mri.data.registration import register_rigid
    from ct2mri.data.registration_picture import write_registration_picture

    registration = register_rigid(source, target, seed=seed, fixed_mask=mask)

    def write_picture(folder: Path) -> None:
        write_registration_picture(source, target, registration.moved, folder / "registration.png")

    return registration, registration.moved, write_picture


def _notes(
    source: Volume, prepared: PreparedSource, result: PreparedTarget, registration: "Registration | None"
) -> list[str]:
    low, high = result.target_range
    notes = [
        f"{spoken(source.spatial_shape)} voxels of {spoken(source.spacing)} mm → "
        f"{spoken(prepared.grid.shape)} of {spoken(prepared.grid.spacing)} mm",
        f"target {low:.4g} → -1, {high:.4g} → 1",
    ]
    if registration is not None:
        quality = registration.quality
        edges = "" if quality.edge_distance_mm is None else f", edges {quality.edge_distance_mm:.1f} mm apart"
        notes.append(
            f"registered: moved by {quality.translation_mm:.1f} mm and {quality.rotation_deg:.1f}°{edges}, "
            f"starts agree to {quality.start_agreement_mm:.1f} mm"
        )
    if result.seen_share < 0.999:
        notes.append(f"target shows {100 * result.seen_share:.0f} % of the body")
    if result.defaced_cm3 > 0:
        notes.append(f"{result.defaced_cm3:.0f} cm³ blanked in the target")
    return notes


def _header_facts(volume: Volume) -> dict[str, Any]:
    told = {name: volume.metadata.get(name) for name in _HEADER_FACTS}
    return {name: value for name, value in told.items() if value is not None}


def _cbct_warnings(facts: dict[str, Any], plan: Plan) -> list[str]:
    """A sentence for each side that is called a CT and is a cone-beam CT by its header or name."""
    return [
        f"its {role} is a cone-beam CT by its header or name, whose HU are not those of a CT; "
        f"name it with --{role} cbct and keep it apart from CTs"
        for role, word in (("source", plan.source_modality), ("target", plan.target_modality))
        if word.lower() == "ct" and (facts.get(f"{role}_cbct") or facts[role].get("cbct"))
    ]


def spoken(numbers: Sequence[float]) -> str:
    """Numbers along axes, e.g. 256×256×180."""
    return "×".join(f"{number:.4g}" for number in numbers)
