"""Spectra of cool stars from 7,100 to 8,850 A, in local thermodynamic equilibrium.

160 atomic lines and the Paschen series as Voigt profiles over the layers of `atmosphere`, the flux
by two rays, seen through a Gaussian line-spread function. The bands of TiO and CN have the right
molecules in the right numbers, but a stylised shape, a saw tooth at each band head: draw no physics
from them.

`lines.csv` beside this file: laboratory values as collected in linemake (Placco et al. 2021, RNAAS
5, 92), the rest from Kurucz's lists. Wavelengths are vacuum A unless named air.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.special import expit, voigt_profile

from fieldbook.nn.checks import require
from fieldbook.stars.atmosphere import (
    ATOMIC_MASS,
    BOLTZMANN,
    BOLTZMANN_EV,
    HC_K,
    LAST_PASCHEN,
    RYDBERG_EV,
    Atmosphere,
    abundances,
    atmosphere,
    continuum,
    ionisation_energy,
    log_partition,
    mass,
    molecules,
    stages,
    table,
)

LABELS = ("T_eff", "log_g", "M_H", "a_M", "C_M")
LABEL_LIMITS = {"T_eff": (3500, 6500), "log_g": (0, 5.5), "M_H": (-3, 1)}
LABEL_LIMITS |= {"a_M": (-0.5, 0.75), "C_M": (-1, 0.75)}
SPEED_OF_LIGHT = 299792.458  # km/s
START, STEP, PIXELS = 7100.2136, 0.4272461, 4096  # A
OVERSAMPLING = 8
LSF_FWHM = 1.36  # A
HEAD_RISE = 0.4  # A, of a band head: a step would move by whole pixels with the velocity
CACHED = 128  # pixels whose layers fit a processor's cache
MICROTURBULENCE = 2.0  # km/s
FAINTEST = 1e-3  # of the continuous opacity: where a line's wing ends
CORE = 5.0  # Doppler widths within which the profile is Voigt's; beyond, its asymptotic series
RAYS = ((0.211325, 0.5), (0.788675, 0.5))  # cosine and weight of Gauss and Legendre

# TiO: gamma', gamma and epsilon systems; CN: red system. Head (A); effective oscillator strength of
# the saw tooth, set for band depths of a tenth to a half in M dwarfs; energy of the lower
# vibrational level (eV); e-folding width (A).
_TIO = [(head, 3e-3, 0.0, 60) for head in (7056.1, 7089.6, 7127.6)]
_TIO += [(head, 1e-3, 0.125, 70) for head in (7591.0, 7630.0, 7668.0)]
_TIO += [(head, 3e-4, 0.25, 80) for head in (8208.0, 8252.0, 8305.0)] + [(8434.0, 6e-4, 0.0, 90)]
_CN = [(7262.0, 1e-4, 1.02, 90), (7439.0, 1e-4, 1.25, 90), (7876.0, 6e-4, 0.0, 110)]
_CN += [(8069.0, 7e-4, 0.26, 110), (8273.0, 6e-4, 0.51, 110), (8485.0, 5e-4, 0.76, 110)]
BANDS = {"TiO": _TIO, "CN": _CN}

LINES = table("lines")


def wavelength(pixels: int = PIXELS, margin: int = 0) -> np.ndarray:
    """Centres of pixels, vacuum A, (pixels + 2 margin,), with some outside the detector."""
    return START + STEP * np.arange(-margin, pixels + margin)


def vacuum(air: np.ndarray) -> np.ndarray:
    """Wavelength in vacuum of one in standard air, A.

    Source: Morton 2000 (ApJS 130, 403), eq. 8, twice, as it is a function of the result.
    """
    result = np.asarray(air, float)
    for _ in range(2):
        s = (1e4 / result) ** 2
        result = air * (1 + 8.34254e-5 + 2.406147e-2 / (130 - s) + 1.5998e-4 / (38.9 - s))
    return result


@dataclass(frozen=True)
class Lines:
    """Constants of every line, (line,): vacuum A, eV, gf; damping per s, and per particle per cm3.

    `vdw` is per hydrogen atom at 10,000 K, and grows as T^0.3; `stark` per electron, `linear_stark`
    per electron^(2/3).
    """

    element: np.ndarray
    stage: np.ndarray
    wavelength: np.ndarray
    lower: np.ndarray
    gf: np.ndarray
    radiative: np.ndarray
    vdw: np.ndarray
    stark: np.ndarray
    linear_stark: np.ndarray


@cache
def lines() -> Lines:
    """All lines with their damping.

    Source: radiative, classical but for Ca II (its 4p lives 6.3 ns); van der Waals, Unsoeld's
    theory times 2 (Gray 2005, section 11.5; C6 from hydrogen's polarisability 6.67e-25 cm3 and
    Coulomb radii), Ca II from Barklem & O'Mara 1998; Stark, 1e-8 n_eff^5 (Castelli 2005) and for
    hydrogen 0.6 (n'^2 - n^2) (Sutton 1978); Paschen strengths, Kramers with a Gaunt factor of 0.9.
    """
    n = np.arange(11, LAST_PASCHEN + 1)  # upper levels of the Paschen lines
    energy = 1 / 9 - 1 / n**2
    element = np.append(LINES.element.to_numpy(), ["H"] * len(n))
    stage = np.append(LINES.stage.to_numpy(), [1] * len(n))
    centre = np.append(vacuum(LINES.wavelength_air_A.to_numpy()), 1e8 / (109677.58 * energy))
    lower = np.append(LINES.lower_eV.to_numpy(), [12.0875] * len(n))
    kramers = 18 * 1.9603 * 0.9 / (243 * n**3.0) * energy**-3
    gf = np.append(10 ** LINES.log_gf.to_numpy(), kramers)
    is_h, calcium = element == "H", (element == "Ca") & (stage == 2)
    limit = np.array([ionisation_energy(e, s) for e, s in zip(element, stage, strict=True)])
    # squares of the effective quantum numbers, and of the radius in Bohr's
    n_lower = RYDBERG_EV * stage**2 / (limit - lower)
    n_upper = RYDBERG_EV * stage**2 / (limit - (lower + 12398.42 / centre))
    wider = np.abs(n_upper * (5 * n_upper + 1) - n_lower * (5 * n_lower + 1))
    radius = wider / (2 * stage**2)
    reduced = np.array([1 + 1 / mass(e) for e in element])
    speed = np.sqrt(8 * BOLTZMANN * 1e4 / (np.pi * ATOMIC_MASS) * reduced)
    unsold = 2 * 8.08 * (4.09e-33 * radius) ** 0.4 * speed**0.6
    return Lines(
        element,
        stage,
        centre,
        lower,
        gf,
        radiative=np.where(calcium, 10**8.2, 2.223e15 / centre**2),
        vdw=np.where(is_h, 0, np.where(calcium, 10**-7.68, unsold)),
        stark=np.where(is_h, 0, 1e-8 * n_upper**2.5),
        linear_stark=np.append(np.zeros(len(LINES)), 0.6 * (n**2 - 9.0)),
    )


def line_constants(air: Atmosphere) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each line's profile in each layer follows from, all (line, layer).

    Returns:
        Opacity times A per hydrogen nucleus (cm2 A); Gaussian standard deviation and Lorentzian
        half width at half maximum (A).
    """
    of = lines()
    t = air.temperature
    present, doppler = {}, {}  # by element and stage: nuclei over partition function; speed, cm/s
    for kind in zip(of.element, of.stage, strict=True):
        if kind not in present:
            element, stage = kind
            share = stages(element, t, air.electron_pressure)[stage - 1]
            populated = np.exp(log_partition(element, stage, t))
            present[kind] = air.abundance[element] * share / populated
            thermal = 2 * BOLTZMANN * t / (mass(element) * ATOMIC_MASS)
            doppler[kind] = np.sqrt(thermal + (MICROTURBULENCE * 1e5) ** 2)
    kinds = [*zip(of.element, of.stage, strict=True)]
    centre, lower = of.wavelength[:, None], of.lower[:, None]
    strength = 8.8528e-21 * centre**2 * of.gf[:, None] * np.stack([present[k] for k in kinds])
    excited = np.exp(-lower / (BOLTZMANN_EV * t))
    strength = strength * excited * -np.expm1(-HC_K / (centre * t))  # less stimulated emission
    atoms = air.hydrogen * air.neutral_hydrogen
    rate = of.radiative[:, None] + of.vdw[:, None] * atoms * (t / 1e4) ** 0.3
    rate = rate + of.stark[:, None] * air.electrons
    rate = rate + of.linear_stark[:, None] * air.electrons ** (2 / 3)
    sigma = centre * np.stack([doppler[k] for k in kinds]) / (SPEED_OF_LIGHT * 1e5 * np.sqrt(2))
    return strength, sigma, rate * centre**2 / (4 * np.pi * SPEED_OF_LIGHT * 1e13)


def add_lines(opacity: np.ndarray, grid: np.ndarray, air: Atmosphere, scale: np.ndarray) -> None:
    """Add every line's opacity, divided by `scale`, in place.

    Args:
        opacity: (layer, point); `grid`: (point,) evenly spaced A, at rest; `scale`: (layer,) cm2
            per nucleus.
    """
    strength, sigma, gamma = line_constants(air)
    strength = strength / scale
    seen = air.tau < 3  # deeper layers are dark behind the continuum
    wing = np.sqrt((strength * gamma)[:, seen].max(1) / (np.pi * FAINTEST))
    peak = (strength / np.hypot(sigma * 2.5, gamma * np.pi))[:, seen].max(1)
    core = CORE * np.sqrt(2) * sigma[:, seen].max(1)
    reach = np.where(peak > FAINTEST, np.maximum(wing, core), 0)
    start, step = grid[0], grid[1] - grid[0]
    for i in np.flatnonzero(reach):
        centre = lines().wavelength[i]
        edges = (centre + np.array([-reach[i], -core[i], core[i], reach[i]]) - start) / step
        a, b, c, d = np.clip(np.ceil(edges), 0, len(grid)).astype(int)
        s, w, g = strength[i, :, None], sigma[i, :, None], gamma[i, :, None]
        opacity[:, b:c] += s * voigt_profile(grid[b:c] - centre, w, g)
        amplitude = (s * g / np.pi).astype(opacity.dtype)
        squared = (g**2).astype(opacity.dtype)
        variance = (3 * w**2).astype(opacity.dtype)
        for lo, hi in ((a, b), (c, d)):  # of the wings the asymptotic series
            inverse = 1 / (((grid[lo:hi] - centre) ** 2).astype(opacity.dtype) + squared)
            opacity[:, lo:hi] += amplitude * inverse * (1 + variance * inverse)


def bands(grid: np.ndarray, air: Atmosphere) -> np.ndarray:
    """Stylised opacity of TiO and CN on `grid` (A, at rest), (layer, point), cm2 per H nucleus."""
    result = np.zeros((len(air.tau), len(grid)))
    for molecule, number in molecules(air).items():
        for head, strength, lower, width in BANDS[molecule]:
            redward = grid - head
            shape = expit(redward / HEAD_RISE) * np.exp(-np.maximum(redward, 0) / width) / width
            excited = number * np.exp(-lower / (BOLTZMANN_EV * air.temperature))
            result += np.outer(8.8528e-21 * head**2 * strength * excited, shape)
    return result


def planck(grid: np.ndarray, temperature: np.ndarray) -> np.ndarray:
    """Planck's function per unit wavelength, in units of its own, (layer, point)."""
    return grid**-5.0 / np.expm1(HC_K / (grid * temperature[:, None])) * 1e20


def optical_depth(ratio: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Optical depth, (layer, ...), of an opacity `ratio` times that of the scale `reference`."""
    result = np.empty_like(ratio)
    result[0] = ratio[0] * ratio.dtype.type(reference[0])
    steps = (np.diff(reference) / 2).astype(ratio.dtype)
    for i, step in enumerate(steps, 1):  # ten times faster than cumsum along the first axis
        result[i] = result[i - 1] + step * (ratio[i - 1] + ratio[i])
    return result


def emergent(tau: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Flux that leaves the surface, pi F, by two rays; between layers the source is their mean.

    Args:
        tau: (layer, ...) optical depth, growing inwards; `source`: (layer, ...), broadcasts.
    Returns:
        (...,); with a constant source S it is pi S.
    """
    total = 0.0
    for mu, weight in RAYS:
        transmitted = np.exp(tau * np.asarray(-1 / mu, tau.dtype))
        flux = source[0] * (1 - transmitted[0]) + source[-1] * transmitted[-1]
        flux = flux + ((transmitted[:-1] - transmitted[1:]) * (source[:-1] + source[1:])).sum(0) / 2
        total = total + 2 * np.pi * weight * mu * flux
    return total


def line_spread() -> np.ndarray:
    """Weights, of sum 1, of the fine points around a pixel: Gaussian LSF and box."""
    fine = STEP / OVERSAMPLING
    half = int(np.ceil(5 * LSF_FWHM / 2.3548 / STEP)) * OVERSAMPLING
    gauss = np.exp(-0.5 * ((np.arange(-half, half + 1) * fine) / (LSF_FWHM / 2.3548)) ** 2)
    kernel = np.convolve(gauss, np.ones(OVERSAMPLING))
    return kernel / kernel.sum()


def _observed_flux(air: Atmosphere, margin: int = 0, doppler: float = 1.0) -> np.ndarray:
    """Flux in each pixel after LSF and rebinning, (PIXELS + 2 margin,), in units of its own."""
    kernel = line_spread()
    pad = (len(kernel) // OVERSAMPLING - 1) // 2 + 1
    pixel = wavelength(margin=margin + pad) / doppler
    step = STEP / OVERSAMPLING / doppler
    grid = pixel[0] + step * (np.arange(len(pixel) * OVERSAMPLING) - (OVERSAMPLING - 1) / 2)
    inner = (air.temperature, air.electron_pressure, air.hydrogen, air.neutral_hydrogen)
    smooth = continuum(pixel, *(quantity[:, None] for quantity in inner)) + bands(pixel, air)
    smooth = (smooth / air.opacity[:, None]).astype(np.float32)
    source = planck(pixel, air.temperature)
    source = (source / source.mean()).astype(np.float32)
    opacity = np.zeros((len(air.tau), len(grid)), np.float32)
    add_lines(opacity, grid, air, air.opacity)
    opacity = opacity.reshape(len(air.tau), -1, OVERSAMPLING)
    fine = []
    for i in range(0, len(pixel), CACHED):
        piece = np.s_[:, i : i + CACHED]
        depth = optical_depth(opacity[piece] + smooth[piece][..., None], air.tau)
        fine.append(emergent(depth, source[piece][..., None]))
    first = pad * OVERSAMPLING + OVERSAMPLING // 2 - (len(kernel) + 1) // 2
    windows = np.lib.stride_tricks.sliding_window_view(np.concatenate(fine).ravel(), len(kernel))
    return windows[first::OVERSAMPLING][: PIXELS + 2 * margin] @ kernel


def synthesize(
    T_eff: float,
    log_g: float,
    M_H: float,
    a_M: float = 0.0,
    C_M: float = 0.0,
    rv_kms: float = 0.0,
    margin: int = 0,
) -> np.ndarray:
    """Spectrum of one star at `wavelength()`, its median .5.

    Args:
        T_eff: K; `log_g`: log10 of cm/s2.
        M_H, a_M, C_M: dex relative to the Sun, the last two relative to the other metals.
        rv_kms: radial velocity, km/s, positive when receding.
        margin: pixels more at both ends, which do not count for the median.
    Returns:
        (PIXELS + 2 margin,) float64.
    Raises:
        ValueError: a label is outside `LABEL_LIMITS`, or the velocity beyond 1,000 km/s.
    """
    for name, value in zip(LABELS, (T_eff, log_g, M_H, a_M, C_M), strict=True):
        low, high = LABEL_LIMITS[name]
        require(low <= value <= high, name, value, f"in [{low}, {high}]")
    require(abs(rv_kms) <= 1000, "rv_kms", rv_kms, "in [-1000, 1000]")
    air = atmosphere(T_eff, log_g, abundances(M_H, a_M, C_M))
    flux = _observed_flux(air, margin, 1 + rv_kms / SPEED_OF_LIGHT)
    return flux * (0.5 / np.median(flux[margin : margin + PIXELS]))
