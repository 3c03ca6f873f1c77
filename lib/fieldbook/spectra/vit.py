"""A vision transformer that reads spectra: patches of wavelength are its words (Dosovitskiy et al.
2021).

Top to bottom as in the paper: cut the spectrum into patches, project them to tokens, say where each
lies, let pre-norm encoder blocks exchange what they find, pool the tokens, and read the answer off
a linear head.
"""

import pandas as pd
import torch
from torch import Tensor, nn

from fieldbook.nn.checks import require
from fieldbook.nn.layers import Block, rotation, seeded

# -- from flux (batch, pixel) to tokens (batch, patch, d_model): three ways to write one linear map of each patch


class ConvTokens(nn.Module):
    """A convolution as wide as its stride, or wider."""

    def __init__(self, patch: int, stride: int, d_model: int):
        super().__init__()
        self.project = nn.Conv1d(1, d_model, patch, stride)

    def forward(self, flux: Tensor) -> Tensor:
        return self.project(flux[:, None]).mT


class WindowTokens(nn.Module):
    """A sliding window, then a linear layer."""

    def __init__(self, patch: int, stride: int, d_model: int):
        super().__init__()
        self.patch, self.stride, self.project = patch, stride, nn.Linear(patch, d_model)

    def forward(self, flux: Tensor) -> Tensor:
        return self.project(flux.unfold(-1, self.patch, self.stride))


class ReshapedTokens(nn.Module):
    """Patches side by side, as the paper writes them: a reshape, then a linear layer."""

    def __init__(self, patch: int, stride: int, d_model: int):
        super().__init__()
        require(
            stride == patch,
            "stride",
            stride,
            f"patch = {patch}: the tokenizer 'linear' knows no overlap",
        )
        self.patch, self.project = patch, nn.Linear(patch, d_model)

    def forward(self, flux: Tensor) -> Tensor:
        return self.project(flux.unflatten(-1, (-1, self.patch)))


TOKENIZERS = {"C1D": ConvTokens, "SW": WindowTokens, "linear": ReshapedTokens}
POSITIONS = ("learned", "rope", "none")
POOLINGS = ("cls", "mean", "attention")


