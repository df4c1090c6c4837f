"""Volume files: NIfTI, MetaImage, NRRD and DICOM series in; NIfTI, MetaImage and NRRD out."""

import gzip
import os
import re
import tempfile
import zlib
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import SimpleITK
from numpy.typing import NDArray

from ct2mri.data.dicom import load_dicom_files
from ct2mri.data.dicom_files import holds_dicom, looks_like_dicom, unpack_zip, visible_files
from ct2mri.data.geometry import from_sitk, to_sitk
from ct2mri.data.quiet import quiet_libraries
from ct2mri.data.volume import SYNTHETIC, Grid, Volume
from ct2mri.errors import RequestError
from ct2mri.files import atomic_path, final_path

_NIFTI = (".nii.gz", ".nii")
_ITK = (".mha", ".mhd", ".nrrd")
_WRITABLE = (*_NIFTI, ".mha", ".nrrd")
_COMMENT = re.compile(rb"^Comment(?: = |:=)([ -~]+)", re.MULTILINE)
_LONGEST_HEADER = 2**16
_READABLE = (
    "NIfTI (.nii, .nii.gz), MetaImage (.mha, .mhd), NRRD (.nrrd), "
    "a folder of one DICOM series or a .zip of one"
)

_NIBABEL_ERRORS = (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError)


def _suffix(path: Path) -> str:
    """The lower-case suffix of a file name, `.nii.gz` as one."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def volume_stem(path: str | Path) -> str:
    """The name of a volume file or folder without the suffix of its format: `a.b.nii.gz` → `a.b`."""
    path = Path(path)
    suffix = _suffix(path)
    known = suffix in (*_NIFTI, *_ITK, ".dcm", ".zip")
    return path.name[: -len(suffix)] if known and not path.is_dir() else path.name


def is_volume_path(path: str | Path) -> bool:
    """Whether a path is one volume: a file of a known format, or a folder with DICOM files right inside."""
    path = Path(path)
    if path.is_dir():
        return holds_dicom(path, recursive=False)
    return path.is_file() and (_suffix(path) in (*_NIFTI, *_ITK, ".dcm", ".zip") or looks_like_dicom(path))


def find_volumes(folder: str | Path) -> list[Path]:
    """The volumes right inside a folder, by name: files of a known format and subfolders that hold DICOM.

    Loose DICOM files are left out: together they are slices of one series, whose path is the folder itself
    (`is_volume_path` says so of it).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RequestError(f"There is no folder {folder}; give a folder of volumes.")
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if holds_dicom(path, recursive=True):
                found.append(path)
        elif _suffix(path) in (*_NIFTI, *_ITK, ".zip"):
            found.append(path)
    return found


def files_of(path: Path) -> list[Path]:
    """The files that `load_volume` reads: one, a header and the files of its voxels, or those of a folder."""
    if path.is_dir():
        return visible_files(path)
    if _suffix(path) in _ITK:
        return [path, *_files_of_voxels(path)]
    return [path]


def _files_of_voxels(path: Path) -> list[Path]:
    """The files, as far as they are there, that a MetaImage or NRRD header names as those of its voxels."""
    found: list[Path] = []
    with suppress(OSError), path.open("rb") as file:  # that it cannot be read is for its reader to say
        for line in file:
            if not line.strip():  # the end of an NRRD's header
                break
            field, _, value = os.fsdecode(line).replace("=", ":", 1).partition(":")
            if field.strip().lower() not in ("elementdatafile", "data file", "datafile"):
                continue
            value = value.strip()
            if value.upper().startswith("LIST"):
                found = [path.parent / name for other in file if (name := os.fsdecode(other).strip())]
            elif "%" in value:  # a pattern and its numbers: slice%03d.raw 1 90 1
                pattern = path.parent / value.split()[0]
                found = sorted(pattern.parent.glob(re.sub(r"%\d*d", "*", escape(pattern.name))))
            elif value.upper() != "LOCAL":
                found = [path.parent / value]
            break
    return [voxels for voxels in found if voxels.is_file()]


def _head(path: Path) -> bytes:
    """The header of a MetaImage or NRRD file, of the former with some voxels, where they follow it."""
    with path.open("rb") as file:
        head = file.read(_LONGEST_HEADER)
    return head.replace(b"\r\n", b"\n").partition(b"\n\n")[0] if _suffix(path) == ".nrrd" else head


