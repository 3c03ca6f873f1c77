"""The training loop against hand formulas, torch's own schedulers, kills, full disks and a second
rank."""

import errno
import itertools
import math
import multiprocessing
import os
import random
import signal
import socket
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fieldbook.nn import checkpoints
from fieldbook.nn.checkpoints import atomic_write, load_weights, save_weights
from fieldbook.nn.recipe import Recipe, indices, learning_rate
from fieldbook.nn.training import fit

N = 53  # no batch size below divides it
PROCESSES = multiprocessing.get_context("forkserver")


def make_model(dtype=torch.float32, dropout=0.0, norm=False):
    torch.manual_seed(5)
    middle = [nn.BatchNorm1d(16)] if norm else [nn.LayerNorm(16)]
    return nn.Sequential(
        nn.Linear(4, 16), *middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1)
    ).to(dtype)


def data(dtype=torch.float32):
    x = torch.randn(N, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    return x, (x[:, :1] * x[:, 1:2]).sin()


def mse(model, index, generator, noise=0.0):
    x, y = data(next(model.parameters()).dtype)
    x = x[index]
    if noise:
        x = x + noise * torch.randn(x.shape, generator=generator)
    return (model(x) - y[index]).square().mean()


def noisy_mse(model, index, generator):
    return mse(model, index, generator, noise=0.1)


def validate(model, step):
    x, y = data(next(model.parameters()).dtype)
    return {"mse": (model(x).float() - y).square().mean()}


def recipe(**changes):
    return Recipe(**({"steps": 30, "batch_size": 12, "lr": 0.01} | changes))


def train(model, r, loss_fn=mse, **arguments):
    return fit(model, loss_fn, N, r, progress=False, **arguments)


def weights(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rigged(values):
    """An evaluation that returns the given values one after the other."""
    remaining = iter(values)
    return lambda model, step: {"metric": next(remaining)}


# ---- recipe, schedule, sampler


@pytest.mark.parametrize(
    "name, value",
    [
        ("steps", 0),
        ("batch_size", -1),
        ("lr", 0.0),
        ("lr", math.nan),
        ("lr", "fast"),
        ("clip", 0.0),
        ("ema", 1.0),
        ("betas", (0.9, 1.0)),
        ("schedule", "linear"),
        ("precision", "fp8"),
        ("mode", "least"),
        ("micro_batch", 0),
        ("warmup", 31),
        ("lr_min", 0.1),
        ("patience", 3),
        ("max_skipped_share", 2.0),
        ("lr_scale", {"a": -1.0}),
        ("batchsize", 3),
        ("steps", 1.5),
    ],
)
def test_recipe_names_the_field_it_refuses(name, value):
    blamed, said = (
        ("monitor", "None") if name == "patience" else (name, str(value))
    )  # patience needs a monitor
    said = {"betas": "1.0", "lr_scale": "-1.0"}.get(name, said)
    with pytest.raises(ValueError, match=blamed) as caught:
        recipe(**{name: value})
    assert said in str(caught.value)


def test_recipe_is_frozen_and_reads_numbers_that_yaml_left_as_text():
    assert recipe(lr="1e-3").lr == 1e-3
    with pytest.raises(AttributeError):
        recipe().lr = 1.0


def test_learning_rate_at_points_known_analytically():
    r = recipe(steps=110, lr=1.0, lr_min=0.2, warmup=10, schedule="cosine")
    assert [learning_rate(r, s) for s in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert [learning_rate(r, s) for s in (10, 60, 110)] == pytest.approx([1.0, 0.6, 0.2])
    assert learning_rate(r, 35) == pytest.approx(0.2 + 0.4 * (1 + math.sqrt(0.5)))
    assert {learning_rate(recipe(lr=0.3), s) for s in (0, 7, 30)} == {0.3}


def test_cosine_agrees_with_torch():
    r = recipe(lr=0.5, lr_min=0.01, schedule="cosine")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30, eta_min=0.01)
    for step in range(30):
        assert learning_rate(r, step) == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


def test_plateau_agrees_with_torch():
    values = [5.0, 4.0, 4.0, 3.95, 3.0, 3.1, math.nan, 3.2, 3.0, 3.3, 3.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    r = recipe(
        steps=15,
        lr=0.1,
        lr_min=0.03,
        schedule="plateau",
        plateau_patience=2,
        plateau_factor=0.5,
        monitor="metric",
        min_delta=0.1,
        eval_every=1,
    )
    history = train(make_model(), r, evaluate=rigged(values)).history
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=2, threshold=0.1, threshold_mode="abs", min_lr=0.03
    )
    expected = [0.1]  # ours reports the rate of the coming update
    for value in values:
        scheduler.step(value)
        expected.append(optimizer.param_groups[0]["lr"])
    assert [row["lr"] for row in history[1:]] == pytest.approx(expected[1:-1])
    assert len(set(expected)) == 3


@pytest.mark.parametrize("batch", [1, 12, N, 120])
def test_every_epoch_is_a_permutation_and_every_batch_full(batch):
    steps = math.ceil(4 * N / batch)
    batches = [indices(N, batch, step, seed=3) for step in range(steps)]
    assert {len(b) for b in batches} == {batch}
    epochs = torch.cat(batches)[: 4 * N].view(4, N)
    assert all(sorted(e.tolist()) == list(range(N)) for e in epochs)
    assert len({tuple(e.tolist()) for e in epochs}) == 4


def test_indices_are_a_pure_function_which_depends_on_the_seed():
    later = indices(N, 12, 7, seed=3)
    indices(N, 12, 2, seed=8)[:] = 0
    indices(N, 12, 7, seed=3)[:] = 0  # what the caller does to a batch stays with the caller
    assert torch.equal(indices(N, 12, 7, seed=3), later)
    assert not torch.equal(indices(N, 12, 7, seed=4), later)


@pytest.mark.parametrize("block", [1, 7, 10, N, 2 * N])
def test_blocks_are_visited_one_after_the_other(block):
    epochs = torch.cat([indices(N, N, step, seed=3, block=block) for step in range(4)]).view(4, N)
    assert all(sorted(e.tolist()) == list(range(N)) for e in epochs)
    for epoch in (epochs // block).tolist():
        assert 1 + sum(a != b for a, b in itertools.pairwise(epoch)) == math.ceil(N / block)
    assert len({tuple(e.tolist()) for e in epochs}) == 4


def test_blocks_are_shuffled_inside_and_reach_the_loop():
    rows = indices(N, N, 0, seed=3, block=10)
    assert rows.tolist() != sorted(rows.tolist(), key=lambda i: (i // 10 != rows[0] // 10, i))
    seen = []
    fit(
        make_model(),
        lambda m, i, g: (seen.append(i), mse(m, i, g))[1],
        N,
        recipe(shuffle_block=10),
        progress=False,
    )
    assert torch.equal(torch.cat(seen)[:N], indices(N, N, 0, seed=recipe().seed, block=10))


@pytest.mark.parametrize("wrong", [{"n": 0}, {"batch_size": 0}, {"step": -1}, {"block": 0}])
def test_indices_name_what_they_refuse(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        indices(**({"n": 5, "batch_size": 2, "step": 0, "seed": 0} | wrong))


# ---- the update


def test_first_step_of_adamw_by_hand():
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(model.weight, 2.0)
    r = Recipe(steps=1, batch_size=2, lr=0.1, weight_decay=0.3, clip=0.5)
    fit(model, lambda m, index, g: 3 * m.weight.sum(), 2, r, progress=False)
    # bias-corrected moments of a first gradient g are g and g^2; clipping makes g = 0.5; the decay
    # is decoupled
    assert model.weight.item() == pytest.approx(
        2 - 0.1 * 0.3 * 2 - 0.1 * 0.5 / (0.5 + 1e-8), abs=1e-12
    )


def test_loop_agrees_with_torch_written_out_plainly():
    model, other = make_model(), make_model()
    r = recipe(
        weight_decay=0.1, clip=0.05, betas=(0.9, 0.98), warmup=4, schedule="cosine", lr_min=1e-3
    )
    watched, norms = [], []
    train(model, r, watch=lambda step, norm: watched.append((step, norm)))
    optimizer = torch.optim.AdamW(
        other.parameters(), lr=1.0, weight_decay=0.1, betas=(0.9, 0.98), foreach=False
    )
    for step in range(r.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(r, step)
        optimizer.zero_grad()
        mse(other, indices(N, 12, step, 0), None).backward()
        norms.append(nn.utils.clip_grad_norm_(other.parameters(), 0.05).item())
        optimizer.step()
    assert watched == [(i, pytest.approx(norm, rel=1e-4)) for i, norm in enumerate(norms, 1)]
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_lr_scale_must_name_parameters():
    with pytest.raises(ValueError, match=r"lr_scale = 'encoder\.'"):
        train(make_model(), recipe(steps=1, lr_scale={"0.": 0.1, "encoder.": 0.1}))


def test_lr_scale_slows_the_parameters_it_names():
    model, before = make_model(torch.float64), weights(make_model(torch.float64))
    train(model, recipe(steps=1, lr_scale={"0.": 0.1}))
    moved = {
        name: (w - before[name]).abs().median().item() for name, w in model.state_dict().items()
    }
    assert moved["0.weight"] == pytest.approx(0.001, rel=1e-3)  # Adam's first step has length lr
    assert moved["4.weight"] == pytest.approx(0.01, rel=1e-3)


def test_ema_by_hand():
    trace, (x, y) = [], data(torch.float64)
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)

    def loss(model, index, generator):
        trace.append(model.weight.item())
        return (model(x[index, :1]) - y[index]).square().mean()

    result = train(model, recipe(steps=8, ema=0.9), loss)
    average = trace[0]
    for value in [*trace[1:], model.weight.item()]:
        average = 0.9 * average + 0.1 * value
    assert result.ema.weight.item() == pytest.approx(average, abs=1e-12)
    assert abs(result.ema.weight.item() - model.weight.item()) > 1e-3


@pytest.mark.parametrize("ema", [None, 0.5])
def test_modes_and_gradients_of_training_and_evaluation(ema):
    seen = []

    def loss(model, index, generator):
        assert all(module.training for module in model.modules())
        return mse(model, index, generator)

    def evaluate(model, step):
        seen.append(
            (
                step,
                model.training,
                model[3].training,
                torch.is_grad_enabled(),
                model[0].weight.sum().item(),
            )
        )
        return {}

    model = make_model(dropout=0.5)
    result = train(model.eval(), recipe(steps=25, eval_every=10, ema=ema), loss, evaluate=evaluate)
    assert [s[:4] for s in seen] == [(step, False, False, False) for step in (0, 10, 20, 25)]
    assert [row["step"] for row in result.history] == [0, 10, 20, 25]
    evaluated = model if ema is None else result.ema
    assert seen[-1][4] == evaluated[0].weight.sum().item()
    assert ema is None or seen[-1][4] != model[0].weight.sum().item()


def test_train_loss_is_the_mean_since_the_last_row():
    losses = []

    def loss(model, index, generator):
        losses.append(mse(model, index, generator))
        return losses[-1]

    history = train(make_model(torch.float64), recipe(steps=25, eval_every=10), loss).history
    assert math.isnan(history[0]["train_loss"])
    means = [torch.stack(losses[a:b]).mean().item() for a, b in ((0, 10), (10, 20), (20, 25))]
    assert [row["train_loss"] for row in history[1:]] == pytest.approx(means)


@pytest.mark.parametrize("micro", [1, 5, 12])
def test_micro_batches_equal_the_full_batch(micro):
    full, parts = make_model(torch.float64), make_model(torch.float64)
    train(full, recipe(clip=0.1))
    result = train(parts, recipe(clip=0.1, micro_batch=micro))
    assert (result.batch_size, result.micro_batch) == (12, micro)
    for a, b in zip(full.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), None])
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_result(error):
    calls = []

    def loss(model, index, generator):
        calls.append(len(index))
        if len(index) > 3:
            if error:
                raise error
            torch.empty(10**15)  # the CPU allocator's own complaint
        return mse(model, index, generator)

    plain, starved = make_model(torch.float64), make_model(torch.float64)
    train(plain, recipe())
    result = train(starved, recipe(), loss)
    assert (result.batch_size, result.micro_batch) == (12, 3)
    assert calls[:6] == [12, 6, 3, 3, 3, 3] and max(calls[6:]) == 3
    for a, b in zip(plain.parameters(), starved.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_out_of_memory_in_mid_batch_leaves_no_trace():
    failed = []

    def loss(model, index, generator):
        value = mse(model, index, generator)
        if (
            len(index) == 4 and len(failed) < 1 and loss.seen
        ):  # the second micro-batch, BatchNorm already updated
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory")
        loss.seen = True
        return value

    loss.seen = False
    starved, plain = make_model(norm=True), make_model(norm=True)
    train(starved, recipe(micro_batch=4), loss)
    train(plain, recipe(micro_batch=2))
    assert failed and same(weights(starved), weights(plain))


def test_a_single_example_without_memory_and_other_errors_are_raised():
    def starving(model, index, generator):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def broken(model, index, generator):
        raise RuntimeError("shape mismatch")

    with pytest.raises(torch.OutOfMemoryError):
        train(make_model(), recipe(), starving)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        train(make_model(), recipe(), broken)


def poisoned(at, where="loss"):
    def loss(model, index, generator):
        value = mse(model, index, generator)
        if loss.calls in at:
            if where == "loss":
                value = value * math.nan
            elif where == "gradient":  # finite loss, infinite slope
                value = value + (model[0].weight.flatten()[0] * 0).sqrt()
            else:  # through BatchNorm's running averages
                model(data()[0][index] * math.inf)
                value = value * math.inf
        loss.calls += 1
        return value

    loss.calls = 0
    return loss


@pytest.mark.parametrize("where", ["loss", "gradient", "buffers"])
def test_a_non_finite_update_is_skipped_and_counted(where):
    model = make_model(norm=True)
    result = train(model, recipe(), poisoned({3, 4, 11}, where))
    assert result.skipped == 3
    assert result.step == 30
    assert all(w.isfinite().all() for w in weights(model).values())
    assert math.isfinite(result.history[-1]["train_loss"])


def test_a_skipped_update_leaves_weights_and_moments_as_they_were():
    one, two = make_model(), make_model()
    train(one, recipe(steps=5))
    train(two, recipe(steps=7), poisoned({5, 6}))
    assert same(weights(one), weights(two))


def test_too_many_skips_in_a_row_abort_with_the_numbers():
    train(make_model(), recipe(max_skipped_in_row=3), poisoned({5, 6, 7}))
    with pytest.raises(
        FloatingPointError, match=r"step 8: loss nan.*max_skipped_in_row = 3.*Lower lr"
    ):
        train(make_model(), recipe(max_skipped_in_row=3), poisoned({5, 6, 7, 8}))


def test_too_large_a_share_of_skips_aborts():
    spread = poisoned(set(range(0, 400, 10)))  # one in ten
    with pytest.raises(FloatingPointError, match=r"step 40.*5 in all \(max_skipped_share = 0.01"):
        train(make_model(), recipe(steps=400, max_skipped_in_row=4), spread)


def test_loss_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"loss_fn.*\(12,\)"):
        train(make_model(), recipe(), lambda model, index, g: model(data()[0][index])[:, 0])


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="require a gradient"):
        train(make_model().requires_grad_(False), recipe())


def test_frozen_modules_stay_in_eval_mode():
    model = make_model(norm=True)
    model[1].requires_grad_(False)
    before = weights(model[1])
    train(model, recipe(), evaluate=validate)
    assert same(before, weights(model[1]))
    moving = make_model(norm=True)
    train(moving, recipe())
    assert not same(before, weights(moving[1]))


# ---- precision


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_agrees_with_fp32(precision):
    seen = set()

    def loss(model, index, generator):
        x, y = data()
        out = model(x[index])
        seen.add(out.dtype)
        return (out.float() - y[index]).square().mean()

    def final(p):
        result = train(make_model(), recipe(steps=200, precision=p), loss, evaluate=validate)
        return result.history[0]["mse"], result.history[-1]["mse"], result.skipped

    start, exact, _ = final("fp32")
    _, half, skipped = final(precision)
    assert seen == {torch.float32, torch.float16 if precision == "fp16" else torch.bfloat16}
    assert exact < 0.5 * start
    assert abs(half - exact) < 0.1 * start
    assert half != exact
    assert skipped <= 2  # fp16 finds its loss scale


# ---- randomness


def test_global_generator_is_left_as_found_and_does_not_matter():
    runs = []
    for seed in (1, 2):
        model = make_model(dropout=0.5)
        torch.manual_seed(seed)
        expected = torch.rand(3)
        torch.manual_seed(seed)
        train(model, recipe(), noisy_mse)
        assert torch.equal(torch.rand(3), expected)
        runs.append(weights(model))
    assert same(*runs)


def test_seed_changes_order_noise_and_dropout():
    a, b = make_model(dropout=0.5), make_model(dropout=0.5)
    first = {}
    for model, seed in ((a, 0), (b, 1)):

        def loss(model, index, generator, seed=seed):
            first.setdefault(
                seed,
                (
                    index.tolist(),
                    torch.rand(2, generator=generator).tolist(),
                    torch.rand(2).tolist(),
                ),
            )
            return mse(model, index, generator)

        train(model, recipe(steps=2, seed=seed), loss)
    assert all(u != v for u, v in zip(first[0], first[1], strict=True))
    assert first[0][1] != first[0][2]  # noise and dropout are independent streams


# ---- early stopping, best weights, checkpoints


def test_early_stopping_and_best_weights_on_a_rigged_metric(tmp_path):
    snapshots = {}
    values = iter([9, 5, 4.95, 3, 3.5, 2.95, math.nan, 1, 1])

    def evaluate(model, step):
        snapshots[step] = weights(model)
        return {"metric": next(values)}

    r = recipe(steps=40, eval_every=5, monitor="metric", patience=3, min_delta=0.1)
    model = make_model()
    result = train(model, r, evaluate=evaluate, checkpoint=tmp_path)
    assert result.stopped_early
    assert (result.step, result.best_step, result.best_value) == (30, 15, 3)
    assert same(result.best, snapshots[15])
    load_weights(model, tmp_path / "best.safetensors")
    assert same(weights(model), snapshots[15])
    again = train(make_model(), r, evaluate=evaluate, checkpoint=tmp_path)  # stopped stays stopped
    assert (again.step, again.stopped_early) == (30, True)


def test_higher_can_be_better():
    r = recipe(steps=4, eval_every=1, monitor="metric", mode="max")
    assert train(make_model(), r, evaluate=rigged([-3, -2, 5, 4, 1])).best_step == 2


def test_a_missing_metric_is_named():
    with pytest.raises(ValueError, match=r"mea.*train_loss, mse"):
        train(make_model(), recipe(monitor="mea"), evaluate=validate)


HARD = {
    "steps": 40,
    "ema": 0.9,
    "schedule": "cosine",
    "warmup": 3,
    "clip": 0.5,
    "eval_every": 9,
    "micro_batch": 8,
    "monitor": "mse",
    "patience": 30,
}


def killed_worker(folder, precision, kill_at_step, kill_in_write):
    """Trains until it kills itself with SIGKILL: inside a loss, or between writing a file and
    renaming it."""
    rename, writes = os.replace, []

    def fragile_rename(*arguments):
        writes.append(arguments)
        if len(writes) == kill_in_write:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*arguments)

    def loss(model, index, generator):
        if loss.calls == 2 * kill_at_step + 1:  # two micro-batches a step: in the middle of one
            os.kill(os.getpid(), signal.SIGKILL)
        loss.calls += 1
        return noisy_mse(model, index, generator)

    loss.calls, os.replace = 0, fragile_rename
    torch.set_num_threads(1)
    fit(
        make_model(dropout=0.3),
        loss,
        N,
        recipe(**HARD, precision=precision),
        evaluate=validate,
        checkpoint=folder,
        checkpoint_every=4,
        progress=False,
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_killed_four_times_ends_bit_identically(tmp_path, precision):
    whole = make_model(dropout=0.3)
    expected = train(whole, recipe(**HARD, precision=precision), noisy_mse, evaluate=validate)
    for kill_at_step, kill_in_write in [(13, 0), (999, 2), (7, 0), (999, 4)]:
        worker = PROCESSES.Process(
            target=killed_worker, args=(tmp_path, precision, kill_at_step, kill_in_write)
        )
        worker.start()
        worker.join()
        assert worker.exitcode == -signal.SIGKILL
        reached = torch.load(tmp_path / "last.pt", weights_only=True)["content"]["fit"]["step"]
        assert 0 < reached < 40

    model = make_model(dropout=0.3)
    steps = []
    result = fit(
        model,
        lambda m, i, g: steps.append(0) or noisy_mse(m, i, g),
        N,
        recipe(**HARD, precision=precision),
        evaluate=validate,
        checkpoint=tmp_path,
        progress=False,
    )
    assert len(steps) == 2 * (40 - reached)
    assert same(weights(model), weights(whole))
    assert same(weights(result.ema), weights(expected.ema))
    assert same(result.best, expected.best)
    assert repr(result.history) == repr(expected.history)  # repr: NaN equals NaN
    assert (result.best_step, result.stale, result.loss_sum) == (
        expected.best_step,
        expected.stale,
        expected.loss_sum,
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best.safetensors",
        "last.pt",
    ]  # no leftovers of the kills


def test_plateau_stopping_and_skips_survive_an_interruption(tmp_path):
    r = recipe(
        steps=40, schedule="plateau", plateau_patience=1, monitor="metric", eval_every=4, patience=9
    )
    rig = lambda m, step: {"metric": abs(step - 12) + 1}  # noqa: E731
    whole, model = make_model(), make_model()
    expected = train(whole, r, poisoned({2, 3, 25}), evaluate=rig)

    def interrupted(m, index, generator):
        if interrupted.calls == 22:
            raise KeyboardInterrupt
        interrupted.calls += 1
        return interrupted.loss(m, index, generator)

    interrupted.calls, interrupted.loss = 0, poisoned({2, 3, 25})
    with pytest.raises(KeyboardInterrupt):
        train(model, r, interrupted, evaluate=rig, checkpoint=tmp_path, checkpoint_every=3)
    resumed = poisoned({25})
    resumed.calls = 21
    model = make_model()
    result = train(model, r, resumed, evaluate=rig, checkpoint=tmp_path)
    assert same(weights(whole), weights(model))
    assert (result.skipped, result.lr_factor) == (expected.skipped, expected.lr_factor)
    assert expected.skipped == 3 and expected.lr_factor < 1
    assert repr(result.history) == repr(expected.history)


def test_a_finished_run_returns_at_once_with_its_weights(tmp_path):
    model = make_model()
    first = train(model, recipe(), evaluate=validate, checkpoint=tmp_path)
    fresh = make_model()

    def forbidden(*arguments):
        raise AssertionError("nothing is left to compute")

    second = train(fresh, recipe(), forbidden, evaluate=forbidden, checkpoint=tmp_path)
    assert same(weights(model), weights(fresh))
    assert repr(second.history) == repr(first.history)


@pytest.mark.parametrize("change", ["recipe", "model", "data"])
def test_checkpoint_of_another_run_is_refused(tmp_path, change):
    train(make_model(), recipe(), checkpoint=tmp_path)
    model = nn.Linear(4, 1) if change == "model" else make_model()
    r = recipe(lr=0.02) if change == "recipe" else recipe()
    named = {
        "recipe": "lr is 0.01 there, 0.02 here",
        "model": "weight",
        "data": "n_examples is 53 there, 50 here",
    }
    with pytest.raises(ValueError, match=rf"last.pt.*{named[change]}.*delete it"):
        fit(model, mse, 50 if change == "data" else N, r, checkpoint=tmp_path, progress=False)


class Noisy(nn.Module):
    """Noise from a generator of its own, on a scale that falls and is not in the state dict."""

    def __init__(self, level=0.1, activation=torch.tanh, seed=0):
        super().__init__()
        self.level, self.activation = level, activation
        self.generator = torch.Generator().manual_seed(seed)
        self.register_buffer("scale", torch.ones(()), persistent=False)
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x):
        if self.training:
            self.scale.mul_(0.9)
            x = x + self.level * self.scale * torch.randn(x.shape, generator=self.generator)
        return self.second(self.activation(self.first(x)))


class Killed(Exception):
    pass


def train_in_two(folder, build, loss, build_again=None, loss_again=None, at=7, **arguments):
    """Weights of a run that is killed and continued, and of one left alone."""

    def watch(step, norm):
        if step == at:
            raise Killed

    r = recipe(steps=12)
    with pytest.raises(Killed):
        train(build(), r, loss, watch=watch, checkpoint=folder, checkpoint_every=5)
    model, alone = (build_again or build)(), build()
    train(model, r, loss_again or loss, checkpoint=folder, **arguments)
    train(alone, r, loss)
    return weights(model), weights(alone)


def test_state_that_a_state_dict_leaves_out_is_continued(tmp_path):
    assert same(*train_in_two(tmp_path, Noisy, mse))
    other = Noisy(seed=1)
    train(other, recipe(steps=12), mse)
    assert not same(weights(other), train_in_two(tmp_path / "b", Noisy, mse)[1]), (
        "the generator matters"
    )


def test_global_generators_of_numpy_and_python_are_functions_of_the_step(tmp_path):
    def loss(model, index, generator):
        noise = np.random.rand()  # noqa: NPY002
        return mse(model, index, generator) * (1 + noise) * (1 + random.random())

    random.seed(1), np.random.seed(1)  # noqa: NPY002
    expected = random.random(), np.random.rand()  # noqa: NPY002
    random.seed(1), np.random.seed(1)  # noqa: NPY002
    resumed, alone = train_in_two(tmp_path, make_model, loss)
    assert same(resumed, alone) and (random.random(), np.random.rand()) == expected  # noqa: NPY002


def frozen_first(part=0):
    model = make_model()
    model[part].requires_grad_(False)
    return model


def preset(value):
    """BatchNorm's averages, or frozen weights, that were settled before."""
    model = make_model(norm=True)
    model[1].running_mean.fill_(value)
    return model


def other_frozen_weights():
    model = frozen_first()
    nn.init.zeros_(model[0].weight)
    return model


def swapped():
    model = Noisy()
    first = model._modules.pop("first")
    model.second = nn.Linear(4, 1)
    model._modules["first"] = first
    return model


@pytest.mark.parametrize(
    ("build", "again", "named"),
    [
        (frozen_first, lambda: frozen_first(4), "trained weights"),
        (Noisy, swapped, "trained weights"),
        (Noisy, lambda: Noisy(level=0.2), "'level': '0.1'"),
        (Noisy, lambda: Noisy(activation=torch.relu), "relu"),
        (make_model, lambda: make_model(dropout=0.1), "module 3"),
        (frozen_first, other_frozen_weights, "initial 0.weight"),
        (lambda: preset(0.0), lambda: preset(1.0), "initial 1.running_mean"),
    ],
    ids=["frozen", "order", "noise level", "activation", "dropout", "frozen weights", "averages"],
)
def test_a_network_of_another_kind_is_not_continued(tmp_path, build, again, named):
    with pytest.raises(
        ValueError,
        match=rf"last\.pt is of another run: .*{named}.*delete it to train from the start",
    ):
        train_in_two(tmp_path, build, mse, again)
    (tmp_path / "last.pt").unlink()  # the remedy
    model, alone = again(), again()
    train(model, recipe(steps=12), mse, checkpoint=tmp_path)
    train(alone, recipe(steps=12), mse)
    assert same(weights(model), weights(alone))


X, Y = data()


def reading(x, level=0.1, how=lambda error: error.square()):
    def error(model, index):
        return model(x[index]) - Y[index]

    def loss(model, index, generator):
        return how(
            error(model, index) + level * torch.randn(len(index), 1, generator=generator)
        ).mean()

    return loss


def of_default(model, index, generator, x=X):
    return (model(x[index]) - Y[index]).square().mean()


def of_default_2(model, index, generator, x=X + 1):
    return (model(x[index]) - Y[index]).square().mean()


@pytest.mark.parametrize(
    ("loss", "again", "named"),
    [
        (reading(X), reading(X + 1), "x of the loss"),
        (reading(X), reading(X, level=0.2), "level of the loss is 0.1 there, 0.2 here"),
        (
            partial(reading, X)(),
            partial(mse, noise=0.3),
            "noise of the loss|x of the loss|level of the loss",
        ),
        (of_default, of_default_2, "x of the loss"),
    ],
    ids=["data", "noise level", "partial", "default"],
)
def test_other_data_or_noise_are_not_continued(tmp_path, loss, again, named):
    with pytest.raises(ValueError, match=rf"last\.pt is of another run: ({named}).*delete it"):
        train_in_two(tmp_path, make_model, loss, loss_again=again)


def test_facts_must_agree(tmp_path):
    train(make_model(), recipe(), checkpoint=tmp_path, facts={"label": "log_g", "stars": X})
    assert (
        train(
            make_model(),
            recipe(),
            checkpoint=tmp_path,
            facts={"label": "log_g", "stars": X.clone()},
        ).step
        == 30
    )
    with pytest.raises(
        ValueError, match=r"last\.pt is of another run: label is 'log_g' there, 'T_eff' here"
    ):
        train(make_model(), recipe(), checkpoint=tmp_path, facts={"label": "T_eff", "stars": X})


def test_what_may_change_between_two_calls_does_not_matter(tmp_path):
    seen, calls, own = [], 0, make_model()

    def loss(model, index, generator):
        nonlocal calls
        calls, _ = calls + 1, seen.append(0.5)
        return mse(model, index, generator) + 0 * own[0].weight.sum().detach()

    train(make_model(), recipe(), loss, checkpoint=tmp_path)
    nn.init.zeros_(own[0].weight)
    assert (
        train(make_model(), recipe(), loss, checkpoint=tmp_path).step == 30
        and len(seen) == calls == 30
    )


def test_a_batch_that_was_split_is_split_again_where_memory_suffices(tmp_path):
    def starving(model, index, generator):
        if len(index) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return noisy_mse(model, index, generator)

    resumed, _ = train_in_two(tmp_path, make_model, starving, loss_again=noisy_mse, at=3)
    alone = make_model()
    train(alone, recipe(steps=12), starving)
    assert same(resumed, weights(alone))


@pytest.mark.parametrize("length", [0, 100, -100])
def test_a_truncated_checkpoint_is_named(tmp_path, length):
    train(make_model(), recipe(), checkpoint=tmp_path)
    path = tmp_path / "last.pt"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"last.pt is not a readable checkpoint.*delete it"):
        train(make_model(), recipe(), checkpoint=tmp_path)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    def stop_at_20(model, step):
        if step == 20:  # from here on the disk is full
            real = open
            monkeypatch.setattr(checkpoints, "open", lambda *a: FullDisk(real(*a)), raising=False)
        return {}

    class FullDisk:
        def __init__(self, file):
            self.file = file

        def fileno(self):
            return self.file.fileno()

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, data):
            self.file.write(data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

    r = recipe(eval_every=10)
    with pytest.raises(OSError, match=r"last.pt") as caught:
        train(make_model(), r, evaluate=stop_at_20, checkpoint=tmp_path)
    assert caught.value.errno == errno.ENOSPC and "No space" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    monkeypatch.undo()
    assert train(make_model(), r, evaluate=lambda m, s: {}, checkpoint=tmp_path).step == 30


def test_atomic_write_onto_a_device_that_is_full(tmp_path, monkeypatch):
    path = tmp_path / "kept.txt"
    atomic_write(path, lambda file: file.write(b"old"))
    with Path("/dev/full").open("wb") as full:
        monkeypatch.setattr(checkpoints, "open", lambda *a: full, raising=False)
        with pytest.raises(OSError, match=r"could not be written \(No space left.*kept.txt"):
            atomic_write(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]


def test_atomic_write_cleans_up_after_any_error(tmp_path):
    with pytest.raises(ZeroDivisionError):
        atomic_write(tmp_path / "a" / "b.txt", lambda file: file.write(b"half") / 0)
    assert list((tmp_path / "a").iterdir()) == []


def test_weights_round_trip_and_misfits_are_named(tmp_path):
    path = tmp_path / "deep" / "w.safetensors"
    model, other = make_model(norm=True), make_model(norm=True)
    train(model, recipe())
    save_weights(model, path)
    load_weights(other, path)
    assert same(weights(model), weights(other))
    with pytest.raises(
        ValueError, match=r"w.safetensors.*\(16, 4\) for '0.weight', the model has \(8, 4\)"
    ):
        load_weights(nn.Sequential(nn.Linear(4, 8)), path)
    with pytest.raises(ValueError, match=r"w.safetensors.*nothing for 'extra.weight'"):
        load_weights(nn.ModuleDict({"extra": nn.Linear(1, 1)}), path)
    with pytest.raises(FileNotFoundError, match=r"absent.safetensors"):
        load_weights(model, tmp_path / "absent.safetensors")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"w.safetensors is not a readable"):
        load_weights(model, path)


