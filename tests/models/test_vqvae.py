import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from ct2mri.errors import RequestError
from ct2mri.models import VQVAE, codes_in_use
from ct2mri.published import convert_vqvae_state

TINY = {"hidden_channels": (4, 6), "num_res_blocks": 2, "embedding_dim": 2, "num_embeddings": 16}


def tiny(spatial_dims: int = 3, **changes: Any) -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(**(TINY | {"spatial_dims": spatial_dims} | changes)).eval()


def image(*spatial: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 1, *spatial, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@torch.no_grad()
def test_published_vectors(reference: Path, published_network: Callable[..., Any]):
    facts = np.load(reference / "vqvae_3d.npz")
    config, weights = published_network("vqvae_3d", int(facts["seed"]))
    network = VQVAE(**config).eval()
    network.load_state_dict(convert_vqvae_state(weights))
    expected = {
        name: torch.from_numpy(facts[name]) for name in ("image", "latent", "quantized", "reconstruction")
    }
    latent = network.encode(expected["image"])
    assert (latent - expected["latent"]).abs().max() <= 1e-5
    quantized = network.quantize(latent)
    assert (quantized - expected["quantized"]).abs().max() <= 1e-5
    decoded = network.decode(quantized, expected["image"].shape[2:])
    assert (decoded - expected["reconstruction"]).abs().max() <= 1e-5
    reconstruction, vq_loss, codes = network(expected["image"])
    assert (reconstruction - expected["reconstruction"]).abs().max() <= 1e-5
    assert vq_loss.item() == pytest.approx(float(facts["vq_loss"]), rel=1e-5)
    assert torch.equal(network.quantizer.codebook[codes].movedim(-1, 1), quantized)


@torch.no_grad()
def test_every_size_from_1_to_40():
    flat, deep = tiny(2), tiny(3)
    for size in range(1, 41):
        for network, spatial in ((flat, (size, 41 - size)), (deep, (size, 41 - size, (7 * size) % 13 + 1))):
            x = image(*spatial)
            reconstruction, vq_loss, codes = network(x)
            assert reconstruction.shape == x.shape
            assert reconstruction.isfinite().all() and vq_loss.isfinite()
            assert codes.shape == (1, *(-(-n // 4) for n in spatial))


@torch.no_grad()
@pytest.mark.parametrize(("hidden_channels", "factor"), [((4,), 2), ((4, 4, 6), 8)])
def test_each_width_halves_the_latents(hidden_channels: tuple[int, ...], factor: int):
    network = tiny(3, hidden_channels=hidden_channels)
    assert network.factor == factor
    for size in range(1, 2 * factor + 2):
        x = image(size, 9, 3)
        latents = network.encode(x)
        assert latents.shape == (1, 2, *(-(-n // factor) for n in (size, 9, 3)))
        assert network.decode(network.quantize(latents), x.shape[2:]).shape == x.shape
    with pytest.raises(RequestError, match=f"at most {factor} times"):
        network.decode(torch.zeros(1, 2, 1, 1, 1), (factor + 1, 1, 1))


@torch.no_grad()
def test_images_are_padded_at_the_end_with_air():
    network = tiny(2)
    x = image(6, 9)
    padded = torch.full((1, 1, 8, 12), -1.0)
    padded[:, :, :6, :9] = x
    assert torch.equal(network.encode(x), network.encode(padded))
    assert torch.equal(network(x)[0], network(padded)[0][:, :, :6, :9])


@torch.no_grad()
def test_decode_without_a_shape_gives_four_times_the_latents():
    network = tiny(2)
    assert network.decode(torch.zeros(1, 2, 3, 5)).shape == (1, 1, 12, 20)


@torch.no_grad()
def test_latent_activation_squeezes_negative_latents():
    published, ours = tiny(2), tiny(2, latent_activation=False)
    x = image(16, 16)
    for network in (published, ours):  # centre the latents, so that about half are negative
        network.encoder.output_conv.bias -= tiny(2, latent_activation=False).encode(x).mean()
    latents = ours.encode(x)
    assert (latents < 0).any() and (latents > 0).any()
    assert torch.equal(published.encode(x), functional.leaky_relu(latents, 0.01))


@pytest.mark.parametrize("codebook_update", ["gradient", "ema"])
@torch.no_grad()
def test_save_and_load_is_bit_equal(codebook_update: str, tmp_path: Path):
    network = tiny(2, codebook_update=codebook_update, latent_activation=False).train()
    for seed in range(3):
        network(image(16, 12, seed=seed))
    network.eval()
    network.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["hidden_channels"] == [4, 6]
    assert config["codebook_update"] == codebook_update
    again = VQVAE.from_pretrained(tmp_path)
    state = again.state_dict()
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    for got, wanted in zip(again(image(9, 7)), network(image(9, 7)), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("codebook_update", ["gradient", "ema"])
def test_training_learns_without_collapse(codebook_update: str):
    network = tiny(2, codebook_update=codebook_update, latent_activation=False).train()
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3, weight_decay=0)
    losses = []
    for step in range(80):
        x = functional.interpolate(image(8, 8, seed=step % 8), size=(32, 32), mode="bilinear")
        reconstruction, vq_loss, codes = network(x)
        error = functional.mse_loss(reconstruction, x)
        optimizer.zero_grad()
        (error + vq_loss).backward()
        optimizer.step()
        losses.append(error.item())
    assert sum(losses[-8:]) < 0.6 * sum(losses[:8])
    assert codes_in_use(codes) >= 8


def test_checkpointing_leaves_gradients_as_they_are():
    gradients = []
    for checkpointing in (False, True):
        network = tiny(3, gradient_checkpointing=checkpointing).train()
        reconstruction, vq_loss, _ = network(image(9, 6, 5))
        (reconstruction.square().mean() + vq_loss).backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_autocast_keeps_image_and_latents_in_float32():
    network = tiny(3)
    x = image(9, 6, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        latents = network.encode(x)
        reconstruction, vq_loss, _ = network(x)
    assert latents.dtype == reconstruction.dtype == vq_loss.dtype == torch.float32
    assert torch.allclose(latents, network.encode(x), atol=0.02)


def test_compiles_into_one_graph_in_use():
    network = tiny(2, codebook_update="ema")
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.allclose(compiled(image(9, 7))[0], network(image(9, 7))[0], atol=1e-6)


def test_published_size():
    with torch.device("meta"):
        network = VQVAE()
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(28.0e6, rel=5e-3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spatial_dims": 1}, "spatial_dims is 2 or 3"),
        ({"hidden_channels": ()}, "hidden_channels are positive numbers"),
        ({"hidden_channels": (4, 0)}, "hidden_channels are positive numbers"),
        ({"in_channels": 0}, "in_channels"),
        ({"out_channels": 0}, "out_channels"),
        ({"num_res_blocks": -1}, "num_res_blocks"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], words: str):
    with pytest.raises(RequestError, match=words):
        tiny(**changes)


def test_inputs_that_do_not_fit_are_refused():
    network = tiny(2)
    with pytest.raises(RequestError, match="image has shape"):
        network.encode(image(5, 5, 5))
    with pytest.raises(RequestError, match="latents have shape"):
        network.decode(torch.zeros(1, 3, 4, 4))
    with pytest.raises(RequestError, match="belong to an image"):
        network.decode(torch.zeros(1, 2, 4, 4), (17, 16))
