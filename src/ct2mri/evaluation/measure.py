"""Everything that is measured of one case, under names that `catalogue.py` explains, with its noise floor."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ct2mri.errors import RequestError
from ct2mri.evaluation import continuity, edges, regions
from ct2mri.evaluation.metrics import METRICS, evaluate_slices, evaluate_volumes, moved_by_one
from ct2mri.evaluation.pairing import Pair
from ct2mri.evaluation.synthrad import synthrad_metrics, synthrad_notes, synthrad_settings

Preset = Literal["synthrad2023", "synthrad2025"]
_YEAR: dict[Preset, Literal[2023, 2025]] = {"synthrad2023": 2023, "synthrad2025": 2025}

FLOOR = "the truth moved by one voxel against itself, mean over the axes (of slices: along one of theirs)"

_PLANES = {"L": "sagittal", "R": "sagittal", "A": "coronal", "P": "coronal", "I": "axial", "S": "axial"}


@dataclass(frozen=True)
class Measured:
    """The numbers of one case.

    Attributes:
        values: name → number; None where not defined.
        notes: name → why the number is None, or what it leaves out.
        settings: group of names ("" for the volume) → what its numbers depend on.
        profiles: plane → errors and changes slice by slice.
    """

    values: dict[str, float | None] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, group: str, values: dict[str, float | None], notes: dict[str, str]) -> None:
        """Take numbers in under a group's name."""
        self.values.update({f"{group}.{name}": value for name, value in values.items()})
        self.notes.update({f"{group}.{name}": note for name, note in notes.items()})

    def withdraw(self, reason: str) -> None:
        """Leave no number, neither of the case nor of its slices."""
        self.notes.update(dict.fromkeys(self.values, reason))
        self.values.update(dict.fromkeys(self.values))
        self.profiles.clear()


@dataclass(frozen=True, eq=False)
class Labels:
    """Label maps of one case, int32 (i, j, k).

    Attributes:
        true: of the target.
        predicted: of the prediction; None where there is none.
    """

    true: NDArray[np.int32]
    predicted: NDArray[np.int32] | None


def measure(
    pair: Pair, labels: Labels | None = None, preset: Preset | None = None
) -> tuple[Measured, Measured]:
    """Every number of one case, and of its noise floor: the truth moved by one voxel against itself.

    Args:
        pair: the case.
        labels: its label maps, where there are any.
        preset: a challenge whose numbers are wanted as well.

    Raises:
        RequestError: a voxel inside the mask is not finite, or the preset is for HU and the images are not.
    """
    if preset is not None and not pair.in_hu:
        raise RequestError(
            f"--preset {preset} measures predicted CT in HU, and the plan's targets are not in HU; leave the "
            "preset out for MR."
        )
    ct = None if pair.ct is pair.target else pair.ct
    if ct is not None and (lacking := int((~np.isfinite(ct[pair.mask])).sum())):
        raise RequestError(
            f"The source holds {lacking} voxels inside the mask that are not finite; repair the image, leave "
            "them out of the mask, or leave out the source."
        )
    planes = [_PLANES[code] for code in pair.grid.orientation]
    thick = [axis for axis, size in enumerate(pair.grid.shape) if size > 1]
    # Of a single slice, the rows and columns are no slices.
    across = (
        thick if len(thick) == pair.target.ndim else [a for a in range(pair.target.ndim) if a not in thick]
    )
    of_truth = None
    if pair.ct is not None:
        points = edges.find_edges(pair.ct, pair.mask, pair.grid.spacing)
        of_truth = points, edges.edge_displacements(pair.target, pair.mask, points, pair.data_range)
    measured = _measure(pair, labels, preset, planes, across, of_truth)
    floors = []
    for axis in thick:
        moved = replace(
            pair,
            prediction=moved_by_one(pair.target, axis),
            mask=pair.mask & moved_by_one(pair.mask, axis),
        )
        moved_labels = None
        if labels is not None:
            predicted = None if labels.predicted is None else moved_by_one(labels.true, axis)
            moved_labels = Labels(labels.true, predicted)
        # Of a volume, one move for each plane is enough: slices take the most time.
        moved_in = [a for a in across if len(across) == 1 or axis == (a - 1) % 3]
        floors.append(_measure(moved, moved_labels, preset, planes, moved_in, of_truth))
    floor = _mean_of(floors, measured)
    if pair.unscaled:
        measured.withdraw(pair.unscaled)
        floor.withdraw(pair.unscaled)
    return measured, floor


