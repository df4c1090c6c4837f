"""Trees of DICOM files: a hospital's export, and the Gold Atlas."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ct2mri.data.dicom_series import DicomScan, DicomSeries
from ct2mri.data.layouts.cases import RawCase, RawData, visible_folders
from ct2mri.data.layouts.naming import choose, contrast_of, is_mr_word, says_cbct, with_agent
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.options.choices import Layout
from ct2mri.options.data import RawDataOptions

# Of several candidates, the one that goes with the image chosen before; an empty list where none does.
_Preference = Callable[[list[DicomSeries], DicomSeries], list[DicomSeries]]


@dataclass(frozen=True)
class SeriesImage:
    """An image that is one DICOM series."""

    series: DicomSeries

    @property
    def name(self) -> str:
        """The series in words that do not name the patient."""
        return self.series.label

    def load(self) -> Volume:
        """Read it, as `load_series` does."""
        from ct2mri.data.dicom import load_series

        return load_series(self.series, self.name)

    def files(self) -> list[Path]:
        """Its slices, or its multi-frame images."""
        return list(self.series.files)


class Dicom:
    """Any tree of DICOM files: series told apart by UID, paired by PatientID and, where it can be, by study.

    A case is called after the folder right inside the one given, where that holds one patient alone and no
    word of the patient's name; otherwise `patient-` and a hash, for identifiers and names of patients are
    never shown.
    """

    name: Layout = "dicom"

    needs = "a CT and an MR series under one PatientID, anywhere below the folder"

    def recognises(self, raw: Path, options: RawDataOptions) -> bool:
        """Whether there is a DICOM file at any depth."""
        from ct2mri.data.dicom_files import holds_dicom

        return holds_dicom(raw, recursive=True)

    def find(self, raw: Path, options: RawDataOptions) -> RawData:
        """The pairs, one a study that has both images, else one a patient."""
        found = RawData(self.name, [])
        scan = _scan(raw, found)
        patients = defaultdict(list)
        for series in scan.series:
            patients[series.patient_key or _digest(_top(raw, series))].append(series)
        holders = defaultdict(set)
        for key, members in patients.items():
            for series in members:
                holders[_top(raw, series)].add(key)
        for key, members in patients.items():
            folders = {_top(raw, series) for series in members}
            alone = len(folders) == 1 and folders != {""} and all(len(holders[f]) == 1 for f in folders)
            named = any(series.is_named_in(folder) for series in members for folder in folders)
            patient_id = folders.pop() if alone and not named else f"patient-{key[:8]}"
            _add_patient(found, raw, patient_id, members, options)
        _note_frames(found)
        return found


class GoldAtlas:
    """One folder a patient (1_01_P: site, number), with the DICOM files of CT, deformed CT, T1 and T2.

    The deformed CT lies on the MR and is taken before the CT as scanned; which MR is for the user to say
    (`--target t2`). Data: Nyholm et al., Medical Physics 2018, doi:10.1002/mp.12748. The deformed CT is told
    by the MR's frame of reference, else by its description (CTtoMR).
    """

    name: Layout = "gold-atlas"

    needs = "a folder 1_01_P with the DICOM files of its CT and MR"

    def recognises(self, raw: Path, options: RawDataOptions) -> bool:
        """Whether folders named in that way hold DICOM files."""
        from ct2mri.data.dicom_files import holds_dicom

        return any(holds_dicom(folder, recursive=True) for folder in _atlas_folders(raw))

    def find(self, raw: Path, options: RawDataOptions) -> RawData:
        """The pairs, one a folder."""
        found = RawData(self.name, [])
        for folder in _atlas_folders(raw):
            series = _scan(folder, found).series
            try:
                case = _pair(folder.name, folder.name, series, options, _lying_on, centre=folder.name[0])
            except RequestError as error:
                found.left_out[folder.name] = str(error)
            else:
                found.cases.append(case)
        _note_frames(found)
        return found


_ATLAS_FOLDER = re.compile(r"[123]_\d\d_P", re.IGNORECASE)
_DEFORMED = re.compile(r"CT.?to.?MR|def|warp|regist|\breg\b|transformed", re.IGNORECASE)


def _atlas_folders(raw: Path) -> list[Path]:
    return [folder for folder in visible_folders(raw) if _ATLAS_FOLDER.fullmatch(folder.name)]


def _lying_on(candidates: list[DicomSeries], other: DicomSeries) -> list[DicomSeries]:
    """Of several CTs, those that were brought onto an MR: in its frame of reference, or described so."""
    frame = other.frame_of_reference_uid
    same = [series for series in candidates if frame and series.frame_of_reference_uid == frame]
    if len(same) == 1:
        return same
    return [series for series in same or candidates if _DEFORMED.search(series.description)]


def _scan(folder: Path, found: RawData) -> DicomScan:
    """The series below a folder; files with a damaged header are noted, for their series lacks them."""
    from ct2mri.data.dicom import scan_files
    from ct2mri.data.dicom_files import visible_files

    scan = scan_files(visible_files(folder))
    if scan.damaged:
        names = ", ".join(str(path.relative_to(folder)) for path in scan.damaged[:3])
        more = f" and {len(scan.damaged) - 3} more" if len(scan.damaged) > 3 else ""
        found.notes.append(
            f"The headers of {len(scan.damaged)} DICOM files in {folder.name} are damaged ({names}{more}); "
            "they are passed over."
        )
    return scan


def _top(raw: Path, series: DicomSeries) -> str:
    """The folder right inside `raw` that holds a series; empty where its files lie in `raw` itself."""
    parts = series.files[0].relative_to(raw).parts
    return parts[0] if len(parts) > 1 else ""


def _add_patient(
    found: RawData, raw: Path, patient_id: str, series: list[DicomSeries], options: RawDataOptions
) -> None:
    """Add the pairs of all series of one PatientID, or the reasons why there are none."""
    if any(one.contradicts(other) for one in series for other in series):
        folders = sorted({str(one.files[0].parent.relative_to(raw)) for one in series})
        found.left_out[patient_id] = (
            f"two patients go by one PatientID (in {', '.join(folders)}), as birth dates, sexes or names "
            "differ; give each an identifier of its own"
        )
        return
    studies = defaultdict(list)
    for one in series:
        studies[one.study_uid].append(one)
    groups = [
        members
        for members in studies.values()
        if all(_of(members, word) for word in (options.source, options.target))
    ]
    if len(groups) > 1:
        found.notes.append(
            f"{patient_id} has {len(groups)} studies with a pair each: cases of one patient, for they share "
            "a PatientID; if they are several people, give each an identifier of their own."
        )
    # CT and MR are often studies of their own: then the patient's only ones are a pair.
    for members in groups or [series]:
        case_id = patient_id if len(groups) < 2 else f"{patient_id}_study-{_digest(members[0].study_uid)[:6]}"
        try:
            case = _pair(case_id, patient_id, members, options)
            found.cases.append(replace(case, person=members[0].patient_key or None))
        except RequestError as error:
            found.left_out[case_id] = str(error)


def _digest(text: str) -> str:
    """A name for a study or folder that stays the same whatever lies beside it."""
    return hashlib.sha256(text.encode()).hexdigest()


def _of(series: Iterable[DicomSeries], word: str, *, synthetic: bool = False) -> list[DicomSeries]:
    """The series of a modality, without scouts, and without single images where there are stacks.

    Either those that were acquired, or results of this program, which nothing is to be learnt from.
    """
    word = word.lower()
    modality = {"mri": "MR", "pet": "PT", "cbct": "CT"}.get(word, "MR" if is_mr_word(word) else word.upper())
    fitting = [one for one in series if not one.facts["localizer"] and one.synthetic == synthetic]
    if word == "cbct":
        fitting = [one for one in fitting if _is_cbct(one)]
    else:
        fitting = [one for one in fitting if one.modality == modality and not _is_cbct(one)]
    if is_mr_word(word) and word not in ("mr", "mri"):
        fitting = [one for one in fitting if _contrast(one) == contrast_of(word)]
    stacks = [one for one in fitting if one.images > 1]
    return stacks or fitting


def _contrast(series: DicomSeries) -> str | None:
    """The MR contrast as guessed from the header, and whether an agent was given, where that is told."""
    contrast = series.facts["mr_contrast"]
    return None if contrast is None else with_agent(contrast, bool(series.facts["contrast_agent"]))


def _is_cbct(series: DicomSeries) -> bool:
    return bool(series.facts["cbct"]) or (series.modality == "CT" and says_cbct(series.description))


def _pair(
    case_id: str,
    patient_id: str,
    series: list[DicomSeries],
    options: RawDataOptions,
    prefer: _Preference | None = None,
    centre: str | None = None,
) -> RawCase:
    """One pair of a patient's series.

    Args:
        case_id: name of the case.
        patient_id: whose it is.
        series: all that there are.
        options: which modalities and series are meant.
        prefer: narrows several CTs to the one that goes with the other image.
        centre: the hospital it comes from.

    Raises:
        RequestError: one is missing, or there are several.
    """
    wanted = {
        "source": (options.source, options.source_series),
        "target": (options.target, options.target_series),
    }
    chosen: dict[str, DicomSeries] = {}
    facts: dict[str, Any] = {}
    # A CT that is chosen by what it lies on comes last.
    for role, (word, part) in sorted(wanted.items(), key=lambda item: item[1][0].lower() == "ct"):
        candidates = _of(series, word)
        if not candidates:
            raise RequestError(_missing(series, word))
        if prefer is not None and part is None and chosen and word.lower() == "ct" and len(candidates) > 1:
            candidates = prefer(candidates, next(iter(chosen.values()))) or candidates
        candidates = _described(candidates, word, part, role)
        one = choose(candidates, lambda s: s.label, word, None, f"--{role}_series")
        chosen[role] = one
        contrast = _contrast(one)
        if contrast is not None:
            facts[f"{role}_contrast"] = contrast
        if _is_cbct(one):
            facts[f"{role}_cbct"] = True
    return RawCase(
        case_id,
        patient_id,
        SeriesImage(chosen["source"]),
        SeriesImage(chosen["target"]),
        centre=centre,
        facts=facts,
    )


def _described(series: list[DicomSeries], word: str, part: str | None, role: str) -> list[DicomSeries]:
    """The series whose description is, or else contains, what the user named; without any, by their folders.

    Raises:
        RequestError: there is none.
    """
    if part is None:
        return series
    if any(one.description for one in series):
        told = [one.description.lower() for one in series]
    else:
        told = [one.files[0].parent.name.lower() for one in series]
    exact = [one for one, text in zip(series, told, strict=True) if text == part.lower()]
    meant = exact or [one for one, text in zip(series, told, strict=True) if part.lower() in text]
    if not meant:
        names = ", ".join(sorted(one.label for one in series))
        raise RequestError(f"none of its {word} series ({names}) is named as --{role}_series says ({part})")
    return meant


def _missing(series: list[DicomSeries], word: str) -> str:
    if word.lower() == "ct" and any(_is_cbct(one) for one in series):
        return (
            "its only CT is a cone-beam CT (CBCT), whose values are not reliable HU; train on such data by "
            "themselves with cbct instead of ct"
        )
    if _of(series, word, synthetic=True):
        return f"its only {word} is synthetic, a result of ct2mri; add the one that was acquired"
    labels = sorted({one.label for one in series})
    there = ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")
    return f"it has no {word} series{f' (there is {there})' if there else ''}"


def _note_frames(found: RawData) -> None:
    """Say how many pairs have two frames of reference: nothing tells how their images lie to one another."""
    apart = 0
    for case in found.cases:
        frames = {
            image.series.frame_of_reference_uid
            for image in (case.source, case.target)
            if isinstance(image, SeriesImage)
        }
        apart += len(frames) > 1
    if apart:
        found.notes.append(
            f"In {apart} of {len(found.cases)} cases source and target are in different frames of reference, "
            "so nothing says that they lie on one another; bring them together with --register rigid."
        )
