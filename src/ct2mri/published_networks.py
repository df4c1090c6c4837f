"""The published networks, from the authors' checkpoints: told apart and configured by what these hold."""

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ct2mri.errors import RequestError
from ct2mri.models import VQVAE, ScalableUNet
from ct2mri.published_keys import (
    CODEBOOK,
    convert_unet_state,
    convert_vqvae_state,
    count_levels,
    count_residual_layers,
    restore_unet_state,
    restore_vqvae_state,
)

Kind = Literal["slices", "vqvae", "latents"]
SPOKEN: dict[Kind, str] = {"slices": "2D-SDM", "vqvae": "VQ-VAE", "latents": "3D-SLDM"}
# What shapes do not tell, as published.
_NORM_GROUPS = 32
_HEADS = 4
_COMMITMENT_COST = 0.25


@dataclass
class PublishedNetwork:
    """A network of the published system, with its weights.

    Attributes:
        kind: which of the three it is.
        network: ours, in evaluation mode.
        path: the checkpoint it came from.
    """

    kind: Kind
    network: ScalableUNet | VQVAE
    path: Path


def load_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The weights in a published checkpoint, under the authors' keys.

    A checkpoint is a pickled dictionary with the weights under `model_parameters` (older files: `model`)
    beside optimiser state, epochs and losses; a bare state dict and a safetensors file serve as well. Nothing
    in a pickle is run: only tensors, containers and numbers are read.

    Raises:
        RequestError: there is no such file, it is no checkpoint, or holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise RequestError(f"There is no checkpoint at {path}; give a file that the authors published.")
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            with torch.serialization.safe_globals(_numbers_of_numpy()):
                # Mapped rather than read where the format allows: optimiser states are twice the weights.
                content = torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[0]
        raise RequestError(
            f"{path} is not a checkpoint of tensors and numbers alone, so it is not opened ({reason})."
        ) from error
    except (OSError, RuntimeError, EOFError, SafetensorError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RequestError(f"{path} cannot be read as a checkpoint ({reason}); fetch it again.") from error
    if isinstance(content, dict):
        for key in ("model_parameters", "model"):
            if isinstance(content.get(key), dict):
                content = content[key]
                break
    if not isinstance(content, dict) or not content:
        raise RequestError(f"{path} holds no weights, which lie under model_parameters or model.")
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise RequestError(
                f"{path} holds no weights under model_parameters or model, only a dictionary with {key!r}; "
                "give a checkpoint that the authors published (of a run of `ct2mri train`, `ct2mri export` "
                "makes a model)."
            )
        state[key.removeprefix("module.")] = value  # left by training on several GPUs
    return state


def _numbers_of_numpy() -> list[Any]:
    """What a pickle may name beside torch's own: numpy's numbers and arrays, often used for losses."""
    functions: list[Any] = [
        np.float64(0).__reduce__()[0],
        np.zeros(0).__reduce__()[0],
    ]  # make a number, make an array
    names = [
        (function, f"{package}.multiarray.{function.__name__}")
        for function in functions
        for package in ("numpy.core", "numpy._core")  # numpy 1 and numpy 2
    ]
    return [np.dtype, np.ndarray, *names, *(type(np.dtype(name)) for name in ("f4", "f8", "i4", "i8", "?"))]


def read_published(path: str | Path) -> PublishedNetwork:
    """A published network; its kind and configuration are told by what the checkpoint holds.

    Raises:
        RequestError: the file cannot be read, or fits none of the three networks; the first key that differs
            is named.
    """
    path = Path(path)
    state = load_checkpoint(path)
    is_vqvae = CODEBOOK in state or "encoder.0.0.weight" in state
    try:
        with torch.device("meta"):  # without memory: the weights are the checkpoint's own
            network = VQVAE(**_vqvae_config(state)) if is_vqvae else ScalableUNet(**_unet_config(state))
    except KeyError as error:
        raise RequestError(
            f"{path} holds none of the published networks: it lacks {error.args[0]}, "
            f"and its first key is {min(state)}."
        ) from error
    except RequestError as error:
        raise RequestError(f"{path} holds none of the published networks: {error}") from error
    kind: Kind = "vqvae" if is_vqvae else "slices" if network.spatial_dims == 2 else "latents"
    restore, convert = (
        (restore_vqvae_state, convert_vqvae_state) if is_vqvae else (restore_unet_state, convert_unet_state)
    )
    _require_same_layout(path, kind, state, restore(network.state_dict()))
    network.load_state_dict(convert(_reverse_kernels(state)), assign=True)
    return PublishedNetwork(kind, network.eval(), path)


def _reverse_kernels(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for arrays whose axes come in the opposite order, in float32.

    The authors' arrays begin with the slice (160×224×168, 96×240×384), ours end with it. A network whose
    kernels are turned does on the turned array exactly what it did.
    """
    return {
        key: value.float().permute(0, 1, *range(value.ndim - 1, 1, -1)).contiguous()
        if value.ndim > 2
        else value.float()
        for key, value in state.items()
    }


def _require_same_layout(
    path: Path, kind: Kind, got: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> None:
    for key in sorted(got.keys() | wanted.keys()):
        shapes = [tuple(state[key].shape) if key in state else "nothing" for state in (got, wanted)]
        if shapes[0] != shapes[1]:
            raise RequestError(
                f"{path} is not quite a published {SPOKEN[kind]}: at {key} it has {shapes[0]} where "
                f"{shapes[1]} belongs."
            )


def _unet_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The configuration of a scalable U-Net from the shapes of its weights."""
    base_channels, in_channels, *kernel = _kernel_shape(state, "downs.0.weight")
    condition_channels = _kernel_shape(state, "c_downs.0.weight")[1]
    levels = range(count_levels(state))
    widths = [
        _kernel_shape(state, f"downs.{3 * level + 1}.res_block.block1.block.3.weight")[0] for level in levels
    ]
    return {
        "spatial_dims": len(kernel),
        "sample_channels": in_channels - condition_channels,
        "condition_channels": condition_channels,
        "out_channels": _kernel_shape(state, "final_conv.block.3.weight")[0],
        "base_channels": base_channels,
        "channel_multipliers": [width // base_channels for width in widths],
        "attention_levels": [level for level in levels if f"downs.{3 * level + 1}.attn.qkv.weight" in state],
        "num_res_blocks": 1,
        "norm_num_groups": _NORM_GROUPS,
        "num_heads": _HEADS,
    }


def _vqvae_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The configuration of a VQ-VAE from the shapes of its weights."""
    half, in_channels, *kernel = _kernel_shape(state, "encoder.0.0.weight")
    num_res_blocks = count_residual_layers(state)
    embedding_dim = _kernel_shape(state, f"encoder.{num_res_blocks + 4}.0.weight")[0]
    return {
        "spatial_dims": len(kernel),
        "in_channels": in_channels,
        # Transposed convolutions hold the input's channels first.
        "out_channels": _kernel_shape(state, f"decoder.{num_res_blocks + 3}.0.weight")[1],
        "hidden_channels": [half, _kernel_shape(state, "encoder.1.0.weight")[0]],
        "num_res_blocks": num_res_blocks,
        "embedding_dim": embedding_dim,
        "num_embeddings": state[CODEBOOK].numel() // embedding_dim,
        "commitment_cost": _COMMITMENT_COST,
        "latent_activation": True,
        "codebook_update": "gradient",
    }


def _kernel_shape(state: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    """Shape of a convolution's weight."""
    shape = tuple(state[key].shape)
    if len(shape) not in (4, 5):
        raise RequestError(f"{key} is no kernel in two or three dimensions but has shape {shape}.")
    return shape
