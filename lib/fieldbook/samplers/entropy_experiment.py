"""Entropies on potentials where they are known and around grokked networks, as tables of rows.

Settings of the networks are those of `fieldbook.grokking.networks`; all other parameters are read
by name from `par`, and say how long is sampled.
"""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from fieldbook.grokking import networks
from fieldbook.nn.seeds import stream
from fieldbook.run import paths
from fieldbook.run.chapter import Run
from fieldbook.run.tables import Row
from fieldbook.samplers import landscape, potentials
from fieldbook.samplers import wang_landau as wl

KNOWN_SEEDS = 8
KNOWN_GRID = wl.Grid(-0.5, 1.0, 15)
KNOWN = {f"harmonic {d}": (potentials.harmonic, d, 0.45 / math.sqrt(d)) for d in (4, 10, 30)}
KNOWN["two wells"] = (potentials.two_wells, 4, 0.12)  # energy, dimensions, time step
ESTIMATES = ["entropy", "entropy_cooled", "entropy_force"]


def run_all(run: Run, par: Any, settings: networks.Settings) -> dict[str, pd.DataFrame]:
    """Sample all potentials and all landscapes.

    Args:
        par: with `operations`, `workers`, `train_missing`, and the numbers of the jobs.
    Returns:
        `truth` and `truth_runs`, curves and summaries on known potentials; `unbiased`, visits
        there without an S_hat; `trajectory`, the training runs; `landscape` and `runs`, sampled
        curves and summaries; `landscape_mean`, mean curves; `curves`, those of all seeds from S =
        0 at the upper wall on; `relaxation`, memorised networks that move at their loss.
    """
    files = {}
    if not paths.frozen():
        files = networks.trained(
            settings, par.operations, workers=par.workers, train_missing=par.train_missing
        )
    jobs = [{"op": operation} for operation in par.operations]
    known = [{"potential": name} for name in KNOWN]
    tables = {"truth_runs": run.sweep("truth_runs", known, partial(_sample_potential, par))}
    tables["truth"] = run.frame("truth")
    tables["unbiased"] = _unbiased()
    record = partial(_record, settings, par.record_every)
    tables["trajectory"] = run.sweep("trajectory", jobs, record)
    memorised = {}
    for job in [] if paths.frozen() else jobs:
        memorised[job["op"]] = run.files("trajectory", job) / "memorised.safetensors"
    tables["runs"] = run.sweep("runs", jobs, partial(_explore, settings, par, files))
    tables["landscape"] = run.frame("landscape")
    release = partial(_release, settings, par, files, memorised)
    tables["relaxation"] = run.sweep("relaxation", jobs, release)
    kept = _kept(tables["landscape"])
    tables["landscape_mean"] = run.sweep("landscape_mean", jobs, partial(_mean_rows, kept))
    below = kept[ESTIMATES] - kept.groupby(["op", "seed"])[ESTIMATES].transform("last")
    tables["curves"] = kept.assign(**below)
    return tables


def _sample_potential(par: Any, job: Row) -> Mapping[str, Any]:
    """Wang-Landau on a known potential from S_hat = 0: its summary, and in `truth` its curves."""
    name = job["potential"]
    energy, d, step = KNOWN[name]
    generator = torch.Generator().manual_seed(stream("truth", name))
    w = wl.start(energy, _in_one_well(d), generator)
    first = 0.01 * d
    found = wl.wang_landau(
        energy, w, KNOWN_GRID, generator, steps=par.truth_steps, h=step, first=first, flat=True
    )
    joint = float(wl.flatness(found.visits.sum(0)))
    summary = {"flatness": joint, "acceptance": found.acceptance}
    summary["factor"] = float(found.factor.max())
    return {"truth_runs": summary, "truth": _known_curves(name, d, found)}


