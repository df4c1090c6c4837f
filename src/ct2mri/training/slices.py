"""Training of the 2D diffusion model (2D-SDM), which draws target slices from source slices."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ct2mri.data.cases import SLICE_AXIS, Orientation, PreparedCase, PreparedDataset, neighbour_offsets
from ct2mri.data.datasets import SliceDataset
from ct2mri.data.plan import Plan
from ct2mri.diffusion import NoiseSettings, SeededNoise, check_steps, noisy_sample, sample
from ct2mri.errors import RequestError
from ct2mri.files import write_json
from ct2mri.losses import diffusion_loss
from ct2mri.models import ScalableUNet
from ct2mri.options.training import TrainSlicesOptions
from ct2mri.stages import SlicesStage, Stage
from ct2mri.training.loop import check_options, fit
from ct2mri.training.module import (
    Batch,
    StageModule,
    begin_at_estimate,
    crop_shrink,
    draw_diffusion,
    initial_facts,
    load_initial_weights,
    make_unet,
    source_shift,
)
from ct2mri.training.pictures import strip
from ct2mri.training.run import RunFolder
from ct2mri.training.supervisor import Validation

PLANES = 4
"""Slices of each validation case and orientation, spread evenly over the body."""
SHOWN_CASES = 4


class SliceModule(StageModule):
    """Has a 2D scalable U-Net that draws target slices from source slices, trained by whatever method.

    Args:
        options: how to train.
        source_channels: channels of the source: the plan's windows, times the slices shown for one.
    """

    model: ScalableUNet

    def __init__(self, options: TrainSlicesOptions, source_channels: int) -> None:
        super().__init__(
            options,
            make_unet(options, spatial_dims=2, sample_channels=1, condition_channels=source_channels),
        )
        self.options = options

    @abstractmethod
    def draw(self, source: Tensor, noise: SeededNoise) -> Tensor:
        """Target slices (n, 1, H, W), drawn as they will be in use, of source slices (n, C, H, W)."""

    @abstractmethod
    def fixed_loss(self, planes: "Planes", noise: SeededNoise) -> float:
        """The training loss of some slices, the same at each validation, with nothing left to chance."""

    @abstractmethod
    def stage(self) -> Stage:
        """The stage around the network."""


class SlicesModule(SliceModule):
    """Is trained to denoise target slices given source slices."""

    def __init__(self, options: TrainSlicesOptions, source_channels: int) -> None:
        super().__init__(options, source_channels)
        self.settings = NoiseSettings.from_options(options)

    def loss(self, batch: Batch) -> Tensor:
        """The diffusion loss of a batch of slices (B, ·, H, W), over valid pixels."""
        options, share = self.options, self.options.last_timestep_share
        source, place = batch["source"], (slice(None), slice(None))
        # Out of training mode the memory of the largest batch is measured, which must stay as large as it is.
        if options.denoising_crop_size is not None and self.training:
            smaller = smaller_crop(batch, options)
            share = 1.0 if smaller is None else 0.0
            place = smaller or place
        batch = {name: tensor if name == "key" else tensor[..., *place] for name, tensor in batch.items()}
        target = batch["target"]
        noise, timestep = draw_diffusion(target, batch["key"], self.settings, share, options.seed)
        if options.restart_from_estimate:  # of the whole crops, as sampling has the whole slices
            noise = begin_at_estimate(
                *(self.model, source, noise, target, timestep, self.settings),
                place=place,
                compiled=options.compile,
            )
        network_input, training_target = noisy_sample(target, noise, timestep, self.settings)
        output = self.model(network_input, timestep, batch["source"])
        return diffusion_loss(
            output,
            training_target,
            timestep,
            self.settings,
            loss=options.loss,
            weight=batch["weight"],
            min_snr_gamma=options.min_snr_gamma,
            gradient_weight=options.gradient_weight,
            from_estimate=options.restart_from_estimate,
        )

    def draw(self, source: Tensor, noise: SeededNoise) -> Tensor:
        """Sampled by the stage's own sampler and steps."""
        shape = (len(source), 1, *source.shape[2:])

        def step_noise(step: int) -> Tensor:
            return noise(shape, stage="slices", step=step)

        return sample(
            self.model,
            source,
            step_noise(-1).to(source),
            self.settings,
            sampler=self.options.sampler,
            num_inference_steps=self.options.num_inference_steps,
            step_noise=step_noise,
        )

    def fixed_loss(self, planes: "Planes", noise: SeededNoise) -> float:
        """The training loss at the last timestep and at others that are trained, spread evenly."""
        device, settings = self.device, self.settings
        target = planes.target.to(device)
        highest = settings.restart_timestep or settings.last_timestep
        timestep = torch.linspace(highest, 0, len(target) + 1)[:-1].long().to(device)
        timestep[0] = settings.last_timestep
        source = planes.source.to(device)
        fixed = noise(tuple(target.shape), stage="loss").to(target)
        if self.options.restart_from_estimate:
            fixed = begin_at_estimate(self.model, source, fixed, target, timestep, settings)
        network_input, training_target = noisy_sample(target, fixed, timestep, settings)
        output = self.model(network_input, timestep, source)
        return float(
            diffusion_loss(
                output,
                training_target,
                timestep,
                settings,
                loss=self.options.loss,
                weight=planes.weight.to(device),
                min_snr_gamma=self.options.min_snr_gamma,
                gradient_weight=self.options.gradient_weight,
                from_estimate=self.options.restart_from_estimate,
            )
        )

    def stage(self) -> Stage:
        """A slices stage."""
        return SlicesStage(
            self.model,
            self.settings,
            sampler=self.options.sampler,
            num_inference_steps=self.options.num_inference_steps,
            orientations=tuple(self.options.draft_orientations),
            neighbours=self.options.neighbours,
        )


