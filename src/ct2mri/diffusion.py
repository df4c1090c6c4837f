"""The diffusion process: noise settings, training target, and the one sampling loop.

Notation, after Ho et al. (DDPM, 2020) and Salimans & Ho (progressive distillation, 2022):

| here | there |
|---|---|
| `original_sample` | x_0 |
| `noise` | ε |
| `alphas_cumprod[t]` | ᾱ_t |
| `sample` at `timestep` t | x_t = √ᾱ_t · x_0 + √(1 − ᾱ_t) · ε |
| `v_prediction` | v = √ᾱ_t · ε − √(1 − ᾱ_t) · x_0 |

The default is v-prediction with zero terminal signal-to-noise ratio and trailing timesteps (Lin et al.,
2024), so that sampling starts from what the network was trained on. At the last timestep x_t says nothing
about x_0: the network is shown zeros there and learns the mean (or, with L1, the median) of x_0 given the
condition. One sampling step is therefore a plain regression estimate.

With a `restart_timestep` r, further steps do not walk down from pure noise: they begin at x_r, made of that
estimate and the starting noise (as SDEdit begins from a guess; Meng et al., 2022), and the network is
trained at the last timestep and from r down alone: on images with noise, or on the way from its own
estimate to the image (`restart_noise`). A small r keeps more of the estimate's fidelity, a large one adds
more texture.

A process of one timestep is that first step alone: plain regression, the baseline to compare with.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from ct2mri.errors import RequestError
from ct2mri.options.choices import PredictionType, Sampler
from ct2mri.options.training import NoiseOptions

Network = Callable[[Tensor, Tensor, Tensor], Tensor]

STOCHASTIC_SAMPLERS: tuple[Sampler, ...] = ("ddpm", "renoise")


@dataclass(frozen=True)
class NoiseSettings:
    """What a network must know of the diffusion process it was trained for.

    Raises:
        RequestError: the settings contradict one another.
    """

    num_train_timesteps: int = 1000
    beta_schedule: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    prediction_type: PredictionType = "v_prediction"
    zero_terminal_snr: bool = True
    last_timestep_input: Literal["zero", "noise"] = "zero"
    restart_timestep: int | None = None

    def __post_init__(self) -> None:
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            raise RequestError(
                "Zero terminal SNR with prediction_type epsilon gives non-finite numbers, since pure noise "
                "tells nothing of the image; choose v_prediction or sample, or zero_terminal_snr false."
            )
        if self.last_timestep_input == "zero" and not self.zero_terminal_snr:
            raise RequestError(
                "last_timestep_input zero needs zero_terminal_snr true, since otherwise the last timestep "
                "still holds some of the image; choose last_timestep_input noise."
            )
        if self.restart_timestep is not None:
            if not 0 < self.restart_timestep < self.last_timestep:
                raise RequestError(
                    f"restart_timestep lies between 0 and the last timestep {self.last_timestep}, "
                    f"got {self.restart_timestep}."
                )
            if self.last_timestep_input != "zero":
                raise RequestError(
                    "restart_timestep adds the starting noise to the first step's estimate, which must not "
                    "know it; choose last_timestep_input zero."
                )

    @classmethod
    def from_options(cls, options: NoiseOptions) -> "NoiseSettings":
        """The settings among a training stage's options."""
        return cls(**{field.name: getattr(options, field.name) for field in fields(cls)})

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "NoiseSettings":
        """Read what `to_dict` wrote."""
        try:
            return cls(**content)
        except TypeError as error:
            raise RequestError(f"These noise settings cannot be read: {error}.") from error

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)

    @property
    def last_timestep(self) -> int:
        """The noisiest timestep."""
        return self.num_train_timesteps - 1


@lru_cache(maxsize=8)
def alphas_cumprod(settings: NoiseSettings) -> Tensor:
    """ᾱ of every timestep, shape (num_train_timesteps,), float32, on the CPU."""
    if settings.num_train_timesteps == 1 and settings.zero_terminal_snr:
        return torch.zeros(1)  # rescaling, of which this is the limit, would divide 0 by 0
    alphas: Tensor = DDPMScheduler(
        num_train_timesteps=settings.num_train_timesteps,
        beta_schedule=settings.beta_schedule,
        beta_start=settings.beta_start,
        beta_end=settings.beta_end,
        rescale_betas_zero_snr=settings.zero_terminal_snr,
    ).alphas_cumprod
    return alphas


