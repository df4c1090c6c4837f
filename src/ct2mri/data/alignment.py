"""How well two volumes of a patient lie on one another, as they stand in space.

Neither number proves a pair right: mutual information has no unit and no value that is good by itself, and
outlines can agree while what is inside does not. Together they tell a pair that needs looking at.
"""

from dataclasses import dataclass

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ct2mri.data.geometry import grid_with_spacing, resample, to_canonical
from ct2mri.data.intensity import body_mask, border_padding
from ct2mri.data.volume import Grid, Volume

_WORKING_MM = 3.0  # voxel edge at which pairs are compared
_BINS = 32
_ROOM_MM = 10.0  # around the body, so that the skin counts in mutual information
_BORDER_MM = 6.0  # an outline nearer to the end of a field of view may be that end
_FEWEST_FACES = 200

# HU beyond which values tell registration no more: air to dense bone. The rest of the range is metal.
_HU_RANGE = (-300.0, 900.0)

# In volumes clipped to that range, which draws the outline inward, the level of the skin's outer side.
_SKIN_HU = -200.0


@dataclass(frozen=True, eq=False)
class View:
    """A volume on a working grid, made ready for comparing.

    Attributes:
        grid: the working grid.
        levels: float32 (i, j, k) from 0 (air) to 1 (dense bone, the brightest MR signal).
        seen: bool (i, j, k), where the volume was measured.
        body: bool (i, j, k), what it shows of the body.
    """

    grid: Grid
    levels: NDArray[np.float32]
    seen: NDArray[np.bool_]
    body: NDArray[np.bool_]


def in_hu(volume: Volume) -> bool:
    """Whether values are HU: the header's modality, or without one a value that no MR has."""
    modality = volume.metadata.get("modality")
    return bool(modality == "CT" if modality is not None else volume.array.min() < -200)


def view(volume: Volume, grid: Grid, body: Volume | None = None) -> View:
    """Resample a volume to a working grid (after a blur, where that is coarser) and scale its values.

    Args:
        volume: HU, or any values that are low in air.
        grid: the working grid.
        body: the body (above 0.5) on any grid; without one it is found by threshold.
    """
    hu = in_hu(volume)
    array = np.nan_to_num(volume.array, nan=-1024 if hu else 0, posinf=0, neginf=0)
    fill = _HU_RANGE[0] if hu else 0.0
    if hu:
        # Clipped before the blur: metal and the padding of a round field of view reach far.
        low, high = _HU_RANGE
        measured = np.ones(array.shape, dtype=bool)
    else:
        low, high = min(0.0, float(np.percentile(array, 0.5))), float(np.percentile(array, 99.5))
        measured = ~border_padding(array)
    array = np.clip(array, low, high)
    on_grid = coarsened(volume.with_array(array), grid, fill).array
    seen = resample(volume.with_array(measured), grid, interpolation="nearest", fill=0).array > 0.5
    levels = (on_grid - low) / max(high - low, 1e-6)
    if body is not None:
        inside = resample(body, grid, interpolation="nearest", fill=0).array > 0.5
    else:
        threshold = (_SKIN_HU - low) / (high - low) if hu else _signal_threshold(levels[seen])
        above = seen & (levels > threshold)
        inside = body_mask((above if hu else _filled(above)).astype(np.float32), grid.spacing, 0.5)
    if hu and inside.any():
        # Table and headrest are no part of the patient and not in the other volume.
        levels = np.where(ndimage.binary_dilation(inside), levels, 0)
    return View(grid, levels.astype(np.float32), seen, inside)


def coarsened(volume: Volume, grid: Grid, fill: float) -> Volume:
    """Resample to a working grid, after a blur along the axes on which that is coarser."""
    edges = zip(volume.spacing, _along(volume, grid), strict=True)
    blur = [0.4 * max(0.0, new / old - 1) for old, new in edges]
    if max(blur) > 0.1:
        blurred = ndimage.gaussian_filter(volume.array, blur, mode="nearest", truncate=3)
        volume = volume.with_array(blurred)
    return resample(volume, grid, fill=fill)


def _along(volume: Volume, grid: Grid) -> list[float]:
    """Working voxel edge along each axis of a volume in mm."""
    names = nibabel.orientations.io_orientation(volume.affine)[:, 0]
    working = nibabel.orientations.io_orientation(grid.affine)[:, 0]
    edge = {axis: grid.spacing[index] for index, axis in enumerate(working)}
    return [float(edge.get(name, min(grid.spacing))) for name in names]


def _signal_threshold(levels: NDArray[np.float32]) -> float:
    """The level of an MR's outline: 0.3 of the way from the middle of the air to the middle of the tissue.

    Otsu's rule parts the two on a logarithmic scale; on a linear one it would part fat from muscle.
    """
    scaled = np.log(np.clip(levels, 0, 1) + 0.02)
    counts, edges = np.histogram(scaled, bins=128)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = levels.size - below
    total = np.cumsum(counts * centres)
    apart = (total[:-1] / np.maximum(below, 1) - (total[-1] - total[:-1]) / np.maximum(above, 1)) ** 2
    otsu = edges[1 + np.argmax(below.astype(float) * above * apart)]
    air, tissue = (levels[scaled < otsu], levels[scaled >= otsu])
    if air.size == 0 or tissue.size == 0:
        return 1.0
    dark = float(np.median(air))
    return dark + 0.3 * (float(np.median(tissue)) - dark)


