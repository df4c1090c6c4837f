"""How far a predicted volume lies from the true one; every number carries its settings.

All measures are taken inside a mask, over the volume (`evaluate_volumes`) or slice by slice
(`evaluate_slices`), and voxels outside the mask have no influence on any of them.
"""

from typing import Any, Literal, TypedDict, cast, get_args

import numpy as np
from numpy.typing import NDArray

from ct2mri.errors import RequestError
from ct2mri.evaluation.masked import Array, Mask, counts, groups_of, masked_mean, working_box
from ct2mri.evaluation.perceptual import MS_GMSD_SMALLEST_AXIS, gradient_deviations, ms_gmsd_hindrance
from ct2mri.evaluation.similarity import (
    MS_SSIM_SMALLEST_AXIS,
    MS_SSIM_WEIGHTS,
    MUTUAL_INFORMATION_BINS,
    SSIM_K1,
    SSIM_K2,
    SSIM_WINDOW,
    cross_correlation,
    ms_ssim_hindrance,
    mutual_information,
    ssim_window,
    structural_similarity,
)

Metric = Literal[
    "mae", "rmse", "nmse", "psnr", "ssim", "ms_ssim", "ncc", "mutual_information", "gmsd", "ms_gmsd"
]
METRICS: tuple[Metric, ...] = get_args(Metric)

SMALLEST_SLICE = 0.1
"""Slices whose mask holds less than this share of the fullest slice's voxels are not counted."""


class Scores(TypedDict):
    """The numbers of one volume, ready for JSON.

    Attributes:
        mae, rmse: in units of the images.
        nmse: squared error over squared target, without unit.
        psnr: dB.
        ssim, ms_ssim, ncc: without unit, 1 is best.
        mutual_information: nats, higher is better.
        gmsd, ms_gmsd: without unit, 0 is best.
        voxels: voxels in the mask.
        notes: for each number that is `None`, why.
        settings: what the numbers depend on.
    """

    mae: float | None
    rmse: float | None
    nmse: float | None
    psnr: float | None
    ssim: float | None
    ms_ssim: float | None
    ncc: float | None
    mutual_information: float | None
    gmsd: float | None
    ms_gmsd: float | None
    voxels: int
    notes: dict[str, str]
    settings: dict[str, Any]


class SliceScores(TypedDict):
    """The numbers of the slices across one axis.

    Attributes:
        values: metric → mean over the slices that count and where it is defined, or None.
        notes: why a number is None, or how many slices its mean leaves out.
        settings: what the numbers depend on.
        slices: index of each slice that counts.
        profiles: "mae", "psnr" and "ssim" of each of those slices; None where not defined.
    """

    values: dict[str, float | None]
    notes: dict[str, str]
    settings: dict[str, Any]
    slices: list[int]
    profiles: dict[str, list[float | None]]


def evaluate_volumes(
    prediction: NDArray[Any],
    target: NDArray[Any],
    mask: NDArray[Any],
    data_range: float = 1.0,
    *,
    zero: float = 0.0,
    normalisation: str = "none",
    mask_name: str = "given",
) -> Scores:
    """All of `METRICS` of one volume inside a mask. Nothing is clipped.

    Args:
        prediction: (i, j, k).
        target: (i, j, k).
        mask: (i, j, k); voxels above 0 count.
        data_range: the peak of PSNR and the range of SSIM and of the gradients.
        zero: the value that stands for nothing (−1024 where the images are in HU): NMSE and SSIM count from
            it, and both images have it outside the mask.
        normalisation: what was done to the images before, in words; kept in the settings.
        mask_name: what the mask is, in words; kept in the settings.

    Raises:
        RequestError: the shapes differ, or a voxel inside the mask is not finite.
    """
    x, y, inside = _prepared(prediction, target, mask, zero)
    values, notes = _group_scores(x, y, inside, data_range, None)
    numbers = {name: _number(of[0]) for name, of in values.items()}
    if not inside.any():
        notes = dict.fromkeys(METRICS, "not defined: the mask is empty")
    return cast(
        Scores,
        {
            **numbers,
            "voxels": int(inside.sum()),
            "notes": {name: notes[name] for name, value in numbers.items() if value is None},
            "settings": _settings(x.shape, None, data_range, zero, normalisation, mask_name),
        },
    )


