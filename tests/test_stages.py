import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tiny
from ct2mri.data.cases import SLICE_AXIS
from ct2mri.diffusion import NoiseSettings, SeededNoise, alphas_cumprod
from ct2mri.errors import RequestError
from ct2mri.models import ScalableUNet
from ct2mri.stages import LatentsStage, SlicesStage, load_vqvae, save_vqvae

SHAPE = (5, 7, 6)


class Oracle(nn.Module):
    """Answers with the v that belongs to a known clean sample, which a function makes of the condition."""

    def __init__(self, original, sample_channels=1, condition_channels=1):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.original = original
        self.sample_channels = sample_channels
        self.condition_channels = condition_channels
        self.batch_sizes = []

    def forward(self, sample, timestep, condition):
        self.batch_sizes.append(len(sample))
        if sample.is_meta:  # asked how much memory it needs, by a sample of some size
            return torch.zeros_like(sample)
        alpha = alphas_cumprod(NoiseSettings())[timestep].reshape(-1, *[1] * (sample.ndim - 1))
        original = self.original(condition)
        # At the last timestep the network is shown zeros, and v is −x_0 there.
        noise = (sample - alpha.sqrt() * original) / (1 - alpha).sqrt()
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * original


def volume(seed=0, channels=1, shape=SHAPE):
    return torch.rand(channels, *shape, generator=torch.Generator().manual_seed(seed)) * 1.8 - 0.9


@pytest.mark.parametrize("orientations", [("axial",), ("coronal",), ("sagittal", "axial", "coronal")])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm-solver++", "unipc"])
def test_an_oracle_recovers_the_volume_through_the_slices_stage(orientations, sampler):
    stage = tiny.slices_stage(
        Oracle(lambda condition: condition),
        sampler=sampler,
        num_inference_steps=4,
        orientations=orientations,
        batch_size=3,
    )
    target = volume()
    drawn = stage.sample({"source": target}, SeededNoise(0))
    assert drawn.shape == target.shape
    torch.testing.assert_close(drawn, target, atol=1e-4, rtol=0)


def test_an_oracle_recovers_the_latents_through_the_latents_stage():
    stage = tiny.latents_stage(num_inference_steps=5)
    target = volume(1)
    standardised = stage.encode_standardised(target)
    oracle = Oracle(lambda _: standardised[None], tiny.LATENT_CHANNELS, tiny.LATENT_CHANNELS)
    stage = tiny.latents_stage(oracle, stage.vqvae, num_inference_steps=5)
    refined = stage.sample({"draft": volume(2), "source": volume(3)}, SeededNoise(0))
    with torch.no_grad():
        expected = stage.vqvae(target[None])[0][0]  # encoded, quantised, decoded
    torch.testing.assert_close(refined, expected, atol=1e-4, rtol=0)
    assert expected.std() > 1e-3


def test_residual_decoding_leaves_an_unchanged_draft_as_it_was():
    stage = tiny.latents_stage(num_inference_steps=1, decoding="residual", condition=["source", "draft"])
    channels = tiny.LATENT_CHANNELS
    as_it_was = Oracle(lambda condition: condition[:, channels:], channels, 2 * channels)
    stage = tiny.latents_stage(
        as_it_was, stage.vqvae, num_inference_steps=1, decoding="residual", condition=["source", "draft"]
    )
    draft = volume(2)
    refined = stage.sample({"draft": draft, "source": volume(3)}, SeededNoise(0))
    torch.testing.assert_close(refined, draft, atol=1e-4, rtol=0)


def test_residual_decoding_adds_what_refining_changed_without_the_codebook():
    stage = tiny.latents_stage()
    vqvae = stage.vqvae
    with torch.no_grad():
        for parameter in vqvae.parameters():  # as they begin, images hardly depend on latents
            parameter.mul_(3)
    target = stage.encode_standardised(volume(1))
    oracle = Oracle(lambda _: target[None], tiny.LATENT_CHANNELS, tiny.LATENT_CHANNELS)
    stage = tiny.latents_stage(oracle, vqvae, num_inference_steps=3, decoding="residual")
    draft = volume(2) / 4
    with torch.no_grad():
        wanted, before = (vqvae.decode(vqvae.encode(image[None]), SHAPE)[0] for image in (volume(1), draft))
        assert (wanted - before).abs().max() > 1e-3
        assert (wanted - vqvae(volume(1)[None])[0][0]).abs().max() > 1e-3  # the codebook would change it
    torch.testing.assert_close(
        stage.sample({"draft": draft, "source": volume(3)}, SeededNoise(0)),
        (draft + wanted - before).clamp(-1, 1),
        atol=1e-4,
        rtol=0,
    )


