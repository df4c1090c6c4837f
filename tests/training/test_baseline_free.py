"""The two baselines that cost nothing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_tiny import Tiny, write_dataset

from ct2mri.cli import main
from ct2mri.data.cases import PreparedDataset, write_case
from ct2mri.data.volume import Grid
from ct2mri.diffusion import SeededNoise
from ct2mri.errors import RequestError
from ct2mri.stages import LookupStage, MeanStage, load_stage
from ct2mri.training.baseline_free import fit_lookup, fit_mean
from ct2mri.training.fit import train_baseline, train_slices


def case(root: Path, name: str, patient: str, source, target, mask=None, valid=None):
    shape = target.shape
    ones = np.ones(shape, bool)
    return write_case(
        root / name,
        patient_id=patient,
        grid=Grid(shape, np.eye(4)),
        source=source.astype(np.float32),
        target=target.astype(np.float32),
        mask=ones if mask is None else mask,
        valid=ones if valid is None else valid,
        target_range=(0.0, 100.0),
        inputs={},
        notes=[],
    )


def test_the_lookup_recovers_a_map_of_values(tiny: Tiny, tmp_path: Path):
    rng = np.random.default_rng(0)
    plan = PreparedDataset(tiny.data).plan  # its widest window is the first of two

    def curve(source):
        return np.tanh(3 * source)

    cases = []
    for name in ("a", "b"):
        source = rng.uniform(-1, 1, (2, 30, 30, 30))
        target = curve(source[0])
        mask = rng.random(target.shape) < 0.7
        valid = rng.random(target.shape) < 0.8
        target[~(mask & valid)] = rng.uniform(-1, 1, target.shape)[~(mask & valid)]  # must not count
        cases.append(case(tmp_path, name, name, source, target, mask, valid))
    stage = fit_lookup(cases, plan)
    assert stage.channel == 0
    unseen = np.linspace(-0.99, 0.99, 5000)
    found = stage.table(torch.from_numpy(unseen).float()).numpy()
    assert np.abs(found - curve(unseen)).max() < 2e-3
    other = fit_lookup(cases, replace(plan, source_windows=plan.source_windows[::-1]))
    assert other.channel == 1


def test_the_lookup_is_the_mean_where_a_value_has_several_targets(tiny: Tiny, tmp_path: Path):
    source = np.full((1, 4, 5, 6), 0.3)
    target = np.random.default_rng(0).uniform(-1, 1, (4, 5, 6))
    plan = replace(PreparedDataset(tiny.data).plan, source_windows=[[-1024.0, 3000.0]])
    stage = fit_lookup([case(tmp_path, "a", "a", source, target)], plan)
    assert stage.table(torch.tensor([0.3])).item() == pytest.approx(
        target.astype(np.float32).mean(), abs=1e-6
    )


def test_the_mean_equals_the_mean_of_the_patients(tmp_path: Path):
    rng = np.random.default_rng(0)
    mask = np.zeros((9, 8, 7), bool)
    mask[2:6, 1:7, 3:6] = True
    targets = rng.uniform(-1, 1, (3, 9, 8, 7))
    source = np.zeros((1, 9, 8, 7))
    # The first patient was scanned twice, and counts once.
    cases = [
        case(tmp_path, f"c{n}", patient, source, target, mask)
        for n, (patient, target) in enumerate(zip("aab", targets, strict=True))
    ]
    mean = fit_mean(cases).means.get_buffer("volume").numpy()
    expected = ((targets[0] + targets[1]) / 4 + targets[2] / 2)[2:6, 1:7, 3:6]
    np.testing.assert_allclose(mean, expected, atol=1e-6)


def test_the_mean_leaves_out_what_is_not_valid_and_fits_boxes_together(tmp_path: Path):
    cases = []
    for name, edge in (("a", 6), ("b", 8), ("c", 12)):
        mask = np.zeros((16, 16, 16), bool)
        mask[2 : 2 + edge, 1 : 1 + edge, 3 : 3 + edge] = True
        target = np.full(mask.shape, 0.25)
        valid = np.ones(mask.shape, bool)
        if name == "c":
            valid[:] = False
            target[:] = 5
        cases.append(case(tmp_path, name, name, np.zeros((1, 16, 16, 16)), target, mask, valid))
    stage = fit_mean(cases)
    assert stage.means.shapes == {"volume": (8, 8, 8)}
    np.testing.assert_allclose(stage.means.get_buffer("volume"), 0.25, atol=1e-6)
    valid = np.zeros((16, 16, 16), bool)
    assert (fit_mean([case(tmp_path, "d", "d", *[np.zeros((1, 16, 16, 16)), target], mask, valid)])
            .means.get_buffer("volume") == -1).all()  # fmt: skip


@pytest.mark.parametrize(("kind", "stage"), [("hu-lookup", LookupStage), ("mean", MeanStage)])
def test_a_run_holds_all_that_others_do(kind, stage, tiny: Tiny, tmp_path: Path, capsys):
    run = tmp_path / "run"
    train_baseline(tiny.baseline(run, kind))
    assert isinstance(load_stage(run / "best"), stage)
    facts = json.loads((run / "run.json").read_text())
    assert (facts["stage"], facts["options"]["kind"], facts["finished"]) == ("baseline", kind, True)
    rows = (run / "validation.csv").read_text().splitlines()
    assert rows[0] == "step,l1,psnr"
    l1 = float(rows[1].split(",")[1])
    dataset = PreparedDataset(tiny.data)
    (name,) = dataset.case_ids("validation")
    held_out = dataset.case(name)
    drawn = load_stage(run / "best").sample(
        {
            "source": torch.from_numpy(np.array(held_out.source)),
            "body": torch.from_numpy(np.array(held_out.mask, np.float32))[None],
        },
        SeededNoise(0),
    )
    inside = held_out.mask & held_out.valid
    error = np.abs(drawn[0].numpy() - np.array(held_out.target).clip(-1, 1))[inside].mean() / 2
    assert l1 == pytest.approx(error)
    if kind == "hu-lookup":
        assert l1 < 0.01  # the tiny targets are a curve of the source
    assert len(list((run / "pictures").glob("*.png"))) == 1

    before = (run / "best" / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    train_baseline(tiny.baseline(run, kind))
    assert "is trained already" in capsys.readouterr().out
    assert (run / "best" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(RequestError, match=f"started with --kind {kind}"):
        train_baseline(tiny.baseline(run, {"hu-lookup": "mean", "mean": "hu-lookup"}[kind]))
    with pytest.raises(RequestError, match="holds a run of `train baseline`"):
        (run / "last.ckpt").touch()
        train_slices(tiny.slices(run))
    weights = (run / "best" / "model.safetensors").read_bytes()
    train_baseline(tiny.baseline(run, kind, resume="never"))
    assert (run / "best" / "model.safetensors").read_bytes() == weights


def test_bad_requests(tiny: Tiny, tmp_path: Path, capsys):
    with pytest.raises(RequestError, match="init is not for baselines"):
        train_baseline(tiny.baseline(tmp_path / "run", "mean", init="model"))
    data = write_dataset(tmp_path / "data", cases=1)
    with pytest.raises(RequestError, match="has no training case with a valid voxel"):
        train_baseline(tiny.baseline(tmp_path / "run", "mean", data=data))
    words = ["train", "baseline", "--data", str(tiny.data), "--output_dir", str(tmp_path / "run")]
    assert main([*words, "--kind", "median"]) == 2
    assert "hu-lookup" in capsys.readouterr().err
    assert main(words) == 2
    assert main([*words, "--kind", "mean"]) == 0
