"""A volume as it lies in the results folder: NIfTI for the browser, and a JSON file beside it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from ct2mri.errors import RequestError

VolumeRole = Literal["source", "draft", "result", "target", "error", "spread", "mask", "other"]

FORMAT_VERSION = 1
SUFFIX = ".volume.json"
LONGEST_NAME = 100


@dataclass(frozen=True, kw_only=True)
class Described:
    """What is said of a volume before it is read.

    Attributes:
        name: what to call it.
        group: volumes of one case share it.
        role: what it is among them.
        modality: where it is known beforehand.
        units: where they are known beforehand.
        job: the job that made it.
        made: how it was made (the fields of `records.Made`), where it is synthetic.
    """

    name: str
    group: str
    role: VolumeRole
    modality: str | None = None
    units: str | None = None
    job: str | None = None
    made: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class StoredVolume:
    """What `BASE.volume.json` holds; `BASE.nii` lies beside it, of DICOM also `BASE.origin.dcm` and `.json`.

    Attributes:
        base: the beginning of its files' names.
        described: what was said of it before it was read.
        modality: CT, MR, …; None where it is not known.
        units: of its values.
        shape: voxels along i, j, k.
        spacing: voxel edges in mm.
        orientation: nearest anatomical directions of i, j, k.
        affine: 4×4, exact, where NIfTI keeps 32 bits.
        warnings: what the user should know of it, a sentence each.
        metadata: what the file told beside the voxels, and a model may look at.
        has_origin: it came as DICOM, whose header is kept.
    """

    base: str
    described: Described
    modality: str | None
    units: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str
    affine: list[list[float]]
    warnings: list[str]
    metadata: dict[str, Any]
    has_origin: bool

    def to_json(self) -> dict[str, Any]:
        """What the file holds."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def of(cls, folder: Path, base: str) -> Self:
        """Read the file of a volume of a folder; see `read`."""
        return cls.read(folder / f"{base}{SUFFIX}")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file.

        Raises:
            RequestError: it is damaged, called otherwise than its volume, or of a newer version.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content.pop("format_version")
            if version > FORMAT_VERSION:
                raise RequestError(
                    f"{path} has format_version {version}, this program reads up to {FORMAT_VERSION}; "
                    "update ct2mri."
                )
            if f"{content['base']}{SUFFIX}" != path.name:  # else it could name files elsewhere for its own
                raise ValueError("base")
            described = Described(**content.pop("described"))
            shape, spacing = tuple(content.pop("shape")), tuple(content.pop("spacing"))
            return cls(described=described, shape=shape, spacing=spacing, **content)
        except (OSError, TypeError, KeyError, ValueError) as error:
            if isinstance(error, RequestError):
                raise
            raise RequestError(f"{path} is damaged; delete its folder.") from error
