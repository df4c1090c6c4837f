"""The training loop of every stage, on one process or several, new or resumed."""

import logging
import math
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import distributed
from torch.utils.data import DataLoader

from ct2mri.data.batching import BatchStream, group_by_size
from ct2mri.data.datasets import Item, RequestDataset
from ct2mri.devices import choose_device
from ct2mri.errors import RequestError, require_seed
from ct2mri.memory import format_size, free_memory, is_out_of_memory
from ct2mri.models.compiling import compile_whole
from ct2mri.options.training import NoiseOptions, TrainOptions, UNetOptions
from ct2mri.processes import cores, died, join, place
from ct2mri.training.averaging import Averaging
from ct2mri.training.expectation import measure
from ct2mri.training.fitting import Trial, free_all, has_room, largest_batch
from ct2mri.training.module import StageModule
from ct2mri.training.run import RunFolder
from ct2mri.training.supervisor import Supervisor, Validation

_MOST_WORKERS = 8


def check_options(options: TrainOptions) -> None:
    """Refuse numbers no training can have.

    Raises:
        RequestError: one is out of range.
    """
    require_seed(options.seed)
    for name in ("max_steps", "batch_size", "accumulate", "validate_every", "validation_cases"):
        if getattr(options, name) < 1:
            raise RequestError(f"--{name} is at least 1, got {getattr(options, name)}.")
    for name in ("warmup_steps", "workers", "weight_decay", "gradient_clip"):
        if not (getattr(options, name) or 0) >= 0:
            raise RequestError(f"--{name} is at least 0, got {getattr(options, name)}.")
    if not options.learning_rate > 0:
        raise RequestError(f"--learning_rate is above 0, got {options.learning_rate}.")
    if not 0 <= options.ema_decay < 1:
        raise RequestError(f"--ema_decay is at least 0 and below 1, got {options.ema_decay}.")
    if isinstance(options, NoiseOptions):
        if not 0 <= options.last_timestep_share <= 1:
            raise RequestError(f"--last_timestep_share is from 0 to 1, got {options.last_timestep_share}.")
        if options.min_snr_gamma is not None and not options.min_snr_gamma > 0:
            raise RequestError(
                f"--min_snr_gamma is above 0, got {options.min_snr_gamma}; 5 is usual, leave it out for no "
                "weights."
            )
        if options.restart_from_estimate and options.restart_timestep is None:
            raise RequestError(
                "--restart_from_estimate says how what follows a restart is trained, and there is none; give "
                "--restart_timestep, 120 for instance, or leave it out."
            )


