"""The one type that knows geometry."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct2mri.errors import RequestError

SYNTHETIC = "SYNTHETIC"
"""Stands in the description of every volume that a model drew, in files and in metadata."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels lie: a shape and an affine.

    Attributes:
        shape: voxels along i, j, k.
        affine: 4×4, float64, voxel index → RAS+ world coordinates in mm.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel edge lengths along i, j, k in mm."""
        i, j, k = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))
        return float(i), float(j), float(k)

    @property
    def orientation(self) -> str:
        """Nearest anatomical directions of i, j, k, e.g. `"RAS"` or `"LPI"`."""
        import nibabel  # costs 0.2 s, and most uses of a grid never ask for this

        return "".join(nibabel.aff2axcodes(self.affine))

    def matches(self, other: "Grid", tolerance_mm: float = 1e-3) -> bool:
        """Whether both grids have the same shape and their corners agree to `tolerance_mm`."""
        if self.shape != other.shape:
            return False
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij")).reshape(3, -1)
        corners = np.vstack([corners, np.ones(corners.shape[1])])
        return bool(np.abs((self.affine - other.affine) @ corners).max() <= tolerance_mm)


@dataclass(frozen=True, eq=False)
class Volume:
    """A scalar image in space.

    Attributes:
        array: float32, shape (i, j, k); HU for CT, arbitrary units for MR.
        affine: 4×4, float64, voxel index → RAS+ world coordinates in mm.
        metadata: facts the file told beside its voxels; known keys: `modality` ("CT", "MR"),
            `contrast_agent` (bool or None), `path`, `warnings` (sentences that the user should see),
            `description` (what `save_volume` writes into the header), and what
            `ct2mri.data.dicom.load_series` adds.

    Raises:
        RequestError: the array has not three axes, or the affine cannot be inverted.
    """

    array: NDArray[np.float32]
    affine: NDArray[np.float64]
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        array = np.asarray(self.array, dtype=np.float32)
        affine = np.asarray(self.affine, dtype=np.float64)
        if array.ndim != 3 or 0 in array.shape:
            raise RequestError(
                "A volume needs three axes with at least one voxel each, "
                f"got an array of shape {array.shape}."
            )
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise RequestError(f"An affine is a finite 4×4 matrix, got shape {affine.shape}.")
        scale = np.abs(affine[:3, :3]).max()
        if scale == 0 or abs(np.linalg.det(affine[:3, :3] / scale)) < 1e-9:
            raise RequestError(
                "The affine cannot be inverted (two voxel axes coincide or one has no length), "
                "so the image has no place in space; repair its header."
            )
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "affine", affine)

    def __repr__(self) -> str:
        """Shape, spacing and orientation: voxels by the thousand help nobody."""
        shape = "×".join(str(number) for number in self.spatial_shape)
        spacing = "×".join(f"{edge:.4g}" for edge in self.spacing)
        return f"Volume({shape} voxels of {spacing} mm, {self.orientation})"

    @property
    def spatial_shape(self) -> tuple[int, int, int]:
        """Voxels along i, j, k."""
        i, j, k = self.array.shape
        return i, j, k

    @property
    def grid(self) -> Grid:
        """The volume's grid, without its voxels."""
        return Grid(self.spatial_shape, self.affine)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel edge lengths along i, j, k in mm."""
        return self.grid.spacing

    @property
    def orientation(self) -> str:
        """Nearest anatomical directions of i, j, k, e.g. `"RAS"`."""
        return self.grid.orientation

    def with_array(self, array: NDArray[Any]) -> "Volume":
        """The same grid and metadata with other voxels of the same shape."""
        if array.shape != self.array.shape:
            raise RequestError(f"Expected an array of shape {self.array.shape}, got {array.shape}.")
        return Volume(array, self.affine, dict(self.metadata))
