"""Files built with plain h5py and pandas, by the description of the layout; faults by name; rows in
any order."""

import json
import os
import pickle
import resource
import signal
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fieldbook.nn.baselines import scores
from fieldbook.nn.recipe import indices
from fieldbook.nn.workers import each
from fieldbook.stars import spectra_hdf5
from fieldbook.stars.dataset import LabelNorm, Spectra
from fieldbook.stars.hdf5 import numbers
from fieldbook.stars.noise import SEED, fixed_noise, noisy, signal_to_noise
from fieldbook.stars.spectra_hdf5 import convert, splits, write

COLUMNS = [
    "snr",
    "mag",
    "log_g",
    "T_eff",
    "M_H",
    "redshift",
    "C_M",
    "a_M",
]  # in an order of their own
FLUX, ERROR, WAVE = (
    "dataset/arrays/flux/value",
    "dataset/arrays/error/value",
    "spectrumdataset/wave",
)


def values(n=12, pixels=10, seed=0):
    rng = np.random.default_rng(seed)
    wave = 7100.2136 + 0.4272461 * np.arange(pixels)
    params = pd.DataFrame(rng.uniform(1, 5, (n, len(COLUMNS))), columns=COLUMNS)
    return wave, rng.uniform(0.1, 1, (n, pixels)), rng.uniform(0.01, 0.1, (n, pixels)), params


def build(
    path: Path,
    wave,
    flux,
    error,
    params,
    *,
    dtype="<f8",
    key="dataset/params",
    table="table",
    **layout,
) -> Path:
    """The source's layout, with nothing of the library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset(WAVE, data=wave)
        file.create_dataset(FLUX, data=flux.astype(dtype), **layout)
        file.create_dataset(ERROR, data=error.astype(dtype), **layout)
    params.to_hdf(path, key=key, format=table, mode="a")
    return path


def assert_holds(spectra: Spectra, wave, flux, error, params, rtol=1e-6):
    np.testing.assert_allclose(spectra.wave, wave)
    np.testing.assert_allclose(spectra.flux, flux, rtol=rtol)
    np.testing.assert_allclose(spectra.error, error, rtol=rtol)
    for name in params:
        np.testing.assert_allclose(spectra.params[name], params[name])


LAYOUTS = {
    "plain": {},
    "float32": {"dtype": "<f4"},
    "big-endian": {"dtype": ">f8"},
    "chunked": {"chunks": (5, 3)},
    "gzip": {"chunks": (5, 10), "compression": "gzip", "shuffle": True},
    "another key": {"key": "stars/labels"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_loads(tmp_path, layout):
    content = values()
    file = build(tmp_path / "in" / "dataset.h5", *content, **LAYOUTS[layout])
    assert_holds(convert([file], tmp_path / "out"), *content)


def test_extra_groups_are_ignored(tmp_path):
    content = values()
    file = build(tmp_path / "dataset.h5", *content)
    with h5py.File(file, "a") as h5:
        h5["dataset/arrays/mask/value"] = np.zeros((12, 10), int)
        h5["dataset/arrays/flux/unit"] = "erg"
        h5["notes/more"] = np.arange(3)
    assert_holds(convert([file], tmp_path / "out"), *content)


def test_a_further_table_does_not_hide_the_one_at_the_usual_key(tmp_path):
    content = values()
    file = build(tmp_path / "dataset.h5", *content)
    pd.DataFrame({"log_g": [0.0]}).to_hdf(file, key="other", format="table", mode="a")
    assert_holds(convert([file], tmp_path / "out"), *content)


@pytest.mark.parametrize("data_columns", [None, True, ["M_H", "count"]])
def test_columns_of_any_numbers_load(tmp_path, data_columns):
    wave, flux, error, params = values()
    params = params.astype({"mag": "f4", "C_M": "f2", "redshift": ">f8"}).assign(
        count=np.arange(12) - 2**60,
        small=np.arange(12, dtype="u1"),
        flag=np.arange(12) % 2 == 0,
        name="a star",
    )
    file = build(tmp_path / "a.h5", wave, flux, error, params.drop(columns="name"))
    params.set_index("name").to_hdf(
        file, key="dataset/params", format="table", data_columns=data_columns, mode="r+"
    )
    with h5py.File(file) as h5:
        read = numbers(h5["dataset/params"])
    assert set(read) == set(params) - {"name"}
    for name in read:
        np.testing.assert_array_equal(read[name], params[name])
    assert read["count"].dtype == "i8"
    assert_holds(convert([file], tmp_path / "out"), wave, flux, error, params.drop(columns="name"))


def test_names_of_columns_may_be_numbers(tmp_path):
    params = pd.DataFrame(np.arange(6.0).reshape(3, 2), columns=[5, -7])
    params.to_hdf(tmp_path / "a.h5", key="params", format="table")
    with h5py.File(tmp_path / "a.h5") as h5:
        pd.testing.assert_frame_equal(numbers(h5["params"]), params)


class Malice:
    """Unpickled, it leaves a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_in_a_file_is_not_run(tmp_path, protocol):
    marker = tmp_path / "marker"
    malice = pickle.dumps([Malice(marker)], protocol)
    file = build(tmp_path / "bad.h5", *values())
    names(malice)(file)
    with pytest.raises(
        ValueError, match=r"bad\.h5: dataset/params .*values_block_0_kind of table .*posix\.mkdir"
    ):
        convert([file], tmp_path / "out")
    content, harmless = values(), build(tmp_path / "attributes.h5", *values())
    for attribute in (
        "info",
        "non_index_axes",
        "values_cols",
        "index_cols",
        "data_columns",
        "levels",
        "anything",
    ):
        names(malice, "", attribute)(harmless)
    for attribute in ("index_kind", "values_block_0_meta", "anything"):
        names(malice, attribute=attribute)(harmless)
    assert_holds(convert([harmless], tmp_path / "out"), *content)
    assert not marker.exists()
    pickle.loads(malice)
    assert marker.exists()


