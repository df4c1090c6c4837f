"""Training of the 3D latent diffusion model (3D-SLDM), which refines drafts in the VQ-VAE's latent space."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ct2mri.data.cases import PreparedCase, PreparedDataset
from ct2mri.data.datasets import LatentDataset
from ct2mri.diffusion import NoiseSettings, check_steps
from ct2mri.errors import RequestError
from ct2mri.files import read_json
from ct2mri.models import ScalableUNet
from ct2mri.options.choices import Decoding
from ct2mri.options.training import TrainLatentsOptions
from ct2mri.processes import place
from ct2mri.stage_files import weights_hash
from ct2mri.stages import LatentsStage, load_vqvae, save_vqvae
from ct2mri.training.decoded import DecodedLoss
from ct2mri.training.encoding import Latents
from ct2mri.training.latents_module import LatentsModule
from ct2mri.training.latents_validation import LatentsValidation
from ct2mri.training.loop import check_options, fit, training_device
from ct2mri.training.module import crop_shrink, initial_facts, load_initial_weights, source_shift
from ct2mri.training.run import RunFolder


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


def _check_condition_suits(options: TrainLatentsOptions, decoding: Decoding) -> None:
    """Refuse ways of training that the condition or the decoding does not allow.

    Raises:
        RequestError: it says which.
    """
    if options.latent_target == "change" and "draft" not in options.condition:
        raise RequestError(
            f"--latent_target change draws a change from the draft, and --condition "
            f"{' '.join(options.condition)} has none; add draft, or take --latent_target latents."
        )
    if not 0 <= options.image_weight < math.inf:
        raise RequestError(
            f"--image_weight is at least 0 (the latents' loss alone), got {options.image_weight}; 5 is usual."
        )
    if options.image_weight and decoding != "residual":
        raise RequestError(
            "--image_weight compares what residual decoding gives, and decoding is plain; leave it out, or "
            "take --decoding residual with a draft in --condition."
        )
    if options.hu_shift and ("windows" not in options.condition or "source" in options.condition):
        raise RequestError(
            f"--hu_shift moves the source's windows, and --condition {' '.join(options.condition)} "
            + ("has none" if "windows" not in options.condition else "shows the source encoded as well")
            + "; take windows, without source, or leave --hu_shift out."
        )


def train_latents(options: TrainLatentsOptions, crop_option: str = "--crop_size") -> None:
    """Train on the drafts and targets of a prepared data set, encoded once into RUN/latents.

    Args:
        options: how to train.
        crop_option: what the user gives the size of crops by.

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
    decoding: Decoding = options.decoding or ("residual" if "draft" in options.condition else "plain")
    dataset = PreparedDataset(options.data)
    plan = dataset.plan
    shift = source_shift(options, plan)
    _check_condition_suits(options, decoding)
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
    folder = RunFolder(options.output_dir, "latents", options, plan)
    done = folder.steps_done()  # before anything is written into a folder that may be another's
    vqvae = load_vqvae(_vqvae_folder(options.vqvae), device).requires_grad_(False)
    own = options.output_dir / "vqvae"
    if done > 0 and weights_hash(load_vqvae(own, device)) != weights_hash(vqvae):
        raise RequestError(
            f"{options.output_dir} was trained in the latent space of another VQ-VAE than that of "
            f"{options.vqvae}; give the same again, train into another folder, or anew with --resume never."
        )
    crop, factor = options.crop_size, vqvae.factor
    if crop is not None and (len(crop) != 3 or any(edge < factor or edge % factor for edge in crop)):
        raise RequestError(
            f"{crop_option} is three multiples of {factor}, got {crop}; a latent stands for "
            f"{factor} × {factor} × {factor} voxels."
        )
    if options.image_weight > 0 and (options.image_crop_size < factor or options.image_crop_size % factor):
        raise RequestError(
            f"--image_crop_size is a multiple of {factor}, the voxels of a latent, got "
            f"{options.image_crop_size}."
        )
    latents = Latents(
        options.output_dir,
        vqvae,
        training,
        validating,
        condition=options.condition,
        flips=options.flips,
        draft=draft,
        change=options.latent_target == "change",
    )
    if options.init is not None:
        facts = initial_facts(options.init, "latents", settings)
        if (facts.get("change_std") is None) != (latents.change_std is None):
            print(
                f"Note: {options.init} was trained with another --latent_target than "
                f"{options.latent_target}; its weights must first learn this one."
            )
        elif facts["vqvae"] == weights_hash(vqvae):  # its network knows these latents at its own scale
            latents.mean, latents.std = facts["latents_mean"], facts["latents_std"]
            latents.change_std = facts.get("change_std")
    items = LatentDataset(
        [latents.folder(case) for case in training],
        condition=latents.encoded,
        mean=latents.mean,
        std=latents.std,
        crop_size=None if crop is None else [edge // factor for edge in crop],
        shrink=crop_shrink(options),
        flips=options.flips,
        seed=options.seed,
        change_std=latents.change_std,
        cases=training,
        windows=latents.windows,
        shift=shift,
        images=options.image_weight > 0,
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
            decoding=decoding,
            residual_gain=residual_gain,
            change_std=latents.change_std,
        )

    validation = LatentsValidation(validating, latents, stage_of, options, names)

    decoded = None
    if options.image_weight > 0:
        edge = options.image_crop_size // factor
        decoded = DecodedLoss(vqvae, latents.mean, latents.std, edge, options.seed)

    def make_module() -> LatentsModule:
        module = LatentsModule(options, vqvae, plan.channels, decoded, latents.change_std)
        if options.init is not None:
            load_initial_weights(module.model, options.init, "latents")
        return module

    if place().rank == 0 and done == 0:
        save_vqvae(vqvae, own)
    fit(
        folder,
        make_module,
        items,
        validation,
        lambda module, best: stage_of(module, validation.residual_gain).save_stage(best),
        crop_option=crop_option,
    )
