"""Keeping the chatter of C and C++ libraries off the terminal."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Drop what libraries write straight to standard error, where an exception says the same.

    MetaIO and the JPEG readers of GDCM report damaged files there, past Python and past ITK's own switch.
    """
    with _ONE_AT_A_TIME:  # two at once could each take the other's silence for the terminal
        try:
            terminal = os.dup(2)
        except OSError:  # there is no standard error, as in a program without a console
            yield
            return
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
