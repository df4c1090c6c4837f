"""What `draft`, `export`, `import-published`, `translate` and `demo` take."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ct2mri.options.argument import argument
from ct2mri.options.choices import Sampler, Split
from ct2mri.options.compute import ComputeOptions


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
class ImportPublishedOptions:
    """Turn the authors' published checkpoints into a pipeline folder."""

    output: Path = argument("pipeline folder to write", flags=("-o",))
    slices: Path | None = argument("checkpoint of the 2D-SDM", None)
    vqvae: Path | None = argument("checkpoint of the VQ-VAE", None)
    latents: Path | None = argument("checkpoint of the 3D-SLDM", None)
    hub: str | None = argument("fetch the checkpoints from this Hugging Face repository (owner/name)", None)
    anatomy: Literal["brain", "pelvis"] = argument("what the checkpoints were trained on", "brain")


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
class DemoOptions:
    """Translate a phantom CT that the starter model has never seen, and your own CT where you give one."""

    ct: Path | None = argument("your own CT", None, positional=True)
    output: Path = argument(
        "folder for volumes, picture sheets and numbers", Path("ct2mri-demo"), flags=("-o",)
    )
    seed: int = argument("seed of the phantom and the noise", 0)
    device: str = argument("auto, cpu, cuda or mps", "auto")
