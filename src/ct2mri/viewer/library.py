"""The volumes that the viewer shows: those it keeps in the results folder, and those it was given to show."""

import os
import secrets
import shutil
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path

from ct2mri.errors import RequestError
from ct2mri.viewer.failures import NotThereError
from ct2mri.viewer.records import DownloadFormat, Made, VolumeRecord
from ct2mri.viewer.stored import SUFFIX, StoredVolume

WORK = ".viewer-work"
"""The folder for what does not outlive the server, inside the results folder: moving there is renaming."""


def new_id() -> str:
    """An identifier that cannot be guessed; in order of time, to the second."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(6)}"


@dataclass(frozen=True)
class Entry:
    """One volume and where it lies."""

    id: str
    folder: Path
    stored: StoredVolume

    @property
    def place(self) -> tuple[Path, str]:
        """The folder that its files lie in, and the beginning of their names."""
        return self.folder, self.stored.base

    @property
    def data(self) -> Path:
        """The NIfTI file."""
        return self.folder / f"{self.stored.base}.nii"

    @property
    def sidecar(self) -> Path:
        """What `ct2mri translate` writes beside a result."""
        return self.folder / f"{self.stored.base}.json"

    def record(self) -> VolumeRecord:
        """What the API tells of it."""
        stored, described = self.stored, self.stored.described
        downloads: list[DownloadFormat] = ["nifti", "nrrd"]
        if described.job is not None and self.sidecar.is_file():
            downloads += ["sidecar", "dicom"] if described.role == "result" else ["sidecar"]
        return VolumeRecord(
            id=self.id,
            name=described.name,
            group=described.group,
            role=described.role,
            modality=stored.modality,
            units=stored.units,
            shape=stored.shape,
            spacing=stored.spacing,
            orientation=stored.orientation,
            warnings=stored.warnings,
            bytes=self.data.stat().st_size,
            job=described.job,
            made=None if described.made is None else Made(**described.made),
            downloads=downloads,
        )


class Library:
    """The volumes, by identifier.

    A volume's files lie in a folder of their own, `volumes/ID/`, or with a job's in `jobs/ID/`. What the
    viewer was only given to show lies in the work folder until a job uses it.

    Args:
        root: the results folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.work = root / WORK
        self._lock = threading.RLock()
        self._entries: dict[str, Entry] = {}
        self._promised: set[str] = set()
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        for folder in sorted([*root.glob("volumes/*"), *root.glob("jobs/*")]):
            self.add_folder(folder)

    def close(self) -> None:
        """Remove what was not to be kept."""
        shutil.rmtree(self.work, ignore_errors=True)

    def new_folder(self, name: str | None = None) -> Path:
        """An empty folder for one piece of work, under a new name unless one is given."""
        folder = self.work / (name or new_id())
        folder.mkdir()
        return folder

    def add_folder(self, folder: Path) -> list[str]:
        """Take in the volumes of a folder, and say their identifiers; damaged ones are passed over."""
        added = []
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            try:
                stored = StoredVolume.read(path)
            except RequestError:
                continue
            entry = Entry(f"{folder.name}-{stored.base}", folder, stored)
            if entry.data.is_file():
                with self._lock:
                    self._entries[entry.id] = entry
                added.append(entry.id)
        return added

    def place(self, folder: Path, *, kept: bool) -> list[str]:
        """Give a worked-on folder its place, and take in its volumes."""
        home = self._home(folder.name, kept=kept)
        folder.replace(home)
        return self.add_folder(home)

    def keep(self, volume_id: str) -> Entry:
        """Keep a volume that was only shown, since a job uses it."""
        with self._lock:
            entry = self[volume_id]
            if not self.is_kept(entry):
                # Linked, not moved: it may be on its way to the page just now.
                copy = self.new_folder()
                shutil.copytree(entry.folder, copy, copy_function=_link, dirs_exist_ok=True)
                home = self._home(entry.folder.name, kept=True)
                copy.replace(home)
                self.add_folder(home)
            return self[volume_id]

    def is_kept(self, entry: Entry) -> bool:
        """Whether a volume outlives the server."""
        return self.work not in entry.folder.parents

    def _home(self, name: str, *, kept: bool) -> Path:
        home = (self.root if kept else self.work) / "volumes"
        home.mkdir(parents=True, exist_ok=True)
        return home / name

    def __getitem__(self, volume_id: str) -> Entry:
        with self._lock:
            entry = self._entries.get(volume_id)
        if entry is None or not entry.data.is_file():
            raise NotThereError("There is no such volume; /api/volumes lists those there are.")
        return entry

    def entries(self) -> list[Entry]:
        """All of them, in order of their coming, but those whose file somebody has taken away."""
        with self._lock:
            entries = list(self._entries.values())
        return [entry for entry in entries if entry.data.is_file()]

    def new_group(self, name: str) -> str:
        """A name for a case that no other has or, while its volume is being read, is going to have."""
        with self._lock:
            taken = self._promised | {entry.stored.described.group for entry in self.entries()}
            names = chain([name], (f"{name} {n}" for n in count(2)))
            group = next(each for each in names if each not in taken)
            self._promised.add(group)
            return group

    def truth_of(self, entry: Entry) -> Entry | None:
        """The true volume of the case of a volume, on the same grid; None where several could be it."""
        found = [
            other
            for other in self.entries()
            if other.stored.described.role == "target"
            and other.stored.described.group == entry.stored.described.group
            and other.stored.shape == entry.stored.shape
            and _close(other.stored.affine, entry.stored.affine)
        ]
        return found[0] if len(found) == 1 else None

    def remove(self, volume_id: str) -> None:
        """Delete a volume and its files.

        Raises:
            NotThereError: there is none.
        """
        with self._lock:
            entry = self[volume_id]
            del self._entries[volume_id]
        for end in (SUFFIX, ".nii", ".json", ".origin.dcm", ".origin.json"):
            (entry.folder / f"{entry.stored.base}{end}").unlink(missing_ok=True)
        if not any(entry.folder.iterdir()):
            entry.folder.rmdir()


def _close(one: list[list[float]], other: list[list[float]]) -> bool:
    """Whether two affines are the same but for rounding, in mm."""
    pairs = zip(chain(*one), chain(*other), strict=True)
    return all(abs(a - b) < 1e-3 for a, b in pairs)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
