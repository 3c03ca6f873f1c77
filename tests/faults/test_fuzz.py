"""Whatever a parameter file or an HDF5 file holds, it is read rightly or refused by name; no code
in it is run."""

import contextlib
import faulthandler
import multiprocessing
import os
import resource
from functools import cache
from pathlib import Path
from unittest.mock import patch

import h5py
import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_malformed import notebook

from fieldbook.run import parameters
from fieldbook.stars.spectra_hdf5 import ERROR, FLUX, PARAMS, REQUIRED, WAVE, convert, write

PROCESSES = multiprocessing.get_context("forkserver")
FUZZ = settings(
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# -- parameter files

SPECIFICATION = cache(parameters.specification)  # to read the notebook once
PIECES = [
    "p",
    "lr",
    "seeds",
    ": ",
    "\n",
    "- ",
    "  ",
    "[",
    "]",
    "{",
    "}",
    ",",
    "&a ",
    "*a",
    "!!int ",
    "!!float ",
    "!!bool ",
    "!!timestamp ",
    "!!binary ",
    "!!set ",
    "!!omap ",
    "!!python/object/apply:os.mkdir [exploded]",
    "!x ",
    '"',
    "'",
    "|",
    ">",
    "? ",
    "<<",
    "\t",
    "#",
    "%YAML 9.9",
    "---",
    "...",
    "1e999",
    "-.inf",
    ".nan",
    "0x",
    "0b2",
    "1:99:99",
    "~",
    "=",
    "2024-13-45",
    "97",
    "1e-4",
    "[1]",
    "ü",
    "\u2028",
    "\x00",
    "\\ud800",
    "yes",
    5000 * "9",
]
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.dates()
    | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["p", "lr", "seeds"]) | st.text() | st.integers() | st.none()
files = (
    st.dictionaries(names, values, max_size=4).map(lambda tree: yaml.safe_dump(tree).encode())
    | st.lists(st.sampled_from(PIECES), max_size=12).map(lambda parts: "".join(parts).encode())
    | st.binary(max_size=40)
)


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Path:
    return notebook(tmp_path_factory.mktemp("book"))


@settings(FUZZ, max_examples=400)
@given(files)
def test_any_parameter_file_is_valid_or_refused_by_name(book, tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "any.yaml").write_bytes(text)
    with patch.object(parameters, "specification", SPECIFICATION):
        try:
            accepted = parameters.check_file(book, tmp_path / "any.yaml")
        except ValueError as error:
            assert str(tmp_path / "any.yaml") in str(error) and len(str(error)) < 10_000
        else:
            assert 5 <= accepted["p"] <= 499 and 0 < accepted["lr"] < np.inf
            assert accepted["seeds"] and all(type(seed) is int for seed in accepted["seeds"])
    assert not (tmp_path / "exploded").exists()


# -- HDF5 files


def spectra(file: Path) -> None:
    rng = np.random.default_rng(0)
    params = pd.DataFrame(rng.uniform(1, 5, (6, 7)), columns=list(REQUIRED))
    write(file, 7100 + 0.4 * np.arange(8), *rng.uniform(0.1, 1, (2, 6, 8)), params)


def read(file: Path) -> None:
    """Convert a file; what comes back must be spectra, or an error that names the file."""
    try:
        found = convert([file], file.parent / "out")
    except (ValueError, OSError) as error:
        assert str(file) in str(error), error
    else:
        assert found.flux.shape == found.error.shape == (len(found.params), len(found.wave))
        assert np.isfinite(found.flux).all() and (found.flux >= 0).all() and (found.error > 0).all()
        assert np.isfinite(found.params[list(REQUIRED)].to_numpy(float)).all()


changes = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "insert"]),
        st.floats(0, 1),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=6,
)


def spoil_bytes(folder: Path) -> None:
    spectra(folder / "good.h5")
    good = (folder / "good.h5").read_bytes()
    parts = [good.index(mark) for mark in (b"TREE", b"HEAP", b"SNOD") if mark in good]

    @settings(FUZZ, max_examples=150)
    @given(changes, st.sampled_from([0, *parts]), st.sampled_from([200, 2000, len(good)]))
    def fuzz(edits, start, width):
        data = bytearray(good)
        for kind, place, piece in edits:
            at = min(start + int(place * width), len(data))
            data[at : at + (0 if kind == "insert" else len(piece))] = (
                b"" if kind == "cut" else piece
            )
        (folder / "any.h5").write_bytes(data)
        read(folder / "any.h5")

    fuzz()


kinds = st.sampled_from(["<f4", ">f8", "<f2", "i1", ">u8", "?", "S3", "<c8"])
arrays = st.tuples(
    kinds,
    st.lists(st.sampled_from([0, 1, 6, 8]), max_size=3),
    st.sampled_from([0.0, 1.0, -1.0, 7100.0, np.nan]),
)


def any_structure(folder: Path) -> None:
    spectra(folder / "good.h5")

    @settings(FUZZ, max_examples=100)
    @given(
        st.dictionaries(
            st.sampled_from([WAVE, FLUX, ERROR, PARAMS, f"{PARAMS}/table", "dataset"]),
            arrays | st.none(),
        )
    )
    def fuzz(tree):
        (folder / "any.h5").write_bytes((folder / "good.h5").read_bytes())
        with h5py.File(folder / "any.h5", "a") as h5:
            for name, array in tree.items():
                with contextlib.suppress(KeyError, ValueError, TypeError):  # its folder has gone
                    del h5[name]
                with contextlib.suppress(ValueError, OSError), np.errstate(invalid="ignore"):
                    h5[name] = (
                        h5py.Empty("f4")
                        if array is None
                        else np.full(array[1], array[2]).astype(array[0])
                    )
        read(folder / "any.h5")

    fuzz()


def alone(fuzz, folder: Path) -> None:
    faulthandler.enable(open(folder / "crash", "w"))  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
    os.dup2(os.open(folder / "log", os.O_WRONLY | os.O_CREAT), 2)
    fuzz(folder)


@pytest.mark.parametrize("fuzz", [spoil_bytes, any_structure])
def test_any_hdf5_file_is_read_or_refused_by_name(tmp_path, fuzz):
    process = PROCESSES.Process(target=alone, args=(fuzz, tmp_path))  # libhdf5 might end it
    process.start()
    process.join(timeout=300)
    hangs = process.is_alive()
    process.kill()
    process.join()
    log = (tmp_path / "log").read_text()[-3000:] + (tmp_path / "crash").read_text()
    assert not hangs, f"{tmp_path}/any.h5 hangs the reader"
    assert process.exitcode == 0, log
