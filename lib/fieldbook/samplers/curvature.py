"""A network's loss around its weights: slope, curvature, Fisher information."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fieldbook.nn.checks import at_least_single, require
from fieldbook.nn.functional import (
    Loss,
    cross_entropy,
    curvature_of,
    flatten,
    mapped,
    outputs_of,
    require_fixed,
    require_measurable,
    squared_error,
    stacked_losses,
)

CHUNK = 64  # examples whose squared gradients are held at once


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
    loss: Loss = cross_entropy,
) -> Tensor:
    """Diagonal of the Fisher information at the weights, (D,), labels drawn from the model itself.

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
    accepted = "cross_entropy or squared_error, whose likelihood is known; else sgld or si_sgld"
    known = loss in (cross_entropy, squared_error)
    require(known, "loss", getattr(loss, "__name__", loss), accepted)
    compute = outputs_of(model)
    w = flatten(model)
    shape = require_fixed(lambda x: compute(w, x), inputs).shape[1:]

    def projection(vector: Tensor, x: Tensor, signs: Tensor) -> Tensor:
        z = at_least_single(compute(vector, x[None]))[0]
        return (z * _score(z.detach(), signs, loss)).sum()

    each = mapped(torch.func.grad(projection), (None, 0, 0))
    total = torch.zeros_like(w)
    for part in torch.cat([inputs] * draws).split(CHUNK):
        size = (len(part), *shape)
        bits = torch.randint(0, 2, size, generator=generator, device=generator.device)
        total += each(w, part, (2 * bits - 1).to(total)).square().sum(0)
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
    loss: Loss = cross_entropy,
    iterations: int = 12,
) -> float:
    """`largest_eigenvalue` for the Hessian of a network's mean loss at its weights."""
    require_measurable(model, inputs, target, loss)
    return largest_eigenvalue(curvature_of(model, inputs, target, loss), preconditioner, iterations)


def largest_eigenvalue(
    product_of: Callable[[Tensor], Tensor], preconditioner: Tensor, iterations: int = 12
) -> float:
    """Largest eigenvalue in size of P^1/2 H P^1/2, P (D,), by power iteration on v -> H v."""
    root = preconditioner.sqrt()
    generator = torch.Generator(preconditioner.device).manual_seed(0)
    vector = torch.randn(root.shape, generator=generator, dtype=root.dtype, device=root.device)
    size = vector.norm()
    for _ in range(iterations):
        vector = root * product_of(root * vector / size)
        size = vector.norm().clamp(min=torch.finfo(root.dtype).tiny)
    return float(size)
