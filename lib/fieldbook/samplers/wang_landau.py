"""Boltzmann entropy of a loss landscape: Wang-Landau molecular dynamics in x = log10 E.

Parameters are the degrees of freedom, the loss E is the energy, and S(x) = ln of the density of x
under a prior w(z), standard normal or flat. Walkers move by generalised hybrid Monte Carlo
(Horowitz 1991, Phys. Lett. B 268:247) in the potential S_hat(x) - ln w: refresh part of the
momentum, kick, follow the prior's own motion (a rotation of z and p or a straight line) for a time
h, kick, accept or reverse. The Metropolis test removes the bias of a finite step; proposals beyond
the range of x are refused, so that its ends are reflecting walls. Where S_hat = S, all x are
equally likely.

Density in x or in E: dE = E ln(10) dx, hence S_x(x) = S_E(E) + ln E + ln ln 10. For E = |z|^2 / 2
in d dimensions, flat prior, S_E = (d/2 - 1) ln E + c and S_x = d/2 ln E + c'.

The same moves give two estimates of S.

- Histogram: S_hat grows by f times a smooth kernel where walkers are. f halves whenever all bins
  have been visited, and is 1/t, with t visits per bin, once that is larger (Belardinelli & Pereyra
  2007, Phys. Rev. E 75:046701).
- Mean force: for a field y with y . grad x = 1, dS/dx = <div y + y . grad ln w> at fixed x (Darve,
  Rodriguez-Gomez & Pohorille 2008, J. Chem. Phys. 128:144120). With y = grad x / |grad x|^2 and the
  standard normal momentum p as probe, div y = <p . (y' - y)> / h, y' at the proposal: no second
  derivative is needed, and the error does not grow with the entropy to be climbed. p is taken
  before the kick, which would add (h kick)^2 / 4.

Source of the idea: "Is grokking a computational glass relaxation?" (arXiv:2505.11411).
"""

import math
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fieldbook.nn.checks import require

OBSERVE_EVERY = 10  # steps
Energy = Callable[[Tensor], tuple[Tensor, Tensor]]  # z (.., D) -> E (..), its gradient (.., D)
Potential = Callable[[Tensor], tuple[Tensor, Tensor]]  # x (..) -> U (..), dU/dx (..)
Step = float | Tensor  # time step h, one for all or (seeds, 1)
Observe = Callable[[Tensor], Tensor]  # z (.., D) -> (..)


class Grid(NamedTuple):
    """`count` bins of x = log10 E from `low` to `high`."""

    low: float
    high: float
    count: int

    def width(self) -> float:
        return (self.high - self.low) / self.count

    def centres(self) -> Tensor:
        return self.low + self.width() * (torch.arange(self.count, dtype=torch.float64) + 0.5)

    def inside(self, x: Tensor) -> Tensor:
        return (x >= self.low) & (x <= self.high)

    def bins(self, x: Tensor) -> Tensor:
        """Index of the bin of each x, of the nearest for those outside."""
        return ((x.nan_to_num() - self.low) / self.width()).clamp(0, self.count - 1).long()


class Walkers(NamedTuple):
    """Points z, momenta p and grad x (seeds, walkers, D), x = log10 E (seeds, walkers)."""

    z: Tensor
    p: Tensor
    x: Tensor
    slope: Tensor


class Landscape(NamedTuple):
    """What a run found, (seeds, bins) on the CPU unless noted.

    Attributes:
        entropy: nats, mean zero over the bins, since its constant is arbitrary; `force`: mean force
            dS/dx, nats per decade, nan where nothing was measured; `visits`: histogram of x;
            `observed`: mean of what `observe` gave.
        factor: (seeds,) last modification factor; `acceptance`: share of moves taken; `walkers`:
            where they are now; `h`: the time step that they ended with.
    """

    entropy: Tensor
    force: Tensor
    visits: Tensor
    observed: Tensor
    factor: Tensor
    acceptance: float
    walkers: Walkers
    h: Tensor


def start(energy: Energy, z: Tensor, generator: torch.Generator) -> Walkers:
    """Walkers at z (seeds, walkers, D) with fresh momenta; refuses energies not above 0."""
    require(z.ndim == 3, "shape of z", tuple(z.shape), "(seeds, walkers, D)")
    x, slope = _log10(energy, z)
    require(x.isfinite().all(), "log10 energy", x.tolist(), "finite logs of positive energies")
    return Walkers(z, _noise(z, generator), x, slope)