def training_device(name: str) -> torch.device:
    """The device to train on; among several processes, this one's own, and they join one another.

    Raises:
        RequestError: an unknown device, one that this machine has not, or fewer cards than processes.
        ProcessDiedError: another process ended before it joined.
    """
    device, here = choose_device(name), place()
    if device.type == "cuda" and torch.cuda.device_count() < here.local_world_size:
        raise RequestError(
            f"{here.local_world_size} processes train on this machine, which has {torch.cuda.device_count()} "
            "cards for them; start one process a card."
        )
    join("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return device


@contextmanager
def noticing_deaths() -> Iterator[None]:
    """Say in one sentence that another process ended, where an exchange with it fails.

    Raises:
        ProcessDiedError: it did.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            raise died() from error
        raise


def data_workers(options: TrainOptions, device: torch.device) -> int:
    """Processes that load data beside this one: as asked for; else none on a CPU, which is busy training."""
    if options.workers is not None:
        return options.workers
    if device.type == "cpu":
        return 0
    return min(_MOST_WORKERS, max(1, cores() // place().local_world_size - 1))


def wants_bf16(options: TrainOptions, device: torch.device) -> bool:
    """Whether to compute in bfloat16: where asked for, or where the hardware has it.

    Never by itself on a CPU: there 3D gradients were now and then not finite (seen with torch 2.13), and the
    speed ranged from 1.5 times that of float32 to a tenth of it between trials.
    """
    if options.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return options.precision == "bf16"


def fit(
    folder: RunFolder,
    make_module: Callable[[], StageModule],
    items: RequestDataset,
    validate: Callable[[Any], Validation],
    write_best: Callable[[Any, Path], None],
    *,
    codebook: bool = False,
    crop_option: str = "--crop_size",
) -> None:
    """Train one network into one run folder, from its last checkpoint where there is one.

    Where memory runs out, each batch goes through the network in parts from the last checkpoint on: the same
    batches with the same losses.

    Args:
        folder: the run folder.
        make_module: makes the module; called under the run's seed.
        items: training items.
        validate: see `Supervisor`.
        write_best: see `Supervisor`.
        codebook: whether the network learns a codebook: that agrees neither with averaged weights nor with
            batches in parts.
        crop_option: what the user gives the size of crops by.

    Raises:
        RequestError: the options contradict the machine or the run folder, or memory does not suffice.
        TrainingDivergedError: the loss or its gradient was not finite.
    """

    def fits_in(parts: int) -> bool:
        try:
            _train(folder, make_module, items, validate, write_best, codebook=codebook, parts=parts)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    if fits_in(1):
        return
    options = folder.options
    device, here = training_device(options.device), place()
    free_all(device)
    trial = Trial(
        items,
        group_by_size(items.sizes, options.batch_size * here.world_size),
        make_module,
        device,
        averaged=not codebook and options.ema_decay > 0,
        bf16=wants_bf16(options, device),
    )
    size = trial.batch_size(below=options.batch_size)
    if size is not None and not codebook and here.world_size == 1:
        parts = math.ceil(options.batch_size / size)
        print(
            f"Memory ran out with batches of {options.batch_size}: each goes through the network in {parts} "
            "parts now, which gives the same losses and takes about a third more time "
            f"(--batch_size {size} --accumulate {parts * options.accumulate} would not).",
            flush=True,
        )
        if fits_in(parts):
            return
        free_all(device)
        size = trial.batch_size(below=size)
    raise _too_large(folder, trial, size, crop_option)


def _too_large(folder: RunFolder, trial: Trial, size: int | None, crop_option: str) -> RequestError:
    """Says what would fit into memory: batches of `size`, or else crops of which size."""
    options = folder.options
    free = f"into the {format_size(free_memory(trial.device))} that are free on {trial.device.type}"
    if size is not None:
        accumulate = math.ceil(options.batch_size / size) * options.accumulate
        advice = f"--batch_size {size} --accumulate {accumulate} would fit {free}"
    elif (edge := trial.crop_edge()) is not None:
        crop = " ".join([str(edge)] * (1 if len(trial.items.sizes[0]) == 2 else 3))
        advice = f"one item does not fit {free}, --batch_size 1 {crop_option} {crop} would"
    else:
        advice = f"not even a small crop fits {free}; free memory, or train a smaller network"
    if not options.gradient_checkpointing:
        advice += "; --gradient_checkpointing takes less memory as well"
    if done := folder.steps_done():
        advice += f"; {folder.checkpoint} holds step {done}, from which the same command goes on"
    return RequestError(
        f"Memory does not suffice to train {folder.stage} in batches of {options.batch_size}: {advice}."
    )


def _train(
    folder: RunFolder,
    make_module: Callable[[], StageModule],
    items: RequestDataset,
    validate: Callable[[Any], Validation],
    write_best: Callable[[Any, Path], None],
    *,
    codebook: bool,
    parts: int,
) -> None:
    """What `fit` does, with batches that go through the network in so many parts."""
    options = folder.options
    device, here = training_device(options.device), place()
    rank, world_size = here.rank, here.world_size
    bf16 = wants_bf16(options, device)
    compiled = isinstance(options, UNetOptions) and options.compile
    if compiled and items.shrink > 1:
        raise RequestError(
            "--compile compiles the network once for each size of batch, and the size of crops varies "
            "from batch to batch; leave out --crop_size."
        )
    first_step = folder.steps_done()
    # One that ran out of memory, or was killed, at its end has all its steps, and must still be validated.
    if first_step >= options.max_steps and folder.is_finished():
        if rank == 0:
            print(f"{folder.path} is trained already: {first_step} of {options.max_steps} steps.")
        return

    torch.manual_seed(options.seed)
    module = make_module()
    module.run_folder, module.parts = folder.path, parts
    averaging = Averaging(options.ema_decay) if not codebook and options.ema_decay > 0 else None
    stream = BatchStream(
        items.sizes,
        batch_size=options.batch_size,
        seed=options.seed,
        shrink=items.shrink,
        first=first_step * options.accumulate,
        rank=rank,
        world_size=world_size,
    )
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": world_size,
        "workers": data_workers(options, device),
        "precision": "bf16" if bf16 else "32",
        "items": len(items),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
    }
    if rank == 0:
        if first_step == 0:
            folder.clear()
        folder.sweep()
        folder.record(**facts, finished=False)
        part, share = largest_batch(items, stream.buckets, math.ceil(options.batch_size / parts), device)
        share *= parts if parts == 1 else parts * 4 / 3  # forwards a second time for the gradient
        expected = measure(module.to(device), part, share, averaged=averaging is not None, bf16=bf16)
        if not has_room(expected, device):
            raise MemoryError
        batches = (options.max_steps - first_step) * options.accumulate
        print(f"{folder.path}: {len(items)} items, {expected.sentence(batches, device)}", flush=True)

    if compiled:
        compile_whole(module.model)

    supervisor = Supervisor(
        folder.path,
        validate=validate,
        write_best=write_best,
        averaging=averaging,
        compiled=compiled,
        every=options.validate_every,
        max_steps=options.max_steps,
        first_step=first_step,
    )
    workers = data_workers(options, device)
    loader: DataLoader[Item] = DataLoader(
        items,
        batch_sampler=stream,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
    callbacks: list[Callback] = [supervisor] if averaging is None else [averaging, supervisor]
    trainer = _make_trainer(options, device, callbacks, bf16=bf16)
    with warnings.catch_warnings(), noticing_deaths(), supervisor.ending_by_interrupt():
        warnings.filterwarnings("ignore", module="lightning")
        try:
            trainer.fit(
                module, loader, ckpt_path=folder.checkpoint if first_step > 0 else None, weights_only=True
            )
        except SIGTERMException as ended:  # Lightning ends so with exit code 0, as if all were done
            raise SystemExit(128 + signal.SIGTERM) from ended
    if rank == 0:
        folder.record(
            **facts,
            finished=True,
            steps=trainer.global_step,
            seconds=round(supervisor.total_seconds(), 1),
            speed=supervisor.speed.facts(),
            best={"step": supervisor.best_step, "score": supervisor.best_score},
        )
        print(f"{folder.path}: {trainer.global_step} steps done, best at step {supervisor.best_step}.")


def _make_trainer(
    options: TrainOptions, device: torch.device, callbacks: list[Callback], *, bf16: bool
) -> lightning.Trainer:
    """Lightning's trainer, with all off that the supervisor and the run folder do themselves."""
    here = place()
    for name in ("lightning.pytorch", "lightning.fabric"):  # they tell of features that are not used here
        logging.getLogger(name).setLevel(logging.ERROR)
    return lightning.Trainer(
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=here.local_world_size,
        num_nodes=here.world_size // here.local_world_size,
        strategy="ddp" if here.world_size > 1 else "auto",
        # Left to itself, Lightning takes a batch script of SLURM for one of its tasks.
        plugins=[TorchElasticEnvironment() if here.world_size > 1 else LightningEnvironment()],
        precision="bf16-mixed" if bf16 else "32-true",
        max_steps=options.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=options.accumulate,
        limit_val_batches=0,  # the supervisor validates
        use_distributed_sampler=False,  # the stream deals its batches out itself
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
