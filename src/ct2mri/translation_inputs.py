"""What results are made of: never written over, and told from other files of the same name.

A sidecar holds hashes of all that the files of a result's source hold, so that a copy is the same wherever it
lies. To read a thousand CTs again, only to find that nothing is to be done, would take minutes. So it also
holds a hash of how they lay on disk, and as long as that is the same, nobody wrote to them.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct2mri.data.dicom_files import looks_like_dicom
from ct2mri.data.io import files_of
from ct2mri.errors import RequestError
from ct2mri.stage_files import file_hash


@dataclass(frozen=True, eq=False)
class Inputs:
    """What one result is made of.

    Attributes:
        source: a volume's file, or the folder of a DICOM series.
        mask: likewise, of the body; None where none is given.
        affine: of the source, where its file does not hold it.
    """

    source: Path
    mask: Path | None = None
    affine: NDArray[np.float64] | None = None

    def facts(self) -> dict[str, str | None]:
        """What the sidecar tells of them: hashes, which name nobody.

        Raises:
            RequestError: a file cannot be read.
        """
        with self._readable():
            return {
                "state": self._state(),  # first: whatever is written from here on changes it
                "source": _hash([*_contents(self.source), *self._place()]),
                "mask": None if self.mask is None else _hash(_contents(self.mask)),
            }

    def difference(self, facts: dict[str, Any]) -> str:
        """How they differ from those of a result that was made before, in words; empty where they do not.

        Args:
            facts: of those, as the sidecar holds them.

        Raises:
            RequestError: a file cannot be read.
        """
        with self._readable():
            if facts.get("state") == self._state():
                return ""
        now = self.facts()
        if facts.get("source") != now["source"]:
            return f"another source than {self.source}"
        return "" if facts.get("mask") == now["mask"] else "another mask"

    def _state(self) -> str:
        """A hash of where and how the files lie, with the times that no program can set back (ctime)."""
        words = self._place()
        for path in [self.source] if self.mask is None else [self.source, self.mask]:
            words.append(str(path.resolve()))
            for file in files_of(path):
                facts = file.stat()
                numbers = (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
                words.append(f"{os.path.relpath(file, path.parent)} {numbers}")
        return _hash(words)

    def _place(self) -> list[str]:
        return [] if self.affine is None else [hashlib.sha256(self.affine.tobytes()).hexdigest()]

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            path = error.filename or self.source
            raise RequestError(f"{path} cannot be read ({error.strerror}).") from error


def _contents(path: Path) -> list[str]:
    """Hashes of the files that a volume is read from, in an order that does not hang on their names."""
    files = files_of(path)
    if path.is_dir():
        files = [file for file in files if looks_like_dicom(file)]
    return sorted(file_hash(file) for file in files)


def _hash(words: list[str]) -> str:
    """One hash of several; of a single file, its own."""
    if len(words) == 1:
        return words[0]
    return hashlib.sha256("\n".join(words).encode("utf-8", "surrogateescape")).hexdigest()


def require_inputs_kept(written: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Refuse to write over what is read, by whatever name: through a link, in another case of letters.

    Args:
        written: files and folders that results take the place of.
        inputs: files and folders that they are made of, those that there are.

    Raises:
        RequestError: one that would be written is, or holds, one that is read.
    """
    read: dict[tuple[int, int], Path] = {}
    for path in inputs:
        if path is not None and path.exists():
            whole = path.resolve()
            read |= {_file(place): path for place in (whole, *whole.parents)}
    for path in written:
        if path.exists() and (found := read.get(_file(path))) is not None:
            raise RequestError(
                f"{path} would be written over the input {found}; give another name or folder for the result."
            )


def _file(path: Path) -> tuple[int, int]:
    """What tells a file or folder from all others, however it is called."""
    facts = path.stat()
    return facts.st_dev, facts.st_ino
