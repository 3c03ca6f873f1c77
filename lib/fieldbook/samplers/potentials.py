"""Energies whose Boltzmann entropy is known: what `wang_landau` must find, with a flat prior.

Each energy maps z (.., d) to E (..) and its gradient (.., d); each entropy is that of x = log10 E,
without constant.
"""

import math

import torch
from torch import Tensor

from fieldbook.nn.checks import numbers, require

BARRIER = 4.0  # of the two wells: the ridge at a = 0
TILT = 0.15  # what raises the well at a = -1


def harmonic(z: Tensor) -> tuple[Tensor, Tensor]:
    """E = |z|^2 / 2."""
    return z.square().sum(-1) / 2, z


def harmonic_entropy(x: Tensor, d: int) -> Tensor:
    """S = d/2 ln E: the volume of the ball E < E' grows as E'^(d/2)."""
    require(d >= 1, "d", d, "at least 1 dimension")
    return d / 2 * math.log(10) * numbers(x, "x")


def two_wells(z: Tensor) -> tuple[Tensor, Tensor]:
    """E = V(a) + |b|^2 / 2, V = 4 (a^2 - 1)^2 + 0.15 (a - 1)^2, a the first coordinate and b the
    others.

    The well at a = 1 ends at 0, the one near a = -1 at about 0.6, and a ridge of about 4.1 lies
    between them.
    """
    a, b = z[..., 0], z[..., 1:]
    slope = 4 * BARRIER * a * (a**2 - 1) + 2 * TILT * (a - 1)
    return _wells(a) + b.square().sum(-1) / 2, torch.cat([slope[..., None], b], -1)


def two_wells_entropy(x: Tensor, d: int, points: int = 200_001) -> Tensor:
    """S (bins,) by quadrature: d - 1 harmonic coordinates leave E int da (E - V)_+^((d - 3)/2).

    Where V < E, |a^2 - 1| < sqrt(E) / 2: the points lie there, on either side of a = 0, so that the
    lowest energies are resolved like all others.

    Raises:
        ValueError: d < 3, where the integrand is not bounded, or x is not finite.
    """
    require(d >= 3, "d", d, "at least 3 dimensions")
    energy = 10.0 ** numbers(x, "x", ndim=1).double()[:, None]
    half = (energy / BARRIER).sqrt()
    inner = (1 - half).clamp(min=0).sqrt()
    outer = (1 + half).sqrt()
    a = inner + (outer - inner) * torch.linspace(0, 1, points, dtype=torch.float64)
    volume = 0.0
    for side in (a, -a):
        room = (energy - _wells(side)).clamp(min=0)
        weight = torch.where(room > 0, room ** ((d - 3) / 2), 0.0)
        volume = volume + torch.trapezoid(weight, a)
    return (energy[:, 0] * volume).log()


def _wells(a: Tensor) -> Tensor:
    return BARRIER * (a**2 - 1) ** 2 + TILT * (a - 1) ** 2
