import math

import pytest
import torch

from fieldbook.grokking.grokker import Grokker
from fieldbook.grokking.modular import task
from fieldbook.nn import functional
from fieldbook.samplers import estimate, llc
from fieldbook.samplers import preconditioners as pre
from fieldbook.samplers.sgmcmc import chain


@pytest.fixture(scope="module")
def network():
    model = Grokker(7, d_model=8, n_heads=2, d_hidden=16).double()
    t = task("add", 7, 0.6, 0)
    return model, t.pairs[t.train], t.target[t.train]


def test_stacked_gradients_are_those_of_each_chain(network):
    model, pairs, target = network
    w = functional.flatten(model)
    stack = torch.stack([w, 1.1 * w, w.flip(0)])
    losses, g = functional.stacked_losses(model)(stack, pairs, target)
    for row, loss, gradient in zip(stack, losses, g, strict=True):
        one = Grokker(7, d_model=8, n_heads=2, d_hidden=16).double()
        torch.nn.utils.vector_to_parameters(row, one.parameters())
        each = torch.nn.functional.cross_entropy(one(pairs), target, reduction="none")
        assert torch.allclose(loss, each, rtol=1e-10)
        each.mean().backward()
        assert torch.allclose(
            gradient, torch.cat([p.grad.flatten() for p in one.parameters()]), rtol=1e-8, atol=1e-12
        )


def test_slices_find_every_parameter(network):
    model, *_ = network
    w = functional.flatten(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(w[functional.parameter_slices(model)[name]], parameter.flatten())


def test_losses_are_zero_at_the_start_whatever_the_minibatch(network):
    model, pairs, target = network
    gradient = llc.minibatch_gradient(model, pairs, target, batch_size=5, seeds=[0])
    for step in range(4):
        losses, _ = gradient(functional.flatten(model)[None], step)
        assert losses.abs().max() < 1e-12


def test_common_baseline_removes_noise_and_not_the_mean(network):
    model, pairs, target = network
    w = functional.flatten(model)
    near = w + 0.01 * torch.randn(len(w), dtype=w.dtype, generator=torch.Generator().manual_seed(0))
    gradient = llc.minibatch_gradient(model, pairs, target, batch_size=5, seeds=[0])
    batches = len(target)  # a multiple of whole epochs, so that batches average to the full set
    relative = torch.stack([gradient(near[None], step)[0] for step in range(batches)]).squeeze()
    losses_of = functional.stacked_losses(model)
    full = (
        losses_of(near[None], pairs, target)[0].mean() - losses_of(w[None], pairs, target)[0].mean()
    )
    assert torch.allclose(relative.mean(), full, rtol=1e-9)
    raw = torch.stack(
        [
            losses_of(near[None], p, y)[0].mean()
            for p, y in zip(pairs.split(5), target.split(5), strict=True)
        ]
    )
    assert relative.std() < raw.std() / 3


def test_a_chain_on_a_network_runs_and_is_reproducible(network):
    model, pairs, target = network
    gradient = llc.minibatch_gradient(model, pairs, target, batch_size=8, seeds=[0])
    options = {
        "eps": 1e-4,
        "n_beta": estimate.inverse_temperature(len(target)),
        "gamma": 1.0,
        "steps": 6,
    }
    runs = [
        torch.stack(
            [
                x
                for x, _ in chain(
                    gradient,
                    functional.flatten(model)[None],
                    pre.sgld(),
                    torch.Generator().manual_seed(s),
                    **options,
                )
            ]
        )
        for s in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_estimate_and_its_error():
    trace = torch.tensor([[[9.0, 9.0]], [[1.0, 3.0]], [[1.0, 3.0]]])
    value, error = estimate.estimate(trace, n_beta=10.0, burn_in=1)
    assert value.tolist() == [20.0] and error.item() == pytest.approx(
        10 * math.sqrt(2) / math.sqrt(2)
    )
    assert estimate.estimate(trace[..., :1], n_beta=1.0, burn_in=0)[1].isnan().all()
    with pytest.raises(ValueError, match=r"burn_in = 3 .*expected 0 \.\. 2"):
        estimate.estimate(trace, n_beta=10.0, burn_in=3)
    with pytest.raises(ValueError, match=r"n_beta = 0 .*positive"):
        estimate.estimate(trace, n_beta=0, burn_in=0)
    assert estimate.inverse_temperature(100) == pytest.approx(100 / math.log(100))


def test_each_flag_is_raised_by_what_it_names():
    steps = torch.ones(40, 1)
    cells = {
        "ok": 0.1 * steps,
        "not finite": torch.cat([steps[:-1], steps[:1] * math.nan]),
        "left the basin+above d/2": 2.0 * steps,
        "drifting": torch.linspace(0.0, 0.2, 40)[:, None] ** 3 * 20,
        "negative": -0.1 * steps,
        "above d/2": 0.8 * steps,
    }
    trace = torch.stack(list(cells.values()), 1)
    assert estimate.health(
        trace, n_beta=10.0, ceiling=10 * math.log(10), dimension=14, burn_in=4
    ) == list(cells)
