"""Generators trained in a drifting field: settings, training with checkpoints that rebuild
themselves, sampling."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from fieldbook.drifting import images as image_data
from fieldbook.drifting import kernel
from fieldbook.drifting.encoder import Autoencoder
from fieldbook.drifting.generators import DiTGenerator, MLPGenerator
from fieldbook.drifting.images import Images
from fieldbook.drifting.learned import FieldBank, Objective
from fieldbook.drifting.loss import Sets, draw_alpha, drifting_loss, guidance_weight
from fieldbook.drifting.toys import TOYS
from fieldbook.nn import training
from fieldbook.nn.checkpoints import read_weights, save_weights
from fieldbook.nn.checks import require
from fieldbook.nn.identity import content_of
from fieldbook.nn.recipe import Positive, Recipe, learning_rate
from fieldbook.nn.seeds import stream
from fieldbook.run.tables import Parts, write_csv

METRICS = (
    "loss",
    "field_loss",
    "drift_norm",
    "grad_norm",
    "feature_dist_mean",
    "feature_dist_var",
    "lr",
)
"""What is recorded at every update."""


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Setting:
    """Everything that determines a trained generator; each checkpoint stores it.

    Attributes:
        data: a toy, or images; `folder`: of the files of `mnist` and `cifar10`.
        generator: with `width`, `depth`, and `noise_dim`, `codebook` (mlp) or `patch` (dit).
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
    objective: Objective = "look_ahead"
    taus: tuple[Positive, ...] = kernel.TAUS
    axes: kernel.Axes = "both"
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

    def recipe(self) -> Recipe:
        """The recipe of `fieldbook.nn.training.fit`."""
        scale = {"field.": self.field_lr} if self.field == "learned" else {}
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
            lr_scale=scale,
        )


