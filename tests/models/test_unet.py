import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ct2mri.errors import RequestError
from ct2mri.models import ScalableUNet
from ct2mri.published import convert_unet_state

TINY = {
    "base_channels": 4,
    "channel_multipliers": (1, 2, 2),
    "attention_levels": (1, 2),
    "norm_num_groups": 2,
    "num_heads": 2,
}


def tiny(spatial_dims: int = 2, **changes: Any) -> ScalableUNet:
    torch.manual_seed(0)
    return ScalableUNet(**(TINY | {"spatial_dims": spatial_dims} | changes)).eval()


def inputs(*spatial: int, batch: int = 1, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sample, condition = torch.randn(2, batch, 1, *spatial, generator=generator)
    return sample, torch.randint(1000, (batch,), generator=generator), condition


@pytest.mark.parametrize(
    ("layout", "vector"),
    [("unet_2d", "unet_2d_even"), ("unet_2d", "unet_2d_odd"), ("unet_3d", "unet_3d_odd")],
)
@torch.no_grad()
def test_published_vectors(layout: str, vector: str, reference: Path, published_network: Callable[..., Any]):
    facts = np.load(reference / f"{vector}.npz")
    config, weights = published_network(layout, int(facts["seed"]))
    network = ScalableUNet(**config)
    network.load_state_dict(convert_unet_state(weights))
    sample, timestep, condition, output = (
        torch.from_numpy(facts[name]) for name in ("sample", "timestep", "condition", "output")
    )
    assert (network(sample, timestep, condition) - output).abs().max() <= 1e-5


@torch.no_grad()
def test_every_size_from_1_to_40_in_2d():
    network = tiny(channel_multipliers=(1, 2, 2, 2, 2), attention_levels=(3, 4))
    for size in range(1, 41):
        sample, timestep, condition = inputs(size, 41 - size)
        output = network(sample, timestep, condition)
        assert output.shape == sample.shape
        assert output.isfinite().all()


@torch.no_grad()
def test_every_size_from_1_to_40_in_3d():
    network = tiny(3, channel_multipliers=(1, 1, 1, 1, 2), attention_levels=(3, 4))
    for size in range(1, 41):
        sample, timestep, condition = inputs(size, 41 - size, (7 * size) % 13 + 1)
        output = network(sample, timestep, condition)
        assert output.shape == sample.shape
        assert output.isfinite().all()


@pytest.mark.parametrize("spatial", [(1, 1), (1, 1, 1)])
@torch.no_grad()
def test_a_single_voxel_with_one_channel_a_group(spatial: tuple[int, ...]):
    network = tiny(len(spatial), norm_num_groups=4)
    assert network(*inputs(*spatial)).isfinite().all()


@pytest.mark.parametrize("spatial", [(7, 5), (3, 5, 2)])
@torch.no_grad()
def test_batch_items_do_not_influence_one_another(spatial: tuple[int, ...]):
    network = tiny(len(spatial))
    sample, timestep, condition = inputs(*spatial, batch=3)
    sample[2] -= 100  # its minimum would pad the others, were it taken over the batch
    together = network(sample, timestep, condition)
    for item in range(3):
        alone = slice(item, item + 1)
        expected = network(sample[alone], timestep[alone], condition[alone])
        assert torch.allclose(together[alone], expected, atol=1e-5)


@torch.no_grad()
def test_a_scalar_timestep_serves_the_whole_batch():
    network = tiny()
    sample, _, condition = inputs(6, 5, batch=2)
    one = network(sample, torch.tensor(42), condition)
    assert torch.equal(one, network(sample, torch.tensor([42, 42]), condition))
    assert not torch.allclose(one, network(sample, torch.tensor(43), condition), atol=1e-5)


@pytest.mark.parametrize("spatial", [(9, 6), (5, 3, 4)])
def test_checkpointing_leaves_gradients_as_they_are(spatial: tuple[int, ...]):
    gradients = []
    for checkpointing in (False, True):
        network = tiny(len(spatial), gradient_checkpointing=checkpointing).train()
        network(*inputs(*spatial, batch=2)).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    assert all(gradient is not None for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_checkpointing_keeps_fewer_activations():
    kept = []
    for checkpointing in (False, True):
        network = tiny(gradient_checkpointing=checkpointing).train()
        sizes: list[int] = []

        def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            network(*inputs(32, 32))
        kept.append(sum(sizes))
    assert kept[1] < 0.6 * kept[0]


@pytest.mark.parametrize("num_res_blocks", [2, 3])
def test_more_residual_blocks_a_level(num_res_blocks: int):
    network = tiny(num_res_blocks=num_res_blocks)
    network(*inputs(7, 10)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert len(network.encoder.levels[0].blocks) == num_res_blocks
    assert len(network.decoder[0].blocks) == num_res_blocks + 1


def test_one_level_is_enough():
    assert tiny(channel_multipliers=(1,), attention_levels=())(*inputs(5, 3)).shape == (1, 1, 5, 3)


def test_channels_of_sample_condition_and_output_may_differ():
    network = tiny(sample_channels=2, condition_channels=3, out_channels=4)
    output = network(torch.randn(1, 2, 6, 5), torch.tensor(3), torch.randn(1, 3, 6, 5))
    assert output.shape == (1, 4, 6, 5)


def test_the_condition_and_the_timestep_matter():
    network = tiny()
    sample, timestep, condition = inputs(8, 8)
    output = network(sample, timestep, condition)
    assert not torch.allclose(output, network(sample, timestep, condition + 1), atol=1e-4)


def test_autocast_keeps_the_first_and_last_layers_and_blocks_in_float32():
    network = tiny()
    seen: dict[str, torch.dtype] = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda _m, _i, output, name=name: seen.__setitem__(name, output.dtype)
            )
    arguments = inputs(9, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(*arguments)
    outside = ("encoder.input_conv", "condition_encoder.input_conv", "output_conv")
    blocks = (
        "encoder.levels.0.blocks.0.residual.",
        "condition_encoder.levels.0.blocks.0.residual.",
        f"decoder.{len(network.decoder) - 1}.blocks.{len(network.decoder[-1].blocks) - 1}.residual.",
    )
    exact = {name for name, dtype in seen.items() if dtype == torch.float32}
    assert exact == {name for name in seen if name in outside or name.startswith(blocks)}
    assert 3 + 2 * 3 <= len(exact) < len(seen) / 2
    assert output.dtype == torch.float32
    assert torch.allclose(output, network(*arguments), atol=0.05)


def test_autocast_trains():
    network = tiny().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = network(*inputs(9, 6)).square().mean()
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@torch.no_grad()
def test_save_and_load_is_bit_equal(tmp_path: Path):
    network = tiny(3, num_res_blocks=2)
    network.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["channel_multipliers"] == [1, 2, 2]
    assert config["sample_channels"] == 1  # defaults are written too
    assert (tmp_path / "model.safetensors").is_file()
    again = ScalableUNet.from_pretrained(tmp_path)
    arguments = inputs(5, 4, 3)
    assert not again.training
    assert torch.equal(again(*arguments), network(*arguments))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), network.parameters(), strict=True))


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_with_a_missing_file_is_refused(missing: str, tmp_path: Path):
    tiny().save_pretrained(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(RequestError, match=missing):
        ScalableUNet.from_pretrained(tmp_path)


def test_damaged_weights_are_refused(tmp_path: Path):
    tiny().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(RequestError, match="damaged"):
        ScalableUNet.from_pretrained(tmp_path)


def test_weights_of_another_network_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tiny().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"base_channels": 8}))
    with pytest.raises(RequestError, match=r"condition_encoder\.input_conv\.bias.* \(4,\) .*\(8,\)"):
        ScalableUNet.from_pretrained(tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spatial_dims": 4}, "spatial_dims is 2 or 3, got 4"),
        ({"base_channels": 5}, "even number"),
        ({"norm_num_groups": 3}, "Level 0 has 4 channels, which norm_num_groups=3 does not divide"),
        ({"num_heads": 3}, "Level 1 has 8 channels, which num_heads=3 does not divide"),
        ({"attention_levels": (3,)}, "attention_levels lie between 0 and 2"),
        ({"attention_levels": (-1,)}, "attention_levels lie between 0 and 2"),
        ({"channel_multipliers": ()}, "at least one level"),
        ({"num_res_blocks": 0}, "num_res_blocks is at least 1"),
        ({"num_heads": 0}, "num_heads is at least 1"),
        ({"norm_num_groups": 0}, "norm_num_groups is at least 1"),
        ({"out_channels": 0}, "output channels"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], words: str):
    with pytest.raises(RequestError, match=words):
        tiny(**changes)


def test_inputs_that_do_not_fit_are_refused():
    network = tiny()
    sample, timestep, condition = inputs(6, 5)
    with pytest.raises(RequestError, match="sample has shape"):
        network(sample[..., None], timestep, condition)
    with pytest.raises(RequestError, match="belongs a condition"):
        network(sample, timestep, condition[..., :4])


def test_published_size_of_the_2d_model():
    with torch.device("meta"):
        network = ScalableUNet()
        image = torch.empty(1, 1, 224, 168)
        timestep = torch.zeros(1, dtype=torch.int64)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(23.0e6, rel=5e-3)
    with FlopCounterMode(display=False) as counter:
        network(image, timestep, image)
    assert counter.get_total_flops() == pytest.approx(46.7e9, rel=2e-2)


def test_published_size_of_the_3d_model():
    with torch.device("meta"):
        network = ScalableUNet(3, 2, 2, 2, base_channels=64)
        image = torch.empty(1, 2, 40, 56, 42)
        timestep = torch.zeros(1, dtype=torch.int64)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(245.9e6, rel=5e-3)
    with FlopCounterMode(display=False) as counter:
        network(image, timestep, image)
    assert counter.get_total_flops() == pytest.approx(600e9, rel=2e-2)
