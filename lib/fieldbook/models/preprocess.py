"""Fixed maps of the input, fitted to training data once and stored with the weights."""

import torch
from torch import Tensor, nn

from fieldbook.recipe import require


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
    """Mean 0 and standard deviation 1 for each feature of (n, feature); a constant feature becomes 0."""
    spread, mean = torch.std_mean(examples, 0)
    return Affine(mean, torch.where(spread > 1e-7 * mean.abs(), 1 / spread, 0))


def principal_components(examples: Tensor, n_components: int) -> Affine:
    """The first principal components of (n, feature), each scaled to standard deviation 1, strongest first.

    Raises:
        ValueError: more components than the examples have.
    """
    n = len(examples)
    mean = examples.mean(0)
    _, s, v = torch.linalg.svd((examples - mean).double(), full_matrices=False)
    rank = int((s > s[0] * max(examples.shape) * torch.finfo(examples.dtype).eps).sum())
    require(1 <= n_components <= rank, "n_components", n_components, f"from 1 to {rank}, the rank of the examples")
    basis = v[:n_components].T / s[:n_components] * (n - 1) ** 0.5
    return Affine(mean, basis.to(examples.dtype))