def noise_levels(timestep: Tensor, settings: NoiseSettings, like: Tensor) -> tuple[Tensor, Tensor]:
    """√ᾱ_t and √(1 − ᾱ_t) per item, shaped to multiply `like`."""
    alphas = alphas_cumprod(settings).to(like.device)[timestep.to(like.device)]
    alphas = alphas.reshape(-1, *[1] * (like.ndim - 1)).to(like.dtype)
    return alphas.sqrt(), (1 - alphas).sqrt()


# --- training --------------------------------------------------------------------------------------------


def draw_timesteps(
    batch_size: int, settings: NoiseSettings, last_timestep_share: float, generator: torch.Generator
) -> Tensor:
    """Draw a training batch's timesteps, shape (batch_size,), int64, on the CPU.

    Each item is at the last timestep with probability `last_timestep_share`, else uniform over all (over
    those up to `restart_timestep`). With uniform draws alone only one item in `num_train_timesteps` would
    teach the first sampling step, which matters most when steps are few.
    """
    highest = settings.last_timestep if settings.restart_timestep is None else settings.restart_timestep
    uniform = torch.randint(0, highest + 1, (batch_size,), generator=generator)
    at_last = torch.rand(batch_size, generator=generator) < last_timestep_share
    return torch.where(at_last, settings.last_timestep, uniform)


def _network_input(sample: Tensor, timestep: Tensor, settings: NoiseSettings) -> Tensor:
    """The noisy sample as the network sees it: zeros at the last timestep where the settings say so."""
    if settings.last_timestep_input == "noise":
        return sample
    blind = (timestep == settings.last_timestep).to(sample.device).reshape(-1, *[1] * (sample.ndim - 1))
    return sample.masked_fill(blind, 0)


def noisy_sample(
    original_sample: Tensor, noise: Tensor, timestep: Tensor, settings: NoiseSettings
) -> tuple[Tensor, Tensor]:
    """Add noise (DDPM eq. 4) and say what the network should answer.

    Args:
        original_sample: clean images or latents, (B, C, *spatial).
        noise: standard normal, the same shape.
        timestep: int64, (B,).
        settings: the diffusion process.

    Returns:
        The network's `sample` input and its training target, both (B, C, *spatial).
    """
    signal, spread = noise_levels(timestep, settings, original_sample)
    sample = signal * original_sample + spread * noise
    target = {
        "epsilon": lambda: noise,
        "sample": lambda: original_sample,
        "v_prediction": lambda: signal * noise - spread * original_sample,
    }[settings.prediction_type]()
    return _network_input(sample, timestep, settings), target


def restart_noise(
    noise: Tensor, estimate: Tensor, original_sample: Tensor, settings: NoiseSettings
) -> Tensor:
    """The noise of an image whose sampling begins at `restart_timestep` from an estimate of it.

    Sampling begins at x_r = √ᾱ_r · estimate + √(1 − ᾱ_r) · ε. That is x_r of the image itself with the noise
    ε + √(ᾱ_r / (1 − ᾱ_r)) · (estimate − x_0), returned here, and DDIM, which keeps the noise that it infers,
    goes on through that noise's x_t. A network trained on them removes the estimate's errors together with ε;
    trained on ε alone it would take them for the image. (ResShift, Yue et al., NeurIPS 2023, shifts
    its states from one image to another in the same way.)

    Args:
        noise: ε, standard normal, (B, C, *spatial).
        estimate: what the first step gives, the same shape.
        original_sample: x_0, the same shape.
        settings: the diffusion process, which has a `restart_timestep`.
    """
    assert settings.restart_timestep is not None
    restart = torch.full((len(noise),), settings.restart_timestep, device=noise.device)
    signal, spread = noise_levels(restart, settings, noise)
    return noise + signal / spread * (estimate - original_sample)


