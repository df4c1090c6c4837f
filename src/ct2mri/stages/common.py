"""What all stages share: what they draw from, whom they tell, and which settings are allowed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn

from ct2mri.diffusion import NoiseSettings, SeededNoise, check_sampler, check_steps
from ct2mri.errors import RequestError
from ct2mri.models.compiling import compile_blocks, why_not_compiled
from ct2mri.models.pretrained import PretrainedModel
from ct2mri.options.choices import Sampler
from ct2mri.stage_files import Kind
from ct2mri.stages.execution import Execution

AIR = -1.0

Condition = Mapping[Literal["source", "body", "draft", "wanted"], Tensor]
"""Volumes to draw from: `source` (windows, i, j, k), where it is known `body` (1, i, j, k), 1 inside, and
after the first stage `draft` (1, i, j, k); and `wanted` (1, i, j, k), above 0 where the result is looked at:
what is drawn elsewhere does not matter. Without `wanted`, all of it does."""
OnStep = Callable[[str, int, int], None]
"""Told (stage, steps done, steps in all) after each step; raising in it stops the sampling."""


class Stage(ABC):
    """One stage of a pipeline: it draws a volume, of the source or of what the stage before it drew.

    Attributes:
        kind: names its folder in a pipeline, and tells what is in it.
        noise: the diffusion process that its network was trained for; None where there is none.
        sampler: used unless another is asked for; None where there is no choice.
        num_inference_steps: used unless others are asked for.
        batch_size: slices that go through the network together, at most, in a stage that draws slice by
            slice; None: as many as are of use.
        compiled: whether the networks that compute most are compiled when they are first used.
        execution: within how much memory and in which precision to compute.
    """

    kind: Kind
    noise: NoiseSettings | None = None
    sampler: Sampler | None = None
    num_inference_steps: int = 1
    batch_size: int | None = None
    compiled: bool = False

    @cached_property
    def execution(self) -> Execution:
        """Its own, with what memory is free and in float32, until a pipeline gives it another."""
        return Execution()

    @property
    @abstractmethod
    def networks(self) -> list[PretrainedModel]:
        """What its weights are in."""

    @abstractmethod
    def description(self) -> str:
        """What it is, for the model card: a line."""

    def to(self, device: torch.device | str) -> Self:
        """Move the networks."""
        for network in self.networks:
            network.to(device)
        return self

    @property
    def worth_compiling(self) -> list[nn.Module]:
        """The networks that compute most."""
        return []

    def compile(self, wanted: bool) -> None:
        """Have the networks that compute most compiled on first use, once for all sizes; or not."""
        self.compiled = wanted
        for network in self.worth_compiling:
            compile_blocks(network, wanted)

    def tell_how_it_computed(self) -> None:
        """Remark where it could not be compiled."""
        if self.compiled and (sentence := why_not_compiled()):
            self.execution.remark(sentence)

    @abstractmethod
    def check_plan(self, channels: int, drafted: bool) -> None:
        """Raise RequestError unless a plan of so many source windows, and a draft or none, will do."""

    def chosen(self, sampler: Sampler | None, num_inference_steps: int | None) -> tuple[Sampler | None, int]:
        """The sampler and the steps to take: those asked for, else the stage's own.

        Raises:
            RequestError: the stage cannot be sampled so.
        """
        if sampler is not None or num_inference_steps not in (None, 1):
            raise RequestError(
                f"A {self.kind} stage draws at once, without sampling; leave out --sampler and --steps."
            )
        return None, 1

    @abstractmethod
    def sample(
        self,
        condition: Condition,
        noise: SeededNoise,
        on_step: OnStep | None = None,
        *,
        sampler: Sampler | None = None,
        num_inference_steps: int | None = None,
    ) -> Tensor:
        """Draw a volume.

        Args:
            condition: what to draw from.
            noise: whatever chance there is comes from it.
            on_step: told of progress.
            sampler: instead of the stage's own.
            num_inference_steps: instead of the stage's own.

        Returns:
            (1, i, j, k) in [−1, 1] on the CPU.
        """

    @abstractmethod
    def save_stage(self, folder: str | Path) -> None:
        """Write the stage into a folder of its own."""

    def save_into(self, pipeline: Path) -> None:
        """Write the stage and what it shares into a pipeline's folder."""
        self.save_stage(pipeline / self.kind)

    @classmethod
    @abstractmethod
    def load_stage(cls, folder: str | Path, device: torch.device | str = "cpu") -> Self:
        """Read what `save_stage` wrote.

        Raises:
            RequestError: a part is missing or damaged, or the folder holds another stage.
        """


class DiffusionStage(Stage):
    """A stage whose scalable U-Net was trained for a diffusion process."""

    network: PretrainedModel
    noise: NoiseSettings
    sampler: Sampler

    @property
    def networks(self) -> list[PretrainedModel]:
        """The U-Net."""
        return [self.network]

    def description(self) -> str:
        """The network's size, what it predicts, and how it is sampled."""
        return (
            f"{self.kind}: scalable U-Net of {millions(self.network):.3g} million parameters, "
            f"{self.noise.prediction_type}, sampler {self.sampler}, "
            f"{self.num_inference_steps} step(s) unless others are asked for"
        )

    def chosen(self, sampler: Sampler | None, num_inference_steps: int | None) -> tuple[Sampler, int]:
        """The sampler and the steps to take; see `Stage.chosen`."""
        sampler = sampler or self.sampler
        steps = self.num_inference_steps if num_inference_steps is None else num_inference_steps
        check_sampling(sampler, steps, self.noise)
        return sampler, steps


def millions(network: nn.Module) -> float:
    """How many million parameters a network has."""
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


def check_batch_size(batch_size: int | None) -> None:
    """Raise RequestError unless a batch holds at least one item, or nobody asked for a size."""
    if batch_size is not None and batch_size < 1:
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
