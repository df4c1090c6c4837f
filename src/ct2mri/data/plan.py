"""The plan of a data set: how volumes are brought to the networks, and who is trained on.

`prepare` decides a plan, a person can read and edit it as `plan.json`, `translate` replays it on new volumes.
`prepare_source` and `restore_to_input` are the one way from a volume to the networks and back.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ct2mri.data.volume import Grid, Volume
from ct2mri.errors import RequestError
from ct2mri.files import write_json

SourceUnits = Literal["HU", "grey"]
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Split:
    """Which patients are trained on, validated on and held out.

    Raises:
        RequestError: a patient is named twice.
    """

    seed: int
    train: list[str]
    validation: list[str]
    test: list[str]

    def __post_init__(self) -> None:
        side_of: dict[str, str] = {}
        for side in ("train", "validation", "test"):
            for patient_id in getattr(self, side):
                if patient_id in side_of:
                    other = side_of[patient_id]
                    where = f"twice under {side}" if other == side else f"under {other} and under {side}"
                    raise RequestError(
                        f"Patient {patient_id} is {where} of the split; a patient belongs to one side, once: "
                        f"remove one of the two."
                    )
                side_of[patient_id] = side

    def side(self, patient_id: str) -> Literal["train", "validation", "test"] | None:
        """The side a patient is on, or None."""
        if patient_id in self.train:
            return "train"
        if patient_id in self.validation:
            return "validation"
        return "test" if patient_id in self.test else None

    @property
    def patient_ids(self) -> list[str]:
        """Everybody in the split."""
        return [*self.train, *self.validation, *self.test]


@dataclass(frozen=True)
class Fingerprint:
    """What the training cases look like; a CT outside these ranges gets a warning.

    Every range is [smallest, largest] over the training cases. Axes are in RAS order.

    Attributes:
        cases: training cases measured.
        spacing_mm: per axis, voxel edge of the source files.
        body_size_mm: per axis, edge of the box around the body.
        body_area_cm2: median area of the body over its axial slices; None for single slices.
        hu_percentiles: "1", "50" and "99" → range of that percentile in the body; None where not in HU.
        tissue_fractions: "air", "fat", "soft_tissue", "bone" → range of the share of the body; None likewise.
        contrast_share: share given contrast agent among the cases whose header tells; None: none does.
        looks_like: anatomy that most cases look like; None where they do not agree or cannot tell.
    """

    cases: int
    spacing_mm: list[list[float]]
    body_size_mm: list[list[float]]
    body_area_cm2: list[float] | None
    hu_percentiles: dict[str, list[float]] | None
    tissue_fractions: dict[str, list[float]] | None
    contrast_share: float | None
    looks_like: str | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How volumes become network input, and what the results mean.

    Attributes:
        source_modality: what is translated from.
        target_modality: what is translated to.
        source_units: "HU", or "grey" for pictures scaled one by one.
        anatomy: name of the anatomy, or None where nobody said.
        spacing: voxel edges of the working grid in mm along R, A, S; None: each case's own.
        crop_margin_mm: space kept around the body; None: no cropping.
        source_windows: [low, high] of each condition channel; low maps to −1, high to 1, clipped.
        body_threshold: source value above which a voxel may be body; None: the whole image is.
        target_percentile: percentile of the target inside the body that maps to 1 (0 maps to −1).
        target_scale: median over the training cases of that percentile's value: the MR units of results.
        split: who is trained on.
        fingerprint: what the training cases look like; None where they are not known.
        assumptions: what was assumed rather than measured, a sentence each, shown at each use.

    Raises:
        RequestError: a value is not allowed.
    """

    format_version: int = FORMAT_VERSION
    source_modality: str = "ct"
    target_modality: str = "mr"
    source_units: SourceUnits = "HU"
    anatomy: str | None = None
    spacing: tuple[float, float, float] | None
    crop_margin_mm: float | None
    source_windows: list[list[float]]
    body_threshold: float | None
    target_percentile: float
    target_scale: float
    split: Split
    fingerprint: Fingerprint | None
    assumptions: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise RequestError(
                f"The plan has format_version {self.format_version}, this program reads {FORMAT_VERSION}; "
                "prepare the data again or use the version that wrote it."
            )
        if self.source_units not in get_args(SourceUnits):
            raise RequestError(f"The plan's source_units is {self.source_units!r}; HU or grey is allowed.")
        if not self.source_windows or any(
            len(window) != 2 or not window[0] < window[1] for window in self.source_windows
        ):
            raise RequestError(
                f"The plan's source_windows is {self.source_windows}; "
                "give one or more [low, high] with low < high."
            )
        if self.spacing is not None and (
            len(self.spacing) != 3 or not all(0 < s < 100 for s in self.spacing)
        ):
            raise RequestError(
                f"The plan's spacing is {self.spacing}; "
                "give three voxel edges in mm between 0 and 100, or null."
            )
        if self.crop_margin_mm is not None and self.crop_margin_mm < 0:
            raise RequestError(
                f"The plan's crop_margin_mm is {self.crop_margin_mm}; "
                "give 0 or more, or null for no cropping."
            )
        if not 0 < self.target_percentile <= 100:
            raise RequestError(
                f"The plan's target_percentile is {self.target_percentile}; "
                "give a number above 0 and up to 100."
            )
        if not 0 < self.target_scale < float("inf"):
            raise RequestError(f"The plan's target_scale is {self.target_scale}; give a positive number.")

    @property
    def channels(self) -> int:
        """Condition channels: one a window."""
        return len(self.source_windows)

    @property
    def source_fill(self) -> float:
        """Source value outside the field of view: air."""
        return -1024.0 if self.source_units == "HU" else 0.0

    def write(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: str | Path) -> "Plan":
        """Read what `write` wrote, or a person edited.

        Raises:
            RequestError: no such file, not JSON, fields missing or unknown, or a value that is not allowed.
        """
        path = Path(path)
        if not path.is_file():
            raise RequestError(f"There is no plan at {path}; `ct2mri prepare` writes one (plan.json).")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RequestError(
                f"{path} is not readable as JSON ({error}); repair it or prepare again."
            ) from error
        try:
            return cls.from_dict(content)
        except RequestError as error:
            raise RequestError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, content: Any) -> "Plan":
        """The plan in a dictionary as JSON holds it.

        Raises:
            RequestError: fields are missing or unknown, or a value is not allowed.
        """
        content = _checked_fields(cls, content, "The plan")
        content["split"] = Split(**_checked_fields(Split, content["split"], "The plan's split"))
        if content["fingerprint"] is not None:
            content["fingerprint"] = Fingerprint(
                **_checked_fields(Fingerprint, content["fingerprint"], "The plan's fingerprint")
            )
        try:
            if content["spacing"] is not None:
                content["spacing"] = tuple(float(edge) for edge in content["spacing"])
            content["source_windows"] = [[float(low), float(high)] for low, high in content["source_windows"]]
            for name in ("target_percentile", "target_scale"):
                content[name] = float(content[name])
            for name in ("crop_margin_mm", "body_threshold"):
                content[name] = None if content[name] is None else float(content[name])
        except (TypeError, ValueError) as error:
            raise RequestError(f"A number of the plan cannot be read as one ({error}); repair it.") from error
        return cls(**content)


