"""A vision transformer that reads spectra: patches of wavelength are its words.

Top to bottom as in Dosovitskiy et al. 2021: cut the spectrum into patches, project them to tokens,
say where each lies, let pre-norm encoder blocks exchange what they find, pool the tokens, and read
the answer off a linear head.
"""

import pandas as pd
import torch
from einops import rearrange
from torch import Tensor, nn

from fieldbook.nn.checks import require
from fieldbook.nn.layers import Block, rotation, seeded


def _small_weights(linear: nn.Linear) -> None:
    """Standard deviation .02, no bias."""
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)


# Convolution, sliding window, reshape: one linear map, which the source starts in two ways.
TOKENIZERS = {"C1D": nn.Linear.reset_parameters, "SW": _small_weights, "linear": _small_weights}
POSITIONS = ("learned", "rope", "none")
POOLINGS = ("cls", "mean", "attention")


class SpectraViT(nn.Module):
    """Vision transformer on spectra of `n_pixels`, for regression or classification.

    The defaults are those of the source: 256 patches, 6 layers of width 256, 4.8 million
    parameters.

    Args:
        n_pixels: of the flux, or of what `preprocess` makes of it; `patch`: pixels in a token.
        dropout: share of the embedded tokens and of each sub-layer's output set to zero in
            training.
        tokenizer: `C1D` (convolution), `SW` (sliding window) or `linear` (reshape), the same map
            with the same weights unless `start_as_source` draws others.
        position: `learned` vectors, `rope` (queries and keys turned by their place, the CLS token
            at 0), or `none`.
        pooling: `cls`, a token of its own; the `mean` of the patches; or an `attention` of one
            learned query, which starts as the mean.
        n_outputs: 1 for regression, the number of classes for classification.
        preprocess: fixed map of the flux before it is cut, e.g. `preprocess.standardise(flux)`.
        seed: of the initial weights.
    Raises:
        ValueError: patches do not fill the spectrum, heads do not divide the width, or a name is
            unknown.
    Source: Dosovitskiy et al. 2021 (arXiv:2010.11929), eq. 1-4.
    """

    def __init__(
        self,
        *,
        n_pixels: int = 4096,
        patch: int = 16,
        d_model: int = 256,
        n_layers: int = 6,
        n_heads: int = 8,
        d_hidden: int = 1024,
        dropout: float = 0.1,
        tokenizer: str = "C1D",
        position: str = "learned",
        pooling: str = "cls",
        n_outputs: int = 1,
        preprocess: nn.Module | None = None,
        seed: int = 0,
    ):
        super().__init__()
        fills = patch >= 1 and n_pixels % patch == 0
        require(fills, "patch", patch, f"a divisor of n_pixels = {n_pixels}")
        require(tokenizer in TOKENIZERS, "tokenizer", tokenizer, f"one of {', '.join(TOKENIZERS)}")
        require(position in POSITIONS, "position", position, f"one of {', '.join(POSITIONS)}")
        require(pooling in POOLINGS, "pooling", pooling, f"one of {', '.join(POOLINGS)}")
        require(n_layers >= 1, "n_layers", n_layers, "at least 1")
        self.n_pixels, self.patch, self.n_patches = n_pixels, patch, n_pixels // patch
        self.tokenizer, self.pooling = tokenizer, pooling
        self.preprocess = nn.Identity() if preprocess is None else preprocess
        self.cls = self.position = self.query = None
        n_tokens = self.n_patches + (pooling == "cls")
        with seeded(seed):
            self.project = nn.Linear(patch, d_model)
            if pooling == "cls":
                self.cls = nn.Parameter(0.02 * torch.randn(d_model))
            if position == "learned":
                self.position = nn.Parameter(0.02 * torch.randn(n_tokens, d_model))
            self.dropout = nn.Dropout(dropout)
            self.blocks = nn.ModuleList(
                Block(d_model, n_heads, d_hidden, dropout=dropout) for _ in range(n_layers)
            )
            self.norm = nn.LayerNorm(d_model)
            if pooling == "attention":
                self.query = nn.Parameter(torch.zeros(d_model))
            self.head = nn.Linear(d_model, n_outputs)
        turns = rotation(n_tokens, d_model // n_heads) if position == "rope" else None
        self.register_buffer("turns", turns, persistent=False)

    def forward(self, flux: Tensor) -> Tensor:
        """(batch, pixel) -> (batch,) for one output, (batch, class) logits for more."""
        *others, last = self.blocks
        x = self.embed(flux)
        for block in others:
            x = block(x, turns=self.turns)
        x = self.norm(last(x, turns=self.turns, only=0 if self.pooling == "cls" else None))
        pooled = x[:, 0] if self.pooling == "cls" else (self.pool_weights(x)[:, None] @ x)[:, 0]
        return self.head(pooled).squeeze(-1)

    def embed(self, flux: Tensor) -> Tensor:
        """(batch, pixel) -> (batch, token, d_model), the CLS token first, if there is one."""
        x = self.preprocess(flux)
        fits = x.ndim == 2 and x.shape[1] == self.n_pixels
        require(fits, "flux", tuple(x.shape), f"(batch, {self.n_pixels})")
        x = self.project(rearrange(x, "batch (token pixel) -> batch token pixel", pixel=self.patch))
        x = x.to(self.norm.weight.dtype)  # under autocast, what the blocks add up stays exact
        if self.cls is not None:
            x = torch.cat((self.cls.expand(len(x), 1, -1), x), 1)
        return self.dropout(x if self.position is None else x + self.position)

    def pool_weights(self, x: Tensor) -> Tensor:
        """What each token of the encoder's output counts for, rows summing to one.

        Args:
            x: (batch, token, d_model).
        Returns:
            (batch, token).
        """
        if self.pooling == "attention":
            return (x @ self.query * x.shape[-1] ** -0.5).softmax(-1)
        if self.pooling == "mean":
            return x.new_full(x.shape[:2], 1 / x.shape[1])
        return torch.eye(x.shape[1], dtype=x.dtype, device=x.device)[0].expand(x.shape[:2])


@torch.no_grad()
def start_as_source(model: SpectraViT, seed: int = 0) -> None:
    """Draw new weights the way the source's code does, to show what follows from it.

    Its CLS token and positions have unit variance. Its linear maps have standard deviation .02 and
    no bias, a linear tokenizer's among them, while the convolution keeps PyTorch's 1 / sqrt(3
    patch) (at patch 16, .14), since the library it derives from knows how to start `Linear` and
    `Conv2d` alone. So under `SW` what a patch holds is drowned by where it lies.
    """
    with seeded(seed):
        TOKENIZERS[model.tokenizer](model.project)
        for module in (*model.blocks.modules(), model.head):
            if isinstance(module, nn.Linear):
                _small_weights(module)
        for embedding in (model.cls, model.position):
            if embedding is not None:
                nn.init.normal_(embedding)


# -- what is inside

TERMS = {  # how the names of its parameters begin; all layers are like the first
    "preprocess": ("preprocess.",),
    "patch projection": ("project.",),
    "CLS token": ("cls",),
    "positions": ("position",),
    "layer: QKV projection": (*(f"blocks.0.attn.{name}." for name in ("query", "key", "value")),),
    "layer: output projection": ("blocks.0.attn.out.",),
    "layer: norms": ("blocks.0.attn_norm.", "blocks.0.ffn_norm."),
    "layer: feed-forward": ("blocks.0.ffn.",),
    "final norm": ("norm.",),
    "pooling query": ("query",),
    "head": ("head.",),
}


def parameter_table(model: SpectraViT) -> pd.DataFrame:
    """Trainable parameters term by term, in the order of the forward pass.

    Returns:
        columns `term`, `shapes` (of one copy), `parameters` (of one copy), `copies`, `total`.
    """
    rows = []
    for term, prefixes in TERMS.items():
        weights = [w for name, w in model.named_parameters() if name.startswith(prefixes)]
        if weights:
            shapes = " + ".join(" x ".join(map(str, w.shape)) for w in weights)
            count = sum(w.numel() for w in weights)
            copies = len(model.blocks) if term.startswith("layer") else 1
            rows.append((term, shapes, count, copies, count * copies))
    return pd.DataFrame(rows, columns=["term", "shapes", "parameters", "copies", "total"])


@torch.no_grad()
def attention_maps(model: SpectraViT, flux: Tensor) -> tuple[Tensor, Tensor]:
    """Who attends to whom in each layer, and what each token counts for in the pooled output.

    Takes 4 * layers * heads * tokens^2 bytes per spectrum (13 MB at the default size): hand over
    few at a time.

    Args:
        model: in eval mode; `flux`: (batch, pixel).
    Returns:
        (layer, batch, head, query token, key token) and (batch, token), rows summing to one.
    Raises:
        ValueError: the model is in training mode, where dropout would disturb the maps.
    """
    accepted = "a model in eval mode: call model.eval() first"
    require(not model.training, "model.training", True, accepted)
    maps = []
    x = model.embed(flux)
    for block in model.blocks:
        maps.append(block.attn.weights(block.attn_norm(x), turns=model.turns))
        x = block(x, turns=model.turns)
    return torch.stack(maps), model.pool_weights(model.norm(x))


def rollout(maps: Tensor, pooled: Tensor) -> Tensor:
    """How much of the pooled output flows from each input token, half of it past every layer.

    Args:
        maps, pooled: of `attention_maps`.
    Returns:
        (batch, token), rows summing to one; the patches are the last tokens, a CLS token comes
        before them.
    Source: Abnar & Zuidema 2020 (arXiv:2005.00928), section 3, averaged over heads.
    """
    share = pooled[:, None]
    for attention in maps.mean(2).flip(0):
        share = 0.5 * (share + share @ attention)
    return share[:, 0]
