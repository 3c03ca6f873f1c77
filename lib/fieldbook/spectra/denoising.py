"""How much closer to the clean spectrum an estimate is than the noisy one, and whether its
uncertainty is right."""

import numpy as np
import torch
from scipy.signal import savgol_filter
from sklearn.decomposition import PCA
from torch import Tensor

from fieldbook.nn.checks import numbers, positive, require

COVERAGE = {"coverage_1_sigma": 1.0, "coverage_2_sigma": 2.0}


def snr_gain(estimate: Tensor, noisy: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    """Factor by which the signal-to-noise ratio of each spectrum grows: 1 for the noisy flux
    itself.

    Args:
        estimate, noisy, clean, sigma: (n, pixel) flux, and standard deviation of the noise.
    Returns:
        (n,), root-mean-square residual of the noisy flux over that of the estimate, both in units
        of sigma; infinite where the estimate is the clean flux.
    Raises:
        ValueError: noisy flux that is clean.
    """
    clean = numbers(clean, "clean", ndim=2)
    shape = tuple(clean.shape)
    sigma = positive(sigma, "sigma", shape=shape)
    flux = {"noisy": noisy, "estimate": estimate}
    noise, left = (
        ((numbers(f, name, shape=shape) - clean) / sigma).square().mean(-1)
        for name, f in flux.items()
    )
    row = int(noise.argmin())
    accepted = "flux with noise, which clean has none of"
    require(noise[row] > 0, f"noise of noisy[{row}]", 0.0, accepted)
    return (noise / left).sqrt()


def calibration(mu: Tensor, sigma_x: Tensor, noisy: Tensor, sigma_n: Tensor) -> dict[str, float]:
    """Whether noisy pixels scatter about a blind prediction as it says: no clean spectrum is
    needed.

    Args:
        mu, sigma_x: (n, pixel) of the prediction, which must not have seen its pixel; `noisy`,
            `sigma_n`: (n, pixel). With the clean flux and sigma_n = 0 it is the uncertainty of the
                signal that is tested.
    Returns:
        chi2, reduced, 1 if the variances are right; and the shares of pixels within 1 and 2
        standard deviations, 0.683 and 0.954 if the errors are Gaussian too.
    """
    mu = numbers(mu, "mu", ndim=2)
    shape = tuple(mu.shape)
    noisy = numbers(noisy, "noisy", shape=shape)
    parts = {"sigma_x": numbers(sigma_x, "sigma_x", shape=shape)}
    parts["sigma_n"] = numbers(sigma_n, "sigma_n", shape=shape)
    for name, part in parts.items():
        require((part >= 0).all(), name, f"from {float(part.min())}", "0 or more")
    spread = torch.hypot(*parts.values())  # squares of small numbers would be 0
    positive(spread, "sqrt(sigma_x^2 + sigma_n^2)")
    z = (noisy - mu) / spread
    within = {name: float((z.abs() < width).double().mean()) for name, width in COVERAGE.items()}
    return {"chi2": float(z.square().mean())} | within


def pca(train: Tensor, noisy: Tensor, components: int, *, seed: int = 0) -> Tensor:
    """Noisy spectra projected onto the leading principal components of noisy training spectra.

    Args:
        train: (m, pixel); `noisy`: (n, pixel); `components`: from 1 to min(m, pixel).
    Raises:
        ValueError: `components` is out of range, or more than the training spectra vary in.
    """
    train = numbers(train, "train", ndim=2, least=2).numpy(force=True)
    noisy = numbers(noisy, "noisy", shape=(None, train.shape[1])).numpy(force=True)
    most = min(train.shape)
    require(1 <= components <= most, "components", components, f"from 1 to {most}")
    solver = "randomized" if components < most / 2 else "full"
    model = PCA(components, svd_solver=solver, random_state=seed)
    with np.errstate(invalid="ignore"):  # 0 / 0 where nothing varies, which is refused next
        model.fit(train)
    size = np.linalg.norm(train) * max(train.shape) ** 0.5 * np.finfo(train.dtype).eps
    rank = int((model.singular_values_ > size).sum())
    accepted = f"at most {rank}, in which train varies"
    require(components <= rank, "components", components, accepted)
    found = model.inverse_transform(model.transform(noisy))
    return torch.from_numpy(found.astype(train.dtype))


def savitzky_golay(noisy: Tensor, window: int, order: int = 3) -> Tensor:
    """Each pixel replaced by the polynomial fitted to its window (Savitzky & Golay 1964).

    Args:
        noisy: (n, pixel); `window`: odd number of pixels above `order`.
    Raises:
        ValueError: the window is even, not above the order, or longer than the spectrum.
    """
    noisy = numbers(noisy, "noisy", ndim=2).numpy(force=True)
    require(order >= 0, "order", order, "0 or more")
    accepted = f"odd, above order = {order} and at most {noisy.shape[-1]} pixels"
    fits = window % 2 and order < window <= noisy.shape[-1]
    require(fits, "window", window, accepted)
    return torch.from_numpy(np.ascontiguousarray(savgol_filter(noisy, window, order, axis=-1)))
