"""What `train` takes, stage by stage."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ct2mri.options.argument import argument
from ct2mri.options.choices import (
    Baseline,
    ConditionPart,
    Decoding,
    LatentTarget,
    Orientation,
    PredictionType,
    Sampler,
)


@dataclass(kw_only=True)
class TrainOptions:
    """What every training stage takes."""

    data: Path = argument("a prepared data set")
    output_dir: Path = argument("folder of the run", flags=("-o",))
    resume: Literal["auto", "never"] = argument(
        "`auto` goes on from the last checkpoint of the run folder", "auto"
    )
    init: str | None = argument("a pipeline folder (or owner/name) whose weights to start from", None)
    seed: int = argument("seed of weights, order, noise and augmentation", 0)
    max_steps: int = argument("optimiser steps", 100_000)
    batch_size: int = argument("items a step and process", 16)
    accumulate: int = argument("batches whose gradients are added up before a step", 1)
    learning_rate: float = argument("peak learning rate of AdamW", 2e-4)
    weight_decay: float = argument("weight decay of AdamW", 1e-4)
    warmup_steps: int = argument("steps over which the learning rate rises", 500)
    decay: Literal["constant", "cosine"] = argument("learning rate after the warm-up", "cosine")
    gradient_clip: float = argument("largest norm of the gradient", 1.0)
    ema_decay: float = argument("decay of the weight average (0: no averaging)", 0.999)
    validate_every: int = argument("steps between validations, each followed by a checkpoint", 1000)
    validation_cases: int = argument("cases in each validation", 8)
    precision: Literal["auto", "32", "bf16"] = argument("`auto` takes bf16 where the hardware has it", "auto")
    device: str = argument("auto, cpu, cuda or mps", "auto")
    workers: int | None = argument(
        "processes that load data (0: none beside the training); default: 0 on a CPU, else one a core, "
        "at most 8",
        None,
    )
    gradient_checkpointing: bool = argument("trade time for memory", False)
    flips: bool = argument("mirror left-right at random", True)


@dataclass(kw_only=True)
class SourceOptions:
    """How the source is varied in training."""

    hu_shift: float = argument(
        "largest shift of all of a CT's values in HU, drawn anew for each item, so that results depend less "
        "on how a scanner is calibrated; 0: none",
        0.0,
    )


@dataclass(kw_only=True)
class UNetOptions:
    """The size of a scalable U-Net."""

    base_channels: int = argument("width of the first level", 32)
    channel_multipliers: list[int] = argument("width of each level in units of the first", [1, 2, 4, 8, 8])
    attention_levels: list[int] = argument("levels with self-attention, counted from 0", [3, 4])
    num_res_blocks: int = argument("residual blocks a level", 1)
    norm_num_groups: int = argument("groups of the group normalisation", 32)
    num_heads: int = argument("attention heads", 4)
    compile: bool = argument(
        "compile the network for each size of batch, which takes minutes each; for whole slices or volumes",
        False,
    )


@dataclass(kw_only=True)
class NoiseOptions:
    """The diffusion process that a network is trained for."""

    num_train_timesteps: int = argument("timesteps of the noise schedule", 1000)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = argument(
        "noise schedule", "linear"
    )
    beta_start: float = argument("first beta", 1e-4)
    beta_end: float = argument("last beta", 0.02)
    prediction_type: PredictionType = argument("what the network predicts", "v_prediction")
    zero_terminal_snr: bool = argument("rescale the schedule so that the last timestep is pure noise", True)
    last_timestep_input: Literal["zero", "noise"] = argument(
        "what the network is shown at the last timestep, where the noisy sample says nothing", "zero"
    )
    restart_timestep: int | None = argument(
        "timestep at which sampling goes on after its first step, from that step's estimate; smaller: truer, "
        "larger: more texture; none: walk down from pure noise",
        None,
    )
    last_timestep_share: float = argument("share of each training batch held at the last timestep", 0.25)
    loss: Literal["mse", "l1", "smooth_l1", "double"] = argument(
        "loss before the last timestep (there: L1 where mse); `smooth_l1` counts errors under a tenth of the "
        "range by their square, and gradients likewise: nearer to the mean of what is possible",
        "mse",
    )
    min_snr_gamma: float | None = argument(
        "weight errors before the last timestep by min-SNR, with this limit (5 is usual), so that those with "
        "little noise keep up; none: no weights",
        None,
    )
    restart_from_estimate: bool = argument(
        "train what follows a restart on the way from the network's own first estimate to the image, as "
        "sampling meets it, and not on images with noise",
        False,
    )
    sampler: Sampler = argument("sampler used after training unless another is asked for", "ddim")
    num_inference_steps: int = argument("sampling steps used after training unless others are asked for", 1)


@dataclass(kw_only=True)
class TrainVqvaeOptions(TrainOptions):
    """Train the VQ-VAE whose latent space the 3D stage works in."""

    batch_size: int = argument("items a step and process", 2)
    max_steps: int = argument("optimiser steps", 50_000)
    crop_size: list[int] = argument("voxels of a training crop along i, j, k", [96, 96, 96])
    hidden_channels: list[int] = argument(
        "widths of the stride-2 convolutions: one makes latents of half the volume's size along each axis, "
        "two of a quarter",
        [128, 256],
    )
    num_res_blocks: int = argument("residual layers on each side", 6)
    embedding_dim: int = argument("latent channels", 8)
    num_embeddings: int = argument("codes in the codebook", 512)
    commitment_cost: float = argument("weight of the commitment term", 0.25)
    codebook_update: Literal["gradient", "ema"] = argument("how the codebook learns", "ema")
    latent_activation: bool = argument("LeakyReLU before the codebook, as published", False)


@dataclass(kw_only=True)
class TrainSlicesOptions(TrainOptions, SourceOptions, UNetOptions, NoiseOptions):
    """Train the 2D diffusion model (2D-SDM) that draws target slices from source slices."""

    crop_size: int | None = argument("longest edge of a training crop in pixels; none: whole slices", None)
    denoising_crop_size: int | None = argument(
        "edge of the smaller crops that timesteps before the last are trained on: a batch is then either at "
        "the last one (with the chance `last_timestep_share`) or at others; none: crops of one size",
        None,
    )
    orientations: list[Orientation] = argument(
        "slice orientations to train on", ["axial", "coronal", "sagittal"]
    )
    draft_orientations: list[Orientation] = argument("orientations that a draft is averaged over", ["axial"])
    neighbours: int = argument(
        "slices on either side whose source the network is shown beside a slice's own: noise and what lies "
        "between slices become clearer; the slice's own orientation alone",
        0,
    )
    gradient_weight: float = argument(
        "weight of the gradients' error beside the values' at the last timestep where it is shown zeros "
        "(with restart_from_estimate and prediction_type sample at all): sharper edges in the estimates",
        0.5,
    )
    folds: int = argument(
        "models trained beside the main one, each on all but its share of the training patients, "
        "so that training cases are drafted by a model that has not seen them (0: none)",
        2,
    )


@dataclass(kw_only=True)
class TrainLatentsOptions(TrainOptions, SourceOptions, UNetOptions, NoiseOptions):
    """Train the 3D latent diffusion model (3D-SLDM) that refines drafts."""

    vqvae: Path = argument("run folder of `train vqvae`")
    batch_size: int = argument("items a step and process", 2)
    base_channels: int = argument("width of the first level", 64)
    crop_size: list[int] | None = argument(
        "voxels of a training crop along i, j, k; none: whole volumes", None
    )
    condition: list[ConditionPart] = argument(
        "what is refined from: `draft` and `source` (its first window) encoded by the VQ-VAE, `windows` the "
        "source's windows themselves, of which nothing is lost",
        ["draft"],
    )
    decoding: Decoding | None = argument(
        "`residual` adds to the draft what refining changed of it, `plain` decodes the refined latents; "
        "default: residual where there is a draft",
        None,
    )
    latent_target: LatentTarget = argument(
        "what the network draws: the target's `latents`, or their `change` from the draft's, so that it "
        "begins with the draft; `change` needs a draft",
        "latents",
    )
    image_weight: float = argument(
        "weight of the decoded image's error at the last timestep, L1 and gradients, beside that of the "
        "latents; residual decoding alone; 0: none",
        0.0,
    )
    image_crop_size: int = argument("edge in voxels of the part of each crop that is decoded for that", 32)


@dataclass(kw_only=True)
class TrainBaselineOptions(TrainOptions, SourceOptions, UNetOptions):
    """Train a method to compare with, by the same data, loop and measures."""

    kind: Baseline = argument(
        "`hu-lookup` the mean target value of each source value; `mean` the training patients' mean volume; "
        "`regression` the 2D network without diffusion, L1; `pix2pix` it with an adversary; "
        "`latent-diffusion` the 3D stage without drafts; `bridge` a Brownian bridge from source to target"
    )
    crop_size: int | None = argument("longest edge of a training crop in pixels; none: whole slices", None)
    orientations: list[Orientation] = argument(
        "slice orientations to train on", ["axial", "coronal", "sagittal"]
    )
    draft_orientations: list[Orientation] = argument("orientations that a result is averaged over", ["axial"])
    neighbours: int = argument(
        "slices on either side whose source the network is shown beside a slice's own: noise and what lies "
        "between slices become clearer; the slice's own orientation alone",
        0,
    )
    l1_weight: float = argument("pix2pix: weight of L1 beside the adversary's loss", 100.0)
    discriminator_channels: int = argument("pix2pix: width of the discriminator's first layer", 64)
    bridge_variance: float = argument("bridge: s, twice the largest variance on the way", 1.0)
    num_train_timesteps: int = argument("bridge, latent-diffusion: timesteps of the process", 1000)
    num_inference_steps: int = argument(
        "bridge, latent-diffusion: sampling steps used after training unless others are asked for", 10
    )
    vqvae: Path | None = argument("latent-diffusion: run folder of `train vqvae`", None)
    volume_crop_size: list[int] | None = argument(
        "latent-diffusion: voxels of a training crop along i, j, k; none: whole volumes", None
    )
