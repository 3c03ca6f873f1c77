"""A synthetic order book whose conditional mean return is known, and with it what a model lacks.

Five latent AR(1) signals drive thirteen order-book channels and, through g = linear + tanh +
product, the returns:

    r_{t+1} = sigma_t (g(s_t) + noise),    s_k with half-lives 5, 20, 60, 300, 1200 ticks,

with a slow log-AR(1) volatility sigma that is higher at both ends of a day. Without `obs_noise` the
channels determine the signals, hence f*(t, h) = E[return over h ticks | all up to t] is exact;
E (f - f*)^2 is a model's excess risk.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.signal import lfilter

from fieldbook.nn.checks import require
from fieldbook.nn.seeds import stream
from fieldbook.scaling.transforms import CHANNELS, PRICES

HALF_LIVES = np.array([5.0, 20.0, 60.0, 300.0, 1200.0])  # ticks
# weights of the signals; the slow two are scaled to give `best_long`
LINEAR = np.array([1.0, 0.2, 0.05, 0.03, 0.02])
BEND, STEEP, BENT = 0.3, 2.0, 1  # weight and slope of tanh(2 s_2), and its signal
PRODUCT, PAIR = 0.5, (1, 2)  # weight of s_2 s_3
VOLATILITY = (4000.0, 0.3)  # half-life in ticks and standard deviation of log sigma
TICK_SIZE = 0.01  # spread at rest, in price
RETURN = 1e-4  # standard deviation of a one-tick return at sigma 1
TRAILING = 300.0  # half-life, in ticks, of the realised volatility that targets are measured in
SLOWEST = 30.0  # largest factor on the weights of the slow signals
SHORT, LONG = 10, 1800  # horizons in ticks at which the best possible correlation is set
NOT_NEGATIVE = ["ask_volume_1", "bid_volume_1", "open_interest"]
GRID = np.linspace(-6, 6, 1201)  # values of the bent signal
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(32)


@dataclass(frozen=True)
class World:
    """What all days are drawn from.

    Attributes:
        best_short, best_long: correlation of f* with the target over 10 and over 1800 ticks, at
            constant volatility.
        tau: spread of the instruments' weights about the common ones, relative to them.
        obs_noise: standard deviation of what is added to the log of each observed quantity; 0 keeps
            f* exact.
        seed: of everything.
        scale: (noise, weight of the slow signals), which follow from the correlations.
    Raises:
        ValueError: out of range, or correlations that no noise and no weight give.
    """

    best_short: float = 0.30
    best_long: float = 0.07
    tau: float = 0.3
    obs_noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("best_short", "best_long"):
            value = getattr(self, name)
            require(0 < value < 1, name, value, "a correlation in (0, 1)")
        for name in ("tau", "obs_noise"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        object.__setattr__(self, "scale", _solve(self))

    def weights(self, instrument: int) -> np.ndarray:
        """(7,): of the five signals, the tanh and the product: w_0 + tau eps, in units of w_0."""
        rng = np.random.default_rng(stream("instrument", self.seed, int(instrument)))
        return _weights(self.scale[1]) * (1 + self.tau * rng.standard_normal(7))


@dataclass(frozen=True)
class Day:
    """One instrument's day, and the hidden state that drew it."""

    raw: np.ndarray  # (tick, 13)
    returns: np.ndarray  # (tick,), log-returns of the mid-price, each ending at its tick
    signals: np.ndarray  # (5, tick)
    log_sigma: np.ndarray  # (tick,), without the daily course
    weights: np.ndarray  # (7,)


def generate(world: World, instrument: int, day: int, ticks: int) -> Day:
    """Draw a day, the same whichever others are drawn."""
    rng = np.random.default_rng(stream("day", world.seed, int(instrument), int(day)))
    half_lives = [*HALF_LIVES, VOLATILITY[0]]
    *signals, slow = [_ar1(_rho(h), rng.standard_normal(ticks)) for h in half_lives]
    signals = np.stack(signals)
    log_sigma = VOLATILITY[1] * slow
    weights = world.weights(instrument)
    sigma = np.exp(log_sigma) * _course(np.arange(ticks), ticks)
    drive = _g(signals, weights) + world.scale[0] * rng.standard_normal(ticks)
    returns = np.zeros(ticks)
    returns[1:] = RETURN * (sigma * drive)[:-1]
    noise = world.obs_noise * rng.standard_normal((5, ticks))
    raw = _channels(100 * np.exp(np.cumsum(returns)), signals, noise)
    return Day(raw, returns, signals, log_sigma, weights)


