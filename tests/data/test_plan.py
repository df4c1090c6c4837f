import json
from dataclasses import asdict, replace

import nibabel
import numpy as np
import pytest

from ct2mri.data.plan import Fingerprint, Plan, Split
from ct2mri.data.replay import prepare_source, restore_to_input
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError

PLAN = Plan(
    source_windows=[[-1024.0, 3000.0], [-160.0, 240.0]],
    target_percentile=99.5,
    target_range=(0.0, 321.5),
    split=Split(seed=3, train=["a", "b"], validation=["c"], test=["d"]),
    fingerprint=Fingerprint(
        cases=2,
        spacing_mm=[[1.0, 2.0]] * 3,
        body_size_mm=[[100.0, 200.0]] * 3,
        body_area_cm2=[200.0, 250.0],
        hu_percentiles={"1": [-900.0, -800.0], "50": [20.0, 40.0], "99": [900.0, 1200.0]},
        tissue_fractions=None,
        contrast_share=None,
        looks_like="head",
    ),
    spacing=(2.0, 2.0, 2.0),
    crop_margin_mm=8.0,
    body_threshold=-300.0,
)


def test_a_plan_comes_back_from_disk(tmp_path):
    PLAN.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == PLAN
    assert PLAN.channels == 2
    other = replace(PLAN, spacing=None, fingerprint=None, crop_margin_mm=None, body_threshold=None)
    other.write(tmp_path / "other.json")
    assert Plan.read(tmp_path / "other.json") == other


def test_what_results_depend_on_is_all_that_a_plan_says_but_of_training():
    decisive = PLAN.decisive
    assert set(asdict(PLAN)) - set(decisive) == {
        *("format_version", "anatomy", "registration", "split", "fingerprint", "assumptions")
    }
    assert json.loads(json.dumps(decisive)) == decisive, "it can be compared with what a sidecar holds"
    assert replace(PLAN, anatomy="head", fingerprint=None).decisive == decisive
    assert replace(PLAN, remove_table=True).decisive == {**decisive, "remove_table": True}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p.pop("spacing"), "lacks the field 'spacing'"),
        (lambda p: p.update(colour="red"), "unknown field 'colour'"),
        (lambda p: p["split"].pop("test"), "lacks the field 'test'"),
        (lambda p: p["split"]["test"].append("a"), "Patient a is under train and under test"),
        (lambda p: p["split"]["train"].append("a"), "Patient a is twice under train"),
        (lambda p: p.update(spacing=[1, 2]), "spacing"),
        (lambda p: p.update(spacing=[1, 2, 0]), "spacing"),
        (lambda p: p.update(source_windows=[[240, -160]]), "low < high"),
        (lambda p: p.update(source_windows=[]), "one or more"),
        (lambda p: p.update(source_windows=[[0, "x"]]), "cannot be read"),
        (lambda p: p.update(target_percentile=0), "target_percentile"),
        (lambda p: p.update(target_range=[0, -1]), "target_range"),
        (lambda p: p.update(source_units="K"), "HU, grey or relative"),
        (lambda p: p.update(format_version=99), "format_version 99"),
        (lambda p: p["split"].update(validation=None), "validation of the split is None; give a list"),
        (lambda p: p["split"].update(train="a"), "train of the split is 'a'; give a list"),
        (lambda p: p["split"].update(test=[7]), "test of the split is .7.; give a list .* in quotes"),
        (lambda p: p["split"].update(test=[["d"]]), "give a list"),
        (
            lambda p: p.update(assumptions="made of phantoms"),
            "assumptions is 'made of phantoms'; give a list",
        ),
        (lambda p: p.update(assumptions=None), "assumptions is None"),
        (lambda p: p.update(anatomy=5), "anatomy is 5; give a name in quotes, or null"),
        (lambda p: p.update(source_modality=None), "source_modality is None; give"),
        (lambda p: p.update(target_modality=""), "target_modality is ''; give"),
        (lambda p: p.update(source_windows=[[-float("inf"), 3000]]), "one or more"),
        (lambda p: p.update(source_windows=[[0, float("inf")]]), "one or more"),
        (lambda p: p.update(crop_margin_mm=float("nan")), "crop_margin_mm is nan"),
        (lambda p: p.update(crop_margin_mm=float("inf")), "crop_margin_mm is inf"),
        (lambda p: p.update(body_threshold=float("nan")), "body_threshold is nan"),
    ],
)
def test_an_edited_plan_is_checked(tmp_path, change, said):
    content = json.loads(json.dumps(asdict(PLAN)))
    change(content)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(content))
    with pytest.raises(RequestError, match=said):
        Plan.read(path)


