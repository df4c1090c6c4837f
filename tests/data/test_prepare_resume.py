"""Killing `prepare` at every file it touches, for real; and patients who come later."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prepare_tiny import ellipsoid, run, write_patients

from ct2mri.data.cases import PreparedDataset
from ct2mri.data.io import save_volume
from ct2mri.data.prepare import prepare
from ct2mri.data.splits import side_of_newcomer
from ct2mri.errors import CasesLeftOutError, RequestError
from ct2mri.options.data import PrepareOptions

# Runs `prepare` in a child that dies by SIGKILL just before the n-th change of a file under the data set,
# then again to the end, for each n asked for; copies what it finds to judge it outside.
DRIVER = """
import os, shutil, signal, sys
from pathlib import Path
from ct2mri.data import io, pairs, phantom, prepare_case  # imported before the forks, once
from ct2mri.data.prepare import prepare
from ct2mri.options.data import PrepareOptions

raw, base, work = map(Path, sys.argv[1:4])
step = int(sys.argv[4])

def run(dataset, kill_at):
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    seen = 0

    def hook(event, arguments):
        nonlocal seen
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir") or (
            event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        )
        if changes and str(dataset) in str(arguments[0]):
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    prepare(PrepareOptions(raw=raw, dataset=dataset, workers=0))
    os._exit(0)

kill_at = 1
while True:
    dataset = work / f"{kill_at:03d}"
    if base.is_dir():
        shutil.copytree(base, dataset)
    killed = run(dataset, kill_at)
    if killed == 0:
        break
    assert killed == signal.SIGKILL, killed
    assert run(dataset, 0) == 0, kill_at
    kill_at += step
