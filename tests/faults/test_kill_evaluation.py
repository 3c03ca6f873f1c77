"""An evaluation killed at random moments ends with the measures of one left alone."""

import multiprocessing
import random

import pandas as pd
import torch

from fieldbook.drifting import evaluation, experiment
from fieldbook.drifting.images import Images, digits
from fieldbook.drifting.judge import judge

KILLS = 8
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["fieldbook.drifting.evaluation"])


def go(run, output):
    torch.set_num_threads(1)
    d = digits()
    small = judge(Images(d.train[:100], d.train_label[:100], d.test, d.test_label), steps=5)
    sampling = evaluation.Sampling(num_samples=200)
    evaluation.evaluate(run, output, small, sampling, skip_existing=True, cleanup_samples=True)


def test_kills_change_no_measure(tmp_path):
    small = {
        "width": 8,
        "depth": 1,
        "set_size": 4,
        "positives": 4,
        "groups": 3,
        "steps": 8,
        "eval_every": 1,
    }
    experiment.train(experiment.Setting(data="digits", **small), tmp_path / "run")
    go(tmp_path / "run", tmp_path / "straight")
    rng, kills = random.Random(0), 0
    while True:
        process = PROCESSES.Process(target=go, args=(tmp_path / "run", tmp_path / "killed"))
        process.start()
        process.join(timeout=None if kills >= KILLS else rng.uniform(0.3, 1.5))
        if not process.is_alive():
            assert process.exitcode == 0
            break
        process.kill()
        process.join()
        kills += 1
    one, two = (
        pd.read_csv(tmp_path / name / "measures.csv").drop(columns="eval_seconds")
        for name in ("straight", "killed")
    )
    assert one.equals(two) and len(one) == 9
    assert not list((tmp_path / "killed").rglob("*.tmp")) and not list(
        (tmp_path / "killed").rglob("generated")
    )
