"""A 3D network that looks at a large volume through overlapping windows, inside one denoising trajectory.

At every step each window is asked, and what they answer is averaged with weights that fade towards a window's
borders inside the volume. So all windows draw one volume together, from one noise; samples drawn window by
window and blended afterwards would disagree where they meet. Bar-Tal et al.: MultiDiffusion, 2023.

The network normalises and attends over all that it sees, so a volume drawn through windows differs from one
drawn whole.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ct2mri.diffusion import Network
from ct2mri.stages.tiling import Tiling, tilings

# Latents that neighbouring windows share: at a factor of 4, 64 voxels.
SHARED = 16


class Windowed:
    """A network that is asked window by window.

    Args:
        network: called as network(sample, timestep, condition).
        windows: of the sample; each reaches `overlap` beyond its part, so neighbours share twice as much.
    """

    def __init__(self, network: Network, windows: Tiling) -> None:
        self.network = network
        self.windows = windows

    def __call__(self, sample: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        """The windows' answers, averaged: (B, out_channels, *spatial), of inputs (B, C, *spatial)."""
        total: Tensor | None = None
        weights = sample.new_zeros(sample.shape[2:])
        for window in self.windows:
            place = tuple(slice(span.lower, span.upper) for span in window)
            part = (slice(None), slice(None), *place)
            answer = self.network(sample[part].contiguous(), timestep, condition[part].contiguous())
            weight = window_weight([span.upper - span.lower for span in window], self.windows.overlap)
            weight = weight.to(answer)
            if total is None:
                total = answer.new_zeros((*answer.shape[:2], *sample.shape[2:]))
            total[part] += weight * answer
            weights[place] += weight
        assert total is not None
        return total / weights


def window_weight(shape: Sequence[int], overlap: int) -> Tensor:
    """Weights of a window: 1 in its middle, fading to almost 0 towards each border over what is shared there.

    At the volume's own border, where no other window is, dividing by the sum of all weights undoes that.
    """
    weight = torch.ones(())
    for axis, size in enumerate(shape):
        distance = torch.minimum(torch.arange(size) + 0.5, size - torch.arange(size) - 0.5)
        fade = torch.sin((distance / max(2 * overlap, 1)).clamp(max=1) * torch.pi / 2) ** 2
        weight = weight * fade.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return weight


def windowings(shape: Sequence[int]) -> list[Tiling]:
    """Ways to look at a volume: whole, and through windows of ever less, none shorter than twice what
    neighbours share.
    """
    return tilings(shape, SHARED // 2, SHARED)