# ---- data parallel


def rank_worker(folder, rank, port, r, poison):
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    model = make_model()
    if rank == 1:
        nn.init.zeros_(model[0].weight)  # rank 0's weights count
    loss = poisoned({4}) if poison and rank == 1 else mse  # one rank's NaN is everybody's skip
    result = train(model, r, loss, evaluate=validate, checkpoint=folder / "run")
    torch.save(
        (result.history, result.skipped, result.stopped_early, weights(model)),
        folder / f"{rank}.pt",
    )


def two_ranks(folder, r, poison=False):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workers = [
        PROCESSES.Process(target=rank_worker, args=(folder, rank, port, r, poison))
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_ranks_agree_with_one(tmp_path):
    r = recipe(batch_size=13, clip=0.5, ema=0.9, monitor="mse", eval_every=10)  # 7 and 6 examples
    alone = make_model()
    expected = train(alone, r, evaluate=validate)
    (history, _, _, first), (history_1, _, _, second) = two_ranks(tmp_path, r)
    assert same(first, second) and repr(history) == repr(history_1)
    for name, w in alone.state_dict().items():
        torch.testing.assert_close(first[name], w, rtol=0, atol=1e-4)
    assert history[-1]["mse"] == pytest.approx(expected.history[-1]["mse"], abs=1e-4)
    assert history[-1]["train_loss"] == pytest.approx(expected.history[-1]["train_loss"], abs=1e-4)


def test_ranks_skip_together_and_resume_together(tmp_path):
    r = recipe(steps=20, batch_size=13, eval_every=10)
    (_, skipped_0, _, first), (_, skipped_1, _, second) = two_ranks(tmp_path, r, poison=True)
    assert skipped_0 == skipped_1 == 1
    assert same(first, second) and all(w.isfinite().all() for w in first.values())
    (_, skipped, _, again), _ = two_ranks(tmp_path, r)  # finished: loaded on both
    assert skipped == 1 and same(again, first)
