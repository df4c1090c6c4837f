"""Which device to compute on."""

import torch

from ct2mri.errors import RequestError
from ct2mri.processes import place


def choose_device(name: str) -> torch.device:
    """The device of a name: `auto` (the best there is), `cpu`, `cuda` or `mps`.

    Among several processes on a machine with several cards, each gets a card of its own.

    Raises:
        RequestError: an unknown device, or one that is not there.
    """
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    here = [kind for kind, there in usable.items() if there]
    if name == "auto":
        name = here[0]
    if name not in usable:
        raise RequestError(f"--device is auto, cpu, cuda or mps, got {name}; choose one of them.")
    if not usable[name]:
        raise RequestError(
            f"There is no {name} on this machine; choose --device auto or {' or '.join(here)}."
        )
    if name == "cuda":
        return torch.device("cuda", place().local_rank % torch.cuda.device_count())
    return torch.device(name)
