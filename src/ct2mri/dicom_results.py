"""Results as DICOM series: what a sidecar says of one, and how one is described in its headers."""

from pathlib import Path
from typing import Any, Literal

from ct2mri import __version__
from ct2mri.data.dicom_write import mr_factor, save_dicom_series
from ct2mri.data.plan import Plan, modality_in_hu, modality_is_mr
from ct2mri.data.volume import SYNTHETIC, Volume
from ct2mri.errors import RequestError


def dicom_modality(plan: Plan) -> Literal["MR", "CT"]:
    """What a result is in DICOM.

    Raises:
        RequestError: neither MR nor CT.
    """
    if modality_in_hu(plan.target_modality):
        return "CT"
    if not modality_is_mr(plan.target_modality):
        raise RequestError(
            f"DICOM is written for MR and CT, and this model makes {plan.target_modality}; "
            "write NIfTI (--format nifti)."
        )
    return "MR"


def dicom_facts(volume: Volume, plan: Plan, anonymize: bool) -> dict[str, Any]:
    """What the sidecar of a series tells beside that of a volume."""
    is_mr = dicom_modality(plan) == "MR"
    patient = "of the source" if "dicom" in volume.metadata else "made up: the source is no DICOM"
    return {
        "images": volume.spatial_shape[2],
        "stored_per_unit": mr_factor(volume, plan.target_range[1]) if is_mr else 1.0,
        "patient": "left out" if anonymize else patient,
    }


def save_result_series(
    volume: Volume, folder: Path, plan: Plan, facts: dict[str, Any], anonymize: bool
) -> None:
    """Write a result as a series of images.

    Args:
        volume: the result; where its source came as DICOM, its metadata hold the source's `dicom`.
        folder: new, empty, or with such a series in it.
        plan: what the result means.
        facts: of its sidecar, `dicom_facts` among them.
        anonymize: without the patient.

    Raises:
        RequestError: as `save_dicom_series` does.
    """
    source, target, model = plan.source_modality.upper(), plan.target_modality.upper(), facts["model"]
    steps = facts["num_inference_steps"]
    save_dicom_series(
        volume,
        folder,
        modality=dicom_modality(plan),
        origin=volume.metadata.get("dicom"),
        series_description=f"{SYNTHETIC} {target} from {source}, not acquired ({model['name']})",
        derivation=(
            f"{facts['safety']} Drawn by ct2mri {__version__} with the model {model['name']} "
            f"(weights {model['hash'][:12]}), {steps} step{'s' * (steps > 1)}, seed {facts['seed']}, "
            f"mean of {facts['samples']} sample{'s' * (facts['samples'] > 1)}. Values: {facts['units']}."
        ),
        model=model["name"],
        factor=facts["stored_per_unit"],
        anonymize=anonymize,
    )