def predicted_original(
    model_output: Tensor, sample: Tensor, timestep: Tensor, settings: NoiseSettings
) -> Tensor:
    """x_0 as the network's output implies it; all (B, C, *spatial), timestep (B,).

    `sample` is x_t itself, also at a last timestep at which the network was shown zeros.
    """
    signal, spread = noise_levels(timestep, settings, sample)
    if settings.prediction_type == "epsilon":
        return (sample - spread * model_output) / signal
    if settings.prediction_type == "sample":
        return model_output
    return signal * sample - spread * model_output


# --- sampling --------------------------------------------------------------------------------------------


class SeededNoise:
    """Standard normal noise as a pure function of (seed, stage, step, shape).

    It is drawn on the CPU for a whole volume and then sliced, so that a result depends neither on the
    device nor on how a volume's slices are batched.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, shape: tuple[int, ...], *, stage: str, step: int = -1) -> Tensor:
        """Draw float32 noise of `shape`; step −1 is the starting noise, others the fresh noise of a step."""
        digest = hashlib.sha256(f"{self.seed}/{stage}/{step}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return torch.randn(shape, generator=generator)


def check_steps(num_inference_steps: int, settings: NoiseSettings) -> None:
    """Raise RequestError unless there are timesteps for so many steps."""
    most = settings.num_train_timesteps
    if settings.restart_timestep is not None:
        most = settings.restart_timestep + 2  # the last timestep, and from the restart down to 0
    if not 1 <= num_inference_steps <= most:
        raise RequestError(
            f"Sampling takes 1 to {most} steps, got {num_inference_steps}; choose a number in that range."
            if most > 1
            else f"This network was trained for one step alone, got {num_inference_steps}; leave out --steps."
        )


def check_sampler(sampler: Sampler, settings: NoiseSettings) -> None:
    """Raise RequestError if a sampler needs timesteps that the network was not trained at."""
    if sampler == "renoise" and settings.restart_timestep is not None:
        raise RequestError(
            "The sampler renoise walks through all timesteps, and this network was trained up to timestep "
            f"{settings.restart_timestep} and at the last one alone; choose another sampler."
        )


def _scheduler(sampler: Sampler, settings: NoiseSettings) -> Any:
    """The diffusers scheduler of a sampler, fed with x_0 (the loop converts what the network predicts).

    DDIM and DDPM are the first-order cases of DPM-Solver++, without and with its fresh noise (Lu et al.,
    2022, section 4); diffusers' own `DDIMScheduler` steps by whole multiples, so that its noise levels do
    not meet the timesteps where the number of steps does not divide that of training.
    """
    common: dict[str, Any] = {
        "num_train_timesteps": settings.num_train_timesteps,
        "beta_schedule": settings.beta_schedule,
        "beta_start": settings.beta_start,
        "beta_end": settings.beta_end,
        "rescale_betas_zero_snr": settings.zero_terminal_snr,
        "prediction_type": "sample",
        "timestep_spacing": "trailing",
        "final_sigmas_type": "zero",
    }
    if settings.restart_timestep is not None:  # the same process, as if it ended there
        alphas = alphas_cumprod(settings)[: settings.restart_timestep + 1].double()
        betas = 1 - alphas / torch.cat([alphas.new_ones(1), alphas[:-1]])
        common |= {
            "num_train_timesteps": len(betas),
            "trained_betas": betas.tolist(),
            "rescale_betas_zero_snr": False,
        }
    if sampler == "unipc":
        return UniPCMultistepScheduler(**common)
    order, algorithm = {
        "ddim": (1, "dpmsolver++"),
        "ddpm": (1, "sde-dpmsolver++"),
        "dpm-solver++": (2, "dpmsolver++"),
    }[sampler]
    return DPMSolverMultistepScheduler(**common, solver_order=order, algorithm_type=algorithm)


def renoise_timesteps(num_inference_steps: int, num_train_timesteps: int) -> list[int]:
    """The published sampler's timesteps: few in the noisiest four fifths, the rest in the last fifth.

    25 of 1000 are the published 999, 799, 599, 399, 200, 190, …, 10, 0; other numbers keep the proportion.
    """
    coarse = max(1, round(num_inference_steps * 4 / 25))
    fine = num_inference_steps - coarse
    border = num_train_timesteps / 5
    first = [num_train_timesteps - 1 - (num_train_timesteps - border) * n / coarse for n in range(coarse)]
    last = [border * (1 - n / max(fine - 1, 1)) for n in range(fine)]
    return [round(t) for t in first + last]


def _renoise_step(original: Tensor, previous: int, settings: NoiseSettings, noise: Tensor | None) -> Tensor:
    """Go to timestep `previous` with fresh noise (none towards timestep 0) and clamp, as published."""
    alpha = alphas_cumprod(settings)[previous].item()
    sample = math.sqrt(alpha) * original
    if noise is not None:
        sample = sample + math.sqrt(1 - alpha) * noise
    return sample.clamp(-1, 1)


@torch.inference_mode()
def sample(
    network: Network,
    condition: Tensor,
    start: Tensor,
    settings: NoiseSettings,
    *,
    sampler: Sampler = "ddim",
    num_inference_steps: int = 10,
    step_noise: Callable[[int], Tensor] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Sample images or latents, in 2D or 3D: the one sampling loop.

    Args:
        network: called as network(sample, timestep, condition).
        condition: (B, condition channels, *spatial).
        start: standard normal noise, (B, C, *spatial). `renoise` starts from the first C channels of the
            condition instead, as published.
        settings: the process the network was trained for.
        sampler: how to step.
        num_inference_steps: network calls, see `check_steps`. One call gives the network's mean
            estimate.
        step_noise: gives the fresh noise of step n for this batch; needed by `ddpm` and `renoise`.
        on_step: called as on_step(step, total) after each step; raising in it stops the sampling.

    Returns:
        The samples, shaped like `start`.
    """
    check_steps(num_inference_steps, settings)
    check_sampler(sampler, settings)
    if sampler in STOCHASTIC_SAMPLERS and step_noise is None:
        raise RequestError(f"The sampler {sampler} draws fresh noise at each step: pass step_noise.")

    def fresh_noise(step: int) -> Tensor:
        assert step_noise is not None
        return step_noise(step).to(start)

    def estimate(state: Tensor, timestep: int) -> Tensor:
        """x_0 as the network sees it from x_t = state."""
        timesteps = torch.full((len(state),), timestep, dtype=torch.long, device=state.device)
        output = network(_network_input(state, timesteps, settings), timesteps, condition)
        return predicted_original(output, state, timesteps, settings)

    if settings.num_train_timesteps == 1:
        original = estimate(start, settings.last_timestep)
        if on_step is not None:
            on_step(1, 1)
        return original

    if sampler == "renoise":
        state = condition[:, : start.shape[1]]
        timesteps = renoise_timesteps(num_inference_steps, settings.num_train_timesteps)
        for step, (timestep, previous) in enumerate(zip(timesteps, [*timesteps[1:], 0], strict=True)):
            noise = fresh_noise(step) if previous > 0 else None
            state = _renoise_step(estimate(state, timestep), previous, settings, noise)
            if on_step is not None:
                on_step(step + 1, num_inference_steps)
        return state

    state, first = start, 0
    if settings.restart_timestep is not None:
        original = estimate(start, settings.last_timestep)
        if on_step is not None:
            on_step(1, num_inference_steps)
        if num_inference_steps == 1:
            return original
        restart = torch.full((len(start),), settings.restart_timestep, device=start.device)
        signal, spread = noise_levels(restart, settings, start)
        state, first = signal * original + spread * start, 1
    scheduler = _scheduler(sampler, settings)
    scheduler.set_timesteps(num_inference_steps - first)
    for step, timestep in enumerate(scheduler.timesteps, first):
        original = estimate(state, int(timestep))
        extra = {"variance_noise": fresh_noise(step)} if sampler == "ddpm" else {}
        state = scheduler.step(original, timestep, state, **extra, return_dict=False)[0]
        if on_step is not None:
            on_step(step + 1, num_inference_steps)
    return state
