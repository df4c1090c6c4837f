"""Which of several processes this one is: started by `torchrun`, by SLURM's `srun`, or alone."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ct2mri.errors import ProcessDiedError, RequestError

_LONGEST_START = timedelta(minutes=30)
"""For processes that have not started yet, and for tensors."""
_LONGEST_WAIT = timedelta(days=30)
"""For processes that have more to do. One that died is noticed at once, since its connections close."""


@dataclass(frozen=True)
class Place:
    """A process's place among those that were started together.

    Attributes:
        rank: its number, from 0.
        world_size: number of processes.
        local_rank: its number on its own machine: which card it computes on.
        local_world_size: number of processes on its machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def place() -> Place:
    """The place of this process.

    `torchrun` says it by RANK, WORLD_SIZE and so on; where these are absent, a job step of `srun` by
    variables of its own. A batch script of SLURM outside a step is alone, whatever its number of tasks.

    Raises:
        RequestError: `srun` started other numbers of processes on different nodes.
    """
    environment = os.environ
    if "RANK" in environment or "LOCAL_RANK" in environment:
        return Place(
            int(environment.get("RANK", 0)),
            int(environment.get("WORLD_SIZE", 1)),
            int(environment.get("LOCAL_RANK", 0)),
            int(environment.get("LOCAL_WORLD_SIZE", 1)),
        )
    world_size = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if world_size == 1:
        return Place()
    nodes = int(environment.get("SLURM_STEP_NUM_NODES", 1))
    if world_size % nodes:
        raise RequestError(
            f"srun started {world_size} processes on {nodes} nodes; start the same number on each "
            "(--ntasks-per-node)."
        )
    rank, local_rank = int(environment["SLURM_PROCID"]), int(environment["SLURM_LOCALID"])
    return Place(rank, world_size, local_rank, world_size // nodes)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def say_as_torchrun_does() -> None:
    """Set, for libraries that read them, the variables that `torchrun` would have set in this process."""
    here = place()
    if here.world_size == 1 or "RANK" in os.environ:
        return
    job = int(os.environ.get("SLURM_JOB_ID", 0))
    os.environ.setdefault("MASTER_ADDR", _first_host(os.environ.get("SLURM_STEP_NODELIST", "localhost")))
    os.environ.setdefault("MASTER_PORT", str(15000 + job % 10000))  # two jobs on a node rarely agree in it
    os.environ |= {
        "RANK": str(here.rank),
        "WORLD_SIZE": str(here.world_size),
        "LOCAL_RANK": str(here.local_rank),
        "LOCAL_WORLD_SIZE": str(here.local_world_size),
    }


def _first_host(nodes: str) -> str:
    """The first of SLURM's short list of hosts: of `gpu[003-005,9],cpu1` it is gpu003."""
    found = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\])?", nodes)
    return f"{found[1]}{found[2] or ''}" if found else "localhost"


class Group:
    """Processes that tell one another what they found; a single one talks to itself.

    Args:
        handle: torch's process group on the CPU, where another's end is noticed at once; None for
            a process alone.
    """

    def __init__(self, handle: Any = None) -> None:
        self._handle = handle

    def gather(self, found: Any) -> list[Any]:
        """What each process found, by rank; waits for all of them.

        Raises:
            ProcessDiedError: one of them has ended.
        """
        if self._handle is None:
            return [found]
        from torch import distributed

        everything: list[Any] = [None] * place().world_size
        try:
            distributed.all_gather_object(everything, found, group=self._handle)
        except RuntimeError as error:
            raise died() from error
        return everything


_joined: Group | None = None


def join(backend: str = "gloo") -> Group:
    """The processes that were started together with this one; it joins them the first time.

    Args:
        backend: of torch.distributed, for tensors; what is told as objects goes over the CPU in any case.

    Raises:
        ProcessDiedError: one of them ended before it joined, or did not come within half an hour.
    """
    global _joined
    if _joined is None and place().world_size == 1:
        return Group()
    if _joined is None:
        from torch import distributed

        say_as_torchrun_does()
        try:
            distributed.init_process_group(backend, timeout=_LONGEST_START)
            _joined = Group(distributed.new_group(timeout=_LONGEST_WAIT, backend="gloo"))
        except RuntimeError as error:
            raise died() from error
    return _joined


@contextmanager
def group() -> Iterator[Group]:
    """Join the processes that were started together, until the block ends.

    Raises:
        ProcessDiedError: see `join`.
    """
    global _joined
    joined = join()
    try:
        yield joined
    finally:
        if _joined is not None:
            from torch import distributed

            _joined = None
            distributed.destroy_process_group()


def died() -> ProcessDiedError:
    """What a process says that noticed the end of another."""
    return ProcessDiedError(
        "another of the processes ended early, see its own message; what is done is kept, and the same "
        "command goes on."
    )
