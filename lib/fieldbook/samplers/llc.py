"""Local learning coefficient: lambda_hat = n_beta (E[L(w)] - L(w*)) under localised Langevin dynamics.

Source: Lau et al. 2023 (arXiv:2308.12108), equation 8. Two things differ from a plain mean of losses: L(w*) is taken on
the same minibatch as L(w), which leaves the mean and removes most of the noise near w*; and a chain that did not
measure what it should says so.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fieldbook.recipe import indices
from fieldbook.samplers.sgmcmc import Gradient

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


def stacked_losses(model: nn.Module) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A function (w, inputs, target) -> (losses, gradients) for many parameter vectors of one network at once.

    `w` is (chains, D); losses are the cross-entropies (chains, batch), gradients those of their means (chains, D).
    """
    shapes = {name: w.shape for name, w in model.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]

    def mean_loss(vector: Tensor, inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        parts = zip(shapes.items(), vector.split(sizes), strict=True)
        parameters = {name: part.view(shape) for (name, shape), part in parts}
        logits = torch.func.functional_call(model, parameters, (inputs,))
        losses = torch.nn.functional.cross_entropy(logits, target, reduction="none")
        return losses.mean(), losses

    gradients = torch.func.vmap(torch.func.grad(mean_loss, has_aux=True), in_dims=(0, None, None))
    return lambda w, inputs, target: gradients(w, inputs, target)[::-1]


def minibatch_gradient(model: nn.Module, inputs: Tensor, target: Tensor, *, batch_size: int, seed: int) -> Gradient:
    """The `gradient` of `fieldbook.samplers.sgmcmc.chain`: losses relative to the model's own, on the same minibatch.

    Args:
        inputs, target: the train split; `seed`: of the order of the minibatches, a pure function of the step.
    """
    losses_of, n = stacked_losses(model), len(target)
    with torch.no_grad():
        at_star = torch.nn.functional.cross_entropy(model(inputs), target, reduction="none")

    def gradient(w: Tensor, step: int) -> tuple[Tensor, Tensor]:
        chosen = indices(n, batch_size, step, seed).to(target.device)
        losses, g = losses_of(w, inputs[chosen], target[chosen])
        return losses.mean(-1) - at_star[chosen].mean(), g

    return gradient


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
    quarters of the kept steps differ by more than a quarter of their mean.

    Args:
        trace: as in `estimate`; `dimension`: number of parameters d.
    """
    value, _ = estimate(trace, n_beta=n_beta, burn_in=burn_in)
    kept = n_beta * trace[burn_in:].mean(-1)
    quarters = [quarter.mean(0) for quarter in kept.tensor_split(4)]
    third, last = quarters[-2:]
    finite = trace.isfinite().all(0).all(-1)
    flags = torch.stack(
        [
            ~finite,
            finite & (value > 0.5 * n_beta * math.log(classes)),
            finite & ((last - third).abs() > 0.25 * ((last + third) / 2).abs()),
            finite & (value < 0),
            finite & (value > dimension / 2),
        ]
    )
    return ["+".join(name for name, on in zip(FLAGS, cell, strict=True) if on) or "ok" for cell in flags.T.tolist()]
