"""The scaling law L = E + A / N^a + B / D^b: fit, bootstrap, prediction, frontier of compute.

Source: Hoffmann et al. 2022 (arXiv:2203.15556), approach 3, with its Huber loss on log L. For given
exponents the law is linear in (E, A, B) >= 0, so that only two parameters are searched for:
variable projection, Golub & Pereyra 1973 (SIAM J. Numer. Anal. 10, 413).
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize, nnls

from fieldbook.nn.checks import numbers, positive, require

EXPONENTS = np.array([0.05, 0.15, 0.3, 0.5, 0.8, 1.2, 1.8])  # where the search starts
LIMITS = (
    1e-3,
    3.0,
)  # of an exponent: beyond, a term is a constant or a step over the sizes at hand
DELTA = 0.02  # relative deviation from which on a run counts linearly
CORRELATED = 100.0  # largest condition of log n and log d
ALIKE = 1000.0  # largest condition of what the parameters do to the loss


class Law(NamedTuple):
    """E + A / n^a + B / d^b."""

    E: float
    A: float
    B: float
    a: float
    b: float

    def loss(self, n: ArrayLike, d: ArrayLike) -> np.ndarray:
        """Loss at n parameters and d examples."""
        return (
            self.E + self.A * _positive(n, "n") ** -self.a + self.B * _positive(d, "d") ** -self.b
        )

    def frontier(self, product: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Parameters and examples of least loss, given their product: compute, by C = 6 N D.

        Raises:
            ValueError: A, B, a or b is 0, where ever more of n or of d alone is best.
        Source: Hoffmann et al. 2022, equation 4.
        """
        accepted = "positive A, B, a and b: without one of the terms there is no best of both"
        require(min(self[1:]) > 0, "law", self, accepted)
        product = _positive(product, "product")
        total = self.a + self.b
        g = (self.a * self.A / (self.b * self.B)) ** (1 / total)
        return g * product ** (self.b / total), product ** (self.a / total) / g


def fit_law(n: ArrayLike, d: ArrayLike, loss: ArrayLike, *, delta: float = DELTA) -> Law:
    """Fit the five parameters by Huber loss on the logarithm of the loss.

    Args:
        n, d, loss: (runs,) parameters, examples and loss of each.
        delta: the relative deviation from which on a run counts linearly.
    Raises:
        ValueError: sizes differ, a value is not positive and finite, n or d has fewer than three
            values, or fewer than five runs differ in them.
    Warns:
        UserWarning: the runs do not determine all five parameters; says which, and what would.
    """
    require(delta > 0, "delta", delta, "a positive number")
    n, d, loss = _runs(n, d, loss)
    law = _fit(n, d, loss, delta, [(a, b) for a in EXPONENTS for b in EXPONENTS])
    said = _undetermined(law, n, d)
    if said:
        warnings.warn(f"the runs do not determine {law}: {said}", stacklevel=2)
    return law


def bootstrap(
    n: ArrayLike, d: ArrayLike, loss: ArrayLike, *, seed: int, repeats: int = 200
) -> list[Law]:
    """Laws fitted to runs drawn with replacement; draws that `fit_law` would refuse are redrawn."""
    start = fit_law(n, d, loss)[3:]
    n, d, loss = _runs(n, d, loss)
    rng = np.random.default_rng(seed)
    laws = []
    while len(laws) < repeats:
        drawn = rng.integers(len(n), size=len(n))
        if _too_few(n[drawn], d[drawn]) is None:
            laws.append(_fit(n[drawn], d[drawn], loss[drawn], DELTA, [start]))
    return laws


def prediction_interval(
    laws: Sequence[Law], residuals: ArrayLike, n: float, d: float, *, seed: int
) -> tuple[float, float]:
    """95 % interval of a further run's loss: spread of the bootstrapped laws and of single runs.

    Args:
        residuals: (runs,) log(loss / fitted) of the runs that were fitted.
    """
    require(len(laws), "laws", laws, "at least one")
    residuals = numbers(residuals, "residuals", ndim=1).numpy(force=True)
    scatter = np.random.default_rng(seed).choice(residuals, size=(len(laws), 50))
    drawn = np.array([law.loss(n, d) for law in laws])[:, None] * np.exp(scatter)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _fit(
    n: np.ndarray, d: np.ndarray, loss: np.ndarray, delta: float, starts: list[tuple[float, float]]
) -> Law:
    """Search for the exponents from the better two of some starts."""
    n_0 = np.exp(np.log(n).mean())
    d_0 = np.exp(np.log(d).mean())
    x = np.log(n / n_0)
    y = np.log(d / d_0)

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


