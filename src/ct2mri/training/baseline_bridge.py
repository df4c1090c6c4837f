"""Training of the Brownian bridge baseline (BBDM)."""

import torch
from torch import Tensor

from ct2mri.bridge import BridgeSettings, bridge_sample, sample_bridge
from ct2mri.diffusion import SeededNoise
from ct2mri.options.training import TrainBaselineOptions, TrainSlicesOptions
from ct2mri.stages import BridgeStage, Stage
from ct2mri.training.module import Batch, draw_items
from ct2mri.training.slices import Planes, SliceModule


class BridgeModule(SliceModule):
    """Is trained to tell how far a slice on the bridge lies from the target slice.

    Args:
        options: how to train.
        slices: the same, as the slices stage has them.
        settings: the bridge.
        source_channels: channels of the source, as in `SliceModule`; the bridge ends in the first.
    """

    def __init__(
        self,
        options: TrainBaselineOptions,
        slices: TrainSlicesOptions,
        settings: BridgeSettings,
        source_channels: int,
    ) -> None:
        super().__init__(slices, source_channels)
        self.steps = options.num_inference_steps
        self.settings = settings

    def loss(self, batch: Batch) -> Tensor:
        """The bridge's loss of a batch of slices (B, ·, H, W), over valid pixels.

        Timesteps (uniform from 1 to T) and noise come from each item's own key, as in the other stages.
        """
        target = batch["target"]
        last = self.settings.num_train_timesteps
        noise, timestep = draw_items(
            target,
            batch["key"],
            self.options.seed,
            lambda generator: torch.randint(1, last + 1, (1,), generator=generator),
        )
        return self._loss(batch["source"], target, batch["weight"], noise, timestep)

    def _loss(
        self, source: Tensor, target: Tensor, weight: Tensor, noise: Tensor, timestep: Tensor
    ) -> Tensor:
        """Squared error over pixels of weight 1."""
        network_input, training_target = bridge_sample(target, source[:, :1], noise, timestep, self.settings)
        error = weight * (self.model(network_input, timestep, source) - training_target) ** 2
        axes = tuple(range(1, target.ndim))
        loss: Tensor = (error.sum(axes) / weight.sum(axes).clamp(min=1)).mean()
        return loss

    def draw(self, source: Tensor, noise: SeededNoise) -> Tensor:
        """Sampled by the stage's own steps."""
        shape = (len(source), 1, *source.shape[2:])
        return sample_bridge(
            self.model,
            source,
            source[:, :1],
            self.settings,
            num_inference_steps=self.steps,
            step_noise=lambda step: noise(shape, stage="bridge", step=step),
        )

    def fixed_loss(self, planes: Planes, noise: SeededNoise) -> float:
        """The training loss at timesteps spread evenly, the last one among them."""
        source, target, weight = (
            part.to(self.device) for part in (planes.source, planes.target, planes.weight)
        )
        timestep = torch.linspace(self.settings.num_train_timesteps, 0, len(target) + 1)[:-1].ceil().long()
        fixed = noise(tuple(target.shape), stage="loss").to(target)
        return float(self._loss(source, target, weight, fixed, timestep.to(self.device)))

    def stage(self) -> Stage:
        """A bridge stage."""
        return BridgeStage(
            self.model,
            self.settings,
            num_inference_steps=self.steps,
            orientations=tuple(self.options.draft_orientations),
            neighbours=self.options.neighbours,
        )
