"""DICOM series: which files make one volume, where its slices lie, which stored values are no measurement.

Headers are read with pydicom, pixels (compressed ones too) with SimpleITK's GDCM reader.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK
from numpy.typing import NDArray

from ct2mri.data.dicom_files import read_header
from ct2mri.data.dicom_origin import DicomOrigin
from ct2mri.data.dicom_series import DicomScan, DicomSeries, find_series, scan_files
from ct2mri.data.geometry import from_sitk
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError

__all__ = [
    "DicomOrigin",
    "DicomScan",
    "DicomSeries",
    "find_series",
    "load_dicom_files",
    "load_series",
    "scan_files",
]

AIR_HU = -1024.0
"""What padding of a CT becomes: as far below tissue as CT scanners themselves count."""

_POSITION_TOLERANCE = 0.05  # of the slice distance
_DRIFT_TOLERANCE = 0.25  # of a pixel, over the whole stack


def load_dicom_files(files: list[Path], name: str) -> Volume:
    """Read the one image series among some files.

    Args:
        files: candidates; those that are not DICOM images are passed over with a warning.
        name: what messages call the whole.

    Raises:
        RequestError: there is no series or more than one, or its slices do not fill a regular grid.
    """
    found = find_series(files, name)
    if not found:
        raise RequestError(
            f"{name} holds no DICOM image; give a folder with the slices of one series, or a volume file."
        )
    if len(found) > 1:
        raise RequestError(
            f"{name} holds {len(found)} image series where one is needed: "
            f"{'; '.join(series.label for series in found)}; "
            "put the slices of one series into a folder of their own."
        )
    volume = load_series(found[0], name)
    others = len(files) - len(found[0].files)
    if others:
        volume.metadata["warnings"].insert(
            0, f"Passed over {others} of {len(files)} files in {name} that are not DICOM images."
        )
    return volume


def load_series(series: DicomSeries, name: str) -> Volume:
    """Read a series as one volume.

    Args:
        series: one of `find_series`.
        name: what messages call it.

    Returns:
        The volume (CT in HU, padding as air); its metadata hold the facts of the series, `modality`,
        `warnings` and `dicom`, a `DicomOrigin`.

    Raises:
        RequestError: its slices do not fill a regular grid, or a file is damaged.
    """
    slices = [(path, read_header(path)) for path in series.files]
    slices, geometry, warnings = _arrange(slices, name)
    first = slices[0][1]
    metadata: dict[str, Any] = {
        **series.facts,
        "warnings": warnings,
        "dicom": DicomOrigin(
            first, str(first.SOPClassUID), tuple(str(header.SOPInstanceUID) for _, header in slices)
        ),
    }
    if series.modality:
        metadata["modality"] = series.modality
    image = _read_pixels([path for path, _ in slices], name)
    image.SetSpacing(geometry["spacing"])
    image.SetOrigin(geometry["origin"])
    image.SetDirection(geometry["direction"])
    volume = from_sitk(image, metadata)
    for k, (_, header) in enumerate(slices):
        _clear_padding(volume.array[:, :, k], header, AIR_HU if series.modality == "CT" else 0.0)
    return volume


_Slices = list[tuple[Path, pydicom.Dataset]]


def _numbers(header: pydicom.Dataset, keyword: str, count: int) -> NDArray[np.float64] | None:
    value = header.get(keyword)
    try:
        numbers = np.array(value, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        return None
    return numbers if numbers.size == count and np.isfinite(numbers).all() else None


def _number(header: pydicom.Dataset, keyword: str, default: float) -> float:
    """One number of a header, or the default where it is absent or empty."""
    if header.get(keyword) in (None, ""):
        return default
    number = _numbers(header, keyword, 1)
    if number is None:
        raise RequestError(
            f"A DICOM header says {keyword} = {header.get(keyword)!r}, which is no number; "
            "export the series again."
        )
    return float(number[0])


def _arrange(slices: _Slices, name: str) -> tuple[_Slices, dict[str, list[float]], list[str]]:
    """Sort slices along their normal and state their grid in LPS; refuse what is not a regular grid."""
    positions, orientations, spacings = [], [], []
    for _, header in slices:
        if _number(header, "NumberOfFrames", 1) > 1:
            raise RequestError(
                f"{name} is a multi-frame DICOM, which cannot be read here; "
                "convert it to NIfTI first, for example with dcm2niix."
            )
        if _number(header, "SamplesPerPixel", 1) > 1:
            raise RequestError(f"{name} holds colour images; a CT or MR series with grey values is needed.")
        position = _numbers(header, "ImagePositionPatient", 3)
        orientation = _numbers(header, "ImageOrientationPatient", 6)
        spacing = _numbers(header, "PixelSpacing", 2)
        if position is None or orientation is None or spacing is None or (spacing <= 0).any():
            raise RequestError(
                f"{name} holds an image that does not say where it lies (position, orientation or pixel "
                "spacing is missing); export the original series again."
            )
        positions.append(position)
        orientations.append(orientation)
        spacings.append(spacing)
    sizes = {(int(header.Rows), int(header.Columns)) for _, header in slices}
    if len(sizes) > 1 or np.ptp(orientations, axis=0).max() > 1e-3 or np.ptp(spacings, axis=0).max() > 1e-3:
        raise RequestError(
            f"The slices of {name} differ in size, pixel spacing or direction (perhaps a scout view is "
            "among them), so they make no volume; leave only the slices of one stack."
        )
    row, column = orientations[0][:3], orientations[0][3:]
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(float(row @ column))) > 1e-2:
        raise RequestError(f"The image orientation in {name} is no pair of perpendicular directions.")
    row = row / lengths[0]
    column = column - (column @ row) * row
    column = column / np.linalg.norm(column)
    normal = np.cross(row, column)
    order = np.argsort([position @ normal for position in positions], kind="stable")
    slices = [slices[n] for n in order]
    stack = np.array([positions[n] for n in order])
    warnings = []
    if len(slices) == 1:
        thickness, warning = _thickness(slices[0][1], name)
        warnings.append(warning)
    else:
        thickness = _distance(stack, normal, float(spacings[0].min()), name)
    geometry = {
        # PixelSpacing counts the distance of rows first; along i lie the columns
        "spacing": [float(spacings[0][1]), float(spacings[0][0]), thickness],
        "origin": stack[0].tolist(),
        "direction": np.stack([row, column, normal], axis=1).ravel().tolist(),
    }
    return slices, geometry, warnings


def _thickness(header: pydicom.Dataset, name: str) -> tuple[float, str]:
    """The depth in mm of a series of one slice, and the warning that goes with it."""
    for keyword in ("SliceThickness", "SpacingBetweenSlices"):
        value = _numbers(header, keyword, 1)
        if value is not None and value[0] > 0:
            return float(value[0]), (
                f"{name} is a single slice: read as a volume one voxel deep, {value[0]:g} mm thick; "
                "give the folder for a whole series."
            )
    return 1.0, f"{name} is a single slice that does not state its thickness: 1 mm is assumed."


def _distance(stack: NDArray[np.float64], normal: NDArray[np.float64], pixel: float, name: str) -> float:
    """The one distance in mm between neighbouring slices of a sorted stack of positions (n, 3)."""
    heights = stack @ normal
    steps = np.diff(heights)
    if steps.min() < 1e-3:
        raise RequestError(
            f"{name} holds several slices at one position (several phases or copies in one series?); "
            "leave one slice per position."
        )
    distance = float((heights[-1] - heights[0]) / (len(heights) - 1))
    uneven = np.abs(heights - np.linspace(heights[0], heights[-1], len(heights))).max()
    if uneven > _POSITION_TOLERANCE * distance:
        raise RequestError(
            f"The slices of {name} are unevenly spaced ({steps.min():.2f} to {steps.max():.2f} mm apart): "
            "slices are missing or of several stacks; export the whole series again."
        )
    drift = stack - stack[0] - np.outer(heights - heights[0], normal)
    if np.linalg.norm(drift, axis=1).max() > _DRIFT_TOLERANCE * pixel:
        tilt = np.degrees(np.arctan2(np.linalg.norm(drift[-1]), heights[-1] - heights[0]))
        raise RequestError(
            f"The slices of {name} are stacked obliquely (gantry tilt of {tilt:.1f}°), which is not "
            "supported; correct the tilt first, for example with dcm2niix."
        )
    return distance


def _read_pixels(files: list[Path], name: str) -> SimpleITK.Image:
    """Pixels (k, j, i) after the rescale slope and intercept of each slice."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    reader.SetOutputPixelType(SimpleITK.sitkFloat32)
    display = SimpleITK.ProcessObject.GetGlobalWarningDisplay()
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # it would report unevenness that was judged above
    try:
        image: SimpleITK.Image = reader.Execute()
    except RuntimeError as error:
        raise RequestError(
            f"The pixels of {name} cannot be read: a file is damaged or compressed in an unknown way; "
            "export the series again, uncompressed."
        ) from error
    finally:
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(display)
    return image


def _clear_padding(plane: NDArray[np.float32], header: pydicom.Dataset, fill: float) -> None:
    """Overwrite padding pixels (i, j) in place: `PixelPaddingValue` is a value before rescaling."""
    limits = [header.get("PixelPaddingValue"), header.get("PixelPaddingRangeLimit")]
    if limits[0] is None:
        return
    slope = _number(header, "RescaleSlope", 1)
    intercept = _number(header, "RescaleIntercept", 0)
    span = 2 ** int(_number(header, "BitsAllocated", 16))
    lowest = -span // 2 if _number(header, "PixelRepresentation", 0) == 1 else 0
    # Some writers note a negative padding value as unsigned, or the other way round.
    stored = [(int(value) - lowest) % span + lowest for value in limits if value is not None]
    ends = [intercept + slope * (min(stored) - 0.5), intercept + slope * (max(stored) + 0.5)]
    plane[(plane > min(ends)) & (plane < max(ends))] = fill
