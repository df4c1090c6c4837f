import errno
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from ct2mri.data.workers import default_workers, over_cases
from ct2mri.errors import RequestError


def work(folder, case):
    """What one case does, by its name; leaves a file that says which process worked on it."""
    (folder / case).write_text(str(os.getpid()))
    if case == "refused":
        raise RequestError("no")
    if case == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if case == "leaves":
        os._exit(3)
    if case == "broken":
        raise KeyError("the name of a patient")
    if case == "hungry":
        raise MemoryError
    if case == "full":
        raise OSError(errno.ENOSPC, "No space left on device")
    if case == "long":
        time.sleep(60)
    return case, os.environ["OMP_NUM_THREADS"], os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"]


def done(folder, cases, workers):
    return dict(over_cases(partial(work, folder), cases, workers, "test"))


def gone(pid):
    """Whether a process ends within some seconds."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return True
            os.kill(pid, 0)
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.1)
    return False


def test_every_case_is_worked_on_in_few_processes_of_one_thread(tmp_path):
    names = [f"c{n}" for n in range(9)]
    assert done(tmp_path, names, 2) == {name: (name, "1", "1") for name in names}
    pids = {(tmp_path / name).read_text() for name in names}
    # One worker may do all before the other has started.
    assert 1 <= len(pids) <= 2 and str(os.getpid()) not in pids
    assert all(gone(int(pid)) for pid in pids)
    assert done(tmp_path, [], 2) == {}


def test_a_case_that_fails_or_takes_its_process_with_it_is_one_case(tmp_path):
    names = ["c0", "refused", "killed", "c1", "broken", "leaves", "hungry", "c2"]
    results = done(tmp_path, names, 2)
    assert sorted(results) == sorted(names)
    assert all(results[name][0] == name for name in ("c0", "c1", "c2"))
    said = {name: str(result) for name, result in results.items() if isinstance(result, RequestError)}
    assert said["refused"] == "no"
    assert "SIGKILL" in said["killed"] and "memory" in said["killed"] and "--workers" in said["killed"]
    assert "exit code 3" in said["leaves"]
    assert "KeyError" in said["broken"] and "test_workers.py" in said["broken"]
    assert "name of a patient" not in said["broken"]
    assert "memory" in said["hungry"]


class DiesInItsSecondStart:
    """Works on cases; but the second process that receives it dies, once the first has done one."""

    def __init__(self, folder):
        self.folder = folder

    def __setstate__(self, state):
        self.__dict__ |= state
        for start in ("first", "second", "third"):
            try:
                (self.folder / start).mkdir()
            except FileExistsError:
                continue
            if start == "second":
                while not (self.folder / "done").is_dir():
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)
            return

    def __call__(self, case):
        (self.folder / "done").mkdir(exist_ok=True)
        while case == "waits" and not (self.folder / "third").is_dir():
            time.sleep(0.01)
        return case


def test_a_worker_killed_while_it_starts_costs_no_case(tmp_path):
    names = ["c0", "waits", "c1", "c2"]
    assert dict(over_cases(DiesInItsSecondStart(tmp_path), names, 2, "test")) == {n: n for n in names}


def test_without_workers_all_is_done_here_and_nothing_is_hidden(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "7")
    results = done(tmp_path, ["c0", "refused"], 0)
    assert results["c0"] == ("c0", "1", "7") and str(results["refused"]) == "no"
    assert (tmp_path / "c0").read_text() == str(os.getpid())
    with pytest.raises(KeyError):
        done(tmp_path, ["broken"], 0)
    with pytest.raises(RequestError, match="--workers is -1"):
        done(tmp_path, ["c0"], -1)
    assert 1 <= default_workers() <= 4


def test_a_full_disk_ends_the_work(tmp_path):
    with pytest.raises(OSError, match="No space left"):
        done(tmp_path, ["full", "c0"], 1)


def test_whoever_stops_listening_leaves_no_worker_behind(tmp_path):
    for _ in over_cases(partial(work, tmp_path), ["c0", "long"], 2, "test"):
        break
    assert all(gone(int(path.read_text())) for path in tmp_path.iterdir())


SCRIPT = """
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, {tests!r})
from ct2mri.data.workers import over_cases
from test_workers import work

if {guard}:
    for case, result in over_cases(partial(work, Path({folder!r})), ["c0", "long"], 1, "test"):
        pass
"""


def start_script(folder, guard):
    (folder / "out").mkdir()
    script = folder / "script.py"
    tests = str(Path(__file__).parent)
    script.write_text(SCRIPT.format(tests=tests, folder=str(folder / "out"), guard=guard))
    return subprocess.Popen(
        [sys.executable, str(script)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that runs the tests in the background has them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_process_they_work_for(tmp_path, how):
    process = start_script(tmp_path, '__name__ == "__main__"')
    started = tmp_path / "out" / "long"
    for _ in range(300):
        if started.is_file() and started.read_text():
            break
        time.sleep(0.1)
    worker = int(started.read_text())
    process.send_signal(how)
    assert gone(worker)
    _, said = process.communicate(timeout=20)
    assert said.count("Traceback") == (how == signal.SIGINT)  # the parent's own, none of a worker


def test_a_script_without_a_main_block_is_told_what_it_needs(tmp_path):
    _, said = start_script(tmp_path, "True").communicate(timeout=60)
    assert 'its work under `if __name__ == "__main__":`' in said
