"""Learning coefficients that are known exactly: what an estimator must find.

The learning coefficient (real log canonical threshold) of a loss L at its minimum is the exponent
lambda in volume{L < t} ~ t^lambda (log 1/t)^(m-1). Source: Watanabe 2009, *Algebraic Geometry and
Statistical Learning Theory*.
"""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from fieldbook.nn.checks import numbers, require
from fieldbook.samplers.sgmcmc import require_stable


def monomial_sum(powers: Sequence[int]) -> float:
    """lambda = sum_i 1/p_i of L = sum_i |w_i|^p_i.

    At every n beta, n beta E[L] equals it exactly under the density exp(-n beta L), with a flat
    prior.
    """
    powers = list(powers)
    require(powers and min(powers) > 0, "powers", powers, "positive powers, at least one")
    return sum(1 / p for p in powers)


def normal_crossing(exponents: Sequence[int]) -> tuple[float, int]:
    """(lambda, multiplicity) of L = prod_i w_i^(2 k_i): min_i 1/(2 k_i), and how often it is taken.

    A k_i of 0 is a coordinate on which L does not depend.
    """
    exponents = list(exponents)
    real = exponents and min(exponents) >= 0 and max(exponents) > 0
    require(real, "exponents", exponents, "0 or more, at least one of them above 0")
    return 1 / (2 * max(exponents)), exponents.count(max(exponents))


def reduced_rank(inputs: int, hidden: int, outputs: int, rank: int) -> float:
    """lambda of two linear layers, inputs -> hidden -> outputs, at a map of the given rank.

    Source: Aoyagi & Watanabe 2005, *Stochastic complexities of reduced rank regression in Bayesian
    estimation*, Neural Networks 18:924, main theorem.
    """
    m, h, n, r = inputs, hidden, outputs, rank
    _require_rank(r, (m, h, n))
    if m + h < n + r:
        return (h * m - h * r + n * r) / 2
    if n + h < m + r:
        return (h * n - h * r + m * r) / 2
    if m + n < h + r:
        return m * n / 2
    odd = (m + h + n + r) % 2
    return (-((h + r) ** 2) - m**2 - n**2 + 2 * (h + r) * (m + n) + 2 * m * n + odd) / 8


def deep_linear(widths: Sequence[int], rank: int) -> float:
    """lambda of a deep linear network at the deepest singularity over a map of the given rank.

    Args:
        widths: H_0, .., H_L, inputs first; at least two.
    Source: Aoyagi 2024, *Consideration on the learning efficiency of multiple-layered neural
    networks with linear units*, Neural Networks 172:106132, theorem 1; S are the layers with the
    smallest excess widths M_s = H_s - r.
    """
    _require_rank(rank, widths)
    base = (rank * (widths[0] + widths[-1]) - rank**2) / 2
    chosen = _deepest(widths, rank)
    l, total, a = _split(chosen)
    products = sum(x * y for x, y in combinations(chosen, 2))
    return base + a * (l - a) / (4 * l) - l * (l - 1) / 4 * (total / l) ** 2 + products / 2


def deep_linear_multiplicity(widths: Sequence[int], rank: int) -> int:
    """m that belongs to the lambda of `deep_linear`: a (l - a) + 1 in the theorem's notation."""
    _require_rank(rank, widths)
    l, _, a = _split(_deepest(widths, rank))
    return a * (l - a) + 1


def _deepest(widths: Sequence[int], rank: int) -> list[int]:
    """The excess widths of the theorem's set S."""
    excess = sorted(h - rank for h in widths)
    for count in range(2, len(excess) + 1):
        chosen, others, l = excess[:count], excess[count:], count - 1
        total = sum(chosen)
        if total >= l * chosen[-1] and (not others or total < l * others[0]):
            return chosen
    raise AssertionError(f"no set of layers satisfies the theorem for widths {widths}, rank {rank}")


def _split(chosen: Sequence[int]) -> tuple[int, int, int]:
    """(l, sum, a) of the theorem, sum = (M - 1) l + a with 1 <= a <= l."""
    l, total = len(chosen) - 1, sum(chosen)
    return l, total, total - (math.ceil(total / l) - 1) * l


def quadratic_estimate(
    curvature: np.ndarray,
    *,
    eps: float,
    preconditioner: np.ndarray,
    n_beta: float,
    gamma: np.ndarray,
    steps: int,
) -> float:
    """What Langevin sampling of L = sum_i h_i w_i^2 / 2 returns on average, at finite step size and
    length.

    Each coordinate is an AR(1) process with r_i = 1 - eps P_i a_i / 2, a_i = n_beta h_i + gamma_i,
    started at the minimum and averaged over steps 1 .. T; as eps -> 0 and T -> infinity this is 1/2
    sum_i n_beta h_i / a_i, and d/2 without localisation.

    Args:
        curvature: (d,) h_i; `preconditioner`: (d,) P_i; `gamma`: (d,) localisation times its
            metric.
    Raises:
        ValueError: a step size at or beyond the stability bound eps P a < 4.
    """
    curvature = numbers(curvature, "curvature", ndim=1).numpy(force=True).astype(float)
    require((curvature >= 0).all(), "curvature", curvature.tolist(), "0 or more")
    for name, value in {"eps": eps, "n_beta": n_beta, "steps": steps}.items():
        require(0 < value < math.inf, name, value, "a positive number")
    stiffness = n_beta * curvature + gamma
    require((stiffness >= 0).all(), "gamma", np.min(gamma), "0 or more")
    require_stable(eps, preconditioner * stiffness)
    moving = preconditioner * stiffness > 0  # else r = 1, and it stays at the minimum
    drift = np.where(moving, eps * preconditioner * stiffness, 1.0)
    r2 = (1 - drift / 2) ** 2
    late = r2 * (1 - r2**steps) / (drift * (1 - drift / 4)) / steps
    warm = np.where(moving, 1 - late, 0.0)  # mean of 1 - r^(2t), t = 1 .. T
    size = n_beta * curvature / np.where(moving, stiffness * (1 - drift / 4), 1.0)
    return float((size * warm).sum() / 2)


def _require_rank(rank: int, widths: Sequence[int]) -> None:
    enough = len(widths) >= 2 and min(widths) >= 1
    require(enough, "widths", list(widths), "at least two, inputs first, each at least 1")
    accepted = f"between 0 and the smallest width {min(widths)}"
    require(0 <= rank <= min(widths), "rank", rank, accepted)
