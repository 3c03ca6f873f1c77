"""The scaling law L = E + A / N^a + B / D^b: fit, bootstrap, prediction, and the frontier of
compute.

Source: Hoffmann et al. 2022 (arXiv:2203.15556), approach 3, with its Huber loss on log L. For given
exponents the law is linear in (E, A, B) >= 0, so that only two parameters are searched for:
variable projection, Golub & Pereyra 1973 (SIAM J. Numer. Anal. 10, 413).
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize, nnls

from fieldbook.nn.checks import numbers, positive, require

EXPONENTS = np.array([0.05, 0.15, 0.3, 0.5, 0.8, 1.2, 1.8])  # where the search starts
LIMITS = (
    1e-3,
    3.0,
)  # of an exponent: beyond, a term is a constant or a step over the sizes at hand
CONDITION = (100.0, 1000.0)  # largest of log n and log d, and of what the parameters do to the loss


class Law(NamedTuple):
    """E + A / n^a + B / d^b."""

    E: float
    A: float
    B: float
    a: float
    b: float

    def loss(self, n: np.ndarray, d: np.ndarray) -> np.ndarray:
        """Loss at n parameters and d examples."""
        n, d = _positive(n, "n"), _positive(d, "d")
        return self.E + self.A * n**-self.a + self.B * d**-self.b

    def frontier(self, product: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Parameters and examples of least loss, given their product (that is, compute by the rule
        C = 6 N D).

        Raises:
            ValueError: A, B, a or b is 0, where ever more of n or of d alone is best.
        Source: Hoffmann et al. 2022, equation 4.
        """
        accepted = "positive A, B, a and b: without one of the terms there is no best of both"
        require(min(self[1:]) > 0, "law", self, accepted)
        product, total = _positive(product, "product"), self.a + self.b
        g = (self.a * self.A / (self.b * self.B)) ** (1 / total)
        return g * product ** (self.b / total), product ** (self.a / total) / g


def fit_law(
    n: Sequence[float], d: Sequence[float], loss: Sequence[float], *, delta: float = 0.02
) -> Law:
    """Fit the five parameters by Huber loss on the logarithm of the loss.

    Args:
        n, d: (runs,) parameters and examples of each; `loss`: (runs,).
        delta: the relative deviation from which on a run counts linearly.
    Raises:
        ValueError: sizes differ, a value is not positive and finite, n or d has fewer than three
            values, or fewer than five runs differ in them.
    Warns:
        UserWarning: the runs do not determine all five parameters; says which, and what would.
    """
    n, d, loss = _runs(n, d, loss, delta)
    law = _fit(n, d, loss, delta, [(a, b) for a in EXPONENTS for b in EXPONENTS])
    said = _undetermined(law, n, d)
    if said:
        warnings.warn(f"the runs do not determine {law}: {said}", stacklevel=2)
    return law


def bootstrap(
    n: Sequence[float],
    d: Sequence[float],
    loss: Sequence[float],
    *,
    seed: int,
    repeats: int = 200,
    delta: float = 0.02,
) -> list[Law]:
    """Laws fitted to runs drawn with replacement; draws that `fit_law` would refuse are redrawn."""
    law = fit_law(n, d, loss, delta=delta)
    n, d, loss = _runs(n, d, loss, delta)
    rng, laws = np.random.default_rng(seed), []
    while len(laws) < repeats:
        drawn = rng.integers(len(n), size=len(n))
        if _too_few(n[drawn], d[drawn]) is None:
            laws.append(_fit(n[drawn], d[drawn], loss[drawn], delta, [law[3:]]))
    return laws


def prediction_interval(
    laws: Sequence[Law],
    residuals: np.ndarray,
    n: float,
    d: float,
    *,
    seed: int,
    level: float = 0.95,
) -> tuple[float, float]:
    """Where the loss of one further run is expected: the spread of the bootstrapped laws, and that
    of single runs.

    Args:
        residuals: (runs,) log(loss / fitted) of the runs that were fitted.
    """
    require(len(laws), "laws", laws, "at least one")
    require(0 < level < 1, "level", level, "between 0 and 1")
    residuals = numbers(residuals, "residuals", ndim=1).numpy(force=True)
    rng = np.random.default_rng(seed)
    noise = np.exp(rng.choice(residuals, size=(len(laws), 50)))
    drawn = np.array([law.loss(n, d) for law in laws])[:, None] * noise
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _fit(
    n: np.ndarray,
    d: np.ndarray,
    loss: np.ndarray,
    delta: float,
    starts: Sequence[tuple[float, float]],
) -> Law:
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

    Gauss-Newton on the logarithm, each step a non-negative least squares problem with Huber's
    weights.
    """
    basis, fitted, weight = (
        np.stack([np.ones_like(x), np.exp(-a * x), np.exp(-b * y)], 1),
        loss,
        np.ones_like(loss),
    )
    best = None
    for _ in range(6):
        aim = 1 + np.log(loss / fitted)
        coefficients, _ = nnls(basis * (weight / fitted)[:, None], aim * weight)
        fitted = np.maximum(basis @ coefficients, 1e-3 * loss)
        deviation = np.abs(np.log(loss / fitted))
        huber = np.where(
            deviation <= delta, deviation**2 / 2, delta * (deviation - delta / 2)
        ).mean()
        if best is not None and huber > best[1] * (1 - 1e-6):
            return best if best[1] <= huber else (coefficients, huber)
        best, weight = (
            (coefficients, huber),
            np.sqrt(np.minimum(1, delta / np.maximum(deviation, 1e-12))),
        )
    return best


def _runs(n: object, d: object, loss: object, delta: float) -> tuple[np.ndarray, ...]:
    """The runs as positive numbers, enough of them to fit a law to."""
    require(delta > 0, "delta", delta, "a positive number")
    n, d, loss = _positive(n, "n"), _positive(d, "d"), _positive(loss, "loss")
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
        least, most = LIMITS[0] * 1.01, LIMITS[1] / 1.01
        if not (least < exponent < most and term.max() > 1e-9 * law.loss(n, d).max()):
            return f"{name} has no effect, or one that is no power; add runs with other {name}"
    if _condition(x, y) > CONDITION[0]:
        return (
            f"n and d go together (correlation {np.corrcoef(x, y)[0, 1]:.4f} of their logarithms),"
            " so that their exponents can be exchanged; add runs with other d at the same n"
        )
    terms = [of_n, of_d, -of_n * x, -of_d * y]
    columns = [np.ones_like(n), *terms] if law.E > 0 else terms  # E at its limit is known
    condition = _condition(*(column / law.loss(n, d) for column in columns))
    if condition <= CONDITION[1]:
        return None
    spans = [f"{name} spans a factor {np.exp(np.ptp(z)):.3g}" for name, z in (("n", x), ("d", y))]
    return (
        f"their terms look alike there (condition {condition:.2g}; {', '.join(spans)});"
        " add runs with smaller and larger n and d, over a decade or more of each"
    )


def _condition(*columns: np.ndarray) -> float:
    """Condition number of columns that are scaled to the same length."""
    return float(np.linalg.cond(np.stack([c / np.linalg.norm(c) for c in columns], 1)))


def _positive(values: object, name: str) -> np.ndarray:
    """One positive number, or an array of them, in double precision."""
    alone = np.ndim(values) == 0
    found = positive([values] if alone else values, name).numpy(force=True).astype(float)
    return found[0] if alone else found
