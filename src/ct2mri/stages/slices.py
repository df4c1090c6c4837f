"""Stages that draw a volume slice by slice; among them the 2D stage."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from ct2mri.data.cases import SLICE_AXIS, Orientation, neighbour_offsets
from ct2mri.diffusion import NoiseSettings, SeededNoise, sample
from ct2mri.errors import RequestError
from ct2mri.models import ScalableUNet
from ct2mri.models.footprint import network_bytes
from ct2mri.models.pretrained import PretrainedModel
from ct2mri.options.choices import Sampler
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
from ct2mri.stages.execution import Portion

# Slices a batch: more do not make better use of a device. On a CPU, so many pixels that the widest features
# stay near the size of its caches; batches of 16 slices take a third more time there (docs/performance.md).
_SLICES = 32
_CPU_PIXELS = 80_000


class SliceBySlice(Stage):
    """Draws a volume slice by slice from the source's slices, many slices at a time.

    Args:
        network: 2D, one sample channel, one condition channel a source window and slice that is shown.
        orientations: of the slices; the volumes drawn in several are averaged.
        batch_size: slices that go through the network together, at most; None: as many as are of use. Fewer
            where memory does not suffice.
        neighbours: slices on either side whose source is shown beside a slice's own.

    Raises:
        RequestError: a setting is not allowed.
    """

    def __init__(
        self,
        network: ScalableUNet,
        *,
        orientations: Sequence[Orientation],
        batch_size: int | None,
        neighbours: int,
    ) -> None:
        check_names(f"orientations of a {self.kind} stage", orientations, SLICE_AXIS)
        check_batch_size(batch_size)
        self.offsets = neighbour_offsets(neighbours)
        if neighbours < 0 or network.condition_channels % len(self.offsets):
            raise RequestError(
                f"The {self.kind} stage has a network of {network.condition_channels} condition channels and "
                f"neighbours {neighbours}; these are 0 or more, and each slice that is shown has as many "
                "channels. Take the number that it was trained with."
            )
        self.neighbours = neighbours
        self.network = network
        self.orientations = tuple(orientations)
        self.batch_size = batch_size

    @property
    def networks(self) -> list[PretrainedModel]:
        """The U-Net."""
        return [self.network]

    @property
    def worth_compiling(self) -> list[nn.Module]:
        """The U-Net."""
        return [self.network]

    def check_plan(self, channels: int, drafted: bool) -> None:
        """Raise RequestError unless the network takes the plan's source windows."""
        if self.windows != channels:
            raise RequestError(
                f"The plan has {channels} source windows, the {self.kind} stage was trained with "
                f"{self.windows}; use the plan that it was trained with."
            )

    @property
    def windows(self) -> int:
        """Source windows that the network was trained with."""
        return self.network.condition_channels // len(self.offsets)

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
            condition: of its volumes, the source; and what of the result is wanted.
            noise: one volume of it is drawn and sliced, so that a result does not depend on the batches.
            on_step: told of progress.
            sampler: instead of the stage's own.
            num_inference_steps: instead of the stage's own.

        Returns:
            (1, i, j, k) in [−1, 1] on the CPU; −1 in slices whose condition is empty, and in those of which
            nothing is wanted.

        Raises:
            RequestError: the source has other windows, or not even one slice fits into memory.
        """
        sampler, steps = self.chosen(sampler, num_inference_steps)
        source = condition["source"]
        if len(source) != self.windows:
            raise RequestError(
                f"The {self.kind} stage takes {self.windows} source windows, "
                f"got {len(source)}; use the plan that it was trained with."
            )
        shape = (int(source.shape[1]), int(source.shape[2]), int(source.shape[3]))
        orientations = self._orientations_for(shape)
        shown = {orientation: _shown_slices(condition, orientation) for orientation in orientations}
        progress = _Progress(on_step, self.kind, steps * sum(len(indices) for indices in shown.values()))

        device = prepare_network(self.network)
        with torch.inference_mode(False):  # weights that can be trained again afterwards
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        start = noise((1, *shape), stage=self.kind)
        if self._fit_on(device, source, start):  # copied once, and not batch by batch
            source, start = source.to(device), start.to(device)
        total: Tensor | None = None
        for orientation in orientations:
            drawn = torch.full((1, *shape), AIR, device=source.device)
            with self.execution.autocast(device):
                self._draw_slices(
                    orientation, shown[orientation], source, start, drawn, noise, sampler, steps, progress
                )
            total = drawn if total is None else total.add_(drawn)
        assert total is not None
        self.tell_how_it_computed()
        return total.div_(len(orientations)).clamp_(-1, 1).cpu()

    def _draw_slices(
        self,
        orientation: Orientation,
        shown: Tensor,
        source: Tensor,
        start: Tensor,
        drawn: Tensor,
        noise: SeededNoise,
        sampler: Sampler | None,
        steps: int,
        progress: "_Progress",
    ) -> None:
        """Draw the slices whose numbers are in `shown` into `drawn`, batch by batch."""
        device = next(self.network.parameters()).device
        done = 0

        def draw_from_here(batch_size: int) -> None:
            nonlocal done
            while done < len(shown):
                # As few batches as can be, and as equal: a last one of few slices makes poor use of a device,
                # and one of a single slice would be compiled anew.
                left = len(shown) - done
                indices = shown[done : done + math.ceil(left / math.ceil(left / batch_size))]
                count = len(indices)
                # Fresh noise is drawn slice by slice: a whole volume of it at every step would have to be
                # kept from batch to batch.
                names = [f"slices/{orientation}/{index}" for index in indices.tolist()]
                indices = indices.to(source.device)
                first = _slices_first(start, orientation)[indices].to(device)

                def step_noise(step: int, names: list[str] = names, like: Tensor = first) -> Tensor:
                    return torch.stack(
                        [noise(tuple(like.shape[1:]), stage=name, step=step) for name in names]
                    )

                _slices_first(drawn, orientation)[indices] = self.draw(
                    self.with_neighbours(_slices_first(source, orientation), indices)
                    .to(device)
                    .contiguous(memory_format=torch.channels_last),
                    first,
                    step_noise,
                    sampler,
                    steps,
                    partial(progress.tell, count),
                ).to(drawn.device)
                progress.advance(count * steps)
                done += count

        if len(shown):
            size = [n for axis, n in enumerate(source.shape[1:]) if axis != SLICE_AXIS[orientation]]
            self.execution.within(
                device, f"the {self.kind} stage", self._batches(size, device), draw_from_here
            )

    def with_neighbours(self, slices: Tensor, indices: Tensor) -> Tensor:
        """Some of a source's slices (n, C, H, W), each with its neighbours: (·, slices shown · C, H, W)."""
        places = [(indices + offset).clamp(0, len(slices) - 1) for offset in self.offsets]
        return torch.cat([slices[place] for place in places], dim=1)

    def _batches(self, size: Sequence[int], device: torch.device) -> list[Portion[int]]:
        """Batch sizes for slices of a size, from the most wanted on: more slices are no faster."""
        each = math.prod(size) * network_bytes(self.network, 1, self.network.condition_channels, len(size))
        wanted = self.batch_size
        if wanted is None:
            wanted = _SLICES
            if device.type == "cpu":
                wanted = max(1, min(wanted, round(_CPU_PIXELS / math.prod(size))))
        shape = "×".join(map(str, size))
        return [
            Portion(n, n * each, f"{n} slice{'s' * (n > 1)} of {shape} at a time")
            for n in range(wanted, 0, -1)
        ]

    def _fit_on(self, device: torch.device, *volumes: Tensor) -> bool:
        """Whether volumes and results take little of the device's free memory."""
        size = sum(volume.nbytes for volume in volumes) + 2 * volumes[-1].nbytes
        return device.type != "cpu" and 4 * size < self.execution.room(device)

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
            source: (n, C, H, W), with neighbours those of one slice after those of another.
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
        network: 2D, one sample channel, one condition channel a source window and slice that is shown.
        noise: the process it was trained for.
        sampler: used unless another is asked for.
        num_inference_steps: used unless others are asked for.
        orientations: of the slices; the volumes drawn in several are averaged.
        batch_size: slices that go through the network together, at most; None: as many as are of use. Fewer
            where memory does not suffice.
        neighbours: slices on either side whose source is shown beside a slice's own.

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
        batch_size: int | None = None,
        neighbours: int = 0,
    ) -> None:
        super().__init__(network, orientations=orientations, batch_size=batch_size, neighbours=neighbours)
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
            "neighbours": self.neighbours,
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
                neighbours=facts.get("neighbours", 0),
            )


