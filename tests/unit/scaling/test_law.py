"""The fitter on simulated laws, with and without noise, and its frontier by brute force."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fieldbook.scaling.law import Law, bootstrap, fit_law, prediction_interval

PUBLISHED = Path(__file__).resolve().parents[3] / "data/scaling/laptop"
TRUE = Law(1.8, 480.0, 2100.0, 0.348, 0.366)


def runs(law=TRUE, noise=0.0, seed=0, sizes=6):
    n, d = (
        v.ravel()
        for v in np.meshgrid(np.geomspace(1e5, 1e9, sizes), np.geomspace(1e6, 1e10, sizes))
    )
    return (
        n,
        d,
        law.loss(n, d) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(n))),
    )


def test_exact_data_give_the_exact_law():
    assert fit_law(*runs()) == pytest.approx(TRUE, rel=2e-2)


@pytest.mark.parametrize("seed", range(5))
def test_recovers_the_exponents_from_noise_of_half_a_per_mille(seed):
    law = fit_law(*runs(noise=5e-4, seed=seed))
    assert abs(law.a - TRUE.a) < 0.02 and abs(law.b - TRUE.b) < 0.02


def test_an_outlier_moves_it_little():
    n, d, loss = runs(noise=5e-4)
    loss[7] *= 1.5
    law, squares = fit_law(n, d, loss, delta=1e-3), fit_law(n, d, loss, delta=10.0)
    assert abs(law.a - TRUE.a) < 0.01 < abs(squares.a - TRUE.a)


def test_no_coefficient_is_negative():
    n, d, _ = runs()
    law = fit_law(n, d, 3 * (d / 1e8) ** -0.3)
    assert min(law[:3]) >= 0 and law.b == pytest.approx(0.3, abs=0.01)
    assert (law.A * n**-law.a < 1e-3).all() or law.loss(n, d) == pytest.approx(
        3 * (d / 1e8) ** -0.3, rel=1e-2
    )


def test_intervals_cover_new_runs():
    n, d, loss = runs(noise=0.02)
    laws = bootstrap(n, d, loss, seed=0, repeats=60)
    low, high = np.quantile([law.a for law in laws], [0.025, 0.975])
    assert low < TRUE.a < high
    residuals = np.log(loss / fit_law(n, d, loss).loss(n, d))
    low, high = prediction_interval(laws, residuals, 1e8, 1e9, seed=0)
    new = TRUE.loss(1e8, 1e9) * np.exp(0.02 * np.random.default_rng(1).standard_normal(2000))
    assert 0.9 < ((new > low) & (new < high)).mean() <= 1


def test_frontier_is_the_least_loss_at_given_compute():
    n = np.geomspace(1e4, 1e14, 200_001)
    for product in (1e14, 1e18):
        best = n[TRUE.loss(n, product / n).argmin()]
        found, data = TRUE.frontier(product)
        assert found == pytest.approx(best, rel=1e-3) and found * data == pytest.approx(product)


@pytest.mark.parametrize(
    "change, name",
    [((0, slice(3), np.nan), "n"), ((2, 0, -1.0), "loss"), ((1, slice(None), 7.0), "d")],
)
def test_refuses(change, name):
    data = [np.array(values) for values in runs()]
    which, where, value = change
    data[which][where] = value
    with pytest.raises(ValueError, match=name):
        fit_law(*data)


def said_of(n, d, loss):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit_law(n, d, loss)
    return [str(one.message) for one in said]


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_data_that_grow_with_the_parameters_do_not_tell_the_exponents_apart(power):
    n = np.geomspace(1e6, 1e9, 9)
    d = 20 * n**power
    (said,) = said_of(n, d, TRUE.loss(n, d))
    assert "n and d go together" in said and "add runs with other d at the same n" in said
    n, d = np.concatenate([n, n]), np.concatenate([d, 30 * d])  # as it says
    assert not said_of(n, d, TRUE.loss(n, d))


def test_a_narrow_range_does_not_tell_the_terms_apart():
    n, d = (
        v.ravel() for v in np.meshgrid(1e7 * np.linspace(1, 1.2, 4), 1e9 * np.linspace(1, 1.2, 4))
    )
    (said,) = said_of(n, d, TRUE.loss(n, d))
    assert "n spans a factor 1.2" in said and "over a decade or more" in said
    n, d = np.concatenate([n, n / 10, n, n * 10]), np.concatenate([d, d, d / 10, d * 10])
    assert not said_of(n, d, TRUE.loss(n, d))


def test_what_has_no_effect_has_no_exponent():
    n, d, _ = runs()
    (said,) = said_of(n, d, 2 + 3 * (d / 1e8) ** -0.3)
    assert "n has no effect" in said
    assert "n has no effect" in said_of(n, d, np.full(len(n), 2.0))[0]
    assert not said_of(n, d, TRUE._replace(E=0.0).loss(n, d))  # an E of 0 is a result


def test_a_bootstrap_warns_once():
    n = np.geomspace(1e6, 1e9, 6)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert len(bootstrap(n, 20 * n, TRUE.loss(n, 20 * n), seed=0, repeats=5)) == 5
    assert len(said) == 1


def test_runs_of_the_chapter_determine_their_law():
    table = pd.read_csv(PUBLISHED / "scaling.csv")
    rows = table[(table.group == "law") & (table.split == "test")]
    mean = rows.groupby(["run_id", "n_params_total", "d_seen"]).excess_risk.mean().reset_index()
    assert not said_of(mean.n_params_total, mean.d_seen, mean.excess_risk)


def test_a_repeated_run_is_no_further_one():
    n, d, loss = (values[[0, 7, 14, 21]].repeat(3) for values in runs())
    with pytest.raises(ValueError, match=r"different runs .* = 4 .* at least 5"):
        fit_law(n, d, loss)
