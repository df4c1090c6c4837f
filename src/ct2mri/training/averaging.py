"""Averaged weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import lightning
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class Averaging(WeightAveraging):
    """An exponential moving average of the parameters, not of the buffers.

    The decay rises as (1 + n) / (10 + n) with the number of updates n up to its value, so that short runs do
    not average over their first steps.

    Args:
        decay: of the average.
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: Sequence[Tensor], current: Sequence[Tensor], updates: Tensor | int) -> None:
            count = float(updates)
            share = 1 - min(decay, (1 + count) / (10 + count))
            torch._foreach_lerp_(list(averaged), list(current), share)

        super().__init__(use_buffers=False, multi_avg_fn=torch.no_grad()(average))

    @contextmanager
    def averaged(self, module: lightning.LightningModule) -> Iterator[None]:
        """Inside, the module holds the averaged weights."""
        self._swap_models(module)
        try:
            yield
        finally:
            self._swap_models(module)
