"""Whether there is memory to bring a volume to the networks and back."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ct2mri.data.plan import Plan
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.memory import format_size, free_memory, is_out_of_memory
from ct2mri.stages import Execution

# What it takes beside the source itself, a voxel of the larger one of the two grids.
_BYTES_PER_VOXEL = 24


@contextmanager
def room_for(source: Volume, plan: Plan, execution: Execution, device: torch.device) -> Iterator[None]:
    """A context in which a volume is brought to the networks and back; the stages look after themselves.

    Args:
        source: on its own grid.
        plan: whose spacing sets the size of the working grid.
        execution: how much memory may be taken.
        device: that computes.

    Raises:
        RequestError: memory does not suffice for it, or ran out.
    """
    working = source.array.size
    if plan.spacing is not None:
        working = round(working * math.prod(source.spacing) / math.prod(plan.spacing))
    voxels = max(source.array.size, working)
    need = _BYTES_PER_VOXEL * voxels
    try:
        if _host_room(execution, device) < need:
            raise MemoryError
        yield
        return
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RequestError) or not is_out_of_memory(error):
            raise
    room = max(0, _host_room(execution, device))
    raise RequestError(
        f"Memory does not suffice: bringing this volume to the networks and back needs about "
        f"{format_size(need)} for {voxels:,} voxels, and {format_size(room)} may be taken, enough for "
        f"{room // _BYTES_PER_VOXEL:,} voxels; free more (or give a larger --max_memory), or give a smaller "
        "volume."
    )


def _host_room(execution: Execution, device: torch.device) -> int:
    """Bytes of main memory that may be taken; where networks compute elsewhere, of all that are free."""
    host = torch.device("cpu")
    return execution.room(host) if device == host else free_memory(host) // execution.sharers
