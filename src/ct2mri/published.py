"""Weights and data of the published system, brought in.

The authors of MD-DGA published three kinds of checkpoint: the 2D-SDM, the 3D-SLDM (both scalable U-Nets) and
the VQ-VAE. Their state dicts use other keys than ours; the tables below translate both ways.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def unet_keys(num_levels: int = 5, num_res_blocks: int = 1) -> dict[str, str]:
    """Module prefixes of a published scalable U-Net → ours."""
    keys = {"noise_level_mlp.1": "time_embedding.linear_1", "noise_level_mlp.3": "time_embedding.linear_2"}
    for published, ours in {"downs": "encoder", "c_downs": "condition_encoder"}.items():
        keys[f"{published}.0"] = f"{ours}.input_conv"
        number = 1
        for level in range(num_levels):
            for block in range(num_res_blocks):
                keys |= _block(f"{published}.{number}", f"{ours}.levels.{level}.blocks.{block}")
                number += 1
            if level < num_levels - 1:
                keys |= _scalable(f"{published}.{number}", f"{ours}.levels.{level}.pad.residual")
                keys[f"{published}.{number + 1}.conv"] = f"{ours}.levels.{level}.downsample"
                number += 2
    keys |= _residual("cross_attention.res_block", "middle.cross_attention.residual")
    for published, ours in {"norm": "norm", "q": "query", "kv": "key_value", "out": "output"}.items():
        keys[f"cross_attention.attn.{published}"] = f"middle.cross_attention.attention.{ours}"
    keys |= _block("mid.0", "middle.self_attention") | _block("mid.1", "middle.residual")
    number = 0
    for level in range(num_levels):  # in running order, the coarsest first
        for block in range(num_res_blocks + 1):
            keys |= _block(f"ups.{number}", f"decoder.{level}.blocks.{block}")
            number += 1
        if level < num_levels - 1:
            keys[f"ups.{number}.conv"] = f"decoder.{level}.upsample_conv"
            keys |= _scalable(f"ups.{number + 1}", f"decoder.{level}.unpad.residual")
            number += 2
    return keys | {"final_conv.block.0": "output_norm", "final_conv.block.3": "output_conv"}


def vqvae_keys(num_res_blocks: int = 6) -> dict[str, str]:
    """Module prefixes of a published VQ-VAE → ours."""
    keys = {
        "encoder.0.0": "encoder.down_1",
        "encoder.1.0": "encoder.down_2",
        "encoder.2.0": "encoder.conv",
        f"encoder.{num_res_blocks + 4}.0": "encoder.output_conv",
        "decoder.0.0": "decoder.input_conv",
        f"decoder.{num_res_blocks + 2}.0": "decoder.up_1",
        f"decoder.{num_res_blocks + 3}.0": "decoder.up_2",
    }
    for layer in range(num_res_blocks):
        for side, first in {"encoder": 3, "decoder": 1}.items():
            keys[f"{side}.{first + layer}.resblock.0"] = f"{side}.residual_layers.{layer}.conv_1"
            keys[f"{side}.{first + layer}.resblock.2"] = f"{side}.residual_layers.{layer}.conv_2"
    return keys


def _block(published: str, ours: str) -> dict[str, str]:
    attention = {"norm": "norm", "qkv": "query_key_value", "out": "output"}
    return _residual(f"{published}.res_block", f"{ours}.residual") | {
        f"{published}.attn.{key}": f"{ours}.attention.{value}" for key, value in attention.items()
    }


def _residual(published: str, ours: str) -> dict[str, str]:
    names = {
        "block1.block.0": "norm_1",
        "block1.block.3": "conv_1",
        "mlp.1": "time",
        "block2.block.0": "norm_2",
        "block2.block.3": "conv_2",
        "res_conv": "shortcut",
    }
    return {f"{published}.{key}": f"{ours}.{value}" for key, value in names.items()}


def _scalable(published: str, ours: str) -> dict[str, str]:
    return {f"{published}.block.0": f"{ours}.norm", f"{published}.block.2": f"{ours}.conv"}


def _rename(state: Mapping[str, Tensor], keys: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename by module prefix; keys that the table does not know stay as they are, for the loader to name."""
    renamed = {}
    for key, value in state.items():
        prefix, _, name = key.rpartition(".")
        renamed[f"{keys[prefix]}.{name}" if prefix in keys else key] = value
    return renamed


def convert_unet_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published scalable U-Net's state dict with the keys of `ScalableUNet`."""
    return _rename(state, unet_keys())


def restore_unet_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `convert_unet_state`."""
    return _rename(state, {ours: published for published, ours in unet_keys().items()})


def convert_vqvae_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published VQ-VAE's state dict with the keys of `VQVAE` (`codebook_update="gradient"`)."""
    converted = _rename(state, vqvae_keys(_count_residual_layers(state)))
    if "vq_layer.embedding.weight" in converted:
        converted["quantizer.codebook"] = converted.pop("vq_layer.embedding.weight")
        converted["quantizer.initialised"] = torch.tensor(True)
    return converted


def restore_vqvae_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `convert_vqvae_state`."""
    layers = len(
        {key for key in state if re.fullmatch(r"encoder\.residual_layers\.\d+\.conv_1\.weight", key)}
    )
    restored = _rename(state, {ours: published for published, ours in vqvae_keys(layers).items()})
    restored["vq_layer.embedding.weight"] = restored.pop("quantizer.codebook")
    del restored["quantizer.initialised"]
    return restored


def _count_residual_layers(state: Mapping[str, Any]) -> int:
    return sum(re.fullmatch(r"encoder\.\d+\.resblock\.0\.weight", key) is not None for key in state)
