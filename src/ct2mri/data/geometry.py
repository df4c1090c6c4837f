"""Moving volumes between grids: orientation, resampling, crop and pad, each with its way back.

World coordinates of a landmark never change here; only which voxels sample them does.
"""

from dataclasses import dataclass
from typing import Any, Literal

import nibabel
import numpy as np
import SimpleITK
from numpy.typing import NDArray

from ct2mri.data.volume import Grid, Volume
from ct2mri.errors import RequestError

Interpolation = Literal["linear", "nearest", "bspline"]

_INTERPOLATORS = {
    "linear": SimpleITK.sitkLinear,
    "nearest": SimpleITK.sitkNearestNeighbor,
    "bspline": SimpleITK.sitkBSpline,
}

# DICOM, MetaImage and NRRD (through SimpleITK) count x and y towards left and posterior, NIfTI and
# `Volume` towards right and anterior.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def to_sitk(volume: Volume) -> SimpleITK.Image:
    """The volume as a float32 SimpleITK image: array (k, j, i), LPS coordinates, shear kept."""
    affine = LPS_TO_RAS @ volume.affine
    spacing = np.array(volume.spacing)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.array.transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    return image


def from_sitk(image: SimpleITK.Image, metadata: dict[str, Any] | None = None) -> Volume:
    """A three-dimensional scalar SimpleITK image (k, j, i), LPS, as a volume (i, j, k), RAS+."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    # A view into the image, which is gone after this, copied once into the other order.
    view = SimpleITK.GetArrayViewFromImage(image).transpose(2, 1, 0)
    array = np.array(view, dtype=np.float32, order="C")
    return Volume(array, LPS_TO_RAS @ affine, metadata or {})


@dataclass(frozen=True, eq=False)
class Reorientation:
    """A permutation and flips of voxel axes, with the way back.

    Attributes:
        source: the grid before.
        target: the grid after.
        axes: which source axis became each target axis.
        flips: whether each target axis runs against its source axis.
    """

    source: Grid
    target: Grid
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @property
    def _flipped(self) -> tuple[int, ...]:
        return tuple(axis for axis, flip in enumerate(self.flips) if flip)

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """Bring an array (i, j, k) on the source grid onto the target grid."""
        if array.shape != self.source.shape:
            raise RequestError(f"Expected an array of shape {self.source.shape}, got {array.shape}.")
        turned = array.transpose(self.axes)
        return np.ascontiguousarray(np.flip(turned, self._flipped))

    def undo_array(self, array: NDArray[Any]) -> NDArray[Any]:
        """Bring an array (i, j, k) on the target grid back onto the source grid."""
        if array.shape != self.target.shape:
            raise RequestError(f"Expected an array of shape {self.target.shape}, got {array.shape}.")
        turned = np.flip(array, self._flipped)
        return np.ascontiguousarray(turned.transpose(np.argsort(self.axes)))

    def undo(self, volume: Volume) -> Volume:
        """Bring a volume on the target grid back: the source's very affine, every voxel where it was."""
        if not volume.grid.matches(self.target):
            raise RequestError(
                f"Only a volume on the reoriented grid (shape {self.target.shape}) can be turned back, "
                f"got shape {volume.spatial_shape} or another place in space; undo later steps first."
            )
        return Volume(self.undo_array(volume.array), self.source.affine, dict(volume.metadata))


def reorientation_to_canonical(grid: Grid) -> Reorientation:
    """The permutation and flips that bring a grid's voxel axes nearest to right, anterior, superior."""
    # Row a: the world axis that voxel axis a lies nearest to, and its sign.
    nearest = nibabel.orientations.io_orientation(grid.affine)
    order = np.argsort(nearest[:, 0])
    axes = (int(order[0]), int(order[1]), int(order[2]))
    i, j, k = (bool(nearest[a, 1] < 0) for a in axes)
    flips = (i, j, k)
    target_to_source = np.zeros((4, 4))  # voxel indices of the target → voxel indices of the source
    target_to_source[3, 3] = 1
    for target_axis, (source_axis, flip) in enumerate(zip(axes, flips, strict=True)):
        target_to_source[source_axis, target_axis] = -1 if flip else 1
        target_to_source[source_axis, 3] = grid.shape[source_axis] - 1 if flip else 0
    shape = (grid.shape[axes[0]], grid.shape[axes[1]], grid.shape[axes[2]])
    return Reorientation(grid, Grid(shape, grid.affine @ target_to_source), axes, flips)


def to_canonical(volume: Volume) -> tuple[Volume, Reorientation]:
    """Bring voxel axes nearest to right, anterior, superior by permuting and flipping: no voxel changes."""
    turn = reorientation_to_canonical(volume.grid)
    return Volume(turn.apply(volume.array), turn.target.affine, dict(volume.metadata)), turn


