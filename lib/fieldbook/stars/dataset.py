"""What networks are trained on: spectra, errors and parameters, in memory or mapped from files.

`stars.spectra_hdf5` makes the folders that `Spectra.open` maps, `stars.noise` the noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fieldbook.nn.checks import require, whole


@dataclass(frozen=True, eq=False)
class Spectra:
    """A set of spectra, in memory or mapped; `spectra[:n]` is a part on the same memory or files.

    Attributes:
        wave: (pixels,) vacuum wavelength in Angstrom, increasing.
        flux: (n, pixels) float32, without noise, >= 0.
        error: (n, pixels) float32, > 0, standard deviation of the noise at level 1, unit of flux.
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
            wave = np.load(folder / "wave.npy")
            flux = np.load(folder / "flux.npy", mmap_mode="r")
            error = np.load(folder / "error.npy", mmap_mode="r")
            return cls(wave, flux, error, pd.read_parquet(folder / "params.parquet"))
        except FileNotFoundError as missing:
            problem = f"no converted spectra in {folder} ({missing}); convert the files first"
            raise FileNotFoundError(problem) from missing
        except PermissionError:
            raise
        except (ValueError, OSError, EOFError) as damage:
            problem = f"{folder} is damaged ({damage}); delete it and convert again"
            raise ValueError(problem) from damage

    def __len__(self) -> int:
        return len(self.params)

    def __getitem__(self, part: slice) -> Self:
        accepted = isinstance(part, slice) and part.step in (None, 1)
        require(accepted, "part", part, "a slice start:stop")
        return replace(self, flux=self.flux[part], error=self.error[part], params=self.params[part])

    def rows(self, index: Tensor | np.ndarray | Sequence[int]) -> tuple[Tensor, Tensor]:
        """Copies on the CPU of flux and error, (batch, pixels) float32 each, of rows in [0, n).

        Raises:
            ValueError: not a sequence of integers.
            IndexError: a row is not there.
            OSError: a file has been cut.
        """
        index = np.asarray(index)
        require(index.ndim == 1 and index.dtype.kind in "iu", "index", index, "(batch,) integers")
        if index.size and not 0 <= index.min() <= index.max() < len(self):
            reach = f"index reaches from {index.min()} to {index.max()}"
            raise IndexError(f"{reach}; expected [0, {len(self)})")
        flux, error = whole(self.flux)[index], whole(self.error)[index]
        return torch.from_numpy(flux).float(), torch.from_numpy(error).float()


@dataclass(frozen=True)
class LabelNorm:
    """A linear scale for labels, (label - shift) / scale; errors times `scale` have their unit."""

    shift: float
    scale: float

    @classmethod
    def fit(cls, train: np.ndarray, kind: Literal["standard", "minmax"] = "standard") -> Self:
        """From the train split alone: mean 0 and standard deviation 1, or from 0 to 1.

        Raises:
            ValueError: unknown kind; a label is not finite, or all are the same.
        """
        train = np.asarray(train, float)
        require(np.isfinite(train).all(), "train", train[~np.isfinite(train)], "finite labels")
        varied = train.size and np.ptp(train) > 0
        require(varied, "train", train[:1], "labels that are not all the same")
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
