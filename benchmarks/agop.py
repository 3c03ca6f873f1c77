"""AGOP of one grokked network: five ways to the exact matrix and our sketch, side by side in one
thread.

    python benchmarks/agop.py [--checkpoint
    build/laptop/data/inputs/agop/laptop/add_seed0/final.safetensors]

Without a checkpoint a network is trained first (about 30 s). Times are medians per example; slow
methods are measured on a part of the grid, named in the table, and the exact ones are compared on
the same part.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from record import record
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fieldbook.grokking.agop import agop, agop_sketch, one_hot_blocks
from fieldbook.grokking.circulant import circulant_score
from fieldbook.grokking.grokker import Grokker
from fieldbook.grokking.modular import task
from fieldbook.nn.checkpoints import load_weights
from fieldbook.nn.machine import keep_freed_memory, resolve_precision
from fieldbook.nn.recipe import Recipe
from fieldbook.nn.training import fit

P, K, REPEATS = 97, 4, 5


def per_sample_loop(f, x: Tensor) -> Tensor:
    """One backward pass per example and output."""
    total = 0
    for one in x.split(1):
        one = one.clone().requires_grad_()
        for output in f(one)[0]:
            row = torch.autograd.grad(output, one, retain_graph=True)[0].flatten()
            total = total + torch.outer(row, row)
    return total / len(x)


def class_loop(f, x: Tensor) -> Tensor:
    """One backward pass per output, over all examples at once."""
    x = x.clone().requires_grad_()
    total = 0
    for output in f(x).T:
        rows = torch.autograd.grad(output.sum(), x, retain_graph=True)[0].flatten(1)
        total = total + rows.T @ rows
    return total / len(x)


@sdpa_kernel(SDPBackend.MATH)  # which vmap can batch
def vmapped_products(f, x: Tensor) -> Tensor:
    """Sixteen backward passes at once, through autograd's own vmap."""
    total = 0
    for part in x.split(128):
        inputs = part.clone().requires_grad_()
        outputs = f(inputs)
        for basis in torch.eye(outputs.shape[1]).split(16):
            cotangents = basis[:, None].expand(-1, len(part), -1)
            (rows,) = torch.autograd.grad(
                outputs, inputs, cotangents, retain_graph=True, is_grads_batched=True
            )
            rows = rows.flatten(2).flatten(0, 1)
            total = total + rows.T @ rows
    return total / len(x)


@sdpa_kernel(SDPBackend.MATH)
def vmap_jacrev(f, x: Tensor) -> Tensor:
    """torch.func's Jacobian of each example."""
    jacobian = torch.func.jacrev(lambda one: f(one[None])[0])
    rows = torch.cat(
        [torch.func.vmap(jacobian)(part).flatten(2).flatten(0, 1) for part in x.split(64)]
    )
    return rows.T @ rows / len(x)


def network(checkpoint: Path | None) -> tuple[Grokker, Tensor]:
    """A grokked network for a + b, frozen, and all pairs."""
    model, t = Grokker(P), task("add", P, 0.5, 0)
    if checkpoint:
        load_weights(model, checkpoint)
    else:
        pairs, target = t.pairs[t.train], t.target[t.train]
        recipe = Recipe(
            steps=1100,
            batch_size=512,
            lr=2e-3,
            weight_decay=1.0,
            betas=(0.9, 0.98),
            warmup=10,
            clip=1.0,
            precision=resolve_precision("auto", torch.device("cpu")),
        )
        fit(
            model,
            lambda m, i, _: torch.nn.functional.cross_entropy(m(pairs[i]).float(), target[i]),
            len(pairs),
            recipe,
        )
    return model.requires_grad_(False), t.pairs


def main() -> None:
    """Measure, print, and fail if the promises of the chapter are not met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path)
    torch.set_num_threads(1)
    keep_freed_memory()
    model, pairs = network(parser.parse_args().checkpoint)
    x = model.token(pairs)
    shuffled = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    f = model.decode

    def sketch(f, x):
        return agop_sketch(f, x, torch.Generator().manual_seed(0), k=K)

    methods = {
        "per-sample loop": (per_sample_loop, 8),
        "class loop": (class_loop, 512),
        "vmapped products": (vmapped_products, 512),
        "vmap(jacrev)": (vmap_jacrev, 512),
        "ours, exact": (agop, 512),
        f"ours, sketch k = {K}": (sketch, len(x)),
    }
    for method, size in methods.values():
        method(f, shuffled[: min(size, 512)])  # warm up
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(REPEATS):  # interleaved, so that a slow moment hits every method
        for name, (method, size) in methods.items():
            start = time.perf_counter()
            method(f, shuffled[:size])
            times[name].append((time.perf_counter() - start) / size)
    seconds = {name: statistics.median(values) for name, values in times.items()}

    reference = agop(f, shuffled[:512])
    deviations = {
        name: agreement(method(f, shuffled[:512]), reference)
        for name, (method, _) in list(methods.items())[1:5]
    }
    deviations["per-sample loop"] = agreement(
        per_sample_loop(f, shuffled[:8]), agop(f, shuffled[:8])
    )
    exact, estimate = (one_hot_blocks(g, model.numbers) for g in (agop(f, x), sketch(f, x)))
    score, estimated = (float(circulant_score(m).diagonal().mean()) for m in (exact, estimate))

    print(
        f"AGOP of a {sum(w.numel() for w in model.parameters()):,}-parameter network, {len(x)} examples, {P} outputs"
    )
    print(f"torch {torch.__version__}, one thread, median of {REPEATS}\n")
    print(
        f"{'method':<20} {'measured on':>11} {'full grid, s':>13} {'speed-up':>9} {'deviation':>10}"
    )
    for name, (_, size) in methods.items():
        ratio = seconds["per-sample loop"] / seconds[name]
        deviation = f"{deviations[name]:.0e}" if name in deviations else "-"
        print(
            f"{name:<20} {size:>11} {seconds[name] * len(x):>13.2f} {ratio:>8.1f}x {deviation:>10}"
        )
    print(
        f"\ncirculant score: exact {score:.4f}, sketch {estimated:.4f}; error {abs(score - estimated):.4f}"
    )

    grid = {name: value * len(x) for name, value in seconds.items()}
    peers = {name: value for name, value in grid.items() if not name.startswith("ours")}
    for name, floor in (("ours, exact", 12), (f"ours, sketch k = {K}", 150)):
        record(
            f"AGOP of {len(x):,} examples, {name[6:]}",
            "s",
            grid[name],
            peers,
            {"per-sample loop": floor},
        )
    loop = seconds["per-sample loop"]
    assert max(deviations.values()) < 1e-5, deviations
    assert loop / seconds["ours, exact"] >= 12, (
        "exact AGOP is less than 12 times faster than the loop"
    )
    assert loop / seconds[f"ours, sketch k = {K}"] >= 150, (
        "the sketch is less than 150 times faster than the loop"
    )
    assert abs(score - estimated) <= 0.01, "the sketch misses the circulant score by more than 0.01"


def agreement(ours: Tensor, reference: Tensor) -> float:
    """Relative Frobenius distance."""
    return float((ours - reference).norm() / reference.norm())


if __name__ == "__main__":
    main()
