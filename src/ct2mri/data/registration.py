"""Rigid registration of one volume of a patient to another, of any modalities, and how far to trust it.

Mattes mutual information (Mattes et al., IEEE Transactions on Medical Imaging 2003) on a pyramid of working
grids, from several starts. The moving volume's voxels stay as they are: only its affine changes.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ct2mri.data.alignment import (
    View,
    edge_distance_mm,
    information,
    mutual_information,
    surface_points,
    view,
    working_grid,
)
from ct2mri.data.geometry import Box, resample, to_sitk
from ct2mri.data.plausibility import require_finite
from ct2mri.data.volume import Grid, Volume
from ct2mri.errors import RequestError

__all__ = ["Registration", "RegistrationQuality", "edge_distance_mm", "mutual_information", "register_rigid"]

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class _Level:
    """One level of the pyramid.

    Attributes:
        edge_mm: least voxel edge.
        samples: voxels of the fixed volume that are looked at.
        first_step_mm, last_step_mm: of the optimiser, as motions of the image; it ends below the last one.
        steps: greatest number of steps.
    """

    edge_mm: float
    samples: int
    first_step_mm: float
    last_step_mm: float
    steps: int


_LEVELS = (
    _Level(8.0, 15_000, 4.0, 0.2, 60),
    _Level(4.0, 30_000, 1.5, 0.05, 60),
    _Level(2.0, 60_000, 0.5, 0.02, 60),
)
_BINS = 32
_STARTS_PER_ANCHOR = 3
_START_MM, _START_DEG = 12.0, 8.0  # greatest shift and turn of a start away from its anchor, per axis
_REFINED = 4  # best starts that go on to the finer levels
_ROOM_MM = 12.0  # around the body, so that the skin's outer side counts
_UPPER_END_MM = 100.0  # of a body, by whose middle two upper ends are laid on one another
_FEWEST_SLICES = 4
_LPS = np.diag([-1.0, -1.0, 1.0])  # SimpleITK's world, and the way back

# Beyond these a result is told as doubtful.
_AGREEMENT_MM = 2.0
_EDGES_MM = 3.0
_LEAST_OVERLAP = 0.3
_LARGEST_TURN_DEG = 30.0


@dataclass(frozen=True)
class RegistrationQuality:
    """What is known of how good a registration is; mutual information alone proves nothing.

    Attributes:
        edge_distance_mm: mean distance of the two outlines of the body; None where too little is seen.
        edge_distance_before_mm: the same before.
        start_agreement_mm: greatest distance, as a mean over the body's surface, between the result and what
            the other best starts came to.
        starts: starts that were tried.
        mutual_information_before, mutual_information_after: in nats, near the fixed volume's body.
        translation_mm: length of the motion of the body's centre.
        rotation_deg: angle of the rotation.
        warnings: a sentence for each reason to doubt the result.
    """

    edge_distance_mm: float | None
    edge_distance_before_mm: float | None
    start_agreement_mm: float
    starts: int
    mutual_information_before: float
    mutual_information_after: float
    translation_mm: float
    rotation_deg: float
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The fields, lengths and angles rounded to three places."""
        return {
            name: round(value, 3) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True, eq=False)
class Registration:
    """A rigid registration.

    Attributes:
        moved: the moving volume with a new affine; its voxels are untouched.
        matrix: 4×4, float64, RAS mm → RAS mm; `moved.affine = matrix @ moving.affine`.
        quality: how far to trust it.
    """

    moved: Volume
    matrix: Matrix
    quality: RegistrationQuality


