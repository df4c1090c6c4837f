"""The 3D stage's network and its loss."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ct2mri.data.datasets import AIR
from ct2mri.diffusion import NoiseSettings, noisy_sample, predicted_original
from ct2mri.losses import diffusion_loss
from ct2mri.models import VQVAE, ScalableUNet
from ct2mri.models.layers import space_to_depth
from ct2mri.options.training import TrainLatentsOptions
from ct2mri.training.decoded import DecodedLoss
from ct2mri.training.module import Batch, StageModule, begin_at_estimate, draw_diffusion, make_unet


class LatentsModule(StageModule):
    """Has a 3D scalable U-Net, trained to denoise target latents given the condition.

    Args:
        options: how to train.
        vqvae: whose latents they are.
        windows: of the source, as the plan has them.
        decoded: the loss of decoded images; None: the latents' alone.
        change_std: where the network draws a change from the draft's latents, in units of this; else None.
    """

    model: ScalableUNet

    def __init__(
        self,
        options: TrainLatentsOptions,
        vqvae: VQVAE,
        windows: int,
        decoded: DecodedLoss | None = None,
        change_std: Sequence[float] | None = None,
    ) -> None:
        condition_channels = sum(
            windows * vqvae.factor**3 if part == "windows" else vqvae.embedding_dim
            for part in options.condition
        )
        super().__init__(
            options,
            make_unet(
                options,
                spatial_dims=3,
                sample_channels=vqvae.embedding_dim,
                condition_channels=condition_channels,
            ),
        )
        self.options = options
        self.factor = vqvae.factor
        self.latent_channels = vqvae.embedding_dim
        self.decoded = decoded
        self.change_std = change_std
        self.settings = NoiseSettings.from_options(options)

    def loss(self, batch: Batch) -> Tensor:
        """The diffusion loss of a batch of latents (B, ·, i, j, k), by their share of valid voxels."""
        target, options = batch["target"], self.options
        noise, timestep = draw_diffusion(
            target, batch["key"], self.settings, options.last_timestep_share, options.seed
        )
        condition = batch["condition"]
        if "windows" in batch:
            windows = space_to_depth(batch["windows"], self.factor, AIR)
            condition = torch.cat([condition, windows], dim=1)
        if options.restart_from_estimate:
            noise = begin_at_estimate(
                *(self.model, condition, noise, target, timestep, self.settings), compiled=options.compile
            )
        network_input, training_target = noisy_sample(target, noise, timestep, self.settings)
        output = self.model(network_input, timestep, condition)
        loss = diffusion_loss(
            output,
            training_target,
            timestep,
            self.settings,
            loss=options.loss,
            weight=batch["weight"],
            min_snr_gamma=options.min_snr_gamma,
        )
        if self.decoded is None:
            return loss
        estimate = predicted_original(output, network_input, timestep, self.settings)
        return loss + options.image_weight * self._image_loss(self.decoded, estimate, timestep, batch)

    def _image_loss(self, decoded: DecodedLoss, estimate: Tensor, timestep: Tensor, batch: Batch) -> Tensor:
        """The decoded error of the items at the last timestep, over all items; 0 where there is none."""
        # Out of training mode the memory of the largest batch is measured, which must stay as large as it is.
        chosen = (timestep == self.settings.last_timestep) | (not self.training)
        if not bool(chosen.any()):
            return estimate.new_zeros(())
        first = self.latent_channels * [part for part in self.options.condition if part != "windows"].index(
            "draft"
        )
        draft = batch["condition"][chosen, first : first + self.latent_channels]
        refined = estimate[chosen]
        if self.change_std is not None:
            scale = torch.tensor(self.change_std, device=refined.device).reshape(-1, 1, 1, 1)
            refined = draft + scale * refined
        images = {name: batch[name][chosen] for name in ("draft_image", "target_image", "valid")}
        return decoded(refined, draft, images, int(batch["key"][0, 0])).sum() / len(estimate)
