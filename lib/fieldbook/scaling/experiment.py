"""The experiment on ticks: rates, a law and a model held out, a design of data, ways of level 2.

Runs come in stages, as a learning rate has to be found before it can be used. A run is named by all
that determines its weights: one that several questions ask for is trained once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from fieldbook.nn.machine import resolve_precision
from fieldbook.run import paths
from fieldbook.run.chapter import Run
from fieldbook.run.parameters import Parameters
from fieldbook.scaling import runs as patch_runs
from fieldbook.scaling.configs import Config, resized
from fieldbook.scaling.market import World
from fieldbook.scaling.patches import Layout, data_key, open_patches, write_patches
from fieldbook.scaling.runs import BASELINES, Baseline, Training, checked, mean_over_horizons
from fieldbook.scaling.transformer import PATCH

Tables = dict[str, pd.DataFrame]


def world_of(par: Parameters) -> World:
    """The market that these parameters ask for."""
    return World(best_short=par.best_short, best_long=par.best_long, tau=par.tau)


def _layout_of(par: Parameters) -> Layout:
    """Its days: eight years to train on, then those for validation and test."""
    days = (8 * par.days_per_year, par.val_days, par.test_days)
    return Layout(par.instruments, *days, ticks=par.ticks)


def run_all(
    run: Run, par: Parameters, configs: Mapping[str, Config], device: torch.device
) -> Tables:
    """Train and score everything, and return a table per question.

    Returns:
        `scores`, `curves` and `days` of all runs, as `runs.execute` has them; learning `rates` by
        width; with a row per run and split, the `law`, the model `held_out`, the `design` of
        instruments and days, level 1's `baselines`, and the `twins` in two precisions; with a row
        per run, the `ways` of level 2.
    """
    stages = _Stages(run, par, device)
    plan = Plan(par, configs, data_key(world_of(par), _layout_of(par)), device)
    rates = _tuned_rates(plan, stages)
    asked = _level1_runs(plan)
    far = {name: Baseline(name, 2, plan.data, stride=par.stride) for name in BASELINES}
    parents = [plan.level2(name, s).parent for name in par.compare for s in range(par.seeds)]
    first = ("held_out", "law", "design")
    networks = [one for name in first for one in asked[name]]
    networks += [one for one in parents if one is not None]
    networks.append(asked["twins"][1])
    stages.fill("scaling", [*networks, *asked["baselines"], *far.values()])
    ways = _ways(plan, stages) | {name: [one] for name, one in far.items()}

    scores = stages.scores()
    tables = {"scores": scores, "curves": stages.rows("_curves"), "days": stages.rows("_days")}
    tables["rates"] = pd.DataFrame(rates)
    for name, of in asked.items():
        tables[name] = _per_run(scores, of)
    named = [(way, one) for way, of in ways.items() for one in of]
    rows = [{"run_id": one.run_id, "way": way, "seed": one.seed} for way, one in named]
    tables["ways"] = pd.DataFrame(rows)
    return tables


def _per_run(scores: pd.DataFrame, runs: Iterable[Training | Baseline]) -> pd.DataFrame:
    """One row per run and split: what it was, its N and D, and scores averaged over horizons."""
    names = [one.run_id for one in runs]
    keys = ["run_id", "split", "name", "precision", "d_model", "seed", "n_instruments", "n_days"]
    keys += ["n_params_total", "d_seen"]
    found = mean_over_horizons(scores[scores.run_id.isin(names)], keys)
    found = found.rename(columns={"n_params_total": "N", "d_seen": "D"})
    place = found.run_id.map(names.index)
    return found.loc[place.sort_values(kind="stable").index].reset_index(drop=True)


def by_day(days: pd.DataFrame, runs: pd.DataFrame, cells: Sequence[str]) -> pd.DataFrame:
    """Excess risk per run and test day, averaged over horizons, for `ratios.risks`.

    Args:
        days: per run, horizon and day; `runs`: any number of rows per run.
        cells: columns of `runs` that name a cell.
    """
    mean = days.groupby(["run_id", "day"], as_index=False).excess_risk.mean()
    facts = runs[["run_id", *cells, "seed"]].drop_duplicates()
    return mean.merge(facts, on="run_id").drop(columns="run_id")


@dataclass(frozen=True)
class Plan:
    """Runs as the parameters ask for them.

    Attributes:
        configs: of the source, by name.
        data: what the data are a function of.
        factors: on the learning rate, by width, as they are found.
    """

    par: Parameters
    configs: Mapping[str, Config]
    data: dict[str, float]
    device: torch.device
    factors: dict[int, float] = field(default_factory=dict)

    @property
    def precision(self) -> str:
        return resolve_precision(self.par.precision, self.device)

    def factor_of(self, d: int) -> float:
        """That of the widest model that was tuned, for widths that were not."""
        return self.factors.get(d, self.factors[self.par.sizes[-1]])

    def level1(
        self, d: int, days: int, seed: int, factor: float, group: str = "law", **other: Any
    ) -> Training:
        """A run of level 1 at a width, on the first days of each instrument."""
        par = self.par
        usual = {"instruments": par.instruments, "precision": self.precision}
        config = resized(
            self.configs["level1_pretrain"],
            d,
            batch_size=par.batch_size,
            lr=factor * par.rate / d,
            **usual | other,
        )
        micro_batch = par.micro_batch or None
        return Training(config, group, seed, days, self.data, micro_batch=micro_batch)

    def level2(
        self,
        name: str,
        seed: int,
        factor: float = 1.0,
        limit: int | None = None,
        group: str = "compare",
    ) -> Training:
        """A run of level 2 from a configuration, and of its level 1 if it starts from one."""
        par = self.par
        config = self.configs[name]
        width = par.compare_width if par.compare_width and config.n_l2 else config.d_model
        days = config.years * par.days_per_year
        config = resized(
            config,
            width,
            lr=factor * par.rate / width,
            instruments=min(config.instruments, par.instruments),
            precision=self.precision,
            batch_size=par.compare_batch,
            epochs=par.compare_epochs,
        )
        parent = None
        if config.parent is not None:
            own = self.factor_of(width)
            parent = self.level1(width, days, seed, own, instruments=config.instruments)
        common = (config, group, seed, days, self.data)
        return Training(*common, limit=limit, stride=par.stride, parent=parent)


class _Stages:
    """Tables of one stage after another: scores, learning curves and test days of each."""

    def __init__(self, run: Run, par: Parameters, device: torch.device):
        self.run = run
        self.device = device
        self.names: list[str] = []
        world = world_of(par)
        layout = _layout_of(par)
        self.stored = run.place("days", write_patches, world, layout)
        self.weights = run.place("weights", patch_runs.execute, self.stored)
        if not paths.frozen():
            write_patches(self.stored, world, layout)

    def fill(self, stage: str, runs: Sequence[Training | Baseline]) -> None:
        """Train and score those runs that no earlier stage has had."""
        had = {name for one in self.names for name in self.run.frame(one).run_id}
        self.names.append(stage)
        first = reversed(runs)  # of two alike the first is kept, with its group
        planned = {one.run_id: one for one in first if one.run_id not in had}
        jobs = [{"run_id": name} for name in planned]
        compute = partial(_execute, stage, planned, self.stored, self.weights, self.device)
        self.run.sweep(stage, jobs, compute, cost=lambda job: planned[job["run_id"]].work)

    def rows(self, kind: str = "") -> pd.DataFrame:
        """The tables of all stages so far as one: scores, or of a kind `_curves` or `_days`."""
        return pd.concat([self.run.frame(name + kind) for name in self.names], ignore_index=True)

    def scores(self) -> pd.DataFrame:
        return checked(self.rows(), "scores")

    def best_factor(self, candidates: Mapping[float, Training]) -> float:
        """The factor whose run has the least excess risk on validation days."""
        means = mean_over_horizons(self.scores(), ["run_id", "split"])
        risk = means[means.split == "val"].set_index("run_id").excess_risk
        return min(candidates, key=lambda factor: risk.get(candidates[factor].run_id, np.inf))


def _execute(
    stage: str,
    planned: Mapping[str, Training | Baseline],
    stored: Path,
    weights: Path,
    device: torch.device,
    job: Mapping[str, str],
) -> dict[str, list[dict]]:
    """One planned run's rows, by table."""
    found = patch_runs.execute(planned[job["run_id"]], open_patches(stored), weights, device)
    checked(found["scores"], stage)
    names = {kind: stage if kind == "scores" else f"{stage}_{kind}" for kind in found}
    return {names[kind]: frame.to_dict("records") for kind, frame in found.items()}


