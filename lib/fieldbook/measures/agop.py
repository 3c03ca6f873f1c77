"""Average gradient outer product: which input directions a network's outputs depend on.

For f: R^D -> R^C with Jacobian J_j at example j, G = mean_j J_j^T J_j, a D x D matrix.
Source: Radhakrishnan et al. 2024 (Science 383:1461), equation 2.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
Rule = Callable[[Tensor, slice], Tensor]


def agop(f: Function, x: Tensor, *, batch: int = 128) -> Tensor:
    """Exact AGOP, one vector-Jacobian product per output.

    A plain loop over the outputs: on a CPU vmapped products and `torch.func.jacrev` are no faster, since all of them
    are bound by the same arithmetic (`benchmarks/agop.py`). Batches only bound the memory.

    Args:
        f: (n, ...) -> (n, C); each example's output may depend on its own input only. Its parameters should be
            frozen (`requires_grad_(False)`), otherwise their graph is carried along.
        x: (n, ...) inputs; the trailing axes are flattened to D.
        batch: examples differentiated at once; larger on a GPU.
    Returns:
        (D, D), symmetric positive semi-definite.
    """
    total = x.new_zeros(x[0].numel(), x[0].numel())
    for inputs, outputs in _forward(f, x, batch):
        for basis in torch.eye(outputs.shape[1], dtype=x.dtype, device=x.device):
            rows = _pullback(inputs, outputs, basis.expand_as(outputs))
            total += rows.T @ rows
    return total / len(x)


def agop_sketch(f: Function, x: Tensor, generator: torch.Generator, *, k: int = 4, batch: int = 2048) -> Tensor:
    """Unbiased AGOP estimate from k random outputs: mean of (J^T v)(J^T v)^T over Rademacher v.

    E[v v^T] = I makes it unbiased (Hutchinson 1990). Sketch over all examples and never over a subsample: gradient
    norms are heavy-tailed. Arguments and result as in `agop`; `k` is the number of vectors per example.
    """
    return torch.stack(second_moments(f, x, [signs(generator)] * k, batch=batch)).mean(0)


def second_moments(f: Function, x: Tensor, rules: Sequence[Rule], *, batch: int = 2048) -> list[Tensor]:
    """Mean over the examples of (J^T v)(J^T v)^T, (D, D), for each of several rules for v, from one forward pass.

    Args:
        rules: (outputs (n, C), where in x they belong) -> (n, C), such as `signs` and `residuals` give.
    """
    totals = [x.new_zeros(x[0].numel(), x[0].numel()) for _ in rules]
    for part, (inputs, outputs) in enumerate(_forward(f, x, batch)):
        at = slice(part * batch, part * batch + len(outputs))
        for total, rule in zip(totals, rules, strict=True):
            rows = _pullback(inputs, outputs, rule(outputs.detach(), at))
            total += rows.T @ rows
    return [total / len(x) for total in totals]


def signs(generator: torch.Generator) -> Rule:
    """Rademacher vectors, for which the second moment is an unbiased estimate of the AGOP."""
    return lambda outputs, _: torch.randint(0, 2, outputs.shape, generator=generator).to(outputs) * 2 - 1


def residuals(target: Tensor) -> Rule:
    """Gradients r = softmax(f) - one-hot(target) of each example's cross-entropy, for right outputs (n,).

    The second moment of J^T r is what the source log calls AGOP. It vanishes with the residual, however large J.
    """
    return lambda outputs, at: outputs.softmax(1) - torch.nn.functional.one_hot(target[at], outputs.shape[1])


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


def _forward(f: Function, x: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    for part in x.detach().split(batch):
        with torch.enable_grad():
            inputs = part.clone().requires_grad_()
            outputs = f(inputs)
        yield inputs, outputs


def _pullback(inputs: Tensor, outputs: Tensor, cotangents: Tensor) -> Tensor:
    """Rows J^T v, (n, D), of one cotangent v per example."""
    return torch.autograd.grad(outputs, inputs, cotangents, retain_graph=True)[0].flatten(1)
