"""Frames of DICOM images: where each lies, and the regular stack that they make or why they make none."""

import filecmp
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

from ct2mri.data.dicom_files import as_numbers, frame_number, frame_value
from ct2mri.errors import RequestError

GEOMETRY_KEYWORDS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "ImageType",
    "InstanceNumber",
    "ImagesInAcquisition",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
"""What frames are made of, beside `DIFFERENCES`."""

DIFFERENCES = (
    "ImageType",
    "FrameType",
    "EchoTime",
    "EffectiveEchoTime",
    "InversionTime",
    "FlipAngle",
    "DiffusionBValue",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "TriggerTime",
    "NominalCardiacTriggerDelayTime",
    "AcquisitionNumber",
    "AcquisitionTime",
    "ConvolutionKernel",
    "KVP",
)
"""What slices at one position usually differ in."""

_POSITION_TOLERANCE = 0.05  # of the slice distance,
_POSITION_ROUNDING_MM = 0.11  # or what rounding to tenths of a millimetre makes of slice and ends
_DRIFT_TOLERANCE = 0.25  # of a pixel, over the whole stack
_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice: a single-frame image, or one frame of a multi-frame one.

    Attributes:
        path: its file.
        index: its frame in the file, from 0.
        header: of the whole file.
        position: centre of the first pixel in LPS mm, (3,).
        orientation: directions of a row and of a column in LPS, (6,).
        spacing: distance of rows, then of columns, in mm.
    """

    path: Path
    index: int
    header: pydicom.Dataset
    position: NDArray[np.float64]
    orientation: NDArray[np.float64]
    spacing: NDArray[np.float64]

    @property
    def label(self) -> str:
        """What messages call it."""
        several = "PerFrameFunctionalGroupsSequence" in self.header
        return f"{self.path.name} frame {self.index + 1}" if several else self.path.name


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices that fill a regular grid.

    Attributes:
        frames: along their normal.
        affine: 4×4, voxel index (column, row, slice) → LPS mm.
        warnings: sentences that the user should see.
    """

    frames: list[Frame]
    affine: NDArray[np.float64]
    warnings: list[str]


def frames_of(path: Path, header: pydicom.Dataset, name: str) -> list[Frame]:
    """The frames of one file.

    Raises:
        RequestError: they are no grey slices, or do not say where they lie.
    """
    photometric = str(header.get("PhotometricInterpretation") or "MONOCHROME2")
    if frame_number(header, "SamplesPerPixel", 1) > 1 or not photometric.startswith("MONOCHROME"):
        raise RequestError(f"{name} holds colour images; a CT or MR series with grey values is needed.")
    if "MOSAIC" in str(header.get("ImageType") or ""):
        raise RequestError(
            f"{name} holds mosaics (all slices tiled into one picture), which cannot be read here; "
            "convert it to NIfTI first, for example with dcm2niix."
        )
    count = max(int(frame_number(header, "NumberOfFrames", 1)), 1)
    described = len(header.get("PerFrameFunctionalGroupsSequence") or [])
    if count > 1 and described != count:
        raise RequestError(
            f"{name} is a multi-frame DICOM of {count} frames that says of {described} where they lie; "
            "export the original series again, or convert it to NIfTI, for example with dcm2niix."
        )
    frames = []
    for index in range(count):
        position = as_numbers(frame_value(header, "ImagePositionPatient", index), 3)
        orientation = as_numbers(frame_value(header, "ImageOrientationPatient", index), 6)
        spacing = as_numbers(frame_value(header, "PixelSpacing", index), 2)
        if position is None or orientation is None or spacing is None or (spacing <= 0).any():
            raise RequestError(
                f"{name} holds an image that does not say where it lies (position, orientation or pixel "
                "spacing is missing); export the original series again."
            )
        frames.append(Frame(path, index, header, position, orientation, spacing))
    return frames