def heat(energy: Energy, star: Tensor, x: float, seeds: int, generator: torch.Generator) -> Tensor:
    """Points (seeds, 1, D) between `star` (D,) and draws of the normal prior, where log10 E = x.

    Each is cos(a) star + sin(a) noise, which keeps the norm, at an angle a found by bisection.
    """
    noise = _noise(star.expand(seeds, 1, -1), generator)
    low = star.new_zeros(seeds, 1)
    high = low + math.pi / 2
    for _ in range(12):
        middle = (low + high) / 2
        points = middle.cos()[..., None] * star + middle.sin()[..., None] * noise
        above = _log10(energy, points)[0] > x
        low = torch.where(above, low, middle)
        high = torch.where(above, middle, high)
    return points


def move(
    w: Walkers,
    energy: Energy,
    potential: Potential,
    generator: torch.Generator,
    h: Step,
    friction: float,
    flat: bool,
) -> tuple[Walkers, Tensor, Tensor]:
    """One step of every walker: where they are then, who moved, and the forces at the old x."""
    h = torch.as_tensor(h, dtype=torch.float64).to(w.x)
    keep = (-friction * h).exp()[..., None]
    p = keep * w.p + (1 - keep**2).sqrt() * _noise(w.p, generator)
    u0, pull0 = potential(w.x)
    y0 = _field(w.slope)
    kicked, gain0 = _kick(p, pull0, w.slope, h)
    c, s = (torch.ones_like(h), h) if flat else (h.cos(), h.sin())
    z1 = c[..., None] * w.z + s[..., None] * kicked
    turned = kicked if flat else c[..., None] * kicked - s[..., None] * w.z
    x1, slope1 = _log10(energy, z1)
    u1, pull1 = potential(x1)
    force = (p * (_field(slope1) - y0)).sum(-1) / s - (0.0 if flat else (w.z * y0).sum(-1))
    p1, gain1 = _kick(turned, pull1, slope1, h)
    chance = (u0 - u1 - gain0 - gain1).clamp(max=0).exp()  # nan, beyond all numbers, is not taken
    taken = torch.rand(chance.shape, generator=generator, device=p.device, dtype=p.dtype) < chance

    def chosen(there: Tensor, here: Tensor) -> Tensor:
        return torch.where(taken if here.ndim == 2 else taken[..., None], there, here)

    p = chosen(p1, -p)  # a refused move is reversible if p turns round
    moved = Walkers(chosen(z1, w.z), p, chosen(x1, w.x), chosen(slope1, w.slope))
    return moved, taken, force


def ramp(
    energy: Energy,
    w: Walkers,
    grid: Grid,
    targets: Sequence[float],
    generator: torch.Generator,
    *,
    h: float,
    friction: float = 1.0,
    stiffness: float = 5e3,
    flat: bool = False,
    observe: Observe | None = None,
    keep: Collection[int] = (),
) -> tuple[Landscape, list[Walkers]]:
    """Pull walkers by a spring along x = `targets`, one a step, measuring the mean force.

    The time step of each seed starts at `h` and is shortened while fewer than nine in ten moves are
    taken. The spring (nats per decade squared) does not enter the estimate, which is that of
    equilibrium if the pull is slow; whether it was, the way back tells. `entropy` is the integrated
    force; walkers after the steps `keep` come with it.
    """
    _require(grid, h=h, friction=friction, stiffness=stiffness, steps=len(targets))
    sums = _Sums(grid, w, observe)
    kept = []
    share = torch.ones(len(w.x), 1, device=w.x.device)
    for t, target in enumerate(targets):
        at = w.x

        def spring(x: Tensor, a: float = target) -> tuple[Tensor, Tensor]:
            return stiffness / 2 * (x - a) ** 2, stiffness * (x - a)

        w, taken, force = move(w, energy, spring, generator, share * h, friction, flat)
        share = (share * (0.1 * (taken.double().mean(1, keepdim=True) - 0.9)).exp()).clamp(max=1)
        sums.add(t, w, taken, at, force)
        kept += [w] if t in keep else []
    return sums.landscape(integrate(grid, sums.force()), torch.zeros(len(w.x)), w, share * h), kept


