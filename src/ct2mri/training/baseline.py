"""Training of the baselines, the methods to compare with: on the same data, by the same loop."""

from collections.abc import Callable
from dataclasses import fields

from ct2mri.bridge import BridgeSettings, check_bridge_steps
from ct2mri.errors import RequestError
from ct2mri.options.choices import Baseline
from ct2mri.options.training import TrainBaselineOptions, TrainLatentsOptions, TrainSlicesOptions
from ct2mri.training.baseline_bridge import BridgeModule
from ct2mri.training.baseline_free import train_free
from ct2mri.training.baseline_pix2pix import Pix2pixModule
from ct2mri.training.latents import train_latents
from ct2mri.training.loop import check_options, fit
from ct2mri.training.run import RunFolder
from ct2mri.training.slices import (
    SliceModule,
    SlicesModule,
    slice_data,
    slice_items,
    source_channels,
    write_best,
)


def train_baseline(options: TrainBaselineOptions) -> None:
    """Train one baseline into RUN; `ct2mri export --baseline RUN` makes a model of it, whatever its kind.

    Raises:
        RequestError: the options contradict one another, the machine, the data set or the run folder.
    """
    check_options(options)
    if options.init is not None:
        raise RequestError("--init is not for baselines, which all start from nothing; leave it out.")
    train: dict[Baseline, Callable[[TrainBaselineOptions], None]] = {
        "hu-lookup": train_free,
        "mean": train_free,
        "regression": _train_regression,
        "pix2pix": _train_pix2pix,
        "bridge": _train_bridge,
        "latent-diffusion": _train_latent_diffusion,
    }
    train[options.kind](options)


def at_once(options: TrainBaselineOptions) -> TrainSlicesOptions:
    """Options of a slices stage whose process is a single timestep.

    Every training item is at it; the network is shown zeros beside the source, answers with the image, and is
    compared by L1. So nothing of diffusion is left but the network: plain regression.
    """
    shared = {field.name for field in fields(TrainSlicesOptions)} & {
        field.name for field in fields(TrainBaselineOptions)
    }
    given = {name: getattr(options, name) for name in shared}
    given |= {"num_train_timesteps": 1, "num_inference_steps": 1, "folds": 0}
    return TrainSlicesOptions(
        **given, prediction_type="sample", last_timestep_share=1.0, loss="l1", gradient_weight=0.0
    )


def _train_regression(options: TrainBaselineOptions) -> None:
    """The 2D stage's network, trained by L1 to answer with the target slice."""
    slices = at_once(options)
    _train_on_slices(options, slices, lambda channels: SlicesModule(slices, channels))


def _train_pix2pix(options: TrainBaselineOptions) -> None:
    """The same with an adversary beside L1."""
    if not options.l1_weight >= 0:
        raise RequestError(f"--l1_weight is at least 0, got {options.l1_weight}.")
    if options.discriminator_channels < 1:
        raise RequestError(f"--discriminator_channels is at least 1, got {options.discriminator_channels}.")
    slices = at_once(options)
    _train_on_slices(options, slices, lambda channels: Pix2pixModule(options, slices, channels))


def _train_bridge(options: TrainBaselineOptions) -> None:
    """The 2D stage's network, trained for a Brownian bridge from the source slice to the target slice."""
    settings = BridgeSettings(options.num_train_timesteps, options.bridge_variance)
    check_bridge_steps(options.num_inference_steps, settings)
    slices = at_once(options)
    _train_on_slices(options, slices, lambda channels: BridgeModule(options, slices, settings, channels))


def _train_on_slices(
    options: TrainBaselineOptions, slices: TrainSlicesOptions, make: Callable[[int], SliceModule]
) -> None:
    """Train on the same slices, by the same loop and with the same validation as `train slices`."""
    dataset, validation = slice_data(slices)
    fit(
        RunFolder(options.output_dir, "baseline", options, dataset.plan),
        lambda: make(source_channels(dataset.plan, slices)),
        slice_items(dataset, slices),
        validation,
        write_best,
    )


def _train_latent_diffusion(options: TrainBaselineOptions) -> None:
    """Diffusion in the VQ-VAE's latent space given the source's latents: the 3D stage without drafts."""
    if options.vqvae is None:
        raise RequestError(
            "--kind latent-diffusion works in the latent space of a VQ-VAE: give --vqvae RUN, the run folder "
            "of `train vqvae`."
        )
    shared = {field.name for field in fields(TrainLatentsOptions)} & {
        field.name for field in fields(TrainBaselineOptions)
    }
    given = {name: getattr(options, name) for name in shared - {"crop_size", "vqvae", "hu_shift"}}
    if options.hu_shift:
        print(
            "Note: --hu_shift is not used here: the sources of latent diffusion are encoded once, before it "
            "trains."
        )
    train_latents(
        TrainLatentsOptions(
            **given,
            vqvae=options.vqvae,
            crop_size=options.volume_crop_size,
            condition=["source"],
            decoding="plain",
        ),
        crop_option="--volume_crop_size",
    )
