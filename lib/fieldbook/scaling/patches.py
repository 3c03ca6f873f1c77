"""Days of ticks, transformed and cut into patches of 60, on disk once and read by every run through
memory mapping."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fieldbook.nn.checkpoints import atomic_write
from fieldbook.nn.checks import require, whole
from fieldbook.scaling import market
from fieldbook.scaling.transforms import columns, transform

PATCH = WINDOW = 60  # ticks of a patch, patches of a window
SHORT_HORIZONS = (2, 4, 6, 8, 10, 15, 30)  # ticks, of level 1
LONG_HORIZONS = (60, 120, 360, 600, 1200, 1800)  # ticks, of level 2
FACTORS = 62  # of `patch_factors`
HORIZONS = {1: SHORT_HORIZONS, 2: LONG_HORIZONS}  # ticks, by level


@dataclass(frozen=True)
class Layout:
    """Which days there are.

    Attributes:
        instruments: to train on; validated and tested are the first `core`, and `unseen` others.
        train_days, val_days, test_days: in this order; `ticks`: of a day, a multiple of 60.
        warm_up: patches that no sample touches, at the beginning of each day.
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
        require(
            0 < self.core <= self.instruments,
            "core",
            self.core,
            f"in [1, {self.instruments}], the instruments",
        )

    def items(self) -> pd.DataFrame:
        """One row per instrument and day: instrument, day, split."""
        total = self.train_days + self.val_days + self.test_days
        days = market.split_days(total, self.test_days, self.val_days)
        new = range(self.instruments, self.instruments + self.unseen)
        who = {"train": range(self.instruments), "val": range(self.core), "test": range(self.core)}
        rows = [
            (i, d, split) for split, names in who.items() for i, d in product(names, days[split])
        ]
        rows += [(i, d, "unseen") for i, d in product(new, days["test"])]
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
        n, stored = len(self.items), (self.features.shape, str(self.features.dtype))
        fits = self.features.shape[:1] + self.features.shape[2:-1] == (n, PATCH)
        accepted = f"({n}, patch, {PATCH}, column) float16"
        require(fits and self.features.dtype == np.float16, "features", stored, accepted)
        shape = self.features.shape[:2]
        for level, array in [*self.target.items(), *self.mean.items()]:
            found = array.shape
            require(found[:2] == shape, f"targets of level {level}", found, f"{shape} and horizons")

    def examples(
        self,
        level: int,
        split: str,
        *,
        instruments: int | None = None,
        days: int | None = None,
        stride: int = 1,
    ) -> np.ndarray:
        """(n, 2) item and last patch of the samples of a split, of its first instruments and days
        only if given."""
        chosen = self.items.split == split
        if instruments is not None:
            chosen &= self.items.instrument < instruments
        if days is not None:
            chosen &= self.items.day < days
        ends = np.flatnonzero(np.isfinite(self.target[level][0]).all(1))[::stride]
        return np.array(list(product(np.flatnonzero(chosen), ends)), int).reshape(-1, 2)

    def patches(self, at: np.ndarray, n_features: int = 52) -> Tensor:
        """(batch, 60, features) float32 of samples (batch, 2)."""
        return torch.from_numpy(whole(self.features)[at[:, 0], at[:, 1]]).float()[..., :n_features]

    def windows(self, at: np.ndarray, n_features: int = 52) -> Tensor:
        """(batch, 60, 60, features) float32: the patch of each sample and the 59 before it."""
        found = whole(self.features)[at[:, :1], at[:, 1:] + np.arange(1 - WINDOW, 1)]
        return torch.from_numpy(found).float()[..., :n_features]

    def represent(
        self, function: Callable[[Tensor], Tensor], width: int, n_features: int = 52
    ) -> Tensor:
        """Apply (patch, 60, features) -> (patch, width) to all patches: (item, patch, width)
        float32 on the CPU."""
        out = torch.empty(*self.features.shape[:2], width)
        with torch.no_grad():
            for day, row in zip(whole(self.features), out, strict=True):
                row[:] = function(torch.from_numpy(day.astype(np.float32))[..., :n_features])
        return out

    def factors(self) -> Tensor:
        """(item, patch, 62), standardised over the train days."""
        found = self.represent(patch_factors, FACTORS)
        train = found[np.flatnonzero(self.items.split == "train")].flatten(0, 1)
        return (found - train.mean(0)) / train.std(0).clamp(min=1e-6)


