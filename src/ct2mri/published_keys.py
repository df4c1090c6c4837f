"""The names that the published networks' weights have, and ours.

A table maps the prefix of a module in a published state dict to ours; what follows it (`weight`, `bias`) is
the same in both.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

CODEBOOK = "vq_layer.embedding.weight"


def unet_keys(num_levels: int) -> dict[str, str]:
    """Module prefixes of a published scalable U-Net → ours."""
    keys = {"noise_level_mlp.1": "time_embedding.linear_1", "noise_level_mlp.3": "time_embedding.linear_2"}
    for published, ours in {"downs": "encoder", "c_downs": "condition_encoder"}.items():
        keys[f"{published}.0"] = f"{ours}.input_conv"
        number = 1
        for level in range(num_levels):
            keys |= _block(f"{published}.{number}", f"{ours}.levels.{level}.blocks.0")
            if level < num_levels - 1:
                keys |= _scalable(f"{published}.{number + 1}", f"{ours}.levels.{level}.pad.residual")
                keys[f"{published}.{number + 2}.conv"] = f"{ours}.levels.{level}.downsample"
            number += 3
    keys |= _residual("cross_attention.res_block", "middle.cross_attention.residual")
    for published, ours in {"norm": "norm", "q": "query", "kv": "key_value", "out": "output"}.items():
        keys[f"cross_attention.attn.{published}"] = f"middle.cross_attention.attention.{ours}"
    keys |= _block("mid.0", "middle.self_attention") | _block("mid.1", "middle.residual")
    for level in range(num_levels):  # in running order, the coarsest first
        number = 4 * level
        keys |= _block(f"ups.{number}", f"decoder.{level}.blocks.0")
        keys |= _block(f"ups.{number + 1}", f"decoder.{level}.blocks.1")
        if level < num_levels - 1:
            keys[f"ups.{number + 2}.conv"] = f"decoder.{level}.upsample_conv"
            keys |= _scalable(f"ups.{number + 3}", f"decoder.{level}.unpad.residual")
    return keys | {"final_conv.block.0": "output_norm", "final_conv.block.3": "output_conv"}


def vqvae_keys(num_res_blocks: int) -> dict[str, str]:
    """Module prefixes of a published VQ-VAE → ours."""
    keys = {
        "encoder.0.0": "encoder.downs.0",
        "encoder.1.0": "encoder.downs.1",
        "encoder.2.0": "encoder.conv",
        f"encoder.{num_res_blocks + 4}.0": "encoder.output_conv",
        "decoder.0.0": "decoder.input_conv",
        f"decoder.{num_res_blocks + 2}.0": "decoder.ups.0",
        f"decoder.{num_res_blocks + 3}.0": "decoder.ups.1",
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
    return _rename(state, unet_keys(count_levels(state)))


def restore_unet_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `convert_unet_state`, for a network with one residual block a level."""
    levels = _count(state, r"encoder\.levels\.\d+\.downsample\.weight") + 1
    return _rename(state, {ours: published for published, ours in unet_keys(levels).items()})


def convert_vqvae_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published VQ-VAE's state dict with the keys of `VQVAE` (`codebook_update="gradient"`)."""
    converted = _rename(state, vqvae_keys(count_residual_layers(state)))
    if CODEBOOK in converted:
        converted["quantizer.codebook"] = converted.pop(CODEBOOK)
        converted["quantizer.initialised"] = torch.tensor(True)
    return converted


def restore_vqvae_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `convert_vqvae_state`."""
    layers = _count(state, r"encoder\.residual_layers\.\d+\.conv_1\.weight")
    restored = _rename(state, {ours: published for published, ours in vqvae_keys(layers).items()})
    restored[CODEBOOK] = restored.pop("quantizer.codebook")
    del restored["quantizer.initialised"]
    return restored


def count_levels(state: Mapping[str, Tensor]) -> int:
    """Levels of a published scalable U-Net: one more than it has stride-2 convolutions."""
    return _count(state, r"downs\.\d+\.conv\.weight") + 1


def count_residual_layers(state: Mapping[str, Tensor]) -> int:
    """Residual layers on each side of a published VQ-VAE."""
    return _count(state, r"encoder\.\d+\.resblock\.0\.weight")


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return sum(re.fullmatch(pattern, key) is not None for key in state)
