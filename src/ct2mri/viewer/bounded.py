"""Doing work on files that nobody vouches for: in a process of its own, bounded in time and memory."""

import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from contextlib import suppress
from importlib import import_module
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ct2mri.errors import RequestError

_GOOD = ""
_SECONDS_TO_END = 10.0
_TOO_LITTLE_MEMORY = "It needs more memory than is allowed for reading one volume; crop or resample it first."


def run_bounded(
    function: str,
    *arguments: Any,
    seconds: float,
    memory: int | None,
    scratch: Path,
    stop: threading.Event,
) -> None:
    """Call a function in a process of its own.

    Args:
        function: `module:function`; imported there, and not here.
        arguments: picklable.
        seconds: after which the process is ended.
        memory: bytes of address space that it may take, where the system can bound that (not on Windows; on
            macOS it is not kept to); None: not bounded, for work on files of our own.
        scratch: folder for its temporary files.
        stop: ends the process early when it is set.

    Raises:
        RequestError: the function raised it; or anything else went wrong there, in one sentence that quotes
            nothing out of the file.
    """
    context = get_context("spawn")  # a forked copy of a server with threads may hang
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=_call, args=(theirs, function, arguments, memory, str(scratch)), daemon=True
    )
    process.start()
    theirs.close()
    answer: Any = None
    end = time.monotonic() + seconds
    try:
        while not (there := ours.poll(0.1)) and time.monotonic() < end and not stop.is_set():
            pass
        if there:
            with suppress(EOFError, ConnectionResetError):
                answer = ours.recv()
    finally:
        if answer is not None:
            process.join(_SECONDS_TO_END)
        process.kill()
        process.join()
        ours.close()
    if stop.is_set() and answer is None:
        raise RequestError("The viewer ended before this was read; start it again.")
    if not there:
        raise RequestError(
            f"It was not read within {seconds:g} seconds, so reading was ended; give a smaller volume."
        )
    if answer is None:
        code = process.exitcode or 0
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        raise RequestError(
            f"Reading it ended the reading process ({how}): it is damaged, or needs more memory than "
            "there is."
        )
    if answer != _GOOD:
        raise RequestError(answer)


def sentence_of(error: BaseException) -> str:
    """One sentence on an error: a request's own; of others not their message, which may quote a header."""
    if isinstance(error, RequestError):
        return " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return _TOO_LITTLE_MEMORY
    frame = traceback.extract_tb(error.__traceback__)[-1]
    why = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
    return f"An unforeseen {type(error).__name__} ({Path(frame.filename).name}, line {frame.lineno}){why}."


def silence() -> None:
    """Send what this process would print nowhere: progress bars, and warnings that may quote a header."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def end_with_parent() -> None:
    """End this process as soon as its parent is dead, however it died."""

    def watch() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    threading.Thread(target=watch, daemon=True).start()


def _call(
    connection: Connection,
    function: str,
    arguments: tuple[Any, ...],
    memory: int | None,
    scratch: str,
) -> None:
    silence()
    end_with_parent()
    tempfile.tempdir = scratch
    if memory is not None:
        _limit(memory)
    try:
        module, _, name = function.partition(":")
        getattr(import_module(module), name)(*arguments)
        answer = _GOOD
    except Exception as error:
        answer = sentence_of(error)
    connection.send(answer)
    connection.close()


def _limit(memory: int) -> None:
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(ValueError, OSError):  # macOS refuses some limits
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
