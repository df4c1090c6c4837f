"""Training of the 3D stage in the latent space of a trained VQ-VAE."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from training_tiny import Tiny, write_dataset

from ct2mri.data.batching import Request
from ct2mri.data.cases import PreparedDataset
from ct2mri.data.datasets import LatentDataset, padded
from ct2mri.diffusion import SeededNoise, noisy_sample, predicted_original, restart_noise
from ct2mri.errors import RequestError
from ct2mri.losses import gradient_loss
from ct2mri.models.layers import space_to_depth
from ct2mri.stage_files import file_hash
from ct2mri.stages import Execution, LatentsStage, load_vqvae
from ct2mri.training.decoded import DecodedLoss
from ct2mri.training.encoding import Latents
from ct2mri.training.fit import train_latents, train_vqvae
from ct2mri.training.latents_module import LatentsModule
from ct2mri.training.latents_validation import fitted_gain
from ct2mri.training.module import draw_diffusion


def encode(tiny: Tiny, vqvae_run: Path, run: Path, **given: object) -> tuple[Latents, PreparedDataset]:
    dataset = PreparedDataset(tiny.data)
    training = [dataset.case(case_id) for case_id in dataset.case_ids("train")]
    validating = [dataset.case(case_id) for case_id in dataset.case_ids("validation")]
    settings = {"condition": ["draft", "source"], "flips": True, "draft": {}} | given
    vqvae = load_vqvae(vqvae_run / "best")
    return Latents(run, vqvae, training, validating, **settings), dataset  # type: ignore[arg-type]


def test_a_run_leaves_what_the_next_steps_need(tiny: Tiny, vqvae_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_latents(tiny.latents(run, vqvae_run, condition=["draft", "source"], num_inference_steps=2))
    stage = LatentsStage.load_stage(run / "best", vqvae=run / "vqvae")
    assert stage.condition == ["draft", "source"] and stage.draft["model"] == "made up"
    case = PreparedDataset(tiny.data).case("p4")
    assert case.draft is not None
    volumes = {
        "draft": torch.from_numpy(np.array(case.draft))[None],
        "source": torch.from_numpy(np.array(case.source)),
    }
    refined = stage.sample(volumes, SeededNoise(0))
    assert refined.shape == (1, *case.spatial_shape) and refined.isfinite().all()
    with (run / "validation.csv").open(newline="") as file:
        assert set(next(csv.DictReader(file))) == {
            *("step", "loss", "residual_gain", "l1", "psnr", "draft_l1")
        }
    assert {path.name for path in (run / "pictures").glob("*6-*")} == {
        "step-0000006-axial.png",
        "step-0000006-coronal.png",
    }


def test_the_residual_gain_leaves_the_least_error(tiny: Tiny) -> None:
    dataset = PreparedDataset(tiny.data)
    cases = [dataset.case(case_id) for case_id in dataset.case_ids("validation")]
    generator = np.random.default_rng(0)

    def error(gain: float, changes: list[np.ndarray]) -> float:
        return sum(
            float(
                np.square(
                    (case.target.clip(-1, 1) - case.draft - gain * change)[case.mask & case.valid]
                ).sum()
            )
            for case, change in zip(cases, changes, strict=True)
        )

    changes = []
    for case in cases:
        wanted = case.target.clip(-1, 1) - case.draft
        changes.append((wanted + generator.normal(size=wanted.shape)).astype(np.float32))
    gain = fitted_gain(cases, changes)
    assert 0 < gain < 1
    assert error(gain, changes) < min(error(gain + 0.01, changes), error(gain - 0.01, changes))
    assert fitted_gain(cases, [-change for change in changes]) == 0
    assert fitted_gain(cases, [change * 0 for change in changes]) == 1


def test_it_learns_from_crops(tiny: Tiny, vqvae_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = {"max_steps": 80, "validate_every": 80, "learning_rate": 5e-3, "ema_decay": 0.9}
    train_latents(tiny.latents(run, vqvae_run, crop_size=[8, 12, 8], loss="double", **given))
    with (run / "train.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert np.mean(losses[-15:]) < 0.6 * np.mean(losses[:15])


def test_training_from_the_estimate_shows_what_sampling_will(
    tiny: Tiny, vqvae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = 0
    plain = LatentsModule.loss

    def watched(module: LatentsModule, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        nonlocal seen
        shown = list[tuple[torch.Tensor, ...]]()
        with module.model.register_forward_pre_hook(lambda _, inputs: shown.append(inputs)):
            loss = plain(module, batch)
        (blind, at_last, _), (state, timestep, condition) = shown
        assert not blind.any() and set(at_last.tolist()) == {module.settings.last_timestep}
        with torch.no_grad():
            output = module.model(blind, at_last, condition)
        target, settings = batch["target"], module.settings
        estimate = predicted_original(output, blind, at_last, settings)
        noise, _ = draw_diffusion(target, batch["key"], settings, 0.0, module.options.seed)
        noise = restart_noise(noise, estimate, target, settings)
        torch.testing.assert_close(state, noisy_sample(target, noise, timestep, settings)[0])
        seen += 1
        return loss

    monkeypatch.setattr(LatentsModule, "loss", watched)
    given = {"restart_timestep": 40, "restart_from_estimate": True, "last_timestep_share": 0.0}
    train_latents(tiny.latents(tmp_path / "run", vqvae_run, max_steps=2, validate_every=2, **given))
    assert seen >= 2


def test_a_change_is_learnt_and_begins_at_the_draft(tiny: Tiny, vqvae_run: Path, tmp_path: Path) -> None:
    run, given = tmp_path / "run", {"latent_target": "change", "image_weight": 5.0, "image_crop_size": 8}
    train_latents(tiny.latents(run, vqvae_run, max_steps=2, validate_every=2, learning_rate=1e-9, **given))
    with (run / "validation.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    # An untrained network answers with zeros: no change.
    assert float(row["l1"]) == pytest.approx(float(row["draft_l1"]), abs=1e-5)
    stage = LatentsStage.load_stage(run / "best", vqvae=run / "vqvae")
    latents, dataset = encode(tiny, vqvae_run, tmp_path, condition=["draft"], change=True)
    assert stage.change_std == pytest.approx(latents.change_std)
    case, targets = dataset.case("p0"), encode(tiny, vqvae_run, tmp_path, condition=["draft"])[0]
    change, condition, _ = latents.load(case)
    torch.testing.assert_close(stage.standardised(change[0], condition[0]), targets.load(case)[0][0])
    together = torch.cat(
        [
            latents.load(dataset.case(name))[0][0][:, latents.load(dataset.case(name))[2][0, 0] > 0.5]
            for name in dataset.case_ids("train")
        ],
        dim=1,
    )
    torch.testing.assert_close(together.square().mean(dim=1).sqrt(), torch.ones(2), atol=1e-3, rtol=0)


def test_the_decoded_loss_is_the_error_of_what_the_stage_would_give(
    tiny: Tiny, vqvae_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train_latents(tiny.latents(run, vqvae_run, max_steps=1, decoding="residual"))
    stage = LatentsStage.load_stage(run / "best", vqvae=run / "vqvae")
    case = PreparedDataset(tiny.data).case("p0")
    draft, target = (
        torch.from_numpy(np.array(array))[None] for array in (case.draft, case.target.clip(-1, 1))
    )
    encoded, refined = stage.encode_standardised(draft), stage.encode_standardised(target)
    shape = [4 * n for n in encoded.shape[1:]]
    images = {
        "draft_image": padded(draft.numpy(), shape, -1)[None],
        "target_image": padded(target.numpy(), shape, -1)[None],
        "valid": padded(np.array(case.valid)[None], shape, 0)[None],
    }
    loss = DecodedLoss(stage.vqvae, stage.latents_mean, stage.latents_std, edge=100, seed=0)
    result = stage.finish(refined, encoded, {"draft": draft, "source": draft})
    error = (result - target)[torch.from_numpy(np.array(case.valid))[None]].abs().mean()
    found = loss(refined[None], encoded[None], images, 0)
    assert found.shape == (1,) and error > 0
    with_gradients = error + 0.5 * gradient_loss(
        padded(result.numpy(), shape, -1)[None], images["target_image"], images["valid"]
    )
    torch.testing.assert_close(found, with_gradients, atol=1e-4, rtol=1e-3)
    # A part of it: its place follows from the batch, and its gradient reaches that part alone.
    small = DecodedLoss(stage.vqvae, stage.latents_mean, stage.latents_std, edge=1, seed=0)
    touched = set()
    for batch in range(20):
        z = refined[None].clone().requires_grad_()
        small(z, encoded[None], images, batch).sum().backward()
        assert z.grad is not None
        places = z.grad.abs().sum(dim=1)[0].nonzero().tolist()
        assert len(places) <= 1
        touched |= {tuple(place) for place in places}
    assert len(touched) > 5


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_decoded_loss_and_a_shift_of_hu_reach_the_training(
    tiny: Tiny, vqvae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    batches = list[dict[str, torch.Tensor]]()
    plain = LatentsModule.loss

    def watched(module: LatentsModule, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if not module.training:
            return plain(module, batch)
        batches.append(batch)
        outputs = list[torch.Tensor]()
        with module.model.register_forward_hook(lambda _, __, output: outputs.append(output)):
            loss = plain(module, batch)
        decoded, module.decoded = module.decoded, None
        alone = plain(module, batch)
        module.decoded = decoded
        if decoded is None:
            return loss
        assert module.change_std is not None
        scale = torch.tensor(module.change_std)[:, None, None, None]
        refined = batch["condition"] + scale * outputs[0]
        image = decoded(refined, batch["condition"], batch, int(batch["key"][0, 0])).mean()
        torch.testing.assert_close(loss, alone + share * 5.0 * image)
        assert image > 0
        return loss

    monkeypatch.setattr(LatentsModule, "loss", watched)
    given = {"condition": ["draft", "windows"], "prediction_type": "sample", "last_timestep_share": share}
    given |= {"max_steps": 1, "validate_every": 1}
    image = {"image_weight": 5.0, "image_crop_size": 8, "latent_target": "change"}
    train_latents(tiny.latents(tmp_path / "shifted", vqvae_run, hu_shift=30.0, **image, **given))
    train_latents(tiny.latents(tmp_path / "plain", vqvae_run, **given))
    shifted, unshifted = batches
    assert torch.equal(shifted["condition"], unshifted["condition"])
    moved = (shifted["windows"] - unshifted["windows"])[:, 0].abs().amax(dim=(1, 2, 3)) * 4024 / 2
    assert (moved > 0).all() and (moved < 30.01).all()


def test_latents_of_half_the_size(tiny: Tiny, tmp_path: Path) -> None:
    train_vqvae(tiny.vqvae(tmp_path / "vqvae", hidden_channels=[8], crop_size=[6, 6, 6]))
    given = {"crop_size": [6, 10, 6], "max_steps": 2, "validate_every": 2}
    train_latents(tiny.latents(tmp_path / "run", tmp_path / "vqvae", **given))
    stage = LatentsStage.load_stage(tmp_path / "run" / "best", vqvae=tmp_path / "run" / "vqvae")
    case = PreparedDataset(tiny.data).case("p4")
    target, _, weight = encode(tiny, tmp_path / "vqvae", tmp_path / "encoded")[0].load(case)
    halves = tuple(-(-n // 2) for n in case.spatial_shape)
    assert stage.vqvae.factor == 2 and target.shape[2:] == weight.shape[2:] == halves
    volume = torch.from_numpy(np.array(case.draft))[None]
    assert stage.sample({"draft": volume, "source": volume}, SeededNoise(0)).shape == volume.shape
    with pytest.raises(RequestError, match="three multiples of 2"):
        train_latents(tiny.latents(tmp_path / "other", tmp_path / "vqvae", crop_size=[6, 9, 6]))


def test_windows_are_seen_alike_in_training_validation_and_use(
    tiny: Tiny, vqvae_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train_latents(tiny.latents(run, vqvae_run, condition=["draft", "windows"], crop_size=[8, 12, 8]))
    stage = LatentsStage.load_stage(run / "best", vqvae=run / "vqvae")
    latents, dataset = encode(tiny, vqvae_run, tmp_path, condition=["draft", "windows"])
    case = dataset.case("p0")
    volumes = {
        "draft": torch.from_numpy(np.array(case.draft))[None],
        "source": torch.from_numpy(np.array(case.source)),
    }
    in_use = stage.encode_condition(volumes)
    windows, factor = len(case.source), stage.vqvae.factor
    assert stage.windows == windows and in_use.shape[0] == 2 + windows * factor**3
    assert torch.allclose(latents.load(case)[1][0], in_use, atol=1e-4)

    items = LatentDataset(
        *([latents.folder(case)],),
        **{"condition": latents.encoded, "mean": latents.mean, "std": latents.std},
        **{"crop_size": None, "shrink": 0, "flips": True, "seed": 0, "factor": factor},
        **{"cases": [case], "windows": True},
    )
    mirrored = {**volumes, "source": volumes["source"].flip(1), "draft": volumes["draft"].flip(1)}
    seen = []
    for place in range(8):
        item = items[Request(0, items.sizes[0], 0, place)]
        shown = torch.cat([item["condition"], space_to_depth(item["windows"][None], factor, -1.0)[0]])
        seen.append(
            [torch.allclose(shown, stage.encode_condition(v), atol=1e-4) for v in (volumes, mirrored)]
        )
    assert all(any(which) for which in seen) and np.any(seen, axis=0).all()
    with pytest.raises(RequestError, match=f"trained with {windows}"):
        stage.check_plan(windows + 1, drafted=True)


def test_latents_of_training_targets_are_standardised(tiny: Tiny, vqvae_run: Path, tmp_path: Path) -> None:
    latents, dataset = encode(tiny, vqvae_run, tmp_path)
    values = []
    for case_id in dataset.case_ids("train"):
        target, condition, weight = latents.load(dataset.case(case_id))
        assert condition.shape[1] == 2 * target.shape[1]
        values.append(target[0][:, weight[0, 0] > 0.5])
    together = torch.cat(values, dim=1)
    assert torch.allclose(together.mean(dim=1), torch.zeros(2), atol=1e-4)
    assert torch.allclose(together.std(dim=1, correction=0), torch.ones(2), atol=1e-4)


def test_latents_are_those_the_stage_sees_in_use(tiny: Tiny, vqvae_run: Path, tmp_path: Path) -> None:
    latents, dataset = encode(tiny, vqvae_run, tmp_path)
    vqvae, case = load_vqvae(vqvae_run / "best"), dataset.case("p1")
    target, condition, weight = latents.load(case)
    for array, part in ((case.target.clip(-1, 1), target), (case.draft, condition[:, :2])):
        encoded = vqvae.encode(torch.from_numpy(np.array(array))[None, None])
        mean, std = (torch.tensor(n)[:, None, None, None] for n in (latents.mean, latents.std))
        assert torch.allclose((encoded - mean) / std, part, atol=1e-4)
    flipped = np.load(latents.folder(case) / "flipped" / "target.npy")
    mirrored = torch.from_numpy(case.target[::-1].clip(-1, 1).copy())[None, None]
    assert np.allclose(flipped, vqvae.encode(mirrored)[0].detach(), atol=1e-5)
    valid = np.pad(case.valid.astype(float), [(0, -n % 4) for n in case.spatial_shape])
    i, j, k = weight.shape[2:]
    shares = valid.reshape(i, 4, j, 4, k, 4).mean(axis=(1, 3, 5))
    assert np.allclose(weight[0, 0], shares)


def test_latents_are_encoded_once(tiny: Tiny, vqvae_run: Path, tmp_path: Path) -> None:
    first, dataset = encode(tiny, vqvae_run, tmp_path)
    path = first.folder(dataset.case("p0")) / "target.npy"
    written = path.stat().st_mtime_ns
    again, _ = encode(tiny, vqvae_run, tmp_path)
    assert again.root == first.root and path.stat().st_mtime_ns == written
    redrawn, _ = encode(tiny, vqvae_run, tmp_path, draft={"seed": 1})
    assert redrawn.root != first.root


def test_a_folder_keeps_the_vqvae_that_it_was_trained_with(
    tiny: Tiny, vqvae_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_vqvae(tiny.vqvae(tmp_path / "other", seed=1, max_steps=1))
    run = tmp_path / "run"
    train_latents(tiny.latents(run, vqvae_run, max_steps=1))
    before = file_hash(run / "vqvae" / "model.safetensors")
    for steps in (1, 2):
        with pytest.raises(RequestError, match="was trained in the latent space of another VQ-VAE than that"):
            train_latents(tiny.latents(run, tmp_path / "other", max_steps=steps))
    train_latents(tiny.latents(run, vqvae_run, max_steps=1))
    assert "is trained already" in capsys.readouterr().out
    # A model, or whatever else, is refused before anything is written.
    (run / "run.json").unlink()
    with pytest.raises(RequestError, match="is no run of `ct2mri train`"):
        train_latents(tiny.latents(run, tmp_path / "other"))
    assert file_hash(run / "vqvae" / "model.safetensors") == before


def test_encoding_keeps_to_the_memory_that_there_is(
    tiny: Tiny, vqvae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Execution, "room", lambda *_: 0)
    with pytest.raises(RequestError, match="Memory does not suffice for encoding with the VQ-VAE"):
        encode(tiny, vqvae_run, tmp_path)


def test_without_drafts(tiny: Tiny, vqvae_run: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    with pytest.raises(RequestError, match="holds no drafts to refine; run `ct2mri draft"):
        train_latents(tiny.latents(tmp_path / "run", vqvae_run, data=data))
    (data / "draft.json").write_text(json.dumps({"out_of_fold": True}))
    with pytest.raises(RequestError, match=r"5 cases of .* have no draft, e\.g\. p0"):
        train_latents(tiny.latents(tmp_path / "run", vqvae_run, data=data))
    train_latents(tiny.latents(tmp_path / "run", vqvae_run, data=data, condition=["source"], max_steps=1))
    assert LatentsStage.load_stage(tmp_path / "run" / "best", vqvae=vqvae_run / "best").condition == [
        "source"
    ]


def test_drafts_that_the_model_had_seen_are_pointed_out(
    tiny: Tiny, vqvae_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_dataset(tmp_path / "data", drafts=True)
    (data / "draft.json").write_text(json.dumps({"out_of_fold": False}))
    train_latents(tiny.latents(tmp_path / "run", vqvae_run, data=data, max_steps=1))
    assert "had seen these cases" in capsys.readouterr().out


def test_requests_that_cannot_be(tiny: Tiny, vqvae_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"nowhere is no run folder of `ct2mri train`"):
        train_latents(tiny.latents(tmp_path / "run", tmp_path / "nowhere"))
    with pytest.raises(RequestError, match="multiples of 4"):
        train_latents(tiny.latents(tmp_path / "run", vqvae_run, crop_size=[8, 8, 7]))
    with pytest.raises(RequestError, match="--condition is one or more of draft, source and windows"):
        train_latents(tiny.latents(tmp_path / "run", vqvae_run, condition=["draft", "draft"]))
    windows = {"condition": ["draft", "windows"]}
    for match, given in {
        "--hu_shift is 0 .* or more HU, got -1": {"hu_shift": -1.0} | windows,
        "--hu_shift moves the source's windows, and --condition draft has none": {"hu_shift": 20.0},
        "shows the source encoded as well": {"hu_shift": 20.0, "condition": ["windows", "source"]},
        "--latent_target change draws a change from the draft": {
            "latent_target": "change",
            "condition": ["source"],
        },
        "--image_weight is at least 0": {"image_weight": -1.0},
        "--image_weight compares what residual decoding gives": {"image_weight": 1.0, "decoding": "plain"},
        "--image_crop_size is a multiple of 4, .* got 7": {"image_weight": 1.0, "image_crop_size": 7},
    }.items():
        with pytest.raises(RequestError, match=match):
            train_latents(tiny.latents(tmp_path / "run", vqvae_run, **given))


def test_going_on_from_a_pipeline_keeps_the_scale_of_its_latents(
    tiny: Tiny, vqvae_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    train_latents(tiny.latents(tmp_path / "first", vqvae_run))
    model.mkdir()
    (tmp_path / "first" / "best").rename(model / "latents")
    (tmp_path / "first" / "vqvae").rename(model / "vqvae")
    facts = json.loads((model / "latents" / "stage.json").read_text())
    facts["latents_mean"], facts["latents_std"] = [1.0, 2.0], [3.0, 4.0]
    (model / "latents" / "stage.json").write_text(json.dumps(facts))

    run = tmp_path / "second"
    train_latents(tiny.latents(run, model, init=str(model), beta_end=0.03))
    stage = LatentsStage.load_stage(run / "best", vqvae=model / "vqvae")
    assert (stage.latents_mean, stage.latents_std) == ([1.0, 2.0], [3.0, 4.0])
    assert "was trained with beta_end 0.02 (now 0.03)" in capsys.readouterr().out

    given = {"latent_target": "change", "init": str(model)}
    train_latents(tiny.latents(tmp_path / "third", model, **given))
    stage = LatentsStage.load_stage(tmp_path / "third" / "best", vqvae=model / "vqvae")
    assert stage.latents_mean != [1.0, 2.0] and stage.change_std is not None
    assert "was trained with another --latent_target than change" in capsys.readouterr().out
