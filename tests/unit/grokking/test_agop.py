import pytest
import torch

from fieldbook.grokking.agop import agop, agop_sketch, one_hot_blocks, residuals, second_moments
from fieldbook.grokking.grokker import Grokker
from fieldbook.grokking.modular import task

P = 11


@pytest.fixture(scope="module")
def network():
    model = Grokker(P, d_model=16, n_heads=2, d_hidden=32).double().requires_grad_(False)
    pairs = task("add", P, 0.5, 0).pairs
    return model, pairs, model.token(pairs)


def jacobian_agop(f, x):
    """Reference: torch.func, one example at a time, all outputs."""
    jacobians = torch.func.vmap(torch.func.jacrev(lambda one: f(one[None])[0]))(x).flatten(2)
    return torch.einsum("jca,jcb->ab", jacobians, jacobians) / len(x)


def class_loop_agop(f, x):
    """Reference: plain autograd, one output and one example at a time."""
    total = 0
    for one in x:
        one = one[None].clone().requires_grad_()
        for output in f(one)[0]:
            g = torch.autograd.grad(output, one, retain_graph=True)[0].flatten()
            total = total + torch.outer(g, g)
    return total / len(x)


def test_linear_map():
    w = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.randn(30, 7, dtype=torch.float64)
    assert torch.allclose(agop(lambda z: z @ w.T, x, batch=8), w.T @ w, rtol=1e-12)


def test_hand_derived_quadratic():
    x = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(
        agop(lambda z: z.square(), x), 4 * torch.diag(x.square().mean(0)), rtol=1e-12
    )


def test_exact_methods_agree(network):
    model, _, x = network
    ours = agop(model.decode, x, batch=50)
    assert torch.allclose(ours, jacobian_agop(model.decode, x), rtol=1e-5, atol=1e-12)
    few = x[:7]
    assert torch.allclose(
        agop(model.decode, few), class_loop_agop(model.decode, few), rtol=1e-5, atol=1e-12
    )


def test_batches_do_not_matter(network):
    model, _, x = network
    assert torch.allclose(agop(model.decode, x, batch=17), agop(model.decode, x), rtol=1e-10)


def test_sketch_is_unbiased(network):
    model, _, x = network
    exact = agop(model.decode, x)
    draws = torch.stack(
        [agop_sketch(model.decode, x, torch.Generator().manual_seed(s), k=1) for s in range(300)]
    )
    z = (draws.mean(0) - exact) / (draws.std(0) / 300**0.5)
    assert z.abs().max() < 6 and 0.8 < z.square().mean() < 1.25


def test_sketch_is_a_function_of_its_generator(network):
    model, _, x = network
    first, again, other = (
        agop_sketch(model.decode, x, torch.Generator().manual_seed(s)) for s in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_sandwich_is_the_agop_of_one_hot_inputs(network):
    model, pairs, x = network
    sandwich = one_hot_blocks(agop(model.decode, x), model.numbers)
    one_hot = torch.nn.functional.one_hot(pairs, P).double()
    direct = agop(lambda e: model.decode(e @ model.numbers), one_hot)
    assert torch.allclose(
        sandwich.permute(0, 2, 1, 3).reshape(2 * P, 2 * P), direct, rtol=1e-8, atol=1e-12
    )


def test_loss_covariance_is_that_of_the_cross_entropy(network):
    model, pairs, x = network
    target, inputs = pairs.sum(1) % P, x.clone().requires_grad_()
    torch.nn.functional.cross_entropy(model.decode(inputs), target, reduction="sum").backward()
    rows = inputs.grad.flatten(1)
    (ours,) = second_moments(model.decode, x, [residuals(target)], batch=50)
    assert torch.allclose(ours, rows.T @ rows / len(x), rtol=1e-8, atol=1e-15)


def test_loss_covariance_vanishes_with_the_loss_and_the_agop_does_not(network):
    model, pairs, x = network
    right = torch.nn.functional.one_hot(pairs.sum(1) % P, P)

    def certain(z):
        return model.decode(z) + 40 * right

    raw, fitted = (
        second_moments(f, x, [residuals(pairs.sum(1) % P)])[0].norm()
        for f in (model.decode, certain)
    )
    assert fitted < 1e-12 * raw
    assert torch.allclose(agop(certain, x), agop(model.decode, x))


def test_only_the_last_position_reaches_the_logits(network):
    model, pairs, x = network
    full = model.token.weight[torch.tensor([P, P + 1])]
    sequence = torch.stack(
        [x[:, 0], full[0].expand_as(x[:, 0]), x[:, 1], full[1].expand_as(x[:, 0])], 1
    )
    y = sequence + model.position.weight
    for block in model.blocks:
        y = block(y)
    assert torch.allclose(model.head(model.norm(y[:, -1])), model(pairs), rtol=1e-10)
