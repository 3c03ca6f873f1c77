"""Which runs the experiment asks for, and what they hand to each other."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from fieldbook.run.parameters import Parameters
from fieldbook.scaling import configs, experiment

PAR = Parameters(
    {
        "rate": 0.2,
        "batch_size": 64,
        "micro_batch": 0,
        "precision": "fp32",
        "instruments": 3,
        "days_per_year": 2,
        "sizes": [16, 32, 64],
        "stride": 12,
        "compare_width": 32,
        "compare_batch": 8,
        "compare_epochs": 2,
    }
)


@pytest.fixture
def plan() -> experiment.Plan:
    known = {config.name: config for config in configs.generate()}
    found = experiment.Plan(PAR, known, {}, torch.device("cpu"))
    found.factors.update({16: 3.0, 32: 1.0, 64: 0.5})
    return found


def test_level_2_starts_from_the_level_1_that_the_law_trains(plan: experiment.Plan) -> None:
    ready = plan.level2("level2_finetune", seed=1)
    assert ready.parent.run_id == plan.level1(32, 16, 1, 1.0).run_id
    assert ready.days == 16 and ready.config.instruments == 3 and ready.config.d_model == 32
    assert plan.level2("end2end", seed=1).parent is None
    assert plan.level2("linear_baseline", seed=1).config.d_model == 60 * 52


def test_a_width_that_was_not_tuned_takes_the_factor_of_the_widest_that_was(plan) -> None:
    assert plan.factor_of(32) == 1.0 and plan.factor_of(256) == 0.5
    assert plan.level1(16, 4, 0, 3.0).config.lr == pytest.approx(3.0 * 0.2 / 16)


def test_groups_of_a_run_do_not_change_what_it_is(plan: experiment.Plan) -> None:
    one = plan.level1(16, 4, 0, 3.0)
    assert replace(one, group="tune").run_id == one.run_id
    assert plan.level1(16, 4, 0, 1.0).run_id != one.run_id


def test_risks_by_day_are_means_over_horizons() -> None:
    days = pd.DataFrame(
        [("r", h, day, h + day) for h in (2, 4) for day in (0, 1)],
        columns=["run_id", "horizon", "day", "excess_risk"],
    )
    runs = pd.DataFrame({"run_id": "r", "split": ["val", "test"], "d_model": 16, "seed": 0})
    found = experiment.by_day(days, runs, ["d_model"]).set_index("day")
    assert found.excess_risk.to_dict() == {0: 3.0, 1: 4.0}
    assert set(found) == {"d_model", "seed", "excess_risk"}
