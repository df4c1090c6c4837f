"""DICOM out: a synthetic volume as a series of images that lies with the images it was made from."""

import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.config import disable_value_validation
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage
from tqdm import tqdm

from ct2mri.data.dicom_header import (
    add_provenance,
    add_series,
    add_source,
    add_stored_per_unit,
    code_item,
    fresh_uid,
)
from ct2mri.data.dicom_origin import DicomOrigin
from ct2mri.data.geometry import LPS_TO_RAS
from ct2mri.data.intensity import AIR_HU
from ct2mri.data.volume import Grid, Volume
from ct2mri.errors import RequestError
from ct2mri.files import atomic_folder, require_name

_OUR_FILES = re.compile(r"synthetic-\d{5,}\.dcm")
_LARGEST = 2**16 - 1  # of an unsigned 16 bit pixel
# Headers that round directions to four decimals shear a grid by so much; it is put straight.
_SHEAR_TOLERANCE_MM = 0.05
_CT_WINDOW = (40.0, 400.0)  # centre and width: soft tissue


def save_dicom_series(
    volume: Volume,
    folder: str | Path,
    *,
    modality: Literal["MR", "CT"],
    origin: DicomOrigin | None,
    series_description: str,
    derivation: str,
    model: str,
    factor: float | None = None,
    anonymize: bool = False,
) -> None:
    """Write a synthetic volume as a DICOM series into a folder of its own, whole or not at all.

    One image a slice k, of MR Image Storage or CT Image Storage, unsigned 16 bit with slope 1. Read again by
    `load_volume`, the series lies where the volume does and has its values, rounded to a stored step; of a
    left-handed grid, which readers of DICOM do not make, the last axis then runs the other way.

    Args:
        volume: on the grid of its source; an MR in any units, 0 or more; a CT in HU.
        folder: a new or empty folder, or one that holds such a series alone, which is replaced.
        modality: what the volume shows.
        origin: the DICOM images of the source, one a slice: theirs are patient, study and frame of reference.
            None: fresh ones under a made-up identifier.
        series_description: says that the images are synthetic; the first 64 characters are kept.
        derivation: how the images were made, in sentences; the first 900 characters are kept.
        model: name of the model.
        factor: stored value of 1 in an MR's own units; None: as `mr_factor` chooses.
        anonymize: leave out all that leads to the patient: identity, dates and UIDs of the source.

    Raises:
        RequestError: the folder holds something else, the grid is sheared, or the values cannot be stored.
        OSError: a file could not be written.
    """
    folder = Path(folder)
    require_replaceable(folder)
    affine = straight_affine(volume.grid)
    if origin is not None and len(origin.sop_instance_uids) != volume.spatial_shape[2]:
        raise RequestError(
            f"The volume has {volume.spatial_shape[2]} slices and its source had "
            f"{len(origin.sop_instance_uids)}; bring it onto the grid of its source."
        )
    if not np.isfinite(volume.array).all():
        raise RequestError("The volume holds NaN or infinite values, which DICOM cannot hold.")
    # pydicom quotes values that break the standard's rules: here, those of the patient.
    with disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = Dataset()
        add_source(header, origin, anonymize)
        add_series(header, series_description, model)
        add_provenance(header, origin, derivation, model, anonymize)
        rescale = _add_pixel_rules(header, volume, modality, mr_factor(volume) if factor is None else factor)
        _add_modality(header, modality)
        _add_orientation(header, affine)
        try:
            with atomic_folder(folder) as temporary:
                _write_images(header, volume, rescale, affine, None if anonymize else origin, temporary)
        except OSError as error:
            raise OSError(
                f"{folder} could not be written "
                f"({error.strerror or 'is the disk full or the folder read-only?'})."
            ) from error


def require_replaceable(folder: Path) -> None:
    """Raise RequestError unless a path is free, an empty folder, or a series that was written here before."""
    require_name(folder)
    if folder.is_dir() and not folder.is_symlink():
        others = [p.name for p in sorted(folder.iterdir()) if p.is_dir() or not _OUR_FILES.fullmatch(p.name)]
        if others:
            raise RequestError(
                f"{folder} holds {others[0]}, which is no image of a synthetic series and would be lost; "
                "give a new or empty folder."
            )
    elif folder.exists() or folder.is_symlink():
        raise RequestError(f"{folder} is no folder; give a new or empty folder for the DICOM series.")


def count_images(folder: Path) -> int:
    """How many images of a synthetic series a folder holds."""
    if not folder.is_dir():
        return 0
    return sum(_OUR_FILES.fullmatch(path.name) is not None for path in folder.iterdir())


def mr_factor(volume: Volume, upper: float | None = None) -> float:
    """The power of ten that brings MR values without units to unsigned 16 bit with fine enough steps.

    1 where the values reach into the thousands already.

    Args:
        volume: what is to be stored.
        upper: a value near the upper end, by which it is chosen alike for all results of a model; None: the
            volume's own maximum.
    """
    highest = float(volume.array.max(initial=0))
    upper = highest if upper is None else upper
    factor = 1.0
    if 0 < upper < 1000:
        factor = 10.0 ** int(np.ceil(np.log10(1000 / upper)))
    while highest * factor > _LARGEST:
        factor /= 10
    return factor


