"""The experiment on the local learning coefficient: grokked networks in many exact rescalings, each
sampled by every sampler.

Read `run_all` first: it names what is measured, in order. What follows are its jobs, a row or a few
each; they find the networks through `Polished`.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fieldbook.grokking.grokker import Grokker
from fieldbook.grokking.modular import Task
from fieldbook.grokking.networks import load, task_of, trained
from fieldbook.nn.checkpoints import read_weights, save_weights
from fieldbook.run import paths
from fieldbook.run.chapter import Run
from fieldbook.samplers import curvature, ground_truth, llc, rescaled, symmetry
from fieldbook.samplers.known import PROBLEMS
from fieldbook.samplers.preconditioners import SAMPLERS
from fieldbook.samplers.rescaled import Cell, Minimum, Sampling

Job = dict[str, Any]
Settings = Any  # parameters, read by name: `par.steps`
Tuned = Mapping[tuple[str, str], Mapping[str, float]]  # eps and gamma by operation and sampler


@dataclass(frozen=True)
class Polished:
    """Networks at a minimum of their loss, by operation.

    Attributes:
        settings: that they were trained with; `folders`: of their weights.
    """

    settings: Settings
    folders: Mapping[str, Path]
    device: torch.device

    def __call__(self, operation: str) -> Minimum:
        """One of them on the device, with its train split."""
        folder = self.folders[operation]
        model = load(self.settings, folder / "star.safetensors").to(self.device)
        fisher = read_weights(folder / "fisher.safetensors")[0]["fisher"]
        task = task_of(self.settings, operation, self.settings.seeds[0])
        return Minimum(model, *split(task, self.device), fisher.to(self.device))


def run_all(
    run: Run, par: Settings, device: torch.device, settings: Settings, gelu: Settings
) -> dict[str, pd.DataFrame]:
    """All tables by name; `maps` joins those of the single operations and samplers.

    Args:
        par: operations, samplers and sizes; `settings`: of the networks that are sampled; `gelu`:
            of one with an activation that no rescaling leaves as it is.
    """
    files = broken = folders = {}
    if not paths.frozen():
        files = trained(
            settings, par.operations, workers=par.workers, train_missing=par.train_missing
        )
        broken = trained(gelu, ["add"])
    pairs = [*product(par.operations, par.samplers), *product(par.operations[:1], par.controls)]
    chosen = [{"operation": operation, "sampler": sampler} for operation, sampler in pairs]

    jobs = [{"operation": operation} for operation in par.operations]
    polish = partial(_polish, par, device, settings, files)
    found = {"networks": run.sweep("networks", jobs, polish)}
    if not paths.frozen():
        folders = {job["operation"]: run.files("networks", job) for job in jobs}
    minima = Polished(settings, folders, device)

    cases = product([*par.operations, "GELU"], symmetry.log_grid(9).tolist())
    jobs = [{"case": case, "factor": factor} for case, factor in cases]
    found["broken"] = run.sweep("broken", jobs, partial(_break, minima, gelu, broken))

    found["settings"] = run.sweep("settings", chosen, partial(_calibrate, par, minima))
    found |= {name: run.frame(name) for name in ("localization", "lengths")}
    by_pair = found["settings"].set_index(["operation", "sampler"])
    tuned = by_pair[["eps", "gamma"]].to_dict("index")

    stacks = range(-(-(par.grid**2) // par.stack))
    jobs = [{**pair, "stack": stack} for pair in chosen for stack in stacks]
    run.sweep("timing", jobs, partial(_sample, par, minima, tuned))
    maps = [run.frame(f"{o}_{s}").assign(operation=o, sampler=s) for o, s in pairs]
    found["maps"] = pd.concat(maps, ignore_index=True)

    everyone = [*par.samplers, *par.controls]
    jobs = [{"sampler": s, "alpha": a} for s, a in product(everyone, _checked(par))]
    found["frames"] = run.sweep("frames", jobs, partial(_check, par, minima, tuned))
    found["traces"] = run.frame("traces")

    jobs = [{"sampler": s, "eps": 10.0**k} for s, k in product(("sgld", "si_div"), range(-7, 0))]
    found["naive"] = run.sweep("naive", jobs, partial(_imitate, par, minima))

    jobs = [{"problem": p, "sampler": s} for p, s in product(PROBLEMS, SAMPLERS)]
    found["ground_truth"] = run.sweep("ground_truth", jobs, partial(_known, par))
    return found


def unscaled(table: pd.DataFrame) -> pd.Series:
    """The row of one map, or of one sampler's traces, whose cell lies nearest to (1, 1)."""
    return table.loc[(np.log(table.alpha) ** 2 + np.log(table.beta) ** 2).idxmin()]


