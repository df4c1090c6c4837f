"""Runs the training of any stage."""

from ct2mri.training.baseline import train_baseline
from ct2mri.training.latents import train_latents
from ct2mri.training.slices import train_slices
from ct2mri.training.vqvae import train_vqvae

__all__ = ["train_baseline", "train_latents", "train_slices", "train_vqvae"]
