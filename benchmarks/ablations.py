"""What each part of MD-DGA is worth: train it with and without, and measure on held-out cases.

    python benchmarks/ablations.py DATA WORK --config benchmarks/ablations.yaml
    python benchmarks/ablations.py DATA WORK --config benchmarks/ablations.yaml --quick

DATA is a prepared data set of volumes with slices of all three orientations, such as phantoms; the drafts of
the 3D stage are written into it. Compared are: the 2D stage alone, in one orientation and as the mean of
three; both stages; the 3D stage without drafts; epsilon as published and our default; the samplers; and 1, 2,
5, 10, 25 and 50 steps. All else is alike: data, crops, optimiser, steps of training, seed.

It trains, drafts, exports, translates and evaluates with the commands of the package and prints Markdown
tables with paired differences from each table's first row; WORK/steps.svg draws the last one. Stopped at any
point, the same command goes on where it was. `--quick` is to try the bench itself: a few steps of training
and two numbers of sampling steps; its figures mean nothing.
"""

import argparse
import platform
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from matplotlib import pyplot

from baselines import ct2mri
from ct2mri import __version__
from ct2mri.data.cases import PreparedDataset
from ct2mri.files import read_json, write_json
from ct2mri.options.choices import Orientation
from ct2mri.pipeline import TranslationPipeline
from tables import COLUMNS, paired_table

THREE: tuple[Orientation, ...] = ("axial", "coronal", "sagittal")
# The published process: noise is predicted, the last timestep is one like any other, L1.
AS_PUBLISHED = [
    *("--prediction_type", "epsilon", "--no_zero_terminal_snr", "--last_timestep_input", "noise"),
    *("--last_timestep_share", 0, "--loss", "l1", "--sampler", "renoise", "--num_inference_steps", 10),
]
SHOWN = ("psnr", "ssim", "ms_gmsd", "continuity.axial.ratio", "continuity.axial.uneven")
DIFFERENCES = ("psnr", "ssim", "ms_gmsd", "continuity.axial.ratio")
QUICK_TRAINING, QUICK_STEPS = 10, (1, 2)
STEPS = (1, 2, 5, 10, 25, 50)
FEW, SOME = 1, 10


@dataclass(frozen=True)
class System:
    """One way to translate.

    Attributes:
        model: name of the pipeline, see `Bench.model`.
        steps: of the last stage.
        sampler: of the last stage; None: the model's own.
    """

    model: str
    steps: int
    sampler: str | None = None

    @property
    def name(self) -> str:
        """Its folder in WORK."""
        return "-".join(str(part) for part in (self.model, self.sampler, self.steps) if part is not None)


# Each table: title, and what its rows are called and are; the others are compared with the first.
PARTS = {
    "2D stage, one orientation (axial)": System("2d", FEW),
    "2D stage, mean of three orientations": System("2d-three", FEW),
    "2D and 3D stage": System("2d-3d", FEW),
    "3D stage without draft": System("3d", FEW),
}
PROCESSES = {
    "v-prediction, zero terminal SNR (our default), DDIM": System("2d", SOME, "ddim"),
    "v-prediction, DPM-Solver++": System("2d", SOME, "dpm-solver++"),
    "v-prediction, renoise": System("2d", SOME, "renoise"),
    "epsilon as published, DDIM": System("epsilon", SOME, "ddim"),
    "epsilon as published, DPM-Solver++": System("epsilon", SOME, "dpm-solver++"),
    "epsilon as published, renoise (as published)": System("epsilon", SOME, "renoise"),
}
CURVES = {
    "v-prediction, DDIM": ("2d", "ddim"),
    "epsilon as published, renoise": ("epsilon", "renoise"),
}


