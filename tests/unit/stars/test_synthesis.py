import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import voigt_profile

from fieldbook.spectra.information import bound, fisher, maximum_likelihood
from fieldbook.stars import atmosphere as atmosphere_module
from fieldbook.stars import emulator as emulator_module
from fieldbook.stars import noise, synthesis
from fieldbook.stars.atmosphere import (
    abundances,
    atmosphere,
    continuum,
    electron_pressure,
    h_minus,
    hydrogen_levels,
    hydrostatic,
    log_partition,
    molecules,
    saha,
    stages,
)
from fieldbook.stars.emulator import SMALL, emulator
from fieldbook.stars.noise import signal_to_noise
from fieldbook.stars.observation import CHUNK, draw, spectra
from fieldbook.stars.synthesis import (
    LABELS,
    LSF_FWHM,
    OVERSAMPLING,
    PIXELS,
    STEP,
    add_lines,
    emergent,
    line_constants,
    line_spread,
    lines,
    optical_depth,
    planck,
    synthesize,
    vacuum,
    wavelength,
)

SUN = (5777, 4.44, 0.0)
RANGES = {name: (values[0], values[-1]) for name, values in SMALL.items()}


@pytest.fixture(scope="module")
def sun():
    return synthesize(*SUN)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return emulator(tmp_path_factory.mktemp("emulator"), SMALL)


def equivalent_width(flux, low, high):
    """Area of a line, A, below the straight line through the brightest pixels near both ends."""
    wave = wavelength()
    inside = (wave > low) & (wave < high)
    x, y = wave[inside], flux[inside]
    continuum = np.interp(x, [x[0], x[-1]], [y[:4].max(), y[-4:].max()])
    return float(((1 - y / continuum) * STEP).sum())


# Physics of the layers


def test_h_minus_free_free_is_that_of_bell_and_berrington():
    """Their table (1987, J. Phys. B 20, 801), to which John fitted: 1e-26 cm4/dyn at theta = .5, 1,
    2."""
    theta = np.array([0.5, 1.0, 2.0])
    for angstrom, expected in ((5063, (0.0965, 0.195, 0.390)), (9113, (0.293, 0.576, 1.06))):
        _, free = h_minus(np.array(float(angstrom)), 5040 / theta)
        assert free / 1e-26 == pytest.approx(expected, rel=0.01)


def test_h_minus_bound_free_ends_at_its_threshold_and_peaks_near_8500():
    """The cross-section peaks near 8,500 A at 4e-17 cm2 (Wishart 1979); Saha turns it into the
    coefficient."""
    wave = np.arange(4000, 17000, 10.0)
    t = 5040.0
    bound_free, _ = h_minus(wave, np.array(t))
    ions = 0.750 * t**-2.5 * np.exp(1.438777e8 / 16419 / t)
    cross_section = bound_free / ions / -np.expm1(-1.438777e8 / wave / t) * 1e18
    assert (
        cross_section.max() == pytest.approx(40, rel=0.03)
        and abs(wave[cross_section.argmax()] - 8500) < 300
    )
    assert (bound_free[wave > 16419] == 0).all()
    saha_ions = 1 / (
        4 * 0.33333 * t**2.5 * np.exp(-0.7542 / (8.617333e-5 * t))
    )  # n(H-) / (n(H) p_e), U(H-) = 1
    assert ions * 1e-18 * 1e18 == pytest.approx(saha_ions, rel=0.01)


def test_hydrogen_jumps_where_its_third_level_is_freed():
    t = np.array(6000.0)
    level = 9 * np.exp(-12.0875 / (8.617333e-5 * t))
    blue, red = (
        hydrogen_levels(np.array(w), t) / w**3 / -np.expm1(-1.438777e8 / w / t)
        for w in (8300.0, 8480.0)
    )
    kramers = (
        7.91e-18 * 3 / 8203.6**3
    )  # at the edge 7.91e-18 n cm2, falling as the cube of the wavelength
    assert blue - red == pytest.approx(level * kramers, rel=0.01)


def test_saha_by_hand():
    """Hydrogen at 10,000 K: .6665 * U+/U (= 1/2) * 1e10 * 10^(-13.5984 * .50400)."""
    by_hand = 0.6665 * 0.5 * 1e10 * 10 ** (-13.5984 * 5039.8 / 1e4)
    assert float(saha("H", 1, np.array(1e4))) == pytest.approx(by_hand, rel=2e-3)
    assert np.exp(log_partition("Ca", 1, np.array(5040.0))) == pytest.approx(1.18, abs=0.05)
    share = stages("Ca", np.array([3500.0, 5500, 9500]), np.array([0.1, 10, 10.0]))
    assert share.sum(0) == pytest.approx(1) and share[1, 1] > 0.99 and share[2, 2] > share[1, 2]


