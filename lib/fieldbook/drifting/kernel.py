"""The kernel drifting field: samples are drawn towards data and pushed away from one another.

Mean-shift towards the positives minus mean-shift towards the negatives, with weights from one
kernel matrix. Source of everything here: Deng et al. 2026 (arXiv:2602.04770), sections 3.3, A.1,
A.6 and A.7.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from fieldbook.drifting.distances import near_origin
from fieldbook.nn.checks import at_least_single, require

TAUS = (0.02, 0.05, 0.2)
"""Temperatures of the paper, in units of the mean distance."""

# Masked distances, in units of 1 + the mean one: finite, so that a set of masked ones gives 0.
FAR = 1e6
BLOCK = 2**18  # entries of the kernel matrix worked on at a time: they stay in the cache

Axes = Literal["both", "y", "separate"]


class Stats(NamedTuple):
    """Mean and variance of the distances that are not masked, 0-d each."""

    mean: Tensor
    variance: Tensor


@torch.no_grad()
def distances(
    x: Tensor, pos: Tensor, neg: Tensor, weight: Tensor | None = None, *, mask_self: bool = True
) -> tuple[Tensor, Stats]:
    """Distances (..., N, P + Q) from every x to every positive and negative, and their statistics.

    Args:
        x, pos, neg, weight, mask_self: as in `field`; no tensor is larger than the result.
    Raises:
        ValueError: `mask_self` with fewer negatives than x.
    """
    n, p = x.shape[-2], pos.shape[-2]
    enough = not mask_self or neg.shape[-2] >= n
    require(enough, "neg", tuple(neg.shape), f"at least {n} rows, the first ones being x")
    centre = pos.mean(-2, keepdim=True)  # cdist squares: less is lost to rounding near the origin
    matrix = torch.cdist(x - centre, torch.cat((pos, neg), -2) - centre)
    count = torch.ones_like(matrix[..., :1, :])
    if weight is not None:
        count[..., 0, p:] = weight
    own = matrix[..., p : p + n].diagonal(dim1=-2, dim2=-1)
    total = n * count.sum()
    if mask_self:
        own.zero_()
        total = total - count[..., 0, p : p + n].sum()
    mean = (matrix * count).sum() / total
    variance = (matrix.square() * count).sum() / total - mean.square()
    if mask_self:
        own.copy_((FAR * (1 + mean)).expand_as(own))
    return matrix, Stats(mean, variance)


@torch.no_grad()
def field(
    x: Tensor,
    pos: Tensor,
    neg: Tensor,
    taus: Sequence[float],
    weight: Tensor | None = None,
    *,
    axes: Axes = "both",
    kernel: Literal["laplace", "gauss"] = "laplace",
    floor: float = 0.0,
    pull: float = 1.0,
    push: float = 1.0,
    relative: bool = False,
    mask_self: bool = True,
) -> tuple[Tensor, Stats]:
    """The drifting field V (T, ..., N, D) at every x and temperature, in the units of x, detached.

    With logits l = -|x - y| / tau (`laplace`) or -|x - y|^2 / (2 tau^2) (`gauss`), affinities A and
    their sums a_pos, a_neg over each set, V = a_neg sum A_pos y_pos - a_pos sum A_neg y_neg.

    Args:
        x: (..., N, D), leading axes are independent groups; `pos`: (..., P, D); `neg`: (..., Q, D).
        weight: (..., Q), non-negative: as how many copies each negative counts.
        axes: `both`, A = sqrt(softmax over y x softmax over x), Alg. 2; `y`, the first alone;
            `separate`, a softmax over y within each set, which is Eq. 8 to 10.
        floor: smallest affinity, before masking; 0 for none.
        pull, push: factors on attraction and repulsion; V is antisymmetric only where they agree.
        relative: temperatures are in units of the mean distance: Eq. 22 for features normalised by
            Eq. 21.
        mask_self: the first N negatives are x itself and do not repel it.
    """
    require(axes in get_args(Axes), "axes", axes, f"one of {', '.join(get_args(Axes))}")
    require(kernel in ("laplace", "gauss"), "kernel", kernel, "laplace or gauss")
    with torch.autocast(x.device.type, enabled=False):  # a softmax of distances needs all 24 bits
        x, pos, neg = (at_least_single(part) for part in (x, pos, neg))
        x, neg, pos = near_origin(x, neg, pos)  # sums of large coordinates that cancel lose digits
        matrix, stats = distances(x, pos, neg, weight, mask_self=mask_self)
        energy = matrix if kernel == "laplace" else matrix.square() / 2
        log_weight = torch.zeros_like(energy[..., :1, :])
        if weight is not None:
            log_weight[..., 0, pos.shape[-2] :] = weight.log().clamp_min(-FAR)
        units = torch.tensor(taus, dtype=x.dtype, device=x.device).view(-1, *[1] * x.ndim)
        if relative:
            units = units * stats.mean.where(stats.mean > 0, 1.0)
        betas = 1 / (units if kernel == "laplace" else units.square())
        v = x.new_empty((len(betas), *x.shape))
        together = max(BLOCK // energy.numel(), 1)  # temperatures at a time
        for beta, out in zip(betas.split(together), v.split(together), strict=True):
            columns = _log_columns(energy, beta) if axes == "both" else None
            for rows in _blocks(energy):
                logit = energy[..., rows, :] * -beta + log_weight
                a = affinities(logit, pos.shape[-2], axes, columns).clamp_min_(floor)
                out[..., rows, :] = balance(a, x[..., rows, :], pos, neg, pull, push)
    return v, stats


def affinities(logit: Tensor, p: int, axes: Axes, columns: Tensor | None = None) -> Tensor:
    """Affinities (..., N, P + Q) of x to p positives and Q negatives, from logits with log weights.

    Args:
        columns: (..., 1, P + Q), logarithm of the sum over x of exp(logit), without weights; for
            `axes="both"`.
    """
    if axes == "separate":
        return torch.cat([part.softmax(-1) for part in (logit[..., :p], logit[..., p:])], -1)
    if axes == "y":
        return logit.softmax(-1)
    rows = logit.logsumexp(-1, keepdim=True)
    return (logit - rows / 2).sub_(columns / 2).exp_()


def balance(
    a: Tensor, x: Tensor, pos: Tensor, neg: Tensor, pull: float = 1.0, push: float = 1.0
) -> Tensor:
    """V at x, pull a_neg sum A_pos (y_pos - x) - push a_pos sum A_neg (y_neg - x)."""
    a_pos, a_neg = a.split((pos.shape[-2], neg.shape[-2]), -1)
    of_pos = a_pos.sum(-1, keepdim=True)
    of_neg = a_neg.sum(-1, keepdim=True)
    drift = pull * of_neg * (a_pos @ pos) - push * of_pos * (a_neg @ neg)
    if pull == push:
        return drift  # what there is of x cancels
    return drift - (pull - push) * of_pos * of_neg * x


def _log_columns(energy: Tensor, beta: Tensor) -> Tensor:
    """Logarithm of the sum over x of exp(-beta energy), (..., 1, P + Q)."""
    least = energy.amin(-2, keepdim=True)
    total = 0
    for rows in _blocks(energy):
        total = total + ((least - energy[..., rows, :]) * beta).exp_().sum(-2, keepdim=True)
    return total.log() - least * beta


def _blocks(energy: Tensor) -> list[slice]:
    """Runs of rows with about `BLOCK` entries each."""
    step = max(BLOCK // energy[..., :1, :].numel(), 1)
    return [slice(start, start + step) for start in range(0, energy.shape[-2], step)]


def rms(v: Tensor, axes: int = -1) -> Tensor:
    """Root mean square of V over its trailing axes from `axes` on, which stay with length one."""
    return v.square().mean(tuple(range(axes, 0)), keepdim=True).sqrt()
