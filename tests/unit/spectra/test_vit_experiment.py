"""Which models are compared, what the ceiling is, and what a difference of scores is worth."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from fieldbook.spectra import vit_experiment as experiment
from fieldbook.stars.dataset import Spectra

PAR = SimpleNamespace(n_train=[32, 64, 128], noise_level=1.0, noise_levels=[0.0, 1.0, 2.0], seeds=2)


def table():
    """A score for each job, its number."""
    jobs = pd.DataFrame(experiment.jobs(PAR))
    return jobs.assign(method=jobs.model.map(experiment.METHODS), test_r2=np.arange(len(jobs)))


def test_jobs_are_distinct_and_every_kind_of_model_meets_the_most_spectra():
    jobs = table()
    assert not jobs[list(experiment.JOB)].duplicated().any()
    assert set(jobs[jobs.n_train == 128].model) == set(experiment.METHODS)
    assert (jobs.run == experiment.HEAD).sum() == 2 * 3  # seeds, sizes
    assert jobs.method.notna().all()


def test_other_noise_or_inputs_are_compared_only_where_that_is_the_question():
    jobs = table()
    fair = experiment.compared(jobs, PAR)
    assert set(fair.run) == {experiment.HEAD, "flux"} and set(fair.noise_level) == {1.0}
    by_noise = experiment.by_noise(jobs, PAR)
    assert list(dict.fromkeys(by_noise.noise)) == list(experiment.NOISE.values())
    assert set(by_noise.n_train) == {32}
    by_input = experiment.by_input(jobs, PAR)
    assert len(by_input) == 4 and set(by_input.n_train) == {64}


def test_one_size_is_first_second_and_last():
    one = SimpleNamespace(**vars(PAR) | {"n_train": [64]})
    assert {job["n_train"] for job in experiment.jobs(one)} == {64}


def test_no_model_is_fitted_to_the_noise_that_it_is_tested_on():
    """Else it learns to answer noise with the label of another star."""
    flux = np.full((40, 300), 0.5, np.float32)
    labels = pd.DataFrame({"log_g": np.arange(40.0)})
    spectra = Spectra(np.linspace(8000, 9000, 300), flux, 0.2 * flux, labels)
    setting = experiment.Setting(PAR, "cpu", None, {"train": spectra, "test": spectra})
    seen = [setting.seen("train", 1.0, draw=draw) for draw in range(experiment.DRAWS)]
    draws = [noisy - torch.from_numpy(spectra.flux) for noisy in [setting.seen("test", 1.0), *seen]]
    alike = torch.corrcoef(torch.stack([draw.flatten() for draw in draws]))
    assert (alike - torch.eye(len(draws))).abs().max() < 0.05


def test_ceilings_are_those_of_the_bounds():
    rows = pd.DataFrame(
        {"unbiased": [0.1, 0.2, 9.0], "linear": [0.2, 0.3, 0.4], "least": [0.1] * 3}
    )
    found = experiment.ceilings(rows, 2.0)
    assert found == pytest.approx({"unbiased": 0.9, "linear": 0.85, "least": 0.95, "error": 0})
    assert experiment.label_variance("full") == pytest.approx(16 / 12)
    binned = rows.assign(mag=[20.6, 20.6, 22.4])
    assert dict(experiment.ceiling_by(binned, "mag", 2.0)) == pytest.approx(
        {20.625: 0.95, 22.375: 0.95}
    )


def test_the_error_of_a_gap_is_that_of_drawn_test_stars():
    rng = np.random.default_rng(0)
    residual = rng.normal(size=(4000, 500))
    r2 = 1 - np.square(0.5 * residual).mean(1)  # relative to the labels' variance, which is 1
    difference, doubt = experiment.gap(0.75, 0.75, stars=500)
    assert difference == 0
    assert doubt / math.sqrt(2) == pytest.approx(r2.std(), rel=0.05)
    assert experiment.gap(0.5, 0.25, 1.0, stars=10**12) == pytest.approx((0.25, 1.0))


def test_a_change_is_paired_by_seed():
    rows = [("run 3", 0, 0.1), ("run 3", 1, 0.5), ("Huber", 0, 0.2), ("Huber", 1, 0.6)]
    ablation = pd.DataFrame(rows, columns=["variant", "seed", "test_r2"])
    assert experiment.change(ablation, "Huber") == pytest.approx((0.1, 0.0), abs=1e-12)
    assert math.isnan(experiment.change(ablation[ablation.seed == 0], "Huber")[1])


def test_lines_hold_a_share_of_the_information():
    tour = pd.DataFrame(
        {"wavelength": [7100.0, 8545.0, 8550.0, 8809.0], "density": [0.4, 0.3, 0.2, 0.1]}
    )
    assert experiment.near_lines(tour) == pytest.approx((0.6, 0.75))


def test_differences_are_told_and_judged():
    gains = [(0.1, 0.02), (-0.05, math.nan)]
    assert experiment.told(gains, ["trees", "ridge"]) == "trees +0.100 ± 0.020, ridge -0.050 ± nan"
    assert experiment.told([(0.1, 0.02)]) == "+0.100 ± 0.020"
    found = experiment.judged(gains, True, above=0)
    assert found["estimate"] == (0.1, -0.05) and found["tested"] and found["above"] == 0
