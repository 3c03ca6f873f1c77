"""One training loop for every chapter: AdamW, a guard against NaN, EMA, exact resume after a kill.

`Recipe` holds all that determines the weights, `fit` does the work. The order of the examples, the
noise and the learning rate are pure functions of seed and step, so that a killed run continues
bit-identically from its checkpoint.
"""

import atexit
import contextlib
import math
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from fieldbook.nn.checkpoints import cpu_copy, load_checkpoint, save_checkpoint, save_weights
from fieldbook.nn.checks import require
from fieldbook.nn.functional import trained
from fieldbook.nn.identity import constants_of, described, structure_of
from fieldbook.nn.machine import autocast, keep_freed_memory
from fieldbook.nn.recipe import Recipe, indices, learning_rate
from fieldbook.nn.seeds import stream

LossFn = Callable[[nn.Module, Tensor, torch.Generator], Tensor]
Evaluate = Callable[[nn.Module, int], dict[str, float]]


@dataclass
class Fit:
    """How a run went; a checkpoint stores it beside the weights.

    Attributes:
        history: one row per evaluation: `step` (updates done), `lr` (of the next update),
            `train_loss` (mean since the last row; NaN in the first), then what `evaluate` returned.
        batch_size, micro_batch: examples per update, and per forward pass after any halving (on
            this rank).
        skipped: updates left out because the loss or the gradient was not finite.
        best_step, best_value, best: of the monitored metric; the weights are those that were
            evaluated then (the averaged ones, with an EMA), on the CPU.
        ema: the averaged model, in eval mode; None without `Recipe.ema`.
    """

    batch_size: int
    micro_batch: int
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    skipped: int = 0
    skipped_in_row: int = 0
    best_step: int | None = None
    best_value: float | None = None
    best: dict[str, Tensor] | None = None
    ema: nn.Module | None = None
    stopped_early: bool = False
    stale: int = 0  # evaluations since the best one
    plateau_stale: int = 0  # the same, or since the last cut of the learning rate
    lr_factor: float = 1.0  # product of the plateau's cuts
    loss_sum: float = 0.0  # over the finite updates since the last evaluation
    loss_count: int = 0


class Diverged(FloatingPointError):
    """Too many updates were not finite; `fit` is the run up to then."""

    def __init__(self, fit: Fit, message: str):
        super().__init__(message)
        self.fit = fit


def fit(
    model: nn.Module,
    loss_fn: LossFn,
    n_examples: int,
    recipe: Recipe,
    *,
    evaluate: Evaluate | None = None,
    watch: Callable[[int, float], None] | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int | None = None,
    facts: Mapping[str, object] | None = None,
    written: Callable[[int], bool] | None = None,
    progress: bool = True,
    description: str = "",
) -> Fit:
    """Train a model in place; given a checkpoint folder, continue a killed run bit-identically.

    Dropout is a function of (seed, step, rank) too, as is all that the global generators of torch,
    NumPy and Python draw, which are left as they were found; on a GPU, bit-identity also needs
    deterministic kernels. Modules whose parameters are all frozen stay in eval mode. Under
    `torchrun` each rank takes its share of every batch; the caller puts the model on the rank's
    device, and rank 0 alone evaluates and writes.

    Args:
        model: on its device, parameters in float32 (or float64).
        loss_fn: (model, index, generator) -> 0-d mean loss of these examples, under autocast.
            `index` (batch,) int64 on the CPU; `generator` on the model's device, seeded from (seed,
            step, rank), for noise on the fly.
        n_examples: how many examples `index` may point at.
        evaluate: (model, step) -> metrics, called before the first update, every `eval_every` and
            after the last, in eval mode, without gradient, under autocast: take predictions
            `.float()` before NumPy.
        watch: called after each update with its number and the gradient's norm before clipping.
        checkpoint: folder of `last.pt` (to resume; written after each evaluation) and
            `best.safetensors` (on improvement of the monitored metric; for `load_weights`).
        checkpoint_every: updates between further writes of `last.pt`, where evaluations are rare.
        facts: what a checkpoint must agree in, by name, beside the recipe, the number of ranks, the
            modules with their settings, buffers and frozen weights, which weights are trained, and
            the arrays and fractions that `loss_fn` refers to; not in the initial weights.
        written: is there still what `evaluate` wrote at a step? If not, training begins anew.
    Returns:
        The run's `Fit`; at once, with the weights loaded, if the checkpoint is of a finished run.
    Raises:
        ValueError: the checkpoint is damaged or of another run; the loss is not 0-d; the monitored
            metric is missing; no parameter is trained.
        Diverged: too many updates were not finite.
        OSError: a checkpoint could not be written; the previous one is intact.
    Source: AdamW is Loshchilov & Hutter 2019 (arXiv:1711.05101), Alg. 2.
    """
    keep_freed_memory()
    run = _Run(model, loss_fn, n_examples, recipe, evaluate, checkpoint and Path(checkpoint))
    run.begin(facts or {}, written)
    state = run.fit
    every = recipe.eval_every or recipe.steps
    hidden = not progress or run.rank > 0
    bar = tqdm(None, description, recipe.steps, disable=hidden, initial=state.step, mininterval=1)
    with bar, _generators_kept(run.device):
        if not state.history:
            run.observe()
        while state.step < recipe.steps and not state.stopped_early:
            norm = run.update()
            bar.update()
            if watch:
                watch(state.step, norm)
            if state.step % every == 0 or state.step == recipe.steps:
                bar.set_postfix(run.observe(), refresh=False)
            elif checkpoint_every and state.step % checkpoint_every == 0:
                run.save()
    return state


