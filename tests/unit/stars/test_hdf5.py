"""Files of spectra as other programs leave them: filters, byte orders, links, virtual data; each
remedy followed."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import tables
from test_dataset import ERROR, FLUX, PARAMS, WAVE, Malice, assert_holds, build, values

from fieldbook.stars import hdf5, spectra_hdf5
from fieldbook.stars.dataset import Spectra
from fieldbook.stars.spectra_hdf5 import LIMITS, convert, identity_of, splits

LIBRARIES = ["zlib", "bzip2", "blosc", "blosc:lz4", "blosc:zstd", "blosc2", "blosc2:zlib"]
GONE = ", which is not there; put it there, or do without it"


def packed(path: Path, name: str, array: np.ndarray, library: str = "blosc") -> None:
    """Put an array into a file as PyTables compresses it."""
    with h5py.File(path, "a") as h5:
        h5.pop(name, None)
    group, _, leaf = name.rpartition("/")
    with tables.open_file(path, "a") as h5:
        filters = tables.Filters(5, library)
        h5.create_carray(
            f"/{group}", leaf, obj=array, filters=filters, chunkshape=(5, 4), createparents=True
        )


def relabelled(path: Path, params: pd.DataFrame, **how: object) -> None:
    with h5py.File(path, "a") as h5:
        h5.pop(PARAMS, None)
    params.to_hdf(path, key=PARAMS, format="table", mode="a", **how)


def virtual(
    path: Path, name: str, file: str, source: str, rows: int = 12, part: slice = np.s_[:]
) -> None:
    """Lay a virtual dataset of 12 rows over some of another."""
    layout = h5py.VirtualLayout((12, 10), "f8")
    taken = h5py.VirtualSource(file, source, (rows, 10))[part]
    layout[: taken.shape[0]] = taken
    with h5py.File(path, "a") as h5:
        h5.pop(name, None)
        h5.create_virtual_dataset(name, layout)


def linked(path: Path, name: str, target: object) -> None:
    with h5py.File(path, "a") as h5:
        h5.pop(name, None)
        h5[name] = target


def refusal(path: Path, out: Path) -> str:
    with pytest.raises(ValueError, match=str(path)) as caught:
        convert([path], out)
    assert "damaged" not in str(caught.value)
    return str(caught.value)


# -- filters and types


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_pytables_compresses_is_read(tmp_path, library):
    wave, flux, error, params = values()
    file = build(tmp_path / "a.h5", wave, flux, error, params)
    relabelled(file, params, complib=library, complevel=5, data_columns=["mag"])
    packed(file, FLUX, flux, library)
    packed(file, ERROR, error.astype(">f4"), library)
    assert_holds(convert([file], tmp_path / "out"), wave, flux, error, params)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.lock", "a.h5", "out"]


@pytest.mark.parametrize("dtype", ["<f2", ">f4", ">i8", "u1", ">u2", "g"])
def test_any_type_of_number_is_read_through_pytables(tmp_path, dtype):
    wave, flux, error, params = values()
    flux, error = (np.ceil(100 * array).astype(dtype) for array in (flux, error))
    file = build(tmp_path / "a.h5", wave, flux, error, params, dtype=dtype)
    assert_holds(convert([file], tmp_path / "plain"), wave, flux, error, params, rtol=0)
    packed(file, FLUX, flux)
    packed(file, ERROR, error)
    assert_holds(convert([file], tmp_path / "out"), wave, flux, error, params, rtol=0)


def test_attributes_of_a_compressed_dataset_are_not_unpickled(tmp_path):
    import pickle

    wave, flux, error, params = values()
    file = build(tmp_path / "a.h5", wave, flux, error, params)
    packed(file, FLUX, flux)
    with h5py.File(file, "a") as h5:
        for node in (h5, h5[FLUX], h5[FLUX].parent):
            for name in ("CLASS", "TITLE", "VERSION", "FLAVOR", "anything"):
                node.attrs[name] = np.bytes_(pickle.dumps(Malice(tmp_path / "marker"), 0))
    assert_holds(convert([file], tmp_path / "out"), wave, flux, error, params)
    assert not (tmp_path / "marker").exists()


def test_a_filter_that_nobody_has_is_named(tmp_path):
    content = values()
    file = build(tmp_path / "a.h5", *content)
    with h5py.File(file, "a") as h5:
        del h5[FLUX]
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk((12, 10))
        made.set_filter(32_015, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((12, 10))
        made = h5py.h5d.create(h5.id, FLUX.encode(), h5py.h5t.IEEE_F64LE, space, made)
        made.write_direct_chunk((0, 0), b"packed by a program that is not here")
    said = refusal(file, tmp_path / "out")
    assert FLUX in said and "filter 32015" in said and "compression='gzip'" in said
    with h5py.File(file, "a") as h5:  # the remedy
        del h5[FLUX]
        h5.create_dataset(FLUX, data=content[1], compression="gzip")
    assert_holds(convert([file], tmp_path / "out"), *content)


def test_no_room_to_unpack_is_told_before(tmp_path, monkeypatch):
    wave, flux, error, params = values()
    file = build(tmp_path / "a.h5", wave, flux, error, params)
    packed(file, FLUX, flux)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 0))
        assert "no room" in refusal(file, tmp_path / "out")
    assert_holds(convert([file], tmp_path / "out"), wave, flux, error, params)


@pytest.mark.parametrize("library", [None, "blosc"])
def test_tables_of_the_other_byte_order_and_of_any_width(tmp_path, library):
    wave, flux, error, params = values()
    params = params.astype({"mag": "f4", "C_M": "f2"}).assign(count=np.arange(12))
    file = build(tmp_path / "a.h5", wave, flux, error, params)
    with h5py.File(file, "a") as h5:
        group, rows = h5[PARAMS], h5[f"{PARAMS}/table"][()]
        attributes = dict(group["table"].attrs)
        del group["table"]
        swapped = rows.astype(rows.dtype.newbyteorder(">"))
        if library is None:
            group["table"] = swapped
    if library:
        with tables.open_file(file, "a") as h5:
            h5.create_table(f"/{PARAMS}", "table", swapped, filters=tables.Filters(5, library))
    with h5py.File(file, "a") as h5:
        for name, value in attributes.items():
            h5[f"{PARAMS}/table"].attrs[name] = value
    assert_holds(convert([file], tmp_path / "out"), wave, flux, error, params)


@pytest.mark.parametrize("stored", ["str", "bytes", "array"])
def test_attributes_of_text_may_be_stored_in_any_way(tmp_path, stored):
    content = values()
    file = build(tmp_path / "a.h5", *content)
    kinds = {
        "str": lambda text: text,
        "bytes": np.bytes_,
        "array": lambda text: np.array([text.encode()]),
    }
    with h5py.File(file, "a") as h5:
        h5[PARAMS].attrs["pandas_type"] = kinds[stored]("frame_table")
        h5[FLUX].attrs["pandas_type"] = h5py.Empty("f4")  # nobody's table
        h5[f"{PARAMS}/table"].attrs["values_block_0_dtype"] = kinds[stored]("float64")
    if stored == "array":
        assert "dataset/params has pandas_type" in refusal(file, tmp_path / "out")
    else:
        assert_holds(convert([file], tmp_path / "out"), *content)


def test_one_name_for_two_columns_is_refused(tmp_path):
    wave, flux, error, params = values()
    file = build(tmp_path / "a.h5", wave, flux, error, params)
    twice = pd.concat([params, params[["mag"]].astype("f4")], axis=1)
    relabelled(file, twice)
    assert "'mag'" in refusal(file, tmp_path / "out")


# -- what is behind a dataset


def test_links_and_virtual_datasets_are_followed_and_belong_to_the_identity(tmp_path):
    wave, flux, error, params = values()
    file = build(tmp_path / "a.h5", wave, flux, error, params)
    with h5py.File(tmp_path / "deep.h5", "w") as h5:
        h5["flux"], h5["error"] = flux, error
    virtual(tmp_path / "between.h5", "flux", "deep.h5", "flux")
    virtual(file, FLUX, "between.h5", "flux")
    linked(file, ERROR, h5py.ExternalLink("deep.h5", "error"))
    shutil.copy(build(tmp_path / "labels.h5", wave, flux, error, params), tmp_path / "spare.h5")
    linked(file, PARAMS, h5py.ExternalLink("labels.h5", PARAMS))
    linked(file, "own/wave", wave)
    linked(file, WAVE, h5py.SoftLink("/own/wave"))
    assert_holds(convert([file], tmp_path / "out"), wave, flux, error, params)
    names = {Path(name).name for name in identity_of(file)["files"]}
    assert names == {"a.h5", "between.h5", "deep.h5", "labels.h5"}
    time = (tmp_path / "deep.h5").stat()
    with h5py.File(tmp_path / "deep.h5", "a") as h5:
        h5["flux"][...] = 2 * flux
    os.utime(
        tmp_path / "deep.h5", ns=(time.st_atime_ns, time.st_mtime_ns)
    )  # as rsync and tar leave it
    assert_holds(convert([file], tmp_path / "out"), wave, 2 * flux, error, params)
    relabelled(tmp_path / "labels.h5", params.assign(mag=3.0))
    assert_holds(convert([file], tmp_path / "out"), wave, 2 * flux, error, params.assign(mag=3.0))


def test_a_file_is_known_by_its_content(tmp_path):
    file = build(tmp_path / "a.h5", *values())
    inode = convert([file], tmp_path / "out") and (tmp_path / "out/flux.npy").stat().st_ino
    os.utime(file, (0, 0))
    convert([file], tmp_path / "out")
    assert (tmp_path / "out/flux.npy").stat().st_ino == inode


def a_source(folder: Path, rows: int = 12) -> None:
    with h5py.File(folder / "s.h5", "w") as h5:
        h5["x"] = values()[1][:rows]


VIRTUAL = {
    "its file is gone": (lambda folder: (folder / "s.h5").unlink(), ["s.h5", GONE]),
    "its dataset is gone": (
        lambda folder: h5py.File(folder / "s.h5", "w").close(),
        ["s.h5: x is missing"],
    ),
    "it has become smaller": (
        lambda folder: a_source(folder, 11),
        ["s.h5: x has shape (11, 10)", "takes from it"],
    ),
    "it is a text": (lambda folder: (folder / "s.h5").write_text("flux"), ["s.h5: is not HDF5"]),
    "PyTables has packed it": (
        lambda folder: packed(folder / "s.h5", "x", values()[1]),
        ["s.h5: x is compressed", "ptrepack --complib=zlib"],
    ),
}


@pytest.mark.parametrize("part", [np.s_[:], np.s_[0:12], np.s_[:, 0:10]])
@pytest.mark.parametrize("fault", VIRTUAL)
def test_virtual_values_that_are_not_there_are_refused(tmp_path, fault, part):
    content, file = values(), build(tmp_path / "a.h5", *values())
    a_source(tmp_path)
    virtual(file, FLUX, "s.h5", "x", part=part)
    spoil, words = VIRTUAL[fault]
    spoil(tmp_path)
    with pytest.raises(ValueError, match=str(tmp_path)) as caught:
        convert([file], tmp_path / "out")
    assert not [word for word in words if word not in str(caught.value)], caught.value
    if "ptrepack" in str(caught.value):  # the remedy
        command = str(caught.value).split("`")[1].replace("<new file>", str(tmp_path / "new.h5"))
        subprocess.run(
            [Path(sys.executable).with_name("ptrepack"), *command.split()[1:]], check=True
        )
        os.replace(tmp_path / "new.h5", tmp_path / "s.h5")
    else:
        a_source(tmp_path)
    assert_holds(convert([file], tmp_path / "out"), *content)


def test_virtual_values_without_a_source_are_refused(tmp_path):
    content, file = values(), build(tmp_path / "a.h5", *values())
    a_source(tmp_path)
    virtual(file, ERROR, "s.h5", "x", 9)
    assert f"{ERROR} has 90 of 120 values" in refusal(file, tmp_path / "out")
    virtual(file, ERROR, "s.h5", "x", part=np.s_[2:11])
    assert f"{ERROR} has 90 of 120 values" in refusal(file, tmp_path / "out")
    virtual(file, ERROR, "s.h5", "x")
    assert_holds(convert([file], tmp_path / "out"), content[0], content[1], content[1], content[3])


def test_a_virtual_dataset_without_end_is_refused_with_a_way_out(tmp_path):
    content, file = values(), build(tmp_path / "a.h5", *values())
    with h5py.File(tmp_path / "s.h5", "w") as h5:
        h5.create_dataset("x", data=content[1], maxshape=(None, 10))
    layout = h5py.VirtualLayout((12, 10), "f8", maxshape=(None, 10))
    endless = np.s_[: h5py.h5s.UNLIMITED]
    layout[endless] = h5py.VirtualSource("s.h5", "x", (12, 10), maxshape=(None, 10))[endless]
    with h5py.File(file, "a") as h5:
        del h5[FLUX]
        h5.create_virtual_dataset(FLUX, layout)
    said = refusal(file, tmp_path / "out")
    assert f"{FLUX} grows with its sources" in said
    with h5py.File(file, "a") as h5:
        exec(said.split("`")[1], {"h5": h5})
    assert_holds(convert([file], tmp_path / "out"), *content)


@pytest.mark.parametrize("target", [h5py.ExternalLink("gone.h5", "x"), h5py.SoftLink("/gone")])
@pytest.mark.parametrize("name", [WAVE, FLUX, ERROR, PARAMS])
def test_links_to_nowhere_are_refused(tmp_path, name, target):
    file = build(tmp_path / "a.h5", *values())
    linked(file, name, target)
    assert f"{name} is missing" in refusal(file, tmp_path / "out")


def test_values_in_raw_files_are_refused_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, file = values(), build(tmp_path / "a.h5", *values())
    with h5py.File(file, "a") as h5:
        del h5[FLUX]
        h5.create_dataset(FLUX, (12, 10), "f8", external=[("raw.bin", 0, h5py.h5f.UNLIMITED)])[
            ...
        ] = content[1]
    said = refusal(file, tmp_path / "out")
    assert "raw files" in said
    with h5py.File(file, "a") as h5:
        exec(said.split("`")[1], {"h5": h5})
    assert_holds(convert([file], tmp_path / "out"), *content)


# -- flux that was never written


@pytest.mark.parametrize(
    "how",
    [
        {"chunks": (2, 10)},
        {"chunks": (2, 10), "compression": "gzip"},
        {"chunks": (12, 5)},
        {"chunks": (5, 3)},
        {"chunks": (2, 10), "fillvalue": 1.0},
        {"chunks": (12, 10), "fillvalue": 1.0},
        {"chunks": (12, 10)},
    ],
)
@pytest.mark.parametrize("name", [FLUX, ERROR])
def test_rows_that_were_never_written_are_refused(tmp_path, how, name):
    wave, flux, error, params = values()
    file = build(tmp_path / "a.h5", wave, flux, error, params)
    whole = how["chunks"] == (12, 10)  # HDF5 has room for all of it, and fills the rest in
    if whole and name == ERROR and how.get("fillvalue"):
        pytest.skip("an error may be 1 in every pixel")
    with h5py.File(file, "a") as h5:
        array = h5.pop(name)[()]
        written = h5.create_dataset(name, array.shape, "f8", **how)
        written[:8, : 5 if how["chunks"] == (12, 5) else 10] = array[
            :8, : 5 if how["chunks"] == (12, 5) else 10
        ]
    said = refusal(file, tmp_path / "out")
    assert name in said and ("row 8" in said if whole else "never written in full" in said)
    with h5py.File(file, "a") as h5:
        h5[name][...] = array
    assert_holds(convert([file], tmp_path / "out"), wave, flux, error, params)


@pytest.mark.parametrize("value", [0.0, -1.0, -1e-30, 1e-60])
def test_a_dark_spectrum_is_refused(tmp_path, value):
    wave, flux, error, params = values()
    flux[7] = value
    file = build(tmp_path / "a.h5", wave, flux, error, params)
    assert f"{FLUX} is no star in row 7: its median S/N is 0" in refusal(file, tmp_path / "out")


def test_a_signal_to_noise_without_end_is_refused(tmp_path):
    wave, flux, error, params = values()
    error[2] = 1e-30
    file = build(tmp_path / "a.h5", wave, flux, error, params)
    assert "row 2: its median S/N is" in refusal(file, tmp_path / "out")


# -- labels


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("T_eff", 0),
        ("T_eff", -5000),
        ("T_eff", 1e7),
        ("log_g", -99),
        ("log_g", 999),
        ("M_H", -9.99),
        ("a_M", 1e3),
        ("C_M", -9999),
        ("mag", 99.99),
        ("mag", np.inf),
        ("redshift", -1),
        ("redshift", 1e4),
        ("snr", 0),
        ("snr", -3),
        ("snr", np.inf),
        ("snr", np.nan),
        ("weight", -1),
        ("weight", np.inf),
    ],
)
def test_labels_that_cannot_be_are_refused(tmp_path, name, value):
    wave, flux, error, params = values()
    params.loc[4, name] = value
    params[name] = params[name].fillna(1.0) if name == "weight" else params[name]
    file = build(tmp_path / "a.h5", wave, flux, error, params)
    said = refusal(file, tmp_path / "out")
    assert PARAMS in said and f"{name!r}, row 4" in said and f"{float(value)}" in said
    assert "[{:g}, {:g}]".format(*LIMITS[name]) in said


def test_labels_at_their_limits_are_accepted(tmp_path):
    wave, flux, error, params = values()
    for at in (0, 1):
        params = params.assign(**{name: limits[at] for name, limits in LIMITS.items()})
        file = build(tmp_path / f"{at}.h5", wave, flux, error, params)
        assert_holds(convert([file], tmp_path / "out"), wave, flux, error, params)
    file = build(tmp_path / "c.h5", wave, flux, error, params.assign(weight=np.nan))
    assert len(convert([file], tmp_path / "out")) == 12  # of a star it may be unknown
    file = build(tmp_path / "c.h5", wave, flux, error, params.assign(a_M=np.nan))
    with pytest.raises(ValueError, match="'a_M', row 0"):
        convert([file], tmp_path / "out")


def test_no_file_counts_twice(tmp_path):
    file = build(tmp_path / "train_1/dataset.h5", *values())
    for name in ("train_2", "val_1", "test_1"):
        build(tmp_path / name / "dataset.h5", *values())
    (tmp_path / "again.h5").symlink_to(file)
    with pytest.raises(ValueError, match="no file twice"):
        convert([file, tmp_path / "again.h5"], tmp_path / "out")
    with pytest.raises(ValueError, match=r"train and val = .*val_1"):
        splits(tmp_path, train="*_1", test="test_1")
    shutil.rmtree(tmp_path / "train_2")
    (tmp_path / "train_2").symlink_to(tmp_path / "test_1")
    with pytest.raises(ValueError, match="train and test"):
        splits(tmp_path)


# -- what is wrong with a file, and what to do


def test_a_file_that_another_program_writes_is_in_use(tmp_path):
    content, file = values(), build(tmp_path / "a.h5", *values())
    read = "import sys; from fieldbook.stars.spectra_hdf5 import convert; convert([sys.argv[1]], sys.argv[2])"
    command = [sys.executable, "-W", "ignore", "-c", read, str(file), str(tmp_path / "out")]
    with h5py.File(file, "a"):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode and f"{file}: is in use by another program (locked)" in done.stderr
        assert "damaged" not in done.stderr
        free = {**os.environ, "HDF5_USE_FILE_LOCKING": "FALSE"}  # one remedy
        subprocess.run([*command[:-1], str(tmp_path / "free")], check=True, env=free)
    subprocess.run(command, check=True)  # the other
    assert_holds(Spectra.open(tmp_path / "out"), *content)
    assert_holds(Spectra.open(tmp_path / "free"), *content)


def test_a_file_that_was_not_closed_is_not_called_damaged(tmp_path):
    with h5py.File(tmp_path / "open.h5", "w", libver="latest") as h5:
        h5[WAVE] = np.arange(3.0)
        h5.flush()
        shutil.copy(tmp_path / "open.h5", tmp_path / "killed.h5")
    assert "not closed" in refusal(tmp_path / "killed.h5", tmp_path / "out")


def test_what_is_not_hdf5_is_not_called_damaged(tmp_path):
    for content in (b"", b"flux,error\n1,2\n", bytes(4096), b"SIMPLE  =                    T"):
        (tmp_path / "a.h5").write_bytes(content)
        assert "is not HDF5" in refusal(tmp_path / "a.h5", tmp_path / "out")
    spectra_hdf5.write(tmp_path / "a.h5", *values())  # what it says is expected
    assert_holds(convert([tmp_path / "a.h5"], tmp_path / "out"), *values())


def test_a_disk_that_fails_is_not_the_files_fault(tmp_path, monkeypatch):
    file = build(tmp_path / "a.h5", *values())

    def fails(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(hdf5, "sources", fails)
    assert "cannot be read from the disk" in refusal(file, tmp_path / "out")


# -- where the result goes


def test_a_folder_behind_a_link_is_replaced_where_it_is(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "spectra")
    for seed in (0, 1):
        file = build(tmp_path / "a.h5", *values(seed=seed))
        assert_holds(convert([file], tmp_path / "out"), *values(seed=seed))
        assert (tmp_path / "out").is_symlink()
        assert sorted(p.name for p in (tmp_path / "disk").iterdir()) == [".spectra.lock", "spectra"]


def test_a_folder_of_other_things_is_not_replaced(tmp_path):
    file = build(tmp_path / "a.h5", *values())
    for name in ("notes.txt", "out/thesis.tex"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
        with pytest.raises(ValueError, match="replaced as a whole"):
            convert([file], tmp_path / name.split("/")[0])
        assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["flux.npy", "wave.npy", "params.parquet", "spectra.json"])
def test_an_emptied_side_file_is_made_again(tmp_path, name):
    file = build(tmp_path / "a.h5", *values())
    convert([file], tmp_path / "out")
    (tmp_path / "out" / name).write_bytes(b"")
    if name != "spectra.json":
        with pytest.raises(ValueError, match=r"out is damaged .*delete it and convert again"):
            Spectra.open(tmp_path / "out")
    assert_holds(convert([file], tmp_path / "out"), *values())
    shutil.rmtree(tmp_path / "out")  # the remedy
    convert([file], tmp_path / "out")
    assert_holds(Spectra.open(tmp_path / "out"), *values())


@pytest.mark.parametrize(
    ("code", "bad"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)]
)
def test_a_file_system_that_cannot_flush_folders_will_do(tmp_path, monkeypatch, code, bad):
    file, flush = build(tmp_path / "a.h5", *values()), os.fsync

    def fsync(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(code, os.strerror(code))
        flush(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    if bad:
        with pytest.raises(OSError, match=r"could not be written .*out"):
            convert([file], tmp_path / "out")
    else:
        assert_holds(convert([file], tmp_path / "out"), *values())