def wang_landau(
    energy: Energy,
    w: Walkers,
    grid: Grid,
    generator: torch.Generator,
    *,
    steps: int,
    h: Step,
    friction: float = 1.0,
    first: float | None = None,
    entropy: Tensor | None = None,
    flat: bool = False,
    observe: Observe | None = None,
) -> Landscape:
    """Visit all x of a grid alike, and return the entropy that this took.

    Args:
        w: from `start`, inside the grid. Walkers of one seed share S_hat; seeds are independent.
        h: time step; `friction`: rate at which momenta are refreshed, per unit of time.
        first: modification factor at the start, nats per visit of one walker; 0 leaves S_hat as it
            is. Unless given, S_hat is the integrated mean force for the first quarter of the steps
            (or `entropy`, if that is given), and the factor 1/t from there on, which suits any
            number of walkers.
        entropy: (seeds, bins) S_hat at the start, for instance from `ramp`; zero unless given.
        flat: a flat prior in place of the standard normal.
        observe: averaged per bin every 10 steps.
    Raises:
        ValueError: a walker outside the grid, low >= high, or a number that is not positive
            (`first`: negative).
        RuntimeError: without `first`, S_hat did not settle: bins were hardly visited, or its two
            estimates differ.
    Warns:
        UserWarning: with `first`, they differ by more than S_hat itself.
    """
    shortest = float(torch.as_tensor(h).min())
    _require(grid, h=shortest, friction=friction, steps=steps, first=first or 1)
    accepted = f"all in {list(grid[:2])}"
    require(grid.inside(w.x).all(), "log10 energy of w", w.x.tolist(), accepted)
    seeds, walkers = w.x.shape
    sums = _Sums(grid, w, observe)
    kernel = _kernel(grid, w.x.device)
    s = torch.zeros_like(sums.visits) if entropy is None else entropy.to(sums.visits, copy=True)
    learn = steps // 4 if first is None and entropy is None else 0  # steps for the force alone
    largest = grid.count / (max(learn, 1) * walkers) if first is None else float(first)
    factor = s.new_full((seeds,), largest)
    fresh = torch.zeros_like(s, dtype=torch.bool)
    for t in range(steps):
        at, step = w.x, h if t % 8 else h / 8  # a short step frees a walker that has dug itself in
        w, taken, force = move(w, energy, _table(grid, s), generator, step, friction, flat)
        sums.add(t, w, taken, at, force)
        if t < learn:
            s = s if t % 10 < 9 else integrate(grid, sums.force()).to(s)
            continue
        s += factor[:, None] * kernel(w.x).sum(1)
        fresh.scatter_(1, grid.bins(w.x), True)
        done = fresh.all(1)
        factor = torch.where(done, factor / 2, factor)
        fresh = fresh & ~done[:, None]
        factor.clamp_(min=grid.count / ((t + 1) * walkers)).clamp_(max=largest)
    found = sums.landscape(s - s.mean(1, keepdim=True), factor, w, torch.as_tensor(h))
    if first != 0 and entropy is None:
        _require_settled(found, grid, first)
    return found


def _require_settled(found: Landscape, grid: Grid, first: float | None) -> None:
    """Whether the walkers went where they had not been, and both estimates of S agree."""
    force = integrate(grid, found.force)
    rare = flatness(found.visits)
    apart = (found.entropy - force).abs().amax(1)
    wrong = (apart > 2) | (rare < 0.05)
    remedy = "more steps or walkers, another step h, or a narrower grid; with `first` it is kept"
    if first is not None:
        wrong = apart > (force.amax(1) - force.amin(1)).clamp(min=2)
        remedy = f"first = {first:g} left out, or smaller"
    if not wrong.any():
        return
    seed = int(wrong.nonzero()[0])
    said = (
        f"the entropy of seed {seed} did not settle: its two estimates differ by "
        f"{apart[seed]:.3g} nats, and the rarest bin had {float(rare[seed]):.2g} of the mean "
        f"visits; try {remedy}"
    )
    if first is None:
        raise RuntimeError(said)
    warnings.warn(said, stacklevel=3)


def spread(kept: Sequence[Walkers], places: Sequence[float]) -> Tensor:
    """Points (seeds, places, D) for `start`: each seed's kept walkers nearest to the places."""
    x, z = (torch.cat([getattr(w, name) for w in kept], 1) for name in ("x", "z"))
    nearest = (x[:, :, None] - x.new_tensor(places)).abs().argmin(1)
    return torch.stack([points[chosen] for points, chosen in zip(z, nearest, strict=True)])


def integrate(grid: Grid, force: Tensor) -> Tensor:
    """S (seeds, bins), mean zero, from its derivative; a nan takes that of its neighbours."""
    places = np.arange(grid.count)
    filled = force.double().numpy().copy()
    for row in filled:
        known = np.isfinite(row)
        row[:] = np.interp(places, places[known], row[known]) if known.any() else 0.0
    steps = torch.from_numpy(filled).unfold(1, 2, 1).mean(-1) * grid.width()
    s = torch.nn.functional.pad(steps.cumsum(1), (1, 0))
    return s - s.mean(1, keepdim=True)


def flatness(visits: Tensor) -> Tensor:
    """Smallest over mean count of a histogram (.., bins): 1 if flat, 0 if a bin was missed."""
    return visits.min(-1).values / visits.mean(-1).clamp(min=1e-9)  # less than any count gives


