"""Runs on ticks: train one configuration or fit one baseline, and score it, one row each."""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import pandas as pd
import pydantic
import torch
from pydantic import BeforeValidator, Field
from scipy.stats import rankdata
from torch import Tensor, nn

from fieldbook.nn.baselines import boosted_trees, ridge
from fieldbook.nn.checkpoints import load_weights, save_weights
from fieldbook.nn.checks import require
from fieldbook.nn.machine import autocast
from fieldbook.nn.recipe import Recipe
from fieldbook.nn.training import Fit, fit
from fieldbook.scaling.configs import STRICT, Config
from fieldbook.scaling.patches import HORIZONS, LONG_HORIZONS, SHORT_HORIZONS, Patches, window_of
from fieldbook.scaling.transformer import PATCH, WINDOW, build, count, flops

Split = Literal["val", "test", "unseen"]
SPLITS = get_args(Split)
SCORES = ("mse", "excess_risk", "oracle_mse", "ic", "rank_ic")
BASELINES = ("zero", "oracle", "ridge", "lightgbm")


def _none(value: Any) -> Any:
    """None for a missing value, as a table has NaN there."""
    return None if isinstance(value, float) and math.isnan(value) else value


RunId = Annotated[str, Field(pattern=r"^r[0-9a-f]{12}$")]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
Risk = Annotated[Amount | None, BeforeValidator(_none)]
Correlation = Annotated[Annotated[float, Field(ge=-1, le=1)] | None, BeforeValidator(_none)]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class Row:
    """A run's scores in one split at one horizon (ticks), with what the run was and how it went.

    Defaults are those of a baseline. Scores are None where the status is not `ok`.
    """

    run_id: RunId
    parent_run_id: Annotated[RunId | None, BeforeValidator(_none)] = None
    name: str
    group: str
    mode: str
    seed: Count
    d_model: Count = 0
    n_l1: Count = 0
    n_l2: Count = 0
    n_params_total: Count = 0
    n_params_trainable: Count = 0
    n_params_nonemb: Count = 0
    n_instruments: Count
    n_days: Count
    d_unique: Count
    d_seen: Count
    epochs: Count = 1
    steps: Count = 0
    batch_eff: Count = 0
    micro_batch: Count = 0
    lr: Amount = 0.0
    wd: Amount = 0.0
    flops_6nd: Count = 0
    flops_exact: Count = 0
    precision: str = "fp32"
    split: Split
    horizon: Literal[*SHORT_HORIZONS, *LONG_HORIZONS]
    mse: Risk
    excess_risk: Risk
    oracle_mse: Risk
    ic: Correlation
    rank_ic: Correlation
    n_eval: Count
    n_skipped: Count = 0
    wall_s: Amount
    device: str = "cpu"
    status: Literal["ok", "diverged", "out of memory"] = "ok"


