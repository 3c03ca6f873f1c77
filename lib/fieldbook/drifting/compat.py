"""A way around a fault of the wheels of torchvision, with the condition under which it can go."""

import contextlib
from functools import cache

import torch


@cache  # keeps the Library object, which its operators need
def importable_torchvision() -> torch.library.Library | None:
    """Make `import torchvision` work beside a CPU-only torch; call it before what imports that.

    The wheels on PyPI are built for CUDA: elsewhere their compiled operators do not load, and the
    import fails at `operator torchvision::nms does not exist`. As none is ever called, declaring
    them is enough.
    """
    with contextlib.suppress(ImportError, RuntimeError):
        import torchvision  # noqa: F401

        return None
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
