"""What every benchmark prints beside its numbers, and how it takes them: in turns, so that ratios hold."""

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path


def processor() -> str:
    """The processor's name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def hardware(device: str = "cpu") -> str:
    """The date, the processor and its memory; with a device of CUDA its card as well."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    line = f"{date.today()}; {processor()}, {os.cpu_count()} cores, {memory:.0f} GiB; {platform.system()}"
    if device.startswith("cuda"):
        import torch

        card = torch.cuda.get_device_properties(torch.device(device))
        line += f"; {card.name}, {card.total_memory / 2**30:.0f} GiB"
    return line


def versions(*packages: str) -> str:
    """The versions of ct2mri, Python and further packages by their names on the package index."""
    parts = [f"{name} {version(name)}" for name in packages]
    return ", ".join([f"ct2mri {version('ct2mri')}", f"Python {platform.python_version()}", *parts])


def peak_memory(children: bool = False) -> float:
    """The most memory that this process (or the largest of its ended children) has had in RAM, in GiB."""
    who = resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(who).ru_maxrss * unit / 2**30


def in_turns(
    works: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each work: all take turns, since the speed of a machine drifts.

    Args:
        works: what to time, by name. On a card each waits for the card before it returns.
        repeats: of each.
        warm_up: further turns before, which are not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(warm_up + repeats):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def times_as_long(slower: Sequence[float], faster: Sequence[float]) -> float:
    """The median of the ratios of turns that were taken together."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
