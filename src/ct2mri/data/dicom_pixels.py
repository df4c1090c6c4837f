"""Pixels of DICOM files, as they are stored and as they were measured.

pydicom reads uncompressed and run-length encoded pixels, SimpleITK's GDCM the JPEG family. GDCM is handed a
bare copy of the pixels, since by itself it ignores the rescale slopes of MR and those of all frames but the
first, and never gives stored values, which padding is told by.
"""

import tempfile
import warnings
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK
from numpy.typing import NDArray
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)
from tqdm import tqdm

from ct2mri.data.dicom_files import frame_number, frame_value
from ct2mri.data.dicom_frames import Frame
from ct2mri.data.quiet import quiet_libraries
from ct2mri.errors import RequestError

PIXEL_KEYWORDS = (
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleSlope",
    "RescaleIntercept",
)
"""What `read_planes` needs of a header."""


_DECODING_KEYWORDS = (
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelData",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
)


def read_planes(frames: list[Frame], fill: float, name: str) -> Iterator[NDArray[np.float32]]:
    """Pixels (rows, columns) of frames after rescaling, in their order, with padding overwritten by `fill`.

    Raises:
        RequestError: a file is damaged or compressed in an unknown way.
    """
    with tqdm(total=len(frames), desc="Reading slices", unit="slice", delay=2, leave=False) as bar:
        for path, of_file in groupby(frames, key=lambda frame: frame.path):
            planes = _read_file(path, name)
            for frame in of_file:
                if frame.index >= len(planes):
                    raise RequestError(
                        f"{path.name} in {name} holds {len(planes)} frames where its header speaks of more; "
                        "export the series again."
                    )
                yield _measured(planes[frame.index], frame, fill)
                bar.update()


def _read_file(path: Path, name: str) -> NDArray[Any]:
    """Pixel cells of one file, (frames, rows, columns), integers."""
    syntax = "an unknown way"
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")  # of padding after the pixels and the like
            image = pydicom.dcmread(path, force=True, specific_tags=[*_DECODING_KEYWORDS])
            transfer = _transfer_syntax(image)
            syntax = transfer.name
            if transfer.is_encapsulated and transfer != RLELossless:
                cells = _decode_jpeg(image, transfer)
            else:
                image.file_meta.TransferSyntaxUID = transfer
                cells = pixel_array(image, raw=True, correct_unused_bits=False)
        return cells.reshape(-1, int(image.Rows), int(image.Columns))
    except Exception as error:  # decoders raise whatever they stumble over in damaged files
        raise RequestError(
            f"The pixels of {name} cannot be read: {path.name} is damaged, cut short or compressed in an "
            f"unknown way (it says {syntax}); export the series again, uncompressed."
        ) from error


def _transfer_syntax(image: pydicom.FileDataset) -> pydicom.uid.UID:
    """How the pixels are written; files without the usual preface do not say, but show by their elements."""
    if "TransferSyntaxUID" in image.file_meta:
        return image.file_meta.TransferSyntaxUID
    implicit, little_endian = image.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little_endian else ExplicitVRBigEndian


def _decode_jpeg(image: pydicom.Dataset, transfer: pydicom.uid.UID) -> NDArray[Any]:
    """Pixel cells by GDCM: JPEG, JPEG lossless, JPEG-LS, JPEG 2000."""
    count = int(image.get("NumberOfFrames") or 1)
    several = (
        MultiFrameGrayscaleByteSecondaryCaptureImageStorage
        if image.BitsAllocated == 8
        else MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    )
    bare = pydicom.Dataset()
    bare.SOPClassUID = several if count > 1 else SecondaryCaptureImageStorage
    bare.SOPInstanceUID = pydicom.uid.generate_uid()
    for keyword in _DECODING_KEYWORDS:
        if keyword in image:
            bare[keyword] = image[keyword]
    bare.SamplesPerPixel, bare.PhotometricInterpretation = 1, "MONOCHROME2"
    bare.file_meta = pydicom.dataset.FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = transfer
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    with tempfile.TemporaryDirectory(prefix="ct2mri-") as folder:
        path = Path(folder) / "pixels.dcm"
        pydicom.dcmwrite(path, bare, enforce_file_format=True)
        reader.SetFileName(str(path))
        with quiet_libraries():
            return SimpleITK.GetArrayFromImage(reader.Execute())


def _measured(cells: NDArray[Any], frame: Frame, fill: float) -> NDArray[np.float32]:
    """One plane of pixel cells as what was measured: stored value × slope + intercept; padding as `fill`."""
    header = frame.header
    allocated = int(frame_number(header, "BitsAllocated", 16))
    bits = int(frame_number(header, "BitsStored", allocated))
    signed = frame_number(header, "PixelRepresentation", 0) == 1
    unused = int(frame_number(header, "HighBit", bits - 1)) + 1 - bits  # bits below the stored ones
    if not (1 <= bits <= allocated <= 32 and 0 <= unused <= allocated - bits):
        raise RequestError(
            f"{frame.label} says that its pixels take {bits} of {allocated} bits from bit {unused} on, which "
            "cannot be; export the series again."
        )
    raw = cells
    if cells.dtype.itemsize * 8 != allocated or (cells.dtype.kind == "i") != signed:
        raw = _wrap(cells.astype(np.int64), allocated, signed)
    stored = raw
    if bits != allocated:
        stored = _wrap(raw.astype(np.int64) >> unused, bits, signed)
    slope = frame_number(header, "RescaleSlope", 1, frame.index)
    if slope == 0:
        raise RequestError(
            f"{frame.label} says RescaleSlope = 0, which would make all its pixels equal; "
            "export the series again."
        )
    intercept = frame_number(header, "RescaleIntercept", 0, frame.index)
    plane: NDArray[np.float32] = (stored.astype(np.float64) * slope + intercept).astype(np.float32)
    if frame_value(header, "PixelPaddingValue", frame.index) is not None:
        first = int(frame_number(header, "PixelPaddingValue", 0, frame.index))
        last = int(frame_number(header, "PixelPaddingRangeLimit", first, frame.index))
        # Some writers note a negative padding value as unsigned, or the other way round; and some pad with
        # values beyond the bits that they say are in use.
        low, high = sorted(int(_wrap(np.int64(end), allocated, signed)) for end in (first, last))
        plane[((stored >= low) & (stored <= high)) | ((raw >= low) & (raw <= high))] = fill
    return plane


def _wrap(values: Any, bits: int, signed: bool) -> Any:
    """Whole numbers by their lowest bits alone."""
    lowest = -(2 ** (bits - 1)) if signed else 0
    return ((values - lowest) & (2**bits - 1)) + lowest
