"""The other direction, MR to CT, the whole way at a tiny size: pairs, data set, model, volumes in HU."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import tiny
from ct2mri.data.cases import write_case
from ct2mri.data.intensity import body_mask
from ct2mri.data.pairs import check_pair, prepare_target
from ct2mri.data.phantom import draw_phantom
from ct2mri.data.plan import Plan, Split
from ct2mri.data.plausibility import fingerprint, measure_source
from ct2mri.data.replay import prepare_source
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.export import export
from ct2mri.options.training import TrainSlicesOptions
from ct2mri.options.translation import ExportOptions
from ct2mri.pipeline import TranslationPipeline
from ct2mri.training.slices import train_slices

SPACING = 8.0
NAMES = ["a", "b", "c", "d"]


def oblique_pair(seed, spacing=SPACING):
    """MR and CT of a phantom head whose axes run left, anterior, superior, tilted by 12 degrees."""
    phantom = draw_phantom("head", seed, spacing=spacing)
    c, s = np.cos(0.2), np.sin(0.2)
    turn = np.array([[c, 0, s, 5], [0, 1, 0, -8], [-s, 0, c, 30], [0, 0, 0, 1]])
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = phantom.ct.spatial_shape[0] - 1
    affine = turn @ phantom.ct.affine @ flip
    mr, ct = (Volume(np.ascontiguousarray(v.array[::-1]), affine) for v in (phantom.mr, phantom.ct))
    # Scanners differ in gain, and say nothing of it.
    return mr.with_array(mr.array * np.float32(1 + seed % 3)), ct


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A data set for CT from MR, as `prepare` makes it case by case."""
    root = tmp_path_factory.mktemp("mr-to-ct")
    pairs = {name: oblique_pair(seed) for seed, name in enumerate(NAMES)}
    plan = Plan(
        source_modality="mr",
        target_modality="ct",
        source_units="relative",
        source_percentile=99.0,
        source_windows=[[0.0, 1.25]],
        body_threshold=None,
        remove_table=True,
        target_units="HU",
        target_scaling="window",
        target_percentile=99.5,
        target_window=[-1024.0, 2000.0],
        target_range=(-1024.0, 2000.0),
        anatomy="head",
        spacing=(SPACING, SPACING, SPACING),
        crop_margin_mm=SPACING,
        split=Split(0, NAMES[:-1], NAMES[-1:], []),
        fingerprint=fingerprint([measure_source(mr, "relative") for mr, _ in pairs.values()]),
    )
    for name, (mr, ct) in pairs.items():
        check_pair(mr, ct, plan.source_units, plan.target_units)
        source = prepare_source(mr, plan)
        target = prepare_target(mr, ct, source, plan)
        write_case(
            root / "cases" / name,
            patient_id=name,
            grid=source.grid,
            source=source.array,
            target=target.array,
            mask=source.mask,
            valid=target.valid,
            target_range=target.target_range,
            inputs={},
            notes=[],
        )
    plan.write(root / "plan.json")
    return root


@pytest.fixture(scope="module")
def pipeline(dataset, tmp_path_factory):
    """A tiny 2D model trained on it for some seconds, exported and read again."""
    folder = tmp_path_factory.mktemp("model")
    train_slices(
        TrainSlicesOptions(
            data=dataset,
            output_dir=folder / "run",
            folds=0,
            batch_size=4,
            max_steps=60,
            warmup_steps=5,
            learning_rate=4e-3,
            ema_decay=0.9,
            validate_every=60,
            validation_cases=1,
            device="cpu",
            base_channels=8,
            channel_multipliers=[1, 2],
            attention_levels=[],
            norm_num_groups=4,
            num_heads=2,
            orientations=["axial"],
            last_timestep_share=1.0,
        )
    )
    export(ExportOptions(slices=folder / "run", output=folder / "model"))
    return TranslationPipeline.from_pretrained(folder / "model", "cpu")


def test_a_ct_comes_out_in_hu_on_the_grid_of_the_mr(pipeline):
    mr, ct = oblique_pair(20, spacing=5.0)
    result = pipeline.translate(mr, num_inference_steps=1)
    assert result.warnings == []
    assert result.volume.spatial_shape == mr.spatial_shape
    np.testing.assert_array_equal(result.volume.affine, mr.affine)
    hu, true = result.volume.array, ct.array
    assert hu.min() >= -1024 and hu.max() < 3500
    assert (hu[true < -900] == -1024).mean() > 0.95  # outside the body: air, not 0
    body = hu > -1024
    assert 2 * (body & (true > -300)).sum() / (body.sum() + (true > -300).sum()) > 0.93
    inside = body & (true > -300)
    # It learned in units of the CT: soft tissue lies where it lies there, which no untrained network knows.
    soft = inside & (true > 0) & (true < 80)
    assert abs(np.median(hu[soft]) - 40) < 120


class Copies(nn.Module):
    """A network for one step that answers with the condition itself: −x_0 is v at the last timestep."""

    condition_channels = 1

    def __init__(self):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, sample, timestep, condition):
        return -condition


def test_the_window_is_undone(pipeline):
    """An MR whose values are those of the CT comes back as the CT, since both windows are undone."""
    _, ct = oblique_pair(24)
    body = body_mask(ct.array, ct.spacing, -300)
    shifted = ct.with_array(np.where(body, np.maximum(ct.array, -1023) + 1024, 0))
    as_mr = shifted.with_array(shifted.array * 3)
    bright = np.percentile(shifted.array[body], 99)
    plan = replace(
        pipeline.plan,
        spacing=None,
        source_windows=[[0.0, 3024 / float(bright)]],  # as wide as the target's window
    )
    stage = tiny.slices_stage(Copies(), num_inference_steps=1)
    mask = ct.with_array(body.astype(np.float32))
    hu = TranslationPipeline(plan, [stage]).translate(as_mr, mask=mask).volume.array
    np.testing.assert_allclose(hu[body], np.clip(ct.array[body], -1023, 2000), atol=0.5)
    assert (hu[~body] == -1024).all()


def test_a_spread_is_in_hu_and_nothing_outside_the_body(pipeline):
    mr, ct = oblique_pair(23)
    result = pipeline.translate(mr, samples=2, num_inference_steps=2)
    body = result.volume.array > -1024
    assert result.spread.array[body].max() > 1 and not result.spread.array[~body & (ct.array < -900)].any()


def test_the_gain_of_the_mr_does_not_matter(pipeline):
    mr, _ = oblique_pair(21)
    one, ten = (pipeline.translate(mr.with_array(mr.array * gain)).volume.array for gain in (1, 10))
    np.testing.assert_allclose(one, ten, atol=1)


def test_a_ct_is_refused_as_source(pipeline):
    _, ct = oblique_pair(22)
    with pytest.raises(RequestError, match=r"as in a CT in Hounsfield units.* translates MR into CT"):
        pipeline.translate(ct)


def test_the_model_card_speaks_of_ct_from_mr(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    for words in (
        "Translates MR volumes into CT volumes",
        "SYNTHETIC CT, generated from MR",
        "my_mr.nii.gz -o my_ct.nii.gz",
        "Hounsfield units (HU), estimated; trained on -1024 to 2000",
        "percentile 99 inside the body: 0 to 1.25",
        "no table",
    ):
        assert words in card
