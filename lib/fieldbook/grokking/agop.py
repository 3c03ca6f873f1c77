"""Average gradient outer product: which input directions a network's outputs depend on.

For f: R^D -> R^C with Jacobian J_j at example j, G = mean_j J_j^T J_j, a D x D matrix.
Source: Radhakrishnan et al. 2024 (Science 383:1461), equation 2.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fieldbook.nn.checks import numbers, require
from fieldbook.nn.functional import at_least_single, require_fixed

Function = Callable[[Tensor], Tensor]
Rule = Callable[[Tensor, slice], Tensor]


def agop(f: Function, x: Tensor, *, batch: int = 128) -> Tensor:
    """Exact AGOP, one vector-Jacobian product per output.

    A plain loop over the outputs: on a CPU vmapped products and `torch.func.jacrev` are no faster,
    since all of them are bound by the same arithmetic (`benchmarks/agop.py`). Batches only bound
    the memory.

    Args:
        f: (n, ...) -> (n,), (n, C) or (n, .., C), a network or a function, in eval mode: each
            example's output may depend on its own input only. Parameters should be frozen
            (`requires_grad_(False)`), otherwise their graph is carried along.
        x: (n, ...) floating-point inputs; the trailing axes are flattened to D.
        batch: examples differentiated at once; larger on a GPU.
    Returns:
        (D, D), symmetric positive semi-definite, in float32 or wider.
    Raises:
        ValueError: x has no examples, is not finite or not of floating point; f is random, mixes
            examples, moves buffers or is not differentiable
            (`fieldbook.nn.functional.require_fixed`); a gradient is not finite.
    """
    _require_inputs(f, x, batch)
    total = _zeros(x)
    for inputs, outputs in _forward(f, x, batch):
        for basis in torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device):
            rows = _pullback(inputs, outputs, basis.expand_as(outputs))
            total += rows.T @ rows
    return _finite(total / len(x))


def agop_sketch(
    f: Function, x: Tensor, generator: torch.Generator, *, k: int = 4, batch: int = 2048
) -> Tensor:
    """Unbiased AGOP estimate from k random outputs: mean of (J^T v)(J^T v)^T over Rademacher v.

    E[v v^T] = I makes it unbiased (Hutchinson 1990). Sketch over all examples and never over a
    subsample: gradient norms are heavy-tailed. Arguments, result and errors as in `agop`; `k` is
    the number of vectors per example.
    """
    _require_inputs(f, x, batch)
    require(k >= 1, "k", k, "at least one vector per example")
    return torch.stack(second_moments(f, x, [signs(generator)] * k, batch=batch)).mean(0)


def second_moments(
    f: Function, x: Tensor, rules: Sequence[Rule], *, batch: int = 2048
) -> list[Tensor]:
    """Mean over the examples of (J^T v)(J^T v)^T, (D, D), for each of several rules for v, from one
    forward pass.

    Args:
        rules: (outputs (n, C), where in x they belong) -> (n, C), such as `signs` and `residuals`
            give.
    """
    totals = [_zeros(x) for _ in rules]
    for part, (inputs, outputs) in enumerate(_forward(f, x, batch)):
        at = slice(part * batch, part * batch + len(outputs))
        for total, rule in zip(totals, rules, strict=True):
            rows = _pullback(inputs, outputs, rule(outputs.detach(), at))
            total += rows.T @ rows
    return [_finite(total / len(x)) for total in totals]


def signs(generator: torch.Generator) -> Rule:
    """Rademacher vectors, for which the second moment is an unbiased estimate of the AGOP."""

    def draw(outputs: Tensor, _: slice) -> Tensor:
        bits = torch.randint(0, 2, outputs.shape, generator=generator, device=generator.device)
        return bits.to(outputs) * 2 - 1

    return draw


def residuals(target: Tensor) -> Rule:
    """Gradients r = softmax(f) - one-hot(target) of each example's cross-entropy, for right outputs
    (n,).

    The second moment of J^T r is what the source log calls AGOP. It vanishes with the residual,
    however large J.
    """
    integer = not (target.is_floating_point() or target.is_complex() or target.dtype == torch.bool)
    require(
        integer and target.ndim == 1,
        "target",
        f"{target.dtype} {tuple(target.shape)}",
        "classes (n,) of int64",
    )
    lowest = int(target.min())
    highest = int(target.max())

    def residual(outputs: Tensor, at: slice) -> Tensor:
        classes = outputs.shape[1]
        require(
            lowest >= 0 and highest < classes,
            "target",
            (lowest, highest),
            f"classes in [0, {classes})",
        )
        return outputs.softmax(1) - torch.nn.functional.one_hot(target[at].long(), classes)

    return residual


def one_hot_blocks(gradient: Tensor, embedding: Tensor) -> Tensor:
    """AGOP with respect to one-hot operands, from the AGOP with respect to their embeddings.

    The chain rule through x = W_E^T e gives W_E G W_E^T for each pair of operands.

    Args:
        gradient: (2 d, 2 d), operand-major.
        embedding: W_E, (tokens, d).
    Returns:
        (2, 2, tokens, tokens): block [i, j] pairs operand i with operand j.
    """
    d = embedding.shape[1]
    blocks = gradient.unflatten(0, (2, d)).unflatten(2, (2, d))
    return torch.einsum("td,idje,ue->ijtu", embedding, blocks, embedding)


def _require_inputs(f: Function, x: Tensor, batch: int) -> None:
    floats = isinstance(x, Tensor) and x.is_floating_point()
    remedy = "floating-point inputs; differentiate a network of tokens by their embeddings"
    require(floats, "dtype of x", getattr(x, "dtype", type(x).__name__), remedy)
    numbers(x, "x")
    require(batch >= 1, "batch", batch, "at least 1")
    with contextlib.suppress(
        RuntimeError
    ):  # of a function that takes whole batches alone, and no two examples
        require_fixed(f, x)


def _zeros(x: Tensor) -> Tensor:
    """Where outer products are summed: in half precision a sum of many terms stops growing."""
    return at_least_single(x.new_zeros(x[0].numel(), x[0].numel()))


def _finite(gradient: Tensor) -> Tensor:
    accepted = "finite numbers; in half precision gradients overflow: use `model.float()`"
    require(
        gradient.isfinite().all(), "mean outer product of gradients", "infinite or NaN", accepted
    )
    return gradient


def _forward(f: Function, x: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs that take a gradient, and their outputs (n, C), the axes between flattened."""
    for part in x.detach().split(batch):
        with torch.enable_grad():
            inputs = part.clone().requires_grad_()
            outputs = f(inputs)
            outputs = outputs[:, None] if outputs.ndim == 1 else outputs.flatten(1)
        detached = "detached from x, or computed without gradients"
        require(outputs.requires_grad, "output of f", detached, "a differentiable function of x")
        yield inputs, outputs


def _pullback(inputs: Tensor, outputs: Tensor, cotangents: Tensor) -> Tensor:
    """Rows J^T v, (n, D), of one cotangent v per example."""
    (rows,) = torch.autograd.grad(
        outputs, inputs, cotangents, retain_graph=True, materialize_grads=True
    )  # zero where an output does not depend on x
    return at_least_single(rows.flatten(1))
