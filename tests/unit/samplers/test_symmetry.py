import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldbook.grokking.grokker import Grokker
from fieldbook.grokking.modular import task
from fieldbook.samplers import symmetry

PAIRS = task("add", 11, 0.5, 0).pairs


def network(activation="relu", shrink=1.0):
    """An untrained network with random biases and gains, its residual stream as small as weight
    decay makes it."""
    model = Grokker(11, d_model=16, n_heads=2, d_hidden=32, activation=activation)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, w in model.named_parameters():
            if w.dim() == 1:
                w += 0.3 * torch.randn(w.shape, generator=generator)
            if symmetry.exponents(model)[name][0]:
                w *= shrink
    return model.requires_grad_(False)


@given(st.floats(-1, 1), st.floats(-1, 1))
@settings(max_examples=40, deadline=None)
def test_logits_do_not_move(a, b):
    model = network()
    assert (
        symmetry.logit_gap(model, symmetry.rescale(model, 10**a, 10**b), PAIRS)
        <= symmetry.LOGIT_GATE
    )


@pytest.mark.parametrize(("alpha", "beta"), [(2, 1), (1, 0.5), (0.25, 8)])
def test_powers_of_two_change_no_bit(alpha, beta):
    model = network()
    assert symmetry.logit_gap(model, symmetry.rescale(model, alpha, beta), PAIRS) == 0


def test_parameters_do_move():
    model = network()
    scaled = symmetry.rescale(model, 10.0, 0.1)
    changed = {
        n
        for (n, w), v in zip(model.named_parameters(), scaled.parameters(), strict=True)
        if not torch.equal(w, v)
    }
    assert changed == {name for name, power in symmetry.exponents(model).items() if power != (0, 0)}
    down = scaled.blocks[0].ffn.down.weight / model.blocks[0].ffn.down.weight
    assert torch.allclose(down, torch.tensor(100.0))


def test_fixed_eps_breaks_a_small_residual_stream():
    model = network(shrink=0.01)
    assert symmetry.logit_gap(model, symmetry.rescale(model, 0.1), PAIRS) <= symmetry.LOGIT_GATE
    gap = symmetry.logit_gap(model, symmetry.rescale(model, 0.1, eps_mode="fixed"), PAIRS)
    assert gap > 0.1
    with pytest.raises(ValueError, match="alpha needs eps_mode = 'coscaled'"):
        symmetry.require_exact(
            symmetry.logit_gap(model, symmetry.rescale(model, 0.1, eps_mode="fixed"), PAIRS)
        )


def test_gelu_breaks_beta_and_not_alpha():
    model = network("gelu")
    assert (
        symmetry.require_exact(symmetry.logit_gap(model, symmetry.rescale(model, 3.0), PAIRS))
        <= symmetry.LOGIT_GATE
    )
    with pytest.raises(ValueError, match="beta needs a ReLU"):
        symmetry.require_exact(symmetry.logit_gap(model, symmetry.rescale(model, 1.0, 3.0), PAIRS))


def trade_factors(model, scale):
    """A copy with the other exact symmetries applied by one factor: norm gain, query-key and
    value-output.

    A gain and the linear maps that read it, W_q against W_k, and W_v against W_o trade a factor.
    """
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for block in scaled.blocks:
            readers = {
                block.attn_norm: (block.attn.query, block.attn.key, block.attn.value),
                block.ffn_norm: (block.ffn.up,),
            }
            for norm, linears in readers.items():
                norm.weight *= scale
                norm.bias *= scale
                for linear in linears:
                    linear.weight /= scale
            for one, other in (
                (block.attn.query, block.attn.key),
                (block.attn.value, block.attn.out),
            ):
                one.weight *= scale
                one.bias *= scale
                other.weight /= scale
            block.attn.key.bias /= scale
    return scaled


def test_the_other_symmetries_are_exact():
    model = network()
    assert symmetry.logit_gap(model, trade_factors(model, 4.0), PAIRS) == 0
    assert symmetry.logit_gap(model, trade_factors(model, 3.0), PAIRS) <= symmetry.LOGIT_GATE


def test_rescaling_composes():
    model = network()
    twice = symmetry.rescale(symmetry.rescale(model, 2.0, 4.0), 0.5, 0.25)
    assert all(
        torch.equal(v, w) for v, w in zip(model.parameters(), twice.parameters(), strict=True)
    )


def test_grid_contains_one_exactly():
    grid = symmetry.log_grid(31)
    assert (
        len(grid) == 31
        and grid[15] == 1.0
        and np.isclose(grid[0], 0.1)
        and np.isclose(grid[-1], 10)
    )
    with pytest.raises(ValueError, match=r"n = 30 .*expected an odd number"):
        symmetry.log_grid(30)
    assert 1.0 not in symmetry.log_grid(30, reference=False)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_factors_are_named(bad):
    with pytest.raises(ValueError, match="alpha = "):
        symmetry.rescale(network(), bad)
    with pytest.raises(ValueError, match="beta = "):
        symmetry.rescale(network(), 1.0, bad)
    with pytest.raises(ValueError, match="eps_mode = 'both'"):
        symmetry.rescale(network(), eps_mode="both")
