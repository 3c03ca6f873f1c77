"""The local learning coefficient of one network in many exact rescalings, one stack of chains.

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
from fieldbook.nn.functional import flatten, stacked_losses
from fieldbook.samplers import calibration, llc, symmetry
from fieldbook.samplers.curvature import largest_curvature, loss_and_gradient_norm
from fieldbook.samplers.estimate import estimate, health, inverse_temperature
from fieldbook.samplers.llc import Sampling
from fieldbook.samplers.preconditioners import Preconditioner, in_frame, named
from fieldbook.samplers.sgmcmc import Gradient

# From a minimum, where gradients vanish, the customary 1e-5 makes a first step that leaves it.
DAMPING = 1e-3
Cell = tuple[float, float]


@dataclass(frozen=True)
class Minimum:
    """A trained network with its train split, on one device, and its Fisher information there.

    Attributes:
        model: at a minimum of its train loss; `pairs` (n, 2), `target` (n,): the train split.
        fisher: (D,), of `curvature.fisher_diagonal`.
    """

    model: Grokker
    pairs: Tensor
    target: Tensor
    fisher: Tensor

    @property
    def n_beta(self) -> float:
        """n / log n of the train split."""
        return inverse_temperature(len(self.target))

    @property
    def guessing(self) -> float:
        """The estimate of a network that guesses."""
        return self.n_beta * math.log(self.model.p)

    def sampler(self, name: str, factors: Tensor | float = 1.0) -> Preconditioner:
        """A sampler of the weights multiplied by factors."""
        w = flatten(self.model)
        orbits = symmetry.orbits(self.model)
        return named(name, factors * w, self.fisher / factors**2, orbits, psgld_damping=DAMPING)

    def gradient(self, how: Sampling, model: Grokker | None = None) -> Gradient:
        """Of the train loss of the network, or of a rescaled one."""
        size = how.batch_size
        seeds = llc.chain_seeds(how)
        data = model or self.model, self.pairs, self.target
        return llc.minibatch_gradient(*data, batch_size=size, seeds=seeds)


def traces(
    start: Minimum,
    name: str,
    cells: Sequence[Cell],
    how: Sampling,
    *,
    eps: float,
    gamma: float,
    n_beta: float | None = None,
) -> Tensor:
    """L(w_t) - L(w*) on the minibatch of each step, (steps, cells, chains), in the unscaled frame.

    Args:
        n_beta: that of `start` unless given.
    """
    w = flatten(start.model)
    n_beta = n_beta or start.n_beta
    factors = symmetry.grid_factors(start.model, cells).to(w)[:, None]
    framed = in_frame(start.sampler(name, factors), factors)
    points = w.expand(len(cells), how.chains, -1)
    return llc.traces(start.gradient(how), points, framed, how, eps=eps, gamma=gamma, n_beta=n_beta)


def direct_trace(
    start: Minimum, name: str, cell: Cell, how: Sampling, *, eps: float, gamma: float
) -> Tensor:
    """The trace (steps, chains) of one cell in the rescaled network itself: checks `traces`."""
    model = symmetry.rescale(start.model, *cell)
    w = flatten(model)
    factors = symmetry.grid_factors(start.model, [cell])[0].to(w)
    build = named(name, w, start.fisher / factors**2, symmetry.orbits(model), psgld_damping=DAMPING)
    gradient = start.gradient(how, model)
    points = w.expand(1, how.chains, -1)
    return llc.traces(gradient, points, build, how, eps=eps, gamma=gamma, n_beta=start.n_beta)[:, 0]


def calibrate(
    start: Minimum, name: str, how: Sampling, *, relaxation: float, target: float, n: int = 18
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """`calibration.calibrate` for a sampler at (1, 1), where samplers are compared."""
    w = flatten(start.model)
    split = (start.pairs, start.target)
    _, slope = stacked_losses(start.model)(w[None], *split)
    return calibration.calibrate(
        start.gradient(how),
        w,
        start.sampler(name),
        how,
        n_beta=start.n_beta,
        relaxation=relaxation,
        target=target,
        ceiling=start.guessing,
        slope=slope[0],
        curvature=partial(largest_curvature, start.model, *split),
        n=n,
    )


def lengthen(
    start: Minimum, name: str, how: Sampling, *, eps: float, gamma: float
) -> list[dict[str, float]]:
    """`calibration.lengthen` for a sampler at (1, 1)."""
    chain = start.gradient(how), flatten(start.model), start.sampler(name)
    rows = calibration.lengthen(*chain, how, eps=eps, gamma=gamma, n_beta=start.n_beta)
    return [{"sampler": name, **row} for row in rows]


@torch.no_grad()
def gate(start: Minimum, cells: Sequence[Cell]) -> list[dict[str, float]]:
    """`max_dlogit` and `loss_star` of each rescaled network on the train split.

    Raises:
        ValueError: a rescaling is not exact (`symmetry.require_exact`).
    """
    reference = start.model(start.pairs)
    found = []
    for cell in cells:
        logits = symmetry.rescale(start.model, *cell)(start.pairs)
        gap = symmetry.require_exact(float((logits - reference).abs().max()))
        found.append({"max_dlogit": gap, "loss_star": float(cross_entropy(logits, start.target))})
    return found


def rows(
    start: Minimum, name: str, cells: Sequence[Cell], how: Sampling, *, eps: float, gamma: float
) -> list[dict]:
    """One row per cell: the estimate, its error over chains, the settings, and what is wrong.

    Raises:
        ValueError: as `gate`, before anything is sampled.
    """
    passed = gate(start, cells)
    n_beta = start.n_beta
    trace = traces(start, name, cells, how, eps=eps, gamma=gamma).cpu().double()
    values, errors = estimate(trace, n_beta=n_beta, burn_in=how.burn_in)
    d = start.fisher.numel()
    top = start.guessing
    flags = health(trace, n_beta=n_beta, burn_in=how.burn_in, dimension=d, ceiling=top)
    settings = {"n_chains": how.chains, "n_steps": how.steps}
    settings |= {"eps": eps, "gamma": gamma, "n_beta": n_beta}
    found = []
    for k, (alpha, beta) in enumerate(cells):
        row = {"alpha": alpha, "beta": beta, "llc": float(values[k]), "llc_se": float(errors[k])}
        found.append({**row, **settings, **passed[k], "health": flags[k]})
    return found


def plain_losses(
    start: Minimum, name: str, cells: Sequence[Cell], how: Sampling, eps: float
) -> Tensor:
    """Mean loss of a few steps at n_beta = 1, nothing localised or dropped, (cells,): the log's."""
    at_star, _ = loss_and_gradient_norm(start.model, start.pairs, start.target)
    return at_star + traces(start, name, cells, how, eps=eps, gamma=0.0, n_beta=1.0).mean((0, 2))
