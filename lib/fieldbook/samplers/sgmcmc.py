"""One step of preconditioned, localised Langevin dynamics, for every sampler of the book.

w <- w - eps/2 [P (n_beta g + gamma A (w - w*)) - Gamma] + sqrt(eps P) xi,  xi ~ N(0, 1)

targets exp(-n_beta L(w) - gamma/2 |w - w*|_A^2) as eps -> 0. Source: Ma, Chen & Fox 2015 (arXiv:1506.04696), equation
9, with localisation as in Lau et al. 2023 (arXiv:2308.12108).
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from fieldbook.samplers.preconditioners import Metric, Preconditioner

Gradient = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def step(
    w: Tensor, g: Tensor, w_star: Tensor, metric: Metric, noise: Tensor, *, eps: float, n_beta: float, gamma: float
) -> Tensor:
    """One update of (..., D) points; `g` is the gradient of the mean loss, `noise` standard normal."""
    p, a, drift = metric
    force = p * (n_beta * g + gamma * a * (w - w_star)) - drift
    return w - eps / 2 * force + (eps * p).sqrt() * noise


def chain(
    gradient: Gradient,
    w_star: Tensor,
    preconditioner: Preconditioner,
    generator: torch.Generator,
    *,
    eps: float,
    n_beta: float,
    gamma: float,
    steps: int,
    common_noise: bool = True,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Run stacked chains from w*, yielding (losses, points) at the points where gradients are taken.

    Args:
        gradient: (w, step) -> (losses (..., batch) or (...), gradient of their mean (..., D)).
        w_star: (chains, D) start and centre of localisation.
        common_noise: the same noise for every chain (common random numbers), so that they differ by metric alone.
    Raises:
        ValueError: eps, n_beta or steps is not positive, or gamma is negative.
    """
    for name, value, accepted in (("eps", eps, eps > 0), ("n_beta", n_beta, n_beta > 0), ("steps", steps, steps > 0)):
        if not accepted:
            raise ValueError(f"{name} = {value}: expected a positive number")
    if gamma < 0:
        raise ValueError(f"gamma = {gamma}: expected 0 or more")
    init, update = preconditioner
    w, state = w_star.clone(), init(w_star)
    shape = w.shape[-1:] if common_noise else w.shape
    for t in range(steps):
        losses, g = gradient(w, t)
        yield losses, w
        metric, state = update(state, w, g)
        noise = torch.randn(shape, generator=generator, dtype=w.dtype, device=w.device)
        w = step(w, g, w_star, metric, noise, eps=eps, n_beta=n_beta, gamma=gamma)


def require_stable(eps: float, stiffness: Tensor | np.ndarray) -> None:
    """Check that Euler's scheme contracts: eps P a < 4 in every direction.

    Args:
        stiffness: P a of each direction (...), a = n_beta h + gamma A with h the curvature of the loss.
    Raises:
        ValueError: it does not; names the largest step size that would.
    """
    largest = float(stiffness.max())
    if not eps * largest < 4:
        raise ValueError(
            f"eps = {eps}: expected eps P (n_beta h + gamma A) < 4 in every direction, so eps < {4 / largest:.3g}"
        )
