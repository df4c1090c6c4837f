"""The numbers of the SynthRAD challenges, for a predicted CT in HU."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ct2mri.evaluation.masked import Array
from ct2mri.evaluation.similarity import (
    MS_SSIM_SMALLEST_AXIS,
    MS_SSIM_WEIGHTS,
    SSIM_K1,
    SSIM_K2,
    local_moments,
    ssim_map,
)

LOWEST_HU = -1024.0
HIGHEST_HU = {2023: 3000.0, 2025: 3071.0}
SIMILARITY = {2023: "ssim", 2025: "ms_ssim"}


def synthrad_metrics(
    prediction: NDArray[Any], target: NDArray[Any], mask: NDArray[Any], year: Literal[2023, 2025]
) -> dict[str, float | None]:
    """The numbers of a SynthRAD challenge, for a predicted CT.

    2023 gives `mae`, `psnr`, `ssim`; 2025 gives `mae`, `psnr`, `ms_ssim`. MAE is not clipped; the others clip
    to [−1024, 3000] HU (2023) or [−1024, 3071] HU (2025). A number that is not defined is `None`.

    Args:
        prediction: (i, j, k), HU.
        target: (i, j, k), HU.
        mask: (i, j, k); voxels above 0 count.
        year: which challenge.
    """
    low, high = LOWEST_HU, HIGHEST_HU[year]
    peak = high - low
    inside = mask > 0
    predicted, true = prediction.astype(np.float64), target.astype(np.float64)
    if not inside.any():
        return {"mae": None, "psnr": None, SIMILARITY[year]: None}
    mae = float(np.abs(predicted - true)[inside].mean())
    predicted, true = predicted.clip(low, high), true.clip(low, high)
    mean_square = float(np.mean((predicted - true)[inside] ** 2))
    psnr = float(10 * np.log10(peak**2 / mean_square)) if mean_square > 0 else None
    predicted, true = np.where(inside, predicted, low) - low, np.where(inside, true, low) - low
    if year == 2023:
        cropped = ssim_map(predicted, true, peak, [7, 7, 7])[3:-3, 3:-3, 3:-3]
        inside = inside[3:-3, 3:-3, 3:-3]
        return {"mae": mae, "psnr": psnr, "ssim": float(cropped[inside].mean()) if inside.any() else None}
    return {"mae": mae, "psnr": psnr, "ms_ssim": _ms_ssim(predicted, true, inside, peak)}


def synthrad_notes(values: dict[str, float | None]) -> dict[str, str]:
    """Why numbers of `synthrad_metrics` are None."""
    notes = {}
    for name, value in values.items():
        if value is None and values["mae"] is None:
            notes[name] = "not defined: the mask is empty"
        elif value is None and name == "psnr":
            notes[name] = "identical"
        elif value is None:
            notes[name] = "not defined: no voxel of the mask is left 3 voxels from the border, at some scale"
    return notes


def synthrad_settings(year: Literal[2023, 2025]) -> dict[str, Any]:
    """What the numbers of `synthrad_metrics` depend on."""
    high = HIGHEST_HU[year]
    similarity = (
        "3D SSIM, uniform window of 7×7×7, sample covariance, K1 = 0.01, K2 = 0.03; 3 voxels cropped from "
        "every side of map and mask; mean over the mask"
        if year == 2023
        else "five scales (weights .0448 .2856 .3001 .2363 .1333), uniform window of 7×7×7, luminance "
        "weighted at every scale and voxel by voxel, as the challenge computes it; axes under 97 voxels "
        "padded with their edge"
    )
    return {
        "challenge": f"SynthRAD{year}",
        "mae": "HU, over the mask, not clipped",
        "psnr": f"both clipped to [{LOWEST_HU:g}, {high:g}] HU, over the mask, peak {high - LOWEST_HU:g}",
        SIMILARITY[year]: f"both clipped to [{LOWEST_HU:g}, {high:g}] HU and {LOWEST_HU:g} outside the mask; "
        + similarity,
    }


def _ms_ssim(x: Array, y: Array, inside: NDArray[np.bool_], peak: float) -> float | None:
    """Multi-scale SSIM as the SynthRAD2025 evaluation computes it.

    It differs from Wang et al. 2003 in that luminance is weighted at every scale, and voxel by voxel: kept,
    since the challenge's published scores depend on it.
    """
    padding = []
    for size in x.shape:
        missing = max(MS_SSIM_SMALLEST_AXIS - size, 0)
        padding.append((missing // 2, missing - missing // 2))
    x, y = np.pad(x, padding, mode="edge"), np.pad(y, padding, mode="edge")
    inside = np.pad(inside, padding, mode="edge")
    c1, c2 = (SSIM_K1 * peak) ** 2, (SSIM_K2 * peak) ** 2
    score = 1.0
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        if scale > 0:
            x, y, inside = _halve(x), _halve(y), inside[::2, ::2, ::2]
        mean_x, mean_y, variance_x, variance_y, covariance = local_moments(x, y, [7, 7, 7])
        deviations = np.sqrt(variance_x.clip(0)) * np.sqrt(variance_y.clip(0))
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        contrast = (2 * deviations + c2) / (variance_x + variance_y + c2)
        structure = (covariance + c2 / 2) / (deviations + c2 / 2)
        local = luminance.clip(0) ** weight * contrast.clip(0) ** weight * structure.clip(0) ** weight
        counted = inside[3:-3, 3:-3, 3:-3]
        if not counted.any():
            return None
        score *= float(local[3:-3, 3:-3, 3:-3][counted].mean().clip(0, 1))
    return score


def _halve(image: Array) -> Array:
    """Mean over voxels i−1 and i along each axis (zero before the first), then every second voxel."""
    for axis in range(image.ndim):
        before = np.zeros_like(image)
        after: list[slice] = [slice(None)] * image.ndim
        kept: list[slice] = [slice(None)] * image.ndim
        after[axis], kept[axis] = slice(1, None), slice(None, -1)
        before[tuple(after)] = image[tuple(kept)]
        image = (image + before) / 2
    halved: Array = image[::2, ::2, ::2]
    return halved
