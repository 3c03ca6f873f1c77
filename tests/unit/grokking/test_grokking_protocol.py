"""The plan of all runs, and what is read off their rows."""

import math

import numpy as np
import pandas as pd
import pytest

from fieldbook.grokking import experiment, protocol
from fieldbook.run.parameters import Parameters

STEPS = np.arange(0, 700, 100)


def rows_of(**changes):
    """A network whose score, loss and accuracy pass half of their ranges 250, 200 and 450 updates
    after the start; the loss has its peak at 100."""
    columns = {
        "step": STEPS,
        "train_acc": [0, 0.5, 1, 0.98, 1, 1, 1],
        "test_loss": [4, 8, 4, 1, 0, 0, 0],
        "test_acc_strict": [0, 0, 0, 0, 0.25, 0.75, 1],
        "agop_circ": [0, 0, 0.2, 0.6, 0.8, 0.8, 0.8],
        "loss_agop_norm": [0, 9, 6, 5, 4, 3, 2],
    }
    return pd.DataFrame(columns | changes)


def test_passings_count_the_loss_from_its_peak():
    found = experiment.passings(rows_of(), 0.5)
    assert found == pytest.approx({"score": 250, "loss": 200, "accuracy": 450})
    never = rows_of(test_acc_strict=[0, 0, 0, 0, 0.1, 0.2, 0.4])
    assert all(map(math.isnan, experiment.passings(never, 0.5).values()))


def test_a_level_is_reached_once_or_never():
    assert experiment.reached(STEPS, rows_of().agop_circ, 0.4) == pytest.approx(250)
    assert experiment.reached(STEPS, rows_of().agop_circ, 0.0) == 0
    assert math.isnan(experiment.reached(STEPS, rows_of().agop_circ, 0.9))


def test_leads_of_networks_but_not_of_controls():
    job = {"operation": "add", "seed": 0, "control": "none"}
    never = rows_of(test_acc_strict=0.0).assign(**job | {"seed": 1})
    control = rows_of().assign(**job | {"control": "few"})
    frame = protocol.leads(pd.concat([rows_of().assign(**job), never, control]))
    assert len(frame) == 8
    first = frame[frame.seed == 0].set_index("mark")
    assert first.score["50 %"] == pytest.approx(200) and first.loss["50 %"] == pytest.approx(250)
    assert first.difference["50 %"] == pytest.approx(-50)
    assert first.score["0.5"] == pytest.approx(450 - 275) and math.isnan(first.loss["0.5"])
    assert frame[frame.seed == 1][["score", "loss"]].isna().all(axis=None)


def test_rank_correlations_begin_with_the_memorised_network():
    found = experiment.rank_correlations(rows_of(), "loss_agop_norm")
    assert found["step"] == pytest.approx(-1) and found["loss_agop_norm"] == pytest.approx(1)
    assert found["test_loss"] == pytest.approx(rows_of()[2:].corr("spearman").test_loss.iloc[-1])


def test_random_matrices_score_zero_and_circulants_one():
    frame = protocol.nulls(Parameters({"p": 23, "d_model": 8}), draws=400)
    mean = frame.groupby("matrix")[["share", "score"]].mean()
    assert mean.score.round(2).tolist() == [0, 1, 0] and mean.share["exact circulant"] > 0.999
    assert mean.share["independent entries"] == pytest.approx(1 / 23, rel=0.1)
    assert mean.share["Gram matrix of random embeddings"] > 0.2


def test_jobs_are_distinct_and_end_with_the_controls():
    chosen = {"operations": ["sub", "mul"], "seeds": [3, 4]}
    jobs = protocol.jobs_of(Parameters(chosen | {"controls": True}))
    names = [protocol.name_of(job) for job in jobs]
    assert names[:2] == ["sub_seed3", "sub_seed4"] and len(set(names)) == len(names) == 6
    assert names[-2:] == ["sub_seed3_wd0", "sub_seed3_few"]
    assert protocol.jobs_of(Parameters(chosen | {"controls": False})) == jobs[:4]
    assert protocol.shown(Parameters(chosen)) == "mul"
    assert protocol.shown(Parameters({"operations": ["sub"]})) == "sub"
