"""Small changes of a source that leave the anatomy as it is: what no result should hang on.

Two scans of one patient differ by as much: in the scanner's calibration, in the kernel of the reconstruction,
in where the patient lies. Each change is made to the volume itself, before anything prepares it, and what was
moved can be moved back, so that results are compared in one frame.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ct2mri.data.plan import Plan
from ct2mri.data.volume import Volume

HU_SHIFT = 20.0
"""HU: an error of calibration, several times what the daily check of a scanner allows for water."""
KERNEL_MM = 0.5
"""Standard deviation in mm of the blur by which a smoother kernel differs."""
ONE_VOXEL = 1

SEED = "seed"

_LARGEST_VARIANCE = 0.25
"""Voxels², of one pass of blur: up to here the weights fall from the middle to the sides."""


@dataclass(frozen=True)
class Change:
    """One change, and the way back.

    Attributes:
        name: in files.
        words: in tables and sentences, after "with".
        apply: changes a source volume.
        undo: brings a result on the changed source's grid back to where it lies on the unchanged one.
        lost: planes at the end of each axis that `undo` cannot bring back.
    """

    name: str
    words: str
    apply: Callable[[Volume], Volume]
    undo: Callable[[Volume], Volume]
    lost: int = 0

    def seen(self, shape: tuple[int, int, int]) -> NDArray[np.bool_]:
        """The voxels that can be compared, bool (i, j, k)."""
        seen = np.ones(shape, dtype=bool)
        for axis in _thick(shape):
            np.moveaxis(seen, axis, 0)[shape[axis] - self.lost :] = False
        return seen


def changes_for(plan: Plan) -> list[Change]:
    """The changes that mean something for the sources of a plan: HU are shifted only where there are HU."""
    found = [Change(SEED, "another seed of the noise", _same, _same)]
    if plan.source_units == "HU":
        found += [
            Change("hu_higher", f"HU {HU_SHIFT:g} higher", _shifted(HU_SHIFT), _same),
            Change("hu_lower", f"HU {HU_SHIFT:g} lower", _shifted(-HU_SHIFT), _same),
        ]
    return [
        *found,
        Change("smoother", "a smoother kernel", smoother, _same),
        Change("sharper", "a sharper kernel", sharper, _same),
        Change(
            "moved",
            "the patient moved by one voxel",
            lambda volume: moved(volume, ONE_VOXEL),
            lambda volume: moved(volume, -ONE_VOXEL),
            ONE_VOXEL,
        ),
    ]


def smoother(volume: Volume) -> Volume:
    """As by a smoother kernel: blurred by `KERNEL_MM` in the axial plane.

    By three voxels' weighted means, as often as it takes, whose variances add up to that of the blur: a
    sampled Gaussian narrower than a voxel would do nothing.
    """
    across = next(axis for axis, code in enumerate(volume.orientation) if code in "IS")
    array = volume.array
    for axis, edge in enumerate(volume.spacing):
        if axis == across:
            continue
        variance = (KERNEL_MM / edge) ** 2
        passes = int(np.ceil(variance / _LARGEST_VARIANCE))
        side = variance / passes / 2
        for _ in range(passes):
            array = ndimage.correlate1d(array, [side, 1 - 2 * side, side], axis=axis, mode="nearest")
    return volume.with_array(array)


def sharper(volume: Volume) -> Volume:
    """As by a sharper kernel: what `smoother` takes away is added once more."""
    return volume.with_array(2 * volume.array - smoother(volume).array)


def moved(volume: Volume, voxels: int) -> Volume:
    """The image moved along every axis by some voxels, on the grid as it was; border planes are repeated."""
    array = volume.array
    for axis in _thick(volume.spatial_shape):
        array = np.take(array, np.arange(array.shape[axis]) - voxels, axis=axis, mode="clip")
    return volume.with_array(array)


def _shifted(hu: float) -> Callable[[Volume], Volume]:
    return lambda volume: volume.with_array(volume.array + np.float32(hu))


def _same(volume: Volume) -> Volume:
    return volume


def _thick(shape: tuple[int, int, int]) -> list[int]:
    """The axes along which there is somewhere to move to."""
    return [axis for axis, size in enumerate(shape) if size > 1]
