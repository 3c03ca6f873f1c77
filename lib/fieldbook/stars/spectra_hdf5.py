"""HDF5 files of spectra: found, written, and converted once to arrays that are fast in any order.

A file has `spectrumdataset/wave` (pixels,), `dataset/arrays/flux/value` and
`dataset/arrays/error/value` (n, pixels), and a pandas table of n rows; other content is ignored.
"""

import errno
import fcntl
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np
import pandas as pd
from filelock import FileLock
from tables.exceptions import HDF5ExtError
from tqdm import tqdm

from fieldbook.nn.checkpoints import atomic_write
from fieldbook.nn.checks import require
from fieldbook.nn.identity import content_of
from fieldbook.stars import hdf5
from fieldbook.stars.dataset import Spectra
from fieldbook.stars.hdf5 import check, reading
from fieldbook.stars.noise import signal_to_noise

WAVE = "spectrumdataset/wave"
FLUX, ERROR = "dataset/arrays/flux/value", "dataset/arrays/error/value"
PARAMS = "dataset/params"
REQUIRED = ("T_eff", "log_g", "M_H", "a_M", "C_M", "mag", "redshift")
"""Columns that a table must have; a missing `snr` is computed."""

LIMITS = {"T_eff": (1.0, 1e6), "log_g": (-5.0, 20.0), "mag": (-40.0, 60.0), "weight": (0.0, 1e300)}
LIMITS |= {"redshift": (-0.999, 100.0), "snr": (1e-9, 1e12)}
LIMITS |= dict.fromkeys(("M_H", "a_M", "C_M"), (-9.0, 9.0))
"""What such a column can hold: more than any star has, but not -999, 99.99 and the like."""

ANGSTROM = (900.0, 3e5)  # where stars are observed; nm, microns or metres lie below
BUFFER = 2**26  # bytes of float32 in memory at a time, for flux and for error
KEPT = {"flux.npy", "error.npy", "wave.npy", "params.parquet", "spectra.json"}
VERSION = 2  # of the converted folder; a change converts anew


def splits(
    folder: Path, train: str = "train*", val: str = "val*", test: str = "test*"
) -> dict[str, list[Path]]:
    """The files `<pattern>/dataset.h5` of each split, in natural order: shard 2 before shard 10.

    Raises:
        FileNotFoundError: a split has no file; names the folder, the pattern and what is there.
        ValueError: several files for `val` or `test`, or one file in two splits; names them.
    """
    folder = Path(folder)
    found = {}
    for split, pattern in {"train": train, "val": val, "test": test}.items():
        files = sorted(folder.glob(f"{pattern}/dataset.h5"), key=_natural)
        if not files:
            there = ", ".join(sorted(path.name for path in folder.glob("*"))[:10]) or "nothing"
            there = there if folder.is_dir() else "no such folder"
            problem = f"no {pattern}/dataset.h5 in {folder} for split {split} (there: {there})"
            raise FileNotFoundError(problem)
        if split != "train" and len(files) > 1:
            several = f"fits several files: {', '.join(map(str, files))}"
            raise ValueError(f"{split} = {pattern!r} {several}; expected a pattern for one of them")
        found[split] = files
    for one, other in itertools.combinations(found, 2):
        both = {*map(Path.resolve, found[one])} & {*map(Path.resolve, found[other])}
        common = sorted(map(str, both))
        require(not both, f"{one} and {other}", common, "patterns without a common file")
    return found


def _natural(path: Path) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


def write(
    path: Path, wave: np.ndarray, flux: np.ndarray, error: np.ndarray, params: pd.DataFrame
) -> None:
    """Write one file, whole or not at all.

    Args:
        wave: (pixels,) in Angstrom; `flux`, `error`: (n, pixels); `params`: n rows.
    Raises:
        ValueError: the shapes do not belong together.
        OSError: the disk is full or protected; names the path, whose old content is intact.
    """
    arrays = {WAVE: np.asarray(wave), FLUX: np.asarray(flux), ERROR: np.asarray(error)}
    Spectra(*arrays.values(), params)  # checks the shapes

    def fill(partial: BinaryIO) -> None:
        fcntl.flock(partial, fcntl.LOCK_UN)  # HDF5 takes a lock of its own
        with h5py.File(partial.name, "w") as file:
            for name, array in arrays.items():
                file[name] = array
            file.flush()
        try:
            params.to_hdf(partial.name, key=PARAMS, format="table", mode="a")
        except HDF5ExtError as failure:
            raise OSError(str(failure)) from failure

    atomic_write(path, fill)


