"""A prediction and its target, on one grid and in one unit."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ct2mri.data.cases import PreparedCase, PreparedDataset
from ct2mri.data.dicom import SCALE_IS_LOST
from ct2mri.data.geometry import resample
from ct2mri.data.intensity import AIR_HU, unscale_target, unscale_window
from ct2mri.data.io import is_volume_path, load_volume, volume_stem
from ct2mri.data.plan import ZSCORE_REACH, Plan
from ct2mri.data.volume import Grid, Volume
from ct2mri.errors import RequestError
from ct2mri.evaluation.matching import Matches, Role, counterparts, find_cases
from ct2mri.evaluation.regions import AIR_BELOW_HU, BONE_FROM_HU, as_labels
from ct2mri.evaluation.units import looks_like_hu, require_hu, target_range_of
from ct2mri.files import read_json

TARGET_PERCENTILE = 99.5
HU_RANGE = 4095.0
"""Range of a stored CT, −1024 to 3071 HU: the peak of PSNR where no plan says another."""

_CAVITY_HU = -500.0
"""HU of air in the body: skin, which is half air in its voxels, has more."""

_SCALE_IS_NEEDED = f"{SCALE_IS_LOST}; give the series as it was written, or the result as NIfTI."


@dataclass(frozen=True, eq=False)
class Pair:
    """One case, ready to be measured.

    Attributes:
        case_id: what prediction and target were matched by.
        prediction: (i, j, k), in the units that `normalisation` tells.
        target: (i, j, k), likewise.
        mask: bool (i, j, k).
        normalisation: what was done to both, in words.
        factors: the numbers it was done with.
        mask_name: what the mask is, in words.
        grid: where all arrays of the case lie.
        patient_id: whose case it is.
        data_range: width of the values that these units are meant for: 1, in HU that of the plan's window.
        in_hu: whether prediction and target are in HU.
        ct: (i, j, k), the case's CT, or another source; None where it is not known.
        ct_in_hu: whether `ct` is in HU.
        centre: where it was scanned; None where it is not known.
        source: (i, j, k), what was translated, for pictures; None where it is not known.
        source_in_hu: whether `source` is in HU.
        scale: what the prediction's own values were multiplied by; None where their units are not known.
        notes: what was done to bring the images together, a sentence each.
        unscaled: why there is no scale to compare on, so that no number is defined; empty where there is one.
    """

    case_id: str
    prediction: NDArray[np.float32]
    target: NDArray[np.float32]
    mask: NDArray[np.bool_]
    normalisation: str
    factors: dict[str, float]
    mask_name: str
    grid: Grid
    patient_id: str
    data_range: float = 1.0
    in_hu: bool = False
    ct: NDArray[np.float32] | None = None
    ct_in_hu: bool = False
    centre: str | None = None
    source: NDArray[np.float32] | None = None
    source_in_hu: bool = False
    scale: float | None = 1.0
    notes: list[str] = field(default_factory=list)
    unscaled: str = ""

    @property
    def zero(self) -> float:
        """The value that stands for nothing: air in HU, else 0."""
        return AIR_HU if self.in_hu else 0.0


def pairs_of_files(
    predictions: Path,
    targets: Path,
    masks: Path | None = None,
    sources: Path | None = None,
    *,
    in_hu: bool = False,
    resampled: bool = False,
) -> tuple[Matches, Callable[[str], Pair]]:
    """What matches, and a function that loads a case.

    A single prediction and a single target belong together whatever their names.

    Args:
        predictions, targets, masks, sources: a volume or a folder each.
        in_hu: prediction and target are CTs, compared as they are.
        resampled: bring predictions, masks and sources on another grid onto their target's.

    Raises:
        RequestError: nothing matches, a mask or source is lacking, or (at the pair) grids differ, or only a
            gain below 0 would bring a prediction near its target.
    """
    role: Role = "ct" if in_hu else "image"
    predicted, wanted = find_cases(predictions, role, drawn=True), find_cases(targets, role)
    if is_volume_path(predictions) and is_volume_path(targets):
        predicted = dict(zip(wanted, predicted.values(), strict=True))
    matches = Matches.of(list(predicted), list(wanted))
    mask_paths = counterparts(masks, "mask", matches.case_ids)
    source_paths = counterparts(sources, "source", matches.case_ids)

    def load(case_id: str) -> Pair:
        prediction, target = load_volume(predicted[case_id]), load_volume(wanted[case_id])
        if in_hu:
            instead = "leave out --units HU and --preset for MR"
            require_hu(prediction, predicted[case_id], f"Case {case_id}: the prediction", instead)
            require_hu(target, wanted[case_id], f"Case {case_id}: the target", instead)
        known = _knows_units(prediction)
        inside, name = np.ones(target.spatial_shape, dtype=bool), "none: the whole image, air included"
        prediction, seen, notes = _on_grid_of(target, prediction, case_id, resampled)
        if masks is not None:
            mask = load_volume(mask_paths[case_id])
            if not resampled:
                _require_same_grid(case_id, "mask", mask.grid, target.grid)
            mask, said = _by_nearest_voxel(mask, target.grid, mask_paths[case_id].name)
            inside, name = mask.array > 0, "given"
            notes += said
        inside = inside & seen
        source, source_in_hu = None, False
        if sources is not None:
            volume = load_volume(source_paths[case_id])
            source_in_hu = looks_like_hu(volume.array)
            volume, seen, said = _on_grid_of(target, volume, case_id, resampled, "source")
            source, inside = volume.array, inside & seen
            notes += said
        images, factors, words = (prediction.array, target.array), {}, "none: both in HU"
        unscaled = ""
        if not in_hu:
            factors = fit_scale(prediction.array, target.array, inside)
            unscaled = _unscaled(target.array, inside)
            if factors["gain"] < 0:
                raise RequestError(
                    f"Case {case_id}: the gain that fits the prediction to the target best is "
                    f"{factors['gain']:.4g}, which would turn black and white around: the prediction's "
                    "values do not begin at 0, as those from -1 to 1, or are inverted; give it with 0 for "
                    "black, or, of CTs in HU, give --units HU."
                )
            gain, reference = np.float32(factors["gain"]), np.float32(factors["reference"])
            images = prediction.array * gain / reference, target.array / reference
            words = (
                "prediction times one least-squares gain, then both divided by the target's "
                f"{TARGET_PERCENTILE}th percentile, both inside the mask"
            )
        return Pair(
            case_id,
            *images,
            inside,
            words,
            factors,
            name,
            target.grid,
            case_id,
            data_range=HU_RANGE if in_hu else 1.0,
            in_hu=in_hu,
            ct=target.array if in_hu else source,
            ct_in_hu=in_hu or source_in_hu,
            source=source,
            source_in_hu=source_in_hu,
            scale=(factors["gain"] / factors["reference"] if factors else 1.0) if known else None,
            notes=notes,
            unscaled=unscaled,
        )

    return matches, load


def pairs_of_dataset(
    predictions: Path,
    dataset: PreparedDataset,
    split: Literal["train", "validation", "test"],
    *,
    resampled: bool = False,
) -> tuple[Matches, Callable[[str], Pair]]:
    """What matches, and a function that loads a case: predictions on the prepared grids, prepared targets.

    A prediction without units is on the scale of the plan in its sidecar; without one, of the data set's.

    Raises:
        RequestError: nothing matches, or (at the pair) grids differ or the prediction's units are not known,
            or do not mean what the data set's do.
    """
    case_ids = dataset.case_ids(split)
    if not case_ids:
        raise RequestError(f"{dataset.root} has no {split} case; choose another --split.")
    role: Role = "ct" if dataset.plan.target_units == "HU" else "image"
    predicted = find_cases(predictions, role, case_ids, drawn=True)
    matches = Matches.of(list(predicted), case_ids)
    plan = dataset.plan
    tells_tissue, of_tissue = _tells_tissue(plan)

    def load(case_id: str) -> Pair:
        case = dataset.case(case_id)
        grid_of_case = Volume(case.target, case.affine)
        drawn = load_volume(predicted[case_id])
        if not _knows_units(drawn):
            raise RequestError(f"Case {case_id}: {predicted[case_id].name} {_SCALE_IS_NEEDED}")
        prediction, seen, notes = _on_grid_of(grid_of_case, drawn, case_id, resampled)
        (low, high), said = target_range_of(predicted[case_id], case_id, plan)
        notes += said + of_tissue
        inside = case.mask & case.valid & seen
        source = _source_of(case, plan)
        if plan.target_units == "HU":
            images = prediction.array, unscale_target(case.target, plan.target_range)
            if (images[1][inside] < _CAVITY_HU).any():  # else a prediction need not have air either
                instead = "give predictions in HU, as the targets are"
                require_hu(drawn, predicted[case_id], f"Case {case_id}: the prediction", instead)
            words = f"none: both in HU, the target clipped to {low:g} to {high:g}"
        else:
            images = (
                (prediction.array - np.float32(low)) / np.float32(high - low),
                (case.target + np.float32(1)) / np.float32(2),
            )
            words = _in_own_range(plan)
        return Pair(
            case_id,
            *images,
            inside,
            words,
            {
                "target_low": low,
                "target_high": high,
                "own_low": case.target_range[0],
                "own_high": case.target_range[1],
            },
            "the body, where the target was seen",
            case.grid,
            case.patient_id,
            data_range=high - low if plan.target_units == "HU" else 1.0,
            in_hu=plan.target_units == "HU",
            ct=_ct_of(images[1], source, plan),
            ct_in_hu=tells_tissue,
            centre=case.centre,
            source=source,
            source_in_hu=plan.source_units == "HU",
            scale=1.0 if plan.target_units == "HU" else 1 / (high - low),
            notes=notes,
        )

    return matches, load


def _in_own_range(plan: Plan) -> str:
    """In words: how a prediction and a target without units come to a common scale."""
    ends = (
        f"0 and its {plan.target_percentile:g}th percentile"
        if plan.target_scaling == "percentile"
        else f"its mean minus and plus {ZSCORE_REACH:g} standard deviations"
    )
    return (
        "the plan's target_range of the prediction maps to 0 and 1, of the target its own "
        f"({ends} inside the body); nothing fitted"
    )


def fit_scale(
    prediction: NDArray[np.float32], target: NDArray[np.float32], mask: NDArray[np.bool_]
) -> dict[str, float]:
    """What brings a prediction and a target of unrelated intensity units to a common scale.

    MR has no units: the prediction is multiplied by the one `gain` that fits the target best (least squares
    inside the mask), then both are divided by `reference`, the target's 99.5th percentile inside the mask.
    Both numbers are 1 where the images do not tell them.
    """
    predicted, true = prediction[mask].astype(np.float64), target[mask].astype(np.float64)
    square = float(predicted @ predicted)
    gain = float(predicted @ true) / square if square > 0 else 1.0
    reference = float(np.percentile(true, TARGET_PERCENTILE)) if true.size else 1.0
    usable = np.isfinite(gain) and np.isfinite(reference) and reference > 0
    return {"gain": gain, "reference": reference} if usable else {"gain": 1.0, "reference": 1.0}


def _unscaled(target: NDArray[np.float32], mask: NDArray[np.bool_]) -> str:
    """Why a target of unrelated units tells no scale; empty where it does, or where the mask is empty."""
    true = target[mask]
    if not true.size or not np.isfinite(true).all() or np.percentile(true, TARGET_PERCENTILE) > 0:
        return ""
    return f"not defined: the target's {TARGET_PERCENTILE}th percentile is not above 0, so it tells no scale"


def labels_of(path: Path, grid: Grid) -> tuple[NDArray[np.int32], list[str]]:
    """A label map on a grid, by the nearest voxel where it lies on another, and what was done.

    Raises:
        RequestError: it holds something else than whole numbers.
    """
    labels = load_volume(path)
    as_labels(labels.array, path.name)
    labels, notes = _by_nearest_voxel(labels, grid, path.name)
    return as_labels(labels.array, path.name), notes


def _by_nearest_voxel(volume: Volume, grid: Grid, name: str) -> tuple[Volume, list[str]]:
    """A mask or label map on a grid, 0 where it does not reach, and what was done."""
    if volume.grid.matches(grid, tolerance_mm=0.05):
        return volume, []
    moved = resample(volume, grid, interpolation="nearest", fill=0)
    return moved, [f"{name} was brought onto the case's grid by the nearest voxel."]


def spread_of(
    path: Path, pair: Pair, resampled: bool
) -> tuple[NDArray[np.float32], NDArray[np.bool_], int | None, list[str]]:
    """The spread over samples of a case's prediction, in the pair's units and on its grid.

    Args:
        path: what `ct2mri translate --uncertainty` wrote.
        pair: the case.
        resampled: bring a spread on another grid onto the case's.

    Returns:
        the spread, 0 where it does not reach; where it reaches, bool (i, j, k); the number of samples where
        the file beside it tells; and what was done.

    Raises:
        RequestError: the grids differ, the units of the prediction are not known, or the file beside the
            spread is damaged or tells no number of samples that a spread can be of.
    """
    if pair.scale is None:
        raise RequestError(f"Case {pair.case_id}: The prediction {_SCALE_IS_NEEDED}")
    target = Volume(pair.target, pair.grid.affine)
    spread, seen, notes = _on_grid_of(
        target, load_volume(path), pair.case_id, resampled, "spread", "uncertainty is not measured"
    )
    scaled = np.where(seen, spread.array, 0) * np.float32(abs(pair.scale))
    return scaled, seen, _samples_beside(path, pair.case_id), notes


def _samples_beside(path: Path, case_id: str) -> int | None:
    """How many samples a spread is of, by the file beside it; None where there is none or it does not tell.

    Raises:
        RequestError: it is damaged, or a spread cannot be of so many.
    """
    sidecar = path.with_name(f"{volume_stem(path)}.json")
    if not sidecar.is_file():
        return None
    try:
        facts = read_json(sidecar)
    except ValueError:
        facts = None
    samples = facts.get("samples") if isinstance(facts, dict) else "not readable"
    if samples is None or (type(samples) is int and samples > 1):
        return samples
    raise RequestError(
        f"Case {case_id}: {sidecar} should tell how many samples the spread beside it is of, 2 or more, and "
        f"its `samples` are {samples}; write the spread again, or take the file away, and the number will "
        "count as not known."
    )


def _knows_units(prediction: Volume) -> bool:
    """Whether values are in the units that they were drawn in, for all that can be told."""
    return prediction.metadata.get("stored_per_unit", 1.0) is not None


def _on_grid_of(
    target: Volume,
    prediction: Volume,
    case_id: str,
    resampled: bool,
    name: str = "prediction",
    beyond: str = "nothing counts",
) -> tuple[Volume, NDArray[np.bool_], list[str]]:
    """A prediction (its spread, its source) on its target's grid, where it reaches, and what was done."""
    everywhere = np.ones(target.spatial_shape, dtype=bool)
    if not resampled or prediction.grid.matches(target.grid, tolerance_mm=0.05):
        _require_same_grid(case_id, name, prediction.grid, target.grid)
        return prediction, everywhere, []
    reach = resample(prediction.with_array(np.ones_like(prediction.array)), target.grid, fill=0).array > 0.999
    moved = resample(prediction, target.grid, fill=float(prediction.array.min()))
    note = (
        f"The {name} was resampled (linear) from {_describe(prediction.grid)} to "
        f"{_describe(target.grid)}; where it does not reach, {beyond}."
    )
    return moved, reach, [note]


