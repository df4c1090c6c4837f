import numpy as np
import pytest

from ct2mri.errors import RequestError
from ct2mri.evaluation.uncertainty import GROUPS, calibrate

SHAPE = (24, 24, 24)


def drawn(samples, seed=0, bias=0.0):
    """Mean and spread of samples of a model whose samples and truth have one distribution, but for a bias."""
    rng = np.random.default_rng(seed)
    width = rng.uniform(0.05, 0.5, SHAPE)
    truth = width * rng.standard_normal(SHAPE) + bias
    of_model = width * rng.standard_normal((samples, *SHAPE))
    return of_model.mean(axis=0), truth, of_model.std(axis=0, ddof=1)


@pytest.mark.parametrize("samples", [2, 3, 10])
def test_samples_that_differ_as_they_differ_from_the_truth_are_calibrated(samples):
    mean, truth, spread = drawn(samples)
    of = calibrate(mean, truth, spread, np.ones(SHAPE, bool), samples)
    for level in (50, 80, 95):
        assert of.values[f"inside_{level}"] == pytest.approx(level / 100, abs=0.015)
    assert of.values["spread_ratio"] == pytest.approx(1, abs=0.03)
    assert of.values["rank_correlation"] > 0.15
    assert len(of.groups["error"]) == GROUPS and of.groups["error"][-1] > of.groups["error"][0]
    assert not of.notes


def test_a_model_that_is_wrong_in_the_same_way_each_time_is_told():
    mean, truth, spread = drawn(5, bias=2.0)
    of = calibrate(mean, truth, spread, np.ones(SHAPE, bool), 5)
    assert of.values["inside_95"] < 0.5 and of.values["spread_ratio"] < 0.3


def test_an_unknown_number_of_samples_takes_the_normal_distribution():
    mean, truth, spread = drawn(3)
    known, unknown = (calibrate(mean, truth, spread, np.ones(SHAPE, bool), n) for n in (3, None))
    assert unknown.values["inside_95"] < known.values["inside_95"]
    assert "not known" in unknown.settings["interval"] and "n = 3" in known.settings["interval"]


def test_only_the_mask_counts_and_what_is_not_defined_says_why():
    mean, truth, spread = drawn(3)
    mask = np.zeros(SHAPE, bool)
    assert set(calibrate(mean, truth, spread, mask, 3).notes) >= {"inside_95", "rank_correlation"}
    mask[:12] = True
    spread_outside = spread.copy()
    spread_outside[12:] = np.nan
    whole = calibrate(mean, truth, spread, mask, 3)
    assert calibrate(mean, truth, spread_outside, mask, 3).values == whole.values
    constant = calibrate(mean, truth, np.full(SHAPE, 0.2), mask, 3)
    assert (
        constant.values["rank_correlation"] is None
        and "same everywhere" in constant.notes["rank_correlation"]
    )
    identical = calibrate(truth, truth, spread, mask, 3)
    assert identical.values["spread_ratio"] is None and identical.values["inside_50"] == 1


@pytest.mark.parametrize("wrong", [-1.0, np.nan])
def test_what_is_no_spread_is_refused(wrong):
    mean, truth, spread = drawn(3)
    spread[3, 3, 3] = wrong
    with pytest.raises(RequestError, match="0 or more"):
        calibrate(mean, truth, spread, np.ones(SHAPE, bool), 3)
