"""Two processes at one thing, one of them killed: the other one completes it, and nothing is lost
or doubled."""

import fcntl
import multiprocessing
import os
import random
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from fieldbook.nn.checkpoints import atomic_write, load_checkpoint, save_weights
from fieldbook.nn.recipe import Recipe
from fieldbook.nn.training import fit
from fieldbook.run.tables import Parts, sweep, write_csv

PROCESSES = multiprocessing.get_context("forkserver")


def fill(folder: Path, who: int) -> None:
    def compute(job: dict) -> dict:
        with open(folder / "computed", "a") as file:
            file.write(f"{job['x']}\n")
        time.sleep(0.01)
        return {"square": job["x"] ** 2 / 7}

    found = sweep(Parts(folder / "parts"), [{"x": x} for x in range(30)], compute, name="t")
    write_csv(folder / "t.csv", [row for part in found for row in part["t"]])


def train(folder: Path, who: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(5)
    model, x = nn.Linear(6, 6), torch.randn(40, 6)

    def loss(network: nn.Module, index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return (network(x[index]) - x[index] * torch.randn(6, generator=generator)).square().mean()

    def evaluate(network: nn.Module, step: int) -> dict[str, float]:
        return {"mse": (network(x) - x).square().mean()}

    recipe = Recipe(steps=60, batch_size=8, lr=0.01, eval_every=10, monitor="mse")
    fit(
        model,
        loss,
        40,
        recipe,
        evaluate=evaluate,
        checkpoint=folder / "fit",
        checkpoint_every=1,
        progress=False,
    )
    save_weights(model, folder / f"final{who}.safetensors")


def together(go, folder: Path, kill_after: float | None) -> None:
    """Two processes, the second a little later; the first is killed if asked for."""
    folder.mkdir()
    first, second = (PROCESSES.Process(target=go, args=(folder, who)) for who in (0, 1))
    first.start()
    time.sleep(0.02)
    second.start()
    if kill_after is not None:
        first.join(timeout=kill_after)
        first.kill()
    first.join()
    second.join()
    assert second.exitcode == 0 and (kill_after is not None or first.exitcode == 0)


@pytest.mark.parametrize("kill", [False, True])
def test_a_sweep_by_two_has_each_row_once(tmp_path, kill):
    rng = random.Random(0)
    for k in range(4 if kill else 1):
        folder = tmp_path / str(k)
        together(fill, folder, rng.uniform(0.05, 0.3) if kill else None)
        assert pd.read_csv(folder / "t.csv").x.tolist() == list(range(30))
        computed = (folder / "computed").read_text().split()
        assert (
            len(set(computed)) == 30 and len(computed) <= 30 + kill
        )  # what the killed one was at, again
        assert (folder / "t.csv").read_bytes() == (tmp_path / "0" / "t.csv").read_bytes()


def test_what_a_kill_has_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    old, new, busy = (tmp_path / f".x.npy.{name}.tmp" for name in ("old", "new", "busy"))
    for file in (old, new, busy):
        file.write_bytes(b"half")
    for file in (old, busy):
        os.utime(file, (1, 1))
    with open(busy) as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        atomic_write(tmp_path / "x.npy", lambda file: file.write(b"whole"))
        assert sorted(tmp_path.iterdir()) == sorted([new, busy, tmp_path / "x.npy"])
        assert load_checkpoint(tmp_path / "last.pt", {}) is None
        assert sorted(tmp_path.iterdir()) == sorted([busy, tmp_path / "x.npy"])


@pytest.mark.parametrize("kill", [False, True])
def test_one_training_by_two_comes_to_the_same_weights(tmp_path, kill):
    (tmp_path / "alone").mkdir()
    train(tmp_path / "alone", 0)
    rng = random.Random(0)
    for k in range(3):
        folder = tmp_path / str(k)
        together(train, folder, rng.uniform(0.05, 0.4) if kill else None)
        expected = (tmp_path / "alone" / "final0.safetensors").read_bytes()
        assert all(file.read_bytes() == expected for file in folder.glob("final*"))
        best = "fit/best.safetensors"
        assert (folder / best).read_bytes() == (tmp_path / "alone" / best).read_bytes()
        train(folder, 2)
        assert sorted(file.name for file in (folder / "fit").iterdir()) == [
            "best.safetensors",
            "last.pt",
        ]
