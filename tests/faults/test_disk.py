"""A disk that is full, and one that may not be written: what fails is named, nothing is lost, a
rerun completes."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fieldbook.nn.checkpoints import save_weights
from fieldbook.nn.recipe import Recipe
from fieldbook.nn.training import fit
from fieldbook.run import figures, publish
from fieldbook.run.chapter import Run
from fieldbook.run.manifest import sha256
from fieldbook.run.parameters import Parameters
from fieldbook.run.tables import Parts
from fieldbook.scaling import market, patches
from fieldbook.stars import emulator, spectra_hdf5

GRID = {"T_eff": (4500, 4800), "log_g": (4.0,), "M_H": (-0.2,), "a_M": (0.0,), "C_M": (0.0,)}


@pytest.fixture
def disk(tmp_path, monkeypatch) -> Iterator[Path]:
    """A disk of 512 kB, where results go."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if (
        os.name != "posix"
        or (done := subprocess.run(command, capture_output=True, text=True)).returncode
    ):
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    monkeypatch.setenv("FIELDBOOK_RESULTS", str(folder))
    yield folder
    plt.close("all")
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, spare: int = 0) -> Path:
    """Leave so many pages of 4 kB on the disk."""
    with open(disk / "ballast", "ab") as file:
        try:
            while True:
                os.write(file.fileno(), bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC
    os.truncate(file.name, os.path.getsize(file.name) // 4096 * 4096 - 4096 * spare)
    return disk / "ballast"


def run() -> Run:
    return Run("agop", Parameters({"profile": "test", "p": 7, "workers": 1, "shard": [0, 1]}))


def sweep() -> None:
    one = run()
    one.sweep("t", [{"x": x} for x in range(40)], lambda job: {"text": 500 * "a"})
    one.claim("a", "b", of="ours", section="c", holds=True)
    one.claims()
    one.finish()


def training(folder: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(30, 30)
    x = torch.randn(8, 30)

    def loss(network, index, generator):
        return (network(x[index]) - x[index]).square().mean()

    recipe = Recipe(steps=20, batch_size=4, lr=0.1, eval_every=5, monitor="loss")
    evaluate = lambda network, step: {"loss": loss(network, slice(None), None)}  # noqa: E731
    fit(model, loss, 8, recipe, evaluate=evaluate, checkpoint=folder / "fit", progress=False)
    save_weights(model, folder / "fit" / "final.safetensors")


def figure() -> None:
    picture, axes = plt.subplots()
    axes.plot([1, 2])
    figures.save(picture, "agop", "test", "line")


def published(folder: Path) -> None:
    source = folder.parent / "source"
    for kind, name, text in (("data", "t.csv", 9000 * "1\n"), ("figures", "line.png", "png")):
        (source / kind / "agop" / "laptop").mkdir(parents=True, exist_ok=True)
        (source / kind / "agop" / "laptop" / name).write_text(text)
    manifest = (
        '{"status": "complete", "parameters": {}, "wall_s": 1.0, "csv_sha256": {"t.csv": "%s"}}'
    )
    where = source / "data" / "agop" / "laptop"
    (where / "manifest.json").write_text(manifest % sha256(where / "t.csv"))
    publish.publish("laptop", source, folder / "published")


def arrays(folder: Path) -> None:
    rng, file = np.random.default_rng(0), folder.parent / "dataset.h5"
    params = pd.DataFrame(rng.uniform(1, 5, (9, 7)), columns=list(spectra_hdf5.REQUIRED))
    if not file.exists():
        spectra_hdf5.write(
            file, np.arange(7000.0, 8000), *rng.uniform(0.1, 1, (2, 9, 1000)), params
        )
    spectra_hdf5.convert([file], folder / "arrays")


def stars(folder: Path) -> None:
    emulator.emulator(folder / "grid", GRID, components=1)


def tick_days(folder: Path) -> None:
    layout = patches.Layout(
        instruments=1, train_days=1, val_days=1, test_days=1, ticks=6600, core=1, unseen=1
    )
    patches.write_patches(folder / "days", market.World(best_short=0.7, best_long=0.25), layout)


WRITERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "sweep": (lambda folder: sweep(), "t-"),
    "manifest": (lambda folder: sweep(), "manifest.json"),
    "checkpoint": (training, "last.pt"),
    "best weights": (training, "best.safetensors"),
    "figure": (lambda folder: figure(), "line.p"),
    "published copy": (published, "published"),
    "arrays of spectra": (arrays, "arrays"),
    "emulator": (stars, "emulator-"),
}
SPARE = {
    "sweep": 4,
    "manifest": 0,
    "checkpoint": 5,
    "best weights": 0,
    "figure": 2,
    "published copy": 3,
    "arrays of spectra": 10,
    "emulator": 10,
}


def content(root: Path) -> dict[str, bytes]:
    files = {
        str(file.relative_to(root)): file
        for file in root.rglob("*")
        if file.is_file() and file.name[0] != "."
    }
    left_out = ("ballast", "manifest.json", "spectra.json", "last.pt")
    return {name: file.read_bytes() for name, file in files.items() if file.name not in left_out}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_named_and_with_space_the_run_completes(disk, monkeypatch, tmp_path, writer):
    write, name = WRITERS[writer]
    write(disk)
    expected = content(disk)
    for path in disk.iterdir():
        subprocess.run(["rm", "-r", str(path)], check=True)
    ballast = fill(disk, SPARE[writer])
    with pytest.raises(OSError, match="No space left") as caught:
        write(disk)
    assert name in str(caught.value) or name in str(caught.value.filename)
    assert str(disk) in f"{caught.value} {caught.value.filename}"
    assert not [file for file in disk.rglob(".*.tmp")]
    ballast.unlink()
    write(disk)
    assert content(disk) == expected and expected


@pytest.mark.parametrize("writer", ["figure", "published copy", "arrays of spectra", "checkpoint"])
def test_a_disk_that_fills_up_later_keeps_what_is_there(disk, writer):
    write, _ = WRITERS[writer]
    write(disk)
    before = content(disk)
    if writer == "arrays of spectra":
        with h5py.File(disk.parent / "dataset.h5", "a") as h5:
            h5[spectra_hdf5.FLUX][0, 0] *= (
                2  # another content, which is converted anew; a time is not enough
            )
    if writer == "checkpoint":
        (disk / "fit" / "last.pt").unlink()  # it is trained anew
    fill(disk)
    with pytest.raises(OSError, match="No space left"):
        write(disk)
    assert {name: data for name, data in content(disk).items() if ".stale" not in name} == before


def test_a_full_disk_stops_days_of_ticks(disk):
    with pytest.raises(
        OSError, match=r"features\.npy.*before is intact|before is intact.*features\.npy"
    ) as caught:
        tick_days(disk)
    assert (
        caught.value.filename == str(disk / "days" / "features.npy")
        and list((disk / "days").iterdir()) == []
    )


# -- a disk that may not be written


@pytest.mark.parametrize("earlier", [False, True], ids=["empty", "with results"])
def test_a_disk_for_reading_alone_is_named_before_anything_is_computed(disk, earlier):
    if earlier:
        sweep()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(OSError, match="set FIELDBOOK_RESULTS elsewhere") as caught:
        run()
    assert str(disk) in caught.value.filename


def test_a_disk_for_reading_alone_stops_training_before_its_first_update(disk):
    (disk / "fit").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)

    def loss(*_):
        raise AssertionError("an update was made")

    with pytest.raises(
        OSError, match=r"last\.pt.*could not be written|could not be written.*last\.pt"
    ):
        fit(
            nn.Linear(1, 1),
            loss,
            8,
            Recipe(steps=2, batch_size=4, lr=0.1),
            checkpoint=disk / "fit",
            progress=False,
        )
    with pytest.raises(OSError, match=r"disk/t"):
        Parts(disk / "t").write({"x": 1}, {"t": [{"y": 1}]})
