"""Compare the tables that a chapter left on a GPU with those that it left on the CPU.

Weights, splits and orders are drawn on the CPU and are the same on both. What is drawn on the
device is not (noise of spectra and chains, dropout, random signs, samples), and a float32 sum in
another order sends two trainings apart after some hundred updates. So each kind of number has its
own bound:

- keys, names and counts: equal, row by row;
- tables that both compute on the CPU (`ON_CPU`): equal but for float32;
- losses and scores of an untrained network (step 0): the same weights on the same data, perhaps in
bfloat16;
- all else is one draw of a random number on each side. Rows of a table are no independent draws
(one chain, one path),
  so that the means of a column may be apart by the spread over its rows, and by a part of its size
  where rows are few.

A number is missing on the GPU only in columns where one is missing on the CPU.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

ON_CPU = {
    "si_sgld": ("ground_truth",),
    "entropy": ("truth", "truth_runs"),
    "drifting": ("nulls",),
    "spectra_vit": ("ceiling", "likelihood", "splits", "tour"),
    "encoder_probe": ("ceiling",),
}
KEYS = {
    "alpha",
    "beta",
    "day",
    "draw",
    "factor",
    "frequency",
    "horizon",
    "judge_seed",
    "log10_energy",
    "milestone",
    "n_train",
    "noise_level",
    "point",
    "sample",
    "seed",
    "spectra",
    "stack",
    "star",
    "stars",
    "step",
    "token",
}
"""Columns of numbers that say which row it is; columns of text do unless they are `MEASURED`."""
MEASURED = (
    "device",
    "hash",
    "weights",
    "before",
    "after",
    "health",
    "identical",
    "ours",
    "pixels",
    "precision",
    "verdict",
)
ERRORS = ("_se", "_sd")  # of two chains or draws: their ratio knows no bound
UNSHARED = ("seconds", "wall_s", "micro_batch")  # numbers of the machine
UNTRAINED = ("loss", "acc", "mse", "nll", "r2")  # ends of the names of what an evaluation measures
PART = 0.5  # of a column's mean size: what one draw may miss it by


def differences(chapter: str, gpu: Path, cpu: Path) -> list[str]:
    """One line for each way in which the tables of two folders differ beyond their bounds."""
    names = [sorted(file.stem for file in folder.glob("*.csv")) for folder in (gpu, cpu)]
    if names[0] != names[1] or not names[1]:
        return [f"{chapter}: tables {names[0]} on the GPU, {names[1]} on the CPU"]
    return [
        f"{chapter}/{name}: {line}"
        for name in names[1]
        for line in _table(
            *(pd.read_csv(folder / f"{name}.csv") for folder in (gpu, cpu)),
            name in ON_CPU.get(chapter, ()),
        )
    ]


def _table(gpu: pd.DataFrame, cpu: pd.DataFrame, exact: bool) -> Iterator[str]:
    if list(gpu) != list(cpu):
        yield f"columns {list(gpu)} on the GPU, {list(cpu)} on the CPU"
        return
    text = [
        name for name in cpu if cpu[name].dtype.kind not in "ifu" and not name.endswith(MEASURED)
    ]
    keys = [name for name in cpu if name in KEYS or name in text]
    gpu, cpu = (
        frame.set_index(pd.MultiIndex.from_frame(frame[keys])) if keys else frame
        for frame in (gpu, cpu)
    )
    common = cpu.index.intersection(gpu.index, sort=False)
    stops_early = (
        "step" in keys and len(common) >= max(len(cpu), len(gpu)) / 2
    )  # a run ends once it has grokked
    if not stops_early and not (len(common) == len(set(cpu.index)) and len(gpu) == len(cpu)):
        yield f"{len(gpu)} rows on the GPU, {len(cpu)} on the CPU, {len(common)} keys in common"
        return
    gpu, cpu = (frame[frame.index.isin(common)].sort_index(kind="stable") for frame in (gpu, cpu))
    for name in (
        name
        for name in cpu
        if name not in keys and name not in UNSHARED and cpu[name].dtype.kind in "ifu"
    ):
        ours, theirs = (frame[name].to_numpy(float) for frame in (gpu, cpu))
        if np.isnan(ours).any() and not np.isnan(theirs).any():
            yield f"{name}: missing in {int(np.isnan(ours).sum())} rows on the GPU, in none on the CPU"
        elif exact and not np.allclose(ours, theirs, rtol=1e-3, atol=1e-6, equal_nan=True):
            yield f"{name}: up to {np.nanmax(np.abs(ours - theirs)):.3g} apart, both computed on the CPU"
        elif not exact and not name.endswith(ERRORS):
            yield from _apart(name, ours, theirs)
            yield from _untrained(name, gpu, cpu)


def _apart(name: str, ours: np.ndarray, theirs: np.ndarray) -> Iterator[str]:
    ours, theirs = (values[np.isfinite(values)] for values in (ours, theirs))
    if not len(ours) or not len(theirs):
        if len(theirs):
            yield f"{name}: no finite number on the GPU"
        return
    gap, bound = abs(ours.mean() - theirs.mean()), theirs.std() + PART * np.abs(theirs).mean()
    if gap > bound + 1e-9:
        yield f"{name}: mean {ours.mean():.4g} on the GPU, {theirs.mean():.4g} on the CPU, more than {bound:.3g} apart"


def _untrained(name: str, gpu: pd.DataFrame, cpu: pd.DataFrame) -> Iterator[str]:
    if "step" in cpu and name.endswith(UNTRAINED):
        ours, theirs = (
            frame.loc[frame.step.to_numpy() == 0, name].to_numpy(float) for frame in (gpu, cpu)
        )
        if len(ours) == len(theirs) and not np.allclose(
            ours, theirs, rtol=0.05, atol=0.02, equal_nan=True
        ):
            yield f"{name}: {ours} on the GPU at step 0, {theirs} on the CPU, with the same weights"
