"""A run folder: what a training leaves behind, and what another needs to go on.

RUN/run.json         versions, device, seed, configuration, time taken
RUN/plan.json        the plan of the data set
RUN/best/            the stage with the best (averaged) weights, by validation
RUN/last.ckpt        the whole state, to go on from
RUN/train.csv, validation.csv, tensorboard/, pictures/
"""

import platform
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import torch

from ct2mri import __version__
from ct2mri.data.plan import Plan
from ct2mri.errors import RequestError
from ct2mri.files import read_json, sweep, write_json
from ct2mri.options.training import TrainOptions

CHECKPOINT = "last.ckpt"

# What a new run removes of an older one: nothing else may bear these names in its folder.
_FILES = (CHECKPOINT, "train.csv", "validation.csv")
_FOLDERS = ("best", "tensorboard", "pictures")
_FOLDS = "folds.json"  # names the patients of fold-0, fold-1, …, which are runs of their own in this one
_OF_DATA_SETS_AND_MODELS = ("cases", "pipeline.json")

_ADVICE = "train into another folder, or anew with --resume never"

CHANGEABLE = {
    "data",
    "output_dir",
    "resume",
    "max_steps",
    "validate_every",
    "device",
    "workers",
    "vqvae",
    "compile",
    "gradient_checkpointing",
}
"""Options that a resumed run may be given otherwise than it was started with."""


def _recorded(options: TrainOptions) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}


class RunFolder:
    """One run folder.

    Args:
        path: of the folder.
        stage: name of the stage trained in it.
        options: how it is trained.
        plan: of the data set.
    """

    def __init__(self, path: Path, stage: str, options: TrainOptions, plan: Plan) -> None:
        self.path = path
        self.stage = stage
        self.options = options
        self.plan = plan

    @property
    def checkpoint(self) -> Path:
        """Where the whole state is kept."""
        return self.path / CHECKPOINT

    def _require_run(self) -> None:
        """Refuse a folder that holds something else, which a new run would remove or be mixed up with."""
        if (self.path / "run.json").is_file():
            return
        for name in (*_FILES, *_FOLDERS, _FOLDS, *_OF_DATA_SETS_AND_MODELS):
            if (self.path / name).exists():
                raise RequestError(
                    f"{self.path} holds {name} and is no run of `ct2mri train` (it has no run.json); "
                    "train into a folder of its own, with --output_dir."
                )

    def _before(self) -> dict[str, Any] | None:
        """What run.json tells of the run that is to be resumed; None where there is nothing to keep of one.

        Raises:
            RequestError: the folder holds something else, a run with other options or of other data, or a
                damaged one.
        """
        self._require_run()
        kept = [part for part in (self.checkpoint, self.path / "best") if part.exists()]
        if self.options.resume == "never" or not kept:
            return None
        return self._require_same(kept[0])

    def steps_done(self) -> int:
        """Steps done by the run that is to be resumed; 0 where there is none.

        Raises:
            RequestError: as for `_before`, or the run is finished, has no checkpoint any more, and is to be
                longer.
        """
        before = self._before()
        if before is None:
            return 0
        if self.checkpoint.is_file():
            with suppress(Exception):  # damaged in whatever way: said below
                return int(
                    torch.load(self.checkpoint, map_location="cpu", weights_only=True, mmap=True)[
                        "global_step"
                    ]
                )
            raise RequestError(f"{self.checkpoint} is damaged; {_ADVICE}.")
        if not before.get("finished"):
            return 0
        steps = int(before["steps"])
        if steps < self.options.max_steps:
            raise RequestError(
                f"{self.path} was finished after {steps} steps, and {self.checkpoint}, from which it would "
                f"go on to {self.options.max_steps}, is not there; {_ADVICE}."
            )
        return steps

    def is_finished(self) -> bool:
        """Whether the folder holds this very run, done.

        Raises:
            RequestError: as for `_before`.
        """
        before = self._before()
        return before is not None and bool(before.get("finished"))

    def _require_same(self, part: Path) -> dict[str, Any]:
        """What run.json beside `part` says, after making sure that it is this run."""
        try:
            before = read_json(self.path / "run.json")
        except (OSError, ValueError) as error:
            raise RequestError(
                f"{part} is there, but run.json beside it cannot be read ({error}); {_ADVICE}."
            ) from error
        if before["stage"] != self.stage:
            raise RequestError(f"{self.path} holds a run of `train {before['stage']}`; {_ADVICE}.")
        if Plan.read(self.path / "plan.json") != self.plan:
            raise RequestError(f"{self.path} was trained on a data set with another plan; {_ADVICE}.")
        for name, value in _recorded(self.options).items():
            was = before["options"].get(name)
            if name not in CHANGEABLE and was != value:
                raise RequestError(
                    f"{self.path} was started with --{name} {was}, now it is {value}; "
                    f"give the same again, {_ADVICE}."
                )
        result: dict[str, Any] = before
        return result

    def clear(self) -> None:
        """Make the folder, and remove what an earlier run left there, so that nothing is mixed up."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)
        for name in _FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)
        if (self.path / _FOLDS).is_file():
            for number in range(len(read_json(self.path / _FOLDS)["folds"])):
                shutil.rmtree(self.path / f"fold-{number}", ignore_errors=True)
            (self.path / _FOLDS).unlink()

    def sweep(self) -> None:
        """Remove half-written checkpoints of a process that was killed."""
        sweep(self.checkpoint)

    def record(self, **facts: Any) -> None:
        """Write plan.json, and run.json with `facts` beside what the folder knows."""
        self.plan.write(self.path / "plan.json")
        write_json(
            self.path / "run.json",
            {
                "stage": self.stage,
                "versions": {
                    "ct2mri": __version__,
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                    "lightning": lightning.__version__,
                },
                "seed": self.options.seed,
                "options": _recorded(self.options),
                **facts,
            },
        )
