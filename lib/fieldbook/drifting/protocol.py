"""What is trained and measured to compare fields on equal terms: variants, jobs, and their tables.

A job is a function of this module with all that it needs bound to it, since a table belongs to the
code and the values that its job reaches.
"""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from fieldbook.drifting import audit, evaluation, experiment, judge
from fieldbook.drifting.images import Images
from fieldbook.drifting.setting import Setting
from fieldbook.nn.checks import require
from fieldbook.run import paths
from fieldbook.run.tables import Row

if TYPE_CHECKING:  # of no worker's concern
    from fieldbook.run.chapter import Run
    from fieldbook.run.parameters import Parameters

JUDGE_SEED = 1_000
NULL_DRAWS = 10  # of samples whose drift is known
STYLES = (32, 0)  # vectors that part of a toy's noise chooses from; none

NAMES = {
    "kernel": "kernel field",
    "look_ahead": "learned, looks ahead",
    "projection": "learned, with a projection",
    "two_means": "learned, in the form of the log",
    "start_of_two_means": "form of the log, not learned",
    "distill": "learned, imitates the kernel",
    "frozen": "never trained",
    "attached": "learned, target not detached",
    "set_16": "half as many samples",
    "set_64": "twice as many samples",
    "tau_0.02": "temperature 0.02 alone",
    "tau_0.05": "temperature 0.05 alone",
    "tau_0.2": "temperature 0.2 alone",
    "axes_y": "softmax over one axis",
    "axes_separate": "a softmax for each set",
    "encoder": "features of an encoder",
    "no_encoder": "features without an encoder",
    "pull_1.5": "attraction times 1.5",
    "push_1.5": "repulsion times 1.5",
    "one_pass": "guidance trained in",
    "two_pass": "guidance by extrapolation",
}
"""Of every variant, for a reader."""


