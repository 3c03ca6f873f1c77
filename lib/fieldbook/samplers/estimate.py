"""From traces of losses to a learning coefficient, its error, and whether it is one.

Source: Lau et al. 2023 (arXiv:2308.12108), equation 8.
"""

import math

import torch
from torch import Tensor

from fieldbook.nn.checks import at_least_single, require

FLAGS = ("not finite", "identical chains", "left the basin", "drifting", "negative", "above d/2")
STEP_BIAS = 0.05  # share of d/2 by which a finite step, eps P a up to 0.2, lifts a regular model


def inverse_temperature(n: int) -> float:
    """n_beta = n / log n, at which the estimate is consistent (Watanabe 2013)."""
    require(n >= 2, "n", n, "at least two examples")
    return n / math.log(n)


def estimate(trace: Tensor, *, n_beta: float, burn_in: int) -> tuple[Tensor, Tensor]:
    """lambda_hat and its standard error over the chains (nan for one), (cells,) each.

    Args:
        trace: L(w_t) - L(w*), (steps, cells, chains); the first `burn_in` steps are dropped.
    Raises:
        ValueError: another shape, no step is left after burn-in, or n_beta is not positive.
    """
    shape = tuple(trace.shape)
    require(trace.ndim == 3 and trace.numel(), "shape of trace", shape, "(steps, cells, chains)")
    accepted = f"0 .. {len(trace) - 1}, fewer than the steps"
    require(0 <= burn_in < len(trace), "burn_in", burn_in, accepted)
    require(n_beta > 0, "n_beta", n_beta, "a positive number")
    values = n_beta * at_least_single(trace)[burn_in:].mean(0)
    chains = values.shape[-1]
    unknown = torch.full_like(values[..., 0], math.nan)
    error = values.std(-1) / math.sqrt(chains) if chains > 1 else unknown
    return values.mean(-1), error


def health(
    trace: Tensor, *, n_beta: float, dimension: int, burn_in: int, ceiling: float
) -> list[str]:
    """What is wrong with each cell, `ok` or the flags joined by `+`.

    `identical chains`: several chains, no spread. `left the basin`: lambda_hat exceeds half of the
    ceiling. `drifting`: the last two quarters of the kept steps differ by more than a quarter of
    their mean, and by more than twice the standard error of that difference, from means over fifths
    of the quarters. `negative` and `above d/2`: by more than twice the standard error of the
    estimate, from means over fifths of the kept steps, and for the second by more than `STEP_BIAS`:
    a regular model has d/2, so that half of its estimates exceed it.

    Args:
        trace: as in `estimate`; `dimension`: number of parameters d.
        ceiling: the estimate of a network that guesses, for C classes n_beta log C.
    Raises:
        ValueError: fewer than 8 steps are kept.
    """
    accepted = f"at least 8 fewer than steps = {len(trace)}"
    require(len(trace) - burn_in >= 8, "burn_in", burn_in, accepted)
    value, spread = estimate(trace, n_beta=n_beta, burn_in=burn_in)
    kept = n_beta * at_least_single(trace)[burn_in:]
    _, _, third, last = kept.tensor_split(4)
    before = third.mean((0, 2))
    after = last.mean((0, 2))
    drift = (after - before).abs()
    level = ((after + before) / 2).abs()
    drift_error = (_squared_error(third) + _squared_error(last)).sqrt()
    error = _squared_error(kept).sqrt()
    finite = trace.isfinite().all(0).all(-1)
    wrong = [
        spread == 0,
        value > ceiling / 2,
        (drift > 0.25 * level) & (drift > 2 * drift_error),
        value < -2 * error,
        value - 2 * error > (1 + STEP_BIAS) * dimension / 2,
    ]
    flags = torch.stack([~finite, *(finite & flag for flag in wrong)])
    return [
        "+".join(name for name, on in zip(FLAGS, cell, strict=True) if on) or "ok"
        for cell in flags.T.tolist()
    ]


def _squared_error(part: Tensor) -> Tensor:
    """Squared standard error of the mean of (steps, cells, chains) over steps and chains."""
    fifths = part.tensor_split(min(5, len(part)))
    means = torch.stack([fifth.mean(0) for fifth in fifths], 1).flatten(1)
    return means.var(1) / means.shape[1] if means.shape[1] > 1 else torch.zeros_like(means[:, 0])
