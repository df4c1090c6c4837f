"""Whether neighbouring slices of a prediction differ as much as those of the truth: no more, and no less.

A stack of slices drawn one by one flickers; a blurred volume changes too little from slice to slice. Both are
wrong, so every measure here is two-sided.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct2mri.evaluation.masked import Mask, others

SMALLEST_STEP = 0.1
"""Steps over less than this share of the fullest step's voxels are left out of the profile's measures."""

SETTINGS = {
    "ratio": "mean |difference of neighbouring slices| of the prediction over that of the truth, over all "
    "voxels whose neighbour is in the mask as well; 1 is best, below is too smooth, above is flicker",
    "log_ratio": "natural logarithm of ratio; 0 is best",
    "error": "mean |prediction's difference of neighbouring slices - the truth's| over the truth's mean "
    "|difference|: what blur misses and flicker adds, which cancel in ratio; 0 is best, a constant has 1",
    "uneven": "standard deviation over the steps of the logarithm of each step's own ratio: seams between "
    "slices; 0 is best",
    "brightness": "root mean square over the steps of the change of the mean error from slice to slice, over "
    "the truth's mean |difference|: whole slices brighter or darker than their neighbours; 0 is best",
    "steps": f"steps with at least {SMALLEST_STEP:.0%} of the voxels of the fullest",
}


@dataclass(frozen=True)
class Continuity:
    """How slices across one axis follow one another.

    Attributes:
        values: "ratio", "log_ratio", "error", "uneven", "brightness", explained in `SETTINGS`; None where not
            defined.
        notes: why a number is None.
        steps: index of the lower slice of each step that counts.
        prediction, target: mean |difference| of each of those steps, in units of the images.
    """

    values: dict[str, float | None]
    notes: dict[str, str]
    steps: list[int]
    prediction: list[float]
    target: list[float]

    def profile(self) -> dict[str, Any]:
        """What a picture of the slices' changes needs."""
        return {"steps": self.steps, "prediction": self.prediction, "target": self.target}


def slice_continuity(x: NDArray[Any], y: NDArray[Any], inside: Mask, axis: int) -> Continuity:
    """Compare the slice-to-slice changes of a prediction and of the truth across one axis.

    Args:
        x: prediction; only voxels of the mask are read.
        y: truth.
        inside: the mask.
        axis: the axis that the slices leave out.
    """
    upper = (slice(None),) * axis + (slice(1, None),)
    lower = (slice(None),) * axis + (slice(None, -1),)
    both = inside[upper] & inside[lower]
    names = ("ratio", "log_ratio", "error", "uneven", "brightness")
    if not both.any():
        reason = (
            "not defined: there is one slice"
            if x.shape[axis] == 1
            else "not defined: no neighbouring slices are in the mask"
        )
        return Continuity(dict.fromkeys(names), dict.fromkeys(names, reason), [], [], [])
    over = others(x.ndim, axis)
    sizes = both.sum(axis=over)
    counted = np.flatnonzero((sizes > 0) & (sizes >= SMALLEST_STEP * sizes.max()))
    change_x, change_y = (
        np.where(both, image[upper].astype(np.float64) - image[lower], 0) for image in (x, y)
    )
    total_x, total_y = np.abs(change_x).sum(), np.abs(change_y).sum()
    steps_x, steps_y, jumps = (
        change.sum(axis=over)[counted] / sizes[counted]
        for change in (np.abs(change_x), np.abs(change_y), change_x - change_y)
    )
    values: dict[str, float | None] = dict.fromkeys(names)
    notes = {}
    if total_y == 0:
        notes = dict.fromkeys(names, "not defined: the truth does not change from slice to slice")
    else:
        values["ratio"] = float(total_x / total_y)
        values["error"] = float(np.abs(change_x - change_y).sum() / total_y)
        values["brightness"] = float(np.sqrt(np.mean(jumps**2)) / (total_y / sizes.sum()))
        if total_x > 0:
            values["log_ratio"] = float(np.log(total_x / total_y))
        else:
            notes["log_ratio"] = "not defined: the prediction does not change from slice to slice"
        telling = (steps_x > 0) & (steps_y > 0)
        if telling.any():
            values["uneven"] = float(np.std(np.log(steps_x[telling] / steps_y[telling])))
        else:
            notes["uneven"] = "not defined: no step at which both images change"
    return Continuity(values, notes, counted.tolist(), steps_x.tolist(), steps_y.tolist())
