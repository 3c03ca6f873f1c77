"""What determines a trained generator: one object, which its checkpoints store."""

import math
from typing import Annotated, Literal

import pydantic
from pydantic import Field, NonNegativeInt, PositiveInt

from fieldbook.drifting.encoder import feature_dims
from fieldbook.drifting.images import SHAPES
from fieldbook.drifting.kernel import TAUS, Axes
from fieldbook.nn.checks import Positive, require
from fieldbook.nn.recipe import Recipe


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Setting:
    """Data, generator, field, guidance and schedule.

    Attributes:
        data: a toy, or images; `folder`: of the files of `mnist` and `cifar10`.
        generator: with `width`, `depth`, and `patch` (dit), or `noise_dim` and `codebook`, how many
            vectors there are to choose a style from (mlp).
        field: `kernel`, with `taus`, `axes`, `pull` and `push`; or `learned`, with `objective`,
            `axes`, `projection` and `prior`: begin as the kernel field with `taus`, or at random.
        encoder: drift in the features of an autoencoder, too, and not in pixels alone.
        set_size: generated samples per class and update; `positives`: real ones; `groups`: classes
            per update.
        cfg: `none`; `one_pass`, with `unconditional` real negatives per class and strengths drawn
            on [1, `alpha_max`]; `two_pass`, which trains one more group without class and
            extrapolates when sampling.
        steps, lr, ..: of the `Recipe`; `ema_share`: of the run, seen by the averaged weights;
            `field_lr`: factor on the learning rate for a learned field.
    """

    data: Literal["checkerboard", "ring", "swiss_roll", "digits", "mnist", "cifar10"]
    folder: str = ""
    generator: Literal["mlp", "dit"] = "mlp"
    width: PositiveInt = 64
    depth: PositiveInt = 2
    noise_dim: PositiveInt = 6
    codebook: NonNegativeInt = 0
    patch: PositiveInt = 4
    field: Literal["kernel", "learned"] = "kernel"
    objective: Literal["frozen", "look_ahead", "distill", "attached"] = "look_ahead"
    taus: tuple[Positive, ...] = TAUS
    axes: Axes = "both"
    pull: Positive = 1.0
    push: Positive = 1.0
    prior: bool = True
    projection: bool = False
    encoder: bool = False
    set_size: Annotated[int, Field(ge=2)] = 32
    positives: PositiveInt = 32
    groups: PositiveInt = 10
    cfg: Literal["none", "one_pass", "two_pass"] = "none"
    unconditional: PositiveInt = 16
    alpha_max: Annotated[float, Field(gt=1)] = 4.0
    steps: PositiveInt = 1000
    lr: Positive = 6e-3
    field_lr: Positive = 0.3
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup: NonNegativeInt = 50
    clip: Positive = 1.0
    ema_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    precision: Literal["fp32", "bf16"] = "fp32"
    eval_every: PositiveInt = 200
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        require(self.classes or not self.encoder, "encoder", self.encoder, "False for toys")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample."""
        return SHAPES.get(self.data, (2,))

    @property
    def classes(self) -> int:
        """How many there are, 0 for toys; as a label, this number stands for no class."""
        return 10 if self.data in SHAPES else 0

    @property
    def dims(self) -> list[int]:
        """Dimension of the features to drift in, at each scale."""
        return feature_dims(self.shape) if self.encoder else [math.prod(self.shape)]

    def recipe(self) -> Recipe:
        """The recipe of `fieldbook.nn.training.fit`."""
        return Recipe(
            steps=self.steps,
            batch_size=self.set_size * self.groups,
            lr=self.lr,
            schedule=self.schedule,
            warmup=min(self.warmup, self.steps),
            clip=self.clip,
            ema=1 - 1 / max(self.ema_share * self.steps, 2),
            precision=self.precision,
            eval_every=self.eval_every,
            seed=self.seed,
            lr_scale={"field.": self.field_lr} if self.field == "learned" else {},
        )
