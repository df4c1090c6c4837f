"""Encoding and decoding volumes with a VQ-VAE, in tiles where the whole does not fit into memory."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ct2mri.models import VQVAE
from ct2mri.models.footprint import decoding_bytes, encoding_bytes
from ct2mri.stages.common import AIR, prepare_network
from ct2mri.stages.execution import Execution, Portion
from ct2mri.stages.tiling import Tile, Tiling, reach, tilings

Place = tuple[slice, ...]
"""Channels and voxels of a volume."""


@torch.inference_mode()
def encode(vqvae: VQVAE, volume: Tensor, execution: Execution) -> Tensor:
    """Latents of a volume, before quantisation.

    Args:
        vqvae: 3D.
        volume: (1, i, j, k) in [−1, 1], on any device.
        execution: within how much memory.

    Returns:
        (latent channels, *latent), on the VQ-VAE's device.
    """
    device = prepare_network(vqvae)
    factor = vqvae.factor
    shape = [-(-size // factor) for size in volume.shape[1:]]
    latents = torch.empty(vqvae.embedding_dim, *shape, device=device)

    def encode_tiles(tiling: Tiling) -> None:
        for tile in tiling:
            part = tuple(slice(factor * span.lower, factor * span.upper) for span in tile)
            # In float32 whatever the precision: bfloat16 would move latents to other codes.
            encoded = vqvae.encode(volume[(slice(None), *part)][None].to(device))[0]
            kept = tuple(slice(span.first, span.last) for span in tile)
            latents[(slice(None), *kept)] = encoded[(slice(None), *_kept_of(tile))]

    portions = _portions(vqvae, vqvae.encoder, shape, encoding_bytes(vqvae))
    execution.within(device, "encoding with the VQ-VAE", portions, encode_tiles)
    return latents


@torch.inference_mode()
def decode(
    vqvae: VQVAE,
    latents: Sequence[Tensor],
    spatial_shape: Sequence[int],
    execution: Execution,
    combine: Callable[[list[Tensor], Place], Tensor] = lambda images, _: images[0],
    wanted: Tensor | None = None,
    *,
    quantise: bool = True,
) -> Tensor:
    """Decode latents, and make one volume of what they become.

    Args:
        vqvae: 3D.
        latents: one or more, each (latent channels, *latent).
        spatial_shape: of the volume that was encoded.
        execution: within how much memory, and in which precision.
        combine: makes one image (1, …) of the images (1, …) of the latents, and is told which place of the
            volume they are; by default, there is but one.
        wanted: where the volume is looked at, (1, *spatial_shape); tiles elsewhere are not decoded.
        quantise: whether the codes nearest to the latents are decoded, as the VQ-VAE was trained, or the
            latents themselves.

    Returns:
        (1, *spatial_shape) on the CPU.
    """
    device = prepare_network(vqvae)
    factor = vqvae.factor
    volume = torch.full((1, *spatial_shape), AIR)

    def image(z: Tensor, tile: Tile, place: Place) -> Tensor:
        part = tuple(slice(span.lower, span.upper) for span in tile)
        shown = z[(slice(None), *part)][None].to(device)
        with execution.autocast(device):
            decoded = vqvae.decode(vqvae.quantize(shown) if quantise else shown)
        kept = decoded[0][(slice(None), *_kept_of(tile, factor))]
        # The volume may end within the last latent.
        return kept[tuple(slice(size) for size in volume[place].shape)]

    def decode_tiles(tiling: Tiling) -> None:
        for tile in tiling:
            place = (slice(None), *(slice(factor * span.first, factor * span.last) for span in tile))
            if wanted is None or bool(wanted[place].any()):
                volume[place] = combine([image(z, tile, place) for z in latents], place).cpu()

    each = decoding_bytes(vqvae) + (len(latents) + 1) * 4 * factor ** len(spatial_shape)
    portions = _portions(vqvae, vqvae.decoder, latents[0].shape[1:], each)
    execution.within(device, "decoding with the VQ-VAE", portions, decode_tiles)
    return volume


def _portions(
    vqvae: VQVAE, layers: nn.Module, shape: Sequence[int], bytes_each: int
) -> list[Portion[Tiling]]:
    """Ways to run the encoder or the decoder, for latents of a shape."""
    felt = reach(layers)
    overlap = felt if layers is vqvae.encoder else -(-felt // vqvae.factor)
    return [
        Portion(tiling, tiling.largest * bytes_each, str(tiling))
        for tiling in tilings(shape, overlap, max(1, overlap))
    ]


def _kept_of(tile: Tile, factor: int = 1) -> Place:
    """Where in a tile what is kept of it lies, `factor` voxels a latent."""
    return tuple(
        slice(factor * (span.first - span.lower), factor * (span.last - span.lower)) for span in tile
    )
