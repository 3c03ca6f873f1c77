"""How circulant a matrix over cyclic tokens is, calibrated against what random tokens would give.

A network that computes with a + b or a - b on a circle makes token matrices M[i, j] = h(i - j)
(circulant) or h(i + j) (Hankel); for products the circle is that of discrete logarithms. Source:
Mallinar et al. 2024 (arXiv:2407.20199), section 5; their circulant deviation is 1 - share.
"""

import math

import torch
from torch import Tensor

from fieldbook.nn.checks import numbers, require


def center(matrix: Tensor) -> Tensor:
    """Remove row and column means of (..., n, n), which carry no cyclic structure; float64."""
    matrix = _square(matrix, 2).double()
    rows = matrix.mean(-1, keepdim=True)
    columns = matrix.mean(-2, keepdim=True)
    return matrix - rows - columns + rows.mean(-2, keepdim=True)


def circulant_share(matrix: Tensor) -> Tensor:
    """Share of a square matrix's energy on its wrapped diagonals, ||P_circ M||^2 / ||M||^2.

    P_circ replaces each wrapped diagonal by its mean; equally, the energy of the 2-D DFT on
    u + v = 0 (mod n).

    Args:
        matrix: (..., n, n), tokens in cyclic order on both axes.
    Returns:
        (...,) in [0, 1], float64: 1 for an exact circulant, 1/n in expectation for iid entries of
        mean 0.
    """
    matrix = _square(matrix, 2).double()
    n = matrix.shape[-1]
    i = torch.arange(n, device=matrix.device)
    diagonals = matrix[..., i, (i[:, None] + i) % n]  # (..., shift, position)
    return diagonals.sum(-1).square().sum(-1) / n / _energy(matrix)


def expected_share(matrix: Tensor) -> Tensor:
    """Mean of `circulant_share` over all simultaneous permutations of rows and columns, in closed
    form.

    With D_k the sum along the k-th wrapped diagonal, the share is sum_k D_k^2 / (n ||M||^2). D_0 is
    the trace, whatever the order. For k > 0, E[D_k^2] sums products M_ab M_cd over pairs of entries
    of that diagonal: the same entry (S2), entries that meet in one token (P; when 2 k = n the
    transposed entry, S2r, instead) and entries on four distinct tokens (Q).

    Args:
        matrix: (..., n, n), n >= 4.
    """
    matrix = _square(matrix, 4).double()
    n = matrix.shape[-1]
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    off = matrix - torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1))
    rows = off.sum(-1)
    columns = off.sum(-2)
    s1 = off.sum((-1, -2))
    s2 = off.square().sum((-1, -2))
    s2r = (off * off.mT).sum((-1, -2))
    p = (rows * columns).sum(-1) - s2r
    q = s1**2 - s2 - s2r - (rows.square().sum(-1) - s2) - (columns.square().sum(-1) - s2) - 2 * p
    energy = s2 / (n - 1) + 2 * p / ((n - 1) * (n - 2)) + q / ((n - 1) * (n - 2))
    half = (s2 + s2r) / (n - 1) + q / ((n - 1) * (n - 3))
    total = (n - 1) * energy if n % 2 else (n - 2) * energy + half
    return (trace**2 + total) / n / _energy(matrix)


def circulant_score(matrix: Tensor) -> Tensor:
    """Calibrated circulant share of the centred matrix: 0 for tokens in random order, 1 for an
    exact circulant.

    s = (share - s0) / (1 - s0) with s0 = `expected_share`: subtracting the expectation under
    relabelling removes what a positive diagonal or a low rank alone gives (a random Gram matrix has
    share .6).

    Args:
        matrix: (..., n, n), tokens in cyclic order, n >= 4.
    Returns:
        (...,) at most 1, float64.
    Raises:
        ValueError: nothing but rounding is left after centring, or what is left is the same in
            every order, as of the identity.
    """
    matrix = _square(matrix, 4)
    centred = center(matrix)
    share = "share of the energy of matrix that {} leaves"
    left = centred.square().sum((-1, -2)) / _energy(matrix.double())
    least = 4 * torch.finfo(matrix.dtype).eps ** 2
    accepted = "a matrix that is more than a constant and effects of single tokens"
    _require_above(least, left, share.format("centring"), accepted)
    null = expected_share(centred)
    least = matrix.shape[-1] ** 2 * torch.finfo(torch.float64).eps
    accepted = "a matrix that is another one when its tokens change places"
    _require_above(least, 1 - null, share.format("relabelling"), accepted)
    return (circulant_share(centred) - null) / (1 - null)


