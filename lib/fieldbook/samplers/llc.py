"""Local learning coefficient: lambda_hat = n_beta (E[L(w)] - L(w*)) under localised Langevin dynamics.

Source: Lau et al. 2023 (arXiv:2308.12108), equation 8. Two things differ from a plain mean of losses: L(w*) is taken on
the same minibatch as L(w), which leaves the mean and removes most of the noise near w*; and a chain that did not
measure what it should says so.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fieldbook.recipe import Recipe, indices
from fieldbook.samplers.sgmcmc import Gradient
from fieldbook.training import fit

FLAGS = ("not finite", "left the basin", "drifting", "negative", "above d/2")


def inverse_temperature(n: int) -> float:
    """n_beta = n / log n, at which the estimate is consistent (Watanabe 2013)."""
    if n < 2:
        raise ValueError(f"n = {n}: expected at least two examples")
    return n / math.log(n)


def flatten(model: nn.Module) -> Tensor:
    """All parameters as one vector (D,), in the order of `named_parameters`."""
    return torch.cat([w.detach().flatten() for w in model.parameters()])


def parameter_slices(model: nn.Module) -> dict[str, Tensor]:
    """Indices of each parameter in the flat vector, by name."""
    sizes = [w.numel() for w in model.parameters()]
    ranges = torch.arange(sum(sizes)).split(sizes)
    return dict(zip(dict(model.named_parameters()), ranges, strict=True))


def unflatten(model: nn.Module) -> Callable[[Tensor], dict[str, Tensor]]:
    """The inverse of `flatten`: a vector (D,) -> parameters by name, for `torch.func.functional_call`."""
    shapes = {name: w.shape for name, w in model.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]
    return lambda vector: {
        name: part.view(shape) for (name, shape), part in zip(shapes.items(), vector.split(sizes), strict=True)
    }


def stacked_losses(model: nn.Module) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A function (w, inputs, target) -> (losses, gradients) for many parameter vectors of one network at once.

    `w` is (chains, D); inputs are (batch, ..) for all chains alike, or (chains, batch, ..), and the target likewise.
    Losses are the cross-entropies (chains, batch), gradients those of their means (chains, D).
    """
    parameters_of = unflatten(model)

    def mean_loss(vector: Tensor, inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.func.functional_call(model, parameters_of(vector), (inputs,))
        losses = cross_entropy(logits, target, reduction="none")
        return losses.mean(), losses

    each = torch.func.grad(mean_loss, has_aux=True)

    def stacked(w: Tensor, inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        shared = None if target.ndim == 1 else 0
        return torch.func.vmap(each, in_dims=(0, shared, shared))(w, inputs, target)[::-1]

    return stacked


def minibatch_gradient(
    model: nn.Module, inputs: Tensor, target: Tensor, *, batch_size: int, seeds: Sequence[int]
) -> Gradient:
    """The `gradient` of `fieldbook.samplers.sgmcmc.chain`: losses relative to the model's own, on the same minibatch.

    Args:
        inputs, target: the train split.
        seeds: one per chain, of the order of its minibatches, a pure function of the step.
    Returns:
        A function of w (.., chains, D) and the step; indices before the last two share their chain's minibatch.
    """
    losses_of, n = stacked_losses(model), len(target)
    with torch.no_grad():
        at_star = cross_entropy(model(inputs), target, reduction="none")

    def gradient(w: Tensor, step: int) -> tuple[Tensor, Tensor]:
        chosen = torch.stack([indices(n, batch_size, step, seed) for seed in seeds]).to(target.device)
        stack = w.flatten(0, -2)
        repeated = chosen.repeat(len(stack) // len(seeds), 1)
        losses, g = losses_of(stack, inputs[repeated], target[repeated])
        return (losses - at_star[repeated]).mean(-1).view(w.shape[:-1]), g.view_as(w)

    return gradient


def polish(model: nn.Module, inputs: Tensor, target: Tensor, *, steps: int, lr: float, seed: int = 0) -> None:
    """Take a network to a minimum of its train loss, in place: full batches, no weight decay, learning rate to zero.

    Weight decay leaves a network where its pull balances the gradient, which is no minimum of L.
    """
    recipe = Recipe(steps=steps, batch_size=len(target), lr=lr, betas=(0.9, 0.98), schedule="cosine", seed=seed)
    fit(model, lambda network, i, _: cross_entropy(network(inputs[i]), target[i]), len(target), recipe, progress=False)


def loss_and_gradient_norm(model: nn.Module, inputs: Tensor, target: Tensor) -> tuple[float, float]:
    """L and the norm of its gradient over a whole split."""
    losses, gradient = stacked_losses(model)(flatten(model)[None], inputs, target)
    return float(losses.mean()), float(gradient.norm())


def fisher_diagonal(
    model: nn.Module, inputs: Tensor, generator: torch.Generator, *, draws: int = 4, chunk: int = 64
) -> Tensor:
    """Diagonal of the Fisher information at the model's parameters, (D,), labels drawn from the model itself.

    With logits z, probabilities q and random signs u, v = sqrt(q) u - q (sqrt(q) . u) has the covariance
    diag(q) - q q^T of the score in z, so that the squared gradient of v . z estimates each entry without bias. At the
    bottom of the loss this is the Gauss-Newton curvature, where squared gradients of the true labels vanish faster.

    Args:
        draws: random sign vectors per example; `generator`: of the signs, on the model's device.
    """
    parameters = {name: w.detach() for name, w in model.named_parameters()}

    def projection(parameters: dict[str, Tensor], x: Tensor, signs: Tensor) -> Tensor:
        z = torch.func.functional_call(model, parameters, (x[None],))[0]
        q = z.detach().softmax(-1)
        return z @ (q.sqrt() * signs - q * (q.sqrt() @ signs))

    each = torch.func.vmap(torch.func.grad(projection), in_dims=(None, 0, 0))
    with torch.no_grad():
        classes = model(inputs[:1]).shape[-1]
    total = torch.zeros_like(flatten(model))
    for part in inputs.repeat(draws, 1).split(chunk):
        bits = torch.randint(0, 2, (len(part), classes), generator=generator, device=part.device)
        gradients = each(parameters, part, (2 * bits - 1).to(total.dtype))
        total += torch.cat([g.square().sum(0).flatten() for g in gradients.values()])
    return total / (draws * len(inputs))


def largest_curvature(
    model: nn.Module, inputs: Tensor, target: Tensor, preconditioner: Tensor, *, iterations: int = 12
) -> float:
    """Largest eigenvalue of P^1/2 H P^1/2, H the Hessian of the train loss, by power iteration.

    Args:
        preconditioner: (D,) P.
    """
    losses_of, w, root = stacked_losses(model), flatten(model), preconditioner.sqrt()
    vector, value = torch.ones_like(w) / math.sqrt(len(w)), 0.0

    def gradient(point: Tensor) -> Tensor:
        return losses_of(point[None], inputs, target)[1][0]

    for _ in range(iterations):
        product = root * torch.func.jvp(gradient, (w,), (root * vector,))[1]
        value = float(product.norm())
        vector = product / max(value, torch.finfo(w.dtype).tiny)
    return value


def estimate(trace: Tensor, *, n_beta: float, burn_in: int) -> tuple[Tensor, Tensor]:
    """Estimate and standard error per cell from traces of L(w_t) - L(w*).

    Args:
        trace: (steps, cells, chains); the first `burn_in` steps are dropped.
    Returns:
        lambda_hat (cells,), and its standard error over the chains (cells,), nan for a single chain.
    Raises:
        ValueError: no step is left after burn-in, or n_beta is not positive.
    """
    if not 0 <= burn_in < len(trace):
        raise ValueError(f"burn_in = {burn_in}: expected 0 .. {len(trace) - 1}, fewer than the steps")
    if n_beta <= 0:
        raise ValueError(f"n_beta = {n_beta}: expected a positive number")
    values = n_beta * trace[burn_in:].mean(0)
    chains = values.shape[-1]
    spread = values.std(-1) / math.sqrt(chains) if chains > 1 else torch.full_like(values[..., 0], math.nan)
    return values.mean(-1), spread


def health(trace: Tensor, *, n_beta: float, classes: int, dimension: int, burn_in: int) -> list[str]:
    """What is wrong with each cell, `ok` or the flags joined by `+`.

    `left the basin`: lambda_hat exceeds half of n_beta log(classes), the loss of guessing. `drifting`: the last two
    quarters of the kept steps differ by more than a quarter of their mean, and by more than twice the standard error
    of that difference, from means over fifths of the quarters.

    Args:
        trace: as in `estimate`; `dimension`: number of parameters d.
    Raises:
        ValueError: fewer than 8 steps are kept.
    """
    if len(trace) - burn_in < 8:
        raise ValueError(f"steps = {len(trace)}, burn_in = {burn_in}: expected at least 8 steps after burn-in")
    value, _ = estimate(trace, n_beta=n_beta, burn_in=burn_in)
    third, last = ((n_beta * trace[burn_in:]).tensor_split(4)[k] for k in (2, 3))
    difference, level = last.mean((0, 2)) - third.mean((0, 2)), (last.mean((0, 2)) + third.mean((0, 2))) / 2
    error = (_squared_error(third) + _squared_error(last)).sqrt()
    finite = trace.isfinite().all(0).all(-1)
    flags = torch.stack(
        [
            ~finite,
            finite & (value > 0.5 * n_beta * math.log(classes)),
            finite & (difference.abs() > 0.25 * level.abs()) & (difference.abs() > 2 * error),
            finite & (value < 0),
            finite & (value > dimension / 2),
        ]
    )
    return ["+".join(name for name, on in zip(FLAGS, cell, strict=True) if on) or "ok" for cell in flags.T.tolist()]


def _squared_error(part: Tensor) -> Tensor:
    """Squared standard error of the mean of (steps, cells, chains) over steps and chains, (cells,)."""
    means = torch.stack([fifth.mean(0) for fifth in part.tensor_split(min(5, len(part)))], 1).flatten(1)
    return means.var(1) / means.shape[1] if means.shape[1] > 1 else torch.zeros_like(means[:, 0])
