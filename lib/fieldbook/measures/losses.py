"""Losses by name: squared, absolute and Huber errors, their versions weighted by the label's error, cross entropy."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from fieldbook.checks import require

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def loss(name: str) -> Loss:
    """The function (prediction, target, error = None) -> 0-d mean loss.

    The heteroscedastic ones divide each residual by its label's standard error before taking its absolute value or
    its square, which is optimal for Laplace or Gaussian label errors of known size (Aitken 1935). Dividing by anything
    else, such as the error of the flux, weights the stars by a quantity without relation to what is being fitted.

    Args:
        name: `mse`, `l1`, `huber` (quadratic up to 1), `heteroscedastic_l1`, `heteroscedastic_mse`, `cross_entropy`.
    Returns:
        A loss of prediction (batch,), target (batch,) in the same unit, and error (batch,) > 0 in that unit too, which
        only the heteroscedastic ones take; for `cross_entropy` of logits (batch, class) and class indices (batch,).
    Raises:
        ValueError: the name is unknown; or, from the loss, shapes differ, or an error is missing or not wanted.
    """
    require(name in LOSSES, "loss", name, f"one of {', '.join(LOSSES)}")
    function, weighted = LOSSES[name], name.startswith("heteroscedastic")

    def mean_loss(prediction: Tensor, target: Tensor, error: Tensor | None = None) -> Tensor:
        expected = prediction.shape[:1] if name == "cross_entropy" else prediction.shape
        require(target.shape == expected, "target", tuple(target.shape), f"{tuple(expected)}, as the prediction")
        if not weighted:
            require(error is None, "error", "given", f"no error, which {name} would ignore")
            return function(prediction.float(), target)
        shape = None if error is None else tuple(error.shape)
        require(shape == target.shape, "error", shape, f"{tuple(target.shape)}, the standard error of each label")
        return function(prediction.float() / error, target / error)

    return mean_loss


LOSSES = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
    "heteroscedastic_l1": F.l1_loss,
    "heteroscedastic_mse": F.mse_loss,
    "cross_entropy": F.cross_entropy,
}
