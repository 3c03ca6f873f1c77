"""Preconditioners of Langevin samplers, each a build -> (init, update) pair over flat parameters.

`update(state, w, g)` sees the current point and the minibatch gradient, and returns what one step
of `fieldbook.samplers.sgmcmc` needs: the preconditioner P, the metric A of the localisation, and
the drift Gamma = div P. When a tensor is scaled by c, P acts on the unscaled tensor as P / c^2: the
step shrinks as c^-`power`. RMSProp-SGLD is `psgld`. To add a sampler: a builder and a row of
`SAMPLERS`; for its heat maps, its name among the parameter `samplers` of chapter si_sgld.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fieldbook.nn.checks import require


class Metric(NamedTuple):
    """P, A and Gamma, each (..., D) or broadcastable to it; a Gamma without axes is none."""

    preconditioner: Tensor
    localization: Tensor
    drift: Tensor


NONE = torch.zeros(())  # no drift; on the CPU, where asking costs no wait for the device
State = Any
Update = Callable[[State, Tensor, Tensor], tuple[Metric, State]]
Preconditioner = tuple[Callable[[Tensor], State], Update]


def sgld() -> Preconditioner:
    """P = 1, A = 1. Source: Welling & Teh 2011."""

    def update(state: State, w: Tensor, g: Tensor) -> tuple[Metric, State]:
        one = torch.ones((), dtype=torch.float64, device=w.device)
        return Metric(one, one, NONE), state

    return _stateless, update


def psgld(*, decay: float = 0.99, damping: float = 1e-5) -> Preconditioner:
    """P = 1 / (sqrt(V) + damping), V the bias-corrected moving average of g^2, A = 1.

    Gamma is dropped, as the paper recommends. Source: Li et al. 2016 (arXiv:1512.07666), algorithm
    1.
    """

    def init(w: Tensor) -> State:
        return torch.zeros_like(w), 0.0  # moving average of g^2, and the total weight in it

    def update(state: State, w: Tensor, g: Tensor) -> tuple[Metric, State]:
        average = torch.lerp(g.square(), state[0], decay)
        weight = decay * state[1] + 1 - decay
        preconditioner = 1 / ((average / weight).sqrt() + damping)
        return Metric(preconditioner, w.new_ones(()), NONE), (average, weight)

    return init, update


def rsgld(fisher: Tensor, orbits: Sequence[Tensor], *, damping: float = 1.0) -> Preconditioner:
    """P = 1 / (F + damping * mean of F over the orbit), frozen, A = 1 / P.

    The damping is covariant: it scales with the Fisher information of the coordinates that scale
    together.

    Args:
        fisher: (..., D) mean squared per-example gradients at the start, in the coordinates
            sampled.
        orbits: index tensors that partition 0 .. D-1 into the tensors that a symmetry scales
            together. One without information, on which the loss does not depend, stays where it is.
    Source: Patterson & Teh 2013, *Stochastic gradient Riemannian Langevin dynamics on the
    probability simplex*.
    """
    _require_partition(orbits, fisher.shape[-1])
    return _frozen(_inverse(fisher + damping * _over_orbits(fisher, orbits)))


def si_sgld(w_star: Tensor, orbits: Sequence[Tensor]) -> Preconditioner:
    """P = mean squared weight of the orbit at w*, frozen, A = 1 / P: steps stretch with its size.

    Args:
        w_star: (..., D) where the chain starts; `orbits`: as in `rsgld`.
    Warns:
        UserWarning: an orbit is zero at w*, so that no step moves it.
    """
    _require_partition(orbits, w_star.shape[-1])
    still = [k for k, orbit in enumerate(orbits) if not w_star[..., orbit].any()]
    if still:
        size = sum(len(orbits[k]) for k in still)
        problem = f"w_star is zero in orbits {still}: {size} coordinates will not be sampled"
        warnings.warn(problem, stacklevel=2)
    return _frozen(_over_orbits(w_star.square(), orbits))


def si_adaptive(w_star: Tensor, orbits: Sequence[Tensor]) -> Preconditioner:
    """P = mean squared weight of the orbit now, A = 1 / P(w*), Gamma = div P = 2 w / (its size)."""
    _require_partition(orbits, w_star.shape[-1])
    start = _over_orbits(w_star.square(), orbits)
    size = torch.empty_like(w_star)
    for orbit in orbits:
        size[..., orbit] = len(orbit)

    def update(state: State, w: Tensor, g: Tensor) -> tuple[Metric, State]:
        return Metric(_over_orbits(w.square(), orbits), _inverse(start), 2 * w / size), state

    return _stateless, update


def si_div(orbits: Sequence[Tensor], *, damping: float = 1e-8) -> Preconditioner:
    """P = 1 / (squared norm of the orbit + damping), A = 1: the source log's rule, a control."""

    def init(w: Tensor) -> State:
        _require_partition(orbits, w.shape[-1])

    def update(state: State, w: Tensor, g: Tensor) -> tuple[Metric, State]:
        norm = _over_orbits(w.square(), orbits, torch.sum)
        return Metric(1 / (norm + damping), w.new_ones(()), NONE), state

    return init, update


