"""A stand-in for a process that is killed while it writes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Killed(BaseException):
    """The end of a process; what has its name by then is what a process would leave."""


@contextmanager
def killed_after(names: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A block that is killed once so many files and folders have got, or lost, their lasting names."""
    replace, left = Path.replace, names

    def replace_until_killed(self: Path, target: Path) -> Path:
        nonlocal left
        if "partial" not in Path(target).name:  # else a temporary file of a temporary file
            if not left:
                raise Killed
            left -= 1
        return replace(self, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "replace", replace_until_killed)
        yield
