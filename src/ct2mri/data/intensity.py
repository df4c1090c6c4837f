"""Voxel values: windows, the scale of the target, the body, and where the target says something."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ct2mri.errors import RequestError

AIR_HU = -1024.0
"""What lies outside a CT's field of view: as far below tissue as CT scanners themselves count."""

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

# Contrast enhancement: blocks along each axis, each of at least so many voxels; histogram bins; and the
# largest share of a block's voxels in one bin, which holds its mapping's slope under 256 × 0.01 + 1 = 3.56.
_CLAHE_BLOCKS = 8
_CLAHE_SMALLEST_BLOCK = 8
_CLAHE_BINS = 256
_CLAHE_LIMIT = 0.01


def scale_windows(source: NDArray[np.float32], windows: Sequence[Sequence[float]]) -> NDArray[np.float32]:
    """Map each window [low, high] of a source (i, j, k) to [−1, 1], clipped: float32 (C, i, j, k)."""
    scaled = np.empty((len(windows), *source.shape), dtype=np.float32)
    for channel, (low, high) in zip(scaled, windows, strict=True):
        for plane, values in zip(channel, source, strict=True):  # double precision for one plane at a time
            plane[:] = np.clip((values.astype(np.float64) - low) * (2 / (high - low)) - 1, -1, 1)
    return scaled


def unscale_window(channel: NDArray[np.float32], window: Sequence[float]) -> NDArray[np.float32]:
    """Source values of one channel in [−1, 1]; those outside the window are gone."""
    low, high = window
    return ((channel.astype(np.float64) + 1) * ((high - low) / 2) + low).astype(np.float32)


def shift_windows(
    windowed: NDArray[np.float32], windows: Sequence[Sequence[float]], shift: float
) -> NDArray[np.float32]:
    """The windows of a source whose values are all `shift` higher, from its windows alone.

    What the widest window has at its lower end stays: air, with which a source is filled outside the body
    whatever its values are, and padding. Values that a narrower window does not hold come from the widest.

    Args:
        windowed: (C, *spatial) in [−1, 1], as `scale_windows` gives them.
        windows: [low, high] of each channel, in the source's units.
        shift: in the source's units.
    """
    widest = max(range(len(windows)), key=lambda channel: windows[channel][1] - windows[channel][0])
    outside = windowed[widest] <= -1
    values = unscale_window(windowed[widest], windows[widest])
    shifted = np.empty_like(windowed)
    for channel, old, (low, high) in zip(shifted, windowed, windows, strict=True):
        moved = old + np.float32(shift * 2 / (high - low))
        from_widest = (values + np.float32(shift - low)) * np.float32(2 / (high - low)) - 1
        channel[:] = np.where(np.abs(old) < 1, moved, from_widest)
        channel[outside] = old[outside]
    return shifted.clip(-1, 1)


def target_reference(target: NDArray[np.float32], mask: NDArray[np.bool_], percentile: float) -> float:
    """The value that a percentile of the target (i, j, k) inside a mask has; it is mapped to 1."""
    return float(np.percentile(target[mask].astype(np.float64), percentile))


def scale_target(target: NDArray[np.float32], target_range: tuple[float, float]) -> NDArray[np.float32]:
    """Map a range [low, high] to [−1, 1], not clipped; rounded to multiples of 2 `TARGET_STEP`."""
    low, high = target_range
    steps = np.rint((target.astype(np.float64) - low) / ((high - low) * TARGET_STEP))
    return (steps * (2 * TARGET_STEP) - 1).astype(np.float32)


def unscale_target(scaled: NDArray[np.float32], target_range: tuple[float, float]) -> NDArray[np.float32]:
    """The way back from `scale_target`, up to its rounding."""
    low, high = target_range
    target = np.empty(scaled.shape, dtype=np.float32)
    for plane, values in zip(target, scaled, strict=True):  # double precision for one plane at a time
        plane[:] = (values.astype(np.float64) + 1) / 2 * (high - low) + low
    return target


def relative_to_percentile(
    source: NDArray[np.float32], body: NDArray[np.bool_], percentile: float
) -> NDArray[np.float32]:
    """A source (i, j, k) without units, divided by a percentile of its positive values inside the body.

    Raises:
        RequestError: there is no positive value inside the body.
    """
    values = source[body & (source > 0)]
    if values.size == 0:
        raise RequestError("The source has no value above 0 inside the body; give a volume that shows one.")
    return (source / np.percentile(values.astype(np.float64), percentile)).astype(np.float32)


