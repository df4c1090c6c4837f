"""Many volumes shared out among processes: each once, none lost, whoever dies."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

import tiny
from ct2mri.data.geometry import to_sitk
from ct2mri.data.io import load_volume, save_volume
from ct2mri.errors import RequestError
from ct2mri.options.translation import TranslateOptions
from ct2mri.stage_files import file_hash
from ct2mri.translate import translate
from kills import killed_after

STEPS = 4
"""Enough that a case takes a while, and a process is met at work."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "slices"
    tiny.pipeline(latents=None).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Seven CTs, the fourth of which is no CT."""
    folder = tmp_path_factory.mktemp("cohort") / "cts"
    for number in range(7):
        save_volume(tiny.ct((40, 44, 36), seed=number), folder / f"c{number}.nii.gz")
    (folder / "c3.nii.gz").write_bytes(b"nothing")
    return folder


GOOD = ["c0", "c1", "c2", "c4", "c5", "c6"]


def run(cohort, output, model, **options):
    translate(
        TranslateOptions(input=cohort, output=output, model=model, device="cpu", steps=STEPS, **options)
    )


def done(output: Path) -> list[str]:
    return sorted(path.name.removesuffix(".nii.gz") for path in output.glob("c*.nii.gz"))


def times(output: Path) -> dict[str, int]:
    return {name: (output / f"{name}.nii.gz").stat().st_mtime_ns for name in done(output)}


def check_all(output: Path, model: str, cohort: Path) -> None:
    """All good CTs are translated, whole, with their sidecars, and nothing else lies there."""
    assert done(output) == GOOD
    files = {path.name for path in output.iterdir() if not path.name.startswith("translate-summary")}
    assert files == {f"{name}.{suffix}" for name in GOOD for suffix in ("json", "nii.gz")}
    pipeline = tiny.pipeline(latents=None)
    for name in (GOOD[0], GOOD[-1]):
        expected = pipeline(load_volume(cohort / f"{name}.nii.gz"), num_inference_steps=STEPS)
        result = load_volume(output / f"{name}.nii.gz")
        np.testing.assert_allclose(result.array, expected.array, rtol=1e-4, atol=1e-3)


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    with (folder / "said").open("w") as said:
        return subprocess.Popen(
            [sys.executable, "-m", *words],
            stdout=said,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )


def command(cohort: Path, output: Path, model: str) -> list[str]:
    words = ["ct2mri", "translate", str(cohort), "-o", str(output), "--model", model]
    return [*words, "--device", "cpu", "--steps", str(STEPS)]


def children(pid: int, word: str) -> list[int]:
    """Processes below another one whose command line holds a word."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        line = Path(f"/proc/{child}/cmdline")
        if line.exists() and word in line.read_bytes().decode():
            found.append(int(child))
    return found


def kill_one(process: subprocess.Popen[str], word: str, output: Path) -> None:
    """Kill one of the processes that a command started, when two cases are done."""
    deadline = time.monotonic() + 300
    while len(done(output)) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    workers = children(process.pid, word)
    assert len(workers) == 2
    os.kill(workers[-1], signal.SIGKILL)


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def test_shares_are_disjoint_and_whole(model, cohort, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RequestError, match=r"1 of 3 could not be translated \(c3\).*summary-2-of-2"):
        run(cohort, out, model, share="2/2")
    assert done(out) == ["c1", "c5"]
    before = times(out)
    run(cohort, out, model, share="1/2")
    check_all(out, model, cohort)
    assert times(out).items() >= before.items()
    summary = json.loads((out / "translate-summary-1-of-2.json").read_text())
    assert (summary["translated"], summary["done_before"]) == (4, 0)
    run(cohort, out, model, share="5/5")
    summary = json.loads((out / "translate-summary-5-of-5.json").read_text())
    assert (summary["translated"], summary["done_before"]) == (0, 1), "other shares know what is done"


