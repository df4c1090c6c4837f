"""The error of the image that refined latents stand for, beside that of the latents themselves."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ct2mri.losses import gradient_loss
from ct2mri.models import VQVAE

GRADIENT_WEIGHT = 0.5
"""Of the gradients' error beside the values', as in the 2D stage."""


@dataclass(frozen=True)
class DecodedLoss:
    """Compares draft + D(z) − D(E(draft)) with the target, D decoding without codebook, on a part of a crop.

    An error of latents weighs all their directions alike, and the decoder does not: what a refiner gains
    there need not show in the image. A part is decoded as if nothing lay around it; both terms miss the same
    surroundings.

    Attributes:
        vqvae: whose parameters take no gradient, on the training's device.
        mean: of the latents, per channel.
        std: likewise, the deviation.
        edge: of the part, in latents.
        seed: of the training.
    """

    vqvae: VQVAE
    mean: Sequence[float]
    std: Sequence[float]
    edge: int
    seed: int

    def __call__(self, refined: Tensor, draft: Tensor, images: dict[str, Tensor], batch: int) -> Tensor:
        """The error of each item, (B,).

        Args:
            refined: z, standardised, (B, latent channels, *latent).
            draft: E(draft), standardised, the same shape.
            images: `draft_image`, `target_image` and `valid`, (B, 1, *factor · latent).
            batch: its number; which part is decoded follows from it.
        """
        random = np.random.default_rng((self.seed, batch, 3))
        starts = [int(random.integers(max(0, size - self.edge) + 1)) for size in refined.shape[2:]]
        part = (slice(None), slice(None), *(slice(start, start + self.edge) for start in starts))
        factor = self.vqvae.factor
        voxels = (
            slice(None),
            slice(None),
            *(slice(factor * start, factor * (start + self.edge)) for start in starts),
        )
        draft_image, target_image, valid = (
            images[name][voxels] for name in ("draft_image", "target_image", "valid")
        )
        # In float32 whatever the precision: what is looked at is a difference of two images.
        with torch.autocast(refined.device.type, enabled=False):
            image = draft_image + self._decoded(refined[part])
            with torch.no_grad():
                before = self._decoded(draft[part])
            image = image - before
        axes = tuple(range(1, image.ndim))
        values = (valid * (image - target_image).abs()).sum(axes) / valid.sum(axes).clamp(min=1)
        return values + GRADIENT_WEIGHT * gradient_loss(image, target_image, valid)

    def _decoded(self, latents: Tensor) -> Tensor:
        mean, std = (
            torch.tensor(numbers, device=latents.device).reshape(-1, 1, 1, 1)
            for numbers in (self.mean, self.std)
        )
        return self.vqvae.decode(latents.float() * std + mean)
