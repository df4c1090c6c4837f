"""Whether the spread over samples says where a prediction is wrong, and by how much.

Spread over seeds is not error: it tells how much the model's samples differ from one another. A model that is
wrong in the same way each time has little spread and much error. So both are measured against the truth.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ct2mri.errors import RequestError
from ct2mri.evaluation.masked import Mask

NOT_ERROR = (
    "Spread over seeds is not error: it tells how much samples of the model differ from one another, and a "
    "model that is wrong in the same way each time has little spread and much error."
)

LEVELS = (50, 80, 95)  # per cent
GROUPS = 10
MOST_RANKED = 1_000_000

SETTINGS = {
    "rank_correlation": "Spearman's correlation of spread and |error| over the mask's voxels (at most "
    f"{MOST_RANKED}, evenly taken); 0: the spread does not tell where errors are",
    "spread_ratio": "root mean square of the expected deviation over that of the error; 1 is best, below: "
    "the model is surer than it is right",
    "inside_95": "share of the mask's voxels whose truth lies inside the stated 95 % interval (likewise 50 "
    "and 80 %); below it, the model is surer than it is right",
    "groups": f"voxels of the mask in {GROUPS} equal groups of rising spread: root mean squares of the "
    "expected deviation and of the error",
}


@dataclass(frozen=True)
class Calibration:
    """What spread says of error, of one case.

    Attributes:
        values: "rank_correlation", "spread_ratio", "inside_50" and so on; None where not defined.
        notes: why a number is None.
        settings: what the numbers depend on.
        groups: "deviation" and "error" of each group of voxels of rising spread, in units of the images.
    """

    values: dict[str, float | None]
    notes: dict[str, str]
    settings: dict[str, Any]
    groups: dict[str, list[float]]


def calibrate(
    x: NDArray[Any], y: NDArray[Any], spread: NDArray[Any], inside: Mask, samples: int | None
) -> Calibration:
    """Compare the spread over samples with the error of their mean.

    The reference is a model whose samples differ from one another as they differ from the truth. The mean of
    n of its samples misses the truth by a deviation of spread · √(1 + 1/n), and the difference over that
    follows Student's t with n − 1 degrees of freedom.

    Args:
        x: prediction, the mean over the samples.
        y: truth.
        spread: standard deviation over the samples, in units of `x`.
        inside: the mask.
        samples: how many there were; None where it is not known, taken as many.

    Raises:
        RequestError: a spread inside the mask is negative or not finite.
    """
    names = ("rank_correlation", "spread_ratio", *(f"inside_{level}" for level in LEVELS))
    deviation = spread[inside].astype(np.float64)
    if not np.isfinite(deviation).all() or (deviation < 0).any():
        raise RequestError(
            "A spread is a number of 0 or more at every voxel, and this one has others inside the mask; give "
            "what `ct2mri translate --uncertainty` wrote."
        )
    error = np.abs(x[inside].astype(np.float64) - y[inside])
    settings: dict[str, Any] = {**SETTINGS, "samples": samples}
    if samples is None:
        settings["interval"] = "prediction ± z · spread, z of the normal distribution; samples not known"
        widths = {level: float(stats.norm.ppf(0.5 + level / 200)) for level in LEVELS}
    else:
        settings["interval"] = (
            f"prediction ± t · spread · √(1 + 1/n), n = {samples} samples, t of Student's distribution with "
            f"{samples - 1} degrees of freedom: where one more sample of the model would lie"
        )
        deviation *= np.sqrt(1 + 1 / samples)
        widths = {level: float(stats.t.ppf(0.5 + level / 200, samples - 1)) for level in LEVELS}
    if not error.size:
        reason = "not defined: the mask is empty"
        return Calibration(dict.fromkeys(names), dict.fromkeys(names, reason), settings, {})
    values: dict[str, float | None] = dict.fromkeys(names)
    notes = {}
    every = -(-error.size // MOST_RANKED)
    if np.ptp(deviation[::every]) == 0 or np.ptp(error[::every]) == 0:
        notes["rank_correlation"] = "not defined: spread or error is the same everywhere"
    else:
        values["rank_correlation"] = float(stats.spearmanr(deviation[::every], error[::every]).statistic)
    if error.any():
        values["spread_ratio"] = _rms(deviation) / _rms(error)
    else:
        notes["spread_ratio"] = "not defined: there is no error"
    for level, width in widths.items():
        values[f"inside_{level}"] = float(np.mean(error <= width * deviation))
    order = np.array_split(np.argsort(deviation, kind="stable"), GROUPS)
    groups = {
        "deviation": [_rms(deviation[voxels]) for voxels in order if voxels.size],
        "error": [_rms(error[voxels]) for voxels in order if voxels.size],
    }
    return Calibration(values, notes, settings, groups)


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values**2)))
