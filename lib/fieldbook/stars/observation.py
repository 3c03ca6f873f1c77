"""Stars as a spectrograph sees them: labels drawn, spectra emulated, the error of each pixel."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from fieldbook.nn.checks import require
from fieldbook.nn.seeds import stream
from fieldbook.stars.emulator import Emulator
from fieldbook.stars.noise import error, signal_to_noise
from fieldbook.stars.synthesis import LABELS, SPEED_OF_LIGHT

MAGNITUDES = (20.5, 22.5)  # i band
CHUNK = 256  # stars that are drawn together: a data set begins with every shorter one of its seed

Range = tuple[float, float]


def draw(
    n: int,
    seed: int,
    ranges: Mapping[str, Range],
    *,
    mag: Range = MAGNITUDES,
    rv_kms: float = 100.0,
) -> pd.DataFrame:
    """Labels of stars, uniform and independent; the first m of n are those of draw(m, ..).

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
    uniform = []
    for i in range(-(-n // CHUNK)):
        own = torch.Generator().manual_seed(stream("stars", seed, i))
        uniform.append(torch.rand(CHUNK, len(limits), dtype=torch.float64, generator=own))
    low, high = torch.tensor(list(limits.values()), dtype=torch.float64).T
    return pd.DataFrame((low + (high - low) * torch.cat(uniform)[:n]).numpy(), columns=list(limits))


def spectra(
    n: int,
    seed: int,
    emulator: Emulator,
    *,
    ranges: Mapping[str, Range] | None = None,
    mag: Range = MAGNITUDES,
    rv_kms: float = 100.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, pd.DataFrame]:
    """A data set of noise-free spectra with the error of each pixel, that begins as a shorter one.

    Args:
        ranges: label -> (lowest, highest), by default all that the emulator covers.
    Returns:
        wavelength (4096,) vacuum A; flux and error (n, 4096) float32; labels with mag, redshift and
        snr.
    """
    covered = {name: (values[0], values[-1]) for name, values in emulator.nodes.items()}
    full = -(-n // CHUNK) * CHUNK
    stars = draw(full, seed, covered | dict(ranges or {}), mag=mag, rv_kms=rv_kms)
    labels = torch.tensor(stars[list(LABELS)].to_numpy(np.float32))
    velocity = torch.tensor((stars.redshift * SPEED_OF_LIGHT).to_numpy(np.float32))
    magnitude = torch.tensor(stars.mag.to_numpy(np.float32))
    flux, sigma = np.empty((2, n, len(emulator.wavelength)), np.float32)
    snr = np.empty(n)
    for start in range(0, n, CHUNK):
        rows = slice(start, start + CHUNK)
        slit = torch.Generator().manual_seed(stream("slit", seed, start // CHUNK))
        light = emulator(labels[rows], velocity[rows])
        spread = error(light, magnitude[rows], slit)
        flux[rows], sigma[rows] = light[: n - start], spread[: n - start]
        snr[rows] = signal_to_noise(flux[rows], sigma[rows])
    return emulator.wavelength, flux, sigma, stars[:n].assign(snr=snr)
