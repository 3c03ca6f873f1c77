"""The noise of spectra: how large it is in each pixel, and the one place where it is drawn.

As in the medium resolution mode of the Prime Focus Spectrograph: 12 exposures of 900 s with photon
noise of star and sky, read-out noise, and an error of 1 % in the subtracted sky.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from fieldbook.nn.checks import require
from fieldbook.stars.atmosphere import table
from fieldbook.stars.dataset import Spectra
from fieldbook.stars.synthesis import wavelength

SEED = 42  # of the noise of validation and test splits; draws for training have the next ones
TOGETHER = 256  # rows of `fixed_noise` that are drawn at once; another number is another noise
EXPOSURES = 12
ELECTRONS = 40.0  # per pixel and exposure at magnitude 21.5 where the throughput is 1
READ_OUT_VARIANCE = 108.0  # electrons squared per pixel and exposure
SKY_RESIDUAL = 0.01
SLIT_LOSS_SPREAD = 0.18  # standard deviation of ln(electrons) at a given magnitude


def standard_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of mean 0 and variance 1, independent in each pixel, in the shape of a flux.

    Training, validation, test and every figure draw from here. Another law needs more than another
    draw: that noise is Gaussian and independent is also assumed by the losses, the blind network's
    posterior, the template fit and the information that ceilings follow from.
    """
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def noisy(flux: Tensor, error: Tensor, noise_level: float, generator: torch.Generator) -> Tensor:
    """Flux with noise, flux + standard noise * error * noise_level, on the device of the flux.

    Args:
        flux, error: (..., pixels); `noise_level`: factor on the error, >= 0.
        generator: on the same device.
    """
    require(noise_level >= 0, "noise_level", noise_level, "at least 0")
    return standard_noise(flux, generator).mul_(error).mul_(noise_level).add_(flux)


def fixed_noise(spectra: Spectra, noise_level: float, seed: int) -> Tensor:
    """(n, pixels) flux of a split with noise that depends on the seed and the row alone.

    Splits with one seed have the same noise in the same row: what is fitted to one must not be
    tested on the other.
    """
    generator = torch.Generator().manual_seed(seed)
    result = torch.empty(spectra.flux.shape)
    for rows in torch.arange(len(spectra)).split(TOGETHER):
        # a block that is not full is drawn in full, so that a shorter split has the same noise
        flux, error = torch.zeros(2, TOGETHER, len(spectra.wave))
        flux[: len(rows)], error[: len(rows)] = spectra.rows(rows)
        result[rows] = noisy(flux, error, noise_level, generator)[: len(rows)]
    return result


def signal_to_noise(flux: np.ndarray, error: np.ndarray) -> np.ndarray:
    """(n,) median of flux / error over the (n, pixels)."""
    return np.median(flux / error, axis=-1)


def error(flux: Tensor, mag: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard deviation of the noise in each pixel, in the unit of the flux.

    Args:
        flux: (star, 4096), median .5; `mag`: (star,), i magnitude.
        generator: draws the share of light that enters the slit, lognormal; None leaves it at 1.
    Returns:
        (star, 4096): sqrt(12 (S + sky + 108) + (12 * .01 sky)^2) / gain, S the star's electrons per
        exposure.
    """
    by_mag = ELECTRONS * 10 ** (-0.4 * (mag - 21.5))
    if generator is not None:
        normal = torch.randn(mag.shape, generator=generator, dtype=mag.dtype, device=mag.device)
        by_mag = by_mag * (SLIT_LOSS_SPREAD * normal).exp()
    background = torch.as_tensor(sky()).to(flux)
    per_flux = by_mag[:, None].to(flux) * torch.as_tensor(throughput()).to(flux) / 0.5
    electrons = per_flux * flux
    counted = EXPOSURES * (electrons + background + READ_OUT_VARIANCE)
    subtracted = (EXPOSURES * SKY_RESIDUAL * background) ** 2
    return (counted + subtracted).sqrt() / (EXPOSURES * per_flux)


@cache
def sky() -> np.ndarray:
    """Electrons of the night sky per pixel and exposure, (4096,).

    `sky.csv` holds the 80 strongest blends, with their peaks in electrons.
    """
    wave = wavelength()
    lines = table("sky")
    offset = wave[:, None] - lines.wavelength_vac_A.to_numpy()
    peak = lines.peak_electrons_per_pixel_per_900s.to_numpy(float)
    return 92 + 10 * (wave - 7100) / 1750 + np.exp(-0.5 * (offset / 0.60) ** 2) @ peak


@cache
def throughput() -> np.ndarray:
    """Relative throughput of the spectrograph's arm, (4096,): a parabola, .75 at both ends."""
    wave = wavelength()
    middle, half = (wave[0] + wave[-1]) / 2, (wave[-1] - wave[0]) / 2
    return 1 - 0.25 * ((wave - middle) / half) ** 2
