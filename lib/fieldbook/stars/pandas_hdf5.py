"""Tables that pandas has left in HDF5 files, read without running what they may hold.

A table is one dataset of records, and the names of its columns, among others, are pickles in
attributes: `pandas.read_hdf` calls any function that one names; here none is looked up.
"""

import io
import pickle
from typing import NoReturn

import h5py
import numpy as np
import pandas as pd

from fieldbook.stars.hdf5 import check, readable


def kind(node: h5py.Group | h5py.Dataset | None) -> str:
    """pandas' word for what it has left in a node, such as frame_table or series; empty if it has
    not."""
    return "" if node is None else _words(node, "pandas_type")


def keys(file: h5py.File) -> list[str]:
    """Paths of the objects that pandas has left in a file."""
    found = []
    file.visititems(lambda path, node: found.append(path) if kind(node) else None)
    return found


def numbers(group: h5py.Group) -> pd.DataFrame:
    """The columns of numbers of a DataFrame that was written with `format="table"`, sorted by type.

    Raises:
        ValueError: another kind of object; the names of columns are no list of strings and numbers.
            Names the file and the path.
    """
    file, path, found = group.file.filename, group.name.strip("/"), kind(group)
    other = f"is {found!r}; expected frame_table, columns written with format='table'"
    check(found == "frame_table", file, f"pandas_type of {path}", other)
    table, columns = group["table"], {}
    with readable(table) as packed:
        rows = packed[()]
    for field in rows.dtype.names:
        if _holds_numbers(table, field):
            stored = rows[field].dtype  # stored again in native order, at most in float64
            dtype = stored.newbyteorder("=") if stored.itemsize <= 8 else np.float64
            values = np.atleast_2d(rows[field].astype(dtype).T)
            names = _names(table, f"{field}_kind", len(values))
            repeated = [name for name in names if name in columns or names.count(name) > 1]
            check(not repeated, file, f"columns of {path}", f"are {repeated} twice; expected once")
            columns |= zip(names, values, strict=True)
    return pd.DataFrame(columns)


def _holds_numbers(table: h5py.Dataset, field: str) -> bool:
    stored = _words(
        table, f"{field}_dtype"
    )  # what it was in pandas: dates are stored as int64, too
    return (
        stored.startswith(("float", "int", "uint", "bool"))
        and _words(table, f"{field}_meta") != "category"
    )


def _words(node: h5py.Group | h5py.Dataset, attribute: str) -> str:
    """An attribute as text, however it is stored; empty if there is none, or none that can be
    read."""
    try:
        value = node.attrs.get(attribute, "")
    except (OSError, TypeError, ValueError):
        return ""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _names(table: h5py.Dataset, attribute: str, count: int) -> list[str | int | float]:
    where = table.file.filename, f"attribute {attribute} of {table.name.strip('/')}"
    try:
        names = _PlainUnpickler(io.BytesIO(table.attrs[attribute])).load()
    except Exception as error:  # what is no pickle fails in many ways
        check(False, *where, f"is not a list of names: {error}")
    plain = isinstance(names, list) and all(isinstance(name, str | int | float) for name in names)
    check(plain and len(names) == count, *where, f"is {names!r}; expected a list of {count} names")
    return names


class _PlainUnpickler(pickle.Unpickler):
    """Loads lists, strings and numbers; without classes and functions nothing can be run."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(
            f"it asks for {module}.{name}, which is refused as it may run code"
        )
