import numpy as np
import pytest

from ct2mri.data.alignment import agreement, in_hu, view, working_grid
from ct2mri.data.phantom import draw_phantom
from ct2mri.data.volume import Volume


def ball(centre: tuple[float, float, float], radius: float, modality: str, spacing: float = 2.5) -> Volume:
    """A ball of tissue, as CT or MR, in a box of 160 mm around the origin, its border half-way bright."""
    n = int(160 / spacing)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -spacing * (n - 1) / 2
    axis = spacing * (np.arange(n) - (n - 1) / 2)
    distance = np.sqrt(sum((axis.reshape(np.roll([-1, 1, 1], a)) - c) ** 2 for a, c in enumerate(centre)))
    tissue = np.clip((radius - distance) / spacing + 0.5, 0, 1)
    air, bright = (-1000.0, 40.0) if modality == "CT" else (10.0, 800.0)
    noise = np.random.default_rng(0).normal(0, 4, tissue.shape)
    return Volume(air + tissue * (bright - air) + noise, affine, {"modality": modality})


def test_edge_distance_of_a_shifted_ball() -> None:
    """A sphere moved by d along one axis lies |d · cos| away, in the mean d/2."""
    still = ball((0, 0, 0), 50, "CT")
    assert agreement(still, ball((0, 0, 0), 50, "MR")).edge_distance_mm < 1.0
    for shift in (8.0, 16.0):
        moved = ball((shift, 0, 0), 50, "MR")
        assert agreement(still, moved).edge_distance_mm == pytest.approx(shift / 2, abs=0.6)
        assert agreement(moved, still).edge_distance_mm == pytest.approx(shift / 2, abs=0.6)


def test_edge_distance_of_a_larger_ball() -> None:
    assert agreement(ball((0, 0, 0), 45, "CT"), ball((0, 0, 0), 55, "MR")).edge_distance_mm == pytest.approx(
        10, abs=1
    )


def test_no_outline_in_common_has_no_distance() -> None:
    still = ball((0, 0, 0), 50, "CT")
    away = Volume(still.array, still.affine + np.diag([0, 0, 0, 0.0]), {"modality": "CT"})
    away.affine[0, 3] += 500
    assert agreement(still, away).edge_distance_mm is None
    assert agreement(still, away).mutual_information == 0
    picture = Volume(still.array[:, :, 32:33], still.affine, {"modality": "CT"})
    assert (
        agreement(picture, picture).edge_distance_mm is None
        or agreement(picture, picture).edge_distance_mm < 0.01
    )


@pytest.mark.parametrize("anatomy", ["head", "pelvis"])
def test_phantoms_lie_on_themselves(anatomy: str) -> None:
    phantom = draw_phantom(anatomy, 3, 5.0)
    shifted = Volume(phantom.mr.array, phantom.mr.affine.copy(), phantom.mr.metadata)
    shifted.affine[:3, 3] += [6, -5, 4]
    assert agreement(phantom.ct, phantom.mr).edge_distance_mm < 2.0  # 40 % of a voxel
    assert agreement(phantom.ct, shifted).edge_distance_mm > 2.5
    assert (
        agreement(phantom.ct, phantom.mr).mutual_information
        > 1.5 * agreement(phantom.ct, shifted).mutual_information
    )


def test_mutual_information_ignores_gain_and_grid() -> None:
    phantom = draw_phantom("head", 4, 4.0)
    loud = phantom.mr.with_array(phantom.mr.array * 8)
    flipped = Volume(phantom.mr.array[::-1, :, ::-1], phantom.mr.affine.copy(), phantom.mr.metadata)
    for axis in (0, 2):
        flipped.affine[:3, 3] += flipped.affine[:3, axis] * (phantom.mr.array.shape[axis] - 1)
        flipped.affine[:3, axis] *= -1
    expected = agreement(phantom.ct, phantom.mr).mutual_information
    assert agreement(phantom.ct, loud).mutual_information == pytest.approx(expected, rel=1e-3)
    assert agreement(phantom.ct, flipped).mutual_information == pytest.approx(expected, rel=1e-3)


def test_table_is_no_body() -> None:
    still = ball((0, 0, 0), 45, "CT")
    array = still.array.copy()
    array[5:-5, 3:5, 5:-5] = 200  # a thin table, well behind
    shown = view(still.with_array(array), working_grid(still, 4.0))
    assert not shown.body[:, :6].any()
    assert shown.levels[:, :6].max() == 0
    assert shown.body.sum() * 64 == pytest.approx(4 / 3 * np.pi * 45**3, rel=0.08)


def test_thin_skin_beyond_bone_belongs_to_the_body() -> None:
    """In MR bone is dark: the scalp is a shell of 4 mm that touches nothing."""
    whole, inner, core = (ball((0, 0, 0), radius, "MR") for radius in (60, 56, 48))
    mr = whole.with_array(np.where((inner.array > 400) & (core.array < 400), 10, whole.array))
    shown = view(mr, working_grid(mr, 3.0))
    assert shown.body.sum() * 27 == pytest.approx(4 / 3 * np.pi * 60**3, rel=0.08)
    assert agreement(ball((0, 0, 0), 60, "CT"), mr).edge_distance_mm < 1.0


def test_values_tell_hu_where_the_header_does_not() -> None:
    grid = np.eye(4)
    assert in_hu(Volume(np.full((4, 4, 4), -1000.0), grid))
    assert not in_hu(Volume(np.full((4, 4, 4), 300.0), grid))
    assert not in_hu(Volume(np.full((4, 4, 4), -1000.0), grid, {"modality": "MR"}))
