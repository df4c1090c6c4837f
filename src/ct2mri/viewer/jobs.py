"""Translations: a queue for the device, what each has come to, and who wants to hear of it."""

import asyncio
import json
import shutil
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from ct2mri.errors import RequestError
from ct2mri.files import write_json
from ct2mri.viewer.bounded import sentence_of
from ct2mri.viewer.failures import BusyError, ConflictError, NotThereError
from ct2mri.viewer.library import Library, new_id
from ct2mri.viewer.models import Models
from ct2mri.viewer.progress import Progress
from ct2mri.viewer.records import JobRecord, JobRequest, JobResults, JobState, ModelRecord
from ct2mri.viewer.worker import LOADING, Ended, Task, Worker

MOST_QUEUED = 100
ENDED: tuple[JobState, ...] = ("done", "failed", "cancelled")
_RECORD = "job.json"
_INTERRUPTED = "The viewer ended before this job did; start it again."


@dataclass
class _Job:
    record: JobRecord
    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Watch:
    """Tells an asynchronous listener that a job has changed."""

    loop: asyncio.AbstractEventLoop
    changed: asyncio.Event

    def tell(self) -> None:
        """Tell it, from any thread."""
        with suppress(RuntimeError):  # its loop has ended
            self.loop.call_soon_threadsafe(self.changed.set)


