import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from ct2mri.diffusion import (
    NoiseSettings,
    SeededNoise,
    alphas_cumprod,
    draw_timesteps,
    noisy_sample,
    predicted_original,
    renoise_timesteps,
    restart_noise,
    sample,
)
from ct2mri.errors import RequestError
from ct2mri.options.training import TrainSlicesOptions

OURS = NoiseSettings()
PUBLISHED = NoiseSettings(prediction_type="epsilon", zero_terminal_snr=False, last_timestep_input="noise")
SETTINGS = {
    "v, zero SNR": OURS,
    "v, zero SNR, noise seen": NoiseSettings(last_timestep_input="noise"),
    "sample, zero SNR": NoiseSettings(prediction_type="sample"),
    "epsilon": PUBLISHED,
    "restart": NoiseSettings(restart_timestep=300),
    "cosine": NoiseSettings(beta_schedule="squaredcos_cap_v2", num_train_timesteps=100),
}


def oracle(truth, settings):
    """A network that answers exactly what training asks for, whatever it is shown."""

    def network(state, timestep, condition):
        level = alphas_cumprod(settings)[timestep].reshape(-1, 1, 1, 1)
        noise = (state - level.sqrt() * truth) / (1 - level).sqrt()
        if settings.prediction_type == "epsilon":
            return noise
        if settings.prediction_type == "sample":
            return truth.expand_as(state)
        return level.sqrt() * noise - (1 - level).sqrt() * truth

    return network


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm-solver++", "unipc"])
@pytest.mark.parametrize("steps", [1, 2, 7, 10, 33])
def test_an_oracle_recovers_the_image(settings, sampler, steps):
    truth = torch.rand(2, 1, 5, 6) * 2 - 1
    start = torch.randn(2, 1, 5, 6)
    noise = SeededNoise(3)
    result = sample(
        oracle(truth, settings),
        torch.zeros_like(start),
        start,
        settings,
        sampler=sampler,
        num_inference_steps=steps,
        step_noise=lambda step: noise((2, 1, 5, 6), stage="slices", step=step),
    )
    torch.testing.assert_close(result, truth, atol=2e-4, rtol=0)


def smooth_network(state, timestep, condition):
    """Any fixed function of what a network is shown."""
    return torch.tanh(0.7 * state + 0.5 * condition + timestep.reshape(-1, 1, 1, 1) / 1000)


@pytest.mark.parametrize("steps", [2, 5, 10, 50])
def test_ddim_equals_diffusers_own_where_that_one_is_exact(steps):
    settings = NoiseSettings(last_timestep_input="noise")
    start, condition = torch.randn(1, 1, 6, 6), torch.randn(1, 1, 6, 6)
    scheduler = DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    scheduler.set_timesteps(steps)
    expected = start
    for t in scheduler.timesteps:
        expected = scheduler.step(smooth_network(expected, t[None], condition), t, expected).prev_sample
    result = sample(smooth_network, condition, start, settings, num_inference_steps=steps)
    # the multistep solver keeps ᾱ of the last timestep at 2⁻²⁴ instead of 0
    torch.testing.assert_close(result, expected, atol=1e-3, rtol=0)


def test_ddpm_at_all_steps_equals_diffusers_own(monkeypatch):
    settings = NoiseSettings(
        num_train_timesteps=50, beta_end=0.2, zero_terminal_snr=False, last_timestep_input="noise"
    )
    start, condition = torch.randn(1, 1, 6, 6), torch.randn(1, 1, 6, 6)
    scheduler = DDPMScheduler(
        num_train_timesteps=50,
        beta_start=1e-4,
        beta_end=0.2,
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )
    draws = torch.randn(50, 1, 1, 6, 6)
    import diffusers.schedulers.scheduling_ddpm as module

    expected = start
    scheduler.set_timesteps(50)
    for step, t in enumerate(scheduler.timesteps):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, step=step, **__: draws[step])
        expected = scheduler.step(smooth_network(expected, t[None], condition), t, expected).prev_sample
    result = sample(
        smooth_network,
        condition,
        start,
        settings,
        sampler="ddpm",
        num_inference_steps=50,
        step_noise=lambda step: draws[step],
    )
    torch.testing.assert_close(result, expected, atol=2e-4, rtol=0)


