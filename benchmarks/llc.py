"""Local learning coefficients of grokked networks: our stack of chains, a plain loop and devinterp,
in one thread.

    python benchmarks/llc.py [--steps 12] [--chains 16] [--device cuda] [--checkpoint FILE]

All run the same localised SGLD from the same weights on the same minibatches. Two networks: the one
that the sampler chapters start from, and the full one; those missing are trained first (about 45
s). Peers are measured twice: computing every position of the last block, as is usual, and with the
library's shortcut, which computes the last one alone. devinterp is installed for the run into an
environment of its own, which borrows this one's torch. Times are medians per chain-step; what is
done once per chain or call is left out, for devinterp by subtracting a short run from a long one.
"""

import argparse
import contextlib
import copy
import inspect
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from record import record
from torch import Tensor, nn

from fieldbook.grokking import networks
from fieldbook.nn import functional
from fieldbook.nn.machine import keep_freed_memory
from fieldbook.nn.recipe import indices
from fieldbook.run import paths
from fieldbook.samplers import estimate, llc
from fieldbook.samplers.preconditioners import sgld
from fieldbook.samplers.sgmcmc import Gradient, chain

BATCH, EPS, GAMMA, REPEATS, AIM = 64, 3e-6, 100.0, 5, 1.4
CELLS, CELL_STEPS = (
    31 * 31 * 16,
    1000,
)  # of the paper grid, and the steps that each is taken to need
EVERY, LAST = "every position", "last position"
Batch = tuple[Tensor, Tensor]


