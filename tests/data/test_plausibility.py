from dataclasses import replace

import numpy as np
import pydicom.data
import pytest

from ct2mri.data.io import load_volume
from ct2mri.data.plan import Plan, Split
from ct2mri.data.plausibility import (
    fingerprint,
    measure_source,
    require_ct,
    require_source,
    source_warnings,
)
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError

SPACING = 4.0


def scan(kind, shape=(100, 100, 50), seed=0):
    """A crude CT of a head (a closed shell of bone) or a trunk (spine, two hip bones, wider)."""
    generator = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * SPACING for n in shape], indexing="ij")
    hu = np.full(shape, -1000.0)
    if kind == "head":
        r = np.sqrt((x / 75) ** 2 + (y / 95) ** 2 + (z / 90) ** 2)
        hu[r < 1] = 30
        hu[(r < 0.93) & (r > 0.83)] = 900
    else:
        hu[(x / 175) ** 2 + (y / 120) ** 2 < 1] = -100
        hu[(x / 150) ** 2 + (y / 95) ** 2 < 1] = 50
        for cx, cy in ((0, -60), (-100, -10), (100, -10)):
            hu[(x - cx) ** 2 + (y - cy) ** 2 < 20**2] = 500
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    return Volume((hu + generator.normal(0, 5, shape)).astype(np.float32), affine)


def plan_for(volumes, anatomy=None):
    return Plan(
        source_windows=[[-1024.0, 3000.0]],
        target_percentile=99.5,
        target_range=(0.0, 100.0),
        split=Split(seed=0, train=["a"], validation=[], test=[]),
        fingerprint=fingerprint([measure_source(volume, "HU") for volume in volumes]),
        spacing=None,
        crop_margin_mm=8.0,
        body_threshold=-300.0,
        anatomy=anatomy,
    )


@pytest.mark.parametrize("kind", ["head", "trunk"])
def test_anatomy_is_told_by_its_looks_and_from_any_side(kind):
    volume = scan(kind)
    assert measure_source(volume, "HU").looks_like == kind
    turned = Volume(np.flip(volume.array, (0, 1, 2)), volume.affine)
    assert measure_source(turned, "HU").looks_like == kind


@pytest.mark.parametrize(
    ("path", "looks"),
    [("real_ct/head", "head"), ("real_ct/abdomen_pelvis", "trunk"), ("head_templates/ct", "head")],
)
def test_anatomy_of_real_cts(shared_data, path, looks):
    assert measure_source(load_volume(shared_data / f"{path}.nii.gz"), "HU").looks_like == looks


def test_a_head_model_on_an_abdomen_is_named_as_such(shared_data):
    heads = plan_for([scan("head", seed=s) for s in range(2)])
    abdomen = load_volume(shared_data / "real_ct" / "abdomen_pelvis.nii.gz")
    said = " ".join(source_warnings(abdomen, heads))
    assert "looks like a trunk (chest, abdomen or pelvis)" in said and "made for heads" in said
    # The name in the plan decides, also where nothing is known of the training cases.
    named = replace(heads, fingerprint=None, anatomy="brain")
    assert "made for heads" in source_warnings(abdomen, named)[0]
    pelvis = replace(named, anatomy="pelvis")
    assert source_warnings(abdomen, pelvis) == []
    assert "looks like a head" in source_warnings(scan("head"), pelvis)[0]


def test_what_was_seen_in_training_gets_no_warning():
    assert source_warnings(scan("head", seed=5), plan_for([scan("head", seed=s) for s in range(2)])) == []


def test_warnings_say_in_what_a_ct_differs():
    plan = plan_for([scan("head")])
    volume = scan("head")
    thick = Volume(volume.array[:, :, ::3], volume.affine @ np.diag([1, 1, 3.0, 1]))
    assert any(w.startswith("Spacing") and "12 mm head-foot" in w for w in source_warnings(thick, plan))
    cut = Volume(volume.array[:, :, 28:], volume.affine)
    assert any(w.startswith("Field of view") for w in source_warnings(cut, plan))
    bright = volume.with_array(np.where(volume.array > -500, volume.array + 400, volume.array))
    assert any(w.startswith("HU: percentile 50") for w in source_warnings(bright, plan))
    contrast = Volume(volume.array, volume.affine, {"contrast_agent": True})
    assert any("Contrast agent" in w for w in source_warnings(contrast, plan))
    assert any("No body" in w for w in source_warnings(volume.with_array(volume.array * 0 - 1000), plan))


