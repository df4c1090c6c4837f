"""The VQ-VAE whose latent space the 3D stage works in."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ct2mri.errors import RequestError
from ct2mri.models.layers import convolution, crop, full_precision, require, run
from ct2mri.models.pretrained import PretrainedModel
from ct2mri.models.quantizer import VectorQuantizer

_SLOPE = 0.01


def _transposed(
    spatial_dims: int, in_channels: int, out_channels: int
) -> nn.ConvTranspose2d | nn.ConvTranspose3d:
    kind = nn.ConvTranspose2d if spatial_dims == 2 else nn.ConvTranspose3d
    return kind(in_channels, out_channels, 4, stride=2, padding=1)


class ResidualLayer(nn.Module):
    """x + Conv1(ReLU(Conv3(x))), without biases."""

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        self.conv_1 = convolution(spatial_dims, channels, channels, 3, padding=1, bias=False)
        self.conv_2 = convolution(spatial_dims, channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) → the same shape."""
        result: Tensor = x + self.conv_2(functional.relu(self.conv_1(x)))
        return result


class VQEncoder(nn.Module):
    """From an image to latents; each of the stride-2 convolutions halves its size."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        hidden_channels: Sequence[int],
        num_res_blocks: int,
        embedding_dim: int,
        latent_activation: bool,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.latent_activation = latent_activation
        self.checkpointing = checkpointing
        width = hidden_channels[-1]
        self.downs = nn.ModuleList(
            convolution(spatial_dims, before, after, 4, stride=2, padding=1)
            for before, after in pairwise([in_channels, *hidden_channels])
        )
        self.conv = convolution(spatial_dims, width, width, 3, padding=1)
        self.residual_layers = nn.ModuleList(
            ResidualLayer(spatial_dims, width) for _ in range(num_res_blocks)
        )
        self.output_conv = convolution(spatial_dims, width, embedding_dim, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, *spatial), sizes multiples of the factor → (B, embedding_dim, *spatial/factor)."""
        first, *further = self.downs
        with full_precision(image):
            x = first(image.to(self.conv.weight.dtype))
        x = functional.leaky_relu(x, _SLOPE, inplace=True)
        for down in further:
            x = functional.leaky_relu(down(x), _SLOPE)
        x = functional.leaky_relu(self.conv(x), _SLOPE)
        for layer in self.residual_layers:
            x = run(layer, x, checkpointing=self.checkpointing)
        x = functional.leaky_relu(x, _SLOPE)
        with full_precision(x):
            latents: Tensor = self.output_conv(x.to(self.output_conv.weight.dtype))
        return functional.leaky_relu(latents, _SLOPE) if self.latent_activation else latents


