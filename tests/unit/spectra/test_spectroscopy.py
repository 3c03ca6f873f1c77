"""From a grid of stars to trained networks, at the smallest size at which each step can go
wrong."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fieldbook.nn.baselines import scores
from fieldbook.nn.recipe import Recipe
from fieldbook.spectra import spectroscopy as sp
from fieldbook.spectra.vit import SpectraViT
from fieldbook.stars.dataset import LabelNorm
from fieldbook.stars.emulator import emulator
from fieldbook.stars.noise import SEED, fixed_noise

NODES = {"T_eff": (4500, 4800), "log_g": (2, 3, 4), "M_H": (-0.5, 0), "a_M": (0,), "C_M": (0,)}
SIZES = {"train": 48, "val": 16, "test": 24}
SETTINGS = SimpleNamespace(
    patch=512, d_model=16, n_layers=1, n_heads=2, dropout=0.0, noise_level=1.0
)


@pytest.fixture(scope="module")
def stars(tmp_path_factory):
    return emulator(tmp_path_factory.mktemp("grid"), NODES, components=8)


@pytest.fixture(scope="module")
def data(stars, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return sp.read(
        sp.synthesise(folder / "files", SIZES, stars, seed=0, rv_kms=50.0), folder / "maps", SIZES
    )


def recipe(**changes):
    options = {
        "steps": 4,
        "batch_size": 8,
        "lr": 1e-3,
        "eval_every": 2,
        "monitor": "val_mae_dex",
        **changes,
    }
    return Recipe(**options)


# ---- data


def test_splits_hold_different_stars_and_repeat_themselves(data, stars, tmp_path):
    assert {split: len(spectra) for split, spectra in data.items()} == SIZES
    temperatures = np.concatenate([spectra.params.T_eff for spectra in data.values()])
    assert len(set(temperatures)) == len(temperatures)
    again = sp.read(
        sp.synthesise(tmp_path / "a", SIZES, stars, seed=0, rv_kms=50.0), tmp_path / "b", SIZES
    )
    assert np.array_equal(again["test"].flux, data["test"].flux)
    other = sp.read(
        sp.synthesise(tmp_path / "c", SIZES, stars, seed=1, rv_kms=50.0), tmp_path / "d", SIZES
    )
    assert not np.array_equal(other["test"].flux, data["test"].flux)


def test_a_large_split_takes_several_files(stars, tmp_path, monkeypatch):
    monkeypatch.setattr(sp, "SHARD", 20)
    folder = sp.synthesise(tmp_path / "files", SIZES, stars, seed=0, rv_kms=0.0)
    assert sorted(p.name for p in folder.iterdir()) == [
        "test_0",
        "test_1",
        "train_0",
        "train_1",
        "train_2",
        "val_0",
    ]
    with pytest.raises(ValueError, match=r"test = 'test\*' fits several"):
        sp.read(folder, tmp_path / "maps", SIZES)


def test_too_few_stars_are_named(data, stars, tmp_path):
    folder = sp.synthesise(tmp_path / "files", SIZES, stars, seed=0, rv_kms=0.0)
    with pytest.raises(ValueError, match="number of val spectra = 17"):
        sp.read(folder, tmp_path / "maps", SIZES | {"val": 17})


def test_provide_keeps_what_it_made(tmp_path, monkeypatch):
    monkeypatch.setenv("FIELDBOOK_RESULTS", str(tmp_path))
    monkeypatch.setattr(sp, "SMALL", NODES)
    _, first = sp.provide(SIZES, grid="small", rv_kms=50.0)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    _, second = sp.provide(SIZES, grid="small", rv_kms=50.0)
    assert len(times) == 9 and times == {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")
    }
    assert np.array_equal(first["val"].error, second["val"].error)
    _, real = sp.provide(
        SIZES, data_dir=str(next((tmp_path / "data/inputs/spectra").iterdir())), grid="small"
    )
    assert np.array_equal(first["val"].flux, real["val"].flux)
    with pytest.raises(ValueError, match="grid = 'huge'"):
        sp.provide(SIZES, grid="huge")


# ---- what can be known


def test_knowing_more_never_hurts(stars):
    found = sp.limits(stars, 40, seed=0, rv_kms=50.0)
    variance = 2.0**2 / 12
    assert (
        found.least <= found.linear * (1 + 1e-9)
    ).all()  # the best linear estimator is not the best one
    assert (found.linear <= np.minimum(found.unbiased, variance) * (1 + 1e-9)).all()
    assert (
        np.corrcoef(found.mag, np.log(found.unbiased))[0, 1] > 0.7
    )  # faint stars are known less well
    barely, still = (sp.limits(stars, 40, seed=0, rv_kms=rv) for rv in (1e-3, 0.0))
    assert (still.unbiased < barely.unbiased).all()  # the same spectra, the velocity known


def test_density_is_a_share_and_finds_the_lines(stars):
    density = sp.gravity_density(stars, 8, seed=0, rv_kms=50.0)
    assert density.sum() == pytest.approx(1) and (density >= 0).all()
    assert np.sort(density)[-410:].sum() > 0.5  # half of it in a tenth of the pixels


def test_maximum_likelihood_of_bright_stars_reaches_the_bound(stars):
    found = sp.fitted(stars, 40, seed=0, rv_kms=50.0, mag=17.0)
    ratio = ((found.estimate - found.log_g) ** 2 / found.bound).mean()
    assert found.converged.all() and found.log_g.between(2.4, 3.6).all()
    assert 0.33 < ratio < 1.67  # 1 +- sqrt(2 / 40), three times


# ---- targets


def test_classes_cover_the_range_and_invert():
    label = torch.linspace(1, 5, 401)
    classes = sp.Classes.fit(label.numpy(), 8)
    index = classes.transform(label)
    assert index.min() == 0 and index.max() == 7 and torch.bincount(index).min() >= 50
    sure = 50.0 * torch.nn.functional.one_hot(index, 8)
    assert (classes.inverse(sure) - label).abs().max() <= 0.2501
    assert classes.inverse(torch.zeros(1, 8)).item() == pytest.approx(3)
    with pytest.raises(ValueError, match="count"):
        sp.Classes.fit(label.numpy(), 1)


@pytest.mark.parametrize("kind", ["standard", "minmax"])
def test_errors_are_in_both_units(kind):
    rng = np.random.default_rng(0)
    label = rng.uniform(1, 5, 100)
    guess, norm = label + rng.normal(size=100), LabelNorm.fit(label, kind)
    row = sp.errors(label, guess, norm, "test")
    normed = scores(norm.transform(label), norm.transform(guess))
    assert row["test_r2"] == pytest.approx(normed["r2"], abs=1e-12)
    assert row["test_mae_norm"] == pytest.approx(normed["mae"])
    assert row["test_mae_dex"] == pytest.approx(norm.scale * normed["mae"])


def test_bins_share_one_variance():
    label, guess = np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 3, 3])
    rows = sp.binned(label, guess, np.array([0.0, 0, 1, 1]), [0, 1, 2, 3])
    assert [row["n"] for row in rows] == [2, 2, 0]
    assert [row["r2"] for row in rows[:2]] == pytest.approx([1 - 0.5 / 1.25] * 2)
    assert np.isnan(rows[2]["r2"])


# ---- networks


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": "classes 4", "loss": "cross_entropy"},
        {"preprocess": "pca"},
        {"preprocess": "none"},
        {"start": "source"},
    ],
    ids=str,
)
def test_every_kind_of_network_trains(data, options, monkeypatch):
    monkeypatch.setattr(sp, "COMPONENTS", 16)
    options = sp.OPTIONS | options
    norm = sp.norm_of(options, data["train"].params.log_g.to_numpy())
    changed = {"patch": 1024} if options["preprocess"] == "pca" else {}
    settings = SimpleNamespace(**vars(SETTINGS) | changed)
    model = sp.network_of(settings, options, data["train"], norm, seed=0)
    fit = sp.train(model, data, norm, recipe(), loss=options["loss"])
    assert [row["step"] for row in fit.history] == [0, 2, 4]
    assert len({row["val_mae_dex"] for row in fit.history}) == 3
    guess = sp.predict(model, fixed_noise(data["val"], 1.0, SEED), norm)
    kept = min(row["val_mae_dex"] for row in fit.history)  # the best weights are loaded
    assert sp.errors(data["val"].params.log_g.to_numpy(), guess, norm, "val")[
        "val_mae_dex"
    ] == pytest.approx(kept, rel=1e-5)


@pytest.mark.parametrize("wrong", [{"preprocess": "log"}, {"start": "theirs"}, {"norm": "robust"}])
def test_unknown_options_are_named(data, wrong):
    options = sp.OPTIONS | wrong
    (name,) = wrong
    with pytest.raises(ValueError, match="kind" if name == "norm" else name):
        norm = sp.norm_of(options, data["train"].params.log_g.to_numpy())
        sp.network_of(SETTINGS, options, data["train"], norm, seed=0)


@pytest.mark.parametrize("change", ["loss", "noise_level", "label", "flux"])
def test_a_checkpoint_of_other_spectra_noise_or_loss_is_refused(data, tmp_path, change):
    norm = LabelNorm.fit(data["train"].params.log_g.to_numpy())

    def go(data, **options):
        model = sp.network_of(SETTINGS, sp.OPTIONS, data["train"], norm, seed=0)
        model.preprocess = torch.nn.Identity()  # which is fitted to the spectra, and would tell
        return sp.train(model, data, norm, recipe(), checkpoint=tmp_path, **options)

    go(data)
    options = {
        "loss": {"loss": "huber"},
        "noise_level": {"noise_level": 2},
        "label": {"label": "M_H"},
    }.get(change, {})
    if change == "flux":
        data = {split: replace(part, flux=3 * part.flux) for split, part in data.items()}
    name = "train" if change == "flux" else change
    with pytest.raises(ValueError, match=rf"last\.pt is of another run: {name}"):
        go(data, **options)


def test_noise_is_fresh_in_training_and_a_logger_hears_of_each_validation(data):
    norm, heard = LabelNorm.fit(data["train"].params.log_g.to_numpy()), []
    seen = []

    class Logger:
        def log(self, metrics, step):
            heard.append((step, set(metrics)))

    class Watched(SpectraViT):
        def forward(self, flux):
            if self.training:
                seen.append(flux.detach().clone())
            return super().forward(flux)

    model = Watched(patch=512, d_model=16, n_layers=1, n_heads=2, d_hidden=32, dropout=0.0)
    sp.train(model, data, norm, recipe(steps=2, batch_size=48, eval_every=1), logger=Logger())
    assert [step for step, _ in heard] == [0, 1, 2]
    assert heard[0][1] == {"epoch", "val_r2", "val_mae_norm", "val_mae_dex", "val_rmse_dex"}
    first, second = (torch.stack(sorted(batch, key=lambda row: float(row.sum()))) for batch in seen)
    assert not torch.equal(first, second)


def test_saliency_of_a_linear_map_is_its_squared_weights():
    weights = torch.randn(20, generator=torch.Generator().manual_seed(0))
    model = torch.nn.Sequential(torch.nn.Linear(20, 1, bias=False), torch.nn.Flatten(0))
    model[0].weight.data[0] = weights
    error = torch.rand(6, 20, generator=torch.Generator().manual_seed(1))
    expected = (weights * error).square().sum(0)
    found = sp.saliency(model, torch.zeros(6, 20), error)
    assert found == pytest.approx((expected / expected.sum()).numpy(), rel=1e-5)


def test_attention_is_a_share_per_patch(data):
    model = SpectraViT(patch=512, d_model=16, n_layers=2, n_heads=2, d_hidden=32)
    share = sp.attention(model, fixed_noise(data["test"], 1.0, SEED))
    assert share.shape == (8,) and share.sum() == pytest.approx(1) and (share > 0).all()