def load_volume(path: str | Path) -> Volume:
    """Read a NIfTI, MetaImage, NRRD or DICOM file, a folder of one DICOM series, or a zip of one.

    Returns:
        The volume; its metadata hold `path`, `warnings` (list of sentences that the user should see), of a
        synthetic volume the `description` that marks it and, for DICOM, `modality`, the facts of
        `DicomSeries` (`contrast_agent`, `kvp`, `kernel`, `cbct`, …), `dicom`, a `DicomOrigin`, and
        `stored_per_unit` as `load_series` has it.

    Raises:
        RequestError: there is no such file, it is damaged, of an unknown format, or not one scalar volume.
    """
    path = Path(path)
    if not path.exists():
        raise RequestError(f"There is no file or folder {path}; allowed are {_READABLE}.")
    name = path.resolve().name
    try:
        if path.is_dir():
            volume = load_dicom_files(visible_files(path), name)
        elif _suffix(path) in _NIFTI:
            volume = _load_nifti(path)
        elif _suffix(path) in _ITK:
            volume = _load_itk(path)
        elif _suffix(path) == ".zip":
            with tempfile.TemporaryDirectory(prefix="ct2mri-") as folder:
                volume = load_dicom_files(unpack_zip(path, Path(folder)), name)
        elif _suffix(path) == ".dcm" or looks_like_dicom(path):
            volume = load_dicom_files([path], name)
        else:
            raise RequestError(f"The format of {path.name} is unknown; allowed are {_READABLE}.")
    except RequestError as error:
        message = str(error)
        raise RequestError(message if name in message else f"{name}: {message}") from error
    volume.metadata["path"] = str(path)
    return volume


def nameless_warnings(volume: Volume) -> list[str]:
    """The warnings of `load_volume` without what files, folder and series are called: patients, perhaps."""
    path = Path(volume.metadata["path"])
    names = "|".join(re.escape(name) for name in (path.name, path.resolve().name) if name)
    nameless = []
    for warning in volume.metadata["warnings"]:
        told = re.sub(rf"(?<!\w)({names})(?!\w)", "the source", warning, count=1)
        told = re.sub(r"“.*?” \(.*?\)", "another series", told)  # `DicomSeries.label`
        nameless.append(told[:1].upper() + told[1:])
    return nameless


def _require_scalar_volume(path: Path, shape: tuple[int, ...], scalar: bool) -> None:
    if not scalar:
        raise RequestError(
            f"{path.name} holds several numbers per voxel (colours, vectors or complex numbers); "
            "a scalar volume is needed, so convert it to one grey value per voxel."
        )
    if len(shape) != 3:
        raise RequestError(
            f"{path.name} has {len(shape)} axes {shape}; a volume with three axes is needed, so "
            + ("save the whole stack of slices." if len(shape) < 3 else "save one of its volumes by itself.")
        )


def _nifti_image(path: Path) -> Any:
    """The image of a NIfTI-1 or NIfTI-2 file, read whole: nibabel itself never looks at gzip's checksum."""
    content = path.read_bytes()
    if _suffix(path) == ".nii.gz":
        content = gzip.decompress(content)
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        size = kind.header_class.sizeof_hdr
        if kind.header_class.may_contain_header(content[:size]):
            header = kind.header_class(content[:size], check=False)
            if header["vox_offset"] < size:  # nibabel would take the header's bytes for voxels
                raise ValueError("its voxels would begin inside its header")
            if _shorten_quaternion(header):
                content = header.binaryblock + content[size:]
            return kind.from_bytes(content)
    raise ValueError("it has no NIfTI header")


def _shorten_quaternion(header: Any) -> bool:
    """Bring the quaternion of a NIfTI header to length 1 where it is longer; whether it was.

    Of a turn by half a circle the three numbers that are stored make up all of it, and rounding can make it
    longer. `nifti1_io.c`, the reference, does the same; nibabel refuses such files, even those with an sform.
    """
    names = ("quatern_b", "quatern_c", "quatern_d")
    length = float(np.sqrt(sum(float(header[name]) ** 2 for name in names)))
    if not 1 < length < np.inf:
        return False
    for name in names:
        header[name] = float(header[name]) / length
    return True


def _load_nifti(path: Path) -> Volume:
    try:
        image = _nifti_image(path)
        header = image.header
        dtype = header.get_data_dtype()
        shape = tuple(int(n) for n in image.shape)
        while len(shape) > 3 and shape[-1] == 1:  # many tools write a time axis of length 1
            shape = shape[:-1]
        _require_scalar_volume(path, shape, dtype.fields is None and dtype.kind != "c")
        i, j, k = shape
        array = image.get_fdata(dtype=np.float32, caching="unchanged").reshape((i, j, k), order="F")
        affine = np.array(image.affine, dtype=np.float64)
        sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
        units = header.get_xyzt_units()[0]
        remark = header["descrip"].item().decode("ascii", "replace")
    except RequestError:
        raise
    except (OSError, EOFError, ValueError, KeyError, zlib.error, *_NIBABEL_ERRORS) as error:
        raise RequestError(
            f"{path.name} cannot be read as NIfTI: it is damaged or cut short "
            f"({_first_line(error)}); copy or export it again."
        ) from error
    affine[:3] *= {"meter": 1000.0, "micron": 0.001}.get(units, 1.0)
    warnings = []
    if sform is None and qform is None:
        warnings.append(_no_orientation(path, "sform and qform codes are 0"))
    elif (
        sform is not None
        and qform is not None
        and not Grid((i, j, k), sform).matches(Grid((i, j, k), qform), tolerance_mm=1.0)
    ):
        warnings.append(f"The sform and the qform of {path.name} disagree; the sform is used.")
    return Volume(array, affine, {"warnings": warnings, **_mark(remark)})


