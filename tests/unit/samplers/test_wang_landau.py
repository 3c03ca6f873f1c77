"""Wang-Landau molecular dynamics against entropies that are known exactly."""

import math

import numpy as np
import pytest
import torch

from fieldbook.grokking.grokker import Grokker
from fieldbook.grokking.modular import task
from fieldbook.samplers import landscape
from fieldbook.samplers import wang_landau as wl
from fieldbook.samplers.potentials import harmonic, harmonic_entropy, two_wells, two_wells_entropy

SEEDS = 16


def run(energy, d, grid, *, steps, h, radius=1.4, walkers=8, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(SEEDS, walkers, d, generator=generator, dtype=torch.float64)
    w = wl.start(energy, radius * z / z.norm(dim=-1, keepdim=True), generator)
    return wl.wang_landau(energy, w, grid, generator, steps=steps, h=h, **options)


def slope(entropy, grid):
    """Least squares dS/d ln E of each seed."""
    x = grid.centres() - grid.centres().mean()
    return (entropy * x).sum(1) / x.square().sum() / math.log(10)


def errors(entropy, exact):
    """Mean over seeds minus truth, and its standard error, per bin, both curves with mean zero."""
    mean, se = entropy.mean(0), entropy.std(0) / math.sqrt(len(entropy))
    return mean - (exact - exact.mean()), se


@pytest.fixture(scope="module")
def ten():
    grid = wl.Grid(-0.5, 1.0, 15)
    return grid, run(harmonic, 10, grid, steps=3500, h=0.15, flat=True, first=0.1)


def test_harmonic_slope_is_half_the_dimension(ten):
    grid, found = ten
    for entropy in (found.entropy, wl.integrate(grid, found.force)):
        assert slope(entropy, grid).mean() == pytest.approx(5, rel=0.05)
    in_energy = found.entropy - math.log(10) * grid.centres()  # the Jacobian of E -> log10 E
    assert slope(in_energy, grid).mean() == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize(("d", "h", "radius"), [(3, 0.3, 1.4), (60, 0.05, 1.4)])
def test_harmonic_slope_in_other_dimensions(d, h, radius):
    grid = wl.Grid(-0.4, 0.4, 10)
    found = run(harmonic, d, grid, steps=2000, h=h, flat=True, first=0.1, walkers=4)
    for entropy in (found.entropy, wl.integrate(grid, found.force)):
        assert slope(entropy, grid).mean() == pytest.approx(d / 2, rel=0.05)


def test_gaussian_prior_adds_its_own_term():
    d, grid = 10, wl.Grid(-0.4, 1.2, 16)
    found = run(harmonic, d, grid, steps=2500, h=0.15, first=0.1)
    exact = harmonic_entropy(grid.centres(), d) - 10 ** grid.centres()  # ln of the prior is -E here
    for entropy in (found.entropy, wl.integrate(grid, found.force)):
        assert (errors(entropy, exact)[0]).abs().max() < 0.3


def test_two_wells_agree_with_quadrature():
    d, grid = 4, wl.Grid(-0.9, 1.1, 20)
    generator = torch.Generator().manual_seed(0)
    z = torch.zeros(SEEDS, 6, d, dtype=torch.float64)
    z[..., 0], z[..., 1] = 1.0, 1.0  # all in the lower well
    found = wl.wang_landau(
        two_wells,
        wl.start(two_wells, z, generator),
        grid,
        generator,
        steps=4000,
        h=0.12,
        flat=True,
        first=0.1,
    )
    error, se = errors(found.entropy, two_wells_entropy(grid.centres(), d))
    assert (
        error.abs().max() < 0.25 and found.entropy.mean(0).max() - found.entropy.mean(0).min() > 7
    )
    assert (error / se).square().mean() < 4


def test_error_bars_over_seeds_are_calibrated(ten):
    """With n seeds error / se is Student's t with n - 1 degrees of freedom: mean square (n - 1) /
    (n - 3) = 1.15."""
    grid, found = ten
    error, se = errors(found.entropy, harmonic_entropy(grid.centres(), 10))
    assert 0.3 < (error / se).square().mean() < 3
    single = (found.entropy - found.entropy.mean(0)).square().mean().sqrt()
    assert error.square().mean().sqrt() < 2.5 * single / math.sqrt(
        SEEDS
    )  # as a mean of independent seeds


def test_histogram_is_flat_and_the_factor_falls_as_one_over_t(ten):
    grid, found = ten
    assert wl.flatness(found.visits.sum(0)) > 0.7
    assert wl.flatness(found.visits).mean() > 0.5
    last = grid.count / (3500 * 8)
    assert (found.factor >= last).all() and (found.factor < 1.5 * last).all()
    assert found.visits.sum(1).eq(3500 * 8).all()  # walls: no walker ever leaves


def test_without_the_bias_potential_the_tails_are_not_visited():
    grid = wl.Grid(-1.0, 1.0, 20)
    free = run(harmonic, 30, grid, steps=800, h=0.1, flat=True, first=0.0)
    assert (free.visits.sum(0)[:8] == 0).all(), (
        "the volume at low energies is e^-60 of that at the top"
    )
    biased = run(harmonic, 30, grid, steps=3000, h=0.06, flat=True, first=0.1)
    assert (biased.visits.sum(0) > 0).all()


def test_a_start_from_the_mean_force_saves_the_climb():
    d, grid, generator = 400, wl.Grid(-0.2, 0.6, 8), torch.Generator().manual_seed(0)
    z = torch.randn(4, 1, d, generator=generator, dtype=torch.float64)
    w = wl.start(harmonic, 2.8 * z / z.norm(dim=-1, keepdim=True), generator)
    options = {"h": 0.02, "friction": 5.0, "flat": True}
    way = torch.linspace(0.65, -0.25, 3000).tolist()
    down, kept = wl.ramp(
        harmonic, w, grid, way, generator, stiffness=2e4, keep=range(0, 3000, 50), **options
    )
    assert slope(down.entropy, grid).mean() == pytest.approx(d / 2, rel=0.05)
    places = [-0.1, 0.1, 0.3, 0.5]
    w = wl.start(harmonic, wl.spread(kept, places), generator)
    assert (w.x - torch.tensor(places)).abs().max() < 0.05
    found = wl.wang_landau(
        harmonic, w, grid, generator, steps=1500, first=0.1, entropy=down.entropy, **options
    )
    assert slope(found.entropy, grid).mean() == pytest.approx(d / 2, rel=0.03)


def test_every_move_keeps_the_target_distribution():
    """At a fixed U = 2 ln E of a 6-d harmonic energy and the normal prior, E has a gamma
    distribution of shape 1."""
    generator, d = torch.Generator().manual_seed(0), 6
    w = wl.start(
        harmonic, torch.randn(1, 4000, d, generator=generator, dtype=torch.float64), generator
    )
    power = math.log(10) * 2
    for _ in range(150):
        w, taken, _ = wl.move(
            w,
            harmonic,
            lambda x: (power * x, torch.full_like(x, power)),
            generator,
            0.35,
            1.0,
            False,
        )
    energies = 10**w.x
    assert taken.double().mean() < 0.97, "the step is large enough for the test to matter"
    assert energies.mean() == pytest.approx(1, abs=0.08) and energies.var() == pytest.approx(
        1, abs=0.25
    )


def test_offline_histogram_depends_on_the_recording_and_not_on_the_landscape():
    grid = wl.Grid(-2.0, 0.0, 4)
    losses = 10 ** torch.linspace(-0.01, -1.99, 400)
    even = wl.offline_histogram(losses.tolist(), grid)
    assert even.diff().abs().max() < 0.03
    early = wl.offline_histogram(
        losses[torch.logspace(0, math.log10(399), 400).long()].tolist(), grid
    )
    assert early[-1] - early[0] > 1
    assert wl.offline_histogram([0.5, 100.0], grid).isinf().sum() == 3


def test_observations_are_averaged_where_they_were_made(ten):
    grid, _ = ten
    found = run(
        harmonic, 10, grid, steps=300, h=0.15, flat=True, observe=lambda z: harmonic(z)[0].log10()
    )
    seen = found.observed.isfinite()
    middle = grid.centres().expand_as(found.observed)
    assert ((found.observed - middle)[seen].abs() <= grid.width() / 2 + 1e-9).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps = 0"),
        ({"h": -0.1}, "h = -0.1"),
        ({"friction": 0.0}, "friction = 0.0"),
        ({"first": -1.0}, "first = -1.0"),
        ({"grid": wl.Grid(1.0, 0.0, 10)}, "low < high"),
        ({"grid": wl.Grid(0.0, 1.0, 1)}, "at least 2 bins"),
        ({"grid": wl.Grid(2.0, 3.0, 10)}, r"expected all in \[2"),
    ],
)
def test_bad_input_is_named(change, message):
    options = {"grid": wl.Grid(-1.0, 1.0, 10), "steps": 5, "h": 0.1, "friction": 1.0, **change}
    with pytest.raises(ValueError, match=message):
        run(harmonic, 5, **options)


