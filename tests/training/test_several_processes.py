"""The same training on two processes (gloo) as on one: the same losses, one run folder."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from training_tiny import Tiny

from ct2mri.stages import LatentsStage, SlicesStage, load_stage
from ct2mri.training.fit import train_baseline, train_latents, train_slices, train_vqvae

# The tests' folder holds the tiny options.
SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from training_tiny import Tiny
from ct2mri.training.fit import train_baseline, train_latents, train_slices, train_vqvae
tiny, out = Tiny(Path(sys.argv[2])), Path(sys.argv[3])
train_slices(tiny.slices(out / "slices", orientations=["axial"], folds=2, batch_size=2))
train_vqvae(tiny.vqvae(out / "vqvae", batch_size=2))
train_latents(tiny.latents(out / "latents", out / "vqvae", batch_size=2))
for kind in ("mean", "pix2pix", "bridge"):
    train_baseline(tiny.baseline(out / kind, kind, batch_size=2, discriminator_channels=4))
"""


def losses(run: Path) -> list[float]:
    with (run / "train.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_two_processes_do_what_one_does(tiny: Tiny, tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python"]
    worker = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tiny.data), str(two)]
    done = subprocess.run(
        [sys.executable, *words, *worker],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("slices: ") == 2, "the first process alone speaks"

    train_slices(tiny.slices(one / "slices", orientations=["axial"], folds=2, batch_size=4))
    train_vqvae(tiny.vqvae(one / "vqvae", batch_size=4))
    for run in ("slices", "slices/fold-1", "vqvae"):
        assert len(losses(two / run)) == 6
        assert losses(two / run) == pytest.approx(losses(one / run), rel=1e-4)
    # On the very VQ-VAE of the two, since the two VQ-VAEs differ by rounding.
    train_latents(tiny.latents(one / "latents", two / "vqvae", batch_size=4))
    assert losses(two / "latents") == pytest.approx(losses(one / "latents"), rel=1e-4)
    for kind in ("pix2pix", "bridge"):
        train_baseline(tiny.baseline(one / kind, kind, batch_size=4, discriminator_channels=4))
        assert losses(two / kind) == pytest.approx(losses(one / kind), rel=1e-4)
    assert load_stage(two / "mean" / "best").kind == "mean"
    SlicesStage.load_stage(two / "slices" / "fold-1" / "best")
    LatentsStage.load_stage(two / "latents" / "best", vqvae=two / "latents" / "vqvae")
