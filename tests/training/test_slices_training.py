"""Training of the 2D stage, from a prepared data set to a stage folder."""

import csv
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import default_collate
from training_tiny import Tiny, write_dataset

from ct2mri.data.batching import BatchStream, Request
from ct2mri.data.cases import PreparedDataset
from ct2mri.diffusion import SeededNoise, noisy_sample, predicted_original, restart_noise
from ct2mri.errors import RequestError
from ct2mri.models.compiling import compile_whole
from ct2mri.stages import SlicesStage
from ct2mri.training.fit import train_slices
from ct2mri.training.module import StageModule, draw_diffusion
from ct2mri.training.slices import SlicesModule, fold_patients, slice_data, slice_items, smaller_crop


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_what_the_next_steps_need(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_slices(tiny.slices(run, num_inference_steps=2, draft_orientations=["axial", "coronal"]))
    stage = SlicesStage.load_stage(run / "best")
    assert (stage.num_inference_steps, stage.orientations) == (2, ("axial", "coronal"))
    case = PreparedDataset(tiny.data).case("p4")
    volume = stage.sample({"source": torch.from_numpy(np.array(case.source))}, SeededNoise(0))
    assert volume.shape == (1, *case.spatial_shape) and volume.isfinite().all()

    record = json.loads((run / "run.json").read_text())
    assert record["finished"] and record["steps"] == 6 and record["seconds"] > 0
    assert record["device"] == "cpu" and record["options"]["base_channels"] == 8
    assert PreparedDataset(tiny.data).plan == type(PreparedDataset(tiny.data).plan).read(run / "plan.json")
    logged = rows(run / "train.csv")
    assert [row["step"] for row in logged] == [str(n) for n in range(1, 7)]
    assert all(0 < float(row["waiting"]) < float(row["seconds"]) for row in logged)
    assert record["speed"]["images_per_second"] > 0 and 0 < record["speed"]["waiting_share"] < 1
    assert set(rows(run / "validation.csv")[0]) == {"step", "loss", "l1", "psnr"}
    names = {path.name for path in (run / "pictures").iterdir()}
    assert names == {f"step-000000{s}-{o}.png" for s in (3, 6) for o in ("axial", "coronal", "sagittal")}
    picture = np.asarray(Image.open(run / "pictures" / "step-0000006-axial.png"))
    assert picture.ndim == 2 and picture.std() > 20
    assert list((run / "tensorboard").glob("events*"))
    assert not [path for path in run.rglob("*") if "partial" in path.name]


def test_it_learns(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_slices(tiny.slices(run, max_steps=100, validate_every=100, learning_rate=5e-3, ema_decay=0.9))
    table = rows(run / "train.csv")
    loss = [np.mean([float(row["loss"]) for row in part]) for part in (table[:10], table[-10:])]
    assert loss[1] < 0.5 * loss[0]
    (last,) = rows(run / "validation.csv")
    assert float(last["l1"]) < 0.15 and float(last["psnr"]) > 14


def test_the_best_weights_are_those_of_the_best_validation(tiny: Tiny, tmp_path: Path) -> None:
    """A learning rate so high that the training gets worse: what was best stays."""
    run = tmp_path / "run"
    options = {
        "ema_decay": 0,
        "gradient_weight": 0,
        "warmup_steps": 0,
        "decay": "constant",
        "validate_every": 2,
    }
    train_slices(tiny.slices(run, max_steps=8, learning_rate=0.3, **options))
    scores = {int(row["step"]): float(row["l1"]) for row in rows(run / "validation.csv")}
    best = min(scores, key=scores.__getitem__)
    assert best < 8, "else this test shows nothing"
    assert json.loads((run / "run.json").read_text())["best"]["step"] == best
    train_slices(tiny.slices(tmp_path / "short", max_steps=best, learning_rate=0.3, **options))
    kept, expected = (load_file(r / "best" / "model.safetensors") for r in (run, tmp_path / "short"))
    assert all(torch.equal(kept[name], expected[name]) for name in expected)


def test_fold_models_have_not_seen_their_patients(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_slices(tiny.slices(run, folds=2, max_steps=2, validate_every=2, orientations=["axial"]))
    folds = json.loads((run / "folds.json").read_text())["folds"]
    assert sorted(folds[0] + folds[1]) == ["p0", "p1", "p2", "p3"] and len(folds[0]) == 2
    items = [json.loads((run / r / "run.json").read_text())["items"] for r in (".", "fold-0", "fold-1")]
    assert items[1] + items[2] == items[0]
    weights = [load_file(run / r / "best" / "model.safetensors") for r in (".", "fold-0", "fold-1")]
    assert not any(
        torch.equal(w["output_conv.weight"], weights[0]["output_conv.weight"]) for w in weights[1:]
    )
    SlicesStage.load_stage(run / "fold-1" / "best")


@pytest.mark.parametrize("folds", [-1, 1, 5])
def test_folds_that_cannot_be(folds: int) -> None:
    with pytest.raises(RequestError, match="--folds is 0"):
        fold_patients(["a", "b", "c"], folds, 0)


def test_folds_cover_everybody_once() -> None:
    patients = [f"p{n}" for n in range(11)]
    folds = fold_patients(patients, 3, 0)
    assert sorted(patient for fold in folds for patient in fold) == sorted(patients) and {
        len(fold) for fold in folds
    } == {3, 4}
    assert folds == fold_patients(patients[::-1], 3, 0)


def test_published_settings_train_too(tiny: Tiny, tmp_path: Path) -> None:
    train_slices(
        tiny.slices(
            tmp_path / "run",
            prediction_type="epsilon",
            zero_terminal_snr=False,
            last_timestep_input="noise",
            last_timestep_share=0,
            loss="l1",
            sampler="renoise",
            num_inference_steps=5,
            ema_decay=0,
            gradient_clip=0,
            decay="constant",
            crop_size=9,
            max_steps=3,
        )
    )
    assert SlicesStage.load_stage(tmp_path / "run" / "best").sampler == "renoise"


def test_a_batch_script_of_slurm_trains_in_one_process(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever number of tasks was asked for, as long as `srun` has not started them."""
    variables = {
        "NTASKS": "8",
        "JOB_NAME": "train",
        "JOB_ID": "7",
        "PROCID": "0",
        "LOCALID": "0",
        "NODEID": "0",
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    train_slices(tiny.slices(tmp_path / "run", max_steps=1))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["processes"] == 1


@pytest.mark.parametrize("saving", [False, True])
def test_gradients_of_several_batches_are_those_of_all_at_once(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saving: bool
) -> None:
    options = tiny.slices(
        tmp_path / "run", accumulate=3, max_steps=1, gradient_checkpointing=saving, gradient_clip=0.0
    )
    seen: list[torch.Tensor] = []

    def keep(self: StageModule, optimizer: torch.optim.Optimizer) -> None:
        seen.extend(p.grad.clone() for p in self.model.parameters() if p.grad is not None)

    monkeypatch.setattr(StageModule, "on_before_optimizer_step", keep)
    train_slices(options)

    dataset, _ = slice_data(options)
    items = slice_items(dataset, options)
    torch.manual_seed(options.seed)
    module = SlicesModule(replace(options, gradient_checkpointing=False), dataset.plan.channels)
    stream = BatchStream(items.sizes, batch_size=4, seed=options.seed, shrink=items.shrink)
    batches = [default_collate([items[request] for request in batch]) for batch in islice(stream, 3)]
    (sum(module.loss(batch) for batch in batches) / 3).backward()  # type: ignore[union-attr]
    expected = [p.grad for p in module.model.parameters() if p.grad is not None]
    assert len(seen) == len(expected) > 50
    for ours, whole in zip(seen, expected, strict=True):
        # Against the largest entry: the small ones are what is left of large sums, whose order may differ.
        scale = max(float(whole.abs().max()), 1e-2)
        torch.testing.assert_close(ours, whole, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("saving", [False, True])
def test_a_training_step_is_one_graph(
    tiny: Tiny, tmp_path: Path, saving: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole network, with its gradient the same; by the eager backend, since a real one takes minutes."""
    torch.compiler.reset()
    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda name: lambda graph, inputs: graph.forward)
    options = tiny.slices(tmp_path, gradient_checkpointing=saving)
    dataset, _ = slice_data(options)
    items = slice_items(dataset, options)
    (requests,) = islice(BatchStream(items.sizes, batch_size=4, seed=0), 1)
    batch = default_collate([items[request] for request in requests])
    gradients = []
    for compiled in (False, True):
        torch.manual_seed(0)
        module = SlicesModule(options, dataset.plan.channels)
        if compiled:
            compile_whole(module.model)
        module.loss(batch).backward()
        gradients.append([p.grad for p in module.model.parameters() if p.grad is not None])
    for eager, graph in zip(*gradients, strict=True):
        torch.testing.assert_close(graph, eager, rtol=1e-4, atol=1e-7)


def test_compiling_is_for_whole_slices(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="the size of crops varies"):
        train_slices(tiny.slices(tmp_path / "run", compile=True, crop_size=12))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_compiled_training_gives_the_same_losses(tiny: Tiny, tmp_path: Path) -> None:
    for name in ("eager", "compiled"):
        train_slices(tiny.slices(tmp_path / name, orientations=["axial"], compile=name == "compiled"))
    eager, compiled = (
        [float(r["loss"]) for r in rows(tmp_path / n / "train.csv")] for n in ("eager", "compiled")
    )
    assert compiled == pytest.approx(eager, rel=1e-3)


def test_bfloat16_and_gradient_checkpointing(tiny: Tiny, tmp_path: Path) -> None:
    for name, given in (("bf16", {"precision": "bf16"}), ("saving", {"gradient_checkpointing": True})):
        train_slices(tiny.slices(tmp_path / name, **given))
    train_slices(tiny.slices(tmp_path / "plain"))
    plain, bf16, saving = (
        [float(row["loss"]) for row in rows(tmp_path / name / "train.csv")]
        for name in ("plain", "bf16", "saving")
    )
    assert saving == pytest.approx(plain, rel=1e-4)
    assert bf16 == pytest.approx(plain, rel=0.05) and bf16 != plain


def test_going_on_from_a_pipeline(tiny: Tiny, tmp_path: Path) -> None:
    train_slices(tiny.slices(tmp_path / "first", max_steps=30, validate_every=30, learning_rate=5e-3))
    (tmp_path / "model").mkdir()
    (tmp_path / "first" / "best").rename(tmp_path / "model" / "slices")
    run = tmp_path / "second"
    train_slices(tiny.slices(run, init=str(tmp_path / "model"), learning_rate=1e-6))
    before, after = (rows(tmp_path / name / "validation.csv")[-1]["l1"] for name in ("first", "second"))
    assert float(after) == pytest.approx(float(before), abs=0.01)

    with pytest.raises(RequestError, match="holds another network than ScalableUNet"):
        train_slices(tiny.slices(tmp_path / "third", init=str(tmp_path / "model"), base_channels=16))
    with pytest.raises(RequestError, match="There is no model folder"):
        train_slices(tiny.slices(tmp_path / "third", init=str(tmp_path / "nowhere")))
    with pytest.raises(RequestError, match="`slices` stage is missing"):
        train_slices(tiny.slices(tmp_path / "third", init=str(tmp_path)))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"batch_size": 0}, "--batch_size is at least 1, got 0"),
        ({"learning_rate": 0.0}, "--learning_rate is above 0"),
        ({"ema_decay": 1.0}, "--ema_decay"),
        ({"device": "tpu"}, "--device is auto, cpu, cuda or mps, got tpu"),
        ({"orientations": []}, "--orientations needs at least one"),
        (
            {"orientations": ["axial"], "draft_orientations": ["coronal"]},
            "--draft_orientations names coronal",
        ),
        ({"num_inference_steps": 0}, "1 to 1000 steps, got 0"),
        ({"prediction_type": "epsilon"}, "Zero terminal SNR"),
        ({"norm_num_groups": 3}, "group"),
        ({"crop_size": 0}, "--crop_size is at least 1"),
        ({"neighbours": -1}, "--neighbours is 0"),
    ],
)
def test_options_that_cannot_be(tiny: Tiny, tmp_path: Path, given: dict[str, object], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        train_slices(tiny.slices(tmp_path / "run", **given))
    assert not (tmp_path / "run").exists()


def test_a_data_set_without_validation_cases(tiny: Tiny, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    plan = json.loads((data / "plan.json").read_text())
    plan["split"]["train"] += plan["split"]["validation"]
    plan["split"]["validation"] = []
    (data / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(RequestError, match="no validation case"):
        train_slices(tiny.slices(tmp_path / "run", data=data))


def test_timesteps_before_the_last_are_trained_on_smaller_crops(tiny: Tiny, tmp_path: Path) -> None:
    options = tiny.slices(tmp_path / "run", denoising_crop_size=6, last_timestep_share=0.3, max_steps=12)
    target = torch.arange(11 * 13.0).reshape(1, 1, 11, 13).expand(4, 1, 11, 13)
    places = torch.arange(4)
    sizes, corners = [], set()
    for number in range(400):
        batch = {
            "target": target,
            "key": torch.stack([torch.full_like(places, number), places], dim=1),
        }
        place = smaller_crop(batch, options)
        assert smaller_crop({name: values[2:] for name, values in batch.items()}, options) == place
        if place is not None:
            found = target[..., *place]
            sizes.append(tuple(found.shape[2:]))
            corners.add(float(found[0, 0, 0, 0]))
    assert set(sizes) == {(5, 5), (6, 6)}, "odd sizes too, which the network pads"
    assert len(sizes) / 400 == pytest.approx(0.7, abs=0.07)
    assert len(corners) > 30

    larger = smaller_crop(batch, replace(options, denoising_crop_size=100, last_timestep_share=0))
    assert larger is not None and target[..., *larger].shape == target.shape, "slices that are smaller stay"


@pytest.mark.parametrize("crop", [None, 6])
def test_training_from_the_estimate_shows_what_sampling_will(
    tiny: Tiny, tmp_path: Path, crop: int | None
) -> None:
    options = tiny.slices(
        tmp_path,
        restart_timestep=40,
        restart_from_estimate=True,
        last_timestep_share=0.0,
        denoising_crop_size=crop,
        folds=0,
    )
    dataset, _ = slice_data(options)
    items = slice_items(dataset, options)
    (requests,) = islice(BatchStream(items.sizes, batch_size=4, seed=0), 1)
    batch = default_collate([items[request] for request in requests])
    module = SlicesModule(options, dataset.plan.channels)
    settings = module.settings
    shown = list[tuple[torch.Tensor, ...]]()
    with module.model.register_forward_pre_hook(lambda _, inputs: shown.append(inputs)):
        loss = module.loss(batch)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in module.parameters())

    (blind, at_last, whole), (state, timestep, source) = shown
    assert not blind.any() and set(at_last.tolist()) == {settings.last_timestep}
    assert torch.equal(whole, batch["source"]), "the estimate is of whole crops"
    place = smaller_crop(batch, options) if crop else (slice(None), slice(None))
    assert place is not None
    target = batch["target"][..., *place]
    assert torch.equal(source, batch["source"][..., *place])
    noise, drawn = draw_diffusion(target, batch["key"], settings, 0.0, options.seed)
    assert torch.equal(timestep, drawn) and int(timestep.max()) <= 40
    with torch.no_grad():
        estimate = predicted_original(module.model(blind, at_last, whole), blind, at_last, settings)
    noise = restart_noise(noise, estimate[..., *place], target, settings)
    torch.testing.assert_close(state, noisy_sample(target, noise, timestep, settings)[0])


def test_the_network_is_shown_smaller_crops_before_the_last_timestep(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, measured = list[tuple[int, set[int]]](), list[tuple[int, set[int]]]()
    plain = SlicesModule.loss

    def watched(module: SlicesModule, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        def note(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            steps = seen if module.training else measured
            steps.append((max(inputs[0].shape[2:]), set(inputs[1].tolist())))

        with module.model.register_forward_pre_hook(note):
            return plain(module, batch)

    monkeypatch.setattr(SlicesModule, "loss", watched)
    options = tiny.slices(tmp_path / "run", denoising_crop_size=6, last_timestep_share=0.5, max_steps=16)
    train_slices(options)
    last = options.num_train_timesteps - 1
    at_last = [edge for edge, timesteps in seen if timesteps == {last}]
    before = [edge for edge, timesteps in seen if last not in timesteps]
    assert len(seen) == len(at_last) + len(before) == 16
    assert at_last and min(at_last) > 6 and before and max(before) <= 6
    assert measured and min(edge for edge, _ in measured) > 6, "memory is that of the largest batch"
    SlicesStage.load_stage(tmp_path / "run" / "best")


FROM_ESTIMATE = {
    "last_timestep_share": 0.0,
    "prediction_type": "sample",
    "restart_timestep": 40,
    "restart_from_estimate": True,
}


@pytest.mark.parametrize(
    ("given", "change"),
    [
        ({"last_timestep_share": 0.5}, {"gradient_weight": 2.0}),
        ({"last_timestep_share": 0.5}, {"min_snr_gamma": 5.0}),
        (FROM_ESTIMATE, {"gradient_weight": 2.0}),
    ],
)
def test_weights_of_the_loss_reach_it(
    tiny: Tiny, tmp_path: Path, given: dict[str, Any], change: dict[str, float]
) -> None:
    options = tiny.slices(tmp_path, **given)
    dataset, _ = slice_data(options)
    items = slice_items(dataset, options)
    (requests,) = islice(BatchStream(items.sizes, batch_size=8, seed=0), 1)
    batch = default_collate([items[request] for request in requests])
    losses = []
    for weighted in (options, replace(options, **change)):  # type: ignore[arg-type]
        torch.manual_seed(0)
        losses.append(SlicesModule(weighted, dataset.plan.channels).loss(batch).item())
    assert abs(losses[1] - losses[0]) > 0.01


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"denoising_crop_size": 1}, "--denoising_crop_size is at least 2"),
        ({"denoising_crop_size": 8, "compile": True}, "leave out --denoising_crop_size"),
        ({"last_timestep_share": 1.5}, "--last_timestep_share is from 0 to 1"),
        ({"min_snr_gamma": 0}, "--min_snr_gamma is above 0"),
        ({"restart_from_estimate": True}, "give --restart_timestep"),
        ({"gradient_weight": -0.1}, "--gradient_weight is at least 0"),
        ({"gradient_weight": float("nan")}, "--gradient_weight is at least 0"),
    ],
)
def test_crops_and_weights_that_cannot_be(
    tiny: Tiny, tmp_path: Path, options: dict[str, float], sentence: str
) -> None:
    with pytest.raises(RequestError, match=sentence):
        train_slices(tiny.slices(tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_neighbours_are_seen_alike_in_training_validation_and_use(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = tiny.slices(run, neighbours=1, orientations=["axial"], crop_size=None, flips=False)
    train_slices(options)
    stage = SlicesStage.load_stage(run / "best")
    dataset, validation = slice_data(options)
    assert stage.neighbours == 1 and stage.network.condition_channels == 3 * dataset.plan.channels
    shown = list[torch.Tensor]()
    stage.network.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[2]))
    case = dataset.case("p4")
    stage.sample({"source": torch.from_numpy(np.array(case.source))}, SeededNoise(0))
    in_use = torch.cat([part for part in shown if not part.is_meta])
    (planes,) = validation.planes
    for source in planes.source:
        assert any(torch.equal(source, other) for other in in_use)

    items = slice_items(dataset, options)
    shown.clear()
    case = items.cases[items.slices[3][0]]
    stage.sample({"source": torch.from_numpy(np.array(case.source))}, SeededNoise(0))
    item = items[Request(3, items.sizes[3], 0, 0)]["source"]
    assert any(torch.equal(item, other) for part in shown if not part.is_meta for other in part)


def test_a_shift_of_hu_reaches_the_source_of_training_and_not_that_of_validation(
    tiny: Tiny, tmp_path: Path
) -> None:
    plain, shifted = (slice_data(tiny.slices(tmp_path / "run", hu_shift=largest)) for largest in (0.0, 30.0))
    for before, after in zip(plain[1].planes, shifted[1].planes, strict=True):
        assert torch.equal(before.source, after.source)
    items = [
        slice_items(data, tiny.slices(tmp_path / "run", hu_shift=h))
        for (data, _), h in ((plain, 0.0), (shifted, 30.0))
    ]
    request = Request(0, items[0].sizes[0], 3, 1)
    before, after = (these[request] for these in items)
    assert torch.equal(before["target"], after["target"])
    moved = (after["source"] - before["source"])[0].abs() * 4024 / 2
    assert 0.1 < moved.max() <= 30.01

    write_dataset(tmp_path / "data")
    content = json.loads((tmp_path / "data" / "plan.json").read_text())
    content |= {"source_units": "relative", "source_modality": "mr", "source_percentile": 99.5}
    content["body_threshold"] = None
    (tmp_path / "data" / "plan.json").write_text(json.dumps(content))
    with pytest.raises(
        RequestError, match=r"--hu_shift 30 moves values in HU, and the source .* is mr in units"
    ):
        train_slices(tiny.slices(tmp_path / "run", data=tmp_path / "data", hu_shift=30.0))
