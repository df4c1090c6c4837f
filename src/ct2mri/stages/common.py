"""What all stages share: what they draw from, whom they tell, and which settings are allowed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn

from ct2mri.diffusion import NoiseSettings, SeededNoise, check_sampler, check_steps
from ct2mri.errors import RequestError
from ct2mri.models.pretrained import PretrainedModel
from ct2mri.options import Sampler
from ct2mri.stage_files import Kind

AIR = -1.0

Condition = Mapping[Literal["source", "body", "draft"], Tensor]
"""Volumes to draw from: `source` (windows, i, j, k), where it is known `body` (1, i, j, k), 1 inside, and
after the first stage `draft` (1, i, j, k)."""
OnStep = Callable[[str, int, int], None]
"""Told (stage, steps done, steps in all) after each step; raising in it stops the sampling."""


class Stage(ABC):
    """One stage of a pipeline: it draws a volume, of the source or of what the stage before it drew.

    Attributes:
        kind: names its folder in a pipeline, and tells what is in it.
        noise: the diffusion process that its network was trained for; None where there is none.
        sampler: used unless another is asked for; None where there is no choice.
        num_inference_steps: used unless others are asked for.
        batch_size: slices that go through the network together, in a stage that draws slice by slice.
    """

    kind: Kind
    noise: NoiseSettings | None = None
    sampler: Sampler | None = None
    num_inference_steps: int = 1
    batch_size: int = 16

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
