"""The training loss of a generator in a drifting field, with normalised features, and guidance.

Source: Deng et al. 2026 (arXiv:2602.04770), equations 13 to 26 and section A.7.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fieldbook.drifting import kernel
from fieldbook.drifting.learned import SetField
from fieldbook.drifting.setting import Setting
from fieldbook.nn.checks import at_least_single, require


class Sets(NamedTuple):
    """Features of one scale, in groups (classes): generated x (G, N, D) with a graph, and real.

    `unconditional` (G, U, D), of any class, repel with `weight` (G,); `fresh` (G, P, D) are for the
    field's own loss.
    """

    x: Tensor
    pos: Tensor
    unconditional: Tensor | None = None
    weight: Tensor | None = None
    fresh: Tensor | None = None


def guidance_weight(alpha: Tensor, n_neg: int, n_unconditional: int) -> Tensor:
    """Weight of unconditional negatives at guidance alpha, (alpha - 1)(N_neg - 1) / N_unc.

    Raises:
        ValueError: alpha < 1, where weights would be negative.
    """
    require((alpha >= 1).all(), "alpha", float(alpha.min()), "at least 1")
    require(n_unconditional >= 1, "n_unconditional", n_unconditional, "at least 1")
    return (alpha - 1) * (n_neg - 1) / n_unconditional


def draw_alpha(n: int, generator: torch.Generator, largest: float) -> Tensor:
    """Strengths of guidance (n,) with density proportional to alpha^-3 on [1, largest]."""
    require(largest >= 1, "largest", largest, "at least 1")
    u = torch.rand(n, generator=generator, device=generator.device)
    return (1 - u * (1 - largest**-2)) ** -0.5  # the inverse of the distribution function


def drifting_loss(
    sets: Sequence[Sets], setting: Setting, fields: Sequence[SetField] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over feature scales of |phi(x) - stopgrad(phi(x) + V)|^2, and of the field's own loss.

    Features are divided by S, so that their mean distance is sqrt(D), and each temperature's V by
    its root mean square over all groups. The value of the first term is then the mean square of a
    sum of unit fields: near constant, from the number of temperatures to its square, however good
    the samples are. Its gradient is what matters.

    Args:
        sets: one per scale; `fields`: a learned field per scale, in place of the kernel field.
        setting: of the fields.
    Returns:
        0-d loss, and 0-d detached metrics, means over scales: `loss` (of the generator),
        `field_loss`, `drift_norm` (root mean square of |V| before normalisation, in units of the
        mean distance), `feature_dist_mean`, `feature_dist_var`.
    """
    terms, rows = [], []
    for one, field in zip(sets, fields or [None] * len(sets), strict=True):
        phi = at_least_single(one.x)
        v, own, unit, stats = _drift(phi.detach(), one, field, setting)
        size = kernel.rms(v, -3)
        phi = phi / unit
        loss = nn.functional.mse_loss(phi, phi.detach() + (v / size.clamp_min(1e-12)).sum(0))
        terms += [loss] if own is None else [loss, own]
        rows.append(
            {
                "loss": loss,
                "field_loss": torch.zeros_like(loss) if own is None else own,
                "drift_norm": size.mean(),
                "feature_dist_mean": stats.mean,
                "feature_dist_var": stats.variance,
            }
        )
    metrics = {name: torch.stack([row[name].detach() for row in rows]).mean() for name in rows[0]}
    return torch.stack(terms).sum(), metrics


def _drift(
    x: Tensor, one: Sets, field: SetField | None, setting: Setting
) -> tuple[Tensor, Tensor | None, Tensor, kernel.Stats]:
    """V of normalised features, the field's own loss, their unit, and statistics of distances."""
    pos = at_least_single(one.pos)
    neg, weight = x, None
    if one.unconditional is not None:
        extra = at_least_single(one.unconditional)
        neg = torch.cat((x, extra), -2)
        of_extra = one.weight[:, None].expand(-1, extra.shape[-2])
        weight = torch.cat((torch.ones_like(x[..., 0]), of_extra), -1)
    if field is None:
        taus, axes, pull, push = setting.taus, setting.axes, setting.pull, setting.push
        v, stats = kernel.field(
            x, pos, neg, taus, weight, axes=axes, pull=pull, push=push, relative=True
        )
        unit = _unit(stats, x)
        return v / unit, None, unit, stats
    _, stats = kernel.distances(x, pos, neg, weight)
    unit = _unit(stats, x)
    fresh = pos if one.fresh is None else at_least_single(one.fresh)
    v, own = field.drift(x / unit, pos / unit, neg / unit, fresh / unit, weight, setting)
    return v, own, unit, stats


def _unit(stats: kernel.Stats, x: Tensor) -> Tensor:
    """What features are divided by, 1 / sqrt(D) where all are the same, whose drift is 0."""
    return stats.mean.where(stats.mean > 0, 1.0) / math.sqrt(x.shape[-1])
