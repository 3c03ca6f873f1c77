"""What this machine offers a run: its device, the precision that it computes fast, its memory."""

import contextlib
import ctypes
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}


def device() -> torch.device:
    """The GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` is `bf16` where the device multiplies bfloat16 itself, else `fp32`; others stay."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if fast else "fp32"


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """`torch.autocast` of this precision, which does nothing in `fp32`."""
    return torch.autocast(device.type, LOW.get(precision), enabled=precision in LOW)


def keep_freed_memory() -> None:
    """Let glibc reuse freed blocks up to 32 MB: mapping them anew at every step takes time."""
    with contextlib.suppress(OSError, AttributeError):  # another C library has its own way
        c_library = ctypes.CDLL(None)
        c_library.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD
        c_library.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
