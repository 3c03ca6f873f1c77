"""What is malformed is refused, by every reader of files: the error names the file, what is wrong
and the remedy.

A reader has a maker of an input that is good, which it reads, and faults: what each does to that
input, and words that the error must hold beside the path. Further faults of single readers are in
tests/unit, with the reader's other tests.
"""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import h5py
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fieldbook.nn.checkpoints import load_weights, save_weights
from fieldbook.nn.lightning import load_lightning
from fieldbook.nn.recipe import Recipe
from fieldbook.nn.training import fit
from fieldbook.run import ledger
from fieldbook.run.chapter import Run
from fieldbook.run.parameters import Parameters, check, check_file
from fieldbook.run.publish import verify
from fieldbook.run.tables import read_csv, write_csv
from fieldbook.scaling import configs, market, patches
from fieldbook.stars import emulator
from fieldbook.stars.dataset import Spectra
from fieldbook.stars.spectra_hdf5 import ERROR, FLUX, PARAMS, WAVE, convert, splits, write

NODES = {"T_eff": (4500, 4800), "log_g": (4.0,), "M_H": (-0.2,), "a_M": (0.0,), "C_M": (0.0,)}


class Bomb:
    """Unpickled, it would leave a folder `exploded` where the tests run."""

    def __reduce__(self):
        return os.mkdir, ("exploded",)


# -- inputs that are good: each maker returns the path that is to be spoilt


def notebook(folder: Path) -> Path:
    cell = "p: int = 97  # modulus, a prime, in [5, 499]\nlr: float = 1e-3  # in (0, inf)\nseeds: list[int] = [0]"
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell, metadata={"tags": ["parameters"]})]
    )
    book.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    nbformat.write(book, folder / "book.ipynb")
    return folder / "book.ipynb"


def parameter_file(folder: Path) -> Path:
    notebook(folder)
    (folder / "good.yaml").write_text("p: 113\nlr: 1e-4\nseeds: [1, 2]\n")
    return folder / "good.yaml"


def table(folder: Path) -> Path:
    write_csv(folder / "t.csv", [{"x": 0, "y": 5}, {"x": 1, "y": 5}])
    return folder / "t.csv"


def run(folder: Path) -> Run:
    with patch.dict(os.environ, FIELDBOOK_RESULTS=str(folder)):
        return Run("agop", Parameters({"profile": "test", "p": 7, "workers": 1, "shard": [0, 1]}))


def finished(folder: Path) -> Path:
    """A chapter's folder of results."""
    one = run(folder)
    one.sweep("t", [{"x": 0}], lambda job: {"y": 5})
    one.claim("a", "b", of="ours", section="c", holds=True)
    one.claims()
    one.finish()
    return one.folder


def frozen(folder: Path) -> Run:
    with patch.dict(os.environ, FIELDBOOK_FROZEN="1"):
        return run(folder)


def claims(folder: Path) -> pd.DataFrame:
    with patch.dict(os.environ, FIELDBOOK_RESULTS=str(folder)):
        return ledger.ledger({"agop": "test"})


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def train(path: Path) -> object:
    def loss(model, index, generator):
        return model(torch.ones(len(index), 3)).square().mean()

    return fit(
        network(),
        loss,
        8,
        Recipe(steps=2, batch_size=4, lr=0.1),
        checkpoint=path.parent,
        progress=False,
    )


def checkpoint(folder: Path) -> Path:
    train(folder / "last.pt")
    return folder / "last.pt"


def weights(folder: Path) -> Path:
    save_weights(network(), folder / "w.safetensors")
    return folder / "w.safetensors"


def lightning(folder: Path) -> Path:
    weights = {f"model.{name}": t for name, t in network().state_dict().items()}
    torch.save({"state_dict": weights, "epoch": 4}, folder / "epoch.ckpt")
    return folder / "epoch.ckpt"


def spectra(folder: Path, first: float = 7100.0) -> Path:
    rng, file = np.random.default_rng(0), folder / "in" / "dataset.h5"
    params = pd.DataFrame(
        {name: rng.uniform(1, 5, 6) for name in ("T_eff", "log_g", "M_H", "a_M", "C_M", "mag")}
    )
    flux, error = rng.uniform(0.1, 1, (2, 6, 8))
    write(file, first + 0.4 * np.arange(8), flux, error, params.assign(redshift=0.0))
    return file


