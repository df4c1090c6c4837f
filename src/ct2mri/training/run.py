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
        for name in (*_FILES, *_FOLDERS, *_OF_DATA_SETS_AND_MODELS):
            if (self.path / name).exists():
                raise RequestError(
                    f"{self.path} holds {name} and is no run of `ct2mri train` (it has no run.json); "
                    "train into a folder of its own, with --output_dir."
                )

    def steps_done(self) -> int:
        """Steps done by the run that is to be resumed; 0 where there is none.

        Raises:
            RequestError: the folder holds something else, a run with other options or of other data, or a
                damaged one.
        """
        self._require_run()
        if self.options.resume == "never" or not self.checkpoint.is_file():
            return 0
        self._require_same(self.checkpoint)
        with suppress(Exception):  # damaged in whatever way: said below
            return int(
                torch.load(self.checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"]
            )
        raise RequestError(f"{self.checkpoint} is damaged; {_ADVICE}.")

    def is_finished(self) -> bool:
        """Whether the folder holds this very run, done; for what is made at once, without a checkpoint.

        Raises:
            RequestError: the folder holds something else, a run with other options or of other data, or a
                damaged one.
        """
        self._require_run()
        best = self.path / "best"
        if self.options.resume == "never" or not (best.is_dir() and (self.path / "run.json").is_file()):
            return False
        return bool(self._require_same(best).get("finished"))

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
