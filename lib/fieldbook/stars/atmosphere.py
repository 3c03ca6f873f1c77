"""A model atmosphere in local thermodynamic equilibrium: where light is made, and out of what.

Temperature follows the Sun's, scaled by T_eff; gravity enters through hydrostatic equilibrium
alone, which sets the pressure at each optical depth, hence ionisation, molecules, opacity and the
broadening of lines. Left out: convection, spheres, H2, and the effect of lines on the temperature.

Tables beside this file: `atoms.csv` (solar abundances, Asplund et al. 2009, ARA&A 47, 481;
ionisation energies; cubics in ln T - 8.5 for the logarithm of the partition functions of Barklem &
Collet 2016, A&A 588, A96, over 2,500-12,000 K) and `molecules.csv` (dissociation constants, same
source). CGS units throughout, wavelengths in A.
"""

from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import pandas as pd
from scipy.interpolate import CubicSpline
from scipy.special import expit

BOLTZMANN, BOLTZMANN_EV = 1.380649e-16, 8.617333e-5
HYDROGEN_MASS, ATOMIC_MASS = 1.6735e-24, 1.66054e-24
HC_K = 1.438777e8  # h c / k, A K
RYDBERG_EV, LAST_PASCHEN = 13.5984, 20  # the upper level of the last Paschen line that stands alone
MERGING = 10.0  # A over which merged lines turn into the continuum
ALPHA_ELEMENTS = ("O", "Mg", "Si", "S", "Ca", "Ti")
REFERENCE = 5000.0  # A, the wavelength of the optical depth scale

SUN = {-4.5: 0.72, -4: 0.735, -3.5: 0.76, -3: 0.785, -2.5: 0.812, -2: 0.84, -1.5: 0.868}
SUN |= {-1: 0.905, -0.5: 0.975, 0: 1.106, 0.5: 1.29, 1: 1.47, 1.7: 1.62}
"""T / T_eff of the Sun at log10 of the optical depth."""


