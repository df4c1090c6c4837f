"""Batches of one size, in an order that is a function of (seed, epoch) and can be taken up anywhere."""

from itertools import islice

import pytest

from ct2mri.data.batching import GRANULARITY, BatchStream, group_by_size

MIXED = [(20 + n % 3, 31) for n in range(17)] + [(40, 60)] * 9 + [(90, 10)] * 2


def stream(**settings: object) -> BatchStream:
    return BatchStream(**({"sizes": MIXED, "batch_size": 4, "seed": 0} | settings))  # type: ignore[arg-type]


def test_an_epoch_holds_every_item_once() -> None:
    batches = stream().epoch(0)
    assert sorted(item for _, items in batches for item in items) == list(range(len(MIXED)))
    assert all(1 <= len(items) <= 4 for _, items in batches)
    for shape, items in batches:
        assert all(n <= m for item in items for n, m in zip(MIXED[item], shape, strict=True))


def test_order_is_a_function_of_seed_and_epoch() -> None:
    assert stream().epoch(3) == stream().epoch(3)
    assert stream().epoch(3) != stream().epoch(4)
    assert stream().epoch(3) != stream(seed=1).epoch(3)


@pytest.mark.parametrize("first", [1, 5, 9, 23])
def test_a_resumed_stream_goes_on_where_it_was(first: int) -> None:
    whole = list(islice(stream(), 40))
    assert list(islice(stream(first=first), 40 - first)) == whole[first:]
    assert [batch[0].batch for batch in whole] == list(range(40))


def test_processes_share_what_one_would_see_alone() -> None:
    sizes = [(8, 8)] * 16 + [(64, 8)] * 8
    alone = list(islice(BatchStream(sizes, batch_size=4, seed=2), 20))
    shared = [
        list(islice(BatchStream(sizes, batch_size=2, seed=2, rank=r, world_size=2), 20)) for r in (0, 1)
    ]
    assert [first + second for first, second in zip(*shared, strict=True)] == alone


def test_processes_get_equally_many_batches_of_equal_size() -> None:
    ranks = [list(islice(stream(batch_size=2, rank=r, world_size=3), 60)) for r in range(3)]
    for parts in zip(*ranks, strict=True):
        assert len({(len(part), part[0].shape) for part in parts}) == 1
        assert [request.place for part in parts for request in part] == list(range(3 * len(parts[0])))
    seen = {request.index for batches in ranks for batch in batches for request in batch}
    assert seen == set(range(len(MIXED)))


def test_one_size_is_never_padded() -> None:
    (bucket,) = group_by_size([(160, 224)] * 50, 16)
    assert bucket.shape == (160, 224)


def test_like_sizes_come_together_and_unlike_ones_do_not() -> None:
    sizes = [(100 + n % 10, 90) for n in range(40)] + [(200, 200)] * 20
    small, large = group_by_size(sizes, 8)
    assert small.shape == (109, 90)
    assert large.shape == (200, 200) and len(large.items) == 20


def test_many_sizes_still_fill_their_batches_with_little_padding() -> None:
    sizes = [(110 + 3 * (n % 25), 130 + 5 * (n % 13)) for n in range(300)]
    buckets = group_by_size(sizes, 8)
    assert sorted(item for bucket in buckets for item in bucket.items) == list(range(300))
    assert all(len(bucket.items) >= 8 for bucket in buckets)
    padded = sum(bucket.shape[0] * bucket.shape[1] * len(bucket.items) for bucket in buckets)
    assert padded < 1.3 * sum(a * b for a, b in sizes)


def test_a_lonely_size_is_not_padded_beyond_reason() -> None:
    buckets = group_by_size([(20, 20)] * 20 + [(300, 300)], 8)
    assert [bucket.shape for bucket in buckets] == [(20, 20), (300, 300)]


def test_granularity_is_relative_to_nothing_smaller_than_a_pixel() -> None:
    assert len(group_by_size([(1, 1), (GRANULARITY, GRANULARITY)] * 8, 4)) == 1


def test_crops_of_many_sizes_within_bounds() -> None:
    batches = BatchStream([(96, 3)] * 40, batch_size=2, seed=0, shrink=16).epoch(0)
    lengths = {shape[0] for shape, _ in batches}
    assert len(lengths) > 8 and min(lengths) > 80 and max(lengths) <= 96
    assert {shape[1] for shape, _ in batches} == {2, 3}
    assert {shape for shape, _ in BatchStream([(96, 3)] * 40, batch_size=2, seed=0).epoch(0)} == {(96, 3)}
