"""Stellar labels from noisy spectra: the data of a run, what they let be known, and a transformer
trained on them."""

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
from fieldbook.nn.identity import digest
from fieldbook.nn.recipe import Recipe
from fieldbook.nn.seeds import stream
from fieldbook.run import paths
from fieldbook.run.provenance import source_hash
from fieldbook.spectra.information import (
    bound,
    fisher,
    maximum_likelihood,
    score_density,
    uniform_error,
)
from fieldbook.spectra.losses import loss as loss_of
from fieldbook.spectra.preprocess import principal_components, standardise
from fieldbook.spectra.vit import SpectraViT, attention_maps, restart_as_in_seed_experiment, rollout
from fieldbook.stars import observation, spectra_hdf5
from fieldbook.stars.dataset import LabelNorm, Spectra
from fieldbook.stars.emulator import NODES, SMALL, Emulator
from fieldbook.stars.emulator import emulator as build_emulator
from fieldbook.stars.noise import fixed_noise, noisy
from fieldbook.stars.synthesis import LABELS, SPEED_OF_LIGHT

SHARD = 16_384  # stars per file
BATCH = 256  # of evaluation
FITTED = 4096  # spectra that a preprocessing is fitted to
COMPONENTS = 256

Settings = Mapping[str, Any]
Range = tuple[float, float]
OPTIONS = {
    "tokenizer": "C1D",
    "position": "learned",
    "pooling": "cls",
    "preprocess": "standardise",
    "start": "ours",
    "loss": "mse",
    "norm": "standard",
}
"""What may be chosen about a network beside its size, with the choices of the first run of the seed
experiment."""


def provide(
    sizes: Mapping[str, int],
    *,
    data_dir: str = "",
    grid: str = "full",
    lowest_M_H: float = -1.9,
    rv_kms: float = 100.0,
    workers: int = 1,
) -> tuple[Emulator, dict[str, Spectra]]:
    """The emulator and the spectra of each split, made on first use and kept under the results'
    `inputs`.

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
    require(
        len(kept) > 1, "lowest_M_H", lowest_M_H, f"below the grid's highest, {nodes['M_H'][-1]}"
    )
    stars = build_emulator(paths.inputs("starlight", grid), {**nodes, "M_H": kept}, workers=workers)
    folder = Path(data_dir)
    if not data_dir:
        made_of = digest(sorted(sizes.items()), rv_kms, stars.nodes, source_hash([observation]))
        folder = synthesise(paths.inputs("spectra", made_of), sizes, stars, seed=0, rv_kms=rv_kms)
    return stars, read(folder, paths.inputs("spectra_maps", digest(str(folder.resolve()))), sizes)


def sizes_of(data_dir: str) -> dict[str, list[str]]:
    """What each file of real spectra holds, through links, {} for synthetic ones: what results are
    tied to."""
    files = sorted(Path(data_dir).glob("*/dataset.h5")) if data_dir else []
    return {
        str(f.relative_to(data_dir)): [*spectra_hdf5.identity_of(f)["files"].values()]
        for f in files
    }


def synthesise(
    folder: Path, sizes: Mapping[str, int], emulator: Emulator, *, seed: int, rv_kms: float
) -> Path:
    """Write noise-free spectra as `<split>_<i>/dataset.h5`, unless they are there.

    Args:
        sizes: split -> stars; a shorter split is the beginning of a longer one.
        seed: of the stars, which differ by split and file; `rv_kms`: largest radial velocity.
    Returns:
        The folder.
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
    """The first stars of each split in a folder of HDF5 files, converted to memory maps on first
    use.

    Args:
        cache: folder of the memory maps; `sizes`: split -> stars.
    Raises:
        FileNotFoundError: a split has no file.
        ValueError: a file is damaged, or a split has too few stars; names it.
    """
    sets = {
        split: spectra_hdf5.convert(files, cache / split)
        for split, files in spectra_hdf5.splits(folder).items()
    }
    for split, size in sizes.items():
        require(
            size <= len(sets[split]),
            f"number of {split} spectra",
            size,
            f"at most {len(sets[split])} of {folder}",
        )
    return {split: sets[split][:size] for split, size in sizes.items()}


