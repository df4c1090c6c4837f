"""Voxel values: windows, the scale of the target, the body, and where the target says something."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# A scaled target is held to multiples of this, 65 536 steps from 0 to its reference: far finer than any
# scanner's noise, and coarse enough to swallow the rounding by which a scanner's gain would show.
TARGET_STEP = 2.0**-16

# Opening radii in mm. Tables, headrests and blankets are thinner than twice the first; the defacing of an
# MR cuts away more than twice the second, while thin dark bone does not survive it.
_BODY_OPENING_MM = 3.0
_DEFACING_OPENING_MM = 3.0

# Smallest block that counts as defaced: 2 cm³, in a single slice 1.5 cm².
_DEFACING_MM3 = 2000.0
_DEFACING_MM2 = 150.0


def scale_windows(source: NDArray[np.float32], windows: Sequence[Sequence[float]]) -> NDArray[np.float32]:
    """Map each window [low, high] of a source (i, j, k) to [−1, 1], clipped: float32 (C, i, j, k)."""
    channels = [
        np.clip((source.astype(np.float64) - low) * (2 / (high - low)) - 1, -1, 1).astype(np.float32)
        for low, high in windows
    ]
    return np.stack(channels)


def unscale_window(channel: NDArray[np.float32], window: Sequence[float]) -> NDArray[np.float32]:
    """Source values of one channel in [−1, 1]; those outside the window are gone."""
    low, high = window
    return ((channel.astype(np.float64) + 1) * ((high - low) / 2) + low).astype(np.float32)


def target_reference(target: NDArray[np.float32], mask: NDArray[np.bool_], percentile: float) -> float:
    """The value that a percentile of the target (i, j, k) inside a mask has; it is mapped to 1."""
    return float(np.percentile(target[mask].astype(np.float64), percentile))


def scale_target(target: NDArray[np.float32], reference: float) -> NDArray[np.float32]:
    """Map 0 to −1 and `reference` to 1, not clipped; rounded to multiples of 2 `TARGET_STEP`."""
    steps = np.rint(target.astype(np.float64) / (reference * TARGET_STEP))
    return (steps * (2 * TARGET_STEP) - 1).astype(np.float32)


def unscale_target(scaled: NDArray[np.float32], reference: float) -> NDArray[np.float32]:
    """The way back from `scale_target`, up to its rounding."""
    return ((scaled.astype(np.float64) + 1) / 2 * reference).astype(np.float32)


def body_mask(
    source: NDArray[np.float32], spacing: tuple[float, float, float], threshold: float
) -> NDArray[np.bool_]:
    """The patient's body in a source volume, without table and headrest, air inside it included.

    Voxels above a threshold; eroded by 3 mm, which parts the body from what it lies on and removes whatever
    is thin; the largest piece left (and pieces at least a quarter as large: a second leg), grown back;
    holes filled slice by slice along each of the three axes. Works on single slices.

    Args:
        source: (i, j, k).
        spacing: voxel edges in mm.
        threshold: value above which a voxel may be body.

    Returns:
        bool (i, j, k); all False where nothing is thick enough.
    """
    from scipy import ndimage

    above = source > threshold
    radius = _BODY_OPENING_MM
    core = _eroded(above, spacing, radius)
    pieces, count = ndimage.label(core)
    if count == 0:
        return np.zeros(source.shape, dtype=bool)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    core = (sizes >= sizes.max() / 4)[pieces]
    # Growing a little farther than was eroded, within the threshold, brings back ears and the nose.
    body = _dilated(core, spacing, radius + 2 * max(1.0, min(spacing))) & above
    filled = body.copy()
    for axis in range(3):
        # Slices across an axis of length 1 neighbours are lines, in which everything would be a hole.
        if min(n for a, n in enumerate(body.shape) if a != axis) > 1:
            for index in range(body.shape[axis]):
                here = (slice(None),) * axis + (index,)
                if body[here].any():
                    filled[here] |= ndimage.binary_fill_holes(body[here])
    return filled


def border_padding(target: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whole planes of exact zeros at the borders of a target volume, bool (i, j, k).

    A reconstruction that was padded to a rounder size has them; they were not measured.
    """
    padding = np.zeros(target.shape, dtype=bool)
    for axis in range(3):
        if target.shape[axis] == 1:
            continue
        measured = (target != 0).any(axis=tuple(a for a in range(3) if a != axis))
        inside = np.flatnonzero(measured)
        first, last = (inside[0], inside[-1]) if inside.size else (target.shape[axis], -1)
        outside = np.ones(target.shape[axis], dtype=bool)
        outside[first : last + 1] = False
        padding[(slice(None),) * axis + (outside,)] = True
    return padding


def defaced(
    at_floor: NDArray[np.bool_],
    mask: NDArray[np.bool_],
    tissue: NDArray[np.bool_],
    spacing: tuple[float, float, float],
) -> NDArray[np.bool_]:
    """Blocks inside the body that were blanked in the target, to hide a face or by an oblique border.

    A block is where the target stays at its floor (exactly 0, or its very minimum) inside the body where the
    source shows soft tissue, solidly (6 mm thick) and over 2 cm³ (1.5 cm² in a single slice). Scattered dark
    voxels and thin bone are no block, and air is rightly dark.

    Args:
        at_floor: where the target is at its floor.
        mask: the body.
        tissue: where the source shows something that every target sequence gives signal for.
        spacing: voxel edges in mm.

    Returns:
        bool (i, j, k), one voxel wider than the block, whose rim is mixed by resampling.
    """
    from scipy import ndimage

    dark = at_floor & mask & tissue
    blocks, count = ndimage.label(_opened(dark, spacing, _DEFACING_OPENING_MM))
    if count == 0:
        return np.zeros(mask.shape, dtype=bool)
    flat = [axis for axis, size in enumerate(mask.shape) if size == 1]
    edges = [edge for axis, edge in enumerate(spacing) if axis not in flat]
    smallest = (_DEFACING_MM2 if flat else _DEFACING_MM3) / float(np.prod(edges))
    sizes = np.bincount(blocks.ravel())
    sizes[0] = 0
    kept = (sizes >= smallest)[blocks]
    structure = np.ones([1 if axis in flat else 3 for axis in range(3)], dtype=bool)
    grown: NDArray[np.bool_] = ndimage.binary_dilation(kept, structure)
    return grown


def _eroded(mask: NDArray[np.bool_], spacing: tuple[float, float, float], radius: float) -> NDArray[np.bool_]:
    """A mask without the voxels nearer than `radius` mm to its outside; the array's border is no outside."""
    from scipy import ndimage

    if mask.all():
        return mask
    eroded: NDArray[np.bool_] = ndimage.distance_transform_edt(mask, sampling=spacing) > radius
    return eroded


def _dilated(
    mask: NDArray[np.bool_], spacing: tuple[float, float, float], radius: float
) -> NDArray[np.bool_]:
    """A mask with all voxels up to `radius` mm away."""
    from scipy import ndimage

    dilated: NDArray[np.bool_] = ndimage.distance_transform_edt(~mask, sampling=spacing) <= radius
    return dilated


def _opened(mask: NDArray[np.bool_], spacing: tuple[float, float, float], radius: float) -> NDArray[np.bool_]:
    """A mask without whatever a ball of `radius` mm does not fit into."""
    core = _eroded(mask, spacing, radius)
    return _dilated(core, spacing, radius) & mask if core.any() else core
