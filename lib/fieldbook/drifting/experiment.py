"""Generators trained in a drifting field: data, model, training with checkpoints, sampling."""

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fieldbook.drifting import images as image_data
from fieldbook.drifting.encoder import Autoencoder
from fieldbook.drifting.generators import DiTGenerator, MLPGenerator
from fieldbook.drifting.images import Images
from fieldbook.drifting.learned import SetField
from fieldbook.drifting.loss import Sets, draw_alpha, drifting_loss, guidance_weight
from fieldbook.drifting.setting import Setting
from fieldbook.drifting.toys import TOYS
from fieldbook.nn import training
from fieldbook.nn.checkpoints import read_weights, save_weights
from fieldbook.nn.checks import require
from fieldbook.nn.identity import content_of
from fieldbook.nn.recipe import Recipe, learning_rate
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


class Reals:
    """Real samples on a device: of given classes, or of all."""

    def __init__(self, setting: Setting, device: torch.device | str = "cpu"):
        self.toy = TOYS.get(setting.data)
        self.count = setting.set_size * setting.groups  # in an epoch
        if self.toy is None:
            x, label, *_ = load_images(setting.data, setting.folder)
            self.x = x.to(device)
            self.count = len(x)
            members = [(label == c).nonzero()[:, 0] for c in range(setting.classes)]
            members.append(torch.arange(self.count))  # of no class: any
            self.members = [places.to(device) for places in members]
            self.padded = nn.utils.rnn.pad_sequence(self.members, batch_first=True)
            self.sizes = torch.tensor([len(places) for places in members], device=device)

    def draw(self, labels: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """n of each label (m,), (m, n, *shape); `Setting.classes` takes from all."""
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
    """A generator with its field, if that is learned: one `SetField` per feature scale."""

    def __init__(self, setting: Setting):
        super().__init__()
        self.setting = setting
        self.generator = {"dit": DiTGenerator, "mlp": MLPGenerator}[setting.generator](setting)
        fields = (self._field(scale, dim) for scale, dim in enumerate(setting.dims))
        self.field = nn.ModuleList(fields) if setting.field == "learned" else None

    def _field(self, scale: int, dim: int) -> SetField:
        """Its temperatures are in units of the mean distance, sqrt(dim) for normalised features."""
        setting = self.setting
        return SetField(
            dim,
            [tau * math.sqrt(dim) for tau in setting.taus] if setting.prior else [],
            projection=setting.projection,
            axes=setting.axes,
            seed=setting.seed + 1 + scale,
        )

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """What n samples are made from."""
        size = (n, self.generator.noise_dim)
        return torch.randn(size, generator=generator, device=generator.device)

    def sample(self, label: Tensor, alpha: float, generator: torch.Generator) -> Tensor:
        """One sample per label (n,); under `two_pass` extrapolated from the sample of no class."""
        noise = self.noise(len(label), generator)
        one = torch.ones(len(label), device=label.device)
        if self.setting.cfg != "two_pass":
            strength = alpha if self.setting.cfg == "one_pass" else 1.0
            return self.generator(noise, label, strength * one)
        x = self.generator(noise, label, one)
        free = self.generator(noise, torch.full_like(label, self.setting.classes), one)
        return free + alpha * (x - free)


def build(setting: Setting, reals: Reals) -> tuple[Drifter, Autoencoder | None]:
    """The untrained model, and the encoder trained for its features, if the setting wants one."""
    return Drifter(setting), _trained_encoder(setting, reals) if setting.encoder else None


def _trained_encoder(setting: Setting, reals: Reals) -> Autoencoder:
    """An autoencoder of the training images, frozen."""
    seed = stream("encoder", setting.seed) % 2**31
    encoder = Autoencoder(setting.shape, seed).to(reals.x.device)

    def loss(model: Autoencoder, index: Tensor, generator: torch.Generator) -> Tensor:
        return model.loss(reals.x[index.to(generator.device)], generator)

    recipe = Recipe(steps=600, batch_size=128, lr=2e-3, schedule="cosine", seed=seed)
    training.fit(encoder, loss, reals.count, recipe, progress=False)
    return encoder.eval().requires_grad_(False)


def loss_of(
    setting: Setting, reals: Reals, encoder: Autoencoder | None
) -> Callable[[Drifter, int, torch.Generator], tuple[Tensor, dict[str, Tensor]]]:
    """The loss of one update: (model, samples, generator) -> (0-d, metrics); a class is a group."""

    def features(x: Tensor) -> list[Tensor]:
        """(group, n, *shape) -> per scale (group, n, D)."""
        flat = x.flatten(0, 1)
        found = [flat.flatten(1)] if encoder is None else encoder.features(flat)
        return [f.unflatten(0, x.shape[:2]) for f in found]

    @torch.no_grad()
    def real(labels: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
        return features(reals.draw(labels, count, generator))

    def loss(
        model: Drifter, count: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        n, device = setting.set_size, generator.device
        order = torch.randperm(max(setting.classes, 1), generator=generator, device=device)
        labels = order.repeat(setting.groups)[: max(count // n, 1)]
        if setting.cfg == "two_pass":
            labels[-1] = setting.classes
        alpha = torch.ones(len(labels), device=device)
        nothing = [None] * len(setting.dims)
        weight, unconditional = None, nothing
        if setting.cfg == "one_pass":
            alpha = draw_alpha(len(labels), generator, setting.alpha_max)
            weight = guidance_weight(alpha, n, setting.unconditional)
            anything = torch.full_like(labels, setting.classes)
            unconditional = real(anything, setting.unconditional, generator)
        noise = model.noise(len(labels) * n, generator)
        made = model.generator(noise, labels.repeat_interleave(n), alpha.repeat_interleave(n))
        x = features(made.unflatten(0, (len(labels), n)))
        positive = real(labels, setting.positives, generator)
        fresh = real(labels, setting.positives, generator) if model.field else nothing
        scales = zip(x, positive, unconditional, fresh, strict=True)
        sets = [Sets(a, p, u, weight, f) for a, p, u, f in scales]
        return drifting_loss(sets, setting, model.field)

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
    of_batch = loss_of(setting, reals, encoder)
    recipe = setting.recipe()
    parts = Parts(folder / "steps")
    latest, updates = {}, []

    def loss(network: Drifter, index: Tensor, generator: torch.Generator) -> Tensor:
        total, metrics = of_batch(network, len(index), generator)
        latest.update(metrics)
        return total

    def watch(step: int, norm: float) -> None:
        facts = {"step": step, "grad_norm": norm, "lr": learning_rate(recipe, step - 1)}
        updates.append(latest | facts)  # not read back from the device before an evaluation

    def evaluate(averaged: Drifter, step: int) -> dict[str, float]:
        rows = [
            {"step": row["step"]} | {name: float(row[name]) for name in METRICS} for row in updates
        ]
        updates.clear()
        parts.write({"step": step}, {"steps": rows})
        for row in rows if logger else []:
            logger.log({f"train/{name}": row[name] for name in METRICS}, step=row["step"])
        metrics = {name: rows[-1][name] if rows else math.nan for name in METRICS}
        facts = {"setting": asdict(setting), "step": step, "metrics": metrics}
        facts["epoch"] = step * recipe.batch_size / reals.count
        save_weights(nn.ModuleDict({"model": model, "ema": averaged}), at(step), facts)
        return {"drift_norm": metrics["drift_norm"]}

    def at(step: int) -> Path:
        return folder / f"step_{step:07d}.safetensors"

    def written(step: int) -> bool:
        kept = step < setting.steps or at(step).exists()
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
            progress=False,
        )
    finally:
        torch.use_deterministic_algorithms(before)
    written_at = [parts.read({"step": row["step"]})["steps"] for row in found.history]
    write_csv(folder / "steps.csv", [row for rows in written_at for row in rows])
    return found


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, first to last."""
    return sorted(folder.glob("step_*.safetensors"))


class Checkpoint(NamedTuple):
    """What a file holds: the setting, when, how training went, and weights, raw and averaged."""

    setting: Setting
    step: int
    epoch: float
    metrics: dict[str, float]
    model: dict[str, Tensor]
    ema: dict[str, Tensor]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read one of the checkpoints of `train`; raises as `read_weights`, and for other weights."""
    tensors, facts = read_weights(path)
    parts = {"model": {}, "ema": {}}
    try:
        for name, tensor in tensors.items():
            part, rest = name.split(".", 1)
            parts[part][rest] = tensor
        return Checkpoint(Setting(**facts.pop("setting")), **facts, **parts)
    except (KeyError, TypeError, ValueError) as error:
        problem = f"is not a checkpoint of a drifting run ({error!r}); train it again"
        raise ValueError(f"{path} {problem}") from None


def restore(path: Path, *, ema: bool = True) -> tuple[Drifter, Checkpoint]:
    """The model that a checkpoint stores, in eval mode, with the averaged weights unless told."""
    saved = read_checkpoint(path)
    model = Drifter(saved.setting)
    try:
        model.load_state_dict(saved.ema if ema else saved.model)
    except RuntimeError as error:
        raise ValueError(f"{path} does not hold the weights of its own setting ({error})") from None
    return model.eval(), saved


def _copy_weights(model: Drifter, saved: Checkpoint, allow_fresh_field: bool) -> None:
    """Copy a checkpoint's raw weights, and its field's."""
    ours = {(name, tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = {(name, tensor.shape) for name, tensor in saved.model.items()}
    other = sorted(name for name, _ in ours ^ theirs if not name.startswith("field."))
    require(not other, "start", other[:1], "a checkpoint of the same generator")
    fresh, _ = model.load_state_dict(saved.model, strict=False)
    if fresh and not allow_fresh_field:
        remedy = "set allow_fresh_field to begin with an untrained one"
        problem = f"the checkpoint has no learned field ({fresh[0]} is missing)"
        raise ValueError(f"start: {problem}; {remedy}")


def balanced_labels(n: int, classes: int) -> Tensor:
    """n labels in order, each class as often as any other, within one; zeros without classes."""
    return torch.arange(n) * max(classes, 1) // n
