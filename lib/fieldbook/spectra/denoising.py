"""How much closer to the clean spectrum an estimate is than the noisy one, and is its error right.

Beside them two estimates that need no network: a projection on components and a moving polynomial.
"""

import numpy as np
import torch
from scipy.signal import savgol_filter
from torch import Tensor

from fieldbook.nn.checks import numbers, positive, require
from fieldbook.spectra.preprocess import fitted_pca

COVERAGE = {"coverage_1_sigma": 1.0, "coverage_2_sigma": 2.0}


def snr_gain(estimate: Tensor, noisy: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    """Factor by which each spectrum's signal-to-noise ratio grows: 1 for the noisy flux itself.

    Args:
        estimate, noisy, clean, sigma: (n, pixel) flux, and standard deviation of the noise.
    Returns:
        (n,), root-mean-square residual of the noisy flux over that of the estimate, both in units
        of sigma; infinite where the estimate is the clean flux.
    Raises:
        ValueError: noisy flux that is clean.
    """
    clean = numbers(clean, "clean", ndim=2)
    sigma = positive(sigma, "sigma", shape=clean.shape)
    noisy = numbers(noisy, "noisy", shape=clean.shape)
    estimate = numbers(estimate, "estimate", shape=clean.shape)
    noise, left = (((flux - clean) / sigma).square().mean(-1) for flux in (noisy, estimate))
    row = int(noise.argmin())
    accepted = "flux with noise, which clean has none of"
    require(noise[row] > 0, f"noise of noisy[{row}]", 0.0, accepted)
    return (noise / left).sqrt()


def calibration(mu: Tensor, sigma_x: Tensor, noisy: Tensor, sigma_n: Tensor) -> dict[str, float]:
    """Do noisy pixels scatter about a blind prediction as it says? No clean spectrum is needed.

    Args:
        mu, sigma_x: (n, pixel) of the prediction, which must not have seen its pixel.
        noisy, sigma_n: (n, pixel). With the clean flux and sigma_n = 0 it is the uncertainty of
            the signal that is tested.
    Returns:
        chi2, reduced, 1 if the variances are right; and the shares of pixels within 1 and 2
        standard deviations, 0.683 and 0.954 if the errors are Gaussian too.
    """
    mu = numbers(mu, "mu", ndim=2)
    noisy = numbers(noisy, "noisy", shape=mu.shape)
    sigmas = {"sigma_x": sigma_x, "sigma_n": sigma_n}
    sigmas = {name: numbers(sigma, name, shape=mu.shape) for name, sigma in sigmas.items()}
    for name, sigma in sigmas.items():
        require((sigma >= 0).all(), name, f"from {float(sigma.min())}", "0 or more")
    spread = torch.hypot(*sigmas.values())  # squares of small numbers would be 0
    positive(spread, "sqrt(sigma_x^2 + sigma_n^2)")
    z = (noisy - mu) / spread
    within = {name: float((z.abs() < width).double().mean()) for name, width in COVERAGE.items()}
    return {"chi2": float(z.square().mean())} | within


def pca(train: Tensor, noisy: Tensor, components: int) -> Tensor:
    """Noisy spectra (n, pixel) on the leading principal components of noisy training spectra.

    Args:
        train: (m, pixel); `components`: from 1 to min(m, pixel).
    Raises:
        ValueError: as `fitted_pca`.
    """
    train = numbers(train, "train", ndim=2, least=2)
    noisy = numbers(noisy, "noisy", shape=(None, train.shape[1])).numpy(force=True)
    model = fitted_pca(train, components)
    return torch.from_numpy(model.inverse_transform(model.transform(noisy))).to(train.dtype)


def savitzky_golay(noisy: Tensor, window: int) -> Tensor:
    """Each pixel replaced by the cubic fitted to its window (Savitzky & Golay 1964).

    Args:
        noisy: (n, pixel); `window`: odd number of pixels.
    Raises:
        ValueError: the window is even, below five pixels, or longer than the spectrum.
    """
    noisy = numbers(noisy, "noisy", ndim=2).numpy(force=True)
    accepted = f"odd, from 5 to {noisy.shape[-1]} pixels"
    require(window % 2 and 3 < window <= noisy.shape[-1], "window", window, accepted)
    return torch.from_numpy(np.ascontiguousarray(savgol_filter(noisy, window, 3, axis=-1)))
