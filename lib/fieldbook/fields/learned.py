"""A drifting field with learned attention over sets, and what it can be trained for.

V(x; P, Q) = S(x, P) - S(x, Q), where S is a mean of y - x over a set with learned weights. It is antisymmetric whatever
its parameters are, so that antisymmetry says nothing about whether they are any good, or were trained at all.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fieldbook.fields import kernel
from fieldbook.measures.distances import energy_distance
from fieldbook.models.blocks import MASKED, seeded
from fieldbook.recipe import require

Objective = Literal["frozen", "look_ahead", "distill", "attached"]


class SetField(nn.Module):
    """Attention over a set, with logits from [g(x), g(y), g(y) - g(x), |g(y) - g(x)|] and a prior -|g(y) - g(x)| / tau.

    With a prior the last layer starts at zero, so that the untrained field is the kernel field of Eq. 8 to 10. Without
    one it is random.

    Args:
        dim: of the features; `hidden`: width of the scoring network; `projection`: dimension of g, None for g(x) = x.
        tau: temperature of the prior, in the units of x; None for no prior.
    """

    def __init__(
        self, dim: int, *, hidden: int = 32, projection: int | None = None, tau: float | None = 0.05, seed: int
    ):
        super().__init__()
        self.tau, inner = tau, projection or dim
        with seeded(seed):
            self.project = nn.Linear(dim, inner, bias=False) if projection else None
            self.back = nn.Linear(inner, dim, bias=False) if projection else None
            self.of_x, self.of_y = nn.Linear(inner, hidden), nn.Linear(inner, hidden, bias=False)
            self.of_distance = nn.Linear(1, hidden, bias=False)
            self.score = nn.Sequential(nn.GELU(), nn.Linear(hidden, 1, bias=False))
            if projection:
                nn.init.orthogonal_(self.project.weight)
                self.back.weight.data.copy_(self.project.weight.mT)  # g starts as a rotation, or the nearest to one
            if tau is not None:
                nn.init.zeros_(self.score[-1].weight)

    def shift(self, x: Tensor, y: Tensor, weight: Tensor | None = None, *, mask_self: bool = False) -> Tensor:
        """S(x, y): the learned mean of y - x over the set of all y.

        A linear layer of g(y) - g(x) is one of g(y) minus one of g(x): no (N, M, D) tensor is needed.

        Args:
            x: (..., N, D); `y`: (..., M, D), the first N of which are x itself if `mask_self`, and are left out.
            weight: (..., M), as how many copies each y counts.
        Returns:
            (..., N, D); zero if nothing is left of the set.
        """
        if mask_self and y.shape[-2] == 1:
            return torch.zeros_like(x)
        gx, gy = (x, y) if self.project is None else (self.project(x), self.project(y))
        distance = torch.cdist(gx, gy)
        hidden = self.of_x(gx)[..., :, None, :] + self.of_y(gy)[..., None, :, :]
        logit = self.score(hidden + self.of_distance(distance[..., None])).squeeze(-1)
        if self.tau is not None:
            logit = logit - distance / self.tau
        if weight is not None:
            logit = logit + weight.clamp_min(1e-30).log()[..., None, :]
        if mask_self:
            own = torch.eye(x.shape[-2], y.shape[-2], dtype=torch.bool, device=x.device)
            logit = logit.masked_fill(own, MASKED)
        moved = logit.float().softmax(-1).to(gy) @ gy - gx
        return moved if self.back is None else self.back(moved)

    def forward(
        self, x: Tensor, pos: Tensor, neg: Tensor, weight: Tensor | None = None, *, mask_self: bool = True
    ) -> Tensor:
        """V(x; pos, neg), (..., N, D); arguments as in `fieldbook.fields.kernel.field`."""
        return self.shift(x, pos) - self.shift(x, neg, weight, mask_self=mask_self)


class FieldBank(nn.ModuleList):
    """One `SetField` per feature scale.

    Args:
        dims: of the features at each scale; `projection`: project each onto as many dimensions as it has.
        options: of every `SetField`; `tau` is in units of the mean distance, sqrt(dim) for normalised features.
    """

    def __init__(self, dims: Sequence[int], *, projection: bool, tau: float | None, hidden: int = 32, seed: int):
        scaled = [None if tau is None else tau * math.sqrt(d) for d in dims]
        parts = zip(dims, scaled, strict=True)
        super().__init__(
            SetField(d, hidden=hidden, projection=d if projection else None, tau=t, seed=seed + i)
            for i, (d, t) in enumerate(parts)
        )


def field_loss(
    v: Tensor, x: Tensor, pos: Tensor, neg: Tensor, fresh: Tensor, objective: Objective,
    *, tau: float, weight: Tensor | None = None, eta: float = 1.0, mask_self: bool = True,
) -> Tensor | None:  # fmt: skip
    """What the parameters of a field minimise.

    Args:
        v: the field at x, with its graph; `x, pos, neg, weight`: what it was computed from, detached.
        fresh: (..., P, D), further positives that the field has not seen.
        objective: `look_ahead`, the energy distance of x + eta V to fresh positives; `distill`, the squared error to
            the kernel field at temperature `tau`; `attached`, |V|^2, as if nothing were detached; `frozen`, none.
    Returns:
        0-d, or None for `frozen`: a detached target leaves nothing that depends on the parameters.
    """
    require(objective in get_args(Objective), "objective", objective, f"one of {', '.join(get_args(Objective))}")
    if objective == "look_ahead":
        return energy_distance(x + eta * v, fresh).mean() / math.sqrt(x.shape[-1])
    if objective == "distill":
        target = kernel.field(x, pos, neg, tau, weight, axes="separate", mask_self=mask_self)
        return nn.functional.mse_loss(v, target)
    return v.square().mean() if objective == "attached" else None
