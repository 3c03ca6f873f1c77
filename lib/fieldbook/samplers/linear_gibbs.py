"""Gibbs sampling of linear networks: a reference without step size for their posterior mean loss.

L = |W_L .. W_1 - M|^2 / 2 is quadratic in each layer, so that under exp(-n_beta L - sum_i a_i (w_i
- w*_i)^2 / 2) each layer is Gaussian given the others, and is drawn exactly.
"""

import math
from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor

from fieldbook.nn.checks import numbers, positive, require


def product(layers: Sequence[Tensor], inputs: int) -> Tensor:
    """W_L .. W_1 of layers (..., outputs, inputs), first layer first; the identity of `inputs` for
    no layer."""
    return reduce(lambda below, layer: layer @ below, layers) if layers else torch.eye(inputs)


def curvature(layers: Sequence[Tensor], l: int) -> Tensor:
    """Second derivatives of L in the entries of layer l, row by row: (U^T U) kron (V V^T) where the
    map is U W_l V."""
    above, below = _sides(layers, l)
    left, right = above.mT @ above, below @ below.mT
    return (
        (left[..., :, None, :, None] * right[..., None, :, None, :]).flatten(-4, -3).flatten(-2, -1)
    )


def mean_loss(
    stars: Sequence[Tensor],
    strength: Sequence[Tensor],
    *,
    n_beta: float,
    chains: int = 400,
    sweeps: int = 150,
    seed: int = 0,
) -> tuple[float, float]:
    """n_beta E[L] with its standard error over chains, averaged over the last layer in closed form.

    Args:
        stars: layers (outputs, inputs) of w*, where the chains start, with M their product;
            `strength`: a of each layer's entries, row by row; `sweeps`: over the layers, of which a
                third is burn-in.
    Raises:
        ValueError: layers that do not follow one another, or a strength that is not positive: what
            the loss leaves open would be drawn from anywhere.
    """
    require(0 < n_beta < math.inf, "n_beta", n_beta, "a positive number")
    require(chains >= 2, "chains", chains, "at least 2, for a standard error")
    require(sweeps >= 2, "sweeps", sweeps, "at least 2")
    stars = [numbers(w, "stars", ndim=2).double() for w in stars]
    shapes = [tuple(w.shape) for w in stars]
    follow = all(below[0] == above[1] for below, above in pairwise(shapes))
    require(
        follow, "shapes of stars", shapes, "(outputs, inputs) of layers that follow one another"
    )
    sizes = zip(strength, stars, strict=True)
    strength = [positive(a, "strength", shape=(w.numel(),)).double() for a, w in sizes]
    target, generator, values = (
        product(stars, stars[0].shape[-1]),
        torch.Generator().manual_seed(seed),
        [],
    )
    layers = [w.expand(chains, *w.shape) for w in stars]
    for _ in range(sweeps):
        for l, (star, a) in enumerate(zip(stars, strength, strict=True)):
            above, below = _sides(layers, l)
            factor = torch.linalg.cholesky(n_beta * curvature(layers, l) + a.diag())
            pull = n_beta * (above.mT @ target @ below.mT).flatten(-2) + a * star.flatten()
            mean = torch.cholesky_solve(pull[..., None], factor)
            noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
            draw = mean + torch.linalg.solve_triangular(factor.mT, noise, upper=True)
            layers[l] = draw.view(chains, *star.shape)
        residual = above @ mean.view(chains, *star.shape) @ below - target
        variance = torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1)
        values.append(n_beta * residual.square().sum((-2, -1)) / 2 + (1 - a * variance).sum(-1) / 2)
    means = torch.stack(values[sweeps // 3 :]).mean(0)
    return float(means.mean()), float(means.std()) / math.sqrt(chains)


def _sides(layers: Sequence[Tensor], l: int) -> tuple[Tensor, Tensor]:
    """The products of the layers above and below layer l."""
    (rows, _), inputs = layers[l].shape[-2:], layers[0].shape[-1]
    return product(layers[l + 1 :], rows).to(layers[l]), product(layers[:l], inputs).to(layers[l])
