"""The same training on two processes (gloo) as on one: the same losses, one run folder."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
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
from ct2mri.data.datasets import SliceDataset
from ct2mri.processes import place
from ct2mri.training.fit import train_baseline, train_latents, train_slices, train_vqvae
tiny, out = Tiny(Path(sys.argv[2])), Path(sys.argv[3])
read, log = SliceDataset.__getitem__, (out / f"read-by-{place().rank}.txt")
out.mkdir(exist_ok=True)


def logging(self, request):
    with log.open("a") as file:
        print(request.batch, request.place, request.index, file=file)
    return read(self, request)


SliceDataset.__getitem__ = logging
train_slices(tiny.slices(out / "slices", orientations=["axial"], folds=2, batch_size=2))
train_vqvae(tiny.vqvae(out / "vqvae", batch_size=2))
train_latents(tiny.latents(out / "latents", out / "vqvae", batch_size=2))
for kind in ("mean", "pix2pix", "bridge"):
    train_baseline(tiny.baseline(out / kind, kind, batch_size=2, discriminator_channels=4))
"""

FOREVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from training_tiny import Tiny
import ct2mri.cli as cli
options = Tiny(Path(sys.argv[2])).slices(Path(sys.argv[3]), batch_size=2)
options.max_steps = options.validate_every = 10**6
cli.parse = lambda name, words: options
sys.exit(cli.main(["train", "slices"]))
"""


def losses(run: Path) -> list[float]:
    with (run / "train.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def check_shares(out: Path) -> None:
    """Each process read half of each batch, and only that."""
    # Batch 0 aside: the first process also measures one, to say what to expect.
    read = [
        {line for line in (out / f"read-by-{rank}.txt").read_text().splitlines() if line.split()[0] != "0"}
        for rank in (0, 1)
    ]
    assert not read[0] & read[1]
    places = [{int(line.split()[1]) for line in lines} for lines in read]
    assert places == [{0, 1}, {2, 3}]


def test_a_process_that_dies_ends_the_training_of_the_other(tiny: Tiny, tmp_path: Path) -> None:
    """Two processes as `srun` starts them, where nobody else looks after them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    run = tmp_path / "run"
    words = [sys.executable, "-c", FOREVER, str(Path(__file__).parent), str(tiny.data), str(run)]
    slurm = {"STEP_NUM_TASKS": "2", "STEP_NUM_NODES": "1", "STEP_NODELIST": "localhost", "JOB_ID": "7"}
    processes = [
        subprocess.Popen(
            words,
            env=os.environ
            | {f"SLURM_{name}": value for name, value in slurm.items()}
            | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
            | {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    table, deadline = run / "train.csv", time.monotonic() + 300
    while not (table.exists() and len(table.read_text().splitlines()) > 5):
        assert all(process.poll() is None for process in processes) and time.monotonic() < deadline
        time.sleep(0.05)
    processes[1].kill()
    _, said = processes[0].communicate(timeout=120)
    assert processes[1].wait(10) == -signal.SIGKILL
    assert processes[0].returncode == 1
    assert "ct2mri: another of the processes ended early" in said.splitlines()[-1]


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
    check_shares(two)

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
