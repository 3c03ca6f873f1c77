"""How circulant a matrix over cyclic tokens is, calibrated against what random tokens would give.

A network that computes with a + b or a - b on a circle makes token matrices M[i, j] = h(i - j) (circulant) or
h(i + j) (Hankel); for products the circle is that of discrete logarithms. Source: Mallinar et al. 2024
(arXiv:2407.20199), section 5; their circulant deviation is 1 - share.
"""

import math

import torch
from torch import Tensor


def _require_square(matrix: Tensor, least: int) -> int:
    n = matrix.shape[-1]
    if matrix.dim() < 2 or matrix.shape[-2] != n or n < least:
        raise ValueError(f"matrix has shape {tuple(matrix.shape)}: expected (..., n, n) with n >= {least}")
    return n


def center(matrix: Tensor) -> Tensor:
    """Remove row and column means of (..., n, n): constants and single-token effects carry no cyclic structure."""
    _require_square(matrix, 2)
    rows, columns = matrix.mean(-1, keepdim=True), matrix.mean(-2, keepdim=True)
    return matrix - rows - columns + rows.mean(-2, keepdim=True)


def circulant_share(matrix: Tensor) -> Tensor:
    """Share of a square matrix's energy on its wrapped diagonals, ||P_circ M||^2 / ||M||^2.

    P_circ replaces each wrapped diagonal by its mean; equally, the energy of the 2-D DFT on u + v = 0 (mod n).

    Args:
        matrix: (..., n, n), tokens in cyclic order on both axes.
    Returns:
        (...,) in [0, 1]: 1 for an exact circulant, 1/n in expectation for iid entries of mean 0.
    Raises:
        ValueError: the last two axes differ, or n < 2.
    """
    n = _require_square(matrix, 2)
    i = torch.arange(n, device=matrix.device)
    diagonals = matrix[..., i, (i[:, None] + i) % n]  # (..., shift, position)
    return diagonals.sum(-1).square().sum(-1) / n / matrix.square().sum((-1, -2))


def expected_share(matrix: Tensor) -> Tensor:
    """Mean of `circulant_share` over all simultaneous permutations of rows and columns, in closed form.

    With D_k the sum along the k-th wrapped diagonal, the share is sum_k D_k^2 / (n ||M||^2). D_0 is the trace, whatever
    the order. For k > 0, E[D_k^2] sums products M_ab M_cd over pairs of entries of that diagonal: the same entry
    (S2), entries that meet in one token (P; when 2 k = n the transposed entry, S2r, instead) and entries on four
    distinct tokens (Q).

    Args:
        matrix: (..., n, n), n >= 4.
    """
    n = _require_square(matrix, 4)
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    off = matrix - torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1))
    rows, columns = off.sum(-1), off.sum(-2)
    s1, s2, s2r = off.sum((-1, -2)), off.square().sum((-1, -2)), (off * off.mT).sum((-1, -2))
    p = (rows * columns).sum(-1) - s2r
    q = s1**2 - s2 - s2r - (rows.square().sum(-1) - s2) - (columns.square().sum(-1) - s2) - 2 * p
    energy = s2 / (n - 1) + 2 * p / ((n - 1) * (n - 2)) + q / ((n - 1) * (n - 2))
    half = (s2 + s2r) / (n - 1) + q / ((n - 1) * (n - 3))
    total = (n - 1) * energy if n % 2 else (n - 2) * energy + half
    return (trace**2 + total) / n / matrix.square().sum((-1, -2))


def circulant_score(matrix: Tensor) -> Tensor:
    """Calibrated circulant share of the centred matrix: 0 for tokens in random order, 1 for an exact circulant.

    s = (share - s0) / (1 - s0) with s0 = `expected_share`: subtracting the expectation under relabelling removes what a
    positive diagonal or a low rank alone gives (a random Gram matrix has share .6). Computed in double precision.

    Args:
        matrix: (..., n, n), tokens in cyclic order, n >= 4.
    Returns:
        (...,) at most 1; nan for a matrix without structure left after centring.
    """
    centred = center(matrix.double())
    null = expected_share(centred)
    return (circulant_share(centred) - null) / (1 - null)


def hankel_score(matrix: Tensor) -> Tensor:
    """`circulant_score` of wrapped anti-diagonals: 1 for M[i, j] = h(i + j)."""
    return circulant_score(matrix.flip(-1))


def fourier_energies(embedding: Tensor) -> Tensor:
    """Energy of an embedding at each frequency of the token circle.

    Args:
        embedding: (n, d), tokens in cyclic order.
    Returns:
        (n // 2,) energies of frequencies 1 .. n // 2, both signs together; with the constant's they add up to n times
        the squared norm (Parseval).
    """
    n = len(embedding)
    energy = torch.fft.rfft(embedding.double(), dim=0).abs().square().sum(1)[1:] * 2
    if n % 2 == 0:
        energy[-1] /= 2  # the Nyquist frequency is its own mirror image
    return energy


def fourier_concentration(embedding: Tensor, top: int = 5) -> tuple[float, float]:
    """Gini coefficient and top share of an embedding's Fourier energies.

    The Gini coefficient is calibrated as (gini - g0) / (1 - g0), g0 that of a Gaussian embedding, whose energies are
    Gamma(d) variables: g0 = (K - 1)/K Gamma(d + 1/2) / (sqrt(pi) Gamma(d + 1)). The Nyquist frequency of an even circle
    has another distribution and is left out of the K frequencies.

    Args:
        embedding: (n, d), tokens in cyclic order.
    Returns:
        (calibrated Gini, share of the `top` largest energies).
    """
    n, d = embedding.shape
    energies = fourier_energies(embedding)[: (n - 1) // 2].sort().values
    k = len(energies)
    ranks = torch.arange(1, k + 1, device=energies.device)
    gini = ((2 * ranks - k - 1) * energies).sum() / (k * energies.sum())
    null = (k - 1) / k * math.exp(math.lgamma(d + 0.5) - math.lgamma(d + 1)) / math.sqrt(math.pi)
    return float((gini - null) / (1 - null)), float(energies[-top:].sum() / energies.sum())


def shift_share(logits: Tensor, target: Tensor) -> float:
    """Share of the centred logits' variance explained by one function of c - target.

    Args:
        logits: (examples, n), outputs c in cyclic order.
        target: (examples,) position of the right answer on the circle.
    Returns:
        In [0, 1]: 1 when every example's logits are one template, shifted to its answer.
    Source: the equivariance of Nanda et al. 2023 (arXiv:2301.05217), where logits are sums of cos(w (a + b - c)).
    """
    n = logits.shape[1]
    centred = logits.double() - logits.double().mean(1, keepdim=True)
    shift = torch.arange(n, device=logits.device) + target[:, None]
    template = centred.gather(1, shift % n).mean(0)
    return float(len(logits) * template.square().sum() / centred.square().sum())
