import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from fieldbook.grokking import experiment, networks
from fieldbook.grokking.agop import agop, one_hot_blocks
from fieldbook.grokking.circulant import circulant_score
from fieldbook.grokking.grokker import Grokker
from fieldbook.grokking.modular import task
from fieldbook.nn.checkpoints import load_weights
from fieldbook.nn.recipe import Recipe

SMALL = {"d_model": 32, "n_heads": 2, "d_hidden": 64}


def recipe(**changes):
    common = {
        "steps": 40,
        "batch_size": 32,
        "lr": 5e-3,
        "weight_decay": 1.0,
        "eval_every": 10,
        "clip": 1.0,
    }
    return Recipe(**{**common, **changes})


def go(folder, **changes):
    model = Grokker(11, **SMALL)
    how = recipe(**changes)
    rows = experiment.train(model, task("mul", 11, 0.5, 0), how, folder / "run", progress=False)
    return model, pd.DataFrame(rows)


def test_columns_and_milestones(tmp_path):
    model, rows = go(tmp_path)
    assert list(rows) == [
        "step",
        "train_loss",
        "train_acc",
        "test_loss",
        "test_acc",
        "test_acc_strict",
        "test_acc_residue",
        "agop_circ",
        "agop_circ_ab",
        "agop_hankel_ab",
        "agop_circ_natural",
        "sqrt_agop_circ",
        "emb_circ",
        "emb_gini",
        "emb_top5",
        "eq_test",
        "agop_align",
        "agop_trace",
        "loss_agop_norm",
        "cycle_bias_hidden",
        "weight_norm",
    ]
    assert rows.step.tolist() == [0, 10, 20, 30, 40] and rows.notna().all(axis=None)
    assert rows.agop_align.iloc[-1] == pytest.approx(1) and rows.agop_align.iloc[0] < 1
    again = Grokker(11, **SMALL, seed=5)
    load_weights(again, tmp_path / "run" / "final.safetensors")
    assert torch.equal(again.head.weight, model.head.weight)
    assert (tmp_path / "run" / "initial.safetensors").exists() and not (
        tmp_path / "run" / "agop"
    ).exists()


def test_rows_that_were_deleted_are_computed_again(tmp_path, capsys):
    _, rows = go(tmp_path)
    shutil.rmtree(tmp_path / "run" / "rows")
    assert go(tmp_path)[1].equals(rows)
    assert "training anew" in capsys.readouterr().err


def test_measures_are_deterministic(tmp_path):
    _, one = go(tmp_path / "one")
    _, two = go(tmp_path / "two")
    assert one.equals(two)


def test_measure_agrees_with_the_exact_agop():
    model, t = Grokker(11, **SMALL), task("add", 11, 0.5, 0)
    row, blocks = experiment.measure(model, t, torch.Generator().manual_seed(0), sketch=64)
    exact = one_hot_blocks(agop(model.decode, model.token(t.pairs)), model.numbers).detach()
    assert (blocks - exact).norm() / exact.norm() < 0.05
    assert row["agop_circ"] == pytest.approx(
        float(circulant_score(exact).diagonal().mean()), abs=0.02
    )
    assert math.isnan(row["test_acc_residue"])
    assert all(w.requires_grad for w in model.parameters())


def test_an_oracle_scores_as_one():
    """A network whose logits and embeddings are exact characters of Z_p has every score at its
    upper end.

    Two frequencies of five: with all of them the AGOP is the identity, which is the same in every
    token order.
    """
    p = 11
    t = task("sub", p, 0.5, 0)
    angle = 2 * math.pi * torch.outer(torch.arange(p), torch.arange(1, 3)) / p
    characters = torch.cat([angle.cos(), angle.sin()], 1)
    k = characters.shape[1] // 2

    class Oracle(Grokker):
        def decode(self, operands):
            (ca, sa), (cb, sb) = (operands[:, i].split(k, -1) for i in (0, 1))
            difference = torch.cat([ca * cb + sa * sb, sa * cb - ca * sb], -1)
            return 20 * difference @ characters.T

    model = Oracle(p, d_model=2 * k, n_heads=1, d_hidden=4)
    model.token.weight.data[:p] = characters
    row, _ = experiment.measure(model, t, torch.Generator().manual_seed(0), sketch=200)
    assert row["test_acc"] == row["train_acc"] == row["test_acc_strict"] == 1
    assert row["agop_circ"] > 0.9 and row["eq_test"] > 0.999 and row["emb_circ"] > 0.999


def test_crossing_and_summary():
    steps = np.arange(0, 600, 100)
    assert experiment.crossing(steps, [0, 0, 0, 1, 1, 1], 0.5) == 250
    assert experiment.crossing(steps, [0, 0.1, 0.4, 0.6, 1, 0.9], 0.5) == pytest.approx(250)
    assert math.isnan(experiment.crossing(steps, [1, 0.5, 0.2, 0.1, 0, 0], 0.5))
    accuracy = [0, 0, 0, 0, 0.995, 1]
    score = [0, 0, 0, 0.9, 0.9, 0.9]
    rows = pd.DataFrame(
        {
            "step": steps,
            "test_acc": accuracy,
            "test_acc_strict": accuracy,
            "agop_circ": score,
            "emb_gini": 0.5,
        }
    )
    s = experiment.summary(rows)
    assert s["grokked_step"] == 400 and s["last_step"] == 500
    assert s["lead_50"] == pytest.approx(350.25 - 250, abs=2)


def test_stopping_a_while_after_grokking(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "GROKKED", -1.0)  # "grokked" from the start
    _, rows = go(tmp_path, steps=200, monitor="waiting", mode="max", patience=3)
    assert rows.step.max() == 30


def test_a_network_that_does_not_generalise_has_no_lead():
    flat = [0, 0, 0.1, 0.3]
    rows = pd.DataFrame(
        {
            "step": range(4),
            "test_acc": flat,
            "test_acc_strict": flat,
            "agop_circ": flat,
            "emb_gini": 0.5,
        }
    )
    assert math.isnan(experiment.summary(rows)["lead_50"])
