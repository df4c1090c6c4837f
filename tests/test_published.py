import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ct2mri.cli import main
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.models import VQVAE, ScalableUNet
from ct2mri.options.translation import ImportPublishedOptions
from ct2mri.pipeline import TranslationPipeline
from ct2mri.published import (
    convert_unet_state,
    convert_vqvae_state,
    import_published,
    load_checkpoint,
    read_published,
    read_raw_volume,
    restore_unet_state,
    restore_vqvae_state,
    slice_stacks,
)
from hub_stand_in import HubStandIn

State = dict[str, Tensor]


def unet(spatial_dims: int, channels: int = 1) -> ScalableUNet:
    """Small, but with the published groups and heads, and with every kind of module."""
    torch.manual_seed(0)
    return ScalableUNet(
        spatial_dims, channels, channels, channels, channel_multipliers=(1, 2), attention_levels=(1,)
    ).eval()


def vqvae() -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(hidden_channels=(4, 6), num_res_blocks=2, num_embeddings=16).eval()


@pytest.fixture(scope="module")
def states() -> dict[str, State]:
    """A checkpoint's weights of each kind, under the authors' keys."""
    return {
        "slices": restore_unet_state(unet(2).state_dict()),
        "vqvae": restore_vqvae_state(vqvae().state_dict()),
        "latents": restore_unet_state(unet(3, 2).state_dict()),
    }


