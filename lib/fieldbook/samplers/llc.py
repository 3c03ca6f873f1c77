"""Local learning coefficient: lambda_hat = n_beta (E[L(w)] - L(w*)) under localised Langevin steps.

Source: Lau et al. 2023 (arXiv:2308.12108), equation 8. Two things differ from a plain mean of
losses: L(w*) is taken on the same minibatch as L(w), which leaves the mean and removes most of the
noise near w*; and a chain that did not measure what it should says so. `measure` does all of it for
a network and its data, the rest are its parts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fieldbook.nn.checks import at_least_single, require
from fieldbook.nn.functional import (
    Loss,
    cross_entropy,
    flatten,
    orbits,
    outputs_of,
    require_measurable,
    stacked_losses,
)
from fieldbook.nn.recipe import Recipe, indices
from fieldbook.nn.seeds import stream
from fieldbook.nn.training import Diverged, fit
from fieldbook.samplers.curvature import fisher_diagonal, largest_curvature
from fieldbook.samplers.estimate import estimate, health, inverse_temperature
from fieldbook.samplers.preconditioners import Metric, Preconditioner, named
from fieldbook.samplers.sgmcmc import Gradient, chain

FREE = 0.1  # of a free walk's squared distance: held, a direction has gone 1 / (eps P a T) of it
PART = 2048  # examples in one forward pass


@dataclass(frozen=True)
class Sampling:
    """How the chains of every cell run: `burn_in` of their `steps` are dropped."""

    steps: int
    burn_in: int
    chains: int
    batch_size: int
    seed: int = 0

    def __post_init__(self) -> None:
        accepted = f"0 .. {self.steps - 1}, fewer than the steps"
        require(0 <= self.burn_in < self.steps, "burn_in", self.burn_in, accepted)
        require(self.chains >= 1, "chains", self.chains, "at least 1")


class Coefficient(NamedTuple):
    """What `measure` found.

    Attributes:
        llc, error: the estimate, and its standard error over the chains.
        health: `ok`, or what is wrong, joined by `+`: `estimate.FLAGS`; `follows gamma`, where the
            estimate says more of the localisation than of the network; `follows length`, where it
            still changes with the number of steps; `still spreading`, where the weights have gone
            more than a tenth of the way (squared) of a free random walk: then directions that are
            too soft for so many steps do not count yet, and the estimate is a lower bound.
        eps, gamma, n_beta: step size, localisation, and n times the inverse temperature.
        by_gamma: the estimates at a third of gamma, at gamma, and at three times gamma, with the
            same noise.
        by_length: the estimates after half of the steps, and after all.
        trace: L(w_t) - L(w*) of these three, (steps, 3, chains).
    """

    llc: float
    error: float
    health: str
    eps: float
    gamma: float
    n_beta: float
    by_gamma: dict[float, float]
    by_length: dict[int, float]
    trace: Tensor


def measure(
    model: nn.Module,
    inputs: Tensor,
    target: Tensor,
    *,
    loss: Loss = cross_entropy,
    sampler: str | Preconditioner = "sgld",
    how: Sampling | None = None,
    gamma: float = 1.0,
    step: float = 0.05,
    n_beta: float | None = None,
) -> Coefficient:
    """The local learning coefficient of a trained network on its training data.

    L is a mean over examples and should be a negative log likelihood in nats. The network should be
    at a minimum of it (`polish`). An estimate that depends on the localisation gamma says little of
    the network; health tells.

    Args:
        model: any network, in eval mode; parameters that take no gradient are not sampled.
        inputs, target: (n, ..) each; `loss`: (outputs (n, ..), target) -> (n,).
        sampler: `sgld`, `rsgld` or `si_sgld`, for which a module's weight and bias scale together;
            or a preconditioner.
        how: 8 chains of 2,000 steps on up to 512 examples, the first half dropped, unless given.
        gamma: strength of localisation, in the sampler's own metric; `n_beta`: n / log n unless
            given.
        step: eps P a in the stiffest direction, a = n_beta h + gamma A: a step lifts the estimate
            by up to step / 4.
    Raises:
        ValueError: as `fieldbook.nn.functional.require_measurable`; an unknown sampler; a number
            out of range.
    """
    require_measurable(model, inputs, target, loss)
    how = how or Sampling(2000, 1000, 8, min(len(target), 512))
    _require_settings(how, step, gamma)
    n_beta = n_beta or inverse_temperature(len(target))
    w = flatten(model)
    build = sampler
    if isinstance(sampler, str):
        build = _by_name(sampler, model, inputs, loss, how.seed)
    size = how.batch_size
    seeds = chain_seeds(how)
    gradient = minibatch_gradient(model, inputs, target, batch_size=size, seeds=seeds, loss=loss)
    p, a, _ = first_metric(build, w, gradient(w.expand(1, how.chains, -1), 0)[1].mean((0, 1)))
    some = indices(len(target), min(len(target), PART), 0, how.seed).to(target.device)
    steepest = largest_curvature(model, inputs[some], target[some], p, loss=loss)
    gammas = gamma * torch.tensor([1 / 3, 1.0, 3.0], dtype=torch.float64)
    eps = step / (n_beta * steepest + float(gammas[-1] * (p * a).max()))
    points = w.expand(len(gammas), how.chains, -1)
    walked = []

    def watch(points: Tensor) -> None:  # squared distance at gamma, in the metric of localisation
        walked.append((a * (points[1] - w).square()).mean())

    trace = traces(gradient, points, build, how, eps=eps, gamma=gammas, n_beta=n_beta, watch=watch)
    trace = trace.cpu().double()
    values, errors = estimate(trace, n_beta=n_beta, burn_in=how.burn_in)
    guess = n_beta * _loss_of_guessing(model, inputs, target, loss)
    found = health(trace, n_beta=n_beta, dimension=w.numel(), burn_in=how.burn_in, ceiling=guess)
    flags = [found[1]] if found[1] != "ok" else []
    shorter = n_beta * trace[how.burn_in // 2 : how.steps // 2, 1].mean(0)
    flags += _follows(n_beta * trace[how.burn_in :].mean(0), shorter)
    free = eps * (p * a).mean() * how.steps
    flags += ["still spreading"] * bool(walked[-1] > FREE * free)
    return Coefficient(
        llc=float(values[1]),
        error=float(errors[1]),
        health="+".join(flags) or "ok",
        eps=eps,
        gamma=gamma,
        n_beta=n_beta,
        by_gamma=dict(zip(gammas.tolist(), values.tolist(), strict=True)),
        by_length={how.steps // 2: float(shorter.mean()), how.steps: float(values[1])},
        trace=trace,
    )


def _require_settings(how: Sampling, step: float, gamma: float) -> None:
    accepted = "a number in (0, 4), beyond which Euler's scheme is unstable"
    require(0 < step < 4, "step", step, accepted)
    require(gamma > 0, "gamma", gamma, "a positive number")
    accepted = f"at least 8 fewer than steps = {how.steps}"
    require(how.steps - how.burn_in >= 8, "burn_in", how.burn_in, accepted)


def _by_name(
    sampler: str, model: nn.Module, inputs: Tensor, loss: Loss, seed: int
) -> Preconditioner:
    """A sampler of `preconditioners.named` for a network at its own weights."""
    w = flatten(model)
    fisher = torch.ones_like(w)
    if sampler == "rsgld":
        generator = torch.Generator(w.device).manual_seed(stream("fisher", seed))
        fisher = fisher_diagonal(model, inputs, generator, loss=loss)
    return named(sampler, w, fisher, orbits(model), psgld_damping=1e-3)


def _loss_of_guessing(model: nn.Module, inputs: Tensor, target: Tensor, loss: Loss) -> float:
    """How much larger L is for outputs that know nothing of their own example."""
    outputs = _in_parts(lambda x, _: outputs_of(model)(flatten(model), x), inputs, target)
    if loss is cross_entropy:
        return math.log(outputs.shape[-1])
    return float((loss(outputs, target.roll(1, 0)) - loss(outputs, target)).mean())


def _follows(whole: Tensor, shorter: Tensor) -> list[str]:
    """Settings that estimates follow: `whole` (3 gammas, chains), `shorter` (chains,)."""
    level = whole[1]

    def differ(one: Tensor, other: Tensor, share: float) -> bool:
        """By more than a share of the level, and by more than their noise?"""
        change = one - other
        error = float(change.std()) / math.sqrt(len(change)) if len(change) > 1 else 0.0
        return bool(change.mean().abs() > max(share * float(level.mean().abs()), 2 * error))

    gamma = ["follows gamma"] * differ(whole[0], whole[2], share=0.25)
    return gamma + ["follows length"] * differ(shorter, level, share=0.1)


def chain_seeds(how: Sampling) -> list[int]:
    """Seeds of the minibatches of each chain."""
    return [stream("chain", how.seed, k) % 2**31 for k in range(how.chains)]


def minibatch_gradient(
    model: nn.Module,
    inputs: Tensor,
    target: Tensor,
    *,
    batch_size: int,
    seeds: Sequence[int],
    loss: Loss = cross_entropy,
) -> Gradient:
    """The `gradient` of `sgmcmc.chain`: losses less the model's own on the same minibatch.

    Args:
        inputs, target: (n, ..), the train split; `loss`: (outputs, target) -> (n,).
        seeds: one per chain, of the order of its minibatches, a pure function of the step.
    Returns:
        A function of w (.., chains, D) and the step; indices before the last two share their
        chain's minibatch.
    Raises:
        ValueError: as `fieldbook.nn.functional.require_measurable`; a batch larger than the split;
            or, from the function, another number of chains than seeds.
    """
    require_measurable(model, inputs, target, loss)
    n = len(target)
    accepted = f"(.., {len(seeds)} chains, D), one for each seed"
    require(1 <= batch_size <= n, "batch_size", batch_size, f"1 to {n}, the number of examples")
    losses_of = stacked_losses(model, loss)
    compute = outputs_of(model)
    star = flatten(model)
    at_star = _in_parts(lambda x, y: loss(at_least_single(compute(star, x)), y), inputs, target)

    def gradient(w: Tensor, step: int) -> tuple[Tensor, Tensor]:
        fits = w.ndim > 1 and w.shape[-2] == len(seeds)
        require(fits, "shape of w", tuple(w.shape), accepted)
        chosen = torch.stack([indices(n, batch_size, step, seed) for seed in seeds])
        stack = w.flatten(0, -2)
        repeated = chosen.to(target.device).repeat(len(stack) // len(seeds), 1)
        losses, g = losses_of(stack, inputs[repeated], target[repeated], shared=False)
        return (losses - at_star[repeated]).mean(-1).view(w.shape[:-1]), g.view_as(w)

    return gradient


@torch.no_grad()
def _in_parts(f: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, target: Tensor) -> Tensor:
    parts = zip(inputs.split(PART), target.split(PART), strict=True)
    return torch.cat([f(x, y) for x, y in parts])


def traces(
    gradient: Gradient,
    w: Tensor,
    build: Preconditioner,
    how: Sampling,
    *,
    eps: float | Tensor,
    gamma: float | Tensor,
    n_beta: float,
    watch: Callable[[Tensor], object] | None = None,
) -> Tensor:
    """Losses of chains in cells that share noise and minibatches, (steps, cells, chains).

    Args:
        gradient: as `minibatch_gradient` makes it; `w`: (cells, chains, D), where chains start.
        eps, gamma: numbers, or (cells,) tensors.
        watch: called with the points (cells, chains, D) of each step.
    """
    eps, gamma = (x[:, None, None].to(w) if isinstance(x, Tensor) else x for x in (eps, gamma))
    noise = torch.Generator(w.device).manual_seed(stream("noise", how.seed))
    run = chain(
        gradient,
        w,
        build,
        noise,
        eps=eps,
        gamma=gamma,
        n_beta=n_beta,
        steps=how.steps,
        common_noise=True,
    )
    losses = []
    for at_step, points in run:
        losses.append(at_step)
        if watch:
            watch(points)
    return torch.stack(losses)


def first_metric(build: Preconditioner, w: Tensor, slope: Tensor) -> Metric:
    """P, A and Gamma, (D,) each, of a chain's first step at w (D,), `slope` (D,) the gradient."""
    init, update = build
    metric, _ = update(init(w), w, slope)
    return Metric(*(part.to(w).expand_as(w) for part in metric))


