"""The parts of every transformer of the book: attention, rotary positions, feed-forward, block."""

import contextlib
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fieldbook.nn.checks import require

MASKED = -1e9  # not -inf: a row of -inf has no gradient, and vmap over it gives NaN
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initialise modules from `seed` alone, leaving the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def rotation(n_tokens: int, d_head: int, *, base: float = 10_000.0) -> Tensor:
    """Matrices that turn the i-th pair of features of token m by m * base^(-2 i / d_head).

    Feature i is paired with i + d_head / 2 and not with its neighbour: a fixed permutation of the
    features, which the projections learn anyway.

    Returns:
        (token, d_head, d_head), to be multiplied from the right.
    Raises:
        ValueError: d_head is odd.
    Source: Su et al. 2021 (arXiv:2104.09864), eq. 15.
    """
    require(d_head % 2 == 0, "d_head", d_head, "an even number, for rotary positions")
    frequency = base ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
    angle = torch.arange(n_tokens, dtype=torch.float64)[:, None] * frequency
    cos = angle.cos().diag_embed()
    sin = angle.sin().diag_embed()
    return torch.cat((torch.cat((cos, sin), -1), torch.cat((-sin, cos), -1)), -2).float()


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn queries or keys, (..., token, d_head), by `rotation`'s matrices.

    On a CPU small matrix products are faster than the elementwise ones of halves (Su et al. 2021,
    eq. 34).
    """
    return torch.einsum("...td,tde->...te", x, turns.to(x.dtype))


def attention_weights(q: Tensor, k: Tensor, *, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d_head)) of (..., token, d_head): (..., query token, key token)."""
    root = math.sqrt(q.shape[-1])
    fewer = k.shape[-2] < k.shape[-1]  # the scores, than the queries: divide what is smaller
    scores = q @ k.mT / root if fewer else (q / root) @ k.mT
    if causal:
        scores = scores + torch.full(scores.shape[-2:], MASKED, device=scores.device).triu(1)
    return scores.softmax(-1)


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Attention of (batch, head, token, d_head) by the fastest means, equal up to rounding.

    That is PyTorch's fused kernel, except in bfloat16 on a CPU, where its backward pass takes two
    to six times as long as two matrix products and a softmax (`benchmarks/vit.py`). The fused
    kernel has no second derivative: take those under `sdpa_kernel(SDPBackend.MATH)`, as
    `functional` does.
    """
    if q.dtype == torch.bfloat16 and q.device.type == "cpu":
        return attention_weights(q, k, causal=causal).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        causal: a token sees itself and those before it.
    Source: Vaswani et al. 2017 (arXiv:1706.03762), eq. 1.
    """

    def __init__(self, d_model: int, n_heads: int, *, causal: bool = False):
        super().__init__()
        divides = n_heads >= 1 and d_model % n_heads == 0
        require(divides, "n_heads", n_heads, f"a divisor of d_model = {d_model}")
        self.n_heads = n_heads
        self.causal = causal
        self.query, self.key, self.value, self.out = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x: Tensor, *, turns: Tensor | None = None, only: int | None = None) -> Tensor:
        """(batch, token, d_model) -> the same, or (batch, 1, d_model) of token `only` alone.

        Args:
            turns: rotary positions, (token, d_head, d_head).
        """
        q, k, v = self._heads(x, turns, only)
        y = attend(q, k, v, causal=self.causal and only is None)
        return self.out(rearrange(y, "batch head token d -> batch token (head d)"))

    def weights(self, x: Tensor, *, turns: Tensor | None = None) -> Tensor:
        """The attention itself, (batch, head, query token, key token), rows summing to one."""
        q, k, _ = self._heads(x, turns, None)
        return attention_weights(q, k, causal=self.causal)

    def _heads(
        self, x: Tensor, turns: Tensor | None, only: int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (batch, head, token, d_head), for what the queries may see."""
        asking = slice(None)
        if only is not None:
            only = range(x.shape[1])[only]  # counts from the end where negative
            asking = slice(only, only + 1)
        query = self.query(x[:, asking])
        if only is not None and self.causal:
            x = x[:, : only + 1]
        q, k, v = (
            rearrange(part, "batch token (head d) -> batch head token d", head=self.n_heads)
            for part in (query, self.key(x), self.value(x))
        )
        if turns is None:
            return q, k, v
        return rotate(q, turns[asking]), rotate(k, turns[: k.shape[2]]), v


class FeedForward(nn.Module):
    """Two layers for each token alone: down(activation(up(x))), `activation` relu or gelu."""

    def __init__(self, d_model: int, d_hidden: int, *, activation: str = "gelu"):
        super().__init__()
        accepted = f"one of {', '.join(ACTIVATIONS)}"
        require(activation in ACTIVATIONS, "activation", activation, accepted)
        self.up = nn.Linear(d_model, d_hidden)
        self.activation = ACTIVATIONS[activation]()
        self.down = nn.Linear(d_hidden, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_model) -> (..., d_model)."""
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    """Pre-norm transformer block: x + drop(attn(norm x)), then x + drop(ffn(norm x)).

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
        activation: str = "gelu",
        dropout: float = 0.0,
        causal: bool = False,
    ):
        super().__init__()
        self.attn_norm = nn.LayerNorm(d_model)
        self.attn = Attention(d_model, n_heads, causal=causal)
        self.ffn_norm = nn.LayerNorm(d_model)
        self.ffn = FeedForward(d_model, d_hidden, activation=activation)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, *, turns: Tensor | None = None, only: int | None = None) -> Tensor:
        """(batch, token, d_model) -> the same, or (batch, 1, d_model) of token `only` alone.

        In the last layer the token that is read off is often all that is needed, at a fraction of
        the cost. `turns` as in `Attention`.
        """
        y = self.attn(self.attn_norm(x), turns=turns, only=only)
        x = (x if only is None else x[:, only, None]) + self.dropout(y)
        return x + self.dropout(self.ffn(self.ffn_norm(x)))
