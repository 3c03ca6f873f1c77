"""Distances between two samples without features: energy, sliced Wasserstein, nearest neighbour."""

import torch
from torch import Tensor

from fieldbook.nn.checks import numbers, require


def near_origin(*sets: Tensor) -> list[Tensor]:
    """Sets (..., n, D) of points, moved together so that the last is not far from the origin.

    Distances from products of coordinates, and sums of large ones that cancel, lose digits far
    away. The move is a multiple of four times the largest spread: sets that lie about the origin
    stay as they are, to the bit. Nothing is read back from the device, and no gradient is lost.
    """
    with torch.no_grad():
        least, most = sets[-1].aminmax(dim=-2, keepdim=True)
        unit = 4 * (most - least).amax(-1, keepdim=True)
        middle = least + (most - least) / 2
        move = torch.where(unit > 0, (middle / unit).round() * unit, middle)
    return [points - move for points in sets]


def energy_distance(x: Tensor, y: Tensor, *, check: bool = True) -> Tensor:
    """Unbiased energy distance (...,) in the units of x, 2 E|x - y| - E|x - x'| - E|y - y'|.

    For samples of one distribution it is 0 in expectation, hence sometimes negative.

    Args:
        x: (..., N, D); `y`: (..., M, D); N, M >= 2.
        check: refuse numbers that are not finite, which reads them back from the device, and
            compute in double precision; False within training steps.
    Source: Székely & Rizzo 2013, equation 5 (doi:10.1016/j.jspi.2013.03.018), without pairs of a
    sample with itself.
    """
    if check:
        x = numbers(x, "x", least=2, axis=-2)
        y = numbers(y, "y", least=2, axis=-2)
    n, m = x.shape[-2], y.shape[-2]
    require(min(n, m) >= 2, "samples", (n, m), "at least two of each")
    _require_dimension(x, y)
    dtype = torch.promote_types(x.dtype, y.dtype)
    x, y = near_origin(x.double(), y.double()) if check else near_origin(x, y)
    within_x = torch.cdist(x, x).sum((-2, -1)) / (n * (n - 1))
    within_y = torch.cdist(y, y).sum((-2, -1)) / (m * (m - 1))
    return (2 * torch.cdist(x, y).mean((-2, -1)) - (within_x + within_y)).to(dtype)


def sliced_w2(x: Tensor, y: Tensor, generator: torch.Generator, directions: int = 256) -> float:
    """Sliced 2-Wasserstein distance: root mean square over directions of the distance along each.

    Args:
        x, y: (N, D), as many samples of each; the result is in their units.
        generator: of the random directions.
    Source: Bonneel et al. 2015 (doi:10.1007/s10851-014-0506-3), equation 11.
    """
    x = numbers(x, "x", ndim=2)
    y = numbers(y, "y", ndim=2)
    require(x.shape == y.shape, "y", tuple(y.shape), f"the shape of x, {tuple(x.shape)}")
    require(directions >= 1, "directions", directions, "at least 1")
    size, on = (x.shape[1], directions), generator.device
    theta = torch.randn(size, generator=generator, dtype=torch.float64, device=on).cpu()
    theta /= theta.norm(dim=0)
    one, two = ((z.double().cpu() @ theta).sort(0).values for z in (x, y))
    return float((one - two).square().mean().sqrt())


def nearest(x: Tensor, y: Tensor) -> Tensor:
    """Distance (N,) from each x (N, ...) to its nearest y (M, ...): 0 for a copy."""
    x, y = (z.reshape(len(z), -1) for z in (numbers(x, "x"), numbers(y, "y")))
    _require_dimension(x, y)
    dtype = torch.promote_types(x.dtype, y.dtype)
    x, y = near_origin(x.double(), y.double())
    closest = [torch.cdist(part, y).argmin(1) for part in x.split(1024)]
    return (x - y[torch.cat(closest)]).norm(dim=1).to(dtype)


def _require_dimension(x: Tensor, y: Tensor) -> None:
    accepted = f"{x.shape[-1]} features, as many as x"
    require(x.shape[-1] == y.shape[-1], "shape of y", tuple(y.shape), accepted)
