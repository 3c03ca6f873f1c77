"""Transformer parts on PyTorch's fused attention kernel: rotary positions, dropout, and one token's
output alone.

`blocks` has the explicit form that `torch.func` batches and differentiates twice; this one is for
training.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fieldbook.nn.blocks import FeedForward
from fieldbook.nn.checks import require


def rotation(n_tokens: int, d_head: int, *, base: float = 10_000.0) -> Tensor:
    """Matrices that turn the i-th pair of features of token m by the angle m * base^(-2 i /
    d_head).

    Feature i is paired with i + d_head / 2 and not with its neighbour: a fixed permutation of the
    features, which the projections learn anyway.

    Returns:
        (token, d_head, d_head), to be multiplied from the right.
    Raises:
        ValueError: d_head is odd.
    Source: Su et al. 2021 (arXiv:2104.09864), eq. 15.
    """
    require(
        d_head % 2 == 0,
        "d_head",
        d_head,
        "an even number of features per head, for rotary positions",
    )
    frequency = base ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
    angle = torch.arange(n_tokens, dtype=torch.float64)[:, None] * frequency
    cos, sin = angle.cos().diag_embed(), angle.sin().diag_embed()
    return torch.cat((torch.cat((cos, sin), -1), torch.cat((-sin, cos), -1)), -2).float()


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn queries or keys, (..., token, d_head), by `rotation`'s matrices.

    On a CPU small matrix products are faster than the elementwise ones of halves (Su et al. 2021,
    eq. 34).
    """
    return torch.einsum("...td,tde->...te", x, turns.to(x.dtype))


def attention_weights(q: Tensor, k: Tensor, *, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d_head)) of (..., token, d_head), (..., query token, key token); rows
    sum to one."""
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if causal:  # added in place, which is faster than filling by a mask
        scores += torch.full(
            scores.shape[-2:], -torch.inf, dtype=scores.dtype, device=scores.device
        ).triu(1)
    return scores.softmax(-1)


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Attention of (batch, head, token, d_head) by the fastest means, the same values up to
    rounding.

    That is PyTorch's fused kernel, except in bfloat16 on a CPU, where its backward pass takes two
    to six times as long as two matrix products and a softmax (`benchmarks/vit.py`).
    """
    if q.dtype == torch.bfloat16 and q.device.type == "cpu":
        return attention_weights(q, k, causal=causal) @ v
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values.

    Args:
        causal: a token sees itself and those before it.
    Source: Vaswani et al. 2017 (arXiv:1706.03762), eq. 1.
    """

    def __init__(self, d_model: int, n_heads: int, *, causal: bool = False):
        super().__init__()
        require(
            n_heads >= 1 and d_model % n_heads == 0,
            "n_heads",
            n_heads,
            f"a divisor of d_model = {d_model}",
        )
        self.n_heads, self.causal = n_heads, causal
        self.qkv, self.out = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, *, turns: Tensor | None = None, only: int | None = None) -> Tensor:
        """(batch, token, d_model) -> the same; or (batch, 1, d_model), the output of token `only`
        alone.

        Args:
            turns: rotary positions, (token, d_head, d_head).
        """
        q, k, v = self._heads(x, turns, only)
        y = attend(q, k, v, causal=self.causal and only is None)
        return self.out(y.transpose(1, 2).flatten(-2))

    def weights(self, x: Tensor, *, turns: Tensor | None = None) -> Tensor:
        """The attention itself, (batch, head, query token, key token), rows summing to one."""
        q, k, _ = self._heads(x, turns, None)
        return attention_weights(q, k, causal=self.causal)

    def _heads(
        self, x: Tensor, turns: Tensor | None, only: int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (batch, head, token, d_head), the keys being those that the
        queries may see."""
        if only is None:
            parts, at = self.qkv(x).chunk(3, -1), slice(None)
        else:
            only = range(x.shape[1])[only]
            at = slice(only, only + 1)
            if self.causal:
                x, turns = x[:, : only + 1], None if turns is None else turns[: only + 1]
            d = x.shape[-1]
            query = F.linear(x[:, at], self.qkv.weight[:d], self.qkv.bias[:d])
            parts = (query, *F.linear(x, self.qkv.weight[d:], self.qkv.bias[d:]).chunk(2, -1))
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in parts)
        return (q, k, v) if turns is None else (rotate(q, turns[at]), rotate(k, turns), v)


class EncoderBlock(nn.Module):
    """Pre-norm transformer block with GELU: x + drop(attn(norm x)), then x + drop(ffn(norm x)).

    Args:
        dropout: share of each sub-layer's output set to zero before it is added.
    Source: Xiong et al. 2020 (arXiv:2002.04745); dropout as in Vaswani et al. 2017
    (arXiv:1706.03762), section 5.4.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_hidden: int,
        *,
        dropout: float = 0.0,
        causal: bool = False,
    ):
        super().__init__()
        self.attn_norm, self.attn = (
            nn.LayerNorm(d_model),
            SelfAttention(d_model, n_heads, causal=causal),
        )
        self.ffn_norm, self.ffn = (
            nn.LayerNorm(d_model),
            FeedForward(d_model, d_hidden, activation="gelu"),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, *, turns: Tensor | None = None, only: int | None = None) -> Tensor:
        """(batch, token, d_model) -> the same; or (batch, 1, d_model) for token `only`, at a
        fraction of the cost."""
        y = self.attn(self.attn_norm(x), turns=turns, only=only)
        x = (x if only is None else x[:, only, None]) + self.dropout(y)
        return x + self.dropout(self.ffn(self.ffn_norm(x)))
