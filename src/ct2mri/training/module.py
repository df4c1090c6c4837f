"""What the training of every stage has in common: seeds, optimiser, learning rate, and refusing a NaN."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ct2mri.data.datasets import SourceShift
from ct2mri.data.plan import Plan
from ct2mri.diffusion import NoiseSettings, draw_timesteps, predicted_original, restart_noise
from ct2mri.errors import RequestError, TrainingDivergedError
from ct2mri.hub import resolve_pretrained
from ct2mri.models import ScalableUNet
from ct2mri.models.pretrained import WEIGHTS, load_exactly
from ct2mri.options.training import SourceOptions, TrainLatentsOptions, TrainOptions, TrainSlicesOptions
from ct2mri.stage_files import Kind, read_stage

Batch = dict[str, Tensor]
DiffusionOptions = TrainSlicesOptions | TrainLatentsOptions


def draw_items(
    like: Tensor, keys: Tensor, seed: int, timestep_of: Callable[[torch.Generator], Tensor]
) -> tuple[Tensor, Tensor]:
    """Noise shaped like `like` (B, C, *spatial), and timesteps (B,), each item's from its own key (B, 2).

    A key is an item's (batch, place), so what is drawn depends neither on how many processes share a batch,
    nor on what came before. On a card the noise is drawn there, by a generator of its own: on the CPU, 32
    slices of 224 × 168 take the process that feeds the card 4.5 ms.

    Args:
        like: gives shape, device and type.
        keys: of the items.
        seed: of the training.
        timestep_of: draws one item's timestep, shape (1,), on the CPU.
    """
    noises, timesteps = [], []
    for batch, place in keys.tolist():
        state = np.random.SeedSequence((seed, batch, place, 1)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
        timesteps.append(timestep_of(generator))
        if like.device.type != "cpu":
            generator = torch.Generator(like.device).manual_seed(generator.initial_seed())
        noises.append(torch.randn(like.shape[1:], generator=generator, device=like.device))
    return torch.stack(noises).to(like), torch.cat(timesteps).to(like.device)


def draw_diffusion(
    like: Tensor, keys: Tensor, settings: NoiseSettings, last_timestep_share: float, seed: int
) -> tuple[Tensor, Tensor]:
    """What `draw_items` gives, with the timesteps of a diffusion process."""
    return draw_items(
        like, keys, seed, lambda generator: draw_timesteps(1, settings, last_timestep_share, generator)
    )


def begin_at_estimate(
    model: ScalableUNet,
    condition: Tensor,
    noise: Tensor,
    target: Tensor,
    timestep: Tensor,
    settings: NoiseSettings,
    *,
    place: tuple[slice, slice] | None = None,
    compiled: bool = False,
) -> Tensor:
    """Noise as sampling meets it after a restart: `restart_noise` before the last timestep.

    The estimate is x_0 as one step of sampling gives it, without a gradient.

    Args:
        model: the network, as it is in training.
        condition: (B, condition channels, *spatial).
        noise: standard normal, (B, C, *spatial).
        target: x_0, the same shape.
        timestep: (B,).
        settings: the diffusion process, which has a `restart_timestep`.
        place: rows and columns of the condition that noise and target are of; None: all.
        compiled: whether the network is compiled; it runs as it is here, as the number of items varies.
    """
    later = timestep != settings.last_timestep
    if not bool(later.any()):
        return noise
    shown = condition[later]
    start = shown.new_zeros(len(shown), model.sample_channels, *shown.shape[2:])
    last = torch.full((len(start),), settings.last_timestep, device=start.device)
    eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    with torch.no_grad(), eager:
        estimate = predicted_original(model(start, last, shown), start, last, settings)
    # Weights that autocast has cast here and keeps would leave the step that follows without a gradient.
    torch.clear_autocast_cache()
    noise = noise.clone()
    if place is not None:
        estimate = estimate[..., *place]
    noise[later] = restart_noise(noise[later], estimate.to(noise), target[later], settings)
    return noise


def load_initial_weights(model: nn.Module, init: str, stage: Kind) -> None:
    """Load a pipeline's weights of one stage, to be trained further.

    Args:
        model: to load them into.
        init: a pipeline folder, or "owner/name".
        stage: which of its stages.

    Raises:
        RequestError: the pipeline has no such stage, or its network has other shapes.
    """
    path = resolve_pretrained(init) / stage / WEIGHTS
    if not path.is_file():
        raise RequestError(f"--init {init} holds no {stage}/{WEIGHTS}; give a pipeline that has this stage.")
    load_exactly(model, load_file(path), str(path))


def initial_facts(init: str, stage: Kind, settings: NoiseSettings) -> dict[str, Any]:
    """The facts of the diffusion stage that a training starts from; says where it was trained otherwise.

    Raises:
        RequestError: the pipeline has no such stage.
    """
    facts = read_stage(resolve_pretrained(init) / stage, stage)
    now = settings.to_dict()
    others = {name: value for name, value in facts["noise"].items() if value != now.get(name)}
    if others:
        listed = ", ".join(f"{name} {value} (now {now.get(name)})" for name, value in others.items())
        print(f"Note: {init} was trained with {listed}; its weights must first learn the other process.")
    return facts


def source_shift(options: SourceOptions, plan: Plan) -> SourceShift | None:
    """How `--hu_shift` moves the source's values; None: not at all.

    Raises:
        RequestError: the shift is no finite number from 0 on, or the source is not in HU.
    """
    largest = options.hu_shift
    if not 0 <= largest < math.inf:
        raise RequestError(
            f"--hu_shift is 0 (none) or more HU, got {largest}; 25 is what the demo preset takes."
        )
    if largest and plan.source_units != "HU":
        raise RequestError(
            f"--hu_shift {largest:g} moves values in HU, and the source of this data set is "
            f"{plan.source_modality} in units of its own ({plan.source_units}); leave it out."
        )
    return SourceShift(plan.source_windows, largest) if largest else None


def crop_shrink(options: DiffusionOptions) -> int:
    """How much shorter crops may be, so that every level of the network meets odd sizes and pads them."""
    return int(2 ** (len(options.channel_multipliers) - 1))


def make_unet(
    options: DiffusionOptions, *, spatial_dims: int, sample_channels: int, condition_channels: int
) -> ScalableUNet:
    """The network of a diffusion stage."""
    return ScalableUNet(
        spatial_dims=spatial_dims,
        sample_channels=sample_channels,
        condition_channels=condition_channels,
        out_channels=sample_channels,
        base_channels=options.base_channels,
        channel_multipliers=options.channel_multipliers,
        attention_levels=options.attention_levels,
        num_res_blocks=options.num_res_blocks,
        norm_num_groups=options.norm_num_groups,
        num_heads=options.num_heads,
        gradient_checkpointing=options.gradient_checkpointing,
    )


class StageModule(lightning.LightningModule, ABC):
    """Trains one network: it has a model, and a loss of a batch.

    Args:
        options: how to train.
        model: what to train.

    Attributes:
        parts: in so many parts a batch goes through the network, where memory is short.
    """

    betas = (0.9, 0.999)
    """AdamW's decay of the gradient's mean and of its square."""

    def __init__(self, options: TrainOptions, model: nn.Module) -> None:
        super().__init__()
        self.train_options = options
        self.model = model
        self.run_folder: Path | None = None
        self.parts = 1
        self.losses: list[Tensor] = []
        self.step_numbers: dict[str, float] = {}

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """The training loss of a batch, a scalar."""

    def loss_in_parts(self, batch: Batch) -> Tensor:
        """The loss of a batch, of whose parts each is computed anew for its gradient, one after the other.

        So memory must hold what one part keeps for its gradient. A batch's loss is the mean of its items'.
        """
        items = len(batch["key"])
        parts = min(self.parts, items)
        if parts == 1:
            return self.loss(batch)
        cut = {name: tensor.tensor_split(parts) for name, tensor in batch.items()}
        losses = []
        for number in range(parts):
            part = {name: pieces[number] for name, pieces in cut.items()}
            loss: Tensor = checkpoint(self.loss, part, use_reentrant=False)
            losses.append(loss * (len(part["key"]) / items))
        return torch.stack(losses).sum()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch, kept for the log."""
        loss = self.loss_in_parts(batch)
        self.losses.append(loss.detach())
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW; the learning rate rises linearly, then stays or falls to zero along a cosine."""
        options = self.train_options
        optimiser = torch.optim.AdamW(
            self.parameters(),
            lr=options.learning_rate,
            betas=self.betas,
            weight_decay=options.weight_decay,
            fused=True,
        )

        def factor(step: int) -> float:
            if step < options.warmup_steps:
                return (step + 1) / (options.warmup_steps + 1)
            if options.decay == "constant":
                return 1.0
            after = (step - options.warmup_steps) / max(1, options.max_steps - options.warmup_steps)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, after)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Limit the gradient's norm; stop before a gradient that is not finite can ruin the weights.

        Gradients are those of all processes by now, so that all stop together.
        """
        limit = self.train_options.gradient_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.step_numbers = {
            "gradient_norm": float(norm),
            "learning_rate": float(optimizer.param_groups[0]["lr"]),
        }
        if not math.isfinite(self.step_numbers["gradient_norm"]):
            self._stop_diverged()

    def _stop_diverged(self) -> None:
        assert self.run_folder is not None
        step = self.trainer.global_step + 1
        loss = float(torch.stack(self.losses).mean())
        state = self.run_folder / f"stopped-at-step-{step}.ckpt"
        self.trainer.save_checkpoint(state)
        what = f"the loss was {loss}" if not math.isfinite(loss) else "its gradient was not finite"
        raise TrainingDivergedError(
            f"Training stopped at step {step}: {what}. {state} holds the state before that step, and "
            "last.ckpt the last one that was validated; train again with a lower "
            "--learning_rate or --precision 32."
        )