class Reals:
    """Real samples on a device: of given classes, or of all."""

    def __init__(self, setting: Setting, device: torch.device | str = "cpu"):
        self.toy = TOYS.get(setting.data)
        self.images = None if self.toy else load_images(setting.data, setting.folder)
        self.classes, self.shape, self.count = 0, (2,), setting.set_size * setting.groups
        if self.images is not None:
            self.x, label = self.images.train.to(device), self.images.train_label
            self.classes, self.shape, self.count = (
                self.images.classes,
                tuple(self.x.shape[1:]),
                len(self.x),
            )
            self.members = [(label == c).nonzero()[:, 0].to(device) for c in range(self.classes)]
            self.members.append(torch.arange(len(self.x), device=device))  # of no class: any
            self.padded = nn.utils.rnn.pad_sequence(self.members, batch_first=True)
            self.sizes = torch.tensor([len(members) for members in self.members], device=device)

    @property
    def labels(self) -> Tensor:
        """Every class."""
        return torch.arange(self.classes)

    @property
    def any_label(self) -> int:
        """The label that stands for no class, of which `draw` takes any."""
        return self.classes

    def draw(self, labels: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """n of each label (m,), (m, n, *shape); `any_label` takes from all."""
        if self.toy:
            return torch.stack([self.toy(n, generator) for _ in labels])
        u = torch.rand(len(labels), n, generator=generator, device=generator.device)
        place = (u * self.sizes[labels, None]).long()
        return self.x[self.padded[labels[:, None], place]]


def load_images(data: str, folder: str = "") -> Images:
    """The images named `digits`, `mnist` or `cifar10`."""
    if data == "digits":
        return image_data.digits()
    return {"mnist": image_data.mnist, "cifar10": image_data.cifar10}[data](Path(folder))


class Drifter(nn.Module):
    """A generator with its field, if that is learned."""

    def __init__(self, setting: Setting, shape: Sequence[int], classes: int, dims: Sequence[int]):
        super().__init__()
        size = {"classes": classes, "width": setting.width, "depth": setting.depth}
        size["seed"] = setting.seed
        if setting.generator == "dit":
            self.generator = DiTGenerator(shape, patch=setting.patch, **size)
        else:
            noise_dim, codebook = setting.noise_dim, setting.codebook
            self.generator = MLPGenerator(shape, noise_dim=noise_dim, codebook=codebook, **size)
        self.field = None
        if setting.field == "learned":
            bank = {
                "projection": setting.projection,
                "axes": setting.axes,
                "seed": setting.seed + 1,
            }
            self.field = FieldBank(dims, taus=setting.taus if setting.prior else (), **bank)
        self.setting, self.classes, self.dims = setting, classes, list(dims)

    def sample(self, label: Tensor, alpha: float, generator: torch.Generator) -> Tensor:
        """One sample per label (n,), in one pass; in two, extrapolated from no class, under
        `two_pass`."""
        noise = torch.randn(
            len(label), self.generator.noise_dim, generator=generator, device=label.device
        )
        one = torch.ones(len(label), device=label.device)
        if self.setting.cfg != "two_pass":
            return self.generator(
                noise, label, one * (alpha if self.setting.cfg == "one_pass" else 1.0)
            )
        x, free = (
            self.generator(noise, y, one) for y in (label, torch.full_like(label, self.classes))
        )
        return free + alpha * (x - free)


def build(setting: Setting, reals: Reals) -> tuple[Drifter, Autoencoder | None]:
    """The untrained model, and the encoder trained for its features, if the setting wants one."""
    if not setting.encoder:
        return Drifter(setting, reals.shape, reals.classes, [math.prod(reals.shape)]), None
    require(reals.images is not None, "encoder", True, "False for toys")
    encoder = _train_encoder(reals, seed=stream("encoder", setting.seed) % 2**31)
    with torch.no_grad():
        dims = [f.shape[1] for f in encoder.features(reals.x[:1])]
    return Drifter(setting, reals.shape, reals.classes, dims), encoder


def _train_encoder(reals: Reals, seed: int, steps: int = 600) -> Autoencoder:
    """An autoencoder of the training images, frozen."""
    widths = (
        (16, 32) if reals.shape[-1] <= 8 else (32, 64, 128)[: 3 if reals.shape[-1] % 8 == 0 else 2]
    )
    encoder = Autoencoder(reals.shape, widths=widths, seed=seed).to(reals.x.device)
    recipe = Recipe(steps=steps, batch_size=128, lr=2e-3, schedule="cosine", seed=seed)
    training.fit(
        encoder,
        lambda m, i, g: m.loss(reals.x[i.to(g.device)], g),
        len(reals.x),
        recipe,
        progress=False,
    )
    return encoder.eval().requires_grad_(False)


def loss_of(
    setting: Setting, reals: Reals, encoder: Autoencoder | None
) -> Callable[..., tuple[Tensor, dict]]:
    """The loss of one update: (model, samples, generator) -> (0-d, metrics); a class is a group."""
    n, groups = setting.set_size, setting.groups

    def features(x: Tensor) -> list[Tensor]:
        """(group, n, *shape) -> per scale (group, n, D)."""
        flat = x.flatten(0, 1)
        found = [flat.flatten(1)] if encoder is None else encoder.features(flat)
        return [f.unflatten(0, x.shape[:2]) for f in found]

    def real(labels: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
        with torch.no_grad():
            return features(reals.draw(labels, count, generator))

    def loss(
        model: Drifter, count: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        device = generator.device
        order = torch.randperm(max(reals.classes, 1), generator=generator, device=device)
        labels = order.repeat(groups)[: max(count // n, 1)]
        if setting.cfg == "two_pass":
            labels[-1] = reals.classes
        alpha, weight, unconditional = torch.ones(len(labels), device=device), None, None
        if setting.cfg == "one_pass":
            alpha = draw_alpha((len(labels),), generator, setting.alpha_max)
            weight = guidance_weight(alpha, n, setting.unconditional)
            unconditional = real(
                torch.full_like(labels, reals.any_label), setting.unconditional, generator
            )
        label = labels.repeat_interleave(n)
        noise = torch.randn(
            len(label), model.generator.noise_dim, generator=generator, device=device
        )
        x = features(
            model.generator(noise, label, alpha.repeat_interleave(n)).unflatten(0, (len(labels), n))
        )
        positive = real(labels, setting.positives, generator)
        fresh = (
            real(labels, setting.positives, generator)
            if model.field is not None
            else [None] * len(x)
        )
        extra = unconditional or [None] * len(x)
        sets = [
            Sets(a, p, u, weight, f) for a, p, u, f in zip(x, positive, extra, fresh, strict=True)
        ]
        options = {
            "taus": setting.taus,
            "axes": setting.axes,
            "pull": setting.pull,
            "push": setting.push,
        }
        return drifting_loss(sets, model.field, objective=setting.objective, **options)

    return loss


def train(
    setting: Setting,
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    start: Path | None = None,
    allow_fresh_field: bool = False,
    logger: Any = None,
    deterministic: bool = False,
    progress: bool = False,
) -> training.Fit:
    """Train a generator; continue a killed run bit-identically.

    Args:
        folder: gets `step_0000200.safetensors`, .., one checkpoint per evaluation; at the end
            `steps.csv`, `METRICS` of every update; and what a resume needs.
        start: a checkpoint to start from; `allow_fresh_field`: even if it has no field.
        logger: has `log(metrics, step=..)`; `deterministic`: refuse other operations.
    Raises:
        ValueError: `start` has no learned field, or is of another shape.
    """
    reals = Reals(setting, device)
    model, encoder = build(setting, reals)
    if start is not None:
        _copy_weights(model, read_checkpoint(start), allow_fresh_field)
    model.to(device)
    of_batch, recipe = loss_of(setting, reals, encoder), setting.recipe()
    parts, latest, updates = Parts(folder / "steps"), {}, []

    def loss(network: Drifter, index: Tensor, generator: torch.Generator) -> Tensor:
        total, metrics = of_batch(network, len(index), generator)
        latest.update(metrics)
        return total

    def watch(step: int, norm: float) -> None:
        facts = {"grad_norm": norm, "lr": learning_rate(recipe, step - 1)}
        updates.append({"step": step, **dict.fromkeys(METRICS, math.nan), **latest, **facts})

    def evaluate(averaged: Drifter, step: int) -> dict[str, float]:
        rows = [
            {"step": row["step"]} | {name: float(row[name]) for name in METRICS} for row in updates
        ]
        updates.clear()
        parts.write({"step": step}, {"steps": rows})
        for row in rows if logger else []:
            logger.log({f"train/{name}": row[name] for name in METRICS}, step=row["step"])
        last = {name: rows[-1][name] if rows else math.nan for name in METRICS}
        epoch = step * recipe.batch_size / reals.count
        save_checkpoint(folder / f"step_{step:07d}.safetensors", model, averaged, step, epoch, last)
        return {"drift_norm": last["drift_norm"]}

    def written(step: int) -> bool:
        kept = step < setting.steps or (folder / f"step_{step:07d}.safetensors").exists()
        return kept and parts.read({"step": step}) is not None

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic or before)
    try:
        found = training.fit(
            model,
            loss,
            reals.count,
            recipe,
            evaluate=evaluate,
            watch=watch,
            checkpoint=folder,
            written=written,
            facts={"start": start and content_of(start)},
            progress=progress,
            description=folder.name,
        )
    finally:
        torch.use_deterministic_algorithms(before)
    written_at = [parts.read({"step": row["step"]})["steps"] for row in found.history]
    write_csv(folder / "steps.csv", [row for rows in written_at for row in rows])
    return found


class Checkpoint(NamedTuple):
    """A file's content: what the model was, when, how training went, and its weights, raw and
    averaged."""

    setting: Setting
    shape: tuple[int, ...]
    classes: int
    dims: list[int]
    step: int
    epoch: float
    metrics: dict[str, float]
    model: dict[str, Tensor]
    ema: dict[str, Tensor]


def save_checkpoint(
    path: Path, model: Drifter, ema: Drifter, step: int, epoch: float, metrics: dict[str, float]
) -> None:
    """Write weights, field and averaged weights, with all else as the facts beside them."""
    tensors = nn.ModuleDict({"model": model, "ema": ema}).state_dict()
    facts = {
        "setting": asdict(model.setting),
        "shape": model.generator.shape,
        "classes": model.classes,
        "dims": model.dims,
        "step": step,
        "epoch": epoch,
        "metrics": metrics,
    }
    save_weights(tensors, path, facts)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read what `save_checkpoint` wrote; raises as `read_weights`, and for other weights."""
    tensors, facts = read_weights(path)
    parts = {"model": {}, "ema": {}}
    try:
        for name, tensor in tensors.items():
            part, rest = name.split(".", 1)
            parts[part][rest] = tensor
        setting = Setting(**facts.pop("setting"))
        return Checkpoint(setting, tuple(facts.pop("shape")), **facts, **parts)
    except (KeyError, TypeError, ValueError) as error:
        problem = f"is not a checkpoint of a drifting run ({error!r}); train it again"
        raise ValueError(f"{path} {problem}") from None


def restore(path: Path, *, ema: bool = True) -> tuple[Drifter, Checkpoint]:
    """The model of a checkpoint, rebuilt from what it stores, in eval mode; with the averaged
    weights unless told."""
    saved = read_checkpoint(path)
    model = Drifter(saved.setting, saved.shape, saved.classes, saved.dims)
    try:
        model.load_state_dict(saved.ema if ema else saved.model)
    except RuntimeError as error:
        raise ValueError(f"{path} does not hold the weights of its own setting ({error})") from None
    return model.eval(), saved


def _copy_weights(model: Drifter, saved: Checkpoint, allow_fresh_field: bool) -> None:
    """Copy a checkpoint's raw weights, and its field's."""
    differ = sorted(model.state_dict().keys() ^ saved.model.keys())
    other = [name for name in differ if not name.startswith("field.")]
    require(not other, "start", other[:1], "a checkpoint of the same generator")
    fresh, _ = model.load_state_dict(saved.model, strict=False)
    if fresh and not allow_fresh_field:
        remedy = "set allow_fresh_field to begin with an untrained one"
        raise ValueError(
            f"start: the checkpoint has no learned field ({fresh[0]} is missing); {remedy}"
        )


def balanced_labels(n: int, classes: int) -> Tensor:
    """n labels with every class as often as any other, within one; in order; zeros without
    classes."""
    return torch.arange(n) * max(classes, 1) // n
