"""Patients who come again under another name: a data set knows them by what their headers say."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ct2mri.data.cases import PreparedCase
from ct2mri.data.layouts import RawData
from ct2mri.errors import RequestError

_SHOWN = 3


def name_as_before(raw: RawData, dataset: Path) -> None:
    """Give patients of DICOM exports the names that a data set knows them by.

    They are called after folders, or by a hash where folders do not do: a patient whose follow-up comes in a
    folder of its own would be somebody else, who might come to another side of the split. Whoever comes under
    the name of another patient is left out.

    Args:
        raw: what was found; its cases, notes and left out are changed.
        dataset: the prepared data set; nothing is changed where there is none.
    """
    told = [case for case in raw.cases if case.person is not None]
    known = _known_cases(dataset) if told else []
    owners = {other.case_id: other.patient_id for other in known}
    names = {other.facts["person"]: other.patient_id for other in known if "person" in other.facts}
    taken = set(names.values())
    by_images = {_images(other.inputs): other for other in known}
    same = {case.case_id: by_images.get(_images(case.inputs())) for case in told}
    for case in told:  # cases that were prepared before persons were kept are told by their images alone
        if (other := same[case.case_id]) is not None:
            names.setdefault(case.person, other.patient_id)
    cases, renamed = [case for case in raw.cases if case.person is None], []
    for case in told:
        patient_id = names.get(case.person)
        if patient_id is None and case.patient_id in taken:
            raw.left_out[f"{case.case_id} (another PatientID)"] = (
                f"the data set knows another patient by the name {case.patient_id}; rename the folder, "
                f"or remove the cases of that one from {dataset / 'cases'}"
            )
            continue
        if patient_id is not None:
            other = same[case.case_id]
            case_id = case.case_id if other is None else other.case_id
            if owners.get(case_id, patient_id) != patient_id:
                case_id = f"{patient_id}_{case_id}"
            if patient_id != case.patient_id:
                renamed.append(f"{case.case_id} ({patient_id})")
            case = replace(case, patient_id=patient_id, case_id=case_id)
        cases.append(case)
    if renamed:
        more = f" and {len(renamed) - _SHOWN} more" if len(renamed) > _SHOWN else ""
        raw.notes.append(
            "By their PatientID, these are of patients whom the data set knows by the names in brackets, "
            f"and go by those: {', '.join(renamed[:_SHOWN])}{more}."
        )
    raw.cases[:] = sorted(cases, key=lambda case: case.case_id)


def _known_cases(dataset: Path) -> list[PreparedCase]:
    known = []
    for path in sorted((dataset / "cases").glob("*/case.json")):
        try:
            known.append(PreparedCase.read(path.parent))
        except RequestError:
            continue  # it will be prepared again
    return known


def _images(inputs: dict[str, Any]) -> str:
    """What tells images from others: of a series its name, which holds its UID, files, sizes and times."""
    return json.dumps([inputs.get(role) for role in ("source", "target")])
