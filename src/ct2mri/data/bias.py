"""Correction of an MR's shading: signal that depends on the place in the coil and not on the tissue."""

import numpy as np
import SimpleITK

from ct2mri.data.alignment import coarsened, view, working_grid
from ct2mri.data.geometry import from_sitk, resample, to_sitk
from ct2mri.data.plausibility import require_finite
from ct2mri.data.registration_pyramid import one_thread
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError

_WORKING_MM = 6.0  # shading is smooth, so it is estimated on voxels of this size
_CONTROL_POINTS = [
    4,
    4,
    4,
]  # of the cubic B-spline at the first level; each level after it has twice as many spans
_STEPS = [50, 50, 30]  # greatest number at each level
_FEWEST_SLICES = 4
_LEAST_SIGNAL = 0.02  # of the body's mean; N4 works on logarithms


def correct_bias(volume: Volume, mask: Volume | None = None) -> Volume:
    """Divide an MR by its shading, found by N4 (Tustison et al., IEEE Transactions on Medical Imaging 2010).

    The shading is estimated inside the body on voxels of 6 mm and scaled so that the mean there stays; beyond
    the body it is held within its range inside. The same volume gives the same result, bit for bit.

    Args:
        volume: MR; negative values count as no signal.
        mask: the body (above 0.5) on any grid; found by threshold where not given.

    Returns:
        The corrected volume on the same grid.

    Raises:
        RequestError: values that are not finite, fewer than 4 slices or not more than 6 mm along an axis, or
            no body.
    """
    require_finite(volume)
    if min(volume.spatial_shape) < _FEWEST_SLICES:
        raise RequestError(
            f"The shading of a volume of {' × '.join(map(str, volume.spatial_shape))} voxels cannot be "
            f"estimated: N4 needs at least {_FEWEST_SLICES} along every axis, so go without bias correction."
        )
    grid = working_grid(volume, _WORKING_MM)
    if min(grid.shape) < 2:  # a slab that its working grid shows in one voxel
        extent = min(edge * size for edge, size in zip(volume.spacing, volume.spatial_shape, strict=True))
        raise RequestError(
            f"The shading of a volume {extent:.3g} mm thick cannot be estimated: N4 needs more than "
            f"{_WORKING_MM:g} mm along every axis, so go without bias correction."
        )
    named = Volume(volume.array, volume.affine, {"modality": "MR"})  # whatever its lowest value looks like
    body = view(named, grid, mask).body
    coarse = coarsened(volume, grid, fill=0).array
    if not body.any() or coarse[body].mean() <= 0:
        raise RequestError(
            "No body with signal was found, so there is no shading to estimate; give a volume that shows "
            "one, or a mask that is not empty."
        )
    signal = Volume(np.maximum(coarse, _LEAST_SIGNAL * coarse[body].mean()), grid.affine)
    image = to_sitk(signal)
    with one_thread():
        n4 = SimpleITK.N4BiasFieldCorrectionImageFilter()
        n4.SetNumberOfControlPoints(_CONTROL_POINTS)
        n4.SetMaximumNumberOfIterations(_STEPS)
        n4.Execute(image, to_sitk(signal.with_array(body)) > 0.5)
        shading = np.exp(from_sitk(n4.GetLogBiasFieldAsImage(image)).array)
    shading = np.clip(shading, shading[body].min(), shading[body].max())
    shading *= (signal.array[body] / shading[body]).mean() / signal.array[body].mean()
    fine = resample(signal.with_array(shading), volume.grid, fill=1).array
    return volume.with_array(volume.array / fine)