def targets(day: Day, at: np.ndarray, horizons: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns over each horizon in units of trailing volatility times sqrt(horizon), and their f*.

    Args:
        at: (n,) ticks; `horizons`: in ticks, ascending.
    Returns:
        y and f*, each (n, horizon) float32.
    Raises:
        ValueError: a horizon reaches beyond the day.
    """
    ticks = len(day.returns)
    last = max(horizons)
    within = len(at) == 0 or at.max() + last < ticks
    require(within, "horizons", list(horizons), f"to end within the day of {ticks}")
    decay = _rho(TRAILING)
    sums = [lfilter([1 - decay], [1, -decay], x) for x in (day.returns**2, np.ones(ticks))]
    unit = np.sqrt(sums[0] / sums[1])[at][:, None] * np.sqrt(horizons)
    price = np.cumsum(day.returns)
    y = np.stack([price[at + h] - price[at] for h in horizons], 1)
    lag = np.arange(last)[:, None]
    keep = _rho(VOLATILITY[0]) ** lag
    spread = VOLATILITY[1] ** 2 * (1 - keep**2)
    sigma = np.exp(keep * day.log_sigma[at] + spread / 2) * _course(at + lag, ticks)
    # a mean of products is the product of means: volatility and signals are independent
    ahead = np.cumsum(sigma * _expected_g(day.signals[:, at], lag, day.weights), 0)
    mean = RETURN * ahead[np.array(horizons) - 1].T
    return (y / unit).astype(np.float32), (mean / unit).astype(np.float32)


def best_correlation(slow: float, noise: float, horizon: int, tau: float = 0.0) -> float:
    """Correlation of f* with the target at constant volatility, from g's Hermite expansion."""
    luck = horizon * noise**2
    known, future = 0.0, luck
    for variance, rho in _modes(slow):
        # what an innovation adds to the rest of the sum, by the ticks that are left
        ahead = np.cumsum(rho ** np.arange(horizon))
        known += variance * ahead[-1] ** 2
        future += variance * (1 - rho**2) * (ahead[:-1] ** 2).sum()
    known, future = (1 + tau**2) * known, (1 + tau**2) * (future - luck)
    return float(np.sqrt(known / (known + future + luck)))


def read_days(folder: Path) -> dict[str, np.ndarray]:
    """Real data: each Parquet or CSV file of a folder is one day, (tick, 13), named by its stem.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is damaged, lacks a channel, has values that cannot be (NaN, a missing
            one, can) or times (`time`, or the index) that fall; two are of one day. Names the path.
    """
    files = [file for file in sorted(Path(folder).glob("*")) if file.suffix in (".parquet", ".csv")]
    if not files:
        expected = "expected one per instrument and day"
        raise FileNotFoundError(f"{folder} holds no .parquet or .csv file; {expected}")
    days = {}
    for file in files:
        accepted = "one file per instrument and day; another has this name"
        require(file.stem not in days, "file", str(file), accepted)
        days[file.stem] = _read_day(file)
    return days


def _read_day(file: Path) -> np.ndarray:
    try:
        frame = pd.read_csv(file) if file.suffix == ".csv" else pd.read_parquet(file)
    except PermissionError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise ValueError(f"{file} is not a readable table ({error})") from error
    missing = [name for name in CHANNELS if name not in frame]
    require(not missing, f"{file} lacks the columns", missing, f"all of {', '.join(CHANNELS)}")
    require(frame.columns.is_unique, f"columns of {file}", [*frame.columns], "no name twice")
    rises = frame.get("time", frame.index).is_monotonic_increasing
    require(rises, f"time in {file}", "not rising", "ticks in their order")
    for name in CHANNELS:
        numeric = frame[name].dtype.kind in "fiu" and frame[name].notna().any()
        require(numeric, f"column {name} of {file}", frame[name].dtype, "numbers")
    values = frame[list(CHANNELS)].astype(float)
    bad = values.isin([np.inf, -np.inf])
    bad[PRICES] |= values[PRICES] <= 0
    bad[NOT_NEGATIVE] |= values[NOT_NEGATIVE] < 0
    accepted = "finite numbers, prices above 0, volumes of at least 0; leave out what is missing"
    for row, column in np.argwhere(bad):
        name = f"column {CHANNELS[column]} of {file} in row {row}"
        require(False, name, float(values.iat[row, column]), accepted)
    return values.to_numpy()


def _channels(mid: np.ndarray, s: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The thirteen channels; five independent combinations of the signals determine all five."""
    imbalance = 0.4 * (s[0] + s[1]) + noise[0]
    depth = 500 * np.exp(0.4 * s[2] + 0.3 * s[3] + noise[1])
    spread = TICK_SIZE * np.exp(0.3 * s[1] + 0.3 * s[4] + noise[2])
    traded = 100 * np.exp(0.5 * s[3] + 0.5 * s[0] + noise[3])
    interest = 1e5 * np.exp(0.1 * s[4] + 0.1 * noise[4])
    obi = np.tanh(imbalance)
    vwap = mid + 0.5 * spread * np.tanh(s[2] + noise[1])
    micro = mid + 0.5 * spread * obi
    last = mid + 0.5 * spread * np.tanh(s[0] + noise[3])
    logs = np.log([mid, last, vwap, micro])
    moves = np.diff(logs, prepend=logs[:, :1])
    volumes = [traded, depth * np.exp(-imbalance), depth * np.exp(imbalance)]
    return np.stack([mid, vwap, micro, *moves, *volumes, obi, spread, interest], 1)


def _g(s: np.ndarray, w: np.ndarray) -> np.ndarray:
    return w[:5] @ s + w[5] * np.tanh(STEEP * s[BENT]) + w[6] * s[PAIR[0]] * s[PAIR[1]]


def _expected_g(s: np.ndarray, lag: np.ndarray, w: np.ndarray) -> np.ndarray:
    """E g(s_{t+j}) given s_t (5, n), for lags j (lag, 1) from 0 on; (lag, n)."""
    a, b = PAIR
    rho = _rho(HALF_LIVES) ** lag
    table = _bends(len(lag))
    # between the points of `GRID` the table is interpolated linearly
    place = np.clip((s[BENT] - GRID[0]) / (GRID[1] - GRID[0]), 0, len(GRID) - 2)
    i = place.astype(int)
    share = place % 1
    bend = (1 - share) * table[:, i] + share * table[:, i + 1]
    return (w[:5] * rho) @ s + w[5] * bend + w[6] * (rho[:, [a]] * rho[:, [b]]) * s[a] * s[b]


@lru_cache(maxsize=2)
def _bends(lags: int) -> np.ndarray:
    """E tanh(2 s_{t+j}) for s_t on `GRID`, (lag, point), by Gauss-Hermite quadrature."""
    rho = _rho(HALF_LIVES[BENT])
    out = np.empty((lags, len(GRID)))
    for j, row in enumerate(out):
        later = rho**j * GRID[:, None] + np.sqrt(1 - rho ** (2 * j)) * NODES
        row[:] = np.tanh(STEEP * later) @ WEIGHTS
    return out / WEIGHTS.sum()


def _modes(slow: float) -> list[tuple[float, float]]:
    """(variance, one-tick autocorrelation) of the uncorrelated parts of g, by Hermite functions."""
    w = _weights(slow)
    rho = _rho(HALF_LIVES)
    modes = [(w[k] ** 2, rho[k]) for k in range(5) if k != BENT]
    modes.append((w[6] ** 2, rho[PAIR[0]] * rho[PAIR[1]]))
    curve = np.tanh(STEEP * NODES)
    square = 1.0
    for order in range(1, 20, 2):
        square *= max(order * (order - 1), 1)  # order!, the squared norm of its polynomial
        hermite = np.polynomial.hermite_e.hermeval(NODES, [0] * order + [1])
        weight = w[5] * (curve * hermite) @ WEIGHTS / WEIGHTS.sum() / np.sqrt(square)
        if order == 1:
            weight += w[BENT]
        modes.append((weight**2, rho[BENT] ** order))
    return modes


def _solve(world: World) -> tuple[float, float]:
    """Noise and weight of the slow signals that give the two correlations asked for."""

    def best(slow: float, noise: float, horizon: int) -> float:
        return best_correlation(slow, noise, horizon, world.tau)

    def noise_for(slow: float) -> float:
        found = brentq(lambda x: best(slow, np.exp(x), SHORT) - world.best_short, -20, 12)
        return float(np.exp(found))

    def long(slow: float) -> float:
        return best(slow, noise_for(slow), LONG)

    most = min(best(slow, 1e-9, SHORT) for slow in (0.0, SLOWEST))
    accepted = f"below {most:.3f}, where there is no noise"
    require(world.best_short < most, "best_short", world.best_short, accepted)
    low = long(0.0)
    high = long(SLOWEST)
    accepted = f"between {low:.3f} and {high:.3f}, given best_short"
    require(low < world.best_long < high, "best_long", world.best_long, accepted)
    slow = brentq(lambda x: long(x) - world.best_long, 0.0, SLOWEST)
    return noise_for(slow), slow


def _weights(slow: float) -> np.ndarray:
    return np.array([*LINEAR[:3], *(slow * LINEAR[3:]), BEND, PRODUCT])


def _course(tick: np.ndarray, ticks: int) -> np.ndarray:
    """The U of a day: volatility is 1.4 times as high at its ends as in its middle."""
    return 1 + 0.4 * (2 * tick / ticks - 1) ** 2


def _rho(half_life: float | np.ndarray) -> float | np.ndarray:
    return 0.5 ** (1 / half_life)


def _ar1(rho: float, noise: np.ndarray) -> np.ndarray:
    """A stationary AR(1) of variance 1."""
    scaled = np.sqrt(1 - rho**2) * noise
    scaled[0] = noise[0]
    return lfilter([1], [1, -rho], scaled)
