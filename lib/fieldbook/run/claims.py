"""Claims and their verdicts: what a measurement and its error say of a threshold.

A difference counts if it is larger than two standard errors. Where the interval of an estimate
holds the threshold, the claim is *undecided*, however near or far the estimate itself may lie.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

ORIGINS = ("log", "paper", "theory", "ours")
VERDICTS = ("holds", "fails", "undecided", "not tested")
COLUMNS = {  # of `claims.csv`
    "claim": "what is claimed, with its threshold",
    "of": "whose claim it is, one of `ORIGINS`",
    "source": "what the source says",
    "reason": "why the threshold is where it is",
    "entry": "of the page on the logs, for a claim of a log",
    "section": "of the page with the evidence, as it is linked to",
    "found": "what was measured, with its error",
    "low": "end of the interval that decides",
    "high": "its other end",
    "above": "the claim is that the estimate lies above this",
    "below": "or below this, or between the two",
    "verdict": "one of `VERDICTS`",
    "first": "is it one of the three that matter most?",
}
EVIDENT = (-np.inf, 0.0, 1.0, np.inf)  # thresholds that need no reason: no difference, equal


def judge(
    estimate: float | Sequence[float],
    error: float | Sequence[float] | None = None,
    *,
    interval: tuple[Sequence[float], Sequence[float]] | None = None,
    above: float = -np.inf,
    below: float = np.inf,
) -> tuple[str, float, float]:
    """The verdict on "the estimate lies above one threshold and below the other".

    Several estimates must all do so: the claim fails if one of them does not, holds if all do, and
    is undecided otherwise. One without a finite interval, as the mean of a single run, decides
    nothing.

    Args:
        estimate: (n,) or a number.
        error: its standard error, of the same shape or a number; the interval is two of them to
            each side. 0 for what is exact.
        interval: (low, high) instead of that, of 95 %, as of a bootstrap.
        above, below: at least one of them is given.
    Returns:
        Verdict, and both ends of the interval that has decided.
    Raises:
        ValueError: no threshold, no estimate, or neither or both of `error` and `interval`.
    """
    if not (above > -np.inf or below < np.inf) or not above < below:
        raise ValueError(f"above = {above}, below = {below}: expected a threshold, or two in order")
    if (error is None) == (interval is None):
        raise ValueError("expected the standard error of an estimate, or its interval, not both")
    middle = np.atleast_1d(np.asarray(estimate, float))
    if middle.size == 0:
        raise ValueError("no estimate to be judged")
    if interval is None:
        half = 2 * np.asarray(error, float)
        interval = (middle - half, middle + half)
    low, high = np.broadcast_arrays(*np.atleast_1d(*interval), middle)[:2]
    known = np.isfinite(low) & np.isfinite(high)
    room = np.where(known, np.minimum(low - above, below - high), -np.inf)  # inside, if positive
    beyond = np.where(known, np.maximum(above - high, low - below), -np.inf)  # outside, if so
    if beyond.max() > 0:
        decisive = beyond.argmax()
        verdict = "fails"
    else:
        decisive = room.argmin()
        verdict = "holds" if room[decisive] > 0 else "undecided"
    return verdict, float(low[decisive]), float(high[decisive])


def read_claims(file: Path) -> pd.DataFrame:
    """A chapter's claims, one row each, all columns as text.

    Raises:
        ValueError: the table is damaged; names it.
    """
    try:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    except ValueError as error:
        problem = f"{file} is no table of claims ({error})"
        raise ValueError(f"{problem}; run its chapter again") from error
    if list(frame) != [*COLUMNS] or not set(frame.verdict) <= set(VERDICTS):
        columns = ", ".join(COLUMNS)
        expected = f"expected the columns {columns}, with a verdict of {', '.join(VERDICTS)}"
        raise ValueError(f"{file} is no table of claims: {expected}; run its chapter again")
    return frame