def convert(files: Sequence[Path], folder: Path) -> Spectra:
    """Check the spectra of files and lay them down as float32 arrays, unless that has been done.

    Memory stays constant, and flux is clipped at 0. The result serves as long as the files, and
    those behind their links and virtual datasets, stay the same; several processes may ask at once.

    Args:
        files: of one wavelength grid, of any type of numbers, byte order, chunks and compression
            that h5py or PyTables undo.
        folder: of the result, one per split; `Spectra.open` maps it when the files are gone.
    Raises:
        FileNotFoundError: a file is not there.
        OSError: the folder could not be written; what was there before is intact.
        ValueError: a file is damaged, in use, lacks something or has values that cannot be; names
            the file, the path in it and the row.
    """
    files = [Path(file) for file in files]
    folder = Path(folder).resolve()
    require(files, "files", files, "at least one file")
    once = len({*map(Path.resolve, files)}) == len(files)
    require(once, "files", [*map(str, files)], "no file twice")
    free = not folder.exists() or (folder.is_dir() and KEPT.issuperset(os.listdir(folder)))
    accepted = f"a folder of {', '.join(sorted(KEPT))} alone, or none, as it is replaced as a whole"
    require(free, "folder", str(folder), accepted)
    identity = {"version": VERSION, "files": [identity_of(file) for file in files]}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        stored = _stored(folder, identity)
        if stored is not None:
            return stored
        shards = [_inspect(file) for file in files]
        _require_one_grid(shards)
        try:
            _replace(folder, shards, identity)
        except OSError as error:
            problem = f"could not be written ({error.strerror or error})"
            reason = f"{problem}; what was there before is intact"
            raise OSError(error.errno, reason, str(folder)) from error
        return Spectra.open(folder)


def _stored(folder: Path, identity: dict) -> Spectra | None:
    """What is in the folder, if it is whole and of these files."""
    try:
        if json.loads((folder / "spectra.json").read_text(encoding="utf-8")) == identity:
            return Spectra.open(folder)
    except (FileNotFoundError, ValueError):
        return None


