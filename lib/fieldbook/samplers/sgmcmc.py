"""One step of preconditioned, localised Langevin dynamics, for every sampler of the book.

w <- w - eps/2 [P (n_beta g + gamma A (w - w*)) - Gamma] + sqrt(eps P) xi,  xi ~ N(0, 1)

targets exp(-n_beta L(w) - gamma/2 |w - w*|_A^2) as eps -> 0. Source: Ma, Chen & Fox 2015
(arXiv:1506.04696), equation 9, with localisation as in Lau et al. 2023 (arXiv:2308.12108).
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fieldbook.nn.checks import numbers, require
from fieldbook.samplers.preconditioners import Metric, Preconditioner

Gradient = Callable[[Tensor, int], tuple[Tensor, Tensor]]


class Coefficients(NamedTuple):
    """A metric with a chain's settings: w <- w + push g + pull (w* - w) + drift + spread xi."""

    push: Tensor
    pull: Tensor
    drift: Tensor
    spread: Tensor


def coefficients(
    metric: Metric, like: Tensor, *, eps: float | Tensor, n_beta: float, gamma: float | Tensor
) -> Coefficients:
    """What `step` multiplies with, each broadcastable to (..., D), in the precision of `like`."""
    p, a, drift = metric
    scaled = eps * p
    return Coefficients(
        push=(-n_beta / 2 * scaled).to(like),
        pull=(gamma / 2 * scaled * a).to(like),
        drift=(eps / 2 * drift).to(like) if drift.ndim else drift,
        spread=scaled.sqrt().to(like),
    )


def step(w: Tensor, g: Tensor, w_star: Tensor, noise: Tensor, by: Coefficients) -> Tensor:
    """One update of (..., D) points in few passes; g of the mean loss, noise standard normal."""
    w = torch.lerp(w, w_star, by.pull).addcmul_(by.push, g).addcmul_(by.spread, noise)
    return w.add_(by.drift) if by.drift.ndim else w


def chain(
    gradient: Gradient,
    w_star: Tensor,
    preconditioner: Preconditioner,
    generator: torch.Generator,
    *,
    eps: float | Tensor,
    n_beta: float,
    gamma: float | Tensor,
    steps: int,
    common_noise: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Run stacked chains from w*, yielding (losses, points) where gradients are taken.

    Args:
        gradient: (w, step) -> (losses (..), gradient of their mean, shaped like w).
        w_star: (.., D) start and centre of localisation, sampled in float32 or wider.
        generator: on the device of w_star.
        eps, gamma: numbers, or tensors that broadcast against w, such as (cells, 1, 1).
        common_noise: the same noise for every index of the first of three or more axes (common
            random numbers), so that cells (cells, chains, D) differ by their metric alone.
    Raises:
        ValueError: eps, n_beta or steps is not positive; gamma is negative; noise that is common to
            all chains; or the gradient's losses or gradients have another shape.
    """
    w_star = numbers(w_star, "w_star")
    alone = "False for (chains, D), which would all be one chain; True takes (cells, chains, D)"
    require(w_star.ndim > 2 or not common_noise or len(w_star) == 1, "common_noise", True, alone)
    for name, value in (("eps", eps), ("n_beta", n_beta), ("steps", steps)):
        positive = torch.as_tensor(value)
        positive = ((positive > 0) & positive.isfinite()).all()
        require(positive, name, value, "a positive number")
    require((torch.as_tensor(gamma) >= 0).all(), "gamma", gamma, "0 or more")
    init, update = preconditioner
    w = w_star.clone()
    state = init(w_star)
    previous = None
    shape = w.shape[1:] if common_noise else w.shape
    expected = f"{tuple(w.shape[:-1])}, one loss per chain, and {tuple(w.shape)}"
    for t in range(steps):
        losses, g = gradient(w, t)
        shapes, fits = (losses.shape, g.shape), (w.shape[:-1], w.shape)
        require(shapes == fits, "shapes of losses and gradient", shapes, expected)
        yield losses, w
        metric, state = update(state, w, g)
        if metric is not previous:  # a frozen metric needs no new coefficients
            by = coefficients(metric, w, eps=eps, n_beta=n_beta, gamma=gamma)
            previous = metric
        noise = torch.randn(shape, generator=generator, dtype=w.dtype, device=w.device)
        w = step(w, g, w_star, noise, by)


def require_stable(eps: float, stiffness: float | Tensor | np.ndarray) -> None:
    """Check that Euler's scheme contracts: eps P a < 4 in every direction.

    Args:
        stiffness: P a of each direction (...), or the largest; a = n_beta h + gamma A, h the
            curvature of the loss.
    Raises:
        ValueError: it does not; names the largest step size that would.
    """
    largest = float(torch.as_tensor(stiffness).max())
    if not eps * largest < 4:
        bound = "eps P (n_beta h + gamma A) < 4 in every direction"
        limit = f"expected {bound}, so eps < {4 / largest:.3g}"
        raise ValueError(f"eps = {eps:.3g} is unstable: {limit}")
