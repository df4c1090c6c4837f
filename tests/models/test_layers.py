import math

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ct2mri.models.layers import (
    CrossAttention,
    GroupNorm,
    Pad,
    SelfAttention,
    TimeEmbedding,
    Unpad,
    crop,
    pad_to_even,
    space_to_depth,
)


def test_pad_fills_each_item_with_its_own_minimum_at_the_end():
    x = torch.randn(2, 3, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    x[1] += 10
    padded = pad_to_even(x)
    assert padded.shape == (2, 3, 6, 4, 4)
    assert torch.equal(padded[:, :, :5, :, :3], x)
    for item in range(2):
        assert (padded[item, :, 5] == x[item].min()).all()
        assert (padded[item, :, :, :, 3] == x[item].min()).all()


def test_even_sizes_are_left_alone():
    x = torch.randn(1, 2, 4, 6)
    assert pad_to_even(x) is x


def test_unpad_crops_what_pad_added():
    x = torch.randn(1, 4, 7, 1)
    pad, unpad = Pad(2, 4, 2), Unpad(2, 4, 2)
    for module in (pad, unpad):  # without the residual convolution only the change of size is left
        nn.init.zeros_(module.residual.conv.weight)
        nn.init.zeros_(module.residual.conv.bias)
    assert pad(x).shape == (1, 4, 8, 2)
    assert torch.equal(unpad(pad(x), (7, 1)), x)


def test_crop_takes_the_first_places():
    x = torch.arange(24.0).reshape(1, 1, 4, 6)
    assert torch.equal(crop(x, (3, 2)), x[:, :, :3, :2])


def test_group_norm_takes_one_value_a_group_where_torch_refuses():
    x = torch.randn(1, 32, 1, 1)
    with pytest.raises(ValueError, match="more than 1 value"):
        nn.GroupNorm(32, 32)(x)
    norm = GroupNorm(32, 32)
    nn.init.constant_(norm.bias, 0.5)
    assert torch.allclose(norm(x), torch.full_like(x, 0.5), atol=1e-4)


def test_group_norm_equals_torch():
    x = torch.randn(2, 6, 3, 4)
    ours, theirs = GroupNorm(3, 6), nn.GroupNorm(3, 6)
    assert torch.equal(ours(x), theirs(x))


def test_time_embedding_is_sines_then_cosines():
    embedding = TimeEmbedding(6)
    timestep = torch.tensor([0, 7])
    frequencies = [math.exp(-math.log(1e4) * j / 3) for j in range(3)]
    expected = torch.tensor(
        [[f(t * w) for f in (math.sin, math.cos) for w in frequencies] for t in timestep.tolist()]
    )
    linear_1, linear_2 = embedding.linear_1, embedding.linear_2
    expected = linear_2(nn.functional.silu(linear_1(expected)))
    assert torch.allclose(embedding(timestep), expected, atol=1e-6)


@pytest.mark.parametrize("spatial", [(3, 2), (2, 3, 2)])
def test_self_attention_written_out(spatial: tuple[int, ...]):
    """Heads are cut first, then q, k, v; the logits are scaled by all channels."""
    channels, heads = 8, 2
    layer = SelfAttention(len(spatial), channels, heads, 2)
    x = torch.randn(1, channels, *spatial, generator=torch.Generator().manual_seed(1))
    mixed = layer.query_key_value(layer.norm(x)).flatten(2)[0]  # (24, N)
    parts = []
    for head in range(heads):
        rows = mixed[head * 12 : (head + 1) * 12]
        query, key, value = rows[:4], rows[4:8], rows[8:]
        attention = torch.softmax(query.T @ key / math.sqrt(channels), dim=1)  # (N, N)
        parts.append(value @ attention.T)
    expected = layer.output(torch.cat(parts).reshape(1, channels, *spatial)) + x
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_cross_attention_written_out():
    channels, heads = 8, 2
    layer = CrossAttention(2, channels, heads, 2)
    x, condition = torch.randn(2, 1, channels, 3, 2, generator=torch.Generator().manual_seed(1))
    queries = layer.query(layer.norm(x)).flatten(2)[0]
    mixed = layer.key_value(layer.norm(condition)).flatten(2)[0]
    parts = []
    for head in range(heads):
        query = queries[head * 4 : (head + 1) * 4]
        key, value = mixed[head * 8 : head * 8 + 4], mixed[head * 8 + 4 : head * 8 + 8]
        parts.append(value @ torch.softmax(query.T @ key / math.sqrt(channels), dim=1).T)
    expected = layer.output(torch.cat(parts).reshape(1, channels, 3, 2)) + x
    assert torch.allclose(layer(x, condition), expected, atol=1e-6)


def test_attention_never_holds_the_full_map():
    """Only the backend that works through the map in parts is allowed here."""
    x = torch.randn(1, 16, 3, 4, 2)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        SelfAttention(3, 16, 2, 2)(x)
        CrossAttention(3, 16, 2, 2)(x, x)


def test_space_to_depth_keeps_every_voxel_in_its_place():
    x = torch.rand(2, 3, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    deep = space_to_depth(x, 2, -1.0)
    assert deep.shape == (2, 3 * 8, 3, 2, 3)
    for voxel in [(0, 0, 0), (3, 2, 5), (4, 3, 1)]:
        place = tuple(n // 2 for n in voxel)
        inside = sum((n % 2) * step for n, step in zip(voxel, (4, 2, 1), strict=True))
        for channel in range(3):
            assert torch.equal(deep[(..., channel * 8 + inside, *place)], x[(..., channel, *voxel)])
    assert (deep[:, 4:8, 2] == -1).all()  # what the first axis was grown by