def test_what_cannot_be_shared_is_refused(model, cohort, tmp_path, monkeypatch):
    for share in ("0/2", "3/2", "2", "1/0", "-1/2", "a/b"):
        with pytest.raises(RequestError, match=rf"I/N.*got {share}; .*SLURM_ARRAY_TASK_ID"):
            run(cohort, tmp_path / "out", model, share=share)
    with pytest.raises(RequestError, match="--processes is -1"):
        run(cohort, tmp_path / "out", model, processes=-1)
    for given in ({"processes": 2}, {"share": "1/2"}):
        with pytest.raises(RequestError, match="is one CT, which several processes cannot share"):
            run(cohort / "c0.nii.gz", tmp_path / "mr.nii.gz", model, **given)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RequestError, match="torchrun or srun started 2 processes"):
        run(cohort, tmp_path / "out", model, processes=2)
    assert not list(tmp_path.iterdir())


@needs_proc
def test_a_killed_worker_costs_one_case_and_the_next_run_does_it(model, cohort, tmp_path):
    out = tmp_path / "out"
    process = start([*command(cohort, out, model), "--processes", "2"], tmp_path)
    kill_one(process, "spawn_main", out)
    assert process.wait(300) == 2, (tmp_path / "said").read_text()
    summary = json.loads((out / "translate-summary.json").read_text())
    failed = set(summary["failed"])
    # Only a worker that was killed between two cases takes none with it.
    assert {"c3"} <= failed and len(failed) <= 2
    assert summary["translated"] == 7 - len(failed)
    # One that was killed just after its result got its name has left it, whole.
    assert len(done(out)) - summary["translated"] in (0, 1)
    if len(failed) == 2:
        (lost,) = failed - {"c3"}
        assert "SIGKILL" in summary["failed"][lost] and "--processes" in summary["failed"][lost]
    before = times(out)
    with pytest.raises(RequestError, match=r"1 of 7 could not be translated \(c3\)"):
        run(cohort, out, model)
    check_all(out, model, cohort)
    assert times(out).items() >= before.items(), "nothing was done twice"


@needs_proc
def test_torchrun_shares_out_survives_a_death_and_goes_on(model, cohort, tmp_path):
    out = tmp_path / "out"
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    process = start([*torchrun, *command(cohort, out, model)], tmp_path)
    kill_one(process, "ct2mri", out)
    assert process.wait(300) != 0
    assert "Signal 9 (SIGKILL)" in (tmp_path / "said").read_text(), "it ends with what befell the process"
    assert not (out / "translate-summary.json").exists()
    before = times(out)
    assert 2 <= len(before) < len(GOOD)

    # One bad CT does not keep the other process from its share.
    assert start([*torchrun, *command(cohort, out, model)], tmp_path).wait(300) != 0
    check_all(out, model, cohort)
    assert times(out).items() >= before.items(), "nothing was done twice"
    summary = json.loads((out / "translate-summary.json").read_text())
    assert (summary["translated"], summary["done_before"]) == (6 - len(before), len(before))
    assert list(summary["failed"]) == ["c3"]
    said = (tmp_path / "said").read_text()
    assert said.count(f"{6 - len(before)} translated, {len(before)} done before, 1 failed") == 1


# --- what lies in the place of a result ------------------------------------------------------------------


@pytest.fixture
def two_cts(tmp_path):
    folder = tmp_path / "cts"
    for seed, name in enumerate("ab"):
        save_volume(tiny.ct(seed=seed), folder / f"{name}.nii.gz")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["out/b.nii.gz", "out/b.json", "sd/b.nii.gz", "sd/b.json"])
def test_what_is_no_result_is_refused_before_the_work(name, model, two_cts, tmp_path):
    spread = {"samples": 2, "uncertainty": tmp_path / "sd"}
    foreign = tmp_path / name
    foreign.parent.mkdir()
    foreign.write_bytes(b'{"precious": true}')
    before = files(tmp_path)
    why = "has no sidecar b.json" if name.endswith(".gz") else "is no sidecar of a result and would be lost"
    with pytest.raises(RequestError, match=rf"{name} {why}.*another output folder, or --overwrite"):
        run(two_cts, tmp_path / "out", model, **spread)
    assert files(tmp_path) == before
    run(two_cts, tmp_path / "out", model, overwrite=True, **spread)
    assert foreign.read_bytes() != b'{"precious": true}'
    run(two_cts, tmp_path / "out", model, **spread)


