"""Rows about trained generators: known samplers get known measures, pictures show their pixels."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fieldbook.drifting import audit, evaluation, experiment
from fieldbook.drifting.images import digits, to_uint8
from fieldbook.drifting.toys import TOYS

SMALL = {
    "width": 8,
    "depth": 1,
    "set_size": 4,
    "positives": 4,
    "groups": 3,
    "steps": 4,
    "eval_every": 2,
    "warmup": 0,
}


class Sampler(nn.Module):
    """Draws from a function, where a generator is expected."""

    def __init__(self, draw):
        super().__init__()
        self.draw, self.weight = draw, nn.Parameter(torch.zeros(1))

    def sample(self, label, alpha, generator):
        return self.draw(len(label), generator)


@pytest.mark.parametrize("toy", TOYS)
def test_a_perfect_sampler_is_at_the_floor_and_strays_as_data_do(toy):
    found = evaluation.toy_distances(Sampler(TOYS[toy]), toy)
    assert (
        abs(found["w2"] - found["floor"]) < 3 * math.hypot(found["w2_sd"], found["floor_sd"]) + 1e-9
    )
    assert found["stray"] == pytest.approx(0.01, abs=0.01)


def test_a_closed_circle_strays_from_a_ring_of_modes():
    def circle(n, generator):
        angle = 2 * math.pi * torch.rand(n, generator=generator)
        return math.sqrt(2) * torch.stack((angle.cos(), angle.sin()), 1)

    found = evaluation.toy_distances(Sampler(circle), "ring")
    assert found["stray"] > 0.25
    assert found["w2"] < 0.2  # so near a distance that the eye must look


def test_points_and_arrows_lead_outwards_from_a_half_sized_cloud():
    rows = pd.DataFrame(evaluation.toy_points(Sampler(TOYS["ring"]), "ring", n=300))
    assert rows.kind.value_counts().to_dict() == {
        "data": 300,
        "generated": 300,
        "early": 300,
        "field": 225,
    }
    arrows = rows[(rows.kind == "field") & np.hypot(rows.x, rows.y).between(0.7, 1.2)]
    assert (arrows.u * arrows.x + arrows.v * arrows.y > 0).mean() > 0.9


def test_pictures_have_a_class_per_column():
    images = digits()
    rows = pd.DataFrame(evaluation.real_rows(images, per_class=2))
    found = evaluation.picture(rows, (1, 8, 8), per_class=2)
    assert found.shape == (20, 100)
    second_three = to_uint8(images.train[images.train_label == 3][1, 0]).numpy()
    assert np.array_equal(found[11:19, 31:39], second_three)


def test_sampled_rows_of_every_checkpoint(tmp_path):
    experiment.train(experiment.Setting(data="digits", **SMALL), tmp_path)
    rows = pd.DataFrame(evaluation.sample_rows(tmp_path, per_class=2))
    assert rows.groupby("step").size().to_dict() == {0: 20, 2: 20, 4: 20}
    assert evaluation.picture(rows[rows.step == 4], (1, 8, 8), per_class=2).shape == (20, 100)


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({}, None),
        ({"field": "learned"}, 1.0),
        (
            {
                "field": "learned",
                "objective": "frozen",
                "prior": False,
                "axes": "separate",
                "projection": True,
            },
            0.0,
        ),
    ],
)
def test_audit_says_whether_a_field_was_trained(options, changed, tmp_path):
    experiment.train(experiment.Setting(data="digits", **SMALL, **options), tmp_path)
    found = audit.audit_run(tmp_path)
    if changed is None:
        assert all(math.isnan(value) for value in found.values())
    else:
        assert found["changed"] == changed and 0 < found["reach"] < 1 and found["null_ratio"] > 0


def test_class_means_drift_least():
    found = audit.known_drifts(experiment.Setting(data="digits"), 0)
    assert (
        found["class means, drift_norm"]
        < found["real images, drift_norm"]
        < found["noise, drift_norm"]
    )
    assert 3 <= found["real images, loss"] <= 9