def test_electrons_balance_the_charge_of_the_ions():
    t, p = np.array([2700.0, 4500, 6000, 9700]), np.array([10, 1e5, 1e4, 3e5])
    a = abundances(0.5, 0.2, 0)
    share = np.array(list(a.values())) / sum(a.values())
    phi = np.stack([saha(element, 1, t) for element in a])
    electrons = electron_pressure(p, share, phi)
    ions = sum(c * (p - electrons) * x / (x + electrons) for c, x in zip(share, phi, strict=True))
    assert ions == pytest.approx(electrons, rel=1e-9) and (electrons < p / 2).all()


def test_hydrostatic_equilibrium_of_power_laws():
    """kappa = k tau^b has P = g tau^(1 - b) / (k (1 - b)); below a top of constant opacity, b = 0
    is exact."""
    tau = 10 ** np.linspace(-4.5, 1.7, 24)
    assert hydrostatic(tau, 1e4, np.full(24, 0.2), 1e4 * tau / 0.2) == pytest.approx(
        1e4 * tau / 0.2, rel=1e-12
    )
    opacity, pressure = 0.2 * tau**0.4, 1e4 * tau**0.6 / (0.2 * 0.6)
    assert hydrostatic(tau, 1e4, opacity, pressure)[14:] == pytest.approx(pressure[14:], rel=1e-3)


def test_atmosphere_is_in_equilibrium():
    a = abundances(0, 0, 0)
    air = atmosphere(5777, 4.44, a)
    gram = 1.6735e-24 * (1 + 0.0851 * 4 / 1.0) * 1.01  # per hydrogen nucleus: H, He and 1 % more
    slope = np.gradient(np.log(air.pressure), np.log(air.tau))
    assert slope[2:-2] == pytest.approx(
        (air.tau * 10**4.44 * gram / air.opacity / air.pressure)[2:-2], rel=0.05
    )
    again = continuum(
        np.array(5000.0), air.temperature, air.electron_pressure, air.hydrogen, air.neutral_hydrogen
    )
    assert air.opacity == pytest.approx(again, rel=1e-3)
    assert np.log10(np.interp(1, air.tau, air.pressure)) == pytest.approx(
        5.1, abs=0.1
    )  # the Sun: 1.2e5 dyn/cm2


def test_carbon_monoxide_leaves_titanium_the_oxygen_that_carbon_does_not_bind():
    def tio(c_m):
        air = atmosphere(3800, 4.5, abundances(0, 0, c_m))
        return molecules(air)["TiO"][10]

    assert tio(0.4) < 0.05 * tio(0) < 0.05 * tio(-0.4)  # C/O 1.4, .55, .2
    cold, hot = (
        molecules(atmosphere(t, 4.5, abundances(0, 0, 0)))["TiO"][10] for t in (3800, 5500)
    )
    assert hot < 1e-3 * cold


# Lines and light


def test_wavelengths_in_vacuum():
    """Known pairs: Ca II triplet, K I, Na I (NIST)."""
    air = np.array([8498.02, 8542.09, 8662.14, 7698.97, 8183.26])
    assert vacuum(air) == pytest.approx([8500.36, 8544.44, 8664.52, 7701.08, 8185.51], abs=0.02)


def test_lines_are_voigt_profiles():
    air = atmosphere(5000, 4.5, abundances(0, 0, 0))
    grid = 8688.0 + np.arange(-400, 401) * 0.05
    opacity = np.zeros((len(air.tau), len(grid)))
    add_lines(opacity, grid, air, air.opacity)
    strength, sigma, gamma = line_constants(air)
    layer = 12
    exact = (
        sum(
            s[layer] * voigt_profile(grid - centre, w[layer], g[layer])
            for s, w, g, centre in zip(strength, sigma, gamma, lines().wavelength, strict=True)
        )
        / air.opacity[layer]
    )
    assert np.abs(opacity[layer] - exact).max() < 0.02 * 1 and exact.max() > 10
    assert opacity[layer][exact > 0.3] == pytest.approx(exact[exact > 0.3], rel=0.05)


