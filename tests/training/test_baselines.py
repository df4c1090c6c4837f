"""Baselines that are trained: each by the same loop, into the same folders, for the same commands."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_resume import Stopped, same, stop_at
from torch.utils.data import default_collate
from training_tiny import Tiny

from ct2mri import load_volume
from ct2mri.bridge import BridgeSettings
from ct2mri.data.batching import Request
from ct2mri.data.cases import PreparedDataset
from ct2mri.data.volume import Volume
from ct2mri.diffusion import NoiseSettings, SeededNoise, alphas_cumprod, noisy_sample, sample
from ct2mri.errors import RequestError
from ct2mri.export import export
from ct2mri.files import read_json
from ct2mri.losses import diffusion_loss
from ct2mri.options.translation import ExportOptions, TranslateOptions
from ct2mri.pipeline import TranslationPipeline
from ct2mri.training.baseline import at_once
from ct2mri.training.baseline_bridge import BridgeModule
from ct2mri.training.baseline_pix2pix import Pix2pixModule
from ct2mri.training.fit import train_baseline
from ct2mri.training.slices import SlicesModule, slice_items
from ct2mri.translate import translate

STAGE = {"regression": "slices", "pix2pix": "slices", "bridge": "bridge", "latent-diffusion": "latents"}
KINDS = ["hu-lookup", "mean", *STAGE]


def options_of(tiny: Tiny, run: Path, kind: str, vqvae_run: Path, **given):
    extra = {
        "pix2pix": {"discriminator_channels": 4},
        "bridge": {"num_inference_steps": 2},
        "latent-diffusion": {"vqvae": vqvae_run, "num_inference_steps": 2},
    }.get(kind, {})
    return tiny.baseline(run, kind, **{"orientations": ["axial"], **extra, **given})


def batch_of(tiny: Tiny, run: Path):
    items = slice_items(PreparedDataset(tiny.data), at_once(tiny.baseline(run, "regression")))
    chosen = [n for n, size in enumerate(items.sizes) if size == items.sizes[0]][:4]
    return default_collate([items[Request(n, items.sizes[0], 0, place)] for place, n in enumerate(chosen)])


@pytest.mark.parametrize("kind", STAGE)
def test_a_stopped_training_goes_on_exactly(kind, tiny: Tiny, vqvae_run, tmp_path: Path, monkeypatch):
    train_baseline(options_of(tiny, tmp_path / "whole", kind, vqvae_run))
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(Stopped):
            train_baseline(options_of(tiny, tmp_path / "cut", kind, vqvae_run))
    assert read_json(tmp_path / "cut" / "run.json")["finished"] is False
    train_baseline(options_of(tiny, tmp_path / "cut", kind, vqvae_run))
    assert same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("kind", KINDS)
def test_from_training_to_a_volume(kind, tiny: Tiny, vqvae_run, tmp_path: Path):
    run, model = tmp_path / "run", tmp_path / "model"
    train_baseline(options_of(tiny, run, kind, vqvae_run, max_steps=2, validate_every=2))
    export(ExportOptions(output=model, baseline=run, half=kind == "regression"))
    pipeline = TranslationPipeline.from_pretrained(model, "cpu")
    assert [stage.kind for stage in pipeline.stages] == [STAGE.get(kind, kind.removeprefix("hu-"))]
    card = (model / "README.md").read_text()
    assert ("latents" if kind == "latent-diffusion" else f"baseline {kind}") in card
    translate(
        TranslateOptions(
            data=tiny.data, split="validation", output=tmp_path / "mr", model=str(model), device="cpu"
        )
    )
    dataset = PreparedDataset(tiny.data)
    (name,) = dataset.case_ids("validation")
    volume = load_volume(tmp_path / "mr" / f"{name}.nii.gz")
    assert isinstance(volume, Volume)
    assert volume.spatial_shape == dataset.case(name).spatial_shape
    assert np.isfinite(volume.array).all()
    assert volume.array[np.array(dataset.case(name).mask)].std() > 0
    case = dataset.case(name)
    drawn = [pipeline.sample(case.source, mask=case.mask, seed=seed).mean for seed in (0, 0, 1)]
    assert np.array_equal(drawn[0], drawn[1])
    assert np.array_equal(drawn[0], drawn[2]) == (kind not in ("bridge", "latent-diffusion"))


def test_a_baseline_is_exported_alone(tiny: Tiny, tmp_path: Path):
    train_baseline(tiny.baseline(tmp_path / "run", "mean"))
    with pytest.raises(RequestError, match="give --baseline alone, without --slices"):
        export(ExportOptions(output=tmp_path / "m", baseline=tmp_path / "run", slices=tmp_path / "run"))
    with pytest.raises(RequestError, match="nowhere is no run folder"):
        export(ExportOptions(output=tmp_path / "m", baseline=tmp_path / "nowhere"))


# --- regression ------------------------------------------------------------------------------------------


def test_regression_is_l1_and_nothing_else(tiny: Tiny, tmp_path: Path):
    options = at_once(tiny.baseline(tmp_path / "run", "regression"))
    torch.manual_seed(0)
    module = SlicesModule(options, 2)
    batch = batch_of(tiny, tmp_path)
    shown = []
    module.model.register_forward_pre_hook(lambda _, given: shown.append(given))
    loss = module.loss(batch)
    (network_input, timestep, condition), weight = shown[0], batch["weight"]
    assert not network_input.any()
    assert not timestep.any()
    assert torch.equal(condition, batch["source"])
    error = (module.model(network_input, timestep, condition) - batch["target"]).abs()
    each = (weight * error).sum((1, 2, 3)) / weight.sum((1, 2, 3))
    assert 0 < weight.mean() < 1  # some pixels are not valid
    torch.testing.assert_close(loss, each.mean())
    torch.testing.assert_close(module.loss({**batch, "key": batch["key"] + 5}), loss)  # no chance in it


def test_a_process_of_one_timestep(tiny: Tiny, tmp_path: Path):
    settings = NoiseSettings(num_train_timesteps=1, prediction_type="sample")
    assert torch.equal(alphas_cumprod(settings), torch.zeros(1))
    image, noise = torch.rand(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    zeros = torch.zeros(2, dtype=torch.long)
    network_input, target = noisy_sample(image, noise, zeros, settings)
    assert not network_input.any()
    assert torch.equal(target, image)
    assert diffusion_loss(image + 0.5, image, zeros, settings).item() == pytest.approx(0.5)
    for sampler in ("ddim", "ddpm", "dpm-solver++", "unipc", "renoise"):
        drawn = sample(
            lambda sample, timestep, condition: condition,
            image,
            noise,
            settings,
            sampler=sampler,
            num_inference_steps=1,
            step_noise=lambda step: noise,
        )
        assert torch.equal(drawn, image)
    train_baseline(tiny.baseline(tmp_path / "run", "regression", max_steps=1, orientations=["axial"]))
    export(ExportOptions(output=tmp_path / "model", baseline=tmp_path / "run"))
    pipeline = TranslationPipeline.from_pretrained(tmp_path / "model", "cpu")
    with pytest.raises(RequestError, match="trained for one step alone, got 10"):
        pipeline.check(num_inference_steps=10)
    source = np.array(PreparedDataset(tiny.data).case("p4").source)
    mask = np.array(PreparedDataset(tiny.data).case("p4").mask)
    drawn = [pipeline.sample(source, mask=mask, seed=seed).mean for seed in (0, 1)]
    assert np.array_equal(drawn[0], drawn[1])


@pytest.mark.parametrize("kind", ["regression", "pix2pix", "bridge"])
def test_training_improves_l1_on_unseen_patients(kind, tiny: Tiny, tmp_path: Path):
    run = tmp_path / "run"
    train_baseline(
        options_of(tiny, run, kind, run, max_steps=40, validate_every=10, learning_rate=5e-3, ema_decay=0.8)
    )
    with (run / "validation.csv").open() as file:
        errors = [float(row["l1"]) for row in csv.DictReader(file)]
    assert len(errors) == 4
    assert min(errors[1:]) < 0.6 * errors[0]
    facts = json.loads((run / "run.json").read_text())
    assert facts["best"]["score"] == pytest.approx(min(errors))


# --- pix2pix ---------------------------------------------------------------------------------------------


def test_generator_and_adversary_get_their_own_gradients(tiny: Tiny, tmp_path: Path):
    options = tiny.baseline(tmp_path / "run", "pix2pix", discriminator_channels=4)
    torch.manual_seed(0)
    module = Pix2pixModule(options, at_once(options), 2)
    batch = batch_of(tiny, tmp_path)

    def gradients(loss):
        module.zero_grad()
        loss.backward()
        return [
            [None if p.grad is None else p.grad.clone() for p in part.parameters()]
            for part in (module.model, module.discriminator)
        ]

    generator, adversary = gradients(module.loss(batch))
    assert all(gradient is not None and gradient.isfinite().all() for gradient in [*generator, *adversary])
    assert all(p.requires_grad for p in module.parameters())

    source, target, weight = batch["source"], batch["target"], batch["weight"]
    drawn = module.model(torch.zeros_like(target), torch.zeros(len(target)).long(), source)
    assert (weight == 0).any()
    fake, real = (image.masked_fill(weight == 0, -1) for image in (drawn, target))
    logits = {"fake": module.discriminator(source, fake.detach()), "real": module.discriminator(source, real)}
    wrong = (
        -torch.log(torch.sigmoid(logits["real"])).mean() - torch.log(1 - torch.sigmoid(logits["fake"])).mean()
    ) / 2
    _, alone = gradients(wrong)
    for ours, theirs in zip(adversary, alone, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)

    drawn = module.model(torch.zeros_like(target), torch.zeros(len(target)).long(), source)
    looked_at = module.discriminator(source, drawn.masked_fill(weight == 0, -1))
    wanted = -torch.log(torch.sigmoid(looked_at)).mean() + 100 * module.l1(drawn, target, weight)
    alone, _ = gradients(wanted)
    for ours, theirs in zip(generator, alone, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_the_adversary_learns_and_is_logged(tiny: Tiny, tmp_path: Path):
    run = tmp_path / "run"
    train_baseline(options_of(tiny, run, "pix2pix", run))
    with (run / "train.csv").open() as file:
        norms = [float(row["discriminator_gradient_norm"]) for row in csv.DictReader(file)]
    assert len(norms) == 6
    assert min(norms) > 0
    state = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    assert any(name.startswith("discriminator.") for name in state)
    weights = (run / "best" / "model.safetensors").read_bytes()
    assert b"discriminator" not in weights


@pytest.mark.parametrize("size", [(2, 2), (3, 40), (17, 31), (70, 70)])
def test_images_of_any_size_have_patches(size, tiny: Tiny, tmp_path: Path):
    options = tiny.baseline(tmp_path / "run", "pix2pix", discriminator_channels=4)
    discriminator = Pix2pixModule(options, at_once(options), 2).discriminator
    logits = discriminator(torch.rand(2, 2, *size), torch.rand(2, 1, *size))
    assert logits.shape[:2] == (2, 1)
    assert min(logits.shape[2:]) >= 1
    assert logits.isfinite().all()


def test_a_patch_is_as_large_as_the_papers(tiny: Tiny, tmp_path: Path):
    options = tiny.baseline(tmp_path / "run", "pix2pix", discriminator_channels=2)
    discriminator = Pix2pixModule(options, at_once(options), 1).discriminator
    convolutions = list(discriminator.convolutions)
    image = torch.rand(1, 2, 160, 160, requires_grad=True)
    x = image  # the convolutions alone: normalisation sees the whole image
    for convolution in convolutions:
        x = convolution(x)
    x[0, 0, x.shape[2] // 2, x.shape[3] // 2].backward()
    seen = image.grad[0].abs().sum(0) > 0
    assert seen.any(0).sum() == seen.any(1).sum() == 70


# --- bridge ----------------------------------------------------------------------------------------------


def test_the_bridge_is_trained_at_all_timesteps_from_its_own_keys(tiny: Tiny, tmp_path: Path):
    options = tiny.baseline(tmp_path / "run", "bridge", num_train_timesteps=5)
    torch.manual_seed(0)
    module = BridgeModule(options, at_once(options), BridgeSettings(5), 2)
    batch = batch_of(tiny, tmp_path)
    shown = []
    module.model.register_forward_pre_hook(lambda _, given: shown.append(given))
    for number in range(20):
        module.loss({**batch, "key": batch["key"] + torch.tensor([number, 0])})
    timesteps = torch.cat([timestep for _, timestep, _ in shown])
    assert set(timesteps.tolist()) == {1, 2, 3, 4, 5}
    network_input, timestep, _ = shown[0]
    at_the_end = timesteps == 5
    sources = batch["source"][:, :1].repeat(20, 1, 1, 1)
    inputs = torch.cat([given for given, _, _ in shown])
    assert torch.equal(inputs[at_the_end], sources[at_the_end])
    module.loss(batch)
    assert torch.equal(shown[-1][0], network_input)  # the same keys, the same noise
    reordered = {name: tensor.flip(0) for name, tensor in batch.items()}
    module.loss(reordered)
    assert torch.equal(shown[-1][0].flip(0), network_input)
    assert torch.equal(shown[-1][1].flip(0), timestep)


def test_the_bridges_loss_forgets_what_is_not_valid(tiny: Tiny, tmp_path: Path):
    options = tiny.baseline(tmp_path / "run", "bridge")
    torch.manual_seed(0)
    module = BridgeModule(options, at_once(options), BridgeSettings(), 2)
    batch = batch_of(tiny, tmp_path)
    seed = SeededNoise(0)
    noise, timestep = seed(tuple(batch["target"].shape), stage="test"), torch.tensor([1, 300, 700, 1000])
    loss = module._loss(batch["source"], batch["target"], batch["weight"], noise, timestep)
    m = (timestep / 1000).reshape(-1, 1, 1, 1)
    x = (1 - m) * batch["target"] + m * batch["source"][:, :1] + (2 * (m - m**2)).sqrt() * noise
    error = batch["weight"] * (module.model(x, timestep, batch["source"]) - (x - batch["target"])) ** 2
    expected = error.sum((1, 2, 3)) / batch["weight"].sum((1, 2, 3))
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-4, atol=1e-6)


# --- requests --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "given", "part"),
    [
        ("latent-diffusion", {}, "give --vqvae RUN"),
        ("bridge", {"num_inference_steps": 0}, "1 to 1000 steps, got 0"),
        ("bridge", {"bridge_variance": -1.0}, "bridge_variance is at least 0"),
        ("pix2pix", {"l1_weight": -1.0}, "l1_weight is at least 0"),
        ("pix2pix", {"discriminator_channels": 0}, "discriminator_channels is at least 1"),
        ("regression", {"orientations": []}, "orientations needs at least one"),
        ("regression", {"crop_size": 0}, "crop_size is at least 1"),
        ("regression", {"max_steps": 0}, "max_steps is at least 1"),
        ("regression", {"init": "model"}, "init is not for baselines"),
    ],
)
def test_requests_that_make_no_sense_are_refused(kind, given, part, tiny: Tiny, tmp_path: Path):
    with pytest.raises(RequestError, match=part):
        train_baseline(tiny.baseline(tmp_path / "run", kind, **given))


def test_a_crop_is_called_by_the_option_that_gives_it(tiny: Tiny, vqvae_run: Path, tmp_path: Path):
    with pytest.raises(RequestError, match="--volume_crop_size is three multiples of 4"):
        train_baseline(
            tiny.baseline(tmp_path / "run", "latent-diffusion", vqvae=vqvae_run, volume_crop_size=[5, 5, 5])
        )


@pytest.mark.parametrize("kind", ["mean", "hu-lookup"])
def test_a_shift_that_is_not_used_is_said(kind, tiny: Tiny, tmp_path: Path, capsys):
    train_baseline(tiny.baseline(tmp_path / "run", kind, hu_shift=25.0))
    assert f"--hu_shift is not used here: {kind} is made of the CTs as they are" in capsys.readouterr().out