def hankel_score(matrix: Tensor) -> Tensor:
    """`circulant_score` of wrapped anti-diagonals: 1 for M[i, j] = h(i + j)."""
    return circulant_score(numbers(matrix, "matrix").flip(-1))


def fourier_energies(embedding: Tensor) -> Tensor:
    """Energy of an embedding at each frequency of the token circle.

    Args:
        embedding: (n, d), tokens in cyclic order.
    Returns:
        (n // 2,) energies of frequencies 1 .. n // 2, both signs together; with the constant's they
        add up to n times the squared norm (Parseval).
    """
    embedding = numbers(embedding, "embedding", ndim=2, least=2).double()
    energy = torch.fft.rfft(embedding, dim=0).abs().square().sum(1)[1:] * 2
    if len(embedding) % 2 == 0:
        energy[-1] /= 2  # the Nyquist frequency is its own mirror image
    return energy


def fourier_concentration(embedding: Tensor, top: int = 5) -> tuple[float, float]:
    """Gini coefficient and top share of an embedding's Fourier energies.

    The Gini coefficient is calibrated as (gini - g0) / (1 - g0), g0 that of a Gaussian embedding,
    whose energies are Gamma(d) variables: g0 = (K - 1)/K Gamma(d + 1/2) / (sqrt(pi) Gamma(d + 1)).
    The Nyquist frequency of an even circle has another distribution and is left out of the K
    frequencies.

    Args:
        embedding: (n, d), tokens in cyclic order, n >= 5: of one frequency there is nothing to
            tell.
    Returns:
        (calibrated Gini, share of the `top` largest energies).
    Raises:
        ValueError: n < 5, `top` < 1, or all tokens are the same.
    """
    embedding = numbers(embedding, "embedding", ndim=2, least=5)
    require(top >= 1, "top", top, "at least 1 frequency")
    n, d = embedding.shape
    whole = n * embedding.double().square().sum()
    share = fourier_energies(embedding).sum() / whole.where(whole > 0, 1.0)
    least = 4 * torch.finfo(embedding.dtype).eps ** 2
    accepted = "tokens that differ"
    _require_above(least, share, "share of energy of embedding that is not constant", accepted)
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
    Raises:
        ValueError: fewer than two examples, other shapes, or logits that are all the same.
    Source: the equivariance of Nanda et al. 2023 (arXiv:2301.05217), where logits are sums of cos(w
    (a + b - c)).
    """
    logits = numbers(logits, "logits", ndim=2, least=2)
    examples, n = logits.shape
    whole = not (target.is_floating_point() or target.is_complex())
    require(whole, "dtype of target", target.dtype, "integers, positions on the circle")
    shape = tuple(target.shape)
    require(shape == (examples,), "shape of target", shape, f"({examples},), one for each example")
    centred = logits.double() - logits.double().mean(1, keepdim=True)
    varied = centred.square().sum()
    size = logits.double().square().sum()
    least = 4 * torch.finfo(logits.dtype).eps ** 2 * size
    accepted = "logits that differ between outputs"
    _require_above(least, varied, "energy of centred logits", accepted)
    shift = torch.arange(n, device=logits.device) + target.to(logits.device)[:, None]
    template = centred.gather(1, shift % n).mean(0)
    return float(examples * template.square().sum() / varied)


def _square(matrix: Tensor, least: int) -> Tensor:
    """Finite numbers (..., n, n), n >= least."""
    matrix = numbers(matrix, "matrix")
    n = matrix.shape[-1]
    shape = tuple(matrix.shape)
    square = matrix.ndim >= 2 and matrix.shape[-2] == n and n >= least
    require(square, "shape of matrix", shape, f"(..., n, n) with n >= {least}")
    return matrix


def _energy(matrix: Tensor) -> Tensor:
    """Sum of squares (...,) of what must not be zero."""
    energy = matrix.square().sum((-1, -2))
    _require_above(0.0, energy, "energy of matrix", "a matrix that is not zero")
    return energy


def _require_above(least: Tensor | float, found: Tensor, name: str, accepted: str) -> None:
    require((found > least).all(), name, float(found.min()), accepted)
