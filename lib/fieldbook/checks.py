"""What the library accepts: refusals that name the thing, and one rule for the numbers that measures take."""

import torch
from torch import Tensor


def require(condition: object, name: str, value: object, accepted: str) -> None:
    """Raise ValueError with the name, the value and what would be accepted, unless the condition holds."""
    if not condition:
        raise ValueError(f"{name} = {value!r} is not accepted; expected {accepted}")


def numbers(x: object, name: str, *, ndim: int | None = None, least: int = 1, axis: int = 0) -> Tensor:
    """What a measure computes with: finite real numbers in single precision or wider, with their graph and device.

    Half precision becomes float32, since a sum of many terms stops growing in it, and integers become float64.

    Args:
        x: a tensor, or an array or nested list of numbers.
        ndim: number of axes; any unless given.
        least: how many samples there must be along `axis`.
    Raises:
        ValueError: complex numbers or truth values, another number of axes, too few samples, or a number that is not
            finite; names it and its place.
    """
    x = torch.as_tensor(x)
    require(not (x.is_complex() or x.dtype == torch.bool), f"dtype of {name}", x.dtype, "real numbers")
    require(x.ndim == ndim or ndim is None, f"shape of {name}", tuple(x.shape), f"{ndim} axes")
    enough = x.ndim > 0 and x.shape[axis] >= least and x.numel()
    require(enough, f"shape of {name}", tuple(x.shape), f"at least {least} along axis {axis}, and no empty one")
    x = x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x.double()
    finite = x.detach().isfinite()
    if not finite.all():
        place = tuple((~finite).nonzero()[0].tolist())
        require(False, f"{name}[{', '.join(map(str, place))}]", float(x[place]), "finite numbers")
    return x
