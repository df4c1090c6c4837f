"""Training runs at a glance: curves and pictures of a run folder, read anew whenever they are asked for."""

import csv
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ct2mri.viewer.failures import NotThereError
from ct2mri.viewer.records import Picture, RunRecord, RunSummary, Table

MOST_ROWS = 1000
"""Rows of a table that are sent; neighbours of longer ones are averaged."""

_PICTURE = re.compile(r"step-(\d{7,})-([\w.-]+)\.png")


class Runs:
    """Run folders, by identifier.

    Args:
        folders: of the runs.
    """

    def __init__(self, folders: list[Path]) -> None:
        self._folders = {hashlib.sha256(os.fsencode(f.resolve())).hexdigest()[:16]: f for f in folders}

    def summaries(self) -> list[RunSummary]:
        """All of them, in short."""
        return [_summary(run_id, folder) for run_id, folder in self._folders.items()]

    def _folder(self, run_id: str) -> Path:
        if run_id not in self._folders:
            raise NotThereError("There is no such run; /api/runs lists those there are.")
        return self._folders[run_id]

    def record(self, run_id: str) -> RunRecord:
        """One of them as its files tell it now.

        Raises:
            NotThereError: there is none.
        """
        folder = self._folder(run_id)
        return RunRecord(
            **_summary(run_id, folder).model_dump(),
            train=_table(folder / "train.csv"),
            validation=_table(folder / "validation.csv"),
            pictures=[
                Picture(step=step, name=name, url=f"/api/runs/{run_id}/pictures/{file}")
                for step, name, file in _pictures(folder)
            ],
            run=_facts(folder),
        )

    def picture(self, run_id: str, name: str) -> Path:
        """The file of a picture.

        Raises:
            NotThereError: there is none.
        """
        folder = self._folder(run_id)
        if name not in (file for _, _, file in _pictures(folder)):
            raise NotThereError("There is no such picture; the run lists those there are.")
        return folder / "pictures" / name


def _facts(folder: Path) -> dict[str, Any]:
    """What run.json holds; nothing where it is not written yet."""
    try:
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _summary(run_id: str, folder: Path) -> RunSummary:
    facts = _facts(folder)
    options = facts.get("options")
    most = options.get("max_steps") if isinstance(options, dict) else None
    return RunSummary(
        id=run_id,
        name=folder.resolve().name,
        stage=str(facts.get("stage", "unknown")),
        finished=facts.get("finished") is True,
        step=_last_step(folder / "train.csv"),
        max_steps=most if isinstance(most, int) else None,
    )


def _last_step(path: Path) -> int:
    """The step of the last whole row."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - 4096, 0))
            lines = file.read().decode("utf-8", "replace").split("\n")[:-1]
    except OSError:
        return 0
    word = lines[-1].split(",")[0] if lines else ""
    return int(word) if word.isdecimal() else 0


def _rows(path: Path) -> Iterator[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            # The row that is being written just now may be there in part.
            yield from csv.reader(line for line in file if line.endswith("\n"))
    except (OSError, ValueError, csv.Error):
        return


def _table(path: Path) -> Table:
    rows = _rows(path)
    columns = next(rows, [])
    numbers = [row for row in ([_number(word) for word in row] for row in rows) if len(row) == len(columns)]
    every = max(-(-len(numbers) // MOST_ROWS), 1)
    if every > 1:
        numbers = [_mean(numbers[first : first + every]) for first in range(0, len(numbers), every)]
    return Table(columns=columns, rows=numbers, every=every)


def _mean(rows: list[list[float | None]]) -> list[float | None]:
    """The means of some rows, at the step of the last."""
    means: list[float | None] = [rows[-1][0]]
    for column in list(zip(*rows, strict=True))[1:]:
        known = [number for number in column if number is not None]
        means.append(sum(known) / len(known) if known else None)
    return means


def _number(word: str) -> float | None:
    """A number, or None for what is none that JSON can hold."""
    try:
        number = float(word)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _pictures(folder: Path) -> list[tuple[int, str, str]]:
    """Step, name and file of each picture."""
    try:
        names = sorted(path.name for path in (folder / "pictures").iterdir())
    except OSError:
        return []
    matches = [(name, _PICTURE.fullmatch(name)) for name in names]
    return sorted((int(match[1]), match[2], name) for name, match in matches if match)
