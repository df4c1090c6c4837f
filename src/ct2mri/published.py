"""Weights and data of the published system, brought in.

The authors of MD-DGA published three kinds of checkpoint: the 2D-SDM, the 3D-SLDM (both scalable U-Nets) and
the VQ-VAE, each a pickled dictionary. `import_published` makes a pipeline folder of them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ct2mri.data.plan import Plan, Split
from ct2mri.data.plausibility import BODY_THRESHOLD
from ct2mri.data.published_files import PUBLISHED_SHAPES, read_raw_volume, slice_stacks
from ct2mri.errors import RequestError
from ct2mri.hub import fetch
from ct2mri.models import VQVAE, ScalableUNet
from ct2mri.options.choices import Sampler
from ct2mri.options.translation import ImportPublishedOptions
from ct2mri.published_keys import (
    convert_unet_state,
    convert_vqvae_state,
    restore_unet_state,
    restore_vqvae_state,
)
from ct2mri.published_networks import SPOKEN, Kind, PublishedNetwork, load_checkpoint, read_published

if TYPE_CHECKING:
    from ct2mri.pipeline import TranslationPipeline

__all__ = [
    "PUBLISHED_SHAPES",
    "convert_unet_state",
    "convert_vqvae_state",
    "import_published",
    "load_checkpoint",
    "published_plan",
    "read_published",
    "read_raw_volume",
    "restore_unet_state",
    "restore_vqvae_state",
    "slice_stacks",
]

_SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")
_COMMAND = "ct2mri import-published --slices FILE --vqvae FILE --latents FILE -o MODEL"

_SAMPLER: Sampler = "renoise"
_STEPS = 25

# What the authors' page does not tell, so it is assumed; along R, A, S in mm.
_SPACING = {"brain": (1.0, 1.0, 1.0), "pelvis": (1.0, 1.0, 2.5)}
_WINDOW = [-1024.0, 3000.0]
_CROP_MARGIN_MM = 8.0
_TARGET_PERCENTILE = 99.5
_TARGET_SCALE = 1000.0


def import_published(options: ImportPublishedOptions) -> None:
    """Make a pipeline folder of the authors' checkpoints.

    Raises:
        RequestError: a checkpoint is missing, is another than it was given as, or fits none of the networks;
            or the checkpoints make no pipeline.
    """
    given: dict[Kind, Path | None] = {
        "slices": options.slices,
        "vqvae": options.vqvae,
        "latents": options.latents,
    }
    found: dict[Kind, PublishedNetwork] = {}
    for kind, path in given.items():
        if path is not None:
            found[kind] = read_published(path)
            if found[kind].kind != kind:
                raise RequestError(
                    f"{path} holds a {SPOKEN[found[kind].kind]}, not a {SPOKEN[kind]}; "
                    f"give it as --{found[kind].kind}."
                )
    if options.hub is not None:
        found = _fetch_published(options.hub, options.anatomy) | found
    pipeline = _assemble(found, options.anatomy)
    pipeline.save_pretrained(options.output)

    for kind, published in sorted(found.items()):
        parameters = sum(parameter.numel() for parameter in published.network.parameters())
        print(f"{SPOKEN[kind]}: {published.path.name}, {parameters / 1e6:.1f} M parameters")
    print(f"Wrote {options.output}. What the authors' files do not tell is assumed, in plan.json:")
    for sentence in pipeline.plan.assumptions:
        print(f"- {sentence}")


def _fetch_published(repository: str, anatomy: str) -> dict[Kind, PublishedNetwork]:
    """The networks in a Hub repository, told apart by what its checkpoints hold.

    Raises:
        RequestError: it cannot be fetched, holds none of the networks, or several of one kind.
    """
    other = {"brain": "pelvis", "pelvis": "brain"}[anatomy]
    folder = fetch(
        repository,
        [f"*{suffix}" for suffix in _SUFFIXES],
        ignore=["*" + "".join(f"[{letter}{letter.upper()}]" for letter in other) + "*"],
        by_hand=f"download its checkpoints ({', '.join(_SUFFIXES)}: 2D-SDM, VQ-VAE, 3D-SLDM) from "
        f"https://huggingface.co/{repository} by hand, put them into any folder, and run `{_COMMAND}`",
    )
    found: dict[Kind, list[PublishedNetwork]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix not in _SUFFIXES or other in name.lower():
            continue
        try:
            published = read_published(path)
        except RequestError as error:
            print(f"{name} is left aside: {error}")
            continue
        found.setdefault(published.kind, []).append(published)
    if not found:
        raise RequestError(
            f"{repository} holds no published network for the {anatomy}; {_COMMAND} takes files."
        )
    for kind, several in found.items():
        if len(several) > 1:
            raise RequestError(
                f"{repository} holds {len(several)} checkpoints of a {SPOKEN[kind]}: "
                f"{', '.join(str(one.path) for one in several)}; choose one, with --{kind} FILE and without "
                "--hub."
            )
    return {kind: several[0] for kind, several in found.items()}


def _assemble(
    found: Mapping[Kind, PublishedNetwork], anatomy: Literal["brain", "pelvis"]
) -> "TranslationPipeline":
    # Here, so that what only reads checkpoints or data does not wait for the library of noise schedules.
    from ct2mri.diffusion import NoiseSettings
    from ct2mri.pipeline import TranslationPipeline
    from ct2mri.stages import LatentsStage, SlicesStage

    if not found:
        raise RequestError(f"No checkpoint was given; run `{_COMMAND}`, or with --hub owner/name.")
    noise = NoiseSettings(
        num_train_timesteps=1000,
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type="epsilon",
        zero_terminal_snr=False,
        last_timestep_input="noise",
    )
    slices = latents = None
    if "slices" in found:
        network = found["slices"].network
        assert isinstance(network, ScalableUNet)
        slices = SlicesStage(
            network, noise, sampler=_SAMPLER, num_inference_steps=_STEPS, orientations=("axial",)
        )
    if ("vqvae" in found) != ("latents" in found):
        missing: Kind = "latents" if "vqvae" in found else "vqvae"
        raise RequestError(
            f"The VQ-VAE and the 3D-SLDM go together, and the {SPOKEN[missing]} is missing; "
            f"give it with --{missing}, or leave out the other."
        )
    if "latents" in found:
        network, vqvae = found["latents"].network, found["vqvae"].network
        assert isinstance(network, ScalableUNet)
        assert isinstance(vqvae, VQVAE)
        if slices is None:
            raise RequestError("The 3D-SLDM refines what the 2D-SDM draws; give that with --slices as well.")
        latents = LatentsStage(
            network,
            vqvae,
            noise,
            sampler=_SAMPLER,
            num_inference_steps=_STEPS,
            latents_mean=[0.0] * vqvae.embedding_dim,
            latents_std=[1.0] * vqvae.embedding_dim,
            condition=["draft"],
            draft={"sampler": _SAMPLER, "num_inference_steps": _STEPS, "orientations": ["axial"]},
        )
    card = {
        "name": f"published-{anatomy}",
        "origin": "weights published with Ni, Ma, Chen: Scalable Diffusion Models for Inter-modality "
        "Volumetric Medical Image Translation, The Visual Computer, 2025",
        "weights_licence": "the authors' own; ask them before passing the weights on",
        "checkpoints": {kind: published.path.name for kind, published in sorted(found.items())},
    }
    stages = [stage for stage in (slices, latents) if stage is not None]
    return TranslationPipeline(published_plan(anatomy), stages, card)


def published_plan(anatomy: Literal["brain", "pelvis"]) -> Plan:
    """The plan for the published networks; what the authors do not tell is assumed, and said to be."""
    spacing = _SPACING[anatomy]
    return Plan(
        source_windows=[_WINDOW],
        target_percentile=_TARGET_PERCENTILE,
        target_range=(0.0, _TARGET_SCALE),
        split=Split(seed=0, train=[], validation=[], test=[]),
        fingerprint=None,
        spacing=spacing,
        crop_margin_mm=_CROP_MARGIN_MM,
        body_threshold=BODY_THRESHOLD,
        anatomy=anatomy,
        assumptions=[
            f"CT values from {_WINDOW[0]:g} to {_WINDOW[1]:g} HU map to -1 to 1.",
            f"Voxels are {' × '.join(f'{edge:g}' for edge in spacing)} mm (right, anterior, superior).",
            f"Outside the body (above {BODY_THRESHOLD:g} HU) nothing matters; volumes are cropped "
            f"{_CROP_MARGIN_MM:g} mm around it.",
            f"MR values from 0 to the {_TARGET_PERCENTILE:g}th percentile in the body map to -1 to 1; "
            f"results are in arbitrary units in which that percentile is {_TARGET_SCALE:g}.",
            "The 3D stage refines axial slices.",
            "The authors' arrays are (slice, row, column), as their sizes suggest, so the networks' kernels "
            "are turned to (right, anterior, superior); which way rows and columns run there is not known.",
            "The patients that the networks were trained on are not known, so nobody is held out.",
        ],
    )
