"""Train our 2D stage and every baseline on one data set, alike, and measure them on its held-out cases.

    python benchmarks/baselines.py DATA WORK --config demo --steps 700
    python benchmarks/baselines.py DATA WORK --config benchmarks/real_slices.yaml --minutes 10 \
        --methods slices hu-lookup mean regression pix2pix bridge --sampling_steps 1 10

Each method is trained for the same number of steps, for as many as the configuration gives each, or for the
same time: then a few steps of each are timed first, and validations do not count. It trains, exports,
translates and evaluates with the commands of the package, prints one Markdown table with paired differences
from the 2D stage, and has `ct2mri compare` write WORK/comparison/comparison.html. Stopped at any point, the
same command goes on where it was.
"""

import argparse
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch

from ct2mri import __version__
from ct2mri.data.cases import PreparedDataset
from ct2mri.files import read_json, write_json
from tables import paired_table

OURS = "slices"
FREE = ("hu-lookup", "mean")
SAMPLED = (OURS, "latent-diffusion", "bridge")
METHODS = (OURS, *FREE, "regression", "pix2pix", "latent-diffusion", "bridge")
DIFFERENCES = ("psnr", "ssim", "ms_gmsd")
TIMED = (10, 40)
"""Steps of the two runs whose difference in time is that of a step."""


def ct2mri(*words: object) -> None:
    """Run one command of the package; its progress bar is shown, its tables are not."""
    print("ct2mri", *words, file=sys.stderr)
    subprocess.run([sys.executable, "-m", "ct2mri", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


class Bench:
    """One request, and the folder that it is worked on in.

    Args:
        arguments: of the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.work: Path = arguments.work

    def train_words(self, method: str) -> list[object]:
        """The command that trains a method, without its length and its folder."""
        arguments = self.arguments
        stage = [method] if method in (OURS, "vqvae") else ["baseline", "--kind", method]
        words = ["train", *stage, "--data", arguments.data, "--config", arguments.config]
        words += ["--seed", arguments.seed, "--device", arguments.device]
        if method == OURS:
            words += ["--folds", 0]
        if method == "latent-diffusion":
            words += ["--vqvae", arguments.vqvae or self.work / "vqvae" / "run"]
        return words

    def steps_of(self, method: str) -> int | None:
        """How many steps a method is trained for; in the same time, as many as its first steps foretell."""
        if self.arguments.minutes is None or method in FREE:
            return self.arguments.steps
        path = self.work / method / "steps.json"
        if not path.is_file():
            seconds = []
            for steps in TIMED:
                run = self.work / method / "timed"
                length = ["--max_steps", steps, "--validate_every", steps, "--resume", "never"]
                ct2mri(*self.train_words(method), "--output_dir", run, *length)
                seconds.append(read_json(run / "run.json")["seconds"])
            a_step = max((seconds[1] - seconds[0]) / (TIMED[1] - TIMED[0]), 1e-3)
            steps = max(1, round(60 * self.arguments.minutes / a_step))
            write_json(path, {"seconds_a_step": a_step, "steps": steps})
        return int(read_json(path)["steps"])

    def train(self, method: str) -> Path:
        """Train a method, or go on with it."""
        run, steps = self.work / method / "run", self.steps_of(method)
        facts = read_json(run / "run.json") if (run / "run.json").is_file() else {}
        if not facts.get("finished"):
            length = [] if steps is None else ["--max_steps", steps]
            ct2mri(*self.train_words(method), "--output_dir", run, *length)
        return run

    def measure(self, method: str, run: Path, sampling_steps: int | None) -> Path:
        """Export, translate and evaluate a method; the folder that `evaluate` wrote."""
        folder = self.work / method
        label = "own" if sampling_steps is None else str(sampling_steps)
        report = folder / f"report-{label}"
        if not (report / "evaluation.json").is_file():
            model, predictions = folder / "model", folder / f"predictions-{label}"
            if not (model / "pipeline.json").is_file():
                ct2mri("export", "--slices" if method == OURS else "--baseline", run, "-o", model)
            held_out = ["--data", self.arguments.data, "--split", self.arguments.split]
            steps = [] if sampling_steps is None else ["--steps", sampling_steps]
            seeded = ["--seed", self.arguments.seed, "--device", self.arguments.device]
            ct2mri("translate", *held_out, "--model", model, "-o", predictions, *seeded, *steps)
            ct2mri("evaluate", predictions, *held_out, "-o", report)
        return report

    def rows(self) -> dict[str, tuple[dict, Path]]:
        """Label → what its run tells, and its report; the 2D stage first."""
        arguments, rows = self.arguments, {}
        if "latent-diffusion" in arguments.methods and arguments.vqvae is None:
            self.train("vqvae")
        for method in arguments.methods:
            run = self.train(method)
            facts = read_json(run / "run.json")
            for steps in (arguments.sampling_steps or [None]) if method in SAMPLED else [None]:
                taken = steps or facts["options"].get("num_inference_steps")
                label = f"{method}, {taken} step{'s' * (taken != 1)}" if method in SAMPLED else method
                rows[label] = (facts, self.measure(method, run, steps))
        return rows


def table(rows: dict[str, tuple[dict, Path]]) -> str:
    """The methods' means over patients, and their paired differences from the first row."""
    facts = {
        label: {"trained steps": f"{run['steps']}", "trained min": f"{run['seconds'] / 60:.1f}"}
        for label, (run, _) in rows.items()
    }
    reports = {label: report for label, (_, report) in rows.items()}
    return paired_table(reports, ("psnr", "ssim", "mae", "ms_gmsd"), DIFFERENCES, facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="a prepared data set")
    parser.add_argument("work", type=Path, help="folder for runs, models, predictions and reports")
    parser.add_argument(
        "--config", required=True, help="preset or YAML file: sections slices, baseline, vqvae"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="optimiser steps of each training; default: as in --config")
    length.add_argument("--minutes", type=float, help="time of each training, validations not counted")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sampling_steps", type=int, nargs="+", help="of the methods that sample")
    parser.add_argument("--vqvae", type=Path, help="run of `train vqvae`; else one is trained for as long")
    parser.add_argument("--split", default="test", choices=["validation", "test"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    if arguments.methods[0] != OURS:
        arguments.methods = [OURS, *(method for method in arguments.methods if method != OURS)]

    # Methods and sampling steps may be added later; what is there already was made by the rest.
    fixed = {"data", "config", "steps", "minutes", "vqvae", "split", "seed"}
    request = {name: str(value) for name, value in vars(arguments).items() if name in fixed}
    record = arguments.work / "request.json"
    if record.is_file() and read_json(record) != request:
        sys.exit(
            f"{arguments.work} was begun with {read_json(record)}, now it is {request}; take another folder."
        )
    write_json(record, request)

    rows = Bench(arguments).rows()
    dataset = PreparedDataset(arguments.data)
    cases = len(dataset.case_ids(arguments.split))
    device = next(iter(rows.values()))[0]["device"]
    print(
        f"ct2mri {__version__}, torch {torch.__version__}, {date.today()}, trained on {device} "
        f"({platform.processor() or platform.machine()}), seed {arguments.seed}, "
        f"{len(dataset.case_ids('train'))} training and {cases} {arguments.split} cases\n"
    )
    print(table(rows))
    if len(rows) > 1:
        reports = [report for _, report in rows.values()]
        ct2mri("compare", *reports, "--names", *rows, "-o", arguments.work / "comparison")


if __name__ == "__main__":
    main()