def smaller_crop(batch: Batch, options: TrainSlicesOptions) -> tuple[slice, slice] | None:
    """Rows and columns of smaller crops of a batch, for timesteps before the last; None: it is at the last.

    Which of the two, and what is cut out, follows from the batch's number alone, so that all parts of a batch
    agree.
    """
    random = np.random.default_rng((options.seed, int(batch["key"][0, 0]), 2))
    if random.random() < options.last_timestep_share:
        return None
    assert options.denoising_crop_size is not None
    edge = options.denoising_crop_size - int(random.integers(crop_shrink(options)))
    top, left = (int(random.integers(max(0, n - edge) + 1)) for n in batch["target"].shape[2:])
    return slice(top, top + edge), slice(left, left + edge)


@dataclass(frozen=True, eq=False)
class Planes:
    """Some slices of one case in one orientation: `source` (n, C, H, W); the others (n, 1, H, W)."""

    orientation: Orientation
    source: Tensor
    target: Tensor
    weight: Tensor
    inside: Tensor

    @classmethod
    def of(cls, case: PreparedCase, orientation: Orientation, neighbours: int = 0) -> "Planes":
        """Slices at even distances through the body, and what of the source is shown beside them."""
        axis = SLICE_AXIS[orientation]
        wanted = case.mask & case.valid
        indices = np.flatnonzero(wanted.any(axis=tuple(a for a in range(3) if a != axis)))
        places = np.linspace(0, len(indices) - 1, PLANES + 2)[1:-1]
        chosen = np.unique(indices[np.rint(places).astype(int)])

        def planes(array: NDArray[np.generic], offset: int = 0) -> Tensor:
            """(C, i, j, k) → (n, C, H, W)."""
            numbers = np.clip(chosen + offset, 0, array.shape[axis + 1] - 1)
            stack = np.moveaxis(array.take(numbers, axis + 1), axis + 1, 0)
            return torch.from_numpy(np.ascontiguousarray(stack, dtype=np.float32))

        return cls(
            orientation,
            source=torch.cat(
                [planes(case.source, offset) for offset in neighbour_offsets(neighbours)], dim=1
            ),
            target=planes(case.target[None]).clamp(-1, 1),
            weight=planes(case.valid[None]),
            inside=planes(wanted[None]),
        )


