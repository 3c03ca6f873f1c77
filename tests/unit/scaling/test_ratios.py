"""Ratios of measured risks: intervals that cover, days that cancel, and what is refused."""

import numpy as np
import pandas as pd
import pytest

from fieldbook.scaling import ratios

RISK = {"a": 0.3, "b": 0.25, "c": 0.2}


def runs(rng: np.random.Generator, seeds: int = 4, days: int = 10, noise: float = 0.03):
    """Runs of three cells: days that all share, and a factor of each run's own."""
    day = np.exp(0.3 * rng.standard_normal(days))
    rows = [
        {"cell": cell, "seed": seed, "day": d, "excess_risk": risk * factor * day[d]}
        for cell, risk in RISK.items()
        for seed, factor in enumerate(np.exp(noise * rng.standard_normal(seeds)))
        for d in range(days)
    ]
    return pd.DataFrame(rows)


def test_days_that_all_share_cancel() -> None:
    found = ratios.risks(runs(np.random.default_rng(0), noise=0.0)).ratio({"b": 1, "a": -1})
    assert found == pytest.approx((0.25 / 0.3,) * 3)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(120):
        _, low, high = ratios.risks(runs(rng, seeds=2)).ratio({"b": 1, "a": -1})
        inside.append(low < 0.25 / 0.3 < high)
    assert 0.89 < np.mean(inside) < 0.99


def test_luck_of_days_that_are_not_shared_widens_the_interval() -> None:
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(120):
        frame = runs(rng, seeds=1, days=12, noise=0.0)
        frame["excess_risk"] *= np.exp(0.1 * rng.standard_normal(len(frame)) - 0.005)
        _, low, high = ratios.risks(frame, exact=[*RISK]).ratio({"b": 1, "a": -1})
        inside.append(low < 0.25 / 0.3 < high)
    assert 0.89 < np.mean(inside) < 0.99


def test_scatter_is_pooled_over_cells_and_one_seed_has_none() -> None:
    frame = runs(np.random.default_rng(0), seeds=200)
    found = ratios.risks(frame)
    assert found.scatter == pytest.approx(0.03, rel=0.1) and found.freedom == 3 * 199
    alone = ratios.risks(frame[frame.seed == 0])
    ratio, low, high = alone.ratio({"b": 1, "a": -1})
    assert 0.7 < ratio < 1 and np.isnan(low) and np.isnan(high) and alone.freedom == 0
    exact = ratios.risks(frame[frame.seed == 0], exact=["a", "b"]).ratio({"b": 1, "a": -1})
    assert np.isfinite(exact).all()


def test_a_slope_per_doubling_is_that_of_a_power() -> None:
    cells = {("x", n): n for n in (100, 300, 1000)} | {("y", n): n for n in (100, 300, 1000)}
    weights = ratios.per_doubling(cells)
    logs = np.array([np.log(5.0) * (key[0] == "y") - 0.4 * np.log(n) for key, n in cells.items()])
    assert weights @ logs == pytest.approx(-0.4 * np.log(2)) and weights.sum() == pytest.approx(0)


def test_risks_at_one_compute_are_interpolated_within_the_runs_alone() -> None:
    amounts, cost = [100, 1000, 10_000], {1: 1.0, 2: 3.0, 3: 9.0}
    truth = {(d, n): 0.1 * d + n**-0.5 for d in cost for n in amounts}
    rows = [
        {"model": d, "amount": n, "seed": seed, "day": day, "excess_risk": risk}
        for (d, n), risk in truth.items()
        for seed in range(2)
        for day in range(3)
    ]
    risks = ratios.risks(pd.DataFrame(rows))
    curve, inner = ratios.at_compute(risks, cost, amounts, 3000.0)
    assert [*curve.index] == [1, 2, 3] and curve[2] == pytest.approx(truth[2, 1000])
    assert truth[1, 10_000] < curve[1] < truth[1, 1000]
    assert inner[0] == pytest.approx(curve[2] / curve[1])
    curve, inner = ratios.at_compute(risks, cost, amounts, 200.0)
    assert [*curve.index] == [1] and np.isnan(inner).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda frame: frame.assign(excess_risk=-frame.excess_risk), "excess_risk"),
        (lambda frame: frame.iloc[1:], "excess_risk"),
        (lambda frame: frame[frame.day == 0], "test days = 1"),
    ],
    ids=["not positive", "a day is missing", "one day"],
)
def test_what_decides_nothing_is_refused(change, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ratios.risks(change(runs(np.random.default_rng(0))))
