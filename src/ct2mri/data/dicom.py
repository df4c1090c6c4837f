"""DICOM in: the image series among any files, and a series as one volume.

Which files belong together is found in `dicom_series`, where slices lie in `dicom_frames`, and what their
pixels mean in `dicom_pixels`.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ct2mri.data.dicom_files import frame_value, read_header, read_whole_header
from ct2mri.data.dicom_frames import DIFFERENCES, GEOMETRY_KEYWORDS, Frame, Stack, frames_of, stack_frames
from ct2mri.data.dicom_header import stored_per_unit
from ct2mri.data.dicom_origin import DicomOrigin
from ct2mri.data.dicom_pixels import PIXEL_KEYWORDS, read_planes
from ct2mri.data.dicom_series import DicomScan, DicomSeries, find_series, scan_files
from ct2mri.data.geometry import LPS_TO_RAS
from ct2mri.data.intensity import AIR_HU
from ct2mri.data.volume import SYNTHETIC, Volume
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

_SLICE_KEYWORDS = {*GEOMETRY_KEYWORDS, *DIFFERENCES, *PIXEL_KEYWORDS, "RescaleType", "LossyImageCompression"}
_NO_SCANS = ("RTDOSE", "SEG")  # they lie in space as scans do, and beside them in exports of radiotherapy
_SHOWN = 6

SCALE_IS_LOST = (
    "is a synthetic MR whose headers no longer tell (in the derivation description) by what its values were "
    "multiplied to be stored"
)


def load_dicom_files(files: list[Path], name: str) -> Volume:
    """Read the one image series among some files.

    Args:
        files: candidates; those that are not DICOM images are passed over with a warning, and so are, beside
            one series, scouts, doses, segmentations and pictures without a place in space (reports).
        name: what messages call the whole.

    Raises:
        RequestError: there is no series or more than one, or its slices do not fill a regular grid.
    """
    found = find_series(files, name)
    if not found:
        raise RequestError(
            f"{name} holds no DICOM image; give a folder with the slices of one series, or a volume file."
        )
    wanted = [
        series
        for series in found
        if series.located and not series.facts["localizer"] and series.modality not in _NO_SCANS
    ]
    if len(found) == 1:
        wanted = found
    if len(wanted) != 1:
        shown = "; ".join(series.label for series in found[:_SHOWN])
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise RequestError(
            f"{name} holds {len(found)} image series where one is needed: {shown}{more}; "
            "put the slices of one series into a folder of their own."
        )
    volume = load_series(wanted[0], name)
    warnings = []
    others = len(files) - sum(len(series.files) for series in found)
    if others:
        warnings.append(f"Passed over {others} of {len(files)} files in {name} that are not DICOM images.")
    if len(found) > 1:
        passed = "; ".join(series.label for series in found if series is not wanted[0])
        warnings.append(f"Passed over what is no scan in {name}: {passed}.")
    volume.metadata["warnings"][:0] = warnings
    return volume


def load_series(series: DicomSeries, name: str) -> Volume:
    """Read a series as one volume.

    Args:
        series: one of `find_series`.
        name: what messages call it.

    Returns:
        The volume, its slices along k in the direction of rows × columns, in HU for a CT; padding is −1024 HU
        there and 0 elsewhere. Its metadata hold the facts of the series, `modality`, `warnings` and `dicom`,
        a `DicomOrigin`. Of a synthetic MR that was stored times `stored_per_unit`, which the metadata then
        hold as well, the values are those before; where its headers no longer tell, that is None.

    Raises:
        RequestError: its slices do not fill a regular grid, or a file is damaged.
    """
    frames = [
        frame for path in series.files for frame in frames_of(path, read_header(path, _SLICE_KEYWORDS), name)
    ]
    stack = stack_frames(frames, name)
    first = stack.frames[0].header
    rows, columns, slices = int(first.Rows), int(first.Columns), len(stack.frames)
    array = np.empty((columns, rows, slices), dtype=np.float32)
    fill = AIR_HU if series.modality == "CT" else 0.0
    for k, plane in enumerate(read_planes(stack.frames, fill, name)):
        array[:, :, k] = plane.T
    origin = _origin(stack)
    metadata: dict[str, Any] = {
        **series.facts,
        "warnings": stack.warnings + _warnings(stack.frames[0], series.modality, name),
        "dicom": origin,
    }
    if series.modality:
        metadata["modality"] = series.modality
    if series.synthetic:  # copies say so too, though somebody may have called the series something else
        marked = SYNTHETIC in series.description
        metadata["description"] = series.description if marked else f"{SYNTHETIC} {series.description}"
    per_unit = stored_per_unit(origin.header)
    if per_unit != 1:
        metadata["stored_per_unit"] = per_unit
    if per_unit is None:
        metadata["warnings"].append(f"{name} {SCALE_IS_LOST}: they are taken as they are stored.")
    elif per_unit != 1:
        array /= np.float32(per_unit)
    return Volume(array, LPS_TO_RAS @ stack.affine, metadata)


def _warnings(frame: Frame, modality: str, name: str) -> list[str]:
    warnings = []
    if modality == "CT":
        kind = str(frame_value(frame.header, "RescaleType", frame.index) or "HU")
        if kind not in ("HU", "HU_MOD", "US"):  # US: unspecified, which older scanners mean HU by
            warnings.append(f"{name} says that its values are {kind}, not HU.")
        if frame_value(frame.header, "RescaleIntercept", frame.index) is None:
            warnings.append(f"{name} does not say how stored values become HU: they are taken as HU.")
    if str(frame.header.get("LossyImageCompression") or "") == "01":
        warnings.append(f"{name} was compressed with loss: fine detail may be made up.")
    return warnings


def _origin(stack: Stack) -> DicomOrigin:
    several = "PerFrameFunctionalGroupsSequence" in stack.frames[0].header
    header = read_whole_header(stack.frames[0].path)
    return DicomOrigin(
        header=header,
        sop_class_uid=str(header.get("SOPClassUID") or ""),
        sop_instance_uids=tuple(str(frame.header.get("SOPInstanceUID") or "") for frame in stack.frames),
        frame_numbers=tuple(frame.index + 1 for frame in stack.frames) if several else None,
    )
