"""One-step generators: noise, a class and a guidance strength in, a sample out, in a single forward
pass.

Both classes have `noise_dim` and are called as (noise, label, alpha). Label `classes` stands for no
class.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fieldbook.nn.checks import require
from fieldbook.nn.layers import Block, FeedForward, seeded


class Condition(nn.Module):
    """Class and guidance strength as one vector."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.label = nn.Embedding(classes + 1, width)
        self.alpha = nn.Linear(1, width)
        nn.init.normal_(self.label.weight, std=1 / math.sqrt(width))

    def forward(self, label: Tensor, alpha: Tensor) -> Tensor:
        """(batch,), (batch,) -> (batch, width)."""
        return self.label(label) + self.alpha(alpha.log()[:, None])


class Styles(nn.Module):
    """Random styles: every entry of a noise vector chooses one of `codebook` learned vectors, which
    are added up.

    A continuous network of continuous noise has a connected image. Styles are discrete, and free of
    that.

    Source: Deng et al. 2026 (arXiv:2602.04770), section A.2.
    """

    def __init__(self, codebook: int, width: int, spread: float):
        super().__init__()
        self.codebook, self.vector = codebook, nn.Embedding(codebook, width)
        nn.init.normal_(self.vector.weight, std=spread)

    def forward(self, noise: Tensor) -> Tensor:
        """Standard normal (batch, style) -> (batch, width)."""
        chosen = (
            (torch.special.ndtr(noise.float()) * self.codebook).long().clamp(max=self.codebook - 1)
        )
        return self.vector(chosen).sum(1)


class MLPGenerator(nn.Module):
    """Residual network on vectors, for the plane and for small images.

    Args:
        shape: of a sample; `classes`: how many, 0 for none; `noise_dim`: dimension of the noise.
        codebook: vectors to choose a style from, by one more entry of the noise; 0 for no style.
        width, depth: of the residual stream, and how many residual layers.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        classes: int = 0,
        noise_dim: int = 32,
        codebook: int = 0,
        width: int = 128,
        depth: int = 3,
        seed: int,
    ):
        super().__init__()
        self.shape, self.continuous, self.noise_dim = (
            tuple(shape),
            noise_dim,
            noise_dim + (codebook > 0),
        )
        with seeded(seed):
            self.inward = nn.Linear(noise_dim, width)
            self.condition = Condition(classes, width)
            self.style = Styles(codebook, width, spread=2.0) if codebook else None
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
            self.layers = nn.ModuleList(
                FeedForward(width, 2 * width, activation="gelu") for _ in range(depth)
            )
            self.outward = nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, math.prod(self.shape))
            )

    def forward(self, noise: Tensor, label: Tensor, alpha: Tensor) -> Tensor:
        """(batch, noise_dim), (batch,), (batch,) -> (batch, *shape)."""
        condition, h = self.condition(label, alpha), self.inward(noise[:, : self.continuous])
        if self.style is not None:
            condition = condition + self.style(noise[:, self.continuous :])
        for norm, layer in zip(self.norms, self.layers, strict=True):
            h = h + layer(norm(h + condition))
        return self.outward(h).unflatten(1, self.shape)


class DiTGenerator(nn.Module):
    """Transformer on patches of noise, with random styles, and in-context tokens that all carry the
    condition.

    Args:
        shape: (channels, height, width) of a sample; `patch`: side of a patch, which divides both.
        width, depth, heads: of the transformer; `context`, `styles`, `codebook`: numbers of tokens,
            styles and vectors.
    Raises:
        ValueError: `patch` does not divide the image.
    Source: Peebles & Xie 2023 (arXiv:2212.09748); Deng et al. 2026 (arXiv:2602.04770), section A.2.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        classes: int = 0,
        patch: int = 4,
        width: int = 256,
        depth: int = 6,
        heads: int = 4,
        context: int = 8,
        styles: int = 8,
        codebook: int = 64,
        seed: int,
    ):
        super().__init__()
        c, h, w = self.shape = tuple(shape)
        require(h % patch == 0 and w % patch == 0, "patch", patch, f"a divisor of {h} and {w}")
        self.patch, self.n_styles = patch, styles
        self.noise_dim = math.prod(self.shape) + styles
        tokens, size = (h // patch) * (w // patch), c * patch**2
        with seeded(seed):
            self.inward, self.condition = nn.Linear(size, width), Condition(classes, width)
            self.style = Styles(codebook, width, spread=1 / math.sqrt(width * styles))
            self.position = nn.Parameter(torch.randn(tokens, width) * 0.02)
            self.context = nn.Parameter(torch.randn(context, width) * 0.02)
            self.blocks = nn.ModuleList(Block(width, heads, 4 * width) for _ in range(depth))
            self.outward = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size))

    def forward(self, noise: Tensor, label: Tensor, alpha: Tensor) -> Tensor:
        """(batch, noise_dim), (batch,), (batch,) -> (batch, channels, height, width)."""
        c, h, w = self.shape
        pixels, style = noise.split((c * h * w, self.n_styles), 1)
        condition = self.condition(label, alpha) + self.style(style)
        patches = (
            nn.functional.pixel_unshuffle(pixels.unflatten(1, self.shape), self.patch).flatten(2).mT
        )
        x = torch.cat((self.context + condition[:, None], self.inward(patches) + self.position), 1)
        for block in self.blocks:
            x = block(x)
        out = self.outward(x[:, len(self.context) :]).mT
        return nn.functional.pixel_shuffle(
            out.unflatten(2, (h // self.patch, w // self.patch)), self.patch
        )
