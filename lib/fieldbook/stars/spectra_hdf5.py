"""HDF5 files of spectra: finding, writing, and converting them once to arrays that are fast to read
in any order.

A file has `spectrumdataset/wave` (pixels,), `dataset/arrays/flux/value` and
`dataset/arrays/error/value` (n, pixels), and a pandas table of n rows; other content is ignored.
Nothing in it can run code, though pandas keeps the names of columns as pickles.
"""

import contextlib
import errno
import fcntl
import itertools
import json
import os
import re
import shutil
import uuid
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
from fieldbook.stars import hdf5, pandas_hdf5
from fieldbook.stars.dataset import Spectra
from fieldbook.stars.hdf5 import check
from fieldbook.stars.noise import signal_to_noise

WAVE, FLUX, ERROR = (
    "spectrumdataset/wave",
    "dataset/arrays/flux/value",
    "dataset/arrays/error/value",
)
PARAMS = "dataset/params"
REQUIRED = ("T_eff", "log_g", "M_H", "a_M", "C_M", "mag", "redshift")
"""Columns that a table must have unless told otherwise; a missing `snr` is computed."""

LIMITS = {"T_eff": (1.0, 1e6), "log_g": (-5.0, 20.0), "mag": (-40.0, 60.0), "weight": (0.0, 1e300)}
LIMITS |= {"redshift": (-0.999, 100.0), "snr": (1e-9, 1e12)}
LIMITS |= dict.fromkeys(("M_H", "a_M", "C_M"), (-9.0, 9.0))
"""What such a column can hold: more than any star has, but not -999, 99.99 and the like."""

ANGSTROM = (
    900.0,
    3e5,
)  # wavelengths that stars are observed at; those in nm, microns or metres lie below
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
    folder, found = Path(folder), {}
    for split, pattern in {"train": train, "val": val, "test": test}.items():
        found[split] = sorted(folder.glob(f"{pattern}/dataset.h5"), key=_natural)
        if not found[split]:
            names = ", ".join(sorted(path.name for path in folder.glob("*"))[:10]) or "nothing"
            there = f"there: {names if folder.is_dir() else 'no such folder'}"
            raise FileNotFoundError(
                f"no {pattern}/dataset.h5 in {folder} for split {split} ({there})"
            )
        if split != "train" and len(found[split]) > 1:
            several = f"fits several files: {', '.join(map(str, found[split]))}"
            raise ValueError(f"{split} = {pattern!r} {several}; expected a pattern for one of them")
    for one, other in itertools.combinations(found, 2):
        both = {*map(Path.resolve, found[one])} & {*map(Path.resolve, found[other])}
        common = sorted(map(str, both))
        require(not both, f"{one} and {other}", common, "patterns without a common file")
    return found


def write(
    path: Path, wave: np.ndarray, flux: np.ndarray, error: np.ndarray, params: pd.DataFrame
) -> None:
    """Write one file, whole or not at all.

    Args:
        wave: (pixels,) in Angstrom; `flux`, `error`: (n, pixels); `params`: n rows.
    Raises:
        ValueError: the shapes do not belong together.
        OSError: writing failed (disk full, no permission); names the path, whose old content is
            intact.
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


def convert(files: Sequence[Path], folder: Path, required: Sequence[str] = REQUIRED) -> Spectra:
    """Check the spectra of files and lay them down as float32 arrays, unless that has been done.

    Memory stays constant, and flux is clipped at 0. The result serves as long as the files, and
    those behind their links and virtual datasets, stay the same; several processes may ask at once.

    Args:
        files: of one wavelength grid, of any type of numbers, byte order, chunks and compression
            that h5py or PyTables undo.
        folder: of the result, one per split; `Spectra.open` maps it when the files are gone.
        required: columns of numbers that each table must have.
    Raises:
        FileNotFoundError: a file is not there.
        OSError: the folder could not be written; what was there before is intact.
        ValueError: a file is damaged, in use, lacks something or has values that cannot be; names
            the file, the path in it and the row.
    """
    files, folder = [Path(file) for file in files], Path(folder).resolve()
    require(files, "files", files, "at least one file")
    once = len({*map(Path.resolve, files)}) == len(files)
    require(once, "files", [*map(str, files)], "no file twice")
    free = not folder.exists() or (folder.is_dir() and KEPT.issuperset(os.listdir(folder)))
    accepted = f"a folder of {', '.join(sorted(KEPT))} alone, or none, as it is replaced as a whole"
    require(free, "folder", str(folder), accepted)
    identity = {"version": VERSION, "files": [identity_of(file) for file in files]}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        spectra = _stored(folder, identity)
        if spectra is None:
            shards = [_inspect(file) for file in files]
            _check_alike(shards, required)
            try:
                _replace(folder, shards, identity)
            except OSError as error:
                reason = f"could not be written ({error.strerror or error}); what was there before is intact"
                raise OSError(error.errno, reason, str(folder)) from error
            spectra = Spectra.open(folder)
    _check_columns(spectra.params, required, str(folder))
    return spectra


def identity_of(file: Path) -> dict[str, object]:
    """The content of a file of spectra, and of the files behind its links and virtual datasets.

    Raises:
        FileNotFoundError, ValueError: as `convert`.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no spectra at {file}; expected an HDF5 file")
    with hdf5.reading(file, WAVE), h5py.File(file) as h5:
        found = [hdf5.dataset(h5, name) for name in (WAVE, FLUX, ERROR)]
        table = h5[_key(h5)].get("table")
        found += [table] if isinstance(table, h5py.Dataset) else []
        behind = {file.resolve()}.union(*map(hdf5.sources, found))
    contents = {str(path): content_of(path) for path in sorted(behind)}
    return {"path": str(file.resolve()), "files": contents}