@dataclass(frozen=True)
class Training:
    """A configuration with all that it leaves open.

    Attributes:
        data: what the data are a function of (`patches.data_key`); `days`: to train on; `stride`:
            between windows.
        limit: examples to train on, drawn from all; None takes all. `micro_batch`: to begin with.
        parent: whose level 1 is taken, in mode `finetune`.
    """

    config: Config
    group: str
    seed: int
    days: int
    data: dict
    limit: int | None = None
    stride: int = 1
    micro_batch: int | None = None
    parent: "Training | None" = None

    @property
    def level(self) -> int:
        return 1 if self.config.mode == "pretrain" else 2

    @property
    def work(self) -> float:
        """What the training takes, in a unit that all runs share."""
        c = self.config
        return self.cost * c.instruments * self.days * c.epochs / self.stride

    @property
    def cost(self) -> int:
        """Operations of one example's forward pass."""
        c = self.config
        return sum(flops(c.mode, c.d_model, c.n_l1, c.n_l2, n_in=c.n_in))

    @property
    def run_id(self) -> str:
        """`r` and twelve hexadecimal digits, a function of what determines the weights."""
        config = asdict(self.config)
        del config["name"], config["parent"]
        parent = self.parent and self.parent.run_id
        return _digest(config, self.seed, self.days, self.limit, self.stride, self.data, parent)

    def network(self, mode: str | None = None) -> nn.Module:
        """The network to be trained, or that of another mode at the same sizes."""
        c = self.config
        size = (mode or c.mode, c.d_model, c.n_l1, c.n_l2)
        return build(*size, n_in=c.n_in, dropout=c.dropout, seed=self.seed)

    def samples(self, patches: Patches) -> np.ndarray:
        """What is trained on, (n, 2)."""
        n, days = self.config.instruments, self.days
        samples = patches.examples(
            self.level, "train", instruments=n, days=days, stride=self.stride
        )
        if self.limit is None or self.limit >= len(samples):
            return samples
        order = np.random.default_rng(self.seed).permutation(len(samples))
        return samples[np.sort(order[: self.limit])]

    def recipe(self, n: int) -> Recipe:
        """How n samples are trained on."""
        config = self.config
        batch = min(config.batch_size, n)
        steps = max(config.epochs * n // batch, 1)
        return Recipe(
            steps=steps,
            batch_size=batch,
            lr=config.lr,
            seed=self.seed,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.95),
            clip=config.clip,
            warmup=min(max(round(config.warmup * steps), 1), steps),
            schedule="cosine",
            lr_min=config.lr * config.lr_min_share,
            precision=config.precision,
            micro_batch=self.micro_batch,
            eval_every=max(steps // 8, 1),
        )


@dataclass(frozen=True)
class Baseline:
    """A forecast that is no network: `zero`, `oracle` (f* itself), `ridge` or `lightgbm`.

    The last two see, for level 1, the hand-made statistics of the patch; for level 2 also their
    means over the last 10 and 60 patches.
    """

    name: str
    level: int
    data: dict
    stride: int = 1
    seed: int = 0
    group: str = "baseline"
    work = 0.0

    def __post_init__(self) -> None:
        require(self.name in BASELINES, "name", self.name, f"one of {', '.join(BASELINES)}")

    @property
    def run_id(self) -> str:
        return _digest(self.name, self.level, self.data, self.stride, self.seed)


def _digest(*spec: object) -> str:
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return "r" + hashlib.sha256(text.encode()).hexdigest()[:12]


def execute(
    run: Training | Baseline, patches: Patches, folder: Path, device: torch.device
) -> dict[str, pd.DataFrame]:
    """Train or fit one run and score it; one that fails leaves rows which say why, without scores.

    Args:
        folder: of checkpoints while it runs, and of the weights of level 1, which others may start
            from.
    Returns:
        `curves`, one row per evaluation; `scores`, one per split and horizon; `days`, one per test
        day and horizon.
    """
    started = time.monotonic()
    history = []
    if isinstance(run, Baseline):
        facts = _facts_of_baseline(run, patches)
        forecasts = _forecasts(run, patches)
    else:
        trainer = _Trainer(run, patches, device)
        state, status, forecasts = trainer.execute(folder)
        history = state.history
        facts = trainer.facts() | {"micro_batch": state.micro_batch, "n_skipped": state.skipped}
        facts |= {"device": device.type, "status": status}
    facts |= {"run_id": run.run_id, "group": run.group, "seed": run.seed}
    facts["wall_s"] = time.monotonic() - started
    curves = pd.DataFrame([{"run_id": run.run_id, **row} for row in history])
    return {"curves": curves, **_scored(run, facts, patches, forecasts)}


def _at(run: Training | Baseline, patches: Patches, split: str) -> np.ndarray:
    """Where a run is scored, (n, 2)."""
    return patches.examples(run.level, split, stride=run.stride)


class _Trainer:
    """The network of one run, the samples that it is trained on, and how."""

    def __init__(self, run: Training, patches: Patches, device: torch.device):
        self.run, self.patches, self.device = run, patches, device
        self.model = run.network().to(device)
        self.samples = run.samples(patches)
        self.recipe = run.recipe(len(self.samples))

    def execute(self, folder: Path) -> tuple[Fit, str, dict[str, np.ndarray]]:
        """How the training went, the run's status, and its forecasts (n, horizon) by split."""
        run = self.run
        state = Fit(run.config.batch_size, 0)
        checkpoints = folder / run.run_id
        try:
            read = self.reader(folder)
            state = self.fit(read, checkpoints)
            found = {split: self.forecast(read, _at(run, self.patches, split)) for split in SPLITS}
        except (FloatingPointError, RuntimeError) as error:
            status = _failure(error)
            state = getattr(error, "fit", state)
            found = {}
        else:
            status = "ok"
            if run.level == 1:
                save_weights(self.model, folder / f"{run.run_id}.safetensors")
        shutil.rmtree(checkpoints, ignore_errors=True)
        return state, status, found

    def reader(self, folder: Path) -> Callable[[np.ndarray], Tensor]:
        """What turns samples (batch, 2) into the network's inputs, on the device."""
        patches, config, device = self.patches, self.run.config, self.device
        width = config.n_in
        if config.mode in ("pretrain", "end2end"):
            pick = patches.patches if config.mode == "pretrain" else patches.windows
            return lambda at: pick(at)[..., :width].to(device)
        if config.mode == "factor":
            tokens = patches.factors()
        elif config.mode == "linear":
            tokens = patches.represent(lambda x: x[..., :width].mean(-2), width)
        else:
            level1 = self.run.network("pretrain")
            load_weights(level1, folder / f"{self.run.parent.run_id}.safetensors")
            level1.to(device).eval()

            def embed(x: Tensor) -> Tensor:
                return level1.embed(x[..., :width].to(device)).cpu()

            tokens = patches.represent(embed, config.d_model)
        return lambda at: tokens[window_of(at)].to(device)

    def fit(self, read: Callable[[np.ndarray], Tensor], checkpoints: Path) -> Fit:
        """Train; a killed run continues from its checkpoint."""
        level, patches = self.run.level, self.patches
        samples, device = self.samples, self.device
        target = torch.from_numpy(patches.target[level][*samples.T])
        watched = _at(self.run, patches, "val")
        watched = watched[:: max(len(watched) // 512, 1)]
        aims = {"val_mse": patches.target, "val_excess": patches.mean}

        def loss(network: nn.Module, index: Tensor, _: torch.Generator) -> Tensor:
            forecast = network(read(samples[index.numpy()])).float()
            return (forecast - target[index].to(device)).square().mean()

        def evaluate(network: nn.Module, _: int) -> dict[str, float]:
            found = self.forecast(read, watched)
            return {k: np.square(found - a[level][*watched.T]).mean() for k, a in aims.items()}

        often = max(self.recipe.steps // 8, 1)
        return fit(
            self.model,
            loss,
            len(samples),
            self.recipe,
            evaluate=evaluate,
            checkpoint=checkpoints,
            checkpoint_every=often if self.recipe.steps > 400 else None,
            progress=False,
            facts={"features": patches.features},
        )

    def forecast(self, read: Callable[[np.ndarray], Tensor], at: np.ndarray) -> np.ndarray:
        """(n, horizon) float32, in eval mode and under the precision of the training."""
        self.model.eval()
        with torch.no_grad(), autocast(self.device, self.recipe.precision):
            starts = range(0, len(at), 256)
            parts = [self.model(read(at[i : i + 256])).float().cpu() for i in starts]
        return torch.cat(parts).numpy()

    def facts(self) -> dict[str, Any]:
        """What a row says of its run, beside how it went."""
        run, config, recipe = self.run, self.run.config, self.recipe
        same = ("name", "mode", "d_model", "n_l1", "n_l2", "epochs", "lr", "precision")
        trainable = count(self.model)
        frozen = count(run.network("pretrain")) if config.mode == "finetune" else 0
        weights = self.model.named_parameters()
        inputs = [w.numel() for name, w in weights if "project" in name or "position" in name]
        tokens = {"pretrain": PATCH, "end2end": WINDOW * PATCH}.get(config.mode, WINDOW)
        seen = recipe.steps * recipe.batch_size
        return {name: getattr(config, name) for name in same} | {
            "parent_run_id": run.parent and run.parent.run_id,
            "n_params_total": trainable + frozen,
            "n_params_trainable": trainable,
            "n_params_nonemb": trainable - sum(inputs),
            "n_instruments": config.instruments,
            "n_days": run.days,
            "d_unique": len(self.samples),
            "d_seen": seen,
            "steps": recipe.steps,
            "batch_eff": recipe.batch_size,
            "wd": config.weight_decay,
            "flops_6nd": 6 * trainable * tokens * seen,
            "flops_exact": 3 * run.cost * seen,
        }


def _failure(error: Exception) -> str:
    """The status after a failure that belongs in the table; other errors are raised."""
    if isinstance(error, FloatingPointError):
        return "diverged"
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return "out of memory"
    raise error


def _facts_of_baseline(run: Baseline, patches: Patches) -> dict[str, Any]:
    train = patches.items[patches.items.split == "train"]
    n = len(_at(run, patches, "train"))
    return {
        "name": run.name,
        "mode": run.name,
        "n_instruments": train.instrument.nunique(),
        "n_days": train.day.nunique(),
        "d_unique": n,
        "d_seen": n,
    }


def _forecasts(run: Baseline, patches: Patches) -> dict[str, np.ndarray]:
    """(n, horizon) by split."""
    level = run.level
    at = {split: _at(run, patches, split) for split in ("train", *SPLITS)}
    mean = {split: patches.mean[level][*at[split].T] for split in SPLITS}
    if run.name in ("zero", "oracle"):
        return {split: float(run.name == "oracle") * f for split, f in mean.items()}
    factors = patches.factors().numpy()
    x = {split: _summaries(factors, places, level) for split, places in at.items()}
    target = patches.target[level][*at["train"].T]

    def fitted(h: int):
        if run.name == "ridge":  # the luck of a few long returns is not to choose the penalty
            return ridge(x["train"], target[:, h], (x["val"], mean["val"][:, h]))
        return boosted_trees(x["train"], target[:, h], seed=run.seed, trees=100, leaves=15)

    models = [fitted(h) for h in range(len(HORIZONS[level]))]
    return {split: np.stack([model.predict(x[split]) for model in models], 1) for split in SPLITS}


def _summaries(factors: np.ndarray, at: np.ndarray, level: int) -> np.ndarray:
    """(n, 62) at the samples; for level 2 with means over the last 10 and 60 patches, (n, 186)."""
    item, end = at.T
    if level == 1:
        return factors[item, end]
    total = np.pad(np.cumsum(factors, 1, dtype=float), ((0, 0), (1, 0), (0, 0)))
    means = [(total[item, end + 1] - total[item, end + 1 - k]) / k for k in (10, WINDOW)]
    return np.concatenate([factors[item, end], *means], 1).astype(np.float32)


def _scored(
    run: Training | Baseline,
    facts: dict[str, Any],
    patches: Patches,
    forecasts: dict[str, np.ndarray],
) -> dict[str, pd.DataFrame]:
    """Rows of `scores` and `days`; without forecasts, rows without scores."""
    rows, days = [], []
    for split in SPLITS:
        at = _at(run, patches, split)
        y = patches.target[run.level][*at.T].astype(float)
        f = patches.mean[run.level][*at.T].astype(float)
        found = forecasts.get(split, np.full(y.shape, np.nan))
        for h, horizon in enumerate(HORIZONS[run.level]):
            p = found[:, h].astype(float)
            scores = score(y[:, h], f[:, h], p)
            rows.append(Row(split=split, horizon=horizon, n_eval=len(at), **facts, **scores))
            if split == "test":
                day = patches.items.day.to_numpy()[at[:, 0]]
                errors = {"mse": (p - y[:, h]) ** 2, "excess_risk": (p - f[:, h]) ** 2}
                key = {"run_id": run.run_id, "horizon": horizon, "day": day}
                days.append(pd.DataFrame(key | errors))
    each = pd.concat(days).groupby(["run_id", "horizon", "day"], as_index=False)
    return {"scores": pd.DataFrame(map(asdict, rows)), "days": each.mean()}


def score(y: np.ndarray, f: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """`SCORES`: squared error, excess risk, that of the oracle, correlation with y, and of ranks.

    Args:
        y, f, prediction: (n,) returns, their conditional means, and the forecast.
    Returns:
        The correlations of a constant forecast are 0.
    """
    return {
        "mse": float(np.mean((prediction - y) ** 2)),
        "excess_risk": float(np.mean((prediction - f) ** 2)),
        "oracle_mse": float(np.mean((f - y) ** 2)),
        "ic": _correlation(y, prediction),
        "rank_ic": _correlation(rankdata(y), rankdata(prediction)),
    }


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    spread = a.std() * b.std()
    share = np.mean((a - a.mean()) * (b - b.mean())) / spread if spread > 0 else 0.0 * spread
    return float(np.clip(share, -1, 1))  # rounding takes that of two examples beyond


def checked(frame: pd.DataFrame, path: Path | str) -> pd.DataFrame:
    """A table of runs, if it is one: the columns of `Row`, and scores wherever a run is `ok`.

    Raises:
        ValueError: it is not; names the file, the row and the column.
    """
    odd = {field.name for field in fields(Row)} ^ set(frame.columns)
    require(not odd, f"columns of {path}", sorted(odd), "those of `Row`, no other and none less")
    for row, record in enumerate(frame.to_dict("records")):
        try:
            Row(**record)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            what = f"row {row}, column {first['loc'][0]}: {first['msg']}"
            raise ValueError(f"{path}: {what}, found {first['input']!r}") from None
    for name in SCORES:
        lost = np.flatnonzero(frame[name].isna() & (frame.status == "ok"))
        if len(lost):
            what = f"row {lost[0]}, column {name}: no value, though the run's status is ok"
            raise ValueError(f"{path}: {what}")
    return frame


def mean_over_horizons(frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Scores averaged over horizons and all else but `keys`; runs that failed are left out."""
    found = frame[frame.status == "ok"].groupby(list(keys), sort=False)
    return found[list(SCORES)].mean().reset_index()