def test_flux_of_known_atmospheres():
    """An isothermal one radiates pi B; with S = a + b tau two rays give pi (a + 2/3 b), as exactly
    as two can."""
    tau = np.concatenate([[1e-6], 10 ** np.linspace(-4, 2.5, 400)])
    assert emergent(tau, np.ones_like(tau)) == pytest.approx(np.pi)
    assert emergent(tau, 1 + 3 * tau) == pytest.approx(np.pi * 3, rel=2e-3)
    reference = np.linspace(0.1, 2, 7)
    assert optical_depth(np.full((7, 3), 2.0), reference) == pytest.approx(
        np.outer(2 * reference, np.ones(3))
    )
    total, _ = quad(
        lambda w: planck(np.array([w]), np.array([6000.0]))[0, 0] / 1e20, 500, 1e6, limit=400
    )
    assert total * 2 * 5.9552e-6 * 1e40 / 1e40 == pytest.approx(total * 1.19104e-5)
    peak = np.arange(4000, 6000, 1.0)
    assert peak[planck(peak, np.array([6000.0]))[0].argmax()] == pytest.approx(
        2.8978e7 / 6000, abs=1
    )


def test_line_spread_keeps_the_area_and_has_its_width():
    kernel = line_spread()
    offset = (np.arange(len(kernel)) - (len(kernel) - 1) / 2) * STEP / OVERSAMPLING
    assert kernel.sum() == pytest.approx(1) and kernel @ offset == pytest.approx(0, abs=1e-12)
    box = STEP**2 / 12 * (1 - OVERSAMPLING**-2)
    assert kernel @ offset**2 == pytest.approx((LSF_FWHM / 2.35482) ** 2 + box, rel=1e-3)


@pytest.mark.parametrize("line", [8500.36, 8544.44, 8664.52, 7667.02, 7701.08, 8185.51])
def test_lines_lie_where_they_belong(line, sun):
    wave = wavelength()
    near = np.abs(wave - line) < 2.5
    assert abs(wave[near][sun[near].argmin()] - line) <= STEP
    moved = synthesize(*SUN, rv_kms=100) if line == 8544.44 else None
    if moved is not None:
        near = np.abs(wave - line * (1 + 100 / 299792.458)) < 2.5
        assert abs(wave[near][moved[near].argmin()] - line * (1 + 100 / 299792.458)) <= STEP


def test_lines_of_the_sun_have_their_strength(sun):
    """Equivalent widths of the solar atlas (Moore et al. 1966), A; ours is LTE, with 160 lines."""
    observed = {
        (8183.0, 8191.0): 0.23,
        (7697.0, 7705.0): 0.154,
        (8802.0, 8815.0): 0.48,
        (8688.0, 8694.0): 0.27,
    }
    for window, expected in observed.items():
        assert equivalent_width(sun, *window) == pytest.approx(expected, rel=0.25)
    assert 2.5 < equivalent_width(sun, 8525, 8568) < 3.7  # Ca II; 3.67 with its farthest wings
    assert np.median(sun) == pytest.approx(0.5)


def test_gravity_acts_through_pressure():
    """At one temperature: Na I and Mg I grow towards dwarfs, Paschen lines and Ca II towards
    giants."""
    sodium, magnesium, calcium, paschen = (8178, 8191), (8802, 8815), (8525, 8568), (8744, 8762)
    giant, dwarf = (synthesize(4800, g, -0.5) for g in (1.5, 4.6))
    assert equivalent_width(dwarf, *sodium) > 1.3 * equivalent_width(giant, *sodium)
    assert equivalent_width(dwarf, *magnesium) > 1.3 * equivalent_width(giant, *magnesium)
    giant, dwarf = (synthesize(5500, g, 0) for g in (1.5, 4.6))
    assert equivalent_width(giant, *paschen) > 1.2 * equivalent_width(dwarf, *paschen)
    assert equivalent_width(giant, *calcium) > 1.4 * equivalent_width(dwarf, *calcium)


def test_labels_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"log_g = 7.*in \[0, 5.5\]"):
        synthesize(5000, 7, 0)
    with pytest.raises(ValueError, match="rv_kms = 5000"):
        synthesize(5000, 4, 0, rv_kms=5000)


# Emulator


def off_grid(n, seed=0):
    stars = draw(n, seed, RANGES)
    return torch.tensor(stars[list(LABELS)].to_numpy()), torch.tensor(
        stars.redshift.to_numpy() * 299792.458
    )


def test_emulator_agrees_with_the_synthesiser_off_its_nodes(small):
    labels, rv = off_grid(12)
    direct = np.stack(
        [synthesize(*star, rv_kms=v) for star, v in zip(labels.tolist(), rv.tolist(), strict=True)]
    )
    rms = np.sqrt(((small(labels, rv).numpy() - direct) ** 2).mean(1))
    assert np.median(rms) < 0.001 and rms.max() < 0.003