def offline_histogram(losses: Sequence[float], grid: Grid) -> Tensor:
    """Diagnostic, not an entropy: ln of how many checkpoints of a run fall in each bin, or -inf.

    It tells how long the optimiser stayed at a loss and how often it was recorded there. Losses
    outside the grid are left out; ValueError if one is not a positive number.
    """
    values = torch.as_tensor(losses, dtype=torch.float64)
    known = (values.isfinite() & (values > 0)).all()
    require(known, "losses", values.tolist(), "positive numbers")
    x = values.log10()
    return torch.bincount(grid.bins(x[grid.inside(x)]), minlength=grid.count).double().log()


class _Sums:
    """Sums per bin of what the moves measured, on the device: no move waits for it."""

    def __init__(self, grid: Grid, w: Walkers, observe: Observe | None):
        self.grid, self.observe, self.moves, self.taken = grid, observe, 0, 0.0
        sums = torch.zeros(5, len(w.x), grid.count, dtype=torch.float64, device=w.x.device)
        self.visits, self.weight, self.pull, self.seen, self.total = sums

    def add(self, t: int, w: Walkers, taken: Tensor, at: Tensor, force: Tensor) -> None:
        now, before = (self.grid.bins(x) for x in (w.x, at))
        counted = self.grid.inside(w.x).double()
        measured = (self.grid.inside(at) & force.isfinite()).double()
        self.visits.scatter_add_(1, now, counted)
        self.weight.scatter_add_(1, before, measured)
        self.pull.scatter_add_(1, before, measured * force.double().where(force.isfinite(), 0.0))
        self.moves, self.taken = self.moves + 1, self.taken + taken.double().mean()
        if self.observe and t % OBSERVE_EVERY == 0:
            self.seen.scatter_add_(1, now, counted)
            self.total.scatter_add_(1, now, counted * self.observe(w.z).double())

    def force(self) -> Tensor:
        return (self.pull / self.weight).cpu()  # 0 / 0 is nan

    def landscape(self, entropy: Tensor, factor: Tensor, w: Walkers, h: Tensor) -> Landscape:
        found = (entropy, self.force(), self.visits, self.total / self.seen, factor)
        share = float(self.taken) / self.moves
        return Landscape(*(part.cpu() for part in found), share, w, h.cpu())


def _log10(energy: Energy, z: Tensor) -> tuple[Tensor, Tensor]:
    value, gradient = energy(z)
    return value.log10(), gradient / (value * math.log(10))[..., None]


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def _field(slope: Tensor) -> Tensor:
    return slope / slope.square().sum(-1, keepdim=True)


def _kick(p: Tensor, pull: Tensor, slope: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Momentum after half a kick and the energy gained, not as a difference of large sums."""
    impulse = -h / 2 * pull
    gain = impulse * (p * slope).sum(-1) + impulse**2 * slope.square().sum(-1) / 2
    return p + impulse[..., None] * slope, gain


def _table(grid: Grid, s: Tensor) -> Potential:
    """S_hat, linear between the centres of bins and on to the walls; infinite beyond them."""

    def potential(x: Tensor) -> tuple[Tensor, Tensor]:
        place = (x.double().nan_to_num() - grid.low) / grid.width() - 0.5
        left = place.floor().clamp(0, grid.count - 2).long()
        low = s.gather(1, left)
        high = s.gather(1, left + 1)
        u = torch.where(grid.inside(x), low + (high - low) * (place - left), math.inf)
        return u.to(x), ((high - low) / grid.width()).to(x)

    return potential


def _kernel(grid: Grid, device: torch.device) -> Callable[[Tensor], Tensor]:
    """x (..) -> (.., bins): Gaussians half a bin wide, each divided by its mass between the walls.

    A uniform x then raises all bins alike, and S_hat is not bent near the walls. A wider kernel
    would hardly see, hence hardly correct, what differs between neighbouring bins.
    """
    centres = grid.centres().to(device)
    sigma = grid.width() / 2
    walls = torch.tensor([[grid.low], [grid.high]], dtype=torch.float64, device=device)
    below = torch.special.ndtr((walls - centres) / sigma)
    scale = grid.width() / (sigma * math.sqrt(2 * math.pi) * (below[1] - below[0]))
    return lambda x: scale * (-(((x.double()[..., None] - centres) / sigma) ** 2) / 2).exp()


def _require(grid: Grid, **numbers: float) -> None:
    usable = grid.low < grid.high and grid.count >= 2
    require(usable, "grid", tuple(grid), "low < high and at least 2 bins")
    for name, value in numbers.items():
        require(value > 0, name, value, "a positive number")
