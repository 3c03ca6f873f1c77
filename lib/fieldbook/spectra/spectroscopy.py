"""Stellar labels from noisy spectra: the data of a run, what they tell, a transformer on them."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from torch import Tensor

from fieldbook.nn import training
from fieldbook.nn.baselines import scores
from fieldbook.nn.checks import require
from fieldbook.nn.closure import closure
from fieldbook.nn.identity import digest
from fieldbook.nn.recipe import Recipe
from fieldbook.nn.seeds import stream
from fieldbook.run import paths
from fieldbook.spectra import information, losses
from fieldbook.spectra.preprocess import principal_components, standardise
from fieldbook.spectra.vit import SpectraViT, attention_maps, rollout, start_as_source
from fieldbook.stars import observation, spectra_hdf5
from fieldbook.stars.dataset import LabelNorm, Spectra
from fieldbook.stars.emulator import NODES, SMALL, Emulator
from fieldbook.stars.emulator import emulator as build_emulator
from fieldbook.stars.noise import SEED, fixed_noise, noisy
from fieldbook.stars.synthesis import LABELS, SPEED_OF_LIGHT

SHARD = 16_384  # stars per file
BATCH = 256  # of evaluation
FITTED = 4096  # spectra that a preprocessing is fitted to
COMPONENTS = 256

Settings = Mapping[str, Any]
OPTIONS = {
    "tokenizer": "C1D",
    "position": "learned",
    "pooling": "cls",
    "preprocess": "standardise",
    "start": "ours",
    "loss": "mse",
    "norm": "standard",
}
"""What may be chosen about a network beside its size; the choices of the source's first run."""
PREPROCESS = {
    "none": lambda flux: None,
    "standardise": standardise,
    "pca": lambda flux: principal_components(flux, COMPONENTS),
}

# -- the data of a run


def provide(
    sizes: Mapping[str, int],
    *,
    data_dir: str = "",
    grid: str = "full",
    lowest_M_H: float = -1.9,
    rv_kms: float = 100.0,
    workers: int = 1,
) -> tuple[Emulator, dict[str, Spectra]]:
    """The emulator and the spectra of each split, made once and kept under the results' `inputs`.

    Args:
        sizes: split -> stars, for `train`, `val` and `test`.
        data_dir: folder of HDF5 files in the source's layout; empty to synthesise them, with seed
            0.
        grid: `full` or `small`, nodes of the emulator; `lowest_M_H`: lower ones are left out, as
            such stars say little of their gravity; `rv_kms`: largest radial velocity.
    Raises:
        FileNotFoundError, ValueError: as `read`.
    """
    require(grid in ("full", "small"), "grid", grid, "full or small")
    nodes = NODES if grid == "full" else SMALL
    kept = [m for m in nodes["M_H"] if m >= lowest_M_H]
    accepted = f"below the grid's highest, {nodes['M_H'][-1]}"
    require(len(kept) > 1, "lowest_M_H", lowest_M_H, accepted)
    stars = build_emulator(paths.inputs("starlight", grid), {**nodes, "M_H": kept}, workers=workers)
    folder = Path(data_dir)
    if not data_dir:
        made_of = closure(synthesise, stars, dict(sorted(sizes.items())), rv_kms).digest
        folder = synthesise(paths.inputs("spectra", made_of), sizes, stars, seed=0, rv_kms=rv_kms)
    return stars, read(folder, paths.inputs("spectra_maps", digest(str(folder.resolve()))), sizes)


def files_of(data_dir: str) -> dict[str, Path]:
    """By name, all files that real spectra lie in, through links; none for synthetic ones."""
    files = sorted(Path(data_dir).glob("*/dataset.h5")) if data_dir else []
    return {
        f"{file.relative_to(data_dir)} {i}": Path(path)
        for file in files
        for i, path in enumerate(spectra_hdf5.identity_of(file)["files"])
    }


def synthesise(
    folder: Path, sizes: Mapping[str, int], emulator: Emulator, *, seed: int, rv_kms: float
) -> Path:
    """Write noise-free spectra as `<split>_<i>/dataset.h5`, unless they are there; the folder.

    Args:
        sizes: split -> stars; a shorter split is the beginning of a longer one.
        seed: of the stars, which differ by split and file; `rv_kms`: largest radial velocity.
    """
    for split, size in sizes.items():
        for shard, start in enumerate(range(0, size, SHARD)):
            file = folder / f"{split}_{shard}" / "dataset.h5"
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(file.with_suffix(".lock")):  # jobs that start together share the work
                if not file.exists():
                    stars = min(SHARD, size - start)
                    own = stream(split, shard, seed)
                    made = observation.spectra(stars, own, emulator, rv_kms=rv_kms)
                    spectra_hdf5.write(file, *made)
    return folder


