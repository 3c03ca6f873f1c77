"""The kernel field at three temperatures: ours against two transcriptions of Alg. 2, in one thread.

    python benchmarks/drifting.py [--dim 64] [--device cuda]

One transcription follows the paper's pseudo-code, with `cdist`, once per temperature. The other
writes out all differences, an (N, N, D) tensor, and stops where that no longer fits. Each is
measured in a process of its own: the peak is what it adds to the resident memory (on a GPU, to the
allocated memory). Times are medians, on a CPU of the thread's own time, so that other work on the
machine counts little.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable

import torch
from record import record
from torch import Tensor

from fieldbook.drifting import kernel

SIZES, REPEATS, LARGEST = (256, 1024, 4096), 5, 2**28


def transcription(
    x: Tensor, pos: Tensor, tau: float, distance: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Alg. 2 at one temperature, with x as its own negatives."""
    d_neg = distance(x, x) + torch.eye(len(x), device=x.device) * 1e6
    logit = torch.cat((-distance(x, pos) / tau, -d_neg / tau), 1)
    a = (logit.softmax(-1) * logit.softmax(-2)).sqrt()
    a_pos, a_neg = a.split((len(pos), len(x)), 1)
    w_pos, w_neg = a_pos * a_neg.sum(1, keepdim=True), a_neg * a_pos.sum(1, keepdim=True)
    return w_pos @ pos - w_neg @ x


def written_out(x: Tensor, y: Tensor) -> Tensor:
    """Distances from an (N, M, D) tensor of differences."""
    return (x[:, None] - y).norm(dim=-1)


def ours(x: Tensor, pos: Tensor, taus: list[float]) -> Tensor:
    """All temperatures in one call."""
    v, _ = kernel.field(x, pos, x, taus)
    return v


METHODS: dict[str, Callable[[Tensor, Tensor, list[float]], Tensor]] = {
    "ours": ours,
    "Alg. 2, cdist": lambda x, pos, taus: torch.stack(
        [transcription(x, pos, t, torch.cdist) for t in taus]
    ),
    "Alg. 2, written out": lambda x, pos, taus: torch.stack(
        [transcription(x, pos, t, written_out) for t in taus]
    ),
}


def measure(name: str, n: int, dim: int, device: str) -> tuple[float, float, float]:
    """Median seconds, peak memory in MB, largest relative difference from the transcription."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x, pos = (torch.randn(n, dim, generator=generator).to(device) + shift for shift in (0, 0.5))
    taus = [tau * (2 * dim) ** 0.5 for tau in kernel.TAUS]
    METHODS[name](x[:64], pos[:64], taus)  # what libraries allocate once
    cuda = torch.device(device).type == "cuda"
    now = time.perf_counter if cuda else time.process_time
    before = (
        torch.cuda.memory_allocated()
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    seconds = []
    for _ in range(REPEATS):
        start = now()
        v = METHODS[name](x, pos, taus)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(now() - start)
    peak = (
        torch.cuda.max_memory_allocated()
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    reference = METHODS["Alg. 2, cdist"](x, pos, taus)
    return (
        statistics.median(seconds),
        (peak - before) / 1e6,
        float((v - reference).abs().max() / reference.abs().max()),
    )


def main() -> None:
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print(f"{'N':>5} {'method':<22} {'ms':>9} {'ours is':>8} {'peak, MB':>9} {'difference':>11}")
    processes = multiprocessing.get_context("spawn")
    for n in SIZES:
        found = {}
        for name in METHODS:
            if name.endswith("out") and n * n * options.dim > LARGEST:
                size = n * n * options.dim * 4 / 1e9
                print(f"{n:>5} {name:<22} skipped: {size:.1f} GB for one tensor")
                continue
            with processes.Pool(1) as pool:
                seconds, peak, difference = pool.apply(
                    measure, (name, n, options.dim, options.device)
                )
            found[name] = 1e3 * seconds, peak
            ratio = f"{1e3 * seconds / found['ours'][0]:.1f}x"
            measured = f"{1e3 * seconds:>9.1f} {ratio:>8} {peak:>9.0f} {difference:>11.0e}"
            print(f"{n:>5} {name:<22} {measured}")
            if difference > 1e-4:
                raise SystemExit(f"{name} disagrees with the transcription")
        (ms, megabytes), promised = (
            found.pop("ours"),
            {"Alg. 2, cdist": 2.0} if n == SIZES[-1] else {},
        )
        what = f"drifting field of {n:,} samples"
        record(what, "ms", ms, {name: values[0] for name, values in found.items()}, promised)
        record(
            f"{what}, peak memory",
            "MB",
            megabytes,
            {name: values[1] for name, values in found.items()},
        )
        for name, least in promised.items():
            if found[name][0] < least * ms:
                raise SystemExit(f"less than {least:g} times as fast as {name} with {n:,} samples")


if __name__ == "__main__":
    main()
