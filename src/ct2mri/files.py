"""Writing files so that a killed run leaves either the whole file or none."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ct2mri.errors import RequestError

_PARTIAL = r"(\.\d+-partial-)+"


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends without an error.

    The temporary name ends like `path`, since writers choose a format by the suffix.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-partial-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def final_path(path: Path) -> Path:
    """The path whose place a temporary one of `atomic_path` takes; any other path itself."""
    return path.with_name(re.sub(rf"^{_PARTIAL}", "", path.name))


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its place when the block ends without an error.

    A folder that already stands at `path` is replaced only then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".partial-{path.name}-", dir=path.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".replaced-{path.name}-", dir=path.parent))
            path.replace(old)
            temporary.replace(path)
            shutil.rmtree(old)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_place(folder: str | Path) -> None:
    """Make sure that files can be made in a folder that is there or will be made: before the work, not after.

    Raises:
        RequestError: they can't.
    """
    place = Path(folder).absolute()
    try:
        while not place.exists():
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise RequestError(
            f"Nothing can be written into {folder} ({place}: {error.strerror}); "
            "give another place for the output."
        ) from error


def require_name(folder: str | Path) -> None:
    """Make sure that a folder is called by its name: one takes the place of another beside it.

    Raises:
        RequestError: it is `.` or ends in `..`.
    """
    if Path(folder).name in ("", ".."):
        raise RequestError(
            f"{folder} would be replaced as a whole, so it cannot be the folder that you are in or above; "
            "give the folder by its name, from outside."
        )


def sweep(path: str | Path) -> None:
    """Remove what processes that were killed left of `path` half-written; nobody may be writing it now."""
    path = Path(path)
    if not path.parent.is_dir():
        return
    for left in path.parent.iterdir():
        name = left.name
        if re.fullmatch(_PARTIAL + re.escape(path.name), name):
            left.unlink(missing_ok=True)
        elif re.fullmatch(rf"\.(partial|replaced)-{re.escape(path.name)}-[^-]{{8}}", name):
            shutil.rmtree(left, ignore_errors=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))
