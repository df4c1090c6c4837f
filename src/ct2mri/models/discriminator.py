"""The adversary of pix2pix: it looks at patches, not at whole images."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class PatchDiscriminator(nn.Module):
    """Tells for each patch of 70 × 70 pixels whether it is real (PatchGAN; Isola et al., 2017, 3.2.2).

    Convolutions of kernel 4: three of stride 2, two of stride 1; instance normalisation but in the first and
    the last; LeakyReLU of slope 0.2. Padded by 2 on each side, so that images of any size give patches.

    Args:
        source_channels: of the source, which is looked at beside the target.
        base_channels: width of the first layer; it doubles up to eightfold.
    """

    def __init__(self, source_channels: int, base_channels: int = 64) -> None:
        super().__init__()
        widths = [source_channels + 1, *(base_channels * factor for factor in (1, 2, 4, 8)), 1]
        strides = [2, 2, 2, 1, 1]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 4, stride=stride, padding=2)
            for before, after, stride in zip(widths[:-1], widths[1:], strides, strict=True)
        )

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits of being real, (B, 1, patches, patches), of source (B, C, H, W) and target (B, 1, H, W)."""
        x = torch.cat([source, target], dim=1)
        *first, last = self.convolutions
        for number, convolution in enumerate(first):
            x = convolution(x)
            if number > 0:
                x = functional.instance_norm(x)
            x = functional.leaky_relu(x, 0.2)
        logits: Tensor = last(x)
        return logits