def test_a_missing_or_damaged_plan(tmp_path):
    with pytest.raises(RequestError, match="no plan"):
        Plan.read(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text('{"spacing": ')
    with pytest.raises(RequestError, match="JSON"):
        Plan.read(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text("[1]")
    with pytest.raises(RequestError, match="object"):
        Plan.read(tmp_path / "plan.json")


def affine_of(orientation, spacing, degrees=0.0):
    """An affine with given axis codes, turned about two world axes."""
    codes = nibabel.orientations.axcodes2ornt(orientation)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for voxel_axis, (world_axis, sign) in enumerate(codes):
        affine[int(world_axis), voxel_axis] = sign * spacing[voxel_axis]
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = [-40, 25, 310]
    return affine


def body_in_air(shape, affine):
    """A smooth body in HU, a function of world coordinates: an ellipsoid about the middle of the grid."""
    index = np.stack([*np.indices(shape), np.ones(shape)])
    world = np.tensordot(affine, index, 1)[:3]
    middle = affine[:3] @ [*(np.array(shape) - 1) / 2, 1]
    offset = world - middle[:, None, None, None]
    distance = np.sqrt((offset[0] / 30) ** 2 + (offset[1] / 36) ** 2 + (offset[2] / 28) ** 2)
    hu = np.where(distance < 1, 40 + offset[0] + 0.5 * offset[1] - 0.7 * offset[2], -1000)
    return Volume(hu.astype(np.float32), affine), offset, distance


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SRA", "PIL"])
@pytest.mark.parametrize("degrees", [0, 17])
def test_restoring_without_resampling_is_exact(orientation, degrees):
    volume, _, _ = body_in_air((40, 48, 44), affine_of(orientation, (2, 2, 2), degrees))
    plan = replace(PLAN, source_windows=[[-1024.0, 3000.0]], spacing=None)
    prepared = prepare_source(volume, plan)
    assert prepared.grid.orientation == "RAS"
    assert prepared.array.shape[1:] == prepared.mask.shape == prepared.grid.shape
    assert np.prod(prepared.grid.shape) < volume.array.size  # it was cropped
    back = restore_to_input(prepared.array[0], prepared.grid, volume, fill=7)
    assert back.spatial_shape == volume.spatial_shape
    np.testing.assert_array_equal(back.affine, volume.affine)
    kept = back.array != 7
    expected = ((volume.array.astype(np.float64) + 1024) / 2012 - 1).astype(np.float32)
    np.testing.assert_allclose(back.array[kept], expected[kept], atol=1e-6)
    assert kept[volume.array > -300].all()


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SRA"])
@pytest.mark.parametrize("degrees", [0, 17])
def test_landmarks_keep_their_place_through_resampling_and_back(orientation, degrees):
    volume, _, distance = body_in_air((42, 51, 30), affine_of(orientation, (1.9, 1.6, 2.7), degrees))
    prepared = prepare_source(volume, replace(PLAN, spacing=(1.5, 2.1, 1.2)))
    np.testing.assert_allclose(prepared.grid.spacing, (1.5, 2.1, 1.2))
    # The body is linear in world coordinates inside, so linear resampling must give its very values.
    index = np.stack([*np.indices(prepared.grid.shape), np.ones(prepared.grid.shape)])
    middle = volume.affine[:3] @ [*(np.array(volume.spatial_shape) - 1) / 2, 1]
    world = np.tensordot(prepared.grid.affine, index, 1)[:3] - middle[:, None, None, None]
    inside = np.sqrt((world[0] / 30) ** 2 + (world[1] / 36) ** 2 + (world[2] / 28) ** 2) < 0.8
    hu = 40 + world[0] + 0.5 * world[1] - 0.7 * world[2]
    np.testing.assert_allclose(prepared.array[1][inside] * 200 + 40, hu[inside], atol=0.02)
    back = restore_to_input(prepared.array[1], prepared.grid, volume, fill=-1)
    assert back.grid.matches(volume.grid, tolerance_mm=0)
    inside = distance < 0.75
    np.testing.assert_allclose(back.array[inside] * 200 + 40, volume.array[inside], atol=0.05)


def test_padding_below_air_does_not_bleed_into_its_surroundings():
    volume, _, _ = body_in_air((30, 30, 30), affine_of("RAS", (3, 3, 3)))
    padded = volume.array.copy()
    padded[volume.array < -300] = -3024
    plan = replace(PLAN, spacing=(2.0, 2.0, 2.0), source_windows=[[-1024.0, 3000.0]])
    air = volume.with_array(np.where(volume.array < -300, -1024, volume.array))
    one, two = prepare_source(volume.with_array(padded), plan), prepare_source(air, plan)
    np.testing.assert_array_equal(one.array, two.array)


def test_a_given_mask_replaces_the_threshold():
    volume, offset, _ = body_in_air((30, 34, 28), affine_of("LPS", (3, 3, 3)))
    mask = volume.with_array((np.abs(offset) < 10).all(axis=0))
    prepared = prepare_source(volume, replace(PLAN, crop_margin_mm=0.0, spacing=(3.0, 3.0, 3.0)), mask)
    assert prepared.mask.all()
    assert prepared.mask.sum() == mask.array.sum()
    with pytest.raises(RequestError, match="mask has no voxel"):
        prepare_source(volume, PLAN, volume.with_array(np.zeros(volume.spatial_shape)))


def test_without_threshold_and_margin_the_whole_image_is_kept():
    volume = Volume(np.full((5, 6, 1), 100, np.float32), np.eye(4))
    plan = replace(
        PLAN,
        source_units="grey",
        source_windows=[[0.0, 255.0]],
        spacing=None,
        crop_margin_mm=None,
        body_threshold=None,
    )
    prepared = prepare_source(volume, plan)
    assert prepared.array.shape == (1, 5, 6, 1) and prepared.mask.all()


def test_air_alone_has_no_body():
    with pytest.raises(RequestError, match="No body"):
        prepare_source(Volume(np.full((9, 9, 9), -1000, np.float32), np.eye(4)), PLAN)


def test_one_slice_of_a_ct():
    volume, _, _ = body_in_air((40, 48, 1), affine_of("LPS", (2, 2, 5)))
    prepared = prepare_source(volume, PLAN)
    assert prepared.mask.any()
    back = restore_to_input(prepared.array[0], prepared.grid, volume, fill=-1)
    assert back.spatial_shape == (40, 48, 1)


# Other modalities, other directions


MR_TO_CT = replace(
    PLAN,
    source_modality="mr",
    target_modality="ct",
    source_units="relative",
    source_percentile=99.0,
    source_windows=[[0.0, 1.25]],
    body_threshold=None,
    remove_table=True,
    target_units="HU",
    target_scaling="window",
    target_window=[-1024.0, 3000.0],
    target_range=(-1024.0, 3000.0),
)


def test_a_plan_for_ct_from_mr_comes_back_from_disk(tmp_path):
    MR_TO_CT.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == MR_TO_CT
    assert (MR_TO_CT.source_fill, MR_TO_CT.target_fill) == (0, -1024)
    assert (PLAN.source_fill, PLAN.target_fill) == (-1024, 0)


def version_1():
    """What version 1 wrote for `PLAN`."""
    new = "source_percentile remove_table target_units target_scaling target_window target_range"
    new += " enhance_contrast bias_correction registration"
    content = {name: value for name, value in asdict(PLAN).items() if name not in new.split()}
    return json.loads(json.dumps({**content, "format_version": 1, "target_scale": 321.5}))


def test_a_plan_of_version_1_means_what_it_meant():
    assert Plan.from_dict(version_1()) == PLAN
    assert not PLAN.remove_table and PLAN.target_scaling == "percentile" and PLAN.target_units == "relative"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p.update(target_scale=-1), "target_scale is -1"),
        (lambda p: p.pop("target_scale"), "lacks the field 'target_scale'"),
        (lambda p: p.update(remove_table=True), "format_version 1.*unknown field 'remove_table'"),
        (lambda p: p.update(format_version=0), "format_version 0"),
    ],
)
def test_a_plan_of_version_1_is_checked(change, said):
    content = version_1()
    change(content)
    with pytest.raises(RequestError, match=said):
        Plan.from_dict(content)


