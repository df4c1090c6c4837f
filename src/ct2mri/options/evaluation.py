"""What `stability`, `evaluate`, `compare` and `view` take."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ct2mri.options.argument import argument
from ct2mri.options.choices import Sampler, Split
from ct2mri.options.compute import ComputeOptions


@dataclass(kw_only=True)
class StabilityOptions(ComputeOptions):
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
    resample: bool = argument(
        "bring predictions, masks and sources on another grid onto the target's, and say so", False
    )


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
