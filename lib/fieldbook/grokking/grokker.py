"""The small decoder that groks modular arithmetic (Power et al. 2022, arXiv:2201.02177)."""

import torch
from torch import Tensor, nn

from fieldbook.nn.layers import Block, seeded


class Grokker(nn.Module):
    """Pre-norm causal decoder reading `a op b =` and answering at the last position.

    Learned positions, biases everywhere but in the untied head. In the last block only the last
    position is computed, since nothing else reaches the logits.

    Args:
        p: modulus; tokens 0..p-1 are the numbers, p the operator, p + 1 the equals sign.
        operator: feed `[a, op, b, =]`; without it `[a, b, =]`.
        seed: of the initial weights.
    """

    def __init__(
        self,
        p: int,
        *,
        d_model: int = 128,
        n_heads: int = 4,
        n_layers: int = 2,
        d_hidden: int = 512,
        activation: str = "relu",
        operator: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        self.p, self.operator = p, operator
        with seeded(seed):
            self.token = nn.Embedding(p + 2, d_model)
            self.position = nn.Embedding(4 if operator else 3, d_model)
            self.blocks = nn.ModuleList(
                Block(d_model, n_heads, d_hidden, causal=True, activation=activation)
                for _ in range(n_layers)
            )
            self.norm = nn.LayerNorm(d_model)
            self.head = nn.Linear(d_model, p, bias=False)

    @property
    def numbers(self) -> Tensor:
        """Embeddings of the numbers alone, (p, d_model)."""
        return self.token.weight[: self.p]

    def forward(self, pairs: Tensor) -> Tensor:
        """Logits (batch, p) of integer pairs (batch, 2)."""
        return self.decode(self.token(pairs))

    def decode(self, operands: Tensor) -> Tensor:
        """Logits (batch, p) from the token embeddings of a and b, (batch, 2, d_model).

        This is the function whose input gradients make the AGOP: operator, equals sign and
            positions are inside.
        """
        a, b = operands.unbind(1)
        op, equals = self.token.weight[self.p :].unsqueeze(1).expand(-1, len(operands), -1)
        x = (
            torch.stack([a, op, b, equals] if self.operator else [a, b, equals], 1)
            + self.position.weight
        )
        for block in self.blocks[:-1]:
            x = block(x)
        return self.head(self.norm(self.blocks[-1](x, only=-1)[:, 0]))
