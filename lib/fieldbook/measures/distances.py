"""Distances between two samples that need no features: energy, sliced Wasserstein, nearest neighbour."""

import torch
from torch import Tensor

from fieldbook.checks import require


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased energy distance 2 E|x - y| - E|x - x'| - E|y - y'|, differentiable in both.

    Args:
        x: (..., N, D); `y`: (..., M, D); N, M >= 2.
    Returns:
        (...,), in the units of x; 0 in expectation for samples of one distribution, hence sometimes negative.
    Raises:
        ValueError: fewer than two samples.
    Source: Székely & Rizzo 2013, equation 5 (doi:10.1016/j.jspi.2013.03.018), without pairs of a sample with itself.
    """
    n, m = x.shape[-2], y.shape[-2]
    require(min(n, m) >= 2, "samples", (n, m), "at least two of each")
    within = torch.cdist(x, x).sum((-2, -1)) / (n * (n - 1)) + torch.cdist(y, y).sum((-2, -1)) / (m * (m - 1))
    return 2 * torch.cdist(x, y).mean((-2, -1)) - within


def sliced_w2(x: Tensor, y: Tensor, generator: torch.Generator, directions: int = 256) -> float:
    """Sliced 2-Wasserstein distance: root mean square over random directions of the one-dimensional distance.

    Args:
        x, y: (N, D), as many samples of each.
        generator: of the directions, on the CPU.
    Returns:
        In the units of x.
    Raises:
        ValueError: x and y differ in shape.
    Source: Bonneel et al. 2015 (doi:10.1007/s10851-014-0506-3), equation 11.
    """
    require(x.shape == y.shape, "y", tuple(y.shape), f"the shape of x, {tuple(x.shape)}")
    theta = torch.randn(x.shape[1], directions, generator=generator, dtype=torch.float64)
    theta /= theta.norm(dim=0)
    one, two = ((z.double().cpu() @ theta).sort(0).values for z in (x, y))
    return float((one - two).square().mean().sqrt())


def nearest(x: Tensor, y: Tensor) -> Tensor:
    """Distance from each x to its nearest y; where x are samples and y training data, small values are copies.

    Args:
        x: (N, ...); `y`: (M, ...), flattened to vectors.
    Returns:
        (N,)
    """
    return torch.cat([torch.cdist(part, y.flatten(1)).amin(1) for part in x.flatten(1).split(1024)])