class SlicesValidation:
    """Compares drawn slices of unseen patients with the real ones, always the same with the same noise.

    The best weights are those whose slices, sampled as they will be in use, have the lowest mean absolute
    error (`l1`) in the body; `loss` is the training loss at fixed timesteps.

    Args:
        cases: validation cases.
        options: how the network is trained.
        names: of source and target in the pictures.
    """

    def __init__(
        self, cases: Sequence[PreparedCase], options: TrainSlicesOptions, names: tuple[str, str]
    ) -> None:
        self.options = options
        self.names = names
        self.planes = [
            Planes.of(case, orientation, options.neighbours)
            for case in cases
            for orientation in case.planes()
            if orientation in options.orientations and bool((case.mask & case.valid).any())
        ]

    def __call__(self, module: SliceModule) -> Validation:
        """Sample, compare, and show."""
        losses, errors, squares, rows = [], [], [], dict[str, list[list[NDArray[np.float32]]]]()
        for number, planes in enumerate(self.planes):
            noise = SeededNoise(number)
            losses.append(module.fixed_loss(planes, noise))
            drawn = module.draw(planes.source.to(module.device), noise).float().cpu().clamp(-1, 1)
            difference = (drawn - planes.target)[planes.inside > 0] / 2  # in units of the target's range
            errors.append(float(difference.abs().mean()))
            squares.append(float(difference.square().mean()))
            shown = rows.setdefault(planes.orientation, [])
            if len(shown) < SHOWN_CASES:
                middle = len(drawn) // 2
                images = (planes.source[middle, 0], drawn[middle, 0], planes.target[middle, 0])
                shown.append([image.numpy() for image in images])
        source_name, target_name = self.names
        numbers = {
            "loss": float(np.mean(losses)),
            "l1": float(np.mean(errors)),
            "psnr": float(np.mean(-10 * np.log10(np.maximum(squares, 1e-12)))),
        }
        columns = (source_name, "drawn", f"real {target_name}")
        return Validation(
            score=numbers["l1"],
            numbers=numbers,
            pictures={name: strip(columns, shown) for name, shown in rows.items()},
        )


def write_best(module: SliceModule, folder: Path) -> None:
    """Write the module's stage into RUN/best."""
    module.stage().save_stage(folder)


def fold_patients(patients: Sequence[str], folds: int, seed: int) -> list[list[str]]:
    """Deal patients out to folds, each to one: fold n's model never sees the n-th list.

    Raises:
        RequestError: there are too few patients, or one fold, which would leave nobody to train on.
    """
    if folds == 0:
        return []
    if folds < 0 or folds == 1 or folds > len(patients):
        raise RequestError(
            f"--folds is 0 (none) or from 2 to the number of training patients ({len(patients)}), "
            f"got {folds}."
        )
    order = np.random.default_rng(seed).permutation(sorted(patients))
    return [sorted(str(patient) for patient in share) for share in np.array_split(order, folds)]


def train_slices(options: TrainSlicesOptions) -> None:
    """Train the main model into RUN and each fold's model into RUN/fold-N.

    Raises:
        RequestError: the options contradict one another, the machine, the data set or the run folder.
    """
    settings = NoiseSettings.from_options(options)
    check_steps(options.num_inference_steps, settings)
    dataset, validation = slice_data(options)
    plan = dataset.plan
    patients = {dataset.case(case_id).patient_id for case_id in dataset.case_ids("train")}
    folds = fold_patients(sorted(patients), options.folds, options.seed)
    if options.init is not None:
        initial_facts(options.init, "slices", settings)

    def make_module() -> SlicesModule:
        module = SlicesModule(options, source_channels(plan, options))
        if options.init is not None:
            load_initial_weights(module.model, options.init, "slices")
        return module

    def train_one(run: Path, left_out: Sequence[str]) -> None:
        items = slice_items(dataset, options, left_out)
        fit(RunFolder(run, "slices", options, plan), make_module, items, validation, write_best)

    train_one(options.output_dir, [])
    if folds:
        write_json(options.output_dir / "folds.json", {"folds": folds})
    for number, left_out in enumerate(folds):
        train_one(options.output_dir / f"fold-{number}", left_out)


