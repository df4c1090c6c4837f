"""The two models that cost nothing: a value for each source value, and the mean volume."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ct2mri.models.pretrained import PretrainedModel

AIR = -1.0


class LookupTable(PretrainedModel):
    """A target value for each source value: linear between knots, constant beyond the outer ones.

    Args:
        knots: how many; their places and values are buffers, which `set_knots` fills.
    """

    source: Tensor
    target: Tensor

    def __init__(self, knots: int) -> None:
        super().__init__()
        self.register_buffer("source", torch.linspace(-1, 1, knots))
        self.register_buffer("target", torch.zeros(knots))

    @classmethod
    def of(cls, source: Tensor, target: Tensor) -> "LookupTable":
        """The table with knots at `source`, ascending, and the values `target`; both (knots,)."""
        table = cls(len(source))
        table.source.copy_(source)
        table.target.copy_(target)
        return table

    def forward(self, values: Tensor) -> Tensor:
        """Target values of source values, of any shape."""
        last = len(self.source) - 1
        right = torch.searchsorted(self.source, values.contiguous()).clamp(min(1, last), last)
        left = (right - 1).clamp(min=0)
        width = (self.source[right] - self.source[left]).clamp(min=1e-12)
        share = ((values - self.source[left]) / width).clamp(0, 1)
        return torch.lerp(self.target[left], self.target[right], share)


class MeanVolumes(PretrainedModel):
    """Mean volumes of training patients inside the box of the body, one for each kind of volume.

    Args:
        shapes: kind → voxels of the box along i, j, k; the volumes are buffers.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        self.shapes = {kind: tuple(shape) for kind, shape in shapes.items()}
        for kind, shape in self.shapes.items():
            self.register_buffer(kind, torch.full(shape, AIR))

    @classmethod
    def of(cls, volumes: Mapping[str, Tensor]) -> "MeanVolumes":
        """These volumes, (i, j, k) each."""
        model = cls({kind: list(volume.shape) for kind, volume in volumes.items()})
        for kind, volume in volumes.items():
            model.get_buffer(kind).copy_(volume)
        return model

    def forward(self, kind: str, shape: Sequence[int]) -> Tensor:
        """The mean volume of a kind, brought to a box of `shape`, (i, j, k)."""
        return resized(self.get_buffer(kind), shape)


def resized(volume: Tensor, shape: Sequence[int]) -> Tensor:
    """A volume (i, j, k) on another number of voxels between the same outer borders, linear between them."""
    if tuple(volume.shape) == tuple(shape):
        return volume
    return functional.interpolate(
        volume[None, None], size=tuple(shape), mode="trilinear", align_corners=False
    )[0, 0]
