"""How much closer to the clean spectrum an estimate is than the noisy one, and whether its uncertainty is right."""

import numpy as np
import torch
from scipy.signal import savgol_filter
from sklearn.decomposition import PCA
from torch import Tensor

from fieldbook.checks import require

COVERAGE = {"coverage_1_sigma": 1.0, "coverage_2_sigma": 2.0}


def snr_gain(estimate: Tensor, noisy: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    """Factor by which the signal-to-noise ratio of each spectrum grows: 1 for the noisy flux itself.

    Args:
        estimate, noisy, clean: (n, pixel) flux; `sigma`: (n, pixel), standard deviation of the noise.
    Returns:
        (n,), root-mean-square residual of the noisy flux over that of the estimate, both in units of sigma.
    """
    noise, left = (((flux - clean) / sigma).square().mean(-1) for flux in (noisy, estimate))
    return (noise / left).sqrt()


def calibration(mu: Tensor, sigma_x: Tensor, noisy: Tensor, sigma_n: Tensor) -> dict[str, float]:
    """Whether noisy pixels scatter about a blind prediction as it says: no clean spectrum is needed.

    Args:
        mu, sigma_x: (n, pixel) of the prediction, which must not have seen its pixel; `noisy`, `sigma_n`: (n, pixel).
            With the clean flux and sigma_n = 0 it is the uncertainty of the signal that is tested.
    Returns:
        chi2, reduced, 1 if the variances are right; and the shares of pixels within 1 and 2 standard deviations, 0.683
        and 0.954 if the errors are Gaussian too.
    """
    z = (noisy - mu) / (sigma_x**2 + sigma_n**2).sqrt()
    within = {name: float((z.abs() < width).double().mean()) for name, width in COVERAGE.items()}
    return {"chi2": float(z.square().mean())} | within


def pca(train: Tensor, noisy: Tensor, components: int, *, seed: int = 0) -> Tensor:
    """Noisy spectra projected onto the leading principal components of noisy training spectra.

    Args:
        train: (m, pixel); `noisy`: (n, pixel); `components`: from 1 to min(m, pixel).
    Raises:
        ValueError: `components` is out of range.
    """
    most = min(train.shape)
    require(1 <= components <= most, "components", components, f"from 1 to {most}")
    model = PCA(components, svd_solver="randomized" if components < most / 2 else "full", random_state=seed)
    model.fit(train.numpy())
    return torch.from_numpy(model.inverse_transform(model.transform(noisy.numpy())).astype(train.numpy().dtype))


def savitzky_golay(noisy: Tensor, window: int, order: int = 3) -> Tensor:
    """Each pixel replaced by the polynomial fitted to its window (Savitzky & Golay 1964).

    Args:
        noisy: (n, pixel); `window`: odd number of pixels above `order`.
    Raises:
        ValueError: the window is even, not above the order, or longer than the spectrum.
    """
    accepted = f"odd, above order = {order} and at most {noisy.shape[-1]} pixels"
    require(window % 2 and order < window <= noisy.shape[-1], "window", window, accepted)
    return torch.from_numpy(np.ascontiguousarray(savgol_filter(noisy.numpy(), window, order, axis=-1)))