@dataclass(frozen=True)
class _Shard:
    """What is known of a file before its spectra are read."""

    file: Path
    wave: np.ndarray
    params: pd.DataFrame
    key: str  # of the params


def _inspect(file: Path) -> _Shard:
    """Read all but the spectra, and check the shapes."""
    with hdf5.reading(file, WAVE), h5py.File(file) as h5:
        for name in (WAVE, FLUX, ERROR):
            dataset = h5[name]
            real = dataset.dtype.kind in "fiu" and dataset.shape is not None
            check(
                real,
                file,
                name,
                f"is of type {dataset.dtype}, shape {dataset.shape}; expected real numbers",
            )
        shape, shape_of_error = h5[FLUX].shape, h5[ERROR].shape
        with hdf5.readable(h5[WAVE]) as dataset:
            wave = dataset[()].astype(float)
    rising = wave.ndim == 1 and wave.size and np.isfinite(wave).all() and (np.diff(wave) > 0).all()
    check(rising, file, WAVE, "is not a rising sequence; expected (pixels,) in Angstrom")
    reach = f"reaches from {wave[0]:g} to {wave[-1]:g}; expected Angstrom, {ANGSTROM[0]:g} to {ANGSTROM[1]:g}"
    check(ANGSTROM[0] <= wave[0] and wave[-1] <= ANGSTROM[1], file, WAVE, reach)
    fits = len(shape) == 2 and shape[0] > 0 and shape[1] == len(wave)
    check(
        fits,
        file,
        FLUX,
        f"has shape {shape}; expected (n, {len(wave)}), n > 0, as {WAVE} has {len(wave)} pixels",
    )
    check(
        shape_of_error == shape,
        file,
        ERROR,
        f"has shape {shape_of_error}; expected {shape} as {FLUX}",
    )
    with hdf5.reading(file, PARAMS), h5py.File(file) as h5:
        key = _key(h5)
        params = pandas_hdf5.numbers(h5[key])
    check(
        len(params) == shape[0], file, key, f"has {len(params)} rows; expected {shape[0]} as {FLUX}"
    )
    return _Shard(file, wave, params.reset_index(drop=True), key)


def _key(h5: h5py.File) -> str:
    """Where the pandas table of a file is: at the usual key, or the only one."""
    keys = [PARAMS] if pandas_hdf5.kind(h5.get(PARAMS)) else pandas_hdf5.keys(h5)
    found = f"there are tables at {', '.join(keys)}" if keys else "there is no other table"
    check(
        len(keys) == 1, h5.filename, PARAMS, f"is missing, and {found}; expected one pandas table"
    )
    return keys[0]


def _check_alike(shards: list[_Shard], required: Sequence[str]) -> None:
    first = shards[0]
    for shard in shards:
        _check_columns(shard.params, required, f"{shard.file}: {shard.key}")
        alike = shard.wave.shape == first.wave.shape and np.allclose(
            shard.wave, first.wave, rtol=1e-7, atol=0
        )
        check(
            alike,
            shard.file,
            WAVE,
            f"differs from that of {first.file}; expected one grid for all files",
        )


def _check_columns(params: pd.DataFrame, required: Sequence[str], where: str) -> None:
    for name in required:
        if name not in params:
            raise ValueError(
                f"{where} lacks the column {name!r} of numbers (there: {', '.join(map(str, params))})"
            )
    for name in [name for name in params if name in {*required, *LIMITS}]:
        values = params[name].to_numpy(float)
        low, high = LIMITS.get(name, (-np.inf, np.inf))
        good = np.isfinite(values) & (values >= low) & (values <= high)
        good |= np.isnan(values) & (name not in {*required, "snr"})  # others may be unknown
        if not good.all():
            row = int(np.argmin(good))
            found = f"column {name!r}, row {row}: {params[name][row]!r}"
            raise ValueError(f"{where}, {found}; expected a finite number in [{low:g}, {high:g}]")


