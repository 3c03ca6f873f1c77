import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate

from fieldbook.samplers import ground_truth as gt
from fieldbook.samplers import known
from fieldbook.samplers import preconditioners as pre
from fieldbook.samplers.estimate import estimate
from fieldbook.samplers.sgmcmc import require_stable

PROBLEMS = {name: build() for name, build in known.PROBLEMS.items()}
PROPER = [name for name, sampler in pre.SAMPLERS.items() if sampler.proper]
SHORT = {"step": 0.15, "steps": 1500, "chains": 300, "seed": 0}


def setting(problem, localization=None):
    one = torch.ones_like(problem.w_star)
    return known.Setting(one, one if localization is None else localization, 1e-3, 100, 25)


def measured(problem, preconditioner, n_beta=None, **options):
    """(estimate, standard error, truth of the run, tolerance) with any preconditioner."""
    options = {**SHORT, **options}
    at, trace = gt.run(problem, preconditioner, **options)
    value, se = estimate(trace[:, None], n_beta=n_beta or problem.n_beta, burn_in=at.burn_in)
    truth, truth_se = problem.truth(at)
    bias = problem.step_bias * options["step"] * truth
    return float(value), float(se), truth, 3 * math.hypot(float(se), truth_se) + bias


@pytest.mark.parametrize("sampler", PROPER)
@pytest.mark.parametrize("name", PROBLEMS)
def test_samplers_of_their_stated_density_find_the_truth(name, sampler):
    row = gt.compare(PROBLEMS[name], sampler, **SHORT)
    assert row["within"], row
    assert row["se"] < 0.03 * row["truth"], "the test has power"
    assert abs(row["estimate"] - row["lambda"]) < 0.4 * row["lambda"]


@pytest.mark.parametrize("name", PROBLEMS)
def test_psgld_overestimates_everywhere(name):
    row = gt.compare(PROBLEMS[name], "psgld", **SHORT)
    assert not row["within"]
    assert row["estimate"] > row["truth"] + 5 * row["se"]


@pytest.mark.parametrize("name", ["quadratic", "monomials"])
def test_dividing_by_the_norm_samples_another_density(name):
    row = gt.compare(PROBLEMS[name], "si_div", chains=1000)
    assert not row["within"]
    assert row["estimate"] > row["truth"] + 5 * row["se"]


def test_without_its_divergence_p_multiplies_the_density_by_its_inverse():
    """Drawn from exp(-U) |w|^2, a Gaussian's second moments grow by a known factor: what `si_div`
    returns."""
    problem = PROBLEMS["quadratic"]
    h, b = problem.curvature.numpy(), problem.w_star.numpy()
    variance = 1 / (problem.n_beta * h + problem.gamma)
    weighted = variance * (1 + 2 * variance / (b @ b + variance.sum()))
    value, se, *_ = measured(problem, pre.si_div(problem.orbits), step=0.05, steps=4000)
    assert abs(value - problem.n_beta * (h * weighted).sum() / 2) < 3 * se + 0.0125 * value


def test_where_draws_come_near_zero_the_divided_step_diverges():
    """In orbits of two coordinates the origin is within reach: chains are thrown out, and no error
    bar excuses it."""
    problem = replace(PROBLEMS["quadratic"], orbits=torch.arange(4).split(2))
    row = gt.compare(problem, "si_div", steps=2000)
    assert row["estimate"] > 1.15 * row["truth"]
    assert not row["within"]
    assert gt.compare(problem, "si_sgld", steps=2000)["within"]


def test_psgld_that_forgets_at_once_counts_coordinates():
    """With P = 1 / |g| it samples |g| exp(-n_beta L) in each coordinate: n_beta E[L] is 1 there,
    whatever the power."""
    problem, damping = PROBLEMS["monomials"], 0.1
    expected = 0.0
    for p in (2, 4, 2, 6):

        def weight(x, p=p):
            return (p * x ** (p - 1) + damping) * math.exp(-problem.n_beta * x**p)

        norm, _ = integrate.quad(weight, 0, 3)
        mean, _ = integrate.quad(lambda x, p=p: problem.n_beta * x**p * weight(x), 0, 3)
        expected += mean / norm
    value, se, *_ = measured(problem, pre.psgld(decay=0.0, damping=damping), step=0.02, steps=3000)
    assert expected > 2.5 > 1.7 * problem.coefficient
    assert abs(value - expected) < 3 * se + 0.03 * expected


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_wrong_temperature_is_detected(name):
    problem = PROBLEMS[name]
    value, _, truth, tolerance = measured(
        problem, pre.sgld(), n_beta=1.2 * problem.n_beta, steps=700
    )
    assert abs(value - truth) > tolerance
    colder = replace(problem, n_beta=1.2 * problem.n_beta)
    value, _, truth, tolerance = measured(colder, pre.sgld(), n_beta=problem.n_beta, steps=700)
    assert abs(value - truth) > tolerance


