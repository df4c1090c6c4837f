"""Images of all patients in one folder, or in two parallel folders, told apart by their names."""

import re
from dataclasses import dataclass
from pathlib import Path

from ct2mri.data.layouts.cases import RawCase, RawData, VolumeFile, visible_folders
from ct2mri.data.layouts.naming import (
    choose,
    is_mr_word,
    named_after,
    named_exactly,
    only_mask,
    same_modality,
)
from ct2mri.data.layouts.pairs import image_facts, volumes_of
from ct2mri.errors import RequestError
from ct2mri.options.choices import Layout
from ct2mri.options.data import RawDataOptions


@dataclass(frozen=True)
class _Named:
    """An image and the patient that its name tells."""

    path: Path
    patient: str


class Flat:
    """ID_ct.*, ID_mr.* and optionally ID_mask.* in one folder; or ct/ID.*, mr/ID.*, mask/ID.*."""

    name: Layout = "flat"

    needs = "files ID_ct.* and ID_mr.* in one folder, or ct/ID.* and mr/ID.* in two"

    def recognises(self, raw: Path, options: RawDataOptions) -> bool:
        """Whether files of both modalities, or folders of both, lie right inside."""
        return all(_images(raw, word) for word in (options.source, options.target))

    def find(self, raw: Path, options: RawDataOptions) -> RawData:
        """The pairs, one an identifier."""
        found = RawData(self.name, [])
        sources, targets = _images(raw, options.source), _images(raw, options.target)
        masks = _images(raw, "mask")
        for patient in sorted({image.patient for image in sources + targets}):
            if not patient:  # its case would be the folder of all cases
                name = next(image.path.name for image in sources + targets if not image.patient)
                found.left_out[name] = "its name tells no patient beside the modality; rename it"
                continue
            try:
                source = _choose(sources, patient, options.source, options.source_series, "--source_series")
                target = _choose(targets, patient, options.target, options.target_series, "--target_series")
                mask = only_mask([image.path for image in masks if image.patient == patient])
            except RequestError as error:
                found.left_out[patient] = str(error)
                continue
            facts = image_facts("source", _without(patient, source, raw), options.source, {})
            facts |= image_facts("target", _without(patient, target, raw), options.target, {})
            found.cases.append(
                RawCase(
                    patient,
                    patient,
                    VolumeFile(source, raw),
                    VolumeFile(target, raw),
                    None if mask is None else VolumeFile(mask, raw),
                    facts=facts,
                )
            )
        return found


def _images(raw: Path, word: str) -> list[_Named]:
    """The images of one modality, by the names of files, or by the name of their folder."""
    from ct2mri.data.io import volume_stem

    images = []
    for path in volumes_of(raw):
        patient = patient_of(volume_stem(path), word)
        if path.is_file() and patient is not None:
            images.append(_Named(path, patient))
    for folder in visible_folders(raw):
        if named_exactly(folder.name, word) or named_after(folder.name, word):
            for path in volumes_of(folder):
                stem = volume_stem(path)
                images.append(_Named(path, patient_of(stem, word) or stem))
    return images


def patient_of(stem: str, word: str) -> str | None:
    """The patient that a file name tells for a modality: `p1_ct`, `p1_mr_t1`, `ct_p1` → p1; else None."""
    parts = re.split(r"([_\-.\s]+)", stem)  # names and what stands between them, in turn
    names, between = parts[::2], parts[1::2]
    for place in range(len(names) - 1, 0, -1):
        if named_after("_".join(names[place:]), word):
            # `p1_mr_t1` for `t1`: the patient's name ends before `mr`.
            after_mr = is_mr_word(word) and not same_modality(word, "mr")
            end = place - 1 if after_mr and place > 1 and same_modality(names[place - 1], "mr") else place
            return "".join(
                name + gap for name, gap in zip(names[:end], [*between[: end - 1], ""], strict=True)
            )
    if len(names) > 1 and named_exactly(names[0], word):
        return stem[len(names[0]) + len(between[0]) :]
    return None


def _choose(images: list[_Named], patient: str, word: str, series: str | None, option: str) -> Path:
    own = [image.path for image in images if image.patient == patient]
    return choose(own, lambda path: path.name, word, series, option)


def _without(patient: str, path: Path, raw: Path) -> str:
    """What names an image beside its patient, who may be called T1: its folder and the rest of its name."""
    return str(path.relative_to(raw).with_name(path.name.replace(patient, "", 1)))
