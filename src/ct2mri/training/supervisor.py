"""Watches over a training: validates, keeps the best weights, saves the state, logs, shows progress."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from tqdm import tqdm

from ct2mri.errors import RequestError
from ct2mri.files import atomic_path
from ct2mri.memory import is_out_of_memory
from ct2mri.models.compiling import why_not_compiled
from ct2mri.processes import place
from ct2mri.training.averaging import Averaging
from ct2mri.training.log import RunLog
from ct2mri.training.module import StageModule
from ct2mri.training.run import CHECKPOINT
from ct2mri.training.speed import Speed


@dataclass(frozen=True)
class Validation:
    """What a validation found.

    Attributes:
        score: what the best weights are chosen by; the lowest is best.
        numbers: for the log, the score among them.
        pictures: by name, uint8 (height, width).
    """

    score: float
    numbers: Mapping[str, float]
    pictures: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)


class Supervisor(Callback):
    """Validates and saves every so many steps, and at the end.

    Validation sees the averaged weights; the best go to RUN/best. The state is saved after each validation,
    so that a resumed run repeats neither more nor less than what came after it.

    Args:
        run: the run folder.
        validate: called with the module in evaluation mode; gives the same answer on all processes.
        write_best: called with the module and a path; writes the stage's folder there.
        averaging: the averaged weights, if there are any.
        compiled: whether the network is compiled; validations, whose sizes are others, run it as it is.
        every: steps between validations.
        max_steps: of the training.
        first_step: steps done before, in a training that is resumed.
    """

    def __init__(
        self,
        run: Path,
        *,
        validate: Callable[[Any], Validation],
        write_best: Callable[[Any, Path], None],
        averaging: Averaging | None,
        compiled: bool,
        every: int,
        max_steps: int,
        first_step: int,
    ) -> None:
        self.run = run
        self.validate = validate
        self.write_best = write_best
        self.averaging = averaging
        self.compiled = compiled
        self.every = every
        self.max_steps = max_steps
        self.first_step = first_step
        self.step = first_step
        self.best_score = math.inf
        self.best_step = 0
        self.validated = 0
        self.seconds = 0.0
        self.started = time.perf_counter()
        self.speed = Speed()
        self.run_log: RunLog | None = None
        self.bar: Any = None
        self.interrupted = False

    @contextmanager
    def ending_by_interrupt(self) -> Iterator[None]:
        """Ctrl-C ends the training after the step that runs, which is saved; a second one ends it at once.

        Not where several processes train together, since each could be told at another step, nor where the
        process was started to ignore Ctrl-C.
        """
        before = signal.getsignal(signal.SIGINT)
        here = threading.current_thread() is threading.main_thread()
        if not here or before is signal.SIG_IGN or place().world_size > 1:
            yield
            return

        def told(*_: object) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, before)
            os.write(2, b"\nStopping after this step, which is saved; Ctrl-C again stops at once.\n")

        signal.signal(signal.SIGINT, told)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training must know."""
        return {
            "best_score": self.best_score,
            "best_step": self.best_step,
            "validated": self.validated,
            "seconds": self.total_seconds(),
        }

    def total_seconds(self) -> float:
        """How long the training has run, with what came before it was resumed."""
        return self.seconds + time.perf_counter() - self.started

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.best_score = state_dict["best_score"]
        self.best_step = state_dict["best_step"]
        self.validated = state_dict.get("validated", self.first_step)  # earlier versions did not keep it
        self.seconds = state_dict["seconds"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Open the logs."""
        self.started = time.perf_counter()
        self._open(trainer)
        self.speed.begin()

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Validate a training that was resumed with all its steps done, and its last validation not."""
        assert isinstance(pl_module, StageModule)
        if self.validated < self.step:
            self._open(trainer)
            try:
                self._validate_and_save(trainer, pl_module)
            finally:
                self._close()

    def _open(self, trainer: lightning.Trainer) -> None:
        if trainer.is_global_zero:
            self.run_log = RunLog(self.run, self.first_step)
            self.bar = tqdm(
                total=self.max_steps,
                initial=self.first_step,
                desc=self.run.name,
                unit="step",
                mininterval=0.5,
            )

    def on_train_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Data were waited for until now."""
        self.speed.batch(len(batch["key"]) * trainer.world_size)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log a step; validate and save where it is time."""
        assert isinstance(pl_module, StageModule)
        if trainer.global_step == self.step:
            self.speed.pause()
            return  # gradients are still being added up
        self.step = trainer.global_step
        own_loss = torch.stack(pl_module.losses).mean()
        pl_module.losses.clear()
        loss = float(trainer.strategy.reduce(own_loss, reduce_op="mean"))  # waits for the device
        seconds = self.speed.step()
        if self.run_log is not None:
            self.run_log.train(self.step, {"loss": loss, **pl_module.step_numbers, **seconds})
            self.bar.update(1)
            self.bar.set_postfix_str(f"loss {loss:.4f}, {self.speed.sentence()}", refresh=False)
            if self.compiled and self.step == self.first_step + 1 and (sentence := why_not_compiled()):
                tqdm.write(sentence)
        if self.step % self.every == 0 or self.step == self.max_steps:
            self._validate_and_save(trainer, pl_module)
        elif trainer.world_size == 1 and (self.interrupted or trainer.received_sigterm):
            # Lightning looks for SIGTERM between epochs, and here there is but one.
            self._save(trainer)
            tqdm.write(
                f"Stopped at step {self.step}, which {self.run / CHECKPOINT} holds; the same command goes on."
            )
            raise SystemExit(128 + (signal.SIGINT if self.interrupted else signal.SIGTERM))
        self.speed.begin()

    def _validate_and_save(self, trainer: lightning.Trainer, module: StageModule) -> None:
        ran_out = False
        try:
            self._validate(trainer, module)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            ran_out = True
        self._save(trainer)
        if ran_out:
            raise RequestError(
                f"Memory ran out in the validation at step {self.step}, which works on whole volumes; free "
                f"some, or prepare smaller volumes. {self.run / CHECKPOINT} holds that step, from which the "
                "same command goes on."
            )

    def _validate(self, trainer: lightning.Trainer, module: StageModule) -> None:
        module.eval()
        weights = self.averaging.averaged(module) if self.averaging is not None else nullcontext()
        eager = torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()
        with weights, eager, torch.no_grad(), trainer.precision_plugin.forward_context():
            found = self.validate(module)
            if found.score < self.best_score:
                self.best_score, self.best_step = found.score, self.step
                if trainer.is_global_zero:
                    self.write_best(module, self.run / "best")
        self.validated = self.step
        module.train()
        if self.run_log is not None:
            self.run_log.validate(self.step, found.numbers, found.pictures)
            numbers = ", ".join(f"{name} {number:.4g}" for name, number in found.numbers.items())
            note = " (best so far)" if self.best_step == self.step else ""
            tqdm.write(f"step {self.step}: {numbers}{note}")

    def _save(self, trainer: lightning.Trainer) -> None:
        if not trainer.is_global_zero:
            trainer.save_checkpoint(self.run / CHECKPOINT)  # all processes take part, the first one writes
            return
        with atomic_path(self.run / CHECKPOINT) as temporary:
            trainer.save_checkpoint(temporary)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Close the logs."""
        self._close()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Close the logs, whatever happened."""
        self._close()

    def _close(self) -> None:
        if self.run_log is not None:
            self.run_log.close()
            self.bar.close()
