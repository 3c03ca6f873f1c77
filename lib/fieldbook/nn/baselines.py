"""Scores of a regression, and the two baselines that every learned regressor is shown beside."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import lightgbm
import numpy as np
from scipy.linalg import cho_factor, cho_solve
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from fieldbook.nn.checks import numbers, require

ALPHAS = tuple(10.0**k for k in range(-2, 6))


def scores(target: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """R2, RMSE and MAE, the last two in the target's unit.

    Args:
        target, prediction: (n,).
    Raises:
        ValueError: targets do not differ, which leaves R2 without a meaning.
    """
    target = numbers(target, "target", ndim=1, least=2).numpy(force=True).astype(float)
    prediction = numbers(prediction, "prediction", shape=target.shape).numpy(force=True)
    require(np.ptp(target) > 0, "target", float(target[0]), "values that differ")
    measures = {"r2": r2_score, "rmse": root_mean_squared_error, "mae": mean_absolute_error}
    return {name: float(of(target, prediction.astype(float))) for name, of in measures.items()}


@dataclass(frozen=True)
class Linear:
    """A fitted ridge regression; `predict((n, features))` gives (n,)."""

    coefficients: np.ndarray  # (features,), of the features as they come
    intercept: float
    alpha: float

    def predict(self, features: np.ndarray) -> np.ndarray:
        features = numbers(features, "features", shape=(None, len(self.coefficients)))
        return features.numpy(force=True) @ self.coefficients + self.intercept


def ridge(
    features: np.ndarray,
    target: np.ndarray,
    validation: tuple[np.ndarray, np.ndarray],
    alphas: Sequence[float] = ALPHAS,
) -> Linear:
    """Ridge regression on standardised features, with the penalty that validates best.

    One Gram matrix, of the features or of the samples, whichever are fewer, serves all penalties,
    which is why this is not scikit-learn's `Ridge`: that forms it anew for each.

    Args:
        features: (n, features); constant ones get no weight. `target`: (n,).
        validation: features and target to choose by.
        alphas: factors of the squared norm of the weights, beside the sum (not the mean) of squared
            errors.
    Raises:
        ValueError: no penalty is positive and allowed by the features' precision.
    """
    accepted = "penalties above 0, with which collinear features have one solution"
    require(len(alphas) and min(alphas) > 0, "alphas", list(alphas), accepted)
    features, target = _table(features, target, "", 2)
    new, answers = _table(*validation, "validation ", 1)
    same = new.shape[1] == features.shape[1]
    accepted = f"{features.shape[1]} features, as were fitted"
    require(same, "shape of validation features", new.shape, accepted)
    mean = features.mean(0, dtype=float)
    spread = features.std(0, dtype=float)
    least = features.min(0)
    most = features.max(0)
    rounding = np.finfo(features.dtype).eps * np.maximum(most, -least)
    varies = (most > least) & (spread > rounding)
    scale = np.divide(1, spread, out=np.zeros_like(spread), where=varies)
    standard = features - mean.astype(features.dtype)
    standard *= scale.astype(features.dtype)
    centre = float(np.mean(target, dtype=float))
    wide = len(standard) < standard.shape[1]
    deviation = target - centre
    rows = standard if wide else standard.T  # if wide, the weights are sums of samples
    gram = (rows @ rows.T).astype(float)
    moment = (deviation if wide else rows @ deviation).astype(float)

    def fitted(alpha: float) -> Linear | None:
        try:
            factor = cho_factor(gram + alpha * np.eye(len(gram)), overwrite_a=True)
        except np.linalg.LinAlgError:  # collinear features, a penalty below their rounding errors
            return None
        solved = cho_solve(factor, moment)
        weights = (rows.T @ solved if wide else solved) * scale
        return Linear(weights, centre - float(mean @ weights), alpha)

    def error(model: Linear) -> float:
        return float(np.mean((model.predict(new) - answers) ** 2))

    found = [model for model in map(fitted, alphas) if model is not None]
    accepted = f"some that are large enough for features this collinear in {features.dtype}"
    require(found, "alphas", list(alphas), accepted)
    return min(found, key=error)


def boosted_trees(
    features: np.ndarray,
    target: np.ndarray,
    *,
    seed: int = 0,
    threads: int = 1,
    trees: int = 400,
    leaves: int = 31,
    share: float = 0.2,
    bins: int = 63,
) -> lightgbm.LGBMRegressor:
    """Gradient-boosted trees, deterministic for a seed and a number of threads.

    Args:
        features: (n, features); `target`: (n,).
        share: of the features that each tree may split on.
        bins: values of a feature that are told apart; a quarter of the library's default, at a
            third of its time.
    Warns:
        UserWarning: fewer than 40 samples: a leaf holds 20 of them, and no tree splits.
    Source: Ke et al. 2017 (NeurIPS 30), LightGBM.
    """
    features, target = _table(features, target, "", 2)
    if len(features) < 40:
        said = "all predictions are their mean; expected at least 40, two leaves of 20"
        warnings.warn(f"trees of {len(features)} samples: {said}", stacklevel=2)
    model = lightgbm.LGBMRegressor(
        n_estimators=trees,
        num_leaves=leaves,
        colsample_bytree=share,
        random_state=seed,
        n_jobs=threads,
        deterministic=True,
        force_col_wise=True,
        max_bin=bins,
        verbose=-1,
    )
    return model.fit(features, target)


def _table(features: object, target: object, name: str, least: int) -> tuple[np.ndarray, ...]:
    features = numbers(features, f"{name}features", ndim=2, least=least)
    target = numbers(target, f"{name}target", shape=(len(features),))
    return features.numpy(force=True), target.numpy(force=True)
