"""HDF5 files of any origin: what is behind a dataset or a pandas table, or what is wrong with it.

HDF5 fills in what is not there, as a rule with 0, and pandas keeps the names of columns as pickles,
which can run code. Here the first is refused, and of the second nothing but lists of names is read.
"""

import io
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import h5py
import numpy as np
import pandas as pd
import tables

FILTERS = {305: "lzo", 307: "bzip2", 32001: "blosc", 32026: "blosc2"}  # PyTables may have them
NUMBERS = ("float", "int", "uint", "bool")


class Problem(ValueError):
    """What `check` has found; `reading` puts the file and the path in it before it."""


class Fault(ValueError):
    """A problem with its place: it needs no more words."""


def check(condition: object, problem: str) -> None:
    """Within `reading`: refuse what is read there, unless the condition holds."""
    if not condition:
        raise Problem(problem)


@contextmanager
def reading(file: Path | str, name: str) -> Iterator[h5py.File]:
    """Open a file; whatever goes wrong names it, the path in it, and what to do.

    Raises:
        ValueError: a `check` failed, or the libraries of HDF5 could not read it.
        PermissionError: the file may not be read.
    """
    try:
        with h5py.File(file) as h5:
            yield h5
    except (Fault, PermissionError):
        raise
    except Problem as problem:
        raise Fault(f"{file}: {name} {problem}") from problem.__cause__
    except Exception as error:  # a damaged file fails in many ways
        raise Fault(f"{file}: {_diagnosis(file, name, error)} ({error})") from error


def _diagnosis(file: Path | str, name: str, error: Exception) -> str:
    if isinstance(error, BlockingIOError) or "already open for write" in str(error):
        remedy = "close it there, or set HDF5_USE_FILE_LOCKING=FALSE where no program has it open"
        return f"is in use by another program (locked), or was not closed by it; {remedy}"
    if getattr(error, "errno", None):
        return f"{name} cannot be read from the disk; try again when it can"
    if not h5py.is_hdf5(file):
        return "is not HDF5, or empty; expected a file as spectra_hdf5.write makes it"
    if isinstance(error, TypeError):
        return f"{name} is of a type that is not read here; write it as real numbers"
    remedy = "copy it again from where it is whole"
    return f"{name} cannot be read: the file is damaged or cut off; {remedy}"


def dataset(h5: h5py.File, name: str) -> h5py.Dataset:
    """A dataset by its path, through links of any kind."""
    try:
        found = h5[name]
    except KeyError as error:
        raise Problem(f"is missing ({error.args[0]}); expected a dataset") from error
    check(isinstance(found, h5py.Dataset), "is a group; expected a dataset")
    return found


def sources(found: h5py.Dataset) -> set[Path]:
    """The files that hold the values of a dataset, beyond links and virtual datasets.

    Raises:
        ValueError: values are missing, which HDF5 would fill in.
    """
    file = Path(found.file.filename)
    name = found.name.strip("/")
    steps = f'`values = h5["{name}"][()]; del h5["{name}"]; h5["{name}"] = values`'
    remedy = f"write it into {file}: {steps}"
    check(not found.external, f"keeps its values in raw files, which are not read; {remedy}")
    if found.is_virtual:
        grows = f"grows with its sources, which is not followed; {remedy}"
        check(None not in found.maxshape, grows)
        return {file.resolve()}.union(*_beyond(found, file, name))
    written = found.id.get_space_status() == h5py.h5d.SPACE_STATUS_ALLOCATED
    check(written or not found.size, "was never written in full; write all of it")
    return {file.resolve()}


def _beyond(found: h5py.Dataset, file: Path, name: str) -> Iterator[set[Path]]:
    """The files behind each source of a virtual dataset."""
    there = 0
    for source in found.virtual_sources():
        path = file if source.file_name == "." else file.parent / source.file_name
        gone = f"takes values from {path}, which is not there; put it there, or do without it"
        check(path.is_file(), gone)
        inside = source.dset_name.strip("/")
        with reading(path, inside) as h5:
            behind = dataset(h5, inside)
            yield sources(behind)
            less = f"has shape {behind.shape}, less than {file}: {name} takes from it"
            check(_is_enough(behind, source), less)
            repack = f"`ptrepack --complib=zlib --complevel=5 {path} <new file>` makes one that is"
            packed = f"is compressed so that {file}: {name} cannot be read; {repack}"
            check(not _lacking(behind), packed)
        there += source.vspace.get_select_npoints()
    partly = f"has {there} of {found.size} values; expected sources for all of them"
    check(there >= found.size, partly)