def _filled(above: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """An MR's signal with what it encloses: the skull gives none, and parts a thin scalp from the brain."""
    filled = above.copy()
    for axis in range(3):
        if min(n for a, n in enumerate(above.shape) if a != axis) > 1:
            for index in range(above.shape[axis]):
                here = (slice(None),) * axis + (index,)
                closed = ndimage.binary_closing(np.pad(above[here], 1))[1:-1, 1:-1]  # gaps of two voxels
                filled[here] |= ndimage.binary_fill_holes(closed)
    return filled


def working_grid(volume: Volume, edge_mm: float) -> Grid:
    """The volume's own grid, axes in RAS order, with voxel edges of at least `edge_mm`."""
    canonical = to_canonical(volume)[1].target
    i, j, k = (max(edge, edge_mm) for edge in canonical.spacing)
    return grid_with_spacing(canonical, (i, j, k))


@dataclass(frozen=True)
class Agreement:
    """How well two volumes lie on one another.

    Attributes:
        edge_distance_mm: mean distance in mm between the outlines of the body, over both ways; None where too
            little outline is seen in both. Being those of voxels they are never nearer than about 0.5 mm, and
            in MR skin and bone near the skin may give no signal.
        mutual_information: in nats, over the source's body and 10 mm around it. Comparable for one pair
            before and after a motion, hardly between pairs; 0 where the fields of view hardly overlap.
    """

    edge_distance_mm: float | None
    mutual_information: float


def agreement(source: Volume, target: Volume) -> Agreement:
    """Compare two volumes where they lie, on a grid of 3 mm.

    Only outlines inside both fields of view count. HU are clipped to [−300, 900], other values to their
    percentile 99.5.
    """
    grid = working_grid(source, _WORKING_MM)
    first, second = view(source, grid), view(target, grid)
    return Agreement(outline_distance(first, second), shared_information(first, second))


def outline_distance(first: View, second: View) -> float | None:
    """Mean distance in mm between two views' outlines on one grid; None where there is too little."""
    spacing = first.grid.spacing
    both = first.seen & second.seen
    inner = ndimage.distance_transform_edt(np.pad(both, 1), sampling=spacing)[1:-1, 1:-1, 1:-1] > _BORDER_MM
    distances = []
    for one, other in ((first, second), (second, first)):
        faces = _faces(one.body, inner)
        if len(faces) < _FEWEST_FACES or not other.body.any() or other.body.all():
            return None
        depth = _signed_distance(other.body, spacing)
        distances.append(float(np.abs(ndimage.map_coordinates(depth, faces.T, order=1)).mean()))
    return float(np.mean(distances))


def _signed_distance(mask: NDArray[np.bool_], spacing: tuple[float, ...]) -> NDArray[np.float32]:
    """Distance in mm to a mask's surface, negative inside; the surface runs half-way between voxels."""
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing)
    inside = ndimage.distance_transform_edt(mask, sampling=spacing)
    half = min(spacing) / 2
    depth: NDArray[np.float32] = np.where(mask, half - inside, outside - half).astype(np.float32)
    return depth


def surface_points(shown: View) -> NDArray[np.float64]:
    """World coordinates in mm (n, 3) of points on the body's surface; ends of the field of view are none."""
    inner = ndimage.binary_erosion(shown.seen, border_value=0)
    affine = shown.grid.affine
    points: NDArray[np.float64] = _faces(shown.body, inner) @ affine[:3, :3].T + affine[:3, 3]
    return points


def _faces(mask: NDArray[np.bool_], inner: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Midpoints, in voxel indices (n, 3), of the faces between a mask and its outside where `inner` holds."""
    points = []
    for axis, size in enumerate(mask.shape):
        if size == 1:
            continue
        low = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
        high = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
        shift = np.zeros(3)
        shift[axis] = 0.5
        points.append(np.argwhere((mask[low] != mask[high]) & inner[low] & inner[high]) + shift)
    return np.concatenate(points) if points else np.zeros((0, 3))


def shared_information(first: View, second: View) -> float:
    """Mutual information in nats of two views on one grid, over the first one's body and what is near it."""
    if not first.body.any():
        return 0.0
    near = ndimage.distance_transform_edt(~first.body, sampling=first.grid.spacing) <= _ROOM_MM
    counted = near & first.seen & second.seen
    if np.count_nonzero(counted) < 0.05 * np.count_nonzero(near):
        return 0.0
    return information(first.levels[counted], second.levels[counted])


def information(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Mutual information in nats of two lists of levels (n,) in [0, 1], over 32 × 32 bins."""
    counts, _, _ = np.histogram2d(first, second, bins=_BINS, range=[[0, 1], [0, 1]])
    joint = counts / counts.sum()
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    filled = joint > 0
    return float((joint[filled] * np.log(joint[filled] / independent[filled])).sum())
