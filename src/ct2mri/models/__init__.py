"""Networks: tensors in, tensors out."""

from ct2mri.models.quantizer import VectorQuantizer, codes_in_use, perplexity
from ct2mri.models.unet import ScalableUNet
from ct2mri.models.vqvae import VQVAE

__all__ = ["VQVAE", "ScalableUNet", "VectorQuantizer", "codes_in_use", "perplexity"]
