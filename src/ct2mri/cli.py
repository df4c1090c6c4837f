"""The `ct2mri` command: a table of commands, each of which imports its work when it runs."""

import difflib
import re
import sys
import types
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from jsonargparse import ActionYesNo, ArgumentError, ArgumentParser, Namespace

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
        print(f"ct2mri: {error.strerror or error}{where}.", file=sys.stderr)
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
    words = [_underscored(word) for word in words]
    command = COMMANDS[name]
    staged = name.startswith("train ")
    parser = _parser(name, command.takes, staged)
    try:
        if staged:
            config = _named_config(words)
            if config is not None:
                parser.set_defaults(_config_section(config, name.split()[1], command.takes))
        chosen = parser.parse_args(words)
    except ArgumentError as error:
        raise RequestError(f"{_in_one_line(error)}; `ct2mri {name} --help` lists what is allowed.") from error
    return _build(command.takes, chosen)


def _underscored(word: str) -> str:
    """An option as its name is written here, `--dry_run`, where hyphens part its words: `--dry-run`."""
    option, equals, value = word.partition("=")
    return f"--{option[2:].replace('-', '_')}{equals}{value}" if option.startswith("--") else word


def _in_one_line(error: ArgumentError) -> str:
    """The parser's complaint in plain words, without its inner workings."""
    message = " ".join(str(error).split())
    if union := re.search(r'Parser key "(\w+)":.*Given value: (.*)$', message):
        return f"--{union[1]} cannot be {union[2]}"
    if single := re.search(r'Parser key "(\w+)": Expected an? (.+)\. Got value: (.*)$', message):
        kind = single[2].removeprefix("typing.").removeprefix("<class '").removesuffix("'>")
        return f"{single[1]} takes {kind.replace('Literal[', 'one of [')}, got {single[3]}"
    return message


def _parser(name: str, takes: type[Any], staged: bool) -> ArgumentParser:
    parser = ArgumentParser(
        prog=f"ct2mri {name}", description=takes.__doc__, exit_on_error=False, allow_abbrev=False
    )
    if staged:
        presets = ", ".join(sorted(_presets()))
        parser.add_argument(
            "--config",
            type=str,
            help=f"a preset ({presets}) or a YAML file, of which the section `{name.split()[1]}` is read",
        )
    hints = get_type_hints(takes)
    for field in fields(takes):
        factory = field.default_factory
        default = field.default if factory is MISSING else factory()
        required = default is MISSING
        kind = hints[field.name]
        settings: dict[str, Any] = {"help": field.metadata["help"]}
        if not required:
            settings["default"] = default
        if kind is bool:
            settings["action"] = ActionYesNo(no_prefix="no_")
        elif (item := _list_item(kind)) is not None:
            settings |= {"type": item, "nargs": "+"}
        else:
            settings["type"] = kind
        if field.metadata["positional"]:
            if not required:
                settings["nargs"] = "*" if "nargs" in settings else "?"
            parser.add_argument(field.name, **settings)
        else:
            if required:
                settings["required"] = True
            parser.add_argument(f"--{field.name}", *field.metadata["flags"], **settings)
    return parser


def _list_item(kind: Any) -> Any:
    """The item type of `list[item]` or `list[item] | None` where items are plain words, else None."""
    choices = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    for choice in choices:
        if get_origin(choice) is list:
            (item,) = get_args(choice)
            return None if get_origin(item) is list else item
    return None


def _build(takes: type[Any], chosen: Namespace) -> Any:
    return takes(**{field.name: getattr(chosen, field.name) for field in fields(takes)})


def _presets() -> dict[str, Any]:
    """The presets that the package ships, by name."""
    folder = files("ct2mri") / "presets"
    return {
        entry.name.removesuffix(".yaml"): entry for entry in folder.iterdir() if entry.name.endswith(".yaml")
    }


def _named_config(words: Sequence[str]) -> str | None:
    """What `--config` names, looked up before the parsing, since it sets the defaults of the rest."""
    for index, word in enumerate(words):
        if word.startswith("--config="):
            return word.removeprefix("--config=")
        if word == "--config" and index + 1 < len(words):
            return words[index + 1]
    return None


def _config_section(config: str, stage: str, takes: type[Any]) -> dict[str, Any]:
    """Read one stage's section of a preset or a YAML file.

    Raises:
        RequestError: no such file, no mapping, no such section, or a key the stage does not take.
    """
    import yaml

    presets = _presets()
    source = presets.get(config, Path(config))
    if not source.is_file():
        raise RequestError(
            f"--config takes a preset ({', '.join(sorted(presets))}) or a YAML file, got {config}, "
            "which is neither."
        )
    try:
        content = yaml.safe_load(source.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RequestError(f"{config} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict) or not isinstance(content.get(stage), dict):
        raise RequestError(f"{config} has no section `{stage}`; add one, with the stage's options as keys.")
    section: dict[str, Any] = content[stage]
    known = {field.name for field in fields(takes)}
    unknown = sorted(set(section) - known)
    if unknown:
        near = difflib.get_close_matches(str(unknown[0]), known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise RequestError(
            f"{config}, section {stage}: `{unknown[0]}` is not an option of `train {stage}`{hint}; "
            f"`ct2mri train {stage} --help` lists them."
        )
    checker = ArgumentParser(exit_on_error=False)
    hints = get_type_hints(takes)
    for key in section:
        checker.add_argument(f"--{key}", type=hints[key])
    try:
        checked: dict[str, Any] = checker.parse_object(section).as_dict()
    except ArgumentError as error:
        raise RequestError(f"{config}, section {stage}: {_in_one_line(error)}.") from error
    return checked
