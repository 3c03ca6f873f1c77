"""Losses by hand, and why a residual is divided by the error of its label and of nothing else."""

import math

import pytest
import torch
import torch.nn.functional as F

from fieldbook.spectra.losses import LOSSES, SELF_SUPERVISED, gaussian, loss

PREDICTION, TARGET = torch.tensor([0.0, 1.0, 5.0]), torch.tensor([0.5, 1.0, 2.0])
ERROR = torch.tensor([0.5, 1.0, 2.0])


@pytest.mark.parametrize(
    "name, expected",
    [
        ("mse", (0.25 + 0 + 9) / 3),
        ("l1", (0.5 + 0 + 3) / 3),
        ("huber", (0.125 + 0 + 2.5) / 3),
        ("heteroscedastic_l1", (1 + 0 + 1.5) / 3),
        ("heteroscedastic_mse", (1 + 0 + 2.25) / 3),
    ],
)
def test_values_by_hand(name, expected):
    error = ERROR if name.startswith("heteroscedastic") else None
    assert loss(name)(PREDICTION, TARGET, error).item() == pytest.approx(expected)


def test_cross_entropy_by_hand():
    logits, target = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([1, 0])
    expected = (torch.log(torch.tensor(2.0)) + torch.log1p(torch.exp(torch.tensor(-2.0)))) / 2
    torch.testing.assert_close(loss("cross_entropy")(logits, target), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_predictions_are_compared_in_single_precision(name):
    logits = name == "cross_entropy"
    prediction = torch.ones(4, 2).bfloat16() if logits else torch.ones(4).bfloat16()
    target = torch.zeros(4, dtype=torch.long) if logits else torch.full((4,), 1.001)
    value = loss(name)(prediction, target, torch.ones(4) if name.startswith("hetero") else None)
    assert value.dtype == torch.float32
    assert value > 0  # in bfloat16 1.001 is 1


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"loss = 'mae'.*l1"):
        loss("mae")
    with pytest.raises(ValueError, match=r"target = \(3, 1\)"):  # would broadcast to (3, 3)
        loss("mse")(PREDICTION, TARGET[:, None])
    with pytest.raises(ValueError, match=r"error = None.*standard error of each label"):
        loss("heteroscedastic_l1")(PREDICTION, TARGET)
    with pytest.raises(ValueError, match=r"error = \(3, 4096\)"):  # the error of the flux
        loss("heteroscedastic_mse")(PREDICTION, TARGET, torch.ones(3, 4096))
    with pytest.raises(ValueError, match="ignore"):
        loss("mse")(PREDICTION, TARGET, ERROR)


def fitted(features, targets, weights):
    """Coefficients that minimise sum(weight * residual^2), for each column of targets."""
    root = weights.sqrt()[:, None]
    return torch.linalg.lstsq(root * features, root * targets).solution


def covariance(features, weights, variance):
    """Of those coefficients, for labels of the given variances (the sandwich formula)."""
    bread = torch.linalg.inv(features.T @ (weights[:, None] * features))
    return bread @ (features.T @ ((weights**2 * variance)[:, None] * features)) @ bread


def test_weighting_by_the_label_error_is_best_and_by_another_error_worse_than_none():
    """Gauss-Markov, after Aitken 1935 (Proc. R. Soc. Edinb. 55, 42): weights 1/variance of the
    label, or lose."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 3, dtype=torch.float64, generator=generator)
    label_error, flux_error = torch.exp(
        torch.randn(2, 200, dtype=torch.float64, generator=generator)
    )
    truth = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)[:, None]
    noise = label_error[:, None] * torch.randn(200, 4000, dtype=torch.float64, generator=generator)
    targets = features @ truth + noise

    variances = {}
    for name, error in (("label", label_error), ("none", torch.ones(200)), ("flux", flux_error)):
        weights = error.double() ** -2
        found = fitted(features, targets, weights)
        expected = covariance(features, weights, label_error**2)
        variances[name] = float((found - truth).square().mean(1).sum())
        assert variances[name] == pytest.approx(float(expected.trace()), rel=0.1)
        assert (
            float((found - truth).mean(1).abs().max()) < 4 * float(expected.trace() / 4000) ** 0.5
        )  # all unbiased
    assert variances["label"] < 0.5 * variances["none"] < 0.5 * variances["flux"]


def test_the_loss_is_the_one_whose_minimum_that_is():
    generator = torch.Generator().manual_seed(0)
    features, target = (torch.randn(*shape, generator=generator) for shape in ((50, 2), (50,)))
    error = torch.rand(50, generator=generator) + 0.1
    coefficients = fitted(features, target[:, None], error**-2)[:, 0].requires_grad_()
    loss("heteroscedastic_mse")(features @ coefficients, target, error).backward()
    assert coefficients.grad.abs().max() < 1e-4
    coefficients.grad = None
    F.mse_loss(features @ coefficients, target).backward()
    assert coefficients.grad.abs().max() > 1e-3


# ---- of pixels


@pytest.mark.parametrize("kind", ["nll", "laplace"])
def test_likelihood_is_least_at_the_analytic_optimum(kind):
    noisy = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    # Gaussian: mean and variance; Laplace: median and mean deviation b, of variance 2 b^2
    mean, variance = (2.0, 14 / 3) if kind == "nll" else (1.0, 2 * (5 / 3) ** 2)
    sigma_n = torch.tensor(0.5, dtype=torch.float64)

    def at(mu, sigma_x):
        return float(
            SELF_SUPERVISED[kind](
                torch.full_like(noisy, mu), torch.full_like(noisy, sigma_x), noisy, sigma_n
            )
        )

    best = math.sqrt(variance - 0.25)
    for step in (1e-3, 0.1, 0.5):
        assert all(at(mean + d, best) > at(mean, best) for d in (step, -step))
        assert all(at(mean, best + d) > at(mean, best) for d in (step, -step))


def test_gaussian_agrees_with_the_density():
    mu, sigma_x, noisy, sigma_n = torch.rand(4, 9, dtype=torch.float64)
    density = torch.distributions.Normal(mu, (sigma_x**2 + sigma_n**2).sqrt()).log_prob(noisy)
    assert gaussian(mu, sigma_x, noisy, sigma_n).item() == pytest.approx(
        -density.mean().item() - math.log(2 * math.pi) / 2
    )
