"""Baseline: slices by a Brownian bridge (BBDM), which starts from the source's slices."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from ct2mri.bridge import BridgeSettings, check_bridge_steps, sample_bridge
from ct2mri.data.cases import Orientation
from ct2mri.errors import RequestError
from ct2mri.models import ScalableUNet
from ct2mri.options.choices import Sampler
from ct2mri.stage_files import Kind, facts_of, load_network, read_stage, save_network
from ct2mri.stages.common import millions
from ct2mri.stages.slices import SliceBySlice


class BridgeStage(SliceBySlice):
    """Walks from the source's slices, in the first window, to the target's.

    Args:
        network: 2D, one sample channel, one condition channel a source window.
        bridge: the bridge that it was trained for.
        num_inference_steps: used unless others are asked for.
        orientations: of the slices; the volumes drawn in several are averaged.
        batch_size: slices that go through the network together, at most; None: as many as are of use. Fewer
            where memory does not suffice.

    Raises:
        RequestError: a setting is not allowed.
    """

    kind: Kind = "bridge"

    def __init__(
        self,
        network: ScalableUNet,
        bridge: BridgeSettings,
        *,
        num_inference_steps: int,
        orientations: Sequence[Orientation] = ("axial",),
        batch_size: int | None = None,
        neighbours: int = 0,
    ) -> None:
        super().__init__(network, orientations=orientations, batch_size=batch_size, neighbours=neighbours)
        check_bridge_steps(num_inference_steps, bridge)
        self.bridge = bridge
        self.num_inference_steps = num_inference_steps

    def description(self) -> str:
        """The network's size and how it is sampled."""
        return (
            f"{self.kind}: Brownian bridge from source to target, scalable U-Net of "
            f"{millions(self.network):.3g} million parameters, {self.num_inference_steps} step(s) unless "
            "others are asked for"
        )

    def chosen(self, sampler: Sampler | None, num_inference_steps: int | None) -> tuple[None, int]:
        """No sampler, and the steps to take; see `Stage.chosen`."""
        if sampler is not None:
            raise RequestError(
                f"A bridge stage has a sampler of its own, got {sampler}; leave out --sampler."
            )
        steps = self.num_inference_steps if num_inference_steps is None else num_inference_steps
        check_bridge_steps(steps, self.bridge)
        return None, steps

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
        return sample_bridge(
            self.network,
            source,
            source[:, :1],
            self.bridge,
            num_inference_steps=steps,
            step_noise=lambda step: start if step == 0 else step_noise(step),
            on_step=on_step,
        )

    def save_stage(self, folder: str | Path) -> None:
        """Write the stage into a folder of its own."""
        facts = {
            "bridge": self.bridge.to_dict(),
            "num_inference_steps": self.num_inference_steps,
            "orientations": list(self.orientations),
            "neighbours": self.neighbours,
        }
        save_network(self.network, self.kind, facts, folder)

    @classmethod
    def load_stage(cls, folder: str | Path, device: torch.device | str = "cpu") -> Self:
        """Read what `save_stage` wrote; see `Stage.load_stage`."""
        folder = Path(folder)
        facts = read_stage(folder, cls.kind)
        network = load_network(ScalableUNet, folder, device)
        with facts_of(folder):
            return cls(
                network,
                BridgeSettings.from_dict(facts["bridge"]),
                num_inference_steps=facts["num_inference_steps"],
                orientations=tuple(facts["orientations"]),
                neighbours=facts.get("neighbours", 0),
            )
