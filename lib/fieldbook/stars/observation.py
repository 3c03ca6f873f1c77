"""Stars as a spectrograph sees them: labels drawn, spectra emulated, and the noise that each would
have.

As in the medium resolution mode of the Prime Focus Spectrograph: 12 exposures of 900 s with photon
noise of star and sky, read-out noise, and an error of 1 % in the subtracted sky. `sky.csv`: the 80
strongest blends of the night sky, with their peaks in electrons per pixel and exposure.
"""

from collections.abc import Mapping
from functools import cache

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fieldbook.nn.checks import require
from fieldbook.nn.seeds import stream
from fieldbook.stars.atmosphere import table
from fieldbook.stars.dataset import signal_to_noise
from fieldbook.stars.emulator import Emulator
from fieldbook.stars.synthesis import LABELS, SPEED_OF_LIGHT, wavelength

MAGNITUDES = (20.5, 22.5)  # i band
EXPOSURES = 12
ELECTRONS = 40.0  # per pixel and exposure at magnitude 21.5 where the throughput is 1
READ_OUT_VARIANCE = 108.0  # electrons squared per pixel and exposure
SKY_RESIDUAL = 0.01
SLIT_LOSS_SPREAD = 0.18  # standard deviation of ln(electrons) at a given magnitude
CHUNK = 256  # stars that are drawn together: a data set begins with every shorter one of its seed


@cache
def sky() -> np.ndarray:
    """Electrons of the night sky per pixel and exposure, (4096,)."""
    wave, lines = wavelength(), table("sky")
    offset = wave[:, None] - lines.wavelength_vac_A.to_numpy()
    glow = np.exp(-0.5 * (offset / 0.60) ** 2) @ lines.peak_electrons_per_pixel_per_900s.to_numpy(
        float
    )
    return 92 + 10 * (wave - 7100) / 1750 + glow


@cache
def throughput() -> np.ndarray:
    """Relative throughput of the spectrograph's arm, (4096,): a parabola, .75 of its peak at both
    ends."""
    wave = wavelength()
    middle, half = (wave[0] + wave[-1]) / 2, (wave[-1] - wave[0]) / 2
    return 1 - 0.25 * ((wave - middle) / half) ** 2


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
    background, share = (
        torch.as_tensor(x, dtype=flux.dtype, device=flux.device) for x in (sky(), throughput())
    )
    per_flux = by_mag[:, None].to(flux) * share / 0.5
    electrons = per_flux * flux
    variance = (
        EXPOSURES * (electrons + background + READ_OUT_VARIANCE)
        + (EXPOSURES * SKY_RESIDUAL * background) ** 2
    )
    return variance.sqrt() / (EXPOSURES * per_flux)


def draw(
    n: int,
    seed: int,
    ranges: Mapping[str, tuple[float, float]],
    *,
    mag: tuple[float, float] = MAGNITUDES,
    rv_kms: float = 100.0,
) -> pd.DataFrame:
    """Labels of stars, each uniform and independent of the others; the first m of n are those of
    draw(m, ..).

    Args:
        ranges: label -> (lowest, highest); `mag`: likewise; `rv_kms`: largest radial velocity.
    Returns:
        Columns `LABELS`, mag, redshift; one row per star.
    Raises:
        ValueError: n < 1, or a range is missing or reversed.
    """
    require(n >= 1, "n", n, "at least 1")
    limits = {name: ranges.get(name, (1, 0)) for name in LABELS} | {"mag": mag}
    limits["redshift"] = (-rv_kms / SPEED_OF_LIGHT, rv_kms / SPEED_OF_LIGHT)
    for name, (low, high) in limits.items():
        require(low <= high, name, (low, high), "a range (lowest, highest)")
    low, high = torch.tensor(list(limits.values()), dtype=torch.float64).T
    uniform = [
        torch.rand(
            CHUNK,
            len(limits),
            dtype=torch.float64,
            generator=torch.Generator().manual_seed(stream("stars", seed, i)),
        )
        for i in range(-(-n // CHUNK))
    ]
    return pd.DataFrame((low + (high - low) * torch.cat(uniform)[:n]).numpy(), columns=list(limits))


def spectra(
    n: int,
    seed: int,
    emulator: Emulator,
    *,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    mag: tuple[float, float] = MAGNITUDES,
    rv_kms: float = 100.0,
    device: torch.device | str = "cpu",
) -> tuple[np.ndarray, np.ndarray, np.ndarray, pd.DataFrame]:
    """A data set of noise-free spectra with the error of each pixel; the first m of n are those of
    spectra(m, ..).

    Args:
        ranges: label -> (lowest, highest), by default all that the emulator covers.
    Returns:
        wavelength (4096,) vacuum A; flux and error (n, 4096) float32; labels with mag, redshift and
        snr.
    """
    ranges = {name: (values[0], values[-1]) for name, values in emulator.nodes.items()} | dict(
        ranges or {}
    )
    full = draw(-(-n // CHUNK) * CHUNK, seed, ranges, mag=mag, rv_kms=rv_kms)
    flux, noise = (np.empty((n, len(emulator.wavelength)), np.float32) for _ in range(2))
    ratio = np.empty(n)
    for i in range(0, n, CHUNK):
        rows, chunk = slice(i, min(i + CHUNK, n)), full.iloc[i : i + CHUNK]
        generator = torch.Generator().manual_seed(stream("slit", seed, i // CHUNK))
        labels = torch.tensor(chunk[list(LABELS)].to_numpy(), dtype=torch.float32, device=device)
        rv = torch.tensor(
            chunk.redshift.to_numpy() * SPEED_OF_LIGHT, dtype=torch.float32, device=device
        )
        light = emulator(labels, rv)
        magnitude = torch.tensor(chunk.mag.to_numpy(), dtype=torch.float32)
        sigma = error(light, magnitude, generator)
        kept = rows.stop - rows.start
        flux[rows], noise[rows] = light[:kept].cpu().numpy(), sigma[:kept].cpu().numpy()
        ratio[rows] = signal_to_noise(flux[rows], noise[rows])
    return emulator.wavelength, flux, noise, full.iloc[:n].assign(snr=ratio)
