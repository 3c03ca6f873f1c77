"""A transformer and its rivals on one set of stars: the networks, the baselines, and the bounds.

A job is a row: one model on so many spectra, scored on test spectra whose noise never changes.
Validation and test spectra get their noise once, training spectra of the transformer get it anew
each time that they are used, those of the baselines once or `DRAWS` times.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fieldbook.nn import baselines, machine
from fieldbook.nn.recipe import Recipe
from fieldbook.run import paths
from fieldbook.run.chapter import Run
from fieldbook.spectra import information, spectroscopy
from fieldbook.spectra.spectroscopy import OPTIONS, Norm
from fieldbook.spectra.vit import SpectraViT
from fieldbook.stars.dataset import LabelNorm, Spectra
from fieldbook.stars.emulator import NODES, SMALL, Emulator
from fieldbook.stars.noise import SEED, error, fixed_noise, noisy

Row = dict[str, Any]

RUNS = {"run 1": {"start": "source"}}
RUNS |= {"run 2": RUNS["run 1"] | {"tokenizer": "SW", "loss": "l1", "norm": "minmax"}}
RUNS |= {"run 3": {"position": "rope"}}
HEAD = "run 3"  # ours, which is scaled and looked into; the others are the source's
DRAWS = 8  # of the noise, that a baseline is fitted to at the smallest size
START = {"position": "learned", "start": "source"}
VARIANTS = {  # of `HEAD`, each a change of it
    HEAD: {},
    "sliding window": {"tokenizer": "SW"},
    "reshape": {"tokenizer": "linear"},
    "learned positions": {"position": "learned"},
    "no positions": {"position": "none"},
    "mean pooling": {"pooling": "mean"},
    "attention pooling": {"pooling": "attention"},
    "absolute error": {"loss": "l1"},
    "Huber": {"loss": "huber"},
    "labels in [0, 1]": {"norm": "minmax"},
    "classes": {"loss": "cross_entropy", "norm": "classes 16"},
    "raw flux": {"preprocess": "none"},
    "256 principal components": {"preprocess": "pca"},
    "log's start": {**START},
    "raw flux, log's start": {**START, "preprocess": "none"},
    "raw flux, log's start, window": {**START, "preprocess": "none", "tokenizer": "SW"},
}
METHODS = {  # in plain words
    "ViT": "transformer",
    "LightGBM": "boosted trees",
    "Ridge": "ridge regression",
    "template": "template fit",
}
LINES = {  # strong ones, vacuum Angstrom
    "Ca II": (8500.4, 8544.4, 8664.5),
    "Na I": (8185.5, 8197.1),
    "K I": (7667.0, 7701.1),
    "Mg I": (8809.2,),
    "Fe I": (8691.0,),
}
ONE, SEVERAL = "one draw", f"{DRAWS} draws"
NOISE = {"flux": ONE, f"flux, {SEVERAL}": SEVERAL, HEAD: "new at every use"}
INPUTS = {"flux": "noisy flux", "error alone": "its error alone"}
EDGES = {"mag": np.linspace(20.5, 22.5, 9), "snr": [0, 3, 5, 7, 9, 12, 16, 22]}  # of bins
PAIRS = {"full": {"giant": 1.5, "dwarf": 4.5}, "small": {"giant": 2.5, "dwarf": 4.0}}  # log g
JOB = ("model", "run", "n_train", "noise_level", "seed")
VALIDATED = ("epoch", "val_r2", "val_mae_norm", "val_mae_dex")
LOOKED_AT = ("wavelength", "rollout", "saliency", "information")
HEAVINESS = {"ViT": 1e9, "LightGBM": 1e6}  # transformers first, then trees on many spectra
BRIGHT = 17.0  # magnitude at which maximum likelihood should reach its bound
MAGNITUDE = 21.5  # of the pair of stars that is shown


SOURCE_R2 = pd.DataFrame(  # what the source reports, by training spectra
    {
        "transformer": [0.434, 0.596, 0.673, 0.709, 0.711],
        "boosted trees": [0.488, 0.553, 0.547, 0.574, 0.614],
        "ridge regression": [0.442, 0.475, 0.474, 0.490, 0.50],
    },
    index=[50e3, 100e3, 200e3, 500e3, 1e6],
)
SOURCE_RIDGE = {0.0: 0.9994, 0.1: 0.917, 0.2: 0.841, 0.5: 0.667, 1.0: 0.469, 2.0: 0.254}  # by noise
SOURCE_PARAMETERS = {  # its own count, by term
    "patch projection": 4352,
    "CLS token": 256,
    "positions": 65_792,
    "layer: QKV projection": 6 * 196_608,
    "layer: output projection": 6 * 65_792,
    "layer: norms": 6 * 1024,
    "layer: feed-forward": 6 * 526_592,
    "head": 257,
}


@dataclass(frozen=True)
class Setting:
    """What all jobs read.

    Attributes:
        par: size, training and noise of the networks, the numbers of stars, `grid`, `rv_kms`,
            `trees`, `tree_share`.
        sets: the splits `train`, `val` and `test`.
    """

    par: Any
    device: torch.device
    stars: Emulator | None
    sets: Mapping[str, Spectra]

    def gravity(self, split: str, n: int | None = None) -> np.ndarray:
        """log g of the first stars of a split."""
        return self.sets[split].params.log_g.to_numpy(float)[:n]

    def seen(self, split: str, level: float, n: int | None = None, draw: int = 0) -> Tensor:
        """Their flux with noise that never changes, (n, pixels), of which a train split may have
        several draws."""
        seed = SEED + 1 + draw if split == "train" else SEED
        return fixed_noise(self.sets[split][:n], level, seed)


def run_all(run: Run, par: Any, device: torch.device) -> dict[str, pd.DataFrame]:
    """Every table: tour, splits, ceiling, likelihood, results and by_snr, with the method in plain
    words, attention, ablation, with the option in such, and history, of all networks by `run`.

    Args:
        par: as `Setting` has it, with `n_train`, `n_val`, `n_test`, `noise_levels`, `seeds`,
            `ablation_n`, `ablation_steps`, `ablation_seeds`, `data_dir`, `lowest_M_H`, `workers`.
    """
    sizes = {"train": max(*par.n_train, par.ablation_n), "val": par.n_val, "test": par.n_test}
    setting = _provide(par, device, sizes)
    reads = spectroscopy.files_of(par.data_dir)
    tour = run.sweep("tour", [{}], partial(_tour_rows, setting), reads=reads)
    splits = [{"split": split} for split in sizes]
    described = run.sweep("splits", splits, partial(_described, setting), reads=reads)
    velocities = [{"rv_kms": rv} for rv in sorted({par.rv_kms, 0.0})]
    ceiling = run.sweep("ceiling", velocities, partial(_limit_rows, setting))
    likelihood = run.sweep("likelihood", [{}], partial(_fit_rows, setting))
    compute = partial(_result, setting, tour.density.to_numpy())
    results = run.sweep("results", jobs(par), compute, cost=_cost, reads=reads)
    cases = [{"variant": name, "seed": s} for name in VARIANTS for s in range(par.ablation_seeds)]
    ablation = run.sweep("ablation", cases, partial(_ablate, setting), reads=reads)
    by_snr = run.frame("by_snr")
    histories = [run.frame(_history_of(name)).assign(run=name) for name in RUNS]
    return {
        "tour": tour,
        "splits": described,
        "ceiling": ceiling,
        "likelihood": likelihood,
        "results": results.assign(method=results.model.map(METHODS)),
        "by_snr": by_snr.assign(method=by_snr.model.map(METHODS)),
        "attention": run.frame("attention"),
        "ablation": ablation.assign(option=ablation.variant.map(_in_words)),
        "history": pd.concat(histories, ignore_index=True),
    }


def _in_words(variant: str) -> str:
    words = {HEAD: "our recipe", "classes": "sixteen classes of gravity"}
    return words.get(variant, variant.replace("log's start", "start of the log"))


def _provide(par: Any, device: torch.device, sizes: Mapping[str, int]) -> Setting:
    """The emulator and the splits; none where rows are only read."""
    if paths.frozen():
        return Setting(par, device, None, {})
    stars, sets = spectroscopy.provide(
        sizes,
        data_dir=par.data_dir,
        grid=par.grid,
        lowest_M_H=par.lowest_M_H,
        rv_kms=par.rv_kms,
        workers=par.workers,
    )
    return Setting(par, device, stars, sets)


def jobs(par: Any) -> list[Row]:
    """What the rows of `results` are about.

    All networks at the largest number of spectra, ours at every one; both baselines at every one,
    at the second largest with other noise and on the error alone, and at the smallest with several
    draws of the noise; the template fit at the largest.
    """
    sizes, level = par.n_train, par.noise_level
    few, middle, many = sizes[0], sizes[-2:][0], sizes[-1]
    rivals = ("LightGBM", "Ridge")
    found = [("ViT", name, many, level, seed) for name in RUNS for seed in range(par.seeds)]
    found += [("ViT", HEAD, n, level, seed) for n in sizes[:-1] for seed in range(par.seeds)]
    found += [(model, "flux", n, level, 0) for model in rivals for n in sizes]
    found += [("Ridge", "flux", middle, x, 0) for x in par.noise_levels if x != level]
    found += [(model, "error alone", middle, level, 0) for model in rivals]
    found += [(model, f"flux, {DRAWS} draws", few, level, 0) for model in rivals]
    found += [("template", "flux", many, level, 0)]
    return [dict(zip(JOB, job, strict=True)) for job in found]


def _cost(job: Row) -> float:
    return HEAVINESS.get(job["model"], 1) * job["n_train"]


# -- the stars, and what can be known of them


def _tour_rows(setting: Setting, job: Row) -> list[Row]:
    """One row per pixel: a giant, a dwarf, its error and observed flux, and the information."""
    par, stars = setting.par, setting.stars
    pair = PAIRS[par.grid]
    flux = stars(torch.tensor([[4750, log_g, -0.5, 0.1, 0] for log_g in pair.values()]))
    sigma = error(flux, torch.full((len(flux),), MAGNITUDE))
    columns = {"wavelength": stars.wavelength, **dict(zip(pair, flux.numpy(), strict=True))}
    observed = noisy(flux, sigma, 1.0, torch.Generator().manual_seed(0))
    columns |= {"error": sigma[1].numpy(), "observed": observed[1].numpy()}
    density = spectroscopy.gravity_density(stars, par.n_limits, seed=1, rv_kms=par.rv_kms)
    return pd.DataFrame(columns | {"density": density}).to_dict("records")


def _described(setting: Setting, job: Row) -> Row:
    """Number of stars and S/N of a split."""
    snr = setting.sets[job["split"]].params.snr
    return {"stars": len(snr), "S/N mean": snr.mean(), "S/N median": snr.median()}


def _limit_rows(setting: Setting, job: Row) -> list[Row]:
    """Bounds on log g, star by star; the velocity is known if it is 0, otherwise drawn."""
    n, rv_kms = setting.par.n_limits, job["rv_kms"]
    drawn = spectroscopy.limits(setting.stars, n, seed=1, rv_kms=rv_kms)
    return [{"star": i, **row} for i, row in enumerate(drawn.to_dict("records"))]


def _fit_rows(setting: Setting, job: Row) -> list[Row]:
    """Bright stars fitted by maximum likelihood."""
    n, rv_kms = setting.par.n_fitted, setting.par.rv_kms
    bright = spectroscopy.fitted(setting.stars, n, seed=2, rv_kms=rv_kms, mag=BRIGHT)
    return bright.rename_axis("star").reset_index().to_dict("records")


def label_variance(grid: str) -> float:
    """Of log g, which is uniform over the grid `full` or `small`."""
    low, *_, high = (NODES if grid == "full" else SMALL)["log_g"]
    return (high - low) ** 2 / 12


def ceilings(rows: pd.DataFrame, variance: float) -> dict[str, float]:
    """R2 that the bounds allow over a set of stars.

    Returns:
        `unbiased`, of the median star's Cramer-Rao bound; `linear`, of the best linear estimator
        that knows the labels' variances; `least`, of the best of all, and its standard `error`.
    """
    found = {name: 1 - rows[name].mean() / variance for name in ("linear", "least")}
    unbiased = 1 - rows.unbiased.median() / variance
    return {"unbiased": unbiased, **found, "error": rows.least.sem() / variance}


# -- one model


def _result(setting: Setting, density: np.ndarray, job: Row, folder: Path) -> dict[str, Any]:
    """A row of `results`, its errors by magnitude and S/N, and of a network its history.

    Args:
        density: (pixel,) information on gravity, to set the looks of a network beside.
    """
    if job["model"] == "ViT":
        return _network(setting, density, job, folder)
    norm = LabelNorm.fit(setting.gravity("train", job["n_train"]))
    if job["model"] == "template":
        return _summary(setting, job, _template_guess(setting, job), norm)
    guess = _fit_baseline(setting, job).predict(_inputs(setting, "test", job))
    return _summary(setting, job, guess, norm)


def _recipe(setting: Setting, seed: int, steps: int) -> Recipe:
    """AdamW with cosine decay; every size of the train split gets the same number of updates."""
    par = setting.par
    return Recipe(
        steps=steps,
        batch_size=par.batch_size,
        shuffle_block=par.shuffle_block,
        lr=par.lr,
        lr_min=par.lr_min,
        schedule="cosine",
        warmup=min(par.warmup, steps),
        weight_decay=par.weight_decay,
        clip=par.clip,
        eval_every=par.eval_every,
        monitor="val_mae_dex",
        patience=par.patience,
        precision=machine.resolve_precision(par.precision, setting.device),
        seed=seed,
    )


def _train_network(
    setting: Setting, n: int, seed: int, options: Mapping[str, str], steps: int, folder: Path
) -> tuple[SpectraViT, Norm, list[Row]]:
    """One network on the first n stars: network, norm of its labels, history."""
    torch.set_num_threads(1)
    options = OPTIONS | options
    data = {**setting.sets, "train": setting.sets["train"][:n]}
    norm = spectroscopy.norm_of(options, setting.gravity("train", n))
    model = spectroscopy.network_of(setting.par, options, data["train"], norm, seed)
    model = model.to(setting.device)
    fit = spectroscopy.train(
        model,
        data,
        norm,
        _recipe(setting, seed, steps),
        loss=options["loss"],
        noise_level=setting.par.noise_level,
        checkpoint=folder,
    )
    return model.eval(), norm, fit.history


def _network(setting: Setting, density: np.ndarray, job: Row, folder: Path) -> dict[str, Any]:
    """Train a network: its row; its history, and the look of the first at the largest size."""
    par, n, seed = setting.par, job["n_train"], job["seed"]
    model, norm, history = _train_network(setting, n, seed, RUNS[job["run"]], par.steps, folder)
    guess = spectroscopy.predict(model, setting.seen("test", job["noise_level"]), norm)
    found = _summary(setting, job, guess, norm, history, _size_of(model))
    found[_history_of(job["run"])] = [{"n_train": n, "seed": seed, **row} for row in history]
    if job["run"] == HEAD and n == par.n_train[-1] and seed == 0:
        found["attention"] = _look_rows(setting, density, model)
    return found


def _size_of(model: SpectraViT) -> int:
    """How many parameters a network has."""
    return sum(w.numel() for w in model.parameters())


def _history_of(name: str) -> str:
    """The table of a run's history."""
    return f"history_{name.replace(' ', '')}"


