"""What determines trained weights: the recipe, the order of the examples, the learning rate.

Order and learning rate are pure functions of seed and step, so that a killed run continues without
any state of a sampler.
"""

import math
from dataclasses import field
from functools import lru_cache
from typing import Annotated, Literal

import pydantic
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from fieldbook.nn.checks import Decay, NonNegative, Positive, require
from fieldbook.nn.machine import Precision
from fieldbook.nn.seeds import stream


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Recipe:
    """Everything that determines the trained weights, beside the data and the initial weights.

    Attributes:
        steps: updates; `batch_size`: examples per update, over all micro-batches and ranks; `seed`:
            of order and noise.
        lr, weight_decay, betas: of AdamW (decoupled decay); `clip`: largest global norm of the
            gradient.
        lr_scale: factors on `lr` for the parameters whose name starts with the key, e.g.
            `{"encoder.": 0.1}`.
        warmup: updates of linear warm-up; `schedule`: `cosine` falls to `lr_min` at the last step;
            `plateau` multiplies by `plateau_factor` after more than `plateau_patience` evaluations
            without improvement.
        precision: of autocast; `fp16` scales the loss.
        shuffle_block: shuffle blocks of so many examples, and the examples within each, so that
            data larger than memory are read in long pieces; None shuffles all examples alike.
        micro_batch: examples per forward pass; halved when memory runs out. Noise and BatchNorm see
            micro-batches.
        ema: decay per update of the averaged weights, which are then those evaluated.
        eval_every: updates between evaluations; `monitor`: the metric that selects the best
            weights, which must improve by more than `min_delta`; `patience`: evaluations without
            improvement before stopping early.
        max_skipped_in_row, max_skipped_share: how many non-finite updates are tolerated. The share,
            of the updates so far, counts once more than `max_skipped_in_row` have been skipped in
            all.
    Raises:
        ValueError: a field is out of range, unknown, or needs another; names it.
    """

    steps: PositiveInt
    batch_size: PositiveInt
    lr: Positive
    seed: NonNegativeInt = 0
    weight_decay: NonNegative = 0.0
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    clip: Positive | None = None
    lr_scale: dict[str, NonNegative] = field(default_factory=dict)
    warmup: NonNegativeInt = 0
    schedule: Literal["constant", "cosine", "plateau"] = "constant"
    lr_min: NonNegative = 0.0
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    plateau_patience: NonNegativeInt = 5
    precision: Precision = "fp32"
    shuffle_block: PositiveInt | None = None
    micro_batch: PositiveInt | None = None
    ema: Decay | None = None
    eval_every: PositiveInt | None = None
    monitor: str | None = None
    mode: Literal["min", "max"] = "min"
    patience: PositiveInt | None = None
    min_delta: NonNegative = 0.0
    max_skipped_in_row: NonNegativeInt = 10
    max_skipped_share: Annotated[float, Field(ge=0, le=1)] = 0.01

    def __post_init__(self) -> None:
        require(self.warmup <= self.steps, "warmup", self.warmup, f"at most steps = {self.steps}")
        require(self.lr_min <= self.lr, "lr_min", self.lr_min, f"at most lr = {self.lr}")
        watching = self.patience or self.schedule == "plateau"
        accepted = "the name of a metric, for patience or schedule = plateau"
        require(self.monitor or not watching, "monitor", self.monitor, accepted)


def indices(n: int, batch_size: int, step: int, seed: int, *, block: int | None = None) -> Tensor:
    """Which examples an update sees, (batch,) int64: every one of the n exactly once per epoch.

    Each epoch is a fresh permutation, and batches run on through its end, so that all are full.

    Args:
        step: number of the update, from 0; `block`: as `Recipe.shuffle_block`.
    Raises:
        ValueError: n, batch_size or block < 1, or step < 0.
    """
    for name, value in (("n", n), ("batch_size", batch_size), ("block", block)):
        require(value is None or value >= 1, name, value, "at least 1")
    require(step >= 0, "step", step, "at least 0")
    start = step * batch_size
    stop = start + batch_size
    epochs = range(start // n, (stop - 1) // n + 1)
    parts = [_permutation(n, seed, e, block)[max(start - e * n, 0) : stop - e * n] for e in epochs]
    return torch.cat(parts)


@lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int, block: int | None) -> Tensor:
    generator = torch.Generator().manual_seed(stream("order", seed, epoch))
    if block is None or block >= n:
        return torch.randperm(n, generator=generator)
    starts = block * torch.randperm(math.ceil(n / block), generator=generator)
    parts = [i + torch.randperm(min(block, n - i), generator=generator) for i in starts.tolist()]
    return torch.cat(parts)


def learning_rate(recipe: Recipe, step: int, factor: float = 1.0) -> float:
    """Learning rate of the update after `step` earlier ones: linear warm-up, then the schedule.

    Args:
        factor: product of the plateau's cuts so far; `lr_min` bounds the result from below.
    Source: the cosine is Loshchilov & Hutter 2017 (arXiv:1608.03983), eq. 5, without restarts.
    """
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    if recipe.schedule == "cosine":
        share = (step - recipe.warmup) / max(recipe.steps - recipe.warmup, 1)
        return recipe.lr_min + (recipe.lr - recipe.lr_min) * 0.5 * (1 + math.cos(math.pi * share))
    return max(recipe.lr * factor, recipe.lr_min)