def _tuned_rates(plan: Plan, stages: _Stages) -> list[dict]:
    """Find the best factor on the learning rate of each width, on validation days."""
    par = plan.par
    tried = {
        d: {f: plan.level1(d, par.tune_days, 0, f, "tune") for f in par.tried} for d in par.sizes
    }
    stages.fill("tuning", [one for of_width in tried.values() for one in of_width.values()])
    plan.factors.update({d: stages.best_factor(candidates) for d, candidates in tried.items()})
    widths = dict.fromkeys([*par.sizes, par.held_out, par.design_width])
    return [{"d_model": d, "lr": plan.factor_of(d) * par.rate / d} for d in widths]


def _level1_runs(plan: Plan) -> dict[str, list[Training | Baseline]]:
    """All runs of level 1 by the question that asks for them."""
    par = plan.par

    def runs(d: int, days: int, seeds: int, group: str = "law", **other: Any) -> list[Training]:
        factor = plan.factor_of(d)
        return [plan.level1(d, days, seed, factor, group, **other) for seed in range(seeds)]

    law = [
        one
        for d in par.sizes[::-1]
        for days in par.law_days[::-1]
        for one in runs(d, days, par.seeds)
    ]
    held_out = [
        one
        for days in sorted(par.held_days)[::-1]
        for one in runs(par.held_out, days, par.held_seeds, "held out")
    ]
    design = [
        one
        for count in par.design_instruments
        for years in par.design_years
        for one in runs(
            par.design_width, years * par.days_per_year, par.seeds, "design", instruments=count
        )
    ]
    other = {"precision": "bf16" if plan.precision == "fp32" else "fp32"}
    least, most = par.sizes[0], par.law_days[-1]
    twins = runs(least, most, 1) + runs(least, most, 1, "precision", **other)
    short = [Baseline(name, 1, plan.data) for name in ("zero", "oracle", "ridge")]
    return {"law": law, "held_out": held_out, "design": design, "twins": twins, "baselines": short}


def _ways(plan: Plan, stages: _Stages) -> dict[str, list[Training]]:
    """Train the ways of level 2, each at the best of the learning rates that it has tried."""
    par = plan.par
    per_day = -(-((par.ticks - 1800) // PATCH - 69) // par.stride)
    quarter = par.instruments * 8 * par.days_per_year * per_day // 4
    tried = {
        name: {f: plan.level2(name, 0, f, quarter, "tune") for f in par.tried}
        for name in par.compare
    }
    stages.fill("tuning_2", [one for of_way in tried.values() for one in of_way.values()])
    ways = {
        name: [
            plan.level2(name, seed, stages.best_factor(tried[name])) for seed in range(par.seeds)
        ]
        for name in par.compare
    }
    stages.fill("compare", [one for of_way in ways.values() for one in of_way])
    return ways
