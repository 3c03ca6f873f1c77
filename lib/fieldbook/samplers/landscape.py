"""The loss landscape around a trained network: training path, entropy, relaxation of states.

Points are z = theta / s, with s the root mean square of each tensor of the trained network. A
standard normal prior on z keeps the norm of each tensor near the trained one, up to a share 1 /
sqrt(2 size): a fixed norm in all but name, tensor by tensor. A tensor of zeros stays zero.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from fieldbook.grokking import networks
from fieldbook.grokking.modular import Task
from fieldbook.nn.checkpoints import save_weights
from fieldbook.nn.functional import flatten, mapped, outputs_of, stacked_losses, trained
from fieldbook.nn.machine import device
from fieldbook.nn.seeds import stream
from fieldbook.run.tables import Log, Row
from fieldbook.samplers import wang_landau as wl

MEMORISED = 0.99  # train accuracy


def scales(model: nn.Module) -> Tensor:
    """Root mean square of the tensor that each parameter belongs to, (D,)."""
    sizes = [w.detach().square().mean().sqrt().expand(w.numel()) for w in trained(model).values()]
    return torch.cat(sizes)


def whitened(model: nn.Module, scale: Tensor) -> Tensor:
    """z (D,) of a network's parameters."""
    return torch.where(scale > 0, flatten(model) / scale, 0.0)


def loss_of(model: nn.Module, scale: Tensor, inputs: Tensor, target: Tensor) -> wl.Energy:
    """Mean cross-entropy, nats, as a function of z (.., D), with its gradient."""
    losses_of = stacked_losses(model)

    def energy(z: Tensor) -> tuple[Tensor, Tensor]:
        losses, g = losses_of((z * scale).flatten(0, -2), inputs, target)
        return losses.mean(-1).view(z.shape[:-1]), (g * scale).view(z.shape)

    return energy


def accuracy_of(
    model: nn.Module, scale: Tensor, inputs: Tensor, target: Tensor
) -> Callable[[Tensor], Tensor]:
    """Share of right answers as a function of z (.., D)."""
    outputs = outputs_of(model)

    def one(vector: Tensor) -> Tensor:
        return outputs(vector, inputs).argmax(-1) == target

    many = mapped(one, (0,))
    return lambda z: many((z * scale).flatten(0, -2)).double().mean(-1).view(z.shape[:-1])


def record_training(
    settings: networks.Settings, operation: str, folder: Path, every: int
) -> list[Row]:
    """Train a network as `networks.trained` does, recording full-batch loss and accuracies.

    A killed call continues from its last evaluation and ends with the same rows.

    Args:
        folder: of the checkpoint and `memorised.safetensors`: the first evaluation with train
            accuracy above 99 %.
        every: updates between evaluations.
    Returns:
        One row per evaluation.
    """
    t = networks.task_of(settings, operation, settings.seeds[0])
    where = device()
    log = Log(folder / "rows")
    pairs, target, train, strict = (a.to(where) for a in (t.pairs, t.target, t.train, t.strict))
    memorised = folder / "memorised.safetensors"

    def evaluate(network: nn.Module, step: int) -> dict[str, float]:
        logits = network(pairs).float()
        right = (logits.argmax(1) == target).double()
        row = {
            "step": step,
            "train_loss": float(cross_entropy(logits[train], target[train])),
            "train_acc": float(right[train].mean()),
            "test_acc": float(right[~train].mean()),
            "test_acc_strict": float(right[strict].mean()),
        }
        if row["train_acc"] > MEMORISED and not memorised.exists():
            save_weights(network, memorised)
        log.write(row)
        return networks.waiting(step, row["test_acc"])

    often = settings.replace(eval_every=every)
    model = networks.train(often, operation, folder, evaluate, written=log.has)
    if not memorised.exists():
        save_weights(model, memorised)
    return log.rows()


