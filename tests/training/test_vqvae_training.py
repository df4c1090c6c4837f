"""Training of the VQ-VAE."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_tiny import Tiny, write_dataset

from ct2mri.data.cases import PreparedDataset
from ct2mri.errors import RequestError
from ct2mri.stages import load_vqvae
from ct2mri.training.fit import train_vqvae
from ct2mri.training.vqvae import VqvaeModule


def test_it_learns_to_reconstruct_with_many_codes(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_vqvae(tiny.vqvae(run, crop_size=[12, 12, 12], max_steps=150, validate_every=50, learning_rate=3e-3))
    with (run / "validation.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert float(table[-1]["psnr"]) > 15
    assert float(table[-1]["codes_in_use"]) >= 4 and float(table[-1]["perplexity"]) > 2
    vqvae = load_vqvae(run / "best")
    target = torch.from_numpy(np.array(PreparedDataset(tiny.data).case("p4").target))[None, None].clamp(-1, 1)
    with torch.no_grad():
        reconstruction, _, _ = vqvae(target)
    assert (reconstruction - target).abs().mean() < 0.5 * (target - target.mean()).abs().mean()


def test_weights_are_not_averaged_and_stay_float32(tiny: Tiny, vqvae_run: Path, tmp_path: Path) -> None:
    state = torch.load(vqvae_run / "last.ckpt", weights_only=True)
    assert "averaging_state" not in state
    weights = load_file(vqvae_run / "best" / "model.safetensors")
    assert all(tensor.dtype != torch.bfloat16 for tensor in weights.values())
    with pytest.raises(RequestError, match="float32"):
        train_vqvae(tiny.vqvae(tmp_path / "run", precision="bf16"))


def test_invalid_voxels_have_no_say(tiny: Tiny, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = VqvaeModule(tiny.vqvae(tmp_path)).eval()
    image = torch.rand(2, 1, 8, 8, 8)
    reconstruction, vq_loss, _ = module.model(image)
    weight = torch.ones_like(image)
    weight[:, :, :, :, 5:] = 0
    expected = ((reconstruction - image) ** 2)[..., :5].mean() + vq_loss
    assert torch.allclose(module.loss({"image": image, "weight": weight}), expected)


@pytest.mark.parametrize("crop_size", [[8, 8], [8, 8, 6], [0, 8, 8]])
def test_crops_the_network_cannot_halve_twice(tiny: Tiny, tmp_path: Path, crop_size: list[int]) -> None:
    with pytest.raises(RequestError, match="--crop_size is three multiples of 4"):
        train_vqvae(tiny.vqvae(tmp_path / "run", crop_size=crop_size))


def test_single_slices_are_no_volumes(tiny: Tiny, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", size=(12, 14, 1))
    with pytest.raises(RequestError, match=r"p0 is a single slice \(12×14×1 voxels\).*train slices"):
        train_vqvae(replace(tiny.vqvae(tmp_path / "run"), data=data))
    assert not (tmp_path / "run").exists()
