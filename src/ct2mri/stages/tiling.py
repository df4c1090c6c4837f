"""A volume cut into overlapping tiles: for a VQ-VAE that would not fit into memory with the whole.

The VQ-VAE is made of convolutions alone, so that a latent depends on the image around it and no farther, and
a voxel likewise on latents. Tiles overlap by that reach, and where a tile ends with the volume it is padded
like the volume: what is kept of the tiles is what the whole would have given, up to rounding.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from torch import nn


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in latents.

    Attributes:
        first: of the part that is kept.
        last: behind the part that is kept.
        lower: first of the tile, with what it overlaps.
        upper: behind the last of the tile.
    """

    first: int
    last: int
    lower: int
    upper: int


Tile = tuple[Span, ...]


def reach(layers: nn.Module) -> int:
    """How far into a tile its border is felt, in voxels of the output, on either side.

    Walks through the convolutions in the order in which they were made, which is that of running; a network
    of other layers is not for tiles.
    """
    felt = 0
    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            kernel, stride, padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
            before, behind = felt + padding, felt + kernel - padding - stride
            felt = -(-max(before, behind) // stride)
        elif isinstance(layer, nn.ConvTranspose2d | nn.ConvTranspose3d):
            kernel, stride, padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
            felt = stride * felt + max(kernel - padding - stride, padding)
    return felt


def spans(size: int, parts: int, overlap: int) -> list[Span]:
    """An axis of `size` latents in parts of almost equal length, each with what it overlaps on both sides."""
    edges = [size * part // parts for part in range(parts + 1)]
    return [
        Span(first, last, max(0, first - overlap), min(size, last + overlap))
        for first, last in pairwise(edges)
    ]


@dataclass(frozen=True)
class Tiling:
    """A volume's latents cut into tiles.

    Attributes:
        shape: latents along each axis.
        parts: tiles along each axis.
        overlap: latents that a tile has on each side beyond what is kept of it.
    """

    shape: tuple[int, ...]
    parts: tuple[int, ...]
    overlap: int

    def __iter__(self) -> Iterator[Tile]:
        """The tiles."""
        axes = [spans(size, parts, self.overlap) for size, parts in zip(self.shape, self.parts, strict=True)]
        return iter(product(*axes))

    @property
    def is_whole(self) -> bool:
        """Whether there is one tile."""
        return math.prod(self.parts) == 1

    @property
    def largest(self) -> int:
        """Latents of the largest tile."""
        return max(math.prod(span.upper - span.lower for span in tile) for tile in self)

    def __str__(self) -> str:
        """In words."""
        return "the whole volume" if self.is_whole else f"{' × '.join(map(str, self.parts))} tiles"


def tilings(shape: Sequence[int], overlap: int, shortest: int) -> list[Tiling]:
    """Ways to cut a volume: from the whole, which is least work, on to ever smaller tiles.

    Args:
        shape: latents along each axis.
        overlap: latents that a tile has on each side beyond what is kept of it.
        shortest: latents that are kept of a tile along each axis, at least.
    """
    # For each axis: parts, the longest tile, and the length of all tiles together.
    axes: list[list[tuple[int, int, int]]] = []
    for size in shape:
        ways: list[tuple[int, int, int]] = []
        for parts in range(1, max(1, size // shortest) + 1):
            lengths = [span.upper - span.lower for span in spans(size, parts, overlap)]
            if not ways or max(lengths) < ways[-1][1]:
                ways.append((parts, max(lengths), sum(lengths)))
        axes.append(ways)
    found: list[Tiling] = []
    smallest = math.inf
    for way in sorted(product(*axes), key=lambda way: math.prod(total for _, _, total in way)):
        largest = math.prod(longest for _, longest, _ in way)
        if largest < smallest:
            smallest = largest
            found.append(Tiling(tuple(shape), tuple(parts for parts, _, _ in way), overlap))
    return found
