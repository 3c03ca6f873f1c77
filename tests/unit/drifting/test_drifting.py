"""Training, its checkpoints, their evaluation: what resumes, what is refused, what is written."""

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fieldbook.drifting import evaluation, experiment
from fieldbook.drifting.evaluation import Sampling
from fieldbook.drifting.images import SHAPES, Images, digits
from fieldbook.drifting.judge import Judge, judge
from fieldbook.nn.checkpoints import save_weights
from fieldbook.run import figures

SMALL = {
    "width": 8,
    "depth": 1,
    "set_size": 4,
    "positives": 4,
    "groups": 3,
    "steps": 6,
    "eval_every": 3,
    "warmup": 0,
}


FEW = Sampling(num_samples=20)


def setting(**options):
    return experiment.Setting(**{"data": "digits", **SMALL, **options})


@pytest.fixture(scope="module")
def scored():
    """A judge that has been trained on little."""
    d = digits()
    return judge(Images(d.train[:200], d.train_label[:200], d.test, d.test_label), steps=150)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    experiment.train(setting(), folder)
    return folder


def weights(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.glob("step_*"))}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"data": "ring", "groups": 1},
        {"field": "learned"},
        {"field": "learned", "objective": "frozen", "prior": False, "projection": True},
        {"cfg": "one_pass", "unconditional": 3},
        {"cfg": "two_pass"},
        {"axes": "y", "taus": [0.1], "pull": 1.5},
    ],
)
def test_trains_and_rebuilds_itself(options, tmp_path):
    s = setting(**options)
    fit = experiment.train(s, tmp_path)
    assert sorted(weights(tmp_path)) == [f"step_{step:07d}.safetensors" for step in (0, 3, 6)]
    model, saved = experiment.restore(tmp_path / "step_0000006.safetensors")
    assert saved.setting == s and saved.step == 6
    label = experiment.balanced_labels(6, s.classes)
    generator = [torch.Generator().manual_seed(0) for _ in range(2)]
    with torch.no_grad():
        assert torch.equal(
            model.sample(label, 1.5, generator[0]), fit.ema.sample(label, 1.5, generator[1])
        )
    rows = pd.read_csv(tmp_path / "steps.csv")
    assert rows.step.tolist() == list(range(1, 7)) and list(rows)[1:] == list(experiment.METRICS)
    assert rows.notna().all(axis=None) and (rows.grad_norm > 0).all()


