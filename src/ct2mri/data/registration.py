"""Rigid registration of one volume of a patient to another, of any modalities, and how far to trust it.

Mattes mutual information (Mattes et al., IEEE Transactions on Medical Imaging 2003) on a pyramid of working
grids, from several starts. The moving volume's voxels stay as they are: only its affine changes.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from ct2mri.data.alignment import View, agreement, surface_points
from ct2mri.data.plausibility import require_finite
from ct2mri.data.registration_pyramid import Matrix, body_centre, pyramid, world
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError

__all__ = ["Registration", "RegistrationQuality", "register_rigid"]

_STARTS_PER_ANCHOR = 3
_START_MM, _START_DEG = 12.0, 8.0  # greatest shift and turn of a start away from its anchor, per axis
_REFINED = 4  # best starts that go on to the finer levels
_UPPER_END_MM = 100.0  # of a body, by whose middle two upper ends are laid on one another
_FEWEST_SLICES = 4

# Beyond these a result is told as doubtful.
_AGREEMENT_MM = 2.0
_EDGES_MM = 3.0
_LEAST_OVERLAP = 0.3
_LARGEST_TURN_DEG = 30.0
# Any move of a pair that came on one grid blurs it and costs a little of its mutual information: down to this
# share, a loss is no reason to doubt where the move was hardly one.
_MUTUAL_INFORMATION_KEPT = 0.95
_HARDLY_MM, _HARDLY_DEG = 2.0, 1.0
_MIRROR_GAIN = 1.02  # of the score; a patient's two halves are alike, but not to the last hundredth


@dataclass(frozen=True)
class RegistrationQuality:
    """What is known of how good a registration is; mutual information alone proves nothing.

    Attributes:
        edge_distance_mm: mean distance of the two outlines of the body; None where too little is seen.
        edge_distance_before_mm: the same before.
        start_agreement_mm: greatest distance, as a mean over the body's surface (where none is seen, over the
            body), between the result and what the other best starts came to.
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
    stages = pyramid(fixed, moving, fixed_mask)
    coarse, judge = stages[0], stages[min(1, len(stages) - 1)]
    starts = _starts(coarse.fixed, coarse.moving, rng)
    found = [stages[0].climb(start, _sampling_seed(rng)) for start in starts]
    best = sorted(found, key=judge.score, reverse=True)[:_REFINED]
    for stage in stages[1:]:
        best = [stage.climb(matrix, _sampling_seed(rng)) for matrix in best]
    best.sort(key=judge.score, reverse=True)

    matrix = np.asarray(np.linalg.inv(best[0]), dtype=np.float64)
    surface = surface_points(judge.fixed)
    if not len(surface):  # a body that fills its field of view shows none
        surface = world(judge.fixed, np.argwhere(judge.fixed.body))
    apart = max(_distance(best[0], other, surface) for other in best[1:])
    moved = Volume(moving.array, matrix @ moving.affine, dict(moving.metadata))
    turned = [stage.turned_over() for stage in dict.fromkeys((coarse, judge))]
    mirrored = best[0]
    for stage in turned:
        mirrored = stage.climb(mirrored, _sampling_seed(rng))
    fits_mirrored = turned[-1].score(mirrored) > _MIRROR_GAIN * judge.score(best[0])

    before, after = agreement(fixed, moving), agreement(fixed, moved)
    quality = RegistrationQuality(
        edge_distance_mm=after.edge_distance_mm,
        edge_distance_before_mm=before.edge_distance_mm,
        start_agreement_mm=apart,
        starts=len(starts),
        mutual_information_before=before.mutual_information,
        mutual_information_after=after.mutual_information,
        translation_mm=_distance(matrix, np.eye(4), body_centre(judge.moving)[None]),
        rotation_deg=float(np.degrees(Rotation.from_matrix(matrix[:3, :3]).magnitude())),
    )
    doubts = _doubts(quality, judge.overlap(best[0]), fits_mirrored)
    quality = replace(quality, warnings=doubts)
    return Registration(moved, matrix, quality)


def _starts(fixed: View, moving: View, rng: np.random.Generator) -> list[Matrix]:
    """Motions to start from: around three guesses of how the bodies lie to one another.

    The guesses are translations alone, and the turns about them small: no start is upside down, and none can
    be a mirror image, since rotations are all that is ever put together here.
    """
    points = [world(shown, np.argwhere(shown.body)) for shown in (fixed, moving)]
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


def _doubts(quality: RegistrationQuality, overlap: float, fits_mirrored: bool) -> list[str]:
    """A sentence for each reason to doubt a registration.

    Args:
        quality: what was measured.
        overlap: share of the smaller body that both volumes show.
        fits_mirrored: whether the moving volume fits better with its left for its right.
    """
    look = "look at its picture before using the pair"
    apart, edges, turn = quality.start_agreement_mm, quality.edge_distance_mm, quality.rotation_deg
    before, after = quality.mutual_information_before, quality.mutual_information_after
    doubts = []
    if fits_mirrored:
        doubts.append(
            "The volumes fit better with left and right of one of them swapped: one may be mirrored, so "
            "compare them with the original images."
        )
    if apart > _AGREEMENT_MM:
        doubts.append(
            f"The best starts of the registration end {apart:.1f} mm apart at the body's surface "
            f"(doubtful above {_AGREEMENT_MM:g} mm); {look}."
        )
    if edges is None:
        doubts.append(
            "Too little of the body's outline is seen in both volumes to measure how well they lie on one "
            f"another; {look}."
        )
    elif edges > _EDGES_MM:
        doubts.append(
            f"After registration the outlines of the body lie {edges:.1f} mm apart (doubtful above "
            f"{_EDGES_MM:g} mm); {look}."
        )
    stayed = quality.translation_mm < _HARDLY_MM and turn < _HARDLY_DEG
    if after < (_MUTUAL_INFORMATION_KEPT if stayed else 1.0) * before:
        doubts.append(
            f"Registration lowered the mutual information from {before:.3f} to {after:.3f}; the pair as it "
            f"came may lie better, so {look}."
        )
    if overlap < _LEAST_OVERLAP:
        doubts.append(
            f"After registration the volumes share {100 * overlap:.0f} % of the smaller body; {look}."
        )
    if turn > _LARGEST_TURN_DEG:
        doubts.append(
            f"Registration turned the volume by {turn:.0f}°, more than patients turn between scans; {look}."
        )
    return doubts
