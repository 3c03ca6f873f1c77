"""Runs of every kind, killed at random moments with all of their processes, end with the bytes of a
run left alone.

`FIELDBOOK_KILLS` is the number of kills in all, 30 unless given.
"""

import contextlib
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import time
import traceback
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import safetensors.numpy
import torch
from torch import nn

from fieldbook.grokking import experiment
from fieldbook.grokking.grokker import Grokker
from fieldbook.grokking.modular import task
from fieldbook.nn.checkpoints import atomic_write, save_weights
from fieldbook.nn.recipe import Recipe
from fieldbook.nn.training import fit
from fieldbook.run.chapter import Run
from fieldbook.run.parameters import Parameters
from fieldbook.run.tables import Parts, sweep, write_csv
from fieldbook.samplers import rescaled, wang_landau
from fieldbook.samplers.potentials import harmonic
from fieldbook.scaling import configs as patch_configs
from fieldbook.scaling import market, patches
from fieldbook.scaling import runs as patch_runs
from fieldbook.spectra import spectroscopy
from fieldbook.stars.emulator import emulator

CONFIGS = Path(__file__).resolve().parents[2] / "parameters/scaling/configs"
KILLS = int(os.environ.get("FIELDBOOK_KILLS", "30"))
PROCESSES = multiprocessing.get_context("forkserver")


# -- what is killed


def swept(folder: Path) -> None:
    """A chapter in small: a sweep by two processes, claims, manifest."""
    os.environ["FIELDBOOK_RESULTS"] = str(folder)
    run = Run("agop", Parameters({"profile": "test", "p": 7, "workers": 2, "shard": [0, 1]}))

    def square(job: dict) -> dict:
        time.sleep(0.05)
        return {"square": job["x"] ** 2 / 7}

    run.sweep("t", [{"x": x} for x in range(40)], square)
    run.claim("it grows", "yes", of="ours", section="c", holds=True)
    run.claims()
    run.finish()


