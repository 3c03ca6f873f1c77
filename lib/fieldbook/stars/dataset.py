"""Spectra with their errors and parameters: arrays that may be larger than memory, noise, and the
scale of labels.

`fieldbook.stars.spectra_hdf5` makes the folders that `Spectra.open` maps.
"""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fieldbook.nn.checks import require, whole

SEED = 42  # of the noise of validation and test splits


@dataclass(frozen=True, eq=False)
class Spectra:
    """A set of spectra, in memory or mapped from files.

    `spectra[:n]` is a part on the same memory or files. Pickled, a mapped set is the names of its
    files, so that workers share one copy.

    Attributes:
        wave: (pixels,) vacuum wavelength in Angstrom, increasing.
        flux: (n, pixels) float32, without noise, >= 0.
        error: (n, pixels) float32, standard deviation of the noise at level 1, > 0, in the flux's
            unit.
        params: n rows of labels: `T_eff` in K, `log_g`, `M_H`, `a_M`, `C_M` in dex, `mag`,
            `redshift`, `snr`.
    Raises:
        ValueError: the shapes do not belong together.
    """

    wave: np.ndarray
    flux: np.ndarray
    error: np.ndarray
    params: pd.DataFrame

    def __post_init__(self) -> None:
        shape = (len(self.params), *self.wave.shape)
        require(self.wave.ndim == 1, "wave", self.wave.shape, "(pixels,)")
        require(self.flux.shape == shape, "flux", self.flux.shape, f"(params, wave) = {shape}")
        require(self.error.shape == shape, "error", self.error.shape, f"(params, wave) = {shape}")

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map what `spectra_hdf5.convert` has left in a folder.

        Raises:
            FileNotFoundError: a file is not there. `ValueError`: one is damaged. Both name it.
        """
        folder = Path(folder)
        try:
            wave, params = np.load(folder / "wave.npy"), pd.read_parquet(folder / "params.parquet")
            flux, error = (
                np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("flux", "error")
            )
            return cls(wave, flux, error, params)
        except FileNotFoundError as missing:
            problem = f"no converted spectra in {folder} ({missing}); convert the files first"
            raise FileNotFoundError(problem) from missing
        except PermissionError:
            raise
        except (ValueError, OSError, EOFError) as damage:
            raise ValueError(
                f"{folder} is damaged ({damage}); delete it and convert again"
            ) from damage

    def __len__(self) -> int:
        return len(self.params)

    def __getitem__(self, part: slice) -> Self:
        require(
            isinstance(part, slice) and part.step in (None, 1), "part", part, "a slice start:stop"
        )
        return replace(self, flux=self.flux[part], error=self.error[part], params=self.params[part])

    def rows(self, index: Tensor | np.ndarray | Sequence[int]) -> tuple[Tensor, Tensor]:
        """Copies on the CPU of flux and error, (batch, pixels) float32 each, of rows in [0, n).

        Raises:
            ValueError: not a sequence of integers. `IndexError`: one is out of range. `OSError`: a
                file has been cut.
        """
        index = np.asarray(index)
        require(index.ndim == 1 and index.dtype.kind in "iu", "index", index, "(batch,) integers")
        if index.size and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(
                f"index reaches from {index.min()} to {index.max()}; expected [0, {len(self)})"
            )
        flux, error = whole(self.flux)[index], whole(self.error)[index]
        return torch.from_numpy(flux).float(), torch.from_numpy(error).float()

    def __reduce__(self):
        return _rebuilt, (self.wave, _pickled(self.flux), _pickled(self.error), self.params)


def _rebuilt(wave, flux, error, params) -> Spectra:
    flux, error = (
        np.memmap(*array) if isinstance(array, tuple) else array for array in (flux, error)
    )
    return Spectra(wave, flux, error, params)


def _pickled(array: np.ndarray) -> np.ndarray | tuple:
    """Of a mapped array what makes `np.memmap` map the same part of its file."""
    stored = isinstance(array, np.memmap) and array.dtype == "<f4" and array.flags.c_contiguous
    if not stored:
        return array
    unit = mmap.ALLOCATIONGRANULARITY  # a map starts at the multiple below the whole's `offset`
    start = array.ctypes.data - np.frombuffer(array._mmap, np.uint8).ctypes.data
    return str(array.filename), "<f4", "r", array.offset // unit * unit + start, array.shape


def signal_to_noise(flux: np.ndarray, error: np.ndarray) -> np.ndarray:
    """(n,) median of flux / error over the (n, pixels)."""
    return np.median(flux / error, axis=-1)


def noisy(flux: Tensor, error: Tensor, noise_level: float, generator: torch.Generator) -> Tensor:
    """Flux with Gaussian noise: flux + randn * error * noise_level, on the device of the flux.

    Args:
        flux, error: (..., pixels); `noise_level`: factor on the error, >= 0.
        generator: on the same device.
    """
    require(noise_level >= 0, "noise_level", noise_level, "at least 0")
    noise = torch.randn(flux.shape, generator=generator, device=flux.device, dtype=flux.dtype)
    return noise.mul_(error).mul_(noise_level).add_(flux)


def fixed_noise(spectra: Spectra, noise_level: float, seed: int = SEED) -> Tensor:
    """(n, pixels) flux of a validation or test split with noise that depends on the seed and the
    row alone."""
    require(noise_level >= 0, "noise_level", noise_level, "at least 0")
    generator = torch.Generator().manual_seed(seed)
    result = torch.empty(spectra.flux.shape)
    for rows in torch.arange(len(spectra)).split(256):
        noise = torch.randn(256, len(spectra.wave), generator=generator)[: len(rows)]
        flux, error = spectra.rows(rows)
        result[rows] = noise.mul_(error).mul_(noise_level).add_(flux)
    return result


@dataclass(frozen=True)
class LabelNorm:
    """A linear scale for labels: (label - shift) / scale; errors times `scale` are in their
    unit."""

    shift: float
    scale: float

    @classmethod
    def fit(cls, train: np.ndarray, kind: Literal["standard", "minmax"] = "standard") -> Self:
        """From the labels of the train split alone: mean 0 and standard deviation 1, or from 0 to
        1.

        Raises:
            ValueError: unknown kind; a label is not finite, or all are the same.
        """
        train = np.asarray(train, float)
        require(np.isfinite(train).all(), "train", train[~np.isfinite(train)], "finite labels")
        require(
            train.size and np.ptp(train) > 0, "train", train[:1], "labels that are not all the same"
        )
        require(kind in ("standard", "minmax"), "kind", kind, "standard or minmax")
        if kind == "standard":
            return cls(float(train.mean()), float(train.std(ddof=1)))
        return cls(float(train.min()), float(np.ptp(train)))

    def transform(self, label):
        """From the label's unit to the scale of the loss; arrays and tensors alike."""
        return (label - self.shift) / self.scale

    def inverse(self, normalised):
        """Back to the label's unit."""
        return normalised * self.scale + self.shift
