"""The Brain Imaging Data Structure."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from ct2mri.data.layouts.cases import RawCase, RawData, VolumeFile, visible_folders
from ct2mri.data.layouts.naming import (
    choose,
    contrast_of,
    is_mr_word,
    only_mask,
    same_modality,
    says_cbct,
    with_agent,
)
from ct2mri.errors import RequestError
from ct2mri.options.choices import Layout
from ct2mri.options.data import RawDataOptions

# Suffixes of MR images of anatomy in BIDS 1.10 that show a contrast, without quantitative maps.
_MR_SUFFIXES = {"t1w", "t2w", "pdw", "t2starw", "flair", "inplanet1", "inplanet2", "pdt2", "angio", "unit1"}


@dataclass(frozen=True)
class _Image:
    """An image, its session and what its name says.

    Attributes:
        path: the file.
        session: name of its session's folder; empty where there are none.
        suffix: last part of its name, `T1w`.
        entities: the other parts, `acq` → `highres`.
    """

    path: Path
    session: str
    suffix: str
    entities: dict[str, str]


class Bids:
    """sub-*/[ses-*/]anat/*_T1w.nii.gz, with *_ct.nii.gz in anat/ or a folder of its own (ct/)."""

    name: Layout = "bids"

    needs = "sub-ID/[ses-ID/]anat/ with *_T1w.nii.gz (or another MR contrast) and *_ct.nii.gz"

    def recognises(self, raw: Path, options: RawDataOptions) -> bool:
        """Whether there are folders `sub-*` whose images are named after them."""
        return any(_images(subject) for subject in raw.glob("sub-*") if subject.is_dir())

    def find(self, raw: Path, options: RawDataOptions) -> RawData:
        """The pairs, one a session that has both images, else one a subject."""
        found = RawData(self.name, [])
        for subject in visible_folders(raw):
            if not subject.name.startswith("sub-"):
                continue
            images = _images(subject)
            sessions = defaultdict(list)
            for image in images:
                sessions[image.session].append(image)
            groups = {
                "_".join(filter(None, (subject.name, session))): members
                for session, members in sorted(sessions.items())
                if all(_of(members, word) for word in (options.source, options.target))
            }
            # CT and MR are often taken on different days: then the subject's only ones are a pair.
            for case_id, members in (groups or {subject.name: images}).items():
                try:
                    found.cases.append(_pair(case_id, subject.name, members, options))
                except RequestError as error:
                    found.left_out[case_id] = str(error)
        return found


def _images(subject: Path) -> list[_Image]:
    """The images of a subject's folder, also in sessions."""
    images = []
    for pattern in ("*/*.nii*", "ses-*/*/*.nii*"):
        for path in sorted(subject.glob(pattern)):
            parts = path.name.split(".nii")[0].split("_")
            if parts[0] != subject.name or not path.is_file():
                continue
            entities = dict(part.split("-", 1) for part in parts[1:-1] if "-" in part)
            session = path.parent.parent.name if path.parent.parent != subject else ""
            images.append(_Image(path, session, parts[-1], entities))
    return images


def _of(images: list[_Image], word: str) -> list[_Image]:
    """The images of a modality; a cone-beam CT is none of `ct`."""
    if word.lower() in ("mr", "mri"):
        return [image for image in images if image.suffix.lower() in _MR_SUFFIXES]
    if word.lower() == "cbct":
        return [i for i in images if same_modality(i.suffix, "cbct") or (i.suffix == "ct" and _is_cbct(i))]
    if is_mr_word(word):
        return [
            image
            for image in images
            if _contrast(image).lower() in (word.lower(), str(contrast_of(word)).lower())
        ]
    return [image for image in images if same_modality(image.suffix, word) and not _is_cbct(image)]


def _contrast(image: _Image) -> str:
    """The MR contrast of an image; the entity `ce` tells that a contrast agent was given."""
    return with_agent(contrast_of(image.suffix) or image.suffix, "ce" in image.entities)


def _is_cbct(image: _Image) -> bool:
    return says_cbct(image.path.name)


def _pair(case_id: str, patient_id: str, images: list[_Image], options: RawDataOptions) -> RawCase:
    """One pair of a subject's images.

    Raises:
        RequestError: one is missing, or there are several.
    """
    chosen: dict[str, _Image] = {}
    facts: dict[str, str | bool] = {}
    for role, word, series in (
        ("source", options.source, options.source_series),
        ("target", options.target, options.target_series),
    ):
        candidates = _of(images, word)
        if not candidates:
            there = ", ".join(sorted(image.path.name for image in images))
            raise RequestError(f"it has no {word} image{f' (there is {there})' if there else ''}")
        image = choose(candidates, lambda i: i.path.name, word, series, f"--{role}_series")
        chosen[role] = image
        if is_mr_word(word):
            facts[f"{role}_contrast"] = _contrast(image)
        if _is_cbct(image):
            facts[f"{role}_cbct"] = True
    # A mask of the brain or of a lesion is no mask of the body.
    masks = [
        image.path
        for image in images
        if image.suffix == "mask"
        and image.entities.get("desc", image.entities.get("label", "body")) in ("body", "head")
    ]
    mask = only_mask(masks)
    return RawCase(
        case_id,
        patient_id,
        VolumeFile(chosen["source"].path),
        VolumeFile(chosen["target"].path),
        None if mask is None else VolumeFile(mask),
        facts=facts,
    )
