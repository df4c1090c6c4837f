"""How a dataclass's field becomes an argument of a command."""

from dataclasses import field
from typing import Any


def argument(text: str, default: Any = ..., *, flags: tuple[str, ...] = (), positional: bool = False) -> Any:
    """A dataclass field that is also a command-line argument.

    Args:
        text: the help text.
        default: the default value; without one the argument is required.
        flags: further flags, e.g. `("-o",)`.
        positional: whether the argument is given by its place, without a flag.
    """
    metadata = {"help": text, "flags": flags, "positional": positional}
    if default is ...:
        return field(metadata=metadata)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)
