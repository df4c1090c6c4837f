"""Building blocks of the networks, each for two or three spatial axes.

Shapes: B batch items, C channels, `*spatial` two or three axes of any size, N = their product.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ct2mri.errors import RequestError


def convolution(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    padding: int = 0,
    bias: bool = True,
) -> nn.Conv2d | nn.Conv3d:
    """A convolution over `spatial_dims` axes."""
    kind = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
    return kind(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=bias)


def require(holds: bool, sentence: str) -> None:
    """Refuse a configuration or an input that cannot work.

    Raises:
        RequestError: `holds` is false.
    """
    if not holds:
        raise RequestError(sentence)


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """A context in which autocast leaves float32 operations on `tensor`'s device alone.

    The first and the last layers run in it, in 2D the residual blocks beside them too: one bfloat16 step of a
    CT at brain level is as wide as half the difference between grey and white matter, and of all layers these
    round results most.
    """
    if tensor.is_meta:  # on which costs are estimated, and which knows no autocast
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def run(layer: nn.Module, *inputs: Tensor, checkpointing: bool) -> Tensor:
    """`layer(*inputs)`; with `checkpointing` its inner activations are computed again for the gradient."""
    if checkpointing and torch.is_grad_enabled():
        output: Tensor = checkpoint(layer, *inputs, use_reentrant=False)
    else:
        output = layer(*inputs)
    return output


class GroupNorm(nn.GroupNorm):
    """Group normalisation that also takes a single value per group, as at 1×1 (`nn.GroupNorm` refuses it)."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input` (B, C, *spatial)."""
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class TimeEmbedding(nn.Module):
    """Integer timesteps to vectors: sinusoids, Linear, SiLU, Linear."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.linear_1 = nn.Linear(channels, 4 * channels)
        self.linear_2 = nn.Linear(4 * channels, channels)

    def forward(self, timestep: Tensor) -> Tensor:
        """Embed `timestep` (B,) as (B, channels)."""
        half = self.channels // 2
        exponent = torch.arange(half, device=timestep.device, dtype=torch.float32) / half
        angle = timestep.float()[:, None] * torch.pow(10_000.0, -exponent)[None, :]  # (B, half)
        sinusoids = torch.cat([angle.sin(), angle.cos()], dim=1).to(self.linear_1.weight.dtype)
        embedding: Tensor = self.linear_2(functional.silu(self.linear_1(sinusoids)))
        return embedding


class ResidualBlock(nn.Module):
    """Two normalised 3-convolutions with the time added between them, plus the input; `exact`: in float32."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        time_channels: int,
        num_groups: int,
        exact: bool = False,
    ) -> None:
        super().__init__()
        self.exact = exact
        self.norm_1 = GroupNorm(num_groups, in_channels)
        self.conv_1 = convolution(spatial_dims, in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(time_channels, out_channels)
        self.norm_2 = GroupNorm(num_groups, out_channels)
        self.conv_2 = convolution(spatial_dims, out_channels, out_channels, 3, padding=1)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = convolution(spatial_dims, in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, in_channels, *spatial) and time embedding (B, time_channels) → (B, out_channels, *spatial)."""
        if not self.exact:
            return self._compute(x, time)
        with full_precision(x):
            return self._compute(x.to(self.conv_1.weight.dtype), time)

    def _compute(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = self.conv_1(functional.silu(self.norm_1(x)))
        shift = self.time(functional.silu(time))  # (B, out_channels)
        hidden = hidden + shift.reshape(shift.shape + (1,) * (x.ndim - 2))
        hidden = self.conv_2(functional.silu(self.norm_2(hidden)))
        result: Tensor = hidden + self.shortcut(x)
        return result


class SelfAttention(nn.Module):
    """Multi-head attention among all places of one feature map, plus the input."""

    def __init__(self, spatial_dims: int, channels: int, num_heads: int, num_groups: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = GroupNorm(num_groups, channels)
        self.query_key_value = convolution(spatial_dims, channels, 3 * channels, 1, bias=False)
        self.output = convolution(spatial_dims, channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) → the same shape."""
        heads = _cut_into_heads(
            self.query_key_value(self.norm(x)), self.num_heads
        )  # (B, heads, N, 3·C/heads)
        query, key, value = heads.chunk(3, dim=-1)
        result: Tensor = self.output(_attend(query, key, value, x.shape)) + x
        return result


class CrossAttention(nn.Module):
    """Multi-head attention from the main path to the condition's features, plus the main path."""

    def __init__(self, spatial_dims: int, channels: int, num_heads: int, num_groups: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = GroupNorm(num_groups, channels)  # serves both paths
        self.query = convolution(spatial_dims, channels, channels, 1, bias=False)
        self.key_value = convolution(spatial_dims, channels, 2 * channels, 1, bias=False)
        self.output = convolution(spatial_dims, channels, channels, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Features of both paths, each (B, C, *spatial) → the same shape."""
        query = _cut_into_heads(self.query(self.norm(x)), self.num_heads)  # (B, heads, N, C/heads)
        heads = _cut_into_heads(self.key_value(self.norm(condition)), self.num_heads)
        key, value = heads.chunk(2, dim=-1)
        result: Tensor = self.output(_attend(query, key, value, x.shape)) + x
        return result


class AttentionResidualBlock(nn.Module):
    """A residual block, followed by self-attention where asked for."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        time_channels: int,
        num_groups: int,
        num_heads: int | None,
        exact: bool = False,
    ) -> None:
        super().__init__()
        self.residual = ResidualBlock(
            spatial_dims, in_channels, out_channels, time_channels, num_groups, exact
        )
        self.attention: nn.Module = nn.Identity()
        if num_heads is not None:
            self.attention = SelfAttention(spatial_dims, out_channels, num_heads, num_groups)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, in_channels, *spatial) and time embedding (B, time_channels) → (B, out_channels, *spatial)."""
        result: Tensor = self.attention(self.residual(x, time))
        return result


class CrossAttentionBlock(nn.Module):
    """A residual block on the main path, then attention to the condition's features."""

    def __init__(
        self, spatial_dims: int, channels: int, time_channels: int, num_groups: int, num_heads: int
    ) -> None:
        super().__init__()
        self.residual = ResidualBlock(spatial_dims, channels, channels, time_channels, num_groups)
        self.attention = CrossAttention(spatial_dims, channels, num_heads, num_groups)

    def forward(self, x: Tensor, condition: Tensor, time: Tensor) -> Tensor:
        """Features of both paths, each (B, C, *spatial), and time (B, time_channels) → (B, C, *spatial)."""
        result: Tensor = self.attention(self.residual(x, time), condition)
        return result


class ScalableResidual(nn.Module):
    """x + Conv1(SiLU(GroupNorm(x))): what **pad** and **unpad** apply after changing the size."""

    def __init__(self, spatial_dims: int, channels: int, num_groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(num_groups, channels)
        self.conv = convolution(spatial_dims, channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) → the same shape."""
        result: Tensor = x + self.conv(functional.silu(self.norm(x)))
        return result


class Pad(nn.Module):
    """Makes every axis even, so that a stride-2 step can be undone exactly (the scalable module, in)."""

    def __init__(self, spatial_dims: int, channels: int, num_groups: int) -> None:
        super().__init__()
        self.residual = ScalableResidual(spatial_dims, channels, num_groups)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) → (B, C, *spatial rounded up to even)."""
        result: Tensor = self.residual(pad_to_even(x))
        return result


class Unpad(nn.Module):
    """Crops what `Pad` of the same level added (the scalable module, out)."""

    def __init__(self, spatial_dims: int, channels: int, num_groups: int) -> None:
        super().__init__()
        self.residual = ScalableResidual(spatial_dims, channels, num_groups)

    def forward(self, x: Tensor, spatial_shape: Sequence[int]) -> Tensor:
        """(B, C, *even) → (B, C, *spatial_shape)."""
        result: Tensor = self.residual(crop(x, spatial_shape))
        return result


def pad_to_even(x: Tensor) -> Tensor:
    """Grow each axis of odd size by one at its end, filled with the item's minimum over all else.

    The published minimum runs over the whole batch, which lets batch mates change an item's result; the two
    agree for a batch of one.
    """
    odd = [axis for axis in range(2, x.ndim) if x.shape[axis] % 2 == 1]
    if not odd:
        return x
    minimum = x.detach().amin(dim=tuple(range(1, x.ndim)), keepdim=True)  # (B, 1, 1, 1[, 1])
    for axis in odd:
        slab = list(x.shape)
        slab[axis] = 1
        x = torch.cat([x, minimum.expand(slab)], dim=axis)
    return x


def crop(x: Tensor, spatial_shape: Sequence[int]) -> Tensor:
    """The first `spatial_shape` places of `x` (B, C, *spatial)."""
    for axis, size in enumerate(spatial_shape, start=2):
        x = x.narrow(axis, 0, size)
    return x


def space_to_depth(x: Tensor, factor: int, fill: float) -> Tensor:
    """Neighbouring voxels as channels, so that images lie on the grid of latents and nothing of them is lost.

    Args:
        x: (B, C, i, j, k), grown at the end of each axis to a multiple of the factor.
        factor: voxels per place along each axis.
        fill: what it is grown with.

    Returns:
        (B, C · factor³, ⌈i / factor⌉, ⌈j / factor⌉, ⌈k / factor⌉).
    """
    padding = [grow for size in reversed(x.shape[2:]) for grow in (0, -size % factor)]
    x = functional.pad(x, padding, value=fill)
    places = [size // factor for size in x.shape[2:]]
    x = x.reshape(*x.shape[:2], places[0], factor, places[1], factor, places[2], factor)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def _cut_into_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, heads·c, *spatial) → (B, heads, N, c)."""
    flat = x.flatten(2)  # (B, heads·c, N)
    heads = flat.reshape(x.shape[0], num_heads, x.shape[1] // num_heads, flat.shape[2])
    # In memory, too: attention without the full map of places by places needs each place's channels together.
    return heads.transpose(2, 3).contiguous()


def _attend(query: Tensor, key: Tensor, value: Tensor, shape: Sequence[int]) -> Tensor:
    """Attention over (B, heads, N, C/heads), put back into `shape` (B, C, *spatial)."""
    scale = shape[1] ** -0.5  # over all channels, as published, not over those of one head
    values = functional.scaled_dot_product_attention(query, key, value, scale=scale)
    return values.transpose(2, 3).reshape(tuple(shape))
