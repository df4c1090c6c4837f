"""What each command takes: one dataclass a command, its fields the command's arguments.

Importing this module loads no heavy library, so that `ct2mri COMMAND --help` answers at once. The same
dataclasses are the arguments of the Python functions behind the commands.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Orientation = Literal["axial", "coronal", "sagittal"]
Split = Literal["train", "validation", "test"]
Sampler = Literal["ddpm", "ddim", "dpm-solver++", "unipc", "renoise"]
Layout = Literal[
    "pairs", "flat", "bids", "synthrad2023", "synthrad2025", "gold-atlas", "dicom", "slices", "published"
]
Decoding = Literal["plain", "residual"]
ConditionPart = Literal["draft", "source", "windows"]
InferencePrecision = Literal["auto", "32", "bf16"]
PredictionType = Literal["epsilon", "sample", "v_prediction"]
Baseline = Literal["hu-lookup", "mean", "regression", "pix2pix", "latent-diffusion", "bridge"]


def argument(text: str, default: Any = ..., *, flags: tuple[str, ...] = (), positional: bool = False) -> Any:
    """A dataclass field that is also a command-line argument.

    Args:
        text: the help text.
        default: the default value; without one the argument is required.
        flags: further flags, e.g. `("-o",)`.
        positional: whether the argument is given by its place, without a flag.
    """
    metadata = {"help": text, "flags": flags, "positional": positional}
    if default is ...:
        return field(metadata=metadata)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class PhantomOptions:
    """Draw digital phantoms: paired CT and T1-weighted MR with random anatomy."""

    output_dir: Path = argument("folder to write patient folders into", positional=True)
    cases: int = argument("number of patients", 20)
    anatomy: Literal["head", "pelvis"] = argument("part of the body", "head")
    spacing: float | None = argument("voxel edge in mm; without it random per case", None)
    seed: int = argument("seed of the anatomy", 0)
    labels: bool = argument("also write each patient's tissue map", False)


@dataclass(kw_only=True)
class RawDataOptions:
    """Where pairs of volumes lie and which of them are meant: shared by `prepare` and `check`."""

    layout: Literal["auto", Layout] = argument(
        "how the raw folder is laid out (docs/your-data.md draws each); `auto` recognises it by looking",
        "auto",
    )
    source: str = argument(
        "modality to translate from, as files or headers call it (ct, cbct, mr, t1, …)", "ct"
    )
    target: str = argument("modality to translate to, likewise; ct and cbct are in HU", "mr")
    source_series: str | None = argument(
        "of several source images of a patient, take the one whose description or file name contains this",
        None,
    )
    target_series: str | None = argument(
        "of several target images of a patient, take the one whose description or file name contains this",
        None,
    )
    splits: Path | None = argument("JSON file with patient identifiers under train, validation, test", None)
    workers: int | None = argument(
        "cases worked on side by side, each in a process of its own (0: all in this one); default: one a "
        "core, at most 4",
        None,
    )


@dataclass(kw_only=True)
class PrepareOptions(RawDataOptions):
    """Turn raw pairs of volumes into a prepared data set and its plan."""

    raw: Path = argument("folder of raw data, as it was downloaded or exported", positional=True)
    dataset: Path = argument("folder to write the prepared data set into", positional=True)
    plan: Path | None = argument("a plan.json to follow instead of deciding one", None)
    anatomy: str | None = argument("name of the anatomy, kept in the plan (e.g. head, pelvis)", None)
    spacing: list[float] | None = argument(
        "target voxel spacing in mm, three numbers; default: the median", None
    )
    windows: list[list[float]] | None = argument(
        "source windows, e.g. [[-1024,3000],[-160,240]]; each becomes a condition channel", None
    )
    register: Literal["none", "rigid"] = argument(
        "bring the target onto the source: `rigid` by mutual information, its quality told per case", "none"
    )
    bias_correction: bool = argument("correct the shading of MR volumes (N4)", False)
    remove_table: bool = argument("fill the source with air outside the body: no table, no headrest", True)
    target_scaling: Literal["percentile", "zscore"] = argument(
        "scale of a target without units, inside the body: 0 and a percentile, or mean and deviation",
        "percentile",
    )
    target_percentile: float = argument("percentile of the target inside the mask that maps to 1", 99.5)
    target_window: list[float] | None = argument(
        "HU of a CT target that map to -1 and 1; default: -1024 3000", None
    )
    enhance_contrast: bool = argument("enhance the target's local contrast (CLAHE)", False)
    hold_out_centre: str | None = argument(
        "test on all patients of this centre and train on the others, where the layout tells centres", None
    )
    validation_fraction: float = argument("share of the patients for validation", 0.15)
    test_fraction: float = argument("share of the patients held out for the test", 0.15)
    seed: int = argument("seed of the split and of the registration", 0)
    dry_run: bool = argument("only say what would be done", False)
    strict: bool = argument("exit code 1 if any case was left out", False)


@dataclass(kw_only=True)
class CheckOptions(RawDataOptions):
    """Tell what is wrong with raw or prepared data, before a week of training."""

    data: Path = argument("folder of raw data, or a prepared data set", positional=True)
    output: Path | None = argument(
        "folder for check.json and the page check.html; default: NAME-check beside the data",
        None,
        flags=("-o",),
    )
    strict: bool = argument("exit code 1 if any case has an error", False)


@dataclass(kw_only=True)
class TrainOptions:
    """What every training stage takes."""

    data: Path = argument("a prepared data set")
    output_dir: Path = argument("folder of the run")
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
    loss: Literal["mse", "l1", "double"] = argument(
        "loss before the last timestep (there: L1 where mse)", "mse"
    )
    loss_space: Literal["output", "image"] = argument(
        "what the loss compares: the network's `output`, or the clean `image` that it implies, so that "
        "timesteps at which little is left to do weigh little",
        "output",
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
class TrainSlicesOptions(TrainOptions, UNetOptions, NoiseOptions):
    """Train the 2D diffusion model (2D-SDM) that draws target slices from source slices."""

    crop_size: int | None = argument("longest edge of a training crop in pixels; none: whole slices", None)
    orientations: list[Orientation] = argument(
        "slice orientations to train on", ["axial", "coronal", "sagittal"]
    )
    draft_orientations: list[Orientation] = argument("orientations that a draft is averaged over", ["axial"])
    folds: int = argument(
        "models trained beside the main one, each on all but its share of the training patients, "
        "so that training cases are drafted by a model that has not seen them (0: none)",
        2,
    )


@dataclass(kw_only=True)
class TrainLatentsOptions(TrainOptions, UNetOptions, NoiseOptions):
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


@dataclass(kw_only=True)
class TrainBaselineOptions(TrainOptions, UNetOptions):
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


@dataclass(kw_only=True)
class ComputeOptions:
    """Where and how stages compute: shared by `translate` and `draft`."""

    device: str = argument("auto, cpu, cuda or mps", "auto")
    max_memory: str | None = argument(
        "memory of the device that may be taken, e.g. 8GiB (on a CPU, by the whole process); default: what "
        "is free. Slices go in smaller batches and volumes in tiles or windows where need be",
        None,
    )
    precision: InferencePrecision = argument(
        "`bf16` is less exact and, where the hardware has it, faster; `auto` takes it on CUDA devices alone",
        "auto",
    )
    batch_size: int | None = argument(
        "slices that go through the network together, at most; default: as many as are of use and fit", None
    )
    compile: bool = argument(
        "compile the networks (torch.compile): minutes once, kept between runs, then less time a volume",
        False,
    )


@dataclass(kw_only=True)
class DraftOptions(ComputeOptions):
    """Draw the 2D model's target volumes for every case of a data set: the input of the 3D stage."""

    data: Path = argument("a prepared data set")
    model: Path = argument("run folder of `train slices`")
    steps: int | None = argument("sampling steps; default: the model's own", None)
    sampler: Sampler | None = argument("sampler; default: the model's own", None)
    seed: int = argument("seed of the noise", 0)
    allow_seen: bool = argument(
        "let the main model draft cases it was trained on, where there are no folds", False
    )


