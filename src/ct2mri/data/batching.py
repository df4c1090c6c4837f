"""Which items make up each training batch: same-size batches, in an order that can be resumed.

The order is a pure function of (seed, epoch), and each item carries a key that its augmentation and noise are
drawn from. So a run that stopped goes on with the very batches and random numbers it would have seen, and
several processes see together what one alone would see.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

Shape = tuple[int, ...]

GRANULARITY = 16
"""Sizes that agree after rounding up to multiples of this share a bucket."""
LARGEST_PADDING = 1.5
"""A bucket that is too small for one batch joins another unless that grows its items beyond this factor."""


@dataclass(frozen=True)
class Request:
    """One item of a batch.

    Attributes:
        index: which item of the data set.
        shape: the size to crop or pad it to, that of its bucket.
        batch: number of the batch, counted from the start of the training.
        place: place of the item in that batch, counted over all processes.
    """

    index: int
    shape: Shape
    batch: int
    place: int


@dataclass(frozen=True)
class Bucket:
    """Items that are brought to one size.

    Attributes:
        shape: the largest size among them, axis by axis.
        items: their indices.
    """

    shape: Shape
    items: tuple[int, ...]


def _joined(a: Bucket, b: Bucket) -> Bucket:
    return Bucket(tuple(map(max, a.shape, b.shape)), a.items + b.items)


def _volume(bucket: Bucket) -> int:
    return math.prod(bucket.shape) * len(bucket.items)


def group_by_size(sizes: Sequence[Shape], batch_size: int) -> list[Bucket]:
    """Group items so that batches are full and little is padded.

    Sizes that are alike after rounding up to multiples of `GRANULARITY` come together; where that leaves
    fewer items than a batch needs, the bucket joins the one with which it pads least.

    Args:
        sizes: of each item.
        batch_size: items of a batch, over all processes.
    """
    alike: dict[Shape, list[int]] = {}
    for index, size in enumerate(sizes):
        alike.setdefault(tuple(-(-n // GRANULARITY) for n in size), []).append(index)
    buckets = [
        Bucket(tuple(max(sizes[i][axis] for i in items) for axis in range(len(key))), tuple(items))
        for key, items in sorted(alike.items())
    ]
    settled: list[Bucket] = []
    while buckets:
        small = min(buckets, key=lambda bucket: len(bucket.items))
        buckets.remove(small)
        partners = buckets + settled
        if len(small.items) >= batch_size or not partners:
            settled.append(small)
            continue
        partner = min(
            partners, key=lambda other: _volume(_joined(small, other)) - _volume(small) - _volume(other)
        )
        joined = _joined(small, partner)
        if math.prod(joined.shape) > LARGEST_PADDING * min(map(math.prod, (small.shape, partner.shape))):
            settled.append(small)
            continue
        (buckets if partner in buckets else settled).remove(partner)
        buckets.append(joined)
    return sorted(settled, key=lambda bucket: bucket.shape)


class BatchStream(Sampler[list[Request]]):
    """The endless sequence of a process's batches, epoch after epoch.

    Args:
        sizes: of each item of the data set, after cropping.
        batch_size: items of a batch and process.
        seed: of the order.
        shrink: each batch's axes are shorter than its bucket's by a random number below this (0 or 1: not at
            all), where that leaves them at least half as long. Crops of one size would never show a network
            that pads odd sizes what it does in use.
        first: number of the first batch to give: 0, or where a resumed training goes on.
        rank: this process.
        world_size: number of processes; all get the same number of batches with the same sizes.
    """

    def __init__(
        self,
        sizes: Sequence[Shape],
        *,
        batch_size: int,
        seed: int,
        shrink: int = 0,
        first: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.buckets = group_by_size(sizes, batch_size * world_size)
        self.batch_size = batch_size
        self.seed = seed
        self.shrink = shrink
        self.first = first
        self.rank = rank
        self.world_size = world_size
        self.batches_per_epoch = sum(self._batches_of(bucket) for bucket in self.buckets)

    def _batches_of(self, bucket: Bucket) -> int:
        return math.ceil(len(bucket.items) / (self.batch_size * self.world_size))

    def epoch(self, epoch: int) -> list[tuple[Shape, list[int]]]:
        """The batches of an epoch over all processes, each with its size: a function of (seed, epoch).

        A bucket's items are dealt out evenly, so that no batch is much smaller than the others. Where a batch
        cannot be shared equally among the processes, its first items come a second time.
        """
        order = np.random.default_rng((self.seed, epoch))
        batches: list[tuple[Shape, list[int]]] = []
        for bucket in self.buckets:
            for part in np.array_split(order.permutation(bucket.items), self._batches_of(bucket)):
                items = [int(item) for item in part]
                missing = -len(items) % self.world_size
                less = order.integers(0, max(1, self.shrink), len(bucket.shape))
                shape = tuple(max(n - int(m), -(-n // 2)) for n, m in zip(bucket.shape, less, strict=True))
                batches.append((shape, items + (items * self.world_size)[:missing]))
        return [batches[n] for n in order.permutation(len(batches))]

    def __iter__(self) -> Iterator[list[Request]]:
        batch = self.first
        while True:
            epoch, start = divmod(batch, self.batches_per_epoch)
            for shape, items in self.epoch(epoch)[start:]:
                share = len(items) // self.world_size
                mine = range(self.rank * share, (self.rank + 1) * share)
                yield [Request(items[place], shape, batch, place) for place in mine]
                batch += 1
