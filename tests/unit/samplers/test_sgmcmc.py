import numpy as np
import pytest
import torch

from fieldbook.samplers import preconditioners as pre
from fieldbook.samplers.known import quadratic_estimate, rlct_monomials
from fieldbook.samplers.sgmcmc import chain

D = 6
ORBITS = [torch.tensor([0, 1, 2]), torch.tensor([3, 4]), torch.tensor([5])]
CURVATURE = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0, 4.0], dtype=torch.float64)
W_STAR = torch.tensor([0.5, -1.0, 2.0, 0.3, -0.2, 1.5], dtype=torch.float64)
COMMON = {"eps": 0.005, "n_beta": 20.0, "gamma": 1.0, "steps": 60}


def quadratic(center, curvature=CURVATURE, batch_noise=0.0):
    """Loss sum_i h_i (w_i - c_i)^2 / 2 with gradients as noisy as a minibatch's, a function of the
    step alone."""

    def gradient(w, t):
        jitter = batch_noise * torch.randn(
            D, dtype=w.dtype, generator=torch.Generator().manual_seed(1000 + t)
        )
        return (curvature * (w - center) ** 2).sum(-1) / 2, curvature * (w - center) + jitter

    return gradient


def build(name, w_star, fisher):
    return pre.named(name, w_star, fisher, ORBITS, psgld_damping=1e-12)


def trace(name, factors, *, direct):
    """Losses along a chain in coordinates scaled by `factors`: sampled there, or in the unscaled
    frame."""
    fisher, generator = CURVATURE**2 * W_STAR**2 + 0.1, torch.Generator().manual_seed(0)
    scaled = build(name, factors * W_STAR, fisher / factors**2)
    plain = quadratic(W_STAR, batch_noise=0.3)
    if direct:

        def gradient(v, t):
            losses, g = plain(v / factors, t)
            return losses, g / factors

        run = chain(gradient, (factors * W_STAR)[None], scaled, generator, **COMMON)
    else:
        run = chain(plain, W_STAR[None], pre.in_frame(scaled, factors[None]), generator, **COMMON)
    return torch.stack([losses for losses, _ in run]).squeeze()


def orbit_factors(*values):
    factors = torch.ones(D, dtype=torch.float64)
    for orbit, value in zip(ORBITS, values, strict=True):
        factors[orbit] = value
    return factors


