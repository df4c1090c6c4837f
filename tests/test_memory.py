"""Sizes in words, what is free, and what happens where memory really runs out."""

import mmap
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ct2mri.errors import RequestError
from ct2mri.memory import cgroup_free, format_size, free_memory, is_out_of_memory, parse_size, resident_memory
from ct2mri.room import _host_room
from ct2mri.stages import Execution

CPU = torch.device("cpu")
MIB = 2**20


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 2**33), ("500MB", 500_000_000), ("1.5 gib", 3 * 2**29), ("2048", 2048), ("64 kb", 64_000)],
)
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "8 pounds", "-1GiB", "0", "8GiBs", "nan", f"{'9' * 400}GiB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(RequestError, match="--max_memory is a size such as 8GiB"):
        parse_size(text)


@pytest.mark.parametrize("size", [1, 3 * MIB, 700 * MIB, 2**30, 2**30 + 1, 123_456_789_012])
def test_sizes_in_words_are_never_less(size):
    assert size <= parse_size(format_size(size)) <= max(1.11 * size, MIB)


def write_group(folder: Path, limit: str, used: int, inactive: int, names: tuple[str, str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {inactive}\n")


def test_control_groups_of_version_2(tmp_path):
    names = ("memory.max", "memory.current", "inactive_file")
    own = tmp_path / "cgroup"
    own.write_text("0::/slice/job\n")
    assert cgroup_free(tmp_path, own) >= 2**60
    write_group(tmp_path / "slice" / "job", "max", 10, 0, names)
    assert cgroup_free(tmp_path, own) >= 2**60
    write_group(tmp_path / "slice", "1000", 700, 200, names)  # the limit above holds as well
    assert cgroup_free(tmp_path, own) == 500
    write_group(tmp_path / "slice" / "job", "400", 150, 50, names)
    assert cgroup_free(tmp_path, own) == 300
    assert cgroup_free(tmp_path, tmp_path / "none") >= 2**60


def test_control_groups_of_version_1(tmp_path):
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    own = tmp_path / "cgroup"
    own.write_text("5:cpu,cpuacct:/\n4:memory:/job\n")
    write_group(tmp_path / "memory", str(2**63 - 4096), 10, 0, names)
    assert cgroup_free(tmp_path, own) >= 2**60
    # In a container the path is that of the host, and the container's own group is the root.
    write_group(tmp_path / "memory", "900", 300, 100, names)
    assert cgroup_free(tmp_path, own) == 700


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads what Linux tells")
def test_free_memory_of_this_machine():
    total = 1024 * int(Path("/proc/meminfo").read_text().split()[1])
    assert 0 < free_memory(torch.device("cpu")) < total
    before = resident_memory()
    # Mapped, since an allocator may hand out again what it holds already.
    with mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as ballast:
        ballast.write(b"1" * (64 * MIB))
        assert 60 * MIB < resident_memory() - before < 200 * MIB


def test_other_errors_are_not_out_of_memory():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("could not create a primitive"))
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor for a convolution"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("out of memory"))


# --- in a process whose memory is really limited ---------------------------------------------------------

LIMITED = """
import os, resource, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import tiny
from ct2mri.diffusion import SeededNoise
from ct2mri.errors import RequestError
from ct2mri.memory import free_memory
from ct2mri.stages.execution import Execution, Portion

MIB = 2**20
CPU = torch.device("cpu")

def leave(mib):
    taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + mib * MIB,) * 2)

def work(mib):
    return mib * int(torch.ones(mib * MIB, dtype=torch.uint8).amax())
"""


def limited(body: str) -> str:
    """What a process with the helpers above prints on `body`."""
    program = LIMITED.format(tests=str(Path(__file__).parent)) + body
    # The allocator keeps nothing of what was freed, so that each tensor is asked for anew.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


linux = pytest.mark.skipif(not hasattr(resource, "RLIMIT_AS"), reason="the system limits no address space")


@linux
def test_a_limit_of_the_process_counts_as_what_is_free():
    free = int(limited("leave(300)\nprint(free_memory(CPU))"))
    assert 250 * MIB < free <= 300 * MIB


def test_processes_share_a_card_and_the_main_memory(monkeypatch):
    monkeypatch.setattr("ct2mri.stages.execution.free_memory", lambda _: 24 * MIB)
    monkeypatch.setattr("ct2mri.room.free_memory", lambda _: 24 * MIB)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    three = Execution(sharers=3)  # one of the two cards is given to two of them
    assert three.room(CPU) == 8 * MIB
    assert three.room(torch.device("cuda", 0)) == 12 * MIB
    assert _host_room(three, torch.device("cuda", 0)) == 8 * MIB


@linux
def test_smaller_portions_once_where_memory_runs_out_and_a_sentence_where_it_does_again():
    """Portions said to need next to nothing, so that the work itself meets the limit."""
    said = limited("""
leave(500)
asked = []
def greedy(mib):
    asked.append(mib)
    return work(mib)

def portions(*sizes):
    return [Portion(n, n * 1000, f"{n} MiB") for n in sizes]

execution = Execution()
print(execution.within(CPU, "the trial", portions(800, 600, 400, 100), greedy), asked)
print(*execution.remarks)
asked.clear()
try:
    execution.within(CPU, "the trial", portions(2000, 900, 400), greedy)
except RequestError as error:
    print(asked, error)
""").splitlines()
    assert said[0] == "400 [800, 400]"
    assert said[1].startswith("Memory ran out in the trial with 800 MiB, which was expected to need")
    assert said[1].endswith("it went on with 400 MiB.")
    assert said[2].startswith("[2000, 900] Memory does not suffice for the trial: 400 MiB would fit into")
    assert said[2].endswith("of the cpu's memory are free; free that much, or give a smaller volume.")


@linux
def test_a_stage_goes_on_with_fewer_slices_where_memory_is_taken_from_it():
    said = limited("""
stage = tiny.slices_stage(num_inference_steps=1, batch_size=8)
source = torch.rand(1, 160, 160, 16, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9
expected = stage.sample({"source": source}, SeededNoise(0))
told = []

def tighten(name, step, total):
    told.append(step)
    if len(told) == 1:  # after the first batch of eight
        leave(70)

drawn = stage.sample({"source": source}, SeededNoise(0), tighten)
print(told, float((drawn - expected).abs().max()) < 1e-4)
print(*stage.execution.remarks)
""").splitlines()
    assert said[0].startswith("[8, ") and said[0].endswith("16] True")
    assert "Memory ran out in the slices stage with 8 slices of 160×160 at a time" in said[1]


@linux
@pytest.mark.parametrize("stage", ["slices", "latents"])
def test_what_cannot_fit_is_refused_before_the_work_with_the_size_that_would(stage):
    said = limited(f"""
stage = tiny.{stage}_stage(num_inference_steps=1)
source = torch.rand(1, 96, 96, 32) * 1.8 - 0.9
leave(30)
try:
    stage.sample({{"source": source, "draft": source}}, SeededNoise(0))
except RequestError as error:
    print(error)
""")
    assert "would fit into" in said and "of the cpu's memory are free" in said
    assert len(said.strip().splitlines()) == 1


@linux
def test_a_volume_too_large_for_the_3d_stage_goes_through_tiles_and_windows():
    said = limited("""
stage = tiny.latents_stage(num_inference_steps=2)
draft = torch.rand(1, 256, 128, 128, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9
condition = {"source": draft, "draft": draft}
whole = stage.sample(condition, SeededNoise(0))
latents = stage.encode_standardised(draft)
print(stage.execution.remarks)
leave(100)
torch.testing.assert_close(stage.encode_standardised(draft), latents, atol=1e-4, rtol=0)
drawn = stage.sample(condition, SeededNoise(0))
print(*stage.execution.remarks)
print(bool(drawn.isfinite().all()), float((drawn - whole).abs().mean()), float(whole.std()))
""").splitlines()
    assert said[0] == "[]"
    assert re.search(r"looked at the volume through \d × \d × \d overlapping windows", said[1])
    finite, difference, deviation = said[2].split()
    assert finite == "True"
    assert 0 < float(difference) < float(deviation) / 4


@pytest.mark.slow  # where memory runs out, and so what is left to say it with, differs from run to run
@linux
def test_where_nothing_smaller_is_known_the_command_ends_with_a_sentence():
    """What `evaluate` compares cannot be compared in parts."""
    said = limited("""
import io, tempfile
from pathlib import Path
import numpy as np
from ct2mri.cli import main
from ct2mri.data.io import save_volume
from ct2mri.data.volume import Volume
import ct2mri.evaluation.evaluate

here = Path(tempfile.mkdtemp())
array = np.random.default_rng(0).random((96, 96, 96), dtype=np.float32)
save_volume(Volume(array, np.eye(4)), here / "a.nii.gz")
sys.stderr = io.StringIO()
words = ["evaluate", str(here / "a.nii.gz"), str(here / "a.nii.gz")]
leave(60)
print(main(words))
leave(2)
print(main(["phantom", str(here / "phantoms"), "--cases", "1"]))
print(*[line for line in sys.stderr.getvalue().splitlines() if line.startswith("ct2mri: ")], sep="\\n")
""").splitlines()
    assert said[0] in ("1", "2") and said[1] == "1"
    # Where among the work memory ends, and so what the library says of it, differs from run to run.
    assert said[2].startswith("ct2mri: ") and "memory ran out" in said[2]
    assert said[3].startswith("ct2mri: memory ran out") and "free some, or give smaller volumes" in said[3]
