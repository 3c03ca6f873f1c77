"""A run killed at random moments ends with the same bytes as one left alone."""

import multiprocessing
import random
import shutil

import torch

from fieldbook import grokking
from fieldbook.data.modular import task
from fieldbook.models.grokker import Grokker
from fieldbook.recipe import Recipe
from fieldbook.tables import Table

KILLS = 20
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["fieldbook.grokking"])


def go(folder):
    torch.set_num_threads(1)
    recipe = Recipe(
        steps=150, batch_size=64, lr=5e-3, weight_decay=1.0, eval_every=10, clip=1.0, warmup=5, precision="bf16",
        monitor="waiting", mode="max", patience=1000,
    )  # fmt: skip
    model = Grokker(11, d_model=32, n_heads=2, d_hidden=64)
    table = Table(folder / "mul_seed0.csv", ["step"])
    grokking.train(model, task("mul", 11, 0.5, 0), recipe, table, folder / "mul_seed0", progress=False)


def content(folder):
    files = [folder / "mul_seed0.csv", *sorted((folder / "mul_seed0").rglob("*.safetensors"))]
    return {file.name: file.read_bytes() for file in files}


def test_twenty_kills_change_no_byte(tmp_path):
    go(tmp_path / "straight")
    expected = content(tmp_path / "straight")
    assert {"mul_seed0.csv", "initial.safetensors", "final.safetensors"} <= set(expected)

    killed, rng, kills = tmp_path / "killed", random.Random(0), 0
    while kills < KILLS:
        process = PROCESSES.Process(target=go, args=(killed,))
        process.start()
        process.join(timeout=rng.uniform(0.05, 0.8))
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
        else:  # it finished in spite of the kills before: check, and begin again
            assert process.exitcode == 0 and content(killed) == expected
            shutil.rmtree(killed)
    go(killed)
    assert content(killed) == expected
    assert not list(killed.rglob("*.tmp")) and not list(killed.rglob("agop/*"))
