"""What training minimises: errors of labels, by name, and likelihoods of pixels of known noise."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fieldbook.nn.checks import at_least_single, require
from fieldbook.stars.noise import standard_noise

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Rows = Callable[[Tensor], tuple[Tensor, Tensor]]

# -- of labels


def loss(name: str) -> Loss:
    """The function (prediction, target, error = None) -> 0-d mean loss.

    The heteroscedastic ones divide each residual by its label's standard error, which is optimal
    for Laplace or Gaussian label errors of known size (Aitken 1935). Dividing by anything else,
    such as the error of the flux, weights the stars by a quantity without relation to what is
    fitted.

    Args:
        name: `mse`, `l1`, `huber` (quadratic up to 1), `heteroscedastic_l1`, `heteroscedastic_mse`,
            `cross_entropy`.
    Returns:
        A loss of prediction (batch,), target (batch,) and error (batch,) > 0, all in one unit, the
        error for the heteroscedastic ones alone; for `cross_entropy` of logits (batch, class) and
        class indices (batch,).
    Raises:
        ValueError: the name is unknown; or, from the loss, shapes differ, numbers are complex, or
            an error is missing or not wanted. Values are not looked at, which would cost each
            training step a wait for the device.
    """
    require(name in LOSSES, "loss", name, f"one of {', '.join(LOSSES)}")
    function = LOSSES[name]

    def mean_loss(prediction: Tensor, target: Tensor, error: Tensor | None = None) -> Tensor:
        shape = prediction.shape[:1] if name == "cross_entropy" else prediction.shape
        accepted = f"{tuple(shape)}, as the prediction"
        require(target.shape == shape, "target", tuple(target.shape), accepted)
        require(prediction.numel(), "prediction", tuple(prediction.shape), "at least one example")
        for part, x in {"prediction": prediction, "target": target}.items():
            require(not x.is_complex(), f"dtype of {part}", x.dtype, "real numbers")
        prediction, target = (at_least_single(x) for x in (prediction, target))
        if not name.startswith("heteroscedastic"):
            require(error is None, "error", "given", f"no error, which {name} would ignore")
            return function(prediction, target)
        given = None if error is None else tuple(error.shape)
        accepted = f"{tuple(shape)}, the standard error of each label"
        require(given == shape, "error", given, accepted)
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

# -- of pixels: predicted mean `mu` and deviation `sigma_x` of the signal, against flux with noise


def gaussian(mu: Tensor, sigma_x: Tensor, noisy: Tensor, sigma_n: Tensor) -> Tensor:
    """Mean negative log-likelihood of noisy pixels, of variance sigma_x^2 + sigma_n^2.

    Args:
        mu, sigma_x: (...) of the signal as predicted.
        noisy, sigma_n: (...), each pixel and the standard deviation of its noise.
    Returns:
        0-d, without the constant ln(2 pi) / 2.
    Source: Laine et al. 2019 (arXiv:1901.10277), section 3.
    """
    # not F.gaussian_nll_loss, which asks the device whether a variance is negative
    variance = sigma_x**2 + sigma_n**2
    return (0.5 * (variance.log() + (mu - noisy) ** 2 / variance)).mean()


def laplace(mu: Tensor, sigma_x: Tensor, noisy: Tensor, sigma_n: Tensor) -> Tensor:
    """As `gaussian`, for a Laplace distribution of the same variance, which outliers draw less."""
    scale = ((sigma_x**2 + sigma_n**2) / 2).sqrt()
    return ((noisy - mu).abs() / scale + scale.log()).mean()


def huber(mu: Tensor, sigma_x: Tensor, noisy: Tensor, sigma_n: Tensor) -> Tensor:
    """Huber's loss of the residual in units of the noise; it leaves sigma_x untrained."""
    return F.huber_loss((noisy - mu) / sigma_n, torch.zeros_like(mu))


SELF_SUPERVISED = {"nll": gaussian, "laplace": laplace, "huber": huber}


def denoising_loss(kind: str, rows: Rows, noise_level: float = 1.0) -> Callable[..., Tensor]:
    """A loss for `fieldbook.nn.training.fit` that draws the noise of each spectrum anew.

    Args:
        kind: `nll`, `laplace` or `huber`, which compare with the noisy flux alone; or `supervised`,
            the Gaussian likelihood of the clean flux, which a telescope does not deliver.
        rows: index (batch,) -> clean flux and its error, each (batch, pixel); for instance
            `Spectra.rows`.
        noise_level: of the noise and of what the network is told of it, in units of the error.
    Raises:
        ValueError: an unknown kind, or a noise level that is not positive.
    """
    kinds = (*SELF_SUPERVISED, "supervised")
    require(kind in kinds, "kind", kind, f"one of {', '.join(kinds)}")
    require(noise_level > 0, "noise_level", noise_level, "a positive number")

    def mean_loss(model: nn.Module, index: Tensor, generator: torch.Generator) -> Tensor:
        clean, error = (t.to(generator.device) for t in rows(index))
        sigma = noise_level * error
        noisy = torch.addcmul(clean, sigma, standard_noise(clean, generator))
        mu, sigma_x = model(noisy, sigma)
        if kind != "supervised":
            return SELF_SUPERVISED[kind](mu, sigma_x, noisy, sigma)
        # with a floor on the noise, as the likelihood of a perfect prediction has no bound
        return gaussian(mu, sigma_x, clean, 0.01 * sigma)

    return mean_loss
