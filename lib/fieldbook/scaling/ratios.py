"""Ratios of excess risks as they were measured, with what seeds and test days leave open in them.

A question about runs, such as "by how much does doubled data lower the risk?", is a weighted sum of
the cells' log risks. No law is assumed, so that the intervals hold whether or not one fits.
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import t as student

from fieldbook.nn.checks import positive, require


@dataclass(frozen=True)
class Risks:
    """Log risks of cells: runs that differ in nothing but their seed.

    Attributes:
        log: (cell,) of the mean over seeds and test days.
        without: (cell, day) the same without that day.
        runs: (cell,) number of seeds; infinite for what no seed changes.
        scatter: standard deviation of a run's log risk about its cell's, pooled over all cells, and
            `freedom`, its degrees of freedom.
    """

    log: pd.Series
    without: pd.DataFrame
    runs: pd.Series
    scatter: float
    freedom: int

    def ratio(self, weights: Mapping[Hashable, float]) -> tuple[float, float, float]:
        """exp(sum of weight times log risk) and its 95 % interval; nan where one seed is all.

        The weights `{a: 1, b: -1}` give risk of a over risk of b. Test days are common to all cells
        and their luck cancels as far as they share it (jackknife); seeds are independent.

        Raises:
            KeyError: an unknown cell.
        """
        w = pd.Series(dict(weights), dtype=float)
        cells = list(w.index)
        middle = w.to_numpy() @ self.log[cells].to_numpy()
        left_out = w.to_numpy() @ self.without.loc[cells].to_numpy()
        days = len(left_out)
        of_days = np.sqrt((days - 1) * left_out.var()) * student.ppf(0.975, days - 1)
        share = np.sqrt(np.sum(w.to_numpy() ** 2 / self.runs[cells].to_numpy()))
        of_seeds = 0.0
        if share > 0:
            of_seeds = share * self.scatter * student.ppf(0.975, self.freedom or np.nan)
        half = np.hypot(of_days, of_seeds)
        low, middle, high = np.exp([middle - half, middle, middle + half])
        return float(middle), float(low), float(high)


def per_doubling(amounts: Mapping[Hashable, float]) -> pd.Series:
    """Weights of the change of log risk by a doubling of what cells have different amounts of.

    It is the slope of a straight line through the cells, all alike in what else they may differ in.
    """
    doublings = np.log2(pd.Series(dict(amounts), dtype=float))
    centred = doublings - doublings.mean()
    return centred / (centred**2).sum()


def at_compute(
    risks: Risks, cost: Mapping[Hashable, float], amounts: Sequence[float], budget: float
) -> tuple[pd.Series, tuple[float, float, float]]:
    """An IsoFLOP curve: the risk of each model at one budget of compute.

    A model's log risk is interpolated in the logarithm of its amount of data, budget / cost.

    Args:
        risks: of cells (model, amount). `cost`: by model, ascending, of one example.
        amounts: ascending, at which all models were trained.
    Returns:
        The risks of models whose runs reach that amount, and the ratio of the best inner model's to
        that of the better outer one, with its interval; nan where there is no inner one.
    """
    cells = {}
    for model, one in cost.items():
        amount = budget / one
        if amounts[0] * (1 - 1e-6) <= amount <= amounts[-1] * (1 + 1e-6):
            place = float(np.interp(np.log(amount), np.log(amounts), range(len(amounts))))
            low = min(int(place), len(amounts) - 2)
            shares = {amounts[low]: 1 + low - place, amounts[low + 1]: place - low}
            cells[model] = {(model, amount): share for amount, share in shares.items()}
    curve = pd.Series({model: risks.ratio(weights)[0] for model, weights in cells.items()})
    if len(curve) < 3:
        return curve, (np.nan, np.nan, np.nan)
    inner = curve.iloc[1:-1].idxmin()
    outer = curve.iloc[[0, -1]].idxmin()
    rest = {cell: -weight for cell, weight in cells[outer].items()}
    return curve, risks.ratio(cells[inner] | rest)


def risks(frame: pd.DataFrame, exact: Collection[Hashable] = ()) -> Risks:
    """Cells of a table of runs.

    Args:
        frame: one row per run and test day, with the columns `seed`, `day` and `excess_risk`; all
            others name the cell.
        exact: cells whose forecast no seed changes.
    Raises:
        ValueError: a risk is not positive, a run lacks a day, or there are fewer than two days.
    """
    names = [name for name in frame if name not in ("seed", "day", "excess_risk")]
    table = frame.pivot(index=[*names, "seed"], columns="day", values="excess_risk")
    positive(table.to_numpy().ravel(), "excess_risk")
    require(table.shape[1] > 1, "test days", table.shape[1], "at least 2, to know their luck")
    cells = table.groupby(level=names).mean()
    days = cells.shape[1]
    without = cells.rsub(cells.sum(axis=1), axis=0) / (days - 1)
    runs = table.groupby(level=names).size().astype(float)
    runs[list(exact)] = np.inf
    scattered, freedom = scatter(np.log(table.mean(axis=1)), names)
    return Risks(np.log(cells.mean(axis=1)), np.log(without), runs, scattered, freedom)


def scatter(values: pd.Series, cells: Collection[str]) -> tuple[float, int]:
    """Standard deviation about the mean of a cell, pooled over all, and its degrees of freedom.

    Args:
        values: one per run; `cells`: levels of its index.
    Returns:
        nan and 0 if no cell has two runs.
    """
    groups = values.groupby(level=list(cells))
    freedom = int((groups.size() - 1).sum())
    squares = float(((values - groups.transform("mean")) ** 2).sum())
    return (np.sqrt(squares / freedom) if freedom else np.nan), freedom
