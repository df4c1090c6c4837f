"""A prepared data set on disk: memory-mapped arrays, one folder a case.

    DATASET/plan.json        how the data were prepared, and who is trained on
    DATASET/prepare.json     what became of each raw case
    DATASET/cases/CASE_ID/   case.json, source.npy, target.npy, mask.npy, valid.npy, registration.png where
                             the pair was registered, later draft.npy

Needs numpy alone, so that training runs where no image library is installed.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ct2mri.data.plan import Plan
from ct2mri.data.volume import Grid
from ct2mri.errors import RequestError
from ct2mri.files import atomic_folder, atomic_path, write_json

Orientation = Literal["axial", "coronal", "sagittal"]

# The array axis that a slice of each orientation leaves out, for arrays in RAS order:
# axial a[:, :, k] → (I, J); coronal a[:, j, :] → (I, K); sagittal a[i, :, :] → (J, K).
SLICE_AXIS: dict[Orientation, int] = {"sagittal": 0, "coronal": 1, "axial": 2}

CASE_FORMAT_VERSION = 2

# Lies in a data set's folder while `prepare` works on it: the request, and the plan it is working by.
UNFINISHED = ".unfinished-plan.json"


def neighbour_offsets(neighbours: int) -> list[int]:
    """Where, from a slice on, the slices lie that a network is shown for it: 0, −1, 1, −2, 2, …

    Beyond the ends of a stack its first and last slice stand for what is missing.
    """
    return [0, *(side * step for step in range(1, neighbours + 1) for side in (-1, 1))]


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """One pair of volumes on one grid, axes in RAS+ order; arrays are mapped from disk when asked for.

    Attributes:
        folder: where the arrays lie.
        case_id: its name in the data set.
        patient_id: whose it is.
        affine: 4×4, voxel index → RAS+ world coordinates in mm.
        spatial_shape: voxels along i, j, k.
        target_range: the target's own values that were mapped to −1 and to 1.
        centre: where it was scanned, as the raw data's layout tells; None where it does not.
        facts: what files and headers told: "source" and "target" → "kvp", "kernel", "contrast_agent", "cbct",
            "mr_contrast", …, and what the layout knows.
        registration: how well the target was brought onto the source; None where that was not asked for.
        inputs: what it was made of, to tell whether it is up to date.
        notes: what was done or noticed, a sentence each.
    """

    folder: Path
    case_id: str
    patient_id: str
    affine: NDArray[np.float64]
    spatial_shape: tuple[int, int, int]
    target_range: tuple[float, float]
    centre: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    registration: dict[str, Any] | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> "PreparedCase":
        """Read a case folder's `case.json`.

        Raises:
            RequestError: it is missing, damaged or of another version.
        """
        path = folder / "case.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format_version"] != CASE_FORMAT_VERSION:
                raise RequestError(
                    f"{path} has format_version {content['format_version']}, this program reads "
                    f"{CASE_FORMAT_VERSION}; prepare the data again."
                )
            i, j, k = content["spatial_shape"]
            low, high = content["target_range"]
            return cls(
                folder=folder,
                case_id=content["case_id"],
                patient_id=content["patient_id"],
                affine=np.array(content["affine"], dtype=np.float64),
                spatial_shape=(i, j, k),
                target_range=(low, high),
                centre=content["centre"],
                facts=content["facts"],
                registration=content["registration"],
                inputs=content["inputs"],
                notes=content["notes"],
            )
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, RequestError):
                raise
            raise RequestError(
                f"{path} is missing or damaged ({error!r}); run `ct2mri prepare` again."
            ) from error

    @property
    def grid(self) -> Grid:
        """The grid that all arrays of the case share."""
        return Grid(self.spatial_shape, self.affine)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel edge lengths along i, j, k in mm."""
        return self.grid.spacing

    @property
    def source(self) -> NDArray[np.float32]:
        """Source, float32 (C, i, j, k) in [−1, 1], one channel a window of the plan."""
        return self._array("source")

    @property
    def target(self) -> NDArray[np.float32]:
        """Target, float32 (i, j, k), the ends of `target_range` → −1 and 1, not clipped."""
        return self._array("target")

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The body, bool (i, j, k)."""
        return self._array("mask")

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Where the target was seen, bool (i, j, k): not outside its field of view, padded or defaced."""
        return self._array("valid")

    @property
    def draft(self) -> NDArray[np.float32] | None:
        """The 2D model's target, float32 (i, j, k), or None where none was drawn."""
        return self._array("draft") if (self.folder / "draft.npy").exists() else None

    def write_draft(self, array: NDArray[Any]) -> None:
        """Keep the 2D model's target, shape (i, j, k) or (1, i, j, k)."""
        draft = np.asarray(array, dtype=np.float32).reshape(self.spatial_shape)
        with atomic_path(self.folder / "draft.npy") as temporary:
            np.save(temporary, draft)

    def planes(self) -> list[Orientation]:
        """Orientations whose slices are more than one pixel wide both ways."""
        return [
            orientation
            for orientation, axis in SLICE_AXIS.items()
            if min(n for a, n in enumerate(self.spatial_shape) if a != axis) > 1
        ]

    def is_whole(self) -> bool:
        """Whether all arrays but the draft are there and of their size; their values are not read."""
        try:
            for name in ("source", "target", "mask", "valid"):
                self._array(name)
        except RequestError:
            return False
        return True

    def _array(self, name: str) -> NDArray[Any]:
        path = self.folder / f"{name}.npy"
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise RequestError(
                f"{path} is missing or damaged ({error}); run `ct2mri prepare` again."
            ) from error
        if array.shape[-3:] != self.spatial_shape:
            raise RequestError(
                f"{path} has shape {array.shape}, case.json says {self.spatial_shape}; "
                "run `ct2mri prepare` again."
            )
        return array