def _look_rows(setting: Setting, density: np.ndarray, model: SpectraViT) -> list[Row]:
    """Attention, saliency and information, one row per patch."""
    par = setting.par
    flux = setting.seen("test", par.noise_level)
    sigma = torch.from_numpy(np.array(setting.sets["test"].error))
    few = slice(0, min(par.n_test, 256))
    noticed = spectroscopy.saliency(model, flux[few], sigma[few]).reshape(-1, par.patch).sum(1)
    written = density.reshape(-1, par.patch).sum(1)
    at = setting.stars.wavelength.reshape(-1, par.patch).mean(1)
    columns = (at, spectroscopy.attention(model, flux[few]), noticed, written)
    return [dict(zip(LOOKED_AT, row, strict=True)) for row in zip(*columns, strict=True)]


def _inputs(setting: Setting, split: str, job: Row, n: int | None = None) -> np.ndarray:
    """What a baseline sees: the noisy flux, or the error alone."""
    if "error" in job["run"]:
        return setting.sets[split].error[:n]
    return setting.seen(split, job["noise_level"], n).numpy()


def _fitting(setting: Setting, job: Row) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and gravities to fit a baseline to, with one draw of the noise or several."""
    n = job["n_train"]
    draws = DRAWS if "draws" in job["run"] else 1
    again = [setting.seen("train", job["noise_level"], n, draw) for draw in range(1, draws)]
    x = np.concatenate([_inputs(setting, "train", job, n), *again])
    return x, np.tile(setting.gravity("train", n), draws)


def _fit_baseline(setting: Setting, job: Row) -> Any:
    """A fitted baseline."""
    par = setting.par
    x, y = _fitting(setting, job)
    if job["model"] == "Ridge":
        return baselines.ridge(x, y, (_inputs(setting, "val", job), setting.gravity("val")))
    return baselines.boosted_trees(x, y, seed=job["seed"], trees=par.trees, share=par.tree_share)


def _template_guess(setting: Setting, job: Row) -> np.ndarray:
    """Gravity of the best of the first train stars, without their noise."""
    templates = torch.from_numpy(np.array(setting.sets["train"].flux[: job["n_train"]]))
    sigma = torch.from_numpy(np.array(setting.sets["test"].error))
    flux = setting.seen("test", job["noise_level"])
    best = information.best_template(flux, sigma, templates)
    return setting.gravity("train")[best.numpy()]


def _summary(
    setting: Setting,
    job: Row,
    guess: np.ndarray,
    norm: Norm,
    history: Sequence[Row] = ({},),
    n_params: float = math.nan,
) -> dict[str, Any]:
    """What is said of a job from its answers on the test split."""
    truth = setting.gravity("test")
    kept = min(history, key=lambda row: row.get("val_mae_dex", 0))
    found = {name: kept.get(name, math.nan) for name in VALIDATED}
    found |= spectroscopy.errors(truth, guess, norm, "test")
    normed = baselines.scores(norm.transform(truth), norm.transform(guess))
    found |= {"test_r2_norm": normed["r2"], "n_params": n_params}
    return {"results": found, "by_snr": _binned(setting, job, guess)}


def _binned(setting: Setting, job: Row, guess: np.ndarray) -> list[Row]:
    """Errors of one model in bins of magnitude and of S/N."""
    rows = []
    for by, edges in EDGES.items():
        values = setting.sets["test"].params[by].to_numpy()
        found = spectroscopy.binned(setting.gravity("test"), guess, values, edges)
        rows += [{**job, "by": by, **row} for row in found]
    return rows


def _ablate(setting: Setting, job: Row, folder: Path) -> Row:
    """Test errors of one variant."""
    par = setting.par
    options = RUNS[HEAD] | VARIANTS[job["variant"]]
    how = (par.ablation_n, job["seed"], options, par.ablation_steps)
    model, norm, _ = _train_network(setting, *how, folder)
    guess = spectroscopy.predict(model, setting.seen("test", par.noise_level), norm)
    row = spectroscopy.errors(setting.gravity("test"), guess, norm, "test")
    return row | {"n_params": _size_of(model)}


# -- what is compared with what


def compared(frame: pd.DataFrame, par: Any) -> pd.DataFrame:
    """Rows of `results` or `by_snr` on equal terms: our network, and methods on one noisy flux."""
    return frame[(frame.noise_level == par.noise_level) & frame.run.isin([HEAD, "flux"])]


def by_noise(results: pd.DataFrame, par: Any) -> pd.DataFrame:
    """Rows at the smallest size by the `noise` that was shown: `NOISE`, in this order."""
    same = (results.n_train == par.n_train[0]) & (results.noise_level == par.noise_level)
    rows = results[same & results.run.isin(NOISE) & (results.model != "template")]
    order = rows.run.map(list(NOISE).index)
    return rows.assign(noise=rows.run.map(NOISE)).loc[order.sort_values(kind="stable").index]


def by_input(results: pd.DataFrame, par: Any) -> pd.DataFrame:
    """Rows of the two baselines at the second largest size by their `input`: `INPUTS`."""
    same = (results.n_train == par.n_train[-2:][0]) & (results.noise_level == par.noise_level)
    rows = results[same & results.run.isin(INPUTS) & results.model.isin(["LightGBM", "Ridge"])]
    return rows.assign(input=rows.run.map(INPUTS))


def ceiling_by(limits: pd.DataFrame, by: str, variance: float) -> pd.Series:
    """R2 that the noise allows within the bins of `EDGES`, by their centres."""
    edges = np.asarray(EDGES[by])
    bins = pd.cut(limits[by], edges, right=False, labels=(edges[1:] + edges[:-1]) / 2)
    allowed = 1 - limits.groupby(bins, observed=True).least.mean() / variance
    return allowed.set_axis(allowed.index.astype(float))


def near_lines(tour: pd.DataFrame, reach: float = 15.0) -> tuple[float, float]:
    """Shares of the information and of the pixels within so many Angstrom of the `LINES`."""
    places = np.concatenate([*LINES.values()])
    near = (np.abs(tour.wavelength.to_numpy()[:, None] - places) < reach).any(1)
    return tour.density[near].sum(), near.mean()


# -- what a difference is worth

Gain = tuple[float, float]  # a difference of two R2, and its standard error


def gap(first: float, second: float, spread: float = 0.0, *, stars: int) -> Gain:
    """By how much one R2 exceeds another.

    The mean of n squared errors, if they are Gaussian, is known to a part sqrt(2 / n) of itself.

    Args:
        spread: standard error beside that, as over the runs of a network.
        stars: of the test split, as if each R2 had its own: shared ones make a difference surer.
    """
    by_stars = [(1 - value) * math.sqrt(2 / stars) for value in (first, second)]
    return first - second, math.hypot(*by_stars, spread)


def change(ablation: pd.DataFrame, variant: str, base: str = HEAD) -> Gain:
    """By how much the test R2 of a variant exceeds that of another, paired by seed.

    Runs of one seed share initial weights and the order of spectra where the change leaves them
    alike. The error is nan for one seed.
    """
    return mean_of(ablation.pivot(index="seed", columns="variant", values="test_r2"), variant, base)


def mean_of(by_seed: pd.DataFrame, first: Any, second: Any) -> Gain:
    """By how much one column exceeds another in the mean over seeds."""
    gain = by_seed[first] - by_seed[second]
    return gain.mean(), gain.sem()


def told(gains: Sequence[Gain], names: Sequence[str] = ("",)) -> str:
    """Differences and their standard errors in words, a name before each if there are several."""
    pairs = zip(names, gains, strict=True)
    return ", ".join(f"{name} {gain:+.3f} ± {doubt:.3f}".strip() for name, (gain, doubt) in pairs)


def judged(gains: Sequence[Gain], tested: bool, **further: Any) -> dict[str, Any]:
    """Differences as `fieldbook.run.chapter.Run.claim` takes them, with further arguments of it."""
    values, doubts = zip(*gains, strict=True)
    return {"estimate": values, "error": doubts, "tested": tested, **further}
