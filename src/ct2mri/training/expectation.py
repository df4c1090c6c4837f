"""What a training will take, measured on one step before it starts."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ct2mri.memory import format_size
from ct2mri.training.module import Batch, StageModule


@dataclass(frozen=True)
class Expectation:
    """Memory and time of a training.

    Attributes:
        parameters: of the network.
        weight_bytes: weights, gradients, the optimiser's two moments and the average, all in float32.
        activation_bytes: what the largest batch keeps for its gradient.
        seconds: of one batch of average size, forwards and backwards.
    """

    parameters: int
    weight_bytes: int
    activation_bytes: int
    seconds: float

    def sentence(self, batches: int, device: torch.device) -> str:
        """Say it, for so many batches to come."""
        seconds = self.seconds * batches
        duration = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
        if seconds > 2 * 3600:
            duration = f"{seconds / 3600:.1f} h"
        return (
            f"{self.parameters / 1e6:.1f} M parameters. Expecting about "
            f"{format_size(self.weight_bytes + self.activation_bytes)} of memory on {device} "
            f"({format_size(self.weight_bytes)} for weights and optimiser, "
            f"{format_size(self.activation_bytes)} for the largest batch) "
            f"and {duration} for {batches} batches ({self.seconds:.2f} s each), validations not counted."
        )


def measure(module: StageModule, largest: Batch, share: float, *, averaged: bool, bf16: bool) -> Expectation:
    """Run two steps on the largest batch without learning anything from them.

    Args:
        module: on its device; it is left as it was.
        largest: a batch of the largest size, on the same device.
        share: size of an average batch in units of the largest.
        averaged: whether weights are averaged.
        bf16: whether the training computes in bfloat16.
    """
    device = module.device
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        # Without its history: a graph that keeps itself alive would never be freed where memory runs out.
        return tensor.detach()

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = module.loss(largest)
        loss.backward()  # type: ignore[no-untyped-call]
        module.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    module.eval()  # what learns outside the gradient, such as a moving codebook, learns in training mode only
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        step()
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    module.train()
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return Expectation(
        parameters=parameters,
        weight_bytes=4 * parameters * (5 if averaged else 4),
        activation_bytes=sum(kept.values()),
        seconds=seconds * share,
    )
