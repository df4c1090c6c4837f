"""What all stages share: what they draw from, whom they tell, and which settings are allowed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ct2mri.diffusion import NoiseSettings, check_sampler, check_steps
from ct2mri.errors import RequestError
from ct2mri.options import Sampler

AIR = -1.0

ConditionPart = Literal["draft", "source"]
Condition = Mapping[ConditionPart, Tensor]
"""Volumes to draw from: `source` (windows, i, j, k) and, after the first stage, `draft` (1, i, j, k)."""
OnStep = Callable[[str, int, int], None]
"""Told (stage, steps done, steps in all) after each step; raising in it stops the sampling."""


def check_batch_size(batch_size: int) -> None:
    """Raise RequestError unless a batch holds at least one item."""
    if batch_size < 1:
        raise RequestError(f"--batch_size is at least 1, got {batch_size}.")


def check_sampling(sampler: Sampler, num_inference_steps: int, noise: NoiseSettings) -> None:
    """Raise RequestError unless there is such a sampler and it can take so many steps."""
    if sampler not in get_args(Sampler):
        raise RequestError(f"The sampler is one of {', '.join(get_args(Sampler))}, got {sampler!r}.")
    check_sampler(sampler, noise)
    check_steps(num_inference_steps, noise)


def check_names(what: str, names: Sequence[str], allowed: Iterable[str]) -> None:
    """Raise RequestError unless there are names, each once and allowed."""
    allowed = list(allowed)
    if not names or len(set(names)) < len(names) or not set(names) <= set(allowed):
        raise RequestError(
            f"The {what}: one or more of {', '.join(allowed)}, each once; got {', '.join(names) or 'none'}."
        )


def prepare_network(network: nn.Module) -> torch.device:
    """Set a network to inference and say where it is."""
    network.eval()
    return next(network.parameters()).device