def evaluate_slices(
    prediction: NDArray[Any],
    target: NDArray[Any],
    mask: NDArray[Any],
    axis: int,
    data_range: float = 1.0,
    *,
    zero: float = 0.0,
    normalisation: str = "none",
    mask_name: str = "given",
) -> SliceScores:
    """All of `METRICS` of each slice across an axis, in 2D, and their means over the slices.

    Slices with little of the mask (under a tenth of the fullest slice's voxels) do not count.

    Args:
        prediction, target, mask, data_range, zero, normalisation, mask_name: as for `evaluate_volumes`.
        axis: the axis that the slices leave out.

    Raises:
        RequestError: the shapes differ, or a voxel inside the mask is not finite.
    """
    x, y, inside = _prepared(prediction, target, mask, zero)
    sizes = counts(inside, axis)
    counted = np.flatnonzero((sizes > 0) & (sizes >= SMALLEST_SLICE * sizes.max()))
    values, reasons = _group_scores(x, y, inside, data_range, axis)
    means: dict[str, float | None] = {}
    notes: dict[str, str] = {}
    for name, of_slices in values.items():
        chosen = of_slices[counted]
        defined = chosen[np.isfinite(chosen)]
        means[name] = float(defined.mean()) if defined.size else None
        if not counted.size:
            notes[name] = "not defined: the mask is empty"
        elif not defined.size:
            notes[name] = reasons[name]
        elif defined.size < chosen.size:
            notes[name] = f"{reasons[name]}, in {chosen.size - defined.size} of {chosen.size} slices"
    settings = _settings(x.shape, axis, data_range, zero, normalisation, mask_name)
    return SliceScores(
        values=means,
        notes=notes,
        settings=settings,
        slices=counted.tolist(),
        profiles={
            name: [_number(value) for value in values[name][counted]] for name in ("mae", "psnr", "ssim")
        },
    )


def noise_floor(
    target: NDArray[Any], mask: NDArray[Any], data_range: float = 1.0, *, zero: float = 0.0
) -> Scores:
    """The scores of the target moved by one voxel against itself, mean over the axes that it can move along.

    A system whose numbers lie near these is as good as the registration allows to tell.

    Args:
        target: (i, j, k).
        mask: (i, j, k); voxels above 0 count.
        data_range, zero: as for `evaluate_volumes`.
    """
    moved = []
    for axis in (axis for axis, size in enumerate(target.shape) if size > 1):
        both = (mask > 0) & (moved_by_one(mask, axis) > 0)
        moved.append(evaluate_volumes(moved_by_one(target, axis), target, both, data_range, zero=zero))
    floor = evaluate_volumes(target, target, mask, data_range, zero=zero)
    for name in METRICS:
        values = [value for scores in moved if (value := scores[name]) is not None]
        floor[name] = float(np.mean(values)) if values else None
        if values:
            floor["notes"].pop(name, None)
        elif moved and name in moved[0]["notes"]:
            floor["notes"][name] = moved[0]["notes"][name]
    return floor


def moved_by_one(image: NDArray[Any], axis: int) -> NDArray[Any]:
    """An image moved by one voxel along an axis; its last plane is there twice."""
    return np.take(image, np.arange(1, image.shape[axis] + 1), axis=axis, mode="clip")


def _prepared(
    prediction: NDArray[Any], target: NDArray[Any], mask: NDArray[Any], zero: float
) -> tuple[Array, Array, Mask]:
    """Both images as float64 counted from `zero`, 0 outside the mask; and the mask."""
    if not prediction.shape == target.shape == mask.shape:
        raise RequestError(
            f"Prediction, target and mask need the same shape, got {prediction.shape}, {target.shape} and "
            f"{mask.shape}."
        )
    inside = mask > 0
    for name, image in (("prediction", prediction), ("target", target)):
        if not np.isfinite(image[inside]).all():
            raise RequestError(
                f"The {name} holds {int((~np.isfinite(image[inside])).sum())} voxels inside the mask that "
                "are not finite; repair the image or leave them out of the mask."
            )
    x, y = (np.where(inside, image.astype(np.float64) - zero, 0) for image in (prediction, target))
    return x, y, inside


