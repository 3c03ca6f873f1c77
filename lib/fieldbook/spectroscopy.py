"""Stellar labels from noisy spectra: the data of a run, synthesised or real, and a transformer trained on them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from fieldbook import training
from fieldbook.data import spectra_hdf5
from fieldbook.data.emulator import Emulator
from fieldbook.data.observation import spectra as observe
from fieldbook.data.spectra import LabelNorm, Spectra, fixed_noise, noisy
from fieldbook.measures.losses import loss as loss_of
from fieldbook.measures.regression import scores
from fieldbook.models.spectra_vit import SpectraViT
from fieldbook.recipe import Recipe, require, stream

SHARD = 16_384  # stars per file
BATCH = 256  # of evaluation


# -- data


def synthesise(folder: Path, sizes: Mapping[str, int], emulator: Emulator, *, seed: int, rv_kms: float) -> Path:
    """Leave noise-free spectra in the source's layout, `<split>_<i>/dataset.h5`, those that are there already kept.

    Args:
        sizes: split -> stars; `train` may take several files. A shorter split is the beginning of a longer one.
        seed: of the stars, which differ by split and file; `rv_kms`: largest radial velocity.
    Returns:
        The folder.
    """
    for split, size in sizes.items():
        for shard, start in enumerate(range(0, size, SHARD)):
            file = folder / f"{split}_{shard}" / "dataset.h5"
            if not file.exists():
                stars = min(SHARD, size - start)
                spectra_hdf5.write(file, *observe(stars, stream(split, shard, seed), emulator, rv_kms=rv_kms))
    return folder


def read(folder: Path, cache: Path, sizes: Mapping[str, int]) -> dict[str, Spectra]:
    """The first stars of each split in a folder of HDF5 files, converted to memory maps on first use.

    Args:
        folder: of `train*/dataset.h5` (one or several), `val*/dataset.h5`, `test*/dataset.h5`.
        cache: folder of the memory maps.
        sizes: split -> stars.
    Raises:
        FileNotFoundError: a split has no file.
        ValueError: a file is damaged, or a split has too few stars; names it.
    """
    sets = {split: spectra_hdf5.convert(files, cache / split) for split, files in spectra_hdf5.splits(folder).items()}
    for split, size in sizes.items():
        require(size <= len(sets[split]), f"number of {split} spectra", size, f"at most {len(sets[split])} of {folder}")
    return {split: sets[split][:size] for split, size in sizes.items()}


# -- targets


@dataclass(frozen=True)
class Classes:
    """A label cut into classes of equal width, in the place of a `LabelNorm`.

    `transform` gives the class, `inverse` the expected centre of a class under the softmax of (n, class) logits.
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


# -- training


@torch.no_grad()
def predict(model: SpectraViT, flux: Tensor, norm: LabelNorm | Classes) -> np.ndarray:
    """Labels (n,), in their own unit, of noisy spectra (n, pixels) on any device; the model should be in eval mode."""
    device = next(model.parameters()).device
    parts = [norm.inverse(model(part.to(device)).float()) for part in flux.split(BATCH)]
    return torch.cat(parts).double().cpu().numpy()


def errors(label: np.ndarray, guess: np.ndarray, norm: LabelNorm | Classes, split: str) -> dict[str, float]:
    """R2, and errors in dex and in units of the norm: an error known in one unit only has been taken for the other."""
    found = scores(label, guess)
    row = {"r2": found["r2"], "mae_norm": found["mae"] / norm.scale, "mae_dex": found["mae"], "rmse_dex": found["rmse"]}
    return {f"{split}_{name}": value for name, value in row.items()}


def train(
    model: SpectraViT, data: Mapping[str, Spectra], norm: LabelNorm | Classes, recipe: Recipe,
    *, loss: str = "mse", label: str = "log_g", noise_level: float = 1.0, checkpoint: Path | None = None,
    logger: object = None, progress: bool = False,
) -> training.Fit:  # fmt: skip
    """Train with fresh noise on every spectrum, keep the weights that validate best, and load them at the end.

    Args:
        data: `train`, and `val`, whose noise is drawn once.
        norm: fitted to the train split.
        recipe: should monitor a metric that is computed here: val_r2, val_mae_norm, val_mae_dex, val_rmse_dex.
        loss: a name of `fieldbook.measures.losses`; `noise_level`: factor on the spectra's errors.
        checkpoint: folder; a killed call continues from it.
        logger: anything with a method `log(metrics, step=step)`, as a run of trackio or W&B has.
    Returns:
        How the run went; its `history` has a row per evaluation.
    """
    device, criterion = next(model.parameters()).device, loss_of(loss)
    target = norm.transform(torch.tensor(data["train"].params[label].to_numpy(), dtype=torch.float32)).to(device)
    truth, seen = data["val"].params[label].to_numpy(float), fixed_noise(data["val"], noise_level)

    def step_loss(network: SpectraViT, index: Tensor, generator: torch.Generator) -> Tensor:
        flux, error = (part.to(device, non_blocking=True) for part in data["train"].rows(index))
        return criterion(network(noisy(flux, error, noise_level, generator)), target[index.to(device)])

    def evaluate(network: SpectraViT, step: int) -> dict[str, float]:
        epoch = step * recipe.batch_size / len(data["train"])
        row = {"epoch": epoch, **errors(truth, predict(network, seen, norm), norm, "val")}
        if logger is not None:
            logger.log(row, step=step)
        return row

    fit = training.fit(
        model, step_loss, len(data["train"]), recipe,
        evaluate=evaluate, checkpoint=checkpoint, progress=progress,
    )  # fmt: skip
    if fit.best is not None:
        model.load_state_dict(fit.best)
    return fit
