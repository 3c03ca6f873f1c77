"""Days of ticks, transformed and cut into patches of 60: on disk once, mapped by every run."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fieldbook.nn.checkpoints import atomic_write
from fieldbook.nn.checks import require, whole
from fieldbook.scaling import market
from fieldbook.scaling.transforms import CHANNELS, RETURNS, columns, transform

PATCH = WINDOW = 60  # ticks of a patch, patches of a window
SHORT_HORIZONS = (2, 4, 6, 8, 10, 15, 30)  # ticks, of level 1
LONG_HORIZONS = (60, 120, 360, 600, 1200, 1800)  # ticks, of level 2
HORIZONS = {1: SHORT_HORIZONS, 2: LONG_HORIZONS}  # ticks, by level
FACTORS = 62  # of `patch_factors`


@dataclass(frozen=True)
class Layout:
    """Which days there are.

    Attributes:
        instruments: to train on; validated and tested are the first `core`, and `unseen` others.
        train_days, val_days, test_days: in this order; `ticks`: of a day, a multiple of 60.
        warm_up: patches that no sample touches, at the beginning of each day.
    Raises:
        ValueError: a split without days, more to test than to train on, or days too short.
    """

    instruments: int
    train_days: int
    val_days: int
    test_days: int
    ticks: int = 9600
    core: int = 2
    unseen: int = 2
    warm_up: int = 10

    def __post_init__(self) -> None:
        least = PATCH * (self.warm_up + WINDOW) + max(LONG_HORIZONS)
        accepted = f"a multiple of {PATCH}, above {least}"
        require(self.ticks % PATCH == 0 and self.ticks > least, "ticks", self.ticks, accepted)
        accepted = f"in [1, {self.instruments}], the instruments"
        require(0 < self.core <= self.instruments, "core", self.core, accepted)
        for name in ("train_days", "val_days", "test_days"):
            require(getattr(self, name) > 0, name, getattr(self, name), "at least 1")

    def items(self) -> pd.DataFrame:
        """One row per instrument and day: instrument, day, split."""
        days = np.arange(self.train_days + self.val_days + self.test_days)
        train, val, test = np.split(days, [self.train_days, self.train_days + self.val_days])
        core = range(self.core)
        new = range(self.instruments, self.instruments + self.unseen)
        rows = [(i, d, "train") for i, d in product(range(self.instruments), train)]
        rows += [(i, d, "val") for i, d in product(core, val)]
        rows += [(i, d, "test") for i, d in product(core, test)]
        rows += [(i, d, "unseen") for i, d in product(new, test)]
        return pd.DataFrame(rows, columns=["instrument", "day", "split"])


@dataclass(frozen=True)
class Patches:
    """What `open_patches` reads.

    Attributes:
        features: (item, patch, tick, column) float16, mapped from the disk.
        target, mean: level -> (item, patch, horizon) float32 at each patch's last tick: returns,
            and f*; NaN where a sample would touch the warm-up or the end of the day.
    """

    items: pd.DataFrame
    features: np.ndarray
    target: dict[int, np.ndarray]
    mean: dict[int, np.ndarray]

    def __post_init__(self) -> None:
        n = len(self.items)
        shape = self.features.shape
        fits = shape[:1] + shape[2:-1] == (n, PATCH) and self.features.dtype == np.float16
        accepted = f"({n}, patch, {PATCH}, column) float16"
        require(fits, "features", (shape, str(self.features.dtype)), accepted)
        for level, array in [*self.target.items(), *self.mean.items()]:
            accepted = f"{shape[:2]} and horizons"
            require(
                array.shape[:2] == shape[:2], f"targets of level {level}", array.shape, accepted
            )

    def examples(
        self,
        level: int,
        split: str,
        *,
        instruments: int | None = None,
        days: int | None = None,
        stride: int = 1,
    ) -> np.ndarray:
        """(n, 2) item and last patch of a split's samples, or of its first instruments and days."""
        chosen = self.items.split == split
        if instruments is not None:
            chosen &= self.items.instrument < instruments
        if days is not None:
            chosen &= self.items.day < days
        ends = np.flatnonzero(np.isfinite(self.target[level][0]).all(1))[::stride]
        return np.array(list(product(np.flatnonzero(chosen), ends)), int).reshape(-1, 2)

    def patches(self, at: np.ndarray) -> Tensor:
        """(batch, 60, 52) float32 of samples (batch, 2)."""
        return torch.from_numpy(whole(self.features)[*at.T]).float()

    def windows(self, at: np.ndarray) -> Tensor:
        """(batch, 60, 60, 52) float32: the patch of each sample and the 59 before it."""
        return torch.from_numpy(whole(self.features)[window_of(at)]).float()

    def represent(self, function: Callable[[Tensor], Tensor], width: int) -> Tensor:
        """Apply (patch, 60, 52) -> (patch, width) to all days: (item, patch, width) on the CPU."""
        out = torch.empty(*self.features.shape[:2], width)
        with torch.no_grad():
            for day, row in zip(whole(self.features), out, strict=True):
                row[:] = function(torch.from_numpy(day.astype(np.float32)))
        return out

    def factors(self) -> Tensor:
        """(item, patch, 62), standardised over the train days."""
        found = self.represent(patch_factors, FACTORS)
        train = found[np.flatnonzero(self.items.split == "train")].flatten(0, 1)
        return (found - train.mean(0)) / train.std(0).clamp(min=1e-6)


