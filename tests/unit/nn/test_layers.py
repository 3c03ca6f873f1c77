"""Attention by its formula, rotary positions by complex numbers, one token alone by all."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fieldbook.nn.layers import Attention, Block, attend, attention_weights, rotate, rotation


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(layer, x, turns=None):
    """Attention of one example, head by head and query by query."""
    (n, d), h = x.shape, layer.n_heads
    q, k, v = (x @ part.weight.T + part.bias for part in (layer.query, layer.key, layer.value))
    out = torch.empty(n, d)
    for part in torch.arange(d).chunk(h):
        qs, ks = (y[:, part] if turns is None else rotate(y[:, part], turns) for y in (q, k))
        for i in range(n):
            seen = i + 1 if layer.causal else n
            weight = torch.exp(ks[:seen] @ qs[i] / len(part) ** 0.5)
            out[i, part] = (weight / weight.sum()) @ v[:seen, part]
    return out @ layer.out.weight.T + layer.out.bias


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rotary", [False, True])
def test_attention_is_the_formula(causal, rotary):
    torch.manual_seed(0)
    layer, x, turns = (
        Attention(12, 3, causal=causal),
        draw(2, 5, 12),
        rotation(5, 4) if rotary else None,
    )
    expected = torch.stack([by_hand(layer, one, turns) for one in x])
    torch.testing.assert_close(layer(x, turns=turns), expected)
    weights = layer.weights(x, turns=turns)
    v = layer.value(x).unflatten(-1, (3, 4)).transpose(1, 2)
    torch.testing.assert_close(layer.out((weights @ v).transpose(1, 2).flatten(-2)), expected)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5))
    assert bool((weights.triu(1) == 0).all()) is causal


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("only", [0, 3, -1])
def test_one_token_alone_is_the_same_with_the_same_gradient(causal, only):
    torch.manual_seed(0)
    block, turns, x = Block(12, 3, 20, causal=causal), rotation(5, 4), draw(2, 5, 12)
    outputs, gradients = [], []
    for kwargs, at in (({}, [only]), ({"only": only}, [0])):
        y = block(x, turns=turns, **kwargs)[:, at]
        outputs.append(y)
        gradients.append(torch.autograd.grad(y.square().sum(), block.parameters()))
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*gradients)


def test_a_token_outside_is_an_error():
    with pytest.raises(IndexError):
        Attention(4, 2)(draw(1, 3, 4), only=3)


@pytest.mark.parametrize("causal", [False, True])
def test_bfloat16_on_a_cpu_takes_another_way_to_the_same_values(causal):
    q, k, v = (draw(2, 3, 17, 8, seed=s) for s in range(3))
    exact = attention_weights(q.double(), k.double(), causal=causal) @ v.double()
    torch.testing.assert_close(attend(q, k, v, causal=causal).double(), exact, rtol=0, atol=1e-6)
    rounded = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), causal=causal)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.double(), exact, rtol=0, atol=0.03)


def test_rotation_is_multiplication_of_complex_numbers():
    x, n, d = draw(2, 3, 7, 10), 7, 10
    angle = torch.arange(n)[:, None] * torch.tensor([10_000 ** (-2 * i / d) for i in range(d // 2)])
    turned = torch.complex(x[..., :5], x[..., 5:]) * torch.exp(1j * angle)
    torch.testing.assert_close(rotate(x, rotation(n, d)), torch.cat((turned.real, turned.imag), -1))


def test_rotated_scores_depend_on_the_distance_alone():
    turns = rotation(300, 8)
    q, k = (rotate(draw(8, seed=s).expand(300, 8), turns) for s in (0, 1))
    scores = q @ k.T
    for distance in (-250, -3, 0, 1, 40):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=2e-4)
    assert scores[0].std() > 0.1  # and it does depend on it


def test_attention_matches_torch():
    torch.manual_seed(0)
    ours, x = Attention(16, 4, causal=True), torch.randn(3, 5, 16)
    peer = nn.MultiheadAttention(16, 4, batch_first=True)
    parts = (ours.query, ours.key, ours.value)
    peer.in_proj_weight.data = torch.cat([part.weight.data for part in parts])
    peer.in_proj_bias.data = torch.cat([part.bias.data for part in parts])
    peer.out_proj.load_state_dict(ours.out.state_dict())
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)
    expected, _ = peer(x, x, x, attn_mask=future, need_weights=False)
    assert torch.allclose(ours(x), expected, atol=1e-6)
    assert torch.allclose(ours(x, only=-1), expected[:, -1:], atol=1e-6)


def test_second_derivatives_are_those_of_the_formula():
    torch.manual_seed(0)
    layer, x = Attention(8, 2, causal=True).double(), draw(4, 8).double()
    with sdpa_kernel(SDPBackend.MATH):
        hessian = torch.func.hessian(lambda x: layer(x[None]).square().sum())(x)

    def formula(x):
        q, k, v = (
            f(x).unflatten(-1, (2, 4)).transpose(0, 1)
            for f in (layer.query, layer.key, layer.value)
        )
        y = attention_weights(q, k, causal=True) @ v
        return layer.out(y.transpose(0, 1).flatten(-2)).square().sum()

    torch.testing.assert_close(hessian, torch.func.hessian(formula)(x))


def test_causal_blocks_do_not_see_the_future():
    torch.manual_seed(0)
    x, block = draw(1, 6, 8), Block(8, 2, 16, causal=True)
    changed = x.clone()
    changed[:, 4:] += draw(1, 2, 8, seed=1)
    torch.testing.assert_close(block(changed)[:, :4], block(x)[:, :4])
    assert not torch.allclose(block(changed)[:, 4:], block(x)[:, 4:])
    open_block = Block(8, 2, 16)
    assert not torch.allclose(open_block(changed)[:, :4], open_block(x)[:, :4])


def test_dropout_in_training_alone():
    torch.manual_seed(0)
    block, x = Block(8, 2, 16, dropout=0.5), draw(2, 6, 8)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_what_does_not_divide_is_named():
    with pytest.raises(ValueError, match=r"n_heads = 3.*d_model = 8"):
        Attention(8, 3)
    with pytest.raises(ValueError, match="d_head = 3"):
        rotation(4, 3)