def _project(
    x: np.ndarray, y: np.ndarray, loss: np.ndarray, a: float, b: float, delta: float
) -> tuple[np.ndarray, float]:
    """The best (E, A, B) >= 0 for given exponents, and the mean Huber loss of log(loss / fitted).

    Gauss-Newton on the logarithm, each step a non-negative least squares problem with Huber's
    weights.
    """
    basis = np.stack([np.ones_like(x), np.exp(-a * x), np.exp(-b * y)], 1)
    fitted = loss
    weight = np.ones_like(loss)
    best = (None, np.inf)
    for _ in range(6):
        aim = 1 + np.log(loss / fitted)
        coefficients, _ = nnls(basis * (weight / fitted)[:, None], aim * weight)
        fitted = np.maximum(basis @ coefficients, 1e-3 * loss)
        deviation = np.abs(np.log(loss / fitted))
        linear = delta * (deviation - delta / 2)
        huber = np.where(deviation <= delta, deviation**2 / 2, linear).mean()
        settled = huber > best[1] * (1 - 1e-6)
        best = min(best, (coefficients, huber), key=lambda pair: pair[1])
        if settled:
            break
        weight = np.sqrt(np.minimum(1, delta / np.maximum(deviation, 1e-12)))
    return best


def _runs(n: ArrayLike, d: ArrayLike, loss: ArrayLike) -> tuple[np.ndarray, ...]:
    """The runs as positive numbers, enough of them to fit a law to."""
    n = _positive(n, "n")
    d = _positive(d, "d")
    loss = _positive(loss, "loss")
    shapes = (n.shape, d.shape, loss.shape)
    same = n.shape == d.shape == loss.shape and n.ndim == 1
    require(same, "shapes of n, d and loss", shapes, "the same (runs,)")
    few = _too_few(n, d)
    require(few is None, *(few or ("", "", "")))
    return n, d, loss


def _too_few(n: np.ndarray, d: np.ndarray) -> tuple[str, int, str] | None:
    """What of the runs is too little for five parameters: its name, number, and what is needed."""
    for name, values in {"n": n, "d": d}.items():
        found = len(np.unique(values))
        if found < 3:
            return f"different values of {name}", found, "at least 3 to fit a power with"
    found = len({*zip(n, d, strict=True)})
    return ("different runs (n, d)", found, "at least 5 for five parameters") if found < 5 else None


def _undetermined(law: Law, n: np.ndarray, d: np.ndarray) -> str | None:
    """What the runs leave open: parameters that could change without a change of the loss."""
    x, y = (np.log(values) - np.log(values).mean() for values in (n, d))
    of_n, of_d = law.A * n**-law.a, law.B * d**-law.b
    for name, exponent, term in (("n", law.a, of_n), ("d", law.b, of_d)):
        inside = LIMITS[0] * 1.01 < exponent < LIMITS[1] / 1.01
        if not inside or term.max() <= 1e-9 * law.loss(n, d).max():
            return f"{name} has no effect, or one that is no power; add runs with other {name}"
    if _condition(x, y) > CORRELATED:
        found = (
            f"n and d go together (correlation {np.corrcoef(x, y)[0, 1]:.4f} of their logarithms)"
        )
        return f"{found}, and can exchange their exponents; add runs with other d at the same n"
    effects = [of_n, of_d, -of_n * x, -of_d * y]
    if law.E > 0:  # at its limit it is known
        effects.insert(0, np.ones_like(n))
    condition = _condition(*(effect / law.loss(n, d) for effect in effects))
    if condition <= ALIKE:
        return None
    spans = f"n spans a factor {np.exp(np.ptp(x)):.3g}, d {np.exp(np.ptp(y)):.3g}"
    found = f"their terms look alike there (condition {condition:.2g}; {spans})"
    return f"{found}; add runs with smaller and larger n and d, over a decade or more of each"


def _condition(*columns: np.ndarray) -> float:
    """Condition number of columns that are scaled to the same length."""
    return float(np.linalg.cond(np.stack([c / np.linalg.norm(c) for c in columns], 1)))


def _positive(values: ArrayLike, name: str) -> np.ndarray:
    """One positive number, or an array of them, in double precision."""
    alone = np.ndim(values) == 0
    found = positive([values] if alone else values, name).numpy(force=True).astype(float)
    return found[0] if alone else found
