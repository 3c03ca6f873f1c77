"""Tables that pandas has left in HDF5 files, read without running what they may hold.

pandas keeps a table as one dataset of records, and the names of its columns, among others, as pickles in attributes.
`pandas.read_hdf` loads these pickles, and a pickle can name any function to be called; here none is looked up.
"""

import io
import pickle
from typing import NoReturn

import h5py
import numpy as np
import pandas as pd

from fieldbook.checks import require


def kinds(file: h5py.File) -> dict[str, str]:
    """Paths of the objects that pandas has left in a file, and its word for each, such as frame_table or series."""
    found = {}
    file.visititems(lambda path, node: found.update({path: node.attrs.get("pandas_type")}))
    return {path: kind.decode() for path, kind in found.items() if kind is not None}


def numbers(group: h5py.Group) -> pd.DataFrame:
    """The columns of numbers of a DataFrame that was written with `format="table"`.

    Its index is left out, and so are columns of words, dates or categories. Columns of one type come together.

    Raises:
        ValueError: another kind of object; the names of columns are no list of strings and numbers. Names the path.
    """
    path, kind = group.name.strip("/"), group.attrs["pandas_type"].decode()
    require(kind == "frame_table", f"pandas_type of {path}", kind, "frame_table, columns written with format='table'")
    table, columns = group["table"], {}
    rows = table[()]
    for field in rows.dtype.names:
        if _holds_numbers(table, field):
            values = np.atleast_2d(rows[field].T)
            columns |= zip(_names(table, f"{field}_kind", len(values)), values, strict=True)
    return pd.DataFrame(columns)


def _holds_numbers(table: h5py.Dataset, field: str) -> bool:
    stored = table.attrs.get(f"{field}_dtype", b"")  # what it was in pandas: dates are stored as int64, too
    return stored.startswith((b"float", b"int", b"uint", b"bool")) and table.attrs.get(f"{field}_meta") != b"category"


def _names(table: h5py.Dataset, attribute: str, count: int) -> list[str | int | float]:
    where = f"attribute {attribute} of {table.name.strip('/')}"
    try:
        names = _PlainUnpickler(io.BytesIO(table.attrs[attribute])).load()
    except Exception as error:  # what is no pickle fails in many ways
        raise ValueError(f"{where} is not a list of names: {error}") from error
    plain = isinstance(names, list) and all(isinstance(name, str | int | float) for name in names)
    require(plain and len(names) == count, where, names, f"a list of {count} names")
    return names


class _PlainUnpickler(pickle.Unpickler):
    """Loads lists, strings and numbers; without classes and functions nothing can be run."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused as it may run code")
