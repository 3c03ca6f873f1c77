"""The whole experiment: networks of every operation, their controls, and what is read off them."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from fieldbook.grokking import experiment, networks
from fieldbook.grokking.agop import agop_sketch, one_hot_blocks
from fieldbook.grokking.circulant import center, circulant_score, circulant_share, fourier_energies
from fieldbook.grokking.modular import token_order
from fieldbook.grokking.networks import Settings
from fieldbook.run import paths
from fieldbook.run.tables import Row

if TYPE_CHECKING:  # of no worker's concern
    from fieldbook.run.chapter import Run

CONTROLS = {"none": {}, "wd0": {"weight_decay": 0.0}, "few": {"train_fraction": 0.15}}
"""What is changed in a control: nothing, no weight decay, few pairs to learn from."""
SKETCH = 4  # random outputs per example for a block that is shown


def run_all(run: "Run", par: Settings, device: torch.device) -> dict[str, pd.DataFrame]:
    """Train all networks, and read from the first seed's what the figures show.

    The weights of that seed are left where other chapters look for them
    (`fieldbook.grokking.networks.trained`).

    Args:
        par: `operations`, `seeds`, `controls` and all that makes a network and its training.
    Returns:
        `runs`: a row per network, with its control, of `experiment.summary`. `evaluations`: a row
        of `experiment.measure` per network and evaluation. `blocks`: the centred one-hot AGOP block
        of the first operand, scaled to its largest entry, by milestone and token, for `shown(par)`.
        `spectrum`: share of the embedding's energy per operation and frequency.
    """
    jobs = jobs_of(par)
    runs = run.sweep("runs", jobs, partial(_train_network, par, device))
    evaluations = [run.frame(name_of(job)).assign(**job) for job in jobs]
    plain = [job for job in jobs if job["control"] == "none" and job["seed"] == par.seeds[0]]
    weights = {}
    for job in [] if paths.frozen() else plain:
        weights[job["operation"]] = run.files("runs", job)
        networks.hand_over(weights[job["operation"]], par.profile, job["operation"])
    milestones = [{"milestone": name} for name in ("initial", "final")]
    of_operations = [{"operation": job["operation"]} for job in plain]
    block_rows = partial(_block_rows, par, device, weights)
    return {
        "runs": runs,
        "evaluations": pd.concat(evaluations, ignore_index=True),
        "blocks": run.sweep("blocks", milestones, block_rows),
        "spectrum": run.sweep("spectrum", of_operations, partial(_spectrum_rows, par, weights)),
    }


def jobs_of(par: Settings) -> list[Row]:
    """One network each: every operation with every seed, and the controls of the first of both."""
    jobs = [
        {"operation": operation, "seed": seed, "control": "none"}
        for operation in par.operations
        for seed in par.seeds
    ]
    if par.controls:
        first = {"operation": par.operations[0], "seed": par.seeds[0]}
        jobs += [{**first, "control": control} for control in ("wd0", "few")]
    return jobs


def name_of(job: Row) -> str:
    """The table of a network's evaluations: `add_seed0`, or `add_seed0_wd0` of a control."""
    control = "" if job["control"] == "none" else f"_{job['control']}"
    return f"{job['operation']}_seed{job['seed']}{control}"


def shown(par: Settings) -> str:
    """The operation whose AGOP is shown: one whose circle is hidden in natural order, if any."""
    return next((one for one in par.operations if one in ("mul", "div")), par.operations[0])