def test_the_residual_gain_is_the_share_that_is_added(tmp_path):
    condition = {"draft": volume(2) / 4, "source": volume(3)}
    results = {}
    for gain in (0.0, 0.4, 1.0):
        stage = tiny.latents_stage(num_inference_steps=3, decoding="residual", residual_gain=gain)
        stage.save_stage(tmp_path / str(gain) / "latents")
        save_vqvae(stage.vqvae, tmp_path / str(gain) / "vqvae")
        stage = LatentsStage.load_stage(tmp_path / str(gain) / "latents")
        results[gain] = stage.sample(condition, SeededNoise(0))
    torch.testing.assert_close(results[0.0], condition["draft"])
    change = results[1.0] - results[0.0]
    torch.testing.assert_close(results[0.4], condition["draft"] + 0.4 * change, atol=1e-5, rtol=0)
    with pytest.raises(RequestError, match=r"residual_gain of a latents stage is 0 to 1, got 1\.5"):
        tiny.latents_stage(decoding="residual", residual_gain=1.5)


def test_a_drawn_change_is_added_to_the_draft(tmp_path):
    settings = {"num_inference_steps": 2, "decoding": "residual"}
    plain = tiny.latents_stage(**settings)
    draft, target = volume(2) / 4, volume(1)
    with torch.no_grad():
        for parameter in plain.vqvae.parameters():  # as they begin, images hardly depend on latents
            parameter.mul_(3)
    change_std = [0.5, 2.0, 0.1]
    scale = torch.tensor(change_std)[:, None, None, None]
    wanted = plain.encode_standardised(target)
    results = []
    for latents, given in (
        (wanted, {}),
        ((wanted - plain.encode_standardised(draft)) / scale, {"change_std": change_std}),
    ):
        oracle = Oracle(lambda _, latents=latents: latents[None], tiny.LATENT_CHANNELS, tiny.LATENT_CHANNELS)
        stage = tiny.latents_stage(oracle, plain.vqvae, **settings, **given)
        results.append(stage.sample({"draft": draft, "source": volume(3)}, SeededNoise(0)))
    torch.testing.assert_close(results[1], results[0], atol=1e-4, rtol=0)
    assert (results[0] - draft).abs().max() > 1e-3
    stage = tiny.latents_stage(**settings, change_std=change_std)
    stage.save_stage(tmp_path / "latents")
    save_vqvae(stage.vqvae, tmp_path / "vqvae")
    assert LatentsStage.load_stage(tmp_path / "latents").change_std == change_std
    with pytest.raises(RequestError, match=r"change_std needs 3 positive numbers.*\[1\.0\]"):
        tiny.latents_stage(change_std=[1.0])
    with pytest.raises(RequestError, match="draws a change from the draft"):
        tiny.latents_stage(condition=["source"], change_std=change_std)


def test_residual_decoding_needs_a_draft():
    with pytest.raises(RequestError, match="Residual decoding adds to the draft"):
        tiny.latents_stage(condition=["source"], decoding="residual")


def test_stages_of_before_the_choice_of_decoding_decode_plainly(tmp_path):
    stage = tiny.latents_stage(decoding="residual")
    stage.save_stage(tmp_path / "latents")
    save_vqvae(stage.vqvae, tmp_path / "vqvae")
    assert LatentsStage.load_stage(tmp_path / "latents").decoding == "residual"
    facts = json.loads((tmp_path / "latents" / "stage.json").read_text())
    del facts["decoding"]
    (tmp_path / "latents" / "stage.json").write_text(json.dumps(facts))
    assert LatentsStage.load_stage(tmp_path / "latents").decoding == "plain"


def test_latents_are_standardised_and_back():
    stage = tiny.latents_stage()
    target = volume()
    standardised = stage.encode_standardised(target)
    with torch.no_grad():
        latents = stage.vqvae.encode(target[None])[0]
    mean, std = (torch.tensor(n)[:, None, None, None] for n in (stage.latents_mean, stage.latents_std))
    torch.testing.assert_close(standardised * std + mean, latents)
    assert standardised.shape == (tiny.LATENT_CHANNELS, 2, 2, 2)
    assert stage.decode_standardised(standardised, SHAPE).shape == (1, *SHAPE)


