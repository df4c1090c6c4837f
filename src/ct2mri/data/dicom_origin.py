"""What a volume that came as DICOM remembers of its files, so that results can be written beside them."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset


@dataclass(frozen=True, eq=False)
class DicomOrigin:
    """Where a volume came from: `volume.metadata["dicom"]`.

    Attributes:
        header: the whole header of the first slice (k = 0), without pixels and without per-frame groups.
        sop_class_uid: what kind of image the slices are.
        sop_instance_uids: the image of each slice k of the volume's array; frames of one multi-frame image
            share theirs.
        frame_numbers: the frame (from 1) of each slice within its image; None for single-frame images.
    """

    header: "Dataset" = field(repr=False)  # it names the patient
    sop_class_uid: str
    sop_instance_uids: tuple[str, ...]
    frame_numbers: tuple[int, ...] | None = None
