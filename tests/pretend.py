"""A second device without a second device: code runs as on a GPU, and what torch refuses there is
refused.

Inside `with gpu():` a tensor on `cuda` is a wrapper around a CPU tensor that computes for it.
Autograd, torch.func, autocast and optimisers treat it as a tensor of its own device. Tensors that
may not meet, and generators that draw for another device than their own, raise what torch raises.
`gpu()` gives a `Pretended`, which counts how often the program would have waited for the device.
Numbers are those of the CPU.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
STAND_IN = torch.device(
    "meta:0"
)  # where C++ sees a wrapper: a build without CUDA has no streams of `cuda`
aten, functional = torch.ops.aten, torch.nn.functional
COPIES = {aten.copy_.default, aten._foreach_copy_.default}  # from any device to any other
NUMBERS = {
    aten.fill_.Tensor,
    aten.masked_fill.Tensor,
    aten.masked_fill_.Tensor,
}  # take one from the CPU
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
}
HALVED = {
    torch.matmul,
    Tensor.matmul,
    Tensor.__matmul__,
    functional.linear,
    torch.conv1d,
    torch.conv2d,
}  # autocast
RealGenerator = torch.Generator
_generators: weakref.WeakValueDictionary[int, "Generator"] = weakref.WeakValueDictionary()


class Generator(RealGenerator):
    """A generator that says it is on the GPU, if it was made there."""

    def __new__(cls, device: torch.device | str = "cpu") -> "Generator":
        self = super().__new__(cls)
        self.where = CPU if torch.device(device) == CPU else GPU
        _generators[self._cdata] = self  # C++ hands on another object for the same generator
        return self

    device = property(lambda self: self.where)


class OnGPU(Tensor):
    """A tensor on the GPU; `elem`, on the CPU, stands for it."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, elem: Tensor) -> "OnGPU":
        layout = {
            "strides": elem.stride(),
            "storage_offset": elem.storage_offset(),
            "dtype": elem.dtype,
        }
        self = Tensor._make_wrapper_subclass(cls, elem.shape, device=STAND_IN, **layout)
        self.elem = elem
        return self

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})

    def cuda(self) -> Tensor:
        return self

    def numpy(self, *, force: bool = False) -> np.ndarray:
        if force:
            return self.detach().cpu().numpy(force=True)
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def tolist(self) -> list:
        return self.cpu().tolist()

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        return torch.tensor(data, **{"dtype": self.dtype, "device": GPU} | options)

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.elem.__reduce_ex__(
            protocol
        )  # files are read onto the CPU, by code that does not know this class

    def __repr__(self) -> str:
        return f"on the GPU: {self.elem!r}"


class Pretended(TorchDispatchMode):
    """`waits`: how often a number, a tensor or a shape was read back from the GPU."""

    waits = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = _run(func, args, kwargs or {})
        if func in WAITS or func is aten._to_copy.default or func in INDEXING:
            masked = func in INDEXING and any(
                x is not None and x.dtype == torch.bool for x in args[1]
            )
            left = isinstance(result, Tensor) and not isinstance(result, OnGPU)
            self.waits += isinstance(args[0], OnGPU) and (func in WAITS or masked or left)
        return result


