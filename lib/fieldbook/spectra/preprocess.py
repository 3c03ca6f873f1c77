"""Fixed maps of the input, fitted to training data once and stored with the weights."""

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn

from fieldbook.nn.checks import numbers, require


class Affine(nn.Module):
    """x -> (x - mean) * matrix, or x -> (x - mean) @ matrix, without anything to train.

    Args:
        mean: (feature,); `matrix`: (feature,) to scale by, or (feature, component) to project on.
    """

    def __init__(self, mean: Tensor, matrix: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, feature) -> the same, or (batch, component)."""
        centred = x - self.mean
        return centred * self.matrix if self.matrix.ndim == 1 else centred @ self.matrix


def standardise(examples: Tensor) -> Affine:
    """Mean 0 and deviation 1 for each feature of (n, feature); 0 for a constant feature."""
    examples = numbers(examples, "examples", ndim=2, least=2)
    spread, mean = torch.std_mean(examples, 0)
    least, most = examples.aminmax(dim=0)
    rounding = torch.finfo(examples.dtype).eps * mean.abs()
    varies = (most > least) & (spread > rounding)
    return Affine(mean, torch.where(varies, 1 / spread, 0))


def principal_components(examples: Tensor, components: int) -> Affine:
    """The first principal components of (n, feature), strongest first, each of deviation 1.

    Raises:
        ValueError: as `fitted_pca`.
    """
    pca = fitted_pca(examples, components)
    spread = pca.singular_values_ / (len(examples) - 1) ** 0.5
    parts = (pca.mean_, pca.components_.T / spread)
    return Affine(*(torch.from_numpy(part).to(examples) for part in parts))


def fitted_pca(examples: Tensor, components: int) -> PCA:
    """scikit-learn's `PCA` of examples (n, feature), by random projections if that is faster.

    Raises:
        ValueError: more components than the examples vary in, fewer than two examples, or one that
            is not finite.
    """
    examples = numbers(examples, "examples", ndim=2, least=2).numpy(force=True)
    most = min(examples.shape)
    require(1 <= components <= most, "components", components, f"from 1 to {most}")
    solver = "randomized" if components < most / 2 else "full"
    pca = PCA(components, svd_solver=solver, random_state=0)
    with np.errstate(invalid="ignore"):  # 0 / 0 where nothing varies, which is refused next
        pca.fit(examples)
    eps = np.finfo(examples.dtype).eps
    rounding = np.linalg.norm(examples) * max(examples.shape) ** 0.5 * eps
    rank = int((pca.singular_values_ > rounding).sum())
    accepted = f"at most {rank}, in which the examples vary"
    require(components <= rank, "components", components, accepted)
    return pca
