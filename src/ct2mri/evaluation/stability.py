"""Whether a model's results hang on what says nothing of the anatomy: how much they change, and what counts.

A result may become brighter or flatter: MR has no units. What must not happen is that something appears,
vanishes or becomes another tissue. So the changed result is first brought to the unchanged one's mean and
deviation, differences are averaged over the size of a small structure, and the share of the body's interior
is told in which they are large enough to be seen.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ct2mri.errors import RequestError
from ct2mri.evaluation.masked import Array, Mask
from ct2mri.evaluation.metrics import evaluate_volumes
from ct2mri.files import read_json

STABILITY_FORMAT_VERSION = 2
REPORT = "stability.json"

STRUCTURE_MM = 5.0
SKIN_MM = 5.0
SEEN = 0.1
SEEN_HU = 100.0
MOST_CONTRAST = 2.0
MOST_ALTERED = 0.01

Measure = Literal["source_change", "change", "ssim", "altered", "largest_ml"]
MEASURES: tuple[Measure, ...] = ("source_change", "change", "ssim", "altered", "largest_ml")

SETTINGS = {
    "source_change": "mean |change of the source| in the body, in its own units, after it was moved back",
    "change": "mean |change of the result| in the body of the unchanged source",
    "ssim": "SSIM of the changed result against the unchanged one in the body, as `ct2mri evaluate` has it",
    "altered": f"share of the body's interior (over {SKIN_MM:g} mm from its surface, where the skin does not "
    "count) whose content changed: the changed result is brought to the unchanged one's mean and deviation "
    f"there (contrast times {MOST_CONTRAST:g} at most), the difference smoothed to {STRUCTURE_MM:g} mm (full "
    f"width at half maximum), and its size is over {SEEN:g} data ranges, or {SEEN_HU:g} HU",
    "largest_ml": "volume of the largest connected part of what altered",
    "rule": f"a model hallucinates under a change that alters over {MOST_ALTERED:.0%} of the interior in the "
    "mean over patients",
}


@dataclass(frozen=True, eq=False)
class Results:
    """What results of one source are compared by.

    Attributes:
        unchanged: the result of the source as it is, (i, j, k), in data ranges, or in HU.
        body: the body in the source as it is, bool (i, j, k).
        spacing: voxel edges in mm.
        in_hu: whether results are in HU.
        data_range: width of the results' values: 1, or that of the plan's window in HU.
        zero: the value that stands for air.
    """

    unchanged: NDArray[np.float32]
    body: Mask
    spacing: tuple[float, float, float]
    in_hu: bool
    data_range: float
    zero: float


def measure_change(
    results: Results, changed: NDArray[np.float32], seen: Mask, source_change: float | None
) -> tuple[dict[str, float | None], dict[str, str]]:
    """The numbers that `SETTINGS` explains, and why one is None.

    Args:
        results: the unchanged result and what goes with it.
        changed: the result of the changed source in the same frame and units, (i, j, k).
        seen: the voxels that can be compared.
        source_change: how much the source changed in the mean; None where it did not.
    """
    body = results.body & seen
    scores = evaluate_volumes(changed, results.unchanged, body, results.data_range, zero=results.zero)
    values: dict[str, float | None] = dict.fromkeys(MEASURES)
    values |= {"source_change": source_change, "change": scores["mae"], "ssim": scores["ssim"]}
    notes = {}
    if scores["mae"] is None:
        notes["change"] = scores["notes"]["mae"]
    if scores["ssim"] is None:
        notes["ssim"] = scores["notes"]["ssim"]
    if source_change is None:
        notes["source_change"] = "the source is the same"
    inside = interior(results.body, results.spacing) & seen
    if not inside.any():
        reason = f"not defined: the body has no voxel over {SKIN_MM:g} mm from its surface"
        return values, notes | {"altered": reason, "largest_ml": reason}
    content = change_of_content(results.unchanged, changed, body, inside)
    sigma = [STRUCTURE_MM / np.sqrt(8 * np.log(2)) / edge for edge in results.spacing]
    sizes = np.abs(ndimage.gaussian_filter(content, sigma, mode="constant"))
    altered = inside & (sizes > (SEEN_HU if results.in_hu else SEEN))
    values["altered"] = float(altered.sum() / inside.sum())
    parts, count = ndimage.label(altered)
    voxel_ml = float(np.prod(results.spacing)) / 1000
    values["largest_ml"] = float(np.bincount(parts.ravel())[1:].max() * voxel_ml) if count else 0.0
    return values, notes


def change_of_content(
    unchanged: NDArray[np.float32], changed: NDArray[np.float32], body: Mask, inside: Mask
) -> Array:
    """What differs in the body once both have one mean and one deviation in its interior; 0 outside the body.

    The contrast is changed by a factor of `MOST_CONTRAST` at most: a result that lost all of it has changed.

    Args:
        unchanged, changed: (i, j, k).
        body: where to tell it.
        inside: the interior, not empty.
    """
    x, y = unchanged.astype(np.float64), changed.astype(np.float64)
    factor = x[inside].std() / max(y[inside].std(), 1e-12)
    factor = float(np.clip(factor, 1 / MOST_CONTRAST, MOST_CONTRAST))
    content: Array = np.where(body, (y - y[inside].mean()) * factor + x[inside].mean() - x, 0)
    return content


def verdict(
    summary: Mapping[str, Mapping[Any, Mapping[str, Any]]], words: Mapping[str, str]
) -> dict[str, Any]:
    """Whether a model hallucinates under small changes, by the rule of `SETTINGS`, and a sentence on that.

    Args:
        summary: change → measure → the fields of `statistics.Summary`.
        words: change → what it is called.
    """
    shares = {
        name: (float(of["altered"]["mean"]), int(of["altered"]["patients"]))
        for name, of in summary.items()
        if of["altered"]["mean"] is not None
    }
    if not shares:
        return {"hallucinates": [], "sentence": "Stability under small changes could not be measured."}
    guilty = {name: share for name, (share, _) in shares.items() if share > MOST_ALTERED}
    patients = max(count for _, count in shares.values())
    of = f"mean of {patients} patients" if patients > 1 else "one patient"
    if guilty:
        told = ", ".join(f"{share:.1%} with {words[name]}" for name, share in guilty.items())
        sentence = (
            "Hallucinates under small changes: results show something else in so much of the body's interior "
            f"({of}): {told}. Do not trust details."
        )
    else:
        name, (share, _) = max(shares.items(), key=lambda item: item[1][0])
        sentence = (
            f"Stable under small changes: results show something else in at most {share:.2%} of the body's "
            f"interior ({of}), with {words[name]}. That does not make it right."
        )
    return {"hallucinates": list(guilty), "sentence": sentence}


def read_stability(folder: Path) -> dict[str, Any]:
    """What `ct2mri stability` wrote into a folder.

    Raises:
        RequestError: it is not there, damaged or of another version.
    """
    path = folder / REPORT if folder.is_dir() else folder
    try:
        report: dict[str, Any] = read_json(path)
        version = report["format_version"]
        if version == STABILITY_FORMAT_VERSION:
            _ = [report[name] for name in ("request", "in_hu", "cases", "changes", "summary", "verdict")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{path} is no report of `ct2mri stability`; give the folder that it wrote."
        ) from error
    if version != STABILITY_FORMAT_VERSION:
        raise RequestError(
            f"{path} has the format {version}, and this version of ct2mri reads {STABILITY_FORMAT_VERSION}; "
            "measure again."
        )
    return report


def require_same_cases(stability: Mapping[str, Any], case_ids: Iterable[str], in_hu: bool) -> None:
    """Refuse a stability that is not of the predictions that are evaluated.

    Args:
        stability: what `ct2mri stability` wrote.
        case_ids: of the predictions.
        in_hu: whether they are in HU.

    Raises:
        RequestError: one is in HU and the other is not, or no case is in both.
    """
    if stability["in_hu"] != in_hu:
        raise RequestError(
            "The stability is of results in HU and the predictions are not, or the other way round; "
            "give the stability of the model that made them."
        )
    measured = [case["case_id"] for case in stability["cases"]]
    if not set(measured) & set(case_ids):
        raise RequestError(
            f"No case is both in the stability ({_some(measured)}) and among the predictions "
            f"({_some(case_ids)}); measure the stability with the same CTs."
        )


def shares_of_error(
    stability: Mapping[str, Any], cases: Sequence[Mapping[str, Any]], in_hu: bool
) -> dict[str, dict[str, float | None]]:
    """Change → case → mean |change| over the mean |error| of that case's prediction; cases that both have.

    Args:
        stability: what `ct2mri stability` wrote.
        cases: of an evaluation of the same model.
        in_hu: whether that evaluation is in HU.
    """
    errors = {case["case_id"]: case for case in cases}
    shared = [case for case in stability["cases"] if case["case_id"] in errors]
    shares: dict[str, dict[str, float | None]] = {name: {} for name in stability["changes"]}
    for case in shared:
        of = errors[case["case_id"]]
        scale = 1.0 if in_hu else _scale(of["factors"]) * stability["data_range"]
        for name, values in case["values"].items():
            known = values["change"] is not None and of["values"]["mae"]
            shares[name][case["case_id"]] = values["change"] * scale / of["values"]["mae"] if known else None
    return shares


def _scale(factors: Mapping[str, float]) -> float:
    """What a prediction's own values were multiplied by to be compared, of a case's `factors`."""
    if "gain" in factors:
        return factors["gain"] / factors["reference"]
    return 1 / (factors["target_high"] - factors["target_low"])


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:3])


def interior(body: Mask, spacing: tuple[float, float, float]) -> Mask:
    """The voxels over `SKIN_MM` from the body's surface; where the image cuts the body there is none."""
    if body.all():
        return body
    deep: Mask = ndimage.distance_transform_edt(body, sampling=spacing) > SKIN_MM
    return deep
