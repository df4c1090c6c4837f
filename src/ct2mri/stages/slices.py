"""Stages that draw a volume slice by slice; among them the 2D stage."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from ct2mri.data.cases import SLICE_AXIS, Orientation
from ct2mri.diffusion import NoiseSettings, SeededNoise, sample
from ct2mri.errors import RequestError
from ct2mri.models import ScalableUNet
from ct2mri.models.pretrained import PretrainedModel
from ct2mri.options import Sampler
from ct2mri.stage_files import Kind, facts_of, load_network, read_stage, save_network
from ct2mri.stages.common import (
    AIR,
    Condition,
    DiffusionStage,
    OnStep,
    Stage,
    check_batch_size,
    check_names,
    check_sampling,
    prepare_network,
)


class SliceBySlice(Stage):
    """Draws a volume slice by slice from the source's slices, many slices at a time.

    Args:
        network: 2D, one sample channel, one condition channel a source window.
        orientations: of the slices; the volumes drawn in several are averaged.
        batch_size: slices that go through the network together.

    Raises:
        RequestError: a setting is not allowed.
    """

    def __init__(
        self, network: ScalableUNet, *, orientations: Sequence[Orientation], batch_size: int
    ) -> None:
        check_names(f"orientations of a {self.kind} stage", orientations, SLICE_AXIS)
        check_batch_size(batch_size)
        self.network = network
        self.orientations = tuple(orientations)
        self.batch_size = batch_size

    @property
    def networks(self) -> list[PretrainedModel]:
        """The U-Net."""
        return [self.network]

    def check_plan(self, channels: int, drafted: bool) -> None:
        """Raise RequestError unless the network takes the plan's source windows."""
        if self.network.condition_channels != channels:
            raise RequestError(
                f"The plan has {channels} source windows, the {self.kind} stage was trained with "
                f"{self.network.condition_channels}; use the plan that it was trained with."
            )

    @torch.inference_mode()
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
            condition: of its volumes, the source.
            noise: one volume of it is drawn and sliced, so that a result does not depend on the batches.
            on_step: told of progress.
            sampler: instead of the stage's own.
            num_inference_steps: instead of the stage's own.

        Returns:
            (1, i, j, k) in [−1, 1] on the CPU; −1 in slices whose condition is empty.
        """
        sampler, steps = self.chosen(sampler, num_inference_steps)
        source = condition["source"]
        if len(source) != self.network.condition_channels:
            raise RequestError(
                f"The {self.kind} stage takes {self.network.condition_channels} source windows, "
                f"got {len(source)}; use the plan that it was trained with."
            )
        shape = (int(source.shape[1]), int(source.shape[2]), int(source.shape[3]))
        start = noise((1, *shape), stage=self.kind)
        orientations = self._orientations_for(shape)

        batches: list[tuple[Orientation, Tensor]] = []
        for orientation in orientations:
            # A slice that holds only the lowest value of every window shows nothing to draw from.
            shown = _slices_first(source, orientation).flatten(1).amax(dim=1) > AIR
            batches += [
                (orientation, indices) for indices in torch.split(shown.nonzero().flatten(), self.batch_size)
            ]
        batches = [(orientation, indices) for orientation, indices in batches if len(indices)]

        drawn = {orientation: torch.full((1, *shape), AIR) for orientation in orientations}
        device = prepare_network(self.network)
        for number, (orientation, indices) in enumerate(batches):
            # Fresh noise is drawn slice by slice: a whole volume of it at every step would have to be kept
            # from batch to batch.
            names = [f"slices/{orientation}/{index}" for index in indices.tolist()]
            first = _slices_first(start, orientation)[indices]

            def step_noise(step: int, names: list[str] = names, like: Tensor = first) -> Tensor:
                return torch.stack([noise(tuple(like.shape[1:]), stage=name, step=step) for name in names])

            def tell(step: int, of: int, number: int = number) -> None:
                if on_step is not None:
                    on_step(self.kind, number * of + step, len(batches) * of)

            _slices_first(drawn[orientation], orientation)[indices] = self.draw(
                _slices_first(source, orientation)[indices].to(device),
                first.to(device),
                step_noise,
                sampler,
                steps,
                tell,
            ).cpu()
        return (sum(drawn.values(), torch.zeros(1, *shape)) / len(drawn)).clamp(-1, 1)

    @abstractmethod
    def draw(
        self,
        source: Tensor,
        start: Tensor,
        step_noise: Callable[[int], Tensor],
        sampler: Sampler | None,
        steps: int,
        on_step: Callable[[int, int], None],
    ) -> Tensor:
        """Draw one batch of slices on the network's device.

        Args:
            source: (n, C, H, W).
            start: (n, 1, H, W), the first noise.
            step_noise: gives the fresh noise of a step.
            sampler: how to step.
            steps: how often.
            on_step: called as on_step(step, total) after each step.

        Returns:
            (n, 1, H, W).
        """

    def _orientations_for(self, shape: tuple[int, int, int]) -> list[Orientation]:
        """The stage's orientations whose slices are more than a line in a volume of this shape.

        A volume that is one slice itself is drawn as that slice, whatever the stage's orientations.
        """

        def is_plane(orientation: Orientation) -> bool:
            return min(n for axis, n in enumerate(shape) if axis != SLICE_AXIS[orientation]) > 1

        own = [orientation for orientation in self.orientations if is_plane(orientation)]
        return own or [name for name in SLICE_AXIS if is_plane(name)] or list(self.orientations)


class SlicesStage(SliceBySlice, DiffusionStage):
    """The 2D model: slices by diffusion, given the source's slices.

    Args:
        network: 2D, one sample channel, one condition channel a source window.
        noise: the process it was trained for.
        sampler: used unless another is asked for.
        num_inference_steps: used unless others are asked for.
        orientations: of the slices; the volumes drawn in several are averaged.
        batch_size: slices that go through the network together.

    Raises:
        RequestError: a setting is not allowed.
    """

    kind: Kind = "slices"
    network: ScalableUNet

    def __init__(
        self,
        network: ScalableUNet,
        noise: NoiseSettings,
        *,
        sampler: Sampler,
        num_inference_steps: int,
        orientations: Sequence[Orientation] = ("axial",),
        batch_size: int = 16,
    ) -> None:
        super().__init__(network, orientations=orientations, batch_size=batch_size)
        check_sampling(sampler, num_inference_steps, noise)
        self.noise = noise
        self.sampler = sampler
        self.num_inference_steps = num_inference_steps

    def draw(
        self,
        source: Tensor,
        start: Tensor,
        step_noise: Callable[[int], Tensor],
        sampler: Sampler | None,
        steps: int,
        on_step: Callable[[int, int], None],
    ) -> Tensor:
        """Sample one batch of slices; see `SliceBySlice.draw`."""
        return sample(
            self.network,
            source,
            start,
            self.noise,
            sampler=sampler or self.sampler,
            num_inference_steps=steps,
            step_noise=step_noise,
            on_step=on_step,
        )

    def save_stage(self, folder: str | Path) -> None:
        """Write the stage into a folder of its own."""
        facts = {
            "noise": self.noise.to_dict(),
            "sampler": self.sampler,
            "num_inference_steps": self.num_inference_steps,
            "orientations": list(self.orientations),
        }
        save_network(self.network, self.kind, facts, folder)

    @classmethod
    def load_stage(cls, folder: str | Path, device: torch.device | str = "cpu") -> Self:
        """Read what `save_stage` wrote.

        Raises:
            RequestError: a part is missing or damaged, or the folder holds another stage.
        """
        folder = Path(folder)
        facts = read_stage(folder, cls.kind)
        network = load_network(ScalableUNet, folder, device)
        with facts_of(folder):
            return cls(
                network,
                NoiseSettings.from_dict(facts["noise"]),
                sampler=facts["sampler"],
                num_inference_steps=facts["num_inference_steps"],
                orientations=tuple(facts["orientations"]),
            )


def _slices_first(volume: Tensor, orientation: Orientation) -> Tensor:
    """A view (n, C, H, W) of a volume (C, i, j, k): its slices along the axis that they leave out."""
    return volume.movedim(SLICE_AXIS[orientation] + 1, 0)