"""


def contents(dataset):
    """Every file of a data set, by name: bytes of arrays, JSON without what tells when it was made."""
    return {
        str(path.relative_to(dataset)): path.read_bytes() for path in dataset.rglob("*") if path.is_file()
    }


def kill_at_every(step, raw, base, work):
    work.mkdir()
    arguments = [str(raw), str(base), str(work), str(step)]
    subprocess.run([sys.executable, "-c", DRIVER, *arguments], check=True, timeout=600)
    return sorted(work.iterdir())


def compare(folders, whole):
    expected = contents(whole)
    assert len(folders) > 5
    for folder in folders:
        found = contents(folder)
        assert found.keys() == expected.keys(), folder.name
        for name in expected:
            assert found[name] == expected[name], (folder.name, name)


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_file_goes_on_to_the_same_data_set(tmp_path, step):
    raw = write_patients(tmp_path / "raw", range(3))
    run(raw, tmp_path / "whole")
    compare(kill_at_every(step, raw, tmp_path / "none", tmp_path / "sets"), tmp_path / "whole")


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_adding_patients_killed_at_any_file_goes_on_to_the_same_data_set(tmp_path, step):
    raw = write_patients(tmp_path / "raw", range(3))
    run(raw, tmp_path / "base")
    before = contents(tmp_path / "base")
    write_patients(raw, range(3, 6))
    folders = kill_at_every(step, raw, tmp_path / "base", tmp_path / "sets")
    whole = folders[-1]  # the last one was never killed
    compare(folders, whole)
    assert PreparedDataset(whole).case_ids() == [f"p{n}" for n in range(6)]
    after = contents(whole)
    assert all(after[name] == before[name] for name in before if name.startswith("cases/"))


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_killed_command_leaves_no_worker_and_prepares_the_rest(tmp_path):
    raw = write_patients(tmp_path / "raw", range(6), size=48, edge=2.0)
    dataset = tmp_path / "set"
    command = [sys.executable, "-m", "ct2mri", "prepare", str(raw), str(dataset), "--workers", "2"]

    def killed_when(there):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not there():
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        workers = children(process.pid)
        assert len(workers) == 2
        process.send_signal(signal.SIGKILL)
        process.wait()
        for _ in range(100):
            if not any(Path(f"/proc/{pid}").exists() for pid in workers):
                return
            time.sleep(0.1)
        raise AssertionError("a worker outlived its command")

    looks = dataset / ".unfinished-looks.jsonl"
    killed_when(lambda: looks.is_file() and looks.read_text().count("facts") >= 2)
    looked = [json.loads(line)["key"][0] for line in looks.read_text().splitlines() if line]
    assert 2 <= len(looked) < 6
    killed_when(lambda: len(list(dataset.glob("cases/p*/case.json"))) >= 2)
    assert not (dataset / "plan.json").exists()
    with pytest.raises(RequestError, match="not prepared to the end"):
        PreparedDataset(dataset)
    times = {path: path.stat().st_mtime_ns for path in dataset.glob("cases/p*/case.json")}
    assert 2 <= len(times) < 6
    done = subprocess.run([*command, "--strict"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Going on with the plan" in done.stdout
    assert done.stdout.count("is up to date") == len(times)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    run(raw, tmp_path / "whole")
    assert contents(dataset) == contents(tmp_path / "whole")


def children(pid):
    """Worker processes that a process started; not Python's own helper that tracks resources."""
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for child in pids if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_new_patients_come_to_a_side_by_name_and_seed_and_the_rest_stays(tmp_path, capsys):
    raw = write_patients(tmp_path / "raw", range(4))
    (raw / "p3" / "mr.nii.gz").rename(tmp_path / "mr.nii.gz")
    before = run(raw, tmp_path / "set", test_fraction=0.4, validation_fraction=0.2).plan
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").glob("cases/*/*")}
    (tmp_path / "mr.nii.gz").rename(raw / "p3" / "mr.nii.gz")  # repaired: now it is new
    write_patients(raw, range(4, 12))
    capsys.readouterr()
    dataset = run(raw, tmp_path / "set", test_fraction=0.4, validation_fraction=0.2)
    out = capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert out.count("is up to date") == 3 and "New patients for the test: p" in out
    options = PrepareOptions(raw=raw, dataset=raw, test_fraction=0.4, validation_fraction=0.2)
    for number in range(12):
        name = f"p{number}"
        known = before.split.side(name)
        assert dataset.plan.split.side(name) == (known or side_of_newcomer(name, options, None))
    assert (dataset.plan.target_range, dataset.plan.fingerprint) == (before.target_range, before.fingerprint)
    # Those who come one after the other come to the same sides.
    other = write_patients(tmp_path / "other", [0, 1, 2, 9])
    run(other, tmp_path / "set2", test_fraction=0.4, validation_fraction=0.2)
    write_patients(other, [11])
    run(other, tmp_path / "set2", test_fraction=0.4, validation_fraction=0.2)
    again = run(write_patients(other, [10]), tmp_path / "set2", test_fraction=0.4, validation_fraction=0.2)
    assert again.plan.split.side("p11") == dataset.plan.split.side("p11")
    assert again.plan.split.side("p10") == dataset.plan.split.side("p10")


def test_the_share_of_newcomers_on_each_side_is_the_share_asked_for():
    options = PrepareOptions(raw=Path(), dataset=Path(), test_fraction=0.2, validation_fraction=0.1)
    sides = [side_of_newcomer(f"patient {n}", options, None) for n in range(3000)]
    assert abs(sides.count("test") / 3000 - 0.2) < 0.03
    assert abs(sides.count("validation") / 3000 - 0.1) < 0.03
    assert side_of_newcomer("x", options, {"train": ["x"], "validation": [], "test": []}) == "train"
    assert side_of_newcomer("y", options, {"train": ["x"], "validation": [], "test": []}) is None


def test_a_patient_taken_out_of_the_split_stays_out(tmp_path, capsys):
    raw = write_patients(tmp_path / "raw", range(4))
    dataset = run(raw, tmp_path / "set")
    path = tmp_path / "set" / "plan.json"
    content = json.loads(path.read_text())
    taken = dataset.plan.split.train[0]
    content["split"]["train"].remove(taken)
    path.write_text(json.dumps(content))
    for _ in range(2):
        assert taken not in run(raw, tmp_path / "set").case_ids()
        assert f"left out: {taken}: its patient is on no side" in capsys.readouterr().out
    content["split"]["test"].append(taken)
    path.write_text(json.dumps(content))
    assert taken in run(raw, tmp_path / "set").case_ids("test")


def test_a_split_file_may_name_more_patients_later(tmp_path):
    raw = write_patients(tmp_path / "raw", range(3))
    told = {"train": ["p0"], "validation": ["p1"], "test": ["p2"]}
    (raw / "splits.json").write_text(json.dumps(told))
    run(raw, tmp_path / "set")
    write_patients(raw, [3, 4])
    told["test"].append("p3")
    (raw / "splits.json").write_text(json.dumps(told))
    dataset = run(raw, tmp_path / "set")
    assert dataset.case_ids("test") == ["p2", "p3"] and "p4" not in dataset.case_ids()
    (raw / "splits.json").write_text(json.dumps(told | {"train": ["p1"], "validation": ["p0"]}))
    with pytest.raises(RequestError, match="with another split file"):
        run(raw, tmp_path / "set")


def test_a_second_delivery_in_a_folder_of_its_own_joins_the_data_set(tmp_path, capsys):
    run(write_patients(tmp_path / "first", range(3)), tmp_path / "set")
    second = write_patients(tmp_path / "second", [3])
    dataset = run(second, tmp_path / "set")
    assert dataset.case_ids() == ["p0", "p1", "p2", "p3"]
    assert "Not in this raw folder, and kept: 3 cases" in capsys.readouterr().out
    # By another plan they would be of two kinds, so those that cannot be made again go.
    path = tmp_path / "set" / "plan.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"spacing": [7.0, 7.0, 7.0]}))
    assert run(second, tmp_path / "set").case_ids() == ["p3"]


def test_cases_that_take_the_place_of_others_of_their_name_are_told_before_they_do(tmp_path, capsys):
    """Two hospitals number their patients alike, and nothing in NIfTI tells whose images they are."""
    run(write_patients(tmp_path / "first", range(3)), tmp_path / "set")
    second = tmp_path / "second"
    for number in (1, 3):
        ct, mr = ellipsoid(number + 10)
        save_volume(ct, second / f"p{number}" / "ct.nii.gz")
        save_volume(mr, second / f"p{number}" / "mr.nii.gz")
    assert "other files" not in capsys.readouterr().out
    prepare(PrepareOptions(raw=second, dataset=tmp_path / "set", dry_run=True))
    assert "1 case of the data set was prepared of other files than these (p1)" in capsys.readouterr().out
    run(second, tmp_path / "set")
    assert "other files than these (p1)" in capsys.readouterr().out
    run(second, tmp_path / "set")
    assert "other files" not in capsys.readouterr().out


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path, capsys):
    raw = write_patients(tmp_path / "raw", range(4))
    (raw / "p3" / "mr.nii.gz").unlink()
    prepare(PrepareOptions(raw=raw, dataset=tmp_path / "set", dry_run=True, anatomy="head"))
    out = capsys.readouterr().out
    assert "Layout pairs: 3 pairs of 3 patients" in out and "p1: ct.nii.gz and mr.nii.gz of patient p1" in out
    assert "voxels of the median size" in out and "-160 to 240 HU" in out and "left out: p3" in out
    assert "anatomy head" in out
    assert "To prepare: 3 cases; up to date: 0; left out: 1; who is trained on" in out
    assert not (tmp_path / "set").exists()
    with pytest.raises(CasesLeftOutError, match="Left out would be 1 case"):
        prepare(PrepareOptions(raw=raw, dataset=tmp_path / "set", dry_run=True, strict=True))
    run(raw, tmp_path / "set")
    write_patients(raw, [4])
    before = contents(tmp_path / "set")
    capsys.readouterr()
    prepare(PrepareOptions(raw=raw, dataset=tmp_path / "set", dry_run=True))
    out = capsys.readouterr().out
    assert "To prepare: 1 case; up to date: 3; left out: 1." in out
    assert contents(tmp_path / "set") == before
    (raw / "splits.json").write_text(json.dumps({"train": ["p0", "p1"], "test": ["p2"]}))
    prepare(PrepareOptions(raw=raw, dataset=tmp_path / "told", dry_run=True))
    out = capsys.readouterr().out
    assert "of patient p2 (test) would be prepared" in out and "left out: p4: its patient is not in" in out
    (raw / "splits.json").unlink()
    with pytest.raises(RequestError, match="another seed"):
        prepare(PrepareOptions(raw=raw, dataset=tmp_path / "set", dry_run=True, seed=3))


def test_strict_prepares_all_it_can_and_then_says_that_some_were_left_out(tmp_path):
    raw = write_patients(tmp_path / "raw", range(4))
    (raw / "p3" / "mr.nii.gz").write_bytes(b"damaged")
    with pytest.raises(CasesLeftOutError, match="Left out were 1 case"):
        run(raw, tmp_path / "set", strict=True)
    assert PreparedDataset(tmp_path / "set").case_ids() == ["p0", "p1", "p2"]
    words = ["prepare", str(raw), str(tmp_path / "set"), "--strict", "--workers", "1"]
    done = subprocess.run([sys.executable, "-m", "ct2mri", *words], capture_output=True, text=True)
    assert done.returncode == 1 and "Left out were 1 case" in done.stderr.splitlines()[-1]