def _group_scores(
    x: Array, y: Array, inside: Mask, data_range: float, axis: int | None
) -> tuple[dict[str, Array], dict[str, str]]:
    """Every metric of each group, (groups,), NaN where not defined, and what that would be due to."""
    ms_ssim, ms_gmsd = ms_ssim_hindrance(x.shape, axis), ms_gmsd_hindrance(x.shape, axis)
    too_thin = f"not defined: no axis has {SSIM_WINDOW} voxels"
    vanished = "not defined: the mask is too small for the coarsest scale"
    constant = "not defined: an image is constant in the mask"
    reasons = {
        "nmse": "not defined: the target is zero everywhere in the mask",
        "psnr": "identical",
        "ssim": too_thin,
        "ms_ssim": ms_ssim or vanished,
        "ncc": constant,
        "mutual_information": constant,
        "gmsd": too_thin if ms_ssim == too_thin else vanished,
        "ms_gmsd": ms_gmsd or vanished,
    }
    if not inside.any():
        return {name: np.full(groups_of(x.shape, axis), np.nan) for name in METRICS}, reasons
    filtered = [size > 1 for size in ssim_window(x.shape, axis)]
    # Five scales of a window of 7 reach 3·16 voxels, four of Prewitt's filter 8.
    margin, smallest = (16, MS_GMSD_SMALLEST_AXIS) if ms_ssim else (48, MS_SSIM_SMALLEST_AXIS)
    box = working_box(inside, filtered, margin, 16, smallest)
    error = masked_mean((x - y) ** 2, inside, axis)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = {
            "mae": masked_mean(np.abs(x - y), inside, axis),
            "rmse": np.sqrt(error),
            "nmse": error / masked_mean(y**2, inside, axis),
            "psnr": 10 * np.log10(data_range**2 / error),
        }
    values["ssim"], values["ms_ssim"] = structural_similarity(x[box], y[box], inside[box], data_range, axis)
    values["ncc"] = cross_correlation(x, y, inside, axis)
    values["mutual_information"] = mutual_information(x, y, inside, axis)
    values["gmsd"], values["ms_gmsd"] = gradient_deviations(x[box], y[box], inside[box], data_range, axis)
    return {name: np.where(np.isfinite(values[name]), values[name], np.nan) for name in METRICS}, reasons


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _settings(
    shape: tuple[int, ...],
    axis: int | None,
    data_range: float,
    zero: float,
    normalisation: str,
    mask_name: str,
) -> dict[str, Any]:
    """What the numbers depend on."""
    window = ssim_window(shape, axis)
    axes = sum(size > 1 for size in window)
    plain = f"{'×'.join(map(str, window))} voxels"
    outside = f"both images {zero:g} outside the mask"
    ssim = (
        f"mean over the mask of the local SSIM, {outside}; uniform window of {plain}, sample "
        f"covariance, borders reflected, K1 = {SSIM_K1}, K2 = {SSIM_K2}"
    )
    if axis is None and axes < len(window):
        ssim += f" ({axes}D: an axis with fewer than {SSIM_WINDOW} voxels is not averaged over)"
    settings: dict[str, Any] = {
        "data_range": data_range,
        "zero": zero,
        "normalisation": normalisation,
        "clipping": "none",
        "mask": mask_name,
        "dims": len(window),
        "mae": "mean absolute error over the mask",
        "rmse": "root of the mean squared error over the mask",
        "nmse": "sum of squared errors over sum of squared target values"
        + (f" counted from {zero:g}" if zero else "")
        + ", over the mask",
        "psnr": "10 log10(data_range² / mean squared error over the mask), dB",
        "ssim": ssim,
        "ms_ssim": f"Wang et al. 2003, {len(MS_SSIM_WEIGHTS)} scales (weights "
        f"{' '.join(f'{w:g}' for w in MS_SSIM_WEIGHTS)}), each half the size of the one before, "
        "window and constants as for ssim at every scale, luminance at the coarsest alone",
        "ncc": "Pearson's correlation over the mask",
        "mutual_information": f"nats, joint histogram of {MUTUAL_INFORMATION_BINS}×"
        f"{MUTUAL_INFORMATION_BINS} bins from the lowest to the highest value of each image in the mask"
        + ("" if axis is None else " of the whole volume"),
        "gmsd": f"Xue et al. 2014 in {axes}D (Prewitt, half resolution, c = 170/255² of data_range²), "
        f"{outside}; deviation over the mask",
        "ms_gmsd": f"Zhang et al. 2017 in {axes}D (four scales, weights 0.096 0.596 0.289 0.019, masking "
        "0.5), else as gmsd",
        "ssim_window": window,
        "ssim_dims": axes,
    }
    if axis is not None:
        settings["slices"] = (
            f"slice by slice across axis {axis}, mean over the slices whose mask has at least "
            f"{SMALLEST_SLICE:.0%} of the voxels of the fullest"
        )
    return settings
