"""What the values of images mean, as sidecars, headers or the values themselves tell."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct2mri.data.io import volume_stem
from ct2mri.data.plan import Plan
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.sidecars import read_sidecar

_AIR_BELOW = -200.0
"""HU that nothing but air has, and hardly anything but HU."""


def looks_like_hu(array: NDArray[np.float32]) -> bool:
    """Whether voxels are in HU as far as can be told: air is there, which nothing but HU puts so low."""
    return bool((array < _AIR_BELOW).any())


def require_hu(volume: Volume, path: Path, name: str, instead: str) -> None:
    """Refuse what is not in HU, as far as can be told, where values are compared in HU.

    A sidecar is believed, and so is the header of a DICOM series; of other files the air tells.

    Args:
        volume: as it was read.
        path: where from.
        name: what messages call it.
        instead: what to do if it is not, a part of a sentence.

    Raises:
        RequestError: it is not.
    """
    units = _plan_beside(path).get("target_units")
    if units not in (None, "HU"):
        raise RequestError(
            f"{name} {path.name} was drawn with target_units {units} by its sidecar, not in HU; {instead}."
        )
    if units == "HU" or volume.metadata.get("modality") == "CT" or looks_like_hu(volume.array):
        return
    lowest = np.fmin.reduce(volume.array, axis=None)
    raise RequestError(
        f"{name} {path.name} looks like an MR, or a CT that is offset: it is to be compared in HU and has no "
        f"voxel below {_AIR_BELOW:g}, as air has (the lowest is {lowest:.4g}); "
        f"{instead}, or, if it is in HU and shows no air, set what lies outside the mask to -1024, which "
        "changes no number."
    )


def target_range_of(prediction: Path, case_id: str, plan: Plan) -> tuple[tuple[float, float], list[str]]:
    """The values of a data set's prediction that stand for the ends of its scale, and what to say of them.

    Args:
        prediction: its file or folder.
        case_id: its case.
        plan: of the data set, by which values are meant where no sidecar tells.

    Raises:
        RequestError: it was drawn in units or by a rule of scaling that are not those of the data set.
    """
    told = _plan_beside(prediction)
    names = ["target_units", "target_scaling"]
    names += ["target_percentile"] if plan.target_scaling == "percentile" else []
    for name in names:
        wanted = getattr(plan, name)
        if told.get(name, wanted) != wanted:
            raise RequestError(
                f"Case {case_id}: by its sidecar, {prediction.name} was drawn with {name} {told[name]}, and "
                f"the data set was prepared with {wanted}, so that values do not mean the same; give "
                "predictions of a model whose plan agrees."
            )
    low, high = told.get("target_range", plan.target_range)
    if plan.target_units == "HU" or (low, high) == plan.target_range:
        return plan.target_range, []
    return (low, high), [
        f"By its sidecar, the prediction is on the scale of another plan than the data set's: {low:.6g} to "
        f"{high:.6g} of it map to 0 and 1, not {plan.target_range[0]:.6g} to {plan.target_range[1]:.6g}."
    ]


def _plan_beside(prediction: Path) -> dict[str, Any]:
    """The plan that a prediction was drawn with; empty where no sidecar tells."""
    plan = read_sidecar(prediction.with_name(f"{volume_stem(prediction)}.json")).get("plan")
    return plan if isinstance(plan, dict) else {}