def variants(set_size: int) -> dict[str, dict[str, Any]]:
    """What each variant changes in a setting whose sets have so many samples.

    `kernel` is Alg. 2 of Deng et al. 2026. `frozen` and `attached` have the form of a learned field
    that has been proposed elsewhere, a difference of two means that starts at random.
    """
    learned = {"field": "learned"}
    ahead = learned | {"objective": "look_ahead"}
    at_random = learned | {"axes": "separate", "prior": False, "projection": True}
    two_means = {"axes": "separate", "taus": [0.05]}
    half = max(set_size // 2, 2)
    return {
        "kernel": {},
        "look_ahead": ahead,
        "projection": ahead | {"projection": True},
        "two_means": ahead | two_means,
        "start_of_two_means": two_means,
        "distill": learned | {"objective": "distill", "prior": False, "taus": [0.2]},
        "frozen": at_random | {"objective": "frozen"},
        "attached": at_random | {"objective": "attached"},
        "set_16": {"set_size": half, "positives": half},
        "set_64": {"set_size": 2 * set_size, "positives": 2 * set_size},
        "tau_0.02": {"taus": [0.02]},
        "tau_0.05": {"taus": [0.05]},
        "tau_0.2": {"taus": [0.2]},
        "axes_y": {"axes": "y"},
        "axes_separate": {"axes": "separate"},
        "encoder": {"encoder": True},
        "no_encoder": {"encoder": False},
        "pull_1.5": {"pull": 1.5},
        "push_1.5": {"push": 1.5},
        "one_pass": {"cfg": "one_pass"},
        "two_pass": {"cfg": "two_pass"},
    }


def setting_of(job: Row, par: "Parameters") -> Setting:
    """The setting of a variant and seed, with as many updates as its group gets."""
    steps = par.ablation_steps if job["group"] == "ablation" else par.steps
    base = {
        "data": par.dataset,
        "folder": par.folder,
        "generator": par.generator,
        "width": par.width,
        "depth": par.depth,
        "noise_dim": par.noise_dim,
        "set_size": par.set_size,
        "positives": par.set_size,
        "groups": par.groups,
        "lr": par.lr,
        "encoder": par.encoder,
        "precision": par.precision,
    }
    schedule = {
        "steps": steps,
        "eval_every": math.ceil(steps / par.evaluations),
        "warmup": min(par.warmup, steps // 4),
        "seed": job["seed"],
    }
    return Setting(**base | schedule | variants(par.set_size)[job["variant"]])


def run_all(run: "Run", par: "Parameters", device: torch.device) -> dict[str, pd.DataFrame]:
    """Train and measure everything; the tables by name.

    Returns:
        `judge`, one row: its accuracy, its digest, and its floor; `runs`, the end of each training,
        and `checkpoints` on the way there; `nulls`, drifts of known samples; `samples`, images;
        `toys` and `toy_points`; `guidance`, measures at each strength, empty without guided runs.
    Raises:
        ValueError: a variant that there is none of.
    """
    for variant in (*par.main, *par.ablations):
        known = variant in (*NAMES, "none")
        require(known, "variant of main or ablations", variant, f"one of {', '.join(NAMES)}")
    new = not paths.frozen()
    images = experiment.load_images(par.dataset, par.folder) if new else None
    judge_job = {"judge_seed": JUDGE_SEED}
    floor = run.sweep("judge", [judge_job], partial(_judge, par=par, images=images))
    judged = run.files("judge", judge_job) if new else None
    seeds = range(par.seeds)
    main = [{"group": "main", "variant": v, "seed": s} for v in par.main for s in seeds]
    brief = [v for v in par.ablations if v != "none"]
    ablated = [{"group": "ablation", "variant": v, "seed": s} for v in brief for s in seeds]
    known = {"par": par, "images": images, "judged": judged, "device": device}
    runs = run.sweep("runs", [*main, *ablated], partial(_train, **known))
    checkpoints = run.frame("checkpoints")
    draws = [{"draw": draw} for draw in range(NULL_DRAWS)]
    nulls = run.sweep("nulls", draws, partial(_null, setting=setting_of(main[0], par)))
    first = {job["variant"]: run.files("runs", job) for job in main if new and job["seed"] == 0}
    shown = [{"variant": variant} for variant in ("real", *par.main)]
    show = partial(_show, trained=first, images=images, device=device)
    samples = run.sweep("samples", shown, show)
    plane = [{"toy": toy, "styles": styles} for toy in par.toys for styles in STYLES]
    toys = run.sweep("toys", plane, partial(_toy, par=par))
    rules = [rule for rule in par.guided if rule != "none"]
    run.sweep("guided", [{"variant": rule} for rule in rules], partial(_guide, **known))
    return {
        "judge": floor,
        "runs": runs,
        "checkpoints": checkpoints,
        "nulls": nulls,
        "samples": samples,
        "toys": toys,
        "toy_points": run.frame("toy_points"),
        "guidance": run.frame("guidance") if rules else pd.DataFrame(),
    }


def _judge(job: Row, folder: Path, *, par: "Parameters", images: Images) -> Row:
    """Train the judge; its accuracy, and its floor: the distance of real training images."""
    found = judge.judge(images, job["judge_seed"], par.judge_steps, folder)
    floor = np.array(found.floor())
    return {
        "accuracy": found.accuracy,
        "weights": found.digest,
        "floor": floor.mean(),
        "floor_sd": floor.std(ddof=1),
    }


def _measured(
    checkpoints: Path,
    folder: Path,
    par: "Parameters",
    images: Images,
    judged: Path,
    device: torch.device,
    alpha: float = 1.0,
) -> pd.DataFrame:
    """The table of evaluated checkpoints, kept in a folder; the judge is that of `judged`."""
    sampling = evaluation.Sampling(
        num_samples=par.num_samples,
        alpha=alpha,
        dataset_split=par.dataset_split,
        fid_mode=None if par.fid_mode == "none" else par.fid_mode,
    )
    return evaluation.evaluate(
        checkpoints,
        folder / "evaluation",
        judge.judge(images, JUDGE_SEED, par.judge_steps, judged),
        sampling,
        skip_existing=True,
        cleanup_samples=True,
        device=device,
    )


MEASURED = (*evaluation.MEASURES, *experiment.METRICS)


def _train(
    job: Row, folder: Path, *, par: "Parameters", images: Images, judged: Path, device: torch.device
) -> dict[str, Any]:
    """Train a variant and audit its field; evaluate all checkpoints, of an ablation the last."""
    experiment.train(setting_of(job, par), folder, device=device)
    which = experiment.checkpoints(folder)[-1] if job["group"] == "ablation" else folder
    table = _measured(which, folder, par, images, judged, device).sort_values("step")
    rows = table[["step", *MEASURED]].to_dict("records")
    return {
        "runs": {**rows[-1], **audit.audit_run(folder)},
        "checkpoints": [{**job, **row} for row in rows],
    }


def _null(job: Row, *, setting: Setting) -> Row:
    """Loss and drift of samples that are known: real images, class means, noise."""
    return audit.known_drifts(setting, job["draw"])


def _show(
    job: Row, *, trained: Mapping[str, Path], images: Images, device: torch.device
) -> list[dict[str, Any]]:
    """Images to be shown: real ones, or those of a variant's first seed at every checkpoint."""
    if job["variant"] == "real":
        return evaluation.real_rows(images)
    return evaluation.sample_rows(trained[job["variant"]], device=device)


def _toy(job: Row, folder: Path, *, par: "Parameters") -> dict[str, Any]:
    """Train on a toy: a row of distances, and points and arrows to draw."""
    setting = Setting(
        data=job["toy"],
        codebook=job["styles"],
        width=64,
        noise_dim=2,
        set_size=256,
        positives=256,
        groups=1,
        lr=1e-2,
        steps=par.toy_steps,
        eval_every=par.toy_steps,
        warmup=min(50, par.toy_steps // 4),
    )
    experiment.train(setting, folder)
    model, _ = experiment.restore(experiment.checkpoints(folder)[-1])
    points = [{**job, **row} for row in evaluation.toy_points(model, job["toy"])]
    return {"toys": evaluation.toy_distances(model, job["toy"]), "toy_points": points}


def _guide(
    job: Row, folder: Path, *, par: "Parameters", images: Images, judged: Path, device: torch.device
) -> dict[str, Any]:
    """One guided run, and in `guidance` its measures at each strength."""
    experiment.train(setting_of({"group": "guided", **job, "seed": 0}, par), folder, device=device)
    last = experiment.checkpoints(folder)[-1]
    rows = []
    for alpha in par.alphas:
        found = _measured(last, folder, par, images, judged, device, alpha)
        row = found[found.alpha == alpha].iloc[-1]
        rows.append({**job, "alpha": alpha, **row[[*MEASURED]]})
    return {"guided": {"trained": True}, "guidance": rows}


def of(frame: pd.DataFrame, variant: str) -> pd.DataFrame:
    """The runs of a variant, by seed; none if there are none."""
    return frame[frame.variant == variant].set_index("seed")


def spread(values: pd.Series, digits: int = 2) -> str:
    """Mean and standard error over runs, as text."""
    error = f" ± {values.sem():.{digits}f}" if len(values) > 1 else " (one run)"
    return f"{values.mean():.{digits}f}{error}" if len(values) else "not run"


def mean(values: pd.Series | pd.DataFrame, digits: int = 2, **limits: Any) -> dict[str, Any]:
    """What `Run.claim` takes of an average over runs, one for each column."""
    found = {"found": spread(values, digits)} if values.ndim == 1 else {}
    return found | {"estimate": values.mean(), "error": values.sem()} | limits


def against(
    frame: pd.DataFrame, variant: str, others: str, name: str = "fd_heldout", **limits: Any
) -> dict[str, Any]:
    """What `Run.claim` takes of a variant less each of some others, run by run."""
    values = of(frame, variant)[name]
    rivals = {other: of(frame, other)[name] for other in others.split()}
    found = f"{spread(values)} against {', '.join(map(spread, rivals.values()))}"
    gaps = pd.DataFrame({other: values - rival for other, rival in rivals.items()})
    return mean(gaps, **{"found": found} | limits)
