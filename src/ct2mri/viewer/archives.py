"""What is told by the first bytes of a file that nobody vouches for, before a library is let at it.

A header of a kilobyte can claim ten gigabytes of voxels, a zip of a megabyte can unpack to a terabyte, and
a header can name another file of this machine as the place of its voxels. All that is refused here.
"""

import gzip
import math
import re
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from ct2mri.errors import RequestError

SUFFIXES = (".nii", ".nii.gz", ".mha", ".nrrd", ".dcm", ".zip")
"""Of the files that can be uploaded. A `.mhd` refers to a file beside it, so it is not among them."""

_LONGEST_HEADER = 2**20
_CHUNK = 2**20
_RATIO = 200
"""A zip may unpack to so many times its size; CT slices, padded ones included, to some ten times."""
_SMALL = 64 * 2**20
"""Bytes below which no ratio is too large."""

_MET_BYTES = {
    "CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4,
    "LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8,
}  # fmt: skip
_NIFTI_BITS_AT = 72
_META_VOXELS = "ElementDataFile"


def suffix_of(name: str) -> str:
    """The suffix of an uploaded file's name.

    Raises:
        RequestError: none of those that can be read.
    """
    lower = name.lower()
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if lower.endswith(suffix):
            return suffix
    if lower.endswith(".mhd"):
        raise RequestError("A .mhd refers to another file for its voxels; save it as .mha, which holds both.")
    raise RequestError(f"The file is of no known kind; allowed are {', '.join(SUFFIXES)}.")


def check_file(path: Path, voxels: int, unpacked: int) -> Path:
    """Refuse a file that claims or unpacks to more than is allowed, or that refers to others.

    Args:
        path: of one of the suffixes above.
        voxels: that a volume may have.
        unpacked: bytes that an archive may unpack to.

    Returns:
        The file to read: a `.nii.gz` comes back as the `.nii` beside it that it was unpacked to.

    Raises:
        RequestError: it is refused.
    """
    suffix = suffix_of(path.name)
    if suffix == ".zip":
        check_zip(path, unpacked)
    elif suffix == ".nii":
        with path.open("rb") as file:
            _check_nifti(file.read(540), path.stat().st_size, voxels)
    elif suffix == ".nii.gz":
        return _unpack_nifti(path, voxels)
    elif suffix == ".mha":
        _check_meta_image(path, voxels)
    elif suffix == ".nrrd":
        _check_nrrd(path, voxels)
    return path


