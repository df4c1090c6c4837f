"""Where one volume of a pair fits the other best, and whether it fits better turned over.

The pair is compared as it is and with the target turned over, each time after the target was moved to where
it fits best. A patient's two halves are never quite alike, so the right hand fits better: by how much is what
tells. Moving comes first because a head that lies tilted fits its mirror image badly for that reason alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from scipy import ndimage

from ct2mri.data.alignment import in_hu, information, view, working_grid
from ct2mri.data.geometry import from_sitk, resample, to_canonical, to_sitk
from ct2mri.data.registration_pyramid import one_thread
from ct2mri.data.volume import Grid, Volume

_BINS = 32
_STEPS = 60  # of the optimiser, on either level
_SAMPLES = 30_000  # voxels compared at a time on the finer level: enough for the histogram
_ROOM_MM = 6.0  # around the body, so that the outer side of the skin counts
_SMALLEST_SHARE = 0.2  # of the body, below which a comparison says nothing
_SHOWS = 0.15  # level above which the target shows something
_COARSE_VOXELS = 150_000
_COARSE_MM = (3.0, 8.0)  # least and greatest voxel edge
_PICTURE_MM = 2.0
_SMALL_MM = 4.5  # twice as much still shows which way a body lies
_THINNEST = 6  # voxels: along a shorter axis nothing can be moved, and one slice stands for all


@dataclass(frozen=True, eq=False)
class CoarsePair:
    """Both volumes of a pair on one coarse grid, axes in RAS order.

    Attributes:
        source: float32 (i, j, k), 0 (air) to 1 (dense bone, or the brightest signal).
        target: float32 (i, j, k), likewise.
        body: bool (i, j, k), the body.
        seen: bool (i, j, k), where the target was measured.
        grid: the grid.
    """

    source: NDArray[np.float32]
    target: NDArray[np.float32]
    body: NDArray[np.bool_]
    seen: NDArray[np.bool_]
    grid: Grid


@dataclass(frozen=True)
class Fit:
    """How well the target fits the source at its best place.

    Attributes:
        information: mutual information inside the body, in nats, at the best place.
        shift_mm: mean over the body of how far from its best place the target lies.
        direction_mm: that shift at the body's centre, to the right, to the front and upwards.
    """

    information: float
    shift_mm: float
    direction_mm: tuple[float, float, float]


def compared(source: Volume, target: Volume, mask: Volume | None, valid: Volume | None = None) -> CoarsePair:
    """Both volumes of a pair on one grid that is coarse enough to move them about in a second.

    Args:
        source: finite.
        target: finite, on any grid.
        mask: the body (above 0.5), where it is known.
        valid: where the target was measured (above 0.5), where that is known better than by its grid.
    """
    extent = np.prod(source.spacing) * np.prod(source.spatial_shape)
    edge = float(np.clip(np.cbrt(extent / _COARSE_VOXELS), *_COARSE_MM))
    if 1 in source.spatial_shape:  # a picture
        edge = _PICTURE_MM
    source, target = shrunk(source, edge), shrunk(target, edge)
    grid = working_grid(source, edge)
    shown, other = view(source, grid), view(target, grid)
    body = shown.body if in_hu(source) or not in_hu(target) else other.body
    if mask is not None:
        body = resample(mask, grid, interpolation="nearest", fill=0).array > 0.5
    seen = other.seen
    if valid is not None:
        seen = resample(valid, grid, interpolation="nearest", fill=0).array > 0.5
    return CoarsePair(shown.levels, other.levels, body, seen, grid)


def shrunk(volume: Volume, edge_mm: float) -> Volume:
    """The volume with neighbours averaged, as many as fit into `edge_mm`; of its metadata the modality."""
    canonical, _ = to_canonical(volume)
    factors = [
        max(1, min(int(edge_mm / edge), size))
        for edge, size in zip(canonical.spacing, canonical.spatial_shape, strict=True)
    ]
    told = {"modality": canonical.metadata.get("modality")}
    if factors == [1, 1, 1]:
        return Volume(canonical.array, canonical.affine, told)
    return from_sitk(SimpleITK.BinShrink(to_sitk(canonical), factors), told)


def coarser(pair: CoarsePair) -> CoarsePair:
    """Every second voxel of a pair along each axis that has many and small ones."""
    step = np.array(
        [
            2 if size >= 4 * _THINNEST and edge < _SMALL_MM else 1
            for size, edge in zip(pair.source.shape, pair.grid.spacing, strict=True)
        ]
    )
    every = tuple(slice(None, None, int(n)) for n in step)
    source = pair.source[every]
    i, j, k = source.shape
    grid = Grid((i, j, k), pair.grid.affine @ np.diag([*step, 1]))
    return CoarsePair(source, pair.target[every], pair.body[every], pair.seen[every], grid)


def can_be_turned(pair: CoarsePair, axis: int) -> bool:
    """Whether the pair shows enough along an axis to be compared turned over along it."""
    return axis not in _flat(pair)


def fit(
    pair: CoarsePair, flips: Sequence[int] = (), *, move: bool = True, from_middle: bool = False
) -> Fit | None:
    """Find where the target fits best, by mutual information.

    Args:
        pair: the pair.
        flips: axes along which the target is turned over first, about the middle of what it shows.
        move: whether to move it; otherwise it is compared where it lies.
        from_middle: bring the middles of both together before moving; always so where it is turned over.

    Returns:
        None where the two share too little to be compared, or one of them shows nothing there, or both are
        thin along more than one axis.
    """
    flat = _flat(pair)
    if len(flat) > 1:
        return None
    turned = tuple(axis - sum(other < axis for other in flat) for axis in flips)
    spacing = np.array([edge for axis, edge in enumerate(pair.grid.spacing) if axis not in flat])
    source, body = _without(pair.source, flat), _without(pair.body, flat)
    target, seen = (np.flip(_without(array, flat), turned) for array in (pair.target, pair.seen))
    if not body.any() or not seen.any():
        return None
    room = ndimage.distance_transform_edt(~body, sampling=spacing) <= _ROOM_MM
    fixed, moving = _image(source, spacing), _image(target, spacing)
    measured = _image(seen.astype(np.float32), spacing)

    # SimpleITK counts axes and coordinates the other way round than the arrays.
    centre = np.array(ndimage.center_of_mass(body)) * spacing
    transform: Any = SimpleITK.Euler3DTransform() if body.ndim == 3 else SimpleITK.Euler2DTransform()
    transform.SetCenter(centre[::-1].tolist())
    if flips or from_middle:
        shown = np.array(ndimage.center_of_mass((target > _SHOWS) & seen)) * spacing
        transform.SetTranslation((shown - centre)[::-1].tolist())
    method = SimpleITK.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricFixedMask(_image(room.astype(np.uint8), spacing))
    method.SetMetricMovingMask(_image(seen.astype(np.uint8), spacing))
    share = _SAMPLES / np.count_nonzero(room)
    if share < 0.7:  # sampling moves points at random within their voxels, a noise that small pairs feel
        method.SetMetricSamplingStrategy(method.REGULAR)
        method.SetMetricSamplingPercentagePerLevel([1.0, share], seed=1)
    method.SetInterpolator(SimpleITK.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=3.0, minStep=0.05, numberOfIterations=_STEPS, relaxationFactor=0.6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([float(spacing.max()), 0.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(transform, inPlace=True)
    if move:
        try:
            with one_thread():
                method.Execute(fixed, moving)
        except RuntimeError:  # all sampled points lie outside the target: the two do not overlap
            return None

    moved = SimpleITK.GetArrayFromImage(SimpleITK.Resample(moving, fixed, transform))
    inside = room & (SimpleITK.GetArrayFromImage(SimpleITK.Resample(measured, fixed, transform)) > 0.999)
    if np.count_nonzero(inside) < _SMALLEST_SHARE * np.count_nonzero(body):
        return None
    shared = information(source[inside], moved[inside])
    if shared <= 0:  # one of them is the same all over: no place is better than another
        return None
    places = np.argwhere(body)[:: max(1, np.count_nonzero(body) // 500)] * spacing
    shifts = np.array([transform.TransformPoint(place[::-1].tolist())[::-1] for place in places]) - places
    middle = np.array(transform.TransformPoint(centre[::-1].tolist())[::-1]) - centre
    direction = np.insert(middle, [axis - n for n, axis in enumerate(flat)], 0.0)
    right, front, up = (float(value) for value in direction)
    return Fit(
        shared,
        float(np.linalg.norm(shifts, axis=1).mean()),
        (right, front, up),
    )


def _flat(pair: CoarsePair) -> list[int]:
    return [axis for axis, size in enumerate(pair.source.shape) if size < _THINNEST]


def _without(array: NDArray[Any], flat: list[int]) -> NDArray[Any]:
    """The middle slice along each flat axis."""
    return array[tuple(size // 2 if axis in flat else slice(None) for axis, size in enumerate(array.shape))]


def _image(array: NDArray[Any], spacing: NDArray[np.float64]) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing(spacing[::-1].tolist())
    return image
