"""From the words of a command line to a command's options: its parser, its help and its complaints."""

import difflib
import re
import types
from argparse import SUPPRESS, Action
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonargparse import ActionYesNo, ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace

from ct2mri.errors import RequestError


def parse_words(name: str, takes: type[Any], words: Sequence[str]) -> Any:
    """Turn the words behind a command's name into its options.

    Args:
        name: of the command, for its help.
        takes: dataclass of its options.
        words: without the name.

    Raises:
        RequestError: an unknown, missing or malformed argument.
    """
    words = [_underscored(word) for word in words]
    staged = name.startswith("train ")
    parser = _parser(name, takes, staged)
    try:
        if staged:
            config = _named_config(words)
            if config is not None:
                parser.set_defaults(_config_section(config, name.split()[1], takes))
        chosen = parser.parse_args(words)
    except ArgumentError as error:
        raise RequestError(
            f"{_in_one_line(error, takes)}; `ct2mri {name} --help` lists what is allowed."
        ) from error
    return _build(takes, chosen)


def _underscored(word: str) -> str:
    """An option as its name is written here, `--dry_run`, where hyphens part its words: `--dry-run`."""
    option, equals, value = word.partition("=")
    return f"--{option[2:].replace('-', '_')}{equals}{value}" if option.startswith("--") else word


def _in_one_line(error: ArgumentError, takes: type[Any], listed: str | None = None) -> str:
    """The parser's complaint in plain words: what was got, and what is allowed or was meant.

    Args:
        error: the complaint.
        takes: dataclass of the command's options.
        listed: what to call several values where they stand in a list, as in YAML; none: in a command.
    """
    message = " ".join(str(error).split())
    hints = get_type_hints(takes)
    for pattern in (
        r'Parser key "(\w+)":.*Given value: (.*)$',
        r'Parser key "(\w+)"(?: element \d+)?: Expected an? .+\. Got value: (.*)$',
    ):
        if (wrong := re.search(pattern, message)) and wrong[1] in hints:
            kind = hints[wrong[1]]
            allowed = _in_words(kind)
            if _list_item(kind) is not None:
                allowed = f"{allowed} with spaces between" if listed is None else f"{listed}{allowed}"
            return f"{_spelled(takes, wrong[1])} takes {allowed}, got {wrong[2]}"
    if missing := re.search(r"arguments are required: (.*)$", message):
        names = [_spelled(takes, name) for name in missing[1].split(", ")]
        return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing"
    if unknown := re.search(r"[Uu]nrecognized arguments: (--\w+)(.*)$", message):
        known = [f"--{field.name}" for field in fields(takes) if not field.metadata["positional"]]
        near = difflib.get_close_matches(unknown[1], known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return f"There is no option {unknown[1]}{hint}"
    if more := re.search(r"[Uu]nrecognized arguments: (.*)$", message):
        return f"{more[1]} is more than this command takes"
    return message


def _spelled(takes: type[Any], name: str) -> str:
    """An argument as it is written on the command line: `--output (-o)`, or `INPUT` where it has no flag."""
    for field in fields(takes):
        if field.name == name:
            if field.metadata["positional"]:
                return name.upper()
            flags = f" ({', '.join(field.metadata['flags'])})" if field.metadata["flags"] else ""
            return f"--{name}{flags}"
    return f"--{name}"


def _in_words(kind: Any) -> str:
    """What values a type allows: `a whole number`, `ddim or ddpm`."""
    single = {
        int: "a whole number",
        float: "a finite number",
        bool: "true or false",
        Path: "a path",
        str: "a word",
    }
    if kind in single:
        return single[kind]
    choices = [choice for choice in get_args(kind) if choice is not types.NoneType]
    if get_origin(kind) is Literal:
        return " or ".join(part for part in (", ".join(choices[:-1]), choices[-1]) if part)
    if get_origin(kind) is list:
        one = _in_words(choices[0])
        plural = {
            "a whole number": "whole numbers",
            "a finite number": "finite numbers",
            "a path": "paths",
            "a word": "words",
        }
        return plural.get(one, f"any of {one}" if get_origin(choices[0]) is Literal else f"a list of {one}")
    return " or ".join(_in_words(choice) for choice in choices)


class _Help(DefaultHelpFormatter):
    """Help for people who know no Python: an argument's default, or that it is required, but not its type."""

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        if action.required:
            return f"{text} (required)"
        if action.default in (None, SUPPRESS):
            return text
        if isinstance(action, ActionYesNo):
            return f"{text} (default: {'yes' if action.default else 'no'})"
        shown = action.default
        if isinstance(shown, list) and not any(isinstance(item, list) for item in shown):
            shown = " ".join(str(item) for item in shown)
        return f"{text} (default: {shown})"


def _own_first(takes: type[Any]) -> Iterator[Field[Any]]:
    """The fields of a command's options: its own before those that it shares with other commands."""
    named = {field.name: field for field in fields(takes)}
    for kind in takes.__mro__:
        for name in vars(kind).get("__annotations__", {}):
            if name in named:
                yield named.pop(name)


def _parser(name: str, takes: type[Any], staged: bool) -> ArgumentParser:
    parser = ArgumentParser(
        prog=f"ct2mri {name}",
        description=takes.__doc__,
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=_Help,
    )
    if staged:
        presets = ", ".join(sorted(_presets()))
        parser.add_argument(
            "--config",
            type=str,
            help=f"a preset ({presets}) or a YAML file, of which the section `{name.split()[1]}` is read",
        )
    hints = get_type_hints(takes)
    for field in _own_first(takes):
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
        complaint = _in_one_line(error, takes, listed="a list of ").removeprefix("--")
        raise RequestError(f"{config}, section {stage}: {complaint}.") from error
    return checked