def test_shards_are_joined_in_their_order(tmp_path):
    parts = [values(n, seed=n) for n in (5, 1, 7)]
    files = [build(tmp_path / f"train_{k}" / "dataset.h5", *part) for k, part in enumerate(parts)]
    wave, flux, error, params = zip(*parts, strict=True)
    expected = wave[0], np.vstack(flux), np.vstack(error), pd.concat(params, ignore_index=True)
    assert_holds(convert(files, tmp_path / "out"), *expected)


def test_what_we_write_reads_with_h5py_and_pandas(tmp_path):
    wave, flux, error, params = values()
    write(tmp_path / "dataset.h5", wave, flux, error, params)
    with h5py.File(tmp_path / "dataset.h5") as h5:
        assert (
            np.array_equal(h5[WAVE], wave)
            and np.array_equal(h5[FLUX], flux)
            and np.array_equal(h5[ERROR], error)
        )
    pd.testing.assert_frame_equal(
        pd.read_hdf(tmp_path / "dataset.h5"), params
    )  # without a key, as the source does
    with pd.HDFStore(tmp_path / "dataset.h5", "r") as store:
        assert store.get_storer("dataset/params").is_table
    assert_holds(convert([tmp_path / "dataset.h5"], tmp_path / "out"), wave, flux, error, params)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.lock", "dataset.h5", "out"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    content, path = values(n=400, pixels=40), tmp_path / "dataset.h5"
    write(path, *values())
    before, limit = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (
        50_000,
        260_000,
        len(before),
    ):  # in the arrays, at their end or in the table, in neither
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
        try:
            with pytest.raises(OSError, match=r"dataset\.h5"):
                write(path, *content)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_folder(tmp_path):
    convert([build(tmp_path / "a.h5", *values())], tmp_path / "out")
    big, limit = (
        build(tmp_path / "b.h5", *values(n=400, pixels=40)),
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limit[1]))
    try:
        with pytest.raises(OSError, match="out"):
            convert([big], tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert_holds(Spectra.open(tmp_path / "out"), *values())


def test_negative_flux_is_clipped_and_a_missing_snr_is_computed(tmp_path):
    wave, flux, error, params = values()
    flux[3, 4] = -0.5
    spectra = convert(
        [build(tmp_path / "a.h5", wave, flux, error, params.drop(columns="snr"))], tmp_path / "out"
    )
    assert spectra.flux.min() == 0
    expected = [np.median(np.maximum(f, 0) / e) for f, e in zip(flux, error, strict=True)]
    np.testing.assert_allclose(spectra.params["snr"], expected, rtol=1e-6)


def replaced(name, change):
    def fault(file: Path) -> None:
        with h5py.File(file, "a") as h5:
            array = h5[name][()]
            del h5[name]
            new = change(array)
            if new is not None:
                h5[name] = new

    return fault


def entry(row, pixel, value):
    def change(array):
        array[row, pixel] = value
        return array

    return change


def table(change, key="dataset/params"):
    def fault(file: Path) -> None:
        params = change(pd.read_hdf(file, key="dataset/params"))
        with h5py.File(file, "a") as h5:
            del h5["dataset/params"]
        if params is not None:
            params.to_hdf(file, key=key, format="table", mode="a")

    return fault


def empty_table(file: Path) -> None:
    with pd.HDFStore(file, "a") as store:
        store.remove("dataset/params", where="index >= 0")


def two_tables(file: Path) -> None:
    table(lambda t: t, "one")(file)
    pd.read_hdf(file, key="one").to_hdf(file, key="two", format="table", mode="a")


def fixed_table(file: Path) -> None:
    pd.read_hdf(file, key="dataset/params").to_hdf(
        file, key="dataset/params", format="fixed", mode="a"
    )


def names(pickled: bytes, group: str = "/table", attribute: str = "values_block_0_kind"):
    def fault(file: Path) -> None:
        with h5py.File(file, "a") as h5:
            h5["dataset/params" + group].attrs[attribute] = np.bytes_(pickled)

    return fault


def spoilt_chunk(file: Path) -> None:
    with h5py.File(file, "a") as h5:
        array = h5[FLUX][()]
        del h5[FLUX]
        start = (
            h5.create_dataset(FLUX, data=array, chunks=(12, 10), compression="gzip")
            .id.get_chunk_info(0)
            .byte_offset
        )
    with open(file, "r+b") as raw:
        raw.seek(start + 20)
        raw.write(bytes(40))


PARAMS = "dataset/params"
FAULTS = {
    "no flux": (replaced(FLUX, lambda a: None), [FLUX, "missing"]),
    "no error": (replaced(ERROR, lambda a: None), [ERROR, "missing"]),
    "no wave": (replaced(WAVE, lambda a: None), [WAVE, "missing"]),
    "no table": (table(lambda t: None), [PARAMS, "missing"]),
    "a group for a dataset": (
        lambda f: (
            replaced(FLUX, lambda a: None)(f),
            h5py.File(f, "a").create_group(FLUX).file.close(),
        ),
        [FLUX, "dataset"],
    ),
    "complex flux": (replaced(FLUX, lambda a: a + 0j), [FLUX, "complex"]),
    "flux too short": (replaced(FLUX, lambda a: a[:, :9]), [FLUX, r"\(12, 9\)", r"\(n, 10\)"]),
    "flux of one axis": (replaced(FLUX, lambda a: a[0]), [FLUX, r"\(10,\)"]),
    "no spectra": (replaced(FLUX, lambda a: a[:0]), [FLUX, r"\(0, 10\)"]),
    "error too short": (replaced(ERROR, lambda a: a[:11]), [ERROR, r"\(11, 10\)", r"\(12, 10\)"]),
    "wave falls": (replaced(WAVE, lambda a: a[::-1]), [WAVE, "rising"]),
    "NaN in wave": (replaced(WAVE, lambda a: np.where(a == a[3], np.nan, a)), [WAVE, "rising"]),
    "NaN in flux": (replaced(FLUX, entry(7, 4, np.nan)), [FLUX, "row 7, pixel 4", "nan"]),
    "infinite flux": (replaced(FLUX, entry(11, 9, -np.inf)), [FLUX, "row 11, pixel 9", "inf"]),
    "flux beyond float32": (replaced(FLUX, entry(2, 0, 1e300)), [FLUX, "row 2, pixel 0"]),
    "error of zero": (replaced(ERROR, entry(8, 1, 0)), [ERROR, "row 8, pixel 1", "above 0"]),
    "negative error": (replaced(ERROR, entry(0, 0, -1)), [ERROR, "row 0, pixel 0"]),
    "NaN in error": (replaced(ERROR, entry(5, 2, np.nan)), [ERROR, "row 5, pixel 2"]),
    "no log_g": (table(lambda t: t.drop(columns="log_g")), [PARAMS, "log_g", "there: snr, mag"]),
    "NaN in a label": (
        table(lambda t: t.replace({"M_H": {t["M_H"][6]: np.nan}})),
        [PARAMS, "M_H", "row 6"],
    ),
    "words for a label": (
        table(lambda t: t.assign(mag=["bright"] * 12)),
        [PARAMS, "'mag' of numbers"],
    ),
    "classes for a label": (
        table(lambda t: t.assign(mag=t["mag"].astype("category"))),
        [PARAMS, "'mag' of numbers"],
    ),
    "dates for a label": (
        table(lambda t: t.assign(mag=pd.to_datetime(t["mag"]))),
        [PARAMS, "'mag' of numbers"],
    ),
    "a fixed table": (fixed_table, [PARAMS, "'frame'", "format='table'"]),
    "empty table": (empty_table, [PARAMS, "0 rows"]),
    "more rows than spectra": (table(lambda t: pd.concat([t, t])), [PARAMS, "24 rows", "12"]),
    "fewer rows than spectra": (table(lambda t: t[:5]), [PARAMS, "5 rows", "12"]),
    "two tables": (two_tables, [PARAMS, "one, two"]),
    "a series": (table(lambda t: t["log_g"]), [PARAMS, "series_table", "columns"]),
    "names without end": (
        names(pickle.dumps(["mag"], 0)[:-1]),
        [PARAMS, "values_block_0_kind", "list of names"],
    ),
    "too few names": (
        names(pickle.dumps(["mag"], 0)),
        [PARAMS, "values_block_0_kind", "list of 8 names"],
    ),
    "no names": (
        names(pickle.dumps([["mag"]] * 8, 0)),
        [PARAMS, "values_block_0_kind", "list of 8 names"],
    ),
    "not HDF5": (lambda f: f.write_text("flux, error\n"), ["not HDF5"]),
    "empty file": (lambda f: f.write_bytes(b""), ["not HDF5"]),
    "truncated": (lambda f: os.truncate(f, f.stat().st_size - 100), ["damaged"]),
    "cut in half": (lambda f: os.truncate(f, f.stat().st_size // 2), ["damaged"]),
    "spoilt chunk": (spoilt_chunk, [FLUX, "damaged"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_and_leave_the_good_folder(tmp_path, fault):
    spoil, words = FAULTS[fault]
    convert([build(tmp_path / "good.h5", *values())], tmp_path / "out")
    bad = build(tmp_path / "bad.h5", *values(seed=1))
    spoil(bad)
    with pytest.raises(ValueError, match=r"bad\.h5") as caught:
        convert([build(tmp_path / "first.h5", *values(seed=2)), bad], tmp_path / "out")
    for word in words:
        assert caught.match(word)
    assert_holds(Spectra.open(tmp_path / "out"), *values())
    assert not list(tmp_path.glob(".out*.tmp"))


def test_shards_of_different_grids_are_refused(tmp_path):
    wave, *rest = values()
    one = build(tmp_path / "one.h5", wave, *rest)
    for other in (wave + 0.01, wave[:9]):
        flux, error, params = rest[0][:, : len(other)], rest[1][:, : len(other)], rest[2]
        two = build(tmp_path / "two.h5", other, flux, error, params)
        with pytest.raises(
            ValueError, match=r"two\.h5: spectrumdataset/wave differs from that of .*one\.h5"
        ):
            convert([one, two], tmp_path / "out")
    rounded = build(tmp_path / "rounded.h5", wave.astype("f4"), *rest)  # the same grid, in float32
    assert len(convert([one, rounded], tmp_path / "out")) == 24


def test_missing_and_unreadable_files(tmp_path):
    for path in (tmp_path / "none.h5", tmp_path):
        with pytest.raises(FileNotFoundError, match=str(path)):
            convert([path], tmp_path / "out")
    with pytest.raises(ValueError, match="files"):
        convert([], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="out"):
        Spectra.open(tmp_path / "out")
    locked = build(tmp_path / "locked.h5", *values())
    locked.chmod(0)
    if not os.access(locked, os.R_OK):  # root may read all
        with pytest.raises(PermissionError, match=r"locked\.h5"):
            convert([locked], tmp_path / "out")


@pytest.mark.parametrize("name", ["flux.npy", "error.npy", "wave.npy", "params.parquet"])
def test_a_damaged_folder_is_named(tmp_path, name):
    convert([build(tmp_path / "a.h5", *values())], tmp_path / "out")
    os.truncate(tmp_path / "out" / name, 150)
    with pytest.raises(ValueError, match=r"out is damaged .*delete it"):
        Spectra.open(tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        Spectra.open(tmp_path / "out")


def test_conversion_is_done_once_until_a_file_changes(tmp_path):
    file, out = build(tmp_path / "a.h5", *values()), tmp_path / "out"
    inode = [convert([file], out) and (out / "flux.npy").stat().st_ino for _ in range(2)]
    assert inode[0] == inode[1]
    kept = Spectra.open(out)
    build(file, *values(seed=9))
    assert_holds(convert([file], out), *values(seed=9))
    assert_holds(kept, *values())  # whoever has the old one open keeps it
    assert np.array_equal(kept.rows([3])[0], kept.flux[[3]])
    file.unlink()
    assert_holds(Spectra.open(out), *values(seed=9))
    with pytest.raises(FileNotFoundError, match=r"a\.h5"):
        convert([file], out)


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        ("fieldbook.stars.spectra_hdf5", "signal_to_noise", 2),
        ("fieldbook.stars.spectra_hdf5", "_fsync", 3),
        ("os", "rename", 1),
        ("os", "rename", 2),
        ("shutil", "rmtree", 1),
    ],
)
def test_a_killed_conversion_leaves_nothing_wrong(tmp_path, monkeypatch, module, name, call):
    out, monkeypatched = tmp_path / "out", []
    convert([build(tmp_path / "old.h5", *values())], out)
    new = build(tmp_path / "new.h5", *values(seed=3))
    if (child := os.fork()) == 0:
        module = __import__(module, fromlist=[""])
        original = getattr(module, name)

        def deadly(*args, **kwargs):
            monkeypatched.append(name)
            if len(monkeypatched) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(module, name, deadly)
        spectra_hdf5.BUFFER = 200  # so that there are several blocks
        convert([new], out)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    if out.exists():
        identity = json.loads((out / "spectra.json").read_text())["files"][0]["path"]
        assert_holds(Spectra.open(out), *values(seed=3 if identity == str(new) else 0))
    else:
        assert (name, call) == ("rename", 2)  # the moment between two names
    assert_holds(convert([new], out), *values(seed=3))
    build(new, *values(seed=4))
    assert_holds(convert([new], out), *values(seed=4))
    assert not list(tmp_path.glob(".out*.tmp"))


def _convert_and_count(file, out):
    made, original = [], spectra_hdf5._replace
    spectra_hdf5._replace = lambda *args: (made.append(1), original(*args))
    return convert([file], out).flux.sum(), len(made)


def test_processes_share_one_conversion(tmp_path):
    file = build(tmp_path / "a.h5", *values(n=200, pixels=300))
    pipes, children = [], []
    for _ in range(3):
        read, send = os.pipe()
        pipes.append(read)
        if (child := os.fork()) == 0:
            os.write(send, pickle.dumps(_convert_and_count(file, tmp_path / "out")))
            os._exit(0)
        children.append(child)
    sums, made = zip(*(pickle.loads(os.read(pipe, 4096)) for pipe in pipes), strict=True)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    assert sum(made) == 1 and len(set(sums)) == 1


def test_memory_stays_constant(tmp_path, monkeypatch):
    monkeypatch.setattr(spectra_hdf5, "BUFFER", 2**16)
    peaks = []
    for n in (500, 2000):  # 1 and 4 MB in float32
        file = build(
            tmp_path / f"{n}.h5",
            *values(n, 256),
            chunks=(64, 256),
            compression="gzip",
            compression_opts=1,
        )
        tracemalloc.start()
        convert([file], tmp_path / f"out{n}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2**21, peaks  # the buffers, and the table
    assert peaks[1] - peaks[0] < 1500 * 300


@settings(
    deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_type_chunks_and_shapes(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    pixels, n_files = data.draw(st.integers(1, 33)), data.draw(st.integers(1, 3))
    files, parts = [], []
    for k in range(n_files):
        n = data.draw(st.integers(1, 40))
        chunks = data.draw(st.none() | st.tuples(st.integers(1, n), st.integers(1, pixels)))
        compression = data.draw(st.sampled_from([None, "gzip", "lzf"])) if chunks else None
        dtype = data.draw(st.sampled_from(["<f4", ">f4", "<f8", ">f8", "<f2", ">i4", "u1"]))
        wave, flux, error, params = values(n, pixels, seed=k)
        flux, error = (np.ceil(a * 100).astype(dtype) for a in (flux, error))
        parts.append((flux, error, params))
        files.append(
            build(
                folder / f"{k}.h5",
                wave,
                flux,
                error,
                params,
                dtype=dtype,
                chunks=chunks,
                compression=compression,
            )
        )
    spectra_hdf5.BUFFER, usual = data.draw(st.integers(1, 4000)), spectra_hdf5.BUFFER
    try:
        spectra = convert(files, folder / "out")
    finally:
        spectra_hdf5.BUFFER = usual
    flux, error, params = zip(*parts, strict=True)
    assert_holds(spectra, wave, np.vstack(flux), np.vstack(error), pd.concat(params), rtol=0)
    index = data.draw(st.lists(st.integers(0, len(spectra) - 1), min_size=1, max_size=50))
    block = Spectra.open(folder / "out")
    for got, whole in zip(block.rows(index), (spectra.flux, spectra.error), strict=True):
        assert np.array_equal(got, whole[index]) and got.shape == (len(index), pixels)


def test_splits_are_found_in_natural_order(tmp_path):
    for name in ["val_1k", "test_10k", *(f"train_200k_{k}" for k in range(11))]:
        build(tmp_path / name / "dataset.h5", *values(n=1))
    found = splits(tmp_path)
    assert [path.parent.name for path in found["train"]] == [f"train_200k_{k}" for k in range(11)]
    assert [path.parent.name for path in found["val"] + found["test"]] == ["val_1k", "test_10k"]
    assert len(splits(tmp_path, train="train_200k_3")["train"]) == 1
    with pytest.raises(FileNotFoundError, match=r"validation\*/dataset\.h5 in .*test_10k"):
        splits(tmp_path, val="validation*")
    build(tmp_path / "val_2k" / "dataset.h5", *values(n=1))
    with pytest.raises(ValueError, match=r"val_1k.*val_2k"):
        splits(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        splits(tmp_path / "nowhere")


@pytest.fixture
def stored(tmp_path):
    """120 spectra of 16 pixels on disk, and the same in memory."""
    wave, flux, error, params = values(120, 16)
    convert([build(tmp_path / "a.h5", wave, flux, error, params)], tmp_path / "out")
    return Spectra.open(tmp_path / "out"), Spectra(
        wave, flux.astype("f4"), error.astype("f4"), params
    )


def assert_same(rows, spectra, index):
    for got, whole in zip(rows, (spectra.flux, spectra.error), strict=True):
        assert got.dtype == torch.float32 and np.array_equal(
            got, np.asarray(whole)[np.asarray(index)]
        )


@pytest.mark.parametrize("block", [None, 16, 48])
def test_rows_in_any_order_are_those_of_the_arrays(stored, block):
    for spectra in stored:
        for step in range(40):
            index = indices(120, 7, step, seed=0, block=block)
            assert_same(spectra.rows(index), stored[1], index)
        for index in (
            torch.empty(0, dtype=int),
            [5],
            np.array([119, 0, 0, 119]),
            torch.arange(120),
            np.arange(120)[::-1],
        ):
            assert_same(spectra.rows(index), stored[1], index)


def test_rows_that_are_not_there_are_refused(stored):
    for spectra in stored:
        for index in ([1.0], 5, [True, False]):
            with pytest.raises(ValueError, match="integers"):
                spectra.rows(index)
        for index in ([120], [3, -1]):
            with pytest.raises(IndexError, match="120"):
                spectra.rows(index)


def _mapped_rows(spectra: Spectra) -> tuple[str, Spectra]:
    return spectra.flux.filename, spectra.rows([0, 39, 7])


def test_parts_share_the_file_in_workers_too(stored):
    spectra, memory = stored
    part = spectra[10:70][20:]
    assert len(part) == 40 and isinstance(part.flux, np.memmap) and len(spectra[:5]) == 5
    for file, rows in each(_mapped_rows, [(part,), (part,)], workers=2):
        assert file == part.flux.filename
        assert_same(rows, memory, [30, 69, 37])
    for one in (part, pickle.loads(pickle.dumps(part))):
        assert_same(one.rows([0, 39, 7]), memory, [30, 69, 37])
        assert list(one.params["log_g"]) == list(memory.params["log_g"][30:70])
    with pytest.raises(ValueError, match="slice"):
        spectra[::2]


def test_forked_processes_read_from_the_same_handles(stored):
    spectra, memory = stored
    spectra.rows([4])
    if (child := os.fork()) == 0:
        os._exit(
            0 if torch.equal(spectra.rows([4, 1])[0], torch.from_numpy(memory.flux[[4, 1]])) else 1
        )
    assert os.waitpid(child, 0)[1] == 0
    assert_same(spectra.rows([4, 1]), memory, [4, 1])


def test_a_file_cut_short_under_way_is_an_error(stored):
    os.truncate(stored[0].flux.filename, 4000)
    with pytest.raises(OSError, match="ends"):
        stored[0].rows([100])


@pytest.mark.parametrize("wrong", ["flux", "error", "params", "wave"])
def test_arrays_that_do_not_belong_together(wrong):
    content = dict(zip(("wave", "flux", "error", "params"), values(), strict=True))
    content[wrong] = content[wrong][:-1]
    with pytest.raises(ValueError, match=r"flux|error"):
        Spectra(**content)


def test_noise_has_the_spread_of_the_error():
    flux, error = torch.full((400, 50), 3.0), torch.linspace(0.1, 2, 50).expand(400, 50)
    noise = noisy(flux, error, 0.5, torch.Generator().manual_seed(1)) - flux
    assert (
        abs(float((noise / (0.5 * error)).std()) - 1) < 0.02
        and abs(float((noise / error).mean())) < 0.02
    )
    assert torch.allclose(noise.std(0), 0.5 * error[0], rtol=0.2)
    again = noisy(flux, error, 0.5, torch.Generator().manual_seed(1)) - flux
    assert torch.equal(noise, again)
    assert torch.equal(noisy(flux, error, 0.0, torch.Generator()), flux)
    assert noisy(flux.bfloat16(), error, 1, torch.Generator()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="noise_level"):
        noisy(flux, error, -1, torch.Generator())


def test_fixed_noise_belongs_to_the_row(stored):
    rng = np.random.default_rng(0)
    wave, flux = np.arange(8.0), rng.uniform(size=(700, 8)).astype("f4")
    spectra = Spectra(wave, flux, np.full_like(flux, 0.1), pd.DataFrame(index=range(700)))
    whole, flux = fixed_noise(spectra, 1.0, SEED), torch.from_numpy(flux)
    assert abs(float((whole - flux).std()) - 0.1) < 0.005
    for n in (1, 100, 256, 300):
        assert torch.equal(fixed_noise(spectra[:n], 1.0, SEED), whole[:n])
    assert not torch.equal(fixed_noise(spectra, 1.0, seed=1), whole)
    assert torch.allclose(fixed_noise(spectra, 2.0, SEED) - flux, 2 * (whole - flux), atol=1e-6)
    assert torch.equal(fixed_noise(spectra, 0.0, SEED), flux)
    assert torch.equal(
        fixed_noise(stored[0], 1.0, SEED), fixed_noise(stored[1], 1.0, SEED)
    )  # on disk and in memory


def test_signal_to_noise_by_hand():
    assert signal_to_noise(
        np.array([[1.0, 2, 3], [4, 4, 4]]), np.array([[1.0, 1, 1], [2, 1, 4]])
    ).tolist() == [2, 2]


@pytest.mark.parametrize("kind", ["standard", "minmax"])
def test_label_norms_leave_r2_and_scale_the_mae(kind):
    rng = np.random.default_rng(0)
    train, truth = rng.uniform(1, 5, 500), rng.uniform(1, 5, 200)
    norm = LabelNorm.fit(train, kind)
    normed = norm.transform(train)
    if kind == "standard":
        assert normed.mean() == pytest.approx(0, abs=1e-12) and normed.std(ddof=1) == pytest.approx(
            1
        )
    else:
        assert (normed.min(), normed.max()) == (0, 1)
    guess = truth + rng.normal(size=200)
    raw, scaled = scores(truth, guess), scores(norm.transform(truth), norm.transform(guess))
    assert scaled["r2"] == pytest.approx(raw["r2"], abs=1e-6)
    assert scaled["mae"] * norm.scale == pytest.approx(raw["mae"]) and scaled[
        "mae"
    ] != pytest.approx(raw["mae"])
    np.testing.assert_allclose(norm.inverse(norm.transform(truth)), truth)
    assert torch.allclose(norm.transform(torch.tensor(truth)), torch.tensor(norm.transform(truth)))


@pytest.mark.parametrize("labels", [[], [2.0], [2.0, 2.0], [1.0, np.nan], [1.0, np.inf]])
def test_label_norm_refuses_what_has_no_scale(labels):
    for kind in ("standard", "minmax"):
        with pytest.raises(ValueError, match="train"):
            LabelNorm.fit(np.array(labels), kind)


def test_label_norm_names_an_unknown_kind():
    with pytest.raises(ValueError, match="standard or minmax"):
        LabelNorm.fit(np.arange(3.0), "robust")