def test_results_in_the_place_of_spreads_are_refused(model, two_cts, tmp_path):
    run(two_cts, tmp_path / "first", model, samples=2)
    before = files(tmp_path)
    with pytest.raises(RequestError, match=r"first/a.nii.gz was written with another content"):
        run(two_cts, tmp_path / "second", model, samples=2, uncertainty=tmp_path / "first")
    assert files(tmp_path) == before


def test_a_spread_that_is_asked_for_later_goes_with_results_of_the_same_settings(model, two_cts, tmp_path):
    run(two_cts, tmp_path / "out", model)
    before = files(tmp_path)
    with pytest.raises(RequestError, match=r"out/a.nii.gz was written with another samples"):
        run(two_cts, tmp_path / "out", model, samples=2, uncertainty=tmp_path / "sd")
    assert files(tmp_path) == before
    run(two_cts, tmp_path / "more", model, samples=2)
    run(two_cts, tmp_path / "more", model, samples=2, uncertainty=tmp_path / "sd")
    assert sorted(files(tmp_path / "sd")) == ["a.json", "a.nii.gz", "b.json", "b.nii.gz"]


# --- what results were made of ---------------------------------------------------------------------------


def summary(output: Path) -> tuple[int, int]:
    told = json.loads((output / "translate-summary.json").read_text())
    return told["translated"], told["done_before"]


def test_results_of_another_patient_of_that_name_are_not_taken_for_done(model, tmp_path):
    for seed, folder in enumerate(("sA", "sB")):
        save_volume(tiny.ct(seed=seed), tmp_path / folder / "001.nii")
    times = (1e9, 1e9)
    for folder in ("sA", "sB"):  # of one size and one time, as out of an archive that keeps no times
        os.utime(tmp_path / folder / "001.nii", times)
    spread = {"samples": 2, "uncertainty": tmp_path / "sd"}
    run(tmp_path / "sA", tmp_path / "out", model, **spread)
    before = files(tmp_path)
    with pytest.raises(
        RequestError, match=r"out/001.nii.gz was made of another source than .*sB/001.nii; give"
    ):
        run(tmp_path / "sB", tmp_path / "out", model, **spread)
    save_volume(tiny.ct(seed=2), tmp_path / "sA" / "001.nii")
    os.utime(tmp_path / "sA" / "001.nii", times)
    with pytest.raises(
        RequestError, match=r"out/001.nii.gz was made of another source than .*sA/001.nii; give"
    ):
        run(tmp_path / "sA", tmp_path / "out", model, **spread)
    assert files(tmp_path / "out") == {
        name.removeprefix("out/"): content for name, content in before.items() if name.startswith("out/")
    }
    run(tmp_path / "sB", tmp_path / "out", model, overwrite=True, **spread)
    run(tmp_path / "sB", tmp_path / "out", model, **spread)
    assert summary(tmp_path / "out") == (0, 1)


def name_voxels(header: Path, name: str) -> None:
    """Give the voxels of a MetaImage a name and a place of their own."""
    voxels = header.with_suffix(".raw")
    (header.parent / name).parent.mkdir(exist_ok=True)
    voxels.replace(header.parent / name)
    header.write_text(header.read_text().replace(voxels.name, name))