def write_patches(folder: Path, world: market.World, layout: Layout) -> None:
    """Generate, transform and store all days, unless these have been; a killed call leaves nothing
    half done."""
    folder, items = Path(folder), layout.items()
    key = json.dumps(data_key(world, layout))
    if _key_in(folder) == key:
        return
    (folder / "targets.npz").unlink(
        missing_ok=True
    )  # before the features that it would not belong to
    count = layout.ticks // PATCH
    shape = (len(items), count, PATCH, len(columns()))
    arrays = {f"{kind}{level}": [] for kind in ("target", "mean") for level in HORIZONS}

    def fill(file) -> None:
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for row in items.itertuples():
            day = market.generate(world, row.instrument, row.day, layout.ticks)
            file.write(transform(day.raw).astype("<f2").tobytes())
            for level, horizons in HORIZONS.items():
                y, f = _targets(day, count, level, horizons, layout.warm_up)
                arrays[f"target{level}"].append(y)
                arrays[f"mean{level}"].append(f)

    atomic_write(folder / "features.npy", fill)
    facts = {name: np.stack(values) for name, values in arrays.items()}
    facts |= {name: items[name].to_numpy(str if name == "split" else int) for name in items}
    facts["key"] = np.array(key)
    atomic_write(folder / "targets.npz", lambda file: np.savez(file, **facts))


def _key_in(folder: Path) -> str | None:
    """What the patches in a folder are a function of; None if there are none, or a file is
    damaged."""
    try:
        open_patches(folder)
        return str(np.load(folder / "targets.npz")["key"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


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
        facts = np.load(folder / "targets.npz")
        items = pd.DataFrame({name: facts[name] for name in ("instrument", "day", "split")})
        target, mean = (
            {level: facts[f"{kind}{level}"] for level in HORIZONS} for kind in ("target", "mean")
        )
        return Patches(items, np.load(folder / "features.npy", mmap_mode="r"), target, mean)
    except PermissionError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise ValueError(
            f"{folder} is damaged ({error}); delete it, and write_patches makes it anew"
        ) from error


def data_key(world: market.World, layout: Layout) -> dict[str, float]:
    """What the data are a function of."""
    return asdict(world) | asdict(layout)


def _targets(day: market.Day, count: int, level: int, horizons: tuple[int, ...], warm_up: int):
    """y and f* at each patch's last tick, (patch, horizon); NaN where there is no sample."""
    last = PATCH * np.arange(1, count + 1) - 1
    first = warm_up if level == 1 else warm_up + WINDOW - 1
    valid = (np.arange(count) >= first) & (last + max(horizons) < len(day.returns))
    out = np.full((2, count, len(horizons)), np.nan, np.float32)
    out[:, valid] = market.targets(day, last[valid], horizons)
    return out


def patch_factors(features: Tensor, channels: Sequence[int] = range(13)) -> Tensor:
    """62 statistics of each patch that a practitioner would write down.

    Mean, standard deviation, last value and change over the patch of the thirteen `norm` columns
    (52); of the four returns among them, root mean square and first autocorrelation (8); how order
    imbalance and traded volume go with the mid-price return (2).

    Args:
        features: (..., 60, features), the `norm` columns of `transforms.CHANNELS` at `channels`.
    Returns:
        (..., 62).
    """
    x = features[..., list(channels)]
    returns, pair = x[..., 3:7], x[..., [10, 7]]
    mean, last, change = x.mean(-2), x[..., -1, :], x[..., -1, :] - x[..., 0, :]
    square = returns.square().mean(-2)
    neighbours = (returns[..., 1:, :] * returns[..., :-1, :]).mean(-2) / square.clamp(min=1e-6)
    together = (pair * returns[..., :1]).mean(-2)
    return torch.cat([mean, x.std(-2), last, change, square.sqrt(), neighbours, together], -1)
