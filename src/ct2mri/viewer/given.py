"""Recognising what `ct2mri view` was given: volumes, folders of them, reports, runs."""

import gzip
import hashlib
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ct2mri.errors import RequestError
from ct2mri.sidecars import read_sidecar
from ct2mri.viewer.reports import PAGES
from ct2mri.viewer.stored import Described, VolumeRole

MOST_VOLUMES = 60
"""Volumes that are read at the start; a folder may hold many more."""

_HEADER_BYTES = 4096
_SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".zip")
_ROLES: dict[str, VolumeRole] = {
    "ct": "source", "cbct": "source", "source": "source", "mr": "target", "mri": "target",
    "truth": "target", "target": "target", "synthetic": "result", "prediction": "result",
    "predicted": "result", "result": "result", "smr": "result", "sct": "result", "draft": "draft",
    "spread": "spread", "uncertainty": "spread", "error": "error", "mask": "mask", "body": "mask",
}  # fmt: skip
# Where several words stand in a name, the first of these roles is meant: synthetic_mr is a result.
_STRONGEST: tuple[VolumeRole, ...] = ("spread", "error", "draft", "mask", "result", "source", "target")


@dataclass(frozen=True)
class GivenVolume:
    """A volume on this machine to show.

    Attributes:
        path: its file, or the folder of its series.
        described: what to call it.
        id: the same at each start, as long as its files were.
    """

    path: Path
    described: Described
    id: str


@dataclass
class Given:
    """What to show at the start.

    Attributes:
        volumes: in order, those of a case together.
        left_out: volumes beyond the first `MOST_VOLUMES`.
        runs: training runs.
        reports: pages that `evaluate`, `compare` or `check` wrote.
    """

    volumes: list[GivenVolume] = field(default_factory=list)
    left_out: int = 0
    runs: list[Path] = field(default_factory=list)
    reports: list[Path] = field(default_factory=list)


def recognise(inputs: list[Path]) -> Given:
    """Sort what was given.

    Raises:
        RequestError: there is no such file, or nothing in it that can be shown.
    """
    given = Given()
    files: list[tuple[str, Path]] = []
    for path in inputs:
        if not path.exists():
            raise RequestError(f"There is no file or folder {path}; give volumes, a report or a run.")
        runs, reports, volumes = _runs(path), _reports(path), _volumes(path)
        if not (runs or reports or volumes):
            raise RequestError(
                f"{path} holds nothing to look at: neither volumes (.nii, .nii.gz, .mha, .mhd, .nrrd, .zip, "
                "DICOM), nor a report of `evaluate` or `compare`, nor a run of `train`."
            )
        given.runs += runs
        given.reports += reports
        files += volumes
    # Files given one by one are looked at together.
    together = all(path.is_file() for path in inputs)
    given.left_out = max(len(files) - MOST_VOLUMES, 0)
    unique = {
        volume.id: volume
        for volume in (
            GivenVolume(path, _described(path, "given" if together else group), _identifier(path))
            for group, path in files[:MOST_VOLUMES]
        )
    }
    given.volumes = list(unique.values())
    return given


def _identifier(path: Path) -> str:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    words = [str(path.resolve())]
    for file in files:
        facts = file.stat()
        words.append(f"{file.relative_to(path)} {facts.st_size} {facts.st_mtime_ns}")
    told = "\n".join(words).encode("utf-8", "surrogateescape")
    return f"given-{hashlib.sha256(told).hexdigest()[:20]}"


