"""Small networks that read one label off a vector of features."""

import itertools

import torch
from torch import Tensor, nn

from fieldbook.models.blocks import seeded
from fieldbook.recipe import require

HIDDEN_LAYERS = {"linear": 0, "mlp_1": 1, "mlp_2": 2}


class Affine(nn.Module):
    """x * scale + shift, with constants that are saved with the weights."""

    def __init__(self, scale: Tensor, shift: Tensor):
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def head(
    name: str, features: Tensor, labels: Tensor, *, hidden: int = 256, dropout: float = 0.1, standardise: bool = True,
    seed: int = 0,
) -> nn.Sequential:  # fmt: skip
    """A head (batch, features) -> (batch,) that answers in the labels' unit.

    Args:
        name: `linear`; `mlp_1`, one hidden layer with GELU and dropout; `mlp_2`, two of them.
        features: (n, features) and `labels`: (n,) for training, whose mean and spread the head keeps.
        standardise: the features; without it they enter as they come.
        seed: of the initial weights.
    Raises:
        ValueError: an unknown name.
    """
    require(name in HIDDEN_LAYERS, "head", name, f"one of {', '.join(HIDDEN_LAYERS)}")
    widths = [features.shape[1], *[hidden] * HIDDEN_LAYERS[name]]
    layers = [_standardising(features)] if standardise else []
    with seeded(seed):
        for n_in, n_out in itertools.pairwise(widths):
            layers += [nn.Linear(n_in, n_out), nn.GELU(), nn.Dropout(dropout)]
        layers += [nn.Linear(widths[-1], 1), Affine(labels.std(), labels.mean()), nn.Flatten(0)]
    return nn.Sequential(*layers)


def _standardising(features: Tensor) -> Affine:
    mean, spread = features.mean(0), features.std(0)
    scale = torch.where(spread > 1e-6 * mean.abs(), 1 / spread, 0.0)  # constant features say nothing
    return Affine(scale, -mean * scale)
