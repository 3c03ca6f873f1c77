"""Distributions in the plane with mean 0 and deviation near 1, drawn on the generator's device."""

import math

import torch
from torch import Tensor


def checkerboard(n: int, generator: torch.Generator) -> Tensor:
    """Uniform on the eight dark squares of a 4 x 4 board of side 2 sqrt 3; (n, 2)."""
    u = 4 * torch.rand(n, 2, generator=generator, device=generator.device)
    row = u[:, 1].floor()
    column = 2 * (u[:, 0] / 2).floor() + (row % 2)  # two columns of each row
    return (torch.stack((column + u[:, 0] % 2 / 2, u[:, 1]), 1) - 2) / math.sqrt(4 / 3)


def ring(n: int, generator: torch.Generator) -> Tensor:
    """Eight Gaussians of standard deviation 0.1 on a circle of radius sqrt 2; (n, 2)."""
    angle = torch.randint(8, (n,), generator=generator, device=generator.device) * (math.pi / 4)
    centre = math.sqrt(2) * torch.stack((angle.cos(), angle.sin()), 1)
    return centre + 0.1 * torch.randn(n, 2, generator=generator, device=generator.device)


def swiss_roll(n: int, generator: torch.Generator) -> Tensor:
    """A spiral of one and a half turns with a little noise; (n, 2)."""
    t = 1.5 * math.pi * (1 + 2 * torch.rand(n, generator=generator, device=generator.device))
    noise = torch.randn(n, 2, generator=generator, device=generator.device)
    return (torch.stack((t * t.cos() - 2, t * t.sin()), 1) + 0.3 * noise) / 6.8


TOYS = {"checkerboard": checkerboard, "ring": ring, "swiss_roll": swiss_roll}
