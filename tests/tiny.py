"""Real components at their smallest, untrained: what tests of stages and pipelines are built from."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ct2mri.data.plan import Plan, Split
from ct2mri.data.volume import Volume
from ct2mri.diffusion import NoiseSettings
from ct2mri.models import VQVAE, ScalableUNet
from ct2mri.pipeline import TranslationPipeline
from ct2mri.stages import LatentsStage, SlicesStage

LATENT_CHANNELS = 3
# Right-handed, 3 mm voxels whose axes run left, posterior and superior, tilted by 20 degrees.
OBLIQUE = np.array(
    [
        [-3 * np.cos(0.35), 0.0, 3 * np.sin(0.35), 40.0],
        [0.0, -3.0, 0.0, 25.0],
        [3 * np.sin(0.35), 0.0, 3 * np.cos(0.35), -30.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
)


def unet(
    spatial_dims: int, sample_channels: int = 1, condition_channels: int = 1, seed: int = 0
) -> ScalableUNet:
    torch.manual_seed(seed)
    return ScalableUNet(
        spatial_dims=spatial_dims,
        sample_channels=sample_channels,
        condition_channels=condition_channels,
        out_channels=sample_channels,
        base_channels=8,
        channel_multipliers=(1, 2),
        attention_levels=(1,),
        norm_num_groups=4,
        num_heads=2,
    )


def vqvae(seed: int = 0) -> VQVAE:
    torch.manual_seed(seed)
    model = VQVAE(
        hidden_channels=(8, 8), num_res_blocks=1, embedding_dim=LATENT_CHANNELS, num_embeddings=64
    ).eval()
    # Untrained codes lie close together; spread ones let different latents become different images.
    torch.nn.init.normal_(model.quantizer.codebook)
    return model


def slices_stage(network: Any = None, seed: int = 0, **settings: Any) -> SlicesStage:
    settings = {"sampler": "ddim", "num_inference_steps": 2} | settings
    return SlicesStage(network or unet(2, seed=seed), NoiseSettings(), **settings)


def latents_stage(network: Any = None, autoencoder: VQVAE | None = None, **settings: Any) -> LatentsStage:
    settings = {
        "sampler": "ddim",
        "num_inference_steps": 2,
        "latents_mean": [0.1, -0.2, 0.3],
        "latents_std": [0.5, 1.0, 2.0],
        "condition": ["draft"],
        "draft": {},
    } | settings
    network = network or unet(3, LATENT_CHANNELS, LATENT_CHANNELS * len(settings["condition"]))
    return LatentsStage(network, autoencoder or vqvae(), NoiseSettings(), **settings)


def plan(**changes: Any) -> Plan:
    return replace(
        Plan(
            source_windows=[[-1024.0, 3000.0]],
            target_percentile=99.5,
            target_range=(0.0, 200.0),
            split=Split(seed=0, train=["a", "b"], validation=["c"], test=["d"]),
            fingerprint=None,
            spacing=(4.0, 4.0, 4.0),
            crop_margin_mm=4.0,
            body_threshold=-300.0,
        ),
        **changes,
    )


def pipeline(**parts: Any) -> TranslationPipeline:
    parts = {"slices": slices_stage(), "latents": latents_stage()} | parts
    stages = [parts[kind] for kind in ("slices", "latents") if parts[kind] is not None]
    return TranslationPipeline(parts.get("plan", plan()), stages, card={"name": "tiny"})


def ct(shape: tuple[int, int, int] = (19, 24, 17), affine: Any = OBLIQUE, seed: int = 0) -> Volume:
    """A ball of soft tissue with a bone inside, in air."""
    index = np.stack(np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * 2 / n for n in shape], indexing="ij"))
    radius = np.sqrt((index**2).sum(axis=0))
    array = np.where(radius < 0.8, 40.0, -1000.0) + np.random.default_rng(seed).normal(0, 5, shape)
    array[np.sqrt(((index - 0.2) ** 2).sum(axis=0)) < 0.2] = 900
    return Volume(array.astype(np.float32), affine)