def leads(evaluations: pd.DataFrame) -> pd.DataFrame:
    """By how many updates two warnings lead the strict test accuracy, per network and mark.

    Args:
        evaluations: as of `run_all`; controls are left out.
    Returns:
        `operation`, `seed`; `mark`: "50 %" and "10 %" of their ranges (`experiment.passings`), or
        the values "0.5" and "0.2", which need no end of a run; `score`, `loss`, the leads of the
        circulant score and of the fall of the test loss (nan for values), and their `difference`.
    """
    found = []
    plain = evaluations[evaluations.control == "none"]
    for (operation, seed), one in plain.groupby(["operation", "seed"], sort=False):
        of = {"operation": operation, "seed": seed}
        for mark, share in (("50 %", 0.5), ("10 %", 0.1)):
            passed = experiment.passings(one, share)
            ahead = {name: passed["accuracy"] - passed[name] for name in ("score", "loss")}
            found.append({**of, "mark": mark, **ahead})
        for level in (0.5, 0.2):
            answers = experiment.reached(one.step, one.test_acc_strict, level)
            ahead = answers - experiment.reached(one.step, one.agop_circ, level)
            found.append({**of, "mark": str(level), "score": ahead, "loss": np.nan})
    frame = pd.DataFrame(found)
    return frame.assign(difference=frame.score - frame.loss)


def nulls(par: Settings, draws: int = 200) -> pd.DataFrame:
    """Circulant share and score, `share` and `score`, of random matrices (`matrix`) of three kinds
    over p tokens."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(draws, par.p, par.d_model, generator=generator)
    distance = (torch.arange(par.p)[:, None] - torch.arange(par.p)) % par.p
    examples = {
        "independent entries": torch.randn(draws, par.p, par.p, generator=generator),
        "Gram matrix of random embeddings": embeddings @ embeddings.mT,
        "exact circulant": torch.randn(draws, par.p, generator=generator)[:, distance],
    }
    frames = [
        pd.DataFrame({"matrix": name, "share": circulant_share(m), "score": circulant_score(m)})
        for name, m in examples.items()
    ]
    return pd.concat(frames, ignore_index=True)


def _train_network(par: Settings, device: torch.device, job: Row, folder: Path) -> dict[str, Any]:
    """One network: its row of `runs`, and a table of its evaluations."""
    settings = par.replace(**CONTROLS[job["control"]])
    task = networks.task_of(settings, job["operation"], job["seed"])
    network = networks.network_of(settings, job["seed"]).to(device)
    recipe = networks.recipe_of(settings, job["seed"], device)
    found = experiment.train(network, task, recipe, folder, sketch=par.sketch, progress=False)
    return {"runs": experiment.summary(pd.DataFrame(found)), name_of(job): found}


def _block_rows(
    par: Settings, device: torch.device, weights: Mapping[str, Path], job: Row
) -> list[Row]:
    """The rows of a block, tokens in natural order."""
    operation = shown(par)
    file = weights[operation] / f"{job['milestone']}.safetensors"
    network = networks.load(par, file).to(device).requires_grad_(False)
    pairs = networks.task_of(par, operation, par.seeds[0]).pairs
    generator = torch.Generator(device).manual_seed(0)
    operands = network.token(pairs.to(device))
    gradient = agop_sketch(network.decode, operands, generator, k=SKETCH)
    block = center(one_hot_blocks(gradient, network.numbers)[0, 0]).cpu().numpy()
    scaled = np.round(block / abs(block).max(), 4)
    named = [{f"t{j}": value for j, value in enumerate(row)} for row in scaled.tolist()]
    return [{"token": i, **row} for i, row in enumerate(named)]


def _spectrum_rows(par: Settings, weights: Mapping[str, Path], job: Row) -> list[Row]:
    """Shares of the embedding's Fourier energy before and after training."""
    final = weights[job["operation"]] / "final.safetensors"
    both = [networks.network_of(par, par.seeds[0]), networks.load(par, final)]
    order = token_order(job["operation"], par.p)
    energies = [fourier_energies(network.numbers.detach()[order]) for network in both]
    shares = torch.stack([e / e.sum() for e in energies], 1).tolist()
    numbered = enumerate(shares, start=1)
    return [{"frequency": k, "untrained": u, "trained": t} for k, (u, t) in numbered]
