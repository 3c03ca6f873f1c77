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
    """Powers (of alpha, of beta) by which the combined rescaling multiplies each parameter, by
    name.

    Raises:
        ValueError: the network lacks what is rescaled: without it a rescaling would be the
            identity, and exact.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in _EXPONENTS:
        there = any(re.fullmatch(pattern, name) for name in names)
        accepted = f"parameters named like those of fieldbook.grokking.grokker.Grokker, {pattern} among them"
        require(there, "model", type(model).__name__, accepted)

    def powers(name: str) -> tuple[int, int]:
        return next(
            (powers for pattern, powers in _EXPONENTS.items() if re.fullmatch(pattern, name)),
            (0, 0),
        )

    return {name: powers(name) for name in names}


def orbits(model: Grokker) -> list[Tensor]:
    """Indices into the flat parameter vector, one tensor per group that every exact rescaling
    scales together.

    These are the weight and bias of each module, but for the biases of attention and feed-forward
    outputs: they do not change when their weights are traded against what feeds them. (Trading a
    norm's gain would also split the linear maps that read it; kept whole, the key's bias, to which
    softmax is blind, shares the scale of the key's weight.)
    """
    return functional.orbits(model, r"blocks\.\d+\.(attn\.out|ffn\.down)\.bias")


def _scale_factors(model: Grokker, alpha: float, beta: float) -> dict[str, float]:
    """Factor of each parameter, by name.

    Raises:
        ValueError: alpha or beta is not a positive number.
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name} = {value}: expected a positive number")
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
    if eps_mode not in ("coscaled", "fixed"):
        raise ValueError(f"eps_mode = {eps_mode!r}: expected coscaled or fixed")
    factors, scaled = _scale_factors(model, alpha, beta), copy.deepcopy(model)
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
    """A `logit_gap` that passes the gate.

    Raises:
        ValueError: it does not; says what usually breaks the symmetry.
    """
    if not gap <= gate:
        raise ValueError(
            f"the rescaled network's logits differ by {gap:.2g}, more than {gate:.0e}: beta needs a ReLU, "
            "alpha needs eps_mode = 'coscaled'"
        )
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
    Raises:
        ValueError: n < 1, or even with a reference asked for.
    """
    if n < 1 or (reference and n % 2 == 0):
        raise ValueError(f"n = {n}: expected an odd number of points, so that the grid contains 1")
    points = np.logspace(-decades, decades, n)
    if n % 2:
        points[n // 2] = 1.0
    return points
