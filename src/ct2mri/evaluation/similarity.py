"""How alike two images are: SSIM and MS-SSIM, normalised cross-correlation, mutual information.

SSIM is computed here, with scipy's filters, since torchmetrics knows neither sample covariances nor masks nor
scikit-image's borders, and so cannot give the values that the field compares; scikit-image and torchmetrics
are the oracles of the tests.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ct2mri.evaluation.masked import (
    Array,
    Mask,
    groups_of,
    halve,
    halve_mask,
    is_constant,
    masked_mean,
    spread,
)

SSIM_WINDOW = 7
SSIM_K1, SSIM_K2 = 0.01, 0.03

# Wang, Simoncelli and Bovik, "Multiscale structural similarity for image quality assessment", 2003.
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

MS_SSIM_SMALLEST_AXIS = 97
"""Voxels that an axis needs so that the window of 7 fits into the coarsest of five scales."""

MUTUAL_INFORMATION_BINS = 32


class Moments(NamedTuple):
    """Means, sample variances and sample covariance in a window around each voxel."""

    mean_x: Array
    mean_y: Array
    variance_x: Array
    variance_y: Array
    covariance: Array


def ssim_window(shape: tuple[int, ...], axis: int | None = None) -> list[int]:
    """Voxels of the SSIM window along each axis.

    7, or 1 along an axis shorter than that and across slices: slices stay 2D.
    """
    return [SSIM_WINDOW if size >= SSIM_WINDOW and a != axis else 1 for a, size in enumerate(shape)]


def local_moments(x: Array, y: Array, window: list[int]) -> Moments:
    """Moments in a uniform window, borders reflected."""
    count = int(np.prod(window))
    correction = count / (count - 1)

    def mean(image: Array) -> Array:
        filtered: Array = ndimage.uniform_filter(image, window)
        return filtered

    mean_x, mean_y = mean(x), mean(y)
    return Moments(
        mean_x,
        mean_y,
        correction * (mean(x * x) - mean_x * mean_x),
        correction * (mean(y * y) - mean_y * mean_y),
        correction * (mean(x * y) - mean_x * mean_y),
    )


def ssim_map(prediction: Array, target: Array, data_range: float, window: list[int]) -> Array:
    """Local SSIM, one value a voxel (Wang et al. 2004, equation 13), with a uniform window.

    Sample covariances, K1 = 0.01, K2 = 0.03, borders reflected: scikit-image's defaults.

    Args:
        prediction: (i, j, k), float64.
        target: (i, j, k), float64.
        data_range: the width of the range of values.
        window: voxels along each axis, odd.
    """
    moments = local_moments(prediction, target, window)
    return _luminance(moments, data_range) * _contrast(moments, data_range)


def structural_similarity(
    x: Array, y: Array, inside: Mask, data_range: float, axis: int | None = None
) -> tuple[Array, Array]:
    """SSIM and MS-SSIM of each group, (groups,); NaN where not defined (`ms_ssim_hindrance` says why).

    MS-SSIM (Wang et al. 2003, equation 7): the means over the mask of contrast·structure at five scales and
    of luminance at the coarsest, negative means taken as 0, to the powers of `MS_SSIM_WEIGHTS`. Each scale is
    the mean over blocks of 2 voxels along the axes of the window; of the mask, blocks that lie half in it.

    Args:
        x, y: images, 0 outside the mask.
        inside: the mask.
        data_range: the width of the range of values.
        axis: the axis across which slices lie; None: the volume.
    """
    window = ssim_window(x.shape, axis)
    undefined = np.full(groups_of(x.shape, axis), np.nan)
    if max(window) == 1:
        return undefined, undefined
    moments = local_moments(x, y, window)
    contrast = _contrast(moments, data_range)
    ssim = masked_mean(_luminance(moments, data_range) * contrast, inside, axis)
    if ms_ssim_hindrance(x.shape, axis) is not None:
        return ssim, undefined
    halved = [size > 1 for size in window]
    product = np.ones_like(ssim)
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        if scale > 0:
            x, y, inside = halve(x, halved), halve(y, halved), halve_mask(inside, halved)
            moments = local_moments(x, y, window)
            contrast = _contrast(moments, data_range)
        if scale == len(MS_SSIM_WEIGHTS) - 1:
            contrast = contrast * _luminance(moments, data_range)
        product *= masked_mean(contrast, inside, axis).clip(min=0) ** weight
    return ssim, product


def ms_ssim_hindrance(shape: tuple[int, ...], axis: int | None = None) -> str | None:
    """Why MS-SSIM is not defined for images of this shape, or None."""
    window = ssim_window(shape, axis)
    if max(window) == 1:
        return f"not defined: no axis has {SSIM_WINDOW} voxels"
    short = [
        size for size, width in zip(shape, window, strict=True) if width > 1 and size < MS_SSIM_SMALLEST_AXIS
    ]
    if short:
        return (
            f"not defined: an axis has {min(short)} voxels, and {len(MS_SSIM_WEIGHTS)} scales of a window of "
            f"{SSIM_WINDOW} need {MS_SSIM_SMALLEST_AXIS}"
        )
    return None


def cross_correlation(x: Array, y: Array, inside: Mask, axis: int | None = None) -> Array:
    """Pearson's correlation over the mask of each group, (groups,); NaN where an image is constant."""
    dims = x.ndim
    x = x - spread(masked_mean(x, inside, axis), dims, axis)
    y = y - spread(masked_mean(y, inside, axis), dims, axis)
    constant = is_constant(x, inside, axis) | is_constant(y, inside, axis)
    product = masked_mean(x * y, inside, axis)
    with np.errstate(invalid="ignore", divide="ignore"):
        size = np.sqrt(masked_mean(x * x, inside, axis) * masked_mean(y * y, inside, axis))
        correlation: Array = np.where(constant, np.nan, product / size)
    return correlation.clip(-1, 1)


