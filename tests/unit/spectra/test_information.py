import numpy as np
import pytest
import torch
from scipy.stats import qmc

from fieldbook.spectra.information import (
    best_template,
    bound,
    fisher,
    maximum_likelihood,
    score_density,
    uniform_error,
)


def linear(stars=3, pixels=40, parameters=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(stars, pixels, parameters, generator=g, dtype=torch.float64)
    return jacobian, 0.5 + torch.rand(stars, pixels, generator=g, dtype=torch.float64)


def test_fisher_is_the_covariance_of_the_score():
    """By brute force, from the log-likelihood of simulated data alone."""
    jacobian, error = linear(1)
    g = torch.Generator().manual_seed(1)
    theta = torch.zeros(4, dtype=torch.float64)
    data = error * torch.randn(20_000, 40, generator=g, dtype=torch.float64)

    def log_likelihood(theta):
        return -0.5 * (((data - jacobian[0] @ theta) / error) ** 2).sum(1)

    score = torch.func.jacfwd(log_likelihood)(theta)
    information = fisher(jacobian, error)[0]
    assert torch.allclose(
        torch.cov(score.T), information, atol=0.05 * float(information.diagonal().mean())
    )


def test_bound_is_the_variance_of_generalised_least_squares():
    jacobian, error = linear(2)
    g = torch.Generator().manual_seed(2)
    for star in range(2):
        data = error[star] * torch.randn(20_000, 40, generator=g, dtype=torch.float64)
        estimate = torch.linalg.lstsq(
            jacobian[star] / error[star][:, None], (data / error[star]).T
        ).solution
        for parameter in range(4):
            expected = float(bound(fisher(jacobian, error), parameter)[star])
            assert float(estimate[parameter].var()) == pytest.approx(expected, rel=0.05)


def test_bound_does_not_depend_on_how_the_others_are_parametrised():
    jacobian, error = linear()
    g = torch.Generator().manual_seed(3)
    mix = torch.randn(4, 4, generator=g, dtype=torch.float64) * torch.tensor([1e3, 1.0, 1e-2, 1.0])
    mix[0], mix[:, 0] = 0, 0
    mix[0, 0] = 1000.0  # parameter 0 in another unit; the others mixed among themselves
    mixed = bound(fisher(jacobian @ mix, error), 0)
    assert torch.allclose(mixed * 1e6, bound(fisher(jacobian, error), 0), rtol=1e-8)
    assert (bound(fisher(jacobian[..., :1], error), 0) < mixed * 1e6).all()  # known others help


def test_priors_take_the_bound_from_nothing_known_to_all_known():
    jacobian, error = linear()
    information = fisher(jacobian, error)
    infinite = torch.full((4,), torch.inf, dtype=torch.float64)
    assert torch.allclose(bound(information, 1, infinite), bound(information, 1))
    known = torch.tensor([1e-12, 7.0, 1e-12, 1e-12])
    alone = 1 / (information[:, 1, 1] + 1 / 7.0)
    assert torch.allclose(bound(information, 1, known), alone)
    weak = bound(information * 1e-12, 2, torch.tensor([1.0, 1.0, 0.3, 1.0]))
    assert torch.allclose(weak, torch.full_like(weak, 0.3))


def test_bayes_risk_of_a_gaussian_model_is_the_bound_with_a_prior():
    jacobian, error = linear(1, pixels=6, parameters=2, seed=5)
    error = 4 * error
    v = torch.tensor([0.5, 2.0], dtype=torch.float64)
    g = torch.Generator().manual_seed(6)
    theta = v.sqrt() * torch.randn(50_000, 2, generator=g, dtype=torch.float64)
    data = theta @ jacobian[0].T + error[0] * torch.randn(
        50_000, 6, generator=g, dtype=torch.float64
    )
    posterior = torch.linalg.inv(fisher(jacobian, error)[0] + torch.diag(1 / v))
    estimate = (data / error[0] ** 2) @ jacobian[0] @ posterior
    risk = float(((estimate - theta)[:, 0] ** 2).mean())
    assert risk == pytest.approx(float(bound(fisher(jacobian, error), 0, v)[0]), rel=0.03)
    assert risk < float(
        bound(fisher(jacobian, error), 0)[0]
    )  # below Cramer and Rao's bound: it is biased


def test_uniform_error_is_that_of_the_posterior_mean():
    """Against Monte Carlo, and its limits: the noise where that is small, the prior where it is
    large."""
    rng = np.random.default_rng(0)
    grid = np.linspace(0, 4, 2001)
    for variance in (0.04, 0.5, 3.0):
        x = 4 * qmc.Sobol(1, seed=rng).random(2048)[:, 0]
        y = x + np.sqrt(variance) * rng.normal(size=len(x))
        weights = np.exp(-0.5 * (y[:, None] - grid) ** 2 / variance)
        mean = weights @ grid / weights.sum(1)
        inner = float(uniform_error(torch.tensor([variance]), 4.0))
        assert inner == pytest.approx(np.mean((x - mean) ** 2), rel=0.1)
        assert inner < variance / (1 + variance / (16 / 12))  # below the best linear estimator's
    extremes = uniform_error(torch.tensor([1e-6, 1e6]), 4.0)
    assert extremes.tolist() == pytest.approx([1e-6, 16 / 12], rel=1e-2)


@pytest.mark.parametrize("parameter", [0, 2])
def test_score_density_adds_up_to_the_bound(parameter):
    jacobian, error = linear(pixels=60)
    jacobian[..., 1] *= 1e-4  # units far apart
    density = score_density(jacobian, error, parameter)
    torch.testing.assert_close(
        density.sum(1), 1 / bound(fisher(jacobian, error), parameter), rtol=1e-9, atol=0
    )


def test_score_density_leaves_out_what_another_parameter_could_imitate():
    jacobian, error = linear(pixels=60)
    jacobian[:, :30, 0] = jacobian[:, :30, 1]
    jacobian[:, 30:, 1] = 0  # in the first half the two are the same; the rest tells them apart
    density = score_density(jacobian[..., :2], error, 0)
    assert density[:, :30].sum() < 1e-9 * density.sum()


def curve(theta):
    """Amplitude, centre and width of a bell on 60 pixels, and the derivatives."""
    x = torch.linspace(-3, 3, 60, dtype=torch.float64)

    def one(t):
        return t[0] * torch.exp(-0.5 * ((x - t[1]) / t[2]) ** 2)

    return torch.func.vmap(one)(theta), torch.func.vmap(torch.func.jacfwd(one))(theta)


BOX = {"lower": torch.tensor([0.1, -2, 0.2]), "upper": torch.tensor([3, 2, 2.0])}


def test_maximum_likelihood_reaches_the_bound():
    g = torch.Generator().manual_seed(7)
    truth = torch.tensor([1.0, 0.3, 0.6], dtype=torch.float64).repeat(800, 1)
    flux, jacobian = curve(truth)
    error = torch.full_like(flux, 0.02)
    data = flux + error * torch.randn(flux.shape, generator=g, dtype=torch.float64)
    fit = maximum_likelihood(
        curve, data, error, torch.tensor([[2.0, -0.8, 1.2]]).repeat(800, 1), **BOX
    )
    assert fit.converged.all()
    assert float(fit.chi2.mean()) == pytest.approx(57, abs=1.5)
    for parameter in range(3):
        ratio = float(
            fit.estimate[:, parameter].var() / bound(fisher(jacobian, error), parameter)[0]
        )
        assert 0.85 < ratio < 1.15


def test_maximum_likelihood_stays_in_its_box():
    flux, _ = curve(torch.tensor([[1.0, 1.9, 0.6]], dtype=torch.float64))
    box = {"lower": BOX["lower"], "upper": torch.tensor([3, 1.0, 2.0])}
    fit = maximum_likelihood(
        curve, flux, torch.full_like(flux, 0.1), torch.tensor([[1.0, 0.0, 1.0]]), **box
    )
    assert fit.estimate[0, 1] == 1 and fit.converged.all()
    with pytest.raises(ValueError, match="lower"):
        maximum_likelihood(
            curve, flux, flux + 1, flux[:, :3], lower=BOX["upper"], upper=BOX["lower"]
        )


def test_best_template_is_the_one_that_made_the_data():
    g = torch.Generator().manual_seed(8)
    templates = torch.randn(50, 30, generator=g)
    error = 0.1 + torch.rand(20, 30, generator=g)
    truth = torch.arange(20) * 2
    data = templates[truth] + 0.1 * error * torch.randn(20, 30, generator=g)
    assert torch.equal(best_template(data, error, templates), truth)
    chi2 = (((data[:, None] - templates) / error[:, None]) ** 2).sum(-1)
    assert torch.equal(
        best_template(data * 0 + 0.3, error, templates),
        (((0.3 - templates) / error[:, None]) ** 2).sum(-1).argmin(1),
    )
    assert torch.equal(best_template(data, error, templates), chi2.argmin(1))


def test_what_cannot_be_known_is_named():
    jacobian, error = linear()
    jacobian[1, :, 2] = 0
    with pytest.raises(ValueError, match=r"fisher\[1\] is singular"):
        bound(fisher(jacobian, error), 0)
    known = bound(fisher(jacobian, error), 0, torch.tensor([torch.inf, torch.inf, 1.0, torch.inf]))
    assert known[1] == pytest.approx(
        float(bound(fisher(jacobian[1:2, :, [0, 1, 3]], error[1:2]), 0)[0])
    )
    jacobian[1, :, 2] = jacobian[1, :, 3]
    with pytest.raises(ValueError, match="singular"):
        bound(fisher(jacobian, error), 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda j, e: fisher(j, e[:, :3]), "shapes"),
        (lambda j, e: fisher(j, e - 1), "error"),
        (lambda j, e: bound(fisher(j, e), 4), "parameter = 4"),
        (lambda j, e: bound(fisher(j, e), 0, torch.tensor([0.0, 1, 1, 1])), "prior_variance"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(*linear())


def test_a_template_is_found_far_from_the_origin():
    templates, error = linear(1, pixels=30, parameters=12)[0][0].T, torch.full((12, 30), 0.05)
    moved = best_template(templates + 1e7, error, templates + 1e7)
    assert torch.equal(moved, torch.arange(12))


def test_the_others_must_be_told_apart_for_a_density_too():
    jacobian, error = linear(pixels=60)
    jacobian[1, :, 3] = 2 * jacobian[1, :, 2]
    with pytest.raises(ValueError, match=r"jacobian\[1\] is singular"):
        score_density(jacobian, error, 0)
    with pytest.raises(ValueError, match="pixels of jacobian = 3"):
        score_density(jacobian[:, :3], error[:, :3], 0)
