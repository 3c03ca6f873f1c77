"""The grokked networks that several chapters share: chapter agop's settings make them, and here
they are found.

Settings are the parameters of chapter agop, for instance those of one of its profiles.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from fieldbook.grokking.grokker import Grokker
from fieldbook.grokking.modular import Task
from fieldbook.grokking.modular import task as build_task
from fieldbook.nn import training
from fieldbook.nn.checkpoints import atomic_write, load_weights, read_weights, save_weights
from fieldbook.nn.closure import closure
from fieldbook.nn.identity import digest, structure_of
from fieldbook.nn.machine import device, resolve_precision
from fieldbook.nn.recipe import Recipe
from fieldbook.nn.workers import each
from fieldbook.run import paths

GROKKED = 0.99  # test accuracy
Settings = Any  # parameters of chapter agop, read by name: `settings.p`


def task_of(settings: Settings, operation: str, seed: int) -> Task:
    """The pairs of an operation and their split."""
    share, without_zero = settings.train_fraction, settings.exclude_zero
    return build_task(operation, settings.p, share, seed, exclude_zero=without_zero)


def network_of(settings: Settings, seed: int) -> Grokker:
    """An untrained network with the initial weights of a seed."""
    return Grokker(
        p=settings.p,
        d_model=settings.d_model,
        n_heads=settings.n_heads,
        n_layers=settings.n_layers,
        d_hidden=settings.d_hidden,
        activation=settings.activation,
        operator=settings.operator,
        seed=seed,
    )


def recipe_of(settings: Settings, seed: int, device: torch.device) -> Recipe:
    """AdamW for `steps` updates, or until `settle` updates after the test accuracy has passed 99
    %."""
    return Recipe(
        steps=settings.steps,
        batch_size=settings.batch_size,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        clip=settings.clip,
        eval_every=settings.eval_every,
        betas=(0.9, 0.98),
        warmup=10,
        seed=seed,
        precision=resolve_precision(settings.precision, device),
        monitor="waiting",
        mode="max",
        patience=max(settings.settle // settings.eval_every, 1),
    )


def waiting(step: int, test_acc: float) -> dict[str, float]:
    """What `recipe_of` monitors: `waiting` grows until the network has grokked, then stays, and
    patience runs out."""
    return {"waiting": -1.0 if test_acc > GROKKED else float(step), "test_acc": test_acc}


def trained(
    settings: Settings, operations: Sequence[str], *, workers: int = 1, train_missing: bool = True
) -> dict[str, Path]:
    """Weights of one trained network per operation, in the results folder: {operation: safetensors
    file}.

    A run of chapter agop leaves them (`hand_over`, and the Snakefile's rule `networks`); those
    missing, or of other settings or code, are trained here, with its first seed; a killed call
    continues.

    Args:
        settings: parameters of chapter agop, under one of its profiles.
        workers: processes of one thread each.
        train_missing: train what is not there; otherwise that is an error.
    Raises:
        FileNotFoundError: a network is missing and may not be trained; names file and remedy.
        ValueError: a file is damaged; names it.
    """
    files = {
        operation: paths.inputs("networks", settings.profile) / f"{operation}.safetensors"
        for operation in operations
    }
    missing = []
    for operation, file in files.items():
        facts = _facts(settings, operation)
        handed = _handed_over(settings.profile, operation)
        if not _is_of(file, facts):
            if _is_of(handed, facts):
                _copy(handed, file)
            else:
                missing.append(operation)
    if missing and not train_missing:
        file = files[missing[0]]
        remedy = f"run chapter agop at profile {settings.profile} through Snakemake"
        remedy += ", or set train_missing"
        kind = "of these settings and this code " if file.exists() else ""
        raise FileNotFoundError(f"no trained network {kind}at {file}; {remedy}")
    list(each(_train, [(settings, operation, files[operation]) for operation in missing], workers))
    return files


def hand_over(folder: Path, profile: str, operation: str) -> None:
    """Leave the `final` weights in a folder of chapter agop where `trained` looks for them."""
    _copy(folder / "final.safetensors", _handed_over(profile, operation))


def _handed_over(profile: str, operation: str) -> Path:
    return paths.inputs("agop", profile) / "networks" / f"{operation}.safetensors"


def _copy(source: Path, target: Path) -> None:
    content = source.read_bytes()
    atomic_write(target, lambda file: file.write(content))


def facts_of(model: Grokker, task: Task, recipe: Recipe) -> dict[str, str]:
    """What determines a network's weights but for rounding: kept beside them."""
    chosen = {name: value for name, value in asdict(recipe).items() if name != "precision"}
    parts = {
        "recipe": chosen,
        "task": task,
        "network": structure_of(model),
        "code": closure(fit, Grokker, build_task).digest,
    }
    return {name: digest(value) for name, value in parts.items()}


def _facts(settings: Settings, operation: str) -> dict[str, str]:
    seed = settings.seeds[0]
    recipe = recipe_of(settings, seed, device())
    return facts_of(network_of(settings, seed), task_of(settings, operation, seed), recipe)


def _is_of(file: Path, facts: dict[str, str]) -> bool:
    return file.exists() and read_weights(file)[1] == facts


def load(settings: Settings, file: Path) -> Grokker:
    """A network with the weights of a file; raises as `fieldbook.nn.checkpoints.load_weights`
    does."""
    model = network_of(settings, 0)
    load_weights(model, file)
    return model


def train(
    settings: Settings,
    operation: str,
    folder: Path,
    evaluate: training.Evaluate,
    written: Callable[[int], bool] | None = None,
) -> Grokker:
    """Train the network of the first seed; a killed call continues from the checkpoint in a folder.

    Args:
        evaluate: (network, step) -> metrics, `waiting`'s among them.
        written: as for `fieldbook.nn.training.fit`.
    """
    seed = settings.seeds[0]
    where = device()
    model = network_of(settings, seed).to(where)
    task = task_of(settings, operation, seed)
    fit(
        model,
        task,
        recipe_of(settings, seed, where),
        evaluate=evaluate,
        checkpoint=folder,
        written=written,
        progress=False,
    )
    return model


def fit(model: Grokker, task: Task, recipe: Recipe, **options: Any) -> training.Fit:
    """`fieldbook.nn.training.fit` with the cross-entropy of a task's train split, on the model's
    device."""
    where = model.numbers.device
    pairs = task.pairs[task.train].to(where)
    target = task.target[task.train].to(where)

    def loss(network: Grokker, index: Tensor, _: torch.Generator) -> Tensor:
        chosen = index.to(where)
        return torch.nn.functional.cross_entropy(network(pairs[chosen]).float(), target[chosen])

    return training.fit(model, loss, len(pairs), recipe, **options)


def _train(settings: Settings, operation: str, file: Path) -> None:
    """Train one network, watching its test accuracy alone, and leave its weights in a file."""
    t = task_of(settings, operation, settings.seeds[0])
    where = device()
    pairs = t.pairs[~t.train].to(where)
    target = t.target[~t.train].to(where)

    def evaluate(network: Grokker, step: int) -> dict[str, float]:
        return waiting(step, float((network(pairs).argmax(1) == target).double().mean()))

    file.parent.mkdir(parents=True, exist_ok=True)
    facts = _facts(settings, operation)
    with FileLock(file.with_suffix(".lock")):
        if not _is_of(file, facts):
            folder = file.with_name(f"{file.stem}-{digest(facts)}")
            save_weights(train(settings, operation, folder, evaluate), file, facts)
