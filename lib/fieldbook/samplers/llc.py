"""Local learning coefficient: lambda_hat = n_beta (E[L(w)] - L(w*)) under localised Langevin
dynamics.

Source: Lau et al. 2023 (arXiv:2308.12108), equation 8. Two things differ from a plain mean of
losses: L(w*) is taken on the same minibatch as L(w), which leaves the mean and removes most of the
noise near w*; and a chain that did not measure what it should says so. `measure` does all of it for
a network and its data; the rest are its parts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fieldbook.nn.checks import require
from fieldbook.nn.functional import (
    Loss,
    at_least_single,
    cross_entropy,
    curvature_of,
    flatten,
    mapped,
    orbits,
    outputs_of,
    require_fixed,
    require_measurable,
    squared_error,
    stacked_losses,
)
from fieldbook.nn.functional import (
    unflatten as unflatten,
)  # the inverse of `flatten`, for whoever starts here
from fieldbook.nn.recipe import Recipe, indices
from fieldbook.nn.seeds import stream
from fieldbook.nn.training import Diverged, fit
from fieldbook.samplers.preconditioners import Metric, Preconditioner, named
from fieldbook.samplers.sgmcmc import Gradient, chain

FLAGS = ("not finite", "identical chains", "left the basin", "drifting", "negative", "above d/2")
STEP_BIAS = 0.05  # share of d/2 by which a finite step, eps P a up to 0.2, lifts a regular model
FREE = 0.1  # of a free walk's squared distance: a direction has gone 1 / (eps P a T) of it once it is held
PART = 2048  # examples in one forward pass


@dataclass(frozen=True)
class Sampling:
    """How the chains of every cell run: `chains` of `steps` steps, of which `burn_in` are
    dropped."""

    steps: int
    burn_in: int
    chains: int
    batch_size: int
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            0 <= self.burn_in < self.steps,
            "burn_in",
            self.burn_in,
            f"0 .. {self.steps - 1}, fewer than the steps",
        )
        require(self.chains >= 1, "chains", self.chains, "at least 1")


class Coefficient(NamedTuple):
    """What `measure` found.

    Attributes:
        llc, error: the estimate, and its standard error over the chains.
        health: `ok`, or what is wrong, joined by `+`: `FLAGS`; `follows gamma`, where the estimate
            says more of the localisation than of the network; `follows length`, where it still
            changes with the number of steps; `still spreading`, where the weights have gone more
            than a tenth of the way (squared) of a free random walk: then directions that are too
            soft for so many steps do not count yet, and the estimate is a lower bound.
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
    require(
        0 < step < 4, "step", step, "a number in (0, 4), beyond which Euler's scheme is unstable"
    )
    require(gamma > 0, "gamma", gamma, "a positive number")
    how = how or Sampling(2000, 1000, 8, min(len(target), 512))
    require(
        how.steps - how.burn_in >= 8,
        "burn_in",
        how.burn_in,
        f"at least 8 fewer than steps = {how.steps}",
    )
    n_beta = n_beta or inverse_temperature(len(target))
    w, build = flatten(model), sampler
    if isinstance(sampler, str):
        build = _by_name(sampler, model, inputs, loss, how.seed)
    gradient = minibatch_gradient(
        model, inputs, target, batch_size=how.batch_size, seeds=chain_seeds(how), loss=loss
    )
    p, a, _ = first_metric(build, w, gradient(w.expand(1, how.chains, -1), 0)[1].mean((0, 1)))
    some = indices(len(target), min(len(target), PART), 0, how.seed).to(target.device)
    curvature = largest_curvature(model, inputs[some], target[some], p, loss=loss)
    gammas = gamma * torch.tensor([1 / 3, 1.0, 3.0], dtype=torch.float64)
    eps = step / (n_beta * curvature + float(gammas[-1] * (p * a).max()))
    points = w.expand(len(gammas), how.chains, -1)
    walked = []  # squared distance from w at gamma, in the metric of localisation

    def watch(points: Tensor) -> None:
        walked.append((a * (points[1] - w).square()).mean())

    trace = (
        traces(gradient, points, build, how, eps=eps, gamma=gammas, n_beta=n_beta, watch=watch)
        .cpu()
        .double()
    )
    values, errors = estimate(trace, n_beta=n_beta, burn_in=how.burn_in)
    guess = n_beta * _loss_of_guessing(model, inputs, target, loss)
    found = health(trace, n_beta=n_beta, ceiling=guess, dimension=w.numel(), burn_in=how.burn_in)[1]
    whole = n_beta * trace[how.burn_in :].mean(0)
    shorter = n_beta * trace[how.burn_in // 2 : how.steps // 2, 1].mean(0)
    flags = [found] if found != "ok" else []
    flags += ["follows gamma"] * _differ(whole[0], whole[2], whole[1], share=0.25)
    flags += ["follows length"] * _differ(shorter, whole[1], whole[1], share=0.1)
    flags += ["still spreading"] * bool(walked[-1] > FREE * eps * (p * a).mean() * how.steps)
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
    """How much larger L is than at the weights for outputs that know nothing of their own
    example."""
    outputs = _in_parts(lambda x, _: outputs_of(model)(flatten(model), x), inputs, target)
    if loss is cross_entropy:
        return math.log(outputs.shape[-1])
    return float((loss(outputs, target.roll(1, 0)) - loss(outputs, target)).mean())


def _differ(one: Tensor, other: Tensor, level: Tensor, share: float) -> bool:
    """Do estimates (chains,) differ by more than a share of their level, and by more than their
    noise?"""
    change = one - other
    error = float(change.std()) / math.sqrt(len(change)) if len(change) > 1 else 0.0
    return bool(change.mean().abs() > max(share * float(level.mean().abs()), 2 * error))


def inverse_temperature(n: int) -> float:
    """n_beta = n / log n, at which the estimate is consistent (Watanabe 2013)."""
    require(n >= 2, "n", n, "at least two examples")
    return n / math.log(n)


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
    """The `gradient` of `fieldbook.samplers.sgmcmc.chain`: losses relative to the model's own, on
    the same minibatch.

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
    require(
        1 <= batch_size <= n, "batch_size", batch_size, f"from 1 to the number of examples, {n}"
    )
    losses_of, compute, star = stacked_losses(model, loss), outputs_of(model), flatten(model)
    at_star = _in_parts(lambda x, y: loss(at_least_single(compute(star, x)), y), inputs, target)

    def gradient(w: Tensor, step: int) -> tuple[Tensor, Tensor]:
        chains = w.shape[-2] if w.ndim > 1 else 0
        require(
            chains == len(seeds),
            "shape of w",
            tuple(w.shape),
            f"(.., {len(seeds)} chains, D), one for each seed",
        )
        chosen = torch.stack([indices(n, batch_size, step, seed) for seed in seeds]).to(
            target.device
        )
        stack = w.flatten(0, -2)
        repeated = chosen.repeat(len(stack) // len(seeds), 1)
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
    """The losses of chains in several cells, which share noise and minibatches, (steps, cells,
    chains).

    Args:
        gradient: as `minibatch_gradient` makes it with `chain_seeds`; `w`: (cells, chains, D),
            where chains start.
        eps, gamma: numbers, or (cells,) tensors.
        watch: called with the points (cells, chains, D) of each step.
    """
    eps, gamma = (x[:, None, None].to(w) if isinstance(x, Tensor) else x for x in (eps, gamma))
    generator = torch.Generator(w.device).manual_seed(stream("noise", how.seed))
    settings = {"eps": eps, "gamma": gamma, "n_beta": n_beta, "steps": how.steps}
    losses = []
    for at_step, points in chain(gradient, w, build, generator, common_noise=True, **settings):
        losses.append(at_step)
        if watch:
            watch(points)
    return torch.stack(losses)


def first_metric(build: Preconditioner, w: Tensor, slope: Tensor) -> Metric:
    """P, A and Gamma, (D,) each, of a chain's first step at w (D,) with the gradient `slope` (D,)
    there."""
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
    seed: int = 0,
    loss: Loss = cross_entropy,
) -> None:
    """Take a network to a minimum of its train loss, in place: full batches, no weight decay,
    learning rate to zero.

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

    def mean_loss(network: nn.Module, index: Tensor, _: torch.Generator) -> Tensor:
        network.eval()
        return loss(at_least_single(network(inputs[index])), target[index]).mean()

    def evaluate(network: nn.Module, step: int) -> dict[str, float]:
        return {"loss": float(mean_loss(network, everything, torch.default_generator))}

    everything = torch.arange(len(target))
    recipe = Recipe(
        steps=steps, batch_size=len(target), lr=lr, betas=(0.9, 0.98), schedule="cosine", seed=seed
    )
    try:
        history = fit(
            model, mean_loss, len(target), recipe, evaluate=evaluate, progress=False
        ).history
    except Diverged as error:
        history = [*error.fit.history, {"loss": math.nan}]
    for module, mode in modes.items():
        module.training = mode
    start, end = history[0]["loss"], history[-1]["loss"]
    if not end <= start + 1e-3 * abs(start):  # at a minimum it wavers by rounding
        model.load_state_dict(before)
        raise ValueError(
            f"lr = {lr}: the loss rose from {start:.4g} to {end:.4g}; expected a smaller learning rate"
        )


def loss_and_gradient_norm(
    model: nn.Module, inputs: Tensor, target: Tensor, loss: Loss = cross_entropy
) -> tuple[float, float]:
    """L and the norm of its gradient over a whole split."""
    require_measurable(model, inputs, target, loss)
    losses, gradient = stacked_losses(model, loss)(flatten(model)[None], inputs, target)
    return float(losses.mean()), float(gradient.norm())


def fisher_diagonal(
    model: nn.Module,
    inputs: Tensor,
    generator: torch.Generator,
    *,
    draws: int = 4,
    chunk: int = 64,
    loss: Loss = cross_entropy,
) -> Tensor:
    """Diagonal of the Fisher information at the model's parameters, (D,), labels drawn from the
    model itself.

    With logits z, probabilities q and random signs u, v = sqrt(q) u - q (sqrt(q) . u) has the
    covariance diag(q) - q q^T of the score in z, so that the squared gradient of v . z estimates
    each entry without bias. At the bottom of the loss this is the Gauss-Newton curvature, where
    squared gradients of the true labels vanish faster. Under the squared error v = u, as the score
    of a Gaussian of unit variance has the covariance 1.

    Args:
        inputs: (n, ..); outputs may be (n, C), (n, .., C) or, under the squared error, of any
            shape.
        draws: random sign vectors per example; `generator`: of the signs, on the model's device.
        loss: `cross_entropy` or `squared_error`; another loss has no likelihood that could be drawn
            from.
    """
    known = loss in (cross_entropy, squared_error)
    accepted = (
        "cross_entropy or squared_error, whose likelihood is known; other losses: sgld or si_sgld"
    )
    require(known, "loss", getattr(loss, "__name__", loss), accepted)
    compute, w = outputs_of(model), flatten(model)
    shape = require_fixed(lambda x: compute(w, x), inputs).shape[1:]

    def projection(vector: Tensor, x: Tensor, signs: Tensor) -> Tensor:
        z = at_least_single(compute(vector, x[None]))[0]
        return (z * _score(z.detach(), signs, loss)).sum()

    each = mapped(torch.func.grad(projection), (None, 0, 0))
    total = torch.zeros_like(w)
    for part in torch.cat([inputs] * draws).split(chunk):
        bits = torch.randint(
            0, 2, (len(part), *shape), generator=generator, device=generator.device
        )
        signs = (2 * bits - 1).to(total)
        total += each(w, part, signs).square().sum(0)
    return total / (draws * len(inputs))


def _score(z: Tensor, signs: Tensor, loss: Loss) -> Tensor:
    """Random vectors with the covariance of the loss's second derivative in z (.., C)."""
    if loss is squared_error:
        return signs
    root = z.softmax(-1).sqrt()
    tokens = z[..., 0].numel()  # over which the loss is a mean
    return (root * signs - root.square() * (root * signs).sum(-1, keepdim=True)) / math.sqrt(tokens)


def largest_curvature(
    model: nn.Module,
    inputs: Tensor,
    target: Tensor,
    preconditioner: Tensor,
    *,
    iterations: int = 12,
    loss: Loss = cross_entropy,
) -> float:
    """Largest eigenvalue in size of P^1/2 H P^1/2, H the Hessian of the train loss, by power
    iteration.

    Args:
        preconditioner: (D,) P.
    """
    require_measurable(model, inputs, target, loss)
    return largest_eigenvalue(curvature_of(model, inputs, target, loss), preconditioner, iterations)


def largest_eigenvalue(
    product_of: Callable[[Tensor], Tensor], preconditioner: Tensor, iterations: int = 12
) -> float:
    """Largest eigenvalue in size of P^1/2 H P^1/2 for a function v -> H v, by power iteration from
    a random vector."""
    root, generator = preconditioner.sqrt(), torch.Generator(preconditioner.device).manual_seed(0)
    vector = torch.randn(root.shape, generator=generator, dtype=root.dtype, device=root.device)
    size = vector.norm()
    for _ in range(iterations):
        vector = root * product_of(root * vector / size)
        size = vector.norm().clamp(min=torch.finfo(root.dtype).tiny)
    return float(size)


def estimate(trace: Tensor, *, n_beta: float, burn_in: int) -> tuple[Tensor, Tensor]:
    """Estimate and standard error per cell from traces of L(w_t) - L(w*).

    Args:
        trace: (steps, cells, chains); the first `burn_in` steps are dropped.
    Returns:
        lambda_hat (cells,), and its standard error over the chains (cells,), nan for a single
        chain.
    Raises:
        ValueError: another shape, no step is left after burn-in, or n_beta is not positive.
    """
    require(
        trace.ndim == 3 and trace.numel(),
        "shape of trace",
        tuple(trace.shape),
        "(steps, cells, chains)",
    )
    if not 0 <= burn_in < len(trace):
        raise ValueError(
            f"burn_in = {burn_in}: expected 0 .. {len(trace) - 1}, fewer than the steps"
        )
    if not n_beta > 0:
        raise ValueError(f"n_beta = {n_beta}: expected a positive number")
    values = n_beta * at_least_single(trace)[burn_in:].mean(0)
    chains = values.shape[-1]
    spread = (
        values.std(-1) / math.sqrt(chains)
        if chains > 1
        else torch.full_like(values[..., 0], math.nan)
    )
    return values.mean(-1), spread


def health(
    trace: Tensor,
    *,
    n_beta: float,
    dimension: int,
    burn_in: int,
    classes: int | None = None,
    ceiling: float | None = None,
) -> list[str]:
    """What is wrong with each cell, `ok` or the flags joined by `+`.

    `identical chains`: several chains, no spread. `left the basin`: lambda_hat exceeds half of the
    ceiling. `drifting`: the last two quarters of the kept steps differ by more than a quarter of
    their mean, and by more than twice the standard error of that difference, from means over fifths
    of the quarters. `negative` and `above d/2`: by more than twice the standard error of the
    estimate, from means over fifths of the kept steps, and for the second by more than `STEP_BIAS`:
    a regular model has d/2, so that half of its estimates exceed it.

    Args:
        trace: as in `estimate`; `dimension`: number of parameters d.
        ceiling: the estimate of a network that guesses; n_beta log(classes) if `classes` is given
            in its place.
    Raises:
        ValueError: fewer than 8 steps are kept; neither classes nor ceiling is given.
    """
    if len(trace) - burn_in < 8:
        raise ValueError(
            f"steps = {len(trace)}, burn_in = {burn_in}: expected at least 8 steps after burn-in"
        )
    require(
        classes or ceiling is not None, "ceiling", ceiling, "a number, or `classes` in its place"
    )
    ceiling = n_beta * math.log(classes) if ceiling is None else ceiling
    value, spread = estimate(trace, n_beta=n_beta, burn_in=burn_in)
    kept = n_beta * at_least_single(trace)[burn_in:]
    third, last = (kept.tensor_split(4)[k] for k in (2, 3))
    difference = last.mean((0, 2)) - third.mean((0, 2))
    level = (last.mean((0, 2)) + third.mean((0, 2))) / 2
    drift_error = (_squared_error(third) + _squared_error(last)).sqrt()
    error = _squared_error(kept).sqrt()
    finite = trace.isfinite().all(0).all(-1)
    flags = torch.stack(
        [
            ~finite,
            finite & (spread == 0),
            finite & (value > ceiling / 2),
            finite & (difference.abs() > 0.25 * level.abs()) & (difference.abs() > 2 * drift_error),
            finite & (value < -2 * error),
            finite & (value - 2 * error > (1 + STEP_BIAS) * dimension / 2),
        ]
    )
    return [
        "+".join(name for name, on in zip(FLAGS, cell, strict=True) if on) or "ok"
        for cell in flags.T.tolist()
    ]


def _squared_error(part: Tensor) -> Tensor:
    """Squared standard error of the mean of (steps, cells, chains) over steps and chains,
    (cells,)."""
    means = torch.stack(
        [fifth.mean(0) for fifth in part.tensor_split(min(5, len(part)))], 1
    ).flatten(1)
    return means.var(1) / means.shape[1] if means.shape[1] > 1 else torch.zeros_like(means[:, 0])