def limits(
    emulator: Emulator, n: int, *, seed: int, rv_kms: float, mag: Range = observation.MAGNITUDES
) -> pd.DataFrame:
    """How well the noise lets log_g be known, star by star, the other labels and the velocity being
    unknown.

    Args:
        n: stars, drawn as `synthesise` draws them; `rv_kms`: 0 makes the velocity known.
    Returns:
        Columns mag and snr; in dex^2 `unbiased`, the Cramer-Rao bound, and mean squared errors,
        exact where the spectrum is linear in its labels within the error: `linear`, of the best
        linear estimator that knows the labels' variances; `least`, that knows they are uniform.
    """
    *_, params = stars = observation.spectra(n, seed, emulator, rv_kms=rv_kms, mag=mag)
    unknown, width, g = _unknown(emulator, rv_kms)
    information = torch.cat(
        [fisher(j[..., unknown], e) for _, j, e in _derivatives(emulator, stars)]
    )
    prior = width.square() / 12
    alone = torch.where(torch.arange(len(unknown)) == g, torch.inf, prior)
    columns = {
        "unbiased": bound(information, g),
        "linear": bound(information, g, prior),
        "least": uniform_error(bound(information, g, alone), float(width[g])),
    }
    return params[["mag", "snr"]].assign(
        **{name: column.numpy() for name, column in columns.items()}
    )


def gravity_density(emulator: Emulator, n: int, *, seed: int, rv_kms: float) -> np.ndarray:
    """Information on log_g in each pixel, that other labels cannot imitate, as a share of the
    whole, (pixel,)."""
    unknown, _, g = _unknown(emulator, rv_kms)
    stars = observation.spectra(n, seed, emulator, rv_kms=rv_kms)
    density = [score_density(j[..., unknown], e, g) for _, j, e in _derivatives(emulator, stars)]
    share = torch.cat(density)
    return (share / share.sum(1, keepdim=True)).mean(0).numpy()


def fitted(emulator: Emulator, n: int, *, seed: int, rv_kms: float, mag: float) -> pd.DataFrame:
    """Maximum-likelihood log_g of stars of one magnitude: columns log_g, estimate, bound (dex^2),
    converged.

    A check of the bound, no search among maxima: the fits start at the truth, away from the walls.
    """
    unknown, _, g = _unknown(emulator, rv_kms)
    ends = {name: (nodes[0], nodes[-1]) for name, nodes in emulator.nodes.items()}
    inner = {name: (0.8 * a + 0.2 * b, 0.2 * a + 0.8 * b) for name, (a, b) in ends.items()}
    stars = observation.spectra(n, seed, emulator, ranges=inner, rv_kms=rv_kms, mag=(mag, mag))
    _, flux, error, params = stars
    velocity = params.redshift * SPEED_OF_LIGHT
    truth = torch.tensor(params[list(LABELS)].assign(rv_kms=velocity).to_numpy())
    walls = torch.tensor([*ends.values(), (-2 * rv_kms, 2 * rv_kms)], dtype=torch.float64)
    lower, upper = walls[unknown].T

    def model(theta: Tensor) -> tuple[Tensor, Tensor]:
        full = truth.clone()
        full[:, unknown] = theta
        prediction, jacobian = emulator.jacobian(full[:, :-1], full[:, -1])
        return prediction, jacobian[..., unknown]

    noise = torch.Generator().manual_seed(stream("noise", seed))
    data = noisy(torch.from_numpy(flux), torch.from_numpy(error), 1.0, noise)
    sigma, start = torch.from_numpy(error), truth[:, unknown]
    fit = maximum_likelihood(model, data, sigma, start, lower=lower, upper=upper)
    information = torch.cat(
        [fisher(j[..., unknown], e) for _, j, e in _derivatives(emulator, stars)]
    )
    found = {
        "estimate": fit.estimate[:, g],
        "bound": bound(information, g),
        "converged": fit.converged,
    }
    return params[["log_g"]].assign(**{name: column.numpy() for name, column in found.items()})