def with_distance(traces: pd.DataFrame) -> pd.DataFrame:
    """`traces` with `apart`: how far the losses of a cell are from those of the unscaled network,
    as a share of the largest of these; infinite if they are no numbers."""
    parts = []
    for _, one in traces.groupby("sampler", sort=False):
        losses = one.filter(like="step_")
        middle = losses.loc[unscaled(one).name]
        share = (losses - middle).abs().max(axis=1, skipna=False) / middle.abs().max()
        parts.append(one.assign(apart=share.fillna(math.inf)))
    return pd.concat(parts)


def spread(maps: pd.DataFrame) -> pd.DataFrame:
    """What each map comes to, by sampler and operation.

    `variation` is standard deviation over mean of the estimates that are numbers and of chains that
    have not left the basin; `lost` the share of the others; `ratio` the largest over the smallest
    estimate of the cells whose health is ok.
    """

    def of_map(one: pd.DataFrame) -> pd.Series:
        lost = one.health.str.contains("finite|basin")
        healthy = one.llc[one.health == "ok"]
        variation = one.llc[~lost].std() / one.llc[~lost].mean()
        ratio = healthy.max() / healthy.min()
        return pd.Series({"variation": variation, "lost": lost.mean(), "ratio": ratio})

    return maps.groupby(["sampler", "operation"], sort=False).apply(of_map)


def split(task: Task, device: torch.device, *, test: bool = False) -> tuple[Tensor, Tensor]:
    """Pairs and targets of a task's train or test split, on the device."""
    part = ~task.train if test else task.train
    return task.pairs[part].to(device), task.target[part].to(device)


def minimum(
    model: Grokker, pairs: Tensor, target: Tensor, *, steps: int, lr: float, seed: int = 0
) -> Minimum:
    """Take a network to a minimum of its train loss, and measure the Fisher information there.

    Args:
        steps, lr: of `llc.polish`; `seed`: of the labels drawn for the information.
    """
    llc.polish(model, pairs, target, steps=steps, lr=lr)
    generator = torch.Generator(pairs.device).manual_seed(seed)
    return Minimum(model, pairs, target, curvature.fisher_diagonal(model, pairs, generator))


def cells(par: Settings) -> list[Cell]:
    """The grid of (alpha, beta)."""
    factors = symmetry.log_grid(par.grid, par.decades, reference=par.reference).tolist()
    return list(product(factors, factors))


def _checked(par: Settings) -> list[float]:
    """The values of alpha, and of beta, at which traces are compared in double precision."""
    return symmetry.log_grid(par.check_grid, par.decades).tolist()


def _chains(par: Settings) -> Sampling:
    return Sampling(par.steps, par.burn_in, par.chains, par.batch_size, par.seed)


def _polish(
    par: Settings,
    device: torch.device,
    settings: Settings,
    files: Mapping[str, Path],
    job: Job,
    folder: Path,
) -> Job:
    """Take a network to a minimum and say what that changed; it stays in the folder."""
    task = task_of(settings, job["operation"], settings.seeds[0])
    model = load(settings, files[job["operation"]]).to(device)
    train = split(task, device)
    loss, gradient = curvature.loss_and_gradient_norm(model, *train)
    start = minimum(model, *train, steps=par.polish_steps, lr=par.polish_lr, seed=par.seed)
    save_weights(model, folder / "star.safetensors")
    save_weights({"fisher": start.fisher}, folder / "fisher.safetensors")
    loss_star, gradient_star = curvature.loss_and_gradient_norm(model, *train)
    pairs, target = split(task, device, test=True)
    right = (model(pairs).argmax(1) == target).double()
    return {
        "n": len(train[1]),
        "loss_trained": loss,
        "gradient_trained": gradient,
        "loss_star": loss_star,
        "gradient_star": gradient_star,
        "test_acc": right.mean(),
    }


