"""Where and how networks compute."""

from dataclasses import dataclass

from ct2mri.options.argument import argument
from ct2mri.options.choices import InferencePrecision


@dataclass(kw_only=True)
class ComputeOptions:
    """Where and how stages compute: shared by `translate`, `draft` and `stability`."""

    device: str = argument("auto, cpu, cuda or mps", "auto")
    max_memory: str | None = argument(
        "memory of the device that may be taken, e.g. 8GiB (on a CPU, by the whole process); default: what "
        "is free. Slices go in smaller batches and volumes in tiles or windows where need be",
        None,
    )
    precision: InferencePrecision = argument(
        "`bf16` is less exact and, where the hardware has it, faster; `auto` takes it on CUDA devices alone",
        "auto",
    )
    batch_size: int | None = argument(
        "slices that go through the network together, at most; default: as many as are of use and fit", None
    )
    compile: bool = argument(
        "compile the networks (torch.compile): minutes once for all sizes, kept between runs; for GPUs",
        False,
    )
