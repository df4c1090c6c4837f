"""The Brownian bridge: its process, its sampling, and the stage that draws with it."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import tiny
from ct2mri.bridge import BridgeSettings, bridge_sample, bridge_step, bridge_timesteps, sample_bridge
from ct2mri.diffusion import SeededNoise
from ct2mri.errors import RequestError
from ct2mri.pipeline import TranslationPipeline
from ct2mri.stages import BridgeStage

SHAPE = (5, 7, 6)


def images(number, seed=0, size=4):
    return torch.rand(number, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def stage(network=None, **settings):
    settings = {"num_inference_steps": 4} | settings
    return BridgeStage(network or tiny.unet(2), BridgeSettings(), **settings)


class Oracle(nn.Module):
    """Knows the target: the source, mirrored in 0 and halved."""

    condition_channels = 1

    def __init__(self):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.timesteps = []

    def forward(self, sample, timestep, condition):
        if not sample.is_meta:  # there it is asked how much memory it needs
            self.timesteps.append(int(timestep[0]))
        return sample + condition / 2


@pytest.mark.parametrize("variance", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("timestep", [1, 250, 500, 900, 1000])
def test_the_marginal_is_the_papers(timestep, variance):
    settings = BridgeSettings(1000, variance)
    number = 20_000
    original, end = torch.full((number, 1, 1, 1), 0.6), torch.full((number, 1, 1, 1), -0.4)
    noise = torch.randn(original.shape, generator=torch.Generator().manual_seed(0))
    sample, target = bridge_sample(original, end, noise, torch.full((number,), timestep), settings)
    m = timestep / 1000
    delta = 2 * variance * (m - m**2)
    assert sample.mean().item() == pytest.approx((1 - m) * 0.6 - m * 0.4, abs=0.03)
    assert sample.var().item() == pytest.approx(delta, rel=0.03, abs=1e-7)
    torch.testing.assert_close(target, m * (end - original) + delta**0.5 * noise, atol=1e-5, rtol=0)
    assert settings.variance_at(timestep) == pytest.approx(delta)


def test_both_ends_are_the_images():
    original, end, noise = images(3, 0), images(3, 1), images(3, 2)
    settings = BridgeSettings(100, 2.0)
    sample, target = bridge_sample(original, end, noise, torch.full((3,), 100), settings)
    assert torch.equal(sample, end)
    torch.testing.assert_close(target, end - original)
    assert torch.equal(bridge_step(images(3, 3), original, end, 40, 0, settings, None), original)
    assert settings.variance_at(0) == settings.variance_at(100) == 0


@pytest.mark.parametrize("timesteps", [[1000, 750, 500, 250], [1000, 10], [1000, 999, 998, 500, 499]])
def test_sampling_keeps_the_marginal_over_any_distance(timesteps):
    settings = BridgeSettings()
    number = 40_000
    original, end = torch.full((number, 1, 1, 1), 0.6), torch.full((number, 1, 1, 1), -0.4)
    generator, state = torch.Generator().manual_seed(0), end
    for timestep, previous in itertools.pairwise(timesteps):
        noise = torch.randn(state.shape, generator=generator)
        state = bridge_step(state, original, end, timestep, previous, settings, noise)
        m = previous / 1000
        assert state.mean().item() == pytest.approx((1 - m) * 0.6 - m * 0.4, abs=0.02)
        assert state.var().item() == pytest.approx(settings.variance_at(previous), rel=0.03)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 100])
def test_an_oracle_recovers_the_image_with_any_number_of_steps(steps):
    settings, source, told = BridgeSettings(100), images(2), []
    oracle = Oracle()
    drawn = sample_bridge(
        oracle,
        source,
        source,
        settings,
        num_inference_steps=steps,
        step_noise=lambda step: images(2, seed=step),
        on_step=lambda *step: told.append(step),
    )
    torch.testing.assert_close(drawn, -source / 2, atol=1e-5, rtol=0)
    assert told == [(step + 1, steps) for step in range(steps)]
    assert oracle.timesteps == bridge_timesteps(steps, settings)
    assert oracle.timesteps[0] == 100
    assert len(set(oracle.timesteps)) == steps
    assert min(oracle.timesteps) >= 1


def test_the_stage_starts_from_the_first_window_of_the_source():
    network = tiny.unet(2, 1, 2)
    seen = []
    network.register_forward_pre_hook(lambda _, given: seen.append(given))
    source = torch.rand(2, *SHAPE) * 2 - 1
    drawn = stage(network, num_inference_steps=1, batch_size=100).sample({"source": source}, SeededNoise(0))
    assert drawn.shape == (1, *SHAPE)
    ((sample, timestep, condition),) = seen
    assert torch.equal(sample, source[:1].movedim(3, 0))
    assert torch.equal(condition, source.movedim(3, 0))
    assert (timestep == 1000).all()


@pytest.mark.parametrize("orientations", [("axial",), ("coronal", "sagittal")])
def test_an_oracle_through_the_stage(orientations):
    source = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9
    told = []
    drawn = stage(Oracle(), orientations=orientations, batch_size=3).sample(
        {"source": source}, SeededNoise(0), lambda *step: told.append(step)
    )
    torch.testing.assert_close(drawn, -source / 2, atol=1e-4, rtol=0)
    assert told[-1][:1] == ("bridge",)
    counts = [step for _, step, _ in told]
    assert counts == sorted(set(counts))
    assert counts[-1] == told[-1][2]


def test_seed_and_batch_size():
    condition = {"source": torch.rand(1, *SHAPE) * 2 - 1}
    results = [stage(batch_size=size).sample(condition, SeededNoise(seed)) for size, seed in
               ((16, 0), (2, 0), (16, 1))]  # fmt: skip
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=0)
    assert not torch.allclose(results[0], results[2])
    one = [stage(num_inference_steps=1).sample(condition, SeededNoise(seed)) for seed in (0, 1)]
    assert torch.equal(one[0], one[1])


def test_a_pipeline_of_it_comes_back_from_disk(tmp_path):
    pipeline = TranslationPipeline(tiny.plan(), [stage(orientations=("coronal", "axial"))], {"name": "b"})
    pipeline.save_pretrained(tmp_path / "model")
    again = TranslationPipeline.from_pretrained(tmp_path / "model", "cpu")
    assert np.array_equal(pipeline(tiny.ct()).array, again(tiny.ct()).array)
    assert (again.stages[0].kind, again.stages[0].bridge) == ("bridge", BridgeSettings())
    assert again.stages[0].orientations == ("coronal", "axial")
    assert "bridge: Brownian bridge" in (tmp_path / "model" / "README.md").read_text()
    facts = tmp_path / "model" / "bridge" / "stage.json"
    facts.write_text(facts.read_text().replace('"variance"', '"speed"'))
    with pytest.raises(RequestError, match="bridge settings cannot be read"):
        TranslationPipeline.from_pretrained(tmp_path / "model", "cpu")


def test_what_no_bridge_can_do_is_refused():
    with pytest.raises(RequestError, match="num_train_timesteps is at least 1, got 0"):
        BridgeSettings(0)
    for variance in (-1.0, float("nan"), float("inf")):
        with pytest.raises(RequestError, match="bridge_variance is at least 0"):
            BridgeSettings(variance=variance)
    for steps in (0, 1001):
        with pytest.raises(RequestError, match=f"1 to 1000 steps, got {steps}"):
            TranslationPipeline(tiny.plan(), [stage()]).check(num_inference_steps=steps)
    with pytest.raises(RequestError, match="has a sampler of its own, got ddim"):
        TranslationPipeline(tiny.plan(), [stage()]).check(sampler="ddim")
    with pytest.raises(RequestError, match="orientations of a bridge stage"):
        stage(orientations=())
    with pytest.raises(RequestError, match="the bridge stage was trained with 1"):
        TranslationPipeline(tiny.plan(source_windows=[[-1024.0, 3000.0], [0.0, 80.0]]), [stage()])