def register_rigid(
    fixed: Volume, moving: Volume, *, seed: int = 0, fixed_mask: Volume | None = None
) -> Registration:
    """Find the rigid motion that brings one volume of a patient onto another.

    Starts lie around the headers' own positions, around matching centres and around matching upper ends of
    the two bodies. The same volumes and seed give the same result, bit for bit.

    Args:
        fixed: the volume that stays; HU or any values that are low in air.
        moving: the volume to move.
        seed: of the starts and of the voxels looked at.
        fixed_mask: the body (above 0.5) in the fixed volume, on any grid; found by threshold where not given.

    Raises:
        RequestError: values that are not finite, fewer than 4 slices along an axis, or no body in a volume.
    """
    for name, volume in (("fixed", fixed), ("moving", moving)):
        require_finite(volume)
        if min(volume.spatial_shape) < _FEWEST_SLICES:
            raise RequestError(
                f"The {name} volume has {' × '.join(map(str, volume.spatial_shape))} voxels; registration "
                f"needs at least {_FEWEST_SLICES} along every axis, so prepare thinner ones without it."
            )
    rng = np.random.default_rng(seed)
    stages = _stages(fixed, moving, fixed_mask)
    coarse, judge = stages[0], stages[min(1, len(stages) - 1)]
    starts = _starts(coarse.fixed, coarse.moving, rng)
    found = [stages[0].climb(start, _sampling_seed(rng)) for start in starts]
    best = sorted(found, key=judge.score, reverse=True)[:_REFINED]
    for stage in stages[1:]:
        best = [stage.climb(matrix, _sampling_seed(rng)) for matrix in best]
    best.sort(key=judge.score, reverse=True)

    matrix = np.asarray(np.linalg.inv(best[0]), dtype=np.float64)
    surface = surface_points(judge.fixed)
    agreement = max(_distance(best[0], other, surface) for other in best[1:])
    moved = Volume(moving.array, matrix @ moving.affine, dict(moving.metadata))
    quality = _quality(fixed, moving, moved, judge, best[0], agreement, len(starts))
    return Registration(moved, matrix, quality)


@dataclass(frozen=True, eq=False)
class _Stage:
    """Both volumes at one level of the pyramid. Motions are 4×4 matrices, RAS mm of fixed → RAS mm of moving.

    Attributes:
        level: its settings.
        fixed, moving: the volumes.
        near: bool (i, j, k), the voxels of the fixed volume that count.
        images: the two volumes and the masks of what counts in them, for SimpleITK.
    """

    level: _Level
    fixed: View
    moving: View
    near: NDArray[np.bool_]
    images: tuple[SimpleITK.Image, SimpleITK.Image, SimpleITK.Image, SimpleITK.Image]

    def climb(self, motion: Matrix, seed: int) -> Matrix:
        """The motion of greatest mutual information up the hill from a start; the start itself if lost."""
        transform = SimpleITK.Euler3DTransform()
        centre = _LPS @ _centre(self.fixed)
        transform.SetCenter(centre.tolist())
        rotation = _LPS @ motion[:3, :3] @ _LPS
        transform.SetMatrix(rotation.ravel().tolist(), 1e-6)
        transform.SetTranslation((_LPS @ motion[:3, 3] + rotation @ centre - centre).tolist())

        fixed, moving, fixed_mask, moving_mask = self.images
        level = self.level
        method = SimpleITK.ImageRegistrationMethod()
        method.SetNumberOfThreads(1)  # the order of sums, and so their rounding, depends on it
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
            level.first_step_mm, level.last_step_mm, level.steps, relaxationFactor=0.6
        )
        method.SetInitialTransform(transform, inPlace=True)
        try:
            method.Execute(fixed, moving)
        except RuntimeError:  # no voxel of one volume meets the other: this start is lost
            return motion
        result = np.eye(4)
        rotation = np.array(transform.GetMatrix()).reshape(3, 3)
        result[:3, :3] = _LPS @ rotation @ _LPS
        result[:3, 3] = _LPS @ (np.array(transform.GetTranslation()) + centre - rotation @ centre)
        return result

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


def _stages(fixed: Volume, moving: Volume, fixed_mask: Volume | None) -> list[_Stage]:
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
    stages: list[_Stage] = []
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
        images = (
            to_sitk(Volume(first.levels, first.grid.affine)),
            to_sitk(Volume(second.levels, second.grid.affine)),
            _mask_image(near, first.grid),
            _mask_image(second.seen, second.grid),
        )
        stages.append(_Stage(level, first, second, near, images))
    return stages


def _around_body(shown: View) -> View:
    """A view cut down to the body and what is near it."""
    i, j, k = (int(np.ceil(_ROOM_MM / edge)) + 1 for edge in shown.grid.spacing)
    box = Box.around(shown.body, (i, j, k))
    here = tuple(slice(low, high) for low, high in zip(box.lower, box.upper, strict=True))
    affine = shown.grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.array(box.lower)
    return View(Grid(box.shape, affine), shown.levels[here], shown.seen[here], shown.body[here])


def _mask_image(mask: NDArray[np.bool_], grid: Grid) -> SimpleITK.Image:
    return to_sitk(Volume(mask.astype(np.float32), grid.affine)) > 0.5  # 8 bits, as a mask has to be


