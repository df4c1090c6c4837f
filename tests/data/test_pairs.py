from dataclasses import replace

import numpy as np
import pytest

from ct2mri.data.bias import correct_bias
from ct2mri.data.geometry import resample, to_canonical
from ct2mri.data.intensity import unscale_target
from ct2mri.data.pairs import check_pair, prepare_target
from ct2mri.data.phantom import draw_phantom
from ct2mri.data.plan import Plan, Split
from ct2mri.data.replay import prepare_source
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError

CT_TO_MR = Plan(
    source_windows=[[-1024.0, 3000.0]],
    target_percentile=99.5,
    target_range=(0.0, 1.0),
    split=Split(0, ["a"], [], []),
    fingerprint=None,
    spacing=(5.0, 5.0, 5.0),
    crop_margin_mm=10.0,
    body_threshold=-300.0,
)
MR_TO_CT = replace(
    CT_TO_MR,
    source_modality="mr",
    target_modality="ct",
    source_units="relative",
    source_percentile=99.0,
    source_windows=[[0.0, 1.25]],
    body_threshold=None,
    remove_table=True,
    target_units="HU",
    target_scaling="window",
    target_window=[-1024.0, 2000.0],
    target_range=(-1024.0, 2000.0),
)
MR_TO_MR = replace(
    MR_TO_CT,
    target_modality="t2",
    target_units="relative",
    target_scaling="percentile",
    target_window=None,
    target_range=(0.0, 1.0),
)


def oblique(volume):
    """The same head with its axes tilted by 12 degrees, columns counted from the left."""
    c, s = np.cos(0.2), np.sin(0.2)
    turn = np.array([[c, 0, s, 5], [0, 1, 0, -8], [-s, 0, c, 30], [0, 0, 0, 1]])
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = volume.spatial_shape[0] - 1
    return Volume(np.ascontiguousarray(volume.array[::-1]), turn @ volume.affine @ flip)


@pytest.fixture(scope="module")
def head():
    phantom = draw_phantom("head", 11, spacing=4)
    return oblique(phantom.ct), oblique(phantom.mr)


def prepared_pair(source, target, plan):
    prepared = prepare_source(source, plan)
    return prepared, prepare_target(source, target, prepared, plan)