def test_other_bad_input_is_named():
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match=r"shape of z = \(4, 3\).*\(seeds, walkers, D\)"):
        wl.start(harmonic, torch.ones(4, 3), generator)
    with pytest.raises(ValueError, match="positive energies"):
        wl.start(harmonic, torch.zeros(1, 2, 3), generator)
    with pytest.raises(ValueError, match="expected positive numbers"):
        wl.offline_histogram([1.0, 0.0], wl.Grid(-1.0, 1.0, 5))
    with pytest.raises(ValueError, match="d = 2"):
        two_wells_entropy(torch.zeros(1), 2)


def test_energies_have_their_gradients():
    z = torch.randn(
        7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    for energy in (harmonic, two_wells):
        value, gradient = energy(z)
        assert torch.allclose(torch.autograd.grad(value.sum(), z)[0], gradient.detach())


def test_network_in_whitened_coordinates_is_the_network():
    model, t = Grokker(7, d_model=8, n_heads=2, d_hidden=16).double(), task("add", 7, 0.6, 0)
    pairs, target = t.pairs[t.train], t.target[t.train]
    scale = landscape.scales(model)
    z = landscape.whitened(model, scale)
    assert z.square().mean() == pytest.approx(float((scale > 0).double().mean()))
    points = torch.stack([z, 1.1 * z])[None]
    value, gradient = landscape.loss_of(model, scale, pairs, target)(points)
    assert value[0, 0] == pytest.approx(
        torch.nn.functional.cross_entropy(model(pairs), target).item()
    )
    direction = torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(0))
    ahead, behind = (
        landscape.loss_of(model, scale, pairs, target)(points + s * 1e-5 * direction)[0]
        for s in (1, -1)
    )
    assert torch.allclose((gradient * direction).sum(-1), (ahead - behind) / 2e-5, rtol=1e-5)
    right = landscape.accuracy_of(model, scale, pairs, target)(points)
    assert right[0, 0] == (model(pairs).argmax(1) == target).double().mean()


