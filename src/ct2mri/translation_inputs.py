"""What results are made of, which nothing may be written over."""

from collections.abc import Iterable
from pathlib import Path

from ct2mri.errors import RequestError


def require_inputs_kept(written: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Refuse to write over what is read, by whatever name: through a link, in another case of letters.

    Args:
        written: files and folders that results take the place of.
        inputs: files and folders that they are made of, those that there are.

    Raises:
        RequestError: one that would be written is, or holds, one that is read.
    """
    read: dict[tuple[int, int], Path] = {}
    for path in inputs:
        if path is not None and path.exists():
            whole = path.resolve()
            read |= {_file(place): path for place in (whole, *whole.parents)}
    for path in written:
        if path.exists() and (found := read.get(_file(path))) is not None:
            raise RequestError(
                f"{path} would be written over the input {found}; give another name or folder for the result."
            )


def _file(path: Path) -> tuple[int, int]:
    """What tells a file or folder from all others, however it is called."""
    facts = path.stat()
    return facts.st_dev, facts.st_ino