def test_a_source_is_the_same_wherever_it_lies(model, two_cts, tmp_path, write_dicom_slice, monkeypatch):
    (two_cts / "b.nii.gz").unlink()
    voxels = tiny.ct((20, 22, 9), np.eye(4)).array
    for k in range(9):
        stored = (voxels[:, :, k].T + 1024).round().astype(np.int16)
        write_dicom_slice(two_cts / "c" / f"{k}.dcm", stored, (0, 0, 4.0 * k), PixelSpacing=[4, 4])
    SimpleITK.WriteImage(to_sitk(tiny.ct(seed=3)), two_cts / "d.mhd")
    name_voxels(two_cts / "d.mhd", "../voxels/of d.raw")
    run(two_cts, tmp_path / "out", model)
    assert summary(tmp_path / "out") == (3, 0)
    with monkeypatch.context() as patch:  # what lies as it did is not even read
        patch.setattr("ct2mri.translation_inputs.file_hash", None)
        run(two_cts, tmp_path / "out", model)
    assert summary(tmp_path / "out") == (0, 3)

    copies = tmp_path / "copies"
    shutil.copytree(two_cts, copies, copy_function=shutil.copyfile)
    for k in range(9):
        (copies / "c" / f"{k}.dcm").rename(copies / "c" / f"image {9 - k}.dcm")
    (copies / "c" / ".DS_Store").write_text("hidden")
    (copies / "c" / "notes.txt").write_text("passed over")
    run(copies, tmp_path / "out", model)
    assert summary(tmp_path / "out") == (0, 3)
    (copies / "c" / "image 1.dcm").rename(tmp_path / "away")
    with pytest.raises(RequestError, match=r"out/c.nii.gz was made of another source than .*copies/c; give"):
        run(copies, tmp_path / "out", model)
    (tmp_path / "away").rename(copies / "c" / "image 1.dcm")
    SimpleITK.WriteImage(to_sitk(tiny.ct(seed=4)), copies / "d.mhd")
    name_voxels(copies / "d.mhd", "../voxels/of d.raw")
    with pytest.raises(RequestError, match=r"out/d.nii.gz was made of another source than .*copies/d.mhd; g"):
        run(copies, tmp_path / "out", model)


def test_voxels_belong_to_their_header_whatever_they_are_called(model, tmp_path):
    cts, image = tmp_path / "cts", to_sitk(tiny.ct(seed=3))
    cts.mkdir()
    voxels = SimpleITK.GetArrayFromImage(image).tobytes()
    SimpleITK.WriteImage(image, cts / "a.mhd")
    (cts / "a.raw").rename(cts / "voxels of a")
    (cts / "a.mhd").write_text((cts / "a.mhd").read_text().replace("a.raw", "voxels of a"))
    listed = (cts / "a.mhd").read_text().replace("voxels of a", "LIST")
    size = len(voxels) // 17
    for k in range(17):
        (cts / f"slice {k}").write_bytes(voxels[k * size : (k + 1) * size])
        listed += f"slice {k}\n"
    (cts / "b.mha").write_text(listed)
    header = (
        "NRRD0004\ntype: float\ndimension: 3\nsizes: 19 24 17\nspace: LPS\nencoding: raw\nendian: little\n"
    )
    header += "space directions: (3,0,0) (0,3,0) (0,0,3)\nspace origin: (0,0,0)\n"
    (cts / "c.nrrd").write_text(header + "data file: voxels of c\n")
    (cts / "voxels of c").write_bytes(voxels)
    (cts / "d.nrrd").write_bytes((header + "\n").encode() + voxels)
    run(cts, tmp_path / "out", model)
    assert summary(tmp_path / "out") == (4, 0)
    (cts / "a.txt").write_text("a remark on a")
    run(cts, tmp_path / "out", model)
    assert summary(tmp_path / "out") == (0, 4)
    for name, header_name in (("voxels of a", "a.mhd"), ("slice 3", "b.mha"), ("voxels of c", "c.nrrd")):
        before = (cts / name).read_bytes()
        (cts / name).write_bytes(before[::-1])
        with pytest.raises(RequestError, match=rf"was made of another source than .*cts/{header_name}; give"):
            run(cts, tmp_path / "out", model)
        (cts / name).write_bytes(before)


