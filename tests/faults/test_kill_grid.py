"""A grid of rescalings killed in the middle and resumed ends with the same bytes as one left alone."""

import multiprocessing
import random
import time
from itertools import product

import torch

from fieldbook import tables
from fieldbook.data.modular import task
from fieldbook.models.grokker import Grokker
from fieldbook.samplers import rescaled
from fieldbook.tables import Table

KILLS, STACK = 8, 3
CELLS = list(product((0.1, 0.3, 1.0, 3.0, 10.0), repeat=2))
HOW = rescaled.Sampling(steps=30, burn_in=6, chains=2, batch_size=8)
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["fieldbook.samplers.rescaled"])


def go(folder):
    """Fill the grid stack by stack, as chapter si_sgld does: cells in one table, wall times in another."""
    torch.set_num_threads(1)
    t, cells = task("add", 7, 0.6, 0), Table(folder / "add_psgld.csv", ["alpha", "beta"])
    model = Grokker(7, d_model=16, n_heads=2, d_hidden=32)
    start = rescaled.Minimum(
        model, t.pairs[t.train], t.target[t.train], torch.ones(sum(map(torch.numel, model.parameters())))
    )

    def sample(job):
        began, part = time.perf_counter(), CELLS[STACK * job["stack"] : STACK * (job["stack"] + 1)]
        cells.append(*rescaled.rows(start, "psgld", part, HOW, eps=1e-6, gamma=1e4))
        return {**job, "seconds": time.perf_counter() - began}

    tables.sweep(Table(folder / "timing.csv", ["stack"]), [{"stack": k} for k in range(9)], sample)
    cells.sort([{"alpha": a, "beta": b} for a, b in CELLS])


def lines(file):
    return file.read_bytes().count(b"\n") if file.exists() else 0


def test_kills_in_mid_grid_change_no_byte(tmp_path):
    go(tmp_path / "straight")
    expected, table = (tmp_path / "straight/add_psgld.csv").read_bytes(), tmp_path / "killed/add_psgld.csv"
    assert expected.count(b"\n") == 1 + len(CELLS)
    rng, caught = random.Random(0), 0
    for _ in range(KILLS):  # each after some more stacks, at a random moment of the next one
        process, enough = PROCESSES.Process(target=go, args=(table.parent,)), lines(table) + rng.choice((0, 1, 3))
        process.start()
        while process.is_alive() and lines(table) < enough:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        caught += 0 < lines(table) < 1 + len(CELLS)
    go(table.parent)
    assert table.read_bytes() == expected
    assert caught >= 3, "too few kills came in mid-grid"