class _Run:
    """The working parts of one call of `fit`; those in `stateful` are what a checkpoint stores."""

    def __init__(self, model, loss_fn, n_examples, recipe, evaluate, folder):
        self.model = model
        self.loss_fn = loss_fn
        self.n_examples = n_examples
        self.recipe = recipe
        self.evaluate = evaluate
        self.folder = folder
        self.device = next(iter(trained(model).values())).device
        self.rank, self.world = _ranks(self.device)
        accepted = f"at least {self.world}, the ranks"
        require(recipe.batch_size >= self.world, "batch_size", recipe.batch_size, accepted)
        if self.world > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0)
        self.optimizer = _optimizer(model, recipe)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "fp16")
        self.stateful = {"model": model, "optimizer": self.optimizer, "scaler": self.scaler}
        self.ema = None
        if recipe.ema is not None:
            self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
            self.ema.update_parameters(model)  # the first call copies: it starts where they start
            self.stateful["ema"] = self.ema
        self.evaluated = model if self.ema is None else self.ema.module.eval()
        share = math.ceil(recipe.batch_size / self.world)
        self.fit = Fit(recipe.batch_size, min(recipe.micro_batch or share, share))
        self.fit.ema = self.ema and self.ema.module

    def begin(self, facts: Mapping[str, object], written: Callable[[int], bool] | None) -> None:
        """Continue from the checkpoint, if there is one."""
        self.identity = self.what_determines_weights(facts) if self.folder else {}
        self.resume(written or (lambda step: True))
        self.train_mode()

    def train_mode(self) -> None:
        self.model.train()
        for module in self.model.modules():
            parameters = list(module.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                module.eval()  # frozen: neither dropout nor moving averages

    # -- one update

    def update(self) -> float:
        """Give the batch's mean gradient to AdamW, unless it is not finite; return its norm."""
        recipe = self.recipe
        buffers = [b.clone() for b in self.model.buffers()]
        loss = self.gradient(buffers)
        self.scaler.unscale_(self.optimizer)
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        if recipe.clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, recipe.clip, norm)
        both = torch.stack((loss, norm.to(loss)))
        loss, norm = both.tolist()  # the step's only wait for the device
        if math.isfinite(loss) and math.isfinite(norm):
            self.advance(loss)
        else:
            self.restore(buffers)
            self.skip(loss, norm)
        self.scaler.update()
        self.fit.step += 1
        return norm

    def advance(self, loss: float) -> None:
        fit = self.fit
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * learning_rate(self.recipe, fit.step, fit.lr_factor)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        fit.loss_sum += loss
        fit.loss_count += 1
        fit.skipped_in_row = 0

    def skip(self, loss: float, norm: float) -> None:
        fit = self.fit
        fit.skipped += 1
        fit.skipped_in_row += 1
        in_row = self.recipe.max_skipped_in_row
        share = self.recipe.max_skipped_share
        if fit.skipped_in_row > in_row or fit.skipped > max(in_row, share * (fit.step + 1)):
            raise Diverged(
                fit,
                f"step {fit.step}: loss {loss}, gradient norm {norm}; skipped {fit.skipped_in_row} "
                f"updates in a row (max_skipped_in_row = {in_row}), {fit.skipped} in all "
                f"(max_skipped_share = {share}). Lower lr, add warmup or clip, or look for NaN in "
                "the data.",
            )

    def gradient(self, buffers: list[Tensor]) -> Tensor:
        """Leave the batch's mean gradient in `.grad`, return its loss; halve micro-batches at need.

        Noise sees micro-batches: the checkpoint keeps their size, so that a resumed run splits
        this batch, too.
        """
        fit = self.fit
        recipe = self.recipe
        index = indices(
            self.n_examples, recipe.batch_size, fit.step, recipe.seed, block=recipe.shuffle_block
        )
        index = index[self.rank :: self.world].contiguous()
        while True:
            try:
                loss = self.accumulate(index)
                return loss if self.world == 1 else self.sum_over_ranks(loss)
            except RuntimeError as error:
                micro = min(fit.micro_batch, len(index))
                starved = isinstance(error, torch.OutOfMemoryError)
                if not (starved or "can't allocate memory" in str(error)) or micro == 1:
                    raise
            fit.micro_batch = micro // 2  # after `except`: its traceback holds the activations
            self.restore(buffers)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.save()

    def accumulate(self, index: Tensor) -> Tensor:
        """This rank's share of the mean loss and, in `.grad`, of its gradient."""
        key = (self.recipe.seed, self.fit.step, self.rank)
        _seed_global(self.device, "dropout", *key)
        generator = torch.Generator(self.device).manual_seed(stream("noise", *key))
        self.optimizer.zero_grad()
        total = 0.0
        for part in index.split(self.fit.micro_batch):
            with autocast(self.device, self.recipe.precision):
                loss = self.loss_fn(self.model, part, generator)
            accepted = "the mean over the examples, 0-d"
            require(loss.ndim == 0, "shape of loss_fn's loss", tuple(loss.shape), accepted)
            loss = loss * (len(part) / self.recipe.batch_size)
            self.scaler.scale(loss).backward()
            total = total + loss.detach()
        return total

    def sum_over_ranks(self, loss: Tensor) -> Tensor:
        """All-reduce gradient and loss at once; every rank must use the same parameters."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients] + [loss.reshape(1)])
        dist.all_reduce(flat)
        *parts, loss = flat.split([g.numel() for g in gradients] + [1])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        for buffer in self.model.buffers():  # BatchNorm's averages differ: keep rank 0's, as DDP
            dist.broadcast(buffer, src=0)
        return loss.squeeze(0)

    def restore(self, buffers: list[Tensor]) -> None:
        for buffer, old in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(old)

    # -- evaluations and checkpoints

    def observe(self) -> dict[str, float]:
        """Evaluate, append the row to the history, keep the best weights, write the checkpoint."""
        recipe = self.recipe
        fit = self.fit
        row = {
            "step": fit.step,
            "lr": learning_rate(recipe, fit.step, fit.lr_factor),
            "train_loss": fit.loss_sum / fit.loss_count if fit.loss_count else math.nan,
        }
        if self.evaluate and self.rank == 0:
            _seed_global(self.device, "evaluate", recipe.seed, fit.step)
            self.evaluated.eval()
            with torch.no_grad(), autocast(self.device, recipe.precision):
                found = self.evaluate(self.evaluated, fit.step)
            row |= {name: float(value) for name, value in found.items()}
            self.train_mode()
        row = self.from_rank_0(row)
        fit.history.append(row)
        fit.loss_sum = 0.0
        fit.loss_count = 0
        if recipe.monitor and _improved(recipe, fit, row):
            fit.best = cpu_copy(self.evaluated)
            if self.folder and self.rank == 0:
                save_weights(fit.best, self.folder / "best.safetensors")
        self.save()
        return row

    def save(self) -> None:
        if self.folder and self.rank == 0:
            content = {name: part.state_dict() for name, part in self.stateful.items()}
            content["fit"] = {name: v for name, v in vars(self.fit).items() if name != "ema"}
            content["unsaved"] = {name: _state(thing) for name, thing in self.unsaved().items()}
            save_checkpoint(content, self.identity, self.folder / "last.pt")

    def resume(self, written: Callable[[int], bool]) -> None:
        content = None
        if self.folder and self.rank == 0:
            file = self.folder / "last.pt"
            content = load_checkpoint(file, self.identity)
            if content and not all(written(row["step"]) for row in content["fit"]["history"]):
                print(f"training anew: what was written beside {file} is gone", file=sys.stderr)
                content = None
        content = self.from_rank_0(content)
        if content is None:
            return
        for name, part in self.stateful.items():
            part.load_state_dict(content[name])
        for name, thing in self.unsaved().items():
            set_state = thing.set_state if isinstance(thing, torch.Generator) else thing.copy_
            set_state(content["unsaved"][name])
        vars(self.fit).update(content["fit"])

    def unsaved(self) -> dict[str, Tensor | torch.Generator]:
        """What state dicts leave out: non-persistent buffers, and generators of the network."""
        found = {}
        networks = nn.ModuleList([self.model] if self.ema is None else [self.model, self.ema])
        for prefix, module in networks.named_modules():
            things = {n: module._buffers[n] for n in module._non_persistent_buffers_set}
            things |= {n: v for n, v in vars(module).items() if isinstance(v, torch.Generator)}
            found |= {f"{prefix} {n}": v for n, v in things.items() if v is not None}
        return found

    def what_determines_weights(self, facts: Mapping[str, object]) -> dict[str, str]:
        """What must agree for a checkpoint to be continued, taken before the first update."""
        settings = {"n_examples": self.n_examples} | asdict(self.recipe) | {"ranks": self.world}
        settings["trained weights"] = list(trained(self.model))
        found = {name: repr(value) for name, value in settings.items()}
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            found[name] = f"{tuple(tensor.shape)} {tensor.dtype}"
        found |= {name: described(value) for name, value in facts.items()}
        found |= structure_of(self.model)
        constants = constants_of(self.loss_fn)
        return found | {f"{name} of the loss": text for name, text in constants.items()}

    def from_rank_0(self, value: object) -> object:
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with a group of parameters for each factor on the learning rate."""
    parameters = trained(model)
    for prefix in recipe.lr_scale:
        known = any(name.startswith(prefix) for name in parameters)
        require(known, "lr_scale", prefix, "the beginning of a trained parameter's name")
    groups: dict[float, list[Tensor]] = {}
    for name, p in parameters.items():
        scale = math.prod(s for prefix, s in recipe.lr_scale.items() if name.startswith(prefix))
        groups.setdefault(scale, []).append(p)
    return torch.optim.AdamW(
        [{"params": group, "scale": scale} for scale, group in groups.items()],
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        fused=p.device.type in ("cpu", "cuda"),
    )


