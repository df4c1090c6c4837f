"""What of a training fits into memory: found by trial, without learning anything."""

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.data import default_collate

from ct2mri.data.batching import Bucket, Request, Shape
from ct2mri.data.datasets import RequestDataset
from ct2mri.memory import free_memory, is_out_of_memory, release
from ct2mri.training.expectation import Expectation, measure
from ct2mri.training.module import Batch, StageModule

# Gradients on their way and what libraries take come on top of what is counted.
_MARGIN = 1.3
# Edges of a crop are multiples of what a VQ-VAE divides them by.
_GRAIN = 8


def largest_batch(
    items: RequestDataset, buckets: Sequence[Bucket], batch_size: int, device: torch.device
) -> tuple[Batch, float]:
    """A batch of the largest size, and the size of an average batch in its units."""

    def voxels(bucket: Bucket) -> int:
        return math.prod(bucket.shape) * min(batch_size, len(bucket.items))

    largest = max(buckets, key=voxels)
    mean = sum(len(bucket.items) * voxels(bucket) for bucket in buckets) / len(items)
    batch = _batch(items, largest.items[:batch_size], largest.shape, device)
    return batch, mean / voxels(largest)


def _batch(items: RequestDataset, chosen: Sequence[int], shape: Shape, device: torch.device) -> Batch:
    batch = default_collate([items[Request(item, shape, 0, n)] for n, item in enumerate(chosen)])
    return {name: tensor.to(device) for name, tensor in batch.items()}


@dataclass(frozen=True)
class Trial:
    """Tries what fits on a device, with the memory that is free now.

    Attributes:
        items: training items.
        buckets: of the items.
        make_module: makes the module.
        device: to train on.
        averaged: whether weights are averaged.
        bf16: whether the training computes in bfloat16.
    """

    items: RequestDataset
    buckets: Sequence[Bucket]
    make_module: Callable[[], StageModule]
    device: torch.device
    averaged: bool
    bf16: bool

    def batch_size(self, below: int) -> int | None:
        """Half of `below`, or half of that and so on: the first that fits; None where one item does not."""
        size = below // 2
        while size >= 1:
            if self._fits(partial(self._batch_of, size)):
                return size
            size //= 2
        return None

    def crop_edge(self) -> int | None:
        """The longest edge of a crop that fits by itself: half the largest item's, or half of that and so on.

        A multiple of 8, in voxels; None where not even the smallest one does.
        """
        largest = max(self.buckets, key=lambda bucket: math.prod(bucket.shape))
        edge = max(largest.shape)
        while (edge := edge // 2 // _GRAIN * _GRAIN) > 0:
            shape = tuple(min(size, edge) for size in largest.shape)
            if self._fits(partial(_batch, self.items, largest.items[:1], shape, self.device)):
                return edge * self.items.factor
        return None

    def _batch_of(self, size: int) -> Batch:
        return largest_batch(self.items, self.buckets, size, self.device)[0]

    def _fits(self, make_batch: Callable[[], Batch]) -> bool:
        """Whether a batch and all that is kept beside it fit."""
        try:
            fits = self._has_room(make_batch)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        free_all(self.device)
        return fits

    def _has_room(self, make_batch: Callable[[], Batch]) -> bool:
        module = self.make_module().to(self.device)
        expected = measure(module, make_batch(), 1, averaged=self.averaged, bf16=self.bf16)
        return has_room(expected, self.device, margin=_MARGIN)


def has_room(expected: Expectation, device: torch.device, margin: float = 1.0) -> bool:
    """Whether what a training keeps beside the weights, which are there already, fits into what is free."""
    need = expected.weight_bytes - 4 * expected.parameters + expected.activation_bytes
    return margin * need <= free_memory(device)


def free_all(device: torch.device) -> None:
    """Give back what nobody holds any more: a trainer and its module hold one another."""
    gc.collect()
    release(device)
