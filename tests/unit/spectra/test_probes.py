"""Poolings by hand, probes that find what is there, frozen encoders that stay so, and the
guards."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from fieldbook.spectra.blindspot import BlindSpotUNet
from fieldbook.spectra.probes import (
    Probe,
    View,
    features,
    fingerprint,
    frozen,
    head,
    pool,
    probe,
    probe_recipe,
    train,
)

LAST_WEIGHTS = {
    "steps": 1,
    "monitor": None,
    "patience": None,
    "schedule": "constant",
}  # not the best ones
VIEWS = [View("enc_last", "mean_max", "concat"), View(), View("enc_pre_latent", "flatten", "mean")]


def encoder(**changes):
    return BlindSpotUNet(**{"n": 3, "e": 4, "k": 3} | changes)


def spectra(n=40, pixels=40, seed=0):
    """Noisy spectra of which the label scales a line, the noise level, and the label."""
    generator = torch.Generator().manual_seed(seed)
    labels = 1 + 4 * torch.rand(n, generator=generator)
    line = torch.exp(-0.5 * ((torch.arange(pixels) - 15.0) / 3) ** 2)
    sigma = torch.full((n, pixels), 0.05)
    return (
        1 - 0.2 * labels[:, None] * line + sigma * torch.randn(n, pixels, generator=generator),
        sigma,
        labels,
    )


def table(n=300, d=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator) * 3 + 10
    return x, 2 + x[:, 0] - 0.5 * x[:, 1] + 0.1 * torch.randn(n, generator=generator)


# ---- poolings and features


def test_poolings_by_hand():
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0, 10.0], [0.0, 0.0, -1.0, 0.0, 0.0]]])
    expected = {
        "global_mean": [4.0, -0.2],
        "global_max": [10.0, 0.0],
        "mean_max": [4.0, -0.2, 10.0, 0.0],
        "flatten": x.flatten().tolist(),
        "seg_mean_K1": [4.0, -0.2],
        "seg_mean_K2": [2.0, 7.0, -1 / 3, 0.0],  # three positions, then two
        "seg_mean_K5": x.flatten().tolist(),
    }
    for name, values in expected.items():
        torch.testing.assert_close(pool(x, name), torch.tensor([values]))
    assert pool(torch.zeros(2, 48, 16), "seg_mean_K8").shape == (2, 384)


@pytest.mark.parametrize("name", ["seg_mean_K0", "seg_mean_K6", "seg_mean_8", "median"])
def test_unknown_poolings_are_named(name):
    with pytest.raises(ValueError, match=name):
        pool(torch.zeros(1, 2, 5), name)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_features_of_several_views_are_those_of_each(batch, monkeypatch):
    monkeypatch.setattr("fieldbook.spectra.probes.BATCH", batch)
    model, (noisy, sigma, _) = encoder(), spectra(10)
    found = features(model, noisy, sigma, VIEWS)
    assert model.training and all(p.requires_grad for p in model.parameters())  # as before
    model.eval()
    for view, ours in zip(VIEWS, found, strict=True):
        expected = pool(model.encode_flux(noisy, sigma, view.layer, view.direction), view.pooling)
        assert not ours.requires_grad
        torch.testing.assert_close(ours, expected.detach())
    alone = features(model, noisy, sigma, [View()])[0]  # forward alone takes half the work
    torch.testing.assert_close(alone, found[1])


def test_features_need_the_noise_level():
    noisy = spectra()[0]
    with pytest.raises(ValueError, match="noise level"):
        features(encoder(), noisy, None, [View()])
    assert features(encoder(input_sigma=False), noisy, None, [View()])[0].shape == (40, 32)
    with pytest.raises(ValueError, match="decoder"):
        features(encoder(), *spectra()[:2], [View("decoder")])


# ---- frozen


def test_fingerprint_sees_every_parameter_and_moving_average():
    model = encoder()
    known = {fingerprint(model)}
    for t in (
        model.encoders[1].conv.weight,
        model.nin_layers[0].bn.running_mean,
        model.decoders_b[0].bn.bias,
    ):
        t.data.flatten()[0] += 1e-6
        known.add(fingerprint(model))
    assert len(known) == 4 and fingerprint(model) in known


def test_frozen_restores_modes_and_gradients():
    model = encoder()
    model.encoders[0].eval()
    model.decoders_a.requires_grad_(False)
    with frozen(model):
        assert not any(m.training for m in model.modules()) and not any(
            p.requires_grad for p in model.parameters()
        )
    assert model.training and not model.encoders[0].training and model.encoders[1].training
    assert (
        model.encoders[0].conv.weight.requires_grad
        and not model.decoders_a[0].conv.weight.requires_grad
    )


def test_frozen_notices_an_encoder_that_is_trained_after_all():
    model, (noisy, sigma, labels) = encoder(), spectra()
    probe_, recipe = make_probe(
        model, noisy, sigma, labels, **LAST_WEIGHTS, lr_scale={"encoder.": 1.0}
    )
    with pytest.raises(RuntimeError, match="frozen encoder changed"), frozen(model):
        model.encoders[0].requires_grad_(True)
        train(probe_, [noisy, sigma], labels, ([noisy, sigma], labels), recipe, progress=False)
    with pytest.raises(RuntimeError, match="frozen encoder changed"), frozen(model):
        model.train()(noisy, sigma)  # no gradient, but BatchNorm's moving averages


def make_probe(model, noisy, sigma, labels, **changes):
    vectors = features(model, noisy, sigma, [View()])[0]
    recipe = probe_recipe(len(labels), epochs=30, batch_size=20, **{"lr": 1e-2} | changes)
    return Probe(model, head("mlp_1", vectors, labels, hidden=16), View()), recipe


def test_frozen_probe_learns_and_leaves_the_encoder_alone():
    model, (noisy, sigma, labels), (new, level, target) = encoder(), spectra(), spectra(seed=1)
    before = fingerprint(model)
    p, recipe = make_probe(model, noisy, sigma, labels)
    initial = fingerprint(p.head)
    with frozen(model):
        fit = train(p, [noisy, sigma], labels, ([new, level], target), recipe, progress=False)
    assert fingerprint(model) == before and fingerprint(p.head) != initial
    assert fit.best_value > 0.8


def test_frozen_features_once_are_frozen_features_at_each_step():
    model, (noisy, sigma, labels) = encoder(), spectra()
    p, recipe = make_probe(model, noisy, sigma, labels, steps=4, eval_every=2)
    vectors = features(model, noisy, sigma, [View()])[0]
    other = head("mlp_1", vectors, labels, hidden=16)
    with frozen(model):
        slow = train(p, [noisy, sigma], labels, ([noisy, sigma], labels), recipe, progress=False)
    fast = train(other, [vectors], labels, ([vectors], labels), recipe, progress=False)
    assert fast.best_value == pytest.approx(slow.best_value, abs=1e-5)


def test_fine_tuning_moves_the_encoder_at_its_own_rate_and_must_be_asked_for():
    (noisy, sigma, labels), moved = spectra(), {}
    for factor in (0.01, 1.0):
        model = encoder()
        p, recipe = make_probe(
            model, noisy, sigma, labels, **LAST_WEIGHTS, lr_scale={"encoder.": factor}
        )
        before = model.encoders[0].conv.weight.detach().clone()
        train(p, [noisy, sigma], labels, ([noisy, sigma], labels), recipe, progress=False)
        moved[factor] = float((model.encoders[0].conv.weight.detach() - before).abs().max())
    assert moved[1.0] == pytest.approx(100 * moved[0.01], rel=0.1) and moved[0.01] > 0
    _, silent = make_probe(model, noisy, sigma, labels)
    with pytest.raises(ValueError, match=r"lr_scale.*fine-tune"):
        train(p, [noisy, sigma], labels, ([noisy, sigma], labels), silent, progress=False)


# ---- heads and probes


def test_heads_have_the_sources_parameters_and_answer_in_the_labels_unit():
    x, y = torch.randn(50, 384), 3 + torch.randn(50)
    counts = {
        name: sum(p.numel() for p in head(name, x, y).parameters())
        for name in ("linear", "mlp_1", "mlp_2")
    }
    assert counts == {"linear": 385, "mlp_1": 385 * 256 + 257, "mlp_2": 385 * 256 + 257 * 256 + 257}
    model = head("mlp_1", x, 100 + 7 * y).eval()
    torch.testing.assert_close(
        model(x), 100 + 3 * 7 + 7 * (head("mlp_1", x, y).eval()(x) - 3), rtol=1e-4, atol=1e-3
    )
    with pytest.raises(ValueError, match="mlp_9"):
        head("mlp_9", x, y)


def test_standardised_heads_do_not_know_the_features_unit():
    x, y = table()
    x[:, 5] = 7.0
    torch.testing.assert_close(
        head("mlp_1", x, y).eval()(x),
        head("mlp_1", 9 * x - 4, y).eval()(9 * x - 4),
        rtol=1e-3,
        atol=1e-3,
    )
    assert head("mlp_1", x, y).eval()(x).isfinite().all()


@pytest.mark.parametrize("kind", ["ridge", "trees", "linear", "mlp_1", "mlp_2"])
def test_probes_find_a_linear_label_in_its_own_unit_and_repeat_themselves(kind):
    splits = [table(seed=s) for s in range(3)]
    recipe = probe_recipe(300, epochs=30, batch_size=50, lr=1e-2, seed=4)
    one, two = (probe(kind, *splits, seed=4, recipe=recipe) for _ in range(2))
    assert one.pop("seconds") > 0 and two.pop("seconds") > 0 and one == two
    assert one["r2"] > 0.9 and one["n_features"] == 6
    assert one["rmse"] == pytest.approx(
        np.sqrt(1 - one["r2"]) * splits[2][1].std().item(), rel=0.01
    )
    in_cm = [(x, 100 * y) for x, y in splits]
    assert probe(kind, *in_cm, seed=4, recipe=recipe)["mae"] == pytest.approx(
        100 * one["mae"], rel=0.05
    )


def test_ridge_takes_features_that_are_almost_the_same():
    common = torch.randn(3, 2000, 1, generator=torch.Generator().manual_seed(0))
    spread = 1e-5 * torch.randn(3, 2000, 800, generator=torch.Generator().manual_seed(1))
    splits = [(x, y.squeeze(1)) for x, y in zip(common + spread, common, strict=True)]
    assert probe("ridge", *splits)["r2"] > 0.99


@pytest.mark.filterwarnings("ignore:R2")
def test_probe_without_signal_finds_none():
    noise = torch.randn(3, 300, generator=torch.Generator().manual_seed(7))
    splits = [(table(seed=seed)[0], labels) for seed, labels in enumerate(noise)]
    assert all(abs(probe(kind, *splits)["r2"]) < 0.2 for kind in ("ridge", "mlp_1"))


def test_the_default_recipe_is_the_sources():
    r = probe_recipe(100_000)
    assert (r.eval_every, r.steps) == (391, 39_100)  # an epoch, a hundred epochs
    assert (r.lr, r.weight_decay, r.clip, r.plateau_factor, r.plateau_patience, r.patience) == (
        1e-3,
        1e-4,
        0.5,
        0.5,
        5,
        15,
    )


def test_best_weights_are_kept():
    (x, y), validation = table(), table(seed=1)
    model = head("linear", x, y)
    recipe = probe_recipe(
        300, epochs=4, lr=0.5, patience=None, schedule="constant", monitor="r2", mode="max"
    )
    fit = train(model, [x], y, ([validation[0]], validation[1]), recipe, progress=False)
    assert all(torch.equal(t, fit.best[name]) for name, t in model.state_dict().items())


# ---- guards


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda y: None, "None.*in the batch"),
        (lambda y: y[:-1], "one for each example"),
        (lambda y: y[:, None], "one for each example"),
        (lambda y: y.index_fill(0, torch.tensor([3, 5]), torch.nan), "2 NaN"),
        (lambda y: torch.zeros_like(y), "differ"),
    ],
)
def test_labels_that_are_not_there_are_an_error(spoil, said):
    (x, y), recipe = table(), probe_recipe(300)
    model = head("linear", x, y)
    for labels, target, name in ((spoil(y), y, "labels"), (y, spoil(y), "validation labels")):
        with pytest.raises(ValueError, match=f"{name}.*{said}"):
            train(model, [x], labels, ([x], target), recipe, progress=False)
    with pytest.raises(ValueError, match="test labels"):
        probe("ridge", (x, y), (x, y), (x, spoil(y)))


@pytest.mark.parametrize("normalise, warned", [(True, 1), (False, 0)])
def test_a_normalisation_that_differs_between_splits_is_noticed_once(normalise, warned):
    (x, y), recipe = table(), probe_recipe(300, epochs=30, lr=0.1, patience=30)
    target = (y - y.mean()) / y.std() if normalise else y
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(head("linear", x, y), [x], y, ([x], target), recipe, progress=False)
    assert sum("same normalisation" in str(w.message) for w in caught) == warned


def test_training_repeats_itself_by_seed():
    (x, y), found = table(), []
    for seed in (1, 1, 2):
        model = head("mlp_1", x, y, seed=seed)
        train(model, [x], y, ([x], y), probe_recipe(300, epochs=3, seed=seed), progress=False)
        found.append(fingerprint(model))
    assert found[0] == found[1] != found[2]


@pytest.mark.filterwarnings("ignore:R2")
def test_a_module_of_another_kind_is_trained_too():
    x, y = table()
    model = nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))
    fit = train(model, [x], y, ([x], y), probe_recipe(300, epochs=40, lr=0.05), progress=False)
    assert fit.best_value > 0.5
