"""The experiment on small data: which noise a job sees, what is compared, and its ceiling."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from fieldbook.spectra import probe_experiment
from fieldbook.spectra.blindspot import BlindSpotUNet
from fieldbook.spectra.probe_experiment import REACH, Lab, ceiling, moved, r2_of, slopes, usual
from fieldbook.stars.dataset import Spectra

PAR = SimpleNamespace(
    noise_level=2.0,
    n_train=[32, 64],
    poolings=["global_mean", "seg_mean_K8"],
    pooling="seg_mean_K8",
    heads=["ridge", "mlp_1"],
    seeds=2,
)


def lab():
    rng = np.random.default_rng(0)
    flux = rng.uniform(0.4, 0.6, (6, 64)).astype(np.float32)
    params = pd.DataFrame({"log_g": np.arange(6.0)})
    spectra = Spectra(np.linspace(8000, 9000, 64), flux, np.full_like(flux, 0.1), params)
    return Lab(PAR, torch.device("cpu"), {"train": spectra, "test": spectra})


def rows():
    """A score for each job, by which the job is known."""
    jobs = probe_experiment._probe_jobs(PAR)
    return pd.DataFrame(jobs).assign(r2=np.arange(len(jobs)) / 100)


def test_noise_is_drawn_anew_for_the_train_split_alone():
    noisy = lab().noisy
    assert not noisy("train", 0)[0].equal(noisy("train", 1)[0])
    assert noisy("test", 0)[0].equal(noisy("test", 1)[0])
    flux, sigma = noisy("train", n=3)
    assert flux.equal(noisy("train")[0][:3]) and sigma.unique() == pytest.approx(0.2)
    assert lab().gravity("test", 2).tolist() == [0, 1]


def test_no_job_comes_twice_and_an_error_is_not_drawn_twice():
    table = rows()
    keys = table.drop(columns="r2")
    assert not keys.duplicated().any()
    assert set(keys[keys.layer == "error"].seed) == {0}
    assert set(keys[keys.encoder == "none"].pooling) == {"none"}


def test_scores_are_those_of_the_place_that_is_asked_for():
    table = rows()
    asked = r2_of(table, PAR, "with sigma", "mlp_1", pooling="global_mean", layer="enc_last")
    found = table.query("layer == 'enc_last' and pooling == 'global_mean' and head == 'mlp_1'")
    assert asked.tolist() == found.r2.tolist() and asked.index.tolist() == [0, 1]
    assert len(r2_of(table, PAR, "none", layer="flux")) == 2
    assert r2_of(table, PAR, "with sigma", "mlp_2").empty


def test_usual_rows_are_frozen_and_of_one_place():
    found = usual(rows(), PAR)
    assert found.frozen.all() and set(found.direction) == {"forward", "none"}
    assert set(found.source) == {*probe_experiment.ENCODERS, "sigma alone", "flux", "error"}


def test_slopes_vanish_at_the_own_pixel_alone():
    model = BlindSpotUNet(3, 4, 3).eval()
    x = 0.5 + 0.1 * torch.rand(2, 64, generator=torch.Generator().manual_seed(0))
    found = slopes(model, x, torch.full_like(x, 0.1))
    assert (found[:, REACH] == 0).all() and (found[:, [REACH - 1, REACH + 1]] > 0).all()
    model.blindspot = False
    assert (slopes(model, x, torch.full_like(x, 0.1))[:, REACH] > 0).any()


def test_a_line_that_is_moved_is_found_to_be():
    wave = np.arange(8460.0, 8700.0, 0.5)
    dip = sum(np.exp(-0.5 * (wave - place) ** 2) for place in (8500, 8544, 8664))
    columns = {"wavelength": wave, "clean": 1 - dip, "late": 1 - np.roll(dip, 4), "spread": 1.0}
    found = moved(pd.DataFrame(columns))
    assert found.loc["late"].tolist() == [2, 2, 2] and found.loc["clean"].tolist() == [0, 0, 0]


def test_ceiling_is_the_share_of_the_variance_that_is_left():
    limits = pd.DataFrame({"least": [0.0, 16 / 12]})
    assert ceiling(limits, "full") == pytest.approx((0.5, 0.5))
    assert ceiling(limits.assign(least=0.0), "small") == pytest.approx((1, 0))
