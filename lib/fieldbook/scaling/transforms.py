"""Four causal transforms of thirteen order-book channels: 13 columns in, 52 comparable ones out,
without a NaN.

Every column is a rolling z-score against the past alone, so that no unit, price level or instrument
shows through.
"""

import numpy as np

from fieldbook.nn.checks import require

CHANNELS = (
    "mid_price",
    "vwap",
    "micro_price",
    "mid_return",
    "last_return",
    "vwap_return",
    "micro_return",
    "vol_diff",
    "ask_volume_1",
    "bid_volume_1",
    "obi_1",
    "spread_1",
    "open_interest",
)
TRANSFORMS = ("norm", "std_norm", "mean_norm", "skew_norm")
LOGARITHMIC = [
    CHANNELS.index(name) for name in ("vol_diff", "ask_volume_1", "bid_volume_1", "open_interest")
]
MIN_PERIODS, LIMIT = 60, 5.0


def columns(include_skew_norm: bool = True) -> list[str]:
    """Names of the columns of `transform`, `channel__transform`, in their order."""
    return [f"{channel}__{name}" for name in _kept(include_skew_norm) for channel in CHANNELS]


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
    days = raw.reshape(-1, *raw.shape[-2:])
    width = len(CHANNELS) * len(_kept(include_skew_norm))
    out = np.empty((*days.shape[:2], width), np.float32)
    for day, result in zip(days, out, strict=True):
        _one_day(np.array(day.T, float, order="C"), result, inner, outer)
    return out.reshape(*raw.shape[:-1], width)


def _one_day(x: np.ndarray, result: np.ndarray, inner: int, outer: int) -> None:
    """Fill (tick, columns) from (channel, tick)."""
    x[LOGARITHMIC] = np.sign(x[LOGARITHMIC]) * np.log1p(np.abs(x[LOGARITHMIC]))
    present = np.isfinite(x)
    # sums are taken of distances to the first value: a price far from zero would cost digits
    first = np.where(present.any(1), np.take_along_axis(x, present.argmax(1)[:, None], 1)[:, 0], 0)[
        :, None
    ]
    if gaps := not present.all():
        x = np.where(present, x, first)
    x -= first
    parts = [(x, first, present)]
    if x.shape[1] >= inner:
        whole = (
            _last(present.astype(float), inner) > inner - 0.5 if gaps else present[:, inner - 1 :]
        )
        with_skew = result.shape[1] == len(x) * len(TRANSFORMS)
        parts += [
            (m, origin, whole)
            for m, origin in zip(_moments(x, inner, with_skew), (0, first, 0), strict=False)
        ]
    result[:] = 0
    for place, (values, origin, valid) in enumerate(parts):
        late = result.shape[0] - values.shape[1]
        z = _z_score(values, origin, valid if gaps else None, outer)
        result[late:, place * len(x) : (place + 1) * len(x)] = z.T


def _moments(x: np.ndarray, inner: int, with_skew: bool) -> list[np.ndarray]:
    """Standard deviation, mean and skewness of each full window, (channel, tick - inner + 1)."""
    mean, square = _last(x, inner), _last(x * x, inner)
    mean /= inner
    square /= inner
    centre = mean * mean
    variance = square - centre
    variance[variance <= 1e-10 * square] = 0  # rounding, of a window that is constant
    std = np.sqrt(variance)
    if not with_skew:
        return [std, mean]
    third = _last(x * x * x, inner)
    third /= inner
    third -= mean * (3 * variance + centre)
    scale = variance * std
    return [std, mean, np.divide(third, scale, out=np.zeros_like(third), where=scale > 0)]


def _z_score(
    values: np.ndarray, origin: np.ndarray | float, valid: np.ndarray | None, outer: int
) -> np.ndarray:
    """(value - mean) / standard deviation of the `outer` ticks before each; 0 where that says
    nothing."""
    if valid is None:
        count = np.minimum(np.arange(values.shape[1]), outer).astype(float)
    else:
        values, count = np.where(valid, values, 0), _before(valid.astype(float), outer)
    n = np.maximum(count, 2)
    mean, variance = _before(values, outer), _before(values * values, outer)
    mean /= n
    variance -= n * mean * mean
    variance /= n - 1
    std = np.sqrt(np.maximum(variance, 0, out=variance), out=variance)
    good = std > 1e-6 * np.abs(mean + origin)
    good &= count >= MIN_PERIODS
    if valid is not None:
        good &= valid
    z = values - mean
    z = np.divide(z, std, out=np.zeros_like(z), where=good)
    return np.clip(z, -LIMIT, LIMIT, out=z)


def _last(x: np.ndarray, width: int) -> np.ndarray:
    """Sum over each full window of `width` ticks, (channel, tick - width + 1).

    A window is the end of one block of `width` and the beginning of the next: no difference of long
    sums, which a single wild value would spoil for the rest of the day.
    """
    channels, ticks = x.shape
    blocks = np.pad(x, ((0, 0), (0, -ticks % width))).reshape(channels, -1, width)
    begun = blocks.cumsum(2).reshape(channels, -1)[:, width - 1 : ticks]
    left = blocks[:, :, ::-1].cumsum(2)[:, :, ::-1]
    left[:, :, 0] = 0  # where a window is a block
    return begun + left.reshape(channels, -1)[:, : ticks - width + 1]


def _before(x: np.ndarray, width: int) -> np.ndarray:
    """Sum over the at most `width` ticks before each."""
    return _last(np.pad(x[:, :-1], ((0, 0), (width, 0))), width)


def _kept(include_skew_norm: bool) -> tuple[str, ...]:
    return TRANSFORMS if include_skew_norm else TRANSFORMS[:-1]
