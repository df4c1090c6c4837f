"""How raw data sets are laid out on disk: finding the pairs, and reading pictures as volumes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ct2mri.data.cases import SLICE_AXIS, Orientation
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError

Layout = Literal["pairs", "slices"]


@dataclass(frozen=True)
class RawCase:
    """Where the files of one pair lie.

    Attributes:
        case_id: its name in the prepared data set.
        patient_id: the name of its folder.
        source: CT file, or DICOM folder.
        target: MR file, or DICOM folder.
        mask: body mask, where there is one.
        orientation: the plane that pictures show; None for volumes.
    """

    case_id: str
    patient_id: str
    source: Path
    target: Path
    mask: Path | None = None
    orientation: Orientation | None = None

    def load(self) -> tuple[Volume, Volume, Volume | None]:
        """Source, target and mask.

        Raises:
            RequestError: a file cannot be read as one volume or grey picture, or pictures differ in size.
        """
        source, target = self._load(self.source), self._load(self.target)
        mask = None if self.mask is None else self._load(self.mask)
        if self.orientation is not None:
            for other in (target, mask):
                if other is not None and other.spatial_shape != source.spatial_shape:
                    raise RequestError(
                        f"its pictures differ in size: {self.source.name} is {source.spatial_shape}, "
                        f"{Path(other.metadata['path']).name} {other.spatial_shape}"
                    )
        return source, target, mask

    def _load(self, path: Path) -> Volume:
        from ct2mri.data.io import load_volume

        return load_volume(path) if self.orientation is None else load_picture(path, self.orientation)

    def inputs(self) -> dict[str, Any]:
        """Names, sizes and times of the files, to tell later whether they are still the same."""
        files = {"source": self.source, "target": self.target, "mask": self.mask}
        return {role: None if path is None else _file_facts(path) for role, path in files.items()}


@dataclass(frozen=True)
class RawData:
    """What was found in a raw folder.

    Attributes:
        layout: how it is laid out.
        cases: the pairs, by name.
        left_out: what looks like a patient but is no pair: name → reason.
    """

    layout: Layout
    cases: list[RawCase]
    left_out: dict[str, str] = field(default_factory=dict)


def find_cases(raw: Path, layout: Literal["auto", "pairs", "slices"]) -> RawData:
    """Find the pairs of a raw folder, one subfolder a patient.

    `pairs`: PATIENT/ct.*, mr.*, optionally mask.*, in any format that `load_volume` reads; a folder ct/ or
    mr/ of one DICOM series counts as well. `slices`: PATIENT/ct_PLANE.png, mr_PLANE.png, optionally
    mask_PLANE.png, with axial, coronal and sagittal for PLANE: each plane becomes a case. `auto` takes what
    it finds.

    Raises:
        RequestError: there is no such folder, no pair in it, or pairs of both layouts.
    """
    if not raw.is_dir():
        raise RequestError(f"There is no folder {raw}; give a folder with one subfolder a patient.")
    if (raw / "plan.json").is_file() and (raw / "cases").is_dir():
        raise RequestError(f"{raw} is a prepared data set already; give the folder of raw pairs.")
    patients = sorted(path for path in raw.iterdir() if path.is_dir() and not path.name.startswith("."))
    found: list[RawData] = []
    for name, find in (("slices", _find_slices), ("pairs", _find_pairs)):
        if layout in ("auto", name):
            data = find(patients)
            if data.cases:
                found.append(data)
    if len(found) == 2:
        raise RequestError(
            f"{raw} holds both volumes (ct.*, mr.*) and pictures (ct_axial.png, …); "
            "say which to take with --layout pairs or --layout slices."
        )
    if not found:
        raise RequestError(
            f"No pair was found in {raw} ({len(patients)} subfolders); each patient needs a folder with ct.* "
            "and mr.* (.nii.gz, .nii, .mha, .mhd, .nrrd, .zip or a DICOM folder), or with ct_axial.png and "
            "mr_axial.png."
        )
    return found[0]


def _find_slices(patients: list[Path]) -> RawData:
    cases, left_out = [], {}
    for folder in patients:
        planes: list[Orientation] = []
        for plane in SLICE_AXIS:
            source, target, mask = (folder / f"{kind}_{plane}.png" for kind in ("ct", "mr", "mask"))
            if source.is_file() and target.is_file():
                planes.append(plane)
                case_id = f"{folder.name}_{plane}"
                cases.append(
                    RawCase(case_id, folder.name, source, target, mask if mask.is_file() else None, plane)
                )
            elif source.is_file() or target.is_file():
                present, absent = (source, target) if source.is_file() else (target, source)
                left_out[f"{folder.name}_{plane}"] = f"it has {present.name} but no {absent.name}"
        if not planes and folder.name not in {name.rsplit("_", 1)[0] for name in left_out}:
            left_out[folder.name] = "it has no ct_axial.png, ct_coronal.png or ct_sagittal.png"
    return RawData("slices", sorted(cases, key=lambda case: case.case_id), left_out)


def _find_pairs(patients: list[Path]) -> RawData:
    from ct2mri.data.io import find_volumes, volume_stem

    cases, left_out = [], {}
    for folder in patients:
        volumes = find_volumes(folder)
        named = {
            role: [path for path in volumes if volume_stem(path).lower() == role]
            for role in ("ct", "mr", "mask")
        }
        ambiguous = [role for role, paths in named.items() if len(paths) > 1]
        missing = [role for role in ("ct", "mr") if not named[role]]
        if ambiguous:
            names = ", ".join(path.name for path in named[ambiguous[0]])
            left_out[folder.name] = f"it has several volumes named {ambiguous[0]} ({names}); keep one"
        elif missing:
            left_out[folder.name] = f"it has no {' and no '.join(f'{role}.*' for role in missing)}"
        else:
            mask = named["mask"][0] if named["mask"] else None
            cases.append(RawCase(folder.name, folder.name, named["ct"][0], named["mr"][0], mask))
    return RawData("pairs", cases, left_out)


def load_picture(path: Path, orientation: Orientation) -> Volume:
    """Read a grey PNG as a volume one voxel thick, with voxels of 1 mm.

    Pictures hold one plane of a volume in array order, as in the published slices of SynthRAD2023: rows run
    along the plane's first axis and columns along its second, towards left, posterior and superior. So an
    axial picture shows the nose at its left edge. In RAS order, axial (I, J, 1) is turned both ways, coronal
    (I, 1, K) and sagittal (1, J, K) top to bottom.

    Raises:
        RequestError: the file is missing, damaged, or no grey picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.mode not in ("1", "L"):
                raise RequestError(f"{path} is a picture of mode {image.mode}; give an 8-bit grey one.")
            # A 1-bit mask reads as False and True: 0 and 1.
            pixels: NDArray[Any] = np.asarray(image).astype(np.float32)
    except (OSError, SyntaxError, UnidentifiedImageError) as error:
        raise RequestError(f"{path} cannot be read as a picture ({error}).") from error
    pixels = pixels[::-1, ::-1] if orientation == "axial" else pixels[::-1]
    array = np.expand_dims(np.ascontiguousarray(pixels), SLICE_AXIS[orientation])
    return Volume(array, np.eye(4), {"path": str(path)})


def _file_facts(path: Path) -> dict[str, Any]:
    """Name, size and time of a file (a MetaImage header with its voxels), or of all files of a folder."""
    if path.is_dir():
        files = [p for p in path.rglob("*") if p.is_file()]
    elif path.suffix.lower() == ".mhd":
        files = list(path.parent.glob(f"{path.stem}.*"))
    else:
        files = [path]
    stats = [file.stat() for file in files]
    return {
        "name": path.name,
        "files": len(files),
        "bytes": sum(s.st_size for s in stats),
        "modified_ns": max(s.st_mtime_ns for s in stats),
    }