def test_what_is_no_ct_is_refused(shared_data):
    require_ct(scan("head"))
    require_ct(load_volume(pydicom.data.get_testdata_file("CT_small.dcm")))
    with pytest.raises(RequestError, match="modality is MR"):
        require_ct(load_volume(pydicom.data.get_testdata_file("MR_small.dcm")))
    with pytest.raises(RequestError, match="looks like an MR"):
        require_ct(load_volume(shared_data / "head_templates" / "mr.nii.gz"))
    head = scan("head")
    broken = head.array.copy()
    broken[3, 3, 3] = np.nan
    with pytest.raises(RequestError, match="1 of 500000 voxels"):
        require_ct(head.with_array(broken))


@pytest.mark.parametrize("path", ["real_ct/head", "real_ct/abdomen_pelvis", "head_templates/ct"])
def test_an_offset_of_1024_is_named(shared_data, path):
    volume = load_volume(shared_data / f"{path}.nii.gz")
    require_ct(volume)
    with pytest.raises(RequestError, match=r"offset by \+1024"):
        require_ct(volume.with_array(np.maximum(volume.array + 1024, 0)))


def mr_plan(volumes):
    return replace(
        plan_for([scan("head")]),
        source_modality="mr",
        target_modality="ct",
        source_units="relative",
        source_percentile=99.0,
        source_windows=[[0.0, 1.25]],
        body_threshold=None,
        fingerprint=fingerprint([measure_source(volume, "relative") for volume in volumes]),
    )


def as_mr(ct, gain=1.0):
    return ct.with_array((gain * np.clip(ct.array + 100, 0, 250)).astype(np.float32))


def test_an_mr_is_measured_without_a_word_of_hu():
    facts = measure_source(as_mr(scan("head")), "relative")
    assert facts.hu_percentiles is None and facts.tissue_fractions is None and facts.looks_like is None
    np.testing.assert_allclose(facts.body_size, (150, 190, 180), atol=9)
    assert facts.body_area_cm2 == pytest.approx(measure_source(scan("head"), "HU").body_area_cm2, rel=0.05)


def test_warnings_say_in_what_an_mr_differs():
    plan, volume = mr_plan([as_mr(scan("head", seed=s)) for s in range(2)]), as_mr(scan("head", seed=5), 30)
    assert source_warnings(volume, plan) == []
    thick = Volume(volume.array[:, :, ::3], volume.affine @ np.diag([1, 1, 3.0, 1]))
    assert [w.split(":")[0] for w in source_warnings(thick, plan)] == ["Spacing"]
    cut = Volume(volume.array[:, :, 28:], volume.affine)
    assert any(w.startswith("Field of view") for w in source_warnings(cut, plan))
    wide = as_mr(scan("trunk"))
    assert any(w.startswith("Size") for w in source_warnings(wide, plan))
    assert not any("HU" in w for w in source_warnings(wide, plan))
    assert "No body" in source_warnings(volume.with_array(volume.array * 0), plan)[0]


def test_a_ct_given_for_an_mr_is_refused(shared_data):
    plan = mr_plan([as_mr(scan("head"))])
    require_source(as_mr(scan("head")), plan)
    require_source(load_volume(pydicom.data.get_testdata_file("MR_small.dcm")), plan)
    require_source(load_volume(shared_data / "head_templates" / "mr.nii.gz"), plan)
    with pytest.raises(RequestError, match=r"modality is CT; .* translates MR into CT"):
        require_source(load_volume(pydicom.data.get_testdata_file("CT_small.dcm")), plan)
    with pytest.raises(RequestError, match="as in a CT in Hounsfield units"):
        require_source(load_volume(shared_data / "real_ct" / "head.nii.gz"), plan)
    broken = as_mr(scan("head")).array.copy()
    broken[3, 3, 3] = np.inf
    with pytest.raises(RequestError, match="1 of 500000 voxels"):
        require_source(Volume(broken, np.eye(4)), plan)
    # A few negative values, as interpolation leaves them, make no CT.
    ringing = as_mr(scan("head")).array.copy()
    ringing[0, 0] = -600
    require_source(Volume(ringing, np.eye(4)), plan)
