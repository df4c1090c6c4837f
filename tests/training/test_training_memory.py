"""Where memory runs out in a training: the same losses in parts, or a sentence that names what would fit.

All run in a process of its own whose memory is really limited.
"""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

LIMITED = """
import csv, os, resource, sys
from pathlib import Path
sys.path[:0] = {tests!r}
import torch
torch.set_num_threads(1)
from training_tiny import Tiny, write_dataset
from ct2mri.errors import RequestError
from ct2mri.training.fit import train_slices, train_vqvae

here = Path({here!r})
tiny = Tiny(write_dataset(here / "data", size=(64, 64, 5)))
LARGE = dict(base_channels=16, batch_size=8, orientations=["axial"], max_steps=2, validate_every=2)

def leave(mib):
    taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (most if mib is None else taken + mib * 2**20, most))

def losses(name):
    with open(here / name / "train.csv") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]

def refusal(train, options):
    try:
        train(options)
    except RequestError as error:
        return str(error)
    return ""

# Once without a limit, so that all libraries are there and what they keep is taken.
train_slices(tiny.slices(here / "free", **LARGE))
"""


def limited(here: Path, body: str) -> list[str]:
    """The lines that a process with the helpers above prints on `body`."""
    tests = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
    program = LIMITED.format(tests=tests, here=str(here)) + body
    # The allocator keeps nothing of what was freed, so that each tensor is asked for anew.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


pytestmark = pytest.mark.skipif(
    not hasattr(resource, "RLIMIT_AS"), reason="the system limits no address space"
)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What each training below printed."""
    lines = limited(
        tmp_path_factory.mktemp("limited"),
        """
print("## from the start")
leave(130)
train_slices(tiny.slices(here / "tight", **LARGE))
print("apart", max(abs(a - b) for a, b in zip(losses("free"), losses("tight"), strict=True)) < 1e-5)
leave(None)

print("## later")
from ct2mri.training.supervisor import Supervisor
save = Supervisor._save

def save_and_tighten(self, trainer):
    save(self, trainer)
    leave(130 if self.step == 1 else None)

Supervisor._save = save_and_tighten
train_slices(tiny.slices(here / "later", **{**LARGE, "validate_every": 1}))
print("apart", max(abs(a - b) for a, b in zip(losses("free"), losses("later"), strict=True)) < 1e-4)

print("## slices")
# How much an item takes beside its tensors depends on the processor, whose libraries take room of their own.
for mib in range(14, 60, 4):
    leave(mib)
    sentence = refusal(train_slices, tiny.slices(here / "none", **LARGE))
    leave(None)
    if "--crop_size" in sentence or not sentence:
        break
print(sentence)

print("## vqvae")
leave(20)
print(refusal(train_vqvae, tiny.vqvae(here / "codes", hidden_channels=[32, 32], crop_size=[64, 64, 4])))
""",
    )
    parts: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("## "):
            found = parts.setdefault(line.removeprefix("## "), [])
        elif parts:
            found.append(line)
    return parts


@pytest.mark.parametrize("when", ["from the start", "later"])
def test_batches_go_through_the_network_in_parts_with_the_same_losses(
    said: dict[str, list[str]], when: str
) -> None:
    """From the last checkpoint on, where memory is taken away later."""
    (told,) = [line for line in said[when] if line.startswith("Memory ran out")]
    assert told.startswith("Memory ran out with batches of 8: each goes through the network in ")
    assert "--accumulate" in told and said[when][-1] == "apart True"


def test_what_cannot_be_trained_is_refused_with_what_would_fit(said: dict[str, list[str]]) -> None:
    (slices,) = said["slices"]
    assert slices.startswith("Memory does not suffice to train slices in batches of 8: one item does not fit")
    assert re.search(
        r"--batch_size 1 --crop_size (8|16|32) would; --gradient_checkpointing takes less", slices
    )
    # A codebook learns from whole batches, so that these do not go through in parts.
    (codes,) = said["vqvae"]
    assert codes.startswith("Memory does not suffice to train vqvae in batches of 4: ")
    assert re.search(r"into the [\d.]+MiB that are free on cpu", codes)
