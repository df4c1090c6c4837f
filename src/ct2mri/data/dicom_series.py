"""DICOM series among any files: which files belong together, whose they are, what they tell of the scan."""

import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from tqdm import tqdm

from ct2mri.data.dicom_facts import FACT_KEYWORDS, series_facts
from ct2mri.data.dicom_files import as_numbers, frame_value, looks_like_dicom, read_header
from ct2mri.data.dicom_header import MANUFACTURER
from ct2mri.data.volume import SYNTHETIC
from ct2mri.errors import RequestError

_KEYWORDS = (
    "SOPClassUID",
    "Modality",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesDescription",
    "FrameOfReferenceUID",
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
    "ImageOrientationPatient",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    *FACT_KEYWORDS,
)

_SAME_PLANE = 0.01  # of a direction cosine: half a degree; a scout is turned by far more


@dataclass(frozen=True)
class DicomSeries:
    """Images that were made to be one series and lie in one direction; whether they fill a grid is not said.

    Attributes:
        uid: SeriesInstanceUID. Images of one UID that differ in size, pixel spacing or direction (a scout
            among the slices) are several of these.
        modality: "CT", "MR", …; empty where the header does not say.
        description: what the scanner called it; may be empty.
        patient_key: a hash of the PatientID, for pairing; empty where the header has none.
        study_uid: StudyInstanceUID.
        frame_of_reference_uid: scans that share it share their coordinates; may be empty.
        files: by name, single-frame slices or multi-frame images.
        images: slices in all these files.
        located: whether its images say where they lie (reports and screenshots do not).
        facts: `kvp`, `kernel`, `manufacturer`, `slice_thickness` (mm), `contrast_agent` (None: not told),
            `cbct` (told as such, or guessed from maker, model and description), `mr_contrast` (a guess:
            "T1w", "T2w", "FLAIR", "PDw", …, or None), `localizer` (a scout).
        person: hashes of birth date, sex and the words of the name, for `contradicts` and `is_named_in`.
        pseudonymous: whether the header says that the identity was removed, or calls the patient by the
            PatientID alone.
        synthetic: whether this program wrote them, by their maker or description: results of a model.
    """

    uid: str
    modality: str
    description: str
    patient_key: str = field(repr=False)
    study_uid: str
    frame_of_reference_uid: str
    files: tuple[Path, ...]
    images: int
    located: bool
    facts: dict[str, Any]
    person: tuple[str, str, frozenset[str]] = field(repr=False)
    pseudonymous: bool = False
    synthetic: bool = False

    @property
    def label(self) -> str:
        """The series in words that do not name the patient."""
        return (
            f"“{self.description or 'no description'}” ({self.modality or '?'}, "
            f"{self.images} image{'s' if self.images > 1 else ''}, UID …{self.uid[-12:]})"
        )

    def contradicts(self, other: "DicomSeries") -> bool:
        """Whether the two cannot be of one person: both tell a birth date, sex or name, and not the same.

        Names disagree only if they share no word, as scanners write one name in many ways.
        """
        for mine, theirs in zip(self.person[:2], other.person[:2], strict=True):
            if mine and theirs and mine != theirs:
                return True
        mine_words, their_words = self.person[2], other.person[2]
        return bool(mine_words and their_words and not mine_words & their_words)

    def is_named_in(self, text: str) -> bool:
        """Whether a text (a folder's name) holds a word of the patient's name that is no pseudonym."""
        return not self.pseudonymous and bool(self.person[2] & _hashed_words(text))


@dataclass(frozen=True)
class DicomScan:
    """What was found among some files.

    Attributes:
        series: in order of their first file.
        damaged: files whose header cannot be read; a series may lack them.
        others: files that are no DICOM images (reports, structures, plans, anything else).
    """

    series: list[DicomSeries]
    damaged: list[Path]
    others: list[Path]


@dataclass
class _Group:
    """Files of one series that lie in one direction."""

    header: pydicom.Dataset
    plane: NDArray[np.float64] | None
    files: list[Path] = field(default_factory=list)
    images: int = 0


def find_series(files: list[Path], name: str) -> list[DicomSeries]:
    """The image series among any files, in order of their first file.

    Args:
        files: candidates; those that are no DICOM images are passed over.
        name: what messages call the whole.

    Raises:
        RequestError: a header is damaged (`scan_files` names such files and goes on).
    """
    scan = scan_files(files)
    if scan.damaged:
        raise RequestError(
            f"The header of {scan.damaged[0].name} in {name} is damaged; export the series again, "
            "or take the file away."
        )
    return scan.series


def scan_files(files: list[Path]) -> DicomScan:
    """Sort any files into image series, damaged files and others."""
    groups: dict[tuple[str, str], list[_Group]] = defaultdict(list)
    damaged, others = [], []
    for path in tqdm(files, desc="Reading DICOM headers", unit="file", delay=2, leave=False):
        if not looks_like_dicom(path):
            others.append(path)
            continue
        try:
            header = read_header(path, _KEYWORDS)
            if "Rows" not in header or "Columns" not in header:
                others.append(path)
                continue
            images = max(int(header.get("NumberOfFrames") or 1), 1)
            group = _group(groups[_text(header, "SeriesInstanceUID"), _text(header, "PatientID")], header)
        except (RequestError, TypeError, ValueError):
            damaged.append(path)
            continue
        group.images += images
        group.files.append(path)
    return DicomScan([_series(group) for found in groups.values() for group in found], damaged, others)


def _group(groups: list[_Group], header: pydicom.Dataset) -> _Group:
    """The group of one series that an image belongs to, a new one if it lies otherwise than all before."""
    orientation = as_numbers(frame_value(header, "ImageOrientationPatient"), 6)
    spacing = as_numbers(frame_value(header, "PixelSpacing"), 2)
    size = as_numbers([header.Rows, header.Columns], 2)
    plane = None
    if orientation is not None and spacing is not None and size is not None:
        plane = np.concatenate([orientation, spacing, size])
    for group in groups:
        if group.plane is None or plane is None:
            if group.plane is plane:
                return group
        elif np.abs(group.plane - plane).max() <= _SAME_PLANE:
            return group
    groups.append(_Group(header, plane))
    return groups[-1]


def _series(group: _Group) -> DicomSeries:
    header = group.header
    patient = _text(header, "PatientID")
    return DicomSeries(
        uid=_text(header, "SeriesInstanceUID"),
        modality=_text(header, "Modality").upper(),
        description=_text(header, "SeriesDescription"),
        patient_key=_hash(patient),
        study_uid=_text(header, "StudyInstanceUID"),
        frame_of_reference_uid=_text(header, "FrameOfReferenceUID"),
        files=tuple(group.files),
        images=group.images,
        located=group.plane is not None,
        facts=series_facts(header),
        person=(
            _hash(_text(header, "PatientBirthDate")),
            _hash(_text(header, "PatientSex").upper()),
            _hashed_words(_text(header, "PatientName")),
        ),
        pseudonymous=_hashed_words(_text(header, "PatientName")) <= _hashed_words(patient)
        or _text(header, "PatientIdentityRemoved").upper() == "YES",
        synthetic=_text(header, "Manufacturer") == MANUFACTURER
        or _text(header, "SeriesDescription").startswith(SYNTHETIC),
    )


def _hashed_words(text: str) -> frozenset[str]:
    return frozenset(_hash(word) for word in re.findall(r"[^\W_]{2,}", text.upper()))


def _text(header: pydicom.Dataset, keyword: str) -> str:
    value = header.get(keyword)
    return "" if value is None else str(value).strip()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16] if text else ""