def _measure(
    pair: Pair,
    labels: Labels | None,
    preset: Preset | None,
    planes: Sequence[str],
    across: Sequence[int],
    edges_of_truth: tuple[edges.EdgePoints, NDArray[np.float64]] | None,
) -> Measured:
    """Every number of one case; slices across the given axes alone."""
    of_volume = evaluate_volumes(
        pair.prediction,
        pair.target,
        pair.mask,
        pair.data_range,
        zero=pair.zero,
        normalisation=pair.normalisation,
        mask_name=pair.mask_name,
    )
    result = Measured(
        {name: of_volume[name] for name in METRICS},
        dict(of_volume["notes"]),
        {"": of_volume["settings"], "continuity": dict(continuity.SETTINGS)},
    )
    for axis in across:
        of_slices = evaluate_slices(
            pair.prediction,
            pair.target,
            pair.mask,
            axis,
            pair.data_range,
            zero=pair.zero,
            normalisation=pair.normalisation,
            mask_name=pair.mask_name,
        )
        result.add(planes[axis], of_slices["values"], of_slices["notes"])
        result.settings[planes[axis]] = of_slices["settings"]
        steps = continuity.slice_continuity(pair.prediction, pair.target, pair.mask, axis)
        result.add(f"continuity.{planes[axis]}", steps.values, steps.notes)
        result.profiles[planes[axis]] = {
            "axis": axis,
            "slice_mm": pair.grid.spacing[axis],
            "slices": of_slices["slices"],
            **{name: _rounded(numbers) for name, numbers in of_slices["profiles"].items()},
            "steps": steps.steps,
            "change_prediction": _rounded(steps.prediction),
            "change_target": _rounded(steps.target),
        }
    if edges_of_truth is not None:
        points, of_truth = edges_of_truth
        displacements = edges.edge_displacements(pair.prediction, pair.mask, points, pair.data_range)
        result.settings["edges"] = dict(edges.SETTINGS)
        result.add("edges", *edges.compare_edges(displacements, of_truth))
    if pair.ct is not None and pair.ct_in_hu:
        result.settings["regions"] = dict(regions.SETTINGS)
        result.add("regions", *regions.errors_by_tissue(pair.prediction, pair.target, pair.mask, pair.ct))
    if labels is not None:
        result.settings["labels"] = dict(regions.SETTINGS)
        result.add("labels", *regions.errors_by_label(pair.prediction, pair.target, pair.mask, labels.true))
        if labels.predicted is not None:
            voxel_ml = float(abs(np.linalg.det(pair.grid.affine[:3, :3]))) / 1000
            result.add("labels", regions.overlap_of_labels(labels.predicted, labels.true, voxel_ml), {})
    if preset is not None:
        numbers = synthrad_metrics(pair.prediction, pair.target, pair.mask, _YEAR[preset])
        result.settings[preset] = synthrad_settings(_YEAR[preset])
        result.add(preset, numbers, synthrad_notes(numbers))
    return result


def _mean_of(floors: Sequence[Measured], measured: Measured) -> Measured:
    """The mean of several measurements, number by number."""
    result = Measured(settings={"": {"noise_floor": FLOOR}})
    for name in measured.values:
        numbers = [value for floor in floors if (value := floor.values.get(name)) is not None]
        result.values[name] = float(np.mean(numbers)) if numbers else None
        if not numbers:
            notes = [floor.notes[name] for floor in floors if name in floor.notes]
            without = "the image is one voxel thick"
            if floors and name.startswith("labels."):
                without = "the truth has no such label"  # nothing could be moved
            result.notes[name] = notes[0] if notes else f"not defined: {without}"
    return result


def _rounded(numbers: Sequence[float | None]) -> list[float | None]:
    """Six significant digits, which is all that a picture needs, in a third of the space."""
    return [None if number is None else float(f"{number:.6g}") for number in numbers]
