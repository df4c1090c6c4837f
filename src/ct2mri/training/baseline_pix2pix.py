"""Training of the pix2pix baseline: the regression network with an adversary (Isola et al., CVPR 2017)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from ct2mri.models.discriminator import PatchDiscriminator
from ct2mri.options.training import TrainBaselineOptions, TrainSlicesOptions
from ct2mri.training.module import Batch
from ct2mri.training.slices import SlicesModule

AIR = -1.0


class Pix2pixModule(SlicesModule):
    """Is trained to draw target slices at once that lie near the real ones and look real to an adversary.

    Generator and discriminator take their steps together, each from where both stood before, instead of in
    turn: then the loop, the average and the checkpoints of the other stages serve as they are. The generator
    has no dropout, so its slices are not random; the paper found hardly any variation from it.

    Args:
        options: how to train.
        slices: the same, as the slices stage has them.
        source_channels: channels of the source, as in `SliceModule`.
    """

    betas = (0.5, 0.999)  # as in the paper, section 3.3

    def __init__(
        self, options: TrainBaselineOptions, slices: TrainSlicesOptions, source_channels: int
    ) -> None:
        super().__init__(slices, source_channels)
        self.l1_weight = options.l1_weight
        self.discriminator = PatchDiscriminator(source_channels, options.discriminator_channels)

    def loss(self, batch: Batch) -> Tensor:
        """Loss of both networks for a batch of slices (B, ·, H, W); each gets its own gradient alone."""
        source, target, weight = batch["source"], batch["target"], batch["weight"]
        timestep = torch.zeros(len(target), dtype=torch.long, device=target.device)
        drawn = self.model(torch.zeros_like(target), timestep, source)
        l1 = self.l1(drawn, target, weight)
        # Where the target is not valid both look alike, so that it tells the adversary nothing.
        fake, real = (image.masked_fill(weight == 0, AIR) for image in (drawn.to(target), target))
        with fixed(self.discriminator):
            fooled = adversarial_loss(self.discriminator(source, fake), real=True)
        told_fake = adversarial_loss(self.discriminator(source, fake.detach()), real=False)
        told_real = adversarial_loss(self.discriminator(source, real), real=True)
        # The discriminator's loss is halved, which slows it down against the generator (section 3.3).
        return fooled + self.l1_weight * l1 + (told_fake + told_real) / 2

    @staticmethod
    def l1(drawn: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Mean absolute error over pixels of weight 1."""
        axes = tuple(range(1, target.ndim))
        error = (weight * (drawn - target).abs()).sum(axes) / weight.sum(axes).clamp(min=1)
        return error.mean()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Limit the gradients' norms, each network's by itself."""
        limit = self.train_options.gradient_clip or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.discriminator.parameters(), limit))
        super().on_before_optimizer_step(optimizer)
        self.step_numbers["discriminator_gradient_norm"] = norm
        if not math.isfinite(norm):
            self._stop_diverged()


def adversarial_loss(logits: Tensor, *, real: bool) -> Tensor:
    """Cross-entropy of taking all patches for real, or for drawn."""
    return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))


@contextmanager
def fixed(network: torch.nn.Module) -> Iterator[None]:
    """Inside, what the network is given gets a gradient, the network itself none."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
