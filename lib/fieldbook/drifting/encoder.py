"""A small convolutional autoencoder whose encoder gives the features that a generator may drift in.

It learns to fill in masked and noisy pixels, from images alone. Its layers are features at several
scales.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from fieldbook.nn.layers import seeded


class Autoencoder(nn.Module):
    """Strided convolutions down, transposed ones up.

    Args:
        shape: (channels, height, width) of an image, sides divisible by 2 ** len(widths).
        widths: channels at each scale, each half as wide and high as the one before.
    """

    def __init__(self, shape: Sequence[int], *, widths: Sequence[int] = (16, 32), seed: int):
        super().__init__()
        channels = [shape[0], *widths]
        pairs = list(pairwise(channels))
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
        """Vectors to drift in, (batch, D) each: pixels, then every scale averaged to at most 4 x 4
        places."""
        pooled = (nn.functional.adaptive_avg_pool2d(m, min(m.shape[-1], 4)) for m in self.scales(x))
        return [x.flatten(1), *(m.flatten(1) for m in pooled)]

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of restoring images of which half the pixels are hidden and the others
        noisy."""
        shown = torch.rand(x[:, :1].shape, generator=generator, device=x.device) < 0.5
        noise = 0.2 * torch.randn(x.shape, generator=generator, device=x.device)
        h = self.scales((x + noise) * shown)[-1]
        for layer in self.up[:-1]:
            h = nn.functional.gelu(layer(h))
        return nn.functional.mse_loss(self.up[-1](h), x)
