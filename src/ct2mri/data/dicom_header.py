"""What all images of a synthetic DICOM series say of themselves: whose they are, and where they come from."""

import copy
import re
import uuid
from datetime import datetime

from pydicom import Dataset
from pydicom.uid import UID, generate_uid

from ct2mri import __version__
from ct2mri.data.dicom_origin import DicomOrigin

MANUFACTURER = "ct2mri"

_STORED_PER_UNIT = re.compile(r"Stored values are ([0-9.e+-]+) times these units\.")

_SERIES_NUMBER = 9001  # viewers sort by it: after the series of scanners

# What a result has in common with its source, beside the attributes of a clinical trial (group 0012).
_OF_THE_PATIENT = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "OtherPatientIDsSequence",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
)
_OF_THE_STUDY = (
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "StudyDescription",
    "ReferringPhysicianName",
)
_OF_THE_FRAME = ("FrameOfReferenceUID", "PositionReferenceIndicator")
# These say nothing of who the patient is.
_OF_THE_IMAGE = ("PatientPosition", "BodyPartExamined", "Laterality")

# Must be there, and may be empty where they are not known (type 2 of the standard).
_MAY_BE_EMPTY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PositionReferenceIndicator",
    "PatientPosition",
)


def add_source(header: Dataset, origin: DicomOrigin | None, anonymize: bool) -> None:
    """Patient, study and frame of reference: the source's, or fresh ones."""
    source = Dataset() if origin is None else origin.header
    kept: tuple[str, ...] = _OF_THE_IMAGE
    if not anonymize:
        kept += ("SpecificCharacterSet", *_OF_THE_PATIENT, *_OF_THE_STUDY, *_OF_THE_FRAME)
        for element in source.group_dataset(0x0012):
            if element.tag.element < 0x0070:  # above are attributes of the series
                header.add(copy.deepcopy(element))
    for keyword in kept:
        if keyword in source:
            header.add(copy.deepcopy(source[keyword]))
    if origin is None or anonymize:
        made_up = uuid.uuid4().hex[:12]
        header.PatientName, header.PatientID = f"ct2mri^{made_up}", f"ct2mri-{made_up}"
    if anonymize:
        header.PatientIdentityRemoved = "YES"
        header.DeidentificationMethod = "ct2mri: only modality, geometry and pixels written, fresh UIDs"
    for keyword in _MAY_BE_EMPTY:
        if keyword not in header:
            setattr(header, keyword, None)
    if "BodyPartExamined" not in header and "Laterality" not in header:
        header.Laterality = None  # may be a paired part of the body, for all that is known
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        if not header.get(keyword):
            setattr(header, keyword, fresh_uid())


def add_series(header: Dataset, description: str, model: str) -> None:
    """A new series, by this program."""
    header.SeriesInstanceUID = fresh_uid()
    header.SeriesNumber = _SERIES_NUMBER
    header.SeriesDescription = fitting_text(description, 64)
    header.Manufacturer = MANUFACTURER
    header.ManufacturerModelName = fitting_text(model, 64)
    header.SoftwareVersions = __version__


def add_provenance(
    header: Dataset, origin: DicomOrigin | None, derivation: str, model: str, anonymize: bool
) -> None:
    """That the images are synthetic, how they were made, and by which machines."""
    source = Dataset() if origin is None else origin.header
    header.SyntheticData = "YES"
    header.BurnedInAnnotation = "NO"
    header.DerivationDescription = fitting_text(derivation, 900)
    header.ImageComments = fitting_text(derivation, 900)
    drawer = Dataset()
    drawer.PurposeOfReferenceCodeSequence = [code_item("109102", "Processing Equipment")]
    drawer.Manufacturer = MANUFACTURER
    drawer.ManufacturerModelName = fitting_text(model, 64)
    drawer.SoftwareVersions = __version__
    drawer.ContributionDescription = "Drew these synthetic images; nothing was acquired"
    equipment = [drawer]
    if source.get("Manufacturer"):
        scanner = Dataset()
        scanner.PurposeOfReferenceCodeSequence = [code_item("109101", "Acquisition Equipment")]
        scanner.Manufacturer = source.Manufacturer
        if source.get("ManufacturerModelName"):
            scanner.ManufacturerModelName = source.ManufacturerModelName
        scanner.ContributionDescription = "Acquired the images that these were drawn from"
        equipment.insert(0, scanner)
    if not anonymize:
        equipment = [*copy.deepcopy(source.get("ContributingEquipmentSequence", [])), *equipment]
        now = datetime.now()
        drawer.ContributionDateTime = now.strftime("%Y%m%d%H%M%S")
        for of_what in ("InstanceCreation", "Series", "Content"):
            setattr(header, f"{of_what}Date", now.strftime("%Y%m%d"))
            setattr(header, f"{of_what}Time", now.strftime("%H%M%S"))
    header.ContributingEquipmentSequence = equipment
    # Lossy compression is never undone: images drawn from such images keep its mark.
    if source.get("LossyImageCompression") == "01":
        for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if keyword in source:
                header.add(copy.deepcopy(source[keyword]))


def add_stored_per_unit(header: Dataset, factor: float) -> None:
    """Say by what an MR's values were multiplied; no attribute of an MR image says it to all readers."""
    if factor != 1:
        header.DerivationDescription += f" Stored values are {factor:.12g} times these units."


def stored_per_unit(header: Dataset) -> float | None:
    """By what the values of a synthetic MR were multiplied to be stored; 1 of any other image.

    None where this program wrote the image, and someone took the description of its derivation away.
    """
    maker, modality = (str(header.get(keyword) or "").strip() for keyword in ("Manufacturer", "Modality"))
    if maker != MANUFACTURER or modality != "MR":
        return 1.0
    description = str(header.get("DerivationDescription") or "")
    found = _STORED_PER_UNIT.search(description)
    if found is not None:
        return float(found[1])
    return 1.0 if description else None


def code_item(value: str, meaning: str) -> Dataset:
    """A code of DICOM's own terminology (PS3.16)."""
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code


def fresh_uid() -> UID:
    """2.25 and a random number, which needs no registered root."""
    return generate_uid(prefix=None)


def fitting_text(text: str, length: int) -> str:
    """Text as DICOM's short fields take it: ASCII on one line, without backslashes, which part values."""
    line = " ".join(text.replace("\\", "/").split())
    return line.encode("ascii", "replace").decode()[:length].rstrip()