class Jobs:
    """The jobs, by identifier; one at a time is at work.

    Attributes:
        device: that is computed on, as soon as it is known.
        watched: whether jobs may still be followed.

    What each has come to is kept in `jobs/ID/job.json`, with what it made beside it.

    Args:
        library: the volumes.
        models: the models.
        device: to compute on.
    """

    def __init__(self, library: Library, models: Models, device: str) -> None:
        self.library = library
        self.models = models
        self.device = device
        self.root = library.root / "jobs"
        self._asked_device = device
        self._jobs: dict[str, _Job] = {}
        self._queue: deque[str] = deque()
        self._changed = threading.Condition(threading.RLock())
        self._watches: dict[str, set[Watch]] = {}
        self._pace: dict[tuple[str, str], float] = {}
        self._closed = False
        self.watched = True
        self._worker = Worker(self._on_device)
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._load()

    def _load(self) -> None:
        """Take in the jobs of earlier times; those that did not end then have failed."""
        for path in sorted(self.root.glob(f"*/{_RECORD}")):
            try:
                record = JobRecord.model_validate_json(path.read_bytes())
            except (ValidationError, OSError):  # damaged: it cannot be shown
                continue
            if record.id != path.parent.name:  # what it names would be cleared away, wherever that is
                continue
            job = self._jobs[record.id] = _Job(record)
            if record.state not in ENDED:
                self._end(job, Ended("failed", _INTERRUPTED))

    def start(self) -> None:
        """Begin work."""
        self._thread.start()

    def close(self) -> None:
        """End all work; what was not done is so recorded."""
        with self._changed:
            self._closed = True
            waiting = [self._jobs[job_id] for job_id in self._queue]
            self._queue.clear()
            for job in self._jobs.values():
                job.cancelled.set()
            self._changed.notify_all()
        self._worker.kill()
        for job in waiting:
            self._end(job, Ended("failed", _INTERRUPTED))
        if self._thread.is_alive():
            self._thread.join()
        self._worker.close()

    def records(self) -> list[JobRecord]:
        """All jobs, the oldest first."""
        with self._changed:
            return [job.record.model_copy() for job in self._jobs.values()]

    def record(self, job_id: str) -> JobRecord:
        """One job.

        Raises:
            NotThereError: there is none.
        """
        with self._changed:
            return self._known(job_id).record.model_copy()

    def _known(self, job_id: str) -> _Job:
        if job_id not in self._jobs:
            raise NotThereError("There is no such job; /api/jobs lists those there are.")
        return self._jobs[job_id]

    @property
    def busy(self) -> bool:
        """Whether a job is at work."""
        with self._changed:
            return any(job.record.state == "running" for job in self._jobs.values())

    @property
    def queue_length(self) -> int:
        """Jobs that wait."""
        with self._changed:
            return len(self._queue)

    def uses(self, volume_id: str) -> bool:
        """Whether a job that has not ended needs a volume."""
        with self._changed:
            return any(
                volume_id in (job.record.volume, job.record.mask)
                for job in self._jobs.values()
                if job.record.state not in ENDED
            )

    def remove_volume(self, volume_id: str) -> None:
        """Delete a volume that no job needs.

        Raises:
            NotThereError: there is none.
            ConflictError: a job that has not ended uses it.
        """
        with self._changed:
            if self.uses(volume_id):
                raise ConflictError("A job that has not ended uses this volume; cancel the job first.")
            self.library.remove(volume_id)

    def submit(self, request: JobRequest) -> JobRecord:
        """Queue a translation.

        Raises:
            NotThereError: there is no such volume, mask or model.
            RequestError: the model does not take such settings.
            BusyError: the queue is full.
        """
        model = self.models[request.model]
        _check(request, model)
        with self._changed:
            if len(self._queue) >= MOST_QUEUED:
                raise BusyError(f"{MOST_QUEUED} jobs wait already; cancel some, or wait for them.")
            for volume in (request.volume, request.mask):
                if volume is not None:
                    self.library.keep(volume)
            record = JobRecord(
                **request.model_dump(),
                id=new_id(),
                state="queued",
                model_name=model.name,
                stage=None,
                step=0,
                total=0,
                fraction=0.0,
                seconds_left=None,
                created=_now(),
                started=None,
                ended=None,
                detail=None,
                warnings=[],
                results=None,
            )
            self._save(record)  # first: on a full disk there is no such job
            self._jobs[record.id] = _Job(record)
            self._queue.append(record.id)
            self._changed.notify_all()
            return record.model_copy()

    def cancel(self, job_id: str) -> JobRecord:
        """Cancel a job that has not ended."""
        with self._changed:
            job = self._known(job_id)
            job.cancelled.set()
            if job_id in self._queue:
                self._queue.remove(job_id)
                self._end(job, Ended("cancelled"))
            return job.record.model_copy()

    def forget(self, job_id: str) -> None:
        """Delete a job that has ended, with what it made.

        Raises:
            ConflictError: a job that has not ended uses a volume that it made.
        """
        with self._changed:
            job = self._known(job_id)
            made = [entry.id for entry in self.library.entries() if entry.stored.described.job == job_id]
            if any(self.uses(volume) for volume in made):
                raise ConflictError("A job that has not ended uses this job's result; cancel that one first.")
            for volume in made:
                self.library.remove(volume)
            del self._jobs[job.record.id]
            shutil.rmtree(self.root / job_id, ignore_errors=True)
            self._tell(job_id)

    @contextmanager
    def watching(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event of the running loop that is set whenever a job changes."""
        watch = Watch(asyncio.get_running_loop(), asyncio.Event())
        with self._changed:
            self._known(job_id)
            self._watches.setdefault(job_id, set()).add(watch)
        try:
            yield watch.changed
        finally:
            with self._changed:
                self._watches[job_id].discard(watch)
                if not self._watches[job_id]:
                    del self._watches[job_id]

    @property
    def closed(self) -> bool:
        """Whether work has ended."""
        return self._closed

    def end_watching(self) -> None:
        """Let those who follow jobs know that there is nothing more to come."""
        self.watched = False
        with self._changed:
            for job_id in self._watches:
                self._tell(job_id)

    def _tell(self, job_id: str) -> None:
        for watch in self._watches.get(job_id, ()):
            watch.tell()

    def _save(self, record: JobRecord) -> None:
        write_json(self.root / record.id / _RECORD, json.loads(record.model_dump_json()))

    # In the thread that does the jobs

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                job = self._jobs[self._queue.popleft()]
                job.record.state, job.record.started = "running", _now()
                job.record.stage = LOADING  # of torch too, where this is the first job
                self._tell(job.record.id)
            try:
                self._save(job.record)
                ended = self._do(job)
            except Exception as error:  # the queue goes on, whatever happened to one job
                ended = Ended("failed", sentence_of(error))
            if self.closed and ended.how == "cancelled":
                ended = Ended("failed", _INTERRUPTED)
            self._end(job, ended)

    def _do(self, job: _Job) -> Ended:
        record = job.record
        model = self.models[record.model]
        source = self.library[record.volume]
        mask = None if record.mask is None else self.library[record.mask]
        truth = self.library.truth_of(source)
        task = Task(
            job=record.id,
            source=source.place,
            source_name=source.stored.described.name,
            group=source.stored.described.group,
            mask=None if mask is None else mask.place,
            truth=None if truth is None else truth.place,
            model=self.models.folder(record.model),
            output=self.root / record.id,
            device=self._asked_device,
            steps=record.steps,
            sampler=record.sampler,
            seed=record.seed,
            samples=record.samples,
        )
        i, j, k = source.stored.shape
        size = {
            stage: i * j * k * record.samples * (record.steps or 1 if stage == model.stages[-1] else 1)
            for stage in model.stages
        }
        expected = {
            stage: self._pace[model.id, stage] * size[stage]
            for stage in model.stages
            if (model.id, stage) in self._pace
        }
        progress = Progress(model.stages, expected)

        def tell(stage: str, step: int, total: int) -> None:
            if total:
                progress.step(stage, step, total)
            else:
                progress.begin()
            with self._changed:
                record.stage, record.step, record.total = stage, step, total
                record.fraction, record.seconds_left = progress.fraction, progress.seconds_left
                self._tell(record.id)

        ended = self._worker.translate(task, tell, job.cancelled)
        for stage, seconds in progress.seconds().items():
            self._pace[model.id, stage] = seconds / size[stage]
        return ended

    def _end(self, job: _Job, ended: Ended) -> None:
        """Record how a job ended, and take in what it made."""
        record, folder = job.record, self.root / job.record.id
        with self._changed:
            made: dict[str, str] = {}
            if ended.how == "done":
                made = {volume.rsplit("-", 1)[1]: volume for volume in self.library.add_folder(folder)}
                if "result" not in made:
                    ended = Ended("failed", "The result is gone from the results folder; translate again.")
            if ended.how == "done":
                record.results = JobResults(
                    result=made["result"],
                    draft=made.get("draft"),
                    spread=made.get("spread"),
                    error=made.get("error"),
                )
                record.fraction = 1.0
            else:
                _clear(folder)
            record.state, record.detail, record.ended = ended.how, ended.detail, _now()
            record.warnings, record.seconds_left = list(ended.warnings), None
            try:
                self._save(record)
            except OSError as error:  # a full disk, say; the queue goes on
                lost = " and deletes what it made: download that before" if ended.how == "done" else ""
                unwritten = (
                    f"How this job ended could not be written into the results folder ({error.strerror}); "
                    f"the next viewer takes it for cut short{lost}."
                )
                record.detail = unwritten if record.detail is None else f"{record.detail} {unwritten}"
            self._tell(record.id)

    def _on_device(self, device: str) -> None:
        self.device = device


def _check(request: JobRequest, model: ModelRecord) -> None:
    """Refuse what the model does not take, before the job waits for its turn."""
    if request.steps is not None and request.steps > model.max_steps:
        raise RequestError(
            f"The model {model.name} takes 1 to {model.max_steps} steps, got {request.steps}; choose fewer."
        )
    if request.sampler is not None and request.sampler not in model.samplers:
        allowed = ", ".join(model.samplers) or "none"
        raise RequestError(
            f"The model {model.name} has the samplers {allowed}, got {request.sampler}; leave it out."
        )


def _clear(folder: Path) -> None:
    """Remove what a job that did not end well has left."""
    for path in folder.glob("*"):
        if path.name != _RECORD:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