def test_first_passage_reads_a_path_where_it_comes_down():
    found = landscape.first_passage(
        [3.0, 1.0, 2.0, 0.1], [0.1, 0.2, 0.3, 0.4], [2.5, 1.0, 0.5, 0.01]
    )
    assert found[:3].tolist() == [0.2, 0.2, 0.4] and math.isnan(found[3])


def settled(d, walkers, h, grid=None, **options):
    grid = grid or wl.Grid(-1.0, 1.0, 20)
    found = run(harmonic, d, grid, h=h, walkers=walkers, flat=True, **options)
    exact = harmonic_entropy(grid.centres(), d)
    return float((found.entropy - exact + exact.mean()).abs().max())


@pytest.mark.parametrize(
    ("walkers", "d", "h"), [(1, 4, 0.5), (2, 1, 0.4), (5, 10, 0.15), (16, 4, 0.5)]
)
def test_the_default_factor_suits_any_number_of_walkers(walkers, d, h):
    assert settled(d, walkers, h, steps=2500) < 2


def test_what_has_not_settled_is_an_error_whose_remedy_works():
    grid = wl.Grid(-0.5, 1.0, 15)
    with pytest.raises(RuntimeError, match=r"did not settle.*another step h"):
        settled(50, 8, 0.02, grid, steps=300)
    assert settled(50, 8, 0.15, grid, steps=3000) < 2  # a range of 86 nats


def test_two_wells_at_the_default_factor():
    d, grid, generator = 6, wl.Grid(-0.5, 1.0, 15), torch.Generator().manual_seed(0)
    z = torch.zeros(4, 8, d, dtype=torch.float64)
    z[..., 0], z[..., 1] = 1.0, torch.linspace(0.9, 3.5, 8)
    w = wl.start(two_wells, z, generator)
    found = wl.wang_landau(two_wells, w, grid, generator, steps=4000, h=0.12, flat=True)
    assert errors(found.entropy, two_wells_entropy(grid.centres(), d))[0].abs().max() < 0.5


def test_walkers_that_dig_themselves_in_are_reported():
    with pytest.warns(UserWarning, match=r"did not settle.*first = 1 left out"):
        assert settled(4, 8, 0.5, steps=600, first=1.0) > 50


def test_two_wells_are_harmonic_at_the_bottom():
    x = torch.tensor([-14.0, -12.0], dtype=torch.float64)
    for d in (3, 6):
        rise = two_wells_entropy(x, d).diff() / (2 * math.log(10))
        assert float(rise) == pytest.approx(d / 2, abs=1e-4)


def test_bending_is_that_of_a_slope_that_is_a_power_of_the_energy():
    """S = E^2 has sigma = 2 E^2: ln(sigma - 1) rises by 2 per ln E where that is large."""
    x = np.linspace(2, 3, 200)
    found = landscape.bending(x, 10 ** (2 * x))[2:-2]  # differences at the ends are one-sided
    np.testing.assert_allclose(found, 2, rtol=1e-3)
    line = landscape.bending(x, 7 * x)  # a power law of volume: concave, exponent 0
    np.testing.assert_allclose(line, 0, atol=1e-9)
