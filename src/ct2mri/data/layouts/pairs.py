"""Patient folders, each with its images named by modality."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ct2mri.data.layouts.cases import RawCase, RawData, VolumeFile, visible_folders
from ct2mri.data.layouts.naming import (
    choose,
    contrast_of,
    is_mr_word,
    named_after,
    named_exactly,
    only_mask,
    says_cbct,
)
from ct2mri.errors import RequestError
from ct2mri.options.choices import Layout
from ct2mri.options.data import RawDataOptions


class Pairs:
    """PATIENT/ct.*, mr.* and optionally mask.*; further words say which image it is: mr_t1.nii.gz."""

    name: Layout = "pairs"

    needs = (
        "a folder with ct.* and mr.* (.nii.gz, .nii, .mha, .mhd, .nrrd, .zip or a DICOM folder), "
        "named by the words of --source and --target"
    )

    def recognises(self, raw: Path, options: RawDataOptions) -> bool:
        """Whether some subfolder, or the folder itself, holds images named by the two modalities."""
        return _is_patient(raw, options) or any(
            all(_named(volumes_of(folder), word) for word in (options.source, options.target))
            for folder in visible_folders(raw)
        )

    def find(self, raw: Path, options: RawDataOptions) -> RawData:
        """The pairs, one a subfolder; the folder itself is a patient where it holds a pair."""
        found = RawData(self.name, [])
        for folder in [raw.resolve()] if _is_patient(raw, options) else visible_folders(raw):
            add_pair(found, folder, options)
        return found


def add_pair(
    found: RawData,
    folder: Path,
    options: RawDataOptions,
    centre: str | None = None,
    told: Mapping[str, dict[str, Any]] | None = None,
    **facts: Any,
) -> None:
    """Add the pair of one patient's folder to what was found, or the reason why it is none.

    Args:
        found: what was found so far.
        folder: the patient's folder, whose name is the patient's.
        options: which modalities are meant.
        centre: the hospital it comes from.
        told: "source" and "target" → what tables tell of the scan.
        **facts: what the layout knows about it.
    """
    volumes = volumes_of(folder)
    told = told or {}
    try:
        source = _choose(volumes, options.source, options.source_series, "--source_series")
        target = _choose(volumes, options.target, options.target_series, "--target_series")
        mask = only_mask(_named(volumes, "mask"))
    except RequestError as error:
        found.left_out[folder.name] = str(error)
        return
    for role, path, word in (("source", source, options.source), ("target", target, options.target)):
        facts |= image_facts(role, path.name, word, known=facts)
    case = RawCase(
        folder.name,
        folder.name,
        VolumeFile(source, told=told.get("source", {})),
        VolumeFile(target, told=told.get("target", {})),
        None if mask is None else VolumeFile(mask),
        centre=centre,
        facts=facts,
    )
    found.cases.append(case)


def image_facts(role: str, name: str, word: str, known: dict[str, Any]) -> dict[str, Any]:
    """What an image's name and the modality it was asked for by tell, as facts of a case."""
    told: dict[str, Any] = {}
    if is_mr_word(word) and f"{role}_contrast" not in known:
        contrast = contrast_of(name) or contrast_of(word)
        if contrast is not None:
            told[f"{role}_contrast"] = contrast
    if says_cbct(name) or says_cbct(word):
        told[f"{role}_cbct"] = True
    return told


def volumes_of(folder: Path) -> list[Path]:
    """The volumes of a patient's folder: files, and subfolders with DICOM inside."""
    from ct2mri.data.io import find_volumes

    return find_volumes(folder)


def stems_seen(raw: Path) -> list[str]:
    """Names of images, the most frequent first, to be told where nothing fits what was asked for."""
    from ct2mri.data.io import volume_stem

    folders = [raw, *visible_folders(raw)]
    seen = Counter(volume_stem(path) for folder in folders for path in volumes_of(folder) if path.is_file())
    return [stem for stem, _ in seen.most_common(6)]


def _is_patient(folder: Path, options: RawDataOptions) -> bool:
    """Whether files named by the two modalities alone lie right inside a folder."""
    from ct2mri.data.io import volume_stem

    stems = [volume_stem(path) for path in volumes_of(folder) if path.is_file()]
    words = (options.source, options.target)
    return all(any(named_exactly(stem, word) for stem in stems) for word in words)


def _choose(volumes: list[Path], word: str, series: str | None, option: str) -> Path:
    """The image of a folder that a modality means.

    Raises:
        RequestError: there is none, or several.
    """
    images = _named(volumes, word)
    if not images:
        there = ", ".join(path.name for path in volumes)
        raise RequestError(f"it has no {word}.*{f' (there is {there})' if there else ''}")
    return choose(images, _file_name, word, series, option)


def _named(volumes: list[Path], word: str) -> list[Path]:
    """Images named just by a modality; where there is none, files named after it (`mr_t1` for `mr`)."""
    from ct2mri.data.io import volume_stem

    exact = [path for path in volumes if named_exactly(volume_stem(path), word)]
    return exact or [path for path in volumes if path.is_file() and named_after(volume_stem(path), word)]


def _file_name(path: Path) -> str:
    return path.name
