"""The scaling law L = E + A / N^a + B / D^b: fit, bootstrap, prediction, and the frontier of compute.

Source: Hoffmann et al. 2022 (arXiv:2203.15556), approach 3, with its Huber loss on log L. For given exponents the law
is linear in (E, A, B) >= 0, so that only two parameters are searched for: variable projection, Golub & Pereyra 1973
(SIAM J. Numer. Anal. 10, 413).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize, nnls

EXPONENTS = np.array([0.05, 0.15, 0.3, 0.5, 0.8, 1.2, 1.8])  # where the search starts
LIMITS = (1e-3, 3.0)  # of an exponent: beyond, a term is a constant or a step over the sizes at hand


class Law(NamedTuple):
    """E + A / n^a + B / d^b."""

    E: float
    A: float
    B: float
    a: float
    b: float

    def loss(self, n: np.ndarray, d: np.ndarray) -> np.ndarray:
        """Loss at n parameters and d examples."""
        return self.E + self.A * np.asarray(n, float) ** -self.a + self.B * np.asarray(d, float) ** -self.b

    def frontier(self, product: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Parameters and examples of least loss, given their product (that is, compute by the rule C = 6 N D).

        Source: Hoffmann et al. 2022, equation 4.
        """
        product, total = np.asarray(product, float), self.a + self.b
        g = (self.a * self.A / (self.b * self.B)) ** (1 / total)
        return g * product ** (self.b / total), product ** (self.a / total) / g


def fit_law(n: Sequence[float], d: Sequence[float], loss: Sequence[float], *, delta: float = 0.02) -> Law:
    """Fit the five parameters by Huber loss on the logarithm of the loss.

    Args:
        n, d: (runs,) parameters and examples of each; `loss`: (runs,).
        delta: the relative deviation from which on a run counts linearly.
    Raises:
        ValueError: sizes differ, a value is not positive and finite, or n or d has fewer than three values.
    """
    n, d, loss = (np.asarray(values, float) for values in (n, d, loss))
    _require_runs(n, d, loss)
    return _fit(n, d, loss, delta, [(a, b) for a in EXPONENTS for b in EXPONENTS])


def bootstrap(
    n: Sequence[float], d: Sequence[float], loss: Sequence[float], *, seed: int, repeats: int = 200, delta: float = 0.02
) -> list[Law]:
    """Laws fitted to runs drawn with replacement; draws with fewer than three sizes or amounts of data are redrawn."""
    n, d, loss = (np.asarray(values, float) for values in (n, d, loss))
    start = fit_law(n, d, loss, delta=delta)[3:]
    rng, laws = np.random.default_rng(seed), []
    while len(laws) < repeats:
        drawn = rng.integers(len(n), size=len(n))
        if min(len(np.unique(n[drawn])), len(np.unique(d[drawn]))) >= 3:
            laws.append(_fit(n[drawn], d[drawn], loss[drawn], delta, [start]))
    return laws


def prediction_interval(
    laws: Sequence[Law], residuals: np.ndarray, n: float, d: float, *, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Where the loss of one further run is expected: the spread of the bootstrapped laws, and that of single runs.

    Args:
        residuals: log(loss / fitted) of the runs that were fitted.
    """
    rng = np.random.default_rng(seed)
    noise = np.exp(rng.choice(residuals, size=(len(laws), 50)))
    drawn = np.array([law.loss(n, d) for law in laws])[:, None] * noise
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _fit(n: np.ndarray, d: np.ndarray, loss: np.ndarray, delta: float, starts: Sequence[tuple[float, float]]) -> Law:
    """Search for the exponents from the better two of some starts."""
    n_0, d_0 = np.exp(np.log(n).mean()), np.exp(np.log(d).mean())
    x, y = np.log(n / n_0), np.log(d / d_0)

    def objective(exponents: np.ndarray) -> float:
        a, b = np.exp(exponents)
        outside = max(a - LIMITS[1], LIMITS[0] - a, b - LIMITS[1], LIMITS[0] - b, 0)
        return _project(x, y, loss, a, b, delta)[1] * (1 + 10 * outside) + outside * delta

    options = {"xatol": 1e-4, "fatol": 1e-13, "maxiter": 200}
    best = sorted((np.log(start) for start in starts), key=objective)[:2]
    found = [minimize(objective, start, method="Nelder-Mead", options=options) for start in best]
    a, b = np.exp(min(found, key=lambda f: f.fun).x)
    (e, scaled_a, scaled_b), _ = _project(x, y, loss, a, b, delta)
    return Law(float(e), float(scaled_a * n_0**a), float(scaled_b * d_0**b), float(a), float(b))


def _project(x: np.ndarray, y: np.ndarray, loss: np.ndarray, a: float, b: float, delta: float):
    """The best (E, A, B) >= 0 for given exponents, and the mean Huber loss of log(loss / fitted).

    Gauss-Newton on the logarithm, each step a non-negative least squares problem with Huber's weights.
    """
    basis, fitted, weight = np.stack([np.ones_like(x), np.exp(-a * x), np.exp(-b * y)], 1), loss, np.ones_like(loss)
    best = None
    for _ in range(6):
        aim = 1 + np.log(loss / fitted)
        coefficients, _ = nnls(basis * (weight / fitted)[:, None], aim * weight)
        fitted = np.maximum(basis @ coefficients, 1e-3 * loss)
        deviation = np.abs(np.log(loss / fitted))
        huber = np.where(deviation <= delta, deviation**2 / 2, delta * (deviation - delta / 2)).mean()
        if best is not None and huber > best[1] * (1 - 1e-6):
            return best if best[1] <= huber else (coefficients, huber)
        best, weight = (coefficients, huber), np.sqrt(np.minimum(1, delta / np.maximum(deviation, 1e-12)))
    return best


def _require_runs(n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> None:
    if not n.shape == d.shape == loss.shape or n.ndim != 1:
        raise ValueError(f"n {n.shape}, d {d.shape} and loss {loss.shape}: expected the same (runs,)")
    for name, values in (("n", n), ("d", d), ("loss", loss)):
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"{name} holds {values[~(values > 0)][:1]}; expected positive numbers")
    for name, values in (("n", n), ("d", d)):
        if len(np.unique(values)) < 3:
            raise ValueError(f"{name} has {len(np.unique(values))} values; expected at least 3 to fit a power with")