def _unknown(emulator: Emulator, rv_kms: float) -> tuple[list[int], Tensor, int]:
    """Columns of the emulator's jacobian that are not known beforehand, the width of each, and
    where log_g is."""
    widths = [emulator.nodes[name][-1] - emulator.nodes[name][0] for name in LABELS] + [2 * rv_kms]
    unknown = [i for i, width in enumerate(widths) if width > 0]
    return (
        unknown,
        torch.tensor(widths, dtype=torch.float64)[unknown],
        unknown.index(LABELS.index("log_g")),
    )


def _derivatives(emulator: Emulator, stars: tuple) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Flux, jacobian and error of a set of stars, some at a time."""
    _, _, error, params = stars
    labels = torch.tensor(params[list(LABELS)].to_numpy(), dtype=torch.float32)
    rv = torch.tensor(params.redshift.to_numpy() * SPEED_OF_LIGHT, dtype=torch.float32)
    for part in torch.arange(len(params)).split(64):
        yield *emulator.jacobian(labels[part], rv[part]), torch.from_numpy(error[part.numpy()])


@dataclass(frozen=True)
class Classes:
    """A label cut into classes of equal width, in the place of a `LabelNorm`.

    `transform` gives the class, `inverse` the expected centre of a class under the softmax of (n,
    class) logits.
    """

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
        """(n,) -> (n,) int64 in [0, count)."""
        return ((label - self.low) / self.scale).floor().long().clamp(0, self.count - 1)

    def inverse(self, logits: Tensor) -> Tensor:
        """(n, count) -> (n,) in the label's unit."""
        centres = self.low + self.scale * (torch.arange(self.count, device=logits.device) + 0.5)
        return logits.softmax(-1) @ centres.to(logits)


def norm_of(options: Settings, label: np.ndarray) -> LabelNorm | Classes:
    """The scale of the train split's labels: `standard`, `minmax`, or `classes 8` for
    classification."""
    kind, _, count = options["norm"].partition(" ")
    return Classes.fit(label, int(count)) if kind == "classes" else LabelNorm.fit(label, kind)


def network_of(
    settings: Settings, options: Settings, train: Spectra, norm: LabelNorm | Classes, seed: int
) -> SpectraViT:
    """An untrained network of a size, with options, for the spectra of a train split.

    Args:
        settings: `patch` (pixels), `d_model`, `n_layers`, `n_heads`, `dropout`, `noise_level`.
        options: as `OPTIONS`; preprocess is `none`, `standardise` or `pca`, start is `ours` or
            `source`.
    """
    kinds = {
        "none": None,
        "standardise": standardise,
        "pca": lambda flux: principal_components(flux, COMPONENTS),
    }
    kind = options["preprocess"]
    require(kind in kinds, "preprocess", kind, f"one of {', '.join(kinds)}")
    fit = kinds[kind]
    prepare = fit and fit(fixed_noise(train[:FITTED], settings["noise_level"]))
    pixels, patch = len(train.wave), settings["patch"]
    if kind == "pca":
        pixels, patch = COMPONENTS, patch * COMPONENTS // pixels
    sizes = {name: settings[name] for name in ("d_model", "n_layers", "n_heads", "dropout")}
    parts = {name: options[name] for name in ("tokenizer", "position", "pooling")}
    model = SpectraViT(
        n_pixels=pixels,
        patch=patch,
        d_hidden=4 * settings["d_model"],
        preprocess=prepare,
        seed=seed,
        n_outputs=norm.count if isinstance(norm, Classes) else 1,
        **sizes,
        **parts,
    )
    require(options["start"] in ("ours", "source"), "start", options["start"], "ours or source")
    if options["start"] == "source":
        restart_as_in_seed_experiment(model, seed)
    return model


@torch.no_grad()
def predict(model: SpectraViT, flux: Tensor, norm: LabelNorm | Classes) -> np.ndarray:
    """Labels (n,), in their own unit, of noisy spectra (n, pixels) on any device; the model should
    be in eval mode."""
    device = next(model.parameters()).device
    parts = [norm.inverse(model(part.to(device)).float()) for part in flux.split(BATCH)]
    return torch.cat(parts).double().cpu().numpy()