def table(name: str) -> pd.DataFrame:
    """A table of constants shipped with the package."""
    with (files("fieldbook.stars") / f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


ATOMS = {(row.element, row.stage): row for row in table("atoms").itertuples()}
MOLECULES = table("molecules").iloc[::-1]  # by rising 1/T


@dataclass(frozen=True)
class Atmosphere:
    """Layers from the top down.

    Attributes:
        tau, temperature: (layer,), optical depth at 5000 A, K.
        pressure, electron_pressure: (layer,), dyn/cm2.
        opacity: (layer,) at 5000 A, cm2 per hydrogen nucleus.
        neutral_hydrogen: (layer,) share of its nuclei.
        hydrogen: (layer,) nuclei per cm3.
        abundance: nuclei of an element per hydrogen nucleus.
    """

    tau: np.ndarray
    temperature: np.ndarray
    pressure: np.ndarray
    electron_pressure: np.ndarray
    opacity: np.ndarray
    neutral_hydrogen: np.ndarray
    hydrogen: np.ndarray
    abundance: dict[str, float]

    @property
    def electrons(self) -> np.ndarray:
        """(layer,) per cm3."""
        return self.electron_pressure / (BOLTZMANN * self.temperature)


def mass(element: str) -> float:
    """Atomic mass, u."""
    return ATOMS[element, 1].mass_u


def ionisation_energy(element: str, stage: int) -> float:
    """Energy that takes an atom from a stage (1 is neutral) to the next, eV."""
    return ATOMS[element, stage].ionization_eV


def abundances(m_h: float, a_m: float, c_m: float) -> dict[str, float]:
    """Nuclei per hydrogen nucleus: solar, scaled by [M/H], [alpha/M] (O Mg Si S Ca Ti), [C/M]."""
    found = {}
    for (element, stage), row in ATOMS.items():
        if stage == 1:
            metal = element not in ("H", "He")
            shift = m_h + a_m * (element in ALPHA_ELEMENTS) + c_m * (element == "C") if metal else 0
            found[element] = 10 ** (row.A_solar - 12.0 + shift)
    return found


def log_partition(element: str, stage: int, temperature: np.ndarray) -> np.ndarray:
    """ln U of an atom or ion, (layer,)."""
    if stage == 3:  # U = 1 is exact for Ca III, the only one that gets numerous
        return np.zeros_like(temperature)
    row, x = ATOMS[element, stage], np.log(temperature) - 8.5
    return ((row.lnU_c3 * x + row.lnU_c2) * x + row.lnU_c1) * x + row.lnU_c0


def saha(element: str, stage: int, temperature: np.ndarray) -> np.ndarray:
    """n(stage + 1) / n(stage) times electron pressure, dyn/cm2.

    Source: 2 U'/U (2 pi m_e)^(3/2) (k T)^(5/2) / h^3 exp(-chi / k T); e.g. Gray 2005, eq. 1.20.
    """
    upper = log_partition(element, stage + 1, temperature)
    lower = log_partition(element, stage, temperature)
    chi = ionisation_energy(element, stage)
    boltzmann = upper - lower - chi / (BOLTZMANN_EV * temperature)
    return 0.66667 * temperature**2.5 * np.exp(boltzmann)


def stages(element: str, temperature: np.ndarray, electron_pressure: np.ndarray) -> np.ndarray:
    """Shares of an element's nuclei that are neutral, once and twice ionised, (3, layer)."""
    first = saha(element, 1, temperature) / electron_pressure
    second = 0 * first  # hydrogen has one electron
    if element != "H":
        second = first * saha(element, 2, temperature) / electron_pressure
    return np.stack([np.ones_like(first), first, second]) / (1 + first + second)


def electron_pressure(pressure: np.ndarray, share: np.ndarray, phi: np.ndarray) -> np.ndarray:
    """Pressure of the electrons that singly ionised atoms have given off.

    Newton's method in the logarithm, from above: p^2 <= P sum_i c_i Phi_i and p <= P / 2.

    Args:
        pressure: (layer,) of gas and electrons together, dyn/cm2.
        share: (element,), c_i, parts of all nuclei; `phi`: (element, layer), Phi_i from `saha`,
            dyn/cm2.
    Returns:
        (layer,) p with p = (P - p) sum_i c_i Phi_i / (Phi_i + p).
    """
    p = np.minimum(np.sqrt(pressure * (share @ phi)), pressure / 2)
    for _ in range(12):
        ionised = phi / (phi + p)
        given = share @ ionised
        slope = share @ (ionised * (1 - ionised)) / given + p / (pressure - p) + 1
        p = np.minimum(p * ((pressure - p) * given / p) ** (1 / slope), pressure / 2)
    return p


# John 1988, table 3a, for wavelengths above 0.3645 um: rows n = 2..6, columns A_n .. F_n
_FREE_FREE = np.array(
    [
        (2483.346, 285.827, -2054.291, 2827.776, -1341.537, 208.952),
        (-3449.889, -1158.382, 8746.523, -11485.632, 5303.609, -812.939),
        (2200.040, 2427.719, -13651.105, 16755.524, -7510.494, 1132.738),
        (-696.271, -1841.400, 8624.970, -10051.530, 4400.067, -655.020),
        (88.283, 444.517, -1863.864, 2095.288, -901.788, 132.985),
    ]
)
_BOUND_FREE = (4.982, -34.194, 92.536, -118.858, 49.534, 152.519)  # C_6 .. C_1
_THRESHOLD = 1.6419  # um


def h_minus(wavelength: np.ndarray, temperature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Absorption by H-, bound-free and free-free, with stimulated emission.

    Args:
        wavelength: A, from 3645 up; `temperature`: K, 1400-10,080; they broadcast.
    Returns:
        Each cm2 per neutral hydrogen atom and dyn/cm2 of electron pressure.
    Source: John 1988 (A&A 193, 189), equations 3-6; free-free after Bell & Berrington 1987.
    """
    micron, theta = wavelength / 1e4, 5040 / temperature
    above = np.sqrt(np.maximum(1 / micron - 1 / _THRESHOLD, 0))
    cross_section = 1e-18 * micron**3 * above**3 * np.polyval(_BOUND_FREE, above)
    heat = HC_K / 1e4 / temperature
    ions = 0.750 * temperature**-2.5 * np.exp(heat / _THRESHOLD)
    bound = ions * -np.expm1(-heat / micron) * cross_section
    powers = np.stack([micron**k for k in (2.0, 0.0, -1.0, -2.0, -3.0, -4.0)])
    terms = np.tensordot(_FREE_FREE, powers, 1)
    free = 1e-29 * sum(theta ** ((n + 3) / 2) * term for n, term in enumerate(terms))
    return bound, free


def hydrogen_levels(wavelength: np.ndarray, temperature: np.ndarray) -> np.ndarray:
    """Bound-free and free-free absorption by H, n >= 3, with stimulated emission, Gaunt factors 1.

    Args:
        wavelength: A, from 3646 up; `temperature`: K; they broadcast.
    Returns:
        cm2 per neutral hydrogen atom.
    Source: Gray 2005, equations 8.5-8.10.
    """
    kt = BOLTZMANN_EV * temperature
    # levels from 8 up, and free electrons
    total = kt / (2 * RYDBERG_EV) * np.exp(-RYDBERG_EV * (1 - 7.5**-2) / kt)
    for n in range(3, 8):
        # lines above the last have merged: the continuum takes over, of the same strength
        edge = 911.75 / (n**-2.0 - (LAST_PASCHEN + 0.5) ** -2)
        bluer = expit((edge - wavelength) / MERGING)
        total = total + bluer * n**-3.0 * np.exp(-RYDBERG_EV * (1 - n**-2.0) / kt)
    return 1.0443e-26 * wavelength**3 * total * -np.expm1(-HC_K / (wavelength * temperature))


def continuum(
    wavelength: np.ndarray,
    temperature: np.ndarray,
    electron_pressure: np.ndarray,
    hydrogen: np.ndarray,
    neutral: np.ndarray,
) -> np.ndarray:
    """Continuous opacity, cm2 per hydrogen nucleus, with scattering taken as absorption.

    Args:
        wavelength: A; the others (layer,), `hydrogen` nuclei per cm3 and their `neutral` share;
            they broadcast.
    Source: Dalgarno 1962 for Rayleigh's scattering by H; `h_minus`, `hydrogen_levels`.
    """
    rayleigh = 5.799e-13 / wavelength**4 + 1.422e-6 / wavelength**6 + 2.784 / wavelength**8
    thomson = 6.6524e-25 * electron_pressure / (BOLTZMANN * temperature * hydrogen)
    absorbed = sum(h_minus(wavelength, temperature)) * electron_pressure
    absorbed = absorbed + hydrogen_levels(wavelength, temperature)
    return neutral * (absorbed + rayleigh) + thomson


def hydrostatic(
    tau: np.ndarray, surface_gravity: float, opacity: np.ndarray, pressure: np.ndarray
) -> np.ndarray:
    """One step of the fixed point of dP/dtau = g / kappa: the new pressure, (layer,), dyn/cm2.

    Integrates d P^(3/2) = 3/2 g tau P^(1/2) / kappa d ln tau, power laws between layers and a
    constant opacity above the first: exact for kappa a power of tau.

    Args:
        tau: (layer,); `surface_gravity`: cm/s2; `opacity`: (layer,), cm2/g, at `pressure`.
    Source: Gray 2005, The observation and analysis of stellar photospheres, eq. 9.9.
    """
    f = 1.5 * surface_gravity * tau * np.sqrt(pressure) / opacity
    slope = np.diff(np.log(f))
    exact = np.expm1(slope) / np.where(slope == 0, 1, slope)
    growth = np.where(np.abs(slope) > 1e-6, exact, 1 + slope / 2)
    steps = f[:-1] * growth * np.diff(np.log(tau))
    return (f[0] / 1.5 + np.concatenate([[0.0], steps.cumsum()])) ** (2 / 3)


def atmosphere(
    T_eff: float,
    log_g: float,
    abundance: dict[str, float],
    layers: int = 24,
    tolerance: float = 1e-5,
) -> Atmosphere:
    """Pressure, electrons and opacity of every layer in hydrostatic equilibrium.

    Args:
        T_eff: K; `log_g`: log10 of cm/s2; `tolerance`: largest change of ln P at the last
            iteration.
    Raises:
        ValueError: the pressure doesn't settle within 60 iterations.
    """
    log_tau = np.linspace(min(SUN), max(SUN), layers)
    tau = 10**log_tau
    temperature = T_eff * CubicSpline([*SUN], [*SUN.values()])(log_tau)
    share = np.array(list(abundance.values()))
    units = sum(a * mass(element) for element, a in abundance.items())
    gram = HYDROGEN_MASS * units / mass("H")  # per hydrogen nucleus
    phi = np.stack([saha(element, 1, temperature) for element in abundance])
    pressure = 10 ** (0.6 * log_g + 2.3) * np.sqrt(tau)
    for _ in range(60):
        electrons = electron_pressure(pressure, share / share.sum(), phi)
        hydrogen = (pressure - electrons) / (BOLTZMANN * temperature * share.sum())
        neutral = electrons / (electrons + phi[0])
        opacity = continuum(np.array(REFERENCE), temperature, electrons, hydrogen, neutral)
        new = hydrostatic(tau, 10.0**log_g, opacity / gram, pressure)
        settled = np.abs(np.log(new / pressure)).max() < tolerance
        pressure = new
        if settled:
            gas = (pressure, electrons, opacity, neutral, hydrogen)
            return Atmosphere(tau, temperature, *gas, abundance)
    star = f"T_eff = {T_eff}, log_g = {log_g}"
    raise ValueError(f"{star}: the pressure does not settle; expected 3500-6500 K and 0-5.5")


def molecules(air: Atmosphere) -> dict[str, np.ndarray]:
    """CN and TiO per hydrogen nucleus, (layer,), with CO, OH and N2 taking their share of atoms.

    CO is solved with OH, N2 and TiO on their own; what CN and TiO take from carbon, nitrogen and
    oxygen is neglected.
    """
    pressure = air.hydrogen * BOLTZMANN * air.temperature
    inverse = 1 / MOLECULES.temperature_K.to_numpy(float)
    k = {}  # dissociation constants
    for column in MOLECULES.columns[1:]:
        log = np.interp(1 / air.temperature, inverse, MOLECULES[column].to_numpy())
        k[column.split("_")[2]] = 10**log
    total = {element: air.abundance[element] * pressure for element in ("C", "N", "O", "Ti")}
    free = {e: stages(e, air.temperature, air.electron_pressure)[0] for e in ("C", "Ti")}
    with_oh = 1 + air.neutral_hydrogen * pressure / k["OH"]
    constant = k["CO"] * with_oh / free["C"]  # of (C in C I and C II) (O in O I and OH) / CO
    both = total["C"] + total["O"] + constant
    co = 2 * total["C"] * total["O"] / (both + np.sqrt(both**2 - 4 * total["C"] * total["O"]))
    carbon, oxygen = (total["C"] - co) * free["C"], (total["O"] - co) / with_oh
    nitrogen = 2 * total["N"] / (1 + np.sqrt(1 + 8 * total["N"] / k["N2"]))
    titanium = total["Ti"] / (1 / free["Ti"] + oxygen / k["TiO"])
    return {
        "CN": carbon * nitrogen / k["CN"] / pressure,
        "TiO": titanium * oxygen / k["TiO"] / pressure,
    }