def check_zip(path: Path, unpacked: int, members: int = 20_000) -> None:
    """Refuse a zip bomb, and a zip with names that lead out of it or with symbolic links.

    Raises:
        RequestError: it is refused.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        # NotImplementedError: zipfile's word for a version of the format that it does not know
        raise RequestError("The zip is damaged or cut short; make it again.") from error
    if len(entries) > members:
        raise RequestError(f"The zip holds {len(entries)} files, and {members} are allowed; zip one series.")
    for entry in entries:
        name = entry.filename.replace("\\", "/")
        if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
            raise RequestError("The zip holds names that lead out of it (“..” or absolute); make it again.")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise RequestError(
                "The zip holds a symbolic link, which is not followed; zip the files themselves."
            )
    size = sum(entry.file_size for entry in entries)
    packed = path.stat().st_size
    if size > unpacked or (size > _SMALL and size > _RATIO * packed):
        raise RequestError(
            f"The zip of {_size(packed)} unpacks to {_size(size)}; allowed are {_size(unpacked)} and "
            f"{_RATIO} times its size."
        )


def _check_voxels(shape: list[int], bytes_each: float, present: int | None, voxels: int) -> int:
    """The bytes that a shape needs; refuses too many voxels, and fewer bytes than needed."""
    count = math.prod(shape)
    if count > voxels:
        raise RequestError(
            f"The header says {' × '.join(map(str, shape))} voxels, and {voxels} in all are allowed; "
            "crop or resample the volume first."
        )
    needed = math.ceil(count * bytes_each)
    if present is not None and needed > present:
        raise RequestError(
            f"The header says {' × '.join(map(str, shape))} voxels, which take {_size(needed)}, and the file "
            f"holds {_size(present)}: it is damaged or cut short; copy or export it again."
        )
    return needed


def _check_nifti(header: bytes, present: int | None, voxels: int) -> int:
    """The bytes that a NIfTI file of such a header has."""
    for order in "<>":
        if len(header) >= 348 and struct.unpack_from(f"{order}i", header)[0] == 348:
            dims = struct.unpack_from(f"{order}8h", header, 40)
            bits = struct.unpack_from(f"{order}h", header, _NIFTI_BITS_AT)[0]
            offset = struct.unpack_from(f"{order}f", header, 108)[0]
            break
        if len(header) >= 540 and struct.unpack_from(f"{order}i", header)[0] == 540:
            dims = struct.unpack_from(f"{order}8q", header, 16)
            bits = struct.unpack_from(f"{order}h", header, 14)[0]
            offset = float(struct.unpack_from(f"{order}q", header, 168)[0])
            break
    else:
        raise RequestError("The file has no NIfTI header: it is damaged or of another kind; export it again.")
    axes = dims[0]
    if not 1 <= axes <= 7 or any(n < 1 for n in dims[1 : axes + 1]) or bits < 1:
        raise RequestError("The NIfTI header is damaged (its shape makes no sense); export the volume again.")
    if not 0 <= offset <= _LONGEST_HEADER:  # NaN too
        raise RequestError("The NIfTI header is damaged (its voxels begin nowhere); export the volume again.")
    voxel_bytes = None if present is None else max(present - int(offset), 0)
    return int(offset) + _check_voxels(list(dims[1 : axes + 1]), bits / 8, voxel_bytes, voxels)


def _unpack_nifti(path: Path, voxels: int) -> Path:
    """Unpack a `.nii.gz` beside itself, up to what its header says and no further."""
    plain = path.with_name(path.name[: -len(".gz")])
    try:
        with gzip.open(path) as packed, plain.open("wb") as file:
            header = packed.read(540)
            wanted = max(_check_nifti(header, None, voxels), len(header)) + _CHUNK
            file.write(header)
            written = len(header)
            while chunk := packed.read(_CHUNK):
                written += len(chunk)
                if written > wanted:
                    raise RequestError(
                        "The file unpacks to more than its header says: it is damaged; export it again."
                    )
                file.write(chunk)
    except (OSError, EOFError, zlib.error) as error:
        raise RequestError(
            "The file cannot be unpacked: it is damaged or cut short; copy it again."
        ) from error
    with plain.open("rb") as file:
        _check_nifti(file.read(540), plain.stat().st_size, voxels)
    return plain


def _check_meta_image(path: Path, voxels: int) -> None:
    fields, begins = _meta_header(path)
    # ITK takes other line ends and separators than these too: where the word stands but once, it means that.
    if fields.get(_META_VOXELS, "").upper() != "LOCAL" or _count(path, _META_VOXELS.encode()) != 1:
        raise RequestError("The .mha refers to another file for its voxels; save it as one file.")
    try:
        shape = [int(number) for number in fields["DimSize"].split()]
        each = _MET_BYTES[fields["ElementType"].upper().removeprefix("MET_").removesuffix("_ARRAY")]
        channels = int(fields.get("ElementNumberOfChannels", "1"))
    except (KeyError, ValueError) as error:
        raise RequestError("The .mha has no readable header: it is damaged; export it again.") from error
    if min(shape, default=0) < 1 or channels < 1:
        raise RequestError("The .mha header is damaged (its shape makes no sense); export the volume again.")
    packed = fields.get("CompressedData", "False").lower() == "true"
    present = None if packed else path.stat().st_size - begins
    _check_voxels(shape, each * channels, present, voxels)


def _meta_header(path: Path) -> tuple[dict[str, str], int]:
    """The fields of a MetaImage header, and where the voxels begin."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while file.tell() < _LONGEST_HEADER and (line := file.readline(_LONGEST_HEADER)):
            name, _, value = line.decode("latin-1").partition("=")
            fields[name.strip()] = value.strip()
            if name.strip() == _META_VOXELS:
                break
        return fields, file.tell()


def _count(path: Path, word: bytes) -> int:
    """How often a word stands in a file, wherever."""
    found, kept = 0, b""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found += (kept + chunk).count(word)
            kept = chunk[1 - len(word) :]
    return found


def _check_nrrd(path: Path, voxels: int) -> None:
    with path.open("rb") as file:
        fields = _nrrd_fields(file)
    if "data file" in fields or "datafile" in fields:
        raise RequestError("The .nrrd refers to another file for its voxels; save it as one file.")
    try:
        shape = [int(number) for number in fields["sizes"].split()]
    except (KeyError, ValueError) as error:
        raise RequestError("The .nrrd has no readable header: it is damaged; export it again.") from error
    if min(shape, default=0) < 1:
        raise RequestError("The .nrrd header is damaged (its shape makes no sense); export the volume again.")
    raw = fields.get("encoding", "").lower() == "raw"
    _check_voxels(shape, 1, path.stat().st_size if raw else None, voxels)


def _nrrd_fields(file: BinaryIO) -> dict[str, str]:
    if not file.readline(16).startswith(b"NRRD"):
        raise RequestError("The file has no NRRD header: it is damaged or of another kind; export it again.")
    fields: dict[str, str] = {}
    while line := file.readline(_LONGEST_HEADER).strip():
        if file.tell() > _LONGEST_HEADER:
            raise RequestError(f"The .nrrd header has more than {_size(_LONGEST_HEADER)}; save it anew.")
        for part in line.decode("latin-1").split("\r"):  # which ends a line too
            name, _, value = part.partition(":")
            fields[name.strip().lower()] = value.strip()
    return fields


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
