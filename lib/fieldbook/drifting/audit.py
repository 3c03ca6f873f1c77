"""What tells a drifting field that was trained from one that was not, where the loss and
antisymmetry cannot."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fieldbook.drifting import kernel
from fieldbook.drifting.distances import energy_distance
from fieldbook.drifting.loss import Sets, drifting_loss
from fieldbook.nn.checks import require

Field = Callable[..., Tensor]


def changed(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], prefix: str = "field."
) -> float:
    """Share of the tensors whose name starts with `prefix` in which at least one bit differs; nan
    without any."""
    names = [name for name in before if name.startswith(prefix)]
    return (
        sum(not torch.equal(before[name], after[name]) for name in names) / len(names)
        if names
        else float("nan")
    )


@torch.no_grad()
def reach(field: Field, x: Tensor, pos: Tensor, fresh: Tensor) -> float:
    """Energy distance to fresh data after one step x + V, relative to before: 0 is arrival, 1 no
    progress.

    Args:
        field: of (x, pos, neg), on features with a mean distance of sqrt(D), as in training.
        x: (..., N, D); `pos`, `fresh`: (..., P, D).
    Raises:
        ValueError: x is no farther from fresh data than fresh data are, so that there is no way to
            go.
    """
    unit = kernel.distances(x, pos, x).mean / x.shape[-1] ** 0.5
    x, pos, fresh = x / unit, pos / unit, fresh / unit
    after = energy_distance(x + field(x, pos, x), fresh).mean()
    before = energy_distance(x, fresh).mean()
    require(before > 0, "energy distance of x to fresh", float(before), "x away from the data")
    return float(after / before)


@torch.no_grad()
def null_ratio(field: Field, x: Tensor, sets: tuple[Tensor, Tensor, Tensor]) -> float:
    """Size of V between three samples of one distribution, relative to that at x: what sampling
    noise alone gives."""
    p1, p2, p3 = sets
    unit = kernel.distances(x, p2, x).mean / x.shape[-1] ** 0.5
    null = field(p1 / unit, p2 / unit, p3 / unit, mask_self=False)
    at_x = field(x / unit, p2 / unit, x / unit)
    size = kernel.rms(at_x, -at_x.ndim).mean()
    require(size > 0, "size of the field at x", 0.0, "x where the field is not zero")
    return float(kernel.rms(null, -null.ndim).mean() / size)


@torch.no_grad()
def losses(
    cases: Mapping[str, Tensor], pos: Tensor, taus: tuple[float, ...] = kernel.TAUS
) -> list[dict[str, object]]:
    """Training loss and size of the drift for named samples (G, N, D) against positives (G, P, D):
    one row per case."""
    rows = []
    for name, x in cases.items():
        _, metrics = drifting_loss([Sets(x, pos)], taus=taus)
        rows.append(
            {
                "case": name,
                "loss": float(metrics["loss"]),
                "drift_norm": float(metrics["drift_norm"]),
            }
        )
    return rows
