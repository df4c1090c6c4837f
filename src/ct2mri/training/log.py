"""What a run writes down while it trains: CSV, TensorBoard and pictures."""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ct2mri.files import atomic_path

TENSORBOARD_EVERY = 10
"""Steps between two points of the training curves in TensorBoard; the CSV holds each step."""


class Table:
    """A CSV file that grows by a row at a time.

    Args:
        path: of the file.
        after: rows of later steps, left by a run that was stopped, are dropped.
    """

    def __init__(self, path: Path, after: int) -> None:
        self.path = path
        self.columns: list[str] | None = None
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.reader(file))
            kept = [row for row in rows[1:] if len(row) == len(rows[0]) and int(row[0]) <= after]
            with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(rows[:1] + kept)
            self.columns = rows[0] if rows else None

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add one row; all rows hold the same columns."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if self.columns is None:
                self.columns = ["step", *numbers]
                writer.writerow(self.columns)
            writer.writerow([step, *(repr(numbers[name]) for name in self.columns[1:])])


class RunLog:
    """The logs of one run folder: train.csv, validation.csv, tensorboard/ and pictures/.

    Args:
        run: the run folder.
        step: where the training starts; what was logged of later steps is dropped.
    """

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run = run
        self.training = Table(run / "train.csv", step)
        self.validation = Table(run / "validation.csv", step)
        self.board = SummaryWriter(run / "tensorboard", purge_step=step + 1)

    def train(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log a training step."""
        self.training.add(step, numbers)
        if step % TENSORBOARD_EVERY == 0:
            self._scalars("train", step, numbers)

    def validate(
        self, step: int, numbers: Mapping[str, float], pictures: Mapping[str, NDArray[np.uint8]]
    ) -> None:
        """Log a validation with its pictures, uint8 (height, width)."""
        self.validation.add(step, numbers)
        self._scalars("validation", step, numbers)
        for name, picture in pictures.items():
            with atomic_path(self.run / "pictures" / f"step-{step:07d}-{name}.png") as path:
                Image.fromarray(picture).save(path)
            self.board.add_image(f"validation/{name}", picture, step, dataformats="HW")
        self.board.flush()

    def _scalars(self, group: str, step: int, numbers: Mapping[str, float]) -> None:
        for name, number in numbers.items():
            self.board.add_scalar(f"{group}/{name}", number, step)

    def close(self) -> None:
        """Write what is still held back."""
        self.board.close()
