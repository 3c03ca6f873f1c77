"""The order book's known mean against simulation, its correlations against what was asked for,
splits, real files."""

import numpy as np
import pandas as pd
import pytest

from fieldbook.scaling import market
from fieldbook.scaling.transforms import CHANNELS

HORIZONS = (2, 10, 30)


def constant_volatility(monkeypatch):
    monkeypatch.setattr(market, "VOLATILITY", (4000.0, 1e-9))
    monkeypatch.setattr(market, "_course", lambda tick, ticks: np.ones_like(tick, float))


def test_f_star_is_the_mean_of_many_futures(monkeypatch):
    """Simulate the five signals, the volatility and g from one state, and average."""
    day = market.generate(market.World(seed=3, best_short=0.7, best_long=0.3), 1, 0, 3000)
    at, n, w = 700, 20_000, day.weights
    y, f = market.targets(day, np.array([at]), HORIZONS)
    rng = np.random.default_rng(0)
    s, x = np.repeat(day.signals[:, at, None], n, 1), np.full(n, day.log_sigma[at])
    total, means = np.zeros(n), []
    rho, rho_x = 0.5 ** (1 / market.HALF_LIVES[:, None]), 0.5 ** (1 / market.VOLATILITY[0])
    for j in range(30):
        g = w[:5] @ s + w[5] * np.tanh(2 * s[1]) + w[6] * s[1] * s[2]
        total += np.exp(x) * (1 + 0.4 * (2 * (at + j) / 3000 - 1) ** 2) * g
        means += [(total.mean(), total.std() / n**0.5)] if j + 1 in HORIZONS else []
        s = rho * s + np.sqrt(1 - rho**2) * rng.standard_normal(s.shape)
        x = rho_x * x + market.VOLATILITY[1] * np.sqrt(1 - rho_x**2) * rng.standard_normal(n)
    unit = np.sqrt(
        pd.Series(day.returns[: at + 1] ** 2).ewm(halflife=market.TRAILING).mean().iloc[-1]
        * np.array(HORIZONS)
    )
    np.testing.assert_allclose(
        f[0] * unit, [1e-4 * m for m, _ in means], atol=4e-4 * max(se for _, se in means)
    )
    price = np.log(day.raw[:, 0])
    np.testing.assert_allclose(
        y[0] * unit, [price[at + h] - price[at] for h in HORIZONS], rtol=1e-5
    )


def test_correlations_are_those_asked_for(monkeypatch):
    constant_volatility(monkeypatch)
    world, at = (
        market.World(best_short=0.5, best_long=0.2, tau=0.0),
        np.arange(400, 30_000 - 40, 10),
    )
    noise, slow = world.scale
    assert market.best_correlation(slow, noise, 10) == pytest.approx(0.5, abs=1e-9)
    assert market.best_correlation(slow, noise, 1800) == pytest.approx(0.2, abs=1e-9)
    days = [market.generate(world, 0, d, 30_000) for d in range(8)]
    y, f = (
        np.concatenate(part)
        for part in zip(*(market.targets(d, at, HORIZONS) for d in days), strict=True)
    )
    for h, horizon in enumerate(HORIZONS):
        expected = market.best_correlation(slow, noise, horizon)
        assert np.corrcoef(y[:, h], f[:, h])[0, 1] == pytest.approx(expected, abs=0.03)


def test_the_oracle_has_no_slope_left():
    """E (y - f*) q = 0 for whatever is known at t: excess risk is the difference of the squared
    errors."""
    days = [
        market.generate(market.World(best_short=0.5, best_long=0.2), i, 0, 12_000) for i in range(8)
    ]
    at = np.arange(600, 11_900, 20)
    y, f = (
        np.concatenate(part)[:, 1]
        for part in zip(*(market.targets(d, at, HORIZONS) for d in days), strict=True)
    )
    for q in (f, np.concatenate([d.signals[0, at] for d in days]), np.ones_like(f)):
        gap = (y - f) * q
        assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(len(gap) / 2)


def test_channels_determine_the_signals():
    day = market.generate(market.World(), 0, 0, 500)
    raw = dict(zip(CHANNELS, day.raw.T, strict=True))
    bid, ask = raw["bid_volume_1"], raw["ask_volume_1"]
    np.testing.assert_allclose(raw["obi_1"], (bid - ask) / (bid + ask), rtol=1e-9)
    low, high = raw["mid_price"] - raw["spread_1"] / 2, raw["mid_price"] + raw["spread_1"] / 2
    np.testing.assert_allclose(raw["micro_price"], (bid * high + ask * low) / (bid + ask))
    s4 = np.log(raw["open_interest"] / 1e5) / 0.1
    s1 = (np.log(raw["spread_1"] / 0.01) - 0.3 * s4) / 0.3
    s0 = np.arctanh(raw["obi_1"]) / 0.4 - s1
    s3 = (np.log(raw["vol_diff"] / 100) - 0.5 * s0) / 0.5
    s2 = (np.log(np.sqrt(bid * ask) / 500) - 0.3 * s3) / 0.4
    np.testing.assert_allclose([s0, s1, s2, s3, s4], day.signals, atol=1e-6)
    np.testing.assert_allclose(raw["mid_return"], day.returns, atol=1e-12)


