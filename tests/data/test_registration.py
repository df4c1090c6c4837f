import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ct2mri import load_volume
from ct2mri.data.alignment import surface_points, view, working_grid
from ct2mri.data.phantom import draw_phantom
from ct2mri.data.registration import register_rigid
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError


def motion_about(centre: np.ndarray, turn: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """A rotation vector in degrees about a centre, then a shift in mm: 4×4."""
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_rotvec(turn, degrees=True).as_matrix()
    motion[:3, 3] = centre - motion[:3, :3] @ centre + shift
    return motion


def random_motion(seed: int, centre: np.ndarray) -> np.ndarray:
    """A motion of the full 10° and 15 mm along random directions."""
    turn, shift = (v / np.linalg.norm(v) for v in np.random.default_rng(seed).normal(size=(2, 3)))
    return motion_about(centre, 10 * turn, 15 * shift)


def surface(volume: Volume) -> np.ndarray:
    return surface_points(view(volume, working_grid(volume, 4.0)))


def distances(motion: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points @ motion[:3, :3].T + motion[:3, 3] - points, axis=1)


def moved_by(motion: np.ndarray, volume: Volume) -> Volume:
    return Volume(volume.array, motion @ volume.affine, dict(volume.metadata))


def turned_axes(volume: Volume) -> Volume:
    """The same voxels in the same places, stored along other axes."""
    affine = volume.affine[:, [2, 0, 1, 3]].copy()
    array = volume.array.transpose(2, 0, 1)
    affine[:3, 3] += affine[:3, 1] * (array.shape[1] - 1)
    affine[:3, 1] *= -1
    return Volume(array[:, ::-1], affine, dict(volume.metadata))


@pytest.mark.parametrize(
    ("anatomy", "seed", "moving"),
    [
        ("head", 0, "mr"),
        ("pelvis", 5, "ct"),
        pytest.param("head", 5, "ct", marks=pytest.mark.slow),
        pytest.param("pelvis", 0, "mr", marks=pytest.mark.slow),
    ],
)
def test_known_motion_is_recovered(anatomy: str, seed: int, moving: str) -> None:
    phantom = draw_phantom(anatomy, seed, 5.0 if anatomy == "head" else 6.0)
    fixed, other = (phantom.ct, phantom.mr) if moving == "mr" else (phantom.mr, phantom.ct)
    points = surface(phantom.ct)
    motion = random_motion(seed, points.mean(axis=0))
    start = moved_by(motion, turned_axes(other))
    result = register_rigid(fixed, start)

    assert distances(motion, points).mean() > 9
    assert distances(result.matrix @ motion, points).mean() < 1.5
    rotation = result.matrix[:3, :3]
    assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(rotation) == pytest.approx(1)
    assert result.moved.array is start.array
    assert np.allclose(result.moved.affine, result.matrix @ start.affine)
    quality = result.quality
    assert quality.warnings == []
    assert quality.rotation_deg == pytest.approx(10, abs=0.7)
    assert quality.start_agreement_mm < 1.5
    assert quality.edge_distance_mm < 2.5 < quality.edge_distance_before_mm
    assert quality.mutual_information_after > 1.5 * quality.mutual_information_before
    assert json.loads(json.dumps(quality.to_json()))["starts"] == 9


@pytest.mark.slow
@pytest.mark.parametrize("anatomy", ["head", "pelvis"])
def test_no_motion_is_lost(anatomy: str) -> None:
    errors = []
    for case in range(20):
        phantom = draw_phantom(anatomy, (9, case), 3.0)
        points = surface(phantom.ct)
        motion = random_motion(case, points.mean(axis=0))
        result = register_rigid(phantom.ct, moved_by(motion, phantom.mr), seed=case)
        errors.append(distances(result.matrix @ motion, points).mean())
    assert np.median(errors) < 1.5
    assert max(errors) < 5, "lost"


def test_the_same_seed_gives_the_same_bits() -> None:
    phantom = draw_phantom("head", 1, 8.0)
    start = moved_by(random_motion(1, np.zeros(3)), phantom.mr)
    first, again = (register_rigid(phantom.ct, start, seed=3) for _ in range(2))
    assert np.array_equal(first.matrix, again.matrix)
    assert first.quality == again.quality


def test_a_pair_that_lies_well_stays_and_is_not_doubted() -> None:
    phantom = draw_phantom("head", 11, spacing=4.0)
    registration = register_rigid(phantom.ct, phantom.mr, seed=0)
    assert distances(registration.matrix, surface(phantom.ct)).max() < 1.0
    assert registration.quality.warnings == []


def test_another_frame_of_reference() -> None:
    """Headers half a metre apart: centres and upper ends of the bodies are starts as well."""
    phantom = draw_phantom("pelvis", 2, 8.0)
    points = surface(phantom.ct)
    motion = motion_about(points.mean(axis=0), np.array([4.0, -5.0, 3.0]), np.array([300.0, -250.0, 500.0]))
    result = register_rigid(phantom.ct, moved_by(motion, phantom.mr))
    assert distances(result.matrix @ motion, points).mean() < 1.5
    assert result.quality.edge_distance_before_mm is None
    assert result.quality.mutual_information_before == 0


@pytest.mark.parametrize("anatomy", ["head", pytest.param("pelvis", marks=pytest.mark.slow)])
def test_a_mirrored_pair_is_told_and_not_mirrored_back(anatomy: str) -> None:
    phantom = draw_phantom(anatomy, 0, 6.0)
    mirrored = phantom.mr.with_array(phantom.mr.array[::-1])
    result = register_rigid(phantom.ct, mirrored)
    assert np.linalg.det(result.matrix[:3, :3]) == pytest.approx(1)
    assert any("mirrored" in warning for warning in result.quality.warnings)


@pytest.mark.parametrize(
    "case",
    ["upside down", *(pytest.param(c, marks=pytest.mark.slow) for c in ("noise", "pelvis", "another head"))],
)
def test_a_hopeless_pair_is_told(case: str) -> None:
    head = draw_phantom("head", 0, 6.0)
    if case == "noise":
        shape = head.mr.array.shape
        moving = head.mr.with_array(np.abs(np.random.default_rng(0).normal(0, 300, shape)))
    elif case == "upside down":
        moving = head.mr.with_array(head.mr.array[:, ::-1, ::-1])
    elif case == "pelvis":
        moving = draw_phantom("pelvis", 0, 6.0).mr
    else:  # one of another shape: heads that are alike fit one another, as docs/data.md says
        moving, head = head.mr, draw_phantom("head", 3, 6.0)
    assert register_rigid(head.ct, moving).quality.warnings


def test_what_cannot_be_registered_is_refused() -> None:
    head = draw_phantom("head", 0, 8.0)
    with pytest.raises(RequestError, match="needs at least 4 along every axis"):
        register_rigid(head.ct, Volume(head.mr.array[:, :, :3], head.mr.affine))
    with pytest.raises(RequestError, match="NaN or infinite"):
        register_rigid(head.ct.with_array(np.full_like(head.ct.array, np.nan)), head.mr)
    with pytest.raises(RequestError, match="No body was found in the moving volume"):
        register_rigid(head.ct, head.mr.with_array(np.zeros_like(head.mr.array)))
    with pytest.raises(RequestError, match="No body was found in the fixed volume"):
        empty = head.ct.with_array(np.zeros_like(head.ct.array))
        register_rigid(head.ct, head.mr, fixed_mask=empty)


def test_a_body_that_fills_its_field_of_view_is_registered_all_the_same() -> None:
    """No surface of it is seen then, on which to tell how far starts end apart."""
    head = draw_phantom("head", 0, 6.0)
    middle = [n // 2 for n in head.ct.spatial_shape]
    affine = head.ct.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ (np.array(middle) - 4)
    inside = tuple(slice(n - 4, n + 4) for n in middle)
    quality = register_rigid(Volume(np.maximum(head.ct.array[inside], -50), affine), head.mr).quality
    assert quality.start_agreement_mm >= 0 and quality.edge_distance_mm is None
    json.dumps(quality.to_json(), allow_nan=False)
    assert any("Too little of the body's outline" in warning for warning in quality.warnings)


def test_only_the_given_mask_counts() -> None:
    """A large box of tissue beside the head moves with neither volume; a mask leaves it out."""
    head = draw_phantom("head", 3, 6.0)
    points = surface(head.ct)
    body = view(head.ct, working_grid(head.ct, 6.0))
    motion = motion_about(points.mean(axis=0), np.array([3.0, 4.0, -3.0]), np.array([6.0, -5.0, 4.0]))
    mask = Volume(body.body.astype(np.float32), body.grid.affine)
    result = register_rigid(head.ct, moved_by(motion, head.mr), fixed_mask=mask)
    assert distances(result.matrix @ motion, points).mean() < 1.5


def test_starts_agree_on_real_averages(shared_data: Path) -> None:
    """Averages of different people: their identity is no truth, but from all starts the end is the same."""
    ct, mr = (load_volume(shared_data / "head_templates" / f"{name}.nii.gz") for name in ("ct", "mr"))
    half = [Volume(v.array[::2, ::2, ::2], v.affine @ np.diag([2, 2, 2, 1.0]), v.metadata) for v in (ct, mr)]
    points = surface(half[0])
    motion = random_motion(0, points.mean(axis=0))
    result = register_rigid(half[0], moved_by(motion, half[1]))
    assert result.quality.start_agreement_mm < 2
    assert result.quality.warnings == []
    # Average heads of either kind were laid on one another: the end is near the identity, not at it.
    assert distances(result.matrix @ motion, points).mean() < 5


@pytest.mark.slow
def test_starts_agree_on_real_averages_in_full(shared_data: Path) -> None:
    ct, mr = (load_volume(shared_data / "head_templates" / f"{name}.nii.gz") for name in ("ct", "mr"))
    points = surface(ct)
    ends = []
    for seed in range(4):
        motion = random_motion(seed, points.mean(axis=0))
        result = register_rigid(ct, moved_by(motion, mr), seed=seed)
        assert result.quality.warnings == []
        ends.append(result.matrix @ motion)
    for end in ends[1:]:
        assert distances(np.linalg.inv(ends[0]) @ end, points).mean() < 1.0
