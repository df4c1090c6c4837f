import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import tiny
from ct2mri.data.cases import PreparedDataset, write_case
from ct2mri.data.volume import Grid
from ct2mri.diffusion import SeededNoise
from ct2mri.drafts import draft
from ct2mri.errors import RequestError
from ct2mri.files import write_json
from ct2mri.options.translation import DraftOptions
from ct2mri.stage_files import file_hash

SEEDS = {"best": 0, "fold-0/best": 1, "fold-1/best": 2}


def stage(folder, **settings):
    return tiny.slices_stage(seed=SEEDS[folder], orientations=("axial", "coronal"), **settings)


@pytest.fixture
def run(tmp_path):
    """A run of the slices stage with two folds: the first has not seen patient a, the second not b."""
    folder = tmp_path / "run"
    for name in SEEDS:
        stage(name).save_stage(folder / name)
    tiny.plan().write(folder / "plan.json")
    write_json(folder / "folds.json", {"folds": [["a"], ["b"]]})
    return folder


@pytest.fixture
def dataset(tmp_path):
    root = tmp_path / "data"
    for number, patient in enumerate("abcd"):
        add_case(root, f"{patient}-1", patient, (6, 7, 4 + number))
    tiny.plan().write(root / "plan.json")
    return root


def add_case(root, case_id, patient_id, shape):
    generator = np.random.default_rng(len(case_id) + sum(shape))
    write_case(
        root / "cases" / case_id,
        patient_id=patient_id,
        grid=Grid(shape, np.eye(4)),
        source=generator.uniform(-1, 1, (1, *shape)).astype(np.float32),
        target=generator.uniform(-1, 1, shape).astype(np.float32),
        mask=np.ones(shape, dtype=bool),
        valid=np.ones(shape, dtype=bool),
        target_range=(0.0, 1.0),
        inputs={},
        notes=[],
    )


def make(dataset, run, **options):
    draft(DraftOptions(data=dataset, model=run, device="cpu", **options))
    return PreparedDataset(dataset)


def drawn_by(folder, case, seed=0, **settings):
    source = torch.from_numpy(np.array(case.source))
    return stage(folder).sample({"source": source}, SeededNoise(seed), **settings)[0].numpy()


def test_each_case_is_drafted_by_a_model_that_has_not_seen_it(dataset, run, capsys):
    prepared = make(dataset, run)
    drafted_by = {"a-1": "fold-0/best", "b-1": "fold-1/best", "c-1": "best", "d-1": "best"}
    for case_id, folder in drafted_by.items():
        case = prepared.case(case_id)
        assert np.array_equal(case.draft, drawn_by(folder, case)), case_id
    assert "4 cases drafted, 0 done before" in capsys.readouterr().out
    facts = json.loads((dataset / "draft.json").read_text())
    assert facts == {
        "model": file_hash(run / "best" / "model.safetensors"),
        "fold_models": sorted(file_hash(run / f"fold-{n}" / "best" / "model.safetensors") for n in (0, 1)),
        "sampler": "ddim",
        "num_inference_steps": 2,
        "seed": 0,
        "orientations": ["axial", "coronal"],
        "out_of_fold": True,
    }


def test_the_settings_asked_for_are_used_and_kept(dataset, run):
    prepared = make(dataset, run, steps=3, sampler="ddpm", seed=4)
    expected = drawn_by("best", prepared.case("c-1"), 4, sampler="ddpm", num_inference_steps=3)
    assert np.array_equal(prepared.case("c-1").draft, expected)
    facts = json.loads((dataset / "draft.json").read_text())
    assert (facts["sampler"], facts["num_inference_steps"], facts["seed"]) == ("ddpm", 3, 4)


def times(dataset):
    return {path.parent.name: path.stat().st_mtime_ns for path in dataset.glob("cases/*/draft.npy")}


