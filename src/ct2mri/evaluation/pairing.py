"""Which prediction belongs to which target, on one grid and in one unit."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ct2mri.data.cases import PreparedDataset
from ct2mri.data.io import find_volumes, is_volume_path, load_volume, volume_stem
from ct2mri.data.volume import Grid
from ct2mri.errors import RequestError

TARGET_PERCENTILE = 99.5

# Words that say what an image is, not whose: they are no part of a case identifier.
_TARGET_WORDS = {"mr", "mri", "smr", "target"}
_MASK_WORDS = {"mask", "body"}
_OTHER_WORDS = {"ct", "source", "draft", "uncertainty", "spread", "labels"}
_FILLERS = {"synthetic", "prediction", "predicted"}

Role = Literal["image", "mask"]


@dataclass(frozen=True, eq=False)
class Pair:
    """One case, ready to be measured.

    Attributes:
        case_id: what prediction and target were matched by.
        prediction: (i, j, k), in the normalised units that `normalisation` tells.
        target: (i, j, k), likewise.
        mask: bool (i, j, k).
        normalisation: what was done to both, in words.
        factors: the numbers it was done with.
        mask_name: what the mask is, in words.
    """

    case_id: str
    prediction: NDArray[np.float32]
    target: NDArray[np.float32]
    mask: NDArray[np.bool_]
    normalisation: str
    factors: dict[str, float]
    mask_name: str


@dataclass(frozen=True)
class Matches:
    """Which prediction belongs to which target.

    Attributes:
        case_ids: in both, sorted.
        without_prediction: targets that nothing was predicted for.
        without_target: predictions that have no target.
    """

    case_ids: list[str]
    without_prediction: list[str]
    without_target: list[str]

    @classmethod
    def of(cls, predictions: Sequence[str], targets: Sequence[str]) -> "Matches":
        """Match by case identifier.

        Raises:
            RequestError: nothing matches.
        """
        predicted, wanted = set(predictions), set(targets)
        if not predicted & wanted:
            raise RequestError(
                f"No prediction matches a target: predictions are named {_some(predicted)}, targets "
                f"{_some(wanted)}; files match by name, without words such as mr_ or _mask."
            )
        return cls(sorted(predicted & wanted), sorted(wanted - predicted), sorted(predicted - wanted))


def pairs_of_files(predictions: Path, targets: Path, masks: Path | None) -> tuple[Matches, Iterator[Pair]]:
    """Pairs of plain files; a single prediction and a single target belong together whatever their names."""
    predicted, wanted = find_cases(predictions, "image"), find_cases(targets, "image")
    if is_volume_path(predictions) and is_volume_path(targets):
        predicted = dict(zip(wanted, predicted.values(), strict=True))
    matches = Matches.of(list(predicted), list(wanted))
    mask_paths: dict[str, Path] = {}
    if masks is not None:
        mask_paths = find_cases(masks, "mask")
        if is_volume_path(masks) and len(matches.case_ids) == 1:
            mask_paths = dict(zip(matches.case_ids, mask_paths.values(), strict=True))
        if lacking := [case_id for case_id in matches.case_ids if case_id not in mask_paths]:
            raise RequestError(f"{masks} holds no mask for {', '.join(lacking)}; add one for every case.")

    def pairs() -> Iterator[Pair]:
        for case_id in matches.case_ids:
            prediction, target = load_volume(predicted[case_id]), load_volume(wanted[case_id])
            _require_same_grid(case_id, "prediction", prediction.grid, "target", target.grid)
            if masks is None:
                inside, name = (
                    np.ones(target.spatial_shape, dtype=bool),
                    "none: the whole image, air included",
                )
            else:
                mask = load_volume(mask_paths[case_id])
                _require_same_grid(case_id, "mask", mask.grid, "target", target.grid)
                inside, name = mask.array > 0, "given"
            factors = fit_scale(prediction.array, target.array, inside)
            gain, reference = np.float32(factors["gain"]), np.float32(factors["reference"])
            yield Pair(
                case_id,
                prediction.array * gain / reference,
                target.array / reference,
                inside,
                "prediction times one least-squares gain, then both divided by the target's "
                f"{TARGET_PERCENTILE}th percentile, both inside the mask",
                factors,
                name,
            )

    return matches, pairs()


def pairs_of_dataset(
    predictions: Path, dataset: PreparedDataset, split: Literal["train", "validation", "test"]
) -> tuple[Matches, Iterator[Pair]]:
    """Pairs of predictions on the prepared grids and a data set's own registered targets."""
    case_ids = dataset.case_ids(split)
    if not case_ids:
        raise RequestError(f"{dataset.root} has no {split} case; choose another --split.")
    by_name = find_cases(predictions, "image")
    # A case identifier may itself end in a word such as _mr, so the whole name of a file goes first.
    by_name |= {volume_stem(path): path for path in by_name.values() if volume_stem(path) in case_ids}
    files = {path: case_id for case_id, path in by_name.items()}
    predicted = {case_id: path for path, case_id in files.items()}
    matches = Matches.of(list(predicted), case_ids)
    scale = dataset.plan.target_scale

    def pairs() -> Iterator[Pair]:
        for case_id in matches.case_ids:
            case = dataset.case(case_id)
            prediction = load_volume(predicted[case_id])
            _require_same_grid(case_id, "prediction", prediction.grid, "prepared target", case.grid)
            yield Pair(
                case_id,
                prediction.array / np.float32(scale),
                (case.target + np.float32(1)) / np.float32(2),
                case.mask & case.valid,
                "prediction divided by the plan's target_scale, target by its own "
                f"{dataset.plan.target_percentile:g}th percentile inside the body; nothing fitted",
                {"target_scale": scale, "target_reference": case.target_range[1]},
                "the body, where the target was seen",
            )

    return matches, pairs()


