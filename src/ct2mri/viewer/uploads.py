"""Uploads: streamed to disk under names of our own, then read by a bounded process."""

import re
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ct2mri.viewer.archives import SUFFIXES, suffix_of
from ct2mri.viewer.bounded import run_bounded, sentence_of
from ct2mri.viewer.failures import BusyError, ConflictError, NoSpaceError, NotThereError, TooLargeError
from ct2mri.viewer.library import Entry, Library, new_id
from ct2mri.viewer.records import Limits, UploadKind, UploadRecord, UploadState
from ct2mri.viewer.stored import LONGEST_NAME, Described

_MOST_OPEN = 16
_MOST_KNOWN = 256
_IDLE_SECONDS = 1800.0
_DISK_RESERVE = 512 * 2**20
_EXPORT_SECONDS = 600.0
_READERS = 2
"""Files read at the same time."""


def shown_name(name: str, fallback: str) -> str:
    """A name as it is shown: one line, without what stands before slashes, and not longer than a line."""
    last = re.split(r"[/\\]", name.strip().rstrip("/\\"))[-1]
    plain = " ".join("".join(c if c.isprintable() else " " for c in last).split())
    return plain[:LONGEST_NAME] or fallback


@dataclass
class _Upload:
    id: str
    kind: UploadKind
    name: str
    folder: Path
    state: UploadState = "open"
    received: int = 0
    files: int = 0
    writing: int = 0
    volumes: list[str] = field(default_factory=list)
    detail: str | None = None
    touched: float = field(default_factory=time.monotonic)

    def record(self) -> UploadRecord:
        return UploadRecord(
            id=self.id,
            state=self.state,
            received=self.received,
            files=self.files,
            volume=self.volumes[0] if self.volumes else None,
            volumes=self.volumes,
            detail=self.detail,
        )


class Incoming:
    """A file on its way in, bounded by what its upload may still hold."""

    def __init__(self, uploads: "Uploads", upload: _Upload, file: BinaryIO | None) -> None:
        self._uploads = uploads
        self._upload = upload
        self._file = file

    def write(self, chunk: bytes) -> None:
        """Add some bytes.

        Raises:
            TooLargeError: the upload would become larger than allowed.
            NoSpaceError: the disk is too full.
        """
        self._uploads.count(self._upload, len(chunk))
        if self._file is not None:
            self._file.write(chunk)

    def close(self) -> None:
        """End the file; all of it has come, or the upload is dropped."""
        if self._file is not None:
            self._file.close()
        self._uploads.written(self._upload)


