"""The data sets of the SynthRAD challenges, as unpacked from their archives."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ct2mri.data.layouts.cases import RawData, visible_folders
from ct2mri.data.layouts.naming import contrast_of, is_mr_word, same_modality, with_agent
from ct2mri.data.layouts.pairs import add_pair
from ct2mri.data.layouts.synthrad_tables import read_tables
from ct2mri.options.choices import Layout
from ct2mri.options.data import RawDataOptions


class SynthRAD2023:
    """Task1/{brain,pelvis}/ID/{ct,mr,mask}.nii.gz (Task2: cbct for mr), from three centres.

    An identifier is task, anatomy (B, P), centre (A, B, C) and a number: 1BA001. The folder given may be the
    one that holds the tasks, a task, or one anatomy. How images were acquired is told by tables in the
    folders named overview; that brain MR is T1-weighted, in centres B and C with contrast agent, by the
    paper.
    Layout: Thummerer et al., Medical Physics 2023, doi:10.1002/mp.16529.
    """

    name: Layout = "synthrad2023"

    needs = "a folder named by its identifier (1BA001) with ct.nii.gz and mr.nii.gz in it"

    def recognises(self, raw: Path, options: RawDataOptions) -> bool:
        """Whether a folder named by such an identifier holds .nii.gz images."""
        return any(next(folder.glob("*.nii.gz"), None) for folder, _ in _patients(raw, _IN_2023))

    def find(self, raw: Path, options: RawDataOptions) -> RawData:
        """The pairs of all anatomies found."""
        return _find(self.name, raw, _IN_2023, options, _by_the_paper)


class SynthRAD2025:
    """Task1/{AB,HN,TH}/ID/{ct,mr,mask}.mha (Task2: cbct for mr), from five centres.

    An identifier is task, region (AB abdomen, HN head and neck, TH thorax), centre (A to E) and a number:
    1ABA005. The folder given may be the one that holds the tasks, a task, or one region. How images were
    acquired is told by tables in the folders named overviews; other files beside the images are passed over.
    Layout: Thummerer et al., Medical Physics 2025, arXiv:2502.17609.
    """

    name: Layout = "synthrad2025"

    needs = "a folder named by its identifier (1ABA005) with ct.mha and mr.mha in it"

    def recognises(self, raw: Path, options: RawDataOptions) -> bool:
        """Whether a folder named by such an identifier holds .mha images."""
        return any(next(folder.glob("*.mha"), None) for folder, _ in _patients(raw, _IN_2025))

    def find(self, raw: Path, options: RawDataOptions) -> RawData:
        """The pairs of all regions found."""
        return _find(self.name, raw, _IN_2025, options, lambda anatomy, centre: {})


_IN_2023 = re.compile(r"[12](?P<anatomy>[BP])(?P<centre>[A-C])\d{3}")
_IN_2025 = re.compile(r"[12](?P<anatomy>AB|HN|TH)(?P<centre>[A-E])\d{3}")
_ANATOMIES = {"B": "brain", "P": "pelvis"}
_DEPTH = 4  # ARCHIVE/Task1/brain/1BA001


def centre_of(identifier: str) -> str | None:
    """The centre that an identifier of SynthRAD names, or None where it is no such identifier."""
    told = _IN_2023.fullmatch(identifier) or _IN_2025.fullmatch(identifier)
    return told["centre"] if told else None


def _by_the_paper(anatomy: str, centre: str) -> dict[str, Any]:
    """What the paper of SynthRAD2023 says of all MR images of an anatomy and a centre."""
    return {"mr_contrast": "T1w", "contrast_agent": centre != "A"} if anatomy == "brain" else {}


def _find(
    layout: Layout,
    raw: Path,
    pattern: re.Pattern[str],
    options: RawDataOptions,
    told_of_mr: Callable[[str, str], dict[str, Any]],
) -> RawData:
    """The pairs of all patients, each with what tables and paper tell of it.

    Args:
        layout: which data set it is.
        raw: the folder given.
        pattern: of a patient's identifier.
        options: which modalities and patients are meant.
        told_of_mr: anatomy and centre → what is known of MR images without tables.
    """
    patients = _wanted(raw, pattern, options)
    tables, problems = read_tables(folder for folder, _ in patients)
    found = RawData(layout, [], notes=problems, chosen_by="the beginning of their identifiers (1B, 1HN, 1PA)")
    for folder, identifier in patients:
        centre = identifier["centre"]
        anatomy = _ANATOMIES.get(identifier["anatomy"], identifier["anatomy"])
        table = tables.get(folder.name, {})
        of_modality = {**table, "mr": {**table.get("mr", {}), **told_of_mr(anatomy, centre)}}
        words = {"source": options.source, "target": options.target}
        told = {role: of_modality.get(_modality(word), {}) for role, word in words.items()}
        contrasts = {role: _contrast(told[role]) for role, word in words.items() if is_mr_word(word)}
        facts = {f"{role}_contrast": contrast for role, contrast in contrasts.items() if contrast is not None}
        before = len(found.cases)
        add_pair(found, folder, _by_file_name(options), centre, told, anatomy=anatomy, **facts)
        for role, contrast in contrasts.items():
            if len(found.cases) > before and not _is_meant(contrast, words[role]):
                del found.cases[before:]
                found.left_out[folder.name] = (
                    f"its MR is {contrast}, not {contrast_of(words[role])}"
                    if contrast
                    else f"no table in its overview folder tells whether its MR is {contrast_of(words[role])}"
                )
    _note_centres(found, options)
    return found


def _contrast(told: Mapping[str, Any]) -> str | None:
    """The MR contrast that tables or the paper tell."""
    contrast = told.get("mr_contrast")
    return None if contrast is None else with_agent(contrast, bool(told.get("contrast_agent")))


def _is_meant(contrast: str | None, word: str) -> bool:
    return same_modality(word, "mr") or contrast_of(word) == contrast


def _modality(word: str) -> str:
    """What the tables call the modality of a word."""
    return "mr" if is_mr_word(word) else word.lower()


def _by_file_name(options: RawDataOptions) -> RawDataOptions:
    """The options as the names of the files are to be read: `mr.nii.gz` is any contrast."""
    return replace(
        options,
        source=_modality(options.source),
        target=_modality(options.target),
        source_series=None,
        target_series=None,
    )


def _patients(raw: Path, pattern: re.Pattern[str]) -> list[tuple[Path, re.Match[str]]]:
    """Folders named by an identifier, at most `_DEPTH` below the one given, with the identifier."""
    patients, level = [], [raw]
    for _ in range(_DEPTH):
        below = []
        for folder in (sub for parent in level for sub in visible_folders(parent)):
            identifier = pattern.fullmatch(folder.name)
            if identifier is not None:
                patients.append((folder, identifier))
            else:
                below.append(folder)
        level = below
    return patients


def _wanted(raw: Path, pattern: re.Pattern[str], options: RawDataOptions) -> list[tuple[Path, re.Match[str]]]:
    """The patients whose identifier begins as `--source_series` and `--target_series` say.

    Each patient has one image a modality, all named alike, so what there is to choose is who.
    """
    beginnings = [series for series in (options.source_series, options.target_series) if series is not None]
    return [
        (folder, identifier)
        for folder, identifier in _patients(raw, pattern)
        if all(folder.name.lower().startswith(beginning.lower()) for beginning in beginnings)
    ]


def _note_centres(found: RawData, options: RawDataOptions) -> None:
    """Say where MR images of several centres are of contrasts that no table tells."""
    role = next((r for r in ("target", "source") if is_mr_word(getattr(options, r))), None)
    untold = [case for case in found.cases if role and f"{role}_contrast" not in case.facts]
    centres = sorted({str(case.centre) for case in untold})
    if len(centres) > 1:
        found.notes.append(
            f"The MR images are of {len(centres)} centres ({', '.join(centres)}), whose sequences differ: "
            "no table in the overview folders tells their contrast. Each case keeps its centre; "
            f"--{role}_series with the beginning of an identifier takes one centre's alone."
        )
