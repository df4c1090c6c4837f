"""The error of a result where the truth is there: what it shows too much or too little."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.viewer.reading import keep, load_kept
from ct2mri.viewer.stored import Described, StoredVolume


def keep_error(
    result: tuple[Path, str], target: tuple[Path, str], folder: Path, described: Described
) -> None:
    """Keep the error of one kept volume against another as the volume `error` of a folder.

    Raises:
        RequestError: they lie on different grids, or the result is of one value throughout.
    """
    volume = load_kept(*result)
    in_hu = StoredVolume.of(*result).modality == "CT" and StoredVolume.of(*target).modality == "CT"
    write_error(volume, load_kept(*target), in_hu, folder, described)


def write_error(result: Volume, target: Volume, in_hu: bool, folder: Path, described: Described) -> None:
    """Keep `result` − gain × `target` inside the body, 0 outside, as the volume `error` of a folder.

    The body is where the result is above its lowest value, which is its air. Values without units have no
    common scale: there the gain is that of least squares inside the body; in HU it is 1.

    Raises:
        RequestError: as `keep_error`.
    """
    if not result.grid.matches(target.grid, tolerance_mm=0.01):
        raise RequestError(
            "The result and the truth lie on different grids, so there is no difference voxel by voxel; "
            "resample one of them."
        )
    body = result.array > result.array.min()
    if not body.any():
        raise RequestError("The result has the same value everywhere; there is no error to show.")
    found, truth = result.array[body].astype(np.float64), target.array[body].astype(np.float64)
    square = float(truth @ truth)
    gain = 1.0 if in_hu or square == 0 else float(truth @ found) / square
    error = np.zeros_like(result.array)
    error[body] = found - gain * truth
    units = "HU" if in_hu else f"units of the result; truth × {gain:.4g} (least squares in the body)"
    keep(Volume(error, result.affine), folder, "error", replace(described, units=units))
