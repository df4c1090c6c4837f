"""Names that may be given: of orientations, samplers, layouts and the like."""

from typing import Literal

Orientation = Literal["axial", "coronal", "sagittal"]
Split = Literal["train", "validation", "test"]
Sampler = Literal["ddpm", "ddim", "dpm-solver++", "unipc", "renoise"]
Layout = Literal[
    "pairs", "flat", "bids", "synthrad2023", "synthrad2025", "gold-atlas", "dicom", "slices", "published"
]
Decoding = Literal["plain", "residual"]
LatentTarget = Literal["latents", "change"]
ConditionPart = Literal["draft", "source", "windows"]
InferencePrecision = Literal["auto", "32", "bf16"]
PredictionType = Literal["epsilon", "sample", "v_prediction"]
Baseline = Literal["hu-lookup", "mean", "regression", "pix2pix", "latent-diffusion", "bridge"]
