import numpy as np
import pytest

from ct2mri import Volume
from ct2mri.data.volume import Grid
from ct2mri.errors import RequestError


def test_facts_of_a_volume() -> None:
    affine = np.array([[0, 0, -3, 10], [2, 0, 0, 20], [0, 0.5, 0, 30], [0, 0, 0, 1]])
    volume = Volume(np.zeros((2, 3, 4), dtype=np.int16), affine, {"modality": "CT"})
    assert volume.array.dtype == np.float32
    assert volume.spatial_shape == (2, 3, 4)
    assert volume.spacing == (2, 0.5, 3)
    assert volume.orientation == "ASL"
    other = volume.with_array(np.ones((2, 3, 4)))
    assert other.metadata == {"modality": "CT"}
    assert other.metadata is not volume.metadata
    with pytest.raises(RequestError, match=r"\(2, 3, 4\), got \(2, 3\)"):
        volume.with_array(np.ones((2, 3)))


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4, 5), (2, 0, 3)])
def test_other_than_three_axes_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match="three axes"):
        Volume(np.zeros(shape), np.eye(4))


@pytest.mark.parametrize(
    "affine",
    [
        np.zeros((4, 4)),
        np.diag([1.0, 1, 0, 1]),
        np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    ],
)
def test_affine_that_cannot_be_inverted_is_refused(affine: np.ndarray) -> None:
    with pytest.raises(RequestError, match="cannot be inverted"):
        Volume(np.zeros((2, 2, 2)), affine)


def test_affine_that_is_none_is_refused() -> None:
    with pytest.raises(RequestError, match="finite 4×4"):
        Volume(np.zeros((2, 2, 2)), np.eye(3))
    with pytest.raises(RequestError, match="finite 4×4"):
        Volume(np.zeros((2, 2, 2)), np.diag([1, np.nan, 1, 1]))


def test_tiny_and_very_anisotropic_voxels_are_volumes() -> None:
    assert Volume(np.zeros((2, 2, 2)), np.diag([1e-3, 1e-3, 1e-3, 1])).spacing[0] == pytest.approx(1e-3)
    assert Volume(np.zeros((2, 2, 2)), np.diag([0.1, 0.1, 100, 1])).spacing[2] == pytest.approx(100)


def test_grids_match_by_their_corners() -> None:
    grid = Grid((100, 100, 100), np.eye(4))
    turned = np.eye(4)
    turned[0, 1] = 1e-5  # 1 µm at the far corner
    assert grid.matches(Grid((100, 100, 100), turned))
    turned[0, 1] = 1e-4
    assert not grid.matches(Grid((100, 100, 100), turned))
    assert grid.matches(Grid((100, 100, 100), turned), tolerance_mm=0.02)
    assert not grid.matches(Grid((100, 100, 99), np.eye(4)))


def test_a_volume_shows_its_grid_and_not_its_voxels():
    volume = Volume(np.zeros((30, 40, 5)), np.diag([-0.9375, 1.5, 3.0, 1.0]))
    assert repr(volume) == "Volume(30×40×5 voxels of 0.9375×1.5×3 mm, LAS)"
