import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate

from fieldbook.samplers import known


def coefficient(widths, rank):
    return known.rlct_deep_linear(widths, rank)[0]


def multiplicity(widths, rank):
    return known.rlct_deep_linear(widths, rank)[1]


def reduced_rank(inputs, hidden, outputs, rank):
    """lambda of two linear layers, inputs -> hidden -> outputs, at a map of the given rank.

    Source: Aoyagi & Watanabe 2005, *Stochastic complexities of reduced rank regression in Bayesian
    estimation*, Neural Networks 18:924, main theorem.
    """
    m, h, n, r = inputs, hidden, outputs, rank
    if m + h < n + r:
        return (h * m - h * r + n * r) / 2
    if n + h < m + r:
        return (h * n - h * r + m * r) / 2
    if m + n < h + r:
        return m * n / 2
    odd = (m + h + n + r) % 2
    return (-((h + r) ** 2) - m**2 - n**2 + 2 * (h + r) * (m + n) + 2 * m * n + odd) / 8


def test_published_example_of_the_deep_linear_formula():
    assert coefficient([10, 10, 10, 10], 3) == pytest.approx(42)


def test_two_layers_are_reduced_rank_regression():
    for m, h, n in itertools.product(range(1, 8), repeat=3):
        for r in range(min(m, h, n) + 1):
            assert coefficient([m, h, n], r) == pytest.approx(reduced_rank(m, h, n, r)), (
                m,
                h,
                n,
                r,
            )


def test_multiplicity_of_reduced_rank_regression():
    """Two in the interior of the theorem's cases when the sum of sizes is odd, else one (Aoyagi &
    Watanabe 2005)."""
    for m, h, n in itertools.product(range(1, 8), repeat=3):
        for r in range(min(m, h, n) + 1):
            interior = m + h >= n + r and n + h >= m + r and m + n >= h + r
            expected = 2 if interior and (m + h + n + r) % 2 else 1
            assert multiplicity([m, h, n], r) == expected, (m, h, n, r)
    assert multiplicity([2, 2, 2, 2], 1) == 3
    assert multiplicity([4, 6], 2) == 1


def test_one_layer_is_regular():
    assert coefficient([4, 6], 2) == 4 * 6 / 2


def test_full_rank_is_regular_and_depth_only_lowers():
    assert coefficient([5, 9, 9, 5], 5) == 25 / 2
    shallow, deep = (coefficient([6] * (1 + layers), 2) for layers in (1, 4))
    assert deep < shallow


def test_reversal_does_not_matter():
    for widths in itertools.product((2, 3, 5, 6), repeat=4):
        for r in range(min(widths) + 1):
            assert coefficient(widths, r) == pytest.approx(coefficient(widths[::-1], r))


@pytest.mark.parametrize("powers", [(2,), (4,), (2, 4, 6)])
@pytest.mark.parametrize("n_beta", [1.0, 50.0])
def test_monomials_by_quadrature(powers, n_beta):
    total = 0.0
    for p in powers:
        z, _ = integrate.quad(lambda w, p=p: math.exp(-n_beta * w**p), 0, 10)
        e, _ = integrate.quad(lambda w, p=p: w**p * math.exp(-n_beta * w**p), 0, 10)
        total += n_beta * e / z
    assert total == pytest.approx(known.rlct_monomials(powers), rel=1e-6)


def test_normal_crossing_by_quadrature():
    """n beta E[L] on a box tends to lambda, from below as (m - 1)/log(n beta) when the minimum is
    shared."""
    lam, multiplicity = known.rlct_normal_crossing([1, 2])
    assert (lam, multiplicity) == (0.25, 1)
    estimates = []
    for n_beta in (1e3, 1e6):
        u, weights = np.polynomial.legendre.leggauss(400)
        x, wx = (
            np.exp((u - 1) * 10),
            weights * 10 * np.exp((u - 1) * 10),
        )  # log-spaced nodes on (0, 1)
        loss = x[:, None] ** 2 * x[None, :] ** 4
        density = np.exp(-n_beta * loss) * wx[:, None] * wx[None, :]
        estimates.append(n_beta * (loss * density).sum() / density.sum())
    assert abs(estimates[1] - lam) < abs(estimates[0] - lam) < 0.05
    assert known.rlct_normal_crossing([2, 2]) == (0.25, 2)


