"""Stages of a pipeline: a network, the diffusion process it was trained for, and its condition.

On disk a stage is a folder: `config.json` and `model.safetensors` are the network, `stage.json` the rest.
Every stage samples one volume in the networks' units, [−1, 1], on the working grid, axes in RAS+ order.
"""

from ct2mri.stages.common import Condition, ConditionPart, OnStep, check_batch_size, check_sampling
from ct2mri.stages.latents import LatentsStage, load_vqvae, save_vqvae
from ct2mri.stages.slices import SlicesStage

__all__ = [
    "Condition",
    "ConditionPart",
    "LatentsStage",
    "OnStep",
    "SlicesStage",
    "check_batch_size",
    "check_sampling",
    "load_vqvae",
    "save_vqvae",
]