def _checked_fields(cls: Any, content: Any, name: str) -> dict[str, Any]:
    """A copy of `content` if it holds exactly the fields of a dataclass."""
    if not isinstance(content, dict):
        raise RequestError(f"{name} must be an object with named fields, got {type(content).__name__}.")
    known = [f.name for f in fields(cls)]
    if unknown := [key for key in content if key not in known]:
        raise RequestError(f"{name} has an unknown field {unknown[0]!r}; known are {', '.join(known)}.")
    if missing := [key for key in known if key not in content]:
        raise RequestError(f"{name} lacks the field {missing[0]!r}; prepare writes {', '.join(known)}.")
    return dict(content)


@dataclass(frozen=True, eq=False)
class PreparedSource:
    """A source volume as the networks see it.

    Attributes:
        array: float32 (C, i, j, k) in [−1, 1], one channel a window of the plan.
        mask: bool (i, j, k), the body.
        grid: the working grid, axes in RAS+ order.
    """

    array: NDArray[np.float32]
    mask: NDArray[np.bool_]
    grid: Grid


def prepare_source(volume: Volume, plan: Plan, mask: Volume | None = None) -> PreparedSource:
    """Bring a source volume to the networks: the one way, for training and for use.

    Turned to RAS+ voxel order, resampled to the plan's spacing, masked, cropped to the body with the plan's
    margin, windowed to [−1, 1].

    Args:
        volume: the source in its own units, finite.
        plan: the plan to follow.
        mask: the body (voxels above 0.5) on any grid; without one it is found by the plan's threshold.

    Raises:
        RequestError: there is no body in the volume, or the mask is empty where the volume lies.
    """
    from ct2mri.data.geometry import Box, crop_or_pad, grid_with_spacing, resample, to_canonical
    from ct2mri.data.intensity import body_mask, scale_windows

    working, _ = to_canonical(volume)
    if plan.source_units == "HU":
        # Scanners fill what lies outside their round field of view with -2000 or less; resampling would
        # spread that into its surroundings.
        working = working.with_array(np.maximum(working.array, plan.source_fill))
    if plan.spacing is not None:
        grid = grid_with_spacing(working.grid, plan.spacing)
        if not _same_voxels(grid, working.grid):
            working = resample(working, grid, fill=plan.source_fill)
    if mask is not None:
        body = resample(mask, working.grid, interpolation="nearest", fill=0).array > 0.5
        if not body.any():
            raise RequestError(
                "The body mask has no voxel above 0.5 where the source volume lies; "
                "give a mask of the same patient in the same space."
            )
    elif plan.body_threshold is not None:
        body = body_mask(working.array, working.spacing, plan.body_threshold)
        if not body.any():
            raise RequestError(
                f"No body was found: nothing thicker than a few mm lies above {plan.body_threshold:g} "
                f"(largest value {working.array.max():g}); give a volume in {plan.source_units}, or a mask."
            )
    else:
        body = np.ones(working.spatial_shape, dtype=bool)
    if plan.crop_margin_mm is not None:
        i, j, k = (round(plan.crop_margin_mm / edge) for edge in working.spacing)
        box = Box.around(body, (i, j, k))
        working = crop_or_pad(working, box, plan.source_fill)
        body = body[tuple(slice(low, high) for low, high in zip(box.lower, box.upper, strict=True))]
    return PreparedSource(
        scale_windows(working.array, plan.source_windows), np.ascontiguousarray(body), working.grid
    )


def restore_to_input(array: NDArray[Any], grid: Grid, input_volume: Volume, fill: float) -> Volume:
    """Bring a result on the working grid back onto the grid of the volume that it was made from.

    Args:
        array: (i, j, k) on `grid`.
        grid: the working grid, as `prepare_source` gave it.
        input_volume: the volume given to `prepare_source`.
        fill: value where the working grid was cropped.

    Returns:
        A volume with the very shape and affine of `input_volume`, and none of its metadata.
    """
    from ct2mri.data.geometry import grid_with_spacing, reorientation_to_canonical, resample, uncrop

    turn = reorientation_to_canonical(input_volume.grid)
    result = Volume(np.asarray(array, dtype=np.float32), grid.affine)
    if _same_voxels(grid_with_spacing(turn.target, grid.spacing), turn.target):
        result = uncrop(result, turn.target, fill)
    else:
        result = resample(result, turn.target, fill=fill)
    return turn.undo(result)


def _same_voxels(grid: Grid, other: Grid) -> bool:
    """Whether two grids agree to a hundredth of a millimetre, so that resampling would only add rounding."""
    return grid.matches(other, tolerance_mm=0.01)