def spectra_folder(folder: Path) -> Path:
    convert([spectra(folder)], folder / "out")
    return folder / "out"


def days(folder: Path) -> Path:
    raw = np.random.default_rng(0).uniform(1, 2, (20, len(market.CHANNELS)))
    frame = pd.DataFrame(raw, columns=market.CHANNELS).assign(time=np.arange(20))
    frame.to_csv(folder / "a.csv", index=False)
    frame.to_parquet(folder / "b.parquet")
    return folder


def stored_patches(folder: Path) -> Path:
    np.save(folder / "features.npy", np.zeros((1, 2, 60, 52), "f2"))
    arrays = {
        f"{kind}{level}": np.zeros((1, 2, 3)) for kind in ("target", "mean") for level in (1, 2)
    }
    np.savez(folder / "targets.npz", instrument=[0], day=[0], split=["train"], **arrays)
    return folder


def configuration(folder: Path) -> Path:
    (config,) = (config for config in configs.generate() if config.name == "ms1_pretrain")
    (folder / "ms1_pretrain.yaml").write_text(configs.text(config))
    return folder / "ms1_pretrain.yaml"


def grid(folder: Path) -> Path:
    emulator.emulator(folder, NODES, components=1)
    return next(folder.glob("*.safetensors"))


class Reader(NamedTuple):
    make: Callable[[Path], Path]
    read: Callable[[Path], object]  # of the path