def otsu_threshold(source: NDArray[np.float32]) -> float:
    """The value that parts body from air in a source without units: Otsu's, of the values' logarithm.

    Of the values themselves it would part bright tissue from dark: fat from muscle, white matter from skin.
    Otsu: A threshold selection method from gray-level histograms, IEEE Trans. SMC 9, 1979.
    """
    import SimpleITK as sitk

    bright = float(np.percentile(source, 99)) or float(source.max())
    if bright <= 0:
        return 0.0
    # Noise in air lies at a few per cent of the bright tissue, so that much is near the logarithm's bend.
    share = np.clip(source / bright, 0, 1)
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.SetNumberOfHistogramBins(256)
    otsu.Execute(sitk.GetImageFromArray(np.log1p(100 * share)))
    return float(np.expm1(otsu.GetThreshold()) / 100 * bright)


def enhance_local_contrast(target: NDArray[np.float32], highest: float) -> NDArray[np.float32]:
    """Contrast-limited adaptive histogram equalisation (CLAHE) of the values from 0 to `highest`.

    Each block of the volume gets the mapping that its own clipped histogram asks for; a voxel takes the
    mappings of the blocks around it, weighted by nearness. 0 and `highest` stay what they are, and so do
    values beyond them. Zuiderveld: Contrast limited adaptive histogram equalization, Graphics Gems IV, 1994.

    Args:
        target: (i, j, k).
        highest: above 0.
    """
    from scipy import ndimage

    shape = target.shape
    blocks = [min(_CLAHE_BLOCKS, max(1, n // _CLAHE_SMALLEST_BLOCK)) for n in shape]
    share = np.clip(target.astype(np.float64) / highest, 0, 1)
    i, j, k = (np.arange(n) * count // n for n, count in zip(shape, blocks, strict=True))
    block = (i[:, None, None] * blocks[1] + j[:, None]) * blocks[2] + k
    bins = np.minimum((share * _CLAHE_BINS).astype(np.int64), _CLAHE_BINS - 1)
    counts = np.bincount((block * _CLAHE_BINS + bins).ravel(), minlength=int(np.prod(blocks)) * _CLAHE_BINS)
    histogram = counts.reshape(-1, _CLAHE_BINS) / np.bincount(block.ravel())[:, None]
    clipped = np.minimum(histogram, _CLAHE_LIMIT)
    clipped += (1 - clipped.sum(axis=1, keepdims=True)) / _CLAHE_BINS
    # One mapping a block, from edges of bins to [0, 1]: the cumulated histogram.
    mapping = np.pad(np.cumsum(clipped, axis=1), ((0, 0), (1, 0))).reshape(*blocks, _CLAHE_BINS + 1)

    x, y, z = ((np.arange(n) + 0.5) * count / n - 0.5 for n, count in zip(shape, blocks, strict=True))
    enhanced = target.astype(np.float32)
    for index in range(shape[0]):
        inside = share[index]
        where = np.stack(np.broadcast_arrays(x[index], y[:, None], z, inside * _CLAHE_BINS))
        mapped = ndimage.map_coordinates(mapping, where, order=1, mode="nearest") * highest
        enhanced[index] = np.where((inside > 0) & (inside < 1), mapped, enhanced[index])
    return enhanced


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
    sizes = np.zeros(count + 1, dtype=np.int64)
    for plane in pieces:  # counting makes a copy in 64 bits
        sizes += np.bincount(plane.ravel(), minlength=count + 1)
    sizes[0] = 0
    core = (sizes >= sizes.max() / 4)[pieces]
    del pieces
    # Growing a little farther than was eroded, within the threshold, brings back ears and the nose.
    body = _dilated(core, spacing, radius + 2 * max(1.0, min(spacing))) & above
    del above, core
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
    return mask if mask.all() else _is_beyond(~mask, spacing, radius)


def _dilated(
    mask: NDArray[np.bool_], spacing: tuple[float, float, float], radius: float
) -> NDArray[np.bool_]:
    """A mask with all voxels up to `radius` mm away."""
    return ~_is_beyond(mask, spacing, radius)


def _is_beyond(
    mask: NDArray[np.bool_], spacing: tuple[float, float, float], radius: float
) -> NDArray[np.bool_]:
    """Which voxels lie farther than `radius` mm from the nearest voxel of a mask, which is not empty.

    By the exact distance transform of Maurer et al. (2003), in a third of the time of scipy's.
    """
    import SimpleITK

    image = SimpleITK.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing([float(edge) for edge in reversed(spacing)])
    distances = SimpleITK.SignedMaurerDistanceMap(
        image, insideIsPositive=False, squaredDistance=False, useImageSpacing=True
    )
    beyond: NDArray[np.bool_] = SimpleITK.GetArrayViewFromImage(distances) > radius
    return beyond


def _opened(mask: NDArray[np.bool_], spacing: tuple[float, float, float], radius: float) -> NDArray[np.bool_]:
    """A mask without whatever a ball of `radius` mm does not fit into."""
    core = _eroded(mask, spacing, radius)
    return _dilated(core, spacing, radius) & mask if core.any() else core