def test_emulator_is_exact_at_its_nodes(small):
    star = [4800.0, 3.25, -0.6, 0.3, 0.0]
    assert small(torch.tensor([star], dtype=torch.float64))[0].numpy() == pytest.approx(
        synthesize(*star), abs=1e-5
    )


def test_derivatives_are_those_of_finite_differences(small):
    labels, rv = off_grid(3)
    flux, jacobian = small.jacobian(labels, rv)
    assert torch.equal(flux, small(labels, rv))
    for i, step in enumerate((1e-2, 1e-5, 1e-5, 1e-5, None, 1e-4)):
        if step is None:
            assert (jacobian[..., i] == 0).all()
            continue
        along = torch.zeros_like(labels)
        if i < 5:
            along[:, i] = step
        by = step if i == 5 else 0.0
        difference = (small(labels + along, rv + by) - small(labels - along, rv - by)) / (2 * step)
        assert torch.allclose(
            jacobian[..., i], difference, rtol=1e-4, atol=1e-4 * float(difference.abs().max())
        )


def test_derivatives_are_those_of_the_synthesiser(small):
    """Up to the normalisation: the flux at the median pixel jumps from pixel to pixel."""
    star, step = np.array([4720, 3.4, -0.5, 0.1, 0]), np.diag([30, 0.1, 0.08, 0.06, 0])
    flux, jacobian = small.jacobian(torch.tensor(star[None]), 30.0)
    flux = flux[0].numpy()
    for i in range(4):
        pair = [synthesize(*(star + sign * step[i]), rv_kms=30) for sign in (1, -1)]
        difference = (pair[0] - pair[1]) / (2 * step[i, i])
        error = jacobian[0, :, i].numpy() - difference
        error -= flux * (flux @ error) / (flux @ flux)
        assert np.sqrt((error**2).mean()) < 0.1 * np.sqrt((difference**2).mean())
    difference = (synthesize(*star, rv_kms=31) - synthesize(*star, rv_kms=29)) / 2
    assert np.abs(jacobian[0, :, 5].numpy() - difference).max() < 0.05 * np.abs(difference).max()


def test_emulator_keeps_precision_and_is_read_again(small, tmp_path):
    labels, rv = off_grid(4)
    single = small(labels.float(), rv.float())
    assert single.dtype == torch.float32 and torch.allclose(
        single.double(), small(labels, rv), atol=2e-4
    )
    nodes = {name: values[:1] for name, values in SMALL.items()} | {"T_eff": (4500, 4600)}
    built = emulator(tmp_path, nodes, components=1)
    (path,) = tmp_path.glob("*.safetensors")
    written = path.stat().st_mtime_ns
    labels = torch.tensor([[4550.0, 2.5, -1, 0, 0]])
    assert torch.equal(emulator(tmp_path, nodes, components=1)(labels), built(labels))
    assert path.stat().st_mtime_ns == written
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="delete it"):
        emulator(tmp_path, nodes, components=1)


@pytest.mark.parametrize(
    ("module", "name", "value", "changes"),
    [
        (synthesis, "MICROTURBULENCE", 1.0, True),
        (synthesis, "LINES", synthesis.LINES[:-1], True),
        (synthesis, "planck", lambda grid, temperature: grid, True),
        (atmosphere_module, "MOLECULES", -atmosphere_module.MOLECULES, True),
        (atmosphere_module, "SUN", {0: 1.0}, True),
        (emulator_module, "MARGIN", 25, True),
        (emulator_module, "FASTEST", 200.0, False),
        (noise, "ELECTRONS", 50.0, False),
    ],
)
def test_an_emulator_is_known_by_what_makes_it(monkeypatch, module, name, value, changes):
    before = emulator_module._fingerprint(SMALL, 8)
    assert before != emulator_module._fingerprint(SMALL, 7)
    monkeypatch.setattr(module, name, value)
    assert (emulator_module._fingerprint(SMALL, 8) != before) == changes


def test_emulator_names_what_it_cannot_do(small, tmp_path):
    labels, _ = off_grid(2)
    with pytest.raises(ValueError, match=r"log_g = 4.5.*2.5 to 4.0"):
        small(labels + torch.tensor([0, 4.5, 0, 0, 0]) - labels * torch.tensor([0, 1, 0, 0, 0]))
    with pytest.raises(ValueError, match="rv_kms = 400"):
        small(labels, 400.0)
    with pytest.raises(ValueError, match=r"labels\.shape"):
        small(labels[:, :4])
    with pytest.raises(ValueError, match=r"nodes.*logg"):
        emulator(tmp_path, {"logg": (1, 2)})
    with pytest.raises(ValueError, match=r"nodes\['a_M'\]"):
        emulator(tmp_path, {"a_M": (0.3, 0.1)})
    with pytest.raises(ValueError, match="two values"):
        emulator(tmp_path, {name: values[:1] for name, values in SMALL.items()})


