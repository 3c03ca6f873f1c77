"""Two-level patch transformer for ticks: level 1 reads the 60 ticks of a patch, level 2 the 60
patches of a window.

The source gives its parameter counts alone; this architecture reproduces all of them
(`tests/unit/test_patches.py`).
"""

import torch
from torch import Tensor, nn

from fieldbook.nn.layers import Block, seeded
from fieldbook.scaling.patches import FACTORS, LONG_HORIZONS, PATCH, SHORT_HORIZONS, WINDOW


class Stack(nn.Module):
    """Learned positions, causal encoder blocks with feed-forward parts twice as wide, final norm;
    the last token."""

    def __init__(self, d: int, n_layers: int):
        super().__init__()
        self.position = nn.Parameter(0.02 * torch.randn(PATCH, d))
        self.layers = nn.ModuleList(Block(d, heads(d), 2 * d, causal=True) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, token, d) -> (batch, d); of the last layer only the last token is computed, which
        is exact."""
        x = x + self.position
        for place, layer in enumerate(self.layers, 1):
            x = layer(x, only=-1 if place == len(self.layers) else None)
        return self.norm(x[:, -1])


class Level1(nn.Module):
    """A patch of transformed ticks to its embedding, and to returns over seven short horizons."""

    def __init__(self, d: int, n_layers: int, *, n_features: int = 52, head: bool = True):
        super().__init__()
        self.project, self.stack = nn.Linear(n_features, d), Stack(d, n_layers)
        self.head = nn.Linear(d, len(SHORT_HORIZONS)) if head else None

    def embed(self, patches: Tensor) -> Tensor:
        """(..., 60, features) -> (..., d)."""
        flat = self.stack(self.project(patches.flatten(0, -3)))
        return flat.unflatten(0, patches.shape[:-2])

    def forward(self, patches: Tensor) -> Tensor:
        """(batch, 60, features) -> (batch, 7)."""
        return self.head(self.embed(patches))


class Level2(nn.Module):
    """The embeddings of a window's patches to returns over six long horizons.

    Args:
        d_patch: width of the embeddings; `project`: False leaves the input projection out where the
            widths agree.
        dropout: in the head.
    Raises:
        ValueError: the projection is left out and the widths differ.
    """

    def __init__(
        self, d: int, n_layers: int, *, d_patch: int, project: bool = True, dropout: float = 0.0
    ):
        super().__init__()
        if not project and d_patch != d:
            raise ValueError(
                f"d_patch = {d_patch}: expected d = {d} where there is no input projection"
            )
        self.project = nn.Linear(d_patch, d) if project else nn.Identity()
        self.stack = Stack(d, n_layers)
        head = (nn.Linear(d, d), nn.GELU(), nn.Dropout(dropout), nn.Linear(d, len(LONG_HORIZONS)))
        self.head = nn.Sequential(*head)

    def forward(self, embeddings: Tensor) -> Tensor:
        """(batch, 60, d_patch) -> (batch, 6)."""
        return self.head(self.stack(self.project(embeddings)))


class EndToEnd(nn.Module):
    """Both levels trained as one, without a head on level 1 or a projection between them."""

    def __init__(self, d: int, n_l1: int, n_l2: int, *, n_features: int = 52, dropout: float = 0.0):
        super().__init__()
        self.level1 = Level1(d, n_l1, n_features=n_features, head=False)
        self.level2 = Level2(d, n_l2, d_patch=d, project=False, dropout=dropout)

    def forward(self, windows: Tensor) -> Tensor:
        """(batch, 60, 60, features) -> (batch, 6)."""
        return self.level2(self.level1.embed(windows))


class FactorModel(nn.Module):
    """Hand-made statistics of each patch in the place of level 1."""

    def __init__(self, d: int, n_layers: int, *, dropout: float = 0.0):
        super().__init__()
        self.project = nn.Linear(FACTORS, d)
        self.level2 = Level2(d, n_layers, d_patch=d, dropout=dropout)

    def forward(self, factors: Tensor) -> Tensor:
        """(batch, 60, 62) -> (batch, 6)."""
        return self.level2(self.project(factors))


class PatchMeans(nn.Module):
    """The linear baseline: one linear map of the mean features of all patches of a window."""

    def __init__(self, n_features: int = 52):
        super().__init__()
        self.linear = nn.Linear(WINDOW * n_features, len(LONG_HORIZONS))

    def forward(self, means: Tensor) -> Tensor:
        """(batch, 60, features) -> (batch, 6)."""
        return self.linear(means.flatten(1))


def build(
    mode: str,
    d: int,
    n_l1: int,
    n_l2: int,
    *,
    n_features: int = 52,
    dropout: float = 0.0,
    seed: int = 0,
) -> nn.Module:
    """The network that a mode trains, from a seed; its last linear layer starts at zero, hence at
    the zero forecast.

    Args:
        mode: `pretrain` (level 1 and its head), `finetune` (level 2 on frozen embeddings),
            `end2end`, `factor` or `linear`.
    Raises:
        ValueError: another mode.
    """
    makers = {
        "pretrain": lambda: Level1(d, n_l1, n_features=n_features),
        "finetune": lambda: Level2(d, n_l2, d_patch=d, dropout=dropout),
        "end2end": lambda: EndToEnd(d, n_l1, n_l2, n_features=n_features, dropout=dropout),
        "factor": lambda: FactorModel(d, n_l2, dropout=dropout),
        "linear": lambda: PatchMeans(n_features),
    }
    if mode not in makers:
        raise ValueError(f"mode = {mode!r}: expected one of {', '.join(makers)}")
    with seeded(seed):
        network = makers[mode]()
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return network


def heads(d: int) -> int:
    """Attention heads of 16 dimensions, eight at most."""
    return max(1, min(8, d // 16))


def count(*modules: nn.Module) -> int:
    """Parameters of all modules together."""
    return sum(p.numel() for module in modules for p in module.parameters())


def flops(
    mode: str, d: int, n_l1: int, n_l2: int, *, n_features: int = 52, last_only: bool = False
) -> tuple[int, int]:
    """Floating-point operations of one example's forward pass: in matrices of weights, and in
    attention.

    An update takes three times their sum. The first is close to the rule 2 N per token; the second
    is what that rule leaves out. Attention is not halved for its causal mask.

    Args:
        last_only: count what `Stack` does, which of the last layer computes the last token alone.
    Source: Kaplan et al. 2020 (arXiv:2001.08361), table 1.
    """
    level1 = _stack_flops(d, n_l1, n_features, last_only)
    level2 = _stack_flops(d, n_l2, 0 if mode == "end2end" else d, last_only)
    head = 2 * (d * d + d * len(LONG_HORIZONS))
    match mode:
        case "pretrain":
            return level1[0] + 2 * d * len(SHORT_HORIZONS), level1[1]
        case "finetune":
            return level2[0] + head, level2[1]
        case "factor":
            return level2[0] + head + 2 * WINDOW * FACTORS * d, level2[1]
        case "end2end":
            return WINDOW * level1[0] + level2[0] + head, WINDOW * level1[1] + level2[1]
    return 2 * WINDOW * n_features * len(LONG_HORIZONS), 0


def _stack_flops(d: int, n_layers: int, n_in: int, last_only: bool) -> tuple[int, int]:
    """Of a projection from `n_in` and a stack over 60 tokens."""
    full = n_layers - last_only
    weights, attention = PATCH * (n_in * d + full * 8 * d * d), full * 2 * PATCH * PATCH * d
    if last_only:
        weights, attention = weights + (2 * PATCH + 6) * d * d, attention + 2 * PATCH * d
    return 2 * weights, 2 * attention
