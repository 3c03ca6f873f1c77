"""What tells a drifting field that was trained from one that was not, or good samples from bad.

The loss and antisymmetry cannot.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fieldbook.drifting import kernel
from fieldbook.drifting.distances import energy_distance
from fieldbook.drifting.experiment import Reals, checkpoints, read_checkpoint, restore
from fieldbook.drifting.learned import SetField
from fieldbook.drifting.loss import Sets, drifting_loss
from fieldbook.drifting.setting import Setting
from fieldbook.nn.checks import require
from fieldbook.nn.seeds import stream

Field = Callable[..., Tensor]
SETS = 32  # samples per set


def audit_run(folder: Path) -> dict[str, float]:
    """`changed`, `reach` and `null_ratio` of a run's learned field; nan for the kernel field.

    The field is that of the pixels, the samples are real images of any class, and the positives are
    of one.
    """
    first, *_, last = checkpoints(folder)
    model, saved = restore(last, ema=False)
    if model.field is None:
        return dict.fromkeys(("changed", "reach", "null_ratio"), math.nan)
    reals = Reals(saved.setting)
    generator = torch.Generator().manual_seed(stream("audit"))

    def draw(labels: Tensor) -> Tensor:
        return reals.draw(labels, SETS, generator).flatten(2)

    labels = torch.arange(saved.setting.classes)
    mixed = draw(torch.full_like(labels, saved.setting.classes))
    sets = [draw(labels) for _ in range(3)]
    return {
        "changed": changed(read_checkpoint(first).model, saved.model),
        "reach": reach(model.field[0].shift, mixed, *sets[:2]),
        "null_ratio": null_ratio(model.field[0], mixed, *sets),
    }


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """Share of a field's tensors, by their names, in which at least one bit differs."""
    names = [name for name in before if name.startswith("field.")]
    return sum(not torch.equal(before[name], after[name]) for name in names) / len(names)


@torch.no_grad()
def reach(field: Field, x: Tensor, pos: Tensor, fresh: Tensor) -> float:
    """Energy distance to fresh data after a step x + V over before: 0 is arrival, 1 no progress.

    Args:
        field: of (x, pos, neg), on features with a mean distance of sqrt(D), as in training.
        x: (..., N, D); `pos`, `fresh`: (..., P, D).
    Raises:
        ValueError: x is no farther from fresh data than fresh data are, so that there is no way to
            go.
    """
    unit = _unit(x, pos)
    x, pos, fresh = x / unit, pos / unit, fresh / unit
    after = energy_distance(x + field(x, pos, x), fresh).mean()
    before = energy_distance(x, fresh).mean()
    require(before > 0, "energy distance of x to fresh", float(before), "x away from the data")
    return float(after / before)


@torch.no_grad()
def null_ratio(field: Field, x: Tensor, p1: Tensor, p2: Tensor, p3: Tensor) -> float:
    """Size of V between three samples of one distribution over that at x: sampling noise alone."""
    unit = _unit(x, p2)
    null = field(p1 / unit, p2 / unit, p3 / unit, mask_self=False)
    at_x = field(x / unit, p2 / unit, x / unit)
    size = kernel.rms(at_x, -at_x.ndim).mean()
    require(size > 0, "size of the field at x", 0.0, "x where the field is not zero")
    return float(kernel.rms(null, -null.ndim).mean() / size)


def _unit(x: Tensor, pos: Tensor) -> Tensor:
    """What features are divided by to have a mean distance of sqrt(D)."""
    _, stats = kernel.distances(x, pos, x)
    return stats.mean / x.shape[-1] ** 0.5


def known_drifts(setting: Setting, seed: int) -> dict[str, float]:
    """`drifts` of real images, of the class means with a trace of noise, and of noise."""
    reals = Reals(setting)
    generator = torch.Generator().manual_seed(stream("known", seed))
    labels = torch.arange(setting.classes)
    pos, real = (reals.draw(labels, setting.set_size, generator).flatten(2) for _ in range(2))
    noise = torch.randn(real.shape, generator=generator)
    means = [reals.x[places].flatten(1).mean(0) for places in reals.members[:-1]]
    means = torch.stack(means)[:, None] + 1e-3 * noise
    return drifts({"real images": real, "class means": means, "noise": noise}, pos, setting)


@torch.no_grad()
def drifts(cases: Mapping[str, Tensor], pos: Tensor, setting: Setting) -> dict[str, float]:
    """`<case>, loss` and `<case>, drift_norm` of named samples (G, N, D) near data (G, P, D)."""
    found = {}
    for case, x in cases.items():
        _, metrics = drifting_loss([Sets(x, pos)], setting)
        found |= {f"{case}, {name}": float(metrics[name]) for name in ("loss", "drift_norm")}
    return found


@torch.no_grad()
def identities(x: Tensor, pos: Tensor, neg: Tensor) -> dict[str, float]:
    """How far fields are from what holds exactly, as largest deviation, for sets without x itself.

    Args:
        x, pos, neg: (N, D), (P, D) and (Q, D), in double precision.
    Returns:
        `factor`: of Alg. 2 with the softmax over y alone from a (1 - a) times the difference of two
        means, a being the share of the softmax on the positives; `kernel` and `untrained`: of the
        kernel field and of a learned one with random weights from antisymmetry.
    """
    near, far = ((-torch.cdist(x, y)).exp().sum(1, keepdim=True) for y in (pos, neg))
    a = near / (near + far)
    plain, _ = kernel.field(x, pos, neg, [1.0], axes="separate", mask_self=False)
    joint, _ = kernel.field(x, pos, neg, [1.0], axes="y", mask_self=False)
    there, _ = kernel.field(x, pos, neg, [1.0], mask_self=False)
    back, _ = kernel.field(x, neg, pos, [1.0], mask_self=False)
    random = SetField(x.shape[1], [], projection=True, axes="separate", seed=1).to(x)
    swapped = random(x, pos, neg, mask_self=False) + random(x, neg, pos, mask_self=False)
    found = {"factor": joint - a * (1 - a) * plain, "kernel": there + back, "untrained": swapped}
    return {name: float(deviation.abs().max()) for name, deviation in found.items()}
