"""Fixed maps of the input, fitted to training data once and stored with the weights."""

import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn

from fieldbook.nn.checks import numbers, require


class Affine(nn.Module):
    """x -> (x - mean) * scale, or x -> (x - mean) @ basis, without anything to train.

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
    """Mean 0 and standard deviation 1 for each feature of (n, feature); a constant feature becomes
    0."""
    examples = numbers(examples, "examples", ndim=2, least=2)
    spread, mean = torch.std_mean(examples, 0)
    least, most = examples.aminmax(dim=0)
    rounding = torch.finfo(examples.dtype).eps * mean.abs()
    varies = (most > least) & (spread > rounding)
    return Affine(mean, torch.where(varies, 1 / spread, 0))


def principal_components(examples: Tensor, n_components: int) -> Affine:
    """The first principal components of (n, feature), strongest first, each scaled to standard
    deviation 1.

    Raises:
        ValueError: more components than the examples vary in, fewer than two examples, or one that
            is not finite.
    """
    examples = numbers(examples, "examples", ndim=2, least=2)
    most = min(examples.shape)
    require(1 <= n_components <= most, "n_components", n_components, f"from 1 to {most}")
    pca = PCA(n_components, random_state=0).fit(examples.numpy(force=True))
    spread = pca.singular_values_ / (len(examples) - 1) ** 0.5
    rank = int((spread > 1e-6 * spread[0]).sum())
    require(
        n_components <= rank,
        "n_components",
        n_components,
        f"at most {rank}, in which the examples vary",
    )
    parts = (pca.mean_, pca.components_.T / spread)
    return Affine(*(torch.from_numpy(part).to(examples) for part in parts))
