"""Losses whose learning coefficient is known exactly: what an estimator must find.

The learning coefficient (real log canonical threshold, RLCT) of a loss L at its minimum is lambda
in volume{L < t} ~ t^lambda (log 1/t)^(m-1), m its multiplicity. Source: Watanabe 2009, *Algebraic
Geometry and Statistical Learning Theory*.

The truth of a run is n_beta E[L] under the density its sampler states, exp(-n_beta L - gamma/2 |w -
w*|_A^2), with the sampler's own metric A, at this n_beta and gamma; it tends to lambda - (m -
1)/log n_beta. As `si_sgld` takes P from the weights at w* and `rsgld` from the Fisher information
there, no minimum lies at the origin, and each orbit has a coordinate that is not degenerate. Single
precision: its rounding is far below the standard errors of sampling.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from itertools import accumulate, combinations, pairwise
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from fieldbook.nn.checks import numbers, positive, require
from fieldbook.samplers.sgmcmc import Gradient, require_stable


class Setting(NamedTuple):
    """What the exact value depends on: P and A at w* (D,), step size, steps and those dropped."""

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


def rlct_monomials(powers: Sequence[int]) -> float:
    """lambda = sum_i 1/p_i of L = sum_i |w_i|^p_i.

    At every n beta, n beta E[L] equals it exactly under the density exp(-n beta L), with a flat
    prior.
    """
    powers = list(powers)
    require(powers and min(powers) > 0, "powers", powers, "positive powers, at least one")
    return sum(1 / p for p in powers)


def rlct_normal_crossing(exponents: Sequence[int]) -> tuple[float, int]:
    """(lambda, m) of L = prod_i w_i^(2 k_i): min_i 1/(2 k_i), and how often it is taken.

    A k_i of 0 is a coordinate on which L does not depend.
    """
    exponents = list(exponents)
    real = exponents and min(exponents) >= 0 and max(exponents) > 0
    require(real, "exponents", exponents, "0 or more, at least one of them above 0")
    return 1 / (2 * max(exponents)), exponents.count(max(exponents))


def rlct_deep_linear(widths: Sequence[int], rank: int) -> tuple[float, int]:
    """(lambda, m) of a linear network at the deepest singularity over a map of the given rank.

    Args:
        widths: H_0, .., H_L, inputs first; at least two.
    Source: Aoyagi 2024, *Consideration on the learning efficiency of multiple-layered neural
    networks with linear units*, Neural Networks 172:106132, theorem 1; S are the layers with the
    smallest excess widths M_s = H_s - r.
    """
    enough = len(widths) >= 2 and min(widths) >= 1
    require(enough, "widths", list(widths), "at least two, inputs first, each at least 1")
    accepted = f"between 0 and the smallest width {min(widths)}"
    require(0 <= rank <= min(widths), "rank", rank, accepted)
    deepest = _deepest([h - rank for h in widths])
    l = len(deepest) - 1
    total = sum(deepest)
    a = total - (math.ceil(total / l) - 1) * l
    base = (rank * (widths[0] + widths[-1]) - rank**2) / 2
    products = sum(x * y for x, y in combinations(deepest, 2))
    value = base + a * (l - a) / (4 * l) - l * (l - 1) / 4 * (total / l) ** 2 + products / 2
    return value, a * (l - a) + 1


def _deepest(excess: Sequence[int]) -> list[int]:
    """The excess widths of the theorem's set S."""
    excess = sorted(excess)
    for l in range(1, len(excess)):
        chosen, others = excess[: l + 1], excess[l + 1 :]
        total = sum(chosen)
        if total >= l * chosen[-1] and (not others or total < l * others[0]):
            return chosen
    raise AssertionError(f"no set of layers satisfies the theorem for excess widths {excess}")