@pytest.mark.parametrize("orientation", ["axial", "coronal", "sagittal"])
def test_a_slice_is_drawn_with_its_neighbours_in_sight(orientation, tmp_path):
    shown = {}

    def remember(condition):
        if not condition.is_meta:
            for slices in condition:
                shown[round(float(slices[0, 0, 0]), 4)] = slices
        return condition[:, 2:4].mean(dim=1, keepdim=True)  # of the slice before

    stage = tiny.slices_stage(
        Oracle(remember, 1, 6), num_inference_steps=1, orientations=(orientation,), neighbours=1, batch_size=3
    )
    source = volume(channels=2)
    drawn = stage.sample({"source": source}, SeededNoise(0))
    axis = SLICE_AXIS[orientation] + 1
    size = source.shape[axis]
    before = source.index_select(axis, torch.tensor([0, *range(size - 1)]))
    torch.testing.assert_close(drawn, before.mean(dim=0, keepdim=True), atol=1e-5, rtol=0)
    after = source.index_select(axis, torch.tensor([*range(1, size), size - 1]))
    together = torch.cat([source, before, after]).movedim(axis, 0)
    for slices in together:
        torch.testing.assert_close(shown[round(float(slices[0, 0, 0]), 4)], slices)

    stage = tiny.slices_stage(tiny.unet(2, 1, 6), neighbours=1)
    stage.check_plan(channels=2, drafted=False)
    with pytest.raises(RequestError, match="6 source windows, the slices stage was trained with 2"):
        stage.check_plan(channels=6, drafted=False)
    stage.save_stage(tmp_path / "slices")
    assert SlicesStage.load_stage(tmp_path / "slices").neighbours == 1
    for neighbours in (-1, 2):
        with pytest.raises(RequestError, match=f"6 condition channels and neighbours {neighbours}"):
            tiny.slices_stage(tiny.unet(2, 1, 6), neighbours=neighbours)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "renoise"])
def test_results_do_not_depend_on_the_batch_size(sampler):
    stage = tiny.slices_stage(sampler=sampler, num_inference_steps=3, orientations=("axial", "sagittal"))
    results = []
    for stage.batch_size in (1, 4, 100):
        results.append(stage.sample({"source": volume()}, SeededNoise(0)))
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(results[0], results[2], atol=1e-4, rtol=0)


def test_slices_go_through_the_network_in_batches_as_equal_as_can_be():
    oracle = Oracle(lambda condition: condition)
    tiny.slices_stage(oracle, num_inference_steps=2, batch_size=4).sample(
        {"source": volume()}, SeededNoise(0)
    )
    assert oracle.batch_sizes == [3, 3, 3, 3]


