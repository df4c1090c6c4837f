"""Training of the 3D latent diffusion model (3D-SLDM), which refines drafts in the VQ-VAE's latent space."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ct2mri.data.cases import PreparedCase, PreparedDataset
from ct2mri.data.datasets import AIR, LatentDataset
from ct2mri.diffusion import NoiseSettings, SeededNoise, check_steps, noisy_sample, sample
from ct2mri.errors import RequestError
from ct2mri.files import read_json
from ct2mri.losses import diffusion_loss
from ct2mri.models import VQVAE, ScalableUNet
from ct2mri.models.layers import space_to_depth
from ct2mri.options.training import TrainLatentsOptions
from ct2mri.processes import place
from ct2mri.stage_files import weights_hash
from ct2mri.stages import LatentsStage, load_vqvae, save_vqvae
from ct2mri.training.encoding import Latents
from ct2mri.training.loop import check_options, fit, training_device
from ct2mri.training.module import (
    Batch,
    StageModule,
    begin_at_estimate,
    crop_shrink,
    draw_diffusion,
    initial_facts,
    load_initial_weights,
    make_unet,
)
from ct2mri.training.pictures import strip
from ct2mri.training.run import RunFolder
from ct2mri.training.supervisor import Validation

SHOWN_CASES = 3


class LatentsModule(StageModule):
    """Has a 3D scalable U-Net, trained to denoise target latents given the condition.

    Args:
        options: how to train.
        vqvae: whose latents they are.
        windows: of the source, as the plan has them.
    """

    model: ScalableUNet

    def __init__(self, options: TrainLatentsOptions, vqvae: VQVAE, windows: int) -> None:
        condition_channels = sum(
            windows * vqvae.factor**3 if part == "windows" else vqvae.embedding_dim
            for part in options.condition
        )
        super().__init__(
            options,
            make_unet(
                options,
                spatial_dims=3,
                sample_channels=vqvae.embedding_dim,
                condition_channels=condition_channels,
            ),
        )
        self.options = options
        self.factor = vqvae.factor
        self.settings = NoiseSettings.from_options(options)

    def loss(self, batch: Batch) -> Tensor:
        """The diffusion loss of a batch of latents (B, ·, i, j, k), by their share of valid voxels."""
        target, options = batch["target"], self.options
        noise, timestep = draw_diffusion(
            target, batch["key"], self.settings, options.last_timestep_share, options.seed
        )
        condition = batch["condition"]
        if "windows" in batch:
            windows = space_to_depth(batch["windows"], self.factor, AIR)
            condition = torch.cat([condition, windows], dim=1)
        if options.restart_from_estimate:
            noise = begin_at_estimate(
                *(self.model, condition, noise, target, timestep, self.settings), compiled=options.compile
            )
        network_input, training_target = noisy_sample(target, noise, timestep, self.settings)
        output = self.model(network_input, timestep, condition)
        return diffusion_loss(
            output,
            training_target,
            timestep,
            self.settings,
            loss=options.loss,
            weight=batch["weight"],
            min_snr_gamma=options.min_snr_gamma,
        )


class LatentsValidation:
    """Compares refined volumes of unseen patients with the real ones, always the same with the same noise.

    The best weights are those whose volumes, sampled as they will be in use and decoded, have the lowest mean
    absolute error (`l1`) in the body; `loss` is the training loss at two fixed timesteps, `draft_l1` the
    error of what is refined. Where decoding is residual, each validation first fits the `residual_gain` whose
    volumes have the least squared error in the body, and goes on with it.

    Args:
        cases: validation cases.
        latents: their encodings.
        stage_of: makes the stage around a module's network.
        options: how the network is trained.
        names: of source and target in the pictures.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        latents: Latents,
        stage_of: Callable[[LatentsModule], LatentsStage],
        options: TrainLatentsOptions,
        names: tuple[str, str],
    ) -> None:
        self.cases = [case for case in cases if bool((case.mask & case.valid).any())]
        self.latents = latents
        self.stage_of = stage_of
        self.options = options
        self.names = names
        self.residual_gain = 1.0

    def __call__(self, module: LatentsModule) -> Validation:
        """Sample, decode, compare, and show."""
        found: dict[str, list[float]] = {}
        rows: dict[str, list[list[NDArray[np.float32]]]] = {"axial": [], "coronal": []}
        decoded: list[NDArray[np.float32]] = []
        for number, case in enumerate(self.cases):
            loss, volume = self._sample(module, case, SeededNoise(number))
            found.setdefault("loss", []).append(loss)
            decoded.append(volume)
        if self.stage_of(module).decoding == "residual":
            self.residual_gain = fitted_gain(self.cases, decoded)
            found["residual_gain"] = [self.residual_gain]
            decoded = [
                (case.draft + np.float32(self.residual_gain) * change).clip(-1, 1)
                for case, change in zip(self.cases, decoded, strict=True)
                if case.draft is not None
            ]
        for number, (case, volume) in enumerate(zip(self.cases, decoded, strict=True)):
            images = self._images(case, volume)
            inside = np.array(case.mask & case.valid)
            difference = (images["refined"] - images["real"])[inside] / 2  # in units of the target's range
            square = max(float(np.square(difference).mean()), 1e-12)
            found.setdefault("l1", []).append(float(np.abs(difference).mean()))
            found.setdefault("psnr", []).append(-10 * float(np.log10(square)))
            if "draft" in images:
                draft_error = np.abs(images["draft"] - images["real"])[inside] / 2
                found.setdefault("draft_l1", []).append(float(draft_error.mean()))
            if number < SHOWN_CASES:
                _, j, k = (n // 2 for n in case.spatial_shape)
                rows["axial"].append([image[:, :, k] for image in images.values()])
                rows["coronal"].append([image[:, j, :] for image in images.values()])
        numbers = {name: float(np.mean(values)) for name, values in found.items()}
        source_name, target_name = self.names
        named = {"source": source_name, "real": f"real {target_name}"}
        columns = [named.get(name, name) for name in images]
        return Validation(
            score=numbers["l1"],
            numbers=numbers,
            pictures={name: strip(columns, shown) for name, shown in rows.items()},
        )

    def _sample(
        self, module: LatentsModule, case: PreparedCase, noise: SeededNoise
    ) -> tuple[float, NDArray[np.float32]]:
        """A case's training loss, and its refined volume; with residual decoding the change alone."""
        target, condition, weight = (part.to(module.device) for part in self.latents.load(case))

        def step_noise(step: int) -> Tensor:
            return noise(tuple(target.shape), stage="latents", step=step)

        start = step_noise(-1).to(target)
        loss = self._loss(module, target, condition, weight, start)
        refined = sample(
            module.model,
            condition,
            start,
            module.settings,
            sampler=self.options.sampler,
            num_inference_steps=self.options.num_inference_steps,
            step_noise=step_noise,
        )[0]
        stage = self.stage_of(module)
        with torch.autocast(module.device.type, enabled=False):
            if stage.decoding == "residual":
                volume = stage.residual(refined.float(), condition[0], case.spatial_shape)
            else:
                volume = stage.decode_standardised(refined.float(), case.spatial_shape).clamp(-1, 1)
        array: NDArray[np.float32] = volume[0].cpu().numpy()
        return loss, array

    def _loss(
        self, module: LatentsModule, target: Tensor, condition: Tensor, weight: Tensor, noise: Tensor
    ) -> float:
        """The training loss at the last timestep and in the middle of the others that are trained."""
        settings, options = module.settings, self.options
        losses = []
        for step in (settings.last_timestep, (settings.restart_timestep or settings.last_timestep) // 2):
            timestep = torch.tensor([step], device=target.device)
            drawn = noise
            if options.restart_from_estimate:
                drawn = begin_at_estimate(module.model, condition, noise, target, timestep, settings)
            network_input, training_target = noisy_sample(target, drawn, timestep, settings)
            output = module.model(network_input, timestep, condition)
            losses.append(
                diffusion_loss(
                    output,
                    training_target,
                    timestep,
                    settings,
                    loss=options.loss,
                    weight=weight,
                    min_snr_gamma=options.min_snr_gamma,
                )
            )
        return float(torch.stack(losses).mean())

    @staticmethod
    def _images(case: PreparedCase, refined: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """What a row shows, in this order, each (i, j, k) in [−1, 1]."""
        images = {"source": np.array(case.source[0])}
        if case.draft is not None:
            images["draft"] = np.array(case.draft)
        return images | {"refined": refined, "real": np.array(case.target).clip(-1, 1)}


def fitted_gain(cases: Sequence[PreparedCase], changes: Sequence[NDArray[np.float32]]) -> float:
    """The share of the changes to drafts that leaves the least squared error in the body, 0 to 1."""
    along = square = 0.0
    for case, change in zip(cases, changes, strict=True):
        assert case.draft is not None
        inside = np.array(case.mask & case.valid)
        wanted = (np.array(case.target).clip(-1, 1) - case.draft)[inside].astype(np.float64)
        given = change[inside].astype(np.float64)
        along += float(given @ wanted)
        square += float(given @ given)
    return min(max(along / square, 0.0), 1.0) if square > 0 else 1.0


def _vqvae_folder(path: Path) -> Path:
    """The VQ-VAE's folder in a run of `train vqvae` (RUN/best) or in a pipeline (MODEL/vqvae)."""
    return path / "vqvae" if (path / "vqvae").is_dir() else path / "best"


def _draft_facts(dataset: PreparedDataset, cases: Sequence[PreparedCase]) -> dict[str, Any]:
    """What draft.json says of the drafts; every case must have one.

    Raises:
        RequestError: there are none, or some are missing.
    """
    path = dataset.root / "draft.json"
    advice = f"run `ct2mri draft --data {dataset.root} --model RUN` first, RUN being that of `train slices`"
    if not path.is_file():
        raise RequestError(f"{dataset.root} holds no drafts to refine; {advice}.")
    if missing := [case.case_id for case in cases if case.draft is None]:
        raise RequestError(
            f"{len(missing)} cases of {dataset.root} have no draft, e.g. {missing[0]}; {advice}."
        )
    facts: dict[str, Any] = read_json(path)
    return facts


def train_latents(options: TrainLatentsOptions) -> None:
    """Train on the drafts and targets of a prepared data set, encoded once into RUN/latents.

    Raises:
        RequestError: the options contradict one another, the machine, the data set or the run folder.
    """
    check_options(options)
    settings = NoiseSettings.from_options(options)
    check_steps(options.num_inference_steps, settings)
    if not options.condition or len(set(options.condition)) < len(options.condition):
        raise RequestError(
            f"--condition is one or more of draft, source and windows, each once, got "
            f"{' '.join(options.condition) or 'nothing'}."
        )
    dataset = PreparedDataset(options.data)
    plan = dataset.plan
    training = [dataset.case(case_id) for case_id in dataset.case_ids("train")]
    validating = [dataset.case(case_id) for case_id in dataset.case_ids("validation")]
    validating = validating[: options.validation_cases]
    if not training or not validating:
        raise RequestError(
            f"{options.data} has {len(training)} training and {len(validating)} validation cases, both are "
            "needed; prepare it with another --validation_fraction."
        )
    draft = _draft_facts(dataset, [*training, *validating]) if "draft" in options.condition else {}
    if draft.get("out_of_fold") is False:
        print(
            "Note: the drafts of the training cases were drawn by a model that had seen these cases, so they "
            "are better than those of new patients will be, and the refiner learns to trust them too much."
        )
    device = training_device(options.device)
    vqvae = load_vqvae(_vqvae_folder(options.vqvae), device).requires_grad_(False)
    crop, factor = options.crop_size, vqvae.factor
    if crop is not None and (len(crop) != 3 or any(edge < factor or edge % factor for edge in crop)):
        raise RequestError(
            f"--crop_size is three multiples of {factor}, got {crop}; a latent stands for "
            f"{factor} × {factor} × {factor} voxels."
        )
    latents = Latents(
        options.output_dir,
        vqvae,
        training,
        validating,
        condition=options.condition,
        flips=options.flips,
        draft=draft,
    )
    if options.init is not None:
        facts = initial_facts(options.init, "latents", settings)
        if facts["vqvae"] == weights_hash(vqvae):  # its network knows these latents at its own scale
            latents.mean, latents.std = facts["latents_mean"], facts["latents_std"]
    items = LatentDataset(
        [latents.folder(case) for case in training],
        condition=latents.encoded,
        mean=latents.mean,
        std=latents.std,
        crop_size=None if crop is None else [edge // factor for edge in crop],
        shrink=crop_shrink(options),
        flips=options.flips,
        seed=options.seed,
        windows=training if latents.windows else (),
        factor=factor,
    )
    names = (plan.source_modality.upper(), plan.target_modality.upper())

    def stage_of(module: LatentsModule, residual_gain: float = 1.0) -> LatentsStage:
        assert isinstance(module.model, ScalableUNet)
        return LatentsStage(
            module.model,
            vqvae,
            module.settings,
            sampler=options.sampler,
            num_inference_steps=options.num_inference_steps,
            latents_mean=latents.mean,
            latents_std=latents.std,
            condition=options.condition,
            draft=draft,
            decoding=options.decoding or ("residual" if "draft" in options.condition else "plain"),
            residual_gain=residual_gain,
        )

    validation = LatentsValidation(validating, latents, stage_of, options, names)

    def make_module() -> LatentsModule:
        module = LatentsModule(options, vqvae, plan.channels)
        if options.init is not None:
            load_initial_weights(module.model, options.init, "latents")
        return module

    if place().rank == 0:
        save_vqvae(vqvae, options.output_dir / "vqvae")
    fit(
        RunFolder(options.output_dir, "latents", options, plan),
        make_module,
        items,
        validation,
        lambda module, folder: stage_of(module, validation.residual_gain).save_stage(folder),
    )
