import pytest
import torch

from fieldbook.grokking.grokker import Grokker
from fieldbook.grokking.modular import primitive_root, residue_class, task, token_order
from fieldbook.nn.checks import is_prime, require_prime


@pytest.mark.parametrize("operation", ["add", "sub", "mul", "div"])
def test_targets_undo(operation):
    t = task(operation, 13, 0.5, 0)
    a, b = t.pairs.T
    undo = {
        "add": t.target - b - a,
        "sub": t.target + b - a,
        "mul": t.target - a * b,
        "div": t.target * b - a,
    }
    assert (undo[operation] % 13 == 0).all()
    assert len(t.pairs) == (13 * 12 if operation == "div" else 13 * 13)
    assert len(task(operation, 13, 0.5, 0, exclude_zero=True).pairs) == 12 * 12


def test_split_is_a_function_of_its_seed():
    one, same, other = (task("add", 13, 0.3, s).train for s in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert one.sum() == round(0.3 * 169)


def test_strict_pairs_have_no_mirror_in_train_and_no_zero_target():
    t = task("mul", 13, 0.5, 0)
    train = {tuple(pair) for pair in t.pairs[t.train].tolist()}
    by_hand = [
        (a, b) not in train and (b, a) not in train and a * b % 13 != 0 for a, b in t.pairs.tolist()
    ]
    assert t.strict.tolist() == by_hand and t.strict.any()


@pytest.mark.parametrize("p", [3, 5, 7, 13, 23, 31, 97, 113])
def test_powers_of_the_primitive_root_are_a_permutation(p):
    order = token_order("mul", p)
    assert sorted(order.tolist()) == list(range(1, p))
    assert order[0] == 1 and (len(order) == 1 or order[1] == primitive_root(p))


def test_known_primitive_roots():
    assert [primitive_root(p) for p in (3, 5, 7, 23, 41, 97, 191)] == [2, 2, 3, 5, 6, 5, 19]


def test_a_non_generator_is_refused():
    with pytest.raises(ValueError, match="generator = 3"):
        token_order("mul", 13, 3)


def test_residue_class_is_eulers_criterion():
    values = torch.arange(97)
    euler = torch.tensor([pow(v, 48, 97) for v in range(97)])
    assert torch.equal(residue_class(values, 97), torch.where(euler == 96, -1, euler))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("add", 12, 0.5, 0), r"p = 12 is not a prime \(nearest: 11 or 13\)"),
        (("add", 1, 0.5, 0), "p = 1 is not a prime"),
        (("power", 13, 0.5, 0), "operation = 'power'.*add, sub, mul, div"),
        (("add", 13, 0.0, 0), "train_fraction = 0.0"),
        (("add", 13, 1.5, 0), "train_fraction = 1.5"),
        (("add", 3, 0.01, 0), "pairs on both sides"),
    ],
)
def test_bad_tasks_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        task(*arguments)


def test_primes():
    assert [n for n in range(30) if is_prime(n)] == [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]
    require_prime(499)


def test_grokker_is_a_function_of_its_seed_alone():
    state = torch.random.get_rng_state()
    one, same, other = Grokker(7, seed=0), Grokker(7, seed=0), Grokker(7, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(one.head.weight, same.head.weight) and not torch.equal(
        one.head.weight, other.head.weight
    )


@pytest.mark.parametrize("operator", [True, False])
def test_grokker_parameter_count(operator):
    model = Grokker(97, operator=operator)
    d, hidden, block = 128, 512, 4 * (128 * 128 + 128) + 4 * 128 + 2 * 128 * 512 + 512 + 128
    expected = 99 * d + (4 if operator else 3) * d + 2 * block + 2 * d + 97 * d
    assert hidden == 4 * d and sum(w.numel() for w in model.parameters()) == expected
    assert model(torch.tensor([[1, 2], [3, 4]])).shape == (2, 97)


def test_bad_models_are_named():
    with pytest.raises(ValueError, match=r"n_heads = 3.*a divisor of d_model = 16"):
        Grokker(7, d_model=16, n_heads=3)
    with pytest.raises(ValueError, match="activation = 'swish'"):
        Grokker(7, activation="swish")