@dataclass(kw_only=True)
class ExportOptions:
    """Put trained stages together into one pipeline folder."""

    output: Path = argument("pipeline folder to write", flags=("-o",))
    slices: Path | None = argument("run folder of `train slices`", None)
    vqvae: Path | None = argument("run folder of `train vqvae`", None)
    latents: Path | None = argument("run folder of `train latents`", None)
    baseline: Path | None = argument("run folder of `train baseline`, instead of these three", None)
    name: str | None = argument("name of the model, shown on its results", None)
    description: str | None = argument("what the reader of the model card should know, a paragraph", None)
    half: bool = argument(
        "store weights in half precision: half the size on disk, results a little other", False
    )


@dataclass(kw_only=True)
class TranslateOptions(ComputeOptions):
    """Translate a CT, a folder of CTs, or the held-out cases of a data set into MR volumes."""

    input: Path | None = argument("a CT file, a DICOM folder, or a folder of CTs", None, positional=True)
    output: Path = argument("file to write, or folder for several", flags=("-o",))
    data: Path | None = argument("a prepared data set, instead of an input", None)
    split: Split = argument("which cases of the data set", "test")
    model: str | None = argument("a pipeline folder or owner/name; default: the starter model", None)
    plan: Path | None = argument("a plan.json that replaces the model's own", None)
    mask: Path | None = argument("body mask to use instead of the one found by threshold", None)
    steps: int | None = argument("sampling steps of the last stage; default: the model's own", None)
    sampler: Sampler | None = argument("sampler of the last stage; default: the model's own", None)
    seed: int = argument("seed of the noise", 0)
    samples: int = argument("samples to average", 1)
    uncertainty: Path | None = argument("file for the spread over the samples", None)
    format: Literal["auto", "nifti", "dicom"] = argument(
        "what to write: `dicom` a series in the folder -o; `auto` by the suffix of -o, NIfTI into folders",
        "auto",
    )
    processes: int = argument(
        "of several CTs, so many are worked on side by side, each in a process of its own and on a card of "
        "its own where there are several (0: all in this one)",
        0,
    )
    share: str | None = argument(
        "I/N: of several CTs, only the I-th of N shares, counted from 1, as one of N such commands; torchrun "
        "and srun deal the shares out by themselves",
        None,
    )
    anonymize: bool = argument("leave the patient out of DICOM results", False)
    overwrite: bool = argument("write results again that are there already", False)


