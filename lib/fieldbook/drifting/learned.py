"""A drifting field with learned attention over sets, and what it can be trained for.

It weighs samples as Alg. 2 does, with logits from a network in place of distances over a
temperature. It is antisymmetric whatever its parameters are, so that antisymmetry says nothing
about whether they are any good, or were trained at all.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fieldbook.drifting import kernel
from fieldbook.drifting.distances import energy_distance, near_origin
from fieldbook.drifting.setting import Setting
from fieldbook.nn.checks import at_least_single, require
from fieldbook.nn.layers import MASKED, seeded

HIDDEN = 32  # width of the network that scores pairs


class SetField(nn.Module):
    """Drift with logits s[g(x), g(y), g(y) - g(x), |g(y) - g(x)|] - |g(y) - g(x)| / tau.

    With temperatures the last layer of s starts at zero, so that the untrained field is the kernel
    field. Without any there is one random field.

    Args:
        dim: of the features; `projection`: g is a matrix, at first a rotation, and not g(x) = x.
        taus: temperatures of the prior, in the units of x; none for no prior.
        axes: as in `fieldbook.drifting.kernel.field`; `separate` is V = S(x, pos) - S(x, neg), S
            being a mean of y - x.
    """

    def __init__(
        self,
        dim: int,
        taus: Sequence[float],
        *,
        projection: bool = False,
        axes: kernel.Axes = "both",
        seed: int,
    ):
        super().__init__()
        self.axes = axes
        self.taus = tuple(taus)
        with seeded(seed):
            self.project = nn.Linear(dim, dim, bias=False) if projection else None
            self.back = nn.Linear(dim, dim, bias=False) if projection else None
            self.of_x = nn.Linear(dim, HIDDEN)
            self.of_y = nn.Linear(dim, HIDDEN, bias=False)
            self.of_distance = nn.Parameter(torch.empty(HIDDEN).uniform_(-1, 1))
            self.score = nn.Sequential(nn.GELU(), nn.Linear(HIDDEN, 1, bias=False))
            if projection:
                nn.init.orthogonal_(self.project.weight)
                self.back.weight.data.copy_(self.project.weight.mT)
            if self.taus:
                nn.init.zeros_(self.score[-1].weight)

    def logits(self, gx: Tensor, gy: Tensor) -> Tensor:
        """(..., N, D), (..., M, D) -> (T, ..., N, M).

        A linear layer of g(y) - g(x) is one of g(y) minus one of g(x): no (N, M, D) tensor needed.
        """
        distance = torch.cdist(*near_origin(gx, gy))
        of_both = self.of_x(gx)[..., :, None, :] + self.of_y(gy)[..., None, :, :]
        apart = distance[..., None].to(of_both)
        hidden = torch.addcmul(of_both, apart, self.of_distance.to(of_both))
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
        """V(x; pos, neg), (T, ..., N, D), for each kind of softmax; else as `kernel.field`."""
        g, back = self.project or nn.Identity(), self.back or nn.Identity()
        gx, gp, gn = (g(part) for part in (x, pos, neg))
        p = pos.shape[-2]
        logit = self.logits(gx, torch.cat((gp, gn), -2))
        if mask_self:
            own = torch.eye(x.shape[-2], neg.shape[-2], dtype=torch.bool, device=x.device)
            logit = logit.masked_fill(nn.functional.pad(own, (p, 0)), MASKED)
        columns = logit.logsumexp(-2, keepdim=True)
        if weight is not None:
            logit = logit + nn.functional.pad(weight.log().clamp_min(MASKED), (p, 0))[..., None, :]
        # A difference of means needs all 24 bits.
        with torch.autocast(x.device.type, enabled=False):
            x, neg, pos = near_origin(*(at_least_single(part) for part in (gx, gn, gp)))
            weights = [kernel.affinities(logit, p, kind, columns) for kind in axes]
            found = [kernel.balance(a, x, pos, neg) for a in weights]
        return [back(v) for v in found]

    def forward(self, x: Tensor, pos: Tensor, neg: Tensor, *, mask_self: bool = True) -> Tensor:
        """V(x; pos, neg), (T, ..., N, D), with its own kind of softmax."""
        return self.fields(x, pos, neg, axes=[self.axes], mask_self=mask_self)[0]

    def shift(self, x: Tensor, pos: Tensor, neg: Tensor, *, mask_self: bool = True) -> Tensor:
        """The same with a softmax over each set: a difference of means, as long as the way is."""
        return self.fields(x, pos, neg, axes=["separate"], mask_self=mask_self)[0]

    def drift(
        self,
        x: Tensor,
        pos: Tensor,
        neg: Tensor,
        fresh: Tensor,
        weight: Tensor | None,
        setting: Setting,
    ) -> tuple[Tensor, Tensor | None]:
        """V, detached, and what the parameters minimise under `setting.objective`, 0-d.

        For `look_ahead` that is the energy distance of x + V to fresh positives, V being a
        difference of two means; for `distill` the relative squared error to the kernel field; for
        `attached` |V|^2, as if nothing were detached; for `frozen` nothing, None: a detached target
        does not depend on the parameters.

        Args:
            x, pos, neg, weight: as in `fields`, detached, with a mean distance of sqrt(D).
            fresh: (..., P, D), further positives that the field has not seen.
        """
        ahead = setting.objective == "look_ahead"
        kinds = [self.axes, "separate"] if ahead else [self.axes]
        v, *shift = self.fields(x, pos, neg, weight, axes=kinds)
        length = math.sqrt(x.shape[-1])
        if ahead:
            loss = energy_distance(x + shift[0], fresh, check=False).mean() / length
        elif setting.objective == "distill":
            require(len(setting.taus) == len(v), "taus", setting.taus, f"one per field, {len(v)}")
            taus = [tau * length for tau in setting.taus]
            target, _ = kernel.field(x, pos, neg, taus, weight, axes=self.axes)
            loss = nn.functional.mse_loss(v, target) / target.square().mean()
        else:
            loss = v.square().mean() if setting.objective == "attached" else None
        return v.detach(), loss