def test_quadratic_estimate_against_simulation():
    rng = np.random.default_rng(0)
    h, P, gamma, eps, n_beta, steps = (
        np.array([1.0, 3.0]),
        np.array([1.0, 0.5]),
        np.array([2.0, 0.5]),
        0.05,
        10.0,
        80,
    )
    w, total = np.zeros((40_000, 2)), 0.0
    for _ in range(steps):
        w = (
            w
            - eps / 2 * P * (n_beta * h * w + gamma * w)
            + np.sqrt(eps * P) * rng.standard_normal(w.shape)
        )
        total += (h * w**2).sum(1) / 2
    draws = n_beta * total / steps
    exact = known.quadratic_estimate(
        h, eps=eps, preconditioner=P, n_beta=n_beta, gamma=gamma, steps=steps
    )
    assert abs(draws.mean() - exact) < 4 * draws.std() / math.sqrt(len(draws))


def test_quadratic_estimate_tends_to_half_the_dimension():
    h = np.array([0.5, 1.0, 7.0])
    options = {"preconditioner": np.ones(3), "n_beta": 100.0, "gamma": np.zeros(3)}
    assert known.quadratic_estimate(h, eps=1e-5, steps=10**7, **options) == pytest.approx(
        1.5, rel=1e-3
    )
    with pytest.raises(ValueError, match=r"eps = 0\.1 is unstable: expected"):
        known.quadratic_estimate(h, eps=0.1, steps=10, **options)


def test_impossible_ranks_are_named():
    with pytest.raises(
        ValueError, match=r"rank = 4 .* expected between 0 and the smallest width 3"
    ):
        coefficient([5, 3, 5], 4)
    with pytest.raises(ValueError, match="rank = -1"):
        coefficient([2, 2, 2], -1)


def test_quadratic_estimate_where_nothing_moves():
    """A flat direction costs nothing, and one that is not moved stays at the minimum."""
    options = {"eps": 1e-4, "n_beta": 100.0, "steps": 10**6}
    alone = known.quadratic_estimate(
        np.ones(1), preconditioner=np.ones(1), gamma=np.zeros(1), **options
    )
    h, p = np.array([1.0, 0.0, 1.0]), np.array([1.0, 1.0, 0.0])
    assert known.quadratic_estimate(
        h, preconditioner=p, gamma=np.zeros(3), **options
    ) == pytest.approx(alone)
    assert (
        known.quadratic_estimate(
            np.zeros(2), preconditioner=np.ones(2), gamma=np.ones(2), **options
        )
        == 0
    )


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: known.rlct_monomials([2, 0]), "powers"),
        (lambda: known.rlct_monomials([]), "powers"),
        (lambda: known.rlct_normal_crossing([0, 0]), "exponents"),
        (lambda: known.rlct_normal_crossing([]), "exponents"),
        (lambda: coefficient([5], 1), "widths"),
        (lambda: coefficient([0, 2, 2], 0), "widths"),
        (lambda: known.monomials([2, 4, 6]), "powers"),
        (lambda: known.normal_crossing(gamma=0.0), "gamma"),
        (lambda: known.linear_network([3, 2, 3], rank=3), "rank"),
        (lambda: known.gibbs_mean_loss([torch.eye(2)], [torch.zeros(4)], n_beta=1.0), "strength"),
        (
            lambda: known.gibbs_mean_loss(
                [torch.eye(2), torch.ones(2, 3)], [torch.ones(4)] * 2, n_beta=1.0
            ),
            "stars",
        ),
    ],
)
def test_what_has_no_coefficient_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_coefficients_at_rank_zero_and_of_what_does_not_matter():
    assert known.rlct_normal_crossing([0, 3, 0]) == (1 / 6, 1)
    assert coefficient([1, 1], 0) == 1 / 2  # one weight, a regular model
    assert reduced_rank(1, 1, 1, 0) == 1 / 2 and multiplicity([1, 1, 1], 0) == 2  # (a b)^2
