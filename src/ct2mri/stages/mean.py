"""Baseline that costs nothing: the training patients' mean volume, brought to each body's box."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from ct2mri.data.cases import SLICE_AXIS
from ct2mri.diffusion import SeededNoise
from ct2mri.errors import RequestError
from ct2mri.models.lookup import MeanVolumes
from ct2mri.models.pretrained import PretrainedModel
from ct2mri.options.choices import Sampler
from ct2mri.stage_files import Kind, facts_of, load_network, read_stage, save_network
from ct2mri.stages.common import AIR, Condition, OnStep, Stage


class MeanStage(Stage):
    """Puts the mean volume into the box of the body, whatever the source shows in it.

    Args:
        means: the mean volumes, by `kind_of_volume`.
    """

    kind: Kind = "mean"

    def __init__(self, means: MeanVolumes) -> None:
        self.means = means

    @property
    def networks(self) -> list[PretrainedModel]:
        """The mean volumes."""
        return [self.means]

    def description(self) -> str:
        """The volumes' sizes."""
        sizes = ", ".join(
            f"{kind} {' × '.join(map(str, shape))}" for kind, shape in self.means.shapes.items()
        )
        return f"{self.kind}: the training patients' mean, whatever the source shows ({sizes} voxels)"

    def check_plan(self, channels: int, drafted: bool) -> None:
        """Any plan will do: of the source only the body's box is used."""

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
        """The mean in the box of the body, (1, i, j, k) in [−1, 1], air around it.

        Raises:
            RequestError: the body is not known, or no training case was such a volume or slice.
        """
        self.chosen(sampler, num_inference_steps)
        if "body" not in condition or not bool(condition["body"].any()):
            raise RequestError("The mean stage needs to know the body, and there is none; give a body mask.")
        body = condition["body"][0]
        kind = kind_of_volume(tuple(body.shape))
        if kind not in self.means.shapes:
            raise RequestError(
                f"The mean stage was made from {', '.join(self.means.shapes)} cases, this one is {kind}; "
                "give such a case."
            )
        i, j, k = body_box(body > 0)
        drawn = torch.full((1, *body.shape), AIR)
        size = [part.stop - part.start for part in (i, j, k)]
        drawn[0, i, j, k] = self.means(kind, size).clamp(-1, 1).cpu()
        if on_step is not None:
            on_step(self.kind, 1, 1)
        return drawn

    def save_stage(self, folder: str | Path) -> None:
        """Write the stage into a folder of its own."""
        save_network(self.means, self.kind, {}, folder)

    @classmethod
    def load_stage(cls, folder: str | Path, device: torch.device | str = "cpu") -> Self:
        """Read what `save_stage` wrote; see `Stage.load_stage`."""
        folder = Path(folder)
        read_stage(folder, cls.kind)
        with facts_of(folder):
            return cls(load_network(MeanVolumes, folder, device))


def kind_of_volume(shape: Sequence[int]) -> str:
    """`volume`, or the orientation of a volume (i, j, k) that is a single slice."""
    thin = [name for name, axis in SLICE_AXIS.items() if shape[axis] == 1]
    return thin[0] if len(thin) == 1 else "volume"


def body_box(body: Tensor) -> tuple[slice, ...]:
    """The smallest box that holds every voxel of a body, (i, j, k), which is not empty."""
    return tuple(slice(int(places.min()), int(places.max()) + 1) for places in body.nonzero().T)
