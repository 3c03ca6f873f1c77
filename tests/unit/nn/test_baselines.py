"""Scores by hand, ridge against scikit-learn, trees that repeat themselves."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from fieldbook.nn.baselines import boosted_trees, ridge, scores


def data(n=60, features=8, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features)) * rng.uniform(0.1, 10, features) + 3
    return x, x @ rng.normal(size=features) + rng.normal(size=n) + 2


def test_scores_by_hand():
    found = scores(np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 3.0]))
    assert found == pytest.approx({"r2": 0.5, "rmse": 3**-0.5, "mae": 1 / 3})


@pytest.mark.parametrize("norm", [lambda y: (y - 3) / 0.7, lambda y: (y - 1) / 4])
def test_r2_knows_no_unit_and_mae_does(norm):
    x, y = data()
    guess = ridge(x, y, (x, y)).predict(x)
    raw, normed = scores(y, guess), scores(norm(y), norm(guess))
    assert normed["r2"] == pytest.approx(raw["r2"], abs=1e-12)
    assert normed["mae"] == pytest.approx(raw["mae"] * (norm(1.0) - norm(0.0)))


@pytest.mark.parametrize("wrong", [np.zeros(2), np.zeros((3, 1)), np.array([0, 1, np.nan])])
def test_scores_refuse_what_does_not_fit(wrong):
    with pytest.raises(ValueError):
        scores(np.arange(3.0), wrong)


@pytest.mark.parametrize("features", [8, 90])
@pytest.mark.parametrize("alpha", [0.1, 10.0, 1000.0])
def test_ridge_agrees_with_scikit_learn(alpha, features):
    (x, y), (new, _) = data(features=features), data(features=features, seed=1)
    scaler = StandardScaler().fit(x)
    peer = Ridge(alpha=alpha).fit(scaler.transform(x), y)
    np.testing.assert_allclose(
        ridge(x, y, (x, y), [alpha]).predict(new), peer.predict(scaler.transform(new)), rtol=1e-9
    )


def test_ridge_takes_the_penalty_that_validates_best():
    x, y = data()
    assert ridge(x, y, (x, y)).alpha == 1e-2
    assert (
        ridge(x, y, (x, 2 * y.mean() - y)).alpha == 1e5
    )  # where the slope is reversed, none is best


def test_constant_features_get_no_weight():
    x, y = data()
    x = np.hstack([x, np.full((len(x), 1), 0.1)])
    assert ridge(x, y, (x, y)).coefficients[-1] == 0


def test_ridge_names_a_nan():
    x, y = data()
    x[3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        ridge(x, y, (x, y))
    with pytest.raises(ValueError, match="alphas"):
        ridge(*data(), data(), [])


def test_trees_learn_and_repeat_themselves():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 5))
    y = np.abs(x[:, 0]) + x[:, 1] * x[:, 2]
    one, two = (
        boosted_trees(x[:300], y[:300], seed=3, trees=50, share=0.6).predict(x[300:])
        for _ in range(2)
    )
    assert np.array_equal(one, two)
    assert scores(y[300:], one)["r2"] > 0.5
    assert not np.array_equal(
        one, boosted_trees(x[:300], y[:300], seed=4, trees=50, share=0.6).predict(x[300:])
    )


def test_penalties_below_the_rounding_errors_are_left_out():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(50, 1)) + 1e-9 * rng.normal(size=(50, 300))).astype(np.float32)
    y = x[:, 0] + 1
    found = ridge(x, y, (x, y))
    assert found.alpha > 1e-9 and scores(y, found.predict(x))["r2"] > 0.99
    with pytest.raises(ValueError, match="collinear"):
        ridge(x, y, (x, y), [-1.0])
