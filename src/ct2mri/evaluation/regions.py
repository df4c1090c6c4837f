"""Errors by tissue: regions of the CT's HU, labels of label maps; Dice and volumes of predicted labels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct2mri.errors import RequestError
from ct2mri.evaluation.masked import Mask

AIR_BELOW_HU = -300.0
BONE_FROM_HU = 250.0
REGIONS = ("air", "soft_tissue", "bone")

SETTINGS = {
    "air": f"CT below {AIR_BELOW_HU:g} HU, inside the mask",
    "soft_tissue": f"CT from {AIR_BELOW_HU:g} up to {BONE_FROM_HU:g} HU, inside the mask",
    "bone": f"CT of {BONE_FROM_HU:g} HU and more, inside the mask",
    "mae": "mean |error| over the region",
    "rmse": "root mean squared error over the region",
    "bias": "mean signed error over the region, prediction less truth",
    "dice": "2 · shared voxels / (predicted voxels + true voxels) of the label, over the whole image",
    "volume_ml": "volume of the predicted label",
    "true_volume_ml": "volume of the true label",
}

Values = dict[str, float | None]
Notes = dict[str, str]


def errors_by_tissue(
    x: NDArray[Any], y: NDArray[Any], inside: Mask, ct: NDArray[Any]
) -> tuple[Values, Notes]:
    """Errors in air, soft tissue and bone: "bone.mae", "bone.rmse", "bone.bias" and so on.

    Args:
        x: prediction.
        y: truth.
        inside: the mask.
        ct: HU.
    """
    of_region = {
        "air": ct < AIR_BELOW_HU,
        "soft_tissue": (ct >= AIR_BELOW_HU) & (ct < BONE_FROM_HU),
        "bone": ct >= BONE_FROM_HU,
    }
    values: Values = {}
    notes: Notes = {}
    for name in REGIONS:
        _add_errors(
            values, notes, name, x, y, inside & of_region[name], f"the mask holds no {name.replace('_', ' ')}"
        )
    return values, notes


def errors_by_label(
    x: NDArray[Any], y: NDArray[Any], inside: Mask, labels: NDArray[np.integer[Any]]
) -> tuple[Values, Notes]:
    """Errors in each label above 0 of a label map: "3.mae", "3.rmse", "3.bias" and so on."""
    values: Values = {}
    notes: Notes = {}
    for label in np.unique(labels[labels > 0]):
        _add_errors(
            values, notes, str(label), x, y, inside & (labels == label), "the label lies outside the mask"
        )
    return values, notes


def overlap_of_labels(
    predicted: NDArray[np.integer[Any]], true: NDArray[np.integer[Any]], voxel_ml: float
) -> Values:
    """Dice and volumes of each label above 0 that either map has: "3.dice", "3.volume_ml" and so on.

    A label that one map lacks has Dice 0 and volume 0 there.
    """
    values: Values = {}
    for label in np.union1d(predicted[predicted > 0], true[true > 0]):
        a, b = predicted == label, true == label
        values[f"{label}.dice"] = float(2 * (a & b).sum() / (a.sum() + b.sum()))
        values[f"{label}.volume_ml"] = float(a.sum() * voxel_ml)
        values[f"{label}.true_volume_ml"] = float(b.sum() * voxel_ml)
    return values


def as_labels(array: NDArray[np.float32], name: str) -> NDArray[np.int32]:
    """A label map's voxels as whole numbers.

    Raises:
        RequestError: there are others.
    """
    labels = np.rint(array)
    if not np.isfinite(array).all() or np.abs(array - labels).max() > 1e-3 or labels.min() < 0:
        raise RequestError(f"{name} is no label map: give whole numbers from 0 (background) up.")
    return labels.astype(np.int32)


def _add_errors(
    values: Values, notes: Notes, name: str, x: NDArray[Any], y: NDArray[Any], region: Mask, if_empty: str
) -> None:
    error = x[region].astype(np.float64) - y[region]
    for measure, number in [
        ("mae", np.mean(np.abs(error)) if error.size else None),
        ("rmse", np.sqrt(np.mean(error**2)) if error.size else None),
        ("bias", np.mean(error) if error.size else None),
    ]:
        values[f"{name}.{measure}"] = None if number is None else float(number)
        if number is None:
            notes[f"{name}.{measure}"] = f"not defined: {if_empty}"