def test_one_step_shows_the_network_no_noise():
    seen = []

    def network(state, timestep, condition):
        seen.append((state.abs().max().item(), int(timestep[0])))
        return -condition

    condition = torch.rand(1, 1, 4, 4)
    results = [
        sample(network, condition, torch.randn(1, 1, 4, 4), OURS, sampler=sampler, num_inference_steps=1)
        for sampler in ("ddim", "dpm-solver++", "unipc")
    ]
    assert seen == [(0.0, 999)] * 3
    for result in results:
        torch.testing.assert_close(result, condition, atol=1e-6, rtol=0)


def test_published_timesteps():
    fine = list(range(200, -1, -10))
    assert renoise_timesteps(25, 1000) == [999, 799, 599, 399, *fine]
    assert renoise_timesteps(1, 1000) == [999]
    for steps in range(1, 60):
        timesteps = renoise_timesteps(steps, 1000)
        assert len(timesteps) == steps
        assert timesteps == sorted(set(timesteps), reverse=True)


def test_renoise_vector(reference):
    import json
    import runpy

    from ct2mri.models import ScalableUNet
    from ct2mri.published import convert_unet_state

    layout = json.loads((reference / "unet_2d.json").read_text())
    draw = runpy.run_path(str(reference / "weights.py"))["state_dict"]
    vector = np.load(reference / "sampler_renoise.npz")
    state = {key: torch.from_numpy(value) for key, value in draw(layout["state_dict"], 0).items()}
    network = ScalableUNet(**layout["config"]).eval()
    network.load_state_dict(convert_unet_state(state))
    condition = torch.from_numpy(vector["condition"])
    noises = torch.from_numpy(vector["noises"]).reshape(23, *condition.shape)
    assert renoise_timesteps(25, 1000) == vector["timesteps"].tolist()
    result = sample(
        network,
        condition,
        torch.zeros_like(condition),
        PUBLISHED,
        sampler="renoise",
        num_inference_steps=25,
        step_noise=lambda step: noises[step],
    )
    torch.testing.assert_close(result, torch.from_numpy(vector["output"]), atol=2e-4, rtol=0)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_the_training_target_implies_the_original(settings):
    original = torch.rand(8, 1, 4, 4) * 2 - 1
    noise = torch.randn_like(original)
    last = settings.last_timestep
    timestep = torch.tensor([0, 1, 5, last // 2, last - 30, last - 20, last - 9, last])
    shown, target = noisy_sample(original, noise, timestep, settings)
    level = alphas_cumprod(settings)[timestep].reshape(-1, 1, 1, 1)
    state = level.sqrt() * original + (1 - level).sqrt() * noise
    torch.testing.assert_close(shown[:-1], state[:-1])
    assert (shown[-1] == 0).all() == (settings.last_timestep_input == "zero")
    recovered = predicted_original(target, state, timestep, settings)
    torch.testing.assert_close(recovered, original, atol=1e-3, rtol=0)


def test_timesteps_hold_the_last_one_often_enough():
    generator = torch.Generator().manual_seed(0)
    timesteps = draw_timesteps(20_000, OURS, 0.25, generator)
    assert (timesteps == 999).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert timesteps.min() >= 0
    others = timesteps[timesteps != 999].float()
    assert others.mean().item() == pytest.approx(499, abs=15)


def test_a_restart_trains_on_the_timesteps_that_it_samples_at():
    settings = NoiseSettings(restart_timestep=200)
    timesteps = draw_timesteps(20_000, settings, 0.5, torch.Generator().manual_seed(0))
    others = timesteps[timesteps != 999]
    assert others.max() == 200
    assert others.min() == 0
    seen = []

    def network(state, timestep, condition):
        seen.append(int(timestep[0]))
        return smooth_network(state, timestep, condition)

    image = torch.zeros(1, 1, 2, 2)
    sample(network, image, image, settings, num_inference_steps=5)
    assert seen == [999, 200, 150, 99, 49]


def test_a_restart_begins_with_the_first_estimate_and_the_starting_noise():
    settings = NoiseSettings(restart_timestep=200)
    start, condition = torch.randn(2, 1, 5, 6), torch.rand(2, 1, 5, 6)
    states = []

    def network(state, timestep, condition):
        states.append(state)
        return smooth_network(state, timestep, condition)

    estimate = sample(network, condition, start, settings, num_inference_steps=1)
    sample(network, condition, start, settings, num_inference_steps=2)
    level = alphas_cumprod(settings)[200]
    torch.testing.assert_close(states[2], level.sqrt() * estimate + (1 - level).sqrt() * start)
    assert torch.equal(states[0], torch.zeros_like(start))


def test_after_a_restart_the_levels_are_those_of_the_whole_process():
    # Where x_0 is always 0, DDIM's states are the noise at each level.
    settings = NoiseSettings(prediction_type="sample", restart_timestep=200)
    start = torch.randn(1, 1, 4, 4)
    states = []

    def network(state, timestep, condition):
        states.append(state)
        return torch.zeros_like(state)

    sample(network, start, start, settings, num_inference_steps=5)
    levels = [(1 - alphas_cumprod(settings)[t]).sqrt() for t in (200, 150, 99, 49)]
    for state, level in zip(states[1:], levels, strict=True):
        torch.testing.assert_close(state, level * start, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sampler", ["ddim", "dpm-solver++"])
@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_after_a_restart_sampling_goes_through_the_states_that_are_trained_on(sampler, prediction_type):
    settings = NoiseSettings(prediction_type=prediction_type, restart_timestep=200)
    truth, estimate = torch.rand(2, 1, 5, 6) * 2 - 1, torch.rand(2, 1, 5, 6) * 2 - 1
    start = torch.randn(2, 1, 5, 6)
    states = {}

    def network(state, timestep, condition):
        states[int(timestep[0])] = state
        aim = estimate if int(timestep[0]) == settings.last_timestep else truth
        return oracle(aim, settings)(state, timestep, condition)

    result = sample(network, start, start, settings, sampler=sampler, num_inference_steps=5)
    torch.testing.assert_close(result, truth, atol=1e-4, rtol=1e-4)
    noise = restart_noise(start, estimate, truth, settings)
    assert list(states) == [999, 200, 150, 99, 49]
    for step in (200, 150, 99, 49):
        timestep = torch.full((2,), step)
        trained, target = noisy_sample(truth, noise, timestep, settings)
        torch.testing.assert_close(states[step], trained, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(predicted_original(target, trained, timestep, settings), truth)


def test_noise_is_a_function_of_seed_stage_step_and_shape():
    noise = SeededNoise(5)
    first = noise((4, 4), stage="slices", step=-1)
    assert torch.equal(first, SeededNoise(5)((4, 4), stage="slices"))
    for other in (
        SeededNoise(6)((4, 4), stage="slices"),
        noise((4, 4), stage="latents"),
        noise((4, 4), stage="slices", step=0),
    ):
        assert not torch.equal(first, other)
    assert abs(noise((200, 200), stage="slices").std().item() - 1) < 0.02


def test_settings_that_contradict_are_refused():
    with pytest.raises(RequestError, match="epsilon"):
        NoiseSettings(prediction_type="epsilon")
    with pytest.raises(RequestError, match="zero_terminal_snr"):
        NoiseSettings(zero_terminal_snr=False)
    for restart in (0, 999, -1):
        with pytest.raises(RequestError, match="restart_timestep lies between"):
            NoiseSettings(restart_timestep=restart)
    with pytest.raises(RequestError, match="must not know it"):
        NoiseSettings(restart_timestep=300, last_timestep_input="noise")
    image = torch.zeros(1, 1, 2, 2)
    with pytest.raises(RequestError, match="another sampler"):
        sample(smooth_network, image, image, NoiseSettings(restart_timestep=300), sampler="renoise")
    with pytest.raises(RequestError, match="1 to 32 steps, got 33"):
        sample(smooth_network, image, image, NoiseSettings(restart_timestep=30), num_inference_steps=33)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_step_numbers_are_refused(steps):
    image = torch.zeros(1, 1, 2, 2)
    with pytest.raises(RequestError, match=f"got {steps}"):
        sample(smooth_network, image, image, OURS, num_inference_steps=steps)


def test_a_stochastic_sampler_needs_its_noise():
    image = torch.zeros(1, 1, 2, 2)
    with pytest.raises(RequestError, match="step_noise"):
        sample(smooth_network, image, image, OURS, sampler="ddpm")


def test_raising_in_on_step_stops_the_sampling():
    calls = []

    def on_step(step, total):
        calls.append((step, total))
        if step == 2:
            raise KeyboardInterrupt

    image = torch.zeros(1, 1, 2, 2)
    with pytest.raises(KeyboardInterrupt):
        sample(smooth_network, image, image, OURS, num_inference_steps=5, on_step=on_step)
    assert calls == [(1, 5), (2, 5)]


def test_settings_round_trip():
    settings = NoiseSettings.from_options(TrainSlicesOptions(data="d", output_dir="r", beta_end=0.03))
    assert settings.beta_end == 0.03
    assert NoiseSettings.from_dict(settings.to_dict()) == settings
    with pytest.raises(RequestError, match="unknown"):
        NoiseSettings.from_dict({"unknown": 1})
