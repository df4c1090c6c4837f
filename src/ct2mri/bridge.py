"""The Brownian bridge diffusion (BBDM): a process that ends in the source image instead of in noise.

Li et al., BBDM: Image-to-Image Translation with Brownian Bridge Diffusion Models, CVPR 2023. Notation:

| here | there |
|---|---|
| `original_sample` | x_0, the target |
| `end` | y, the source: what the process ends in at t = T |
| `timestep` t | from 1 to T; the network is asked at these, and never at 0 |
| m_t = t / T, δ_t = 2 s (m_t − m_t²) | the same: the share of y, and the variance |
| `sample` at `timestep` t | x_t = (1 − m_t) x_0 + m_t y + √δ_t ε |
| the network's answer | x_t − x_0 = m_t (y − x_0) + √δ_t ε (algorithm 1) |

At both ends the variance is 0: sampling starts from the source itself, so one step is a regression of x_0.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ct2mri.diffusion import Network
from ct2mri.errors import RequestError


@dataclass(frozen=True)
class BridgeSettings:
    """What a network must know of the bridge it was trained for.

    Attributes:
        num_train_timesteps: T.
        variance: s; the variance is largest in the middle, s / 2.

    Raises:
        RequestError: a number no bridge can have.
    """

    num_train_timesteps: int = 1000
    variance: float = 1.0

    def __post_init__(self) -> None:
        if self.num_train_timesteps < 1:
            raise RequestError(f"--num_train_timesteps is at least 1, got {self.num_train_timesteps}.")
        if not 0 <= self.variance < math.inf:
            raise RequestError(f"--bridge_variance is at least 0, got {self.variance}.")

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "BridgeSettings":
        """Read what `to_dict` wrote."""
        try:
            return cls(**content)
        except TypeError as error:
            raise RequestError(f"These bridge settings cannot be read: {error}.") from error

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)

    def share(self, timestep: float) -> float:
        """m_t."""
        return timestep / self.num_train_timesteps

    def variance_at(self, timestep: float) -> float:
        """δ_t."""
        share = self.share(timestep)
        return 2 * self.variance * (share - share**2)


def bridge_sample(
    original_sample: Tensor, end: Tensor, noise: Tensor, timestep: Tensor, settings: BridgeSettings
) -> tuple[Tensor, Tensor]:
    """Go to a timestep of the bridge, and say what the network should answer there.

    Args:
        original_sample: target images, (B, C, *spatial).
        end: source images, the same shape.
        noise: standard normal, the same shape.
        timestep: int64, (B,), from 1 to T.
        settings: the bridge.

    Returns:
        x_t and x_t − x_0, both (B, C, *spatial).
    """
    share = (timestep.to(noise) / settings.num_train_timesteps).reshape(-1, *[1] * (noise.ndim - 1))
    spread = (2 * settings.variance * (share - share**2)).clamp(min=0).sqrt()
    sample = (1 - share) * original_sample + share * end + spread * noise
    return sample, sample - original_sample


def bridge_timesteps(num_inference_steps: int, settings: BridgeSettings) -> list[int]:
    """The timesteps that the network is asked at: evenly spaced, from T down, without 0."""
    last = settings.num_train_timesteps
    return [round(last * (1 - step / num_inference_steps)) for step in range(num_inference_steps)]


def check_bridge_steps(num_inference_steps: int, settings: BridgeSettings) -> None:
    """Raise RequestError unless there are timesteps for so many steps."""
    most = settings.num_train_timesteps
    if not 1 <= num_inference_steps <= most:
        raise RequestError(
            f"Sampling takes 1 to {most} steps, got {num_inference_steps}; choose a number in that range."
        )


def bridge_step(
    sample: Tensor,
    original_sample: Tensor,
    end: Tensor,
    timestep: int,
    previous: int,
    settings: BridgeSettings,
    noise: Tensor | None,
) -> Tensor:
    """Go from x_t to x_u, u < t, over any distance, given an estimate of x_0: the accelerated sampling.

    The variance is that of the bridge's own posterior, so that x_u is distributed as the bridge is at u:

        δ_{t|u} = δ_t − δ_u (1 − m_t)² / (1 − m_u)²,   σ² = δ_{t|u} δ_u / δ_t
        x_u = (1 − m_u) x_0 + m_u y + √((δ_u − σ²) / δ_t) (x_t − (1 − m_t) x_0 − m_t y) + σ ε

    At t = T, where x_T = y says nothing of the noise, σ² = δ_u is the limit.

    Args:
        sample: x_t.
        original_sample: the estimate of x_0.
        end: y.
        timestep: t.
        previous: u.
        settings: the bridge.
        noise: ε; None where u = 0, to which no noise leads.
    """
    share, before = settings.share(timestep), settings.share(previous)
    now, then = settings.variance_at(timestep), settings.variance_at(previous)
    state = (1 - before) * original_sample + before * end
    if noise is None or then == 0:
        return state
    variance = then
    if now > 0:
        variance = (now - then * (1 - share) ** 2 / (1 - before) ** 2) * then / now
        kept = math.sqrt(max(then - variance, 0) / now)
        state = state + kept * (sample - (1 - share) * original_sample - share * end)
    return state + math.sqrt(variance) * noise


@torch.inference_mode()
def sample_bridge(
    network: Network,
    condition: Tensor,
    end: Tensor,
    settings: BridgeSettings,
    *,
    num_inference_steps: int,
    step_noise: Callable[[int], Tensor],
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Walk from the source to the target (algorithm 2).

    Args:
        network: called as network(sample, timestep, condition).
        condition: (B, condition channels, *spatial).
        end: y, (B, C, *spatial).
        settings: the bridge that the network was trained for.
        num_inference_steps: network calls.
        step_noise: gives the fresh noise of step n for this batch.
        on_step: called as on_step(step, total) after each step; raising in it stops the sampling.

    Returns:
        The samples, shaped like `end`.
    """
    check_bridge_steps(num_inference_steps, settings)
    state = end
    timesteps = bridge_timesteps(num_inference_steps, settings)
    for step, (timestep, previous) in enumerate(zip(timesteps, [*timesteps[1:], 0], strict=True)):
        asked = torch.full((len(state),), timestep, dtype=torch.long, device=state.device)
        original = state - network(state, asked, condition)
        noise = step_noise(step).to(state) if previous > 0 else None
        state = bridge_step(state, original, end, timestep, previous, settings, noise)
        if on_step is not None:
            on_step(step + 1, num_inference_steps)
    return state
