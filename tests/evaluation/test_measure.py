import json
from dataclasses import replace

import numpy as np
import pytest

from ct2mri.data.volume import Grid
from ct2mri.errors import RequestError
from ct2mri.evaluation.catalogue import describe
from ct2mri.evaluation.measure import Labels, measure
from ct2mri.evaluation.metrics import METRICS
from ct2mri.evaluation.pairing import Pair


def make_pair(shape=(12, 13, 14), affine=None, seed=0):
    rng = np.random.default_rng(seed)
    target = rng.uniform(size=shape).cumsum(axis=0).astype(np.float32) / shape[0]
    return Pair(
        "x",
        (target + 0.1 * rng.standard_normal(shape)).astype(np.float32),
        target,
        np.ones(shape, bool),
        "none",
        {},
        "given",
        Grid(shape, np.eye(4) if affine is None else affine),
        "x",
        ct=(2000 * target - 1000).astype(np.float32),
        ct_in_hu=True,
    )


def labels_of(pair):
    labels = (4 * pair.target).astype(np.int32)
    return Labels(labels, np.roll(labels, 1, axis=1))


def check_complete(measured, floor):
    """Every number is there or explained, with settings, and so is its noise floor."""
    for result in (measured, floor):
        json.dumps(vars(result), allow_nan=False)
        assert result.values.keys() == measured.values.keys()
        for name, value in result.values.items():
            assert value is not None or result.notes[name]
            assert describe(name, False).label
    groups = {name.rpartition(".")[0].partition(".")[0] for name in measured.values}
    assert groups <= measured.settings.keys()


@pytest.mark.parametrize(
    "shape", [(12, 13, 14), (30, 31, 1), (1, 20, 30), (3, 3, 3), (1, 1, 1), (40, 1, 1), (5, 30, 30)]
)
def test_any_shape_gives_numbers_or_reasons(shape):
    pair = make_pair(shape)
    check_complete(*measure(pair, labels_of(pair)))


@pytest.mark.parametrize(
    "what", ["empty mask", "one voxel", "constant prediction", "constant truth", "identical"]
)
def test_images_that_tell_little_give_numbers_or_reasons(what):
    pair = make_pair((16, 16, 16))
    mask = np.zeros_like(pair.mask)
    if what == "one voxel":
        mask[8, 8, 8] = True
    pair = {
        "empty mask": replace(pair, mask=mask),
        "one voxel": replace(pair, mask=mask),
        "constant prediction": replace(pair, prediction=np.full_like(pair.target, 0.5)),
        "constant truth": replace(pair, target=np.full_like(pair.target, 0.5)),
        "identical": replace(pair, prediction=pair.target),
    }[what]
    measured, floor = measure(pair, labels_of(pair))
    check_complete(measured, floor)
    if what == "identical":
        assert measured.notes["psnr"] == "identical" and measured.values["continuity.axial.ratio"] == 1
        assert measured.values["edges.against_truth_mm"] == 0 and floor.values["psnr"] is not None
    if what == "empty mask":
        assert all("mask is empty" in measured.notes[name] for name in METRICS)


def test_slices_are_called_by_their_plane_whatever_the_order_of_axes():
    pair = make_pair((8, 9, 10))
    straight, _ = measure(pair)
    turned = {
        name: getattr(pair, name).transpose(2, 0, 1)[:, ::-1]
        for name in ("prediction", "target", "mask", "ct")
    }
    affine = np.array([[0, -1, 0, 7], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    assert Grid((10, 8, 9), affine).orientation == "SLA"
    other, _ = measure(replace(pair, **turned, grid=Grid((10, 8, 9), affine)))
    assert other.values.keys() == straight.values.keys()
    for name, value in straight.values.items():
        if value is not None and not name.startswith("edges"):
            assert other.values[name] == pytest.approx(value, rel=1e-5), name
    assert other.profiles["axial"]["axis"] == 0 and len(other.profiles["axial"]["slices"]) == 10
    assert other.profiles["sagittal"]["mae"] == pytest.approx(straight.profiles["sagittal"]["mae"][::-1])


def test_a_single_slice_has_its_own_plane_alone():
    measured, floor = measure(make_pair((30, 31, 1)))
    assert set(measured.profiles) == {"axial"}
    assert measured.values["axial.ssim"] == pytest.approx(measured.values["ssim"])
    assert floor.values["axial.ssim"] == pytest.approx(floor.values["ssim"])
    assert "one slice" in measured.notes["continuity.axial.ratio"]
    assert "one slice" in floor.notes["continuity.axial.ratio"]


def test_without_a_ct_there_are_no_edges_and_regions_and_grey_pictures_have_no_hu():
    pair = make_pair()
    grey, _ = measure(replace(pair, ct_in_hu=False))
    assert "edges.median_mm" in grey.values and not any(name.startswith("regions") for name in grey.values)
    none, _ = measure(replace(pair, ct=None, ct_in_hu=False))
    assert not any(name.startswith(("edges", "regions")) for name in none.values)


def test_a_challenges_numbers_need_hu():
    pair = make_pair()
    with pytest.raises(RequestError, match="not in HU"):
        measure(pair, preset="synthrad2023")
    in_hu = replace(pair, prediction=pair.ct + 5, target=pair.ct, in_hu=True, data_range=4095.0)
    measured, floor = measure(in_hu, preset="synthrad2025")
    assert measured.values["synthrad2025.mae"] == pytest.approx(5, rel=1e-4)
    assert floor.values["synthrad2025.ms_ssim"] < measured.values["synthrad2025.ms_ssim"]
    assert describe("synthrad2025.mae", True).unit == "HU"


def test_a_label_that_the_prediction_alone_has_has_no_noise_floor_and_the_right_reason():
    pair = make_pair()
    labels = labels_of(pair)
    assert labels.predicted is not None
    labels.predicted[:2, :2] = 99
    measured, floor = measure(pair, labels)
    assert measured.values["labels.99.dice"] == 0 and floor.values["labels.99.dice"] is None
    assert floor.notes["labels.99.dice"] == "not defined: the truth has no such label"
    assert floor.values["labels.1.dice"] is not None
