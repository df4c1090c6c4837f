"""The parts of a training: averaged weights, learning rate, noise, expectation, logs, pictures, presets."""

import csv
import re
import time
from importlib.resources import files
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn
from training_tiny import Tiny

from ct2mri.cli import parse
from ct2mri.diffusion import NoiseSettings
from ct2mri.models import VQVAE, ScalableUNet
from ct2mri.training.averaging import Averaging
from ct2mri.training.expectation import measure
from ct2mri.training.log import RunLog, Table
from ct2mri.training.module import draw_diffusion
from ct2mri.training.pictures import strip
from ct2mri.training.slices import SlicesModule
from ct2mri.training.speed import Speed

PRESETS = sorted(path.name.removesuffix(".yaml") for path in (files("ct2mri") / "presets").iterdir())


class Counter(lightning.LightningModule):
    """One parameter and one buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.buffer: torch.Tensor
        self.register_buffer("buffer", torch.zeros(1))


def test_averages_follow_the_weights_and_leave_buffers_alone() -> None:
    module, averaging = Counter(), Averaging(0.9)
    averaging.setup(lightning.Trainer(logger=False, accelerator="cpu"), module, "fit")
    assert averaging._average_model is not None
    expected = 0.0
    for step in range(200):
        with torch.no_grad():
            module.weight.fill_(step + 1.0)
            module.buffer.fill_(step + 1.0)
        averaging._average_model.update_parameters(module)
        # The first update copies; the n-th one after it decays by (1 + n) / (10 + n), at most 0.9.
        decay = min(0.9, (1 + step) / (10 + step)) if step else 0.0
        expected = decay * expected + (1 - decay) * (step + 1.0)
        with averaging.averaged(module):
            assert module.weight.item() == pytest.approx(expected, rel=1e-5)
            assert module.buffer.item() == step + 1.0
        assert module.weight.item() == step + 1.0


@pytest.mark.parametrize("decay", ["cosine", "constant"])
def test_learning_rate_rises_and_then_falls_or_stays(tiny: Tiny, tmp_path: Path, decay: str) -> None:
    options = tiny.slices(tmp_path, warmup_steps=10, max_steps=100, learning_rate=1.0, decay=decay)
    schedule = SlicesModule(options, 2).configure_optimizers()["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(101):
        rates.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    assert np.all(np.diff(rates[:11]) > 0) and 0 < rates[0] < 0.2 and rates[10] == 1
    after = np.diff(rates[10:])
    assert np.all(after < 0) and rates[100] < 1e-6 if decay == "cosine" else np.all(after == 0)


def test_noise_and_timesteps_belong_to_the_item_not_to_its_batch() -> None:
    settings = NoiseSettings()
    keys = torch.tensor([[3, 0], [3, 1], [3, 2], [4, 0]])
    noise, timestep = draw_diffusion(torch.zeros(4, 1, 5, 6), keys, settings, 0.25, seed=7)
    for n in range(4):
        alone = draw_diffusion(torch.zeros(1, 1, 5, 6), keys[n : n + 1], settings, 0.25, seed=7)
        assert torch.equal(alone[0][0], noise[n]) and alone[1] == timestep[n]
    assert len({float(part[0, 0, 0]) for part in noise}) == 4
    other, _ = draw_diffusion(torch.zeros(4, 1, 5, 6), keys, settings, 0.25, seed=8)
    assert not torch.equal(other, noise)


def test_a_quarter_of_the_items_is_at_the_last_timestep() -> None:
    keys = torch.stack([torch.arange(2000), torch.zeros(2000, dtype=torch.long)], dim=1)
    _, timestep = draw_diffusion(torch.zeros(2000, 1), keys, NoiseSettings(), 0.25, seed=0)
    assert 0.22 < float((timestep == 999).float().mean()) < 0.28
    rest = timestep[timestep < 999].float()
    assert 450 < rest.mean() < 550 and rest.min() < 20 and rest.max() > 980


def test_expectation_counts_memory_and_learns_nothing(tiny: Tiny, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = SlicesModule(tiny.slices(tmp_path), 2)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    def batch(items: int) -> dict[str, torch.Tensor]:
        keys = torch.stack([torch.zeros(items), torch.arange(items)], dim=1).long()
        image = torch.zeros(items, 1, 24, 24)
        return {"source": image.expand(-1, 2, -1, -1), "target": image, "weight": image + 1, "key": keys}

    small, large = (measure(module, batch(n), 0.5, averaged=True, bf16=False) for n in (2, 8))
    parameters = sum(p.numel() for p in module.parameters())
    assert small.parameters == parameters and small.weight_bytes == 20 * parameters
    assert large.activation_bytes == pytest.approx(4 * small.activation_bytes, rel=0.1)
    # At the least the input of each level-0 convolution is kept: 8 channels, float32.
    assert small.activation_bytes > 10 * 2 * 8 * 24 * 24 * 4
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters()) and module.training
    sentence = large.sentence(1000, torch.device("cpu"))
    assert "iB of memory on cpu" in sentence and "for 1000 batches" in sentence


def test_speed_tells_waiting_from_working() -> None:
    speed = Speed()
    for step in range(3):
        speed.begin()
        for _ in range(2):  # two batches a step
            time.sleep(0.2 if step == 0 else 0.02)
            speed.batch(4)
            time.sleep(0.03)
            speed.pause()
        seconds = speed.step()
        assert seconds["seconds"] > seconds["waiting"] + 0.05
    facts = speed.facts()
    assert seconds["waiting"] > 0.03 and seconds["seconds"] > 0.1
    assert facts["images_per_second"] == pytest.approx(16 / sum(speed.seconds[1:]), rel=1e-2)
    assert 0.1 < facts["waiting_share"] < 0.9 and facts["seconds_per_step"] > 0.1
    assert re.fullmatch(r"[\d.]+ images/s, \d+% waiting for data", speed.sentence())


def test_a_table_drops_what_a_resumed_run_will_write_again(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    table = Table(path, 0)
    for step in range(1, 6):
        table.add(step, {"loss": step / 3})
    path.write_text(path.read_text() + "6,0.")  # as left by a process that was killed while writing
    again = Table(path, 3)
    again.add(4, {"loss": 0.5})
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows] == ["step", "1", "2", "3", "4"]
    assert float(rows[1][1]) == 1 / 3 and float(rows[-1][1]) == 0.5


def test_numbers_and_pictures_reach_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, 0)
    for step in range(1, 21):
        log.train(step, {"loss": 1 / step})
    log.validate(20, {"l1": 0.25}, {"axial": np.zeros((20, 30), np.uint8)})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [10, 20]
    assert events.Scalars("validation/l1")[0].value == 0.25
    assert events.Images("validation/axial")[0].width == 30
    assert (tmp_path / "pictures" / "step-0000020-axial.png").is_file()


def test_a_strip_shows_each_image_upright_in_its_place() -> None:
    dark, bright = np.full((40, 60), -1, np.float32), np.full((40, 60), 1, np.float32)
    half = dark.copy()
    half[:, 30:] = 1  # the second axis points up
    picture = strip(["a", "b", "c"], [[dark, bright, half]])
    third = picture.shape[1] // 3
    column = picture[20:170]
    assert column[:, 2 : third - 6].max() == 0
    assert column[:, third + 2 : 2 * third - 6].min() == 255
    assert column[:60, 2 * third + 5 : -10].min() == 255 and column[-40:, 2 * third + 5 : -10].max() == 0


@pytest.mark.parametrize("stage", ["vqvae", "slices", "latents"])
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_make_networks_of_the_sizes_they_say(preset: str, stage: str) -> None:
    words = ["--config", preset, "--data", "d", "--output_dir", "o"]
    options = parse(f"train {stage}", words + (["--vqvae", "v"] if stage == "latents" else []))
    content = yaml.safe_load((files("ct2mri") / "presets" / f"{preset}.yaml").read_text(encoding="utf-8"))
    for name, value in content[stage].items():
        assert getattr(options, name) == value, name
    if stage != "vqvae":
        NoiseSettings.from_options(options)
    if preset.endswith("-published") and stage == "slices":
        assert (options.prediction_type, options.loss, options.sampler) == ("epsilon", "l1", "renoise")


def test_all_weights_of_the_demo_take_less_than_16_megabytes(tmp_path: Path) -> None:
    content = yaml.safe_load((files("ct2mri") / "presets" / "demo.yaml").read_text(encoding="utf-8"))
    vqvae, slices, latents = (content[stage] for stage in ("vqvae", "slices", "latents"))
    sizes = ("base_channels", "channel_multipliers", "attention_levels", "norm_num_groups")
    channels = vqvae["embedding_dim"]
    parts = latents.get("condition", ["draft"])
    networks = [
        VQVAE(
            hidden_channels=vqvae["hidden_channels"],
            num_res_blocks=vqvae["num_res_blocks"],
            embedding_dim=channels,
            num_embeddings=vqvae["num_embeddings"],
            codebook_update="ema",
        ),
        ScalableUNet(condition_channels=2, **{name: slices[name] for name in sizes}),
        ScalableUNet(3, channels, channels * len(parts), channels, **{name: latents[name] for name in sizes}),
    ]
    for number, network in enumerate(networks):
        save_file(network.state_dict(), tmp_path / f"{number}.safetensors")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 16e6