@pytest.mark.parametrize(
    ("plan", "change", "said"),
    [
        (MR_TO_CT, {"source_percentile": None}, "source_percentile is None"),
        (MR_TO_CT, {"body_threshold": 0.1}, "found for each volume"),
        (PLAN, {"source_percentile": 99.0}, "source_units is HU"),
        (MR_TO_CT, {"target_scaling": "zscore"}, "window goes with HU"),
        (PLAN, {"target_units": "HU"}, "window goes with HU"),
        (MR_TO_CT, {"target_range": (0.0, 3000.0)}, "same .low, high. for both"),
        (MR_TO_CT, {"target_window": None}, "same .low, high. for both"),
        (PLAN, {"target_window": [0.0, 1.0]}, "set it to null"),
        (PLAN, {"target_range": (1.0, 2.0)}, "begins at 0"),
        (PLAN, {"target_range": (0.0, float("inf"))}, "low < high"),
        (MR_TO_CT, {"enhance_contrast": True}, "change HU"),
        (PLAN, {"bias_correction": True, "target_modality": "pet"}, "is for MR"),
        (PLAN, {"remove_table": "yes"}, "true or false"),
        (PLAN, {"registration": "affine"}, "none or rigid"),
        (PLAN, {"target_scaling": "minmax"}, "percentile, zscore or window"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(plan, change, said):
    with pytest.raises(RequestError, match=said):
        replace(plan, **change)


def mr_of(volume, gain):
    """An MR of a body in HU: signal where there is body, noise in the air around it."""
    noise = np.random.default_rng(0).normal(0, 2, volume.spatial_shape)
    signal = np.where(volume.array > -300, 100 + volume.array, 0)
    return volume.with_array((gain * np.abs(signal + noise)).astype(np.float32))


@pytest.mark.parametrize("orientation", ["RAS", "PIL"])
def test_a_source_without_units_is_divided_by_its_own_percentile(orientation):
    volume, _, distance = body_in_air((40, 48, 44), affine_of(orientation, (2, 2, 2), 17))
    plan = replace(MR_TO_CT, spacing=None)
    one, ten = prepare_source(mr_of(volume, 1), plan), prepare_source(mr_of(volume, 10), plan)
    np.testing.assert_array_equal(one.mask, ten.mask)
    np.testing.assert_allclose(one.array, ten.array, atol=1e-5)
    # The body is found, and its 99th percentile became 1, which lies at 1 / 1.25 of the window.
    assert abs(one.mask.sum() / (distance < 1).sum() - 1) < 0.03
    assert np.percentile(one.array[0][one.mask], 99) == pytest.approx(2 / 1.25 - 1, abs=0.01)
    assert (one.array[0][~one.mask] == -1).all()  # air is filled with nothing


def test_what_a_mask_holds_must_have_signal():
    volume = Volume(np.zeros((9, 9, 9), np.float32), np.diag([3.0, 3, 3, 1]))
    with pytest.raises(RequestError, match="No body"):
        prepare_source(volume, MR_TO_CT)
    with pytest.raises(RequestError, match="no value above 0 inside the body"):
        prepare_source(volume, MR_TO_CT, volume.with_array(np.ones((9, 9, 9))))


def test_the_table_is_removed_where_the_plan_says_so():
    volume, _, distance = body_in_air((48, 60, 40), affine_of("RAS", (2, 2, 2)))
    with_table = volume.array.copy()
    with_table[:, 3:5] = 300  # 4 mm thick, 20 mm behind the body
    volume_with_table = volume.with_array(with_table)
    plan = replace(PLAN, spacing=None, crop_margin_mm=None, source_windows=[[-1024.0, 3000.0]])
    seen = prepare_source(volume_with_table, plan)
    assert seen.array[0][:, 4].max() > -0.4
    removed = prepare_source(volume_with_table, replace(plan, remove_table=True))
    assert (removed.array[0][~removed.mask] == -1).all()
    np.testing.assert_array_equal(removed.array[0][removed.mask], seen.array[0][removed.mask])
    assert removed.mask[distance < 1].all()
