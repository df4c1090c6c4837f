"""Turning files into volumes that the viewer keeps; called in a process of its own, never in the server's."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from ct2mri.data.dicom_files import read_whole_header
from ct2mri.data.dicom_origin import DicomOrigin
from ct2mri.data.io import load_volume, nameless_warnings, save_volume
from ct2mri.data.plausibility import require_finite
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.files import write_json
from ct2mri.viewer.archives import check_file
from ct2mri.viewer.stored import LONGEST_NAME, SUFFIX, Described, StoredVolume

_CT_BELOW = -500.0  # no MR goes so low, and the air around a patient does
_DEMO_SPACING = 1.5
_OF_THE_PATIENT = ("PatientName", "PatientID", "OtherPatientIDs", "PatientBirthDate", "AccessionNumber")
_KEPT_ELSEWHERE = ("path", "warnings", "dicom")


def read_upload(received: Path, folder: Path, described: Described, voxels: int, unpacked: int) -> None:
    """Read what was uploaded, and keep it in `folder` as the volume `source`.

    Args:
        received: a file under a name of our own, or the folder of a series' files.
        folder: an empty one.
        described: what to call it.
        voxels: that it may have.
        unpacked: bytes that an archive may unpack to.

    Raises:
        RequestError: it cannot be read or is more than allowed.
    """
    file = received if received.is_dir() else check_file(received, voxels, unpacked)
    volume = _load_nameless(file)
    if volume.array.size > voxels:
        raise RequestError(
            f"The volume has {volume.array.size} voxels, and {voxels} are allowed; crop or resample it first."
        )
    keep(volume, folder, "source", described)


def read_given(path: Path, folder: Path, described: Described) -> None:
    """Read a volume that the user of this machine named, and keep it in `folder` as the volume `source`."""
    keep(_load_nameless(path), folder, "source", described)


def _load_nameless(path: Path) -> Volume:
    """Read a volume; its warnings will stand beside results, which may be wanted without the patient."""
    volume = load_volume(path)
    volume.metadata["warnings"] = nameless_warnings(volume)
    return volume


def draw_demo(folder: Path, described: dict[str, Described]) -> None:
    """Draw the phantom that the starter model has not seen, and keep its CT and its true MR in `folder`."""
    from ct2mri.data.phantom import FIRST_UNSEEN_SEED, draw_phantom  # costs as much as all the others

    phantom = draw_phantom("head", FIRST_UNSEEN_SEED, spacing=_DEMO_SPACING)
    for base, volume in (("ct", phantom.ct), ("mr", phantom.mr)):
        keep(volume, folder, base, described[base])


def keep(volume: Volume, folder: Path, base: str, described: Described) -> None:
    """Write a volume as NIfTI that browsers show, with what is known of it beside it.

    Whole numbers are kept in 16 bits: half of what the browser has to fetch and hold.

    Raises:
        RequestError: the volume has voxels that are not numbers.
    """
    require_finite(volume)
    whole = bool(np.abs(volume.array).max() < 2**15 and np.array_equal(volume.array, np.rint(volume.array)))
    data = folder / f"{base}.nii"
    save_volume(volume, data, dtype="int16" if whole else "float32")
    origin: DicomOrigin | None = volume.metadata.get("dicom")
    modality = volume.metadata.get("modality") or described.modality
    if modality is None and float(volume.array.min()) <= _CT_BELOW:
        modality = "CT"
    if origin is not None:
        described = without_patient(described, origin.header, modality)
    describe(volume, folder, base, replace(described, modality=modality))


def describe(volume: Volume, folder: Path, base: str, described: Described) -> None:
    """Write what is known of a volume beside its NIfTI file, which makes it complete."""
    beside = {key: value for key, value in volume.metadata.items() if key not in _KEPT_ELSEWHERE}
    origin: DicomOrigin | None = volume.metadata.get("dicom")
    if origin is not None:
        _write_origin(origin, folder, base)
    stored = StoredVolume(
        base=base,
        described=described,
        modality=described.modality,
        units=described.units or ("HU" if described.modality == "CT" else "arbitrary units"),
        shape=volume.spatial_shape,
        spacing=volume.spacing,
        orientation=volume.orientation,
        affine=volume.affine.tolist(),
        warnings=list(volume.metadata.get("warnings", [])),
        metadata=_plain(beside),
        has_origin=origin is not None,
    )
    write_json(folder / f"{base}{SUFFIX}", stored.to_json())


def without_patient(described: Described, header: pydicom.Dataset, modality: str | None) -> Described:
    """Call a DICOM series by its description or as it was called, whichever does not name the patient."""
    kind = modality or "DICOM"
    names = (str(header.get("SeriesDescription") or "").strip(), described.name)
    name = next((f"{kind}, {name}" for name in names if name and not _tells(name, header)), f"{kind} series")
    group = described.group
    if _tells(group, header):
        group = f"Case {hashlib.sha256(group.encode()).hexdigest()[:6]}"
    return replace(described, name=name[:LONGEST_NAME], group=group)


def _tells(words: str, header: pydicom.Dataset) -> bool:
    """Whether some words hold one that leads to the patient of a header."""
    return any(
        word in words.upper()
        for keyword in _OF_THE_PATIENT
        for word in re.findall(r"\w{2,}", str(header.get(keyword) or "").upper())
    )


def load_kept(folder: Path, base: str) -> Volume:
    """A kept volume as it was read: voxels, exact affine, and what the file told of it."""
    stored = StoredVolume.of(folder, base)
    metadata = {**stored.metadata, "warnings": list(stored.warnings)}
    if stored.has_origin:
        metadata["dicom"] = _read_origin(folder, base)
    array = load_volume(folder / f"{base}.nii").array
    return Volume(array, np.array(stored.affine), metadata)


def _plain(metadata: dict[str, Any]) -> dict[str, Any]:
    """Facts as JSON keeps them: numbers of numpy become Python's."""
    plain: dict[str, Any] = json.loads(json.dumps(metadata, default=lambda value: value.item()))
    return plain


def _write_origin(origin: DicomOrigin, folder: Path, base: str) -> None:
    header = folder / f"{base}.origin.dcm"
    with pydicom.config.disable_value_validation():
        pydicom.dcmwrite(header, origin.header, implicit_vr=False, little_endian=True)
    write_json(
        folder / f"{base}.origin.json",
        {
            "sop_class_uid": origin.sop_class_uid,
            "sop_instance_uids": list(origin.sop_instance_uids),
            "frame_numbers": None if origin.frame_numbers is None else list(origin.frame_numbers),
        },
    )


def _read_origin(folder: Path, base: str) -> DicomOrigin:
    facts = json.loads((folder / f"{base}.origin.json").read_text(encoding="utf-8"))
    frames = facts["frame_numbers"]
    return DicomOrigin(
        header=read_whole_header(folder / f"{base}.origin.dcm"),
        sop_class_uid=facts["sop_class_uid"],
        sop_instance_uids=tuple(facts["sop_instance_uids"]),
        frame_numbers=None if frames is None else tuple(frames),
    )
