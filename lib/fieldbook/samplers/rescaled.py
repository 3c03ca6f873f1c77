"""The local learning coefficient of one network in many exact rescalings, all of them one stack of chains.

A cell (alpha, beta) is the unscaled network with another metric (`preconditioners.in_frame`), so that the cells of a
grid differ by two scalars per tensor; noise and minibatches are the same in all of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fieldbook.models.grokker import Grokker
from fieldbook.recipe import stream
from fieldbook.samplers import llc, preconditioners, symmetry
from fieldbook.samplers.preconditioners import Preconditioner, named
from fieldbook.samplers.sgmcmc import chain, require_stable

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


@dataclass(frozen=True)
class Sampling:
    """How the chains of every cell run: `chains` of `steps` steps, of which `burn_in` are dropped."""

    steps: int
    burn_in: int
    chains: int
    batch_size: int
    seed: int = 0


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
    """L(w_t) - L(w*) on the minibatch of each step, (steps, cells, chains), in the unscaled network's frame.

    Args:
        eps, gamma: numbers, or (cells,) tensors; `n_beta`: that of `start` unless given.
    """
    w, orbits = llc.flatten(start.model), symmetry.orbits(start.model)
    factors = symmetry.grid_factors(start.model, cells).to(w)[:, None]
    build = _named(name, factors * w, start.fisher / factors**2, orbits)
    framed, points = preconditioners.in_frame(build, factors), w.expand(len(cells), how.chains, -1)
    return _chain(start, start.model, points, framed, how, eps=eps, n_beta=n_beta or start.n_beta, gamma=gamma)


def direct_trace(start: Minimum, name: str, cell: Cell, how: Sampling, *, eps: float, gamma: float) -> Tensor:
    """The trace (steps, chains) of one cell, sampled in the rescaled network itself: the check of `traces`."""
    model = symmetry.rescale(start.model, *cell)
    w, orbits = llc.flatten(model), symmetry.orbits(model)
    fisher = start.fisher / symmetry.grid_factors(start.model, [cell])[0].to(w) ** 2
    build = _named(name, w, fisher, orbits)
    points = w.expand(1, how.chains, -1)
    return _chain(start, model, points, build, how, eps=eps, n_beta=start.n_beta, gamma=gamma)[:, 0]


def _chain(
    start: Minimum, model: Grokker, w: Tensor, build: Preconditioner, how: Sampling, **options: float | Tensor
) -> Tensor:
    seeds = [stream("chain", how.seed, k) % 2**31 for k in range(how.chains)]
    gradient = llc.minibatch_gradient(model, start.pairs, start.target, batch_size=how.batch_size, seeds=seeds)
    generator = torch.Generator(w.device).manual_seed(stream("noise", how.seed))
    options = {name: x[:, None, None].to(w) if isinstance(x, Tensor) else x for name, x in options.items()}
    return torch.stack([losses for losses, _ in chain(gradient, w, build, generator, steps=how.steps, **options)])


def calibrate(
    start: Minimum, name: str, how: Sampling, *, relaxation: float, target: float, n: int = 18
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Step size and localisation at which a sampler's estimate at (1, 1) is the target, and the way there.

    Localisation sets how far a chain may stray, hence the estimate; samplers are compared where they agree at (1, 1).
    The step size is relaxation / (gamma max(P A)): localisation alone takes back half of `relaxation` of a deviation
    per step, and P A = 1 for samplers that localise in their own metric.

    Args:
        target: between 0 and n_beta log(classes), the estimate of a network that guesses.
        n: localisations tried, over six decades around the one at which weights would move by their own size.
    Returns:
        `gamma`, `eps` and `eps_limit`, the stability bound at (1, 1); one row per localisation with gamma, eps and llc.
    Raises:
        ValueError: the estimates do not pass the target, or the step size is unstable (`sgmcmc.require_stable`).
    """
    (p, a, _), w = _first_metric(start, name), llc.flatten(start.model)
    natural = float((1 / a[a > 0]).mean() / w.square().mean())
    gammas = natural * torch.logspace(-1.5, 4.5, n, dtype=torch.float64)
    epsilons = relaxation / (gammas * float((p * a).max()))
    require_stable(float(epsilons[0]), float(gammas[0] * (p * a).max()))
    trace = traces(start, name, [(1.0, 1.0)] * n, how, eps=epsilons, gamma=gammas).cpu().double()
    values, _ = llc.estimate(trace, n_beta=start.n_beta, burn_in=how.burn_in)
    gamma = crossing(gammas, values, target, ceiling=start.n_beta * math.log(start.model.p))
    eps = relaxation / (gamma * float((p * a).max()))
    curvature = llc.largest_curvature(start.model, start.pairs, start.target, p)
    stiffness = start.n_beta * curvature + gamma * float((p * a).max())
    require_stable(eps, stiffness)
    curve = zip(gammas.tolist(), epsilons.tolist(), values.tolist(), strict=True)
    found = {"gamma": gamma, "eps": eps, "eps_limit": 4 / stiffness}
    return found, [{"gamma": gamma, "eps": eps, "llc": value} for gamma, eps, value in curve]


