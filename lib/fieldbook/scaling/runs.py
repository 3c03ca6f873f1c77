"""Runs of the patch transformer: train one configuration on ticks, and score it with its baselines,
one row each."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa
import torch
from scipy.stats import bootstrap, rankdata
from torch import Tensor, nn

from fieldbook.nn.baselines import boosted_trees, ridge
from fieldbook.nn.checkpoints import load_weights, save_weights
from fieldbook.nn.checks import positive, require
from fieldbook.nn.machine import autocast
from fieldbook.nn.recipe import Recipe
from fieldbook.nn.training import Fit, fit
from fieldbook.scaling.configs import Config
from fieldbook.scaling.patches import HORIZONS, Patches
from fieldbook.scaling.transformer import PATCH, WINDOW, build, count, flops
from fieldbook.scaling.transforms import columns

SPLITS = ("val", "test", "unseen")
BASELINES = ("zero", "oracle", "ridge", "lightgbm")


@dataclass(frozen=True)
class Run:
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
    parent: "Run | None" = None

    @property
    def level(self) -> int:
        return 1 if self.config.mode == "pretrain" else 2

    @property
    def work(self) -> float:
        """What the training takes, in a unit that all runs share."""
        c = self.config
        return sum(_flops(c)) * c.instruments * self.days * c.epochs / self.stride

    @property
    def run_id(self) -> str:
        """`r` and twelve hexadecimal digits, a function of what determines the weights."""
        spec = {
            name: value
            for name, value in asdict(self.config).items()
            if name not in ("name", "parent")
        }
        other = [
            self.seed,
            self.days,
            self.limit,
            self.stride,
            self.data,
            self.parent and self.parent.run_id,
        ]
        return run_id([spec, *other])


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
        return run_id([self.name, self.level, self.data, self.stride, self.seed])


def run_id(spec: object) -> str:
    """Name of whatever has this canonical specification."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return "r" + hashlib.sha256(text.encode()).hexdigest()[:12]


def execute(
    run: Run | Baseline, patches: Patches, folder: Path, device: torch.device
) -> dict[str, pd.DataFrame]:
    """Train or fit one run and score it; a run that fails leaves rows without scores, which say
    why.

    Args:
        folder: of checkpoints while it runs, and of the weights of level 1, which others may start
            from.
    Returns:
        `scores`, one row per split and horizon; `curves`, one per evaluation; `days`, one per test
        day and horizon.
    """
    if isinstance(run, Baseline):
        return _execute_baseline(run, patches)
    started = time.monotonic()
    model, samples = _network(run).to(device), _samples(run, patches)
    recipe, state, status, predictions = (
        _recipe(run, len(samples)),
        Fit(run.config.batch_size, 0),
        "ok",
        {},
    )
    try:
        read = _reader(run, patches, folder, device)
        state = _train(run, model, patches, samples, read, recipe, folder / run.run_id, device)
        predictions = {
            split: _predict(model, read, _evaluated(patches, run, split), recipe)
            for split in SPLITS
        }
    except (FloatingPointError, RuntimeError) as error:
        status, state = _failure(error), getattr(error, "fit", state)
    if run.level == 1 and status == "ok":
        save_weights(model, folder / f"{run.run_id}.safetensors")
    shutil.rmtree(folder / run.run_id, ignore_errors=True)
    facts = _facts(run, model, recipe, len(samples)) | {"micro_batch": state.micro_batch}
    end = {
        "n_skipped": state.skipped,
        "wall_s": time.monotonic() - started,
        "device": device.type,
        "status": status,
    }
    curves = [{"run_id": run.run_id, **row} for row in state.history]
    return {
        "curves": pd.DataFrame(curves),
        **_scored(facts, end, run.level, run.stride, patches, predictions),
    }


def _execute_baseline(run: Baseline, patches: Patches) -> dict[str, pd.DataFrame]:
    started, name, level = time.monotonic(), run.name, run.level
    at = {split: patches.examples(level, split, stride=run.stride) for split in ("train", *SPLITS)}
    if name in ("zero", "oracle"):
        share = float(name == "oracle")
        predictions = {split: share * patches.mean[level][tuple(at[split].T)] for split in SPLITS}
    else:
        factors = patches.factors().numpy()
        x = {split: _summaries(factors, places, level) for split, places in at.items()}
        y = {split: patches.target[level][tuple(places.T)] for split, places in at.items()}
        expected = patches.mean[level][tuple(at["val"].T)]  # excess risk chooses the penalty
        fitted = [
            ridge(x["train"], y["train"][:, h], (x["val"], expected[:, h]))
            if name == "ridge"
            else boosted_trees(x["train"], y["train"][:, h], seed=run.seed, trees=100, leaves=15)
            for h in range(len(HORIZONS[level]))
        ]
        predictions = {
            split: np.stack([model.predict(x[split]) for model in fitted], 1) for split in SPLITS
        }
    train = patches.items[patches.items.split == "train"]
    names = list(SCHEMA.columns)
    facts = dict.fromkeys(names[: names.index("split")], 0) | {
        "run_id": run.run_id,
        "parent_run_id": None,
        "name": name,
        "group": run.group,
        "mode": name,
        "seed": run.seed,
        "n_instruments": train.instrument.nunique(),
        "n_days": train.day.nunique(),
        "d_unique": len(at["train"]),
        "d_seen": len(at["train"]),
        "epochs": 1,
        "precision": "fp32",
    }
    end = {"n_skipped": 0, "wall_s": time.monotonic() - started, "device": "cpu", "status": "ok"}
    return _scored(facts, end, level, run.stride, patches, predictions)


