"""Where a process stands among others, and that they hear of one another's end."""

import os
import socket
import subprocess
import sys
import time

import pytest

from ct2mri.errors import RequestError
from ct2mri.processes import Place, _first_host, group, place

ALL = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in [*ALL, *(name for name in os.environ if name.startswith("SLURM_"))]:
        monkeypatch.delenv(name, raising=False)


def test_a_process_knows_its_place(monkeypatch):
    assert place() == Place(0, 1, 0, 1)
    # A batch script of SLURM, which is not inside a step.
    for name, value in (("SLURM_NTASKS", "8"), ("SLURM_PROCID", "0"), ("SLURM_LOCALID", "0")):
        monkeypatch.setenv(name, value)
    assert place() == Place(0, 1, 0, 1)
    for name, value in (("NUM_TASKS", "8"), ("NUM_NODES", "2")):
        monkeypatch.setenv(f"SLURM_STEP_{name}", value)
    monkeypatch.setenv("SLURM_PROCID", "5")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    assert place() == Place(5, 8, 1, 4)
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "3")
    with pytest.raises(RequestError, match="8 processes on 3 nodes"):
        place()
    # torchrun inside such a step knows better.
    for name, value in zip(ALL, "3421", strict=True):
        monkeypatch.setenv(name, value)
    assert place() == Place(3, 4, 2, 1)


def test_the_first_of_slurms_hosts():
    for nodes, first in {
        "gpu[003-005,9],cpu1": "gpu003",
        "node7": "node7",
        "a1,b[2-3]": "a1",
        "rack-2-node[12]": "rack-2-node12",
        "n[1,3-5]": "n1",
    }.items():
        assert _first_host(nodes) == first


def test_one_process_gathers_what_it_found_itself():
    with group() as others:
        assert others.gather({"a": 1}) == [{"a": 1}]


TALK = """
import os, sys, time
from ct2mri.errors import ProcessDiedError
from ct2mri.processes import group, place
with group() as others:
    if sys.argv[1] == "one dies" and place().rank == 1:
        os._exit(7)
    try:
        print(others.gather(10 * place().rank))
    except ProcessDiedError:
        sys.exit("died")
"""


@pytest.mark.parametrize("what", ["all live", "one dies"])
def test_processes_of_srun_talk_and_notice_a_death(what):
    """Two real processes; that SLURM started them is told by its variables alone."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    slurm = {"STEP_NUM_TASKS": "2", "STEP_NUM_NODES": "1", "STEP_NODELIST": "localhost", "JOB_ID": "7"}
    started = time.monotonic()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TALK, what],
            env=os.environ
            | {f"SLURM_{name}": value for name, value in slurm.items()}
            | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "MASTER_PORT": str(port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=200) for process in processes]
    if what == "all live":
        # Gloo of older versions of PyTorch says a line before.
        assert [out.splitlines()[-1] for out, _ in said] == ["[0, 10]"] * 2, said
    else:
        assert [process.returncode for process in processes] == [1, 7], said
        assert said[0][1].strip().endswith("died")
        assert time.monotonic() - started < 180, "it was noticed, not waited for"