def identity_of(file: Path) -> dict[str, object]:
    """The content of a file of spectra, and of the files behind its links and virtual datasets.

    Raises:
        FileNotFoundError, ValueError: as `convert`.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no spectra at {file}; expected an HDF5 file")
    behind = {file.resolve()}
    for name in (WAVE, FLUX, ERROR):
        with reading(file, name) as h5:
            behind |= hdf5.sources(hdf5.dataset(h5, name))
    with reading(file, PARAMS) as h5:
        table = h5[hdf5.table_at(h5, PARAMS)].get("table")
        behind |= hdf5.sources(table) if isinstance(table, h5py.Dataset) else set()
    contents = {str(path): content_of(path) for path in sorted(behind)}
    return {"path": str(file.resolve()), "files": contents}


@dataclass(frozen=True)
class _Shard:
    """What is known of a file before its spectra are read."""

    file: Path
    wave: np.ndarray
    params: pd.DataFrame


def _inspect(file: Path) -> _Shard:
    """Read all but the spectra, and check it and the shapes."""
    for name in (WAVE, FLUX, ERROR):
        with reading(file, name) as h5:
            dtype, shape = h5[name].dtype, h5[name].shape
            real = dtype.kind in "fiu" and shape is not None
            check(real, f"is of type {dtype}, shape {shape}; expected real numbers")
    with reading(file, WAVE) as h5, hdf5.readable(h5[WAVE]) as stored:
        wave = stored[()].astype(float)
        _check_wave(wave)
    with reading(file, FLUX) as h5:
        shape = h5[FLUX].shape
        fits = len(shape) == 2 and shape[0] > 0 and shape[1] == len(wave)
        expected = f"(n, {len(wave)}), n > 0, as {WAVE} has {len(wave)} pixels"
        check(fits, f"has shape {shape}; expected {expected}")
    with reading(file, ERROR) as h5:
        found = h5[ERROR].shape
        check(found == shape, f"has shape {found}; expected {shape} as {FLUX}")
    with reading(file, PARAMS) as h5:
        key = hdf5.table_at(h5, PARAMS)
    with reading(file, key) as h5:
        params = hdf5.numbers(h5[key]).reset_index(drop=True)
        check(len(params) == shape[0], f"has {len(params)} rows; expected {shape[0]} as {FLUX}")
        _check_columns(params)
    return _Shard(file, wave, params)


def _check_wave(wave: np.ndarray) -> None:
    rising = wave.ndim == 1 and wave.size and np.isfinite(wave).all() and (np.diff(wave) > 0).all()
    check(rising, "is not a rising sequence; expected (pixels,) in Angstrom")
    low, high = ANGSTROM
    reach = f"reaches from {wave[0]:g} to {wave[-1]:g}"
    seen = low <= wave[0] and wave[-1] <= high
    check(seen, f"{reach}; expected Angstrom, {low:g} to {high:g}")


def _check_columns(params: pd.DataFrame) -> None:
    there = ", ".join(map(str, params))
    for name in REQUIRED:
        check(name in params, f"lacks the column {name!r} of numbers (there: {there})")
    for name in [name for name in params if name in LIMITS]:
        values = params[name].to_numpy(float)
        low, high = LIMITS[name]
        good = np.isfinite(values) & (values >= low) & (values <= high)
        if name not in (*REQUIRED, "snr"):  # it may be unknown
            good |= np.isnan(values)
        row = int(np.argmin(good))
        found = f"has {values[row]} in column {name!r}, row {row}"
        check(good.all(), f"{found}; expected a finite number in [{low:g}, {high:g}]")


def _require_one_grid(shards: list[_Shard]) -> None:
    first = shards[0]
    for shard in shards:
        same = shard.wave.shape == first.wave.shape
        if not same or not np.allclose(shard.wave, first.wave, rtol=1e-7, atol=0):
            differs = f"differs from that of {first.file}; expected one grid for all files"
            raise ValueError(f"{shard.file}: {WAVE} {differs}")


def _replace(folder: Path, shards: list[_Shard], identity: dict) -> None:
    """Put a whole new folder in the place of the old one."""
    for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(leftover)  # of a killed process: we hold the lock
    partial = folder.with_name(f".{folder.name}.new.tmp")
    old = folder.with_name(f".{folder.name}.old.tmp")
    partial.mkdir()
    try:
        snr = _copy_spectra(shards, partial)
        params = pd.concat([shard.params for shard in shards], join="inner", ignore_index=True)
        params["snr"] = params.get("snr", pd.Series(snr))
        params.to_parquet(partial / "params.parquet")
        np.save(partial / "wave.npy", shards[0].wave)
        (partial / "spectra.json").write_text(json.dumps(identity, indent=1), encoding="utf-8")
        for path in [*partial.iterdir(), partial]:
            _fsync(path)
        if folder.exists():
            os.rename(folder, old)
        os.rename(partial, folder)
        _fsync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if path.is_file() or error.errno == errno.EIO:  # some file systems flush no folders
            raise
    finally:
        os.close(handle)


def _copy_spectra(shards: list[_Shard], folder: Path) -> np.ndarray:
    """Write `flux.npy` and `error.npy`, and return the (n,) signal-to-noise ratios."""
    n = sum(len(shard.params) for shard in shards)
    pixels = len(shards[0].wave)
    header = {"descr": "<f4", "fortran_order": False, "shape": (n, pixels)}
    bar = tqdm(total=n, desc="converting", unit=" spectra", mininterval=1, delay=5)
    ratios = []
    with open(folder / "flux.npy", "xb") as fluxes, open(folder / "error.npy", "xb") as errors, bar:
        np.lib.format.write_array_header_1_0(fluxes, header)
        np.lib.format.write_array_header_1_0(errors, header)
        for flux, error, snr in (block for shard in shards for block in _blocks(shard, folder)):
            fluxes.write(flux)
            errors.write(error)
            ratios.append(snr)
            bar.update(len(flux))
    return np.concatenate(ratios)


def _blocks(shard: _Shard, scratch: Path) -> Iterator[tuple[np.ndarray, ...]]:
    """Flux >= 0, error > 0 in little-endian float32, and S/N, in buffers that are used again."""
    with (
        reading(shard.file, FLUX) as h5,
        hdf5.readable(h5[FLUX], scratch) as fluxes,
        reading(shard.file, ERROR) as h5,
        hdf5.readable(h5[ERROR], scratch) as errors,
    ):
        n, pixels = fluxes.shape
        chunk = max(dataset.chunks[0] if dataset.chunks else 1 for dataset in (fluxes, errors))
        rows = max(BUFFER // (4 * pixels), 1)
        rows = rows // chunk * chunk or rows  # a compressed chunk is unpacked at each visit
        buffers = np.empty((2, min(rows, n), pixels), "<f4")
        for start in range(0, n, rows):
            flux, error = buffers[:, : n - start]
            part = np.s_[start : start + len(flux)]
            with reading(shard.file, ERROR):
                errors.read_direct(error, part)
                good = np.isfinite(error) & (error > 0)
                _check_values(good, error, start, "a finite number above 0 in float32")
            with reading(shard.file, FLUX):
                fluxes.read_direct(flux, part)
                _check_values(np.isfinite(flux), flux, start, "a finite number in float32")
                snr = _checked_ratio(flux, error, start, fluxes.fillvalue)
            yield flux, error, snr


def _check_values(good: np.ndarray, block: np.ndarray, start: int, accepted: str) -> None:
    if not good.all():
        row, pixel = np.argwhere(~good)[0]
        found = f"has {block[row, pixel]} in row {start + row}, pixel {pixel}"
        check(False, f"{found}; expected {accepted}")


def _checked_ratio(flux: np.ndarray, error: np.ndarray, start: int, fill: float) -> np.ndarray:
    """S/N of some rows, whose flux is clipped at 0."""
    written = (flux != np.float32(fill)).any(1)
    snr = signal_to_noise(np.maximum(flux, 0, out=flux), error)
    low, high = LIMITS["snr"]
    good = (snr >= low) & (snr <= high) & written
    row = int(np.argmin(good))
    found = f"its median S/N is {snr[row]:g}, expected {low:g} to {high:g}"
    filled = f"or all of it is {fill:g}, as where nothing was written"
    check(good.all(), f"is no star in row {start + row}: {found}; {filled}")
    return snr