def straight_affine(grid: Grid) -> NDArray[np.float64]:
    """The affine of a grid in the coordinates of DICOM (LPS), its axes exactly perpendicular.

    Raises:
        RequestError: the grid is sheared by more than the rounding in a header.
    """
    spacing = np.array(grid.spacing)
    # The nearest perpendicular directions: the polar factor of the grid's own.
    left, _, right = np.linalg.svd(grid.affine[:3, :3] / spacing)
    affine = np.eye(4)
    affine[:3, :3] = (left @ right) * spacing
    centre = (np.array(grid.shape) - 1) / 2
    affine[:3, 3] = grid.affine[:3, 3] + (grid.affine[:3, :3] - affine[:3, :3]) @ centre
    if not grid.matches(Grid(grid.shape, affine), _SHEAR_TOLERANCE_MM):
        raise RequestError(
            "The voxel axes of this volume are not perpendicular (a sheared NIfTI), and DICOM images cannot "
            "lie so; write NIfTI, or resample the source onto a straight grid first."
        )
    straight: NDArray[np.float64] = LPS_TO_RAS @ affine
    return straight


# --- what is the same in all images, beside `dicom_header` -----------------------------------------------


def _add_pixel_rules(
    header: Dataset, volume: Volume, modality: Literal["MR", "CT"], factor: float
) -> tuple[float, int]:
    """How values are stored: the factor and the intercept of stored = factor · value − intercept."""
    lowest, highest = float(volume.array.min()), float(volume.array.max())
    if modality == "MR":
        if lowest < 0:
            raise RequestError(
                "The values of an MR in DICOM are 0 or more, since many systems ignore an offset; "
                f"got {lowest:g}."
            )
        intercept = 0
        add_stored_per_unit(header, factor)
        shown = volume.array[volume.array > 0]
        upper = factor * float(np.percentile(shown, 99.5)) if shown.size else 1.0
        centre, width = upper / 2, max(1.0, upper)
    else:
        factor, intercept = 1.0, int(np.floor(min(AIR_HU, lowest)))  # air is stored as 0, as CT scanners do
        header.RescaleType = "HU"
        centre, width = _CT_WINDOW
    if factor * highest - intercept > _LARGEST:
        raise RequestError(
            f"The values reach from {lowest:g} to {highest:g}, more than 16 bits hold; "
            "write NIfTI, or give values of a smaller range."
        )
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.Rows, header.Columns = volume.spatial_shape[1], volume.spatial_shape[0]
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 0
    header.RescaleSlope, header.RescaleIntercept = "1", str(intercept)
    header.WindowCenter, header.WindowWidth = _decimals([centre, width])
    return factor, intercept


def _add_modality(header: Dataset, modality: Literal["MR", "CT"]) -> None:
    """What the standard asks of the kind of image, with nothing invented about an acquisition."""
    header.Modality = modality
    header.SOPClassUID = MRImageStorage if modality == "MR" else CTImageStorage
    if modality == "MR":
        header.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
        header.ScanningSequence, header.SequenceVariant = "RM", "NONE"  # RM: research mode
        for keyword in ("ScanOptions", "MRAcquisitionType", "RepetitionTime", "EchoTime", "EchoTrainLength"):
            setattr(header, keyword, None)
    else:
        header.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]  # the standard has no other word for slices
        header.KVP = header.AcquisitionNumber = None


def _add_orientation(header: Dataset, affine: NDArray[np.float64]) -> None:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    row, column = affine[:3, 0] / spacing[0], affine[:3, 1] / spacing[1]
    header.ImageOrientationPatient = _decimals([*row, *column])
    header.PixelSpacing = _decimals([spacing[1], spacing[0]])  # the distance of rows comes first
    header.SliceThickness = _decimals([spacing[2]])[0]
    if header.Modality == "MR":
        header.SpacingBetweenSlices = header.SliceThickness


# --- the images ------------------------------------------------------------------------------------------


def _write_images(
    header: Dataset,
    volume: Volume,
    rescale: tuple[float, int],
    affine: NDArray[np.float64],
    origin: DicomOrigin | None,
    folder: Path,
) -> None:
    """Write the images; `origin` is what they refer to, or None."""
    factor, intercept = rescale
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    normal /= np.linalg.norm(normal)
    # Images are numbered along the normal, as readers sort them.
    slices = range(volume.spatial_shape[2])
    order = slices if normal @ affine[:3, 2] > 0 else slices[::-1]
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    for number, k in enumerate(
        tqdm(order, desc="Writing DICOM", unit="image", delay=2, leave=False), start=1
    ):
        position = affine[:3, 2] * k + affine[:3, 3]
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = fresh_uid()
        header.InstanceNumber = number
        header.ImagePositionPatient = _decimals(position)
        header.SliceLocation = _decimals([float(position @ normal)])[0]
        if origin is not None and origin.sop_instance_uids[k]:
            header.SourceImageSequence = [_source_image(origin, k)]
        stored = np.rint(volume.array[:, :, k].T.astype(np.float64) * factor - intercept)  # rows run along j
        header.PixelData = stored.astype("<u2").tobytes()
        header["PixelData"].VR = "OW"
        header.save_as(folder / f"synthetic-{number:05d}.dcm", enforce_file_format=True)


def _source_image(origin: DicomOrigin, k: int) -> Dataset:
    image = Dataset()
    image.ReferencedSOPClassUID = origin.sop_class_uid
    image.ReferencedSOPInstanceUID = origin.sop_instance_uids[k]
    if origin.frame_numbers is not None:
        image.ReferencedFrameNumber = origin.frame_numbers[k]
    image.SpatialLocationsPreserved = "YES"
    image.PurposeOfReferenceCodeSequence = [
        code_item("121322", "Source image for image processing operation")
    ]
    return image


def _decimals(numbers: Iterable[float]) -> list[str]:
    """Decimal strings of at most 16 characters; what rounding left of nought is nought.

    pydicom 3.0 makes 17 characters of 9.99999999999999, which round to one digit more.
    """
    return [_decimal(0.0 if abs(x) < 1e-9 else float(x)) for x in numbers]


def _decimal(number: float) -> str:
    return next(text for digits in range(16, 0, -1) if len(text := f"{number:.{digits}g}") <= 16)
