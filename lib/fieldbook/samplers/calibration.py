"""Step size and localisation of a sampler, from a gradient function alone."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fieldbook.nn.checks import require
from fieldbook.samplers.curvature import largest_eigenvalue
from fieldbook.samplers.estimate import estimate
from fieldbook.samplers.llc import Sampling, first_metric, traces
from fieldbook.samplers.preconditioners import Preconditioner
from fieldbook.samplers.sgmcmc import Gradient, require_stable


def calibrate(
    gradient: Gradient,
    w_star: Tensor,
    build: Preconditioner,
    how: Sampling,
    *,
    n_beta: float,
    relaxation: float,
    target: float,
    ceiling: float,
    slope: Tensor | None = None,
    curvature: Callable[[Tensor], float] | None = None,
    n: int = 18,
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Step size and localisation at which a sampler's estimate is the target, and the way there.

    Localisation sets how far a chain may stray, hence the estimate; samplers are compared where
    they agree. The step size is relaxation / (gamma max(P A)): localisation alone takes back half
    of `relaxation` of a deviation per step, and P A = 1 for samplers that localise in their own
    metric.

    Args:
        gradient: (w (.., chains, D), step) -> (L(w) - L(w*) (.., chains), gradients); `w_star`:
            (D,).
        target: of the estimate, below `ceiling`, which is that of a network that guesses.
        slope: (D,) gradient of L at w*, of the first minibatch unless given.
        curvature: P (D,) -> the largest eigenvalue of P^1/2 H P^1/2, by differences of gradients
            unless given.
        n: localisations tried, over six decades around the one at which weights would move by their
            own size.
    Returns:
        `gamma`, `eps` and `eps_limit`, the stability bound; one row per localisation with gamma,
        eps and llc.
    Raises:
        ValueError: the estimates do not pass the target, or the step size is unstable
            (`sgmcmc.require_stable`).
    """
    accepted = "weights, whose size sets the localisations tried"
    require(w_star.any(), "w_star", "zero everywhere", accepted)
    points = w_star.expand(1, how.chains, -1)
    if slope is None:
        slope = gradient(points, 0)[1].mean((0, 1))
    p, a, _ = first_metric(build, w_star, slope)
    stiffest = float((p * a).max())
    natural = float((1 / a[a > 0]).mean() / w_star.square().mean())
    gammas = natural * torch.logspace(-1.5, 4.5, n, dtype=torch.float64)
    epsilons = relaxation / (gammas * stiffest)
    require_stable(float(epsilons[0]), float(gammas[0]) * stiffest)
    cells = points.expand(n, -1, -1)
    trace = traces(gradient, cells, build, how, eps=epsilons, gamma=gammas, n_beta=n_beta)
    values, _ = estimate(trace.cpu().double(), n_beta=n_beta, burn_in=how.burn_in)
    gamma = crossing(gammas, values, target, ceiling=ceiling)
    eps = relaxation / (gamma * stiffest)
    steepest = curvature(p) if curvature else largest_eigenvalue(_differences(gradient, points), p)
    stiffness = n_beta * steepest + gamma * stiffest
    require_stable(eps, stiffness)
    curve = zip(gammas.tolist(), epsilons.tolist(), values.tolist(), strict=True)
    found = {"gamma": gamma, "eps": eps, "eps_limit": 4 / stiffness}
    return found, [{"gamma": gamma, "eps": eps, "llc": value} for gamma, eps, value in curve]


def _differences(gradient: Gradient, points: Tensor) -> Callable[[Tensor], Tensor]:
    """v -> H v by central differences of the gradient on the first minibatches."""
    precision = torch.finfo(points.dtype)
    small = precision.eps ** (1 / 3) * float(points.square().mean().sqrt())

    def product(vector: Tensor) -> Tensor:
        by = small * vector / vector.square().mean().sqrt().clamp(min=precision.tiny)
        ahead, behind = (gradient(points + sign * by, 0)[1].mean((0, 1)) for sign in (1, -1))
        return (ahead - behind) / 2 * (vector.norm() / by.norm())

    return product


def lengthen(
    gradient: Gradient,
    w_star: Tensor,
    build: Preconditioner,
    how: Sampling,
    *,
    eps: float,
    gamma: float,
    n_beta: float,
) -> list[dict[str, float]]:
    """Estimates over the first T steps, T up to four times `how`, for 1/4, 1/2 and all of eps.

    What short chains measure grows with eps T until localisation, not their length, holds them.
    """
    sizes = [eps / 4, eps / 2, eps]
    longer = replace(how, steps=4 * how.steps)
    points = w_star.expand(3, how.chains, -1)
    each = torch.tensor(sizes)
    trace = traces(gradient, points, build, longer, eps=each, gamma=gamma, n_beta=n_beta)
    sums = n_beta * trace.double().mean(2).cumsum(0).cpu()
    lengths = sorted({round(4 * how.steps ** (k / 15)) for k in range(16)})
    return [
        {"eps": size, "T": t, "gamma": gamma, "llc": float(sums[t - 1, k]) / t}
        for k, size in enumerate(sizes)
        for t in lengths
    ]


def crossing(gammas: Tensor, values: Tensor, target: float, *, ceiling: float) -> float:
    """Localisation where the estimate first passes below a target, on logarithmic scales.

    Args:
        gammas: (k,) increasing; `values`: (k,) estimates, which fall with gamma.
        ceiling: what an estimate that is larger, or not finite, counts as.
    Raises:
        ValueError: the estimates do not pass the target; says their range.
    """
    values = values.double().nan_to_num(nan=ceiling, posinf=ceiling)
    values = values.clamp(min=1e-12 * ceiling, max=ceiling)
    below = (values < target).nonzero().flatten()
    at = f"at gamma = {gammas[0]:.3g} .. {gammas[-1]:.3g}"
    accepted = f"a value between the estimates {values.min():.3g} .. {values.max():.3g} {at}"
    require(len(below) and below[0] > 0, "target", target, accepted)
    around = slice(int(below[0]) - 1, int(below[0]) + 1)
    x = gammas[around].double().log()
    y0, y1 = values[around].log()
    return float((x[0] + (y0 - math.log(target)) / (y0 - y1) * (x[1] - x[0])).exp())
