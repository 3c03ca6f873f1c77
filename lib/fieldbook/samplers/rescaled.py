"""The local learning coefficient of one network in many exact rescalings, all of them one stack of
chains.

A cell (alpha, beta) is the unscaled network with another metric (`preconditioners.in_frame`), so
that the cells of a grid differ by two scalars per tensor; noise and minibatches are the same in all
of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fieldbook.grokking.grokker import Grokker
from fieldbook.samplers import calibration, llc, preconditioners, symmetry
from fieldbook.samplers.llc import Sampling
from fieldbook.samplers.preconditioners import named
from fieldbook.samplers.sgmcmc import Gradient

# From a minimum, where gradients vanish, the customary damping of 1e-5 makes a first step that leaves it.
_named = partial(named, psgld_damping=1e-3)
Cell = tuple[float, float]


@dataclass(frozen=True)
class Minimum:
    """A trained network with its train split, on one device, and its Fisher information there.

    Attributes:
        model: at a minimum of its train loss; `pairs` (n, 2), `target` (n,): the train split.
        fisher: (D,), of `llc.fisher_diagonal`.
    """

    model: Grokker
    pairs: Tensor
    target: Tensor
    fisher: Tensor

    @property
    def n_beta(self) -> float:
        """n / log n of the train split."""
        return llc.inverse_temperature(len(self.target))


def traces(
    start: Minimum,
    name: str,
    cells: Sequence[Cell],
    how: Sampling,
    *,
    eps: float | Tensor,
    gamma: float | Tensor,
    n_beta: float | None = None,
) -> Tensor:
    """L(w_t) - L(w*) on the minibatch of each step, (steps, cells, chains), in the unscaled
    network's frame.

    Args:
        eps, gamma: numbers, or (cells,) tensors; `n_beta`: that of `start` unless given.
    """
    w, orbits = llc.flatten(start.model), symmetry.orbits(start.model)
    factors = symmetry.grid_factors(start.model, cells).to(w)[:, None]
    build = _named(name, factors * w, start.fisher / factors**2, orbits)
    framed, points = preconditioners.in_frame(build, factors), w.expand(len(cells), how.chains, -1)
    gradient, n_beta = _gradient(start, start.model, how), n_beta or start.n_beta
    return llc.traces(gradient, points, framed, how, eps=eps, gamma=gamma, n_beta=n_beta)


def direct_trace(
    start: Minimum, name: str, cell: Cell, how: Sampling, *, eps: float, gamma: float
) -> Tensor:
    """The trace (steps, chains) of one cell, sampled in the rescaled network itself: the check of
    `traces`."""
    model = symmetry.rescale(start.model, *cell)
    w, orbits = llc.flatten(model), symmetry.orbits(model)
    fisher = start.fisher / symmetry.grid_factors(start.model, [cell])[0].to(w) ** 2
    build = _named(name, w, fisher, orbits)
    gradient, points = _gradient(start, model, how), w.expand(1, how.chains, -1)
    return llc.traces(gradient, points, build, how, eps=eps, gamma=gamma, n_beta=start.n_beta)[:, 0]


def calibrate(
    start: Minimum, name: str, how: Sampling, *, relaxation: float, target: float, n: int = 18
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """`calibration.calibrate` for a sampler at (1, 1), where samplers are compared; a guess has
    log(classes) nats."""
    w, orbits = llc.flatten(start.model), symmetry.orbits(start.model)
    _, slope = llc.stacked_losses(start.model)(w[None], start.pairs, start.target)
    return calibration.calibrate(
        _gradient(start, start.model, how),
        w,
        _named(name, w, start.fisher, orbits),
        how,
        n_beta=start.n_beta,
        relaxation=relaxation,
        target=target,
        ceiling=start.n_beta * math.log(start.model.p),
        slope=slope[0],
        curvature=partial(llc.largest_curvature, start.model, start.pairs, start.target),
        n=n,
    )


def lengthen(
    start: Minimum, name: str, how: Sampling, *, eps: float, gamma: float
) -> list[dict[str, float]]:
    """`calibration.lengthen` for a sampler at (1, 1)."""
    w, orbits = llc.flatten(start.model), symmetry.orbits(start.model)
    gradient, build = _gradient(start, start.model, how), _named(name, w, start.fisher, orbits)
    rows = calibration.lengthen(gradient, w, build, how, eps=eps, gamma=gamma, n_beta=start.n_beta)
    return [{"sampler": name, **row} for row in rows]


def _gradient(start: Minimum, model: Grokker, how: Sampling) -> Gradient:
    seeds = llc.chain_seeds(how)
    return llc.minibatch_gradient(
        model, start.pairs, start.target, batch_size=how.batch_size, seeds=seeds
    )


@torch.no_grad()
def gate(start: Minimum, cells: Sequence[Cell]) -> list[dict[str, float]]:
    """`max_dlogit` and `loss_star` of each rescaled network on the train split.

    Raises:
        ValueError: a rescaling is not exact (`symmetry.require_exact`).
    """
    reference, found = start.model(start.pairs), []
    for cell in cells:
        logits = symmetry.rescale(start.model, *cell)(start.pairs)
        gap = symmetry.require_exact(float((logits - reference).abs().max()))
        found.append({"max_dlogit": gap, "loss_star": float(cross_entropy(logits, start.target))})
    return found


def rows(
    start: Minimum, name: str, cells: Sequence[Cell], how: Sampling, *, eps: float, gamma: float
) -> list[dict]:
    """One row per cell: the estimate, its standard error over chains, the settings, and what is
    wrong with it.

    Raises:
        ValueError: as `gate`, before anything is sampled.
    """
    passed = gate(start, cells)
    trace = traces(start, name, cells, how, eps=eps, gamma=gamma).cpu().double()
    values, errors = llc.estimate(trace, n_beta=start.n_beta, burn_in=how.burn_in)
    size = {"classes": start.model.p, "dimension": start.fisher.numel()}
    health = llc.health(trace, n_beta=start.n_beta, burn_in=how.burn_in, **size)
    settings = {
        "n_chains": how.chains,
        "n_steps": how.steps,
        "eps": eps,
        "gamma": gamma,
        "n_beta": start.n_beta,
    }
    return [
        {
            "alpha": cell[0],
            "beta": cell[1],
            "llc": float(value),
            "llc_se": float(error),
            **settings,
            **exact,
            "health": flags,
        }
        for cell, value, error, exact, flags in zip(
            cells, values, errors, passed, health, strict=True
        )
    ]


def plain_losses(
    start: Minimum, name: str, cells: Sequence[Cell], how: Sampling, eps: float
) -> Tensor:
    """Mean loss of a few steps without inverse temperature, localisation or burn-in, (cells,): the
    log's "LLC"."""
    at_star, _ = llc.loss_and_gradient_norm(start.model, start.pairs, start.target)
    return at_star + traces(start, name, cells, how, eps=eps, gamma=0.0, n_beta=1.0).mean((0, 2))