def save_checkpoint(path: Path, state: State, key: str = "model_parameters", **options: Any) -> Path:
    """A checkpoint as the authors wrote theirs: weights of a network on several GPUs, beside other things."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {f"module.{name}": value for name, value in state.items()}
    losses = [np.float64(0.5), 0.25]
    content = {key: weights, "optimizer": {"state": {}}, "epoch": 3, "losses": losses, "curve": np.zeros(3)}
    torch.save(content, path, **options)
    return path


@pytest.fixture
def checkpoints(tmp_path: Path, states: dict[str, State]) -> dict[str, Path]:
    return {kind: save_checkpoint(tmp_path / "in" / f"{kind}.pth", state) for kind, state in states.items()}


@pytest.mark.parametrize(("name", "seed"), [("unet_2d", 0), ("unet_3d", 0), ("vqvae_3d", 0)])
def test_keys_go_there_and_back(name: str, seed: int, published_network: Callable[..., Any]):
    _, weights = published_network(name, seed)
    convert, restore = (
        (convert_vqvae_state, restore_vqvae_state)
        if "vqvae" in name
        else (convert_unet_state, restore_unet_state)
    )
    converted = convert(weights)
    assert not {key for key in converted if key.startswith(("downs", "c_downs", "ups.", "mid.", "vq_layer"))}
    restored = restore(converted)
    assert restored.keys() == weights.keys()
    assert all(restored[key] is weights[key] for key in weights)


@pytest.mark.parametrize("key", ["model_parameters", "model"])
@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoints_old_and_new(key: str, legacy: bool, states: dict[str, State], tmp_path: Path):
    path = save_checkpoint(
        tmp_path / "a.pth", states["vqvae"], key, _use_new_zipfile_serialization=not legacy
    )
    loaded = load_checkpoint(path)
    assert loaded.keys() == states["vqvae"].keys()
    assert all(torch.equal(loaded[name], value) for name, value in states["vqvae"].items())


def test_a_bare_state_dict_and_safetensors_serve_as_well(states: dict[str, State], tmp_path: Path):
    torch.save(states["vqvae"], tmp_path / "a.pt")
    save_file({key: value.contiguous() for key, value in states["vqvae"].items()}, tmp_path / "a.safetensors")
    assert load_checkpoint(tmp_path / "a.pt").keys() == states["vqvae"].keys()
    assert load_checkpoint(tmp_path / "a.safetensors").keys() == states["vqvae"].keys()


class Malicious:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("was-run"),)


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_in_a_pickle_is_run(legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Malicious()}, "a.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(RequestError, match="tensors and numbers alone"):
        load_checkpoint("a.pth")
    assert not Path("was-run").exists()
    torch.load("a.pth", weights_only=False)
    assert Path("was-run").exists()  # it would have been


def test_files_that_are_no_checkpoints(tmp_path: Path, states: dict[str, State]):
    whole = save_checkpoint(tmp_path / "whole.pth", states["vqvae"]).read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "half.safetensors").write_bytes(b"\x10\x00\x00\x00")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"epoch": 3}))
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in (
        "half.pth",
        "empty.pth",
        "text.pth",
        "half.safetensors",
        "plain.pth",
        "other.pth",
        "list.pth",
    ):
        with pytest.raises(RequestError, match=name) as caught:
            load_checkpoint(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(RequestError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "missing.pth")


@pytest.mark.parametrize("kind", ["slices", "vqvae", "latents"])
def test_kinds_are_told_apart_by_content(kind: str, checkpoints: dict[str, Path], tmp_path: Path):
    path = checkpoints[kind].rename(tmp_path / "unnamed.pth")
    published = read_published(path)
    assert published.kind == kind
    assert isinstance(published.network, VQVAE if kind == "vqvae" else ScalableUNet)
    assert not published.network.training


@pytest.mark.parametrize(
    ("layout", "kind"), [("unet_2d", "slices"), ("unet_3d", "latents"), ("vqvae_3d", "vqvae")]
)
def test_configuration_of_the_published_layouts(layout: str, kind: str, reference: Path, tmp_path: Path):
    facts = json.loads((reference / f"{layout}.json").read_text())
    nothing = torch.zeros(1)
    torch.save(
        {"model": {key: nothing.expand(shape) for key, shape in facts["state_dict"].items()}}, tmp_path / "a"
    )
    published = read_published(tmp_path / "a")
    assert published.kind == kind
    config = published.network._hub_mixin_config
    assert {name: config[name] for name in facts["config"]} == facts["config"]
    if kind == "vqvae":
        assert config["latent_activation"] is True
        assert config["codebook_update"] == "gradient"
        assert published.network.quantizer.initialised


@torch.no_grad()
def test_kernels_are_turned_to_our_order_of_axes(checkpoints: dict[str, Path]):
    """Ours on a turned array gives exactly the turned result of the published network."""
    timestep = torch.tensor([500])
    for kind, spatial in (("slices", (7, 5)), ("latents", (3, 5, 2))):
        channels = 1 if kind == "slices" else 2
        sample, condition = torch.randn(2, 1, channels, *spatial, generator=torch.Generator().manual_seed(0))
        turn = [0, 1, *range(sample.ndim - 1, 1, -1)]
        network = read_published(checkpoints[kind]).network
        expected = unet(len(spatial), channels)(sample, timestep, condition)
        output = network(sample.permute(turn), timestep, condition.permute(turn))
        assert torch.allclose(output.permute(turn), expected, atol=1e-5)
    network = read_published(checkpoints["vqvae"]).network
    image = torch.rand(1, 1, 5, 9, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    turn = [0, 1, 4, 3, 2]
    assert torch.allclose(network(image.permute(turn))[0].permute(turn), vqvae()(image)[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["slices", "vqvae", "latents"])
def test_the_first_key_that_differs_is_named(kind: str, states: dict[str, State], tmp_path: Path):
    state = states[kind]
    norm = "cross_attention.attn.norm.weight" if kind != "vqvae" else "decoder.2.resblock.2.weight"
    changes: list[tuple[State, str]] = [
        (state | {norm: torch.zeros(3)}, norm),
        ({key: value for key, value in state.items() if key != norm}, norm),
        (state | {"another.weight": torch.zeros(3)}, "another.weight"),
    ]
    for number, (changed, key) in enumerate(changes):
        with pytest.raises(RequestError, match=key.replace(".", r"\.")):
            read_published(save_checkpoint(tmp_path / f"{number}.pth", changed))


@pytest.mark.parametrize(
    "state",
    [
        {"fc.weight": torch.zeros(3, 3), "conv1.weight": torch.zeros(3, 3)},
        {"downs.0.weight": torch.zeros(3), "c_downs.0.weight": torch.zeros(3)},
        {"encoder.0.0.weight": torch.zeros(3), "vq_layer.embedding.weight": torch.zeros(3)},
    ],
)
def test_another_network_is_refused(state: State, tmp_path: Path):
    with pytest.raises(RequestError, match=r"a\.pth holds none of the published networks") as caught:
        read_published(save_checkpoint(tmp_path / "a.pth", state))
    assert min(state) in str(caught.value) or "downs" in str(caught.value)


def test_raw_volumes(tmp_path: Path):
    volume = np.random.default_rng(0).normal(size=(3, 4, 5)).astype("<f4")
    volume.tofile(tmp_path / "a.raw")
    again = read_raw_volume(tmp_path / "a.raw", (3, 4, 5))
    assert again.dtype == np.float32
    assert np.array_equal(again, volume)


def test_raw_volumes_of_another_size_are_refused(tmp_path: Path):
    np.zeros((96, 24, 384), dtype="<f4").tofile(tmp_path / "a.raw")
    with pytest.raises(RequestError, match=r"has 3538944 bytes.* 96×240×384 float32 numbers has 35389440"):
        read_raw_volume(tmp_path / "a.raw", (96, 240, 384))
    np.zeros((96, 240, 384), dtype="<f4").tofile(tmp_path / "b.raw")
    with pytest.raises(RequestError, match="96×240×384 would fit"):
        read_raw_volume(tmp_path / "b.raw", (160, 224, 168))
    with pytest.raises(RequestError, match="no volume at"):
        read_raw_volume(tmp_path / "c.raw", (1, 1, 1))
    with pytest.raises(RequestError, match="three positive numbers"):
        read_raw_volume(tmp_path / "a.raw", (96, 24))


def test_slice_stacks(tmp_path: Path):
    generator = np.random.default_rng(0)
    stacks = {
        name: generator.normal(size=(number, *size)).astype(np.float32)
        for name, number, size in (("a", 3, (16, 22)), ("b", 4, (16, 17)), ("group/c", 5, (22, 17)))
    }
    with h5py.File(tmp_path / "slices.h5", "w") as file:
        for name, stack in stacks.items():
            file[name] = stack
        file["patients"] = ["x", "y"]
        file["spacing"] = np.ones(3)
    with slice_stacks(tmp_path / "slices.h5") as found:
        assert found.keys() == stacks.keys()
        for name, stack in stacks.items():
            assert np.array_equal(found[name][1], stack[1])
            assert found[name].shape == stack.shape


def test_files_without_slices_are_refused(tmp_path: Path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["spacing"] = np.ones(3)
    (tmp_path / "b.h5").write_text("hello")
    for name, words in (("a.h5", "no dataset"), ("b.h5", "not an HDF5"), ("c.h5", "no file")):
        with pytest.raises(RequestError, match=words), slice_stacks(tmp_path / name):
            pass


def small_ct() -> Volume:
    """A block of soft tissue in air, large enough to be found as a body."""
    array = np.full((30, 28, 14), -1000, dtype=np.float32)
    array[5:25, 6:24] = 40
    array[12:18, 12:18, 3:9] = 700
    return Volume(array, np.diag([1.0, 1.0, 1.0, 1.0]), {"modality": "CT"})


def test_import_makes_a_pipeline(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = [f"--{kind}={path}" for kind, path in checkpoints.items()]
    assert main(["import-published", *arguments, "-o", str(tmp_path / "model"), "--anatomy", "pelvis"]) == 0
    told = capsys.readouterr().out
    pipeline = TranslationPipeline.from_pretrained(tmp_path / "model", "cpu")
    assert pipeline.plan.anatomy == "pelvis"
    assert pipeline.plan.spacing == (1.0, 1.0, 2.5)
    assert pipeline.plan.assumptions
    assert all(sentence in told for sentence in pipeline.plan.assumptions)
    assert [stage.kind for stage in pipeline.stages] == ["slices", "latents"]
    for stage in pipeline.stages:
        assert (stage.sampler, stage.num_inference_steps) == ("renoise", 25)
        assert stage.noise.prediction_type == "epsilon"
        assert not stage.noise.zero_terminal_snr
        assert stage.noise.last_timestep_input == "noise"
        assert (stage.noise.beta_start, stage.noise.beta_end) == (1e-4, 0.02)
    slices, latents = pipeline.stages
    assert slices.orientations == ("axial",)
    assert latents.condition == ["draft"]
    assert (latents.latents_mean, latents.latents_std) == ([0, 0], [1, 1])
    assert latents.vqvae.quantizer.initialised
    for stage, path in zip(pipeline.stages, (checkpoints["slices"], checkpoints["latents"]), strict=True):
        expected = read_published(path).network.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in stage.network.state_dict().items())

    ct = small_ct()
    result = pipeline.translate(ct)
    assert result.volume.grid.matches(ct.grid)
    assert np.isfinite(result.volume.array).all()
    assert result.volume.array.std() > 0
    assert [f"Assumed: {sentence}" for sentence in pipeline.plan.assumptions] == [
        sentence for sentence in result.warnings if sentence.startswith("Assumed")
    ]


def test_the_2d_model_alone_is_a_pipeline(checkpoints: dict[str, Path], tmp_path: Path):
    import_published(ImportPublishedOptions(output=tmp_path / "model", slices=checkpoints["slices"]))
    pipeline = TranslationPipeline.from_pretrained(tmp_path / "model", "cpu")
    assert [stage.kind for stage in pipeline.stages] == ["slices"]
    assert pipeline.plan.anatomy == "brain"
    assert np.isfinite(pipeline.translate(small_ct(), num_inference_steps=2).volume.array).all()


def test_requests_that_make_no_pipeline(checkpoints: dict[str, Path], tmp_path: Path):
    output = tmp_path / "model"
    refused: list[tuple[dict[str, Path], str]] = [
        ({}, "No checkpoint was given"),
        ({"slices": checkpoints["vqvae"]}, "holds a VQ-VAE, not a 2D-SDM; give it as --vqvae"),
        ({"latents": checkpoints["slices"]}, "holds a 2D-SDM, not a 3D-SLDM; give it as --slices"),
        ({"vqvae": checkpoints["vqvae"]}, "the 3D-SLDM is missing"),
        ({"slices": checkpoints["slices"], "latents": checkpoints["latents"]}, "the VQ-VAE is missing"),
        ({"vqvae": checkpoints["vqvae"], "latents": checkpoints["latents"]}, "give that with --slices"),
    ]
    for given, words in refused:
        with pytest.raises(RequestError, match=words):
            import_published(ImportPublishedOptions(output=output, **given))
        assert not output.exists()


def test_import_from_the_hub(
    hub: HubStandIn, states: dict[str, State], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Names say nothing of the kind; the other anatomy's files are not fetched."""
    repository = hub.root / "authors" / "weights"
    for number, kind in enumerate(("latents", "slices", "vqvae")):
        save_checkpoint(repository / "brain" / f"{number}.pth", states[kind])
        save_checkpoint(repository / f"Pelvis_{number}.pth", states[kind])
    torch.save({"fc.weight": torch.zeros(3)}, repository / "classifier.pt")
    (repository / "README.md").write_text("weights")
    output = tmp_path / "model"
    assert main(["import-published", "--hub", "authors/weights", "-o", str(output)]) == 0
    told = capsys.readouterr().out
    assert "classifier.pt is left aside" in told
    assert "2D-SDM: 1.pth" in told
    assert not any("Pelvis" in request for request in hub.requests)
    pipeline = TranslationPipeline.from_pretrained(output, "cpu")
    assert [stage.kind for stage in pipeline.stages] == ["slices", "latents"]

    hub.close()  # from now on the local cache has to do
    assert main(["import-published", "--hub", "authors/weights", "-o", str(tmp_path / "again")]) == 0
    assert TranslationPipeline.from_pretrained(tmp_path / "again", "cpu").hash == pipeline.hash