def write_case(
    folder: Path,
    *,
    patient_id: str,
    grid: Grid,
    source: NDArray[np.float32],
    target: NDArray[np.float32],
    mask: NDArray[np.bool_],
    valid: NDArray[np.bool_],
    target_range: tuple[float, float],
    inputs: dict[str, Any],
    notes: list[str],
    centre: str | None = None,
    facts: dict[str, Any] | None = None,
    registration: dict[str, Any] | None = None,
    write_also: Callable[[Path], object] | None = None,
) -> PreparedCase:
    """Write a case folder, whole or not at all; its name is the case's identifier.

    Args:
        folder: DATASET/cases/CASE_ID.
        patient_id: whose it is.
        grid: the grid all arrays share, axes in RAS+ order.
        source: (C, i, j, k) in [−1, 1].
        target: (i, j, k), scaled, not clipped.
        mask: (i, j, k), the body.
        valid: (i, j, k), where the target was seen.
        target_range: the target's own values that were mapped to −1 and to 1.
        inputs: what it was made of, as JSON holds it.
        notes: what was done or noticed, a sentence each.
        centre: where it was scanned.
        facts: what files and headers told, as JSON holds it.
        registration: how well the target was brought onto the source, as JSON holds it.
        write_also: writes what else belongs into the folder that it is given.
    """
    with atomic_folder(folder) as temporary:
        np.save(temporary / "source.npy", source.astype(np.float32, copy=False))
        np.save(temporary / "target.npy", target.astype(np.float32, copy=False))
        np.save(temporary / "mask.npy", mask.astype(np.bool_, copy=False))
        np.save(temporary / "valid.npy", valid.astype(np.bool_, copy=False))
        if write_also is not None:
            write_also(temporary)
        write_json(
            temporary / "case.json",
            {
                "format_version": CASE_FORMAT_VERSION,
                "case_id": folder.name,
                "patient_id": patient_id,
                "spatial_shape": list(grid.shape),
                "spacing": list(grid.spacing),
                "affine": grid.affine.tolist(),
                "target_range": list(target_range),
                "centre": centre,
                "facts": facts or {},
                "registration": registration,
                "inputs": inputs,
                "notes": notes,
            },
        )
    return PreparedCase.read(folder)


class PreparedDataset:
    """What `ct2mri prepare` wrote.

    Raises:
        RequestError: the folder is missing, holds no plan, or no case.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise RequestError(
                f"There is no data set at {self.root}; `ct2mri prepare RAW {self.root}` makes one."
            )
        if (self.root / UNFINISHED).is_file():
            raise RequestError(
                f"{self.root} is not prepared to the end; run the same `ct2mri prepare` again: it goes on."
            )
        if not (self.root / "plan.json").is_file():
            raise RequestError(
                f"{self.root} holds no plan.json, so it is no prepared data set; "
                f"`ct2mri prepare {self.root} DATASET` makes one of raw pairs."
            )
        self.plan = Plan.read(self.root / "plan.json")

    @cached_property
    def _cases(self) -> dict[str, PreparedCase]:
        found = {
            path.parent.name: PreparedCase.read(path.parent)
            for path in sorted((self.root / "cases").glob("*/case.json"))
            if not path.parent.name.startswith(".")
        }
        if not found:
            raise RequestError(
                f"{self.root} holds a plan but no prepared case; "
                "run `ct2mri prepare` again and read its summary."
            )
        return found

    def case_ids(self, split: Literal["train", "validation", "test"] | None = None) -> list[str]:
        """Prepared cases of one side of the plan's split, or all of them, sorted."""
        return [
            case_id
            for case_id, case in self._cases.items()
            if split is None or self.plan.split.side(case.patient_id) == split
        ]

    def case(self, case_id: str) -> PreparedCase:
        """One case.

        Raises:
            RequestError: there is none of that name.
        """
        if case_id not in self._cases:
            raise RequestError(
                f"{self.root} holds no case {case_id!r}; it holds {len(self._cases)}, "
                f"e.g. {next(iter(self._cases))}."
            )
        return self._cases[case_id]