class EveryPosition(nn.Module):
    """A block that computes every position, also when asked for the last alone."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, *, last_only: bool = False) -> Tensor:
        """(batch, token, d_model) -> the same, or the last token of it."""
        x = self.block(x)
        return x[:, -1:] if last_only else x


class Case(NamedTuple):
    """What is sampled: a network, our gradient of it, and the same minibatches for the peers."""

    settings: dict[str, Any]
    models: dict[str, nn.Module]
    gradient: Gradient
    batches: list[Batch]
    options: dict[str, float]


def case(profile: str, checkpoint: Path | None, steps: int, device: str) -> Case:
    """The network that chapter agop trains to add under a profile, or the same with the weights of
    a checkpoint."""
    settings = networks.settings_of(profile)
    model = networks.load(settings, checkpoint or networks.trained(profile, ["add"])["add"]).to(
        device
    )
    slow = copy.deepcopy(model)
    slow.blocks[-1] = EveryPosition(slow.blocks[-1])
    t = networks.task_of(settings, "add", settings["seeds"][0])
    inputs, target = t.pairs[t.train].to(device), t.target[t.train].to(device)
    chosen = [indices(len(target), BATCH, step, 0).to(device) for step in range(steps)]
    return Case(
        settings,
        {EVERY: slow, LAST: model},
        llc.minibatch_gradient(model, inputs, target, batch_size=BATCH, seeds=[0]),
        [(inputs[i], target[i]) for i in chosen],
        {"eps": EPS, "n_beta": estimate.inverse_temperature(len(target)), "gamma": GAMMA},
    )


def stack(case: Case, chains: int, steps: int) -> Tensor:
    """Ours: all chains at once. Returns losses relative to those at the start, (steps, chains)."""
    w_star = functional.flatten(case.models[LAST])
    generator = torch.Generator(w_star.device).manual_seed(0)
    start = w_star.repeat(chains, 1)[:, None]  # one seed, hence one minibatch for all of them
    points = chain(
        case.gradient, start, sgld(), generator, steps=steps, common_noise=False, **case.options
    )
    return torch.stack([losses for losses, _ in points]).squeeze(-1)


def loop(
    model: nn.Module,
    batches: list[Batch],
    noise: list[Tensor | None],
    *,
    eps: float,
    n_beta: float,
    gamma: float,
) -> Tensor:
    """One chain after another: forward, backward, each parameter updated in place.

    Args:
        noise: of each chain, (steps, D), or None for fresh draws.
    Returns:
        Losses (steps, chains).
    """
    weights = list(model.parameters())
    star = [w.detach().clone() for w in weights]
    trace = torch.empty(len(batches), len(noise), device=star[0].device)
    for c, draws in enumerate(noise):
        for t, (inputs, target) in enumerate(batches):
            model.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), target)
            loss.backward()
            trace[t, c] = loss.detach()
            xi = (
                map(torch.randn_like, weights)
                if draws is None
                else draws[t].split([w.numel() for w in weights])
            )
            with torch.no_grad():
                for w, start, one in zip(weights, star, xi, strict=True):
                    w.sub_(eps / 2 * (n_beta * w.grad + gamma * (w - start))).add_(
                        eps**0.5 * one.view_as(w)
                    )
        with torch.no_grad():
            for w, start in zip(weights, star, strict=True):
                w.copy_(start)
    return trace


def serve(folder: str, chains: int) -> None:
    """Measure devinterp, in its own process: for each name of a network on stdin a line of JSON,
    [seconds, losses]."""
    from devinterp.optim.sgmcmc import SGMCMC
    from devinterp.slt.sampler import estimate_learning_coeff_with_summary

    from fieldbook.grokking.grokker import Grokker

    given = torch.load(f"{folder}/case.pt", weights_only=True)
    device = given["batches"][0][0].device
    torch.set_num_threads(1)

    def run(model: nn.Module, batches: list) -> tuple[float, list]:
        start = time.perf_counter()
        results = estimate_learning_coeff_with_summary(
            model,
            torch.utils.data.DataLoader(batches, batch_size=1, collate_fn=lambda pair: pair[0]),
            evaluate=lambda network, batch: nn.functional.cross_entropy(
                network(batch[0]), batch[1]
            ),
            sampling_method=SGMCMC.sgld,
            optimizer_kwargs=dict(given["options"]),
            num_draws=len(batches),
            num_chains=chains,
            init_loss=1.0,
            device=device,
            verbose=False,
        )
        return time.perf_counter() - start, results[
            "loss/trace"
        ].T.tolist()  # on the CPU, hence done

    for line in sys.stdin:
        model = Grokker(**given["settings"]).to(device)
        model.load_state_dict(given["weights"])
        if line.strip() == "every position":
            model.blocks[-1] = EveryPosition(model.blocks[-1])
        batches = given["batches"]
        few = batches[: len(batches) // 4]
        (short, _), (long, losses) = run(model, few), run(model, batches)
        print(json.dumps([(long - short) / chains / (len(batches) - len(few)), losses]), flush=True)


@contextlib.contextmanager
def environment() -> Iterator[Path]:
    """A throw-away environment with devinterp and what it needs beyond this one; yields its
    interpreter.

    Raises:
        OSError: the installation failed; says why.
    """
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder)
        python = Path(folder, "bin", "python")
        (packages,) = Path(folder).glob("lib/python*/site-packages")
        borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (packages / "borrowed.pth").write_text("".join(f"{line}\n" for line in borrowed))
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
        wanted = ["-c", paths.ROOT / "constraints.txt", "devinterp>=1.3,<1.4"]
        done = subprocess.run([*pip, *wanted], capture_output=True, text=True)
        if done.returncode:
            raise OSError((done.stderr.strip().splitlines() or ["pip gives no reason"])[-1])
        yield python


@contextlib.contextmanager
def devinterp(
    python: Path, case: Case, chains: int
) -> Iterator[Callable[[str], tuple[float, Tensor]]]:
    """A process that runs `serve`, as a function from the name of a network to seconds per
    chain-step and losses."""
    shape = ("p", "d_model", "n_heads", "n_layers", "d_hidden", "activation", "operator")
    given = {
        "settings": {name: case.settings[name] for name in shape},
        "weights": case.models[LAST].state_dict(),
        "batches": case.batches,
        "options": dict(zip(("lr", "nbeta", "localization"), case.options.values(), strict=True)),
    }
    with tempfile.TemporaryDirectory() as folder:
        torch.save(given, Path(folder, "case.pt"))
        imports = "import json, sys, time\nimport torch\nfrom torch import Tensor, nn\n"
        code = f"{imports}{inspect.getsource(EveryPosition)}{inspect.getsource(serve)}serve({folder!r}, {chains})"
        variables = os.environ | {"PYTHONPATH": str(paths.ROOT / "lib"), "PYTHONWARNINGS": "ignore"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen([python, "-c", code], text=True, env=variables, **pipes) as process:

            def measure(name: str) -> tuple[float, Tensor]:
                print(name, file=process.stdin, flush=True)
                seconds, losses = json.loads(process.stdout.readline())
                return seconds, torch.tensor(losses)

            yield measure
            process.stdin.close()


def measure(
    case: Case, chains: int, python: Path | None
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Median seconds per chain-step of every method, and its losses relative to the start, (steps,
    chains)."""
    steps, star = len(case.batches), at_start(case)

    def timed(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
        start = time.perf_counter()
        trace = run().cpu()  # which waits for a GPU to finish
        return (time.perf_counter() - start) / chains / steps, trace

    fresh = [None] * chains
    methods: dict[str, Callable[[], tuple[float, Tensor]]] = {
        "ours, stacked": lambda: timed(lambda: stack(case, chains, steps)),
        **{
            f"loop, {name}": lambda m=model: timed(
                lambda: loop(m, case.batches, fresh, **case.options) - star
            )
            for name, model in case.models.items()
        },
    }
    with contextlib.ExitStack() as open_:
        if python:
            peer = open_.enter_context(devinterp(python, case, chains))
            for name in case.models:
                methods[f"devinterp, {name}"] = lambda n=name: (lambda s, x: (s, x - star.cpu()))(
                    *peer(n)
                )
        for method in methods.values():
            method()  # warm up
        runs = [
            {name: method() for name, method in methods.items()} for _ in range(REPEATS)
        ]  # a slow moment hits all
    seconds = {name: statistics.median(run[name][0] for run in runs) for name in methods}
    return seconds, {name: trace for name, (_, trace) in runs[-1].items()}


def at_start(case: Case) -> Tensor:
    """Losses of every minibatch before the first step, (steps, 1)."""
    with torch.no_grad():
        return torch.stack(
            [nn.functional.cross_entropy(case.models[LAST](x), y) for x, y in case.batches]
        )[:, None]


def same_noise(case: Case, steps: int = 4, chains: int = 3) -> float:
    """Largest difference between losses of the stack and of a loop under the same noise, relative
    to their mean."""
    w_star = functional.flatten(case.models[LAST])
    generator = torch.Generator(w_star.device).manual_seed(0)
    draws = [
        torch.randn(chains, len(w_star), generator=generator, device=w_star.device)
        for _ in range(steps)
    ]
    noise, few, ours = list(torch.stack(draws, 1)), case.batches[:steps], stack(case, chains, steps)
    traces = [
        loop(model, few, noise, **case.options) - at_start(case)[:steps]
        for model in case.models.values()
    ]
    return max(float((ours - trace).abs().max() / trace.abs().mean()) for trace in traces)


def report(case: Case, chains: int, python: Path | None, missing: str) -> None:
    """Measure one network, print its table, and fail if the methods disagree."""
    difference = same_noise(case)
    seconds, traces = measure(case, chains, python)
    steps, n_beta, ours = len(case.batches), case.options["n_beta"], seconds["ours, stacked"]
    rises = {
        name: estimate.estimate(x[:, None], n_beta=n_beta, burn_in=steps // 2)
        for name, x in traces.items()
    }
    size = sum(w.numel() for w in case.models[LAST].parameters())
    print(
        f"\np = {case.settings['p']}, d_model = {case.settings['d_model']}: {size:,} parameters, "
        f"{chains} chains of {steps} steps\n\n"
        f"{'method':<26} {'chain-steps/s':>13} {'ms each':>8} {'ours is':>8} {'grid, h':>8} {'n_beta (L - L*)':>18}"
    )
    for name, each in seconds.items():
        hours = each * CELLS * CELL_STEPS / 3600
        rise = "{:.2f} ± {:.2f}".format(*map(float, rises[name]))
        print(
            f"{name:<26} {1 / each:>13.0f} {1e3 * each:>8.2f} {each / ours:>7.2f}x {hours:>8.1f} {rise:>18}"
        )
    if missing:
        print(f"{'devinterp':<26} not installed: {missing}")
    peers = {name: 1e3 * each for name, each in seconds.items() if name != "ours, stacked"}
    record(f"SGLD step of a chain, {size:,} parameters, {chains} chains", "ms", 1e3 * ours, peers)
    below = [
        name for name, each in seconds.items() if name != "ours, stacked" and each < AIM * ours
    ]
    print(f"\nbelow the aim of {AIM}x: {'; '.join(below) or 'none'}")
    print(
        f"with the same noise, losses of stack and loops differ by at most {difference:.0e} of their mean"
    )

    assert difference < 1e-3, "stack and loop disagree under the same noise"
    value, error = rises["ours, stacked"]
    for name, (other, spread) in rises.items():
        close = (value - other).abs() < 5 * (error**2 + spread**2).sqrt()
        assert close or chains < 8, (
            f"losses differ from those of {name}"
        )  # fewer chains give no error to rely on


def main() -> None:
    """Read the options, install devinterp, and report on both networks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=12, help="of each chain, at least 4")
    parser.add_argument("--chains", type=int, default=16, help="of each method, at least 2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpoint", type=Path, help="weights of the full network")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    print(
        f"SGLD at batch {BATCH}, eps = {EPS}, gamma = {GAMMA:.0f}; torch {torch.__version__} on {options.device}"
    )
    print(
        f"one thread, median of {REPEATS}; grid: hours for {CELLS:,} cells of {CELL_STEPS:,} steps"
    )
    with contextlib.ExitStack() as open_:
        try:
            python, missing = open_.enter_context(environment()), ""
        except OSError as error:
            python, missing = None, str(error)
        for profile, checkpoint in (("small", None), ("laptop", options.checkpoint)):
            one = case(profile, checkpoint, options.steps, options.device)
            report(one, options.chains, python, missing)


if __name__ == "__main__":
    main()