class _Names(TorchFunctionMode):
    """`cuda` reaches C++ as its stand-in; what C++ does not leave to dispatch is done here."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.device:
            return func(*args, **kwargs or {})
        args, kwargs = (
            tuple(map(_stand_in, args)),
            {name: _stand_in(x) for name, x in (kwargs or {}).items()},
        )
        if func is Tensor.cuda:
            return args[0].to(STAND_IN)
        if func in (
            Tensor.__getitem__,
            Tensor.__setitem__,
        ):  # C++ would copy a list to its own idea of a GPU
            key = args[1] if isinstance(args[1], tuple) else (args[1],)
            key = tuple(torch.tensor(x) if isinstance(x, list | np.ndarray) else x for x in key)
            return func(args[0], key, *args[2:])
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == STAND_IN:
            return func(*args, **kwargs | {"device": CPU}).to(STAND_IN)
        if func in HALVED and torch.is_autocast_enabled("cuda") and args[0].device != CPU:
            low = torch.get_autocast_dtype("cuda")
            args = tuple(
                x.to(low) if isinstance(x, Tensor) and x.dtype == torch.float32 else x for x in args
            )
        return func(*args, **kwargs)


def _stand_in(x: Any) -> Any:
    return STAND_IN if isinstance(x, str | torch.device) and str(x).startswith("cuda") else x


def _run(func: Any, args: tuple, kwargs: dict) -> Any:
    """An operation, on the CPU tensors that stand for those of the GPU, if a GPU would do it."""
    tensors = _tensors(args) + _tensors(list(kwargs.values()))
    wrapped = [x for x in tensors if isinstance(x, OnGPU)]
    where, generator = kwargs.get("device"), kwargs.get("generator")
    if where is None:
        where = STAND_IN if wrapped else CPU
        if func in COPIES:
            where = STAND_IN if isinstance(_tensors(args)[0], OnGPU) else CPU
        elif 0 < len(wrapped) < len(tensors):
            _require_together(func, args, kwargs, [x for x in tensors if not isinstance(x, OnGPU)])
    if generator is not None:
        known = _generators.get(generator._cdata)
        found, wanted = (
            x.type for x in (known.where if known else CPU, GPU if where == STAND_IN else where)
        )
        if found != wanted:
            raise RuntimeError(
                f"Expected a '{wanted}' device type for generator but found '{found}'"
            )
    if not wrapped and where != STAND_IN:
        return func(*args, **kwargs)
    if func is aten._efficientzerotensor.default:
        func = aten.zeros.default  # it has no memory, and would reach kernels
    plain = {name: CPU if name == "device" else _map(_elem, x) for name, x in kwargs.items()}
    result = func(*_map(_elem, args), **plain)
    changed = {id(x.elem): x for x in wrapped}  # what was changed in place stays itself
    if where != STAND_IN:
        return result
    return _map(lambda x: changed[id(x)] if id(x) in changed else OnGPU(x), result)


def _elem(x: Tensor) -> Tensor:
    return x.elem if isinstance(x, OnGPU) else x


def _map(of: Callable[[Tensor], Tensor], x: Any) -> Any:
    if isinstance(x, list | tuple):
        return type(x)([_map(of, part) for part in x])
    return of(x) if isinstance(x, Tensor) else x


def _tensors(x: Any) -> list[Tensor]:
    if isinstance(x, list | tuple):
        return [tensor for part in x for tensor in _tensors(part)]
    return [x] if isinstance(x, Tensor) else []


def _require_together(func: Any, args: tuple, kwargs: dict, left: list[Tensor]) -> None:
    """Raise as torch does, but for indices and numbers (0-d) that may stay on the CPU.

    Args:
        left: the tensors on the CPU, some others being on the GPU.
    """
    if func in INDEXING:
        what = "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
        allowed = all(
            isinstance(x, OnGPU) or (x is not args[0] and x.ndim == 0)
            for x in (args[0], *args[2:3])
        )
    else:
        what = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu"
        changed = [
            x
            for a, x in zip(func._schema.arguments, args, strict=False)
            if a.alias_info and a.is_write
        ]
        changed.append(kwargs.get("out"))
        one_by_one = torch.Tag.pointwise in func.tags or func in NUMBERS
        allowed = one_by_one and all(x.ndim == 0 and not any(x is y for y in changed) for x in left)
    if not allowed:
        raise RuntimeError(f"{what} ({func})")


@contextlib.contextmanager
def gpu() -> Iterator[Pretended]:
    """Code in here finds one GPU, which computes in bfloat16."""
    told: dict[str, Any] = {
        "cuda.is_available": lambda: True,
        "cuda.is_bf16_supported": lambda **_: True,
        "Generator": Generator,
        "cuda.device_count": lambda: 1,
        "cuda.current_device": lambda: 0,
        "cuda.get_device_name": lambda *_: "none",
        "cuda.default_generators": (Generator("cuda"),),
        "cuda.random._lazy_init": lambda: None,
        "cuda.random._lazy_call": lambda call, **_: call(),
        "__future__.get_swap_module_params_on_conversion": lambda: (
            True
        ),  # a parameter stays itself, in another class
    }
    with pytest.MonkeyPatch.context() as patch, _Names(), Pretended() as mode:
        for name, answer in told.items():
            patch.setattr(f"torch.{name}", answer)
        yield mode
