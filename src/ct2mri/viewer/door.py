"""The way from this program to the browser that does not tell the token to other users of the machine."""

import html
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "open-viewer.html"


@contextmanager
def door(folder: Path, address: str) -> Iterator[str]:
    """A file that leads to an address, for as long as the block runs; gives the file's own address.

    A browser is told on its command line what to open, and all users of a machine can read that. They cannot
    read the file. It lies in the results folder and not in the system's folder for temporary files, since a
    browser in a sandbox of its own (of snap or flatpak) does not see those.

    Args:
        folder: where the file is to lie.
        address: with the token.
    """
    path = folder / NAME
    path.unlink(missing_ok=True)  # of a viewer that was killed
    place = html.escape(address)
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="referrer" content="no-referrer">'
        f'<meta http-equiv="refresh" content="0; url={place}"><title>ct2mri viewer</title>'
        f'<p><a href="{place}">To the viewer</a></p></html>\n'
    )
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(page)
    try:
        yield path.resolve().as_uri()
    finally:
        path.unlink(missing_ok=True)
