"""Whether the values of a plan are allowed and agree with one another."""

import math
from typing import TYPE_CHECKING

from ct2mri.errors import RequestError

if TYPE_CHECKING:
    from ct2mri.data.plan import Plan


def check_words(plan: "Plan") -> None:
    """Raise RequestError unless the words that a person may write freely are words."""
    for name in ("source_modality", "target_modality"):
        if not isinstance(word := getattr(plan, name), str) or not word:
            raise RequestError(f"The plan's {name} is {word!r}; give its word in quotes, e.g. ct or mr.")
    if not isinstance(plan.anatomy, str | None):
        raise RequestError(f"The plan's anatomy is {plan.anatomy!r}; give a name in quotes, or null.")
    if not isinstance(plan.assumptions, list) or not all(isinstance(text, str) for text in plan.assumptions):
        raise RequestError(
            f"The plan's assumptions is {plan.assumptions!r}; give a list of sentences in quotes, or []."
        )


def check_source(plan: "Plan") -> None:
    """Raise RequestError unless what a plan says of sources is allowed and agrees."""
    if not plan.source_windows or any(
        len(window) != 2 or not -math.inf < window[0] < window[1] < math.inf for window in plan.source_windows
    ):
        raise RequestError(
            f"The plan's source_windows is {plan.source_windows}; "
            "give one or more [low, high] with low < high."
        )
    if plan.spacing is not None and (len(plan.spacing) != 3 or not all(0 < s < 100 for s in plan.spacing)):
        raise RequestError(
            f"The plan's spacing is {plan.spacing}; give three voxel edges in mm between 0 and 100, or null."
        )
    if plan.crop_margin_mm is not None and not 0 <= plan.crop_margin_mm < math.inf:
        raise RequestError(
            f"The plan's crop_margin_mm is {plan.crop_margin_mm}; give 0 or more, or null for no cropping."
        )
    if plan.body_threshold is not None and not math.isfinite(plan.body_threshold):
        raise RequestError(f"The plan's body_threshold is {plan.body_threshold}; give a number, or null.")
    if plan.source_units == "relative":
        if plan.source_percentile is None or not 0 < plan.source_percentile <= 100:
            raise RequestError(
                f"The plan's source_percentile is {plan.source_percentile}; where source_units is "
                "relative, give a number above 0 and up to 100."
            )
        if plan.body_threshold is not None:
            raise RequestError(
                f"The plan's body_threshold is {plan.body_threshold:g}; where source_units is relative "
                "it is found for each volume: set it to null."
            )
    elif plan.source_percentile is not None:
        raise RequestError(
            f"The plan's source_percentile is {plan.source_percentile:g}, and source_units is "
            f"{plan.source_units}; set it to null, or source_units to relative."
        )


def check_target(plan: "Plan") -> None:
    """Raise RequestError unless what a plan says of targets is allowed and agrees."""
    if not 0 < plan.target_percentile <= 100:
        raise RequestError(
            f"The plan's target_percentile is {plan.target_percentile}; give a number above 0 and up to 100."
        )
    if (plan.target_scaling == "window") != (plan.target_units == "HU"):
        raise RequestError(
            f"The plan's target_scaling is {plan.target_scaling} and its target_units "
            f"{plan.target_units}; window goes with HU, percentile and zscore with relative."
        )
    low, high = plan.target_range
    if not -float("inf") < low < high < float("inf"):
        raise RequestError(
            f"The plan's target_range is {list(plan.target_range)}; give [low, high] with low < high."
        )
    if plan.target_scaling != "window":
        if plan.target_window is not None:
            raise RequestError(
                f"The plan's target_window is {plan.target_window}, and target_scaling is "
                f"{plan.target_scaling}; set it to null."
            )
        if plan.target_scaling == "percentile" and low != 0:
            raise RequestError(
                f"The plan's target_range is {list(plan.target_range)}; where target_scaling is "
                "percentile it begins at 0."
            )
        return
    if plan.target_window != [low, high]:
        raise RequestError(
            f"The plan's target_window is {plan.target_window} and its target_range {[low, high]}; "
            "where target_scaling is window, give the same [low, high] for both."
        )
    if plan.enhance_contrast:
        raise RequestError(
            "The plan's enhance_contrast would change HU into something else; set it to false."
        )