def trained(folder: Path, precision: str, **how: object) -> None:
    """`fit` with dropout, noise, an average of the weights, and updates that are skipped."""
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Linear(4, 32), nn.LayerNorm(32), nn.Tanh(), nn.Dropout(0.3), nn.Linear(32, 1)
    )
    x = torch.randn(53, 4, generator=torch.Generator().manual_seed(1))
    y = (x[:, :1] * x[:, 1:2]).sin()

    def loss(network: nn.Module, index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        noise = 0.1 * torch.randn(len(index), 4, generator=generator)
        value = (network(x[index] + noise) - y[index]).square().mean()
        return value * torch.nan if {3, 5} <= set(index.tolist()) else value

    def evaluate(network: nn.Module, step: int) -> dict[str, float]:
        return {"mse": (network(x).float() - y).square().mean()}

    recipe = Recipe(
        steps=300,
        batch_size=12,
        lr=0.01,
        seed=3,
        precision=precision,
        ema=0.9,
        clip=0.5,
        eval_every=25,
        max_skipped_share=1,
        **how,
    )
    result = fit(
        model,
        loss,
        53,
        recipe,
        evaluate=evaluate,
        checkpoint=folder,
        checkpoint_every=7,
        progress=False,
    )
    assert result.skipped > 0
    facts = [
        result.history,
        result.skipped,
        result.lr_factor,
        result.best_step,
        result.stopped_early,
    ]
    save_weights(model, folder / "final.safetensors")
    save_weights(result.ema, folder / "average.safetensors")
    atomic_write(folder / "facts.json", lambda file: file.write(json.dumps(facts).encode()))


def single(folder: Path) -> None:
    trained(folder, "fp32", schedule="cosine", warmup=20, monitor="mse")


def half(folder: Path) -> None:
    trained(
        folder,
        "bf16",
        schedule="plateau",
        plateau_patience=1,
        monitor="mse",
        patience=9,
        micro_batch=8,
    )


def grokked(folder: Path) -> None:
    """Chapter agop: rows of measures, a checkpoint per milestone."""
    recipe = Recipe(
        steps=150,
        batch_size=64,
        lr=5e-3,
        weight_decay=1.0,
        eval_every=10,
        clip=1.0,
        warmup=5,
        precision="bf16",
        monitor="waiting",
        mode="max",
        patience=1000,
    )
    model = Grokker(11, d_model=32, n_heads=2, d_hidden=64)
    where = folder / "mul_seed0"
    rows = experiment.train(model, task("mul", 11, 0.5, 0), recipe, where, progress=False)
    write_csv(folder / "mul_seed0.csv", rows)


def joined(folder: Path, jobs: list[dict], compute: object, **how: object) -> None:
    """Sweep `runs`, and write each table that its jobs have filled."""
    tables: dict[str, list] = {}
    for part in sweep(Parts(folder / "parts"), jobs, compute, name="runs", **how):
        for name, rows in part.items():
            tables.setdefault(name, []).extend(rows)
    for name, rows in tables.items():
        write_csv(folder / f"{name}.csv", rows)


CELLS = list(product((0.1, 0.3, 1.0, 3.0, 10.0), repeat=2))


def rescalings(folder: Path) -> None:
    """Chapter si_sgld: a grid filled stack by stack, cells in one table, stacks in another."""
    how = rescaled.Sampling(steps=30, burn_in=6, chains=2, batch_size=8)
    t = task("add", 7, 0.6, 0)
    model = Grokker(7, d_model=16, n_heads=2, d_hidden=32)
    start = rescaled.Minimum(
        model,
        t.pairs[t.train],
        t.target[t.train],
        torch.ones(sum(map(torch.numel, model.parameters()))),
    )

    def sample(job: dict) -> dict:
        part = CELLS[3 * job["stack"] : 3 * (job["stack"] + 1)]
        rows = rescaled.rows(start, "psgld", part, how, eps=1e-6, gamma=1e4)
        return {"runs": {"cells": len(rows)}, "add_psgld": rows}

    joined(folder, [{"stack": k} for k in range(9)], sample)


def landscapes(folder: Path) -> None:
    """Chapter entropy: a curve in one table and a summary in another, for each of several
    chains."""
    grid = wang_landau.Grid(-0.4, 1.2, 8)

    def explore(job: dict) -> dict:
        generator = torch.Generator().manual_seed(job["seed"])
        z = torch.randn(1, 4, 6, generator=generator, dtype=torch.float64)
        walkers = wang_landau.start(harmonic, 1.4 * z / z.norm(dim=-1, keepdim=True), generator)
        found = wang_landau.wang_landau(
            harmonic, walkers, grid, generator, steps=60, h=0.15, first=0.1
        )
        points = zip(grid.centres().tolist(), found.entropy[0].tolist(), strict=True)
        curves = [{**job, "x": x, "entropy": s} for x, s in points]
        return {"runs": {"acceptance": found.acceptance}, "curves": curves}

    joined(folder, [{"seed": k} for k in range(10)], explore)


def scaled(folder: Path) -> None:
    """Chapter scaling: days of ticks on disk, then a network, one that starts from it, and a
    baseline."""
    layout = patches.Layout(
        instruments=1, train_days=1, val_days=1, test_days=1, ticks=6600, core=1, unseen=1
    )
    patches.write_patches(folder / "days", market.World(best_short=0.7, best_long=0.25), layout)
    data, configs = patches.open_patches(folder / "days"), patch_configs.read_all(CONFIGS)
    change = {"batch_size": 8, "lr": 1e-3, "precision": "bf16"}
    first, second = (
        patch_configs.resized(configs[name], 16, **change)
        for name in ("ms1_pretrain", "ms1_finetune")
    )
    common = {"group": "law", "seed": 0, "days": 1, "data": {}, "limit": 64, "stride": 4}
    parent = patch_runs.Training(first, **common)
    runs = [
        parent,
        patch_runs.Training(second, parent=parent, **common),
        patch_runs.Baseline("ridge", 1, {}, stride=4),
    ]

    def execute(job: dict) -> dict:
        run = next(run for run in runs if run.run_id == job["run_id"])
        rows = patch_runs.execute(run, data, folder / "weights", torch.device("cpu"))["scores"]
        return {"runs": {}, "scores": rows.drop(columns="wall_s").to_dict("records")}

    joined(folder, [{"run_id": run.run_id} for run in runs], execute)


def starlit(folder: Path) -> None:
    """Chapter spectra_vit: the emulator's grid, HDF5 files of spectra, and the arrays they are
    converted to."""
    nodes = {
        "T_eff": (4500, 4800),
        "log_g": (4.0, 4.5),
        "M_H": (-0.2,),
        "a_M": (0.0,),
        "C_M": (0.0,),
    }
    stars, sizes = emulator(folder / "grid", nodes, components=2), {"train": 3, "val": 2, "test": 2}
    spectroscopy.synthesise(folder / "files", sizes, stars, seed=0, rv_kms=50.0)
    spectroscopy.read(folder / "files", folder / "arrays", sizes)


SERIES = {
    swept: 3,
    single: 16,
    half: 16,
    grokked: 16,
    rescalings: 12,
    landscapes: 12,
    scaled: 12,
    starlit: 12,
}


# -- how


def alone(go, folder: Path) -> None:
    """In a process group of its own, which one signal ends; left at once, without waiting for idle
    workers."""
    os.setsid()
    torch.set_num_threads(1)
    try:
        go(folder)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def started(go, folder: Path) -> multiprocessing.Process:
    process = PROCESSES.Process(target=alone, args=(go, folder))
    process.start()
    return process


def kill(process: multiprocessing.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # not there yet, if it has just begun
    process.kill()
    process.join()


READ = {
    ".safetensors": safetensors.numpy.load_file,
    ".npy": np.load,
    ".parquet": pd.read_parquet,
    ".npz": np.load,
}


def content(root: Path) -> dict[str, bytes]:
    """What a run is for: tables, weights and arrays, each whole; neither locks nor what is still
    under another name."""
    files = {str(file.relative_to(root)): file for file in root.rglob("*") if file.is_file()}
    kept = {
        name: file
        for name, file in files.items()
        if not any(part[0] == "." for part in Path(name).parts)
    }
    for file in kept.values():
        READ.get(file.suffix, Path.stat)(file)
    return {
        name: file.read_bytes()
        for name, file in kept.items()
        if file.suffix in (".csv", *READ) or file.name == "facts.json"
    }


@pytest.fixture(scope="module", autouse=True)
def _warm():
    """Let the server of processes finish its imports, which do not belong to the time that a run
    needs."""
    process = PROCESSES.Process(target=os.getpid)
    process.start()
    process.join()


@pytest.mark.parametrize("go", SERIES, ids=lambda go: go.__name__)
def test_kills_change_no_byte(tmp_path, go):
    began, straight = time.monotonic(), started(go, tmp_path / "straight")
    straight.join()
    expected, needs = content(tmp_path / "straight"), time.monotonic() - began
    assert straight.exitcode == 0 and expected

    root, rng, kills, midway = tmp_path / "killed", random.Random(go.__name__), 0, 0
    count = math.ceil(KILLS * SERIES[go] / sum(SERIES.values()))
    while kills < count:
        process = started(go, root)
        process.join(
            timeout=needs * rng.uniform(*((0.6, 1.0) if go is swept else (0.0, 0.8)))
        )  # workers begin late
        if process.is_alive():
            kill(process)
            kills += 1
            midway += root.exists() and content(root) not in ({}, expected)
        else:  # it finished in spite of the kills before: check, and begin again
            assert process.exitcode == 0 and content(root) == expected
            shutil.rmtree(root)
    print(f"{go.__name__}: {needs:.2f} s alone, {kills} kills, {midway} of them midway")
    last = started(go, root)
    last.join()
    assert last.exitcode == 0 and content(root) == expected
    assert go not in (single, half, grokked) or not list(root.rglob("*.tmp"))
    assert midway >= count // 6 or go is swept, "too few kills came in the middle"


# -- workers whose parent alone is killed


def busy(folder: Path) -> None:
    def compute(job: dict) -> dict:
        (folder / str(os.getpid())).touch()
        time.sleep(300 * job["x"])
        return {"y": 0}

    joined(folder, [{"x": x} for x in (0, 0.001, 0.002, 1)], compute, workers=2)


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    process = PROCESSES.Process(target=busy, args=(tmp_path,))
    process.start()
    while len(list((tmp_path / "parts").glob("*.json"))) < 3:
        assert process.is_alive()
        time.sleep(0.05)
    time.sleep(0.5)
    workers = [int(file.name) for file in tmp_path.iterdir() if file.name.isdigit()]
    assert workers and all(map(alive, workers))
    process.kill()
    deadline = time.monotonic() + 20
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, "workers live on"
        time.sleep(0.1)
