"""The whole way at a tiny size, by the commands that the README gives for training on one's own data."""

import subprocess
import sys
from contextlib import chdir

import numpy as np
import pytest

from ct2mri import load_volume
from ct2mri.cli import main
from ct2mri.data.cases import PreparedDataset
from ct2mri.files import read_json

TINY = """
slices: &network
  base_channels: 8
  channel_multipliers: [1, 2]
  attention_levels: [1]
  norm_num_groups: 4
  batch_size: 4
  max_steps: 4
  warmup_steps: 1
  validate_every: 2
  validation_cases: 1
vqvae:
  crop_size: [16, 16, 16]
  hidden_channels: [4, 8]
  num_res_blocks: 1
  embedding_dim: 3
  num_embeddings: 16
  max_steps: 4
  warmup_steps: 1
  validate_every: 2
  validation_cases: 1
latents:
  <<: *network
  batch_size: 2
"""


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A folder in which every command of the chain was run."""
    folder = tmp_path_factory.mktemp("chain")
    (folder / "tiny.yaml").write_text(TINY)
    with chdir(folder):
        for command in (
            "phantom raw --cases 5 --anatomy head --spacing 9 --labels",
            "prepare raw data --anatomy head",
            "train slices --data data --output_dir runs/slices --config tiny.yaml",
            "draft --data data --model runs/slices",
            "train vqvae --data data --output_dir runs/vqvae --config tiny.yaml",
            "train latents --data data --output_dir runs/latents --vqvae runs/vqvae --config tiny.yaml",
            "export --slices runs/slices --vqvae runs/vqvae --latents runs/latents -o my_model",
            "export --slices runs/slices -o my_2d_model",
            "translate --data data --split test --model my_model -o predictions",
            "evaluate predictions --data data --split test -o report",
            "translate raw/head-0000/ct.nii.gz --model my_model -o mr.nii.gz",
            "translate raw/head-0000/ct.nii.gz --model my_2d_model -o mr_2d.nii.gz",
        ):
            assert main(command.split()) == 0, command
    return folder


def test_held_out_cases_are_translated_and_measured(chain):
    dataset = PreparedDataset(chain / "data")
    report = read_json(chain / "report" / "evaluation.json")
    assert [case["case_id"] for case in report["cases"]] == dataset.case_ids("test")
    assert 0 < report["summary"]["psnr"]["mean"] < 40


@pytest.mark.parametrize("name", ["mr", "mr_2d"])
def test_a_result_overlays_its_ct(chain, name):
    ct = load_volume(chain / "raw" / "head-0000" / "ct.nii.gz")
    mr = load_volume(chain / f"{name}.nii.gz")
    assert mr.spatial_shape == ct.spatial_shape
    np.testing.assert_allclose(mr.affine, ct.affine, atol=1e-4)
    body = mr.array > 0
    assert 0.05 < body.mean() < 0.9
    assert np.median(ct.array[~body]) < -900


def test_training_cases_are_drafted_by_a_model_that_has_not_seen_them(chain):
    dataset = PreparedDataset(chain / "data")
    assert read_json(chain / "data" / "draft.json")["out_of_fold"] is True
    folds = read_json(chain / "runs" / "slices" / "folds.json")["folds"]
    training = {dataset.case(case_id).patient_id for case_id in dataset.case_ids("train")}
    assert sorted(patient for fold in folds for patient in fold) == sorted(training)
    assert all(dataset.case(case_id).draft is not None for case_id in dataset.case_ids(None))


def test_the_command_runs_as_a_module(chain):
    words = [
        "translate",
        "raw/head-0001/ct.nii.gz",
        "--model",
        "my_model",
        "-o",
        "again.nii.gz",
        "--steps",
        "0",
    ]
    run = subprocess.run(
        [sys.executable, "-m", "ct2mri", *words],
        cwd=chain,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert "got 0" in run.stderr
    assert not (chain / "again.nii.gz").exists()
