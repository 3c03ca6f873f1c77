"""Rows about trained generators: toys beside their floor, samples as text, the audit of a field,
known drifts."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fieldbook.drifting import audit, kernel
from fieldbook.drifting.distances import nearest, sliced_w2
from fieldbook.drifting.evaluation import sample, sheet
from fieldbook.drifting.experiment import (
    Drifter,
    Reals,
    Setting,
    balanced_labels,
    read_checkpoint,
    restore,
)
from fieldbook.drifting.images import Images, to_uint8
from fieldbook.drifting.toys import TOYS
from fieldbook.nn.seeds import stream

SETS = 32  # samples per set in the audit


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, first to last."""
    return sorted(folder.glob("step_*.safetensors"))


def toy_distances(model: Drifter, toy: str, n: int = 2048, draws: int = 5) -> dict[str, float]:
    """How n generated points compare with real ones, beside other real ones.

    Returns:
        Sliced Wasserstein distance to real points, `w2`, and of real ones, `floor`, with `_sd`
        over draws; `stray`, the share that is farther from its nearest of 4 n real points than 99 %
        of real points are.
    """
    found = []
    for repeat in range(draws):
        generator = torch.Generator().manual_seed(stream("toy", repeat))
        real, other = (TOYS[toy](n, generator) for _ in range(2))
        made = sample(model, torch.zeros(n, dtype=torch.long), 1.0, repeat)
        gap, usual = (nearest(x, TOYS[toy](4 * n, generator)) for x in (made, other))
        stray = float((gap > usual.quantile(0.99)).double().mean())
        found.append([*(sliced_w2(x, real, generator) for x in (made, other)), stray])
    (w2, floor, stray), (w2_sd, floor_sd, _) = np.mean(found, 0), np.std(found, 0, ddof=1)
    return {"w2": w2, "floor": floor, "w2_sd": w2_sd, "floor_sd": floor_sd, "stray": stray}


def toy_points(model: Drifter, toy: str, n: int = 600) -> list[dict[str, object]]:
    """Points (x, y) to draw: `data`, `generated`, and `early`, half-way there; and the `field` (u,
    v) of the latter."""
    real = TOYS[toy](n, torch.Generator().manual_seed(stream("points", toy)))
    made = sample(model, torch.zeros(n, dtype=torch.long), 1.0, 7)
    axis = torch.linspace(-2, 2, 15)
    grid = torch.cartesian_prod(axis, axis)
    v = kernel.field(grid, real, made / 2, 0.1, axes="y", relative=True, mask_self=False)
    rows = []
    for kind, at in {"data": real, "generated": made, "early": made / 2, "field": grid}.items():
        arrows = v if kind == "field" else torch.zeros_like(at)
        for point, (x, y, u, w) in enumerate(torch.cat([at, arrows], 1).tolist()):
            rows.append({"toy": toy, "kind": kind, "point": point, "x": x, "y": y, "u": u, "v": w})
    return rows


def sample_rows(
    folder: Path, per_class: int = 6, device: torch.device | str = "cpu"
) -> list[dict[str, object]]:
    """A few images per class from every checkpoint, under the same noise: `step`, `sample`,
    `pixels` as hexadecimal."""
    rows = []
    for path in checkpoints(folder):
        model, saved = restore(path)
        label = balanced_labels(per_class * saved.classes, saved.classes)
        rows += _pixel_rows(sample(model.to(device), label, 1.0, 3), saved.step)
    return rows


def real_rows(images: Images, per_class: int = 6) -> list[dict[str, object]]:
    """The first training images of each class, as `sample_rows` gives generated ones, at step 0."""
    members = [(images.train_label == c).nonzero()[:per_class, 0] for c in range(images.classes)]
    return _pixel_rows(images.train[torch.cat(members)], 0)


def _pixel_rows(x: Tensor, step: int) -> list[dict[str, object]]:
    return [
        {"step": step, "sample": i, "pixels": p.numpy().tobytes().hex()}
        for i, p in enumerate(to_uint8(x))
    ]


def picture(rows: pd.DataFrame, shape: tuple[int, ...], per_class: int = 6) -> np.ndarray:
    """Contact sheet of one checkpoint's `sample_rows`, a class per column; bytes."""
    texts = rows.sort_values("sample").pixels
    pixels = np.stack(
        [np.frombuffer(bytes.fromhex(text), np.uint8).reshape(shape) for text in texts]
    )
    x = torch.from_numpy(pixels).unflatten(0, (-1, per_class)).transpose(0, 1).flatten(0, 1)
    return sheet(x.float() / 127.5 - 1, rows=per_class, columns=len(x) // per_class)


def audit_run(folder: Path) -> dict[str, float]:
    """What happened to a run's learned field: `changed`, `reach` and `null_ratio`; nan for the
    kernel field.

    The field is that of the pixels, the samples are real images of any class, and the positives are
    of one.
    """
    first, last = (checkpoints(folder)[place] for place in (0, -1))
    model, saved = restore(last, ema=False)
    if model.field is None:
        return dict.fromkeys(("changed", "reach", "null_ratio"), math.nan)
    reals, generator = Reals(saved.setting), torch.Generator().manual_seed(stream("audit"))

    def draw(labels: Tensor) -> Tensor:
        return reals.draw(labels, SETS, generator).flatten(2)

    mixed = draw(torch.full_like(reals.labels, reals.any_label))
    sets = [draw(reals.labels) for _ in range(3)]
    return {
        "changed": audit.changed(read_checkpoint(first).model, saved.model),
        "reach": audit.reach(model.field[0].shift, mixed, *sets[:2]),
        "null_ratio": audit.null_ratio(model.field[0], mixed, tuple(sets)),
    }


def known_drifts(setting: Setting, seed: int) -> dict[str, float]:
    """Loss and size of the drift of real images, of the class means with a trace of noise, and of
    noise."""
    reals, generator = Reals(setting), torch.Generator().manual_seed(stream("known", seed))
    pos, real = (reals.draw(reals.labels, setting.set_size, generator).flatten(2) for _ in range(2))
    noise = torch.randn(real.shape, generator=generator)
    mean = torch.stack([reals.x[members].flatten(1).mean(0) for members in reals.members[:-1]])[
        :, None
    ]
    cases = {"real images": real, "class means": mean + 1e-3 * noise, "noise": noise}
    rows = audit.losses(cases, pos, setting.taus)
    return {f"{row['case']}, {name}": row[name] for row in rows for name in ("loss", "drift_norm")}
