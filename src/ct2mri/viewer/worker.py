"""The process that translates: it loads torch, keeps the last model, and does one job at a time.

The server itself never loads torch. It starts this process for its first job, tells it what to do, hears of
its steps, and ends it when a cancelled job does not stop by itself.
"""

import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Literal

from ct2mri.errors import RequestError
from ct2mri.options.choices import Sampler
from ct2mri.viewer.bounded import end_with_parent, sentence_of, silence

_PATIENCE = 5.0
"""Seconds that a cancelled job has to stop by itself."""

LOADING, PREPARING, WRITING = "loading the model", "preparing", "writing"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A translation to do.

    Attributes:
        job: its identifier.
        source: folder and base of the kept volume to translate.
        source_name: what it is called.
        group: of the volumes that come out.
        mask: folder and base of the kept volume that is the body; None: found by threshold.
        truth: folder and base of a kept volume on the same grid to compare with, where there is one.
        model: pipeline folder.
        output: folder to write into.
        device: to compute on.
    """

    job: str
    source: tuple[Path, str]
    source_name: str
    group: str
    mask: tuple[Path, str] | None
    truth: tuple[Path, str] | None
    model: Path
    output: Path
    device: str
    steps: int | None
    sampler: Sampler | None
    seed: int
    samples: int


class CancelledError(Exception):
    """The job was cancelled."""


@dataclass(frozen=True)
class Ended:
    """How a job ended; `detail` says why it failed, `warnings` what is to be known of a result."""

    how: Literal["done", "failed", "cancelled"]
    detail: str | None = None
    warnings: tuple[str, ...] = ()


Tell = Callable[[str, int, int], None]
"""Told of a stage, its step and their number; (…, 0, 0) for what has no steps."""


class Worker:
    """The process, seen from the server; used by one thread."""

    def __init__(self, on_device: Callable[[str], None]) -> None:
        self._on_device = on_device
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None

    def translate(self, task: Task, tell: Tell, cancelled: threading.Event) -> Ended:
        """Do a task, and say how it ended."""
        connection = self._started()
        try:
            connection.send(task)
            return self._follow(task, connection, tell, cancelled)
        except (EOFError, OSError):  # it is dead
            return Ended("cancelled") if cancelled.is_set() else Ended("failed", self._death())
        finally:
            if self._process is not None and not self._process.is_alive():
                self.close()

    def _follow(self, task: Task, connection: Connection, tell: Tell, cancelled: threading.Event) -> Ended:
        asked: float | None = None
        while True:
            if connection.poll(0.1):
                message = connection.recv()
                if isinstance(message, Ended):
                    return message
                kind, *words = message
                if kind == "device":
                    self._on_device(*words)
                else:
                    tell(*words)
            if cancelled.is_set():
                if asked is None:
                    asked = time.monotonic()
                    connection.send(task.job)
                elif time.monotonic() - asked > _PATIENCE:
                    self.close()
                    return Ended("cancelled")

    def _started(self) -> Connection:
        if self._process is None or not self._process.is_alive() or self._connection is None:
            self.close()
            context = get_context("spawn")
            ours, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
            self._connection = ours
        return self._connection

    def _death(self) -> str:
        process = self._process
        if process is None:
            return "The translating process was ended with the viewer."
        process.join(5)
        code = process.exitcode or 0
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return (
            f"The translating process was ended from outside or crashed ({how}), most often because memory "
            "ran out; translate a smaller volume, or close other programs."
        )

    def kill(self) -> None:
        """End the process, from any thread; what it was doing ends as a failure."""
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        """End the process, and let go of it."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None


# In the process


def _serve(connection: Connection) -> None:
    silence()
    end_with_parent()
    translating: Any = import_module("ct2mri.viewer.translating")  # loads torch
    translator = translating.Translator()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            task = connection.recv()
            if isinstance(task, Task):  # else it asks to cancel a job that has ended
                connection.send(_answer(translator, task, connection))


def _answer(translator: Any, task: Task, connection: Connection) -> Ended:
    def tell(stage: str, step: int, total: int) -> None:
        while connection.poll():
            if connection.recv() == task.job:
                raise CancelledError
        connection.send(("step", stage, step, total))

    try:
        warnings = translator.translate(task, tell, lambda device: connection.send(("device", device)))
    except CancelledError:
        return Ended("cancelled")
    except RequestError as error:
        return Ended("failed", sentence_of(error))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
            translator.forget()
            return Ended("failed", "Memory does not suffice for this volume; crop or resample it first.")
        return Ended("failed", sentence_of(error))
    except Exception as error:
        return Ended("failed", sentence_of(error))
    return Ended("done", warnings=tuple(warnings))