READERS = {
    "parameter file": Reader(
        parameter_file, lambda path: check_file(path.parent / "book.ipynb", path)
    ),
    "notebook": Reader(notebook, lambda path: check(path, {})),
    "table": Reader(table, read_csv),
    "frozen results": Reader(finished, lambda path: frozen(path.parents[2])),
    "results to publish": Reader(finished, verify),
    "claims": Reader(finished, lambda path: claims(path.parents[2])),
    "checkpoint": Reader(checkpoint, train),
    "weights": Reader(weights, lambda path: load_weights(network(), path)),
    "Lightning checkpoint": Reader(lightning, lambda path: load_lightning(network(), path)),
    "spectra": Reader(spectra, lambda path: convert([path], path.parents[1] / "out")),
    "folder of spectra": Reader(spectra_folder, Spectra.open),
    "days of ticks": Reader(days, market.read_days),
    "patches": Reader(stored_patches, patches.open_patches),
    "patch configuration": Reader(configuration, configs.read),
    "emulator": Reader(grid, lambda path: emulator.emulator(path.parent, NODES, components=1)),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Callable[[str, Path], Path]:
    """Put a good input of a reader, made once, into a folder."""
    made = {}

    def put(reader: str, folder: Path) -> Path:
        if reader not in made:
            origin = tmp_path_factory.mktemp("good")
            made[reader] = origin, READERS[reader].make(origin)
        origin, path = made[reader]
        shutil.copytree(origin, folder, dirs_exist_ok=True)
        return folder / path.relative_to(origin)

    return put


# -- ways to spoil them


def content(data: str | bytes, name: str = ""):
    return lambda path: (path / name).write_bytes(data.encode() if isinstance(data, str) else data)


def change(old: str, new: str, name: str = ""):
    def spoil(path: Path) -> None:
        text = (path / name).read_text()
        assert old in text
        (path / name).write_text(text.replace(old, new))

    return spoil


def cut(size: int | float, name: str = ""):
    """To so many bytes, counted from the end if negative, or to a share of them."""

    def spoil(path: Path) -> None:
        length = (path / name).stat().st_size
        os.truncate(
            path / name, int(length * size) if isinstance(size, float) else size % (length + 1)
        )

    return spoil


def missing(name: str = ""):
    return lambda path: (path / name).unlink()


def a_folder(name: str = ""):
    return lambda path: ((path / name).unlink(), (path / name).mkdir())


def cell(source: str, **other: object):
    def spoil(path: Path) -> None:
        book = json.loads(path.read_text())
        book["cells"][0] |= {"source": source, **other}
        path.write_text(json.dumps(book))

    return spoil


def saved(change: Callable[[dict], object]):
    def spoil(path: Path) -> None:
        torch.save(change(torch.load(path)), path)

    return spoil


def named(**changes: object):
    """Change entries of a Lightning checkpoint's state dict."""
    return saved(lambda all: {**all, "state_dict": all["state_dict"] | changes["weights"]})


def dataset(name: str, change: Callable[[np.ndarray], object], **options: object):
    def spoil(path: Path) -> None:
        with h5py.File(path, "a") as h5:
            array = h5.pop(name)[()]
            if (new := change(array)) is not None:
                h5.create_dataset(name, data=new, **options)

    return spoil


def entry(name: str, value: float):
    def change(array: np.ndarray) -> np.ndarray:
        array[3, 5] = value
        return array

    return dataset(name, change)


def link(name: str, target: object):
    def spoil(path: Path) -> None:
        with h5py.File(path, "a") as h5:
            del h5[name]
            h5[name] = target

    return spoil


def labels(**columns: object):
    def spoil(path: Path) -> None:
        frame = pd.read_hdf(path, key=PARAMS).assign(**columns)
        with h5py.File(path, "a") as h5:
            del h5[PARAMS]
        frame.to_hdf(path, key=PARAMS, format="table", mode="a")

    return spoil


def ticks_of(change: Callable[[pd.DataFrame], pd.DataFrame], name: str = "a.csv"):
    def spoil(path: Path) -> None:
        if name.endswith("csv"):
            change(pd.read_csv(path / name)).to_csv(path / name, index=False)
        else:
            change(pd.read_parquet(path / name)).to_parquet(path / name)

    return spoil


def pickled_names(path: Path) -> None:
    with h5py.File(path, "a") as h5:
        h5[f"{PARAMS}/table"].attrs["values_block_0_kind"] = np.bytes_(
            pickle.dumps([Bomb()] * 7, 0)
        )


def other_grid(path: Path) -> None:
    spectra(path.parents[1] / "b", first=7100.1)


ALIASES = "a: &a [1, 1]\n" + "".join(
    f"{y}: &{y} [*{x}, *{x}]\n" for x, y in pairwise("abcdefghijklmnopqrstuvwxyz")
)
YAML, NOTEBOOK = "not valid YAML", "the parameters cell cannot be read"
FAULTS = {
    "parameter file": {
        "missing": (missing(), "no such parameter file"),
        "a folder": (a_folder(), "Is a directory"),
        "Latin-1": (content(b"p: 97 # Zahl f\xfcr die Gruppe"), YAML, "utf-8"),
        "zeros": (content(bytes(100)), YAML, "special characters"),
        "runs code": (
            content("p: !!python/object/apply:os.mkdir [exploded]"),
            YAML,
            "could not determine",
        ),
        "unknown tag": (content("p: !prime 97"), YAML, "!prime"),
        "empty integer": (content('p: !!int ""'), YAML),
        "no boolean": (content("p: !!bool maybe"), YAML, "maybe"),
        "no date": (content("p: !!timestamp tomorrow"), YAML),
        "a date": (
            content("p: 2024-01-01"),
            "p = datetime.date",
            "valid integer",
            "a prime, in [5, 499]",
        ),
        "two documents": (content("p: 97\n---\np: 97"), YAML, "single document"),
        "alias to nothing": (content("p: *there"), YAML, "'there'"),
        "aliases that explode": (content(ALIASES + "seeds: *z"), "seeds[0]", "unknown parameter"),
        "tabs": (content("seeds:\n\t- 1"), YAML),
        "a list for a name": (content("? [p]\n: 97"), YAML, "unhashable"),
        "a number for a name": (
            content("97: 97"),
            "97: unknown parameter",
            "known are p, lr, seeds",
        ),
        "merged": (content("<<: 97"), YAML, "mapping"),
        "beyond all floats": (content("lr: 1e999"), "lr = inf", "finite"),
        "infinite": (content("lr: .inf"), "lr = inf", "in (0, inf)"),
        "a long integer": (content("p: 0x" + 400 * "f"), "p = ", "less than or equal to 499"),
    },
    "notebook": {
        "missing": (missing(), "no such notebook"),
        "a folder": (a_folder(), "no such notebook"),
        "cut": (cut(0.5), NOTEBOOK),
        "source is no text": (cell(97), NOTEBOOK),
        "tags are no list": (cell("p: int = 1", metadata={"tags": 3}), NOTEBOOK),
        "default is computed": (
            cell("p: int = __import__('os').mkdir('exploded')"),
            "parameter p",
            "cannot be read",
        ),
        "default is of another type": (cell('p: int = "many"  # modulus'), "p = 'many'", "modulus"),
        "default is out of range": (cell("p: int = 4  # in [5, 9]"), "p = 4", "in [5, 9]"),
        "range without sense": (cell("p: int = 4  # in [9, 5]"), "p = 4"),
    },
    "table": {
        "a picture": (content(b"\x89PNG\r\n\x1a\n" + bytes(40) + b"\n"), "delete it"),
        "a row too long": (change("0,5", "0,5,6,7"), "no table", "delete it"),
        "an open quote": (change("0,5", '0,"5'), "no table"),
        "empty": (content(""), "no table", "delete it"),
        "a folder": (a_folder(), "Is a directory"),
    },
    "frozen results": {
        "no manifest": (missing("manifest.json"), "no readable manifest", "recompute and publish"),
        "cut manifest": (cut(0.5, "manifest.json"), "no readable manifest"),
        "nested manifest": (content(5000 * "[", "manifest.json"), "no readable manifest"),
        "other parameters": (
            change('"p": 7', '"p": 9', "manifest.json"),
            "p was 9, is 7",
            "recompute",
        ),
        "a row changed": (change("0,5", "0,6", "t.csv"), "t.csv is not the file"),
        "no table": (missing("t.csv"), "t.csv is not the file"),
    },
    "results to publish": {
        "nested manifest": (
            content(5000 * "[", "manifest.json"),
            "manifest.json",
            "finish the run",
        ),
        "hash is no text": (
            change('"t.csv": "', '"t.csv": 3, "u.csv": "', "manifest.json"),
            "t.csv",
            "differs",
        ),
        "half a table": (cut(0.5, "t.csv"), "t.csv", "differs from its hash"),
        "a table too many": (content("x\n1\n", "u.csv"), "u.csv", "not listed"),
    },
    "claims": {
        "empty": (content("", "claims.csv"), "claims.csv", "run its chapter again"),
        "binary": (content(b"\xff\xfe\x00", "claims.csv"), "claims.csv", "run its chapter again"),
        "ragged": (
            content("claim,found,verdict\na\nb,c,d,e,f\n", "claims.csv"),
            "claims.csv",
            "Expected 3 fields",
        ),
        "without verdicts": (
            content("claim,source,found\na,b,c\n", "claims.csv"),
            "claims.csv",
            "columns claim, of, source",
        ),
        "another verdict": (
            change("holds", "nearly", "claims.csv"),
            "claims.csv",
            "holds, fails, undecided, not tested",
        ),
    },
    "checkpoint": {
        "empty": (content(b""), "not a readable checkpoint", "delete it"),
        "half": (cut(0.5), "not a readable checkpoint", "delete it"),
        "one byte short": (cut(-2), "not a readable checkpoint", "delete it"),
        "a bomb": (
            saved(lambda all: {**all, "content": Bomb()}),
            "not a readable checkpoint",
            "mkdir",
        ),
        "without identity": (
            saved(lambda all: all["content"]),
            "not a readable checkpoint",
            "identity",
        ),
        "identity is a list": (
            saved(lambda all: {**all, "identity": [1]}),
            "not a readable checkpoint",
        ),
        "of another recipe": (
            saved(lambda all: {**all, "identity": all["identity"] | {"lr": "0.2"}}),
            "lr is 0.2 there, 0.1 here",
        ),
        "of another network": (
            saved(
                lambda all: {
                    **all,
                    "identity": {k: v for k, v in all["identity"].items() if k != "0.bias"},
                }
            ),
            "0.bias is absent there",
        ),
        "a folder": (a_folder(), "not a readable checkpoint"),
    },
    "weights": {
        "missing": (missing(), "no weights at", "train the model first"),
        "empty": (content(b""), "not a readable safetensors file", "train again"),
        "cut in the header": (cut(20), "not a readable safetensors file"),
        "cut in the data": (cut(-5), "not a readable safetensors file"),
        "a header without end": (content(b"\xff" * 8 + b"{}"), "not a readable safetensors file"),
        "a pickle": (content(pickle.dumps(Bomb(), 0)), "not a readable safetensors file"),
        "of another network": (
            lambda path: save_weights(nn.Linear(3, 2), path),
            "does not fit",
            "0.weight",
        ),
        "words": (content("weights\n"), "not a readable safetensors file"),
    },
    "Lightning checkpoint": {
        "missing": (missing(), "correct the path"),
        "half": (cut(0.5), "damaged"),
        "a bomb": (
            saved(lambda all: {**all, "hyper_parameters": Bomb()}),
            "not run here",
            "state_dict",
        ),
        "a list": (saved(lambda all: [all]), "no dictionary 'state_dict'"),
        "without prefix": (
            saved(lambda all: {"state_dict": network().state_dict()}),
            "unknown 0.bias",
            "missing model.0.bias",
        ),
        "a number for a tensor": (
            named(weights={"model.1.num_batches_tracked": 3}),
            "num_batches_tracked is int",
        ),
        "words for a tensor": (
            named(weights={"model.0.bias": "two"}),
            "model.0.bias is str, expected (2,)",
        ),
    },
    "spectra": {
        **{
            f"cut to {share:.0%}": (cut(share), "damaged")
            for share in (0.02, 0.2, 0.4, 0.6, 0.8, 0.99)
        },
        "one byte short": (cut(-2), "damaged"),
        "zeros after the head": (
            lambda path: content(path.read_bytes()[:96] + bytes(9000))(path),
            "damaged",
        ),
        "nanometres": (
            dataset(WAVE, lambda wave: wave / 10),
            WAVE,
            "from 710 to",
            "expected Angstrom",
        ),
        "microns": (dataset(WAVE, lambda wave: wave / 1e4), WAVE, "expected Angstrom"),
        "hertz": (dataset(WAVE, lambda wave: np.sort(3e18 / wave)), WAVE, "expected Angstrom"),
        "words for flux": (
            dataset(FLUX, lambda flux: np.full(flux.shape, b"dark")),
            FLUX,
            "expected real numbers",
        ),
        "a number for flux": (dataset(FLUX, lambda flux: 1.0), FLUX, "shape ()", "(n, 8)"),
        "three axes": (dataset(FLUX, lambda flux: flux[None]), FLUX, "(1, 6, 8)"),
        "NaN in flux": (entry(FLUX, np.nan), FLUX, "nan in row 3, pixel 5"),
        "negative error": (entry(ERROR, -0.1), ERROR, "row 3, pixel 5", "above 0"),
        "no error": (dataset(ERROR, lambda error: None), ERROR, "is missing"),
        "error of other stars": (dataset(ERROR, lambda error: error[:4]), ERROR, "(4, 8)"),
        "a link to nowhere": (link(FLUX, h5py.SoftLink("/nowhere")), FLUX, "is missing"),
        "a link to itself": (link(FLUX, h5py.SoftLink(f"/{FLUX}")), "too many links"),
        "a link to no file": (
            link(FLUX, h5py.ExternalLink("/nowhere.h5", FLUX)),
            FLUX,
            "is missing",
        ),
        "an infinite label": (labels(log_g=np.inf), "'log_g', row 0", "finite"),
        "a bomb for names": (pickled_names, "values_block_0_kind", "refused as it may run code"),
        "no type of table": (
            lambda path: h5py.File(path, "a")[PARAMS].attrs.pop("pandas_type"),
            PARAMS,
            "missing",
        ),
        "a table without rows": (
            link(f"{PARAMS}/table", h5py.SoftLink("/nowhere")),
            PARAMS,
            "damaged",
        ),
    },
    "folder of spectra": {
        "no flux": (missing("flux.npy"), "flux.npy", "convert the files first"),
        "empty wave": (content(b"", "wave.npy"), "damaged", "convert again"),
        "empty flux": (content(b"", "flux.npy"), "damaged", "convert again"),
        "a bomb for wave": (content(pickle.dumps(Bomb()), "wave.npy"), "damaged", "delete it"),
        "no table": (content("T_eff,log_g\n", "params.parquet"), "damaged", "delete it"),
        "wave of another grid": (
            lambda path: np.save(path / "wave.npy", np.arange(5.0)),
            "damaged",
            "flux",
        ),
    },
    "days of ticks": {
        "nothing there": (
            lambda path: [file.unlink() for file in path.iterdir()],
            "no .parquet or .csv file",
        ),
        "empty": (content("", "a.csv"), "a.csv", "not a readable table"),
        "binary": (content(b"\xff\xfe\x00", "a.csv"), "a.csv", "not a readable table"),
        "half a Parquet file": (cut(0.5, "b.parquet"), "b.parquet", "not a readable table"),
        "no channel": (
            ticks_of(lambda f: f.drop(columns="obi_1"), "b.parquet"),
            "b.parquet",
            "lacks",
            "obi_1",
        ),
        "no ticks": (ticks_of(lambda f: f[:0]), "a.csv", "mid_price", "numbers"),
        "words": (
            ticks_of(lambda f: f.assign(vwap=["high"] + 19 * ["1"])),
            "a.csv",
            "vwap",
            "numbers",
        ),
        "a channel of NaN": (
            ticks_of(lambda f: f.assign(spread_1=np.nan)),
            "a.csv",
            "spread_1",
            "numbers",
        ),
        "times that fall": (ticks_of(lambda f: f[::-1]), "a.csv", "time", "in their order"),
        "an index that falls": (
            ticks_of(lambda f: f.drop(columns="time")[::-1], "b.parquet"),
            "b.parquet",
            "time",
            "in their order",
        ),
        "one day twice": (
            lambda path: shutil.copy(path / "a.csv", path / "b.csv"),
            "b.parquet",
            "another has this name",
        ),
    },
    "patches": {
        "no targets": (missing("targets.npz"), "write_patches makes them"),
        "half of the targets": (cut(0.5, "targets.npz"), "damaged", "delete it"),
        "half of the features": (cut(0.5, "features.npy"), "damaged", "delete it"),
        "no features": (missing("features.npy"), "features.npy", "delete it"),
        "a bomb for features": (content(pickle.dumps(Bomb()), "features.npy"), "damaged"),
        "features of another type": (
            lambda path: np.save(path / "features.npy", np.zeros((1, 2, 60, 52))),
            "float64",
            "float16",
        ),
        "days of other features": (
            lambda path: np.save(path / "features.npy", np.zeros((3, 2, 60, 52), "f2")),
            "(1, patch, 60, column)",
        ),
        "patches of other targets": (
            lambda path: np.save(path / "features.npy", np.zeros((1, 5, 60, 52), "f2")),
            "targets",
            "(1, 5)",
        ),
        "a target too few": (
            lambda path: np.savez(path / "targets.npz", instrument=[0]),
            "damaged",
            "day",
        ),
    },
    "patch configuration": {
        "missing": (missing(), "No such file"),
        "empty": (content(""), "not a valid configuration"),
        "a list": (content("- 1"), "not a valid configuration"),
        "binary": (content(b"\xff\x00"), "not a valid configuration"),
        "runs code": (
            content("name: !!python/object/apply:os.mkdir [exploded]"),
            "not a valid configuration",
        ),
        "NaN": (change("lr: 0.001", "lr: .nan"), "lr", "nan"),
        "a width beyond all memory": (
            change("d_model: 64", f"d_model: {10**12}"),
            "not a valid configuration",
        ),
        "another width": (
            change("d_model: 64", "d_model: 63"),
            "n_params = 87437",
            "the network has 84937",
        ),
    },
    "emulator": {
        "empty": (content(b""), "not a readable emulator", "delete it"),
        "half": (cut(0.5), "not a readable emulator", "delete it"),
    },
}


def test_good_inputs_are_read(good, tmp_path):
    for reader, (_, read) in READERS.items():
        read(good(reader, tmp_path / reader))
    assert (
        len([fault for faults in FAULTS.values() for fault in faults]) >= 60
        and FAULTS.keys() == READERS.keys()
    )


@pytest.mark.parametrize(
    ("reader", "fault"), [(reader, fault) for reader in FAULTS for fault in FAULTS[reader]]
)
def test_a_malformed_input_is_named(good, tmp_path, monkeypatch, reader, fault):
    monkeypatch.chdir(tmp_path)
    path = good(reader, tmp_path / "input")
    spoil, *words = FAULTS[reader][fault]
    spoil(path)
    with pytest.raises((ValueError, OSError)) as caught:
        READERS[reader].read(path)
    said = " ".join(str(caught.value).split())
    assert str(path) in said
    assert [word for word in words if word not in said] == [], said
    assert not (tmp_path / "exploded").exists()


def test_shards_of_other_wavelengths_are_refused(tmp_path):
    files = [
        spectra(tmp_path / name, first)
        for name, first in (("train_1", 7100.0), ("train_2", 7100.1))
    ]
    with pytest.raises(
        ValueError, match=rf"{files[1]}.*differs from that of {files[0]}; expected one grid"
    ):
        convert(files, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=rf"no val\*/dataset.h5 in {tmp_path}"):
        splits(tmp_path, train="train_*/in")