def _failure(error: Exception) -> str:
    """The status of a run that failed in a way that belongs in the table; other errors are
    raised."""
    if isinstance(error, FloatingPointError):
        return "diverged"
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return "out of memory"
    raise error


def _network(run: Run, mode: str | None = None) -> nn.Module:
    c = run.config
    other = {
        "n_features": len(columns(c.include_skew_norm)),
        "dropout": c.dropout,
        "seed": run.seed,
    }
    return build(mode or c.mode, c.d_model, c.n_l1, c.n_l2, **other)


def _samples(run: Run, patches: Patches) -> np.ndarray:
    """What the run trains on, (n, 2)."""
    places = {"instruments": run.config.instruments, "days": run.days, "stride": run.stride}
    samples = patches.examples(run.level, "train", **places)
    if run.limit is None or run.limit >= len(samples):
        return samples
    order = np.random.default_rng(run.seed).permutation(len(samples))
    return samples[np.sort(order[: run.limit])]


def _facts(run: Run, model: nn.Module, recipe: Recipe, unique: int) -> dict[str, object]:
    """What a row says of its run, beside how it went."""
    c, trainable, seen = run.config, count(model), recipe.steps * recipe.batch_size
    frozen = count(_network(run, "pretrain")) if c.mode == "finetune" else 0
    tokens = {"pretrain": PATCH, "end2end": WINDOW * PATCH}.get(c.mode, WINDOW)
    return {
        "run_id": run.run_id,
        "parent_run_id": run.parent.run_id if run.parent else None,
        "name": c.name,
        "group": run.group,
        "mode": c.mode,
        "seed": run.seed,
        "d_model": c.d_model,
        "n_l1": c.n_l1,
        "n_l2": c.n_l2,
        "n_params_total": trainable + frozen,
        "n_params_trainable": trainable,
        "n_params_nonemb": _without_embedding(model),
        "n_instruments": c.instruments,
        "n_days": run.days,
        "d_unique": unique,
        "d_seen": seen,
        "epochs": c.epochs,
        "steps": recipe.steps,
        "batch_eff": recipe.batch_size,
        "micro_batch": 0,
        "lr": c.lr,
        "wd": c.weight_decay,
        "flops_6nd": 6 * trainable * tokens * seen,
        "flops_exact": 3 * sum(_flops(c)) * seen,
        "precision": c.precision,
    }


def _flops(c: Config) -> tuple[int, int]:
    return flops(c.mode, c.d_model, c.n_l1, c.n_l2, n_features=len(columns(c.include_skew_norm)))