class _Progress:
    """Counts steps, each of one slice, over all batches."""

    def __init__(self, on_step: OnStep | None, stage: str, total: int) -> None:
        self.on_step = on_step
        self.stage = stage
        self.total = total
        self.before = 0

    def tell(self, slices: int, step: int, total: int) -> None:
        """Tell that a batch of so many slices has taken `step` of its `total` steps."""
        if self.on_step is not None:
            self.on_step(self.stage, self.before + slices * step, self.total)

    def advance(self, steps: int) -> None:
        """A batch is done."""
        self.before += steps


def _shown_slices(condition: Condition, orientation: Orientation) -> Tensor:
    """Numbers of the slices that are worth drawing: (n,), int64.

    A slice that holds only the lowest value of every window shows nothing to draw from; and of the result
    only what is wanted is looked at.
    """
    shown = _slices_first(condition["source"], orientation).amax(dim=(1, 2, 3)) > AIR
    if "wanted" in condition:
        shown &= _slices_first(condition["wanted"], orientation).amax(dim=(1, 2, 3)) > 0
    return shown.nonzero().flatten()


def _slices_first(volume: Tensor, orientation: Orientation) -> Tensor:
    """A view (n, C, H, W) of a volume (C, i, j, k): its slices along the axis that they leave out."""
    return volume.movedim(SLICE_AXIS[orientation] + 1, 0)