class Start(NamedTuple):
    """What samplers are made of: w* and the Fisher information there (..., D), orbits, and the
    damping of `psgld`."""

    w_star: Tensor
    fisher: Tensor
    orbits: Sequence[Tensor]
    damping: float


class Sampler(NamedTuple):
    """All that the book knows of a sampler.

    Attributes:
        power: its step in a tensor scaled by c goes as c^-power; 0: it does not see a rescaling.
        label, mark: in figures; colour, marker and line as matplotlib writes them, as C0o-: figures
            of points take its first three characters.
        proper: it samples the density that it states.
    """

    build: Callable[[Start], Preconditioner]
    power: int
    label: str
    mark: str
    proper: bool = True


SAMPLERS = {
    "sgld": Sampler(lambda at: sgld(), 2, "SGLD", "C0s--"),
    "psgld": Sampler(lambda at: psgld(damping=at.damping), 1, "pSGLD", "C5D-.", proper=False),
    "rsgld": Sampler(lambda at: rsgld(at.fisher, at.orbits), 0, "Riemannian SGLD", "C2^-"),
    "si_sgld": Sampler(lambda at: si_sgld(at.w_star, at.orbits), 0, "SI-SGLD", "C1o-"),
    "si_adaptive": Sampler(lambda at: si_adaptive(at.w_star, at.orbits), 0, "adaptive", "C4v-"),
    "si_div": Sampler(lambda at: si_div(at.orbits), 4, "rule of the log", "C3x:", proper=False),
}


def named(
    name: str, w_star: Tensor, fisher: Tensor, orbits: Sequence[Tensor], *, psgld_damping: float
) -> Preconditioner:
    """One of `SAMPLERS` for a start w* with the Fisher information there, (..., D) both; ValueError
    for a name that is not there."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler = {name!r}: expected one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name].build(Start(w_star, fisher, orbits, psgld_damping))


def in_frame(build: Preconditioner, factors: Tensor) -> Preconditioner:
    """A preconditioner of scaled coordinates c w, seen from the unscaled w.

    With w' = c w the gradient is g / c, and a step of w' is a step of w with P / c^2, A c^2 and
    Gamma / c: a cell of a rescaling grid is the unscaled network with another metric.

    Args:
        factors: (..., D) c, one row per cell.
    """
    init, update = build

    def framed(state: State, w: Tensor, g: Tensor) -> tuple[Metric, State]:
        (p, a, drift), state = update(state, factors * w, g / factors)
        drift = drift / factors if drift.ndim else drift
        return Metric(p / factors**2, a * factors**2, drift), state

    return init, framed


def _frozen(preconditioner: Tensor) -> Preconditioner:
    metric = Metric(preconditioner, _inverse(preconditioner), NONE)
    return _stateless, lambda state, w, g: (metric, state)


def _stateless(w: Tensor) -> None:
    return None


def _inverse(x: Tensor) -> Tensor:
    """1 / x, and 0 where x is 0: a coordinate that does not move needs no localisation."""
    return torch.where(x > 0, 1 / x, torch.zeros_like(x))


def _require_partition(orbits: Sequence[Tensor], size: int) -> None:
    found = torch.cat([orbit.flatten().cpu() for orbit in orbits] or [torch.empty(0)])
    whole = torch.equal(found.sort().values, torch.arange(size))
    require(whole, "orbits", f"{len(found)} indices", f"each of 0 .. {size - 1} once")


def _over_orbits(
    x: Tensor, orbits: Sequence[Tensor], reduce: Callable[..., Tensor] = torch.mean
) -> Tensor:
    result = torch.empty_like(x)
    for orbit in orbits:
        result[..., orbit] = reduce(x[..., orbit], -1, keepdim=True)
    return result