@dataclass(kw_only=True)
class StabilityOptions:
    """Measure how results change with what says nothing of the anatomy: seed, HU offset, kernel, place."""

    input: Path = argument(
        "a CT, or a folder of CTs named by case: 001.nii.gz, ct_001.nii.gz, 001/ct.nii.gz are all case 001",
        positional=True,
    )
    output: Path = argument("folder for stability.json and stability.csv", flags=("-o",))
    data: Path | None = argument("a prepared data set: take only the cases of its --split", None)
    split: Split = argument("which cases of the data set", "test")
    model: str | None = argument("a pipeline folder or owner/name; default: the starter model", None)
    steps: int | None = argument("sampling steps of the last stage; default: the model's own", None)
    sampler: Sampler | None = argument("sampler of the last stage; default: the model's own", None)
    seed: int = argument("seed of the noise", 0)
    samples: int = argument("samples to average", 1)
    device: str = argument("auto, cpu, cuda or mps", "auto")
    batch_size: int = argument("slices that go through the network together", 16)
    card: bool = argument("write the finding into the model's card", False)


@dataclass(kw_only=True)
class MeasureOptions:
    """What predictions are measured against and how: shared by `evaluate` and `compare`."""

    masks: Path | None = argument("a mask, or a folder of masks named by case", None)
    sources: Path | None = argument(
        "what was translated, a volume or a folder named by case: for edges, and for regions by HU",
        None,
    )
    data: Path | None = argument("a prepared data set, instead of targets, masks and sources", None)
    split: Split = argument("which cases of the data set", "test")
    units: Literal["relative", "HU"] = argument(
        "of TARGETS: `HU` compares them as they are, `relative` (MR) fits a gain and takes a percentile as 1",
        "relative",
    )
    preset: Literal["synthrad2023", "synthrad2025"] | None = argument(
        "also give a challenge's numbers, for predicted CT in HU", None
    )
    labels: Path | None = argument("a folder of label maps named by case: errors by label", None)
    cases: Path | None = argument(
        "CSV table with the columns case_id, patient_id and, if known, centre; default: each case a patient",
        None,
    )
    resample: bool = argument("bring predictions on another grid onto the target's, and say so", False)


