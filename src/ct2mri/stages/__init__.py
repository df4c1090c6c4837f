"""Stages of a pipeline: a network, the diffusion process it was trained for, and its condition.

On disk a stage is a folder: `config.json` and `model.safetensors` are the network, `stage.json` the rest, of
which `kind` tells the class.
Every stage samples one volume in the networks' units, [−1, 1], on the working grid, axes in RAS+ order.
"""

from pathlib import Path

import torch

from ct2mri.errors import RequestError
from ct2mri.stage_files import stage_kind
from ct2mri.stages.bridge import BridgeStage
from ct2mri.stages.common import Condition, OnStep, Stage, check_batch_size, check_sampling
from ct2mri.stages.execution import Execution
from ct2mri.stages.latents import LatentsStage, load_vqvae, save_vqvae
from ct2mri.stages.lookup import LookupStage
from ct2mri.stages.mean import MeanStage, body_box, kind_of_volume
from ct2mri.stages.slices import SlicesStage

STAGES: dict[str, type[Stage]] = {
    stage.kind: stage for stage in (SlicesStage, LatentsStage, LookupStage, MeanStage, BridgeStage)
}
"""The class of each kind of stage."""


def load_stage(folder: str | Path, device: torch.device | str = "cpu", *, kind: str | None = None) -> Stage:
    """Read a stage of a kind, by default of whatever kind the folder says.

    Raises:
        RequestError: a part is missing or damaged, the folder holds another kind, or it is not known.
    """
    kind = stage_kind(folder) if kind is None else kind
    if kind not in STAGES:
        raise RequestError(
            f"{folder} is a `{kind}` stage, and this program knows {', '.join(STAGES)}; "
            "give a folder that holds one of these, or update ct2mri."
        )
    return STAGES[kind].load_stage(folder, device)


__all__ = [
    "STAGES",
    "BridgeStage",
    "Condition",
    "Execution",
    "LatentsStage",
    "LookupStage",
    "MeanStage",
    "OnStep",
    "SlicesStage",
    "Stage",
    "body_box",
    "check_batch_size",
    "check_sampling",
    "kind_of_volume",
    "load_stage",
    "load_vqvae",
    "save_vqvae",
]
