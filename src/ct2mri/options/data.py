"""What `phantom`, `prepare` and `check` take."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ct2mri.options.argument import argument
from ct2mri.options.choices import Layout


@dataclass(kw_only=True)
class PhantomOptions:
    """Draw digital phantoms: paired CT and T1-weighted MR with random anatomy."""

    output_dir: Path = argument("folder to write patient folders into", positional=True)
    cases: int = argument("number of patients", 20)
    anatomy: Literal["head", "pelvis"] = argument("part of the body", "head")
    spacing: float | None = argument("voxel edge in mm; without it random per case", None)
    seed: int = argument("seed of the anatomy", 0)
    labels: bool = argument("also write each patient's tissue map", False)
    mr_noise: bool = argument(
        "give the MR the noise of its measurement; without, it shows the same patients as they can be known",
        True,
    )


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
