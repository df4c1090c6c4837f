"""What every layout yields: pairs of images, each knowing how it is read, and what was left out and why."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ct2mri.data.cases import SLICE_AXIS, Orientation
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.options.choices import Layout
from ct2mri.options.data import RawDataOptions


class RawImage(Protocol):
    """One image of a raw data set, wherever its voxels lie; small, so that it can be sent to a process."""

    @property
    def name(self) -> str:
        """What to call it in messages."""

    def load(self) -> Volume:
        """Read it.

        Raises:
            RequestError: it cannot be read as one volume.
        """

    def files(self) -> list[Path]:
        """The files that it is made of."""


@dataclass(frozen=True)
class VolumeFile:
    """A volume in a file of a known format, in a zip, or in a folder that holds one DICOM series.

    Attributes:
        path: the file or folder.
        within: the folder that its name is told from; the one it lies in, where None.
        told: what the data set's tables tell of the scan and the file may not: `kvp`, `mr_contrast`, ….
    """

    path: Path
    within: Path | None = None
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The file's name, with the folders on the way where they tell more."""
        return self.path.name if self.within is None else self.path.relative_to(self.within).as_posix()

    def load(self) -> Volume:
        """Read it, as `load_volume` does; what its header does not tell, tables may."""
        from ct2mri.data.io import load_volume

        volume = load_volume(self.path)
        for key, value in self.told.items():
            if volume.metadata.get(key) is None:
                volume.metadata[key] = value
        return volume

    def files(self) -> list[Path]:
        """The file; a MetaImage header with its voxels; the files of a folder."""
        from ct2mri.data.io import files_of

        return files_of(self.path)


@dataclass(frozen=True)
class Picture:
    """A grey picture of one plane of a patient."""

    path: Path
    orientation: Orientation

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def load(self) -> Volume:
        """Read it as a volume one voxel thick."""
        return load_picture(self.path, self.orientation)

    def files(self) -> list[Path]:
        """The file."""
        return [self.path]


@dataclass(frozen=True)
class RawCase:
    """One pair of images, and what the layout knows about it.

    Attributes:
        case_id: its name in the prepared data set.
        patient_id: whose it is; cases of one patient are never on two sides of a split.
        source: image to translate from.
        target: image to translate to.
        mask: body mask, where there is one.
        orientation: the plane that pictures show; None for volumes.
        centre: the hospital it comes from, as the data set calls it.
        facts: what the layout says: `source_contrast` and `target_contrast` of MR (e.g. "T1w"),
            `source_cbct` and `target_cbct` (True for a cone-beam CT), `anatomy`.
        person: a hash by which the patient is told under any name; None where the name is all that tells.
    """

    case_id: str
    patient_id: str
    source: RawImage
    target: RawImage
    mask: RawImage | None = None
    orientation: Orientation | None = None
    centre: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    person: str | None = None

    @property
    def source_name(self) -> str:
        """What to call the source in messages."""
        return self.source.name

    @property
    def target_name(self) -> str:
        """What to call the target in messages."""
        return self.target.name

    def load(self) -> tuple[Volume, Volume, Volume | None]:
        """Source, target and mask.

        Raises:
            RequestError: a file cannot be read as one volume or grey picture, or pictures differ in size.
        """
        source, target = self.load_source(), self.load_target()
        mask = None if self.mask is None else self.mask.load()
        if self.orientation is not None:
            for image, other in ((self.target, target), (self.mask, mask)):
                if image and other and other.spatial_shape != source.spatial_shape:
                    raise RequestError(
                        f"its pictures differ in size: {self.source.name} is {source.spatial_shape}, "
                        f"{image.name} {other.spatial_shape}"
                    )
        return source, target, mask

    def load_source(self) -> Volume:
        """The source alone; raises as `load` does."""
        return self.source.load()

    def load_target(self) -> Volume:
        """The target alone; raises as `load` does."""
        return self.target.load()

    def inputs(self) -> dict[str, Any]:
        """Names, sizes and times of the files, to tell later whether they are still the same."""
        images = {"source": self.source, "target": self.target, "mask": self.mask}
        return {role: None if image is None else _files_facts(image) for role, image in images.items()}


@dataclass(frozen=True)
class RawData:
    """What was found in a raw folder.

    Attributes:
        layout: how it is laid out.
        cases: the pairs, by name.
        left_out: what looks like a patient but is no usable pair: name → reason.
        notes: sentences that the user should see before the data are used.
        pictures: whether voxels are grey levels from 0 to 255 instead of a modality's own values.
        chosen_by: what `--source_series` and `--target_series` take, the end of a sentence.
    """

    layout: Layout
    cases: list[RawCase]
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    pictures: bool = False
    chosen_by: str = "a part of all their names"


class Adapter(Protocol):
    """One way in which raw data lie on disk."""

    @property
    def name(self) -> Layout:
        """What `--layout` calls it."""

    @property
    def needs(self) -> str:
        """What each patient needs to be found, the end of a sentence."""

    def recognises(self, raw: Path, options: RawDataOptions) -> bool:
        """Whether the folder looks like this layout, told from names and a few first bytes."""

    def find(self, raw: Path, options: RawDataOptions) -> RawData:
        """The pairs of the folder."""


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


def visible_folders(folder: Path) -> list[Path]:
    """The subfolders of a folder by name, but hidden ones, what macOS adds to archives, and our own reports.

    `check` of one patient writes its report beside the patient's folder, among those of the others.
    """
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir()
        and not path.name.startswith((".", "__MACOSX"))
        and not (path.name.endswith("-check") and (path / "check.json").is_file())
    )


def _files_facts(image: RawImage) -> dict[str, Any]:
    files = image.files()
    stats = [file.stat() for file in files]
    return {
        "name": image.name,
        "files": len(files),
        "bytes": sum(s.st_size for s in stats),
        "modified_ns": max(s.st_mtime_ns for s in stats),
    }
