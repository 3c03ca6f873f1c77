"""The patch transformer's counts and operations, its configurations, and the samples it sees."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from fieldbook.nn.recipe import Recipe
from fieldbook.nn.training import fit
from fieldbook.scaling import configs as pc
from fieldbook.scaling import market, patches
from fieldbook.scaling import transformer as pt
from fieldbook.scaling.transforms import transform

FOLDER = Path(__file__).resolve().parents[3] / "parameters/scaling/configs"
CONFIGS = {config.name: config for config in pc.generate()}
COUNTS = {16: 8_045, 32: 25_293, 64: 87_437, 128: 322_317, 256: 2_288_653, 512: 17_444_877}


@pytest.mark.parametrize("d", COUNTS)
def test_counts_are_the_source_s(d):
    assert pc.parameters_of("pretrain", d, *pc.SIZES[d]) == COUNTS[d]


def test_counts_of_the_other_modes():
    assert pc.parameters_of("end2end", 128, 1, 1) == 304_902
    assert pc.parameters_of("factor", 128, 0, 2) == 314_758
    assert pc.parameters_of("factor", 256, 0, 4) == 2_273_542
    # end to end lacks the pretraining head and, its widths being equal, the projection between the
    # levels
    assert 322_317 - 304_902 == (128 * 7 + 7) + (128 * 128 + 128)
    assert isinstance(pt.EndToEnd(32, 1, 1).level2.project, torch.nn.Identity)
    with pytest.raises(ValueError, match="n_layers = 0"):
        pc.parameters_of("factor", 128, 0, 0)


def filled(mode, d=32, n_l1=2, n_l2=2):
    model = pt.build(mode, d, n_l1, n_l2)
    with torch.no_grad(), pt.seeded(1):
        for p in model.parameters():
            p.copy_(0.2 * torch.randn_like(p))
    return model.double()


def in_full(stack, x):
    """What a stack returns, without leaving out what nothing reads."""
    y = x + stack.position
    for layer in stack.layers:
        y = layer(y)
    return stack.norm(y)[:, -1]


def test_the_last_token_alone_is_the_full_result():
    stack, x = filled("pretrain").stack, torch.randn(3, 60, 32, dtype=torch.float64)
    torch.testing.assert_close(stack(x), in_full(stack, x))


def test_attention_is_causal():
    layer, x = filled("pretrain").stack.layers[0], torch.randn(2, 60, 32, dtype=torch.float64)
    later = x.clone()
    later[:, 30:] = 0
    torch.testing.assert_close(layer(later)[:, :30], layer(x)[:, :30])
    assert not torch.allclose(layer(later)[:, 30:], layer(x)[:, 30:])


@pytest.mark.parametrize("mode", ["pretrain", "finetune", "end2end", "factor", "linear"])
def test_modes_forecast_zero_at_first_and_learn(mode):
    model = pt.build(mode, 16, 1, 1)
    shape = {
        "pretrain": (60, 52),
        "finetune": (60, 16),
        "end2end": (60, 60, 52),
        "factor": (60, 62),
        "linear": (60, 52),
    }
    x = torch.randn(4, *shape[mode])
    out = model(x)
    assert out.shape == (4, 7 if mode == "pretrain" else 6) and not out.any()
    (out - 1).square().mean().backward()
    assert list(model.parameters())[-1].grad.any()
    with pytest.raises(ValueError, match="mode = 'x'"):
        pt.build("x", 16, 1, 1)


@pytest.mark.parametrize(
    "mode, shape", [("pretrain", (60, 52)), ("end2end", (60, 60, 52)), ("factor", (60, 62))]
)
def test_operations_agree_with_torch_s_counter(mode, shape, monkeypatch):
    monkeypatch.setattr(pt.Stack, "forward", in_full)
    model, counter = filled(mode).float(), FlopCounterMode(display=False)
    with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(torch.randn(1, *shape))
    assert counter.get_total_flops() == sum(pt.flops(mode, 32, 2, 2))


@pytest.mark.parametrize("d, share", [(64, 0.186), (512, 0.029)])
def test_what_the_rule_6nd_leaves_out_is_attention(d, share):
    n = pt.count(pt.build("pretrain", d, *pc.SIZES[d]))
    weights, attention = pt.flops("pretrain", d, *pc.SIZES[d])
    assert attention / (2 * n * 60) == pytest.approx(share, abs=5e-4)
    assert 0.85 < weights / (2 * n * 60) < 1


def test_factors_by_hand():
    x = torch.randn(2, 60, 52)
    f = patches.patch_factors(x)
    assert f.shape == (2, 62)
    torch.testing.assert_close(f[0, 13 + 7], x[0, :, 7].std())
    torch.testing.assert_close(f[1, 39 + 2], x[1, 59, 2] - x[1, 0, 2])
    torch.testing.assert_close(f[0, 60], (x[0, :, 10] * x[0, :, 3]).mean())
    ramp = torch.zeros(60, 13)
    ramp[:, 3] = torch.tensor([1.0, -1.0] * 30)
    assert patches.patch_factors(ramp)[56].item() == pytest.approx(-1)


def test_half_batches_make_the_same_step():
    x, y = torch.randn(32, 60, 52, dtype=torch.float64), torch.randn(32, 7, dtype=torch.float64)

    def loss(model, index, _):
        return (model(x[index]) - y[index]).square().mean()

    def trained(steps, micro):
        model = filled("pretrain", 16, 1, 1)
        if steps:
            fit(
                model,
                loss,
                32,
                Recipe(steps=steps, batch_size=32, lr=1e-2, micro_batch=micro),
                progress=False,
            )
        return torch.cat([p.flatten() for p in model.parameters()])

    whole, parts, before = trained(2, 32), trained(2, 8), trained(0, 32)
    assert (whole - parts).abs().max() < 1e-6 < 1e-3 < (whole - before).abs().max()


# -- configurations


def test_sixteen_files_are_valid_and_regenerate_byte_for_byte(tmp_path):
    written = pc.write(tmp_path)
    kept = sorted(FOLDER.iterdir())
    assert [file.name for file in written] == [file.name for file in kept] and len(kept) == 16
    assert [file.read_bytes() for file in written] == [file.read_bytes() for file in kept]
    configs = pc.read_all(FOLDER)
    assert configs == {config.name: config for config in pc.generate()}
    assert {name: c.n_params for name, c in configs.items() if name.startswith("ms")} == {
        f"ms{k}_{stage}": COUNTS[d]
        for k, d in ((1, 64), (3, 256), (4, 512))
        for stage in ("finetune", "pretrain")
    }
    cells = {"ds1_pretrain": (2, 2), "ds2_finetune": (5, 4), "end2end": (10, 8)}
    assert {name: (configs[name].instruments, configs[name].years) for name in cells} == cells


@pytest.mark.parametrize(
    "change, said",
    [
        ({"d_modle": 64}, "d_modle"),
        ({"d_model": "64"}, "d_model"),
        ({"years": 2.5}, "years"),
        ({"mode": "train"}, "mode"),
        ({"n_params": 87_438}, "87437"),
        ({"parent": "ms1_pretrain"}, "parent"),
        ({"include_bias": False}, "include_bias"),
        ({"precision": "int8"}, "precision"),
    ],
)
def test_a_wrong_configuration_is_refused(change, said, tmp_path):
    file = tmp_path / "ms1_pretrain.yaml"
    good = yaml.safe_load(pc.text(CONFIGS["ms1_pretrain"]))
    file.write_text(yaml.safe_dump(good | change))
    with pytest.raises(ValueError, match=f"(?s)ms1_pretrain.yaml.*{said}"):
        pc.read(file)


def test_a_missing_parent_is_refused(tmp_path):
    (tmp_path / "ms1_finetune.yaml").write_text(pc.text(CONFIGS["ms1_finetune"]))
    with pytest.raises(ValueError, match="ms1_pretrain"):
        pc.read_all(tmp_path)


def test_another_width_brings_its_layers():
    other = pc.resized(CONFIGS["ms3_pretrain"], 256, name="level1_pretrain")
    assert pc.resized(CONFIGS["level1_pretrain"], 256) == other
    assert pc.resized(CONFIGS["factor"], 32).n_l2 == 2


# -- samples


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patches")
    layout = patches.Layout(
        instruments=2, train_days=2, val_days=1, test_days=1, ticks=6600, core=1, unseen=1
    )
    world = market.World(best_short=0.7, best_long=0.25)
    patches.write_patches(folder, world, layout)
    return folder, world, patches.open_patches(folder)


def test_samples_are_the_days_own(days):
    _, world, data = days
    assert data.features.shape == (7, 110, 60, 52)
    assert data.items.split.to_list() == ["train"] * 4 + ["val", "test", "unseen"]
    for item in (1, len(data.items) - 1):
        row = data.items.iloc[item]
        day = market.generate(world, row.instrument, row.day, 6600)
        np.testing.assert_allclose(
            data.features[item].reshape(-1, 52), transform(day.raw), atol=2e-3
        )
        y, f = market.targets(day, np.array([20 * 60 - 1]), pt.SHORT_HORIZONS)
        np.testing.assert_allclose(data.target[1][item, 19], y[0])
        np.testing.assert_allclose(data.mean[1][item, 19], f[0])


def test_no_sample_touches_the_warm_up_or_the_end(days):
    data = days[2]
    for level, first in ((1, 10), (2, 69)):
        ends = data.examples(level, "train")[:, 1]
        assert ends.min() == first and 60 * ends.max() + 59 + max(patches.HORIZONS[level]) < 6600
    assert set(data.items.day[data.items.split == "train"]) == {0, 1}
    assert (
        len(data.examples(1, "train", instruments=1, days=1)) == len(data.examples(1, "train")) // 4
    )
    assert data.items.instrument[data.items.split == "unseen"].tolist() == [2]


def test_splits_are_days_in_order():
    items = patches.Layout(2, train_days=5, val_days=3, test_days=2).items()
    days = [sorted(set(rows.day)) for _, rows in items.groupby("split", sort=False)]
    assert days == [[0, 1, 2, 3, 4], [5, 6, 7], [8, 9], [8, 9]]
    with pytest.raises(ValueError, match="train_days = 0"):
        patches.Layout(2, train_days=0, val_days=3, test_days=2)


def test_windows_and_representations_line_up(days):
    data = days[2]
    at = data.examples(2, "val")[:3]
    windows = data.windows(at)
    assert torch.equal(windows[:, -1], data.patches(at)) and windows.shape == (3, 60, 60, 52)
    means = data.represent(lambda x: x.mean(-2), 52)
    torch.testing.assert_close(means[at[1, 0], at[1, 1] - 59 : at[1, 1] + 1], windows[1].mean(-2))
    assert data.factors().flatten(0, 1)[: 4 * 110].std(0) == pytest.approx(torch.ones(62), abs=1e-3)


SMALL = patches.Layout(
    instruments=1, train_days=1, val_days=1, test_days=1, ticks=6600, core=1, unseen=0
)


def test_written_once_as_long_as_they_are_of_the_same_world_and_layout(tmp_path):
    world, other = (market.World(best_short=0.7, best_long=0.25, seed=seed) for seed in (0, 1))
    patches.write_patches(tmp_path / "a", world, SMALL)
    first, before = (
        patches.open_patches(tmp_path / "a"),
        (tmp_path / "a/features.npy").stat().st_ino,
    )
    patches.write_patches(tmp_path / "a", world, SMALL)
    assert (tmp_path / "a/features.npy").stat().st_ino == before
    patches.write_patches(tmp_path / "a", other, SMALL)
    patches.write_patches(tmp_path / "b", other, SMALL)
    again, alone = patches.open_patches(tmp_path / "a"), patches.open_patches(tmp_path / "b")
    np.testing.assert_array_equal(again.features, alone.features)
    np.testing.assert_array_equal(again.target[1], alone.target[1])
    assert not np.array_equal(again.features, first.features)


@pytest.mark.parametrize("name", ["features.npy", "targets.npz"])
def test_an_emptied_file_is_made_again(tmp_path, name):
    world = market.World(best_short=0.7, best_long=0.25)
    patches.write_patches(tmp_path, world, SMALL)
    whole = np.array(patches.open_patches(tmp_path).features)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"is damaged .*delete it, and write_patches makes it anew"
    ):
        patches.open_patches(tmp_path)
    patches.write_patches(tmp_path, world, SMALL)
    np.testing.assert_array_equal(patches.open_patches(tmp_path).features, whole)


def test_features_cut_under_way_are_an_error(tmp_path):
    patches.write_patches(tmp_path, market.World(best_short=0.7, best_long=0.25), SMALL)
    data = patches.open_patches(tmp_path)
    os.truncate(tmp_path / "features.npy", 5000)
    at = data.examples(2, "train")[:3]
    for read in (data.patches, data.windows, lambda at: data.represent(lambda x: x.mean(-2), 52)):
        with pytest.raises(OSError, match=r"features\.npy ends at byte 5000"):
            read(at)


def test_refuses_what_cannot_be(tmp_path):
    with pytest.raises(FileNotFoundError, match="write_patches"):
        patches.open_patches(tmp_path)
    with pytest.raises(ValueError, match="ticks = 6000"):
        patches.Layout(instruments=1, train_days=1, val_days=1, test_days=1, ticks=6000)
