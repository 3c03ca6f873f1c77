"""Losses by name: squared, absolute and Huber errors, their versions weighted by the label's error,
cross entropy."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from fieldbook.nn.checks import at_least_single, require

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def loss(name: str) -> Loss:
    """The function (prediction, target, error = None) -> 0-d mean loss.

    The heteroscedastic ones divide each residual by its label's standard error before taking its
    absolute value or its square, which is optimal for Laplace or Gaussian label errors of known
    size (Aitken 1935). Dividing by anything else, such as the error of the flux, weights the stars
    by a quantity without relation to what is being fitted.

    Args:
        name: `mse`, `l1`, `huber` (quadratic up to 1), `heteroscedastic_l1`, `heteroscedastic_mse`,
            `cross_entropy`.
    Returns:
        A loss of prediction (batch,), target (batch,) in the same unit, and error (batch,) > 0 in
        that unit too, which only the heteroscedastic ones take; for `cross_entropy` of logits
        (batch, class) and class indices (batch,).
    Raises:
        ValueError: the name is unknown; or, from the loss, shapes differ, numbers are complex, or
            an error is missing or not wanted. Values are not looked at, which would cost each
            training step a wait for the device.
    """
    require(name in LOSSES, "loss", name, f"one of {', '.join(LOSSES)}")
    function, weighted = LOSSES[name], name.startswith("heteroscedastic")

    def mean_loss(prediction: Tensor, target: Tensor, error: Tensor | None = None) -> Tensor:
        logits = name == "cross_entropy"
        expected = prediction.shape[:1] if logits else prediction.shape
        accepted = f"{tuple(expected)}, as the prediction"
        require(target.shape == expected, "target", tuple(target.shape), accepted)
        require(prediction.numel(), "prediction", tuple(prediction.shape), "at least one example")
        for part, x in {"prediction": prediction, "target": target}.items():
            require(not x.is_complex(), f"dtype of {part}", x.dtype, "real numbers")
        prediction = at_least_single(prediction)
        target = target if logits else at_least_single(target)
        if not weighted:
            require(error is None, "error", "given", f"no error, which {name} would ignore")
            return function(prediction, target)
        shape = None if error is None else tuple(error.shape)
        accepted = f"{tuple(target.shape)}, the standard error of each label"
        require(shape == target.shape, "error", shape, accepted)
        return function(prediction / error, target / error)

    return mean_loss


LOSSES = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
    "heteroscedastic_l1": F.l1_loss,
    "heteroscedastic_mse": F.mse_loss,
    "cross_entropy": F.cross_entropy,
}