def _sampled(array: NDArray[Any], grid: Grid, onto: Grid, motion: Matrix, fill: float) -> NDArray[np.float32]:
    """An array of the moving volume's grid sampled where a motion takes the fixed volume's voxels."""
    moved = Volume(array.astype(np.float32), np.linalg.inv(motion) @ grid.affine)
    return resample(moved, onto, fill=fill).array


def _voxel_mm3(grid: Grid) -> float:
    return float(abs(np.linalg.det(grid.affine[:3, :3])))


def _centre(shown: View) -> Matrix:
    """Centre of the body in world mm (3,)."""
    centre: Matrix = _world(shown, np.argwhere(shown.body)).mean(axis=0)
    return centre


def _world(shown: View, indices: NDArray[Any]) -> Matrix:
    world: Matrix = indices @ shown.grid.affine[:3, :3].T + shown.grid.affine[:3, 3]
    return world


def _starts(fixed: View, moving: View, rng: np.random.Generator) -> list[Matrix]:
    """Motions to start from: around three guesses of how the bodies lie to one another.

    The guesses are translations alone, and the turns about them small: no start is upside down, and none can
    be a mirror image, since rotations are all that is ever put together here.
    """
    points = [_world(shown, np.argwhere(shown.body)) for shown in (fixed, moving)]
    upper = [where[where[:, 2] > where[:, 2].max() - _UPPER_END_MM] for where in points]
    tops = [np.r_[part[:, :2].mean(axis=0), part[:, 2].max()] for part in upper]
    centre = points[0].mean(axis=0)
    starts = []
    for shift in (np.zeros(3), points[1].mean(axis=0) - centre, tops[1] - tops[0]):
        for turn in range(_STARTS_PER_ANCHOR):
            angles, offset = rng.uniform(-1, 1, (2, 3)) * min(turn, 1)  # the first is the guess itself
            motion = np.eye(4)
            motion[:3, :3] = Rotation.from_euler("xyz", angles * _START_DEG, degrees=True).as_matrix()
            motion[:3, 3] = centre - motion[:3, :3] @ centre + shift + offset * _START_MM
            starts.append(motion)
    return starts


def _sampling_seed(rng: np.random.Generator) -> int:
    return int(rng.integers(1, 2**31))  # 0 would mean the clock to SimpleITK


def _distance(one: Matrix, other: Matrix, points: Matrix) -> float:
    """Mean distance in mm between where two motions take points (n, 3)."""
    difference = points @ (one - other)[:3, :3].T + (one - other)[:3, 3]
    return float(np.linalg.norm(difference, axis=1).mean())


def _quality(
    fixed: Volume, moving: Volume, moved: Volume, judge: _Stage, motion: Matrix, agreement: float, starts: int
) -> RegistrationQuality:
    edges_before, edges = (edge_distance_mm(fixed, volume) for volume in (moving, moved))
    before, after = (mutual_information(fixed, volume) for volume in (moving, moved))
    turn = float(np.degrees(Rotation.from_matrix(motion[:3, :3]).magnitude()))
    centre = _centre(judge.fixed)
    overlap = judge.overlap(motion)
    look = "look at its picture before using the pair"
    warnings = []
    if agreement > _AGREEMENT_MM:
        warnings.append(
            f"The best starts of the registration end {agreement:.1f} mm apart at the body's surface "
            f"(doubtful above {_AGREEMENT_MM:g} mm); {look}."
        )
    if edges is None:
        warnings.append(
            "Too little of the body's outline is seen in both volumes to measure how well they lie on one "
            f"another; {look}."
        )
    elif edges > _EDGES_MM:
        warnings.append(
            f"After registration the outlines of the body lie {edges:.1f} mm apart (doubtful above "
            f"{_EDGES_MM:g} mm); {look}."
        )
    if after < before:
        warnings.append(
            f"Registration lowered the mutual information from {before:.3f} to {after:.3f}; the pair as it "
            f"came may lie better, so {look}."
        )
    if overlap < _LEAST_OVERLAP:
        warnings.append(
            f"After registration the volumes share {100 * overlap:.0f} % of the smaller body; {look}."
        )
    if turn > _LARGEST_TURN_DEG:
        warnings.append(
            f"Registration turned the volume by {turn:.0f}°, more than patients turn between scans; {look}."
        )
    return RegistrationQuality(
        edge_distance_mm=edges,
        edge_distance_before_mm=edges_before,
        start_agreement_mm=agreement,
        starts=starts,
        mutual_information_before=before,
        mutual_information_after=after,
        translation_mm=_distance(motion, np.eye(4), centre[None]),
        rotation_deg=turn,
        warnings=warnings,
    )