def _break(minima: Polished, gelu: Settings, files: Mapping[str, Path], job: Job) -> Job:
    """Logits and loss of a rescaled network with one condition violated."""
    if job["case"] == "GELU":
        model = load(gelu, files["add"]).to(minima.device)
        pairs, target = split(task_of(gelu, "add", 0), minima.device)
        scaled = symmetry.rescale(model, 1, job["factor"])
    else:
        start = minima(job["case"])
        model, pairs, target = start.model, start.pairs, start.target
        scaled = symmetry.rescale(model, job["factor"], eps_mode="fixed")
    return {
        "max_dlogit": symmetry.logit_gap(model, scaled, pairs),
        "loss": curvature.loss_and_gradient_norm(scaled, pairs, target)[0],
        "loss_star": curvature.loss_and_gradient_norm(model, pairs, target)[0],
    }


def _calibrate(par: Settings, minima: Polished, job: Job) -> dict[str, Any]:
    """Step size and localisation of one sampler on one network, with what led there."""
    sampler = job["sampler"]
    start = minima(job["operation"])
    found, curve = rescaled.calibrate(
        start,
        sampler,
        _chains(par),
        relaxation=par.relaxation,
        target=par.target * start.n_beta * math.log(start.model.p),
        n=par.localizations,
    )
    rows = {"settings": found, "localization": [{**job, **point} for point in curve]}
    if job["operation"] == par.operations[0]:
        eps, gamma = found["eps"], found["gamma"]
        rows["lengths"] = rescaled.lengthen(start, sampler, _chains(par), eps=eps, gamma=gamma)
    return rows


def _sample(par: Settings, minima: Polished, tuned: Tuned, job: Job) -> dict[str, Any]:
    """One stack of cells as one batch of chains, and how long that took."""
    began = time.perf_counter()
    operation, sampler, stack = job.values()
    part = cells(par)[par.stack * stack : par.stack * (stack + 1)]
    how = tuned[operation, sampler]
    rows = rescaled.rows(minima(operation), sampler, part, _chains(par), **how)
    seconds = time.perf_counter() - began
    return {"timing": {"seconds": seconds}, f"{operation}_{sampler}": rows}


def _check(par: Settings, minima: Polished, tuned: Tuned, job: Job) -> dict[str, Any]:
    """Losses step by step in float64, of all cells at one alpha: in the rescaled networks
    themselves, and how far those in the unscaled network's frame are from them."""
    first, sampler = par.operations[0], job["sampler"]
    single = minima(first)
    start = Minimum(single.model.double(), single.pairs, single.target, single.fisher.double())
    part = [(job["alpha"], beta) for beta in _checked(par)]
    brief = Sampling(par.check_steps, 0, 1, par.batch_size, par.seed)
    how = tuned[first, sampler]
    framed = rescaled.traces(start, sampler, part, brief, **how)[..., 0].T
    gaps, rows = [], []
    for cell, frame in zip(part, framed, strict=True):
        direct = rescaled.direct_trace(start, sampler, cell, brief, **how)[:, 0]
        gaps.append(float((direct - frame).abs().max() / direct.abs().max()))
        steps = {f"step_{t}": loss for t, loss in enumerate(direct.tolist())}
        rows.append({"sampler": sampler, "alpha": cell[0], "beta": cell[1], **steps})
    return {"frames": {"frame_gap": max(gaps)}, "traces": rows}


def _imitate(par: Settings, minima: Polished, job: Job) -> Job:
    """The log's number in all cells, for one step size: a mean loss over twenty steps."""
    short = Sampling(20, 0, 1, par.batch_size, par.seed)
    start = minima(par.operations[0])
    losses = rescaled.plain_losses(start, job["sampler"], cells(par), short, job["eps"]).double()
    mean = losses.mean()
    return {"mean": mean, "low": losses.min(), "high": losses.max(), "cv": losses.std() / mean}


def _known(par: Settings, job: Job) -> Job:
    """One sampler on one loss whose coefficient is known."""
    return job | ground_truth.compare(
        PROBLEMS[job["problem"]](),
        job["sampler"],
        step=par.truth_step,
        steps=par.truth_steps,
        chains=par.truth_chains,
    )