def errors(
    label: np.ndarray, guess: np.ndarray, norm: LabelNorm | Classes, split: str
) -> dict[str, float]:
    """R2, and errors in dex and in units of the norm: an error known in one unit only has been
    taken for the other."""
    found = scores(label, guess)
    row = {
        "r2": found["r2"],
        "mae_norm": found["mae"] / norm.scale,
        "mae_dex": found["mae"],
        "rmse_dex": found["rmse"],
    }
    return {f"{split}_{name}": value for name, value in row.items()}


def binned(
    label: np.ndarray, guess: np.ndarray, by: np.ndarray, edges: Sequence[float]
) -> list[dict[str, float]]:
    """Errors within bins of another quantity: low, high, n, r2 and rmse.

    R2 is 1 - (mean squared error of the bin) / (variance of all labels), so that bins can be
    compared; nan where empty.
    """
    rows, squared = [], np.square(np.subtract(label, guess))
    for low, high in itertools.pairwise(edges):
        inside = (by >= low) & (by < high)
        mse = float(squared[inside].mean()) if inside.any() else math.nan
        found = {"n": int(inside.sum()), "r2": 1 - mse / float(np.var(label)), "rmse": mse**0.5}
        rows.append({"low": low, "high": high, **found})
    return rows


def attention(model: SpectraViT, flux: Tensor) -> np.ndarray:
    """Share of each patch in the attention rollout, (patch,), mean over noisy spectra (n,
    pixels)."""
    device = next(model.parameters()).device
    parts = [rollout(*attention_maps(model.eval(), part.to(device))) for part in flux.split(16)]
    share = torch.cat(parts)[:, -model.n_patches :].double()
    return (share / share.sum(1, keepdim=True)).mean(0).cpu().numpy()


def saliency(model: SpectraViT, flux: Tensor, error: Tensor) -> np.ndarray:
    """Share of each pixel in the variance that noise gives the answer, (pixel,): the mean of
    (gradient * error)^2."""
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
    norm: LabelNorm | Classes,
    recipe: Recipe,
    *,
    loss: str = "mse",
    label: str = "log_g",
    noise_level: float = 1.0,
    checkpoint: Path | None = None,
    logger: object = None,
    progress: bool = False,
) -> training.Fit:
    """Train with fresh noise on every spectrum, keep the weights that validate best, and load them
    at the end.

    Args:
        data: `train`, to which `norm` is fitted, and `val`, whose noise is drawn once.
        recipe: should monitor a metric that is computed here: val_r2, val_mae_norm, val_mae_dex,
            val_rmse_dex.
        loss: a name of `fieldbook.spectra.losses`; `noise_level`: factor on the spectra's errors.
        checkpoint: folder, from which a killed call continues; `logger`: `log(metrics, step=..)`.
    Returns:
        How the run went; its `history` has a row per evaluation.
    """
    device, criterion = next(model.parameters()).device, loss_of(loss)
    target = norm.transform(
        torch.tensor(data["train"].params[label].to_numpy(), dtype=torch.float32)
    ).to(device)
    truth, seen = data["val"].params[label].to_numpy(float), fixed_noise(data["val"], noise_level)

    def step_loss(network: SpectraViT, index: Tensor, generator: torch.Generator) -> Tensor:
        flux, error = (part.to(device, non_blocking=True) for part in data["train"].rows(index))
        return criterion(
            network(noisy(flux, error, noise_level, generator)), target[index.to(device)]
        )

    def evaluate(network: SpectraViT, step: int) -> dict[str, float]:
        epoch = step * recipe.batch_size / len(data["train"])
        row = {"epoch": epoch, **errors(truth, predict(network, seen, norm), norm, "val")}
        if logger is not None:
            logger.log(row, step=step)
        return row

    facts = {"loss": loss, "label": label, "norm": norm, "noise_level": noise_level}
    for split in ("train", "val"):
        facts[split] = [data[split].flux, data[split].error, data[split].params[label]]
    fit = training.fit(
        model,
        step_loss,
        len(data["train"]),
        recipe,
        evaluate=evaluate,
        checkpoint=checkpoint,
        progress=progress,
        facts=facts,
    )
    if fit.best is not None:
        model.load_state_dict(fit.best)
    return fit
