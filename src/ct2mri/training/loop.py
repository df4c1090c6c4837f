"""The training loop of every stage, on one process or several, new or resumed."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch import distributed
from torch.utils.data import DataLoader, default_collate

from ct2mri.data.batching import BatchStream, Bucket, Request
from ct2mri.data.datasets import Item, RequestDataset
from ct2mri.devices import choose_device
from ct2mri.errors import RequestError
from ct2mri.options.training import TrainOptions, UNetOptions
from ct2mri.processes import cores, died, join, place
from ct2mri.training.averaging import Averaging
from ct2mri.training.expectation import measure
from ct2mri.training.module import StageModule
from ct2mri.training.run import RunFolder
from ct2mri.training.supervisor import Supervisor, Validation

_MOST_WORKERS = 8


def check_options(options: TrainOptions) -> None:
    """Refuse numbers no training can have.

    Raises:
        RequestError: one is out of range.
    """
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
    averaged: bool = True,
) -> None:
    """Train one network into one run folder, from its last checkpoint where there is one.

    Args:
        folder: the run folder.
        make_module: makes the module; called under the run's seed.
        items: training items.
        validate: see `Supervisor`.
        write_best: see `Supervisor`.
        averaged: whether the stage's weights may be averaged.

    Raises:
        RequestError: the options contradict the machine or the run folder.
        TrainingDivergedError: the loss or its gradient was not finite.
    """
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
    if first_step >= options.max_steps:
        if rank == 0:
            print(f"{folder.path} is trained already: {first_step} of {options.max_steps} steps.")
        return

    torch.manual_seed(options.seed)
    module = make_module()
    module.run_folder = folder.path
    averaging = Averaging(options.ema_decay) if averaged and options.ema_decay > 0 else None
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
        batch, share = _largest_batch(items, stream.buckets, options.batch_size)
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        expected = measure(module.to(device), batch, share, averaged=averaging is not None, bf16=bf16)
        batches = (options.max_steps - first_step) * options.accumulate
        print(f"{folder.path}: {len(items)} items, {expected.sentence(batches, device)}", flush=True)

    if compiled:
        # A bucket's batches have two lengths. Beyond the limit, torch would give up compiling.
        torch._dynamo.config.recompile_limit = 4 * len(stream.buckets) + 8
        module.model.compile(fullgraph=True, dynamic=False)

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
    for name in ("lightning.pytorch", "lightning.fabric"):  # they tell of features that are not used here
        logging.getLogger(name).setLevel(logging.ERROR)
    trainer = lightning.Trainer(
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=here.local_world_size,
        num_nodes=world_size // here.local_world_size,
        strategy="ddp" if world_size > 1 else "auto",
        # Left to itself, Lightning takes a batch script of SLURM for one of its tasks.
        plugins=[TorchElasticEnvironment() if world_size > 1 else LightningEnvironment()],
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
        callbacks=[callback for callback in (averaging, supervisor) if callback is not None],
    )
    with warnings.catch_warnings(), noticing_deaths():
        warnings.filterwarnings("ignore", module="lightning")
        trainer.fit(
            module, loader, ckpt_path=folder.checkpoint if first_step > 0 else None, weights_only=True
        )
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


def _largest_batch(
    items: RequestDataset, buckets: Sequence[Bucket], batch_size: int
) -> tuple[dict[str, torch.Tensor], float]:
    """A batch of the largest size, and the size of an average batch in its units."""

    def voxels(bucket: Bucket) -> int:
        return int(torch.tensor(bucket.shape).prod()) * min(batch_size, len(bucket.items))

    largest = max(buckets, key=voxels)
    chosen = largest.items[:batch_size]
    batch = default_collate([items[Request(item, largest.shape, 0, n)] for n, item in enumerate(chosen)])
    mean = sum(len(bucket.items) * voxels(bucket) for bucket in buckets) / len(items)
    return batch, mean / voxels(largest)
