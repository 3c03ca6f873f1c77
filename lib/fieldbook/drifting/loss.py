"""The training loss of a generator in a drifting field, with normalised features and drifts, and
guidance.

Source: Deng et al. 2026 (arXiv:2602.04770), equations 13 to 26 and section A.7.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fieldbook.drifting import kernel
from fieldbook.drifting.learned import FieldBank, Objective, SetField, field_loss
from fieldbook.nn.checks import at_least_single, require


class Sets(NamedTuple):
    """Features of one scale, in groups (classes): generated x (G, N, D), the only ones with a
    graph, and real ones.

    `unconditional` (G, U, D), of any class, repel with `weight` (G,); `fresh` (G, P, D) are for the
    field's own loss.
    """

    x: Tensor
    pos: Tensor
    unconditional: Tensor | None = None
    weight: Tensor | None = None
    fresh: Tensor | None = None


def guidance_weight(alpha: Tensor, n_neg: int, n_unconditional: int) -> Tensor:
    """Weight of unconditional negatives that makes alpha the strength of guidance: w = (alpha -
    1)(N_neg - 1) / N_unc.

    Raises:
        ValueError: alpha < 1, where weights would be negative.
    """
    require((alpha >= 1).all(), "alpha", float(alpha.min()), "at least 1")
    require(n_unconditional >= 1, "n_unconditional", n_unconditional, "at least 1")
    return (alpha - 1) * (n_neg - 1) / n_unconditional


def draw_alpha(
    shape: Sequence[int], generator: torch.Generator, largest: float = 4.0, power: float = 3.0
) -> Tensor:
    """Guidance strengths with density proportional to alpha^-power on [1, largest], power > 1, by
    inversion."""
    require(power > 1, "power", power, "above 1")
    require(largest >= 1, "largest", largest, "at least 1")
    u = torch.rand(*shape, generator=generator, device=generator.device)
    return (1 - u * (1 - largest ** (1 - power))) ** (1 / (1 - power))


def drifting_loss(
    sets: Sequence[Sets],
    bank: FieldBank | None = None,
    *,
    objective: Objective = "frozen",
    taus: Sequence[float] = kernel.TAUS,
    axes: kernel.Axes = "both",
    pull: float = 1.0,
    push: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over feature scales of |phi(x) - stopgrad(phi(x) + V)|^2, and of the field's own loss if
    it has one.

    Features are divided by S, so that their mean distance is sqrt(D), and each temperature's V by
    its root mean square over all groups. The value of the first term is then the mean square of a
    sum of unit fields: near constant, from the number of temperatures to its square, however good
    the samples are. Its gradient is what matters.

    Args:
        sets: one per scale; `bank`: a learned field per scale, in place of the kernel field.
        objective: of the learned field, whose target for the generator is detached in any case.
        taus: temperatures in units of the mean distance, of the kernel field and of `distill`.
        axes, pull, push: of the kernel field.
    Returns:
        0-d loss, and 0-d detached metrics, means over scales: `loss` (of the generator),
        `field_loss`, `drift_norm` (root mean square of |V| before normalisation, in units of the
        mean distance), `feature_dist_mean`, `feature_dist_var`.
    """
    terms, rows = [], []
    for scale, one in enumerate(sets):
        phi, pos = at_least_single(one.x), at_least_single(one.pos)
        x = neg = phi.detach()
        weight = None
        if one.unconditional is not None:
            neg, extra = (
                torch.cat((neg, at_least_single(one.unconditional)), -2),
                one.weight[:, None],
            )
            weight = torch.cat(
                (torch.ones_like(x[..., 0]), extra.expand(-1, one.unconditional.shape[-2])), -1
            )
        if bank is None:
            options = {
                "axes": axes,
                "pull": pull,
                "push": push,
                "relative": True,
                "return_stats": True,
            }
            v, stats = kernel.field(x, pos, neg, taus, weight, **options)
            unit = _unit(stats["feature_dist_mean"], x)
            v, own = v / unit, None
        else:
            d = kernel.distances(x, pos, neg, weight)
            stats = {"feature_dist_mean": d.mean, "feature_dist_var": d.variance}
            unit = _unit(d.mean, x)
            fresh = pos if one.fresh is None else at_least_single(one.fresh)
            given = [part / unit for part in (x, pos, neg, fresh)]
            v, own = _learned(bank[scale], *given, weight, objective, taus)
        size = kernel.rms(v, -3)
        phi = phi / unit
        loss = nn.functional.mse_loss(phi, phi.detach() + (v / size.clamp_min(1e-12)).sum(0))
        terms += [loss] if own is None else [loss, own]
        metrics = {"loss": loss, "field_loss": torch.zeros_like(loss) if own is None else own}
        rows.append(metrics | {"drift_norm": size.mean()} | stats)
    mean = {name: torch.stack([row[name].detach() for row in rows]).mean() for name in rows[0]}
    return torch.stack(terms).sum(), mean


def _unit(mean: Tensor, x: Tensor) -> Tensor:
    """What features are divided by, 1 / sqrt(D) where all are the same, whose drift is 0."""
    return mean.where(mean > 0, 1.0) / math.sqrt(x.shape[-1])


def _learned(
    field: SetField,
    x: Tensor,
    pos: Tensor,
    neg: Tensor,
    fresh: Tensor,
    weight: Tensor | None,
    objective: Objective,
    taus: Sequence[float],
) -> tuple[Tensor, Tensor | None]:
    """The detached drift of a learned field, and its own loss."""
    ahead = objective == "look_ahead"
    v, *shift = field.fields(
        x, pos, neg, weight, axes=[field.axes, "separate"] if ahead else [field.axes]
    )
    options = {
        "taus": [tau * math.sqrt(x.shape[-1]) for tau in taus],
        "axes": field.axes,
        "weight": weight,
    }
    return v.detach(), field_loss(*shift or [v], x, pos, neg, fresh, objective, **options)