def read(folder: Path, cache: Path, sizes: Mapping[str, int]) -> dict[str, Spectra]:
    """The first stars of each split in a folder of HDF5 files, which are converted on first use.

    Args:
        cache: folder of the memory maps; `sizes`: split -> stars.
    Raises:
        FileNotFoundError: a split has no file.
        ValueError: a file is damaged, or a split has too few stars; names it.
    """
    files = spectra_hdf5.splits(folder)
    sets = {split: spectra_hdf5.convert(files[split], cache / split) for split in files}
    for split, size in sizes.items():
        accepted = f"at most {len(sets[split])} of {folder}"
        require(size <= len(sets[split]), f"number of {split} spectra", size, accepted)
    return {split: sets[split][:size] for split, size in sizes.items()}


# -- what the spectra tell


def limits(emulator: Emulator, n: int, *, seed: int, rv_kms: float) -> pd.DataFrame:
    """How well the noise lets log_g of each star be known, all else that varies being unknown.

    Args:
        n: stars, drawn as `synthesise` draws them; `rv_kms`: 0 makes the velocity known.
    Returns:
        Columns mag and snr; in dex^2 `unbiased`, the Cramer-Rao bound, and mean squared errors,
        exact where the spectrum is linear in its labels within the error: `linear`, of the best
        linear estimator that knows the labels' variances; `least`, that knows they are uniform.
    """
    *_, params = stars = observation.spectra(n, seed, emulator, rv_kms=rv_kms)
    unknown, width, g = _unknown(emulator, rv_kms)
    fisher = _fisher(emulator, stars, unknown)
    prior = width.square() / 12
    others = torch.where(torch.arange(len(unknown)) == g, torch.inf, prior)
    columns = {
        "unbiased": information.bound(fisher, g),
        "linear": information.bound(fisher, g, prior),
        "least": information.uniform_error(information.bound(fisher, g, others), float(width[g])),
    }
    return params[["mag", "snr"]].assign(**{name: x.numpy() for name, x in columns.items()})


def gravity_density(emulator: Emulator, n: int, *, seed: int, rv_kms: float) -> np.ndarray:
    """Share (pixel,) of each pixel in what spectra tell of log_g alone, mean over stars."""
    unknown, _, g = _unknown(emulator, rv_kms)
    stars = observation.spectra(n, seed, emulator, rv_kms=rv_kms)
    parts = [information.score_density(*part, g) for part in _slopes(emulator, stars, unknown)]
    density = torch.cat(parts)
    return (density / density.sum(1, keepdim=True)).mean(0).numpy()


def fitted(emulator: Emulator, n: int, *, seed: int, rv_kms: float, mag: float) -> pd.DataFrame:
    """Maximum-likelihood log_g of stars of one magnitude, beside its bound.

    A check of the bound, no search among maxima: the fits start at the truth, away from the walls.

    Returns:
        Columns log_g, estimate, bound (dex^2), converged.
    """
    unknown, _, g = _unknown(emulator, rv_kms)
    ends = {name: (nodes[0], nodes[-1]) for name, nodes in emulator.nodes.items()}
    inner = {name: (0.8 * a + 0.2 * b, 0.2 * a + 0.8 * b) for name, (a, b) in ends.items()}
    stars = observation.spectra(n, seed, emulator, ranges=inner, rv_kms=rv_kms, mag=(mag, mag))
    _, flux, error, params = stars
    flux, error = (torch.from_numpy(array) for array in (flux, error))
    velocity = params.redshift * SPEED_OF_LIGHT
    truth = torch.tensor(params[list(LABELS)].assign(rv_kms=velocity).to_numpy())
    walls = torch.tensor([*ends.values(), (-2 * rv_kms, 2 * rv_kms)], dtype=torch.float64)
    lower, upper = walls[unknown].T

    def model(theta: Tensor) -> tuple[Tensor, Tensor]:
        full = truth.clone()
        full[:, unknown] = theta
        prediction, jacobian = emulator.jacobian(full[:, :-1], full[:, -1])
        return prediction, jacobian[..., unknown]

    data = noisy(flux, error, 1.0, torch.Generator().manual_seed(stream("noise", seed)))
    start = truth[:, unknown]
    fit = information.maximum_likelihood(model, data, error, start, lower=lower, upper=upper)
    least = information.bound(_fisher(emulator, stars, unknown), g)
    found = {"estimate": fit.estimate[:, g], "bound": least, "converged": fit.converged}
    return params[["log_g"]].assign(**{name: x.numpy() for name, x in found.items()})


