"""What numbers of several cases say: means over patients with bootstrap intervals, and two systems compared.

The unit is the patient: several cases of one patient (scans, slices) are averaged first, since they are not
independent and would make every interval too narrow.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ct2mri.errors import RequestError

LEVEL = 0.95
DRAWS = 9999
SEED = 0
FEWEST_PATIENTS = 2

SETTINGS = {
    "unit": "the patient: cases of one patient are averaged first",
    "interval": f"{LEVEL:.0%} percentile bootstrap of the mean over patients, {DRAWS} draws, seed {SEED}",
    "test": "Wilcoxon signed-rank on the patients' differences, two-sided; differences of zero are left out, "
    "ties get their mean rank; exact for up to 50 differences (with ties up to 13), else the normal "
    "approximation; not corrected for the number of metrics",
}


@dataclass(frozen=True)
class Summary:
    """One metric over patients; None where there is nothing to tell it from.

    Attributes:
        mean: over patients.
        deviation: sample standard deviation over patients.
        median: over patients.
        interval: bootstrap confidence interval of the mean, [low, high].
        patients: with a number.
        cases: with a number.
        cases_without: cases whose number is not defined.
    """

    mean: float | None
    deviation: float | None
    median: float | None
    interval: list[float] | None
    patients: int
    cases: int
    cases_without: int

    def to_json(self) -> dict[str, Any]:
        """As a dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """One metric of two systems, A and B, on the same patients.

    Attributes:
        patients: with a number from both.
        mean_a, mean_b: over these patients.
        difference: mean over patients of A − B; None without patients.
        interval: bootstrap confidence interval of the difference; None with fewer than two patients.
        a_higher, b_higher: patients for whom that system's number is the higher one.
        p_value: of the Wilcoxon signed-rank test.
        note: why the test is not defined; empty where it is.
    """

    patients: int
    mean_a: float | None
    mean_b: float | None
    difference: float | None
    interval: list[float] | None
    a_higher: int
    b_higher: int
    p_value: float | None
    note: str

    def to_json(self) -> dict[str, Any]:
        """As a dictionary."""
        return asdict(self)


def average_by_patient(
    numbers: Mapping[str, float | None], patient_of: Mapping[str, str]
) -> dict[str, float]:
    """Each patient's mean over the cases that have a number, sorted by patient.

    Args:
        numbers: case → number, None where not defined.
        patient_of: case → patient.

    Raises:
        RequestError: a number is not finite.
    """
    of_patient: dict[str, list[float]] = defaultdict(list)
    for case_id, number in numbers.items():
        if number is None:
            continue
        if not np.isfinite(number):
            raise RequestError(
                f"Case {case_id} has the number {number}; leave it out (null) where not defined."
            )
        of_patient[patient_of[case_id]].append(number)
    return {patient_id: float(np.mean(of_patient[patient_id])) for patient_id in sorted(of_patient)}


def summarise_patients(numbers: Mapping[str, float | None], patient_of: Mapping[str, str]) -> Summary:
    """Mean, deviation, median and interval of one metric over patients.

    Args:
        numbers: case → number, None where not defined.
        patient_of: case → patient.
    """
    of_patient = average_by_patient(numbers, patient_of)
    values = np.array(list(of_patient.values()))
    defined = sum(number is not None for number in numbers.values())
    return Summary(
        mean=float(values.mean()) if values.size else None,
        deviation=float(values.std(ddof=1)) if values.size > 1 else None,
        median=float(np.median(values)) if values.size else None,
        interval=bootstrap_interval(values),
        patients=values.size,
        cases=defined,
        cases_without=len(numbers) - defined,
    )


def bootstrap_interval(values: NDArray[np.float64], level: float = LEVEL) -> list[float] | None:
    """Percentile bootstrap confidence interval of the mean, [low, high]; None of fewer than two values."""
    if len(values) < FEWEST_PATIENTS:
        return None
    means = _draws(len(values)) @ values
    low, high = np.percentile(means, [50 * (1 - level), 50 * (1 + level)])
    return [float(low), float(high)]


@lru_cache(maxsize=8)
def _draws(size: int) -> NDArray[np.float64]:
    """The weight of each of `size` values in each draw with replacement, (draws, size).

    The same for every metric: hundreds of intervals are wanted of the same patients.
    """
    rng = np.random.default_rng(SEED)
    return rng.multinomial(size, np.full(size, 1 / size), DRAWS) / size


def compare_systems(
    a: Mapping[str, float | None], b: Mapping[str, float | None], patient_of: Mapping[str, str]
) -> Comparison:
    """Paired differences A − B of one metric over the patients whose cases both systems have a number for.

    Cases that only one system has a number for are left out of both.

    Args:
        a: case → number of the first system, None where not defined.
        b: likewise of the second.
        patient_of: case → patient.
    """
    shared = [case_id for case_id, number in a.items() if number is not None and b.get(case_id) is not None]
    of_a = average_by_patient({case_id: a[case_id] for case_id in shared}, patient_of)
    of_b = average_by_patient({case_id: b[case_id] for case_id in shared}, patient_of)
    values_a, values_b = np.array(list(of_a.values())), np.array(list(of_b.values()))
    differences = values_a - values_b
    p_value, note = _signed_rank(differences)
    some = differences.size > 0
    return Comparison(
        patients=differences.size,
        mean_a=float(values_a.mean()) if some else None,
        mean_b=float(values_b.mean()) if some else None,
        difference=float(differences.mean()) if some else None,
        interval=bootstrap_interval(differences),
        a_higher=int((differences > 0).sum()),
        b_higher=int((differences < 0).sum()),
        p_value=p_value,
        note=note,
    )


def _signed_rank(differences: NDArray[np.float64]) -> tuple[float | None, str]:
    """Two-sided p-value of the Wilcoxon signed-rank test, or why there is none."""
    if differences.size < FEWEST_PATIENTS:
        return None, f"not defined: {differences.size} patients, {FEWEST_PATIENTS} are the fewest"
    if not differences.any():
        return None, "not defined: no patient differs between the two"
    # Left in, zeros count towards the size above which scipy takes the normal approximation, which is too
    # sure of the few differences that are left.
    return float(stats.wilcoxon(differences[differences != 0]).pvalue), ""