def test_noise_hides_them_and_days_repeat():
    one, two = (market.generate(market.World(obs_noise=n), 0, 0, 400) for n in (0.0, 0.1))
    assert np.array_equal(one.signals, two.signals) and not np.allclose(
        one.raw[:, 9], two.raw[:, 9], rtol=0.01
    )
    again, other = (market.generate(market.World(), 0, d, 400) for d in (0, 1))
    assert np.array_equal(one.raw, again.raw) and not np.array_equal(one.raw, other.raw)


def test_tau_is_the_spread_of_the_weights():
    w_0 = market.World(tau=0.0).weights(5)
    assert np.array_equal(w_0, market.World(tau=0.0).weights(6))
    wide = market.World(tau=0.5)
    ratios = np.array([wide.weights(i) for i in range(300)]) / market._weights(wide.scale[1])
    assert ratios.std() == pytest.approx(0.5, abs=0.03) and ratios.mean() == pytest.approx(
        1, abs=0.03
    )


def test_refuses_what_cannot_be():
    with pytest.raises(ValueError, match="best_long"):
        market.World(best_short=0.3, best_long=0.001)
    with pytest.raises(ValueError, match="best_short"):
        market.World(best_short=0.99)
    with pytest.raises(ValueError, match="tau"):
        market.World(tau=-0.1)
    with pytest.raises(ValueError, match="horizons"):
        market.targets(market.generate(market.World(), 0, 0, 100), np.array([80]), (30,))


def test_reads_real_days(tmp_path):
    raw = market.generate(market.World(), 0, 0, 50).raw
    frame = pd.DataFrame(raw, columns=CHANNELS).assign(extra=1)
    frame.to_csv(tmp_path / "a_2.csv", index=False)
    frame[frame.columns[::-1]].to_parquet(tmp_path / "a_1.parquet")
    found = market.read_days(tmp_path)
    assert list(found) == ["a_1", "a_2"]
    for day in found.values():
        np.testing.assert_allclose(day, raw, rtol=1e-12)
    frame.drop(columns="vwap").to_csv(tmp_path / "b.csv")
    with pytest.raises(ValueError, match=r"b\.csv.*vwap"):
        market.read_days(tmp_path)
    with pytest.raises(FileNotFoundError, match="empty"):
        market.read_days(tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mid_price", 0.0),
        ("vwap", -1.0),
        ("micro_price", np.inf),
        ("ask_volume_1", -1.0),
        ("open_interest", -0.5),
        ("obi_1", -np.inf),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_values_that_cannot_be_are_refused(tmp_path, name, value, suffix):
    frame = pd.DataFrame(market.generate(market.World(), 0, 0, 50).raw, columns=CHANNELS)
    file = tmp_path / f"a.{suffix}"
    for at, good in ((value, False), (np.nan, True)):  # missing is what it may be
        frame.loc[7, name] = at
        frame.to_csv(file, index=False) if suffix == "csv" else frame.to_parquet(file)
        if good:
            assert np.isnan(market.read_days(tmp_path)["a"][7, CHANNELS.index(name)])
            continue
        with pytest.raises(
            ValueError, match=rf"column {name} of {file} in row 7 = {value}.*finite numbers"
        ):
            market.read_days(tmp_path)


@pytest.mark.parametrize("dtype", ["Int64", "float32", "UInt8"])
def test_numbers_that_may_be_missing_are_read(tmp_path, dtype):
    raw = np.random.default_rng(0).integers(1, 100, (9, len(CHANNELS)))
    frame = pd.DataFrame(raw, columns=CHANNELS).astype(dtype)
    frame.loc[3, "obi_1"] = None
    frame.to_parquet(tmp_path / "a.parquet")
    found = market.read_days(tmp_path)["a"]
    assert found.dtype == float and np.isnan(found[3, CHANNELS.index("obi_1")])
    np.testing.assert_array_equal(found[:3], raw[:3])


@pytest.mark.parametrize("dtype", [bool, complex])
def test_what_is_no_real_number_is_refused(tmp_path, dtype):
    frame = pd.DataFrame(market.generate(market.World(), 0, 0, 50).raw, columns=CHANNELS)
    frame["obi_1"] = frame["obi_1"].astype(dtype)
    frame.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(ValueError, match=r"column obi_1 of .*a\.csv.*numbers"):
        market.read_days(tmp_path)