def _recipe(run: Run, n: int) -> Recipe:
    config = run.config
    batch = min(config.batch_size, n)
    steps = max(config.epochs * n // batch, 1)
    return Recipe(
        steps=steps,
        batch_size=batch,
        lr=config.lr,
        seed=run.seed,
        weight_decay=config.weight_decay,
        betas=(0.9, 0.95),
        clip=config.clip,
        warmup=min(max(round(config.warmup * steps), 1), steps),
        schedule="cosine",
        lr_min=config.lr * config.lr_min_share,
        precision=config.precision,
        micro_batch=run.micro_batch,
        eval_every=max(steps // 8, 1),
    )


def _reader(
    run: Run, patches: Patches, folder: Path, device: torch.device
) -> Callable[[np.ndarray], Tensor]:
    """Samples (batch, 2) -> what the mode's network takes, on the device."""
    width, mode = len(columns(run.config.include_skew_norm)), run.config.mode
    if mode in ("pretrain", "end2end"):
        pick = patches.patches if mode == "pretrain" else patches.windows
        return lambda at: pick(at, width).to(device)
    if mode == "finetune":
        level1 = _network(run, "pretrain")
        load_weights(level1, folder / f"{run.parent.run_id}.safetensors")
        level1.to(device).eval()
        tokens = patches.represent(
            lambda x: level1.embed(x.to(device)).cpu(), run.config.d_model, width
        )
    else:
        tokens = (
            patches.factors()
            if mode == "factor"
            else patches.represent(lambda x: x.mean(-2), width, width)
        )
    window = torch.arange(1 - WINDOW, 1)
    return lambda at: tokens[torch.from_numpy(at[:, :1]), torch.from_numpy(at[:, 1:]) + window].to(
        device
    )


def _train(run, model, patches, samples, read, recipe, folder, device) -> Fit:
    target = torch.from_numpy(patches.target[run.level][tuple(samples.T)])
    watched = _evaluated(patches, run, "val")
    watched = watched[:: max(len(watched) // 512, 1)]

    def loss(network: nn.Module, index: Tensor, _: torch.Generator) -> Tensor:
        return (
            (network(read(samples[index.numpy()])).float() - target[index].to(device))
            .square()
            .mean()
        )

    def evaluate(network: nn.Module, _: int) -> dict[str, float]:
        predicted = _predict(network, read, watched, recipe)
        y, f = (values[run.level][tuple(watched.T)] for values in (patches.target, patches.mean))
        return {
            "val_mse": np.square(predicted - y).mean(),
            "val_excess": np.square(predicted - f).mean(),
        }

    every = max(recipe.steps // 8, 1) if recipe.steps > 400 else None
    return fit(
        model,
        loss,
        len(samples),
        recipe,
        evaluate=evaluate,
        checkpoint=folder,
        checkpoint_every=every,
        progress=False,
        facts={"features": patches.features},
    )


def _evaluated(patches: Patches, run: Run, split: str) -> np.ndarray:
    return patches.examples(run.level, split, stride=run.stride)


def _predict(
    model: nn.Module, read: Callable, at: np.ndarray, recipe: Recipe, size: int = 256
) -> np.ndarray:
    """(n, horizon) float32, in eval mode and under the precision of the training."""
    device, training = next(model.parameters()).device, model.training
    model.eval()
    with torch.no_grad(), autocast(device, recipe.precision):
        parts = [model(read(at[i : i + size])).float().cpu() for i in range(0, len(at), size)]
    model.train(training)
    return torch.cat(parts).numpy()


def _summaries(factors: np.ndarray, at: np.ndarray, level: int) -> np.ndarray:
    """(n, 62) at the samples; for level 2 with means over the last 10 and 60 patches, (n, 186)."""
    item, end = at.T
    if level == 1:
        return factors[item, end]
    total = np.pad(np.cumsum(factors, 1, dtype=float), ((0, 0), (1, 0), (0, 0)))
    means = [(total[item, end + 1] - total[item, end + 1 - k]) / k for k in (10, WINDOW)]
    return np.concatenate([factors[item, end], *means], 1).astype(np.float32)


def _without_embedding(model: nn.Module) -> int:
    """Parameters without input projections and positions."""
    left_out = [
        p for name, p in model.named_parameters() if "project" in name or "position" in name
    ]
    return count(model) - sum(p.numel() for p in left_out)


def _scored(
    facts: dict,
    end: dict,
    level: int,
    stride: int,
    patches: Patches,
    predictions: dict[str, np.ndarray],
):
    """Rows of `scores` and `days`; without predictions, rows without scores."""
    rows, days = [], []
    for split in SPLITS:
        at = patches.examples(level, split, stride=stride)
        y, f = (
            values[level][tuple(at.T)].astype(float) for values in (patches.target, patches.mean)
        )
        for h, horizon in enumerate(HORIZONS[level]):
            found = (
                predictions[split][:, h].astype(float) if predictions else np.full(len(at), np.nan)
            )
            scores = score(y[:, h], f[:, h], found)
            rows.append(
                {**facts, "split": split, "horizon": horizon, **scores, "n_eval": len(at), **end}
            )
            if split == "test":
                frame = pd.DataFrame(
                    {"mse": (found - y[:, h]) ** 2, "excess_risk": (found - f[:, h]) ** 2}
                )
                daily = frame.groupby(patches.items.day.to_numpy()[at[:, 0]]).mean()
                key = {"run_id": facts["run_id"], "horizon": horizon}
                days += [
                    {**key, "day": day, **values} for day, values in daily.to_dict("index").items()
                ]
    return {"scores": pd.DataFrame(rows), "days": pd.DataFrame(days)}


def score(y: np.ndarray, f: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Mean squared error, excess risk, that of the oracle, and correlation with the target and of
    their ranks.

    Args:
        y, f, prediction: (n,) returns, their conditional means, and the forecast.
    Returns:
        The correlations of a constant forecast are 0.
    """
    ic, rank_ic = (
        _correlation(*pair) for pair in ((y, prediction), (rankdata(y), rankdata(prediction)))
    )
    risks = [float(np.mean(gap**2)) for gap in (prediction - y, prediction - f, f - y)]
    return dict(
        zip(
            ("mse", "excess_risk", "oracle_mse", "ic", "rank_ic"),
            (*risks, ic, rank_ic),
            strict=True,
        )
    )


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    spread = a.std() * b.std()
    share = np.mean((a - a.mean()) * (b - b.mean())) / spread if spread > 0 else 0.0 * spread
    return float(np.clip(share, -1, 1))  # rounding takes that of two examples beyond


# -- the table of all runs

_whole, _share = pa.Check.ge(0), pa.Check.in_range(-1, 1)
SCHEMA = pa.DataFrameSchema(
    {
        "run_id": pa.Column(str, pa.Check.str_matches(r"^r[0-9a-f]{12}$")),
        "parent_run_id": pa.Column(
            str, pa.Check.str_matches(r"^r[0-9a-f]{12}$"), nullable=True, coerce=True
        ),
        **{name: pa.Column(str) for name in ("name", "group", "mode")},
        **{
            name: pa.Column(int, _whole)
            for name in (
                "seed",
                "d_model",
                "n_l1",
                "n_l2",
                "n_params_total",
                "n_params_trainable",
                "n_params_nonemb",
                "n_instruments",
                "n_days",
                "d_unique",
                "d_seen",
                "epochs",
                "steps",
                "batch_eff",
                "micro_batch",
            )
        },
        **{
            name: pa.Column(float, _whole, coerce=True)
            for name in ("lr", "wd", "flops_6nd", "flops_exact")
        },
        "precision": pa.Column(str),
        "split": pa.Column(str, pa.Check.isin(SPLITS)),
        "horizon": pa.Column(int, pa.Check.isin([h for level in HORIZONS.values() for h in level])),
        **{
            name: pa.Column(float, _whole, nullable=True, coerce=True)
            for name in ("mse", "excess_risk", "oracle_mse")
        },
        **{
            name: pa.Column(float, _share, nullable=True, coerce=True) for name in ("ic", "rank_ic")
        },
        **{name: pa.Column(int, _whole) for name in ("n_eval", "n_skipped")},
        "wall_s": pa.Column(float, _whole, coerce=True),
        "device": pa.Column(str),
        "status": pa.Column(str, pa.Check.isin(["ok", "diverged", "out of memory"])),
    },
    strict=True,
    ordered=True,
)


def checked(frame: pd.DataFrame, path: Path | str) -> pd.DataFrame:
    """A table of runs, if it is one: every column with its type and range, and scores wherever a
    run is `ok`.

    Raises:
        ValueError: it is not; names the file, the row and the column.
    """
    try:
        frame = SCHEMA.validate(frame, lazy=True)
    except pa.errors.SchemaErrors as error:
        first = error.failure_cases.iloc[0]
        row = "" if pd.isna(first["index"]) else f"row {int(first['index'])}, "
        what = f"{row}column {first.column or first.failure_case}: {first.check}, found {first.failure_case!r}"
        raise ValueError(f"{path}: {what} ({len(error.failure_cases)} faults in all)") from None
    for name in ("mse", "excess_risk", "ic"):
        if len(bad := frame.index[frame[name].isna() & (frame.status == "ok")]):
            raise ValueError(
                f"{path}: row {bad[0]}, column {name}: no value, though the run's status is ok"
            )
    return frame


def mean_over_horizons(frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Scores averaged over horizons and all else but `keys`; runs that failed are left out."""
    found = frame[frame.status == "ok"].groupby(list(keys), sort=False)
    return found[["mse", "excess_risk", "oracle_mse", "ic", "rank_ic"]].mean().reset_index()


def ratio_interval(
    first: np.ndarray, second: np.ndarray, *, seed: int, repeats: int = 2000, level: float = 0.95
) -> tuple[float, float, float]:
    """Ratio of two mean losses on the same days, with its interval by a paired bootstrap of days.

    Args:
        first, second: (day,) losses, positive.
    Returns:
        The ratio and both ends of the interval.
    Raises:
        ValueError: losses that are not positive, not of the same days, or of fewer than two days.
    """
    first = positive(first, "first", ndim=1, least=2).numpy(force=True)
    second = positive(second, "second", shape=first.shape).numpy(force=True)
    found = bootstrap(
        (first, second),
        lambda one, two, axis=-1: one.mean(axis) / two.mean(axis),
        paired=True,
        method="percentile",
        n_resamples=repeats,
        confidence_level=level,
        rng=np.random.default_rng(seed),
    )
    low, high = found.confidence_interval
    return float(first.mean() / second.mean()), float(low), float(high)
