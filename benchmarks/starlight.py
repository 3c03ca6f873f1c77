"""The emulator of stellar spectra against the synthesis that it stands in for: speed, and the price
in accuracy.

    python benchmarks/starlight.py [--grid full] [--stars 100]

The grid is built first, and timed. Synthesis and emulation are then timed in turns on stars drawn
at random between the nodes, and their fluxes compared (median .5). Medians, one thread; the grid
takes two processes.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from record import record

from fieldbook.stars.emulator import NODES, SMALL, emulator
from fieldbook.stars.observation import draw, spectra
from fieldbook.stars.synthesis import LABELS, synthesize

REPEATS, BATCH = 5, 1024


def main() -> None:
    """Measure, print, and fail where the specification is not met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--grid", choices=("full", "small"), default="full")
    parser.add_argument("--stars", type=int, default=100)
    chosen = parser.parse_args()
    nodes = NODES if chosen.grid == "full" else SMALL
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        stars = emulator(Path(folder), nodes, workers=2)
        built = time.perf_counter() - start
    count = np.prod([len(values) for values in nodes.values()])
    print(f"grid of {count} nodes on two processes: {built:.0f} s")

    labels = draw(
        chosen.stars,
        1,
        {name: (values[0], values[-1]) for name, values in nodes.items()},
        rv_kms=0.0,
    )
    single, batched, exact = [], [], []
    for i, star in enumerate(labels[list(LABELS)].to_numpy()):
        start = time.perf_counter()
        exact.append(synthesize(*star))
        single.append(time.perf_counter() - start)
        if i % max(chosen.stars // REPEATS, 1) == 0:
            start = time.perf_counter()
            spectra(BATCH, i, stars)
            batched.append((time.perf_counter() - start) / BATCH)
    slow, fast = statistics.median(single), statistics.median(batched)
    print(
        f"synthesis: {1e3 * slow:.0f} ms a star; emulated, with noise model: {1 / fast:,.0f} a second"
    )
    print(f"emulator: {slow / fast:.0f}x as fast as the synthesis")

    record("spectrum of one star", "ms", 1e3 * fast, {"synthesis": 1e3 * slow})
    guess = stars(torch.tensor(labels[list(LABELS)].to_numpy())).numpy()
    rms = np.sqrt(np.mean((guess - np.array(exact)) ** 2, 1))
    print(
        f"rms error per star: median {np.median(rms):.5f}, worst {rms.max():.4f}, of a median flux of .5"
    )
    kept = {
        "grid within 90 s": built <= 90,
        "node within .1 s": slow <= 0.1,
        "3,000 spectra a second": fast <= 1 / 3000,
        "median error below .002": np.median(rms) < 0.002,
        "worst error below .01": rms.max() < 0.01,
    }
    if broken := [promise for promise, holds in kept.items() if not holds]:
        raise SystemExit(f"not met: {', '.join(broken)}")


if __name__ == "__main__":
    main()
