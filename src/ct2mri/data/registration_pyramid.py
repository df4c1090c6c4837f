"""The pyramid of a registration: a pair at several sizes of voxel, and the climb up its mutual information.

Motions are 4×4 matrices, float64, that take RAS mm of the fixed volume to RAS mm of the moving one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from scipy import ndimage

from ct2mri.data.alignment import View, information, view, working_grid
from ct2mri.data.geometry import Box, resample, to_sitk
from ct2mri.data.volume import Grid, Volume
from ct2mri.errors import RequestError

Matrix = NDArray[np.float64]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let SimpleITK work with one thread meanwhile: with several the order of sums, and so rounding, varies.

    A filter's own number of threads is not passed on to the metric inside a registration.
    """
    usual = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(usual)


@dataclass(frozen=True)
class Level:
    """One level of the pyramid.

    Attributes:
        edge_mm: least voxel edge.
        samples: voxels of the fixed volume that are looked at.
        first_step_mm, last_step_mm: of the optimiser, as motions of the image; it ends below the last one.
        relaxation: what a step is multiplied by where the slope turns back. At much less than 0.9 the climb
            ends on a long ridge before its top.
    """

    edge_mm: float
    samples: int
    first_step_mm: float
    last_step_mm: float
    relaxation: float


_LEVELS = (
    Level(8.0, 15_000, 4.0, 0.2, 0.9),
    Level(4.0, 30_000, 1.5, 0.05, 0.9),
    Level(2.0, 50_000, 0.5, 0.02, 0.8),
)
_STEPS = 150  # greatest number at one level; the step's length ends it before
_BINS = 32
_ROOM_MM = 12.0  # around the body, so that the skin's outer side counts
_LPS = np.diag([-1.0, -1.0, 1.0])  # SimpleITK's world, and the way back


@dataclass(frozen=True, eq=False)
class Stage:
    """Both volumes at one level of the pyramid.

    Attributes:
        level: its settings.
        fixed, moving: the volumes.
        near: bool (i, j, k), the voxels of the fixed volume that count.
        images: the two volumes and the masks of what counts in them, for SimpleITK.
    """

    level: Level
    fixed: View
    moving: View
    near: NDArray[np.bool_]
    images: tuple[SimpleITK.Image, SimpleITK.Image, SimpleITK.Image, SimpleITK.Image]

    def climb(self, motion: Matrix, seed: int) -> Matrix:
        """The motion of greatest mutual information up the hill from a start; the start itself if lost."""
        transform = SimpleITK.Euler3DTransform()
        centre = _LPS @ body_centre(self.fixed)
        transform.SetCenter(centre.tolist())
        rotation = _LPS @ motion[:3, :3] @ _LPS
        transform.SetMatrix(rotation.ravel().tolist(), 1e-6)
        transform.SetTranslation((_LPS @ motion[:3, 3] + rotation @ centre - centre).tolist())

        fixed, moving, fixed_mask, moving_mask = self.images
        level = self.level
        method = SimpleITK.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(_BINS)
        method.SetMetricFixedMask(fixed_mask)
        if not self.moving.seen.all():
            method.SetMetricMovingMask(moving_mask)
        share = level.samples / np.count_nonzero(self.near)
        if share < 1:
            method.SetMetricSamplingStrategy(method.RANDOM)
            method.SetMetricSamplingPercentage(share, seed)
        method.SetInterpolator(SimpleITK.sitkLinear)
        # With scales by physical shift a step of length 1 moves the image by about 1 mm.
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetOptimizerAsRegularStepGradientDescent(
            level.first_step_mm, level.last_step_mm, _STEPS, level.relaxation, 1e-8
        )
        method.SetInitialTransform(transform, inPlace=True)
        try:
            with one_thread():
                method.Execute(fixed, moving)
        except RuntimeError:  # no voxel of one volume meets the other: this start is lost
            return motion
        result = np.eye(4)
        rotation = np.array(transform.GetMatrix()).reshape(3, 3)
        result[:3, :3] = _LPS @ rotation @ _LPS
        result[:3, 3] = _LPS @ (np.array(transform.GetTranslation()) + centre - rotation @ centre)
        return result

    def turned_over(self) -> "Stage":
        """The same with the moving volume's left for its right, about the middle of its body."""
        affine = np.diag([-1.0, 1.0, 1.0, 1.0])
        affine[0, 3] = 2 * body_centre(self.moving)[0]
        moving = replace(self.moving, grid=Grid(self.moving.grid.shape, affine @ self.moving.grid.affine))
        return replace(self, moving=moving, images=_images(self.fixed, moving, self.near))

    def overlap(self, motion: Matrix) -> float:
        """Share of the smaller of the two bodies that both volumes show."""
        seen = _sampled(self.moving.seen, self.moving.grid, self.fixed.grid, motion, fill=0)
        shown = np.count_nonzero((seen > 0.5) & self.fixed.body) * _voxel_mm3(self.fixed.grid)
        bodies = [np.count_nonzero(one.body) * _voxel_mm3(one.grid) for one in (self.fixed, self.moving)]
        return float(min(1.0, shown / min(bodies)))

    def score(self, motion: Matrix) -> float:
        """Mutual information in nats, less where the overlap is in part: a small one fits too easily."""
        unseen = np.where(self.moving.seen, self.moving.levels, -100)
        sampled = _sampled(unseen, self.moving.grid, self.fixed.grid, motion, fill=-100)
        counted = self.near & (sampled >= 0)
        if not counted.any():
            return 0.0
        return information(self.fixed.levels[counted], sampled[counted]) * self.overlap(motion)


