"""Two-level patch transformer: level 1 reads the 60 ticks of a patch, level 2 60 of such patches.

The source gives its parameter counts alone; this architecture reproduces all of them
(`tests/unit/scaling/test_patches.py`).
"""

from collections import OrderedDict

import torch
from einops import rearrange
from torch import Tensor, nn

from fieldbook.nn.checks import require
from fieldbook.nn.layers import Block, seeded
from fieldbook.scaling.patches import FACTORS, LONG_HORIZONS, PATCH, SHORT_HORIZONS, WINDOW


class Stack(nn.Module):
    """Learned positions, causal encoder blocks, final norm; the last token."""

    def __init__(self, d: int, n_layers: int):
        super().__init__()
        require(n_layers >= 1, "n_layers", n_layers, "at least 1")
        n_heads = max(1, min(8, d // 16))
        self.position = nn.Parameter(0.02 * torch.randn(PATCH, d))
        self.layers = nn.ModuleList(Block(d, n_heads, 2 * d, causal=True) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 60, d) -> (batch, d)."""
        x = x + self.position
        *first, last = self.layers
        for layer in first:
            x = layer(x)
        x = last(x, only=-1)  # exact, as nothing reads its other tokens
        return self.norm(x[:, 0])


class Level1(nn.Module):
    """A patch of transformed ticks to its embedding, and to returns over seven short horizons."""

    def __init__(self, d: int, n_layers: int, *, n_in: int = 52, head: bool = True):
        super().__init__()
        self.project = nn.Linear(n_in, d)
        self.stack = Stack(d, n_layers)
        self.head = nn.Linear(d, len(SHORT_HORIZONS)) if head else None

    def embed(self, patches: Tensor) -> Tensor:
        """(batch, 60, features) -> (batch, d)."""
        return self.stack(self.project(patches))

    def forward(self, patches: Tensor) -> Tensor:
        """(batch, 60, features) -> (batch, 7)."""
        return self.head(self.embed(patches))


class Level2(nn.Module):
    """The embeddings of a window's patches to returns over six long horizons.

    Args:
        d_patch: width of the embeddings; None if it is `d`, and no projection is wanted.
        dropout: in the head.
    """

    def __init__(self, d: int, n_layers: int, *, d_patch: int | None, dropout: float = 0.0):
        super().__init__()
        self.project = nn.Linear(d_patch, d) if d_patch else nn.Identity()
        self.stack = Stack(d, n_layers)
        head = (nn.Linear(d, d), nn.GELU(), nn.Dropout(dropout), nn.Linear(d, len(LONG_HORIZONS)))
        self.head = nn.Sequential(*head)

    def forward(self, embeddings: Tensor) -> Tensor:
        """(batch, 60, d_patch) -> (batch, 6)."""
        return self.head(self.stack(self.project(embeddings)))


class EndToEnd(nn.Module):
    """Both levels trained as one, without a head on level 1 or a projection between them."""

    def __init__(self, d: int, n_l1: int, n_l2: int, *, n_in: int = 52, dropout: float = 0.0):
        super().__init__()
        self.level1 = Level1(d, n_l1, n_in=n_in, head=False)
        self.level2 = Level2(d, n_l2, d_patch=None, dropout=dropout)

    def forward(self, windows: Tensor) -> Tensor:
        """(batch, 60, 60, features) -> (batch, 6)."""
        patches = rearrange(windows, "batch patch tick feature -> (batch patch) tick feature")
        embedded = self.level1.embed(patches)
        return self.level2(rearrange(embedded, "(batch patch) d -> batch patch d", patch=WINDOW))


def build(
    mode: str, d: int, n_l1: int, n_l2: int, *, n_in: int = 52, dropout: float = 0.0, seed: int = 0
) -> nn.Module:
    """The network that a mode trains; it forecasts zero at first, as its last layer is zero.

    Args:
        mode: `pretrain` (level 1 and its head), `finetune` (level 2 on frozen embeddings),
            `end2end`, `factor` (level 2 on hand-made statistics of each patch), or `linear` (one
            map of the mean features of a window's patches).
        n_in: features of a tick.
    Raises:
        ValueError: another mode.
    """

    def level2() -> Level2:
        return Level2(d, n_l2, d_patch=d, dropout=dropout)

    n_out = len(LONG_HORIZONS)
    makers = {
        "pretrain": lambda: Level1(d, n_l1, n_in=n_in),
        "finetune": level2,
        "end2end": lambda: EndToEnd(d, n_l1, n_l2, n_in=n_in, dropout=dropout),
        "factor": lambda: nn.Sequential(
            OrderedDict(project=nn.Linear(FACTORS, d), level2=level2())
        ),
        "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(WINDOW * n_in, n_out)),
    }
    require(mode in makers, "mode", mode, f"one of {', '.join(makers)}")
    with seeded(seed):
        network = makers[mode]()
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return network


def count(*modules: nn.Module) -> int:
    """Parameters of all modules together."""
    return sum(p.numel() for module in modules for p in module.parameters())


def flops(mode: str, d: int, n_l1: int, n_l2: int, *, n_in: int = 52) -> tuple[int, int]:
    """Floating-point operations of an example's forward pass: in matrices of weights, in attention.

    An update takes three times their sum. The first is close to the rule 2 N per token; the second
    is what that rule leaves out. Attention is not halved for its causal mask, and the last layer is
    counted in full, though `Stack` computes its last token alone.

    Source: Kaplan et al. 2020 (arXiv:2001.08361), table 1.
    """
    weights1, attention1 = _stack_flops(d, n_l1, n_in)
    weights2, attention2 = _stack_flops(d, n_l2, 0 if mode == "end2end" else d)
    head = 2 * d * (d + len(LONG_HORIZONS))
    return {
        "pretrain": (weights1 + 2 * d * len(SHORT_HORIZONS), attention1),
        "finetune": (weights2 + head, attention2),
        "factor": (weights2 + head + 2 * WINDOW * FACTORS * d, attention2),
        "end2end": (WINDOW * weights1 + weights2 + head, WINDOW * attention1 + attention2),
        "linear": (2 * WINDOW * n_in * len(LONG_HORIZONS), 0),
    }[mode]


def _stack_flops(d: int, n_layers: int, n_in: int) -> tuple[int, int]:
    """Of a projection from `n_in` and a stack over 60 tokens."""
    weights = PATCH * (n_in * d + n_layers * 8 * d * d)
    attention = n_layers * 2 * PATCH * PATCH * d
    return 2 * weights, 2 * attention