def quadratic_estimate(
    curvature: np.ndarray,
    *,
    eps: float,
    preconditioner: np.ndarray,
    n_beta: float,
    gamma: np.ndarray,
    steps: int,
) -> float:
    """What Langevin sampling of L = sum_i h_i w_i^2 / 2 returns on average at finite eps and T.

    Each coordinate is an AR(1) process with r_i = 1 - eps P_i a_i / 2, a_i = n_beta h_i + gamma_i,
    started at the minimum and averaged over steps 1 .. T; as eps -> 0 and T -> infinity this is 1/2
    sum_i n_beta h_i / a_i, and d/2 without localisation.

    Args:
        curvature: (d,) h_i; `preconditioner`: (d,) P_i; `gamma`: (d,) localisation times its
            metric.
    Raises:
        ValueError: a step size at or beyond the stability bound eps P a < 4.
    """
    stiffness = n_beta * curvature + gamma
    require_stable(eps, preconditioner * stiffness)
    moving = preconditioner * stiffness > 0  # else r = 1, and it stays at the minimum
    drift = np.where(moving, eps * preconditioner * stiffness, 1.0)
    r2 = (1 - drift / 2) ** 2
    late = r2 * (1 - r2**steps) / (drift * (1 - drift / 4)) / steps
    warm = np.where(moving, 1 - late, 0.0)  # mean of 1 - r^(2t), t = 1 .. T
    size = n_beta * curvature / np.where(moving, stiffness * (1 - drift / 4), 1.0)
    return float((size * warm).sum() / 2)


def quadratic(*, n_beta: float = 40.0, gamma: float = 1.0) -> Problem:
    """L = sum_i h_i (w_i - b_i)^2 / 2; the truth holds for this step size, where P is frozen."""
    h = torch.tensor([1.0, 2.0, 0.5, 1.0])
    b = torch.tensor([0.5, -0.4, 0.5, 0.4])

    def gradient(w: Tensor, step: int) -> tuple[Tensor, Tensor]:
        slope = h * (w - b)
        return (slope * (w - b)).sum(-1) / 2, slope

    def truth(s: Setting) -> tuple[float, float]:
        p, a = (x.double().numpy() for x in (s.preconditioner, s.localization))

        def total(steps: int) -> float:
            if steps <= 0:
                return 0.0
            mean = quadratic_estimate(
                h.double().numpy(),
                eps=s.eps,
                preconditioner=p,
                n_beta=n_beta,
                gamma=gamma * a,
                steps=steps,
            )
            return steps * mean

        # the chain's first loss is that at w*, zero, and counts as one of its steps
        return (total(s.steps - 1) - total(s.burn_in - 1)) / (s.steps - s.burn_in), 0.0

    orbits, half = [torch.arange(len(h))], len(h) / 2
    return Problem(gradient, b, h, h, orbits, n_beta, gamma, half, 1, truth, step_bias=0.0)


def monomials(powers: Sequence[int] = (2, 4, 2, 6), *, n_beta: float = 20.0) -> Problem:
    """L = sum_i |w_i - b_i|^p_i without localisation: sum_i 1/p_i at every n_beta.

    Args:
        powers: two orbits of equal size, each with a 2.
    """
    half = len(powers) // 2
    fits = len(powers) == 2 * half and 2 in powers[:half] and 2 in powers[half:]
    require(fits, "powers", list(powers), "two halves of equal size, each with a 2")
    p = torch.tensor(powers, dtype=torch.float32)
    orbits = torch.arange(len(powers)).chunk(2)
    b = torch.full_like(p, 0.7).index_fill(0, orbits[1], 1.0)

    def gradient(w: Tensor, step: int) -> tuple[Tensor, Tensor]:
        size = (w - b).abs()
        slope = size ** (p - 1)
        return (slope * size).sum(-1), p * slope * (w - b).sign()

    def truth(s: Setting) -> tuple[float, float]:
        return value, 0.0

    value = rlct_monomials(powers)
    fisher = torch.where(p == 2, 2.0, 0.0)
    curvature = p * (p - 1) * (3 / n_beta) ** (1 - 2 / p)  # where n_beta |w - b|^p = 3
    return Problem(gradient, b, fisher, curvature, orbits, n_beta, 0.0, value, 1, truth)


