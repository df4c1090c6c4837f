"""What the viewer's server holds while it runs."""

import shutil
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ct2mri import __version__
from ct2mri.marking import safety_sentence_of
from ct2mri.viewer.bounded import sentence_of
from ct2mri.viewer.failures import NotThereError
from ct2mri.viewer.given import Given, GivenVolume
from ct2mri.viewer.jobs import Jobs
from ct2mri.viewer.library import Entry, Library
from ct2mri.viewer.models import Models
from ct2mri.viewer.records import Initial, Limits, Status, UnreadFile
from ct2mri.viewer.reports import Reports
from ct2mri.viewer.runs import Runs
from ct2mri.viewer.uploads import Uploads


class InitialVolumes:
    """The volumes to show first, read one after another while the viewer runs.

    Those that it was given; with none, those of the last job or upload in the results folder; with nothing
    there either, the demo's phantom, which is drawn.

    Args:
        given: what the viewer was given.
        library: the volumes.
        uploads: reads them.
    """

    def __init__(self, given: Given, library: Library, uploads: Uploads) -> None:
        self.library = library
        self.uploads = uploads
        self._lock = threading.Lock()
        self._wanted = list(given.volumes)
        self._ready: dict[str, list[str]] = {}
        self._failed: list[UnreadFile] = []
        self._latest: list[str] = []
        self._made: list[tuple[str, str]] = []  # name, and identifier of an upload
        if given.left_out:
            self._failed.append(
                UnreadFile(
                    name=f"{given.left_out} more volumes",
                    detail=f"The first {len(given.volumes)} volumes are shown; open a case's own folder.",
                )
            )
        self._nothing_given = not (given.volumes or given.runs or given.reports)

    def start(self) -> None:
        """Begin reading."""
        kept = {entry.id: entry for entry in self.library.entries()}  # those that jobs of earlier times use
        self._settle_groups(kept)
        for volume in self._wanted:
            if (known := _kept_id(volume)) in kept:
                self._ready[volume.id] = [known]
            else:
                self.uploads.submit(partial(self._read, volume))
        if self._nothing_given:
            entries = self.library.entries()
            if entries:
                last = max(entries, key=lambda entry: entry.data.stat().st_mtime).stored.described.group
                self._latest = [entry.id for entry in entries if entry.stored.described.group == last]
            else:
                self._made.append(("Digital phantom", self.uploads.demo().id))

    def _settle_groups(self, kept: dict[str, Entry]) -> None:
        """Make what is given cases of their own: in the results folder, others may be called alike.

        A case of which a job of an earlier time used a volume is the one that it was then.
        """
        groups: dict[str, str] = {}
        for volume in self._wanted:
            entry = kept.get(_kept_id(volume))
            if entry is not None and entry.stored.described.group not in groups.values():
                groups.setdefault(volume.described.group, entry.stored.described.group)
        for volume in self._wanted:
            if volume.described.group not in groups:
                groups[volume.described.group] = self.library.new_group(volume.described.group)
        self._wanted = [
            replace(volume, described=replace(volume.described, group=groups[volume.described.group]))
            for volume in self._wanted
        ]

    def _read(self, volume: GivenVolume) -> None:
        folder = self.library.new_folder(volume.id)
        scratch = self.library.new_folder()
        try:
            self.uploads.bounded(
                "ct2mri.viewer.reading:read_given", volume.path, folder, volume.described, scratch=scratch
            )
            ids = self.library.place(folder, kept=False)
        except Exception as error:
            ids = []
            with self._lock:
                self._failed.append(UnreadFile(name=volume.described.name, detail=sentence_of(error)))
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        with self._lock:
            self._ready[volume.id] = ids
            last = len(self._ready) == len(self._wanted)
        if last:
            self._make_errors()

    def _make_errors(self) -> None:
        """Make the errors of results that came with their truth, and without an error."""
        given = [self.library[volume] for ids in self._ready.values() for volume in ids]
        have = {entry.stored.described.group for entry in given if entry.stored.described.role == "error"}
        for entry in given:
            described, truth = entry.stored.described, self.library.truth_of(entry)
            if described.role == "result" and described.group not in have and truth is not None:
                self._made.append((f"Error of {described.name}", self.uploads.error(entry, truth).id))

    def told(self) -> tuple[list[str], int, list[UnreadFile]]:
        """Identifiers of those read, how many are to come, and those that cannot be read."""
        with self._lock:
            ready = [known for volume in self._wanted for known in self._ready.get(volume.id, [])]
            pending = sum(volume.id not in self._ready for volume in self._wanted)
            failed = list(self._failed)
        for name, upload in self._made:
            with suppress(NotThereError):  # forgotten, long after it was done
                record = self.uploads.record(upload)
                ready += record.volumes
                pending += record.state == "reading"
                if record.detail is not None:
                    failed.append(UnreadFile(name=name, detail=record.detail))
        return [*self._latest, *ready], pending, failed


def _kept_id(volume: GivenVolume) -> str:
    """The identifier of a volume that was given, once a job has used it."""
    return f"{volume.id}-source"


@dataclass
class Viewer:
    """All of it."""

    library: Library
    uploads: Uploads
    models: Models
    jobs: Jobs
    runs: Runs
    reports: Reports
    initial: InitialVolumes
    limits: Limits
    results: Path

    def start(self) -> None:
        """Begin work."""
        self.jobs.start()
        self.initial.start()

    def close(self) -> None:
        """End work."""
        self.jobs.close()
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
            device=self.jobs.device,
            models=len(models),
            busy=self.jobs.busy,
            queue_length=self.jobs.queue_length,
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
