import json

import numpy as np
import pytest
from scipy import ndimage

from ct2mri.evaluation.continuity import slice_continuity


def make_truth(shape=(24, 22, 20), seed=0):
    truth = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2)
    return truth / truth.std()


EVERYWHERE = np.ones((24, 22, 20), bool)


def test_the_truth_itself_is_perfect_along_every_axis():
    truth = make_truth()
    for axis in range(3):
        found = slice_continuity(truth, truth, EVERYWHERE, axis)
        assert found.values == {"ratio": 1, "log_ratio": 0, "error": 0, "uneven": 0, "brightness": 0}
        assert not found.notes
        assert len(found.steps) == truth.shape[axis] - 1 and found.prediction == found.target


def test_too_smooth_is_below_and_flicker_above():
    truth = make_truth()
    noise = np.random.default_rng(1).standard_normal(truth.shape)
    smooth = slice_continuity(ndimage.gaussian_filter1d(truth, 2, axis=2), truth, EVERYWHERE, 2)
    rough = slice_continuity(truth + 0.5 * noise, truth, EVERYWHERE, 2)
    assert smooth.values["ratio"] < 0.9 and smooth.values["log_ratio"] < -0.1
    assert rough.values["ratio"] > 1.2 and rough.values["log_ratio"] > 0.2
    twice = slice_continuity(2 * truth, truth, EVERYWHERE, 2)
    assert twice.values["ratio"] == pytest.approx(2) and twice.values["log_ratio"] == pytest.approx(np.log(2))
    assert twice.values["uneven"] == pytest.approx(0, abs=1e-9)


def test_blur_and_flicker_that_cancel_in_the_ratio_add_up_in_the_error():
    truth = make_truth()
    blurred = ndimage.gaussian_filter1d(truth, 2, axis=2)
    noise = np.random.default_rng(4).standard_normal(truth.shape)
    both = blurred + 0.25 * noise
    for prediction in (blurred, both, 2 * truth, truth[::-1]):
        found = slice_continuity(prediction, truth, EVERYWHERE, 2).values["error"]
        change, error = np.diff(truth, axis=2), np.diff(prediction - truth, axis=2)
        assert found == pytest.approx(np.abs(error).mean() / np.abs(change).mean())
    once, twice = (slice_continuity(image, truth, EVERYWHERE, 2).values for image in (blurred, both))
    assert abs(twice["log_ratio"]) < abs(once["log_ratio"]) and twice["error"] > once["error"]
    elsewhere = slice_continuity(truth[::-1], truth, EVERYWHERE, 2).values
    assert elsewhere["ratio"] == pytest.approx(1) and elsewhere["error"] > 1


def test_slices_drawn_one_by_one_flicker_across_themselves_alone():
    """A brightness of its own for each slice: seen across the slices, not along them."""
    truth = make_truth()
    offsets = 0.3 * np.random.default_rng(2).standard_normal(truth.shape[2])
    across = slice_continuity(truth + offsets, truth, EVERYWHERE, 2).values
    along = slice_continuity(truth + offsets, truth, EVERYWHERE, 0).values
    assert along["ratio"] == pytest.approx(1) and along["brightness"] == pytest.approx(0, abs=1e-9)
    change = np.abs(np.diff(truth, axis=2)).mean()
    assert across["brightness"] == pytest.approx(np.sqrt(np.mean(np.diff(offsets) ** 2)) / change)
    assert across["ratio"] > 1.1


def test_one_seam_is_found_where_it_is():
    truth = make_truth()
    seam = truth.copy()
    seam[:, :, 8:] = np.roll(seam[:, :, 8:], 6, axis=0)
    found = slice_continuity(seam, truth, EVERYWHERE, 2)
    excess = np.array(found.prediction) / np.array(found.target)
    assert found.steps[int(excess.argmax())] == 7 and excess.max() > 2
    assert found.values["uneven"] > 0.1


def test_only_neighbours_in_the_mask_count():
    truth = make_truth()
    mask = np.random.default_rng(3).uniform(size=truth.shape) < 0.8
    prediction = truth + 0.1
    expected = slice_continuity(prediction, truth, mask, 1)
    prediction[~mask] = np.nan
    assert slice_continuity(prediction, truth, mask, 1) == expected
    assert expected.values["ratio"] == pytest.approx(1)


def test_what_is_not_defined_says_why():
    truth = make_truth()
    cases = [
        (truth[:, :, :1], truth[:, :, :1], EVERYWHERE[:, :, :1], "there is one slice"),
        (truth, truth, ~EVERYWHERE, "no neighbouring slices"),
        (truth, np.ones_like(truth), EVERYWHERE, "truth does not change"),
    ]
    for prediction, target, mask, why in cases:
        found = slice_continuity(prediction, target, mask, 2)
        assert set(found.values.values()) == {None}
        assert found.notes.keys() == found.values.keys() and all(why in note for note in found.notes.values())
    flat = slice_continuity(np.ones_like(truth), truth, EVERYWHERE, 2)
    assert flat.values["ratio"] == 0 and flat.values["log_ratio"] is None and flat.values["uneven"] is None
    assert flat.values["error"] == 1 and flat.notes.keys() == {"log_ratio", "uneven"}
    json.dumps([flat.values, flat.profile()], allow_nan=False)