class Uploads:
    """The uploads, by identifier.

    Args:
        library: where volumes go to.
        limits: what they may be.
        memory: bytes that a reading process may take.
    """

    def __init__(self, library: Library, limits: Limits, memory: int) -> None:
        self.library = library
        self.limits = limits
        self.memory = memory
        self._lock = threading.RLock()
        self._uploads: dict[str, _Upload] = {}
        self._stop = threading.Event()
        self._exporting = threading.Semaphore(_READERS)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="reader")

    def close(self) -> None:
        """End all reading."""
        self._stop.set()
        self._readers.shutdown(cancel_futures=True)

    def new(self, name: str, kind: UploadKind) -> UploadRecord:
        """Begin an upload.

        Raises:
            BusyError: too many are open.
        """
        with self._lock:
            self._forget_old()
            if sum(upload.state == "open" for upload in self._uploads.values()) >= _MOST_OPEN:
                raise BusyError(f"{_MOST_OPEN} uploads are open already; finish or delete one of them.")
            upload = _Upload(new_id(), kind, shown_name(name, "volume"), self.library.new_folder())
            self._uploads[upload.id] = upload
            return upload.record()

    def _forget_old(self) -> None:
        now = time.monotonic()
        idle = [
            upload.id
            for upload in self._uploads.values()
            if upload.state == "open" and not upload.writing and now - upload.touched > _IDLE_SECONDS
        ]
        ended = [upload.id for upload in self._uploads.values() if upload.state in ("done", "failed")]
        for upload_id in idle + ended[: max(len(self._uploads) - _MOST_KNOWN, 0)]:
            shutil.rmtree(self._uploads.pop(upload_id).folder, ignore_errors=True)

    def _open(self, upload_id: str) -> _Upload:
        upload = self._known(upload_id)
        if upload.state != "open":
            raise ConflictError("This upload is finished already; begin another one.")
        upload.touched = time.monotonic()
        return upload

    def _known(self, upload_id: str) -> _Upload:
        if upload_id not in self._uploads:
            raise NotThereError("There is no such upload; begin one with a POST to /api/uploads.")
        return self._uploads[upload_id]

    def record(self, upload_id: str) -> UploadRecord:
        """How an upload stands."""
        with self._lock:
            return self._known(upload_id).record()

    def delete(self, upload_id: str) -> None:
        """Drop an upload that is open, or forget one that has ended.

        Raises:
            ConflictError: it is being read.
        """
        with self._lock:
            upload = self._known(upload_id)
            if upload.state == "reading" or upload.writing:
                raise ConflictError("This upload is being worked on; wait until it is done.")
            del self._uploads[upload_id]
        shutil.rmtree(upload.folder, ignore_errors=True)

    def receive(self, upload_id: str, name: str, length: int | None) -> Incoming:
        """Begin a file of an upload.

        Args:
            upload_id: which.
            name: of the file; only its suffix is used.
            length: its bytes, where they are told beforehand.

        Raises:
            RequestError: a file of no known kind.
            ConflictError: the upload is finished, or holds its one file.
            TooLargeError: there would be too many files or bytes.
            NoSpaceError: the disk is too full.
        """
        with self._lock:
            upload = self._open(upload_id)
            if upload.kind == "file" and upload.files:
                raise ConflictError("This upload holds its one file; begin another one for the next.")
            if upload.files >= self.limits.files:
                raise TooLargeError(f"An upload may have {self.limits.files} files; send one series.")
            self._require_room(upload, length or 0)
            path = self._path(upload, shown_name(name, ""))
            file = None if path is None else path.open("xb")
            upload.files += 1
            upload.writing += 1
        return Incoming(self, upload, file)

    def _path(self, upload: _Upload, name: str) -> Path | None:
        """Where a file goes to; None for one that is no image."""
        if upload.kind == "file":
            return upload.folder / f"upload{suffix_of(name)}"
        if name.startswith(".") or name.upper() == "DICOMDIR":
            return None
        series = upload.folder / "series"
        series.mkdir(exist_ok=True)
        return series / f"{upload.files:06d}{'.dcm' if name.lower().endswith('.dcm') else ''}"

    def _require_room(self, upload: _Upload, more: int) -> None:
        if upload.received + more > self.limits.upload_bytes:
            raise TooLargeError(
                f"An upload may have {self.limits.upload_bytes / 2**20:.0f} MiB; send one volume or series."
            )
        if shutil.disk_usage(self.library.work).free < more + _DISK_RESERVE:
            raise NoSpaceError("The disk of the results folder is too full for it; free some space.")

    def count(self, upload: _Upload, more: int) -> None:
        """Take so many bytes more into account, or refuse them."""
        with self._lock:
            self._require_room(upload, more)
            upload.received += more
            upload.touched = time.monotonic()

    def written(self, upload: _Upload) -> None:
        """A file has ended."""
        with self._lock:
            upload.writing -= 1

    def drop(self, upload_id: str) -> None:
        """End an upload of which a file did not come whole."""
        with self._lock:
            upload = self._uploads.get(upload_id)
            if upload is not None:
                upload.state = "failed"
                upload.detail = "A file did not come whole; upload it again."
                shutil.rmtree(upload.folder, ignore_errors=True)

    def finish(self, upload_id: str) -> UploadRecord:
        """Read what has come.

        Raises:
            ConflictError: nothing has come, or a file is still coming.
        """
        with self._lock:
            upload = self._open(upload_id)
            if not upload.files or upload.writing:
                raise ConflictError("A file of this upload has still to come; finish it afterwards.")
            series = upload.folder / "series"
            if upload.kind == "file":
                (received,) = upload.folder.iterdir()
            elif series.is_dir():
                received = series
            else:
                raise ConflictError("This upload holds no image; begin another one.")
            upload.state = "reading"
        told = _stem(upload.name)
        # The name of a series' folder or zip often is the patient's.
        case = "DICOM series" if received.suffix in ("", ".dcm", ".zip") else told
        described = Described(name=told, group=self.library.new_group(case), role="source")
        arguments = (described, self.limits.voxels, self.limits.unpacked_bytes)
        self._submit(upload, "ct2mri.viewer.reading:read_upload", (received,), arguments)
        return upload.record()

    def demo(self) -> UploadRecord:
        """Draw the demo's phantom; it becomes volumes as an upload does."""
        with self._lock:
            upload = _Upload(new_id(), "file", "demo", self.library.new_folder(), "reading")
            self._uploads[upload.id] = upload
        group = self.library.new_group("Digital phantom")
        described = {
            "ct": Described(name="Digital phantom, CT", group=group, role="source", modality="CT"),
            "mr": Described(name="Digital phantom, true MR", group=group, role="target", modality="MR"),
        }
        self._submit(upload, "ct2mri.viewer.reading:draw_demo", (), (described,))
        return upload.record()

    def error(self, result: Entry, target: Entry) -> UploadRecord:
        """Make the error of a result against the truth; it becomes a volume as an upload does."""
        with self._lock:
            upload = _Upload(new_id(), "file", "error", self.library.new_folder(), "reading")
            self._uploads[upload.id] = upload
        was = result.stored.described
        described = Described(
            name=f"Error of {was.name}", group=was.group, role="error", job=None, made=was.made
        )
        places = (result.place, target.place)
        kept = self.library.is_kept(result)
        self._submit(upload, "ct2mri.viewer.difference:keep_error", places, (described,), kept=kept)
        return upload.record()

    def _submit(
        self,
        upload: _Upload,
        function: str,
        before: tuple[Any, ...],
        after: tuple[Any, ...],
        *,
        kept: bool = True,
    ) -> None:
        def read() -> None:
            folder = self.library.new_folder()
            try:
                self.bounded(function, *before, folder, *after, scratch=upload.folder)
                volumes = self.library.place(folder, kept=kept)
                with self._lock:
                    upload.volumes, upload.state = volumes, "done"
            except Exception as error:
                with self._lock:
                    upload.detail, upload.state = sentence_of(error), "failed"
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                shutil.rmtree(upload.folder, ignore_errors=True)

        self.submit(read)

    def submit(self, work: Callable[[], None]) -> None:
        """Do some reading when there is time for it."""
        with suppress(RuntimeError):  # the server is closing
            self._readers.submit(work)

    def bounded(self, function: str, *arguments: Any, scratch: Path) -> None:
        """Call `module:function` in a process of its own, within the limits."""
        run_bounded(
            function,
            *arguments,
            seconds=self.limits.reading_seconds,
            memory=self.memory,
            scratch=scratch,
            stop=self._stop,
        )

    def export(self, function: str, entry: Entry, output: Path, *arguments: Any) -> None:
        """Call a function of `exporting` on a kept volume in a process of its own."""
        with self._exporting:
            run_bounded(
                f"ct2mri.viewer.exporting:{function}",
                *entry.place,
                output,
                *arguments,
                seconds=_EXPORT_SECONDS,
                memory=None,
                scratch=output.parent,
                stop=self._stop,
            )


def _stem(name: str) -> str:
    """A file's name without the suffix of its format."""
    lower = name.lower()
    for suffix in sorted((*SUFFIXES, ".mhd"), key=len, reverse=True):
        if lower.endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name
