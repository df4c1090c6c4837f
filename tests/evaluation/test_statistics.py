import json

import numpy as np
import pytest
from scipy import stats

from ct2mri.errors import RequestError
from ct2mri.evaluation.statistics import (
    average_by_patient,
    bootstrap_interval,
    compare_systems,
    summarise_patients,
)


def alone(numbers):
    """Each case a patient."""
    return {name: name for name in numbers}


def test_several_cases_of_a_patient_count_once():
    numbers = {"a1": 1.0, "a2": 2.0, "a3": None, "b1": 10.0, "c1": None}
    patient_of = {"a1": "a", "a2": "a", "a3": "a", "b1": "b", "c1": "c"}
    assert average_by_patient(numbers, patient_of) == {"a": 1.5, "b": 10.0}
    summary = summarise_patients(numbers, patient_of)
    assert summary.mean == 5.75 and summary.median == 5.75 and summary.patients == 2
    assert summary.cases == 3 and summary.cases_without == 2
    assert summary.deviation == pytest.approx(np.std([1.5, 10], ddof=1))


def test_repeating_a_patients_slices_does_not_narrow_the_interval():
    rng = np.random.default_rng(0)
    values = {f"p{n}": rng.normal() for n in range(8)}
    slices = {f"{name}-{n}": value for name, value in values.items() for n in range(50)}
    patient_of = {name: name.split("-")[0] for name in slices}
    assert summarise_patients(slices, patient_of).interval == pytest.approx(
        summarise_patients(values, alone(values)).interval
    )


def test_the_interval_agrees_with_scipys_bootstrap():
    values = np.random.default_rng(1).gamma(2, size=30)
    expected = stats.bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=5)
    low, high = bootstrap_interval(values)
    spread = np.diff(expected.confidence_interval)[0]
    assert low == pytest.approx(expected.confidence_interval.low, abs=0.03 * spread)
    assert high == pytest.approx(expected.confidence_interval.high, abs=0.03 * spread)
    assert [low, high] == bootstrap_interval(values), "the same numbers every time"
    assert bootstrap_interval(values, level=0.5)[1] < high


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = [low <= 0 <= high for low, high in (bootstrap_interval(rng.normal(size=25)) for _ in range(300))]
    assert 0.88 < np.mean(hits) < 0.99


def test_paired_comparison():
    rng = np.random.default_rng(3)
    hard = rng.normal(30, 5, size=20)
    a = {f"p{n}": float(of + 1 + 0.5 * rng.normal()) for n, of in enumerate(hard)}
    b = {f"p{n}": float(of) for n, of in enumerate(hard)}
    found = compare_systems(a, b, alone(a))
    differences = np.array(list(a.values())) - np.array(list(b.values()))
    assert found.difference == pytest.approx(differences.mean())
    assert 0 < found.interval[0] < found.difference < found.interval[1]
    assert found.p_value == pytest.approx(stats.wilcoxon(differences).pvalue) and found.p_value < 0.01
    assert found.a_higher == (differences > 0).sum() and found.a_higher + found.b_higher == 20
    reverse = compare_systems(b, a, alone(a))
    assert reverse.difference == pytest.approx(-found.difference) and reverse.p_value == found.p_value
    of_a, of_b = (
        bootstrap_interval(np.array(list(a.values()))),
        bootstrap_interval(np.array(list(b.values()))),
    )
    assert of_a[0] < of_b[1], "unpaired, the two intervals overlap"


def test_only_cases_of_both_systems_count():
    a = {"x": 1.0, "y": None, "z": 3.0, "only a": 99.0}
    b = {"x": 0.0, "y": 5.0, "z": 1.0, "only b": -99.0}
    found = compare_systems(a, b, alone({**a, **b}))
    assert found.patients == 2 and found.mean_a == 2 and found.mean_b == 0.5 and found.difference == 1.5


def test_what_cannot_be_told_says_why():
    same = {f"p{n}": float(n) for n in range(5)}
    tied = compare_systems(same, same, alone(same))
    assert tied.p_value is None and "no patient differs" in tied.note and tied.interval == [0, 0]
    single = compare_systems({"x": 1.0}, {"x": 2.0}, {"x": "x"})
    assert single.p_value is None and "1 patients" in single.note and single.interval is None
    nobody = compare_systems({"x": None}, {"x": 2.0}, {"x": "x"})
    assert nobody.difference is None and nobody.mean_a is None and nobody.patients == 0
    empty = summarise_patients({"x": None}, {"x": "x"})
    assert (empty.mean, empty.deviation, empty.median, empty.interval) == (None,) * 4
    json.dumps([of.to_json() for of in (tied, single, nobody, empty)], allow_nan=False)
    with pytest.raises(RequestError, match="Case x"):
        average_by_patient({"x": float("nan")}, {"x": "x"})


@pytest.mark.parametrize("differing", [[0.1, 0.2, 0.3, 0.4, 0.5], [1.0] * 5])
@pytest.mark.parametrize("alike", [0, 3, 9, 60])
def test_patients_who_do_not_differ_make_the_test_no_surer(differing, alike):
    a = {f"p{n}": number for n, number in enumerate([*differing, *[0.0] * alike])}
    of = compare_systems(a, dict.fromkeys(a, 0.0), alone(a))
    # All five signs alike, one way or the other: 2 of 2⁵.
    assert of.p_value == pytest.approx(2 / 2**5) and of.patients == 5 + alike