@pytest.mark.parametrize("name", pre.SAMPLERS)
def test_a_cell_is_the_unscaled_network_in_another_metric(name):
    factors = orbit_factors(3.0, 0.5, 2.0)
    assert torch.allclose(
        trace(name, factors, direct=True), trace(name, factors, direct=False), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("name", pre.SAMPLERS)
def test_which_samplers_do_not_see_a_rescaling(name):
    one, scaled = (
        trace(name, orbit_factors(*values), direct=True) for values in ((1, 1, 1), (3.0, 0.5, 2.0))
    )
    same = torch.allclose(one, scaled, rtol=1e-6, atol=1e-9)
    assert same == (pre.SAMPLERS[name].power == 0)


@pytest.mark.parametrize("name", pre.SAMPLERS)
def test_effective_step_falls_as_a_power_of_the_scale(name):
    scales = np.array([0.25, 0.5, 1.0, 2.0, 4.0])
    sizes = []
    for c in scales:
        factors = torch.full((D,), c, dtype=torch.float64)
        init, update = pre.in_frame(
            build(name, factors * W_STAR, CURVATURE**2 / factors**2), factors
        )
        metric, _ = update(init(W_STAR), W_STAR, CURVATURE * 0.1)
        sizes.append(float(metric.preconditioner.mean()))
    slope = np.polyfit(np.log(scales), np.log(sizes), 1)[0]
    assert slope == pytest.approx(-pre.SAMPLERS[name].power, abs=1e-6)


@pytest.mark.parametrize("name", ["sgld", "rsgld", "si_sgld"])
def test_frozen_samplers_return_the_exact_finite_step_value(name):
    center = W_STAR.expand(20_000, D)
    preconditioner = build(name, W_STAR, CURVATURE**2)
    metric, _ = preconditioner[1](None, W_STAR, W_STAR)
    exact = quadratic_estimate(
        CURVATURE.numpy(),
        eps=COMMON["eps"],
        preconditioner=metric.preconditioner.numpy(),
        n_beta=COMMON["n_beta"],
        gamma=COMMON["gamma"] * metric.localization.numpy(),
        steps=COMMON["steps"],
    )
    run = chain(
        quadratic(W_STAR),
        center,
        preconditioner,
        torch.Generator().manual_seed(0),
        **{**COMMON, "steps": COMMON["steps"] + 1},
        common_noise=False,
    )
    draws = COMMON["n_beta"] * torch.stack([losses for losses, _ in run][1:]).mean(0)
    assert abs(draws.mean() - exact) < 4 * draws.std() / len(draws) ** 0.5
    assert abs(draws.mean() - D / 2) > 10 * draws.std() / len(draws) ** 0.5, (
        "the bias is real and predicted"
    )


def test_adaptive_drift_keeps_the_target():
    """Without Gamma = div P a state-dependent P samples another density; with it the second moment
    is right."""
    center, n_beta = torch.zeros(3000, 1, dtype=torch.float64), 1.0

    def gradient(w, t):
        return (w**2).sum(-1) / 2, w

    def moment(with_drift):
        init, update = pre.si_adaptive(torch.ones(1, dtype=torch.float64), [torch.tensor([0])])

        def bounded(state, w, g):  # P = 1 + w^2 has the same divergence and never vanishes
            (p, _, drift), state = update(state, w, g)
            return pre.Metric(
                1 + p, torch.zeros_like(w), drift if with_drift else torch.zeros_like(w)
            ), state

        run = chain(
            gradient,
            center,
            (init, bounded),
            torch.Generator().manual_seed(0),
            eps=0.05,
            n_beta=n_beta,
            gamma=0.0,
            steps=600,
            common_noise=False,
        )
        return float(torch.stack([(w**2).mean() for _, w in run][200:]).mean())

    assert moment(True) == pytest.approx(1.0, abs=0.08)
    assert moment(False) < 0.8


def test_monomials_are_found_at_any_temperature():
    powers = torch.tensor([2.0, 4.0, 6.0], dtype=torch.float64)

    def gradient(w, t):
        return (w.abs() ** powers).sum(-1), powers * w.abs() ** (powers - 1) * w.sign()

    run = chain(
        gradient,
        torch.zeros(4000, 3, dtype=torch.float64),
        pre.sgld(),
        torch.Generator().manual_seed(0),
        eps=0.005,
        n_beta=5.0,
        gamma=0.0,
        steps=2500,
        common_noise=False,
    )
    estimate = 5.0 * torch.stack([losses.mean() for losses, _ in run][500:]).mean()
    assert float(estimate) == pytest.approx(rlct_monomials([2, 4, 6]), rel=0.03)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": 0.0}, "eps = 0.0"),
        ({"n_beta": -1.0}, "n_beta = -1.0"),
        ({"gamma": -1.0}, "gamma"),
        ({"steps": 0}, "steps"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        next(
            chain(
                quadratic(W_STAR),
                W_STAR[None],
                pre.sgld(),
                torch.Generator(),
                **{**COMMON, **changes},
            )
        )


def test_sgld_is_that_of_posteriors_at_equal_noise():
    """Runs with the extra `peers`; its learning rate is half our eps, and it draws from the global
    generator."""
    sgld = pytest.importorskip("posteriors").sgmcmc.sgld
    options = {"eps": 0.004, "n_beta": 20.0, "gamma": 1.5, "steps": 40}
    ours = [
        w
        for _, w in chain(
            quadratic(W_STAR), W_STAR[None], pre.sgld(), torch.Generator().manual_seed(3), **options
        )
    ]

    def log_posterior(w, batch):
        losses, _ = quadratic(W_STAR)(w, 0)
        return -options["n_beta"] * losses - options["gamma"] / 2 * (
            w - W_STAR
        ).square().sum(), torch.tensor([])

    transform = sgld.build(log_posterior, lr=options["eps"] / 2)
    state = transform.init(W_STAR)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for w in ours:
            assert torch.allclose(state.params, w[0], rtol=1e-12, atol=1e-14)
            state, _ = transform.update(state, None)
    assert not torch.equal(ours[-1][0], W_STAR)