def _replace(folder: Path, shards: list[_Shard], identity: dict) -> None:
    """Put a whole new folder in the place of the old one."""
    for leftover in folder.parent.glob(
        f".{folder.name}.*.tmp"
    ):  # of a killed process: we hold the lock
        shutil.rmtree(leftover)
    partial, old = (
        folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp") for _ in range(2)
    )
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


def _copy_spectra(shards: list[_Shard], folder: Path) -> np.ndarray:
    """Write `flux.npy` and `error.npy`, and return the (n,) signal-to-noise ratios."""
    n, pixels = sum(len(shard.params) for shard in shards), len(shards[0].wave)
    header = {"descr": "<f4", "fortran_order": False, "shape": (n, pixels)}
    ratios = []
    bar = tqdm(total=n, desc="converting", unit=" spectra", mininterval=1, delay=5)
    with (
        open(folder / "flux.npy", "xb") as flux_file,
        open(folder / "error.npy", "xb") as error_file,
        bar,
    ):
        for file in (flux_file, error_file):
            np.lib.format.write_array_header_1_0(file, header)
        for shard in shards:
            for flux, error, snr in _checked_blocks(shard, folder):
                flux_file.write(flux)
                error_file.write(error)
                ratios.append(snr)
                bar.update(len(flux))
    return np.concatenate(ratios)


def _checked_blocks(shard: _Shard, scratch: Path) -> Iterator[tuple[np.ndarray, ...]]:
    """Flux >= 0, error > 0 in little-endian float32, and S/N, in buffers that are used again."""
    with contextlib.ExitStack() as stack, hdf5.reading(shard.file, FLUX):
        h5 = stack.enter_context(h5py.File(shard.file))
        readable = (hdf5.readable(h5[name], scratch) for name in (FLUX, ERROR))
        datasets = [stack.enter_context(each) for each in readable]
        n, pixels = datasets[0].shape
        chunk = max(dataset.chunks[0] if dataset.chunks else 1 for dataset in datasets)
        rows = max(BUFFER // (4 * pixels), 1)
        rows = rows // chunk * chunk or rows  # a compressed chunk is unpacked at each visit
        buffers = np.empty((2, min(rows, n), pixels), "<f4")
        for start in range(0, n, rows):
            flux, error = buffers[:, : min(rows, n - start)]
            for name, dataset, block in zip((FLUX, ERROR), datasets, (flux, error), strict=True):
                with hdf5.reading(shard.file, name):
                    dataset.read_direct(block, np.s_[start : start + len(block)])
            yield flux, error, _checked(flux, error, start, shard.file, h5[FLUX].fillvalue)


def _checked(
    flux: np.ndarray, error: np.ndarray, start: int, file: Path, fill: float
) -> np.ndarray:
    """Clip the flux of some rows at 0, and give their S/N."""
    _check_values(np.isfinite(flux), flux, start, file, FLUX, "a finite number in float32")
    good = np.isfinite(error) & (error > 0)
    _check_values(good, error, start, file, ERROR, "a finite number above 0 in float32")
    written = (flux != np.float32(fill)).any(1)
    snr = signal_to_noise(np.maximum(flux, 0, out=flux), error)
    low, high = LIMITS["snr"]
    good = (snr >= low) & (snr <= high) & written
    row = int(np.argmin(good))
    found = f"its median S/N is {snr[row]:g}, expected {low:g} to {high:g}"
    filled = f"or all of it is {fill:g}, as where nothing was written"
    check(good.all(), file, FLUX, f"is no star in row {start + row}: {found}; {filled}")
    return snr


def _check_values(
    good: np.ndarray, block: np.ndarray, start: int, file: Path, name: str, accepted: str
) -> None:
    if not good.all():
        row, pixel = np.argwhere(~good)[0]
        check(
            False,
            file,
            name,
            f"has {block[row, pixel]} in row {start + row}, pixel {pixel}; expected {accepted}",
        )


def _stored(folder: Path, identity: dict) -> Spectra | None:
    """What is in the folder, if it is whole and of these files."""
    try:
        if json.loads((folder / "spectra.json").read_text(encoding="utf-8")) == identity:
            return Spectra.open(folder)
    except (FileNotFoundError, ValueError):
        return None


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if path.is_file() or error.errno == errno.EIO:  # some file systems flush no folders
            raise
    finally:
        os.close(handle)


def _natural(path: Path) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]
