"""Small networks that read one label off a vector of features."""

import itertools

from torch import Tensor, nn

from fieldbook.nn.checks import numbers, require
from fieldbook.nn.layers import seeded
from fieldbook.spectra import preprocess

HIDDEN_LAYERS = {"linear": 0, "mlp_1": 1, "mlp_2": 2}


def head(
    name: str,
    features: Tensor,
    labels: Tensor,
    *,
    hidden: int = 256,
    dropout: float = 0.1,
    standardise: bool = True,
    seed: int = 0,
) -> nn.Sequential:
    """A head (batch, features) -> (batch,) that answers in the labels' unit.

    Args:
        name: `linear`; `mlp_1`, one hidden layer with GELU and dropout; `mlp_2`, two of them.
        features: (n, features) and `labels`: (n,) for training, whose mean and spread the head
            keeps.
        standardise: the features; without it they enter as they come.
        seed: of the initial weights.
    Raises:
        ValueError: an unknown name, other shapes, or labels that are not finite or do not differ.
    """
    require(name in HIDDEN_LAYERS, "head", name, f"one of {', '.join(HIDDEN_LAYERS)}")
    features = numbers(features, "features", ndim=2, least=2)
    labels = numbers(labels, "labels", shape=features.shape[:1])
    require(labels.min() < labels.max(), "labels", float(labels[0]), "labels that differ")
    widths = [features.shape[1], *[hidden] * HIDDEN_LAYERS[name]]
    layers = [preprocess.standardise(features)] if standardise else []
    with seeded(seed):
        for n_in, n_out in itertools.pairwise(widths):
            layers += [nn.Linear(n_in, n_out), nn.GELU(), nn.Dropout(dropout)]
        layers += [nn.Linear(widths[-1], 1), nn.Flatten(0)]
    spread = labels.std(keepdim=True)
    layers.append(
        preprocess.Affine(-labels.mean() / spread, spread)
    )  # from mean 0, deviation 1 to the labels' unit
    return nn.Sequential(*layers).to(features.device)
