"""Shuffled batches of spectra through memory maps, against the source's HDF5 and against what
training asks for.

    python benchmarks/spectra_io.py [--gigabytes 0.8] [--folder build/scratch]

Synthetic spectra of 4,096 pixels are written in the source's layout (float32, chunks of 64
spectra), converted once, and read in batches of 256 in the order that a `Recipe` with shuffle_block
4096 implies. Cold: the system is told to forget the files before each measurement; warm: right
after. GB/s, medians. What was written is deleted at the end.
"""

import argparse
import os
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch
from record import record

from fieldbook.nn.machine import keep_freed_memory
from fieldbook.nn.recipe import indices
from fieldbook.stars.dataset import Spectra
from fieldbook.stars.spectra_hdf5 import ERROR, FLUX, REQUIRED, WAVE, convert

PIXELS, BATCH, BLOCK, SHARDS, REPEATS = 4096, 256, 4096, 2, 9
ROW = 2 * 4 * PIXELS  # bytes, flux and error
NEEDED = (
    64 * ROW / 0.0957 / 1e9
)  # GB/s: a training step of 64 spectra takes 95.7 ms, the fastest seen
SAMPLES = 512  # on which the methods that read one spectrum at a time are measured


def shard(path: Path, n: int, seed: int) -> Path:
    """A file of n random spectra, written in pieces."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file[WAVE] = 7100.2136 + 0.4272461 * np.arange(PIXELS)
        for name in (FLUX, ERROR):
            dataset = file.create_dataset(name, (n, PIXELS), "f4", chunks=(64, PIXELS))
            for start in range(0, n, 1024):
                size = min(1024, n - start)
                dataset[start : start + size] = rng.random((size, PIXELS), np.float32) + 0.5
    params = pd.DataFrame({name: rng.random(n) for name in REQUIRED})
    params.to_hdf(path, key="dataset/params", format="table", mode="a")
    return path


def forget(files: list[Path]) -> None:
    """Drop the files from the system's cache."""
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def order(n: int, block: int | None) -> Iterator[torch.Tensor]:
    for step in range(n // BATCH):
        yield indices(n, BATCH, step, seed=0, block=block)


def mapped(folder: Path) -> int:
    """Our batches, through maps of their own: what is mapped is not forgotten."""
    spectra, total = Spectra.open(folder), 0
    for index in order(len(spectra), BLOCK):
        total += sum(rows.nbytes for rows in spectra.rows(index))
    return total


def one_by_one(sources: list[Path], n: int, block: int | None) -> int:
    """The source's HDF5, one spectrum at a time, as a map-style dataset reads it."""
    files = [h5py.File(path) for path in sources]
    datasets = [(file[FLUX], file[ERROR]) for file in files]
    for row in torch.cat(list(order(n, block))[: SAMPLES // BATCH]).tolist():
        part, at = divmod(row, n // len(files))
        for dataset in datasets[part]:
            torch.from_numpy(dataset[at])
    for file in files:
        file.close()
    return SAMPLES * ROW


def growth(work: Callable[[], object]) -> float:
    """How far a call exceeds the resident memory that it starts with, mapped files included, in MB
    (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the largest so far
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def measure(
    methods: dict[str, tuple[Callable[[], int], list[Path]]],
) -> dict[str, dict[str, float]]:
    """GB/s of each method, cold and warm; they take turns in changing order, as one slows the
    next."""
    speeds = {name: {"cold": [], "warm": []} for name in methods}
    for repeat in range(REPEATS):
        for name in random.Random(repeat).sample(list(methods), len(methods)):
            method, files = methods[name]
            forget(files)
            for state in ("cold", "warm"):
                start = time.perf_counter()
                size = method()
                speeds[name][state].append(size / (time.perf_counter() - start) / 1e9)
    return {
        name: {state: statistics.median(v) for state, v in by.items()}
        for name, by in speeds.items()
    }


def run(folder: Path, gigabytes: float) -> None:
    """Measure, print, and fail if the loader's promises are not met."""
    n = max(round(gigabytes * 1e9 / ROW / SHARDS / BLOCK), 1) * BLOCK
    sources = [shard(folder / f"{k}.h5", n, k) for k in range(SHARDS)]
    convert([shard(folder / "small.h5", 64, 9)], folder / "small").rows(
        [0]
    )  # loads what is loaded once
    start = time.perf_counter()
    converting = growth(lambda: convert(sources, folder / "out"))
    seconds = time.perf_counter() - start
    arrays, n_all = [folder / "out" / name for name in ("flux.npy", "error.npy")], SHARDS * n
    speeds = measure(
        {
            "ours": (lambda: mapped(folder / "out"), arrays),
            "HDF5, one by one": (lambda: one_by_one(sources, n_all, BLOCK), sources),
            "HDF5, one by one, no blocks": (lambda: one_by_one(sources, n_all, None), sources),
        }
    )
    print(f"{n_all} spectra of {PIXELS} pixels, {n_all * ROW / 1e9:.2f} GB, batches of {BATCH}")
    print(
        f"converted in {seconds:.1f} s ({n_all * ROW / seconds / 1e9:.2f} GB/s), memory grew by {converting:.0f} MB"
    )
    for name, by in speeds.items():
        print(f"{name:<28} cold {by['cold']:>7.3f}   warm {by['warm']:>7.3f} GB/s")

    ours = speeds["ours"]["cold"]
    peers = {name: by["cold"] for name, by in speeds.items() if name != "ours"} | {
        "what training asks for": NEEDED
    }
    floors = dict.fromkeys(peers, 10)
    record("shuffled batches of spectra from the disk", "GB/s", ours, peers, floors, rate=True)
    for name, speed in peers.items():
        assert ours >= 10 * speed, f"less than 10 times as fast as {name}"
    assert converting < 400, "converting takes more memory than its buffers"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--gigabytes",
        type=float,
        default=0.8,
        help="of flux and error; the HDF5 takes as much again",
    )
    parser.add_argument("--folder", type=Path, help="where to put them; the disk that is measured")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    if arguments.folder:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        run(Path(folder), arguments.gigabytes)


if __name__ == "__main__":
    main()