def test_what_is_drafted_with_the_same_settings_stays(dataset, run, capsys):
    make(dataset, run)
    before = times(dataset)
    add_case(dataset, "d-2", "d", (5, 5, 5))
    (dataset / "cases" / "c-1" / "draft.npy").unlink()
    make(dataset, run)
    assert "2 cases drafted, 3 done before" in capsys.readouterr().out
    after = times(dataset)
    assert {name for name in before if after[name] == before[name]} == {"a-1", "b-1", "d-1"}
    assert set(after) == {"a-1", "b-1", "c-1", "d-1", "d-2"}
    # Another fold model concerns its own cases alone; other steps concern all.
    stage("best").save_stage(run / "fold-1" / "best")
    make(dataset, run)
    assert "1 cases drafted, 4 done before" in capsys.readouterr().out
    make(dataset, run, steps=1)
    assert "5 cases drafted, 0 done before" in capsys.readouterr().out


def test_half_redrawn_drafts_are_not_taken_for_whole(dataset, run):
    make(dataset, run)
    path = dataset / "cases" / "d-1" / "source.npy"
    source = path.read_bytes()
    path.write_bytes(source[:60])
    with pytest.raises(RequestError, match=r"source.npy is missing or damaged"):
        make(dataset, run, steps=1)
    assert not (dataset / "draft.json").exists()
    path.write_bytes(source)
    make(dataset, run, steps=1)
    assert json.loads((dataset / "draft.json").read_text())["num_inference_steps"] == 1


def test_cases_that_the_model_has_seen_are_refused_without_folds(dataset, run):
    (run / "folds.json").unlink()
    with pytest.raises(
        RequestError, match=r"2 cases, e.g. a-1, would be drafted by the model trained on them"
    ):
        make(dataset, run)
    assert not list(dataset.rglob("draft.*"))
    prepared = make(dataset, run, allow_seen=True)
    assert np.array_equal(prepared.case("a-1").draft, drawn_by("best", prepared.case("a-1")))
    assert json.loads((dataset / "draft.json").read_text())["out_of_fold"] is False


def test_bad_requests(dataset, run, tmp_path):
    with pytest.raises(RequestError, match="1 to 1000 steps, got 0"):
        make(dataset, run, steps=0)
    with pytest.raises(RequestError, match="There is no data set"):
        make(tmp_path / "nowhere", run)
    with pytest.raises(RequestError, match=r"nowhere is no run folder of `ct2mri train`"):
        make(dataset, tmp_path / "nowhere")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "pipeline.json").write_text("{}")
    with pytest.raises(RequestError, match=r"model is a model; give the run folder"):
        make(dataset, tmp_path / "model")
    with pytest.raises(RequestError, match="got abacus"):
        draft(DraftOptions(data=dataset, model=run, device="abacus"))
    (run / "fold-1" / "best").rename(tmp_path / "away")
    with pytest.raises(RequestError, match=r"fold-1 is not trained yet"):
        make(dataset, run)
    (tmp_path / "away").rename(run / "fold-1" / "best")
    tiny.plan(source_windows=[[0.0, 80.0]]).write(run / "plan.json")
    with pytest.raises(RequestError, match=r"prepared with source_windows .* was trained with"):
        make(dataset, run)
    assert not list(dataset.rglob("draft.*"))


def test_processes_share_the_cases_out(dataset, run, tmp_path):
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "ct2mri", "draft"]
    words += ["--data", str(dataset), "--model", str(run), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("4 cases drafted, 0 done before") == 1
    drafts = {case_id: np.array(PreparedDataset(dataset).case(case_id).draft) for case_id in ("a-1", "d-1")}
    make(dataset, run)  # all of it is done
    for case_id, drawn in drafts.items():
        case = PreparedDataset(dataset).case(case_id)
        assert np.array_equal(case.draft, drawn)
        case.folder.joinpath("draft.json").unlink()
    make(dataset, run)
    for case_id, drawn in drafts.items():
        assert np.array_equal(PreparedDataset(dataset).case(case_id).draft, drawn), "the same as one draws"