@pytest.mark.skipif(sys.platform != "linux", reason="Other systems know no such names.")
def test_names_that_are_no_text(model, tmp_path):
    """As files have them that a disk of another system brought: here, Latin-1."""
    cts = tmp_path / "cts"
    for suffix, name in (("nii.gz", b"Jos\xe9.nii.gz"), ("mha", b"Zo\xeb.mha")):
        save_volume(tiny.ct(), cts / f"a.{suffix}")
        (cts / f"a.{suffix}").rename(cts / os.fsdecode(name))
    command = [sys.executable, "-m", "ct2mri", "translate", str(cts), "-o", str(tmp_path / "out")]
    command += ["--model", model, "--device", "cpu"]
    environment = {**os.environ, "PYTHONUTF8": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert "Jos\\udce9.nii.gz: synthetic MR in arbitrary MR units" in ended.stdout, ended.stderr
    assert "FAILED Zo\\udceb: The path of Zo\\udceb.mha is no text" in ended.stderr
    assert (ended.returncode, summary(tmp_path / "out")) == (2, (1, 0))


def test_a_result_inside_a_mask_is_none_of_a_cohort(model, two_cts, tmp_path):
    (two_cts / "b.nii.gz").unlink()
    save_volume(tiny.ct().with_array(np.ones_like(tiny.ct().array)), tmp_path / "mask.nii.gz")
    run(two_cts / "a.nii.gz", tmp_path / "out" / "a.nii.gz", model, mask=tmp_path / "mask.nii.gz")
    with pytest.raises(RequestError, match=r"out/a.nii.gz was made of another mask; give another output"):
        run(two_cts, tmp_path / "out", model)
    run(two_cts / "a.nii.gz", tmp_path / "out" / "a.nii.gz", model, overwrite=True)
    run(two_cts, tmp_path / "out", model)
    assert summary(tmp_path / "out") == (0, 1)


def test_a_sidecar_tells_what_a_result_was_made_of_in_hashes_alone(model, two_cts, tmp_path):
    run(two_cts, tmp_path / "out", model)
    sidecar = tmp_path / "out" / "a.json"
    facts = json.loads(sidecar.read_text())
    told = facts.pop("inputs")
    assert told["source"] == file_hash(two_cts / "a.nii.gz") and told["mask"] is None
    assert re.fullmatch("[0-9a-f]{64}", told["state"]) and set(told) == {"source", "mask", "state"}
    sidecar.write_text(json.dumps(facts))  # as earlier versions left it
    before = files(tmp_path)
    with pytest.raises(
        RequestError, match=r"The sidecar of .*a.nii.gz, of an earlier version, does not tell"
    ):
        run(two_cts, tmp_path / "out", model)
    assert files(tmp_path) == before
    run(two_cts, tmp_path / "out", model, overwrite=True)
    run(two_cts, tmp_path / "out", model)


# --- killed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written_before", [False, True])
@pytest.mark.parametrize("names", range(4))
def test_no_moment_to_be_killed_at_mixes_results(
    names, written_before, model, two_cts, tmp_path, monkeypatch
):
    """Killed when so many files of a case had got their names: the next run makes it, or refuses."""
    (two_cts / "b.nii.gz").unlink()
    spread = {"samples": 2, "uncertainty": tmp_path / "sd"}
    if written_before:
        run(two_cts, tmp_path / "out", model, seed=1, **spread)

    with killed_after(names, monkeypatch):
        run(two_cts, tmp_path / "out", model, overwrite=True, **spread)
    pipeline, ct = tiny.pipeline(latents=None), load_volume(two_cts / "a.nii.gz")
    expected = {
        seed: pipeline.translate(ct, num_inference_steps=STEPS, samples=2, seed=seed) for seed in (0, 1)
    }

    def check_what_is_there() -> int:
        there = 0
        for folder in ("out", "sd"):
            if (path := tmp_path / folder / "a.nii.gz").exists():
                result = expected[json.loads((tmp_path / folder / "a.json").read_text())["seed"]]
                wanted = result.volume if folder == "out" else result.spread
                assert np.array_equal(load_volume(path).array, wanted.array)
                there += 1
        return there

    check_what_is_there()
    try:
        run(two_cts, tmp_path / "out", model, **spread)
    except RequestError as error:
        assert written_before and "was written with another seed" in str(error)
        run(two_cts, tmp_path / "out", model, overwrite=True, **spread)
    assert check_what_is_there() == 2
    assert json.loads((tmp_path / "out" / "a.json").read_text())["seed"] == 0
