"""How slices follow one another, of two systems: along each axis, and over the three.

    python benchmarks/continuity.py REPORT REPORT_OF_ANOTHER

REPORTs are folders that `ct2mri evaluate` wrote on the same cases. Shown are two measures of it, both best at
0: how far the change from slice to slice is from the truth's in size (distance of `ratio` from 1), and the
error of the change itself (`error`); then the second system less the first, patient by patient.
"""

import argparse
from pathlib import Path

from ct2mri.evaluation.compare import distance_from_best
from ct2mri.evaluation.statistics import compare_systems
from ct2mri.files import read_json
from tables import difference_in_words, markdown

AXES = ("axial", "coronal", "sagittal")
MEASURES = {"ratio": "distance of the change from the truth's", "error": "error of the change"}


def mean_distance(case: dict, measure: str, axes: tuple[str, ...]) -> float | None:
    """A case's distance from the best value, in the mean over axes; None where one is not defined."""
    names = [f"continuity.{axis}.{measure}" for axis in axes]
    found = [distance_from_best(name, case["values"].get(name)) for name in names]
    return None if None in found else sum(found) / len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reports", type=Path, nargs=2, metavar="REPORT", help="of `ct2mri evaluate`")
    arguments = parser.parse_args()

    first, second = (read_json(report / "evaluation.json")["cases"] for report in arguments.reports)
    patient_of = {case["case_id"]: case["patient_id"] for case in first}
    rows = []
    for measure, words in MEASURES.items():
        for axes in (*((axis,) for axis in AXES), AXES):
            one, other = (
                {case["case_id"]: mean_distance(case, measure, axes) for case in cases}
                for cases in (first, second)
            )
            found = compare_systems(other, one, patient_of)
            means = [
                "not defined" if mean is None else f"{mean:.4f}" for mean in (found.mean_b, found.mean_a)
            ]
            where = axes[0] if len(axes) == 1 else "mean of the three"
            better = f"{found.b_higher} of {found.patients}"
            rows.append([f"{words}, {where}", *means, difference_in_words(found, 4), better])
    print(markdown(["best at 0", "first", "second", "second less first", "patients better"], rows))


if __name__ == "__main__":
    main()