def _runs(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    found = [path] if (path / "run.json").is_file() or (path / "train.csv").is_file() else []
    return found or [f for f in sorted(path.iterdir()) if f.is_dir() and (f / "run.json").is_file()]


def _reports(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.name in PAGES else []
    return [path / name for name in PAGES if (path / name).is_file()]


def _volumes(path: Path) -> list[tuple[str, Path]]:
    """Volumes with the group that each belongs to."""
    if path.is_file():
        return [(group_of(path), path)] if _is_volume_file(path) else []
    inside = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    if any(_is_dicom(file) for file in inside[:50]):
        return [(path.name, path)]
    found = [(group_of(file), file) for file in inside if file.is_file() and _is_volume_file(file)]
    for folder in inside:
        if not folder.is_dir():
            continue
        files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
        if any(_is_dicom(file) for file in files[:50]):
            found.append((group_of(folder), folder))
        else:
            found += [(folder.name, file) for file in files if file.is_file() and _is_volume_file(file)]
    order = {group: number for number, group in enumerate(dict.fromkeys(group for group, _ in found))}
    return sorted(found, key=lambda each: order[each[0]])


def _is_volume_file(path: Path) -> bool:
    return path.name.lower().endswith(_SUFFIXES) or _is_dicom(path)


def _is_dicom(path: Path) -> bool:
    if not path.is_file():
        return False
    if path.suffix.lower() == ".dcm":
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _stem(path: Path) -> str:
    lower = path.name.lower()
    for suffix in (*_SUFFIXES, ".dcm"):
        if lower.endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def _words(path: Path) -> list[str]:
    return re.split(r"[-_. ]", _stem(path))


def group_of(path: Path) -> str:
    """The case that a file's name tells: the name without the words that say what the image is."""
    words = [word for word in _words(path) if word.lower() not in _ROLES]
    return "_".join(word for word in words if word) or path.parent.name


def role_of(path: Path) -> VolumeRole:
    """What a file's name, the sidecar beside a result, or the mark in a result's header says that it is."""
    content = str(sidecar_of(path).get("content", ""))
    if content.startswith("synthetic"):
        return "result"
    if content.startswith("standard deviation"):
        return "spread"
    told = {_ROLES[word.lower()] for word in _words(path) if word.lower() in _ROLES}
    role: VolumeRole = next((role for role in _STRONGEST if role in told), "other")
    if role in ("source", "target", "other"):
        head = _head(path)
        if b"Spread of SYNTHETIC" in head:
            return "spread"
        if b"SYNTHETIC" in head:
            return "result"
    return role


def _head(path: Path) -> bytes:
    """The first bytes of a file, among which a header keeps its remark; none where it cannot be read."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(_HEADER_BYTES)
    except (OSError, EOFError, zlib.error):
        return b""


def sidecar_of(path: Path) -> dict[str, Any]:
    """What `ct2mri translate` wrote beside a result; empty where there is nothing."""
    return read_sidecar(path.with_name(f"{_stem(path)}.json"))


def made_of(facts: dict[str, Any]) -> dict[str, Any] | None:
    """How a result was made, out of its sidecar."""
    try:
        return {
            "model": str(facts["model"]["name"]),
            "hash": str(facts["model"]["hash"]),
            "seed": int(facts["seed"]),
            "steps": int(facts["num_inference_steps"]),
            "samples": int(facts["samples"]),
            "sampler": None if facts["sampler"] is None else str(facts["sampler"]),
            "safety": str(facts["safety"]),
            "warnings": [str(sentence) for sentence in facts["warnings"]],
        }
    except (KeyError, TypeError, ValueError):
        return None


def _as_text(name: str) -> str:
    """A name whose bytes are no UTF-8, as on disks of other systems, as text that can be sent."""
    return name.encode("utf-8", "replace").decode()


def _described(path: Path, group: str) -> Described:
    facts = sidecar_of(path)
    words = {word.lower() for word in _words(path)}
    modality = "CT" if words & {"ct", "cbct", "sct"} else "MR" if words & {"mr", "mri", "smr"} else None
    return Described(
        name=_as_text(_stem(path)),
        group=_as_text(group),
        role=role_of(path),
        modality=modality,
        units=str(facts["units"]) if "units" in facts else None,
        made=made_of(facts),
    )