def lengthen(start: Minimum, name: str, how: Sampling, *, eps: float, gamma: float) -> list[dict[str, float]]:
    """Estimates at (1, 1) over the first T steps, for a quarter, a half and the whole of eps, T up to four times `how`.

    What short chains measure grows with eps T until localisation, not their length, holds them.
    """
    sizes = [share * eps for share in (0.25, 0.5, 1.0)]
    longer = replace(how, steps=4 * how.steps)
    trace = traces(start, name, [(1.0, 1.0)] * len(sizes), longer, eps=torch.tensor(sizes), gamma=gamma)
    sums = start.n_beta * trace.double().mean(2).cumsum(0).cpu()
    lengths = sorted({round(4 * (longer.steps / 4) ** (k / 15)) for k in range(16)})
    return [
        {"sampler": name, "eps": size, "T": t, "gamma": gamma, "llc": float(sums[t - 1, k]) / t}
        for k, size in enumerate(sizes)
        for t in lengths
    ]


def crossing(gammas: Tensor, values: Tensor, target: float, *, ceiling: float) -> float:
    """The localisation at which the estimate first passes below a target, interpolated in log gamma and log estimate.

    Args:
        gammas: (k,) increasing; `values`: (k,) estimates, which fall with gamma.
        ceiling: what an estimate that is larger, or not finite, counts as.
    Raises:
        ValueError: the estimates do not pass the target; says their range.
    """
    values = values.double().nan_to_num(nan=ceiling, posinf=ceiling).clamp(min=1e-12, max=ceiling)
    below = (values < target).nonzero().flatten()
    if not len(below) or below[0] == 0:
        found = f"{values.min():.3g} .. {values.max():.3g} at gamma = {gammas[0]:.3g} .. {gammas[-1]:.3g}"
        raise ValueError(f"target = {target:.3g}: not between the estimates {found}")
    around = slice(int(below[0]) - 1, int(below[0]) + 1)
    x, (y0, y1) = gammas[around].double().log(), values[around].log()
    return float((x[0] + (y0 - math.log(target)) / (y0 - y1) * (x[1] - x[0])).exp())


def _first_metric(start: Minimum, name: str) -> preconditioners.Metric:
    w = llc.flatten(start.model)
    init, update = _named(name, w, start.fisher, symmetry.orbits(start.model))
    _, g = llc.stacked_losses(start.model)(w[None], start.pairs, start.target)
    return preconditioners.Metric(*(part.to(w).expand_as(w) for part in update(init(w), w, g[0])[0]))


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


def rows(start: Minimum, name: str, cells: Sequence[Cell], how: Sampling, *, eps: float, gamma: float) -> list[dict]:
    """One row per cell: the estimate, its standard error over chains, the settings, and what is wrong with it.

    Raises:
        ValueError: as `gate`, before anything is sampled.
    """
    passed = gate(start, cells)
    trace = traces(start, name, cells, how, eps=eps, gamma=gamma).cpu().double()
    values, errors = llc.estimate(trace, n_beta=start.n_beta, burn_in=how.burn_in)
    size = {"classes": start.model.p, "dimension": start.fisher.numel()}
    health = llc.health(trace, n_beta=start.n_beta, burn_in=how.burn_in, **size)
    settings = {"n_chains": how.chains, "n_steps": how.steps, "eps": eps, "gamma": gamma, "n_beta": start.n_beta}
    return [
        {"alpha": cell[0], "beta": cell[1], "llc": float(value), "llc_se": float(error), **settings,
         **exact, "health": flags}
        for cell, value, error, exact, flags in zip(cells, values, errors, passed, health, strict=True)
    ]  # fmt: skip


def plain_losses(start: Minimum, name: str, cells: Sequence[Cell], how: Sampling, eps: float) -> Tensor:
    """Mean loss of a few steps without inverse temperature, localisation or burn-in, (cells,): the log's "LLC"."""
    at_star, _ = llc.loss_and_gradient_norm(start.model, start.pairs, start.target)
    return at_star + traces(start, name, cells, how, eps=eps, gamma=0.0, n_beta=1.0).mean((0, 2))
