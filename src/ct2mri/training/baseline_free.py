"""The two baselines that cost nothing: a table from source to target values, and the mean volume."""

import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ct2mri.data.cases import SLICE_AXIS, PreparedCase, PreparedDataset
from ct2mri.data.plan import Plan
from ct2mri.diffusion import SeededNoise
from ct2mri.errors import RequestError
from ct2mri.models.lookup import AIR, LookupTable, MeanVolumes, resized
from ct2mri.options.training import TrainBaselineOptions
from ct2mri.processes import place
from ct2mri.stages import Condition, LookupStage, MeanStage, Stage, body_box, kind_of_volume
from ct2mri.training.log import RunLog
from ct2mri.training.pictures import strip
from ct2mri.training.run import RunFolder
from ct2mri.training.supervisor import Validation

BINS = 2048
"""Of source values in [−1, 1]: about 2 HU each in the widest usual window."""
SHOWN_CASES = 4


def fit_lookup(cases: Sequence[PreparedCase], plan: Plan) -> LookupStage:
    """The mean target value of each source value over the bodies of these cases, where targets are valid.

    Of the source windows it takes the widest. A knot lies at the mean source value of each bin that has
    voxels, so that where source and target are related linearly nothing is lost by the bins.
    """
    channel = int(np.argmax([high - low for low, high in plan.source_windows]))
    count, sources, targets = (np.zeros(BINS) for _ in range(3))
    for case in tqdm(cases, desc="hu-lookup", unit="case"):
        inside = np.array(case.mask & case.valid)
        source = np.array(case.source[channel])[inside].astype(np.float64)
        target = np.array(case.target)[inside].astype(np.float64).clip(-1, 1)
        bins = np.clip(((source + 1) / 2 * BINS).astype(int), 0, BINS - 1)
        count += np.bincount(bins, minlength=BINS)
        sources += np.bincount(bins, source, BINS)
        targets += np.bincount(bins, target, BINS)
    some = count > 0
    knots, values = (torch.from_numpy(total[some] / count[some]).float() for total in (sources, targets))
    return LookupStage(LookupTable.of(knots, values), channel=channel)


def fit_mean(cases: Sequence[PreparedCase]) -> MeanStage:
    """The mean of the targets inside the boxes of their bodies, each patient counting once.

    Volumes and slices of each orientation have means of their own, of the median number of voxels.
    """
    scans = Counter(case.patient_id for case in cases)
    bodies: dict[str, list[tuple[PreparedCase, tuple[slice, ...]]]] = {}
    for case in cases:
        box = body_box(torch.from_numpy(np.array(case.mask)))
        bodies.setdefault(kind_of_volume(case.spatial_shape), []).append((case, box))
    means = {}
    for kind, members in bodies.items():
        sizes = [[part.stop - part.start for part in box] for _, box in members]
        shape = [int(n) for n in np.rint(np.median(sizes, axis=0))]
        total, weights = torch.zeros(shape), torch.zeros(shape)
        for case, box in tqdm(members, desc=f"mean {kind}", unit="case"):
            target = torch.from_numpy(np.array(case.target[box], np.float32)).clamp(-1, 1)
            weight = torch.from_numpy(np.array(case.valid[box], np.float32)) / scans[case.patient_id]
            total += resized(target * weight, shape)
            weights += resized(weight, shape)
        means[kind] = torch.where(weights > 0, total / weights.clamp(min=1e-6), AIR)
    return MeanStage(MeanVolumes.of(means))


def validate_stage(stage: Stage, cases: Sequence[PreparedCase], names: tuple[str, str]) -> Validation:
    """Compare a stage's volumes with unseen patients' real ones, as the other trainings do.

    Args:
        stage: to draw with.
        cases: validation cases; those without a valid voxel in the body are passed over.
        names: of source and target in the pictures.
    """
    errors, squares, rows = [], [], list[list[NDArray[np.float32]]]()
    for case in cases:
        inside = np.array(case.mask & case.valid)
        if not inside.any():
            continue
        condition: Condition = {
            "source": torch.from_numpy(np.array(case.source)),
            "body": torch.from_numpy(np.array(case.mask, np.float32))[None],
        }
        drawn = stage.sample(condition, SeededNoise(0))[0].numpy()
        target = np.array(case.target).clip(-1, 1)
        difference = (drawn - target)[inside] / 2  # in units of the target's range
        errors.append(float(np.abs(difference).mean()))
        squares.append(float(np.square(difference).mean()))
        if len(rows) < SHOWN_CASES:
            axis = SLICE_AXIS[(case.planes() or ["axial"])[-1]]  # axial where there is a choice
            middle = case.spatial_shape[axis] // 2
            rows.append([image.take(middle, axis) for image in (np.array(case.source[0]), drawn, target)])
    if not errors:
        raise RequestError(
            "The data set has no validation case with a valid voxel in the body; "
            "prepare it with a larger --validation_fraction."
        )
    numbers = {
        "l1": float(np.mean(errors)),
        "psnr": float(np.mean(-10 * np.log10(np.maximum(squares, 1e-12)))),
    }
    columns = (names[0], "drawn", f"real {names[1]}")
    return Validation(numbers["l1"], numbers, {"middle": strip(columns, rows)})


def train_free(options: TrainBaselineOptions) -> None:
    """Make `hu-lookup` or `mean` of the training cases, at once.

    Raises:
        RequestError: the data set lacks cases, or the run folder holds another run.
    """
    if place().rank > 0:
        return
    if options.hu_shift:
        print(f"Note: --hu_shift is not used here: {options.kind} is made of the CTs as they are.")
    dataset = PreparedDataset(options.data)
    plan = dataset.plan
    training = [dataset.case(case_id) for case_id in dataset.case_ids("train")]
    training = [case for case in training if bool((case.mask & case.valid).any())]
    if not training:
        raise RequestError(
            f"{options.data} has no training case with a valid voxel in the body; "
            "prepare it with smaller other fractions."
        )
    folder = RunFolder(options.output_dir, "baseline", options, plan)
    if folder.is_finished():
        print(f"{folder.path} is trained already.")
        return
    start = time.perf_counter()
    stage: Stage = fit_lookup(training, plan) if options.kind == "hu-lookup" else fit_mean(training)
    seconds = time.perf_counter() - start
    validating = [dataset.case(case_id) for case_id in dataset.case_ids("validation")]
    names = (plan.source_modality.upper(), plan.target_modality.upper())
    found = validate_stage(stage, validating[: options.validation_cases], names)
    folder.clear()
    stage.save_stage(folder.path / "best")
    log = RunLog(folder.path, 0)
    log.validate(0, found.numbers, found.pictures)
    log.close()
    folder.record(
        device="cpu",
        items=len(training),
        finished=True,
        steps=0,
        seconds=round(seconds, 1),
        best={"step": 0, "score": found.score},
    )
    numbers = ", ".join(f"{name} {number:.4g}" for name, number in found.numbers.items())
    print(f"{folder.path}: made of {len(training)} cases in {seconds:.1f} s; validation {numbers}.")
