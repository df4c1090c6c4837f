"""One pair: whether source and target belong together, and the target on its source's working grid."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ct2mri.data.geometry import grid_with_spacing, resample
from ct2mri.data.intensity import (
    AIR_HU,
    TARGET_STEP,
    border_padding,
    defaced,
    enhance_local_contrast,
    scale_target,
    target_reference,
)
from ct2mri.data.plan import ZSCORE_REACH, Plan, SourceUnits, TargetUnits, modality_is_mr
from ct2mri.data.plausibility import require_ct, require_finite, require_no_ct
from ct2mri.data.replay import PreparedSource
from ct2mri.data.volume import Grid, Volume
from ct2mri.errors import RequestError

# Below what a scanner measures: the filling outside a CT's round field of view.
_CT_PADDING_HU = -1500.0

# HU between which every T1-, T2- or proton-weighted target shows signal: soft tissue and fat.
_SIGNAL_HU = (-200.0, 250.0)

# Share of the body that the target must show for the pair to be one of the same patient and place.
_SMALLEST_OVERLAP = 0.05


def check_pair(source: Volume, target: Volume, source_units: SourceUnits, target_units: TargetUnits) -> None:
    """Refuse a pair that cannot be used, whatever the plan.

    Raises:
        RequestError: with the reason.
    """
    if source_units == "HU":
        require_ct(source)
    elif source_units == "relative":
        require_no_ct(source)
    else:
        require_finite(source)
    try:
        if target_units == "HU":
            require_ct(target)
        elif source_units == "grey":
            require_finite(target)
        else:
            require_no_ct(target)
    except RequestError as error:
        raise RequestError(f"in the target: {error}") from error
    blank = target_units == "relative" and not (target.array > 0).any()
    if blank or target.array.min() == target.array.max():
        raise RequestError(f"the target shows nothing (all voxels are {target.array.max():g} or less)")
    i, j, k = (max(edge, 3.0) for edge in source.spacing)
    if not _seen(target, grid_with_spacing(source.grid, (i, j, k))).any():
        raise RequestError(
            "the grids of source and target do not overlap; they are of different patients or frames of "
            "reference"
        )


def _seen(target: Volume, grid: Grid) -> NDArray[np.bool_]:
    """Where a grid lies within a volume's field of view."""
    ones = target.with_array(np.ones(target.spatial_shape, dtype=np.float32))
    return resample(ones, grid, interpolation="nearest", fill=0).array > 0.5


@dataclass(frozen=True, eq=False)
class PreparedTarget:
    """A target volume on the working grid of its source.

    Attributes:
        array: float32 (i, j, k), scaled; clipped to [−1, 1] where the plan scales by a window.
        valid: bool (i, j, k), where the target was seen.
        target_range: the target's own values that were mapped to −1 and 1.
        seen_share: share of the body inside the target's field of view.
        defaced_cm3: volume of the blocks blanked inside the body.
    """

    array: NDArray[np.float32]
    valid: NDArray[np.bool_]
    target_range: tuple[float, float]
    seen_share: float
    defaced_cm3: float


def prepare_target(source: Volume, target: Volume, prepared: PreparedSource, plan: Plan) -> PreparedTarget:
    """Bring a target volume onto its source's working grid and scale it as the plan says.

    Not valid are voxels outside the target's field of view; of an MR also its borders of exact zeros
    (volumes) and blocks inside the body that were blanked (see `defaced`); of a CT the filling around its
    round field of view.

    Raises:
        RequestError: the target shows next to nothing of the body, or no signal in it.
    """
    seen = _seen(target, prepared.grid)
    body = int(np.count_nonzero(prepared.mask))
    seen_share = np.count_nonzero(seen & prepared.mask) / body
    if seen_share < _SMALLEST_OVERLAP:
        raise RequestError(
            f"the target shows {100 * seen_share:.1f} % of the body; the grids of source and "
            "target hardly overlap"
        )
    blocks = np.zeros(prepared.mask.shape, dtype=bool)
    valid = seen
    if plan.target_units == "HU":
        valid = seen & _on_grid(target, target.array > _CT_PADDING_HU, prepared.grid)
    elif modality_is_mr(plan.target_modality):
        if plan.source_units != "grey":
            valid = seen & _on_grid(target, ~border_padding(target.array), prepared.grid)
        at_floor = (target.array == 0) | (target.array == target.array.min())
        dark = _on_grid(target, at_floor, prepared.grid)
        blocks = defaced(dark, prepared.mask, _tissue(source, prepared, plan), prepared.grid.spacing)
        valid = valid & ~blocks
    counted = valid & prepared.mask
    if np.count_nonzero(counted) < _SMALLEST_OVERLAP * body:
        raise RequestError("the target is blank or padding over almost all of the body")
    array, target_range = (_in_window if plan.target_units == "HU" else _on_own_scale)(
        target, prepared, counted, plan
    )
    return PreparedTarget(
        array,
        valid,
        target_range,
        float(seen_share),
        float(np.count_nonzero(blocks & prepared.mask) * np.prod(prepared.grid.spacing) / 1000),
    )


