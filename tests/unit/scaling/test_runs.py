"""Runs of every mode and what their rows say: identity, failures, memory, precision, and a schema
that refuses."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from fieldbook.nn.recipe import indices
from fieldbook.scaling import configs as pc
from fieldbook.scaling import market, patches
from fieldbook.scaling import runs as pr
from fieldbook.scaling import transformer as pt

CPU = torch.device("cpu")
CONFIGS = {config.name: config for config in pc.generate()}
SMALL = {"batch_size": 16, "precision": "fp32", "lr": 1e-2}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    world = market.World(best_short=0.7, best_long=0.25)
    layout = patches.Layout(
        instruments=3, train_days=4, val_days=1, test_days=2, ticks=6600, core=2, unseen=1
    )
    patches.write_patches(folder, world, layout)
    return patches.open_patches(folder)


def a_run(name="level1_pretrain", **changes):
    config = pc.resized(CONFIGS[name], 16, **SMALL | changes.pop("config", {}))
    return pr.Training(config, **{"group": "law", "seed": 0, "days": 4, "data": {}} | changes)


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    run = a_run()
    return run, folder, pr.execute(run, data, folder, CPU)


def test_pretraining_beats_the_zero_forecast(data, pretrained):
    run, folder, out = pretrained
    rows = pr.checked(out["scores"], "scores")
    assert len(rows) == 3 * 7 and rows.status.eq("ok").all() and rows.run_id.eq(run.run_id).all()
    zero = pr.execute(pr.Baseline("zero", 1, {}), data, folder, CPU)["scores"]
    assert (
        rows.excess_risk[rows.split == "test"].mean()
        < 0.8 * zero.excess_risk[zero.split == "test"].mean()
    )
    assert (folder / f"{run.run_id}.safetensors").exists() and not (folder / run.run_id).exists()
    row = rows.iloc[0]
    assert (
        row.d_unique == 3 * 4 * 99 and row.steps == 12 * 99 // 16 and row.d_seen == row.steps * 16
    )
    assert row.n_params_total == row.n_params_trainable == pt.count(pt.build("pretrain", 16, 1, 1))
    assert row.n_params_nonemb == row.n_params_total - (53 * 16 + 60 * 16)
    assert row.flops_6nd == 6 * row.n_params_total * 60 * row.d_seen
    curve = out["curves"]
    assert curve.val_excess.iloc[-1] < curve.val_excess.iloc[0] and curve.step.iloc[-1] == row.steps


@pytest.mark.parametrize("name", ["level2_finetune", "end2end", "factor", "linear_baseline"])
def test_every_other_mode_runs(name, data, pretrained):
    parent, folder, _ = pretrained
    finetune = name == "level2_finetune"
    run = a_run(
        name,
        stride=4,
        limit=32,
        parent=parent if finetune else None,
        config={"batch_size": 8, "lr": 1e-3},
    )
    out = pr.execute(run, data, folder, CPU)
    rows = pr.checked(out["scores"], "scores")
    assert (
        set(rows.horizon) == set(pt.LONG_HORIZONS)
        and rows.steps.eq(4).all()
        and rows.d_unique.eq(32).all()
    )
    assert rows.n_params_total.iloc[0] == (run.config.n_params)
    assert (rows.n_params_trainable < rows.n_params_total).all() == finetune
    assert (
        rows.parent_run_id.eq(parent.run_id).all() if finetune else rows.parent_run_id.isna().all()
    )
    days = out["days"].groupby("horizon").excess_risk.mean()
    test = rows[rows.split == "test"].set_index("horizon").excess_risk
    pd.testing.assert_series_equal(days, test, check_names=False)


@pytest.mark.parametrize("level", [1, 2])
def test_baselines_are_what_they_say(level, data, tmp_path):
    runs = {
        name: pr.Baseline(name, level, {}, stride=4)
        for name in ("zero", "oracle", "ridge", "lightgbm")
    }
    found = {name: pr.execute(run, data, tmp_path, CPU) for name, run in runs.items()}
    test = {
        name: pr.checked(out["scores"], name).query("split == 'test'")
        for name, out in found.items()
    }
    assert (
        test["oracle"].excess_risk.eq(0).all()
        and (test["oracle"].mse == test["oracle"].oracle_mse).all()
    )
    assert test["zero"].ic.eq(0).all() and test["zero"].excess_risk.gt(0).all()
    if level == 1:
        for name in ("ridge", "lightgbm"):
            assert test[name].excess_risk.mean() < test["zero"].excess_risk.mean()
    with pytest.raises(ValueError, match="'mean'"):
        pr.Baseline("mean", level, {})


@pytest.mark.parametrize("level", [1, 2])
def test_ridge_is_not_chosen_by_the_luck_of_validation_days(level, data, tmp_path):
    unlucky = replace(data, target={**data.target, level: np.array(data.target[level])})
    days = np.flatnonzero(data.items.split == "val")
    unlucky.target[level][days] += np.random.default_rng(0).normal(
        0, 20, unlucky.target[level][days].shape
    )
    run = pr.Baseline("ridge", level, {}, stride=4)
    one, two = (
        pr.execute(run, patches, tmp_path, CPU)["scores"].query("split == 'test'")
        for patches in (data, unlucky)
    )
    assert two.mse.tolist() == one.mse.tolist()


def test_scores_by_hand():
    y, f, p = (
        np.array([0.0, 1.0, 2.0, 5.0]),
        np.array([0.5, 1.0, 2.0, 3.0]),
        np.array([0.0, 1.0, 9.0, 10.0]),
    )
    found = pr.score(y, f, p)
    assert found["mse"] == (49 + 25) / 4 and found["oracle_mse"] == (0.25 + 4) / 4
    assert found["excess_risk"] == (0.25 + 49 + 49) / 4 and found["rank_ic"] == pytest.approx(1)
    assert found["ic"] == pytest.approx(np.corrcoef(y, p)[0, 1])


def test_identity_is_what_determines_the_weights():
    run = a_run()
    assert run.run_id == a_run().run_id and len(run.run_id) == 13 and run.run_id[0] == "r"
    assert run.run_id == a_run(group="other", config={"name": "another"}, micro_batch=4).run_id
    others = [
        a_run(seed=1),
        a_run(days=3),
        a_run(limit=9),
        a_run(config={"lr": 2e-2}),
        a_run(data={"tau": 1}),
    ]
    assert len({other.run_id for other in others} | {run.run_id}) == 6


def test_bf16_scores_as_fp32(data, tmp_path):
    rows = [
        pr.execute(a_run(config={"precision": p}), data, tmp_path, CPU)["scores"]
        for p in ("fp32", "bf16")
    ]
    full, low = (r[r.split == "val"].set_index("horizon") for r in rows)
    assert rows[1].precision.eq("bf16").all()
    np.testing.assert_allclose(low.mse, full.mse, rtol=0.01)
    np.testing.assert_allclose(low.ic, full.ic, atol=0.02)
    assert not low.mse.equals(full.mse)


def test_out_of_memory_halves_the_micro_batch_and_both_numbers_are_kept(
    data, tmp_path, monkeypatch
):
    whole = pr.execute(a_run(), data, tmp_path, CPU)["scores"]
    embed = pt.Level1.embed

    def narrow(self, x):
        if self.training and len(x) > 5:
            raise torch.OutOfMemoryError("injected")
        return embed(self, x)

    monkeypatch.setattr(pt.Level1, "embed", narrow)
    rows = pr.execute(a_run(), data, tmp_path, CPU)["scores"]
    assert (
        rows.batch_eff.eq(16).all()
        and rows.micro_batch.eq(4).all()
        and whole.micro_batch.eq(16).all()
    )
    np.testing.assert_allclose(rows.mse, whole.mse, rtol=1e-3)

    def never(self, x):
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(pt.Level1, "embed", never)
    rows = pr.checked(pr.execute(a_run(), data, tmp_path, CPU)["scores"], "scores")
    assert rows.status.eq("out of memory").all() and rows.mse.isna().all()


def test_infinite_targets_are_skipped_and_counted_and_too_many_leave_a_row(data, tmp_path):
    samples, y = data.examples(1, "train"), data.target[1].copy()
    y[1, [20, 40]] = np.inf
    bad = np.flatnonzero(~np.isfinite(y[tuple(samples.T)]).all(1))
    rows = pr.execute(a_run(), replace(data, target=data.target | {1: y}), tmp_path, CPU)["scores"]
    batches = [indices(len(samples), 16, step, 0).numpy() for step in range(rows.steps[0])]
    assert (
        len(bad) == 2
        and rows.n_skipped.eq(sum(np.isin(bad, batch).any() for batch in batches)).all()
    )
    assert rows.status.eq("ok").all() and rows.mse.lt(10).all() and rows.n_skipped.gt(0).all()
    y[1:12, 10:] = np.inf
    rows = pr.execute(a_run(), replace(data, target=data.target | {1: y}), tmp_path, CPU)["scores"]
    assert pr.checked(rows, "x").status.eq("diverged").all() and rows.excess_risk.isna().all()
    assert rows.n_eval.gt(0).all() and rows.n_skipped.gt(0).all()


@pytest.mark.parametrize(
    "column, value",
    [
        ("ic", 1.5),
        ("mse", -1.0),
        ("mse", np.nan),
        ("split", "train"),
        ("horizon", 3),
        ("run_id", "x1"),
        ("status", "fine"),
    ],
)
def test_the_schema_names_row_and_column(column, value, pretrained):
    rows = pretrained[2]["scores"].copy()
    rows.loc[4, column] = value
    with pytest.raises(ValueError, match=rf"file\.csv: row 4, column {column}"):
        pr.checked(rows, "file.csv")


def test_the_schema_refuses_missing_and_foreign_columns(pretrained):
    rows = pretrained[2]["scores"]
    with pytest.raises(ValueError, match="oracle_mse"):
        pr.checked(rows.drop(columns="oracle_mse"), "file.csv")
    with pytest.raises(ValueError, match="mood"):
        pr.checked(rows.assign(mood=1), "file.csv")
    with pytest.raises(ValueError, match="column steps"):
        pr.checked(rows.assign(steps=["12"] * len(rows)), "file.csv")


def test_failed_runs_do_not_enter_a_mean(pretrained):
    rows = pretrained[2]["scores"]
    failed = rows.assign(status="diverged", mse=np.nan, excess_risk=np.nan)
    both = pr.mean_over_horizons(pd.concat([rows, failed]), ["run_id", "split"])
    test = rows[rows.split == "test"]
    assert both.set_index("split").excess_risk["test"] == pytest.approx(test.excess_risk.mean())