def _improved(recipe: Recipe, fit: Fit, row: dict[str, float]) -> bool:
    """Compare with the best value so far; count towards early stopping and the plateau."""
    require(recipe.monitor in row, "monitor", recipe.monitor, f"one of {', '.join(row)}")
    value = row[recipe.monitor]
    sign = 1 if recipe.mode == "min" else -1
    best = sign * math.inf if fit.best_value is None else fit.best_value
    if sign * (best - value) > recipe.min_delta:  # never true of NaN
        fit.best_value = value
        fit.best_step = fit.step
        fit.stale = fit.plateau_stale = 0
        return True
    fit.stale += 1
    fit.plateau_stale += 1
    fit.stopped_early = recipe.patience is not None and fit.stale >= recipe.patience
    if recipe.schedule == "plateau" and fit.plateau_stale > recipe.plateau_patience:
        fit.lr_factor *= recipe.plateau_factor
        fit.plateau_stale = 0
    return False


def _state(thing: Tensor | torch.Generator) -> Tensor:
    return thing.get_state() if isinstance(thing, torch.Generator) else thing


@contextlib.contextmanager
def _generators_kept(device: torch.device) -> Iterator[None]:
    """Leave the global generators as they are found."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def _seed_global(device: torch.device, *key: object) -> None:
    # not torch.manual_seed, which formats a stack trace per call where CUDA is present but unused
    torch.default_generator.manual_seed(stream(*key))
    random.seed(stream(*key))
    np.random.seed(stream(*key) % 2**32)  # noqa: NPY002
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(stream(*key))


def _ranks(device: torch.device) -> tuple[int, int]:
    """(rank, number of ranks) as set by torchrun; (0, 1) without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    return dist.get_rank(), dist.get_world_size()