def polish(
    model: nn.Module,
    inputs: Tensor,
    target: Tensor,
    *,
    steps: int,
    lr: float,
    loss: Loss = cross_entropy,
) -> None:
    """Take a network to a minimum of its train loss: full batches, no weight decay, lr to zero.

    Weight decay leaves a network where its pull balances the gradient, which is no minimum of L.
    The network is in eval mode meanwhile, as it is when L is measured, and in its own mode
    afterwards.

    Raises:
        ValueError: as `fieldbook.nn.functional.require_measurable`; or the loss has risen, with the
            weights as they were.
    """
    require_measurable(model, inputs, target, loss)
    modes = {module: module.training for module in model.modules()}
    before = {name: t.clone() for name, t in model.state_dict().items()}

    def mean_loss(network: nn.Module, index: Tensor, _: object = None) -> Tensor:
        network.eval()
        return loss(at_least_single(network(inputs[index])), target[index]).mean()

    def evaluate(network: nn.Module, step: int) -> dict[str, float]:
        return {"loss": float(mean_loss(network, everything))}

    everything = torch.arange(len(target))
    n = len(target)
    recipe = Recipe(steps=steps, batch_size=n, lr=lr, betas=(0.9, 0.98), schedule="cosine")
    try:
        history = fit(model, mean_loss, n, recipe, evaluate=evaluate, progress=False).history
    except Diverged as error:
        history = [*error.fit.history, {"loss": math.nan}]
    for module, mode in modes.items():
        module.training = mode
    start, end = history[0]["loss"], history[-1]["loss"]
    fell = end <= start + 1e-3 * abs(start)  # at a minimum it wavers by rounding
    if not fell:
        model.load_state_dict(before)
    accepted = f"a smaller learning rate: the loss rose from {start:.4g} to {end:.4g}"
    require(fell, "lr", lr, accepted)
