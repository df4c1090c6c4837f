"""Make the starter model from nothing: the whole chain of commands on digital phantoms.

    python benchmarks/starter.py WORK                 # about an hour on two CPU cores
    python benchmarks/starter.py WORK --install       # and put the result into the package

Each command resumes, so that a run that was stopped goes on where it was. `benchmarks/quality.py` measures
what comes out of it.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

DESCRIPTION = (
    "The starter model of ct2mri, made by its own commands (benchmarks/starter.py) from digital phantoms of "
    "heads alone; no patient's image was used. It shows that the software works. On a real CT the "
    "outline, the skull and large fluid spaces follow that CT, while the detail inside the brain is that of "
    "phantoms and not that patient's anatomy. It is no medical device, and of no use for other parts of the "
    "body. Phantoms of the seeds (0, 0) to (0, {last}) were drawn for it; the demo's lie beyond."
)
PACKAGE = Path(__file__).resolve().parents[1] / "src" / "ct2mri"


def ct2mri(*words: object) -> None:
    """Run one command of the package, and say how long it took."""
    print("\n$ ct2mri", *words, flush=True)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "ct2mri", *map(str, words)], check=True)
    print(f"# {time.perf_counter() - start:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for data and runs")
    parser.add_argument("--cases", type=int, default=36, help="phantom heads (default: %(default)s)")
    parser.add_argument("--install", action="store_true", help="copy the model into the package")
    arguments = parser.parse_args()

    work = arguments.work
    raw, data, runs, model = work / "raw", work / "data", work / "runs", work / "model"
    trained = ["--data", data, "--config", "demo", "--output_dir"]
    ct2mri("phantom", raw, "--cases", arguments.cases, "--anatomy", "head", "--seed", 0)
    ct2mri(
        *("prepare", raw, data, "--anatomy", "head", "--spacing", 1.5, 1.5, 1.5),
        *("--windows", "[[-1024,3000],[-160,240]]"),
    )
    # Before there are drafts, so that all of so short a training is spent on the targets' edges.
    ct2mri("train", "vqvae", *trained, runs / "vqvae")
    ct2mri("train", "slices", *trained, runs / "slices")
    ct2mri("draft", "--data", data, "--model", runs / "slices", "--allow_seen")
    ct2mri("train", "latents", *trained, runs / "latents", "--vqvae", runs / "vqvae")
    stages = ["--slices", runs / "slices", "--vqvae", runs / "vqvae", "--latents", runs / "latents"]
    ct2mri(
        *("export", *stages, "-o", model, "--half", "--name", "starter (phantom heads)"),
        *("--description", DESCRIPTION.format(last=arguments.cases - 1)),
    )
    # On the test cases: what it does under small changes stands in its card.
    ct2mri("stability", raw, "--data", data, "--model", model, "-o", work / "stability", "--card")
    if arguments.install:
        shutil.copytree(model, PACKAGE / "starter" / "model", dirs_exist_ok=True)


if __name__ == "__main__":
    main()