@pytest.mark.parametrize("stage", [tiny.slices_stage(), tiny.latents_stage()], ids=["slices", "latents"])
def test_the_seed_decides(stage):
    condition = {"source": volume(), "draft": volume(1)}
    first, again, other = (stage.sample(condition, SeededNoise(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_condition_parts_are_encoded_in_their_order():
    shown = []
    channels = 2 * tiny.LATENT_CHANNELS
    network = Oracle(lambda condition: shown.append(condition) or condition[:, :3], 3, channels)
    stage = tiny.latents_stage(network, condition=["source", "draft"], num_inference_steps=1)
    draft, source = volume(1), volume(2, channels=2)
    stage.sample({"draft": draft, "source": source}, SeededNoise(0))
    expected = [stage.encode_standardised(source[:1]), stage.encode_standardised(draft)]
    assert torch.equal(shown[0], torch.cat(expected)[None])


def test_a_latents_stage_on_the_source_alone_needs_no_draft():
    stage = tiny.latents_stage(condition=["source"])
    assert stage.sample({"source": volume(channels=2)}, SeededNoise(0)).shape == (1, *SHAPE)
    with pytest.raises(RequestError, match="conditioned on a draft, and there is none"):
        tiny.latents_stage().sample({"source": volume()}, SeededNoise(0))


def test_slices_of_air_alone_are_skipped():
    oracle = Oracle(torch.zeros_like)
    source = volume()
    source[:, :, :, 2] = -1
    stage = tiny.slices_stage(oracle, num_inference_steps=1, batch_size=100)
    drawn = stage.sample({"source": source}, SeededNoise(0))
    assert oracle.batch_sizes == [SHAPE[2] - 1]
    assert (drawn[:, :, :, 2] == -1).all()
    assert (drawn[:, :, :, 3] == 0).all()
    assert (stage.sample({"source": torch.full((1, *SHAPE), -1.0)}, SeededNoise(0)) == -1).all()


@pytest.mark.parametrize("shape", [(9, 8, 1), (9, 1, 7), (1, 8, 7), (1, 1, 1), (1, 1, 5), (2, 1, 1)])
def test_single_slices_and_lines(shape):
    source = volume(shape=shape)
    stage = tiny.slices_stage(Oracle(lambda condition: condition), orientations=("axial", "coronal"))
    torch.testing.assert_close(stage.sample({"source": source}, SeededNoise(0)), source, atol=1e-4, rtol=0)
    for real in (tiny.slices_stage(), tiny.latents_stage()):
        drawn = real.sample({"source": source, "draft": source}, SeededNoise(0))
        assert drawn.shape == (1, *shape)
        assert drawn.isfinite().all()


def test_progress_is_told_and_can_cancel():
    told = []
    stage = tiny.slices_stage(num_inference_steps=3, orientations=("axial", "coronal"), batch_size=4)
    stage.sample({"source": volume()}, SeededNoise(0), lambda *step: told.append(step))
    # 6 axial and 7 coronal slices of 3 steps, in batches of 3 and 3, and of 4 and 3.
    counts = [3, 6, 9, 12, 15, 18, 22, 26, 30, 33, 36, 39]
    assert told == [("slices", count, 39) for count in counts]
    told.clear()
    tiny.latents_stage().sample(
        {"draft": volume()} | {"source": volume()}, SeededNoise(0), lambda *s: told.append(s)
    )
    assert told == [("latents", 1, 2), ("latents", 2, 2)]

    class Cancelled(Exception):
        pass

    def cancel(name, step, total):
        told.append(step)
        if step == 6:
            raise Cancelled

    told.clear()
    with pytest.raises(Cancelled):
        stage.sample({"source": volume()}, SeededNoise(0), cancel)
    assert told == [3, 6]


@pytest.mark.parametrize("steps", [0, -1, 1001])
@pytest.mark.parametrize("stage", [tiny.slices_stage(), tiny.latents_stage()], ids=["slices", "latents"])
def test_impossible_steps_are_refused(stage, steps):
    condition = {"source": volume(), "draft": volume()}
    with pytest.raises(RequestError, match=f"1 to 1000 steps, got {steps}"):
        stage.sample(condition, SeededNoise(0), num_inference_steps=steps)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(RequestError, match=r"orientations of a slices stage: one or more of .* got none"):
        tiny.slices_stage(orientations=())
    with pytest.raises(RequestError, match="got diagonal"):
        tiny.slices_stage(orientations=("diagonal",))
    with pytest.raises(RequestError, match="each once"):
        tiny.slices_stage(orientations=("axial", "axial"))
    with pytest.raises(RequestError, match="batch_size is at least 1, got 0"):
        tiny.slices_stage(batch_size=0)
    with pytest.raises(RequestError, match="got 'euler'"):
        tiny.slices_stage(sampler="euler")
    with pytest.raises(RequestError, match="condition of a latents stage"):
        tiny.latents_stage(tiny.unet(3, 3, 3), condition=["mr"])
    with pytest.raises(RequestError, match="need 3 numbers each"):
        tiny.latents_stage(latents_mean=[0.0])
    with pytest.raises(RequestError, match="this VQ-VAE with the condition draft gives 3 and 3"):
        tiny.latents_stage(tiny.unet(3, 2, 2))
    with pytest.raises(RequestError, match="takes 1 source windows, got 2"):
        tiny.slices_stage().sample({"source": volume(channels=2)}, SeededNoise(0))


# --- on disk ---------------------------------------------------------------------------------------------


def test_a_saved_slices_stage_is_bit_equal(tmp_path):
    stage = tiny.slices_stage(sampler="ddpm", num_inference_steps=3, orientations=("coronal", "axial"))
    stage.save_stage(tmp_path / "slices")
    again = SlicesStage.load_stage(tmp_path / "slices")
    condition = {"source": volume()}
    assert torch.equal(stage.sample(condition, SeededNoise(0)), again.sample(condition, SeededNoise(0)))
    assert (again.noise, again.sampler, again.num_inference_steps) == (stage.noise, "ddpm", 3)
    assert again.orientations == ("coronal", "axial")
    assert not [
        path for path in tmp_path.rglob("*") if path.suffix not in ("", ".json", ".safetensors", ".md")
    ]


def test_a_saved_latents_stage_is_bit_equal(tmp_path):
    stage = tiny.latents_stage(
        condition=["source", "draft"], draft={"model": "abc", "num_inference_steps": 1}
    )
    stage.save_stage(tmp_path / "best")
    save_vqvae(stage.vqvae, tmp_path / "vqvae")
    again = LatentsStage.load_stage(tmp_path / "best")
    condition = {"source": volume(), "draft": volume(1)}
    assert torch.equal(stage.sample(condition, SeededNoise(0)), again.sample(condition, SeededNoise(0)))
    assert again.condition == ["source", "draft"]
    assert again.draft == {"model": "abc", "num_inference_steps": 1}


@pytest.fixture
def saved(tmp_path):
    stage = tiny.latents_stage()
    stage.save_stage(tmp_path / "latents")
    save_vqvae(stage.vqvae, tmp_path / "vqvae")
    tiny.slices_stage().save_stage(tmp_path / "slices")
    return tmp_path


def test_another_kind_of_stage_is_named(saved):
    with pytest.raises(RequestError, match="holds a `vqvae` stage; a `slices` stage was asked for"):
        SlicesStage.load_stage(saved / "vqvae")
    with pytest.raises(RequestError, match="holds a `slices` stage; a `vqvae` stage was asked for"):
        load_vqvae(saved / "slices")
    with pytest.raises(RequestError, match="holds a `slices` stage; a `latents` stage was asked for"):
        LatentsStage.load_stage(saved / "slices")


@pytest.mark.parametrize("missing", ["stage.json", "config.json", "model.safetensors"])
def test_a_missing_part_is_named(saved, missing):
    (saved / "slices" / missing).unlink()
    with pytest.raises(RequestError, match=missing):
        SlicesStage.load_stage(saved / "slices")


def test_a_run_folder_in_place_of_its_stage_is_told(saved):
    (saved / "run").mkdir()
    (saved / "slices").rename(saved / "run" / "best")
    with pytest.raises(RequestError, match=r"this is a run, its stage is .*best"):
        SlicesStage.load_stage(saved / "run")


def test_damaged_parts_are_refused(saved):
    facts_path = saved / "slices" / "stage.json"
    facts = json.loads(facts_path.read_text())
    for content, part in [
        ("{", "stage.json is damaged"),
        ("[]", "stage.json is damaged"),
        (json.dumps(facts | {"format_version": 2}), "format_version 2.*reads up to 1; update ct2mri"),
        (json.dumps({k: v for k, v in facts.items() if k != "noise"}), "stage.json is damaged.*noise"),
        (json.dumps(facts | {"noise": {"beta": 1}}), "noise settings cannot be read"),
        (json.dumps(facts | {"num_inference_steps": 0}), "got 0"),
    ]:
        facts_path.write_text(content)
        with pytest.raises(RequestError, match=part):
            SlicesStage.load_stage(saved / "slices")
    facts_path.write_text(json.dumps(facts))
    (saved / "slices" / "config.json").write_text("{")
    with pytest.raises(RequestError, match=r"config.json is damaged"):
        SlicesStage.load_stage(saved / "slices")
    weights = (saved / "latents" / "model.safetensors").read_bytes()
    (saved / "latents" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(RequestError, match="is damaged"):
        LatentsStage.load_stage(saved / "latents")


def test_a_vqvae_that_the_stage_was_not_trained_with_is_refused(saved):
    path = saved / "vqvae" / "model.safetensors"
    weights = load_file(path)
    weights["decoder.input_conv.bias"][0] += 1e-3
    save_file(weights, path)
    with pytest.raises(RequestError, match=r"is not the one that .* was trained with"):
        LatentsStage.load_stage(saved / "latents")


def test_saving_replaces_a_stage_whole(saved):
    other = tiny.slices_stage(seed=5)
    other.save_stage(saved / "slices")
    weights = load_file(saved / "slices" / "model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in other.network.state_dict().items())
    assert not [path for path in saved.iterdir() if path.name.startswith(".")]


def test_stages_load_no_image_library():
    program = (
        "import sys, ct2mri.stages\n"
        "sys.exit(','.join({'SimpleITK', 'nibabel', 'pydicom', 'lightning'} & set(sys.modules)) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


def test_a_stage_of_the_published_sampler_runs_from_the_condition():
    noise = NoiseSettings(prediction_type="epsilon", zero_terminal_snr=False, last_timestep_input="noise")
    network = tiny.unet(2)
    assert isinstance(network, ScalableUNet)
    stage = SlicesStage(network, noise, sampler="renoise", num_inference_steps=1)
    one, other = (stage.sample({"source": volume()}, SeededNoise(seed)) for seed in (0, 1))
    assert torch.equal(one, other)  # a single step draws no noise
    assert np.isfinite(one.numpy()).all()


def test_weights_can_be_read_by_whoever_can_read_the_folder(tmp_path):
    tiny.slices_stage().save_stage(tmp_path / "stage")
    modes = {path.stat().st_mode for path in (tmp_path / "stage").iterdir()}
    assert len(modes) == 1