def sample(
    settings: networks.Settings,
    operation: str,
    file: Path,
    grid: wl.Grid,
    *,
    seeds: int,
    walkers: int,
    melt: int,
    cool: int,
    steps: int,
    h: float,
    friction: float,
) -> tuple[list[Row], Row]:
    """Entropy and strict accuracy against log10 train loss: melt, cool, then Wang-Landau.

    Args:
        file: weights of the trained network.
        melt, cool, steps: moves from the trained loss up to the top of the grid; down again, which
            measures the mean force and so the first S_hat; and of Wang-Landau, with `walkers` per
            seed taken from all heights of the way.
    Returns:
        One row per seed and bin, and one for the whole run. `reached` is 0 for a seed whose walker
        did not cool through the whole grid: its entropy is extrapolated where it never was.
    """
    energy, strict, _, star = _prepare(settings, operation, file)
    generator = torch.Generator(star.device).manual_seed(stream("landscape", operation))
    moving = {"friction": friction, "observe": strict}
    w = wl.start(energy, wl.heat(energy, star, grid.high - 0.2, seeds, generator), generator)
    rise = np.linspace(grid.high - 0.2, grid.high, melt)
    melted, _ = wl.ramp(energy, w, grid, rise, generator, h=h, **moving)
    fall = np.linspace(grid.high, grid.low - grid.width(), cool)
    every = range(0, cool, max(cool // 40, 1))
    w = melted.walkers
    cooled, kept = wl.ramp(energy, w, grid, fall, generator, h=h, keep=every, **moving)
    places = [grid.low + (grid.high - grid.low) * (k + 0.5) / walkers for k in range(walkers)]
    w = wl.start(energy, wl.spread(kept, places), generator)
    moving |= {"h": cooled.h, "first": 1.0, "entropy": cooled.entropy}
    found = wl.wang_landau(energy, w, grid, generator, steps=steps, **moving)
    top, bottom = (cooled.visits[:, part].sum(1) > 0 for part in (slice(3), slice(-3, None)))
    reached = top & bottom
    summary = {
        "lost": int((~reached).sum()),
        "parameters": int((star != 0).sum()),
        "flatness": float(wl.flatness(found.visits).mean()),
        "h": float(cooled.h.min()),
        "acceptance_cool": cooled.acceptance,
        "acceptance": found.acceptance,
        "overlap_melted": float(cosine_similarity(melted.walkers.z, star, dim=-1).mean()),
        "overlap_cooled": float(cosine_similarity(cooled.walkers.z, star, dim=-1).mean()),
    }
    return _rows(operation, grid, reached, cooled, found), summary


def _rows(
    operation: str, grid: wl.Grid, reached: Tensor, cooled: wl.Landscape, found: wl.Landscape
) -> list[Row]:
    """One row per seed and bin."""
    columns = {
        "reached": reached.long()[:, None].expand(found.visits.shape),
        "entropy": found.entropy,
        "entropy_cooled": cooled.entropy,
        "entropy_force": wl.integrate(grid, found.force),
        "test_acc_mean": found.observed,
        "test_acc_cooled": cooled.observed,
        "visits": found.visits.long(),
    }
    rows = []
    for seed, b in np.ndindex(*found.visits.shape):
        row = {"op": operation, "seed": seed, "log10_loss": grid.centres()[b].item()}
        rows.append(row | {name: value[seed, b] for name, value in columns.items()})
    return rows


def relax(
    settings: networks.Settings,
    operation: str,
    file: Path,
    memorised: Path,
    *,
    seeds: int,
    steps: int,
    every: int,
    h: float,
    friction: float,
    stiffness: float = 1e4,
) -> list[Row]:
    """Let a memorised network move at the loss it has, and watch its strict test accuracy.

    Args:
        file, memorised: weights of the trained network, which sets the prior, and of the memorised
            one.
        stiffness: of the spring that holds log10 of the loss, nats per decade squared.
    Returns:
        One row per seed and `every` moves: mean log10 of the loss since the last row, accuracy now.
    """
    energy, strict, scale, star = _prepare(settings, operation, file)
    start = whitened(networks.load(settings, memorised).to(star.device), scale)
    generator = torch.Generator(star.device).manual_seed(stream("relaxation", operation))
    w = wl.start(energy, start.expand(seeds, 1, -1), generator)
    rows = []
    hold = float(w.x[0, 0])
    grid = wl.Grid(hold - 1, hold + 1, 2)
    pull = partial(wl.ramp, energy, h=h, friction=friction, stiffness=stiffness, keep=range(every))

    def watch(step: int, x: Tensor) -> None:
        right = strict(w.z)[:, 0].tolist()
        norm2 = w.z.square().mean((1, 2)).tolist()
        for seed, level in enumerate(x.tolist()):
            row = {"op": operation, "seed": seed, "step": step, "log10_loss": level}
            rows.append(row | {"test_acc_strict": right[seed], "norm2": norm2[seed]})

    watch(0, w.x[:, 0])
    for step in range(every, steps + 1, every):
        held, kept = pull(w, grid, [hold] * every, generator)
        w = held.walkers
        watch(step, torch.stack([k.x[:, 0] for k in kept]).mean(0))
    return rows


def first_passage(
    loss: Sequence[float], values: Sequence[float], levels: Sequence[float]
) -> np.ndarray:
    """What a path shows when its loss first comes down to each level, nan where it never does."""
    below = np.minimum.accumulate(np.asarray(loss, float))[:, None] <= np.asarray(levels, float)
    return np.where(below.any(0), np.asarray(values, float)[below.argmax(0)], np.nan)


def bending(x: Sequence[float], entropy: Sequence[float]) -> np.ndarray:
    """d ln(sigma - 1) / d ln E of a curve S over x = log10 E, with sigma = dS/d ln E.

    S_E(E) is concave, so that no two phases coexist, where it is below 1. A sigma below 2 counts
    as 2.
    """
    scale = np.asarray(x, float) * math.log(10)
    sigma = np.gradient(np.asarray(entropy, float), scale)
    return np.gradient(np.log(np.maximum(sigma - 1, 1)), scale)


def _prepare(
    settings: networks.Settings, operation: str, file: Path
) -> tuple[wl.Energy, Callable[[Tensor], Tensor], Tensor, Tensor]:
    """A trained network's train loss and strict accuracy as functions of z, its scales and z."""
    model = networks.load(settings, file).to(device())
    t: Task = networks.task_of(settings, operation, settings.seeds[0])
    scale = scales(model)
    pairs = t.pairs.to(scale.device)
    target = t.target.to(scale.device)
    train = t.train.to(scale.device)
    strict = t.strict.to(scale.device)
    energy = loss_of(model, scale, pairs[train], target[train])
    accuracy = accuracy_of(model, scale, pairs[strict], target[strict])
    return energy, accuracy, scale, whitened(model, scale)