def grid_with_spacing(grid: Grid, spacing: tuple[float, float, float]) -> Grid:
    """The grid of another voxel size that covers the same box.

    Directions and centre stay. Where no whole number of new voxels fills the box, one more is taken and
    the outer ones jut out evenly, by less than half a voxel: every new voxel centre lies inside the old
    box and every old one inside the new, so resampling there and back never meets the outside.

    Args:
        grid: the old grid.
        spacing: voxel edge lengths along i, j, k in mm.
    """
    old, new = np.array(grid.spacing), np.array(spacing, dtype=np.float64)
    if new.shape != (3,) or not np.isfinite(new).all() or (new <= 0).any():
        raise RequestError(f"A spacing is three positive lengths in mm, got {spacing}.")
    size = np.array(grid.shape)
    # The subtracted thousandth keeps rounding in headers (0.9999 for 1) from adding a voxel.
    i, j, k = (int(n) for n in np.maximum(1, np.ceil(size * old / new - 1e-3)))
    affine = grid.affine.copy()
    affine[:3, :3] *= new / old
    centre = grid.affine[:3, :3] @ ((size - 1) / 2) + grid.affine[:3, 3]
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array([i, j, k]) - 1) / 2)
    return Grid((i, j, k), affine)


def resample(volume: Volume, grid: Grid, *, interpolation: Interpolation = "linear", fill: float) -> Volume:
    """Sample a volume at the voxel centres of another grid; both may be oblique, flipped or sheared.

    Centres up to half a voxel beyond the outermost voxel centres, so within the box that the voxels fill,
    take the value of the edge; those farther out take `fill`.
    """
    # Working between voxel indices leaves SimpleITK no directions to reject: shear is only one more matrix.
    to_source = np.linalg.inv(volume.affine) @ grid.affine
    # SimpleITK's B-spline needs four voxels along every axis; repeating the edge is what lies beyond anyway.
    short = [max(0, 4 - n) if interpolation == "bspline" else 0 for n in volume.spatial_shape]
    array = np.pad(volume.array, [(n, n) for n in short], mode="edge") if any(short) else volume.array
    transform = SimpleITK.AffineTransform(3)
    transform.SetMatrix(to_source[:3, :3].ravel().tolist())
    transform.SetTranslation((to_source[:3, 3] + short).tolist())
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    del array
    sampled = SimpleITK.Resample(
        image,
        grid.shape,
        transform,
        _INTERPOLATORS[interpolation],
        (0.0, 0.0, 0.0),
        (1.0, 1.0, 1.0),
        np.eye(3).ravel().tolist(),
        float(fill),
        SimpleITK.sitkFloat32,
    )
    del image
    view = SimpleITK.GetArrayViewFromImage(sampled).transpose(2, 1, 0)
    return Volume(np.array(view, dtype=np.float32, order="C"), grid.affine, dict(volume.metadata))


@dataclass(frozen=True)
class Box:
    """Voxel indices from `lower` up to, not including, `upper`; indices outside the grid mean padding."""

    lower: tuple[int, int, int]
    upper: tuple[int, int, int]

    def __post_init__(self) -> None:
        if any(high <= low for low, high in zip(self.lower, self.upper, strict=True)):
            raise RequestError(f"A box needs at least one voxel along each axis, got {self}.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along i, j, k."""
        i, j, k = (high - low for low, high in zip(self.lower, self.upper, strict=True))
        return i, j, k

    @classmethod
    def around(cls, mask: NDArray[np.bool_], margin: tuple[int, int, int] = (0, 0, 0)) -> "Box":
        """The smallest box around a mask (i, j, k), grown by `margin` voxels where the array has them."""
        if not mask.any():
            raise RequestError("The mask is empty, so there is nothing to crop to; give one with voxels set.")
        lower, upper = [], []
        for axis, grow in enumerate(margin):
            inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
            lower.append(max(0, int(inside[0]) - grow))
            upper.append(min(mask.shape[axis], int(inside[-1]) + 1 + grow))
        return cls((lower[0], lower[1], lower[2]), (upper[0], upper[1], upper[2]))


def crop_or_pad(volume: Volume, box: Box, fill: float) -> Volume:
    """Cut a box out of a volume; voxels of the box that lie outside the volume get `fill`."""
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.array(box.lower)
    array = _place(volume.array, box.shape, tuple(-low for low in box.lower), fill)
    return Volume(array, affine, dict(volume.metadata))


def uncrop(volume: Volume, grid: Grid, fill: float) -> Volume:
    """Put a volume that was cropped or padded from `grid` back there; voxels it does not hold get `fill`.

    Raises:
        RequestError: the volume's voxels are not voxels of the grid.
    """
    to_grid = np.linalg.inv(grid.affine) @ volume.affine
    offset = np.rint(to_grid[:3, 3]).astype(int)
    shift = np.eye(4)
    shift[:3, 3] = offset
    if not volume.grid.matches(Grid(volume.spatial_shape, grid.affine @ shift)):
        raise RequestError(
            "The volume was not cut out of this grid (its voxels lie between the grid's voxels); "
            "resample it to the grid instead."
        )
    array = _place(volume.array, grid.shape, tuple(int(o) for o in offset), fill)
    return Volume(array, grid.affine, dict(volume.metadata))


def _place(
    array: NDArray[np.float32], shape: tuple[int, int, int], offset: tuple[int, ...], fill: float
) -> NDArray[np.float32]:
    """An array of `shape` filled with `fill` that shows `array` with its first voxel at `offset`."""
    result = np.full(shape, fill, dtype=np.float32)
    here, there = [], []
    for size, length, start in zip(shape, array.shape, offset, strict=True):
        first, last = max(0, start), min(size, start + length)
        if last <= first:
            return result
        here.append(slice(first, last))
        there.append(slice(first - start, last - start))
    result[tuple(here)] = array[tuple(there)]
    return result