def pyramid(fixed: Volume, moving: Volume, fixed_mask: Volume | None) -> list[Stage]:
    """The pyramid, coarse to fine; the bodies are found once, on a grid of 4 mm."""
    bodies = []
    for name, volume, given in (("fixed", fixed, fixed_mask), ("moving", moving, None)):
        shown = view(volume, working_grid(volume, 4.0), given)
        if not shown.body.any():
            raise RequestError(
                f"No body was found in the {name} volume, so there is nothing to register; give a volume "
                "that shows one, or a mask that is not empty."
            )
        bodies.append(Volume(shown.body.astype(np.float32), shown.grid.affine))
    stages: list[Stage] = []
    for level in _LEVELS:
        first, second = (
            view(volume, working_grid(volume, level.edge_mm), body)
            for volume, body in zip((fixed, moving), bodies, strict=True)
        )
        first = _around_body(first)
        if stages and (first.grid.shape, second.grid.shape) == (
            stages[-1].fixed.grid.shape,
            stages[-1].moving.grid.shape,
        ):
            break  # the volumes themselves are no finer
        distance = ndimage.distance_transform_edt(~first.body, sampling=first.grid.spacing)
        near = (distance <= _ROOM_MM) & first.seen
        stages.append(Stage(level, first, second, near, _images(first, second, near)))
    return stages


def _images(
    fixed: View, moving: View, near: NDArray[np.bool_]
) -> tuple[SimpleITK.Image, SimpleITK.Image, SimpleITK.Image, SimpleITK.Image]:
    """Both volumes, and 8-bit masks of the voxels that count in them."""
    first, second, first_mask, second_mask = (
        to_sitk(Volume(array.astype(np.float32), shown.grid.affine))
        for array, shown in (
            (fixed.levels, fixed),
            (moving.levels, moving),
            (near, fixed),
            (moving.seen, moving),
        )
    )
    return first, second, first_mask > 0.5, second_mask > 0.5


def _around_body(shown: View) -> View:
    """A view cut down to the body and what is near it."""
    i, j, k = (int(np.ceil(_ROOM_MM / edge)) + 1 for edge in shown.grid.spacing)
    box = Box.around(shown.body, (i, j, k))
    here = tuple(slice(low, high) for low, high in zip(box.lower, box.upper, strict=True))
    affine = shown.grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.array(box.lower)
    return View(Grid(box.shape, affine), shown.levels[here], shown.seen[here], shown.body[here])


def _sampled(array: NDArray[Any], grid: Grid, onto: Grid, motion: Matrix, fill: float) -> NDArray[np.float32]:
    """An array of the moving volume's grid sampled where a motion takes the fixed volume's voxels."""
    moved = Volume(array.astype(np.float32), np.linalg.inv(motion) @ grid.affine)
    return resample(moved, onto, fill=fill).array


def _voxel_mm3(grid: Grid) -> float:
    return float(abs(np.linalg.det(grid.affine[:3, :3])))


def body_centre(shown: View) -> Matrix:
    """Centre of the body in world mm (3,)."""
    centre: Matrix = world(shown, np.argwhere(shown.body)).mean(axis=0)
    return centre


def world(shown: View, indices: NDArray[Any]) -> Matrix:
    """World coordinates in mm (n, 3) of voxel indices (n, 3) of a view."""
    where: Matrix = indices @ shown.grid.affine[:3, :3].T + shown.grid.affine[:3, 3]
    return where