class Bench:
    """One request, and the folder that it is worked on in.

    Args:
        arguments: of the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.work: Path = arguments.work

    def run(self, name: str) -> Path:
        """Train a part, or go on with it; before the 3D stage, draft every case."""
        run = self.work / "runs" / name
        if not (run / "run.json").is_file() or not read_json(run / "run.json").get("finished"):
            words: list[object] = {
                "slices": ["slices"],
                "epsilon": ["slices", *AS_PUBLISHED, "--folds", 0],
                "vqvae": ["vqvae"],
                "latents": ["latents"],
                "latent-diffusion": ["baseline", "--kind", "latent-diffusion"],
            }[name]
            if name in ("latents", "latent-diffusion"):
                words = [*words, "--vqvae", self.run("vqvae")]
            if name == "latents":
                seen = [] if (self.run("slices") / "folds.json").is_file() else ["--allow_seen"]
                ct2mri("draft", "--data", self.arguments.data, "--model", self.run("slices"), *seen)
            if self.arguments.quick:
                words = [*words, "--max_steps", QUICK_TRAINING, "--validate_every", QUICK_TRAINING]
            elif self.arguments.steps is not None:
                words = [*words, "--max_steps", self.arguments.steps]
            ct2mri(
                *("train", *words, "--data", self.arguments.data, "--output_dir", run),
                *("--config", self.arguments.config, "--seed", self.arguments.seed),
                *("--device", self.arguments.device),
            )
        return run

    def model(self, name: str) -> Path:
        """A pipeline: `2d`, `2d-three`, `2d-3d`, `3d` or `epsilon`."""
        model = self.work / "models" / name
        if (model / "pipeline.json").is_file():
            return model
        if name == "2d-three":
            # The same network: only the orientations that are averaged differ.
            pipeline = TranslationPipeline.from_pretrained(self.model("2d"), "cpu")
            pipeline.stages[0].orientations = THREE
            pipeline.save_pretrained(model)
            return model
        runs: list[object] = {
            "2d": lambda: ["--slices", self.run("slices")],
            "2d-3d": lambda: ["--slices", self.run("slices"), "--latents", self.run("latents")],
            "3d": lambda: ["--baseline", self.run("latent-diffusion")],
            "epsilon": lambda: ["--slices", self.run("epsilon")],
        }[name]()
        ct2mri("export", *runs, "-o", model)
        return model

    def report(self, system: System) -> Path:
        """Translate and evaluate; the folder that `evaluate` wrote."""
        report = self.work / "reports" / system.name
        if not (report / "evaluation.json").is_file():
            predictions = self.work / "predictions" / system.name
            held_out = ["--data", self.arguments.data, "--split", self.arguments.split]
            sampler = [] if system.sampler is None else ["--sampler", system.sampler]
            ct2mri(
                *("translate", *held_out, "--model", self.model(system.model), "-o", predictions),
                *("--steps", system.steps, *sampler),
                *("--seed", self.arguments.seed, "--device", self.arguments.device),
            )
            ct2mri("evaluate", predictions, *held_out, "-o", report)
        return report

    def table(self, systems: dict[str, System], *, compare: str) -> str:
        """One Markdown table; `ct2mri compare` writes a page of the same into WORK."""
        reports = {label: self.report(system) for label, system in systems.items()}
        ct2mri("compare", *reports.values(), "--names", *reports, "-o", self.work / f"compare-{compare}")
        facts = {label: {"steps": str(system.steps)} for label, system in systems.items()}
        return paired_table(reports, SHOWN, DIFFERENCES, facts)

    def draw_steps(self, curves: dict[str, dict[int, System]]) -> None:
        """Draw what the numbers of steps do, into WORK/steps.svg."""
        figure, plots = pyplot.subplots(1, len(SHOWN), figsize=(3.2 * len(SHOWN), 3), layout="constrained")
        for metric, axes in zip(SHOWN, plots, strict=True):
            for label, systems in curves.items():
                values = [
                    read_json(self.report(system) / "evaluation.json")["summary"][metric]["mean"]
                    for system in systems.values()
                ]
                axes.plot(list(systems), values, marker="o", label=label)
            axes.set(xscale="log", xlabel="steps", title=COLUMNS[metric][0])
            axes.set_xticks(list(systems), [str(steps) for steps in systems])
            axes.minorticks_off()
        plots[0].legend()
        figure.savefig(self.work / "steps.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="a prepared data set of volumes")
    parser.add_argument("work", type=Path, help="folder for runs, models, predictions and reports")
    parser.add_argument(
        "--config", required=True, help="preset or YAML file: sections slices, vqvae, latents, baseline"
    )
    parser.add_argument("--steps", type=int, help="optimiser steps of each training; default: the config's")
    parser.add_argument("--tables", nargs="+", default=["parts", "process", "steps"])
    parser.add_argument("--split", default="test", choices=["validation", "test"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="a trial of the bench: its figures mean nothing")
    arguments = parser.parse_args()
    if unknown := set(arguments.tables) - {"parts", "process", "steps"}:
        sys.exit(f"--tables takes parts, process and steps, got {', '.join(sorted(unknown))}.")

    # Tables may be added later; what is there already was made by the rest.
    fixed = {"data", "config", "steps", "split", "seed", "quick"}
    request = {name: str(value) for name, value in vars(arguments).items() if name in fixed}
    record = arguments.work / "request.json"
    if record.is_file() and read_json(record) != request:
        sys.exit(
            f"{arguments.work} was begun with {read_json(record)}, now it is {request}; take another folder."
        )
    write_json(record, request)

    bench, dataset = Bench(arguments), PreparedDataset(arguments.data)
    print(
        f"ct2mri {__version__}, torch {torch.__version__}, {date.today()}, "
        f"{platform.processor() or platform.machine()}, seed {arguments.seed}, "
        f"{len(dataset.case_ids('train'))} training and {len(dataset.case_ids(arguments.split))} "
        f"{arguments.split} cases"
    )

    def tell(title: str, systems: dict[str, System], compare: str) -> None:
        print(f"\n**{title}**\n\n{bench.table(systems, compare=compare)}", flush=True)

    if "parts" in arguments.tables:
        tell("Parts", PARTS, "parts")
    if "process" in arguments.tables:
        tell("Process and sampler", PROCESSES, "process")
    if "steps" in arguments.tables:
        numbers = QUICK_STEPS if arguments.quick else STEPS
        curves = {
            label: {steps: System(model, steps, sampler) for steps in numbers}
            for label, (model, sampler) in CURVES.items()
        }
        for number, (label, systems) in enumerate(curves.items()):
            rows = {f"{label}, {steps} step{'s' * (steps > 1)}": of for steps, of in systems.items()}
            tell(f"Steps: {label}", rows, f"steps-{number}")
        bench.draw_steps(curves)
    print()
    for path in sorted((arguments.work / "runs").glob("*/run.json")):
        facts = read_json(path)
        minutes = facts["seconds"] / 60
        print(f"{path.parent.name}: {facts['steps']} steps, {minutes:.1f} min on {facts['device']}")


if __name__ == "__main__":
    main()
