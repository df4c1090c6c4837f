"""The scalable U-Net: the 2D slice model (2D-SDM) and the 3D latent model (3D-SLDM) of MD-DGA.

Ni, Ma, Chen: Scalable Diffusion Models for Inter-modality Volumetric Medical Image Translation, 2025.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ct2mri.errors import RequestError
from ct2mri.models.layers import (
    AttentionResidualBlock,
    CrossAttentionBlock,
    GroupNorm,
    Pad,
    TimeEmbedding,
    Unpad,
    convolution,
    full_precision,
    require,
    run,
)
from ct2mri.models.pretrained import PretrainedModel

# Whose first and last residual blocks stay in float32 under autocast. In 3D, of latents, rounding them
# costs little beside what follows from the rounding of drafts (docs/performance.md), and they cost most time.
_EXACT_DIMS = (2,)


class EncoderLevel(nn.Module):
    """Residual blocks of one size, then **pad** and a stride-2 convolution on every level but the last."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        time_channels: int,
        num_res_blocks: int,
        num_groups: int,
        num_heads: int | None,
        first: bool,
        last: bool,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            AttentionResidualBlock(
                spatial_dims,
                in_channels if block == 0 else out_channels,
                out_channels,
                time_channels,
                num_groups,
                num_heads,
                exact=first and block == 0 and spatial_dims in _EXACT_DIMS,
            )
            for block in range(num_res_blocks)
        )
        self.pad: Pad | None = None
        self.downsample: nn.Module | None = None
        if not last:
            self.pad = Pad(spatial_dims, out_channels, num_groups)
            self.downsample = convolution(spatial_dims, out_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, time: Tensor, checkpointing: bool) -> list[Tensor]:
        """Features after each block and after the stride-2 step, from x (B, in_channels, *spatial)."""
        features = []
        for block in self.blocks:
            x = run(block, x, time, checkpointing=checkpointing)
            features.append(x)
        if self.pad is not None and self.downsample is not None:
            x = self.downsample(self.pad(x))
            features.append(x)
        return features


class Encoder(nn.Module):
    """From an image to features at every level; the main and the condition encoder have this one form."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        widths: Sequence[int],
        time_channels: int,
        num_res_blocks: int,
        num_groups: int,
        num_heads: Sequence[int | None],
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.input_conv = convolution(spatial_dims, in_channels, widths[0], 3, padding=1)
        self.levels = nn.ModuleList(
            EncoderLevel(
                spatial_dims,
                widths[max(level - 1, 0)],
                widths[level],
                time_channels,
                num_res_blocks,
                num_groups,
                num_heads[level],
                first=level == 0,
                last=level == len(widths) - 1,
            )
            for level in range(len(widths))
        )

    def forward(self, image: Tensor, time: Tensor) -> list[Tensor]:
        """Features after the first convolution, each block and each stride-2 step, in that order.

        Args:
            image: (B, in_channels, *spatial).
            time: (B, time_channels).
        """
        with full_precision(image):
            features = [self.input_conv(image.to(self.input_conv.weight.dtype))]
        for level in self.levels:
            features += level(features[-1], time, self.checkpointing)
        return features


class DecoderLevel(nn.Module):
    """Residual blocks on [x, skip], then upsampling, a convolution and **unpad** but on level 0."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        skip_channels: Sequence[int],
        out_channels: int,
        time_channels: int,
        num_groups: int,
        num_heads: int | None,
        last: bool,
    ) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.blocks = nn.ModuleList(
            AttentionResidualBlock(
                spatial_dims,
                (in_channels if block == 0 else out_channels) + skip,
                out_channels,
                time_channels,
                num_groups,
                num_heads,
                exact=last and block == len(skip_channels) - 1 and spatial_dims in _EXACT_DIMS,
            )
            for block, skip in enumerate(skip_channels)
        )
        self.upsample_conv: nn.Module | None = None
        self.unpad: Unpad | None = None
        if not last:
            self.upsample_conv = convolution(spatial_dims, out_channels, out_channels, 3, padding=1)
            self.unpad = Unpad(spatial_dims, out_channels, num_groups)

    def forward(self, x: Tensor, skips: list[Tensor], time: Tensor, checkpointing: bool) -> Tensor:
        """Decode x (B, in_channels, *spatial), taking its skips from the end of `skips`.

        The last of the skips that are left has the next level's size.
        """
        for block in self.blocks:
            x = torch.cat([x, skips.pop()], dim=1)
            x = run(block, x, time, checkpointing=checkpointing)
        if self.upsample_conv is not None and self.unpad is not None:
            if self.spatial_dims == 2:
                x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            else:
                x = functional.interpolate(x, scale_factor=2.0, mode="trilinear", align_corners=False)
            x = self.unpad(self.upsample_conv(x), skips[-1].shape[2:])
        return x