def mutual_information(x: Array, y: Array, inside: Mask, axis: int | None = None) -> Array:
    """Mutual information in nats over the mask of each group, (groups,); NaN where an image is constant.

    From a joint histogram of 32×32 equal bins between the lowest and highest value of each image in the mask
    of the whole volume, also for slices.
    """
    bins, groups = MUTUAL_INFORMATION_BINS, groups_of(x.shape, axis)
    constant = is_constant(x, inside, axis) | is_constant(y, inside, axis)
    if constant.all():
        return np.full(groups, np.nan)
    cells = np.zeros(int(inside.sum()), dtype=np.intp)
    if axis is not None:
        cells += np.nonzero(inside)[axis]
    for image in (x, y):
        values = image[inside]
        low, high = values.min(), values.max()
        scaled = (values - low) * (bins / (high - low)) if high > low else np.zeros_like(values)
        cells = cells * bins + np.minimum(scaled.astype(np.intp), bins - 1)
    joint = np.bincount(cells, minlength=groups * bins * bins).reshape(groups, bins, bins).astype(np.float64)
    with np.errstate(invalid="ignore"):
        joint /= joint.sum(axis=(1, 2), keepdims=True)
    entropies = [
        -np.sum(np.where(share > 0, share * np.log(np.where(share > 0, share, 1)), 0), axis=1)
        for share in (joint.sum(axis=2), joint.sum(axis=1), joint.reshape(groups, -1))
    ]
    information: Array = np.where(constant, np.nan, (entropies[0] + entropies[1] - entropies[2]).clip(min=0))
    return information


def _luminance(moments: Moments, data_range: float) -> Array:
    c1 = (SSIM_K1 * data_range) ** 2
    mean_x, mean_y = moments.mean_x, moments.mean_y
    luminance: Array = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance


def _contrast(moments: Moments, data_range: float) -> Array:
    """Contrast and structure in one."""
    c2 = (SSIM_K2 * data_range) ** 2
    contrast: Array = (2 * moments.covariance + c2) / (moments.variance_x + moments.variance_y + c2)
    return contrast
