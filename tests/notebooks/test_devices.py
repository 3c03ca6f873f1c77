"""Every chapter's computation as on a GPU, without one: `pretend.gpu` refuses what meets across
devices.

The cells run in this process with far smaller parameters than quick. Their claims mean nothing
then; everything that the chapter trains, samples, evaluates and measures runs nevertheless.
"""

import functools
import linecache
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pretend
import pytest
import torch

from fieldbook.grokking import experiment, networks
from fieldbook.grokking.agop import Rule
from fieldbook.grokking.grokker import Grokker
from fieldbook.nn import closure
from fieldbook.run import figures, parameters, paths, tables
from fieldbook.samplers import known
from fieldbook.spectra import spectroscopy

AGOP = {
    "operations": ["add", "mul"],
    "p": 7,
    "d_model": 8,
    "n_heads": 2,
    "n_layers": 1,
    "d_hidden": 8,
    "steps": 20,
    "settle": 20,
    "batch_size": 16,
    "eval_every": 10,
    "precision": "auto",
}
SMALL: dict[str, dict[str, Any]] = {
    "agop": AGOP,
    "si_sgld": {
        "grid": 3,
        "check_grid": 1,
        "polish_steps": 4,
        "steps": 12,
        "burn_in": 2,
        "batch_size": 4,
        "localizations": 5,
        "stack": 9,
        "check_steps": 2,
        "truth_steps": 20,
        "truth_chains": 2,
    },
    "entropy": {
        "walkers": 2,
        "bins": 8,
        "melt": 2,
        "cool": 40,
        "steps": 2,
        "relax": 20,
        "record_every": 10,
        "truth_steps": 100,
        "low": -1.0,
        "high": 0.4,
    },
    "spectra_vit": {
        "n_train": [32, 48],
        "n_val": 8,
        "n_test": 16,
        "n_limits": 8,
        "n_fitted": 8,
        "patch": 512,
        "d_model": 8,
        "n_heads": 2,
        "steps": 2,
        "batch_size": 8,
        "warmup": 1,
        "eval_every": 1,
        "ablation_n": 32,
        "ablation_steps": 1,
        "dropout": 0.1,
    },
    "encoder_probe": {
        "n_pretrain": 32,
        "n_train": [32],
        "n_val": 16,
        "n_test": 16,
        "n_denoised": 16,
        "n_limits": 8,
        "n_layers": 2,
        "channels": 2,
        "kernel": 3,
        "steps": 2,
        "tune_steps": 2,
    },
    "scaling": {
        "instruments": 2,
        "val_days": 1,
        "test_days": 2,
        "ticks": 6120,
        "law_days": [1, 2, 3],
        "held_days": [2],
        "tried": [1.0],
        "tune_days": 1,
        "design_instruments": [2],
        "design_years": [2],
        "held_out": 128,
    },
    "drifting": {
        "toy_steps": 10,
        "steps": 6,
        "ablation_steps": 4,
        "evaluations": 2,
        "width": 16,
        "num_samples": 100,
        "judge_steps": 10,
        "set_size": 4,
        "alphas": [1.0, 2.0],
        "warmup": 2,
    },
}


def compute(chapter: str, **chosen: Any) -> dict[str, Any]:
    """Run a notebook's code cells here; its names."""
    names: dict[str, Any] = {"__name__": "__main__"}
    notebook = nbformat.read(paths.notebook(chapter), as_version=4)
    for number, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
        file = f"<{chapter}, cell {number}>"
        linecache.cache[file] = (
            len(cell.source),
            None,
            cell.source.splitlines(keepends=True),
            file,
        )
        exec(compile(cell.source, file, "exec"), names)
        if "parameters" in cell.metadata.get("tags", []):
            names.update({"workers": 1}, **chosen)
    return names


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    plt.switch_backend("Agg")
    monkeypatch.setenv("FIELDBOOK_RESULTS", str(tmp_path))
    monkeypatch.setattr(parameters, "of_profile", of_profile)
    monkeypatch.setattr(spectroscopy, "COMPONENTS", 16)
    monkeypatch.setattr(
        known, "gibbs_mean_loss", partial(known.gibbs_mean_loss, chains=2, sweeps=6)
    )  # on the CPU
    monkeypatch.setattr(figures, "save", lambda figure, *_, **__: plt.close(figure))
    return tmp_path


