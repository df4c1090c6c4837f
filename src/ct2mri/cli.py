"""The `ct2mri` command: a table of commands, each of which imports its work when it runs."""

import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from io import TextIOWrapper
from typing import Any

from ct2mri.arguments import parse_words
from ct2mri.errors import CasesLeftOutError, ProcessDiedError, RequestError, TrainingDivergedError
from ct2mri.options.data import CheckOptions, PhantomOptions, PrepareOptions
from ct2mri.options.evaluation import CompareOptions, EvaluateOptions, StabilityOptions, ViewOptions
from ct2mri.options.training import (
    TrainBaselineOptions,
    TrainLatentsOptions,
    TrainSlicesOptions,
    TrainVqvaeOptions,
)
from ct2mri.options.translation import (
    DemoOptions,
    DraftOptions,
    ExportOptions,
    ImportPublishedOptions,
    TranslateOptions,
)


@dataclass(frozen=True)
class Command:
    """One command: what it takes, and where its work is."""

    takes: type[Any]
    work: str
    """`module:function`; the function takes one instance of `takes`."""

    @property
    def summary(self) -> str:
        """One line on what the command does."""
        assert self.takes.__doc__
        return self.takes.__doc__.strip().splitlines()[0]


COMMANDS = {
    "demo": Command(DemoOptions, "ct2mri.demo:demo"),
    "phantom": Command(PhantomOptions, "ct2mri.data.phantom:write_phantoms"),
    "prepare": Command(PrepareOptions, "ct2mri.data.prepare:prepare"),
    "check": Command(CheckOptions, "ct2mri.data.check:check"),
    "train vqvae": Command(TrainVqvaeOptions, "ct2mri.training.fit:train_vqvae"),
    "train slices": Command(TrainSlicesOptions, "ct2mri.training.fit:train_slices"),
    "train latents": Command(TrainLatentsOptions, "ct2mri.training.fit:train_latents"),
    "train baseline": Command(TrainBaselineOptions, "ct2mri.training.fit:train_baseline"),
    "draft": Command(DraftOptions, "ct2mri.drafts:draft"),
    "export": Command(ExportOptions, "ct2mri.export:export"),
    "translate": Command(TranslateOptions, "ct2mri.translate:translate"),
    "stability": Command(StabilityOptions, "ct2mri.stability:stability"),
    "evaluate": Command(EvaluateOptions, "ct2mri.evaluation.evaluate:evaluate"),
    "compare": Command(CompareOptions, "ct2mri.evaluation.compare:compare"),
    "view": Command(ViewOptions, "ct2mri.viewer.view:view"),
    "import-published": Command(ImportPublishedOptions, "ct2mri.published:import_published"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 2 the request was wrong, 1 anything else."""
    words = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, TextIOWrapper):  # names of files may be no text of this terminal's, or of any
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        name = _command_name(words)
        if name is None:
            return 0
        chosen = parse(name, words[len(name.split()) :])
        module, _, function = COMMANDS[name].work.partition(":")
        getattr(import_module(module), function)(chosen)
    except RequestError as error:
        print(f"ct2mri: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a lost network drive, a folder without permission
        where = f" ({error.filename})" if error.filename else ""
        what = str(error.strerror or error).removesuffix(".")
        print(f"ct2mri: {what}{where}.", file=sys.stderr)
        return 1
    except (CasesLeftOutError, ProcessDiedError, TrainingDivergedError) as error:
        print(f"ct2mri: {error}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:  # where the work itself knows of no smaller way
        if not _is_out_of_memory(error):
            raise
        said = " ".join(str(error).split())
        print(
            f"ct2mri: memory ran out{f' ({said})' if said else ''}; free some, or give smaller volumes.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("ct2mri: interrupted.", file=sys.stderr)
        return 1
    return 0


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    if isinstance(error, MemoryError):
        return True
    from ct2mri.memory import is_out_of_memory  # loads torch

    return is_out_of_memory(error)


def _command_name(words: list[str]) -> str | None:
    """The command that `words` begin with; None where help or the version was asked for and printed."""
    if not words or words[0] in ("-h", "--help"):
        print(_overview(COMMANDS))
        return None
    if words[0] == "--version":
        from ct2mri import __version__  # reads the package's metadata, which costs time

        print(f"ct2mri {__version__}")
        return None
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name
    stages = {name: command for name, command in COMMANDS.items() if name.split()[0] == words[0]}
    if stages and words[1:2] in ([], ["-h"], ["--help"]):
        print(_overview(stages))
        return None
    asked = " ".join(words[:2]) if stages else words[0]
    near = difflib.get_close_matches(asked, stages or COMMANDS, n=1)
    hint = f"; did you mean `ct2mri {near[0]}`?" if near else "."
    raise RequestError(
        f"There is no command `{asked}`; the commands are {', '.join(stages or COMMANDS)}{hint}"
    )


def _overview(commands: dict[str, Command]) -> str:
    lines = [f"  {name:18}{command.summary}" for name, command in commands.items()]
    return "\n".join(
        [
            "usage: ct2mri COMMAND [arguments]",
            "",
            "CT volumes to MR volumes with scalable diffusion models. For research use only.",
            "",
            *lines,
            "",
            "`ct2mri COMMAND --help` lists a command's arguments.",
        ]
    )


def parse(name: str, words: Sequence[str]) -> Any:
    """Turn the words behind a command's name into its options.

    Raises:
        RequestError: an unknown, missing or malformed argument.
    """
    return parse_words(name, COMMANDS[name].takes, words)
