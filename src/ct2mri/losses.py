"""What a network is trained to make small: the losses of the diffusion stages.

B batch items, C channels, `*spatial` two or three axes.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ct2mri.diffusion import NoiseSettings, noise_levels

Loss = Literal["mse", "l1", "smooth_l1", "double"]

SMOOTH_L1_BETA = 0.2
"""Errors up to here, a tenth of an image's range, count by their square in `smooth_l1` (β of PyTorch's)."""

GRADIENT_SCALES = 3
"""Sizes at which `gradient_loss` compares: whole, half and a quarter."""


def double_loss(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """The published 3D loss per item, (B,): 0.8 · L1 + 0.2 · MSE of neighbouring-slice differences.

    Slices lie along the first spatial axis; the squared differences of the D − 1 neighbours are divided by
    the elements of all D slices, as published.
    """
    weight = torch.ones_like(target) if weight is None else weight.expand_as(target)
    axes = tuple(range(1, target.ndim))
    elements = weight.sum(axes).clamp(min=1)
    level = (weight * (prediction - target).abs()).sum(axes) / elements
    change = (prediction - target).diff(dim=2) ** 2
    both = weight[:, :, 1:] * weight[:, :, :-1]
    return 0.8 * level + 0.2 * (both * change).sum(axes) / elements


def error_size(error: Tensor, *, smooth: bool) -> Tensor:
    """Each error's absolute value or, `smooth`, its smooth L1: e² / 2β up to β, |e| − β / 2 beyond."""
    if not smooth:
        return error.abs()
    return functional.smooth_l1_loss(error, torch.zeros_like(error), reduction="none", beta=SMOOTH_L1_BETA)


def gradient_loss(
    prediction: Tensor, target: Tensor, weight: Tensor | None = None, *, smooth: bool = False
) -> Tensor:
    """L1 of the differences between neighbouring pixels or voxels, at three scales, per item, (B,).

    It is the sum, over all axes and over the image as it is and averaged over edges of 2 and 4, of the mean
    absolute error of differences. Where a loss of values alone sees hardly any change, it tells an edge
    that is blurred from one that is sharp (a gradient difference loss; Mathieu et al., ICLR 2016, with their
    α = 1), and, at the coarse scales, a level that is wrong over a whole region from a scatter of errors.

    Args:
        prediction: images, (B, C, *spatial).
        target: the same shape.
        weight: (B, 1, *spatial), 0 where the target is not valid: differences to such pixels do not count.
        smooth: by smooth L1 instead. Where several gradients are possible, L1 is least at their median, which
            is none where an edge is more likely absent; smooth L1 is least near their mean, a faint edge.
    """
    error = prediction - target
    weight = torch.ones_like(error[:, :1]) if weight is None else weight
    total = error.new_zeros(len(error))
    axes = tuple(range(1, error.ndim))
    halved = functional.avg_pool2d if error.ndim == 4 else functional.avg_pool3d
    largest = functional.max_pool2d if error.ndim == 4 else functional.max_pool3d
    for scale in range(GRADIENT_SCALES):
        if scale:
            if min(error.shape[2:]) < 2:
                break
            error = halved(error, 2)
            weight = -largest(-weight, 2)  # valid where all are
        for dim in axes[1:]:
            size = error.shape[dim] - 1
            both = weight.narrow(dim, 0, size) * weight.narrow(dim, 1, size)
            both = both.expand(-1, error.shape[1], *[-1] * len(axes[1:]))
            change = error_size(error.diff(dim=dim), smooth=smooth)
            total = total + (both * change).sum(axes) / both.sum(axes).clamp(min=1)
    return total


def min_snr_weight(timestep: Tensor, settings: NoiseSettings, gamma: float, like: Tensor) -> Tensor:
    """Min-SNR-γ, the weight of errors at a timestep (Hang et al., ICCV 2023, section 3.4), (B,).

    It is min(SNR, γ) for an error of the image, with SNR = ᾱ / (1 − ᾱ), and the same carried over to the
    noise and to v. Unweighted errors of the image are small where there is little noise to remove, and such
    timesteps then learn slowly beside the last one.
    """
    signal, spread = noise_levels(timestep, settings, like)
    snr = (signal / spread.clamp(min=1e-4)).square()
    weight = snr.clamp(max=gamma)
    if settings.prediction_type == "epsilon":
        weight = weight / snr.clamp(min=1e-8)
    elif settings.prediction_type == "v_prediction":
        weight = weight / (snr + 1)
    return weight


def diffusion_loss(
    model_output: Tensor,
    training_target: Tensor,
    timestep: Tensor,
    settings: NoiseSettings,
    loss: Loss = "mse",
    weight: Tensor | None = None,
    gradient_weight: float = 0.0,
    min_snr_gamma: float | None = None,
    from_estimate: bool = False,
) -> Tensor:
    """The training loss, a scalar.

    Args:
        model_output: (B, C, *spatial).
        training_target: the same shape, from `noisy_sample`.
        timestep: (B,).
        settings: the diffusion process.
        loss: `mse`, `l1`, `smooth_l1` (gradients too) or `double`. With `mse`, items at a last timestep that
            shows the network nothing are compared by L1: their best answer is an estimate, and the median is
            the sharper one.
        weight: (B, 1, *spatial), e.g. the valid mask; voxels of weight 0 do not count.
        gradient_weight: weight of `gradient_loss` beside that, at a last timestep that shows the network
            nothing.
        min_snr_gamma: γ of `min_snr_weight`, by which the other timesteps are weighted; None: not at all.
        from_estimate: whether the other timesteps begin at the network's own estimate. Then a network that
            predicts the sample corrects an image there, and gradients count as they do at the last one.
    """
    weight = torch.ones_like(training_target) if weight is None else weight.expand_as(training_target)
    axes = tuple(range(1, training_target.ndim))
    elements = weight.sum(axes).clamp(min=1)
    error = model_output - training_target
    smooth = loss == "smooth_l1"
    l1 = (weight * error_size(error, smooth=smooth)).sum(axes) / elements
    blind = (timestep.to(l1.device) == settings.last_timestep) & (settings.last_timestep_input == "zero")
    if loss == "double":
        items = double_loss(model_output, training_target, weight)
    elif loss in ("l1", "smooth_l1"):
        items = l1
    else:
        items = torch.where(blind, l1, (weight * error**2).sum(axes) / elements)
    if min_snr_gamma is not None:
        items = items * torch.where(blind, 1, min_snr_weight(timestep, settings, min_snr_gamma, items))
    if gradient_weight:
        gradients = gradient_loss(model_output, training_target, weight[:, :1], smooth=smooth)
        images = blind | (from_estimate and settings.prediction_type == "sample")
        items = items + gradient_weight * torch.where(images, gradients, 0)
    return items.mean()