def case_and_role(path: Path) -> tuple[str, set[str]]:
    """The case identifier in a file's name, and the words in it that say what the image is.

    Such words are dropped at the start and the end (`mr_001`, `001_synthetic_mr` → `001`); a file that is
    called by such a word alone is named by its folder (`001/mr.nii.gz` → `001`).
    """
    known = _TARGET_WORDS | _MASK_WORDS | _OTHER_WORDS | _FILLERS
    words, roles = re.split(r"([-_.])", volume_stem(path)), set()
    while words and words[-1].lower() in known:
        roles.add(words[-1].lower())
        words = words[:-2]
    while words and words[0].lower() in known:
        roles.add(words[0].lower())
        words = words[2:]
    return "".join(words) or path.parent.name, roles


def find_cases(path: Path, role: Role) -> dict[str, Path]:
    """Volumes by case identifier: those in a folder, and `CASE/mr.*` (or `CASE/mask.*`) in its subfolders.

    Raises:
        RequestError: nothing is there, or two files have the same case identifier.
    """
    wanted, unwanted = (_TARGET_WORDS, _MASK_WORDS) if role == "image" else (_MASK_WORDS, _TARGET_WORDS)
    found: dict[str, Path] = {}
    if not path.exists():
        raise RequestError(f"There is no file or folder {path}; give a volume or a folder of volumes.")
    if is_volume_path(path):
        return {case_and_role(path)[0]: path}
    if not path.is_dir():
        raise RequestError(f"{path} is neither a volume nor a folder of volumes.")
    candidates: list[tuple[str, Path]] = []
    nested = set()
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()):
        inside = [file for file in find_volumes(folder) if volume_stem(file).lower() in wanted]
        candidates += [(folder.name, file) for file in inside]
        nested |= {folder} if inside else set()
    for file in find_volumes(path):
        case_id, roles = case_and_role(file)
        if file not in nested and not roles & (unwanted | _OTHER_WORDS):
            candidates.append((case_id, file))
    for case_id, file in candidates:
        if case_id in found:
            raise RequestError(
                f"{found[case_id].name} and {file.name} in {path} both belong to case {case_id}; "
                "leave one file for each case."
            )
        found[case_id] = file
    if not found:
        raise RequestError(f"{path} holds no volume; give a volume or a folder of volumes.")
    return found


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


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")


def _require_same_grid(case_id: str, what: str, grid: Grid, other: str, wanted: Grid) -> None:
    if not grid.matches(wanted, tolerance_mm=0.05):
        raise RequestError(
            f"Case {case_id}: the {what} ({_describe(grid)}) and the {other} ({_describe(wanted)}) lie on "
            "different grids; resample one of them to the other's grid first."
        )


def _describe(grid: Grid) -> str:
    spacing = "×".join(f"{edge:.3g}" for edge in grid.spacing)
    return f"{'×'.join(map(str, grid.shape))} voxels of {spacing} mm, {grid.orientation}"