@pytest.mark.parametrize("name", ["quadratic", "normal crossing", "reduced rank"])
def test_a_dropped_localisation_metric_is_detected(name):
    """Sampled in coordinates 3 w, A = 1/P there keeps the target, and A = 1 is nine times the
    localisation."""
    problem = PROBLEMS[name]
    factors = torch.full_like(problem.w_star, 3.0)
    scaled = pre.si_sgld(factors * problem.w_star, problem.orbits)
    _, _, truth, _ = measured(
        problem, pre.si_sgld(problem.w_star, problem.orbits), steps=8, chains=2
    )

    def dropped(state, w, g):
        metric, state = scaled[1](state, w, g)
        return metric._replace(localization=torch.ones_like(w)), state

    kept_value, _, kept_truth, kept_tolerance = measured(problem, pre.in_frame(scaled, factors))
    assert abs(kept_value - kept_truth) < kept_tolerance
    value, *_, tolerance = measured(problem, pre.in_frame((scaled[0], dropped), factors))
    assert abs(value - kept_truth) > tolerance
    if name != "quadratic":  # whose truth depends on the length of the run
        assert truth == pytest.approx(kept_truth, rel=1e-3)


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients_and_minima(name):
    problem = PROBLEMS[name]
    w = problem.w_star + 0.3 * torch.randn(
        5, len(problem.w_star), generator=torch.Generator().manual_seed(0)
    )
    w.requires_grad_()
    losses, g = problem.gradient(w, 0)
    assert torch.allclose(g, torch.autograd.grad(losses.sum(), w)[0], atol=1e-5)
    losses, g = problem.gradient(problem.w_star, 0)
    assert losses == 0 and (g == 0).all()
    covered = torch.cat(list(problem.orbits)).sort().values
    assert covered.tolist() == list(range(len(problem.w_star)))
    for orbit in problem.orbits:
        assert problem.w_star[orbit].square().sum() > 0 and problem.fisher[orbit].sum() > 0


@pytest.mark.parametrize("name", ["quadratic", "normal crossing", "reduced rank", "deep linear"])
def test_fisher_information_is_the_curvature_at_the_minimum(name):
    problem = PROBLEMS[name]
    hessian = torch.autograd.functional.hessian(lambda w: problem.gradient(w, 0)[0], problem.w_star)
    assert torch.allclose(hessian.diagonal(), problem.fisher)


@pytest.mark.parametrize("exponents", [(1, 1), (1, 2), (2, 1)])
def test_normal_crossing_truth_against_adaptive_quadrature(exponents):
    problem = known.normal_crossing(exponents, n_beta=30.0, gamma=4.0)
    a, (k1, k2) = torch.tensor([0.5, 2.0, 3.0]), exponents

    def moment(power):
        def density(x, y):
            v = problem.n_beta * x ** (2 * k1) * y ** (2 * k2)
            return v**power * math.exp(-v - 4.0 * (0.5 * x**2 + 2.0 * y**2) / 2)

        return integrate.dblquad(density, 0, 3, 0, 5, epsabs=1e-7)[0]

    expected = moment(1) / moment(0) + problem.n_beta / (problem.n_beta + 4.0 * 3.0) / 2
    assert problem.truth(setting(problem, a))[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("exponents", "error"), [((1, 1), 0.02), ((1, 2), 0.03), ((2, 2), 0.02)])
def test_normal_crossing_tends_to_lambda_less_its_logarithm(exponents, error):
    problem = known.normal_crossing(exponents, n_beta=1e7)
    limit = problem.coefficient - (problem.multiplicity - 1) / math.log(problem.n_beta)
    assert problem.truth(setting(problem))[0] == pytest.approx(limit, abs=error)


def test_gibbs_against_quadrature():
    one, n_beta = torch.ones(1, 1), 20.0

    def moment(power):
        def density(x, y):
            v = n_beta * (x * y - 1) ** 2 / 2
            return v**power * math.exp(-v - (x - 1) ** 2 - 2 * (y - 1) ** 2)

        return integrate.dblquad(density, -4, 6, -4, 6, epsabs=1e-7)[0]

    value, se = known.gibbs_mean_loss(
        [one, one],
        [torch.tensor([2.0]), torch.tensor([4.0])],
        n_beta=n_beta,
        chains=2000,
        sweeps=90,
    )
    assert se < 0.01
    assert abs(value - moment(1) / moment(0)) < 4 * se


@pytest.mark.parametrize("widths", [(3, 2, 2), (3, 2, 2, 3), (2, 2, 2), (2, 2, 2, 2)])
def test_linear_networks_tend_to_aoyagis_lambda(widths):
    """Gibbs sampling knows nothing of the theorem; multiplicities 1, 1, 2 and 3 show as (m - 1) /
    log n_beta."""
    values = []
    for n_beta in (1e2, 1e4, 1e6):
        problem = known.linear_network(widths, n_beta=n_beta)
        value, se = problem.truth(setting(problem))
        values.append(value - problem.coefficient + (problem.multiplicity - 1) / math.log(n_beta))
    assert abs(values[2]) < 0.01 + 3 * se
    assert abs(values[2]) < abs(values[0])


def test_bad_settings_are_named():
    problem = PROBLEMS["quadratic"]
    with pytest.raises(
        ValueError, match=r"eps = .*expected eps P \(n_beta h \+ gamma A\) < 4 .* so eps < "
    ):
        gt.compare(problem, "sgld", step=4.0, steps=10)
    with pytest.raises(ValueError, match="sampler = 'hmc': expected one of sgld, psgld"):
        gt.build("hmc", problem)
    require_stable(0.1, torch.tensor([1.0, 39.0]))
    with pytest.raises(ValueError, match=r"eps = 0\.1 is unstable: .* so eps < 0\.0976"):
        require_stable(0.1, np.array([1.0, 41.0]))
