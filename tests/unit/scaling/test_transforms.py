"""Transforms against a two-pass pandas version, and what must not matter to them: the future, other
days, units."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldbook.scaling.transforms import CHANNELS, LOGARITHMIC, columns, transform


def raw(ticks=2000, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((ticks, 13))
    x[:, :3] = 100 + 0.01 * x[:, :3].cumsum(0)
    x[:, LOGARITHMIC] = np.exp(5 + x[:, LOGARITHMIC])
    return x


def by_pandas(x, inner=60, outer=1800):
    """Straightforward: every rolling statistic in two passes."""
    x = pd.DataFrame(x, columns=CHANNELS)
    volumes = [CHANNELS[i] for i in LOGARITHMIC]
    x[volumes] = np.sign(x[volumes]) * np.log1p(x[volumes].abs())
    rolling = x.rolling(inner)
    parts = {
        "norm": x,
        "std_norm": rolling.std(),
        "mean_norm": rolling.mean(),
        "skew_norm": rolling.skew(),
    }
    out = {}
    for name, part in parts.items():
        past = part.shift(1).rolling(outer, min_periods=60)
        mean, std = past.mean(), past.std()
        z = (
            ((part - mean) / std)
            .where(std > 1e-6 * np.maximum(mean.abs(), 1e-12), 0)
            .clip(-5, 5)
            .fillna(0)
        )
        out |= {f"{channel}__{name}": z[channel] for channel in CHANNELS}
    return pd.DataFrame(out)


def test_52_columns_without_a_nan():
    x = transform(raw())
    assert x.shape == (2000, 52) and x.dtype == np.float32
    assert np.isfinite(x).all() and np.abs(x).max() <= 5
    assert (
        columns()[0] == "mid_price__norm"
        and columns()[-1] == "open_interest__skew_norm"
        and len(columns()) == 52
    )
    fewer = transform(raw(), include_skew_norm=False)
    assert np.array_equal(fewer, x[:, :39]) and columns(False) == columns()[:39]


def test_agrees_with_pandas():
    x, peer = transform(raw(4000)), by_pandas(raw(4000))
    assert list(peer) == columns()
    np.testing.assert_allclose(x, peer, atol=1e-4)
    assert (np.abs(x[200:]).mean(0) > 0.3).all()


@given(st.integers(1, 1999))
@settings(max_examples=10, deadline=None)
def test_the_future_changes_nothing(now):
    x, other = raw(), raw()
    other[now:] = 1e6 * raw(seed=1)[now:]
    assert np.array_equal(transform(x)[:now], transform(other)[:now])
    if now < 1900:
        assert not np.array_equal(transform(x)[now:], transform(other)[now:])


def test_the_present_is_not_part_of_its_own_mean():
    x = raw(400)
    x[:, 10] = np.tile([-1.0, 1.0], 200)
    x[300, 10] = 1e9
    assert transform(x)[300, 10] == 5
    assert transform(x, outer=10_000)[301, 10] == pytest.approx(
        0, abs=0.1
    )  # it is part of the next one's


def test_days_are_apart():
    days = np.stack([raw(500, seed=s) for s in range(3)])
    assert np.array_equal(transform(days), np.stack([transform(day) for day in days]))
    assert not transform(days)[:, :60, :13].any()  # too few points after each start


def test_constant_and_missing_channels_become_zero():
    x = raw(3000)
    x[:, 0], x[:, 4], x[:, 9] = 100.1, np.nan, 0.0
    z = transform(x)
    assert not z[:, [c + 13 * k for c in (0, 4, 9) for k in range(4)]].any()
    x[1500:, 0] = 107.3  # constant again after a jump
    assert not transform(x)[1500 + 1860 :, [0, 13, 26, 39]].any()


def test_a_gap_is_zero_and_forgotten_when_the_window_has_passed():
    x, gap = raw(1000), raw(1000)
    gap[500:505, 10] = np.nan
    z, full = transform(gap, outer=100), transform(x, outer=100)
    assert not z[500:505, 10].any() and z[505, 10] != 0
    assert not z[500:564, 10 + 13].any()
    np.testing.assert_allclose(z[500 + 165 :], full[500 + 165 :], atol=1e-5)
    np.testing.assert_allclose(z, by_pandas(gap, outer=100), atol=1e-4)


@given(st.floats(0.01, 1e3), st.floats(-1e3, 1e3))
@settings(max_examples=20, deadline=None)
def test_norm_knows_no_scale_and_no_shift(scale, shift):
    x, moved = raw(300), raw(300)
    moved[:, 10] = scale * moved[:, 10] + shift
    np.testing.assert_allclose(transform(moved)[:, 10], transform(x)[:, 10], atol=1e-4)


def test_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"\(5, 12\)"):
        transform(np.zeros((5, 12)))
    with pytest.raises(ValueError, match="inner = 2"):
        transform(raw(100), inner=2)


def test_a_wild_value_is_forgotten_when_the_windows_have_passed():
    x = raw(1200)
    x[300, 10], x[301, 3] = 1e9, np.inf
    z, peer = transform(x, outer=100), by_pandas(np.where(np.isfinite(x), x, np.nan), outer=100)
    np.testing.assert_allclose(z[300 + 170 :], peer[300 + 170 :], atol=1e-4)
    assert np.abs(z[500:, 10]).max() > 1


@pytest.mark.parametrize("unit", [1e-18, 1e-9, 1e9])
def test_units_are_no_reason_to_take_a_channel_for_constant(unit):
    x, other = raw(400), raw(400)
    other[:, 10] *= unit
    np.testing.assert_allclose(transform(other)[:, 10::13], transform(x)[:, 10::13], atol=1e-4)


@pytest.mark.parametrize("ticks", [1, 2, 59, 60, 61])
def test_short_days_are_all_zero(ticks):
    assert not transform(raw(ticks))[:60].any()


def test_refuses_what_is_no_tick():
    for wrong, said in (
        (raw(100).astype(complex), "dtype of raw"),
        (raw(100)[:0], "shape of raw"),
        (raw(100).astype(str), "dtype of raw"),
    ):
        with pytest.raises(ValueError, match=said):
            transform(wrong)
