"""Preconditioners of Langevin samplers, each a build -> (init, update) pair over flat parameter vectors.

`update(state, w, g)` sees the current point and the minibatch gradient, and returns what one step of
`fieldbook.samplers.sgmcmc` needs: the preconditioner P, the metric A of the localisation, and the drift Gamma = div P.
When a tensor is scaled by c, P acts on the unscaled tensor as P / c^2: SGLD's step then shrinks as c^-2, pSGLD's as
c^-1, that of the rule that divides by the squared norm as c^-4, and those of `rsgld` and `si_sgld` not at all.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Metric(NamedTuple):
    """P, A and Gamma, each (..., D) or broadcastable to it."""

    preconditioner: Tensor
    localization: Tensor
    drift: Tensor


State = Tensor | None
Update = Callable[[State, Tensor, Tensor], tuple[Metric, State]]
Preconditioner = tuple[Callable[[Tensor], State], Update]


def sgld() -> Preconditioner:
    """P = 1, A = 1. Source: Welling & Teh 2011."""

    def update(state: State, w: Tensor, g: Tensor) -> tuple[Metric, State]:
        return Metric(torch.ones_like(w), torch.ones_like(w), torch.zeros_like(w)), state

    return _stateless, update


def psgld(*, decay: float = 0.99, damping: float = 1e-5) -> Preconditioner:
    """P = 1 / (sqrt(V) + damping) with V the bias-corrected moving average of g^2, A = 1.

    Gamma is dropped, as the paper recommends. Source: Li et al. 2016 (arXiv:1512.07666), algorithm 1.
    """

    def init(w: Tensor) -> Tensor:
        return torch.zeros(2, *w.shape, dtype=w.dtype, device=w.device)  # moving average, and its total weight

    def update(state: Tensor, w: Tensor, g: Tensor) -> tuple[Metric, Tensor]:
        state = decay * state + (1 - decay) * torch.stack([g.square(), torch.ones_like(g)])
        preconditioner = 1 / ((state[0] / state[1]).sqrt() + damping)
        return Metric(preconditioner, torch.ones_like(w), torch.zeros_like(w)), state

    return init, update


def rsgld(fisher: Tensor, orbits: Sequence[Tensor], *, damping: float = 1e-2) -> Preconditioner:
    """P = 1 / (F + damping * mean of F over the orbit), frozen, A = 1 / P.

    The damping is covariant: it scales with the Fisher information of the coordinates that scale together.

    Args:
        fisher: (..., D) mean squared per-example gradients at the start, in the coordinates sampled.
        orbits: index tensors that partition 0 .. D-1 into the tensors that a symmetry scales together.
    Source: Patterson & Teh 2013, *Stochastic gradient Riemannian Langevin dynamics on the probability simplex*.
    """
    return _frozen(1 / (fisher + damping * _over_orbits(fisher, orbits)))


def si_sgld(w_star: Tensor, orbits: Sequence[Tensor]) -> Preconditioner:
    """P = mean squared weight of the orbit at w*, frozen, A = 1 / P: steps stretch with the size of what they move.

    Args:
        w_star: (..., D) where the chain starts; `orbits`: as in `rsgld`.
    """
    return _frozen(_over_orbits(w_star.square(), orbits))


def si_adaptive(w_star: Tensor, orbits: Sequence[Tensor]) -> Preconditioner:
    """P = mean squared weight of the orbit at the current point, A = 1 / P(w*), Gamma = div P = 2 w / (orbit size)."""
    start = _over_orbits(w_star.square(), orbits)
    size = torch.empty_like(w_star)
    for orbit in orbits:
        size[..., orbit] = len(orbit)

    def update(state: State, w: Tensor, g: Tensor) -> tuple[Metric, State]:
        return Metric(_over_orbits(w.square(), orbits), _inverse(start), 2 * w / size), state

    return _stateless, update


def si_div(orbits: Sequence[Tensor], *, damping: float = 1e-8) -> Preconditioner:
    """P = 1 / (squared norm of the orbit + damping), A = 1: the source log's rule, kept as the negative control."""

    def update(state: State, w: Tensor, g: Tensor) -> tuple[Metric, State]:
        norm = _over_orbits(w.square(), orbits, torch.sum)
        return Metric(1 / (norm + damping), torch.ones_like(w), torch.zeros_like(w)), state

    return _stateless, update


def in_frame(build: Preconditioner, factors: Tensor) -> Preconditioner:
    """A preconditioner of scaled coordinates c w, seen from the unscaled w.

    With w' = c w the gradient is g / c, and a step of w' is a step of w with P / c^2, A c^2 and Gamma / c: a cell of a
    rescaling grid is the unscaled network with another metric.

    Args:
        factors: (..., D) c, one row per cell.
    """
    init, update = build

    def framed(state: State, w: Tensor, g: Tensor) -> tuple[Metric, State]:
        metric, state = update(state, factors * w, g / factors)
        p, a, drift = metric
        return Metric(p / factors**2, a * factors**2, drift / factors), state

    return init, framed


def _frozen(preconditioner: Tensor) -> Preconditioner:
    metric = Metric(preconditioner, _inverse(preconditioner), torch.zeros_like(preconditioner))
    return _stateless, lambda state, w, g: (metric, state)


def _stateless(w: Tensor) -> None:
    return None


def _inverse(x: Tensor) -> Tensor:
    """1 / x, and 0 where x is 0: a coordinate that does not move needs no localisation."""
    return torch.where(x > 0, 1 / x, torch.zeros_like(x))


def _over_orbits(x: Tensor, orbits: Sequence[Tensor], reduce: Callable[..., Tensor] = torch.mean) -> Tensor:
    result = torch.empty_like(x)
    for orbit in orbits:
        result[..., orbit] = reduce(x[..., orbit], -1, keepdim=True)
    return result
