"""One-step generators: noise, a class and a guidance strength in, a sample out, in one pass.

Both have `noise_dim` and are called as (noise, label, alpha); `Setting.classes` is the label of no
class.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from fieldbook.drifting.setting import Setting
from fieldbook.nn.checks import require
from fieldbook.nn.layers import Block, FeedForward, seeded

HEADS, CONTEXT = 4, 8  # of the transformer; its tokens for the condition alone
STYLES, CODEBOOK = 8, 64  # of the transformer; an mlp has one style


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
    """Random styles: the sum of learned vectors, of which each entry of the noise picks one.

    A continuous network of continuous noise has a connected image. Styles are discrete, and free of
    that.

    Source: Deng et al. 2026 (arXiv:2602.04770), section A.2.
    """

    def __init__(self, codebook: int, width: int, spread: float):
        super().__init__()
        self.codebook = codebook
        self.vector = nn.Embedding(codebook, width)
        nn.init.normal_(self.vector.weight, std=spread)

    def forward(self, noise: Tensor) -> Tensor:
        """Standard normal (batch, style) -> (batch, width)."""
        uniform = torch.special.ndtr(noise.float())
        chosen = (uniform * self.codebook).long().clamp(max=self.codebook - 1)
        return self.vector(chosen).sum(1)


class MLPGenerator(nn.Module):
    """Residual network on vectors, for the plane and for small images."""

    def __init__(self, setting: Setting):
        super().__init__()
        width, depth, codebook = setting.width, setting.depth, setting.codebook
        self.shape, self.continuous = setting.shape, setting.noise_dim
        self.noise_dim = self.continuous + (codebook > 0)
        with seeded(setting.seed):
            self.inward = nn.Linear(self.continuous, width)
            self.condition = Condition(setting.classes, width)
            self.style = Styles(codebook, width, spread=2.0) if codebook else None
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
            layers = (FeedForward(width, 2 * width, activation="gelu") for _ in range(depth))
            self.layers = nn.ModuleList(layers)
            last = nn.Linear(width, math.prod(self.shape))
            self.outward = nn.Sequential(nn.LayerNorm(width), last)

    def forward(self, noise: Tensor, label: Tensor, alpha: Tensor) -> Tensor:
        """(batch, noise_dim), (batch,), (batch,) -> (batch, *shape)."""
        condition = self.condition(label, alpha)
        h = self.inward(noise[:, : self.continuous])
        if self.style is not None:
            condition = condition + self.style(noise[:, self.continuous :])
        for norm, layer in zip(self.norms, self.layers, strict=True):
            h = h + layer(norm(h + condition))
        return self.outward(h).unflatten(1, self.shape)


class DiTGenerator(nn.Module):
    """Transformer on patches of noise, with styles, and further tokens that carry the condition.

    Raises:
        ValueError: `setting.patch` does not divide the image.
    Source: Peebles & Xie 2023 (arXiv:2212.09748); Deng et al. 2026 (arXiv:2602.04770), section A.2.
    """

    def __init__(self, setting: Setting):
        super().__init__()
        patch, width = setting.patch, setting.width
        c, h, w = self.shape = setting.shape
        require(h % patch == 0 and w % patch == 0, "patch", patch, f"a divisor of {h} and {w}")
        self.patch, self.noise_dim = patch, math.prod(self.shape) + STYLES
        tokens, size = (h // patch) * (w // patch), c * patch**2
        with seeded(setting.seed):
            self.inward = nn.Linear(size, width)
            self.condition = Condition(setting.classes, width)
            self.style = Styles(CODEBOOK, width, spread=1 / math.sqrt(width * STYLES))
            self.position = nn.Parameter(torch.randn(tokens, width) * 0.02)
            self.context = nn.Parameter(torch.randn(CONTEXT, width) * 0.02)
            blocks = (Block(width, HEADS, 4 * width) for _ in range(setting.depth))
            self.blocks = nn.ModuleList(blocks)
            self.outward = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size))

    def forward(self, noise: Tensor, label: Tensor, alpha: Tensor) -> Tensor:
        """(batch, noise_dim), (batch,), (batch,) -> (batch, channels, height, width)."""
        c, h, w = self.shape
        pixels, style = noise.split((c * h * w, STYLES), 1)
        condition = self.condition(label, alpha) + self.style(style)
        sides = {"c": c, "h": h // self.patch, "p": self.patch, "q": self.patch}
        patches = rearrange(pixels, "n (c h p w q) -> n (h w) (c p q)", **sides)
        x = torch.cat((self.context + condition[:, None], self.inward(patches) + self.position), 1)
        for block in self.blocks:
            x = block(x)
        out = self.outward(x[:, CONTEXT:])
        return rearrange(out, "n (h w) (c p q) -> n c (h p) (w q)", **sides)
