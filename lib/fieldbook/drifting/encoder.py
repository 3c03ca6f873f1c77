"""A small convolutional autoencoder, whose layers are the features that a generator may drift in.

It learns to fill in masked and noisy pixels, from images alone.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from fieldbook.nn.layers import seeded

PLACES = 4  # per side, to which a scale is averaged


def widths(shape: Sequence[int]) -> tuple[int, ...]:
    """Channels at each scale, as many as the sides of images (c, h, w) can be halved."""
    if shape[-1] <= 8:
        return 16, 32
    return (32, 64, 128) if shape[-1] % 8 == 0 else (32, 64)


def feature_dims(shape: Sequence[int]) -> list[int]:
    """Dimension of each of the `Autoencoder.features` of square images (c, h, w)."""
    sides = [min(shape[-1] // 2**k, PLACES) for k in range(1, len(widths(shape)) + 1)]
    scales = zip(widths(shape), sides, strict=True)
    return [math.prod(shape), *(width * side**2 for width, side in scales)]


class Autoencoder(nn.Module):
    """Strided convolutions down, transposed ones up, for images of a shape (c, h, w)."""

    def __init__(self, shape: Sequence[int], seed: int):
        super().__init__()
        pairs = list(pairwise([shape[0], *widths(shape)]))
        with seeded(seed):
            self.down = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in pairs)
            self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 4, 2, 1) for a, b in reversed(pairs))

    def scales(self, x: Tensor) -> list[Tensor]:
        """(batch, channels, height, width) -> the maps at each scale, coarser and coarser."""
        maps = [x]
        for layer in self.down:
            maps.append(nn.functional.gelu(layer(maps[-1])))
        return maps[1:]

    def features(self, x: Tensor) -> list[Tensor]:
        """Vectors to drift in, (batch, D) each: pixels, then every scale, averaged."""
        scales = self.scales(x)
        pooled = [nn.functional.adaptive_avg_pool2d(m, min(m.shape[-1], PLACES)) for m in scales]
        return [part.flatten(1) for part in (x, *pooled)]

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of restoring images, half of whose pixels are hidden, others noisy."""
        shown = torch.rand(x[:, :1].shape, generator=generator, device=x.device) < 0.5
        noise = 0.2 * torch.randn(x.shape, generator=generator, device=x.device)
        h = self.scales((x + noise) * shown)[-1]
        for layer in self.up[:-1]:
            h = nn.functional.gelu(layer(h))
        return nn.functional.mse_loss(self.up[-1](h), x)