def test_a_ct_target_comes_back_in_hu(head):
    ct, mr = head
    metal = ct.array.copy()
    metal[tuple(n // 2 for n in ct.spatial_shape)] = 9000
    prepared, target = prepared_pair(mr, ct.with_array(metal), MR_TO_CT)
    assert target.target_range == (-1024, 2000)
    assert target.array.min() >= -1 and target.array.max() == 1  # clipped
    hu = unscale_target(target.array, target.target_range)
    true = resample(ct, prepared.grid, fill=-1024).array
    inside = prepared.mask & (hu < 1900)
    np.testing.assert_allclose(hu[inside], true[inside], atol=0.05)
    assert abs(np.median(hu[prepared.mask]) - 40) < 20  # soft tissue
    assert target.valid[prepared.mask].mean() > 0.99


def test_the_filling_around_a_round_field_of_view_is_no_measurement(head):
    ct, mr = head
    filled = ct.array.copy()
    filled[:, : ct.spatial_shape[1] // 2] = -3024
    prepared, target = prepared_pair(mr, ct.with_array(filled), MR_TO_CT)
    hu = unscale_target(target.array, target.target_range)
    assert hu.min() >= -1024  # and does not bleed into what was measured
    share = target.valid[prepared.mask].mean()
    assert 0.2 < share < 0.8
    _, whole = prepared_pair(mr, ct, MR_TO_CT)
    kept = target.valid & prepared.mask
    np.testing.assert_array_equal(target.array[kept], whole.array[kept])


def test_a_ct_may_have_air_where_an_mr_would_be_blanked(head):
    ct, mr = head
    with_air = ct.array.copy()
    i, j, k = (n // 2 for n in ct.spatial_shape)
    with_air[i - 6 : i + 6, j - 6 : j + 6, k - 6 : k + 6] = -1024
    _, target = prepared_pair(mr, ct.with_array(with_air), MR_TO_CT)
    assert target.defaced_cm3 == 0 and target.valid.mean() > 0.5
    blanked = mr.array.copy()
    blanked[i - 6 : i + 6, j - 6 : j + 6, k - 6 : k + 6] = 0
    _, target = prepared_pair(mr, mr.with_array(blanked), MR_TO_MR)
    assert target.defaced_cm3 > 50
    _, target = prepared_pair(mr, mr.with_array(blanked), replace(MR_TO_MR, target_modality="pet"))
    assert target.defaced_cm3 == 0


def test_z_score_scales_by_mean_and_deviation_inside_the_body(head):
    ct, mr = head
    plan = replace(CT_TO_MR, target_scaling="zscore", target_range=(-1.0, 1.0))
    whole = mr.with_array(np.rint(mr.array))
    prepared, target = prepared_pair(ct, whole, plan)
    values = target.array[prepared.mask & target.valid].astype(float)
    assert values.mean() == pytest.approx(0, abs=1e-3) and values.std() == pytest.approx(1 / 3, abs=1e-3)
    own = unscale_target(target.array, target.target_range)[prepared.mask & target.valid]
    low, high = target.target_range
    assert own.mean() == pytest.approx((low + high) / 2, rel=1e-3)
    assert own.std() == pytest.approx((high - low) / 6, rel=1e-3)
    assert own.min() > -1  # in the MR's own values again
    _, ten = prepared_pair(ct, whole.with_array(whole.array * 10), plan)
    np.testing.assert_array_equal(ten.array, target.array)
    assert ten.target_range == pytest.approx((10 * low, 10 * high))


@pytest.mark.parametrize("scaling", ["percentile", "zscore"])
def test_enhanced_contrast_keeps_air_and_the_percentile(head, scaling):
    ct, mr = head
    plan = replace(CT_TO_MR, target_scaling=scaling)
    whole = mr.with_array(np.where(ct.array > -300, np.rint(mr.array), 0))
    prepared, plain = prepared_pair(ct, whole, plan)
    _, enhanced = prepared_pair(ct, whole, replace(plan, enhance_contrast=True))
    before, after = (unscale_target(t.array, t.target_range) for t in (plain, enhanced))
    assert np.abs(after[np.abs(before) < 0.02]).max() < 0.2
    dark = prepared.mask & (before > 0) & (before < np.percentile(before[prepared.mask], 60))
    assert after[dark].std() > 1.2 * before[dark].std()
    if scaling == "percentile":
        assert enhanced.target_range == plain.target_range
    _, ten = prepared_pair(ct, whole.with_array(whole.array * 10), replace(plan, enhance_contrast=True))
    np.testing.assert_array_equal(ten.array, enhanced.array)


def test_the_modalities_of_a_pair_are_checked(head):
    ct, mr = head
    check_pair(ct, mr, "HU", "relative")
    check_pair(mr, ct, "relative", "HU")
    check_pair(mr, mr.with_array(mr.array + 1), "relative", "relative")
    with pytest.raises(RequestError, match="as in a CT in Hounsfield units"):
        check_pair(ct, mr, "relative", "HU")
    with pytest.raises(RequestError, match="in the target: No voxel lies below -200 HU"):
        check_pair(mr, mr, "relative", "HU")
    with pytest.raises(RequestError, match="in the target: Values go down to"):
        check_pair(ct, ct, "HU", "relative")
    said = Volume(np.abs(mr.array), mr.affine, {"modality": "CT"})
    with pytest.raises(RequestError, match="in the target: The file's header says that its modality is CT"):
        check_pair(ct, said, "HU", "relative")
    with pytest.raises(RequestError, match="shows nothing"):
        check_pair(ct, mr.with_array(mr.array * 0), "HU", "relative")


@pytest.mark.slow  # N4 takes seconds however small the volume
def test_the_shading_of_an_mr_is_corrected_on_either_side():
    phantom = draw_phantom("head", 3, spacing=10)
    ct, mr = oblique(phantom.ct), oblique(phantom.mr)
    j = np.linspace(0.7, 1.4, mr.spatial_shape[1], dtype=np.float32)
    shaded = mr.with_array(mr.array * j[:, None])
    body = ct.with_array((ct.array > -300).astype(np.float32))

    plan = replace(MR_TO_CT, spacing=(8.0, 8.0, 8.0))
    with_n4 = replace(plan, bias_correction=True)
    seen = prepare_source(shaded, with_n4, body).array
    by_hand = prepare_source(correct_bias(to_canonical(shaded)[0], body), plan, body).array
    np.testing.assert_array_equal(seen, by_hand)
    assert np.abs(seen - prepare_source(shaded, plan, body).array).max() > 0.1

    plan = replace(CT_TO_MR, spacing=(8.0, 8.0, 8.0))
    with_n4 = replace(plan, bias_correction=True)
    prepared = prepare_source(ct, plan)
    found = Volume(prepared.mask.astype(np.float32), prepared.grid.affine)
    target = prepare_target(ct, shaded, prepared, with_n4)
    by_hand = prepare_target(ct, correct_bias(shaded, found), prepared, plan)
    np.testing.assert_array_equal(target.array, by_hand.array)
    np.testing.assert_array_equal(target.valid, by_hand.valid)
    # What N4 is there for: one tissue, one value.
    flat = prepare_target(ct, mr, prepared, plan).array
    untouched = prepare_target(ct, shaded, prepared, plan).array
    signal = prepared.mask & (flat > -0.6) & (flat < 0.8)
    spread = [np.log((a[signal] + 1) / (flat[signal] + 1)).std() for a in (target.array, untouched)]
    assert spread[0] < spread[1]


def test_the_shading_of_a_ct_is_none(head):
    ct, mr = head
    plan = replace(CT_TO_MR, spacing=None)
    one, two = (prepare_source(ct, p) for p in (plan, replace(plan, bias_correction=True)))
    np.testing.assert_array_equal(one.array, two.array)
    prepared = prepare_source(mr, MR_TO_CT)
    one, two = (
        prepare_target(mr, ct, prepared, p) for p in (MR_TO_CT, replace(MR_TO_CT, bias_correction=True))
    )
    np.testing.assert_array_equal(one.array, two.array)
