"""The same methods trained from several seeds: what another training changes, and what other patients would.

    python benchmarks/seeds.py WORK0 WORK1 WORK2 --reports slices/report-1 slices/report-10 \
        --against regression/report-own

WORK0, WORK1, … are folders that benchmarks/baselines.py worked in, alike but for --seed. Prints Markdown:
means over patients and seeds, with the lowest and the highest seed; paired differences from the method in
--against, its own seed from each seed; and the same means centre by centre, where centres are known.
"""

import argparse
from pathlib import Path

import numpy as np

from ct2mri.evaluation.statistics import average_by_patient, compare_systems
from ct2mri.files import read_json
from tables import COLUMNS, difference_in_words, markdown

SHOWN = ("psnr", "ssim", "mae", "ms_gmsd")

Numbers = dict[str, float]


class Trainings:
    """One method's reports, a seed each.

    Args:
        folders: what `ct2mri evaluate` wrote, by seed.
    """

    def __init__(self, folders: list[Path]) -> None:
        reports = [read_json(folder / "evaluation.json") for folder in folders]
        cases = [{case["case_id"] for case in report["cases"]} for report in reports]
        if any(ids != cases[0] for ids in cases):
            raise SystemExit(f"{', '.join(map(str, folders))} are of other cases each.")
        self.reports = reports
        self.patient_of = {case["case_id"]: case["patient_id"] for case in reports[0]["cases"]}
        self.centre_of = {case["patient_id"]: case["centre"] for case in reports[0]["cases"]}

    def by_patient(self, metric: str) -> list[Numbers]:
        """Patient → mean over the patient's cases, for each seed."""
        return [
            average_by_patient(
                {case["case_id"]: case["values"].get(metric) for case in report["cases"]}, self.patient_of
            )
            for report in self.reports
        ]


def over_seeds(numbers: list[Numbers]) -> Numbers:
    """Patient → mean over seeds."""
    return {patient: float(np.mean([of_seed[patient] for of_seed in numbers])) for patient in numbers[0]}


def means_row(trainings: Trainings) -> list[str]:
    """Each measure's mean over patients and seeds, and the range of the seeds' means."""
    cells = []
    for metric in SHOWN:
        means = [np.mean(list(numbers.values())) for numbers in trainings.by_patient(metric)]
        digits = COLUMNS[metric][1]
        cells.append(f"{np.mean(means):.{digits}f} ({min(means):.{digits}f} to {max(means):.{digits}f})")
    return cells


def differences_row(trainings: Trainings, against: Trainings) -> list[str]:
    """Each measure's paired difference: of the means over seeds, and seed by seed."""
    cells = []
    for metric in SHOWN:
        ours, theirs = trainings.by_patient(metric), against.by_patient(metric)
        same = {patient: patient for patient in ours[0]}
        found = compare_systems(over_seeds(ours), over_seeds(theirs), same)
        digits = COLUMNS[metric][1]
        each = [np.mean([a[name] - b[name] for name in same]) for a, b in zip(ours, theirs, strict=True)]
        cells.append(
            f"{difference_in_words(found, digits)}; {', '.join(f'{one:+.{digits}f}' for one in each)}"
        )
    return cells


def centres_row(trainings: Trainings, centre: str) -> list[str]:
    """Each measure's mean over one centre's patients and the seeds."""
    cells = []
    for metric in SHOWN:
        numbers = over_seeds(trainings.by_patient(metric))
        mean = np.mean([value for name, value in numbers.items() if trainings.centre_of[name] == centre])
        cells.append(f"{mean:.{COLUMNS[metric][1]}f}")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, nargs="+", help="folders of benchmarks/baselines.py, a seed each")
    parser.add_argument("--reports", nargs="+", required=True, help="METHOD/report-STEPS in each folder")
    parser.add_argument("--against", required=True, help="the one that the others are compared with")
    arguments = parser.parse_args()

    named = {
        report: Trainings([work / report for work in arguments.work])
        for report in (*arguments.reports, arguments.against)
    }
    against = named[arguments.against]
    headings = [COLUMNS[metric][0] for metric in SHOWN]
    seeds = [str(read_json(work / "request.json")["seed"]) for work in arguments.work]
    print(f"Seeds {', '.join(seeds)}; {len(against.centre_of)} patients.\n")
    print(markdown(["", *headings], [[name, *means_row(of)] for name, of in named.items()]))
    less = [[name, *differences_row(named[name], against)] for name in arguments.reports]
    print("\n" + markdown([f"less {arguments.against}", *headings], less))
    centres = sorted({centre for centre in against.centre_of.values() if centre is not None})
    rows = [
        [f"{name}, centre {centre}", *centres_row(of, centre)]
        for name, of in named.items()
        for centre in centres
    ]
    if rows:
        print("\n" + markdown(["", *headings], rows))


if __name__ == "__main__":
    main()
