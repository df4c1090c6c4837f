"""Which device to compute on."""

import torch

from ct2mri.errors import RequestError


def choose_device(name: str) -> torch.device:
    """The device of a name: `auto` (the best there is), `cpu`, `cuda` or `mps`.

    Raises:
        RequestError: an unknown device, or one that is not there.
    """
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    here = [kind for kind, there in usable.items() if there]
    if name == "auto":
        return torch.device(here[0])
    if name not in usable:
        raise RequestError(f"--device is auto, cpu, cuda or mps, got {name}; choose one of them.")
    if not usable[name]:
        raise RequestError(
            f"There is no {name} on this machine; choose --device auto or {' or '.join(here)}."
        )
    return torch.device(name)