def _on_grid(volume: Volume, where: NDArray[np.bool_], grid: Grid) -> NDArray[np.bool_]:
    """Which voxels of a grid lie wholly where something holds for a volume's voxels."""
    return resample(volume.with_array(where), grid, fill=0).array > 0.999


def _tissue(source: Volume, prepared: PreparedSource, plan: Plan) -> NDArray[np.bool_]:
    """Where the source shows something that every MR sequence gives signal for, on the working grid."""
    if plan.source_units == "grey":
        # Pictures scaled one by one: the darkest value is air, the median of the body soft tissue at about
        # 1000 HU above it, so that these shares of the difference are about -500 and 250 HU.
        air = float(source.array.min())
        soft = float(np.median(source.array[prepared.mask])) - air
        return (source.array - air > 0.5 * soft) & (source.array - air < 1.25 * soft)
    values = resample(source, prepared.grid, fill=plan.source_fill).array
    if plan.source_units == "HU":
        return (values > _SIGNAL_HU[0]) & (values < _SIGNAL_HU[1])
    return values > 0.5 * float(np.median(values[prepared.mask]))


def _in_window(
    target: Volume, prepared: PreparedSource, counted: NDArray[np.bool_], plan: Plan
) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """A target in HU on the working grid, the plan's window mapped to [−1, 1], and the window."""
    measured = target.with_array(np.maximum(target.array, AIR_HU))
    hu = resample(measured, prepared.grid, fill=AIR_HU).array
    return np.clip(scale_target(hu, plan.target_range), -1, 1), plan.target_range


def _on_own_scale(
    target: Volume, prepared: PreparedSource, counted: NDArray[np.bool_], plan: Plan
) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """A target without units on the working grid, scaled by its own values where they count.

    A gain of the scanner cancels: the same target times 10 gives the same array, bit for bit, as long as its
    file holds the products exactly (whole numbers do) and its shading is not corrected.

    Returns:
        The scaled array, and the target's own values that were mapped to −1 and 1.

    Raises:
        RequestError: there is no signal in the body.
    """
    if plan.bias_correction and modality_is_mr(plan.target_modality):
        from ct2mri.data.bias import correct_bias

        target = correct_bias(target, Volume(prepared.mask.astype(np.float32), prepared.grid.affine))
    # The gain goes first, in float64, so that nothing after it can tell one gain from another.
    native = target.array.astype(np.float64)
    gain = float(np.percentile(native[native > 0], 99.5))
    level = target.with_array(np.rint(native / (gain * TARGET_STEP)) * TARGET_STEP)
    on_grid = resample(level, prepared.grid, fill=0).array
    low, high = 0.0, target_reference(on_grid, counted, plan.target_percentile)
    if high <= 0:
        raise RequestError(
            f"the target's percentile {plan.target_percentile:g} inside the body is not above 0"
        )
    if plan.enhance_contrast:
        on_grid = enhance_local_contrast(on_grid, high)
    if plan.target_scaling == "zscore":
        values = on_grid[counted].astype(np.float64)
        mean, reach = float(values.mean()), ZSCORE_REACH * float(values.std())
        if reach <= 0:
            raise RequestError("the target is the same all over the body")
        low, high = mean - reach, mean + reach
    return scale_target(on_grid, (low, high)), (low * gain, high * gain)
