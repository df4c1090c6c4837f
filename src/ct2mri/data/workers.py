"""Working on cases side by side: processes that hold one case each, any of which may die alone."""

import errno
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from ct2mri.errors import RequestError
from ct2mri.processes import cores

Case = TypeVar("Case")
Result = TypeVar("Result")

_MOST_BY_DEFAULT = 4

# Each worker computes on one thread: cases side by side are what keeps the cores busy.
_THREAD_SETTINGS = (
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


def default_workers() -> int:
    """One worker a core that this process may use, at most 4: each holds a case in memory."""
    return min(cores(), _MOST_BY_DEFAULT)


def over_cases(
    function: Callable[[Case], Result],
    cases: Sequence[Case],
    workers: int | None,
    desc: str,
    option: str = "--workers",
) -> Iterator[tuple[Case, Result | RequestError]]:
    """Apply a function to every case, and yield each case with its result as soon as it is there.

    A case that the function refuses, that fails for a reason nobody foresaw, or whose process dies (memory)
    is yielded with a `RequestError`, and the others go on. No worker outlives this generator or its process.

    Args:
        function: applied in a worker process, so it, the cases and its results must be picklable and small.
        cases: what it is applied to, in the order in which work on them begins.
        workers: processes, one case each at a time; 0: none, all is done in this process, and an error that
            nobody foresaw ends it; None: `default_workers`.
        desc: the word on the progress bar.
        option: what the number of workers is called where it is given.

    Raises:
        RequestError: the number of workers is negative, or they cannot be started.
        OSError: the disk is full.
    """
    if workers is None:
        workers = default_workers()
    if workers < 0:
        raise RequestError(f"{option} is {workers}; give the number of processes, 0 for none beside this.")
    done = _here(function, cases) if workers == 0 else _beside(function, cases, workers, option)
    with tqdm(total=len(cases), desc=desc, unit="case", file=sys.stderr) as progress, closing(done):
        for case, result in done:
            yield case, result
            progress.update()


def _here(
    function: Callable[[Case], Result], cases: Sequence[Case]
) -> Generator[tuple[Case, Result | RequestError]]:
    for case in cases:
        try:
            yield case, function(case)
        except RequestError as error:
            yield case, error


def _beside(
    function: Callable[[Case], Result], cases: Sequence[Case], workers: int, option: str
) -> Generator[tuple[Case, Result | RequestError]]:
    """The cases' results in order of completion.

    A pool of the standard library would lose every case in work when one process dies, and leave its
    processes behind when this one is killed.
    """
    waiting = deque(cases)
    starting: dict[Connection, SpawnProcess] = {}
    busy: dict[Connection, tuple[SpawnProcess, Case]] = {}
    idle: list[SpawnProcess] = []
    any_started, died_starting = False, 0
    try:
        while waiting or busy:
            while len(starting) < len(waiting) and len(starting) + len(busy) < workers:
                alive = [*starting.values(), *(process for process, _ in busy.values())]
                connection, process = _start(function, _free_number(alive), option)
                starting[connection] = process
            ready = wait([*starting, *busy])
            for connection in [each for each in (*starting, *busy) if each in ready]:
                finished: list[tuple[Case, Result | RequestError]] = []
                if connection in starting:
                    process = starting.pop(connection)
                    if _received(connection) is None:
                        # Another takes its place, where that they start at all has been seen.
                        died_starting += 1
                        if not any_started or died_starting > workers:
                            raise _not_started(process, option)
                        connection.close()
                        idle.append(process)
                        continue
                    any_started = True
                else:
                    process, case = busy.pop(connection)
                    answer = _received(connection)
                    if isinstance(answer, OSError):
                        raise answer
                    finished.append((case, _died(process, option) if answer is None else answer[0]))
                if waiting and process.is_alive():
                    case = waiting.popleft()
                    busy[connection] = process, case
                    with suppress(OSError):  # it died just now: seen when its answer is awaited
                        connection.send(case)
                else:
                    connection.close()
                    idle.append(process)
                yield from finished
        for process in idle:
            process.join()
    finally:
        for process in [*starting.values(), *(process for process, _ in busy.values()), *idle]:
            process.terminate()
            process.join()


def _free_number(alive: Sequence[SpawnProcess]) -> int:
    """The lowest number that no worker has: as many numbers as workers, also after some have died."""
    taken = {process.name for process in alive}
    return next(number for number in range(len(taken) + 1) if str(number) not in taken)


def _start(function: Callable[[Any], Any], number: int, option: str) -> tuple[Connection, SpawnProcess]:
    """A new worker process, and the connection to it."""
    context = get_context("spawn")  # never fork: libraries that hold threads would hang in the copy
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, name=str(number), args=(theirs, number, option), daemon=True)
    process.start()
    theirs.close()
    with suppress(OSError):
        ours.send(function)
    return ours, process


def _received(connection: Connection) -> Any:
    """What a worker sent, or None if it is dead."""
    try:
        return connection.recv()
    except (EOFError, ConnectionResetError):
        return None


def _not_started(process: SpawnProcess, option: str) -> RequestError:
    process.join()
    return RequestError(
        f"Worker processes cannot be started (exit code {process.exitcode}); a script that calls this needs "
        'its work under `if __name__ == "__main__":`, or take '
        f"{option} 0."
    )


def _died(process: SpawnProcess, option: str) -> RequestError:
    process.join()
    code = process.exitcode or 0
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return RequestError(
        f"its process was ended from outside or crashed ({how}), most often because memory ran out; run "
        f"again with fewer {option}: what is complete is kept"
    )


# In the worker


def _serve(connection: Connection, number: int, option: str) -> None:
    """Receive a function, then cases; send the result of each, until the connection is closed."""
    for name in _THREAD_SETTINGS:
        os.environ[name] = "1"
    os.environ["LOCAL_RANK"] = str(number)  # the name that tells which of a machine's cards is whose
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    function = connection.recv()  # unpickling imports the libraries that read the settings above
    connection.send("ready")
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            connection.send(_answer(function, connection.recv(), option))


def _end_with_parent() -> None:
    """End at once when the parent is dead, however it died, so that nothing goes on writing."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _answer(function: Callable[[Any], Any], case: Any, option: str) -> tuple[Any] | OSError:
    try:
        return (function(case),)
    except RequestError as error:
        return (error,)
    except MemoryError:
        return (RequestError(f"memory does not suffice for it; run again with fewer {option}"),)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK_IS_FULL:
            return error
        return (_unforeseen(error, option),)


def _unforeseen(error: Exception, option: str) -> RequestError:
    """One sentence on an error; not its own message, which may quote a patient's header."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    why = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
    return RequestError(
        f"an unforeseen {type(error).__name__} ({Path(frame.filename).name}, line {frame.lineno}){why}; "
        f"{option} 0 stops there and shows all of it"
    )