def _mark(remark: str) -> dict[str, str]:
    """The remark of a header as metadata, where it says that the volume is synthetic: copies say so too."""
    return {"description": remark} if SYNTHETIC in remark else {}


def _no_orientation(path: Path, why: str) -> str:
    return (
        f"{path.name} does not say how its voxels lie in the patient ({why}): "
        "left and right may be swapped and views upside down."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _load_itk(path: Path) -> Volume:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:  # SimpleITK would end the process
        raise RequestError(
            f"The path of {path.name} is no text (its bytes are not UTF-8); rename it."
        ) from error
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetOutputPixelType(SimpleITK.sitkFloat32)
    try:
        with quiet_libraries():
            reader.ReadImageInformation()
        scalar = reader.GetNumberOfComponents() == 1 and "complex" not in SimpleITK.GetPixelIDValueAsString(
            reader.GetPixelID()
        )
        _require_scalar_volume(path, tuple(reader.GetSize()), scalar)
        with quiet_libraries():
            image = reader.Execute()
    except RuntimeError as error:
        if "determinant is 0" in str(error) or "Zero-valued spacing" in str(error):
            raise RequestError(
                f"The affine of {path.name} cannot be inverted (two voxel axes coincide or one has no "
                "length), so the image has no place in space; repair its header."
            ) from error
        raise RequestError(
            f"{path.name} cannot be read: it is damaged, cut short, or a file that it refers to is missing; "
            "copy or export it again."
        ) from error
    warnings = []
    if _suffix(path) == ".nrrd":
        space = reader.GetMetaData("NRRD_space") if reader.HasMetaDataKey("NRRD_space") else None
        if space is None:
            warnings.append(_no_orientation(path, "the field “space” is missing"))
        elif not space.endswith("superior"):  # the scanner's or any axes, taken for the patient's
            warnings.append(_no_orientation(path, f"its “space” is {space}"))
    found = _COMMENT.search(_head(path))  # SimpleITK passes over that of a MetaImage
    remark = "" if found is None else found[1].decode("ascii", "replace")
    return from_sitk(image, {"warnings": warnings, **_mark(remark)})


def require_writable(path: str | Path) -> None:
    """Raise RequestError unless `save_volume` knows the path's suffix; to be asked before long work."""
    if _suffix(Path(path)) not in _WRITABLE:
        raise RequestError(f"Cannot write {Path(path).name}; allowed suffixes are {', '.join(_WRITABLE)}.")


def save_volume(
    volume: Volume,
    path: str | Path,
    description: str | None = None,
    dtype: Literal["float32", "int16", "uint8"] = "float32",
) -> None:
    """Write a volume as NIfTI, MetaImage or NRRD, by the suffix; whole or not at all.

    Args:
        volume: the volume.
        path: where to; folders on the way are made.
        description: a remark kept in the header (NIfTI keeps the first 79 characters); by default the
            `description` of the volume's metadata, which marks what a pipeline drew as synthetic.
        dtype: `uint8` for masks and label maps, which must hold whole numbers from 0 to 255; `int16` for
            whole numbers from -32768 to 32767.

    Raises:
        RequestError: the suffix is unknown.
        OSError: the file could not be written.
    """
    path = Path(path)
    require_writable(path)
    suffix = _suffix(path)
    if description is None:
        description = volume.metadata.get("description")
    array: NDArray[Any] = volume.array.astype(dtype, copy=False)
    if dtype != "float32" and not np.array_equal(array, volume.array):
        allowed = np.iinfo(dtype)
        raise ValueError(f"{dtype} voxels must be whole numbers from {allowed.min} to {allowed.max}")
    with atomic_path(path) as temporary:
        try:
            if suffix in _NIFTI:
                _save_nifti(array, volume.grid, temporary, description)
            else:
                _save_itk(volume, temporary, description, dtype)
        except (OSError, RuntimeError) as error:  # SimpleITK raises RuntimeError whatever went wrong
            reason = error.strerror if isinstance(error, OSError) else None
            raise OSError(
                f"{final_path(path)} could not be written "
                f"({reason or 'is the disk full or the folder read-only?'})."
            ) from error


def _save_nifti(array: NDArray[Any], grid: Grid, path: Path, description: str | None) -> None:
    image = nibabel.Nifti1Image(array, grid.affine)
    image.set_sform(grid.affine, code=1)
    image.set_qform(grid.affine, code=1)
    # A quaternion states rotation and spacing only: a sheared grid stands in the sform alone.
    if not Grid(grid.shape, image.get_qform()).matches(grid, tolerance_mm=0.01):
        image.set_qform(None, code=0)
    image.header.set_xyzt_units("mm")
    if description:
        image.header["descrip"] = description.encode("ascii", "replace")[:79]
    image.to_filename(path)


def _save_itk(volume: Volume, path: Path, description: str | None, dtype: str) -> None:
    image = to_sitk(volume)
    if dtype != "float32":
        image = SimpleITK.Cast(image, SimpleITK.sitkUInt8 if dtype == "uint8" else SimpleITK.sitkInt16)
    if description:
        image.SetMetaData("Comment", description)
    SimpleITK.WriteImage(image, str(path), useCompression=True)
