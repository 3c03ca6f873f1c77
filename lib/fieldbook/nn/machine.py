"""What this machine offers a run: its device, the precision that it computes fast, memory that is
used again."""

import contextlib
import ctypes

import torch


def device() -> torch.device:
    """The GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` becomes `bf16` where the device multiplies bfloat16 natively, else `fp32`; other names
    stay."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return (
        "bf16"
        if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        else "fp32"
    )


def keep_freed_memory() -> None:
    """Let glibc reuse freed blocks up to 32 MB: every step asks for the same ones, and mapping them
    anew takes time."""
    with contextlib.suppress(
        OSError, AttributeError
    ):  # another C library manages memory its own way
        c_library = ctypes.CDLL(None)
        c_library.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD
        c_library.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