def slice_data(options: TrainSlicesOptions) -> tuple[PreparedDataset, SlicesValidation]:
    """The data set that slices are trained on, and the validation on its slices.

    Raises:
        RequestError: the options contradict one another or the data set.
    """
    check_options(options)
    if options.crop_size is not None and options.crop_size < 1:
        raise RequestError(
            f"--crop_size is at least 1, got {options.crop_size}; leave it out for whole slices."
        )
    smallest = crop_shrink(options)
    if options.denoising_crop_size is not None and options.denoising_crop_size < smallest:
        raise RequestError(
            f"--denoising_crop_size is at least {smallest}, the pixels of one at the coarsest level, got "
            f"{options.denoising_crop_size}; leave it out for crops of one size."
        )
    if options.denoising_crop_size is not None and options.compile:
        raise RequestError(
            "--compile compiles the network once for each size of batch, and that of smaller crops varies "
            "from batch to batch; leave out --denoising_crop_size."
        )
    if not 0 <= options.gradient_weight < math.inf:
        raise RequestError(
            f"--gradient_weight is at least 0 (no gradients), got {options.gradient_weight}; 0.5 is usual."
        )
    if options.neighbours < 0:
        raise RequestError(
            f"--neighbours is 0 (the slice alone) or more slices on either side, got {options.neighbours}."
        )
    if not options.orientations:
        raise RequestError("--orientations needs at least one of axial, coronal, sagittal, got none.")
    if unseen := [name for name in options.draft_orientations if name not in options.orientations]:
        raise RequestError(
            f"--draft_orientations names {unseen[0]}, which is not among --orientations "
            f"({', '.join(options.orientations)}); a model drafts only what it is trained on."
        )
    dataset = PreparedDataset(options.data)
    plan = dataset.plan
    validating = [dataset.case(case_id) for case_id in dataset.case_ids("validation")]
    validation = SlicesValidation(
        validating[: options.validation_cases],
        options,
        (plan.source_modality.upper(), plan.target_modality.upper()),
    )
    if not validation.planes:
        raise RequestError(
            f"{options.data} has no validation case with a slice to look at in --orientations "
            f"{' '.join(options.orientations)}; prepare it with a larger --validation_fraction."
        )
    return dataset, validation


def source_channels(plan: Plan, options: TrainSlicesOptions) -> int:
    """Channels of the source that a network of slices is shown."""
    return plan.channels * len(neighbour_offsets(options.neighbours))


def slice_items(
    dataset: PreparedDataset, options: TrainSlicesOptions, left_out: Sequence[str] = ()
) -> SliceDataset:
    """Training slices of all patients of the training side but those left out.

    Raises:
        RequestError: there are none.
    """
    training = [dataset.case(case_id) for case_id in dataset.case_ids("train")]
    items = SliceDataset(
        [case for case in training if case.patient_id not in left_out],
        orientations=options.orientations,
        crop_size=options.crop_size,
        shrink=crop_shrink(options),
        flips=options.flips,
        seed=options.seed,
        shift=source_shift(options, dataset.plan),
        neighbours=options.neighbours,
    )
    if len(items) == 0:
        raise RequestError(
            f"{options.data} has no training slice that shows the body in --orientations "
            f"{' '.join(options.orientations)}."
        )
    return items
