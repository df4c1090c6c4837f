"""Time how long `ct2mri` takes to say what it can do, against Python doing nothing.

    python benchmarks/startup.py

The time by the clock is that of a machine which may be busy; the processor time is the command's own. Also
says which of the heavy libraries each command loads.
"""

import argparse
import statistics
import subprocess
import sys
from resource import RUSAGE_CHILDREN, getrusage

from machine import hardware, in_turns, table, times_as_long, versions

COMMANDS = [["--help"], ["--version"], ["train", "slices", "--help"], ["translate", "--help"]]
LIBRARIES = ("torch", "numpy", "lightning", "diffusers", "nibabel", "SimpleITK")
LIST = f"""
import sys
from ct2mri.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(*[name for name in {LIBRARIES} if name in sys.modules], file=sys.stderr)
"""


def run(*words: str) -> str:
    """What a Python command says on standard error."""
    return subprocess.run([sys.executable, *words], check=True, capture_output=True, text=True).stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()

    works = {"python -c pass": ["-c", "pass"]} | {
        "python -m ct2mri " + " ".join(words): ["-m", "ct2mri", *words] for words in COMMANDS
    }
    processor: dict[str, list[float]] = {name: [] for name in works}

    def timed(name: str) -> None:
        before = getrusage(RUSAGE_CHILDREN)
        run(*works[name])
        after = getrusage(RUSAGE_CHILDREN)
        processor[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    seconds = in_turns({name: lambda name=name: timed(name) for name in works}, arguments.repeats)
    loaded = {name: run("-c", LIST, *words[2:]).strip() for name, words in works.items() if words[0] == "-m"}
    rows = [
        [
            f"`{name}`",
            f"{statistics.median(taken):.2f} s",
            f"{statistics.median(processor[name]):.2f} s",
            f"{times_as_long(taken, seconds['python -c pass']):.1f}×",
            loaded.get(name) or "none",
        ]
        for name, taken in seconds.items()
    ]
    print(hardware())
    print(f"{versions('jsonargparse')}; medians of {arguments.repeats} turns")
    print(f"libraries looked for: {', '.join(LIBRARIES)}\n")
    header = [
        "command",
        "time",
        "processor time",
        "time over that of Python doing nothing",
        "libraries loaded",
    ]
    print(table(header, rows))


if __name__ == "__main__":
    main()
