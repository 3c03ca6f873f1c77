"""What the library accepts: refusals that name the thing, one rule for a measure's numbers."""

import math
import mmap
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1)]


def require(condition: object, name: str, value: object, accepted: str) -> None:
    """Raise ValueError with the name, the value and what would be accepted, unless it holds."""
    if not condition:
        raise ValueError(f"{name} = {value!r} is not accepted; expected {accepted}")


def at_least_single(x: Tensor) -> Tensor:
    """The same numbers in float32, unless they have more digits or are no floats.

    In half precision a sum of many terms stops growing. Nothing is read back from the device.
    """
    return x.float() if x.is_floating_point() and x.dtype.itemsize < 4 else x


def numbers(
    x: object,
    name: str,
    *,
    ndim: int | None = None,
    shape: Sequence[int | None] | None = None,
    least: int = 1,
    axis: int = 0,
    finite: bool = True,
) -> Tensor:
    """What a measure computes with: finite real numbers, with their graph, on their device.

    Half precision becomes float32, integers float64.

    Args:
        x: a tensor, or an array or nested list of numbers.
        ndim: number of axes; any unless given.
        shape: length of each axis, None where any is accepted; in place of `ndim`.
        least: how many samples there must be along `axis`.
        finite: False where infinity has a meaning; the caller looks at NaN.
    Raises:
        ValueError: no real numbers, another shape, too few samples, a number that is not finite.
    """
    x = _tensor(x, name)
    found = tuple(x.shape)
    if shape is not None:
        ndim = len(shape)
    require(ndim in (None, x.ndim), f"shape of {name}", found, f"{ndim} axes")
    enough = x.ndim > 0 and x.shape[axis] >= least and x.numel()
    accepted = f"at least {least} samples along axis {axis}, and no empty axis"
    require(enough, f"shape of {name}", found, accepted)
    if shape is not None:
        fits = all(want in (None, n) for n, want in zip(found, shape, strict=True))
        accepted = f"({', '.join('any' if n is None else str(n) for n in shape)})"
        require(fits, f"shape of {name}", found, accepted)
    x = at_least_single(x) if x.is_floating_point() else x.double()
    wrong = ~x.detach().isfinite()
    if finite and wrong.any():
        place = tuple(wrong.nonzero()[0].tolist())
        accepted = f"finite numbers ({int(wrong.sum())} NaN or infinite)"
        require(False, f"{name}[{', '.join(map(str, place))}]", float(x[place]), accepted)
    return x


def positive(x: object, name: str, **options: object) -> Tensor:
    """`numbers` that are all above zero."""
    x = numbers(x, name, **options)
    require((x > 0).all(), name, f"from {float(x.min()):.6g}", "positive numbers")
    return x


def _tensor(x: object, name: str) -> Tensor:
    """Real numbers as a tensor, whatever holds them."""
    if not isinstance(x, Tensor):
        try:
            x = np.asarray(x)
        except (ValueError, TypeError, RuntimeError) as error:
            problem = f"{name} is no array ({error}); expected rows of equal length"
            raise ValueError(problem) from None
        require(x.dtype.kind in "iuf", f"dtype of {name}", str(x.dtype), "real numbers")
        native = x.astype(np.float64 if x.itemsize > 8 else x.dtype.newbyteorder("="), copy=False)
        usable = native.flags.writeable and native.flags.c_contiguous
        return torch.from_numpy(native if usable else native.copy())
    real = not (x.is_complex() or x.is_quantized or x.dtype == torch.bool)
    require(real, f"dtype of {name}", x.dtype, "real numbers")
    return x.to_dense() if x.layout != torch.strided else x


def whole(array: np.ndarray) -> np.ndarray:
    """The array itself, unless the file that it is mapped from has been cut.

    To touch what is gone would end the process.

    Raises:
        OSError: it has; names the file.
    """
    if isinstance(array, np.memmap) and array._mmap:  # what was pickled is in memory
        unit = mmap.ALLOCATIONGRANULARITY  # a map starts at the multiple below the array's offset
        end = array.offset // unit * unit + len(array._mmap)
        if array._mmap.size() < end:
            size = array._mmap.size()
            problem = f"ends at byte {size} instead of {end}: it has been cut; make it again"
            raise OSError(f"{array.filename} {problem}")
    return array


def is_prime(n: int) -> bool:
    """Trial division."""
    return n > 1 and all(n % k for k in range(2, math.isqrt(n) + 1))


def require_prime(p: int, name: str = "p") -> None:
    """Raise ValueError with the nearest primes unless `p` is a prime."""
    if not is_prime(p):
        below = next((k for k in range(p - 1, 1, -1) if is_prime(k)), None)
        above = next(k for k in range(max(p, 1) + 1, 2 * max(p, 1) + 2) if is_prime(k))
        nearest = f"{below} or {above}" if below else above
        raise ValueError(
            f"{name} = {p} is not a prime (nearest: {nearest}); division needs a field"
        )