def of_profile(chapter: str, profile: str) -> parameters.Parameters:
    chosen = AGOP | {"activation": "gelu" if profile == "gelu" else "relu", "profile": profile}
    return parameters.Parameters(parameters.check(paths.notebook(chapter), chosen))


def named(parts: set[str]) -> set[str]:
    """The functions and classes, by their full names, that a table is known by."""
    return {part.partition("\n")[0] for part in parts}


def watched(compute: Callable, unknown: dict[str, set[str]], name: str) -> Callable:
    """The same computation, which notes all functions of ours that it calls and is not known by."""
    known_by = named(closure.closure(compute, watched=(parameters.Parameters,)).parts)

    def note(frame: FrameType, event: str, _: Any) -> None:
        module, function = frame.f_globals.get("__name__", ""), frame.f_code.co_qualname
        outermost = function.partition(".")[0]
        ours = module.startswith("fieldbook.") or module == "__main__"
        counts = event == "call" and ours and closure._is_our_name(module)
        made = outermost[0] == "<" or outermost == "__create_fn__"  # by Python, from what is known
        if counts and not made and f"{module}.{outermost}" not in known_by:
            unknown.setdefault(name, set()).add(f"{module}.{outermost}")

    @functools.wraps(compute)
    def noted(*given: Any, **options: Any) -> Any:
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            return compute(*given, **options)
        finally:
            sys.setprofile(before)

    return noted


@pytest.mark.parametrize("chapter", SMALL)
def test_chapter_computes_on_one_device_and_tables_know_what_they_depend_on(
    chapter: str, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown: dict[str, set[str]] = {}
    sweep = tables.sweep

    def noting(parts: tables.Parts, jobs: Any, function: Callable, **options: Any) -> Any:
        return sweep(parts, jobs, watched(function, unknown, options["name"]), **options)

    monkeypatch.setattr(tables, "sweep", noting)
    with pretend.gpu() as mode:
        compute(chapter, **SMALL[chapter])
    assert mode.waits > 10, "the chapter left the GPU alone"
    assert not unknown, "tables depend on functions that their identity does not know"


def test_the_pretended_gpu_computes_what_the_cpu_does(results: Path) -> None:
    with pretend.gpu():
        pretended = compute("agop", **AGOP | {"precision": "fp32", "profile": "pretended"})["rows"]
    alone = compute("agop", **AGOP | {"precision": "fp32"})["rows"]
    # scores near zero are differences of shares of order one: single precision's 1e-7 of those
    pd.testing.assert_frame_equal(alone, pretended, rtol=1e-4, atol=1e-6)


def test_a_draw_on_another_device_is_noticed(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chapter agop ended at its first evaluation on every GPU, by a generator of the GPU and a draw
    on the CPU."""

    def on_the_cpu(generator: torch.Generator) -> Rule:
        return lambda outputs, _: (
            torch.randint(0, 2, outputs.shape, generator=generator).to(outputs) * 2 - 1
        )

    monkeypatch.setattr(experiment, "signs", on_the_cpu)
    with (
        pretend.gpu(),
        pytest.raises(
            RuntimeError, match="Expected a 'cpu' device type for generator but found 'cuda'"
        ),
    ):
        compute("agop", **AGOP)


def test_a_module_moved_for_good_is_noticed(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = networks.load
    monkeypatch.setattr(networks, "load", lambda *given: load(*given).to("cuda").cpu())
    monkeypatch.setattr(Grokker, "to", lambda self, _: self)
    with pretend.gpu(), pytest.raises(RuntimeError, match="found at least two devices"):
        compute("agop", **AGOP)
