import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ct2mri import load_volume
from ct2mri.data.geometry import (
    Box,
    crop_or_pad,
    from_sitk,
    grid_with_spacing,
    resample,
    to_canonical,
    to_sitk,
    uncrop,
)
from ct2mri.data.volume import Grid, Volume
from ct2mri.errors import RequestError

SLOPE = np.array([0.7, -1.3, 2.1])  # of a field that is linear in world coordinates, per mm


def world(grid: Grid) -> np.ndarray:
    """World coordinates in mm of every voxel centre: (i, j, k, 3)."""
    indices = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), axis=-1)
    return indices @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def ramp(grid: Grid) -> Volume:
    """A volume whose every voxel tells where it lies; linear interpolation between voxels is exact."""
    return Volume(world(grid) @ SLOPE, grid.affine)


def assert_in_place(volume: Volume, inside: np.ndarray | None = None) -> None:
    error = np.abs(volume.array - world(volume.grid) @ SLOPE)
    assert (error if inside is None else error[inside]).max() < 1e-2


@st.composite
def grids(draw: st.DrawFn, sheared: bool = True) -> Grid:
    """Any grid: oblique, flipped, permuted, anisotropic, sheared, axes of one voxel."""
    number = st.floats(-1, 1, allow_nan=False)
    affine = np.eye(4)
    rotation = Rotation.from_rotvec([3 * draw(number) for _ in range(3)]).as_matrix()
    spacing = np.diag([draw(st.floats(0.4, 5)) * draw(st.sampled_from([-1, 1])) for _ in range(3)])
    shear = np.eye(3)
    if sheared and draw(st.booleans()):
        shear[0, 1], shear[1, 2] = 0.4 * draw(number), 0.4 * draw(number)
    affine[:3, :3] = (rotation @ shear @ spacing)[:, draw(st.permutations([0, 1, 2]))]
    affine[:3, 3] = [100 * draw(number) for _ in range(3)]
    i, j, k = (draw(st.integers(1, 7)) for _ in range(3))
    return Grid((i, j, k), affine)


@settings(max_examples=60, deadline=None)
@given(grids())
def test_canonical_orientation_and_back(grid: Grid) -> None:
    volume = ramp(grid)
    canonical, turn = to_canonical(volume)
    assert canonical.orientation == "RAS"
    assert_in_place(canonical)
    assert sorted(canonical.array.ravel()) == sorted(volume.array.ravel())
    back = turn.undo(canonical)
    assert np.array_equal(back.array, volume.array)
    assert np.array_equal(back.affine, volume.affine)


