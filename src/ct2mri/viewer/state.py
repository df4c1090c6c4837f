"""What the viewer's server holds while it runs."""

import shutil
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ct2mri import __version__
from ct2mri.marking import safety_sentence_of
from ct2mri.viewer.bounded import sentence_of
from ct2mri.viewer.given import Given, GivenVolume
from ct2mri.viewer.library import Library
from ct2mri.viewer.models import Models
from ct2mri.viewer.records import Initial, Limits, Status, UnreadFile
from ct2mri.viewer.reports import Reports
from ct2mri.viewer.runs import Runs
from ct2mri.viewer.uploads import Uploads


class InitialVolumes:
    """The volumes that the viewer was given to show, read one after another while it runs."""

    def __init__(self, given: Given, library: Library, uploads: Uploads) -> None:
        self.library = library
        self.uploads = uploads
        self._lock = threading.Lock()
        self._pending = list(given.volumes)
        self._ready: list[str] = []
        self._failed: list[UnreadFile] = []
        if given.left_out:
            self._failed.append(
                UnreadFile(
                    name=f"{given.left_out} more volumes",
                    detail=f"The first {len(given.volumes)} volumes are shown; open a case's own folder.",
                )
            )

    def start(self) -> None:
        """Begin reading."""
        for volume in list(self._pending):
            self.uploads.submit(partial(self._read, volume))

    def _read(self, volume: GivenVolume) -> None:
        folder = self.library.new_folder()
        scratch = self.library.new_folder()
        try:
            self.uploads.bounded(
                "ct2mri.viewer.reading:read_given", volume.path, folder, volume.described, scratch=scratch
            )
            ids = self.library.place(folder, kept=False)
            with self._lock:
                self._ready += ids
        except Exception as error:
            with self._lock:
                self._failed.append(UnreadFile(name=volume.described.name, detail=sentence_of(error)))
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            with self._lock:
                self._pending.remove(volume)
            shutil.rmtree(scratch, ignore_errors=True)

    def told(self) -> tuple[list[str], int, list[UnreadFile]]:
        """Identifiers of those read, how many are to come, and those that cannot be read."""
        with self._lock:
            return list(self._ready), len(self._pending), list(self._failed)


@dataclass
class Viewer:
    """All of it."""

    library: Library
    uploads: Uploads
    models: Models
    runs: Runs
    reports: Reports
    initial: InitialVolumes
    limits: Limits
    results: Path
    device: str

    def start(self) -> None:
        """Begin work."""
        self.initial.start()

    def close(self) -> None:
        """End work."""
        self.uploads.close()
        self.library.close()

    def status(self) -> Status:
        """How it stands."""
        volumes, pending, failed = self.initial.told()
        runs, reports = self.runs.summaries(), self.reports.records()
        models = self.models.records()
        return Status(
            version=__version__,
            safety=models[0].safety if models else safety_sentence_of("ct", "mr"),
            device=self.device,
            models=len(models),
            busy=False,
            queue_length=0,
            results_folder=str(self.results),
            limits=self.limits,
            initial=Initial(
                volumes=volumes,
                pending=pending,
                failed=failed,
                run=runs[0].id if runs else None,
                report=reports[0].id if reports else None,
            ),
        )