def _unknown(emulator: Emulator, rv_kms: float) -> tuple[list[int], Tensor, int]:
    """Labels and velocity that vary: columns of the jacobian, widths, and which is log_g."""
    widths = [emulator.nodes[name][-1] - emulator.nodes[name][0] for name in LABELS] + [2 * rv_kms]
    unknown = [i for i, width in enumerate(widths) if width > 0]
    width = torch.tensor(widths, dtype=torch.float64)[unknown]
    return unknown, width, unknown.index(LABELS.index("log_g"))


def _fisher(emulator: Emulator, stars: tuple, unknown: list[int]) -> Tensor:
    """Fisher information of each star."""
    parts = [information.fisher(*part) for part in _slopes(emulator, stars, unknown)]
    return torch.cat(parts)


def _slopes(
    emulator: Emulator, stars: tuple, unknown: list[int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Jacobian by what is unknown, and error, of 64 stars at a time."""
    _, _, error, params = stars
    labels = torch.tensor(params[list(LABELS)].to_numpy(), dtype=torch.float32)
    rv = torch.tensor(params.redshift.to_numpy() * SPEED_OF_LIGHT, dtype=torch.float32)
    for part in torch.arange(len(params)).split(64):
        _, jacobian = emulator.jacobian(labels[part], rv[part])
        yield jacobian[..., unknown], torch.from_numpy(error[part.numpy()])


# -- a network on them


@dataclass(frozen=True)
class Classes:
    """A label cut into classes of equal width, in the place of a `LabelNorm`."""

    low: float
    scale: float  # width of a class
    count: int

    @classmethod
    def fit(cls, train: np.ndarray, count: int) -> Self:
        """From the range of the labels of the train split."""
        require(count >= 2, "count", count, "at least 2 classes")
        width = float(np.ptp(train)) / count
        require(width > 0, "train", train[:1], "labels that are not all the same")
        return cls(float(np.min(train)), width, count)

    def transform(self, label: Tensor) -> Tensor:
        """Labels (n,) -> classes (n,), int64 in [0, count)."""
        return ((label - self.low) / self.scale).floor().long().clamp(0, self.count - 1)

    def inverse(self, logits: Tensor) -> Tensor:
        """Logits (n, count) -> expected centre of a class (n,), in the label's unit."""
        centres = self.low + self.scale * (torch.arange(self.count, device=logits.device) + 0.5)
        return logits.softmax(-1) @ centres.to(logits)


Norm = LabelNorm | Classes


def norm_of(options: Settings, label: np.ndarray) -> Norm:
    """The scale of the train split's labels: `standard`, `minmax`, or `classes 8` to classify."""
    kind, _, count = options["norm"].partition(" ")
    return Classes.fit(label, int(count)) if kind == "classes" else LabelNorm.fit(label, kind)


def network_of(
    settings: Any, options: Settings, train: Spectra, norm: Norm, seed: int
) -> SpectraViT:
    """An untrained network of a size, with options, for the spectra of a train split.

    Args:
        settings: has `patch` (pixels), `d_model`, `n_layers`, `n_heads`, `dropout`, `noise_level`.
        options: as `OPTIONS`; preprocess is `none`, `standardise` or `pca`, start is `ours` or
            `source`.
    """
    kind, start = options["preprocess"], options["start"]
    require(kind in PREPROCESS, "preprocess", kind, f"one of {', '.join(PREPROCESS)}")
    require(start in ("ours", "source"), "start", start, "ours or source")
    prepare = PREPROCESS[kind](fixed_noise(train[:FITTED], settings.noise_level, SEED + 1))
    (pixels,), patch = train.wave.shape, settings.patch
    if kind == "pca":
        pixels, patch = COMPONENTS, patch * COMPONENTS // pixels
    parts = {name: options[name] for name in ("tokenizer", "position", "pooling")}
    model = SpectraViT(
        n_pixels=pixels,
        patch=patch,
        d_model=settings.d_model,
        d_hidden=4 * settings.d_model,
        n_layers=settings.n_layers,
        n_heads=settings.n_heads,
        dropout=settings.dropout,
        preprocess=prepare,
        seed=seed,
        n_outputs=norm.count if isinstance(norm, Classes) else 1,
        **parts,
    )
    if start == "source":
        start_as_source(model, seed)
    return model


@torch.no_grad()
def predict(model: SpectraViT, flux: Tensor, norm: Norm) -> np.ndarray:
    """Labels (n,) of noisy spectra (n, pixel) on any device; the model should be in eval mode."""
    device = next(model.parameters()).device
    parts = [norm.inverse(model(part.to(device)).float()) for part in flux.split(BATCH)]
    return torch.cat(parts).double().cpu().numpy()


def errors(label: np.ndarray, guess: np.ndarray, norm: Norm, split: str) -> dict[str, float]:
    """R2, and errors in dex and in the norm's unit, since one has been taken for the other."""
    found = scores(label, guess)
    return {
        f"{split}_r2": found["r2"],
        f"{split}_mae_norm": found["mae"] / norm.scale,
        f"{split}_mae_dex": found["mae"],
        f"{split}_rmse_dex": found["rmse"],
    }


def binned(
    label: np.ndarray, guess: np.ndarray, by: np.ndarray, edges: Sequence[float]
) -> list[dict[str, float]]:
    """Errors within bins of another quantity: low, high, n, r2 and rmse, nan where empty.

    R2 is 1 - (mean squared error of the bin) / (variance of all labels), so that bins can be
    compared.
    """
    rows = []
    squared = np.square(np.subtract(label, guess))
    for low, high in itertools.pairwise(edges):
        inside = (by >= low) & (by < high)
        mse = float(squared[inside].mean()) if inside.any() else math.nan
        found = {"n": int(inside.sum()), "r2": 1 - mse / float(np.var(label)), "rmse": mse**0.5}
        rows.append({"low": low, "high": high, **found})
    return rows


def attention(model: SpectraViT, flux: Tensor) -> np.ndarray:
    """Share (patch,) of each patch in the attention rollout, mean over spectra (n, pixel)."""
    device = next(model.parameters()).device
    parts = [rollout(*attention_maps(model.eval(), part.to(device))) for part in flux.split(16)]
    share = torch.cat(parts)[:, -model.n_patches :].double()
    return (share / share.sum(1, keepdim=True)).mean(0).cpu().numpy()


def saliency(model: SpectraViT, flux: Tensor, error: Tensor) -> np.ndarray:
    """Share (pixel,) of each pixel in the answer's variance: mean of (gradient * error)^2."""
    device = next(model.parameters()).device
    total = torch.zeros(flux.shape[1], dtype=torch.float64, device=device)
    for part, sigma in zip(flux.split(BATCH), error.split(BATCH), strict=True):
        x = part.to(device).requires_grad_()
        (gradient,) = torch.autograd.grad(model.eval()(x).sum(), x)
        total += (gradient * sigma.to(device)).double().square().sum(0)
    return (total / total.sum()).cpu().numpy()


def train(
    model: SpectraViT,
    data: Mapping[str, Spectra],
    norm: Norm,
    recipe: Recipe,
    *,
    loss: str = "mse",
    label: str = "log_g",
    noise_level: float = 1.0,
    checkpoint: Path | None = None,
    logger: object = None,
) -> training.Fit:
    """Train with fresh noise on every spectrum, and keep the weights that validate best.

    Args:
        data: `train`, to which `norm` is fitted, and `val`, whose noise is drawn once.
        recipe: should monitor a metric that is computed here: val_r2, val_mae_norm, val_mae_dex,
            val_rmse_dex.
        loss: a name of `fieldbook.spectra.losses.loss`; `noise_level`: factor on the spectra's
            errors.
        checkpoint: folder, from which a killed call continues; `logger`: `log(metrics, step=..)`.
    Returns:
        How the run went; its `history` has a row per evaluation.
    """
    criterion = losses.loss(loss)
    device = next(model.parameters()).device
    answers = {split: data[split].params[label] for split in ("train", "val")}
    target = torch.tensor(answers["train"].to_numpy(), dtype=torch.float32)
    target = norm.transform(target).to(device)
    truth = answers["val"].to_numpy(float)
    seen = fixed_noise(data["val"], noise_level, SEED)

    def step_loss(network: SpectraViT, index: Tensor, generator: torch.Generator) -> Tensor:
        flux, error = (part.to(device, non_blocking=True) for part in data["train"].rows(index))
        prediction = network(noisy(flux, error, noise_level, generator))
        return criterion(prediction, target[index.to(device)])

    def evaluate(network: SpectraViT, step: int) -> dict[str, float]:
        epoch = step * recipe.batch_size / len(data["train"])
        row = {"epoch": epoch, **errors(truth, predict(network, seen, norm), norm, "val")}
        if logger is not None:
            logger.log(row, step=step)
        return row

    facts = {"loss": loss, "label": label, "norm": norm, "noise_level": noise_level}
    facts |= {split: [data[split].flux, data[split].error, answers[split]] for split in answers}
    fit = training.fit(
        model,
        step_loss,
        len(target),
        recipe,
        evaluate=evaluate,
        checkpoint=checkpoint,
        facts=facts,
        progress=False,
    )
    if fit.best is not None:
        model.load_state_dict(fit.best)
    return fit
