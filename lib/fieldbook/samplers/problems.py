"""Losses whose learning coefficient is known, and the exact value of its estimate at any
temperature.

The truth of a run is n_beta E[L] under the density its sampler states, exp(-n_beta L - gamma/2 |w -
w*|_A^2), with the sampler's own metric A, at this n_beta and gamma; it tends to lambda - (m -
1)/log n_beta. As `si_sgld` takes P from the weights at w* and `rsgld` from the Fisher information
there, no minimum lies at the origin, and each orbit has a coordinate that is not degenerate. Single
precision: its rounding is far below the standard errors of sampling.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fieldbook.nn.checks import require
from fieldbook.samplers import linear_gibbs, singular
from fieldbook.samplers.sgmcmc import Gradient


class Setting(NamedTuple):
    """What the exact value depends on: P and A at w* (D,), the step size, and the steps, the first
    ones dropped."""

    preconditioner: Tensor
    localization: Tensor
    eps: float
    steps: int
    burn_in: int


@dataclass(frozen=True)
class Problem:
    """A loss over D coordinates, zero at its minimum w*.

    `gradient` is as `sgmcmc.chain` takes it; `curvature` (D,) is about the largest second
    derivative where draws fall; `fisher` (D,) is at w*; `coefficient` and `multiplicity` are lambda
    and m; `truth` maps a setting to the exact value and its standard error; `step_bias` is what the
    truth leaves out, per eps P a and relative: Euler's scheme widens a Gaussian of curvature a by
    eps P a / 4.
    """

    name: str
    gradient: Gradient
    w_star: Tensor
    fisher: Tensor
    curvature: Tensor
    orbits: Sequence[Tensor]
    n_beta: float
    gamma: float
    coefficient: float
    multiplicity: int
    truth: Callable[[Setting], tuple[float, float]]
    step_bias: float = 0.25


def quadratic(*, n_beta: float = 40.0, gamma: float = 1.0) -> Problem:
    """L = sum_i h_i (w_i - b_i)^2 / 2; the truth holds for this step size and length where P is
    frozen."""
    h, b = torch.tensor([1.0, 2.0, 0.5, 1.0]), torch.tensor([0.5, -0.4, 0.5, 0.4])

    def gradient(w: Tensor, step: int) -> tuple[Tensor, Tensor]:
        slope = h * (w - b)
        return (slope * (w - b)).sum(-1) / 2, slope

    def truth(s: Setting) -> tuple[float, float]:
        p, a = s.preconditioner.double().numpy(), gamma * s.localization.double().numpy()
        mean = partial(
            singular.quadratic_estimate,
            h.numpy(),
            eps=s.eps,
            preconditioner=p,
            n_beta=n_beta,
            gamma=a,
        )
        total, dropped = (t * mean(steps=t) if t > 0 else 0.0 for t in (s.steps - 1, s.burn_in - 1))
        return (total - dropped) / (s.steps - s.burn_in), 0.0

    orbits = [torch.arange(len(h))]
    return Problem(
        "quadratic", gradient, b, h, h, orbits, n_beta, gamma, len(h) / 2, 1, truth, step_bias=0.0
    )


def monomial(powers: Sequence[int] = (2, 4, 2, 6), *, n_beta: float = 20.0) -> Problem:
    """L = sum_i |w_i - b_i|^p_i without localisation: sum_i 1/p_i at every n_beta.

    Args:
        powers: two orbits of equal size, each with a 2.
    """
    half = len(powers) // 2
    fits = len(powers) == 2 * half and 2 in powers[:half] and 2 in powers[half:]
    require(fits, "powers", list(powers), "two halves of equal size, each with a 2")
    p, orbits = torch.tensor(powers, dtype=torch.float32), torch.arange(len(powers)).chunk(2)
    b = torch.full_like(p, 0.7).index_fill(0, orbits[1], 1.0)

    def gradient(w: Tensor, step: int) -> tuple[Tensor, Tensor]:
        size = (w - b).abs()
        slope = size ** (p - 1)
        return (slope * size).sum(-1), p * slope * (w - b).sign()

    value, fisher = singular.monomial_sum(powers), torch.where(p == 2, 2.0, 0.0)
    curvature = p * (p - 1) * (3 / n_beta) ** (1 - 2 / p)  # where n_beta |w - b|^p = 3
    return Problem(
        "monomial",
        gradient,
        b,
        fisher,
        curvature,
        orbits,
        n_beta,
        0.0,
        value,
        1,
        lambda s: (value, 0.0),
    )


def normal_crossing(
    exponents: tuple[int, int] = (1, 2), *, n_beta: float = 100.0, gamma: float = 5.0
) -> Problem:
    """L = (x - b)^(2 k_1) (y - b)^(2 k_2) + (z - b)^2 / 2: lambda = min 1/(2 k_i) + 1/2; the truth
    is a quadrature."""
    require(gamma > 0, "gamma", gamma, "a positive number: the valley of the minimum has no end")
    (k1, k2), b = exponents, torch.full((3,), 0.8)

    def gradient(w: Tensor, step: int) -> tuple[Tensor, Tensor]:
        x, y, z = (w - b).unbind(-1)
        f, g = x ** (2 * k1 - 1), y ** (2 * k2 - 1)
        return f * x * g * y + z * z / 2, torch.stack(
            [2 * k1 * f * g * y, 2 * k2 * f * x * g, z], -1
        )

    def truth(s: Setting) -> tuple[float, float]:
        a, x = (
            gamma * s.localization.double().numpy(),
            np.exp(np.linspace(-25, 4, 1500)),
        )  # trapezoid rule in log x
        loss = n_beta * np.multiply.outer(x ** (2 * k1), x ** (2 * k2))
        density = np.exp(-loss - np.add.outer(a[0] * x**2, a[1] * x**2) / 2) * np.multiply.outer(
            x, x
        )
        return float((loss * density).sum() / density.sum() + n_beta / (n_beta + a[2]) / 2), 0.0

    value, multiplicity = singular.normal_crossing(exponents)
    fisher, curvature = torch.tensor([0.0, 0.0, 1.0]), torch.full((3,), 2.0)
    orbits = [torch.arange(3)]
    return Problem(
        "normal crossing",
        gradient,
        b,
        fisher,
        curvature,
        orbits,
        n_beta,
        gamma,
        value + 0.5,
        multiplicity,
        truth,
    )


def linear_network(
    widths: Sequence[int], rank: int = 1, *, n_beta: float = 40.0, gamma: float = 1.0
) -> Problem:
    """L = |W_L .. W_1 - M|^2 / 2, the loss of a linear network on white inputs, at its deepest
    singularity.

    M and each layer at w*, an orbit, are diag(1, .., 1, 0, .., 0) with `rank` ones. Each layer is
    Gaussian given the others, so that Gibbs sampling, which has no step size, gives the truth;
    lambda and m are Aoyagi's.

    Args:
        widths: H_0, .., H_L, inputs first, two layers or more.
    """
    stars = [torch.eye(o, i) * (torch.arange(i) < rank) for i, o in pairwise(widths)]
    shapes, sizes = [w.shape for w in stars], [w.numel() for w in stars]
    target = linear_gibbs.product(stars, widths[0])

    def gradient(w: Tensor, step: int) -> tuple[Tensor, Tensor]:
        layers = [
            part.unflatten(-1, shape)
            for part, shape in zip(w.split(sizes, -1), shapes, strict=True)
        ]
        hidden = list(accumulate(layers, lambda below, layer: layer @ below))
        back = error = hidden[-1] - target
        slopes = []
        for layer, below in zip(layers[:0:-1], hidden[-2::-1], strict=True):
            slopes.append(back @ below.mT)
            back = layer.mT @ back
        return error.square().sum((-2, -1)) / 2, torch.cat(
            [g.flatten(-2) for g in [back, *slopes[::-1]]], -1
        )

    @cache
    def truth(strength: tuple[float, ...]) -> tuple[float, float]:
        return linear_gibbs.mean_loss(stars, torch.tensor(strength).split(sizes), n_beta=n_beta)

    fisher = torch.cat([linear_gibbs.curvature(stars, l).diagonal() for l in range(len(stars))])
    return Problem(
        name="reduced rank" if len(stars) == 2 else "deep linear",
        gradient=gradient,
        w_star=torch.cat([w.flatten() for w in stars]),
        fisher=fisher,
        curvature=len(stars) * fisher + 2,
        orbits=torch.arange(sum(sizes)).split(sizes),
        n_beta=n_beta,
        gamma=gamma,
        coefficient=singular.deep_linear(widths, rank),
        multiplicity=singular.deep_linear_multiplicity(widths, rank),
        truth=lambda s: truth(tuple((gamma * s.localization).tolist())),
    )