def stack_frames(frames: list[Frame], name: str) -> Stack:
    """Sort frames along their normal and state their grid; refuse what is not a regular grid.

    Raises:
        RequestError: several stacks or phases, slices missing, tilted or unevenly spaced.
    """
    frames, warnings = _without_copies(frames, name)
    row, column, normal = _directions(frames, name)
    frames = sorted(frames, key=lambda frame: float(frame.position @ normal))
    if len(frames) == 1:
        distance, warning = _thickness(frames[0], name)
        warnings.append(warning)
    else:
        heights = np.array([frame.position @ normal for frame in frames])
        _require_one_slice_per_position(frames, heights, name)
        _require_no_shear(frames, heights, normal, name)
        distance = _distance(heights, name)
        warnings += _ends_missing(frames, name)
    affine = np.eye(4)
    # PixelSpacing counts the distance of rows first; along i lie the columns
    affine[:3, 0] = row * frames[0].spacing[1]
    affine[:3, 1] = column * frames[0].spacing[0]
    affine[:3, 2] = normal * distance
    affine[:3, 3] = frames[0].position
    return Stack(frames, affine, warnings)


def _without_copies(frames: list[Frame], name: str) -> tuple[list[Frame], list[str]]:
    """Frames without those of files that are byte for byte another one: exports that overlap leave such."""
    firsts: dict[str, Path] = {}
    copies: set[Path] = set()
    for path, header in {frame.path: frame.header for frame in frames}.items():
        first = firsts.setdefault(str(header.get("SOPInstanceUID") or path), path)
        if first != path and filecmp.cmp(first, path, shallow=False):
            copies.add(path)
    if not copies:
        return frames, []
    warning = f"{len(copies)} files of {name} are copies of others and were passed over."
    if len(copies) == 1:
        warning = f"1 file of {name} is a copy of another and was passed over."
    return [frame for frame in frames if frame.path not in copies], [warning]


def _directions(frames: list[Frame], name: str) -> NDArray[np.float64]:
    """Directions of a row, a column and the normal of slices that share them, unit vectors in LPS, (3, 3)."""
    stacks = {str(frame_value(frame.header, "StackID", frame.index)) for frame in frames}
    if len(stacks) > 1:
        raise RequestError(
            f"{name} holds {len(stacks)} stacks of slices in one series; export each as a series of its own."
        )
    orientations = np.array([frame.orientation for frame in frames])
    spacings = np.array([frame.spacing for frame in frames])
    sizes = {(int(frame.header.Rows), int(frame.header.Columns)) for frame in frames}
    if len(sizes) > 1 or np.ptp(orientations, axis=0).max() > 1e-3 or np.ptp(spacings, axis=0).max() > 1e-3:
        raise RequestError(
            f"The slices of {name} differ in size, pixel spacing or direction (perhaps several stacks or a "
            "scout view are among them), so they make no volume; leave only the slices of one stack."
        )
    row, column = orientations[0][:3], orientations[0][3:]
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(float(row @ column))) > 1e-2:
        raise RequestError(f"The image orientation in {name} is no pair of perpendicular directions.")
    row = row / lengths[0]
    column = column - (column @ row) * row
    column = column / np.linalg.norm(column)
    return np.stack([row, column, np.cross(row, column)])


def _thickness(frame: Frame, name: str) -> tuple[float, str]:
    """The depth in mm of a series of one slice, and the warning that goes with it."""
    for keyword in ("SliceThickness", "SpacingBetweenSlices"):
        value = as_numbers(frame_value(frame.header, keyword, frame.index), 1)
        if value is not None and value[0] > 0:
            return float(value[0]), (
                f"{name} is a single slice: read as a volume one voxel deep, {value[0]:g} mm thick; "
                "give the folder for a whole series."
            )
    return 1.0, f"{name} is a single slice that does not state its thickness: 1 mm is assumed."


def _require_one_slice_per_position(frames: list[Frame], heights: NDArray[np.float64], name: str) -> None:
    repeated = np.flatnonzero(np.diff(heights) < 1e-3)
    if not repeated.size:
        return
    first = repeated[0]
    same = [frame for frame, z in zip(frames, heights, strict=True) if abs(z - heights[first]) < 1e-3]
    differing = []
    for keyword in DIFFERENCES:
        values = {str(frame_value(frame.header, keyword, frame.index)) for frame in same}
        if len(values) > 1:
            differing.append(keyword)
    why = (
        f"they differ in {', '.join(differing)}, so these are several phases, echoes or parts; export each "
        "as a series of its own"
        if differing
        else "nothing in their headers tells them apart; leave one slice per position"
    )
    raise RequestError(
        f"{name} holds several slices at one position, at {_listed(np.unique(heights[repeated].round(2)))} "
        f"along the stack ({', '.join(frame.label for frame in same[:_SHOWN])} share the first): {why}."
    )