def normal_crossing(
    exponents: tuple[int, int] = (1, 2), *, n_beta: float = 100.0, gamma: float = 5.0
) -> Problem:
    """L = (x - b)^(2 k_1) (y - b)^(2 k_2) + (z - b)^2 / 2: lambda = min 1/(2 k_i) + 1/2."""
    require(gamma > 0, "gamma", gamma, "a positive number: the valley of the minimum has no end")
    k1, k2 = exponents
    b = torch.full((3,), 0.8)

    def gradient(w: Tensor, step: int) -> tuple[Tensor, Tensor]:
        x, y, z = (w - b).unbind(-1)
        f, g = x ** (2 * k1 - 1), y ** (2 * k2 - 1)
        slope = torch.stack([2 * k1 * f * g * y, 2 * k2 * f * x * g, z], -1)
        return f * x * g * y + z * z / 2, slope

    def truth(s: Setting) -> tuple[float, float]:
        a = gamma * s.localization.double().numpy()
        x = np.exp(np.linspace(-25, 4, 1500))  # trapezoid rule in log x, hence the weight x y
        loss = n_beta * np.multiply.outer(x ** (2 * k1), x ** (2 * k2))
        spring = np.add.outer(a[0] * x**2, a[1] * x**2) / 2
        density = np.exp(-loss - spring) * np.multiply.outer(x, x)
        return float((loss * density).sum() / density.sum() + n_beta / (n_beta + a[2]) / 2), 0.0

    value, m = rlct_normal_crossing(exponents)
    fisher = torch.tensor([0.0, 0.0, 1.0])
    curvature = torch.full((3,), 2.0)
    orbits = [torch.arange(3)]
    return Problem(gradient, b, fisher, curvature, orbits, n_beta, gamma, value + 0.5, m, truth)


def linear_network(
    widths: Sequence[int], rank: int = 1, *, n_beta: float = 40.0, gamma: float = 1.0
) -> Problem:
    """L = |W_L .. W_1 - M|^2 / 2, a linear network on white inputs, at its deepest singularity.

    M and each layer at w*, an orbit, are diag(1, .., 1, 0, .., 0) with `rank` ones.

    Args:
        widths: H_0, .., H_L, inputs first, two layers or more.
    """
    stars = [torch.eye(o, i) * (torch.arange(i) < rank) for i, o in pairwise(widths)]
    sizes = [w.numel() for w in stars]
    target = _product(stars, widths[0])

    def gradient(w: Tensor, step: int) -> tuple[Tensor, Tensor]:
        parts = zip(w.split(sizes, -1), stars, strict=True)
        layers = [part.unflatten(-1, star.shape) for part, star in parts]
        hidden = list(accumulate(layers, lambda below, layer: layer @ below))
        back = error = hidden[-1] - target
        slopes = []
        for layer, below in zip(layers[:0:-1], hidden[-2::-1], strict=True):
            slopes.append(back @ below.mT)
            back = layer.mT @ back
        slope = torch.cat([g.flatten(-2) for g in [back, *slopes[::-1]]], -1)
        return error.square().sum((-2, -1)) / 2, slope

    @cache  # samplers that localise alike share their truth
    def sampled(strength: tuple[float, ...]) -> tuple[float, float]:
        return gibbs_mean_loss(stars, torch.tensor(strength).split(sizes), n_beta=n_beta)

    fisher = torch.cat([_layer_curvature(stars, l).diagonal() for l in range(len(stars))])
    coefficient, multiplicity = rlct_deep_linear(widths, rank)
    return Problem(
        gradient=gradient,
        w_star=torch.cat([w.flatten() for w in stars]),
        fisher=fisher,
        curvature=len(stars) * fisher + 2,
        orbits=torch.arange(sum(sizes)).split(sizes),
        n_beta=n_beta,
        gamma=gamma,
        coefficient=coefficient,
        multiplicity=multiplicity,
        truth=lambda s: sampled(tuple((gamma * s.localization).tolist())),
    )


