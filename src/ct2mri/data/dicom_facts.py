"""What a DICOM header tells, or lets guess, of how a scan was made."""

import re
from typing import Any

import pydicom

from ct2mri.data.dicom_files import as_numbers, frame_value

FACT_KEYWORDS = (
    "ImageType",
    "Manufacturer",
    "ManufacturerModelName",
    "ProtocolName",
    "KVP",
    "ConvolutionKernel",
    "SliceThickness",
    "ContrastBolusAgent",
    "ContrastBolusAgentSequence",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "ScanningSequence",
    "SequenceVariant",
    "SequenceName",
    "PulseSequenceName",
    "EchoPulseSequence",
    "RepetitionTime",
    "EchoTime",
    "InversionTime",
    "FlipAngle",
)
"""What `series_facts` reads beside the names of the series and the groups of enhanced images."""

_CONE_BEAM_CLASSES = ("1.2.840.10008.5.1.4.1.1.13.1.1", "1.2.840.10008.5.1.4.1.1.13.1.2")  # X-ray 3D
# Makers and models of treatment machines, C-arms and dental scanners, which write cone-beam CTs as CT.
_CONE_BEAM = re.compile(
    r"CBCT|CONE.?BEAM|\bOBI\b|\bXVI\b|ON.?BOARD IMAG|TRUEBEAM|HALCYON|\bETHOS\b|DYNA ?CT|\bO.?ARM\b|"
    r"NEWTOM|\bI.?CAT\b|ACCUITOMO|PLANMECA|PROMAX"
)
_SCOUT = re.compile(r"\b(LOCALI[SZ]ER|SCOUT|TOPOGRAM|SCANOGRAM|SURVIEW|SURVEY)\b")

# The first that matches counts: what is most particular stands first.
_CONTRAST_WORDS = (
    ("ADC", r"\bE?ADC\b|APPARENT DIFF"),
    ("DWI", r"\bDWI|DIFFUSION|\bDIFF|\bDTI\b|TRACEW"),
    ("SWI", r"\bSWI|\bSWAN\b|SUSCEPT"),
    ("TOF", r"\bTOF\b|ANGIO"),
    ("FLAIR", r"FLAIR|DARK.?FLUID"),
    ("STIR", r"STIR\b|\bTIRM\b"),
    ("T1map", r"T1.?MAP"),
    ("T2map", r"T2.?MAP"),
    ("T2starw", r"T2.?(\*|STAR)"),
    ("PDw", r"\bPDW?\b|PROTON DENS"),
)
_T1 = re.compile(r"T1(?!\d)|MP.?RAGE|\bBRAVO\b|\bVIBE\b|\bLAVA\b|\bTHRIVE\b|\bSPGR\b")
_T2 = re.compile(r"T2(?!\d)|\bCISS\b|\bFIESTA\b")


def series_facts(header: pydicom.Dataset) -> dict[str, Any]:
    """Facts of a series from the header of one of its images; `DicomSeries.facts` says which."""
    modality = _text(header, "Modality").upper()
    names = " ".join(
        _text(header, keyword)
        for keyword in ("SeriesDescription", "ProtocolName", "SequenceName", "PulseSequenceName")
    ).upper()
    maker = " ".join(_text(header, keyword) for keyword in ("Manufacturer", "ManufacturerModelName")).upper()
    image_type = _text(header, "ImageType").upper()
    return {
        "kvp": _positive(header, "KVP"),
        "kernel": _text(header, "ConvolutionKernel") or None,
        "manufacturer": _text(header, "Manufacturer") or None,
        "slice_thickness": _positive(header, "SliceThickness"),
        "contrast_agent": _contrast_agent(header),
        "cbct": _text(header, "SOPClassUID") in _CONE_BEAM_CLASSES
        or (modality == "CT" and bool(_CONE_BEAM.search(f"{names} {maker} {image_type}"))),
        "mr_contrast": _mr_contrast(header, _words(names)) if modality == "MR" else None,
        "localizer": "LOCALIZER" in image_type or bool(_SCOUT.search(_words(names))),
    }


def _words(text: str) -> str:
    """Text with underscores as spaces, so that they bound words."""
    return text.replace("_", " ")


def _text(header: pydicom.Dataset, keyword: str) -> str:
    value = frame_value(header, keyword)
    if isinstance(value, pydicom.multival.MultiValue):
        return "/".join(str(part).strip() for part in value)
    return "" if value is None else str(value).strip()


def _positive(header: pydicom.Dataset, keyword: str) -> float | None:
    number = as_numbers(frame_value(header, keyword), 1)
    return float(number[0]) if number is not None and number[0] > 0 else None


def _contrast_agent(header: pydicom.Dataset) -> bool | None:
    """Whether a contrast agent was given; None where someone took such things out of the header."""
    if header.get("ContrastBolusAgentSequence"):
        return True
    if "ContrastBolusAgent" in header:
        return _text(header, "ContrastBolusAgent").upper() not in ("", "NONE", "NO")
    # The standard asks for the attribute wherever an agent was given, so its absence tells as well.
    cleaned = _text(header, "PatientIdentityRemoved").upper() == "YES" or "DeidentificationMethod" in header
    return None if cleaned else False


def _mr_contrast(header: pydicom.Dataset, names: str) -> str | None:
    """The weighting of an MR: by the words that people name series with, else by the times of its echoes."""
    for contrast, pattern in _CONTRAST_WORDS:
        if re.search(pattern, names):
            return contrast
    t1, t2 = bool(_T1.search(names)), bool(_T2.search(names))
    if t1 or t2:
        return None if t1 and t2 else "T1w" if t1 else "T2w"
    return _weighting(header)


def _weighting(header: pydicom.Dataset) -> str | None:
    """The weighting that repetition, echo and inversion times (ms) make, where they leave no doubt."""
    repetition, inversion = _positive(header, "RepetitionTime"), _positive(header, "InversionTime")
    echo = _positive(header, "EchoTime") or _positive(header, "EffectiveEchoTime")
    kind = f"{_text(header, 'ScanningSequence')}/{_text(header, 'EchoPulseSequence')}".upper()
    if repetition is None or echo is None or "EP" in kind.split("/"):
        return None
    if "GR" in kind.split("/") or "GRADIENT" in kind:
        if inversion is not None and 500 <= inversion <= 1400:
            return "T1w"  # magnetisation-prepared
        flip = _positive(header, "FlipAngle")
        if echo <= 8 and repetition <= 50 and flip is not None and flip >= 8:
            return "T1w"
        return "T2starw" if echo >= 15 and repetition >= 100 else None
    if inversion is not None and inversion >= 1500 and repetition >= 4000:
        return "FLAIR"
    if inversion is not None and inversion <= 300 and repetition >= 1500:
        return "STIR"
    if echo <= 30 and repetition <= 1000:
        return "T1w"
    if repetition >= 1800:
        return "T2w" if echo >= 60 else "PDw" if echo <= 40 else None
    return None
