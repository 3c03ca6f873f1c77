"""Modular arithmetic: every pair (a, b) of Z_p with a op b, and what makes some of the pairs easy.

Source: Power et al. 2022 (arXiv:2201.02177), appendix A.1.1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fieldbook.nn.checks import is_prime, require_prime

OPERATIONS = ("add", "sub", "mul", "div")


@dataclass(frozen=True)
class Task:
    """One operation over Z_p with its train/test split.

    Attributes:
        pairs: (n, 2) integers (a, b), in lexicographic order.
        target: (n,) a op b mod p.
        train: (n,) bool, True where the pair is in the train split.
    """

    operation: str
    p: int
    pairs: Tensor
    target: Tensor
    train: Tensor

    @property
    def strict(self) -> Tensor:
        """(n,) bool: test pairs that neither a train mirror (b, a) nor the absorbing target 0 gives
        away."""
        in_train = self.train.new_zeros(self.p, self.p)
        in_train[self.pairs[:, 0], self.pairs[:, 1]] = self.train
        mirror = in_train[self.pairs[:, 1], self.pairs[:, 0]]
        return ~self.train & ~mirror & (self.target != 0)


def task(
    operation: str, p: int, train_fraction: float, seed: int, *, exclude_zero: bool = False
) -> Task:
    """All pairs of an operation modulo a prime, split into train and test under a seed.

    Args:
        operation: add, sub, mul or div, which leaves out b = 0.
        exclude_zero: leave out a = 0 and b = 0 for every operation.
    Raises:
        ValueError: unknown operation, p not a prime, a fraction that leaves a side empty.
    """
    require_prime(p)
    if operation not in OPERATIONS:
        raise ValueError(f"operation = {operation!r}: expected one of {', '.join(OPERATIONS)}")
    first = int(exclude_zero)
    divisor = 1 if operation == "div" else first
    a, b = torch.cartesian_prod(torch.arange(first, p), torch.arange(divisor, p)).T
    inverse = torch.tensor([0] + [pow(k, -1, p) for k in range(1, p)])
    target = {"add": a + b, "sub": a - b, "mul": a * b, "div": a * inverse[b]}[operation] % p
    n_train = round(train_fraction * len(a))
    if not 0 < train_fraction < 1 or not 0 < n_train < len(a):
        raise ValueError(
            f"train_fraction = {train_fraction} must lie in (0, 1) and leave pairs on both sides"
        )
    train = torch.zeros(len(a), dtype=torch.bool)
    train[torch.randperm(len(a), generator=torch.Generator().manual_seed(seed))[:n_train]] = True
    return Task(operation, p, torch.stack([a, b], 1), target, train)


def primitive_root(p: int) -> int:
    """Smallest generator of the multiplicative group of Z_p, p prime."""
    require_prime(p)
    factors = [q for q in range(2, p) if (p - 1) % q == 0 and is_prime(q)]
    return next(g for g in range(1, p) if all(pow(g, (p - 1) // q, p) != 1 for q in factors))


def token_order(operation: str, p: int, generator: int | None = None) -> Tensor:
    """The order of the tokens in which the operation is a shift.

    Returns:
        0, 1, .., p-1 for add and sub; for mul and div the powers g^0, .., g^(p-2), without zero, of
        the smallest primitive root unless given.
    Source: Mallinar et al. 2024 (arXiv:2407.20199), section 5.
    """
    if operation in ("add", "sub"):
        return torch.arange(p)
    g = generator or primitive_root(p)
    powers = torch.tensor([pow(g, k, p) for k in range(p - 1)])
    if len(powers.unique()) != p - 1:
        raise ValueError(f"generator = {g} does not generate the multiplicative group modulo {p}")
    return powers


def residue_class(values: Tensor, p: int) -> Tensor:
    """Legendre symbol modulo an odd prime: 1 for a non-zero square, -1 for a non-square, 0 for
    zero."""
    symbol = torch.full((p,), -1)
    symbol[torch.arange(1, p) ** 2 % p] = 1
    symbol[0] = 0
    return symbol.to(values.device)[values]
