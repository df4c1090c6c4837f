import json

import numpy as np
import pytest
from PIL import Image

from ct2mri.cli import main
from ct2mri.data.intensity import body_mask
from ct2mri.data.io import load_volume, save_volume
from ct2mri.data.phantom import FIRST_UNSEEN_SEED, draw_phantom
from ct2mri.data.plan import Plan, Split
from ct2mri.data.volume import Volume
from ct2mri.demo import compare, show_ct, show_phantom
from ct2mri.diffusion import NoiseSettings
from ct2mri.evaluation.pictures import SAFETY_SENTENCE
from ct2mri.models import ScalableUNet
from ct2mri.options.training import NoiseOptions
from ct2mri.options.translation import DemoOptions
from ct2mri.pipeline import TranslationPipeline, TranslationResult, starter_folder
from ct2mri.stages import SlicesStage

PLAN = Plan(
    source_windows=[[-1024.0, 3000.0], [-160.0, 240.0]],
    target_percentile=99.5,
    target_range=(0.0, 250.0),
    split=Split(0, [], [], []),
    fingerprint=None,
    spacing=(6.0, 6.0, 6.0),
    crop_margin_mm=8.0,
    body_threshold=-300.0,
    anatomy="head",
)


@pytest.fixture(scope="module")
def pipeline():
    """An untrained 2D pipeline: everything of the demo but its quality."""
    network = ScalableUNet(
        spatial_dims=2,
        condition_channels=2,
        base_channels=4,
        channel_multipliers=(1, 2),
        attention_levels=(1,),
        norm_num_groups=2,
        num_heads=2,
    )
    noise = NoiseSettings.from_options(NoiseOptions())
    stage = SlicesStage(network, noise, sampler="ddim", num_inference_steps=1)
    return TranslationPipeline(PLAN, [stage], card={"name": "untrained"})


def check_marked(folder):
    sidecar = json.loads((folder / "synthetic_mr.json").read_text())
    assert sidecar["safety"] == SAFETY_SENTENCE and sidecar["model"]["name"] == "untrained"
    with Image.open(folder / "sheet.png") as image:
        assert image.text["Description"] == SAFETY_SENTENCE


def test_the_phantom_is_translated_measured_and_drawn(pipeline, tmp_path, capsys):
    scores = show_phantom(pipeline, tmp_path, DemoOptions(output=tmp_path, seed=3))
    ct, truth, result = (load_volume(tmp_path / f"{name}.nii.gz") for name in ("ct", "mr", "synthetic_mr"))
    assert ct.grid.matches(truth.grid) and ct.grid.matches(result.grid)
    check_marked(tmp_path)
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["scores"] == scores and numbers["phantom_seed"] == FIRST_UNSEEN_SEED + 3
    assert list(scores) == ["result", "CT rescaled", "constant image", "noise floor"]
    assert scores["noise floor"]["psnr"] > scores["constant image"]["psnr"]
    printed = capsys.readouterr().out
    assert all(name in printed for name in scores) and "PSNR" in printed


def test_the_users_ct_is_translated_and_drawn(pipeline, tmp_path):
    ct = draw_phantom("head", 5, spacing=6).ct
    show_ct(pipeline, ct, "mine.nii.gz", tmp_path, DemoOptions(output=tmp_path))
    assert load_volume(tmp_path / "synthetic_mr.nii.gz").grid.matches(ct.grid)
    check_marked(tmp_path)


def test_baselines_are_the_best_of_their_kind_and_the_result_is_not_fitted():
    phantom = draw_phantom("head", 0, spacing=4)
    body = body_mask(phantom.ct.array, phantom.ct.spacing, -300)
    reference = np.percentile(phantom.mr.array[body], 99.5)
    in_units = phantom.mr.with_array(phantom.mr.array * np.float32(250 / reference))
    perfect = TranslationResult(in_units, in_units.with_array(in_units.array * 1.1), None, [])
    scores = compare(perfect, phantom.mr, phantom.ct, body, PLAN)
    assert scores["result"]["mae"] == pytest.approx(0, abs=1e-6)
    true = phantom.mr.array[body] / reference
    assert scores["draft"]["mae"] == pytest.approx(0.1 * true.mean(), rel=1e-4)
    assert scores["constant image"]["mae"] == pytest.approx(np.abs(true - np.median(true)).mean(), rel=1e-4)
    assert scores["CT rescaled"]["rmse"] <= true.std() + 1e-6
    assert "nothing fitted" in scores["result"]["settings"]["normalisation"]


def test_a_file_that_is_no_ct_is_refused_before_the_work(tmp_path, capsys):
    save_volume(Volume(np.ones((4, 4, 4), np.float32), np.eye(4)), tmp_path / "mr.nii.gz")
    assert main(["demo", str(tmp_path / "mr.nii.gz"), "-o", str(tmp_path / "out")]) == 2
    assert "No voxel lies below -200 HU" in capsys.readouterr().err
    assert main(["demo", str(tmp_path / "nowhere.nii.gz"), "-o", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_no_seed_draws_a_phantom_that_the_model_has_seen(tmp_path, capsys):
    assert main(["demo", "-o", str(tmp_path / "out"), "--seed", str(-FIRST_UNSEEN_SEED)]) == 2
    assert capsys.readouterr().err == "ct2mri: --seed is a number from 0 upward, got -1000000.\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_demo_as_a_user_runs_it(tmp_path):
    starter_folder()
    save_volume(draw_phantom("head", 7, spacing=3).ct, tmp_path / "mine.nii.gz")
    assert main(["demo", str(tmp_path / "mine.nii.gz"), "-o", str(tmp_path / "out")]) == 0
    scores = json.loads((tmp_path / "out" / "phantom" / "numbers.json").read_text())["scores"]
    for name in ("CT rescaled", "constant image"):
        assert (
            scores["result"]["psnr"] > scores[name]["psnr"]
            and scores["result"]["ssim"] > scores[name]["ssim"]
        )
    assert (tmp_path / "out" / "your_ct" / "sheet.png").is_file()
