"""Four causal transforms of thirteen order-book channels: 13 columns in, 52 out, without a NaN.

Every column is a rolling z-score against the past alone, so that no unit, price level or instrument
shows through.
"""

import numpy as np
from einops import rearrange

from fieldbook.nn.checks import require

PRICES = ["mid_price", "vwap", "micro_price"]
RETURNS = ["mid_return", "last_return", "vwap_return", "micro_return"]
VOLUMES = ["vol_diff", "ask_volume_1", "bid_volume_1"]
CHANNELS = (*PRICES, *RETURNS, *VOLUMES, "obi_1", "spread_1", "open_interest")
TRANSFORMS = ("norm", "std_norm", "mean_norm", "skew_norm")
LOGARITHMIC = [CHANNELS.index(name) for name in (*VOLUMES, "open_interest")]
MIN_PERIODS, LIMIT = 60, 5.0


def columns(include_skew_norm: bool = True) -> list[str]:
    """Names of the columns of `transform`, `channel__transform`, in their order."""
    kept = TRANSFORMS if include_skew_norm else TRANSFORMS[:-1]
    return [f"{channel}__{name}" for name in kept for channel in CHANNELS]


def transform(
    raw: np.ndarray, *, inner: int = 60, outer: int = 1800, include_skew_norm: bool = True
) -> np.ndarray:
    """Rolling z-scores of each channel and of its rolling standard deviation, mean and skewness.

    Volumes and the open interest pass through sign(x) log(1 + |x|) first. The z-score at t is taken
    against the `outer` ticks before t, and is 0 where fewer than 60 of them have a value, where
    their spread is no more than 1e-6 of their mean, or where the value at t is missing. Moments
    need all of their `inner` ticks, t among them.

    Args:
        raw: (..., tick, 13), in the order of `CHANNELS`; each leading index is a day of its own.
            NaN is missing.
        inner, outer: windows in ticks.
    Returns:
        (..., tick, 52) float32 in [-5, 5], or 39 columns without the skewness.
    Raises:
        ValueError: no real numbers, another shape, no tick, or a window that is too short.
    """
    raw = np.asarray(raw)
    require(raw.dtype.kind in "iuf", "dtype of raw", str(raw.dtype), "real numbers")
    fits = raw.ndim >= 2 and raw.shape[-1] == len(CHANNELS) and raw.size
    require(fits, "shape of raw", raw.shape, f"(..., tick, {len(CHANNELS)}) with a tick or more")
    require(inner >= 3, "inner", inner, "at least 3 ticks")
    require(outer >= MIN_PERIODS, "outer", outer, f"at least {MIN_PERIODS} ticks")
    out = np.zeros((*raw.shape[:-1], len(columns())), np.float32)
    for day in np.ndindex(raw.shape[:-2]):
        _one_day(np.array(raw[day].T, float, order="C"), out[day].T, inner, outer)
    return out[..., : len(columns(include_skew_norm))]


def _one_day(x: np.ndarray, result: np.ndarray, inner: int, outer: int) -> None:
    """Fill (column, tick) from (channel, tick)."""
    x[LOGARITHMIC] = np.sign(x[LOGARITHMIC]) * np.log1p(np.abs(x[LOGARITHMIC]))
    present = np.isfinite(x)
    first = np.take_along_axis(x, present.argmax(1)[:, None], 1)
    first[~present.any(1)] = 0
    # sums are taken of distances to the first value: a price far from zero would cost digits
    x = np.where(present, x, first) - first
    parts = [(x, first, present)]
    if x.shape[1] >= inner:
        whole = _last(present.astype(float), inner) > inner - 0.5
        moments = _moments(x, inner)
        parts += [(moment, k, whole) for moment, k in zip(moments, (0, first, 0), strict=True)]
    blocks = result.reshape(len(TRANSFORMS), *x.shape)
    for block, (values, origin, valid) in zip(blocks, parts, strict=False):
        block[:, -values.shape[1] :] = _z_score(values, origin, valid, outer)


def _moments(x: np.ndarray, inner: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standard deviation, mean and skewness of each full window, (channel, tick - inner + 1)."""
    mean = _last(x, inner) / inner
    square = _last(x * x, inner) / inner
    centre = mean * mean
    variance = square - centre
    variance[variance <= 1e-10 * square] = 0  # rounding, of a window that is constant
    std = np.sqrt(variance)
    third = _last(x * x * x, inner) / inner - mean * (3 * variance + centre)
    scale = variance * std
    return std, mean, np.divide(third, scale, out=np.zeros_like(third), where=scale > 0)


def _z_score(
    values: np.ndarray, origin: np.ndarray | float, valid: np.ndarray, outer: int
) -> np.ndarray:
    """(value - mean) / standard deviation of the `outer` ticks before; 0 where that says nothing.

    Args:
        values: (channel, tick), measured from `origin`, where `valid`.
    """
    if valid.all():  # saves a third of the sums
        count = np.minimum(np.arange(values.shape[1]), outer).astype(float)
    else:
        values = np.where(valid, values, 0)
        count = _before(valid.astype(float), outer)
    n = np.maximum(count, 2)
    mean = _before(values, outer) / n
    variance = (_before(values * values, outer) - n * mean * mean) / (n - 1)
    std = np.sqrt(np.maximum(variance, 0))
    good = valid & (count >= MIN_PERIODS) & (std > 1e-6 * np.abs(mean + origin))
    z = np.divide(values - mean, std, out=np.zeros_like(std), where=good)
    return z.clip(-LIMIT, LIMIT)


def _last(x: np.ndarray, width: int) -> np.ndarray:
    """Sum over each full window of `width` ticks, (channel, tick - width + 1).

    A window is the end of one block of `width` and the beginning of the next: no difference of long
    sums, which a single wild value would spoil for the rest of the day.
    """
    ticks = x.shape[1]
    padded = np.pad(x, ((0, 0), (0, -ticks % width)))
    blocks = rearrange(padded, "channel (block tick) -> channel block tick", tick=width)
    begun = blocks.cumsum(2)
    left = blocks[:, :, ::-1].cumsum(2)[:, :, ::-1]
    left[:, :, 0] = 0  # where a window is a block
    joined = "channel block tick -> channel (block tick)"
    return (
        rearrange(begun, joined)[:, width - 1 : ticks]
        + rearrange(left, joined)[:, : ticks - width + 1]
    )


def _before(x: np.ndarray, width: int) -> np.ndarray:
    """Sum over the at most `width` ticks before each."""
    return _last(np.pad(x[:, :-1], ((0, 0), (width, 0))), width)