def _require_no_shear(
    frames: list[Frame], heights: NDArray[np.float64], normal: NDArray[np.float64], name: str
) -> None:
    positions = np.array([frame.position for frame in frames])
    heights = heights - heights[0]
    drift = positions - positions[0] - np.outer(heights, normal)
    allowed = _DRIFT_TOLERANCE * float(frames[0].spacing.min())
    if np.linalg.norm(drift, axis=1).max() <= allowed:
        return
    slope = heights @ drift / (heights @ heights)  # mm sideways per mm along the normal
    if np.linalg.norm(drift - np.outer(heights, slope), axis=1).max() > allowed:
        raise RequestError(
            f"The slices of {name} are shifted sideways against each other, by up to "
            f"{np.linalg.norm(drift, axis=1).max():.1f} mm, so they make no volume; "
            "leave only the slices of one stack."
        )
    raise RequestError(
        f"The slices of {name} are stacked obliquely (gantry tilt of "
        f"{np.degrees(np.arctan(np.linalg.norm(slope))):.1f}°), which is not supported; correct the tilt "
        "first, for example with dcm2niix."
    )


def _distance(heights: NDArray[np.float64], name: str) -> float:
    """The one distance in mm between neighbouring slices at sorted heights along their normal."""
    steps = np.diff(heights)
    usual = float(np.sort(steps)[(len(steps) - 1) // 2])  # the lower median: one of the steps
    places = np.concatenate([[0], np.cumsum(np.round(steps / usual))])
    distance = float((heights[-1] - heights[0]) / max(places[-1], 1))
    uneven = np.abs(heights - heights[0] - places * distance).max()
    if uneven > max(_POSITION_TOLERANCE * distance, _POSITION_ROUNDING_MM) or np.diff(places).min() < 1:
        worst = int(np.abs(steps - usual).argmax())
        raise RequestError(
            f"The slices of {name} are unevenly spaced ({steps.min():.2f} to {steps.max():.2f} mm apart, "
            f"most unlike the others between {heights[worst]:.2f} and {heights[worst + 1]:.2f} mm along the "
            "stack): slices are missing or of several stacks; export the whole series again."
        )
    missing = np.setdiff1d(np.arange(places[-1] + 1), places)
    if missing.size:
        many = missing.size > 1
        raise RequestError(
            f"{missing.size} slice{'s' if many else ''} of {name} {'are' if many else 'is'} missing, at "
            f"{_listed(heights[0] + missing * distance)} along the stack (its slices lie {distance:.2f} mm "
            f"apart from {heights[0]:.2f} to {heights[-1]:.2f} mm); export the whole series again."
        )
    return distance


def _ends_missing(frames: list[Frame], name: str) -> list[str]:
    """Sentences on slices that may be missing at an end, where no gap shows it but the numbers of images do.

    Only where images are numbered one by one along the stack; numbers that go on from those of another series
    look the same, so that this is no more than a hint.
    """
    numbers = [as_numbers(frame.header.get("InstanceNumber"), 1) for frame in frames]
    told = [int(number[0]) for number in numbers if number is not None]
    steps = set(np.diff(told).tolist())
    if len(told) < len(frames) or steps not in ({1}, {-1}):
        return []
    first, count = min(told), len(frames)
    if first > 1:
        missing = f"look whether the first {first - 1} are missing"
        return [f"The images of {name} are numbered from {first} on; {missing}."]
    whole = as_numbers(frames[0].header.get("ImagesInAcquisition"), 1)
    if whole is not None and whole[0] > count:
        return [
            f"{name} has {count} images of {whole[0]:.0f} in its acquisition by its header; look whether the "
            "last ones are missing."
        ]
    return []


def _listed(heights: Iterable[float]) -> str:
    """Heights in mm, the first few by themselves."""
    texts = [f"{height:.2f}" for height in heights]
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return f"{', '.join(texts[:_SHOWN])} mm{more}"
