"""Training of the baselines, the methods to compare with: on the same data, by the same loop."""

from collections.abc import Callable
from dataclasses import fields

from ct2mri.errors import RequestError
from ct2mri.options import Baseline, TrainBaselineOptions, TrainLatentsOptions
from ct2mri.training.baseline_free import train_free
from ct2mri.training.latents import train_latents
from ct2mri.training.loop import check_options


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
        "latent-diffusion": _train_latent_diffusion,
    }
    train[options.kind](options)


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
    given = {name: getattr(options, name) for name in shared - {"crop_size", "vqvae"}}
    train_latents(
        TrainLatentsOptions(
            **given,
            vqvae=options.vqvae,
            crop_size=options.volume_crop_size,
            condition=["source"],
            decoding="plain",
        )
    )