def _source_of(case: PreparedCase, plan: Plan) -> NDArray[np.float32]:
    """What was translated, through the widest of the plan's windows, in the source's units."""
    channel, window = _widest(plan)
    return unscale_window(case.source[channel], window)


def _widest(plan: Plan) -> tuple[int, list[float]]:
    """The channel and the ends of the widest of the plan's windows."""
    return max(enumerate(plan.source_windows), key=lambda item: item[1][1] - item[1][0])


def _tells_tissue(plan: Plan) -> tuple[bool, list[str]]:
    """Whether the CT of prepared cases tells air, soft tissue and bone apart, and what to say if not."""
    if "HU" not in (plan.target_units, plan.source_units):
        return False, []
    low, high = plan.target_range if plan.target_units == "HU" else _widest(plan)[1]
    if low < AIR_BELOW_HU and high >= BONE_FROM_HU:
        return True, []
    return False, [
        f"The prepared CT ends at {low:g} and {high:g} HU, as the plan's window does, so that air, soft "
        "tissue and bone are not told apart."
    ]


def _ct_of(
    target: NDArray[np.float32], source: NDArray[np.float32], plan: Plan
) -> NDArray[np.float32] | None:
    """The CT of a prepared case, or a source that is a picture of one."""
    if plan.target_units == "HU":
        return target
    return None if plan.source_units == "relative" else source


def _require_same_grid(case_id: str, what: str, grid: Grid, wanted: Grid) -> None:
    if not grid.matches(wanted, tolerance_mm=0.05):
        raise RequestError(
            f"Case {case_id}: the {what} ({_describe(grid)}) and the target ({_describe(wanted)}) lie on "
            f"different grids; give --resample to bring the {what} onto the target's, or resample first."
        )


def _describe(grid: Grid) -> str:
    spacing = "×".join(f"{edge:.3g}" for edge in grid.spacing)
    return f"{'×'.join(map(str, grid.shape))} voxels of {spacing} mm, {grid.orientation}"