class SpectraViT(nn.Module):
    """Vision transformer on spectra of `n_pixels`, for regression or classification.

    The defaults are those of the seed experiment: 256 patches, 6 layers of width 256, 4.8 million
    parameters.

    Args:
        n_pixels: of the flux, or of what `preprocess` makes of it; `patch`: pixels in a token.
        stride: pixels from one patch to the next; None means `patch`, without overlap.
        dropout: share of the embedded tokens and of each sub-layer's output set to zero in
            training.
        tokenizer: `C1D` (convolution), `SW` (sliding window) or `linear` (reshape; no overlap). The
            three are the same map, with the same initial weights.
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
        stride: int | None = None,
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
        stride = patch if stride is None else stride
        fills = 1 <= stride <= patch <= n_pixels and (n_pixels - patch) % stride == 0
        require(
            fills,
            "patch",
            patch,
            f"a length that, every stride = {stride} of it, fills n_pixels = {n_pixels}",
        )
        require(tokenizer in TOKENIZERS, "tokenizer", tokenizer, f"one of {', '.join(TOKENIZERS)}")
        require(position in POSITIONS, "position", position, f"one of {', '.join(POSITIONS)}")
        require(pooling in POOLINGS, "pooling", pooling, f"one of {', '.join(POOLINGS)}")
        require(n_layers >= 1, "n_layers", n_layers, "at least 1")
        self.n_pixels, self.n_patches = n_pixels, (n_pixels - patch) // stride + 1
        self.pooling, self.preprocess = pooling, nn.Identity() if preprocess is None else preprocess
        n_tokens = self.n_patches + (pooling == "cls")
        with seeded(seed):
            self.tokens = TOKENIZERS[tokenizer](patch, stride, d_model)
            self.cls = nn.Parameter(0.02 * torch.randn(1, 1, d_model)) if pooling == "cls" else None
            self.position = (
                nn.Parameter(0.02 * torch.randn(n_tokens, d_model))
                if position == "learned"
                else None
            )
            self.dropout = nn.Dropout(dropout)
            self.blocks = nn.ModuleList(
                Block(d_model, n_heads, d_hidden, dropout=dropout) for _ in range(n_layers)
            )
            self.norm = nn.LayerNorm(d_model)
            self.query = nn.Parameter(torch.zeros(d_model)) if pooling == "attention" else None
            self.head = nn.Linear(d_model, n_outputs)
        turns = rotation(n_tokens, d_model // n_heads) if position == "rope" else None
        self.register_buffer("turns", turns, persistent=False)

    def forward(self, flux: Tensor) -> Tensor:
        """(batch, pixel) -> (batch,) for one output, (batch, class) logits for more."""
        x = self.embed(flux)
        for block in self.blocks[:-1]:
            x = block(x, turns=self.turns)
        x = self.blocks[-1](x, turns=self.turns, only=0 if self.pooling == "cls" else None)
        x = self.norm(x)
        return self.head((self.pool_weights(x)[:, None] @ x)[:, 0]).squeeze(-1)

    def embed(self, flux: Tensor) -> Tensor:
        """(batch, pixel) -> (batch, token, d_model), the CLS token first, if there is one."""
        x = self.preprocess(flux)
        require(
            x.ndim == 2 and x.shape[1] == self.n_pixels,
            "flux",
            tuple(x.shape),
            f"(batch, {self.n_pixels})",
        )
        x = self.tokens(x).to(
            self.norm.weight.dtype
        )  # under autocast, what the blocks add up stays exact
        if self.cls is not None:
            x = torch.cat((self.cls.expand(len(x), -1, -1), x), 1)
        return self.dropout(x if self.position is None else x + self.position)

    def pool_weights(self, x: Tensor) -> Tensor:
        """What each token of the encoder's output, (batch, token, d_model), counts for: (batch,
        token), sums of one."""
        if self.pooling == "attention":
            return (x @ self.query * x.shape[-1] ** -0.5).softmax(-1)
        if self.pooling == "mean":
            return x.new_full(x.shape[:2], 1 / x.shape[1])
        return (torch.arange(x.shape[1], device=x.device) == 0).to(x.dtype).expand(x.shape[:2])


@torch.no_grad()
def restart_as_in_seed_experiment(model: SpectraViT, seed: int = 0) -> None:
    """Draw new weights the way the seed experiment's code does, to show what follows from it.

    Its CLS token and positions have unit variance. Its linear maps have standard deviation .02 and
    no bias, a linear tokenizer's among them, while the convolution keeps PyTorch's 1 / sqrt(3
    patch) (at patch 16, .14), since the library it derives from knows how to start `Linear` and
    `Conv2d` alone. So under `SW` what a patch holds is drowned by where it lies.
    """
    with seeded(seed):
        for module in nn.ModuleList((model.tokens, model.blocks, model.head)).modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv1d):
                module.reset_parameters()
        for embedding in (model.cls, model.position):
            if embedding is not None:
                nn.init.normal_(embedding)


# -- what is inside


def parameter_table(model: SpectraViT) -> pd.DataFrame:
    """Trainable parameters term by term, in the order of the forward pass, summing to those of the
    whole model.

    Returns:
        columns `term`, `shapes` (of one copy), `parameters` (of one copy), `copies`, `total`.
    """
    block = model.blocks[0]
    qkv = nn.ModuleList([block.attn.query, block.attn.key, block.attn.value])
    terms = {
        "preprocess": (model.preprocess, 1),
        "patch projection": (model.tokens, 1),
        "CLS token": (model.cls, 1),
        "positions": (model.position, 1),
        "layer: QKV projection": (qkv, len(model.blocks)),
        "layer: output projection": (block.attn.out, len(model.blocks)),
        "layer: norms": (nn.ModuleList([block.attn_norm, block.ffn_norm]), len(model.blocks)),
        "layer: feed-forward": (block.ffn, len(model.blocks)),
        "final norm": (model.norm, 1),
        "pooling query": (model.query, 1),
        "head": (model.head, 1),
    }
    rows = []
    for term, (part, copies) in terms.items():
        weights = (
            [part] if isinstance(part, Tensor) else [] if part is None else list(part.parameters())
        )
        if weights:
            shapes = " + ".join(" x ".join(map(str, w.shape)) for w in weights)
            count = sum(w.numel() for w in weights)
            rows.append((term, shapes, count, copies, count * copies))
    return pd.DataFrame(rows, columns=["term", "shapes", "parameters", "copies", "total"])


@torch.no_grad()
def attention_maps(model: SpectraViT, flux: Tensor) -> tuple[Tensor, Tensor]:
    """Who attends to whom in each layer, and what each token counts for in the pooled output.

    Takes 4 * layers * heads * tokens^2 bytes per spectrum (13 MB at the default size): hand over
    few at a time.

    Args:
        model: in eval mode.
        flux: (batch, pixel).
    Returns:
        (layer, batch, head, query token, key token) and (batch, token), rows summing to one.
    Raises:
        ValueError: the model is in training mode, where dropout would disturb the maps.
    """
    require(
        not model.training, "model.training", True, "a model in eval mode: call model.eval() first"
    )
    x, maps = model.embed(flux), []
    for block in model.blocks:
        maps.append(block.attn.weights(block.attn_norm(x), turns=model.turns))
        x = block(x, turns=model.turns)
    return torch.stack(maps), model.pool_weights(model.norm(x))


def rollout(maps: Tensor, pooled: Tensor) -> Tensor:
    """How much of the pooled output flows from each input token, if half of every layer's flow is
    the residual's.

    Args:
        maps, pooled: of `attention_maps`.
    Returns:
        (batch, token), rows summing to one; the patches are the last tokens, a CLS token comes
        before them.
    Source: Abnar & Zuidema 2020 (arXiv:2005.00928), section 3, attention rollout, averaged over
    heads.
    """
    share = pooled[:, None]
    for attention in maps.mean(2).flip(0):
        share = 0.5 * (share + share @ attention)
    return share[:, 0]
