"""A perceptual distance that needs no trained network: how unevenly the edges of two images agree.

GMSD: Xue, Zhang, Mou and Bovik, "Gradient magnitude similarity deviation", 2014. MS-GMSD: Zhang, Sun, Yang
and Ma, "Gradient magnitude similarity deviation on multiple scales for color image quality assessment", 2017
(its luminance part). Both are defined for pictures; for volumes the Prewitt filter is taken in 3D.
"""

import numpy as np

from ct2mri.evaluation.masked import Array, Mask, groups_of, halve, halve_mask, masked_mean, spread
from ct2mri.evaluation.similarity import SSIM_WINDOW, ssim_window

# Xue et al. 2014: c = 170 for grey values from 0 to 255.
GMS_CONSTANT = 170 / 255**2

# Zhang et al. 2017: weights of the four scales, and the strength of masking.
MS_GMSD_WEIGHTS = (0.096, 0.596, 0.289, 0.019)
MS_GMSD_MASKING = 0.5

MS_GMSD_SMALLEST_AXIS = 24
"""Voxels that an axis needs so that three are left at the coarsest of four scales."""


def gradient_deviations(
    x: Array, y: Array, inside: Mask, data_range: float, axis: int | None = None
) -> tuple[Array, Array]:
    """GMSD and MS-GMSD of each group, (groups,), from 0 (alike) up; NaN where not defined.

    GMSD is the standard deviation over the mask of the gradient magnitude similarity, at half resolution as
    published; MS-GMSD the root of the weighted mean of its square at four scales from the full one. Axes that
    SSIM does not average over are not differentiated along either.

    Args:
        x, y: images, 0 outside the mask.
        inside: the mask.
        data_range: the width of the range of values.
        axis: the axis across which slices lie; None: the volume.
    """
    filtered = [size > 1 for size in ssim_window(x.shape, axis)]
    undefined = np.full(groups_of(x.shape, axis), np.nan)
    if not any(filtered):
        return undefined, undefined
    complete = ms_gmsd_hindrance(x.shape, axis) is None
    x, y = x / data_range, y / data_range
    gmsd, total = undefined, np.zeros_like(undefined)
    for scale, weight in enumerate(MS_GMSD_WEIGHTS):
        if scale > 0:
            x, y, inside = halve(x, filtered), halve(y, filtered), halve_mask(inside, filtered)
        of_x, of_y = _gradient_magnitude(x, filtered), _gradient_magnitude(y, filtered)
        if scale == 1:
            gmsd = _deviation(_similarity(of_x, of_y, 0.0), inside, axis)
            if not complete:
                return gmsd, undefined
        total = total + weight * _deviation(_similarity(of_x, of_y, MS_GMSD_MASKING), inside, axis) ** 2
    return gmsd, np.sqrt(total)


def ms_gmsd_hindrance(shape: tuple[int, ...], axis: int | None = None) -> str | None:
    """Why MS-GMSD is not defined for images of this shape, or None."""
    filtered = [size for size, width in zip(shape, ssim_window(shape, axis), strict=True) if width > 1]
    if not filtered:
        return f"not defined: no axis has {SSIM_WINDOW} voxels"
    short = [size for size in filtered if size < MS_GMSD_SMALLEST_AXIS]
    if short:
        return (
            f"not defined: an axis has {min(short)} voxels, and {len(MS_GMSD_WEIGHTS)} scales need "
            f"{MS_GMSD_SMALLEST_AXIS}"
        )
    return None


def _gradient_magnitude(image: Array, filtered: list[bool]) -> Array:
    """Length of the gradient by Prewitt's filter: a difference over two voxels, a mean of three across.

    Borders repeat. Sums of shifted views take a third of the time of scipy's filters of three voxels.
    """
    axes = [axis for axis, wanted in enumerate(filtered) if wanted]
    padded = np.pad(image, [(1, 1) if wanted else (0, 0) for wanted in filtered], mode="edge")
    square = np.zeros_like(image)
    for axis in axes:
        before, _, after = _neighbours(padded, axis)
        derivative = after - before
        for across in axes:
            if across != axis:
                before, here, after = _neighbours(derivative, across)
                derivative = before + here
                derivative += after
                derivative /= 3
        derivative *= derivative
        square += derivative
    magnitude: Array = np.sqrt(square)
    return magnitude


def _neighbours(padded: Array, axis: int) -> tuple[Array, Array, Array]:
    """Each voxel's neighbour before it, itself, and the one after it; the ends of the axis are lost."""
    before, here, after = (
        padded[(slice(None),) * axis + (slice(first, last),)] for first, last in ((0, -2), (1, -1), (2, None))
    )
    return before, here, after


def _similarity(x: Array, y: Array, masking: float) -> Array:
    """Gradient magnitude similarity (Zhang et al. 2017; without masking, Xue et al. 2014, equation 4)."""
    product = x * y
    similarity: Array = ((2 - masking) * product + GMS_CONSTANT) / (
        x * x + y * y - masking * product + GMS_CONSTANT
    )
    return similarity


def _deviation(similarity: Array, inside: Mask, axis: int | None) -> Array:
    """Standard deviation over the mask of each group."""
    mean = masked_mean(similarity, inside, axis)
    deviation: Array = np.sqrt(
        masked_mean((similarity - spread(mean, similarity.ndim, axis)) ** 2, inside, axis)
    )
    return deviation