class Middle(nn.Module):
    """Cross-attention to the condition, a residual block with self-attention, a residual block without."""

    def __init__(
        self, spatial_dims: int, channels: int, time_channels: int, num_groups: int, num_heads: int
    ) -> None:
        super().__init__()
        self.cross_attention = CrossAttentionBlock(
            spatial_dims, channels, time_channels, num_groups, num_heads
        )
        self.self_attention = AttentionResidualBlock(
            spatial_dims, channels, channels, time_channels, num_groups, num_heads
        )
        self.residual = AttentionResidualBlock(
            spatial_dims, channels, channels, time_channels, num_groups, None
        )

    def forward(self, x: Tensor, condition: Tensor, time: Tensor) -> Tensor:
        """Last features of both encoders (B, C, *spatial) and time (B, time_channels) → (B, C, *spatial)."""
        x = self.cross_attention(x, condition, time)
        x = self.self_attention(x, time)
        result: Tensor = self.residual(x, time)
        return result


class ScalableUNet(PretrainedModel):
    """A conditional U-Net for images of any size, in two or three dimensions.

    A *scalable module* pads odd axes before every stride-2 step and crops them after the upsampling of the
    same level, so that any input shape comes back as it was.

    `ct2mri.models.compiling` compiles it, block by block for all sizes, or whole for each.

    Args:
        spatial_dims: 2 or 3 axes.
        sample_channels: channels of the noisy sample.
        condition_channels: channels of the condition.
        out_channels: channels of the output.
        base_channels: width of the first level, and of the time embedding.
        channel_multipliers: width of each level in units of the first.
        attention_levels: levels with self-attention, counted from 0 (the finest).
        num_res_blocks: residual blocks a level in the encoders; the decoder has one more.
        norm_num_groups: groups of every group normalisation.
        num_heads: attention heads.
        gradient_checkpointing: compute residual blocks' inner activations again for the gradient: slower,
            with less memory.

    Raises:
        RequestError: no network can have this configuration.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        sample_channels: int = 1,
        condition_channels: int = 1,
        out_channels: int = 1,
        base_channels: int = 32,
        channel_multipliers: Sequence[int] = (1, 2, 4, 8, 8),
        attention_levels: Sequence[int] = (3, 4),
        num_res_blocks: int = 1,
        norm_num_groups: int = 32,
        num_heads: int = 4,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        widths = [base_channels * multiplier for multiplier in channel_multipliers]
        _check_configuration(
            spatial_dims,
            {"sample": sample_channels, "condition": condition_channels, "output": out_channels},
            base_channels,
            widths,
            attention_levels,
            num_res_blocks,
            norm_num_groups,
            num_heads,
        )
        levels = range(len(widths))
        heads = [num_heads if level in attention_levels else None for level in levels]
        self.spatial_dims = spatial_dims
        self.sample_channels = sample_channels
        self.condition_channels = condition_channels
        self.out_channels = out_channels
        self.gradient_checkpointing = gradient_checkpointing

        self.time_embedding = TimeEmbedding(base_channels)
        self.encoder = Encoder(
            spatial_dims,
            sample_channels + condition_channels,
            widths,
            base_channels,
            num_res_blocks,
            norm_num_groups,
            heads,
            gradient_checkpointing,
        )
        self.condition_encoder = Encoder(
            spatial_dims,
            condition_channels,
            widths,
            base_channels,
            num_res_blocks,
            norm_num_groups,
            heads,
            gradient_checkpointing,
        )
        self.middle = Middle(spatial_dims, widths[-1], base_channels, norm_num_groups, num_heads)
        self.decoder = nn.ModuleList(  # in running order: the coarsest level first
            DecoderLevel(
                spatial_dims,
                widths[min(level + 1, len(widths) - 1)],
                # The encoder's blocks of this level, then what came into the level.
                [widths[level]] * num_res_blocks + [widths[max(level - 1, 0)]],
                widths[level],
                base_channels,
                norm_num_groups,
                heads[level],
                last=level == 0,
            )
            for level in reversed(levels)
        )
        self.output_norm = GroupNorm(norm_num_groups, widths[0])
        self.output_conv = convolution(spatial_dims, widths[0], out_channels, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        """Predict what the network was trained for (noise, image or velocity).

        Args:
            sample: (B, sample_channels, *spatial), the noisy image.
            timestep: (B,) or a scalar for the whole batch, integers.
            condition: (B, condition_channels, *spatial).

        Returns:
            (B, out_channels, *spatial); float32 under autocast.
        """
        self._check_input(sample, condition)
        if timestep.ndim == 0:
            timestep = timestep.expand(sample.shape[0])
        with full_precision(sample):
            time = self.time_embedding(timestep)  # (B, base_channels)
        skips = self.encoder(torch.cat([sample, condition], dim=1), time)
        guide = self.condition_encoder(condition, time)[-1]
        x = run(self.middle, skips[-1], guide, time, checkpointing=self.gradient_checkpointing)
        for level in self.decoder:
            x = level(x, skips, time, self.gradient_checkpointing)
        with full_precision(x):
            x = self.output_norm(x.to(self.output_conv.weight.dtype))
            model_output: Tensor = self.output_conv(functional.silu(x))
        return model_output

    def _check_input(self, sample: Tensor, condition: Tensor) -> None:
        if sample.ndim != self.spatial_dims + 2 or sample.shape[1] != self.sample_channels:
            raise RequestError(
                f"The sample has shape (batch, {self.sample_channels} channels, {self.spatial_dims} axes), "
                f"got {tuple(sample.shape)}."
            )
        if (
            condition.shape[0] != sample.shape[0]
            or condition.shape[1] != self.condition_channels
            or condition.shape[2:] != sample.shape[2:]
        ):
            raise RequestError(
                f"To a sample of shape {tuple(sample.shape)} belongs a condition of the same batch and size "
                f"with {self.condition_channels} channels, got {tuple(condition.shape)}."
            )


def _check_configuration(
    spatial_dims: int,
    channels: dict[str, int],
    base_channels: int,
    widths: list[int],
    attention_levels: Sequence[int],
    num_res_blocks: int,
    norm_num_groups: int,
    num_heads: int,
) -> None:
    require(spatial_dims in (2, 3), f"spatial_dims is 2 or 3, got {spatial_dims}.")
    for name, number in channels.items():
        require(number >= 1, f"The number of {name} channels is at least 1, got {number}.")
    require(len(widths) >= 1, "channel_multipliers needs at least one level, got none.")
    require(
        base_channels >= 2 and base_channels % 2 == 0,
        f"base_channels is an even number, as half of the time embedding are sines and half cosines, "
        f"got {base_channels}.",
    )
    require(num_res_blocks >= 1, f"num_res_blocks is at least 1, got {num_res_blocks}.")
    require(num_heads >= 1, f"num_heads is at least 1, got {num_heads}.")
    require(norm_num_groups >= 1, f"norm_num_groups is at least 1, got {norm_num_groups}.")
    for level in attention_levels:
        require(
            0 <= level < len(widths),
            f"attention_levels lie between 0 and {len(widths) - 1} with {len(widths)} levels, got {level}.",
        )
    for level, width in enumerate(widths):
        require(
            width >= 1 and width % norm_num_groups == 0,
            f"Level {level} has {width} channels, which norm_num_groups={norm_num_groups} does not divide; "
            "change base_channels, channel_multipliers or norm_num_groups.",
        )
        has_attention = (
            level in attention_levels or level == len(widths) - 1
        )  # the middle is as wide as the last
        require(
            not has_attention or width % num_heads == 0,
            f"Level {level} has {width} channels, which num_heads={num_heads} does not divide; "
            "change base_channels, channel_multipliers or num_heads.",
        )