def test_gradient_norm_is_that_of_the_update(tmp_path):
    s = setting(steps=1, eval_every=1)
    model, _ = experiment.build(s, reals := experiment.Reals(s))
    experiment.train(s, tmp_path)
    from fieldbook.nn.seeds import stream

    loss, _ = experiment.loss_of(s, reals, None)(
        model, 12, torch.Generator().manual_seed(stream("noise", 0, 0, 0))
    )
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert pd.read_csv(tmp_path / "steps.csv").grad_norm[0] == pytest.approx(float(norm), rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"field": "learned"}])
def test_interrupted_training_ends_with_the_same_bytes(options, tmp_path, monkeypatch):
    s = setting(**options)
    experiment.train(s, tmp_path / "straight")
    original, calls = experiment.drifting_loss, []

    def fails_once(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(experiment, "drifting_loss", fails_once)
    with pytest.raises(KeyboardInterrupt):
        experiment.train(s, tmp_path / "killed")
    experiment.train(s, tmp_path / "killed")
    assert weights(tmp_path / "killed") == weights(tmp_path / "straight")
    assert (tmp_path / "killed" / "steps.csv").read_bytes() == (
        tmp_path / "straight" / "steps.csv"
    ).read_bytes()


@pytest.mark.parametrize("lost", ["steps/3.*.json", "step_0000006.safetensors", "steps.csv"])
def test_what_was_deleted_beside_a_checkpoint_is_made_again(run, tmp_path, lost, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (file,) = folder.glob(lost)
    file.unlink()
    experiment.train(setting(), folder)
    assert ("training anew" in capsys.readouterr().err) == (lost != "steps.csv")
    assert weights(folder) == weights(run)
    assert file.read_bytes() == (run / file.relative_to(folder)).read_bytes()
    experiment.train(setting(), folder)
    assert "training anew" not in capsys.readouterr().err


def test_another_start_or_setting_is_not_continued(run, tmp_path):
    start = run / "step_0000006.safetensors"
    experiment.train(setting(), tmp_path / "a", start=start)
    with pytest.raises(ValueError, match=r"last\.pt is of another run: start"):
        experiment.train(setting(), tmp_path / "a", start=run / "step_0000003.safetensors")
    with pytest.raises(ValueError, match=r"last\.pt is of another run"):
        experiment.train(setting(taus=[0.3]), tmp_path / "a", start=start)


def test_weights_that_are_no_checkpoint_are_named(tmp_path):
    save_weights({"model.a": torch.ones(2)}, tmp_path / "w.safetensors")
    with pytest.raises(
        ValueError, match=r"w\.safetensors is not a checkpoint of a drifting run .*train it again"
    ):
        experiment.restore(tmp_path / "w.safetensors")


def test_a_learned_run_wants_its_field_back(run, tmp_path):
    learned, start = setting(field="learned"), run / "step_0000006.safetensors"
    with pytest.raises(ValueError, match="allow_fresh_field"):
        experiment.train(learned, tmp_path / "a", start=start)
    experiment.train(learned, tmp_path / "a", start=start, allow_fresh_field=True)
    experiment.train(learned, tmp_path / "b", start=tmp_path / "a" / "step_0000006.safetensors")
    first, second = (
        experiment.read_checkpoint(tmp_path / name).model
        for name in ("a/step_0000006.safetensors", "b/step_0000000.safetensors")
    )
    assert all(
        torch.equal(first[name], second[name]) for name in first if name.startswith("field.")
    )
    with pytest.raises(ValueError, match="start"):
        experiment.train(setting(depth=2), tmp_path / "c", start=start)


def test_logger_gets_every_update(tmp_path):
    seen = []

    class Logger:
        def log(self, metrics, step):
            seen.append((step, set(metrics)))

    experiment.train(setting(), tmp_path, logger=Logger(), deterministic=True)
    assert [step for step, _ in seen] == list(range(1, 7))
    assert seen[0][1] == {f"train/{name}" for name in experiment.METRICS}
    assert not torch.are_deterministic_algorithms_enabled()


def test_settings_are_checked():
    for wrong in ({"data": "mnst"}, {"lr": 0}, {"widht": 3}, {"set_size": 1}, {"alpha_max": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            setting(**wrong)
    with pytest.raises(ValueError, match="encoder"):
        s = setting(data="ring", encoder=True)
        experiment.build(s, experiment.Reals(s))


def test_encoder_features_join_the_pixels():
    s = setting(encoder=True, field="learned")
    reals = experiment.Reals(s)
    model, encoder = experiment.build(s, reals)
    assert len(model.field) == 3 and not any(p.requires_grad for p in encoder.parameters())
    loss, _ = experiment.loss_of(s, reals, encoder)(model, 12, torch.Generator().manual_seed(0))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_colour_images_and_a_transformer(tmp_path, monkeypatch):
    x, label = torch.rand(40, 3, 16, 16) * 2 - 1, torch.arange(40) % 10
    monkeypatch.setitem(SHAPES, "cifar10", (3, 16, 16))
    monkeypatch.setattr(
        experiment, "load_images", lambda data, folder: Images(x, label, x[:10], label[:10])
    )
    s = setting(data="cifar10", generator="dit", encoder=True, width=16, precision="bf16", steps=3)
    experiment.train(s, tmp_path)
    rows = evaluation.evaluate(tmp_path, tmp_path / "out", None, Sampling(num_samples=10))
    assert rows.step.tolist() == [0, 3] and rows.loss.notna().tolist() == [False, True]
    assert Image.open(tmp_path / "out" / "artifacts" / "step_0000003" / "preview.png").mode == "RGB"


def test_two_passes_extrapolate(tmp_path):
    experiment.train(setting(cfg="two_pass"), tmp_path)
    model, _ = experiment.restore(tmp_path / "step_0000006.safetensors")
    label = torch.arange(10)
    with torch.no_grad():
        zero, one, three = (
            model.sample(label, a, torch.Generator().manual_seed(0)) for a in (0.0, 1.0, 3.0)
        )
    assert torch.allclose(three, zero + 3 * (one - zero), atol=1e-5) and not torch.allclose(
        zero, one
    )


# -- evaluation


def test_evaluates_a_folder(run, scored, tmp_path):
    drawn = []
    sampling = Sampling(num_samples=20, batch_size=8)
    rows = evaluation.evaluate(
        run, tmp_path, scored, sampling, draw=lambda rows: drawn.append(len(rows))
    )
    wanted = {
        "checkpoint",
        "name",
        "dataset",
        "epoch",
        "step",
        "num_samples",
        "batch_size",
        "alpha",
        "seed",
        "eval_seconds",
        "fid",
        "kid",
        "fd_heldout",
        "precision",
        "recall",
        "density",
        "coverage",
        "loss",
        "drift_norm",
        "grad_norm",
    }
    assert wanted <= set(rows) and rows.step.tolist() == [0, 3, 6] and drawn == [1, 2, 3]
    assert (
        rows.fid.isna().all()
        and rows.fd_heldout.notna().all()
        and rows.loss.isna().tolist() == [True, False, False]
    )
    folder = tmp_path / "artifacts" / "step_0000006"
    assert len(list((folder / "generated").glob("*.png"))) == 20
    assert np.asarray(Image.open(folder / "generated" / "000000.png")).shape == (8, 8)
    assert Image.open(folder / "preview.png").size == (100, 100)
    about = json.loads((folder / "eval_metadata.json").read_text())
    assert (
        about["seed"] == 42
        and about["features"] == scored.digest
        and about["setting"]["width"] == 8
    )


def test_a_curve_is_redrawn_with_every_row(run, scored, tmp_path):
    seen, file = [], tmp_path / "curve.png"

    def draw(rows):
        figures.step_curve(rows, "fd_heldout", file)
        seen.append(file.read_bytes())

    evaluation.evaluate(run, tmp_path / "out", scored, FEW, draw=draw)
    assert Image.open(file).width > 100 and len(set(seen)) == 3


def test_same_seed_same_samples_whatever_was_there(run, scored, tmp_path):
    one, two = (evaluation.evaluate(run, tmp_path / name, scored, FEW) for name in "ab")
    again = evaluation.evaluate(run, tmp_path / "a", scored, FEW)
    other = evaluation.evaluate(
        run / "step_0000006.safetensors", tmp_path / "a", scored, Sampling(num_samples=20, seed=1)
    )
    assert one.fd_heldout.equals(two.fd_heldout) and one.fd_heldout.equals(again.fd_heldout)
    assert len(other) == 4 and other.fd_heldout.iloc[3] != other.fd_heldout.iloc[2]


def test_skips_what_it_has_and_cleans_up(run, scored, tmp_path, monkeypatch):
    evaluation.evaluate(run / "step_0000003.safetensors", tmp_path, scored, FEW)
    sampled, original = [], evaluation.sample

    def watched(*args):
        sampled.append(1)
        return original(*args)

    monkeypatch.setattr(evaluation, "sample", watched)
    options = {"skip_existing": True, "cleanup_samples": True}
    rows = evaluation.evaluate(run, tmp_path, scored, FEW, **options)
    assert len(sampled) == 2 and sorted(rows.step) == [0, 3, 6]
    assert not (tmp_path / "artifacts" / "step_0000006" / "generated").exists()
    assert (tmp_path / "artifacts" / "step_0000006" / "preview.png").exists()
    evaluation.evaluate(run, tmp_path, scored, FEW, **options | {"skip_existing": False})
    assert len(sampled) == 5


def test_a_corrupt_checkpoint_is_named_and_the_rest_goes_on(run, scored, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    bad = folder / "step_0000003.safetensors"
    bad.write_bytes(bad.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="step_0000003"):
        rows = evaluation.evaluate(folder, tmp_path / "out", scored, FEW)
    assert rows.step.tolist() == [0, 6]
    with pytest.raises(ValueError, match="step_0000003"):
        evaluation.evaluate(bad, tmp_path / "out", scored, FEW)
    with pytest.raises(FileNotFoundError):
        evaluation.evaluate(tmp_path / "nowhere", tmp_path / "out", scored)
    os.mkdir(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="step_"):
        evaluation.evaluate(tmp_path / "empty", tmp_path / "out", scored)
    with pytest.raises(ValueError, match="alpha"):
        Sampling(alpha=0.5)


def test_fid_says_what_is_missing_before_sampling(run, scored, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "sample", lambda *_: pytest.fail("sampled in vain"))
    with pytest.raises(FileNotFoundError, match=r"digits_clean_train_8\.npz"):
        evaluation.evaluate(
            run / "step_0000003.safetensors", tmp_path, scored, Sampling(fid_mode="clean")
        )


def test_judge_knows_real_from_wrong(scored):
    images = scored.images
    real = scored.measure(images.test, images.test_label)
    assert (
        real["fd_heldout"] == pytest.approx(0, abs=1e-5)
        and real["coverage"] == 1
        and abs(real["energy"]) < 0.1
    )
    noise = scored.measure(
        torch.randn(500, 1, 8, 8, generator=torch.Generator().manual_seed(0)), images.test_label
    )
    copies = scored.measure(
        images.train[:60].repeat(9, 1, 1, 1)[:500], images.train_label.repeat(9)[:500]
    )
    floor = np.mean(scored.floor(5))
    assert noise["fd_heldout"] > 3 * floor and noise["coverage"] < 0.5
    assert copies["nearest"] == 0 and copies["fd_train"] < noise["fd_train"]


def test_judge_is_made_from_its_seed():
    d = digits()
    small = Images(d.train[:50], d.train_label[:50], d.test[:20], d.test_label[:20])
    one, two, other = (judge(small, seed=s, steps=3) for s in (1, 1, 2))
    assert isinstance(one, Judge) and one.digest == two.digest != other.digest
    assert torch.equal(one.test, two.test)
