"""What a prediction could reach at best: the truth without the noise of its measurement, measured as one.

    ct2mri phantom RAW --cases 24 --seed 2
    ct2mri phantom CLEAN_RAW --cases 24 --seed 2 --no_mr_noise
    ct2mri prepare RAW DATA --plan PLAN --splits SPLITS
    ct2mri prepare CLEAN_RAW CLEAN --plan PLAN --splits SPLITS
    python benchmarks/without_noise.py DATA CLEAN WORK

Noise cannot be told from a CT, so the best that a model can do is the MR without it, which changes less from
slice to slice than the truth does. WORK/predictions holds it for each held-out case of DATA, WORK/report what
`ct2mri evaluate` says of it.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from ct2mri import Volume, save_volume
from ct2mri.data.cases import PreparedDataset
from ct2mri.data.intensity import scale_target, unscale_target
from ct2mri.data.replay import to_target_units
from ct2mri.files import read_json
from quality import COLUMNS, cells


def write_clean(noisy: PreparedDataset, clean: PreparedDataset, split: str, folder: Path) -> None:
    """Write each case's target without noise, on the scale of the one with noise, as a model would."""
    for case_id in noisy.case_ids(split):
        case, other = noisy.case(case_id), clean.case(case_id)
        measured = unscale_target(other.target, other.target_range)
        scaled = scale_target(measured, case.target_range)
        volume = Volume(to_target_units(scaled, noisy.plan), case.affine)
        save_volume(volume, folder / f"{case_id}.nii.gz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="prepared phantoms")
    parser.add_argument("clean", type=Path, help="the same phantoms, whose MRs have no noise, prepared alike")
    parser.add_argument("work", type=Path, help="folder for what is written")
    parser.add_argument("--split", default="test")
    arguments = parser.parse_args()

    predictions, report = arguments.work / "predictions", arguments.work / "report"
    write_clean(
        PreparedDataset(arguments.data), PreparedDataset(arguments.clean), arguments.split, predictions
    )
    words = ["evaluate", predictions, "--data", arguments.data, "--split", arguments.split, "-o", report]
    subprocess.run([sys.executable, "-m", "ct2mri", *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    summary = read_json(report / "evaluation.json")["summary"]
    print("| | " + " | ".join(heading for heading, _ in COLUMNS.values()) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    print("| truth without its noise |", cells(summary))


if __name__ == "__main__":
    main()