def window_of(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the windows that end at samples (batch, 2): item (batch, 1), patch (batch, 60)."""
    return at[:, :1], at[:, 1:] + np.arange(1 - WINDOW, 1)


def write_patches(folder: Path, world: market.World, layout: Layout) -> None:
    """Generate, transform and store all days, unless these have been stored whole."""
    folder = Path(folder)
    items = layout.items()
    key = json.dumps(data_key(world, layout))
    if _key_in(folder) == key:
        return
    # before the features that it would not belong to
    (folder / "targets.npz").unlink(missing_ok=True)
    stored = {f"{kind}{level}": [] for level in HORIZONS for kind in ("target", "mean")}

    def fill(file: BinaryIO) -> None:
        shape = (len(items), layout.ticks // PATCH, PATCH, len(columns()))
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for row in items.itertuples():
            day = market.generate(world, row.instrument, row.day, layout.ticks)
            file.write(transform(day.raw).astype("<f2").tobytes())
            for level in HORIZONS:
                y, f = _targets(day, level, layout.warm_up)
                stored[f"target{level}"].append(y)
                stored[f"mean{level}"].append(f)

    atomic_write(folder / "features.npy", fill)
    arrays = {name: np.stack(values) for name, values in stored.items()}
    arrays |= {name: items[name].to_numpy(str if name == "split" else int) for name in items}
    atomic_write(folder / "targets.npz", lambda file: np.savez(file, key=key, **arrays))


def _targets(day: market.Day, level: int, warm_up: int) -> np.ndarray:
    """y and f* at each patch's last tick, (2, patch, horizon); NaN where there is no sample."""
    ticks = len(day.returns)
    horizons = HORIZONS[level]
    last = np.arange(PATCH - 1, ticks, PATCH)
    first = warm_up if level == 1 else warm_up + WINDOW - 1
    valid = (np.arange(len(last)) >= first) & (last + max(horizons) < ticks)
    out = np.full((2, len(last), len(horizons)), np.nan, np.float32)
    out[:, valid] = market.targets(day, last[valid], horizons)
    return out


def open_patches(folder: Path) -> Patches:
    """Read what `write_patches` wrote.

    Raises:
        FileNotFoundError: it has not; names the folder.
        ValueError: a file is damaged; names the folder.
    """
    folder = Path(folder)
    if not (folder / "targets.npz").exists():
        raise FileNotFoundError(f"no patches in {folder}; write_patches makes them")
    try:
        stored = np.load(folder / "targets.npz")
        items = pd.DataFrame({name: stored[name] for name in ("instrument", "day", "split")})
        target = {level: stored[f"target{level}"] for level in HORIZONS}
        mean = {level: stored[f"mean{level}"] for level in HORIZONS}
        return Patches(items, np.load(folder / "features.npy", mmap_mode="r"), target, mean)
    except PermissionError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        remedy = "delete it, and write_patches makes it anew"
        raise ValueError(f"{folder} is damaged ({error}); {remedy}") from error


def _key_in(folder: Path) -> str | None:
    """What the patches in a folder are a function of; None if there are none, or damaged ones."""
    try:
        open_patches(folder)
        return str(np.load(folder / "targets.npz")["key"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


def data_key(world: market.World, layout: Layout) -> dict[str, float]:
    """What the data are a function of."""
    return asdict(world) | asdict(layout)


def patch_factors(features: Tensor) -> Tensor:
    """62 statistics that a practitioner would write down, (..., 60, features) -> (..., 62).

    Mean, standard deviation, last value and change over the patch of the thirteen `norm` columns
    (52); of the four returns among them, root mean square and first autocorrelation (8); how order
    imbalance and traded volume go with the mid-price return (2).
    """
    x = features[..., : len(CHANNELS)]
    last = x[..., -1, :]
    change = last - x[..., 0, :]
    returns = x[..., [CHANNELS.index(name) for name in RETURNS]]
    square = returns.square().mean(-2)
    neighbours = (returns[..., 1:, :] * returns[..., :-1, :]).mean(-2) / square.clamp(min=1e-6)
    pair = x[..., [CHANNELS.index("obi_1"), CHANNELS.index("vol_diff")]]
    together = (pair * returns[..., :1]).mean(-2)
    parts = [x.mean(-2), x.std(-2), last, change, square.sqrt(), neighbours, together]
    return torch.cat(parts, -1)
