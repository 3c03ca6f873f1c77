import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldbook.grokking.circulant import (
    center,
    circulant_score,
    circulant_share,
    expected_share,
    fourier_concentration,
    fourier_energies,
    hankel_score,
    shift_share,
)
from fieldbook.grokking.modular import token_order

N = 58


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def circulant(n: int, seed: int = 0) -> torch.Tensor:
    i = torch.arange(n)
    return random(n, seed=seed)[(i[:, None] - i) % n]


def test_share_is_the_dft_energy_on_the_antidiagonal():
    m = random(13, 13)
    spectrum = torch.fft.fft2(m).abs().square()
    u = torch.arange(13)
    on = spectrum[u, (-u) % 13].sum() / spectrum.sum()
    assert torch.allclose(circulant_share(m), on, rtol=1e-12)


def test_share_of_a_circulant_is_one_and_of_iid_one_over_n():
    assert math.isclose(circulant_share(circulant(N)), 1, rel_tol=1e-12)
    shares = circulant_share(random(400, N, N))
    assert abs(shares.mean() - 1 / N) < 4 * shares.std() / 20


@pytest.mark.parametrize("n", [12, 13, 58])
@pytest.mark.parametrize("kind", ["iid", "gram", "circulant + noise"])
def test_expected_share_matches_permutations(n, kind):
    m = {
        "iid": random(n, n),
        "gram": random(n, 3) @ random(n, 3).T,
        "circulant + noise": circulant(n) + 0.3 * random(n, n, seed=1),
    }[kind]
    rng = np.random.default_rng(0)
    orders = torch.tensor(np.stack([rng.permutation(n) for _ in range(3000)]))
    shares = circulant_share(m[orders[:, :, None], orders[:, None, :]])
    error = shares.std() / math.sqrt(len(orders))
    assert abs(shares.mean() - expected_share(m)) < 4 * error


def test_expected_share_is_exact_over_all_permutations():
    from itertools import permutations

    for n in (4, 5, 6):
        m = random(n, n, seed=n)
        orders = torch.tensor(list(permutations(range(n))))
        shares = circulant_share(m[orders[:, :, None], orders[:, None, :]])
        assert torch.allclose(shares.mean(), expected_share(m), rtol=1e-10)


def test_score_is_one_for_circulants_and_zero_for_random_matrices():
    assert math.isclose(circulant_score(circulant(97)), 1, rel_tol=1e-9)
    assert circulant_score(random(200, 97, 97)).mean().abs() < 0.004
    features = random(200, 97, 16)
    grams = features @ features.mT
    assert circulant_share(grams).mean() > 0.1  # uncalibrated, a random Gram matrix looks circulant
    assert circulant_score(grams).mean().abs() < 0.004


@given(scale=st.floats(0.01, 100), constant=st.floats(-100, 100), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_score_ignores_scale_and_constants(scale, constant, seed):
    m = circulant(12, seed) + random(12, 12, seed=seed)
    assert math.isclose(
        circulant_score(scale * m + constant), circulant_score(m), rel_tol=1e-6, abs_tol=1e-9
    )


@given(shift=st.integers(0, 11), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_score_ignores_rotation_of_the_circle(shift, seed):
    m = random(12, 12, seed=seed)
    assert math.isclose(
        circulant_score(m.roll((shift, shift), (0, 1))), circulant_score(m), abs_tol=1e-9
    )


def test_score_is_lost_in_another_order():
    order = torch.randperm(97, generator=torch.Generator().manual_seed(0))
    assert circulant_score(circulant(97)[order][:, order]).abs() < 0.05


def test_hankel_is_a_flipped_circulant():
    i = torch.arange(13)
    hankel = random(13)[(i[:, None] + i) % 13]
    assert math.isclose(hankel_score(hankel), 1, rel_tol=1e-9)
    assert circulant_score(hankel).abs() < 0.2


def test_discrete_logs_reveal_products():
    p = 97
    powers = token_order("mul", p)
    log = torch.empty(p, dtype=torch.long)
    log[powers] = torch.arange(p - 1)
    nonzero = torch.arange(1, p)
    m = random(p - 1)[(log[nonzero][:, None] - log[nonzero]) % (p - 1)]  # natural order 1 .. p-1
    assert circulant_score(m).abs() < 0.05
    assert math.isclose(circulant_score(m[powers - 1][:, powers - 1]), 1, rel_tol=1e-9)


def test_score_does_not_depend_on_the_generator():
    p = 13
    m = random(p, p)
    scores = [
        circulant_score(m[o][:, o]) for o in (token_order("mul", p, g) for g in (2, 6, 7, 11))
    ]
    assert max(scores) - min(scores) < 1e-12


def test_center_removes_rows_and_columns():
    m = center(random(7, 7))
    assert m.sum(0).abs().max() < 1e-12 and m.sum(1).abs().max() < 1e-12


@pytest.mark.parametrize("shape", [(3, 4), (5,), (1, 1)])
def test_only_square_matrices(shape):
    with pytest.raises(ValueError, match="expected"):
        circulant_score(torch.ones(shape))


@pytest.mark.parametrize("n", [12, 13])
def test_parseval(n):
    e = random(n, 5)
    constant = e.sum(0).square().sum()
    assert torch.allclose(fourier_energies(e).sum() + constant, n * e.square().sum(), rtol=1e-12)


def test_a_pure_cosine_has_one_frequency():
    n, k = 97, 7
    angle = 2 * math.pi * k * torch.arange(n) / n
    e = torch.stack([angle.cos(), angle.sin()], 1)
    energies = fourier_energies(e)
    assert energies.argmax() == k - 1 and energies[k - 1] / energies.sum() > 1 - 1e-9
    gini, top = fourier_concentration(e)
    assert gini > 0.95 and math.isclose(top, 1, rel_tol=1e-9)


@pytest.mark.parametrize("n", [96, 97])
def test_concentration_of_random_embeddings_is_zero(n):
    ginis = torch.tensor([fourier_concentration(random(n, 128, seed=s))[0] for s in range(200)])
    assert ginis.mean().abs() < 4 * ginis.std() / math.sqrt(200) + 5e-4


def test_shift_share():
    target = torch.arange(13).repeat(5)
    template = random(13)
    exact = template[(torch.arange(13) - target[:, None]) % 13] + random(65, 1)
    assert math.isclose(shift_share(exact, target), 1, rel_tol=1e-9)
    assert shift_share(random(4000, 13), target.repeat(62)[:4000]) < 0.01
