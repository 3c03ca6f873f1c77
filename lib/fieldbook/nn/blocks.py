"""Transformer parts shared by every model of the book: attention, feed-forward, pre-norm block."""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

MASKED = -1e9  # not -inf: a row of -inf has no gradient, and vmap over it gives NaN


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initialise modules from `seed` alone, leaving the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


class Attention(nn.Module):
    """Multi-head self-attention as matmul, softmax, matmul, which `torch.func` can batch and
    differentiate twice.

    Source: Vaswani et al. 2017 (arXiv:1706.03762), equation 1.
    """

    def __init__(self, d_model: int, n_heads: int, *, causal: bool = False):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"n_heads = {n_heads} must divide d_model = {d_model}")
        self.n_heads, self.causal = n_heads, causal
        self.query, self.key, self.value, self.out = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x: Tensor, *, last_only: bool = False) -> Tensor:
        """(batch, token, d_model) -> the same, or (batch, 1, d_model) for the last token's query
        alone."""
        target = x[:, -1:] if last_only else x
        q, k, v = (
            linear(y).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for linear, y in ((self.query, target), (self.key, x), (self.value, x))
        )
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if self.causal and not last_only:
            scores = scores + torch.full(
                scores.shape[-2:], MASKED, dtype=x.dtype, device=x.device
            ).triu(1)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """Position-wise two-layer network `down(activation(up(x)))`."""

    def __init__(self, d_model: int, d_hidden: int, *, activation: str = "relu"):
        super().__init__()
        choices = {"relu": nn.ReLU, "gelu": nn.GELU}
        if activation not in choices:
            raise ValueError(f"activation = {activation!r}: expected one of {sorted(choices)}")
        self.up, self.activation, self.down = (
            nn.Linear(d_model, d_hidden),
            choices[activation](),
            nn.Linear(d_hidden, d_model),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_model) -> (..., d_model)."""
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    """Pre-norm transformer block (Xiong et al. 2020, arXiv:2002.04745): x + attn(norm x), then x +
    ffn(norm x)."""

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_hidden: int,
        *,
        causal: bool = False,
        activation: str = "relu",
    ):
        super().__init__()
        self.attn_norm, self.attn = (
            nn.LayerNorm(d_model),
            Attention(d_model, n_heads, causal=causal),
        )
        self.ffn_norm, self.ffn = (
            nn.LayerNorm(d_model),
            FeedForward(d_model, d_hidden, activation=activation),
        )

    def forward(self, x: Tensor, *, last_only: bool = False) -> Tensor:
        """(batch, token, d_model) -> the same, or (batch, 1, d_model) for the last token alone."""
        residual = x[:, -1:] if last_only else x
        x = residual + self.attn(self.attn_norm(x), last_only=last_only)
        return x + self.ffn(self.ffn_norm(x))
