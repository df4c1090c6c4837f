"""Baseline that costs nothing: for each source value, the mean target value of the training patients."""

from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from ct2mri.diffusion import SeededNoise
from ct2mri.errors import RequestError
from ct2mri.models.lookup import LookupTable
from ct2mri.models.pretrained import PretrainedModel
from ct2mri.options.choices import Sampler
from ct2mri.stage_files import Kind, facts_of, load_network, read_stage, save_network
from ct2mri.stages.common import AIR, Condition, OnStep, Stage


class LookupStage(Stage):
    """Looks each voxel's target value up, by its source value in one window.

    Args:
        table: source values in the window to target values, both in [−1, 1].
        channel: number of the window.
    """

    kind: Kind = "lookup"

    def __init__(self, table: LookupTable, *, channel: int) -> None:
        self.table = table
        self.channel = int(channel)

    @property
    def networks(self) -> list[PretrainedModel]:
        """The table."""
        return [self.table]

    def description(self) -> str:
        """The table's size."""
        return f"{self.kind}: a target value for each source value, from a table of {len(self.table.source)}"

    def check_plan(self, channels: int, drafted: bool) -> None:
        """Raise RequestError unless the plan has the table's window."""
        if self.channel >= channels:
            raise RequestError(
                f"The lookup stage was trained on source window {self.channel}, counted from 0, and the plan "
                f"has {channels}; use the plan that it was trained with."
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
        """Look a volume up, (1, i, j, k) in [−1, 1]; air outside the body where that is known."""
        self.chosen(sampler, num_inference_steps)
        source = condition["source"][self.channel : self.channel + 1]
        drawn: Tensor = self.table(source.to(self.table.source)).clamp(-1, 1).cpu()
        if "body" in condition:
            drawn = drawn.where(condition["body"] > 0, AIR)
        if on_step is not None:
            on_step(self.kind, 1, 1)
        return drawn

    def save_stage(self, folder: str | Path) -> None:
        """Write the stage into a folder of its own."""
        save_network(self.table, self.kind, {"channel": self.channel}, folder)

    @classmethod
    def load_stage(cls, folder: str | Path, device: torch.device | str = "cpu") -> Self:
        """Read what `save_stage` wrote; see `Stage.load_stage`."""
        folder = Path(folder)
        facts = read_stage(folder, cls.kind)
        table = load_network(LookupTable, folder, device)
        with facts_of(folder):
            return cls(table, channel=facts["channel"])
