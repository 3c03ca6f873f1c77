"""A network that groks, watched while it trains: one row of measures per evaluation, a checkpoint
per milestone."""

import contextlib
import math
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fieldbook.grokking import circulant
from fieldbook.grokking.agop import one_hot_blocks, residuals, second_moments, signs
from fieldbook.grokking.grokker import Grokker
from fieldbook.grokking.modular import Task, residue_class, token_order
from fieldbook.grokking.networks import GROKKED, facts_of, fit, waiting
from fieldbook.nn.checkpoints import atomic_write, save_weights
from fieldbook.nn.recipe import Recipe
from fieldbook.run.tables import Log

MILESTONES: dict[str, Callable[[dict], bool]] = {
    "initial": lambda row: row["step"] == 0,
    "memorised": lambda row: row["train_acc"] > 0.99,
    "halfway": lambda row: row["test_acc"] > 0.5,
    "grokked": lambda row: row["test_acc"] > GROKKED,
}
"""A checkpoint is kept at the first evaluation that meets each condition, and a `final` one at the
end."""


def train(
    model: Grokker,
    task: Task,
    recipe: Recipe,
    folder: Path,
    *,
    sketch: int = 1,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train on a task's train split; return one row of `measure` per evaluation.

    A killed call continues from its last evaluation and ends with the same rows and checkpoints.

    Args:
        recipe: may monitor `waiting`, which grows until the test accuracy exceeds 99 %, to stop a
            while after that.
        folder: of `<milestone>.safetensors`, and of what a resume needs.
        sketch: Rademacher vectors per example in the AGOP.
    """
    device = model.numbers.device
    log = Log(folder / "rows")

    def evaluate(network: Grokker, step: int) -> dict[str, float]:
        generator = torch.Generator(device).manual_seed(1_000_003 * recipe.seed + step)
        row, blocks = measure(
            network, task, generator, sketch=sketch, autocast=torch.is_autocast_enabled(device.type)
        )
        row = {"step": step, **row}
        atomic_write(_blocks_file(folder, step), partial(np.save, arr=blocks.cpu().numpy()))
        for name, reached in MILESTONES.items():
            if reached(row) and not (folder / f"{name}.safetensors").exists():
                save_weights(network, folder / f"{name}.safetensors")
        log.write(row)
        return waiting(step, row["test_acc"])

    fit(
        model,
        task,
        recipe,
        evaluate=evaluate,
        checkpoint=folder,
        written=log.has,
        progress=progress,
        description=folder.name,
    )
    if not (folder / "final.safetensors").exists():
        save_weights(model, folder / "final.safetensors", facts_of(model, task, recipe))
    return _align(log, folder)


def measure(
    model: Grokker,
    task: Task,
    generator: torch.Generator,
    *,
    sketch: int = 1,
    autocast: bool = False,
) -> tuple[dict[str, float], Tensor]:
    """Everything that one evaluation records.

    Args:
        generator: of the AGOP sketch, on the model's device.
        autocast: run the network in bfloat16; sums and scores stay in single or double precision.
    Returns:
        The row, and the one-hot AGOP (2, 2, p, p) in natural token order.
    """
    device = model.numbers.device
    pairs = task.pairs.to(device)
    target = task.target.to(device)
    train = task.train.to(device)
    strict = task.strict.to(device)
    order = token_order(task.operation, task.p).to(device)
    operands = model.token(pairs).detach()
    logits = []

    def network(x: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            outputs = model.decode(x).float()
        logits.append(outputs.detach())
        return outputs

    with _frozen(model), torch.autocast(device.type, enabled=False):
        random = [signs(generator)] * sketch
        share = float(train.double().mean())
        *trained, loss_gradient = second_moments(
            network, operands[train], [*random, residuals(target[train])]
        )
        held_out = second_moments(network, operands[~train], random)
        gradient = share * torch.stack(trained).mean(0) + (1 - share) * torch.stack(held_out).mean(
            0
        )
        outputs = torch.cat(logits)[
            (~train).long().argsort(stable=True).argsort()
        ]  # train pairs came first
        blocks = one_hot_blocks(gradient, model.numbers.detach())
        row = {
            **_accuracies(outputs, task, target, train, strict),
            **_agop_scores(blocks, order),
            **_embedding_scores(model.numbers.detach()[order]),
            "eq_test": _shift_share(outputs[~train], target[~train], order),
            "agop_align": math.nan,  # known at the end
            "agop_trace": float(gradient.trace()),
            "loss_agop_norm": float(loss_gradient.norm()),
            "cycle_bias_hidden": cycle_bias_hidden(model),
            "weight_norm": float(
                torch.stack([w.detach().norm() for w in model.parameters()]).norm()
            ),
        }
    return row, blocks


@contextlib.contextmanager
def _frozen(model: Grokker) -> Iterator[None]:
    flags = [w.requires_grad for w in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for weight, flag in zip(model.parameters(), flags, strict=True):
            weight.requires_grad_(flag)


def cycle_bias_hidden(model: Grokker) -> float:
    """Mean circulant share of the attention matrices in the hidden basis.

    This is what the source log calls cycle bias. The hidden basis has no cyclic order: for iid
    entries its expectation is 1 / d_model.
    """
    attention = [block.attn for block in model.blocks]
    matrices = [linear.weight for a in attention for linear in (a.query, a.key, a.value, a.out)]
    return float(circulant.circulant_share(torch.stack(matrices)).mean())


def summary(rows: pd.DataFrame) -> dict[str, float]:
    """What one run comes to: when it grokked, and by how many steps the AGOP score led the test
    accuracy.

    Args:
        rows: of `train`, as a frame.
    Returns:
        `last_step`; `grokked_step`, the first evaluation with test accuracy above 99 % (nan if
        none); `lead_10`, `lead_50`, steps from the score's crossing of that share of its range to
        the strict test accuracy's, nan if that accuracy never reaches one half; final values.
    """
    grokked = rows.step[rows.test_acc > GROKKED]
    generalised = rows.test_acc_strict.max() >= 0.5
    leads = {
        f"lead_{percent}": crossing(rows.step, rows.test_acc_strict, percent / 100)
        - crossing(rows.step, rows.agop_circ, percent / 100)
        if generalised
        else math.nan
        for percent in (10, 50)
    }
    last = rows.iloc[-1]
    return {
        "last_step": int(last.step),
        "grokked_step": int(grokked.iloc[0]) if len(grokked) else math.nan,
        **leads,
        "best_test_acc": float(rows.test_acc.max()),
        "final_agop_circ": float(last.agop_circ),
        "final_emb_gini": float(last.emb_gini),
    }


def passings(rows: pd.DataFrame, share: float) -> dict[str, float]:
    """Updates at which a network's curves pass a share of their ranges, by which warnings compare.

    Args:
        rows: of `train`, as a frame.
    Returns:
        `score`: of the AGOP; `loss`: the fall of the test loss from its peak; `accuracy`: on strict
        test pairs. All nan if that never reaches one half.
    """
    falling = rows.iloc[int(np.argmax(rows.test_loss)) :]
    found = {
        "score": crossing(rows.step, rows.agop_circ, share),
        "loss": crossing(falling.step, -falling.test_loss, share),
        "accuracy": crossing(rows.step, rows.test_acc_strict, share),
    }
    generalised = rows.test_acc_strict.max() >= 0.5
    return found if generalised else dict.fromkeys(found, math.nan)


def crossing(steps: np.ndarray, values: np.ndarray, share: float) -> float:
    """Step at which a curve first reaches a share of its range, from its first value to its
    largest.

    Linear between evaluations; nan for a curve that does not rise.
    """
    values = np.asarray(values, float)
    rise = values.max() - values[0]
    return reached(steps, values, values[0] + share * rise) if rise > 0 else math.nan


def reached(steps: np.ndarray, values: np.ndarray, level: float) -> float:
    """Step at which a curve first reaches a level, linear between evaluations; nan if never."""
    steps = np.asarray(steps, float)
    values = np.asarray(values, float)
    above = np.flatnonzero(values >= level)
    if not len(above):
        return math.nan
    i = above[0]
    near = slice(max(i - 1, 0), i + 1)
    return float(np.interp(level, values[near], steps[near]))


def rank_correlations(rows: pd.DataFrame, name: str) -> pd.Series:
    """Spearman's correlation of one column of a run with each of the others, from the evaluation on
    that finds the train set memorised."""
    memorised = rows[(rows.train_acc > 0.99).cummax()]
    return memorised.corr("spearman", numeric_only=True)[name]


def _accuracies(
    outputs: Tensor, task: Task, target: Tensor, train: Tensor, strict: Tensor
) -> dict[str, float]:
    loss = torch.nn.functional.cross_entropy(outputs, target, reduction="none")
    guess = outputs.argmax(1)
    right = (guess == target).double()
    row = {
        "train_loss": loss[train],
        "train_acc": right[train],
        "test_loss": loss[~train],
        "test_acc": right[~train],
    }
    row["test_acc_strict"] = right[strict]
    row = {name: float(values.mean()) for name, values in row.items()}
    row["test_acc_residue"] = math.nan
    if task.operation in ("mul", "div"):
        same = residue_class(guess[~train], task.p) == residue_class(target[~train], task.p)
        row["test_acc_residue"] = float(same.double().mean())
    return row


def _agop_scores(blocks: Tensor, order: Tensor) -> dict[str, float]:
    def on_diagonal(scores: Tensor) -> float:
        return float(scores.diagonal().mean())

    cyclic = blocks[..., order, :][..., order].double()
    natural = order.sort().values
    scores = circulant.circulant_score(cyclic)
    values, vectors = torch.linalg.eigh(cyclic.diagonal().permute(2, 0, 1))
    roots = vectors * values.clamp(min=0).sqrt()[:, None] @ vectors.mT
    return {
        "agop_circ": on_diagonal(scores),
        "agop_circ_ab": float(scores[0, 1]),
        "agop_hankel_ab": float(circulant.hankel_score(cyclic[0, 1])),
        "agop_circ_natural": on_diagonal(
            circulant.circulant_score(blocks[..., natural, :][..., natural])
        ),
        "sqrt_agop_circ": float(circulant.circulant_score(roots).mean()),
    }


def _embedding_scores(cyclic: Tensor) -> dict[str, float]:
    gini, top5 = circulant.fourier_concentration(cyclic.double())
    return {
        "emb_circ": float(circulant.circulant_score(cyclic @ cyclic.T)),
        "emb_gini": gini,
        "emb_top5": top5,
    }


def _shift_share(outputs: Tensor, target: Tensor, order: Tensor) -> float:
    """`shift_share` on the token circle, on which zero has no place for products."""
    position = torch.full((outputs.shape[1],), -1, device=order.device)
    position[order] = torch.arange(len(order), device=order.device)
    where = position[target]
    return circulant.shift_share(outputs[where >= 0][:, order], where[where >= 0])


def _blocks_file(folder: Path, step: int) -> Path:
    return folder / "agop" / f"{step:07d}.npy"


def _align(log: Log, folder: Path) -> list[dict[str, float]]:
    """Fill in the cosine of each one-hot AGOP with the last one, known only now, and drop the
    matrices."""
    rows = log.rows()
    if any(math.isnan(row["agop_align"]) for row in rows):
        blocks = [np.load(_blocks_file(folder, row["step"])) for row in rows]
        unit = [block / np.linalg.norm(block) for block in blocks]
        for row, one in zip(rows, unit, strict=True):
            row["agop_align"] = float((one * unit[-1]).sum())
            log.write(row)
    shutil.rmtree(folder / "agop", ignore_errors=True)
    return rows
