"""Average gradient outer product: which input directions a network's outputs depend on.

For f: R^D -> R^C with Jacobian J_j at example j, G = mean_j J_j^T J_j, a D x D matrix.
Source: Radhakrishnan et al. 2024 (Science 383:1461), equation 2.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


def agop(f: Function, x: Tensor, *, chunk: int = 16, batch: int = 1024) -> Tensor:
    """Exact AGOP from batched vector-Jacobian products, one per output.

    Args:
        f: (n, ...) -> (n, C); each example's output may depend on its own input only. Its parameters should be
            frozen (`requires_grad_(False)`), otherwise their graph is carried along.
        x: (n, ...) inputs; the trailing axes are flattened to D.
        chunk: outputs differentiated at once.
        batch: examples differentiated at once.
    Returns:
        (D, D), symmetric positive semi-definite.
    """
    total = x.new_zeros(x[0].numel(), x[0].numel())
    for inputs, outputs in _forward(f, x, batch):
        for basis in torch.eye(outputs.shape[1], dtype=x.dtype, device=x.device).split(chunk):
            cotangents = basis[:, None].expand(-1, len(inputs), -1)
            rows = _pullback(inputs, outputs, cotangents).flatten(0, 1)
            total += rows.T @ rows
    return total / len(x)


def agop_sketch(f: Function, x: Tensor, generator: torch.Generator, *, k: int = 4, batch: int = 2048) -> Tensor:
    """Unbiased AGOP estimate from k random outputs: mean of (J^T v)(J^T v)^T over Rademacher v.

    E[v v^T] = I makes it unbiased (Hutchinson 1990). Sketch over all examples and never over a subsample: gradient
    norms are heavy-tailed. Arguments and result as in `agop`; `k` is the number of vectors per example.
    """
    total = x.new_zeros(x[0].numel(), x[0].numel())
    for inputs, outputs in _forward(f, x, batch):
        for _ in range(k):
            signs = torch.randint(0, 2, outputs.shape, generator=generator).to(outputs) * 2 - 1
            rows = _pullback(inputs, outputs, signs)
            total += rows.T @ rows
    return total / (len(x) * k)


def loss_gradient_covariance(f: Function, x: Tensor, target: Tensor, *, batch: int = 2048) -> Tensor:
    """Second moment (D, D) of the input gradients of each example's cross-entropy.

    This is what the source log calls AGOP. Each gradient is J^T r with the residual r = softmax(f) - one-hot(target):
    it vanishes with the residual, however large J.

    Args:
        target: (n,) right outputs; the other arguments as in `agop`.
    """
    total = x.new_zeros(x[0].numel(), x[0].numel())
    for (inputs, outputs), right in zip(_forward(f, x, batch), target.split(batch), strict=True):
        residual = outputs.detach().softmax(1) - torch.nn.functional.one_hot(right, outputs.shape[1])
        rows = _pullback(inputs, outputs, residual)
        total += rows.T @ rows
    return total / len(x)


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
    """Rows J^T v, (n, D); with cotangents of one more leading axis, (chunk, n, D) in one batched call."""
    batched = cotangents.dim() > outputs.dim()
    (rows,) = torch.autograd.grad(outputs, inputs, cotangents, retain_graph=True, is_grads_batched=batched)
    return rows.flatten(cotangents.dim() - 1)
