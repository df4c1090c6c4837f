"""Tiles give what the whole gives; windows blend without a seam."""

import pytest
import torch
from torch import nn

import tiny
from ct2mri.diffusion import NoiseSettings, sample
from ct2mri.models import VQVAE
from ct2mri.stages.execution import Execution
from ct2mri.stages.tiling import Tiling, reach, spans, tilings
from ct2mri.stages.windows import SHARED, Windowed, window_weight, windowings


def autoencoder(num_res_blocks=1, hidden_channels=(8, 8)):
    torch.manual_seed(num_res_blocks)
    model = VQVAE(
        hidden_channels=hidden_channels, num_res_blocks=num_res_blocks, embedding_dim=3, num_embeddings=64
    ).eval()
    nn.init.normal_(model.quantizer.codebook)
    return model


def image(shape, seed=0):
    return torch.rand(1, *shape, generator=torch.Generator().manual_seed(seed)) * 1.8 - 0.9


class Cut(Execution):
    """Has work done in so many parts along each axis, whatever would fit."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = parts

    def within(self, device, what, portions, work):
        whole = portions[0].value
        return work(Tiling(whole.shape, self.parts, whole.overlap))


def cut(stage, parts):
    stage.execution = Cut(*parts)


@pytest.mark.parametrize(
    ("num_res_blocks", "hidden_channels"), [(0, (8, 8)), (1, (8, 8)), (3, (8, 8)), (2, (8,)), (0, (4, 4, 4))]
)
@pytest.mark.parametrize("shape", [(60, 24, 19), (57, 30, 24)])
def test_tiles_equal_the_whole(num_res_blocks, hidden_channels, shape):
    stage = tiny.latents_stage(autoencoder=autoencoder(num_res_blocks, hidden_channels))
    tiled = tiny.latents_stage(autoencoder=stage.vqvae)
    cut(tiled, (4, 2, 1))
    target = image(shape)
    latents = stage.encode_standardised(target)
    torch.testing.assert_close(tiled.encode_standardised(target), latents, atol=1e-5, rtol=0)
    whole = stage.decode_standardised(latents, shape)
    torch.testing.assert_close(tiled.decode_standardised(latents, shape), whole, atol=1e-5, rtol=0)
    changed = latents.flip(1)
    torch.testing.assert_close(
        tiled.residual(changed, latents, shape), stage.residual(changed, latents, shape), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("num_res_blocks", [0, 2])
def test_no_less_overlap_would_do(num_res_blocks):
    model = autoencoder(num_res_blocks)
    felt = reach(model.encoder)
    target = image((64, 8, 8))
    with torch.no_grad():
        whole = model.encode(target[None])[0]
        for overlap, equal in ((felt, True), (felt - 1, False)):
            span = spans(16, 2, overlap)[1]
            part = model.encode(target[None, :, 4 * span.lower :])[0][:, span.first - span.lower :]
            assert torch.allclose(part, whole[:, span.first :], atol=1e-6) is equal


def test_reach_follows_from_the_layers():
    model = autoencoder(num_res_blocks=6, hidden_channels=(4, 4))
    # One latent by the two strided convolutions, one by the next, one by each residual layer.
    assert reach(model.encoder) == 8
    # One latent by the first convolution, six by residual layers: 7; then 2 · 7 + 1, and twice that + 1.
    assert reach(model.decoder) == 31
    half = autoencoder(num_res_blocks=2, hidden_channels=(4,))
    assert (reach(half.encoder), reach(half.decoder)) == (4, 7)


def test_tiles_where_nothing_is_wanted_are_not_decoded():
    stage = tiny.latents_stage(autoencoder=autoencoder())
    cut(stage, (3, 1, 1))
    shape = (48, 8, 8)
    wanted = torch.zeros(1, *shape, dtype=torch.bool)
    wanted[:, 40:] = True
    condition = {"source": image(shape), "draft": image(shape, 1)}
    latents = stage.encode_standardised(condition["draft"])
    everything = stage.finish(latents, latents, condition)
    asked = stage.finish(latents, latents, {**condition, "wanted": wanted})
    torch.testing.assert_close(asked[:, 32:], everything[:, 32:])
    assert (asked[:, :32] == -1).all()
    assert not (everything[:, :32] == -1).any()


def test_ways_to_cut_need_ever_less_memory_and_ever_more_work():
    ways = tilings((40, 33, 7), overlap=4, shortest=4)
    assert ways[0].is_whole
    sizes = [way.largest for way in ways]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
    for way in ways:
        seen = torch.zeros(40, 33, 7)
        for tile in way:
            seen[tuple(slice(span.first, span.last) for span in tile)] += 1
            assert all(span.lower <= max(0, span.first - 4) for span in tile)
        assert (seen == 1).all()


def test_windows_of_a_network_that_looks_at_single_voxels_change_nothing():
    def network(state, timestep, condition):
        return torch.sin(3 * state) + condition

    shape = (40, 37, 9)
    state, condition = image(shape)[None], image(shape, 1)[None]
    time = torch.zeros(1)
    for windows in windowings(shape)[1:]:
        answer = Windowed(network, windows)(state, time, condition)
        torch.testing.assert_close(answer, network(state, time, condition))


def test_windows_are_blended_without_a_seam():
    """Where windows disagree, the way from one to the other is as smooth as the shared width allows."""
    calls = []

    def network(state, timestep, condition):
        calls.append(state.shape)
        return torch.full_like(state, float(len(calls)))

    shape = (96, 4, 4)
    (windows,) = [way for way in windowings(shape) if way.parts == (3, 1, 1)]
    answer = Windowed(network, windows)(torch.zeros(1, 1, *shape), torch.zeros(1), torch.zeros(1, 1, *shape))
    assert len(calls) == 3
    line = answer[0, 0, :, 0, 0]
    torch.testing.assert_close(line[[0, -1]], torch.tensor([1.0, 3.0]))
    # sin² over the shared width climbs by π / 2 over that width at most.
    assert line.diff().abs().max() < torch.pi / 2 / SHARED * 1.1
    assert (line.diff() > -1e-6).all()


def test_weights_are_whole_in_the_middle_and_fade_to_the_border():
    weight = window_weight((48, 1), SHARED // 2)[:, 0]
    assert weight.shape == (48,)
    assert weight[0] < 0.01
    assert weight[24] == window_weight((48, 1), SHARED // 2)[23, 0]
    torch.testing.assert_close(weight, weight.flip(0))


def test_windows_share_one_trajectory():
    """All windows are asked at a step before any is asked at the next, from one state of the whole."""
    network = tiny.unet(3, 3, 3).eval()
    asked = []

    def told(state, timestep, condition):
        asked.append((int(timestep[0]), tuple(state.shape[2:])))
        return network(state, timestep, condition)

    shape = (48, 8, 8)
    (windows,) = [way for way in windowings(shape) if way.parts == (2, 1, 1)]
    condition = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(0))
    start = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(1))
    drawn = sample(Windowed(told, windows), condition, start, NoiseSettings(), num_inference_steps=3)
    times = [time for time, _ in asked]
    assert times == sorted(times, reverse=True)
    assert [times.count(time) for time in sorted(set(times))] == [2, 2, 2]
    assert drawn.shape == start.shape
    assert drawn.isfinite().all()
