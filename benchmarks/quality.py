"""Measure models on the held-out cases of a prepared data set, beside what costs nothing.

    python benchmarks/quality.py DATA WORK --model "2D and 3D=MODEL" --model "2D alone=MODEL_2D"

For each model, and for each of the baselines, it writes predictions to WORK and runs `ct2mri evaluate` on
them, then prints one Markdown table. The baselines: a constant image at the median of the training targets,
the CT itself through each of the plan's windows, and the first model's own networks with fresh, untrained
weights.
"""

import argparse
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import torch

from ct2mri import Volume, __version__, save_volume
from ct2mri.data.cases import PreparedDataset
from ct2mri.data.replay import to_target_units
from ct2mri.files import read_json
from ct2mri.pipeline import TranslationPipeline

COLUMNS = {
    "psnr": ("PSNR dB", 2),
    "ssim": ("SSIM", 3),
    "mae": ("MAE", 4),
    "ms_gmsd": ("MS-GMSD", 3),
    "continuity.axial.ratio": ("change between axial slices", 2),
    "continuity.coronal.ratio": ("coronal", 2),
    "continuity.sagittal.ratio": ("sagittal", 2),
    "continuity.axial.error": ("error of that change, axial", 3),
    "continuity.coronal.error": ("coronal", 3),
    "continuity.sagittal.error": ("sagittal", 3),
    "continuity.axial.brightness": ("brightness of axial slices", 3),
}
"""Metric → heading and digits. Change: the prediction's mean change from slice to slice over the truth's, 1
is best; its error, where and which way it changes as well, 0 is best. Brightness: how unevenly whole slices
are too bright or too dark, 0 is best."""


def ct2mri(*words: object) -> None:
    """Run one command of the package."""
    subprocess.run([sys.executable, "-m", "ct2mri", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def write_baselines(dataset: PreparedDataset, split: str, work: Path) -> list[str]:
    """Write each baseline's volumes into a folder of WORK, and name them."""
    plan = dataset.plan
    training = [dataset.case(case_id) for case_id in dataset.case_ids("train")]
    median = float(np.median(np.concatenate([case.target[case.mask & case.valid] for case in training])))
    names = ["constant image", *(f"CT, window {low:g} to {high:g} HU" for low, high in plan.source_windows)]
    for case_id in dataset.case_ids(split):
        case = dataset.case(case_id)
        images = [np.full(case.spatial_shape, median, np.float32), *case.source]
        for name, image in zip(names, images, strict=True):
            save_volume(Volume(to_target_units(image, plan), case.affine), work / name / f"{case_id}.nii.gz")
    return names


def write_untrained(model: Path, folder: Path) -> None:
    """Write `model` with networks of the same configuration and fresh weights."""
    torch.manual_seed(0)
    pipeline = TranslationPipeline.from_pretrained(model)
    for stage in pipeline.stages:
        for layer in stage.network.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
    pipeline.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="a prepared data set")
    parser.add_argument("work", type=Path, help="folder for predictions and evaluations")
    parser.add_argument("--model", action="append", required=True, help="NAME=FOLDER, as often as wanted")
    parser.add_argument("--split", default="test")
    parser.add_argument("--steps", type=int, nargs="+", help="also measure these numbers of steps")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    dataset = PreparedDataset(arguments.data)
    names = write_baselines(dataset, arguments.split, arguments.work)
    models = [word.split("=", 1) for word in arguments.model]
    untrained = arguments.work / "untrained-model"
    write_untrained(Path(models[0][1]), untrained)
    models.insert(0, [f"{models[0][0]}, untrained", str(untrained)])
    for name, model in models:
        runs = [(name, [])]
        if arguments.steps and model != str(untrained):
            runs = [(f"{name}, steps {steps}", ["--steps", steps]) for steps in arguments.steps]
        for label, words in runs:
            predictions = ["-o", arguments.work / label, "--seed", arguments.seed, *words]
            ct2mri(
                *("translate", "--data", arguments.data, "--split", arguments.split, "--model", model),
                *predictions,
            )
            names.append(label)

    print(f"ct2mri {__version__}, {date.today()}, {platform.processor() or platform.machine()}, ", end="")
    print(
        f"torch {torch.__version__}, seed {arguments.seed}, {len(dataset.case_ids(arguments.split))} cases\n"
    )
    print(
        "| | "
        + " | ".join(heading for heading, _ in COLUMNS.values())
        + " |\n|"
        + "---|" * (len(COLUMNS) + 1)
    )
    for name in names:
        report = arguments.work / f"{name} report"
        ct2mri(
            *("evaluate", arguments.work / name, "--data", arguments.data, "--split", arguments.split),
            *("-o", report),
        )
        evaluation = read_json(report / "evaluation.json")
        print(f"| {name} |", cells(evaluation["summary"]))
    print("| noise floor: truth moved by one voxel |", cells(evaluation["noise_floor"]))
    print(f"\nSettings: {evaluation['cases'][0]['settings']}")


def cells(summary: dict) -> str:
    """Mean ± deviation of the metrics as cells of a table."""
    words = []
    for metric, (_, digits) in COLUMNS.items():
        mean, deviation = summary[metric]["mean"], summary[metric]["deviation"]
        spread = "" if deviation is None else f" ± {deviation:.{digits}f}"
        words.append("not defined" if mean is None else f"{mean:.{digits}f}{spread}")
    return " | ".join(words) + " |"


if __name__ == "__main__":
    main()
