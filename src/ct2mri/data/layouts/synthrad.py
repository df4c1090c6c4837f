"""The data sets of the SynthRAD challenges, as unpacked from their archives."""

import re
from dataclasses import replace
from pathlib import Path

from ct2mri.data.layouts.cases import RawData, visible_folders
from ct2mri.data.layouts.pairs import add_pair
from ct2mri.options import Layout, RawDataOptions


class SynthRAD2023:
    """Task1/{brain,pelvis}/ID/{ct,mr,mask}.nii.gz (Task2: cbct for mr), from three centres.

    An identifier is task, anatomy (B, P), centre (A, B, C) and a number: 1BA001. The folder given may be the
    one that holds the tasks, a task, or one anatomy; folders named otherwise (overview) are passed over.
    Layout: Thummerer et al., Medical Physics 2023, doi:10.1002/mp.16529.
    """

    name: Layout = "synthrad2023"

    needs = "a folder named by its identifier (1BA001) with ct.nii.gz and mr.nii.gz in it"

    def recognises(self, raw: Path, options: RawDataOptions) -> bool:
        """Whether a folder named by such an identifier holds .nii.gz images."""
        return any(next(folder.glob("*.nii.gz"), None) for folder, _ in _patients(raw, _IN_2023))

    def find(self, raw: Path, options: RawDataOptions) -> RawData:
        """The pairs of all anatomies found."""
        found = RawData(self.name, [])
        for folder, identifier in _wanted(raw, _IN_2023, options):
            anatomy = {"B": "brain", "P": "pelvis"}[identifier["anatomy"]]
            add_pair(found, folder, _by_name(options), identifier["centre"], anatomy=anatomy)
        if all(case.facts["anatomy"] == "brain" for case in found.cases):
            # T1-weighted in all centres, with and without contrast agent.
            for role, word in (("source", options.source), ("target", options.target)):
                if word.lower() == "mr":
                    for case in found.cases:
                        case.facts[f"{role}_contrast"] = "T1w"
        else:
            _note_centres(found, options)
        return found


class SynthRAD2025:
    """Task1/{AB,HN,TH}/ID/{ct,mr,mask}.mha (Task2: cbct for mr), from five centres.

    An identifier is task, region (AB abdomen, HN head and neck, TH thorax), centre (A to E) and a number:
    1ABA005. The folder given may be the one that holds the tasks, a task, or one region; folders named
    otherwise (overviews) are passed over, and so are other files beside the images.
    Layout: Thummerer et al., Medical Physics 2025, arXiv:2502.17609.
    """

    name: Layout = "synthrad2025"

    needs = "a folder named by its identifier (1ABA005) with ct.mha and mr.mha in it"

    def recognises(self, raw: Path, options: RawDataOptions) -> bool:
        """Whether a folder named by such an identifier holds .mha images."""
        return any(next(folder.glob("*.mha"), None) for folder, _ in _patients(raw, _IN_2025))

    def find(self, raw: Path, options: RawDataOptions) -> RawData:
        """The pairs of all regions found."""
        found = RawData(self.name, [])
        for folder, identifier in _wanted(raw, _IN_2025, options):
            add_pair(found, folder, _by_name(options), identifier["centre"], anatomy=identifier["anatomy"])
        _note_centres(found, options)
        return found


_IN_2023 = re.compile(r"[12](?P<anatomy>[BP])(?P<centre>[A-C])\d{3}")
_IN_2025 = re.compile(r"[12](?P<anatomy>AB|HN|TH)(?P<centre>[A-E])\d{3}")
_DEPTH = 4  # ARCHIVE/Task1/brain/1BA001


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


def _by_name(options: RawDataOptions) -> RawDataOptions:
    return replace(options, source_series=None, target_series=None)


def _note_centres(found: RawData, options: RawDataOptions) -> None:
    """Say that MR images of several centres are of several contrasts, which only the overview tables name."""
    if "mr" not in (options.source.lower(), options.target.lower()):
        return
    centres = sorted({str(case.centre) for case in found.cases})
    if len(centres) > 1:
        option = "--target_series" if options.target.lower() == "mr" else "--source_series"
        found.notes.append(
            f"The MR images are of {len(centres)} centres ({', '.join(centres)}), whose sequences differ: "
            "the data set's overview tables name them, the images do not. Each case keeps its centre; "
            f"{option} with the beginning of an identifier takes one centre's alone."
        )
