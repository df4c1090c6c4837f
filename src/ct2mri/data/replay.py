"""A plan followed: `prepare_source` and `restore_to_input`, the one way to the networks and back."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct2mri.data.plan import Plan, modality_is_mr
from ct2mri.data.volume import Grid, Volume
from ct2mri.errors import RequestError


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

    Turned to RAS+ voxel order, rid of shading (MR, where the plan says so), resampled to the plan's spacing,
    masked, divided by its own percentile ("relative"), cropped to the body with the plan's margin, rid of
    what lies outside the body (where the plan says so), windowed to [−1, 1].

    Args:
        volume: the source in its own units, finite.
        plan: the plan to follow.
        mask: the body (voxels above 0.5) on any grid; without one it is found by threshold.

    Raises:
        RequestError: there is no body in the volume, or the mask is empty where the volume lies.
    """
    from ct2mri.data.geometry import Box, crop_or_pad, grid_with_spacing, resample, to_canonical
    from ct2mri.data.intensity import relative_to_percentile, scale_windows

    working, _ = to_canonical(volume)
    if plan.source_units == "HU":
        # Scanners fill what lies outside their round field of view with -2000 or less; resampling would
        # spread that into its surroundings.
        working = working.with_array(np.maximum(working.array, plan.source_fill))
    if plan.bias_correction and modality_is_mr(plan.source_modality):
        from ct2mri.data.bias import correct_bias

        working = correct_bias(working, mask)
    if plan.spacing is not None:
        grid = grid_with_spacing(working.grid, plan.spacing)
        if not _same_voxels(grid, working.grid):
            working = resample(working, grid, fill=plan.source_fill)
    body = _body(working, plan, mask)
    if plan.source_percentile is not None:
        working = working.with_array(relative_to_percentile(working.array, body, plan.source_percentile))
    if plan.remove_table:
        working = working.with_array(np.where(body, working.array, np.float32(plan.source_fill)))
    if plan.crop_margin_mm is not None:
        i, j, k = (round(plan.crop_margin_mm / edge) for edge in working.spacing)
        box = Box.around(body, (i, j, k))
        working = crop_or_pad(working, box, plan.source_fill)
        body = body[tuple(slice(low, high) for low, high in zip(box.lower, box.upper, strict=True))]
    return PreparedSource(
        scale_windows(working.array, plan.source_windows), np.ascontiguousarray(body), working.grid
    )


def _body(working: Volume, plan: Plan, mask: Volume | None) -> NDArray[np.bool_]:
    """The body on the working grid: of the mask, where there is one, else by threshold.

    Raises:
        RequestError: there is none.
    """
    from ct2mri.data.geometry import resample
    from ct2mri.data.intensity import body_mask, otsu_threshold

    if mask is not None:
        body = resample(mask, working.grid, interpolation="nearest", fill=0).array > 0.5
        if not body.any():
            raise RequestError(
                "The body mask has no voxel above 0.5 where the source volume lies; "
                "give a mask of the same patient in the same space."
            )
        return body
    threshold = plan.body_threshold
    if plan.source_units == "relative":
        threshold = otsu_threshold(working.array)
    if threshold is None:
        return np.ones(working.spatial_shape, dtype=bool)
    body = body_mask(working.array, working.spacing, threshold)
    if not body.any():
        what = plan.source_units if plan.source_units != "relative" else f"{plan.source_modality} values"
        raise RequestError(
            f"No body was found: nothing thicker than a few mm lies above {threshold:g} "
            f"(largest value {working.array.max():g}); give a volume in {what}, or a mask."
        )
    return body


def to_target_units(scaled: NDArray[np.float32], plan: Plan) -> NDArray[np.float32]:
    """Target values, float32 and not below the plan's `target_fill`, of a volume in the networks' units."""
    from ct2mri.data.intensity import unscale_target

    return np.maximum(unscale_target(scaled, plan.target_range), np.float32(plan.target_fill))


def to_target_spread(scaled: NDArray[np.float32], plan: Plan) -> NDArray[np.float32]:
    """A spread, float32, in target units, of one in the networks' units."""
    low, high = plan.target_range
    return scaled * np.float32((high - low) / 2)


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
