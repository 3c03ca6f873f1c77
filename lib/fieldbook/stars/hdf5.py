"""HDF5 files of any origin: what is behind a dataset, through every filter, or what is wrong with
it.

Links and virtual datasets are followed. HDF5 fills in what is not there, as a rule with 0; here it
is refused.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import tables

FILTERS = {305: "lzo", 307: "bzip2", 32001: "blosc", 32026: "blosc2"}  # PyTables may have them


class Fault(ValueError):
    """What `check` has found: it names the file, and needs no more words."""


def check(condition: object, file: Path | str, name: str, problem: str) -> None:
    """Raise a `Fault` with the file, the path in it and the problem, unless the condition holds."""
    if not condition:
        raise Fault(f"{file}: {name} {problem}")


@contextlib.contextmanager
def reading(file: Path, name: str) -> Iterator[None]:
    """Name the file and the path in it in the errors of the HDF5 libraries, and what is wrong."""
    try:
        yield
    except (Fault, PermissionError):
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise Fault(f"{file}: {_diagnosis(file, name, error)} ({error})") from error


def _diagnosis(file: Path, name: str, error: Exception) -> str:
    if isinstance(error, BlockingIOError) or "already open for write" in str(error):
        remedy = "close it there, or set HDF5_USE_FILE_LOCKING=FALSE where no program has it open"
        return f"is in use by another program (locked), or was not closed by it; {remedy}"
    if getattr(error, "errno", None):
        return f"{name} cannot be read from the disk; try again when it can"
    if not h5py.is_hdf5(file):
        return "is not HDF5, or empty; expected a file as spectra_hdf5.write makes it"
    if isinstance(error, TypeError):
        return f"{name} is of a type that is not read here; write it as real numbers"
    return f"{name} cannot be read: the file is damaged or cut off; copy it again from where it is whole"


def dataset(h5: h5py.File, name: str) -> h5py.Dataset:
    """A dataset by its path, through links of any kind; raises a `Fault` if there is none."""
    try:
        found = h5[name]
    except KeyError as error:
        missing = f"is missing ({error.args[0]}); expected a dataset"
        raise Fault(f"{h5.filename}: {name} {missing}") from error
    check(isinstance(found, h5py.Dataset), h5.filename, name, "is a group; expected a dataset")
    return found


def sources(found: h5py.Dataset) -> set[Path]:
    """The files that hold the values of a dataset, beyond links and virtual datasets.

    Raises:
        ValueError: values are missing, which HDF5 would fill in; names the file and the path in it.
    """
    file, name = Path(found.file.filename), found.name.strip("/")
    steps = f'`values = h5["{name}"][()]; del h5["{name}"]; h5["{name}"] = values`'
    if found.is_virtual:
        grows = f"grows with its sources, which is not followed; write it into the file: {steps}"
        check(None not in found.maxshape, file, name, grows)
        return {file.resolve()}.union(*_beyond(found, file, name))
    raw = f"keeps its values in raw files, which are not read; write it into the file: {steps}"
    check(not found.external, file, name, raw)
    written = found.id.get_space_status() == h5py.h5d.SPACE_STATUS_ALLOCATED
    check(written or not found.size, file, name, "was never written in full; write all of it")
    return {file.resolve()}


def _beyond(found: h5py.Dataset, file: Path, name: str) -> Iterator[set[Path]]:
    """The files behind each source of a virtual dataset."""
    there = 0
    for source in found.virtual_sources():
        path = file if source.file_name == "." else file.parent / source.file_name
        inside = source.dset_name.strip("/")
        gone = f"takes values from {path}, which is not there; put it there, or do without it"
        check(path.is_file(), file, name, gone)
        with reading(path, inside), h5py.File(path) as h5:
            behind = dataset(h5, inside)
            yield sources(behind)
            less = f"has shape {behind.shape}, less than {file}: {name} takes from it"
            check(_is_enough(behind, source), path, inside, less)
            repack = f"`ptrepack --complib=zlib --complevel=5 {path} <new file>` makes one that is"
            packed = f"is compressed so that {file}: {name} cannot be read; {repack}"
            check(not _lacking(behind), path, inside, packed)
        there += source.vspace.get_select_npoints()
    partly = f"has {there} of {found.size} values; expected sources for all of them"
    check(there >= found.size, file, name, partly)


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


@contextlib.contextmanager
def readable(found: h5py.Dataset, scratch: Path | None = None) -> Iterator[h5py.Dataset]:
    """A dataset whose values h5py can read: itself, or a copy that PyTables has unpacked.

    Raises:
        ValueError: neither library has the filter, or `scratch` has no room for the copy.
    """
    codes, file, name = _lacking(found), found.file.filename, found.name.strip("/")
    for code in codes:
        known = code in FILTERS and tables.which_lib_version(FILTERS[code])
        problem = f"is compressed by filter {code} ({FILTERS.get(code, 'unknown')}), not here"
        remedy = "read it where the filter is, and write it with compression='gzip'"
        check(known, file, name, f"{problem}; {remedy}")
    if not codes:
        yield found
        return
    with TemporaryDirectory(dir=scratch) as folder:
        path, need = Path(folder, "copy.h5"), found.id.get_storage_size() + found.nbytes
        full = f"is to be unpacked in {folder}, which has no room for {need} bytes; make room there"
        check(shutil.disk_usage(folder).free >= need, file, name, full)
        with h5py.File(path, "w") as copy:  # without attributes: PyTables runs pickles in them
            copy.copy(found, "packed", without_attrs=True)
        with tables.open_file(path, "a") as copy:
            copy.root.packed.copy(newname="plain", filters=tables.Filters())
        with h5py.File(path) as copy:
            yield copy["plain"]