def test_canonical_turns_known_axes() -> None:
    array = np.arange(24).reshape(2, 3, 4)
    affine = np.array([[0, 0, -1, 0], [2, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 1]])  # axes run A, S, L
    canonical, turn = to_canonical(Volume(array, affine))
    assert np.array_equal(canonical.array, array.transpose(2, 0, 1)[::-1])
    assert np.array_equal(canonical.affine, [[1, 0, 0, -3], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    assert (turn.axes, turn.flips) == ((2, 0, 1), (True, False, False))


def test_reorientation_undoes_its_own_grid_only() -> None:
    volume = ramp(Grid((3, 4, 5), np.diag([-1.0, 1, 1, 1])))
    canonical, turn = to_canonical(volume)
    cropped = crop_or_pad(canonical, Box((0, 0, 0), (2, 4, 5)), 0)
    with pytest.raises(RequestError, match=r"\(3, 4, 5\).*\(2, 4, 5\)"):
        turn.undo(cropped)


@settings(max_examples=60, deadline=None)
@given(grids(), st.tuples(*[st.floats(0.3, 8)] * 3))
def test_another_spacing_covers_the_same_box(grid: Grid, spacing: tuple[float, float, float]) -> None:
    other = grid_with_spacing(grid, spacing)
    assert np.allclose(other.spacing, spacing)
    ends = np.array([[0, 0, 0], np.array(grid.shape) - 1])
    outer = np.linalg.inv(other.affine) @ grid.affine  # old voxel indices → new
    faces = np.array([ends[0] - 0.5, ends[1] + 0.5]) @ outer[:3, :3].T + outer[:3, 3]
    juts = np.array([faces[0] + 0.5, np.array(other.shape) - 0.5 - faces[1]])
    assert juts.min() > -1e-3
    assert juts.max() < 0.5 + 1e-9
    assert np.allclose(juts[0], juts[1])


def test_the_same_spacing_is_the_same_grid() -> None:
    grid = Grid((7, 8, 9), np.array([[0, -0.957, 0, 4], [0.957, 0, 0, 5], [0, 0, 1.5, 6], [0, 0, 0, 1.0]]))
    assert grid_with_spacing(grid, grid.spacing).matches(grid)
    assert grid_with_spacing(grid, (0.9571, 0.957, 1.4999)).shape == grid.shape


@pytest.mark.parametrize("spacing", [(1.0, 0.0, 1.0), (1.0, -1.0, 1.0), (1.0, float("nan"), 1.0)])
def test_impossible_spacing_is_refused(spacing: tuple[float, float, float]) -> None:
    with pytest.raises(RequestError, match="three positive lengths"):
        grid_with_spacing(Grid((2, 2, 2), np.eye(4)), spacing)


@settings(max_examples=60, deadline=None)
@given(grids(), grids())
def test_resampling_leaves_every_point_in_place(source: Grid, target: Grid) -> None:
    # Move the target so that both centres coincide: boxes that never meet would test nothing.
    middle = (np.array(target.shape) - 1) / 2
    centre = source.affine[:3, :3] @ ((np.array(source.shape) - 1) / 2) + source.affine[:3, 3]
    target.affine[:3, 3] = centre - target.affine[:3, :3] @ middle
    sampled = resample(ramp(source), target, fill=-9999.0)
    assert sampled.grid.matches(target)
    indices = (world(target) - source.affine[:3, 3]) @ np.linalg.inv(source.affine[:3, :3]).T
    last = np.array(source.shape) - 1
    beyond = np.maximum(-indices, indices - last).max(axis=-1)  # voxels beyond the outermost centres
    assert_in_place(sampled, beyond <= 1e-6) if (beyond <= 1e-6).any() else None
    assert (sampled.array[beyond > 0.501] == -9999).all()
    edge = (beyond > 0) & (beyond < 0.499)  # still inside the box of voxels: the value at the nearest edge
    nearest = np.clip(indices[edge], 0, last) @ source.affine[:3, :3].T + source.affine[:3, 3]
    assert np.allclose(sampled.array[edge], nearest @ SLOPE, atol=1e-2)


@settings(max_examples=30, deadline=None)
@given(grids(), st.sampled_from(["linear", "nearest", "bspline"]))
def test_resampling_to_the_own_grid_in_another_order_is_exact(grid: Grid, interpolation: str) -> None:
    volume = Volume(np.random.default_rng(1).normal(size=grid.shape), grid.affine)
    canonical, _ = to_canonical(volume)
    back = resample(canonical, grid, interpolation=interpolation, fill=-9999.0)
    assert np.allclose(back.array, volume.array, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(grids(), st.tuples(*[st.floats(0.3, 8)] * 3), st.sampled_from(["linear", "nearest", "bspline"]))
def test_there_and_back_never_meets_the_outside(
    grid: Grid, spacing: tuple[float, float, float], interpolation: str
) -> None:
    volume = Volume(np.random.default_rng(2).uniform(1, 2, grid.shape), grid.affine)
    there = resample(volume, grid_with_spacing(grid, spacing), interpolation=interpolation, fill=-9999.0)
    back = resample(there, grid, interpolation=interpolation, fill=-9999.0)
    assert back.grid.matches(grid, 0.0)
    assert there.array.min() > -2
    assert back.array.min() > -4  # B-splines overshoot a little


def test_nearest_keeps_labels() -> None:
    labels = np.random.default_rng(3).integers(0, 5, (6, 7, 8))
    grid = grid_with_spacing(Grid((6, 7, 8), np.eye(4)), (0.6, 0.7, 1.9))
    sampled = resample(Volume(labels, np.eye(4)), grid, interpolation="nearest", fill=0)
    assert set(np.unique(sampled.array)) <= {0, 1, 2, 3, 4}


@settings(max_examples=60, deadline=None)
@given(grids(), st.tuples(*[st.integers(-4, 8)] * 3), st.tuples(*[st.integers(1, 9)] * 3))
def test_crop_or_pad_and_back(grid: Grid, lower: tuple[int, int, int], size: tuple[int, int, int]) -> None:
    volume = ramp(grid)
    box = Box(lower, tuple(a + b for a, b in zip(lower, size, strict=True)))
    cut = crop_or_pad(volume, box, fill=-9999.0)
    assert cut.spatial_shape == box.shape == size
    kept = cut.array != -9999
    if kept.any():
        assert_in_place(cut, kept)
    back = uncrop(cut, grid, fill=-5555.0)
    assert np.array_equal(back.affine, grid.affine)
    indices = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), axis=-1)
    inside = ((indices >= box.lower) & (indices < box.upper)).all(axis=-1)
    assert inside.sum() == kept.sum()
    assert np.array_equal(back.array[inside], volume.array[inside])
    assert (back.array[~inside] == -5555).all()


def test_uncrop_refuses_another_grid() -> None:
    volume = ramp(Grid((3, 3, 3), np.eye(4)))
    moved = np.eye(4)
    moved[0, 3] = 0.4
    with pytest.raises(RequestError, match="not cut out of this grid"):
        uncrop(volume, Grid((5, 5, 5), moved), 0)
    with pytest.raises(RequestError, match="not cut out of this grid"):
        uncrop(volume, Grid((5, 5, 5), np.diag([1.0, 1, 2, 1])), 0)


def test_box_around_a_mask() -> None:
    mask = np.zeros((6, 7, 8), dtype=bool)
    mask[2, 3, 4] = mask[4, 3, 6] = True
    assert Box.around(mask) == Box((2, 3, 4), (5, 4, 7))
    assert Box.around(mask, (1, 2, 3)) == Box((1, 1, 1), (6, 6, 8))
    with pytest.raises(RequestError, match="mask is empty"):
        Box.around(np.zeros((2, 2, 2), dtype=bool))
    with pytest.raises(RequestError, match="at least one voxel"):
        Box((0, 0, 0), (1, 0, 1))


@settings(max_examples=40, deadline=None)
@given(grids())
def test_simpleitk_images_lie_where_the_volume_lies(grid: Grid) -> None:
    volume = ramp(grid)
    image = to_sitk(volume)
    index = [n - 1 for n in grid.shape]
    left, posterior, superior = image.TransformIndexToPhysicalPoint(index)
    assert np.allclose([-left, -posterior, superior], world(grid)[tuple(index)])
    assert image.GetPixel(index) == volume.array[tuple(index)]
    back = from_sitk(image)
    assert np.array_equal(back.array, volume.array)
    assert np.allclose(back.affine, volume.affine, atol=1e-9)


def test_a_real_ct_goes_to_another_spacing_and_back(shared_data) -> None:
    volume = load_volume(shared_data / "real_ct" / "head.nii.gz")
    canonical, turn = to_canonical(volume)
    working = resample(canonical, grid_with_spacing(canonical.grid, (2.0, 2.0, 2.0)), fill=-1024)
    back = turn.undo(resample(working, canonical.grid, fill=-9999.0))
    assert np.array_equal(back.affine, volume.affine)
    assert back.array.min() >= volume.array.min()
    assert np.corrcoef(back.array.ravel(), volume.array.ravel())[0, 1] > 0.98
