import math

import pytest
import torch

from fieldbook.grokking.grokker import Grokker
from fieldbook.grokking.modular import task
from fieldbook.nn import functional
from fieldbook.samplers import calibration, curvature, llc, rescaled, symmetry
from fieldbook.samplers.preconditioners import SAMPLERS

HOW = rescaled.Sampling(steps=12, burn_in=2, chains=2, batch_size=8)
CELLS = [(a, b) for a in (0.2, 1.0, 7.0) for b in (0.3, 1.0, 10.0)]
INVARIANT = [name for name, sampler in SAMPLERS.items() if sampler.power == 0]


def network(activation="relu", **sizes):
    """A small trained network at a minimum, in double precision, with its Fisher information."""
    model = Grokker(
        7, **({"d_model": 8, "n_heads": 2, "d_hidden": 16} | sizes), activation=activation
    ).double()
    t = task("add", 7, 0.6, 0)
    pairs, target = t.pairs[t.train], t.target[t.train]
    llc.polish(model, pairs, target, steps=150, lr=1e-2)
    fisher = curvature.fisher_diagonal(model, pairs, torch.Generator().manual_seed(0))
    return rescaled.Minimum(model, pairs, target, fisher)


@pytest.fixture(scope="module")
def start():
    return network()


@pytest.fixture(scope="module")
def tuned(start):
    options = {"relaxation": 0.05, "target": 0.05 * start.n_beta * math.log(7), "n": 10}
    return {name: rescaled.calibrate(start, name, HOW, **options)[0] for name in SAMPLERS}


def settings(tuned, name):
    return {key: tuned[name][key] for key in ("eps", "gamma")}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_frame_is_the_rescaled_network(start, tuned, name):
    """One stack on the unscaled network gives the traces of chains in the rescaled networks, for
    every sampler."""
    framed = rescaled.traces(start, name, CELLS, HOW, **settings(tuned, name))
    for k, cell in enumerate(CELLS):
        direct = rescaled.direct_trace(start, name, cell, HOW, **settings(tuned, name))
        assert torch.allclose(direct, framed[:, k], rtol=1e-6, atol=1e-9), cell


@pytest.mark.parametrize("name", SAMPLERS)
def test_same_seed_traces_are_equal_in_all_cells_for_the_invariant_samplers_alone(
    start, tuned, name
):
    traces = [
        rescaled.direct_trace(start, name, cell, HOW, **settings(tuned, name)) for cell in CELLS
    ]
    reference = traces[CELLS.index((1.0, 1.0))]
    worst = max(float((trace - reference).abs().max() / reference.abs().max()) for trace in traces)
    assert (worst < 1e-6) == (name in INVARIANT)
    assert worst < 1e-6 or worst > 0.1


def test_rows_hold_what_the_table_needs(start, tuned):
    rows = rescaled.rows(start, "si_sgld", CELLS, HOW, **settings(tuned, "si_sgld"))
    assert list(rows[0]) == [
        "alpha",
        "beta",
        "llc",
        "llc_se",
        "n_chains",
        "n_steps",
        "eps",
        "gamma",
        "n_beta",
        "max_dlogit",
        "loss_star",
        "health",
    ]
    assert len({round(row["llc"], 6) for row in rows}) == 1 and all(
        row["llc_se"] > 0 for row in rows
    )
    assert max(row["max_dlogit"] for row in rows) < 1e-10
    assert [row["loss_star"] for row in rows] == pytest.approx([rows[0]["loss_star"]] * 9)
    assert rows[0]["n_beta"] == pytest.approx(len(start.target) / math.log(len(start.target)))


def test_stacking_changes_nothing(start, tuned):
    whole = rescaled.traces(start, "sgld", CELLS, HOW, **settings(tuned, "sgld"))
    parts = [
        rescaled.traces(start, "sgld", CELLS[k : k + 4], HOW, **settings(tuned, "sgld"))
        for k in (0, 4, 8)
    ]
    assert torch.allclose(whole, torch.cat(parts, 1), rtol=1e-9)


def test_calibration_reaches_its_target(start, tuned):
    how = rescaled.Sampling(steps=200, burn_in=50, chains=4, batch_size=8)
    target = 0.05 * start.n_beta * math.log(7)
    found, curve = rescaled.calibrate(start, "si_sgld", how, relaxation=0.05, target=target, n=14)
    (row,) = rescaled.rows(start, "si_sgld", [(1, 1)], how, eps=found["eps"], gamma=found["gamma"])
    assert row["llc"] == pytest.approx(target, rel=0.35)
    assert len(curve) == 14 and found["eps"] < found["eps_limit"]
    assert found["eps"] * found["gamma"] == pytest.approx(0.05)


