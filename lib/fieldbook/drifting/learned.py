"""A drifting field with learned attention over sets, and what it can be trained for.

It weighs samples as Alg. 2 does, with logits from a network in place of distances over a
temperature. It is antisymmetric whatever its parameters are, so that antisymmetry says nothing
about whether they are any good, or were trained at all.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fieldbook.drifting import kernel
from fieldbook.drifting.distances import energy_distance, near_origin
from fieldbook.nn.checks import at_least_single, require
from fieldbook.nn.layers import MASKED, seeded

Objective = Literal["frozen", "look_ahead", "distill", "attached"]


class SetField(nn.Module):
    """Drift with logits s[g(x), g(y), g(y) - g(x), |g(y) - g(x)|] - |g(y) - g(x)| / tau, one field
    per temperature.

    With temperatures the last layer of s starts at zero, so that the untrained field is the kernel
    field. Without any there is one random field.

    Args:
        dim: of the features; `hidden`: width of the scoring network; `projection`: dimension of g,
            None for g(x) = x.
        taus: temperatures of the prior, in the units of x; none for no prior.
        axes: as in `fieldbook.drifting.kernel.field`; `separate` is V = S(x, pos) - S(x, neg), S
            being a mean of y - x.
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden: int = 32,
        projection: int | None = None,
        taus: Sequence[float] = (0.05,),
        axes: kernel.Axes = "both",
        seed: int,
    ):
        super().__init__()
        self.taus, self.axes, inner = tuple(taus), axes, projection or dim
        with seeded(seed):
            self.project = nn.Linear(dim, inner, bias=False) if projection else None
            self.back = nn.Linear(inner, dim, bias=False) if projection else None
            self.of_x, self.of_y = nn.Linear(inner, hidden), nn.Linear(inner, hidden, bias=False)
            self.of_distance = nn.Parameter(torch.empty(hidden).uniform_(-1, 1))
            self.score = nn.Sequential(nn.GELU(), nn.Linear(hidden, 1, bias=False))
            if projection:
                nn.init.orthogonal_(self.project.weight)
                self.back.weight.data.copy_(
                    self.project.weight.mT
                )  # g starts as a rotation, or the nearest to one
            if self.taus:
                nn.init.zeros_(self.score[-1].weight)

    def logits(self, gx: Tensor, gy: Tensor) -> Tensor:
        """(..., N, D), (..., M, D) -> (T, ..., N, M).

        A linear layer of g(y) - g(x) is one of g(y) minus one of g(x): no (N, M, D) tensor is
        needed.
        """
        distance = torch.cdist(*near_origin(gx, gy))
        of_both = self.of_x(gx)[..., :, None, :] + self.of_y(gy)[..., None, :, :]
        hidden = torch.addcmul(
            of_both, distance[..., None].to(of_both), self.of_distance.to(of_both)
        )
        logit = at_least_single(self.score(hidden).squeeze(-1))
        return torch.stack([logit - distance / tau for tau in self.taus] or [logit])

    def fields(
        self,
        x: Tensor,
        pos: Tensor,
        neg: Tensor,
        weight: Tensor | None = None,
        *,
        axes: Sequence[kernel.Axes],
        mask_self: bool = True,
    ) -> list[Tensor]:
        """V(x; pos, neg), (T, ..., N, D), for each kind of softmax; arguments as in
        `fieldbook.drifting.kernel.field`."""
        g, back = self.project or nn.Identity(), self.back or nn.Identity()
        gx, gp, gn = g(x), g(pos), g(neg)
        p = pos.shape[-2]
        logit = self.logits(gx, torch.cat((gp, gn), -2))
        if mask_self:
            own = torch.eye(x.shape[-2], neg.shape[-2], dtype=torch.bool, device=x.device)
            logit = logit.masked_fill(nn.functional.pad(own, (p, 0)), MASKED)
        columns = logit.logsumexp(-2, keepdim=True)
        if weight is not None:
            logit = logit + nn.functional.pad(weight.log().clamp_min(MASKED), (p, 0))[..., None, :]
        with torch.autocast(
            x.device.type, enabled=False
        ):  # a difference of means needs all 24 bits
            x, neg, pos = near_origin(*(at_least_single(part) for part in (gx, gn, gp)))
            weights = [kernel.affinities(logit, p, kind, columns) for kind in axes]
            found = [kernel.balance(a, x, pos, neg) for a in weights]
        return [back(v) for v in found]

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        neg: Tensor,
        weight: Tensor | None = None,
        *,
        mask_self: bool = True,
    ) -> Tensor:
        """V(x; pos, neg), (T, ..., N, D), with its own kind of softmax."""
        return self.fields(x, pos, neg, weight, axes=[self.axes], mask_self=mask_self)[0]

    def shift(self, x: Tensor, pos: Tensor, neg: Tensor, *, mask_self: bool = True) -> Tensor:
        """The same with a softmax over each set: a difference of two means, as long as the way to
        the data."""
        return self.fields(x, pos, neg, axes=["separate"], mask_self=mask_self)[0]


class FieldBank(nn.ModuleList):
    """One `SetField` per feature scale.

    Args:
        dims: of the features at each scale; `projection`: project each onto as many dimensions as
            it has.
        taus: in units of the mean distance, sqrt(dim) for normalised features; `axes`, `hidden`: of
            every `SetField`.
    """

    def __init__(
        self,
        dims: Sequence[int],
        *,
        projection: bool,
        taus: Sequence[float],
        axes: kernel.Axes = "both",
        hidden: int = 32,
        seed: int,
    ):
        options = {"axes": axes, "hidden": hidden}
        super().__init__(
            SetField(
                d,
                projection=d if projection else None,
                taus=[tau * math.sqrt(d) for tau in taus],
                seed=seed + i,
                **options,
            )
            for i, d in enumerate(dims)
        )


def field_loss(
    v: Tensor,
    x: Tensor,
    pos: Tensor,
    neg: Tensor,
    fresh: Tensor,
    objective: Objective,
    *,
    taus: Sequence[float],
    axes: kernel.Axes = "both",
    weight: Tensor | None = None,
    mask_self: bool = True,
) -> Tensor | None:
    """What the parameters of a field minimise.

    Args:
        v: the field at x, (T, ..., N, D), with its graph; `x, pos, neg, weight`: what it was
            computed from, detached.
        fresh: (..., P, D), further positives that the field has not seen.
        objective: `look_ahead`, the energy distance of x + v to fresh positives, for v a difference
            of two means (`axes="separate"`); `distill`, the relative squared error to the kernel
            field with `taus` and `axes`; `attached`, |V|^2, as if nothing were detached; `frozen`,
            none.
    Returns:
        0-d, or None for `frozen`: a detached target leaves nothing that depends on the parameters.
    """
    require(
        objective in get_args(Objective),
        "objective",
        objective,
        f"one of {', '.join(get_args(Objective))}",
    )
    if objective == "look_ahead":
        return energy_distance(x + v, fresh, check=False).mean() / math.sqrt(x.shape[-1])
    if objective == "distill":
        require(len(taus) == len(v), "taus", tuple(taus), f"one per field, {len(v)}")
        target = kernel.field(x, pos, neg, taus, weight, axes=axes, mask_self=mask_self)
        return nn.functional.mse_loss(v, target) / target.square().mean()
    return v.square().mean() if objective == "attached" else None