class VQDecoder(nn.Module):
    """From quantised latents to an image; each of the transposed convolutions doubles their size."""

    def __init__(
        self,
        spatial_dims: int,
        embedding_dim: int,
        hidden_channels: Sequence[int],
        num_res_blocks: int,
        out_channels: int,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        width = hidden_channels[-1]
        self.input_conv = convolution(spatial_dims, embedding_dim, width, 3, padding=1)
        self.residual_layers = nn.ModuleList(
            ResidualLayer(spatial_dims, width) for _ in range(num_res_blocks)
        )
        self.ups = nn.ModuleList(
            _transposed(spatial_dims, before, after)
            for before, after in pairwise([*reversed(hidden_channels), out_channels])
        )

    def forward(self, latents: Tensor) -> Tensor:
        """(B, embedding_dim, *spatial) → (B, out_channels, *factor·spatial), in [-1, 1]."""
        x = functional.leaky_relu(self.input_conv(latents), _SLOPE)
        for layer in self.residual_layers:
            x = run(layer, x, checkpointing=self.checkpointing)
        x = functional.leaky_relu(x, _SLOPE)
        *further, last = self.ups
        for up in further:
            # In place: at half the image's size these are by far the widest features.
            x = functional.leaky_relu(up(x), _SLOPE, inplace=True)
        with full_precision(x):
            x = last(x.to(self.input_conv.weight.dtype))
        return torch.tanh(x)


class VQVAE(PretrainedModel):
    """An autoencoder with a codebook; published, its latents are a quarter of the image along each axis.

    The 3D stage works on the encoder's output before quantisation (`encode`), and quantises only before
    decoding: `decode(quantize(latents), spatial_shape)`.

    Args:
        spatial_dims: 2 or 3 axes.
        in_channels: channels of the image.
        out_channels: channels of the reconstruction.
        hidden_channels: widths at a half, a quarter, … of the image's size: as many as there are stride-2
            convolutions. One width makes latents of half the image's size along each axis.
        num_res_blocks: residual layers on each side.
        embedding_dim: channels of the latents.
        num_embeddings: codes in the codebook.
        commitment_cost: weight of the loss term that pulls latents to their codes.
        latent_activation: a LeakyReLU on the latents, as published; without it no latent channel is squeezed.
        codebook_update: how the codebook learns: by "gradient", as published, or as a moving average ("ema").
        gradient_checkpointing: compute residual layers again for the gradient: slower, with less memory.

    Attributes:
        factor: image voxels per latent along each axis.

    Raises:
        RequestError: no network can have this configuration.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 1,
        hidden_channels: Sequence[int] = (128, 256),
        num_res_blocks: int = 6,
        embedding_dim: int = 2,
        num_embeddings: int = 512,
        commitment_cost: float = 0.25,
        latent_activation: bool = True,
        codebook_update: Literal["gradient", "ema"] = "gradient",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        require(spatial_dims in (2, 3), f"spatial_dims is 2 or 3, got {spatial_dims}.")
        require(
            len(hidden_channels) >= 1 and min(hidden_channels) >= 1,
            "hidden_channels are positive numbers, the widths after each stride-2 convolution, "
            f"got {list(hidden_channels)}.",
        )
        require(in_channels >= 1, f"in_channels is at least 1, got {in_channels}.")
        require(out_channels >= 1, f"out_channels is at least 1, got {out_channels}.")
        require(num_res_blocks >= 0, f"num_res_blocks is at least 0, got {num_res_blocks}.")
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.embedding_dim = embedding_dim
        self.factor = 2 ** len(hidden_channels)
        self.quantizer = VectorQuantizer(num_embeddings, embedding_dim, commitment_cost, codebook_update)
        self.encoder = VQEncoder(
            spatial_dims,
            in_channels,
            hidden_channels,
            num_res_blocks,
            embedding_dim,
            latent_activation,
            gradient_checkpointing,
        )
        self.decoder = VQDecoder(
            spatial_dims, embedding_dim, hidden_channels, num_res_blocks, out_channels, gradient_checkpointing
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode, quantise and decode.

        Args:
            image: (B, in_channels, *spatial), in [-1, 1].

        Returns:
            The reconstruction (B, out_channels, *spatial), `vq_loss` (a scalar: the codebook's and the
            commitment term; the reconstruction's loss is the caller's), and the codes (B, *latent), int64.
        """
        latents = self.encode(image)
        quantized, vq_loss, codes = self.quantizer(latents)
        return self.decode(quantized, image.shape[2:]), vq_loss, codes

    def encode(self, image: Tensor) -> Tensor:
        """Latents before quantisation.

        Args:
            image: (B, in_channels, *spatial) of any size; padded at the end with -1 to multiples of `factor`.

        Returns:
            (B, embedding_dim, *ceil(spatial / factor)).

        Raises:
            RequestError: the image has other channels or axes.
        """
        if image.ndim != self.spatial_dims + 2 or image.shape[1] != self.in_channels:
            raise RequestError(
                f"The image has shape (batch, {self.in_channels} channels, {self.spatial_dims} axes), "
                f"got {tuple(image.shape)}."
            )
        padding: list[int] = []
        for size in reversed(image.shape[2:]):  # functional.pad begins with the last axis
            padding += [0, -size % self.factor]
        latents: Tensor = self.encoder(functional.pad(image, padding, value=-1.0))
        return latents

    def quantize(self, latents: Tensor) -> Tensor:
        """The nearest code in place of each latent, (B, embedding_dim, *spatial) → the same shape."""
        return self.quantizer.quantize(latents)

    def decode(self, latents: Tensor, spatial_shape: Sequence[int] | None = None) -> Tensor:
        """The image of quantised latents.

        Args:
            latents: (B, embedding_dim, *spatial).
            spatial_shape: size of the image that was encoded; without one, `factor` times the latents' size.

        Returns:
            (B, out_channels, *spatial_shape), in [-1, 1].

        Raises:
            RequestError: no image of `spatial_shape` has latents of this size.
        """
        if latents.ndim != self.spatial_dims + 2 or latents.shape[1] != self.embedding_dim:
            raise RequestError(
                f"The latents have shape (batch, {self.embedding_dim} channels, {self.spatial_dims} axes), "
                f"got {tuple(latents.shape)}."
            )
        if spatial_shape is None:
            image: Tensor = self.decoder(latents)
            return image
        if tuple(-(-size // self.factor) for size in spatial_shape) != tuple(latents.shape[2:]):
            raise RequestError(
                f"Latents of size {tuple(latents.shape[2:])} belong to an image of at most {self.factor} "
                f"times that size, got {tuple(spatial_shape)}."
            )
        return crop(self.decoder(latents), spatial_shape)