def test_crossing_is_interpolated_and_a_target_out_of_reach_is_named():
    gammas, values = torch.tensor([1.0, 10.0, 100.0]), torch.tensor([math.nan, 4.0, 1.0])
    assert calibration.crossing(gammas, values, 2.0, ceiling=9.0) == pytest.approx(
        10**1.5, rel=1e-6
    )
    assert calibration.crossing(gammas, values, 6.0, ceiling=9.0) == pytest.approx(
        10**0.5, rel=1e-6
    )
    for target in (0.5, 20.0):
        with pytest.raises(
            ValueError, match=r"between the estimates 1 \.\. 9 at gamma = 1 \.\. 100"
        ):
            calibration.crossing(gammas, values, target, ceiling=9.0)


def test_what_cannot_be_sampled_is_refused_before_it_is(start, monkeypatch):
    gelu = network("gelu")
    monkeypatch.setattr(llc, "chain", lambda *a, **k: pytest.fail("sampled"))
    with pytest.raises(ValueError, match="beta needs a ReLU"):
        rescaled.rows(gelu, "sgld", [(1.0, 3.0)], HOW, eps=1e-6, gamma=1.0)
    with pytest.raises(ValueError, match="sampler = 'adam': expected one of sgld, psgld"):
        rescaled.traces(start, "adam", CELLS, HOW, eps=1e-6, gamma=1.0)


def test_an_unstable_step_is_refused_with_its_bound(start):
    with pytest.raises(ValueError, match=r"eps = .* is unstable: expected eps P .* < 4"):
        rescaled.calibrate(start, "si_sgld", HOW, relaxation=6.0, target=0.5, n=10)


def test_orbits_partition_the_parameters_and_scale_together(start):
    orbits, size = symmetry.orbits(start.model), start.fisher.numel()
    assert torch.equal(torch.cat(orbits).sort().values, torch.arange(size))
    (factors,) = symmetry.grid_factors(start.model, [(3.0, 0.2)])
    assert all(factors[orbit].unique().numel() == 1 for orbit in orbits)
    scaled = functional.flatten(symmetry.rescale(start.model, 3.0, 0.2))
    assert torch.allclose(scaled, factors * functional.flatten(start.model), rtol=1e-12)


def test_fisher_is_the_expected_squared_score(start):
    """Against the sum over all labels, weighted by the network's own probabilities, example by
    example."""
    model = Grokker(7, d_model=8, n_heads=2, d_hidden=16).double()
    exact = torch.zeros_like(start.fisher)
    for pair in start.pairs:
        log_q = model(pair[None])[0].log_softmax(-1)
        for k in range(7):
            g = torch.autograd.grad(log_q[k], list(model.parameters()), retain_graph=True)
            exact += log_q[k].exp().detach() * torch.cat([x.flatten() for x in g]).square()
    exact /= len(start.pairs)
    drawn = curvature.fisher_diagonal(
        model, start.pairs, torch.Generator().manual_seed(0), draws=200
    )
    assert float((drawn - exact).norm() / exact.norm()) < 0.05
    assert float(drawn.sum() / exact.sum()) == pytest.approx(1, abs=0.03)


def test_polish_finds_a_minimum_where_weight_decay_did_not(start):
    model = Grokker(7, d_model=8, n_heads=2, d_hidden=16, seed=1).double()
    before = curvature.loss_and_gradient_norm(model, start.pairs, start.target)
    llc.polish(model, start.pairs, start.target, steps=400, lr=1e-2)
    after = curvature.loss_and_gradient_norm(model, start.pairs, start.target)
    assert after[0] < 0.05 * before[0] and after[1] < 0.1 * before[1]


def test_largest_curvature_is_that_of_the_hessian(start):
    small = network(d_model=4, n_heads=1, d_hidden=4, n_layers=1)
    p = torch.rand(
        small.fisher.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    losses_of = functional.stacked_losses(small.model)

    def loss(w):
        return losses_of(w[None], small.pairs, small.target)[0].mean()

    hessian = torch.func.hessian(loss)(functional.flatten(small.model))
    exact = torch.linalg.eigvalsh(p.sqrt()[:, None] * hessian * p.sqrt()).abs().max()
    found = curvature.largest_curvature(small.model, small.pairs, small.target, p, iterations=60)
    assert found == pytest.approx(float(exact), rel=0.02)


def test_the_logs_number_is_a_mean_loss(start):
    how = rescaled.Sampling(steps=20, burn_in=0, chains=1, batch_size=8)
    still = rescaled.plain_losses(start, "sgld", [(1, 1), (10, 10)], how, 1e-30)
    at_star, _ = curvature.loss_and_gradient_norm(start.model, start.pairs, start.target)
    assert torch.allclose(still, torch.full_like(still, at_star), rtol=1e-6)
    assert (rescaled.plain_losses(start, "sgld", [(1, 1)], how, 1.0) > math.log(7)).all(), (
        "destroyed"
    )
