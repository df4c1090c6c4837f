"""Means inside a mask, over a whole volume or over each of its slices, and coarser copies of images.

Every measure is computed by the same code for volumes and for slices: `axis=None` makes one group of all
voxels, `axis=a` one group a slice across that axis. Where a group has no number, NaN stands in the arrays of
this package's inner functions; none of them leaves the package.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def groups_of(shape: tuple[int, ...], axis: int | None) -> int:
    """How many groups there are: 1, or the slices across `axis`."""
    return 1 if axis is None else shape[axis]


def others(dims: int, axis: int | None) -> tuple[int, ...]:
    """The axes that a mean runs over: all, or all but `axis`."""
    return tuple(a for a in range(dims) if a != axis)


def spread(of_groups: Array, dims: int, axis: int | None) -> Array:
    """One number a group, shaped so that it broadcasts against the image."""
    return of_groups.reshape([-1 if a == axis else 1 for a in range(dims)])


def counts(inside: Mask, axis: int | None) -> Array:
    """Voxels of the mask in each group."""
    return np.atleast_1d(inside.sum(axis=others(inside.ndim, axis))).astype(np.float64)


def masked_mean(values: Array, inside: Mask, axis: int | None = None) -> Array:
    """Mean over the mask of each group, (groups,); NaN where the mask has no voxel."""
    if axis is None:
        chosen = values[inside]
        return np.array([chosen.mean() if chosen.size else np.nan])
    sums = np.where(inside, values, 0).sum(axis=others(values.ndim, axis))
    with np.errstate(invalid="ignore"):
        means: Array = sums / counts(inside, axis)
    return means


def is_constant(values: Array, inside: Mask, axis: int | None = None) -> Mask:
    """Whether an image has one value over the mask of each group, (groups,)."""
    over = others(values.ndim, axis)
    lowest = np.where(inside, values, np.inf).min(axis=over)
    highest = np.where(inside, values, -np.inf).max(axis=over)
    return np.atleast_1d(lowest >= highest)


def halve(image: Array, halved: list[bool]) -> Array:
    """Mean over blocks of two voxels along the chosen axes; an odd axis repeats its last plane."""
    for axis, wanted in enumerate(halved):
        if not wanted:
            continue
        size = image.shape[axis]
        first = np.take(image, np.arange(0, size, 2), axis=axis)
        second = np.take(image, np.minimum(np.arange(1, size + 1, 2), size - 1), axis=axis)
        image = (first + second) / 2
    return image


def halve_mask(inside: Mask, halved: list[bool]) -> Mask:
    """Blocks of two voxels along the chosen axes of which at least half lie in the mask."""
    return halve(inside.astype(np.float64), halved) >= 0.5


def working_box(
    inside: Mask, filtered: list[bool], margin: int, step: int, smallest: int
) -> tuple[slice, ...]:
    """The mask's box with a margin along the filtered axes, its start at a multiple of `step` voxels.

    Images being 0 outside the mask, filters that reach no farther than the margin give the same values inside
    the mask as on the whole image, at less cost; blocks of up to `step` voxels stay the same blocks. A box
    has at least `smallest` voxels along an axis of as many: what the image is large enough for is not refused
    because the mask lies at its border.
    """
    found = ndimage.find_objects(inside.astype(np.uint8))[0]
    box = []
    for of, wanted, size in zip(found, filtered, inside.shape, strict=True):
        start = max(min(of.start - margin, size - smallest), 0) // step * step
        stop = min(-(-max(of.stop + margin, start + smallest) // step) * step, size)
        box.append(slice(start, stop) if wanted else slice(0, size))
    return tuple(box)