# Observation


def test_data_sets_are_a_function_of_their_seed_and_begin_alike(small):
    n = CHUNK + 10
    wave, flux, error, stars = spectra(n, 3, small)
    again, shorter = spectra(n, 3, small), spectra(20, 3, small)
    assert (
        np.array_equal(flux, again[1])
        and np.array_equal(error, again[2])
        and stars.equals(again[3])
    )
    assert np.array_equal(flux[:20], shorter[1]) and np.array_equal(error[:20], shorter[2])
    assert stars[:20].equals(shorter[3])
    assert not np.array_equal(flux[:20], spectra(20, 4, small)[1])
    assert flux.shape == (n, PIXELS) == error.shape and flux.dtype == error.dtype == np.float32
    assert list(stars) == [*LABELS, "mag", "redshift", "snr"] and np.array_equal(wave, wavelength())
    assert stars.snr.to_numpy() == pytest.approx(np.median(flux / error, axis=1), rel=1e-3)
    assert np.median(flux, axis=1) == pytest.approx(0.5, abs=3e-3)


def test_stars_fill_their_ranges_evenly():
    stars = draw(4000, 0, RANGES, rv_kms=50)
    for name, (low, high) in (
        RANGES | {"mag": (20.5, 22.5), "redshift": (-50 / 299792.458, 50 / 299792.458)}
    ).items():
        assert stars[name].between(low, high).all()
        assert stars[name].std() == pytest.approx((high - low) / np.sqrt(12), rel=0.05)
    assert (
        np.abs(
            np.corrcoef(stars[["T_eff", "log_g", "M_H", "a_M", "mag", "redshift"]].T) - np.eye(6)
        ).max()
        < 0.06
    )
    with pytest.raises(ValueError, match="log_g"):
        draw(5, 0, RANGES | {"log_g": (4, 1)})


def test_noise_is_that_of_its_electrons():
    flux = torch.full((1, PIXELS), 0.5, dtype=torch.float64)
    sigma = noise.error(flux, torch.tensor([21.5], dtype=torch.float64))
    pixel = 1500
    star, sky = 40 * noise.throughput()[pixel], noise.sky()[pixel]
    by_hand = np.sqrt(12 * (star + sky + 108) + (0.12 * sky) ** 2) / (12 * star) * 0.5
    assert float(sigma[0, pixel]) == pytest.approx(by_hand)
    assert noise.sky().max() > 11_000 and np.median(noise.sky()) < 250


@pytest.mark.parametrize(("mag", "expected"), [(20.5, 18.4), (21.5, 8.1), (22.5, 3.4)])
def test_signal_to_noise(mag, expected, sun):
    flux = torch.tensor(sun)[None]
    ratio = float(signal_to_noise(sun[None], noise.error(flux, torch.tensor([mag])).numpy()).item())
    assert ratio == pytest.approx(expected, rel=0.05)


def test_maximum_likelihood_reaches_the_bound_on_bright_stars(small):
    g = torch.Generator().manual_seed(0)
    labels = torch.tensor([[4800, 3.3, -0.5, 0.15, 0.0]], dtype=torch.float64).repeat(200, 1)
    used = [0, 1, 2, 3, 5]

    def model(theta):
        theta = theta.float()  # whose rounding must not keep the fit from settling
        flux, jacobian = small.jacobian(torch.cat([theta[:, :4], 0 * theta[:, :1]], 1), theta[:, 4])
        return flux, jacobian[..., used]

    truth = torch.cat([labels[:, :4], torch.full((200, 1), 20.0, dtype=torch.float64)], 1)
    flux, jacobian = model(truth[:1])
    sigma = noise.error(flux, torch.tensor([18.0]))
    data = flux + sigma * torch.randn(200, PIXELS, generator=g, dtype=torch.float64)
    low, high = (
        torch.tensor([SMALL[n][i] for n in LABELS[:4]] + [100.0 * s]) for i, s in ((0, -1), (-1, 1))
    )
    start = truth + torch.tensor([80, -0.3, 0.15, -0.05, 15.0])
    fit = maximum_likelihood(model, data, sigma.expand_as(data), start, lower=low, upper=high)
    least = float(bound(fisher(jacobian, sigma), 1))
    assert (
        fit.converged.all()
        and 0.8 < float((fit.estimate[:, 1] - 3.3).square().mean()) / least < 1.3
    )
