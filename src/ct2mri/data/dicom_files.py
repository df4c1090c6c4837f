"""DICOM files on disk: telling them from others, unpacking them, reading their headers and frame groups."""

import shutil
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.multival import MultiValue

from ct2mri.errors import RequestError

_UNPACKED_LIMIT = 8 * 2**30  # bytes; some 15 000 CT slices, far more than a series

_FRAME_GROUPS = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")


def looks_like_dicom(path: Path) -> bool:
    """Whether a file bears the mark of DICOM (after 128 free bytes) or is named `.dcm`."""
    if path.suffix.lower() == ".dcm":
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def holds_dicom(folder: Path, *, recursive: bool) -> bool:
    """Whether a folder has a DICOM file right inside, or (`recursive`) at any depth."""
    files = folder.rglob("*") if recursive else folder.iterdir()
    return any(looks_like_dicom(path) for path in files if path.is_file() and _may_be_image(path.name))


def visible_files(folder: Path) -> list[Path]:
    """The files of a folder at any depth, by name, without hidden ones and the index of a DICOM disc."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and _may_be_image(path.name)]


def _may_be_image(name: str) -> bool:
    return not name.startswith(".") and name.upper() != "DICOMDIR"


def unpack_zip(path: Path, folder: Path) -> list[Path]:
    """Unpack the files of a zip into a folder under names of our own, so none can land elsewhere.

    Raises:
        RequestError: the zip is damaged, locked, or unpacks to more than a series can need.
    """
    files = []
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
            size = sum(member.file_size for member in members)
            allowed = min(_UNPACKED_LIMIT, shutil.disk_usage(folder).free)
            if size > allowed:
                raise RequestError(
                    f"{path.name} unpacks to {size / 2**30:.1f} GiB, more than the {allowed / 2**30:.1f} GiB "
                    "allowed here; unpack it yourself and give the folder of one series."
                )
            for number, member in enumerate(members):
                name = Path(member.filename.replace("\\", "/")).name  # some Windows zips hold backslashes
                if not _may_be_image(name):
                    continue
                file = folder / f"{number:06d}{Path(name).suffix.lower()}"
                with archive.open(member) as packed, file.open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
                files.append(file)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        # RuntimeError: encrypted, or a compression that Python does not know
        raise RequestError(
            f"{path.name} cannot be unpacked (damaged, cut short or locked with a password); "
            "make the zip again or give the folder."
        ) from error
    return files


def read_header(path: Path, keywords: Iterable[str]) -> pydicom.Dataset:
    """Some attributes of a DICOM file, without pixels; what lies in groups of frames is parsed when asked.

    Raises:
        RequestError: the header is damaged.
    """
    try:
        with _unchecked():
            # Some exports lack the mark at the beginning; then the name alone says DICOM.
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(keywords), force=True)
            list(header)  # values are parsed when looked at
    except Exception as error:  # on damaged headers pydicom raises whatever its parsing stumbles over
        raise RequestError(
            f"The header of {path.name} is damaged; export the series again, or take the file away."
        ) from error
    return header


def read_whole_header(path: Path) -> pydicom.Dataset:
    """All of a header but the groups of single frames and what cannot be parsed; most is nobody's concern."""
    with _unchecked():
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        header.pop(_FRAME_GROUPS[0], None)
        for tag in list(header.keys()):
            try:
                element = header[tag]
                if element.VR == "SQ":
                    for item in element.value:
                        list(item.iterall())
            except Exception:  # whatever parsing stumbles over
                del header[tag]
    return header


@contextmanager
def _unchecked() -> Iterator[None]:
    """Take values that break the standard's rules as they are: warnings would quote them, even names."""
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def frame_value(header: pydicom.Dataset, keyword: str, frame: int = 0) -> Any:
    """An attribute of one frame (from 0), or None where it is absent or empty.

    Enhanced images keep such attributes in groups: those of the frame come first, then the shared ones, then
    the header itself, where single-frame images have all of theirs.

    Raises:
        RequestError: a group is damaged.
    """
    try:
        with pydicom.config.disable_value_validation():
            for place in _places(header, frame):
                value = place.get(keyword)
                if value is not None and value != "" and not (isinstance(value, MultiValue) and not value):
                    return value
    except Exception as error:  # on damaged headers pydicom raises whatever its parsing stumbles over
        raise RequestError(
            f"A DICOM header is damaged where it tells of frame {frame + 1}; export the series again."
        ) from error
    return None


def _places(header: pydicom.Dataset, frame: int) -> Iterator[pydicom.Dataset]:
    """The data sets that may hold an attribute of one frame, the most particular first."""
    for name, index in zip(_FRAME_GROUPS, (frame, 0), strict=True):
        items = header.get(name) or []
        if index < len(items):
            for element in items[index]:
                if element.VR == "SQ" and element.value:
                    yield element.value[0]
    yield header


def frame_number(header: pydicom.Dataset, keyword: str, default: float, frame: int = 0) -> float:
    """One number of a frame, or the default where it is absent or empty.

    Raises:
        RequestError: the value is no number.
    """
    value = frame_value(header, keyword, frame)
    if value is None:
        return default
    number = as_numbers(value, 1)
    if number is None:
        raise RequestError(
            f"A DICOM header says {keyword} = {value!r}, which is no number; export the series again."
        )
    return float(number[0])


def as_numbers(value: Any, count: int) -> NDArray[np.float64] | None:
    """A header value as so many finite numbers, or None where it is not that."""
    try:
        numbers = np.array(value, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        return None
    return numbers if numbers.size == count and np.isfinite(numbers).all() else None