def _is_enough(behind: h5py.Dataset, source: tuple) -> bool:
    """Whether a dataset is as large as the part of it that a virtual one takes."""
    if source.src_space.get_select_type() == h5py.h5s.SEL_ALL:
        return behind.size == source.vspace.get_select_npoints()
    last = source.src_space.get_select_bounds()[1]
    return len(last) == behind.ndim and all(a < b for a, b in zip(last, behind.shape, strict=True))


def _lacking(found: h5py.Dataset) -> list[int]:
    """Numbers of the filters of a dataset that h5py cannot undo."""
    made = found.id.get_create_plist()
    codes = [made.get_filter(i)[0] for i in range(made.get_nfilters())]
    return [code for code in codes if not h5py.h5z.filter_avail(code)]


@contextmanager
def readable(found: h5py.Dataset, scratch: Path | None = None) -> Iterator[h5py.Dataset]:
    """A dataset whose values h5py can read: itself, or a copy that PyTables has unpacked.

    Raises:
        ValueError: neither library has the filter, or `scratch` has no room for the copy.
    """
    codes = _lacking(found)
    for code in codes:
        known = code in FILTERS and tables.which_lib_version(FILTERS[code])
        remedy = "read it where the filter is, and write it with compression='gzip'"
        unknown = f"is compressed by filter {code} ({FILTERS.get(code, 'unknown')}), not here"
        check(known, f"{unknown}; {remedy}")
    if not codes:
        yield found
        return
    with TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder, "copy.h5")
        need = found.id.get_storage_size() + found.nbytes
        full = f"is to be unpacked in {folder}, which has no room for {need} bytes; make room there"
        check(shutil.disk_usage(folder).free >= need, full)
        with h5py.File(path, "w") as copy:  # without attributes: PyTables runs pickles in them
            copy.copy(found, "packed", without_attrs=True)
        with tables.open_file(path, "a") as copy:
            copy.root.packed.copy(newname="plain", filters=tables.Filters())
        with h5py.File(path) as copy:
            yield copy["plain"]


def table_at(h5: h5py.File, usual: str) -> str:
    """The path of the pandas table of a file: the usual one, or that of the only table."""
    if _text(h5.get(usual), "pandas_type"):
        return usual
    keys = []
    h5.visititems(lambda path, node: keys.append(path) if _text(node, "pandas_type") else None)
    found = f"there are tables at {', '.join(keys)}" if keys else "there is no other table"
    check(len(keys) == 1, f"is missing, and {found}; expected one pandas table")
    return keys[0]


def _text(node: h5py.Group | h5py.Dataset | None, attribute: str) -> str:
    """An attribute as text, however it is stored; empty if there is none that can be read."""
    try:
        value = node.attrs.get(attribute, "") if node is not None else ""
    except (OSError, TypeError, ValueError):
        return ""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def numbers(group: h5py.Group) -> pd.DataFrame:
    """The columns of numbers of a DataFrame that was written with `format="table"`, by type.

    Raises:
        ValueError: another kind of object, or names of columns that are no list of names.
    """
    found = _text(group, "pandas_type")
    expected = "expected frame_table, columns written with format='table'"
    check(found == "frame_table", f"has pandas_type {found!r}; {expected}")
    table, columns = group["table"], {}
    with readable(table) as packed:
        rows = packed[()]
    for field in rows.dtype.names:
        # what it was in pandas: dates and categories are stored as integers, too
        was = _text(table, f"{field}_dtype")
        if was.startswith(NUMBERS) and _text(table, f"{field}_meta") != "category":
            stored = rows[field].dtype  # stored again in native order, at most in float64
            dtype = stored.newbyteorder("=") if stored.itemsize <= 8 else np.float64
            values = np.atleast_2d(rows[field].astype(dtype).T)
            names = _names(table, f"{field}_kind", len(values))
            twice = [name for name in names if name in columns or names.count(name) > 1]
            check(not twice, f"has columns {twice} twice; expected once")
            columns |= zip(names, values, strict=True)
    return pd.DataFrame(columns)


def _names(table: h5py.Dataset, attribute: str, count: int) -> list[str | int | float]:
    where = f"has in attribute {attribute} of table"
    try:
        names = _PlainUnpickler(io.BytesIO(table.attrs[attribute])).load()
    except Exception as error:  # what is no pickle fails in many ways
        raise Problem(f"{where} no list of names: {error}") from error
    plain = isinstance(names, list) and all(isinstance(name, str | int | float) for name in names)
    accepted = plain and len(names) == count
    check(accepted, f"{where} {names!r}; expected a list of {count} names")
    return names


class _PlainUnpickler(pickle.Unpickler):
    """Loads lists, strings and numbers; without classes and functions nothing can be run."""

    def find_class(self, module: str, name: str) -> NoReturn:
        problem = f"it asks for {module}.{name}, which is refused as it may run code"
        raise pickle.UnpicklingError(problem)