def _in_one_well(d: int) -> Tensor:
    """Eight walkers per seed at several energies, all at a = 1: they know of no other well."""
    z = torch.zeros(KNOWN_SEEDS, 8, d, dtype=torch.float64)
    z[..., 0] = 1.0
    z[..., 1] = torch.linspace(0.9, 3.5, 8)
    return z


def _known_curves(name: str, d: int, found: wl.Landscape) -> list[Row]:
    """One row per seed and bin, estimates and exact entropy with mean zero."""
    force = wl.integrate(KNOWN_GRID, found.force)
    of = potentials.two_wells_entropy if name == "two wells" else potentials.harmonic_entropy
    exact = of(KNOWN_GRID.centres(), d)
    exact -= exact.mean()
    return [
        {
            "potential": name,
            "seed": seed,
            "log10_energy": x,
            "entropy": found.entropy[seed, b],
            "entropy_force": force[seed, b],
            "visits": found.visits[seed, b],
            "exact": exact[b],
        }
        for seed in range(KNOWN_SEEDS)
        for b, x in enumerate(KNOWN_GRID.centres().tolist())
    ]


def _unbiased() -> pd.DataFrame:
    """Visits of walkers in 30 harmonic dimensions under S_hat = 0, who stay where the volume is."""
    generator = torch.Generator().manual_seed(0)
    z = torch.ones(1, 8, 30, dtype=torch.float64) / 4
    w = wl.start(potentials.harmonic, z, generator)
    found = wl.wang_landau(
        potentials.harmonic, w, KNOWN_GRID, generator, steps=500, h=0.1, first=0.0, flat=True
    )
    visits = found.visits[0].tolist()
    return pd.DataFrame({"log10_energy": KNOWN_GRID.centres().tolist(), "visits": visits})


def _record(settings: networks.Settings, every: int, job: Row, folder: Path) -> list[Row]:
    """The training run of one operation; leaves its memorised network in the folder."""
    return landscape.record_training(settings, job["op"], folder, every)


def _explore(
    settings: networks.Settings, par: Any, files: Mapping[str, Path], job: Row
) -> Mapping[str, Any]:
    """The entropy around one trained network: a summary, and in `landscape` its curves."""
    rows, summary = landscape.sample(
        settings,
        job["op"],
        files[job["op"]],
        wl.Grid(par.low, par.high, par.bins),
        seeds=par.seeds,
        walkers=par.walkers,
        melt=par.melt,
        cool=par.cool,
        steps=par.steps,
        h=par.h,
        friction=par.friction,
    )
    return {"runs": summary, "landscape": rows}


def _release(
    settings: networks.Settings,
    par: Any,
    files: Mapping[str, Path],
    memorised: Mapping[str, Path],
    job: Row,
) -> list[Row]:
    """Two walkers from a memorised network, held at its loss."""
    return landscape.relax(
        settings,
        job["op"],
        files[job["op"]],
        memorised[job["op"]],
        seeds=2,
        steps=par.relax,
        every=max(par.relax // 20, 1),
        h=2 * par.h,
        friction=par.friction,
    )


def _kept(rows: pd.DataFrame) -> pd.DataFrame:
    """Seeds whose walkers cooled through the whole range; all of an operation where none did."""
    none = rows.groupby("op").reached.transform("max") == 0
    return rows[rows.reached.eq(1) | none]


def _mean_rows(kept: pd.DataFrame, job: Row) -> list[Row]:
    """Mean over seeds and standard error per bin of curves with mean zero, S = 0 in the highest.

    The error is that of such curves' shapes: smaller than that of a difference between two losses.
    """
    bins_of = kept[kept.op == job["op"]].groupby("log10_loss")
    out = bins_of[[*ESTIMATES, "test_acc_mean"]].mean()
    out["entropy_se"] = bins_of.entropy.sem()
    out["visits"] = bins_of.visits.sum()
    out[ESTIMATES] -= out[ESTIMATES].iloc[-1]
    return out.reset_index().to_dict("records")
