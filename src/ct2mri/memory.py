"""Memory: sizes in words, how much is free on a device, and what running out of it looks like."""

import os
import re
from pathlib import Path

import torch

from ct2mri.errors import RequestError

_UNITS = {
    "": 1,
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)},
    **{f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", 1)},
}

# What libraries say that raise no MemoryError; torch.OutOfMemoryError says "out of memory" as well.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate",
    "out of memory",
    "ALLOC_FAILED",  # cuBLAS and cuDNN
    "bad_alloc",
    "Failed to allocate memory for image",  # SimpleITK
    "could not create a memory object",  # oneDNN
)
# oneDNN, where no memory is left for the code that it generates or for what that works in; of what it cannot
# do it says more than this.
_OUT_OF_MEMORY_AT_THE_END = ("could not create a primitive", "could not execute a primitive")

_CGROUPS = Path("/sys/fs/cgroup")
# A cgroup without a limit says so by the largest number of pages there is.
_UNLIMITED = 2**60


def parse_size(text: str) -> int:
    """Bytes of a size such as `8GiB`, `500MB` or `1.5 GiB`.

    Raises:
        RequestError: it is no size, or not above 0.
    """
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d*)?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    size = int(float(match[1]) * unit) if match and unit else 0
    if size < 1:
        raise RequestError(f"--max_memory is a size such as 8GiB or 500MB, got {text!r}.")
    return size


def format_size(size: float) -> str:
    """A size in words that `parse_size` reads: rounded up, so that what is asked for is enough."""
    for unit, power in (("GiB", 30), ("MiB", 20)):
        if size >= 2**power:
            tenths = -(-int(size * 10) // 2**power)
            return f"{tenths / 10:.1f}{unit}"
    return f"{max(1, -(-int(size) // 2**20))}MiB"


def resident_memory() -> int:
    """Bytes of this process in memory, or 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take on a device: what is free of it, and of any limit set on it."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + cached)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return max(0, min(_available(), cgroup_free(_CGROUPS), _address_space()))


def used_memory(device: torch.device) -> int:
    """Bytes that this process holds on a device: what `--max_memory` bounds."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    return resident_memory()


def _available() -> int:
    """What the kernel could hand out without swapping; half the machine where it does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def cgroup_free(root: Path, membership: Path = Path("/proc/self/cgroup")) -> int:
    """What the control groups that hold this process leave it, version 1 or 2; very much without limits.

    Pages of files that a group has read count as used there, and are given back on need: as free.

    Args:
        root: where control groups are mounted.
        membership: the file that tells the groups of this process.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return _UNLIMITED
    free = _UNLIMITED
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers == "":
            base, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = base / place.lstrip("/")
        # A limit of any group above holds as well; inside a container its own group is the root.
        for folder in [group, *group.parents]:
            free = min(free, _group_free(folder, *names))
            if folder == base:
                break
    return free


def _group_free(folder: Path, limit_name: str, used_name: str, inactive_name: str) -> int:
    try:
        limit = (folder / limit_name).read_text().strip()
        used = int((folder / used_name).read_text())
        facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return _UNLIMITED
    if limit == "max" or int(limit) >= _UNLIMITED:
        return _UNLIMITED
    return int(limit) - used + int(facts.get(inactive_name, 0))


def _address_space() -> int:
    """What `ulimit -v` leaves."""
    try:
        import resource
    except ImportError:  # not on Windows
        return _UNLIMITED
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return _UNLIMITED
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return limit
    return limit - pages * os.sysconf("SC_PAGE_SIZE")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and (
        any(words in said for words in _OUT_OF_MEMORY) or said.endswith(_OUT_OF_MEMORY_AT_THE_END)
    )


def release(device: torch.device) -> None:
    """Give memory that PyTorch keeps for itself back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
