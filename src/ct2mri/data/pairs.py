"""One pair: whether source and target belong together, and the target on its source's working grid."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ct2mri.data.geometry import grid_with_spacing, resample
from ct2mri.data.intensity import TARGET_STEP, border_padding, defaced, scale_target, target_reference
from ct2mri.data.plan import Plan, PreparedSource
from ct2mri.data.plausibility import require_ct, require_finite
from ct2mri.data.volume import Grid, Volume
from ct2mri.errors import RequestError

# HU between which every T1-, T2- or proton-weighted target shows signal: soft tissue and fat.
_SIGNAL_HU = (-200.0, 250.0)

# Share of the body that the target must show for the pair to be one of the same patient and place.
_SMALLEST_OVERLAP = 0.05


def check_pair(source: Volume, target: Volume, in_hu: bool) -> None:
    """Refuse a pair that cannot be used, whatever the plan.

    Raises:
        RequestError: with the reason.
    """
    if in_hu:
        require_ct(source)
    else:
        require_finite(source)
    try:
        require_finite(target)
    except RequestError as error:
        raise RequestError(f"in the target: {error}") from error
    if target.metadata.get("modality") == "CT":
        raise RequestError("the target's header says that it is a CT; give the MR")
    if not (target.array > 0).any() or target.array.min() == target.array.max():
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
        array: float32 (i, j, k), scaled, not clipped.
        valid: bool (i, j, k), where the target was seen.
        reference: the target's own value that was mapped to 1.
        seen_share: share of the body inside the target's field of view.
        defaced_cm3: volume of the blocks blanked inside the body.
    """

    array: NDArray[np.float32]
    valid: NDArray[np.bool_]
    reference: float
    seen_share: float
    defaced_cm3: float


def prepare_target(source: Volume, target: Volume, prepared: PreparedSource, plan: Plan) -> PreparedTarget:
    """Bring a target volume onto its source's working grid and scale it.

    Not valid are voxels outside the target's field of view, its borders of exact zeros (volumes), and blocks
    inside the body that were blanked (see `defaced`). The reference value is the plan's percentile over the
    valid body. A gain of the scanner cancels: the same target times 10 gives the same array, bit for bit, as
    long as its file holds the products exactly (whole numbers do).

    Raises:
        RequestError: the target shows next to nothing of the body, or no signal in it.
    """
    # The gain goes first, in float64, so that nothing after it can tell one gain from another.
    native = target.array.astype(np.float64)
    gain = float(np.percentile(native[native > 0], 99.5))
    level = target.with_array(np.rint(native / (gain * TARGET_STEP)) * TARGET_STEP)
    on_grid = resample(level, prepared.grid, fill=0).array

    seen = _seen(target, prepared.grid)
    body = int(np.count_nonzero(prepared.mask))
    seen_share = np.count_nonzero(seen & prepared.mask) / body
    if seen_share < _SMALLEST_OVERLAP:
        raise RequestError(
            f"the target shows {100 * seen_share:.1f} % of the body; the grids of source and "
            "target hardly overlap"
        )
    at_floor = (native == 0) | (native == native.min())
    dark = resample(target.with_array(at_floor), prepared.grid, fill=0).array > 0.999
    valid = seen
    if plan.source_units == "HU":
        measured = target.with_array(~border_padding(target.array))
        valid = seen & (resample(measured, prepared.grid, fill=0).array > 0.999)
        hu = resample(source, prepared.grid, fill=plan.source_fill).array
        tissue = (hu > _SIGNAL_HU[0]) & (hu < _SIGNAL_HU[1])
    else:
        # Pictures scaled one by one: the darkest value is air, the median of the body soft tissue at about
        # 1000 HU above it, so that these shares of the difference are about -500 and 250 HU.
        air = source.array.min()
        soft = np.median(source.array[prepared.mask]) - air
        tissue = (source.array - air > 0.5 * soft) & (source.array - air < 1.25 * soft)
    blocks = defaced(dark, prepared.mask, tissue, prepared.grid.spacing)
    valid = valid & ~blocks
    counted = valid & prepared.mask
    if np.count_nonzero(counted) < _SMALLEST_OVERLAP * body:
        raise RequestError("the target is blank or padding over almost all of the body")
    reference = target_reference(on_grid, counted, plan.target_percentile)
    if reference <= 0:
        raise RequestError(
            f"the target's percentile {plan.target_percentile:g} inside the body is not above 0"
        )
    return PreparedTarget(
        scale_target(on_grid, reference),
        valid,
        reference * gain,
        float(seen_share),
        float(np.count_nonzero(blocks & prepared.mask) * np.prod(prepared.grid.spacing) / 1000),
    )
