"""Learning coefficients that are known exactly: what an estimator must find.

The learning coefficient (real log canonical threshold) of a loss L at its minimum is the exponent lambda in
volume{L < t} ~ t^lambda (log 1/t)^(m-1). Source: Watanabe 2009, *Algebraic Geometry and Statistical Learning Theory*.
"""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from fieldbook.samplers.sgmcmc import require_stable


def monomial_sum(powers: Sequence[int]) -> float:
    """lambda = sum_i 1/p_i of L = sum_i |w_i|^p_i.

    At every n beta, n beta E[L] equals it exactly under the density exp(-n beta L), with a flat prior.
    """
    return sum(1 / p for p in powers)


def normal_crossing(exponents: Sequence[int]) -> tuple[float, int]:
    """(lambda, multiplicity) of L = prod_i w_i^(2 k_i): min_i 1/(2 k_i), and how often the minimum is taken."""
    largest = max(exponents)
    return 1 / (2 * largest), list(exponents).count(largest)


def reduced_rank(inputs: int, hidden: int, outputs: int, rank: int) -> float:
    """lambda of two linear layers, inputs -> hidden -> outputs, at a map of the given rank.

    Source: Aoyagi & Watanabe 2005, *Stochastic complexities of reduced rank regression in Bayesian estimation*, Neural
    Networks 18:924, main theorem.
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
    Source: Aoyagi 2024, *Consideration on the learning efficiency of multiple-layered neural networks with linear
    units*, Neural Networks 172:106132, theorem 1; S are the layers with the smallest excess widths M_s = H_s - r.
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
    curvature: np.ndarray, *, eps: float, preconditioner: np.ndarray, n_beta: float, gamma: np.ndarray, steps: int
) -> float:
    """What Langevin sampling of L = sum_i h_i w_i^2 / 2 returns on average, at finite step size and length.

    Each coordinate is an AR(1) process with r_i = 1 - eps P_i a_i / 2, a_i = n_beta h_i + gamma_i, started at the
    minimum and averaged over steps 1 .. T; as eps -> 0 and T -> infinity this is 1/2 sum_i n_beta h_i / a_i, and d/2
    without localisation.

    Args:
        curvature: (d,) h_i; `preconditioner`: (d,) P_i; `gamma`: (d,) localisation times its metric.
    Raises:
        ValueError: a step size at or beyond the stability bound eps P a < 4.
    """
    stiffness = n_beta * curvature + gamma
    require_stable(eps, preconditioner * stiffness)
    r2 = (1 - eps * preconditioner * stiffness / 2) ** 2
    warm = 1 - r2 * (1 - r2**steps) / (1 - r2) / steps  # mean of 1 - r^(2t), t = 1 .. T
    return float((n_beta * curvature / (stiffness * (1 - eps * preconditioner * stiffness / 4)) * warm).sum() / 2)


def _require_rank(rank: int, widths: Sequence[int]) -> None:
    if not 0 <= rank <= min(widths):
        raise ValueError(f"rank = {rank}: expected between 0 and the smallest width {min(widths)}")