@dataclass(kw_only=True)
class EvaluateOptions(MeasureOptions):
    """Compare predicted volumes with real ones."""

    predictions: Path = argument(
        "a volume, or a folder of volumes named by case: mr_001.nii.gz, 001_synthetic_mr.nii.gz and "
        "001/mr.nii.gz are all case 001",
        positional=True,
    )
    targets: Path | None = argument("a volume, or a folder of volumes named likewise", None, positional=True)
    output: Path | None = argument(
        "folder for the page evaluation.html, evaluation.json and evaluation.csv", None, flags=("-o",)
    )
    predicted_labels: Path | None = argument(
        "a folder of label maps found in the predictions: Dice and volumes against --labels", None
    )
    uncertainty: Path | None = argument(
        "a folder of spreads named by case, of `translate --uncertainty`: do they tell the error?",
        None,
    )
    stability: Path | None = argument(
        "what `stability` wrote of the same model and CTs: an appendix, beside the errors", None
    )


@dataclass(kw_only=True)
class CompareOptions(MeasureOptions):
    """Compare two or more systems on the same cases, patient by patient."""

    systems: list[Path] = argument(
        "reports (folders that `evaluate` wrote), or folders of predictions; the others are compared with "
        "the first",
        positional=True,
    )
    targets: Path | None = argument("of folders of predictions: a folder of volumes named by case", None)
    names: list[str] | None = argument("what to call the systems; default: their folders' names", None)
    output: Path | None = argument(
        "folder for the page comparison.html, comparison.json and comparison.csv", None, flags=("-o",)
    )


@dataclass(kw_only=True)
class ImportPublishedOptions:
    """Turn the authors' published checkpoints into a pipeline folder."""

    output: Path = argument("pipeline folder to write", flags=("-o",))
    slices: Path | None = argument("checkpoint of the 2D-SDM", None)
    vqvae: Path | None = argument("checkpoint of the VQ-VAE", None)
    latents: Path | None = argument("checkpoint of the 3D-SLDM", None)
    hub: str | None = argument("fetch the checkpoints from this Hugging Face repository (owner/name)", None)
    anatomy: Literal["brain", "pelvis"] = argument("what the checkpoints were trained on", "brain")


@dataclass(kw_only=True)
class DemoOptions:
    """Translate a phantom CT that the starter model has never seen, and your own CT where you give one."""

    ct: Path | None = argument("your own CT", None, positional=True)
    output: Path = argument(
        "folder for volumes, picture sheets and numbers", Path("ct2mri-demo"), flags=("-o",)
    )
    seed: int = argument("seed of the phantom and the noise", 0)
    device: str = argument("auto, cpu, cuda or mps", "auto")


@dataclass(kw_only=True)
class ViewOptions:
    """Look at volumes, translate and compare them in the browser; follow a training."""

    inputs: list[Path] | None = argument(
        "volumes, a folder of them, a DICOM series, a report of `evaluate` or `compare`, a run of `train`; "
        "default: what the results folder holds, else a phantom",
        None,
        positional=True,
    )
    results: Path = argument("folder for uploads, results and the record of jobs", Path("ct2mri-results"))
    models: list[str] | None = argument(
        "pipeline folders (or owner/name) to choose from; default: the starter model", None
    )
    device: str = argument("auto, cpu, cuda or mps", "auto")
    host: str = argument("address to listen on; any but this machine's own needs --token", "127.0.0.1")
    port: int = argument("port to listen on (0: a free one)", 0)
    token: str | None = argument(
        "secret that a browser or script must bring, 16 characters or more; default: a new random one", None
    )
    no_browser: bool = argument("do not open the page in the browser", False)
    upload_limit: float = argument("GiB that one upload may have", 4.0)