def test_without_a_network_one_sentence_says_what_to_fetch(
    hub: HubStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    hub.close()
    output = tmp_path / "model"
    assert main(["import-published", "--hub", "authors/weights", "-o", str(output)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "https://huggingface.co/authors/weights" in told
    assert "ct2mri import-published --slices FILE --vqvae FILE --latents FILE -o MODEL" in told
    assert not output.exists()


def test_several_checkpoints_of_one_kind_ask_for_a_choice(
    hub: HubStandIn, states: dict[str, State], tmp_path: Path
):
    repository = hub.root / "authors" / "weights"
    save_checkpoint(repository / "a.pth", states["slices"])
    save_checkpoint(repository / "b.pth", states["slices"])
    with pytest.raises(RequestError, match=r"2 checkpoints of a 2D-SDM: .*a\.pth, .*b\.pth; choose one"):
        import_published(ImportPublishedOptions(output=tmp_path / "model", hub="authors/weights"))


def test_a_repository_without_published_networks(hub: HubStandIn, tmp_path: Path):
    (hub.root / "authors" / "weights").mkdir(parents=True)
    (hub.root / "authors" / "weights" / "README.md").write_text("nothing yet")
    with pytest.raises(RequestError, match="authors/weights holds no published network"):
        import_published(ImportPublishedOptions(output=tmp_path / "model", hub="authors/weights"))


def test_a_pipeline_on_the_hub_loads_by_name(hub: HubStandIn, checkpoints: dict[str, Path]):
    folder = hub.root / "someone" / "pipeline"
    import_published(ImportPublishedOptions(output=folder, slices=checkpoints["slices"]))
    pipeline = TranslationPipeline.from_pretrained("someone/pipeline", "cpu")
    hub.close()
    assert TranslationPipeline.from_pretrained("someone/pipeline", "cpu").hash == pipeline.hash
