"""Small changes of a source: what they do to its values, and that they can be undone."""

from dataclasses import replace

import numpy as np
import pytest

from ct2mri.data.volume import Volume
from ct2mri.evaluation.changes import KERNEL_MM, changes_for, moved, sharper, smoother
from tiny import OBLIQUE, ct, plan

LPI = np.array([[-1.0, 0, 0, 9], [0, -1.0, 0, 4], [0, 0, -2.0, 3], [0, 0, 0, 1]])


def test_hu_are_shifted_where_there_are_hu():
    source = ct()
    changes = {change.name: change for change in changes_for(plan())}
    assert list(changes) == ["seed", "hu_higher", "hu_lower", "smoother", "sharper", "moved"]
    for name, hu in (("seed", 0), ("hu_higher", 20), ("hu_lower", -20)):
        np.testing.assert_allclose(changes[name].apply(source).array - source.array, hu, atol=1e-4)
    relative = replace(
        plan(), source_modality="mr", target_modality="ct", source_units="relative", target_units="HU",
        source_percentile=99.5, target_scaling="window", target_window=[-1024, 3000], body_threshold=None,
        target_range=(-1024.0, 3000.0), remove_table=False, source_windows=[[0.0, 1.0]],
    )  # fmt: skip
    assert [change.name for change in changes_for(relative)] == ["seed", "smoother", "sharper", "moved"]


@pytest.mark.parametrize("edge", [0.3, 0.7, 1.0, 4.0])
def test_a_kernel_spreads_a_point_by_its_millimetres_in_the_axial_plane(edge):
    """Turned so that the patient's axis is the first of the voxels."""
    affine = np.array([[0, edge, 0, 0], [0, 0, edge, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]])
    array = np.zeros((5, 41, 41), np.float32)
    array[2, 20, 20] = 1000
    spread = smoother(Volume(array, affine)).array
    assert spread.sum() == pytest.approx(1000, rel=1e-5)
    assert not spread[[0, 1, 3, 4]].any()
    places = (np.arange(41) - 20) * edge
    for axis in (1, 2):
        profile = spread.sum(axis=tuple(a for a in range(3) if a != axis)) / 1000
        assert (profile * places**2).sum() == pytest.approx(KERNEL_MM**2, rel=1e-3)
    assert spread.max() == spread[2, 20, 20]


def test_a_sharper_kernel_is_the_opposite_of_a_smoother_one():
    source = ct(affine=LPI)
    smooth, sharp = smoother(source).array, sharper(source).array
    np.testing.assert_allclose(smooth - source.array, source.array - sharp, atol=1e-2)
    noise = Volume(np.random.default_rng(0).normal(0, 10, (30, 30, 6)).astype(np.float32), np.eye(4))
    assert smoother(noise).array.std() < noise.array.std() < sharper(noise).array.std()


def test_what_was_moved_comes_back_but_for_what_left_the_image():
    source = ct(affine=OBLIQUE)
    change = changes_for(plan())[-1]
    there = change.apply(source)
    np.testing.assert_array_equal(there.array[1:, 1:, 1:], source.array[:-1, :-1, :-1])
    np.testing.assert_array_equal(there.affine, source.affine)
    back, seen = change.undo(there), change.seen(source.spatial_shape)
    np.testing.assert_array_equal(back.array[seen], source.array[seen])
    assert seen.sum() == np.prod([size - 1 for size in source.spatial_shape])
    assert not seen[-1].any() and not seen[:, -1].any() and not seen[:, :, -1].any()


def test_a_single_slice_moves_within_itself():
    slice_ = Volume(np.arange(12, dtype=np.float32).reshape(3, 4, 1), np.eye(4))
    assert moved(slice_, 1).array[..., 0].tolist() == [[0, 0, 1, 2], [0, 0, 1, 2], [4, 4, 5, 6]]
    assert changes_for(plan())[-1].seen((3, 4, 1)).sum() == 6