def gibbs_mean_loss(
    stars: Sequence[Tensor],
    strength: Sequence[Tensor],
    *,
    n_beta: float,
    chains: int = 400,
    sweeps: int = 150,
    seed: int = 0,
) -> tuple[float, float]:
    """n_beta E[L] of a linear network by Gibbs sampling, which has no step size, and its error.

    L is quadratic in each layer, so that under exp(-n_beta L - sum_i a_i (w_i - w*_i)^2 / 2) each
    layer is Gaussian given the others, and is drawn exactly. Over the last layer L is averaged in
    closed form.

    Args:
        stars: layers (outputs, inputs) of w*, where the chains start, with M their product;
            `strength`: a of each layer's entries, row by row; `sweeps`: over the layers, of which a
            third is burn-in.
    Raises:
        ValueError: layers that do not follow one another, or a strength that is not positive: what
            the loss leaves open would be drawn from anywhere.
    """
    stars = [numbers(w, "stars", ndim=2).double() for w in stars]
    shapes = [tuple(w.shape) for w in stars]
    follow = all(below[0] == above[1] for below, above in pairwise(shapes))
    require(follow, "shapes of stars", shapes, "(outputs, inputs), each following the one before")
    sizes = zip(strength, stars, strict=True)
    strength = [positive(a, "strength", shape=(w.numel(),)).double() for a, w in sizes]
    target = _product(stars, stars[0].shape[-1])
    generator = torch.Generator().manual_seed(seed)
    layers, values = [w.expand(chains, *w.shape) for w in stars], []
    for _ in range(sweeps):
        for l, (star, a) in enumerate(zip(stars, strength, strict=True)):
            above, below = _sides(layers, l)
            factor = torch.linalg.cholesky(n_beta * _layer_curvature(layers, l) + a.diag())
            pull = n_beta * (above.mT @ target @ below.mT).flatten(-2) + a * star.flatten()
            mean = torch.cholesky_solve(pull[..., None], factor)
            noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
            draw = mean + torch.linalg.solve_triangular(factor.mT, noise, upper=True)
            layers[l] = draw.view(chains, *star.shape)
        # of the last layer: the loss at its mean, and what its variance adds
        residual = above @ mean.view(chains, *star.shape) @ below - target
        variance = torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1)
        values.append(n_beta * residual.square().sum((-2, -1)) / 2 + (1 - a * variance).sum(-1) / 2)
    means = torch.stack(values[sweeps // 3 :]).mean(0)
    return float(means.mean()), float(means.std()) / math.sqrt(chains)


def _layer_curvature(layers: Sequence[Tensor], l: int) -> Tensor:
    """Second derivatives of L in layer l: (U^T U) kron (V V^T) where the map is U W_l V."""
    above, below = _sides(layers, l)
    left, right = above.mT @ above, below @ below.mT
    entries = left[..., :, None, :, None] * right[..., None, :, None, :]
    return rearrange(entries, "... i j k l -> ... (i j) (k l)")


def _sides(layers: Sequence[Tensor], l: int) -> tuple[Tensor, Tensor]:
    """The products of the layers above and below layer l."""
    (rows, _), inputs = layers[l].shape[-2:], layers[0].shape[-1]
    return _product(layers[l + 1 :], rows).to(layers[l]), _product(layers[:l], inputs).to(layers[l])


def _product(layers: Sequence[Tensor], inputs: int) -> Tensor:
    """W_L .. W_1 of layers, first layer first; the identity of `inputs` for no layer."""
    return reduce(lambda below, layer: layer @ below, layers) if layers else torch.eye(inputs)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "quadratic": quadratic,
    "monomials": monomials,
    "normal crossing": normal_crossing,
    "reduced rank": lambda: linear_network([3, 2, 2]),
    "deep linear": lambda: linear_network([3, 2, 2, 3]),
}
