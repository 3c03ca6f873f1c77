"""Ways around faults of other packages, one function each, with the condition under which it can
go."""

import contextlib

import torch

_declared: list[torch.library.Library] = []  # an operator lives as long as its Library object


def importable_torchvision() -> None:
    """Make `import torchvision` work beside a CPU-only torch; call it before importing what imports
    torchvision.

    The wheels on PyPI are built for CUDA: beside a CPU-only torch their compiled operators do not
    load, and the import fails at `operator torchvision::nms does not exist`. Declaring the
    operators is enough, as none is ever called.
    """
    if _declared:
        return
    with contextlib.suppress(ImportError, RuntimeError):
        import torchvision  # noqa: F401

        return
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
