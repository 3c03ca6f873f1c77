"""Exact rescalings of a transformer: parameters change by orders of magnitude, the function does
not.

`alpha` scales everything that writes into the residual stream (embeddings, attention outputs,
feed-forward outputs); the layer norms that read the stream undo it exactly if their eps is scaled
by alpha^2. `beta` scales the inputs of the feed-forward ReLU, which is positively homogeneous, and
its output weights undo it. Source: Dinh et al. 2017 (arXiv:1703.04933), section 3, for networks
with ReLU.
"""

import copy
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fieldbook.grokking.grokker import Grokker
from fieldbook.nn import functional
from fieldbook.nn.checks import require

LOGIT_GATE = 1e-4  # largest change of a logit at which a rescaling still counts as exact, float32

_EXPONENTS = {  # parameter -> (power of alpha, power of beta)
    r"(token|position)\.weight": (1, 0),
    r"blocks\.\d+\.attn\.out\.(weight|bias)": (1, 0),
    r"blocks\.\d+\.ffn\.up\.(weight|bias)": (0, 1),
    r"blocks\.\d+\.ffn\.down\.weight": (1, -1),
    r"blocks\.\d+\.ffn\.down\.bias": (1, 0),
}


def exponents(model: Grokker) -> dict[str, tuple[int, int]]:
    """Powers (of alpha, of beta) by which the rescaling multiplies each parameter, by name.

    Raises:
        ValueError: the network lacks what is rescaled: without it a rescaling would be the
            identity, and exact.
    """
    powers = {name: (0, 0) for name, _ in model.named_parameters()}
    for pattern, both in _EXPONENTS.items():
        found = [name for name in powers if re.fullmatch(pattern, name)]
        accepted = f"a Grokker, or parameters named like its own, {pattern} among them"
        require(found, "model", type(model).__name__, accepted)
        powers |= dict.fromkeys(found, both)
    return powers


def orbits(model: Grokker) -> list[Tensor]:
    """Indices into the flat vector, a tensor per group that exact rescalings scale together.

    These are the weight and bias of each module, but for the biases of attention and feed-forward
    outputs: they do not change when their weights are traded against what feeds them. (Trading a
    norm's gain would also split the linear maps that read it; kept whole, the key's bias, to which
    softmax is blind, shares the scale of the key's weight.)
    """
    return functional.orbits(model, r"blocks\.\d+\.(attn\.out|ffn\.down)\.bias")


def _scale_factors(model: Grokker, alpha: float, beta: float) -> dict[str, float]:
    """Factor of each parameter, by name."""
    for name, value in (("alpha", alpha), ("beta", beta)):
        require(np.isfinite(value) and value > 0, name, value, "a positive number")
    return {name: alpha**a * beta**b for name, (a, b) in exponents(model).items()}


def rescale(
    model: Grokker, alpha: float = 1.0, beta: float = 1.0, *, eps_mode: str = "coscaled"
) -> Grokker:
    """A copy of a network with alpha and beta applied.

    Args:
        eps_mode: `coscaled` multiplies the eps of each layer norm by alpha^2, which makes the
            rescaling exact; `fixed` leaves it, which is what goes wrong when weight decay has
            shrunk the residual stream to the size of eps.
    Raises:
        ValueError: an unknown eps_mode; alpha or beta not positive.
    """
    require(eps_mode in ("coscaled", "fixed"), "eps_mode", eps_mode, "coscaled or fixed")
    factors = _scale_factors(model, alpha, beta)
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in scaled.named_parameters():
            parameter *= factors[name]
    if eps_mode == "coscaled":
        for module in scaled.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps *= alpha**2
    return scaled


def logit_gap(model: Grokker, other: Grokker, pairs: Tensor) -> float:
    """Largest absolute difference of any logit over the pairs."""
    with torch.no_grad():
        return float((model(pairs) - other(pairs)).abs().max())


def require_exact(gap: float, gate: float = LOGIT_GATE) -> float:
    """A `logit_gap` that passes the gate; ValueError with what usually breaks the symmetry."""
    remedy = "beta needs a ReLU, alpha needs eps_mode = 'coscaled'"
    accepted = f"at most {gate:.0e}, logits of the same function: {remedy}"
    require(gap <= gate, "logit gap of the rescaled network", gap, accepted)
    return gap


def grid_factors(model: Grokker, cells: Sequence[tuple[float, float]]) -> Tensor:
    """Factor of every parameter in every cell, (cell, D), for cells given as (alpha, beta)."""
    sizes = {name: w.numel() for name, w in functional.trained(model).items()}
    rows = [[_scale_factors(model, *cell)[name] for name in sizes] for cell in cells]
    per_tensor = torch.tensor(rows, dtype=torch.float64)
    return per_tensor.repeat_interleave(torch.tensor(list(sizes.values())), 1)


def log_grid(n: int, decades: float = 1.0, *, reference: bool = True) -> np.ndarray:
    """`n` factors evenly spaced in log10 over [-decades, decades].

    Args:
        reference: the grid must contain 1, the unscaled network; an even `n` skips it.
    """
    fits = n >= 1 and not (reference and n % 2 == 0)
    require(fits, "n", n, "an odd number of points, so that the grid contains 1")
    points = np.logspace(-decades, decades, n)
    if n % 2:
        points[n // 2] = 1.0
    return points
