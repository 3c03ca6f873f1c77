"""The guards of a learned field: it trains, points at data, stays antisymmetric;
and what the frozen one does."""

import pytest
import torch
from torch import nn

from fieldbook.drifting import audit, kernel
from fieldbook.drifting.distances import energy_distance
from fieldbook.drifting.learned import SetField
from fieldbook.drifting.loss import Sets, drifting_loss
from fieldbook.drifting.setting import Setting


def points(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bank(taus=(0.2,), projection=True, axes="both", dims=(4,)):
    """A field per scale, with temperatures in units of the mean distance."""
    fields = [
        SetField(d, [tau * d**0.5 for tau in taus], projection=projection, axes=axes, seed=i)
        for i, d in enumerate(dims)
    ]
    return nn.ModuleList(fields).double()


def setting(objective, taus=(0.1,), **options):
    return Setting(data="digits", field="learned", objective=objective, taus=taus, **options)


def updates(field, objective, steps=30, lr=1e-2):
    """Train a field on samples of a shifted Gaussian; the gradients of the first update."""
    optimizer, first = torch.optim.AdamW(field.parameters(), lr=lr, weight_decay=0.1), None
    for step in range(steps):
        x, pos, fresh = (points(2, 16, 4, seed=3 * step + i) + (i > 0) for i in range(3))
        sets = [Sets(x.requires_grad_(), pos, fresh=fresh)]
        loss, _ = drifting_loss(sets, setting(objective), field)
        optimizer.zero_grad()
        loss.backward()
        first = first or [p.grad for p in field.parameters()]
        optimizer.step()
    return first


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("taus", [(), (0.3, 2.0)])
@pytest.mark.parametrize("axes", ["both", "y", "separate"])
def test_antisymmetric_whatever_its_parameters(projection, taus, axes):
    field = SetField(3, projection=projection, taus=taus, axes=axes, seed=1).double()
    with torch.no_grad():
        for p in field.parameters():
            p.add_(torch.randn_like(p) * 0.5)
    x, p, q = points(6, 3), points(5, 3, seed=1), points(4, 3, seed=2)
    there, back = field(x, p, q, mask_self=False), field(x, q, p, mask_self=False)
    assert there.shape == (max(len(taus), 1), 6, 3) and there.abs().max() > 1e-3
    assert torch.allclose(there, -back, rtol=0, atol=1e-12)


@pytest.mark.parametrize("axes", ["both", "y", "separate"])
@pytest.mark.parametrize("projection", [False, True])
def test_untrained_with_prior_it_is_the_kernel_field(projection, axes):
    field = SetField(3, projection=projection, taus=(0.4, 2.0), axes=axes, seed=1).double()
    x, pos, extra = points(2, 6, 3), points(2, 5, 3, seed=1), points(2, 3, 3, seed=2)
    neg, weight = (
        torch.cat((x, extra), -2),
        torch.tensor([1.0] * 6 + [0.5] * 3, dtype=torch.float64).expand(2, 9),
    )
    theirs, _ = kernel.field(x, pos, neg, (0.4, 2.0), weight, axes=axes)
    exact = {"rtol": 0, "atol": 1e-6 if projection else 1e-10}  # a rotation in single precision
    (ours,) = field.fields(x, pos, neg, weight, axes=[axes])
    assert torch.allclose(ours, theirs, **exact)
    shift, _ = kernel.field(x, pos, neg, (0.4, 2.0), axes="separate")
    assert torch.allclose(field.shift(x, pos, neg), shift, **exact)


def test_a_lone_sample_does_not_repel_itself():
    x, pos = points(1, 3), points(4, 3, seed=1)
    alone = {
        axes: SetField(3, taus=(0.4,), axes=axes, seed=0).double()(x, pos, x)[0]
        for axes in ("both", "separate")
    }
    attraction = (-torch.cdist(x, pos) / 0.4).softmax(-1) @ pos - x
    assert torch.allclose(alone["separate"], attraction, rtol=0, atol=1e-12)
    assert not alone["both"].any()  # Alg. 2 weighs attraction by the repulsion's affinity


def test_means_keep_single_precision_under_autocast():
    field, x = SetField(8, taus=(0.4,), axes="separate", seed=0), points(2, 16, 8).float() + 100
    pos = x + 0.01 * points(2, 16, 8, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = field(x, pos, x)
    assert torch.allclose(rounded, field(x, pos, x), atol=0.02)  # bf16 resolves 0.5 at 100


def test_a_frozen_field_gets_no_gradient_and_not_one_bit_changes():
    field = bank(taus=())
    before = [p.clone() for p in field.parameters()]
    assert all(gradient is None for gradient in updates(field, "frozen"))
    assert all(
        torch.equal(a, b) for a, b in zip(before, field.parameters(), strict=True)
    )  # nor weight decay


@pytest.mark.parametrize("objective", ["look_ahead", "distill", "attached"])
@pytest.mark.parametrize("taus", [(), (0.2,)])
def test_every_parameter_of_a_trained_field_moves(objective, taus):
    field = bank(taus)
    before = [p.clone() for p in field.parameters()]
    assert all(gradient is not None for gradient in updates(field, objective))
    assert all(not torch.equal(a, b) for a, b in zip(before, field.parameters(), strict=True))


def moved(field, objective="look_ahead"):
    """Energy distance to fresh data before and after one step of the field."""
    updates(field, objective, steps=150)
    x, pos, fresh = (points(32, 64, 4, seed=10_000 + i) + (i > 0) for i in range(3))
    unit = float(torch.cdist(x, pos).mean()) / 2
    v = field[0].shift(x / unit, pos / unit, x / unit).detach() * unit
    return float(energy_distance(x, fresh).mean()), float(energy_distance(x + v, fresh).mean())


def test_look_ahead_brings_samples_nearer_and_a_random_field_less():
    before, trained = moved(bank(()))
    _, random = moved(bank(()), "frozen")
    _, collapsed = moved(bank(()), "attached")
    assert trained < 0.2 * before
    assert trained < random and trained < collapsed


def test_attached_collapses_and_looks_converged():
    field = bank(())
    x, pos = points(2, 16, 4), points(2, 16, 4, seed=1) + 1
    size = [float(field[0](x, pos, x).detach().square().mean())]
    updates(field, "attached", steps=200)
    size.append(float(field[0](x, pos, x).detach().square().mean()))
    assert size[1] < 0.5 * size[0]


@pytest.mark.parametrize("axes", ["both", "separate"])
def test_distilling_finds_the_kernel_field(axes):
    field = bank((), projection=False, axes=axes)
    x, pos = points(2, 16, 4), points(2, 16, 4, seed=1) + 1
    target, _ = kernel.field(x, pos, x, [0.4], axes=axes)

    def error():
        return float(
            (field[0](x, pos, x) - target).detach().square().mean() / target.square().mean()
        )

    before, optimizer = error(), torch.optim.Adam(field.parameters(), lr=1e-2)
    for _ in range(200):
        _, loss = field[0].drift(x, pos, x, pos, None, setting("distill", [0.2]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert error() < 0.05 * before


def test_null_calibration():
    """Between samples of one distribution the field is as small as the noise of its sets."""
    field = bank()
    updates(field, "look_ahead", steps=50)
    size = {}
    for n in (16, 256):
        p1, p2, p3 = (points(4, n, 4, seed=50 + i) / 1.4 for i in range(3))
        size[n] = float(field[0](p1, p2, p3, mask_self=False).detach().square().mean())
        shifted = float(field[0](p1, p2 + 1, p3, mask_self=False).detach().square().mean())
        assert size[n] < shifted
    assert size[256] < 0.5 * size[16]


def test_a_bank_has_a_field_per_scale():
    both = bank(taus=(0.1,), dims=(4, 7))
    sets = [Sets(points(2, 6, d).requires_grad_(), points(2, 5, d, seed=1)) for d in (4, 7)]
    loss, metrics = drifting_loss(sets, setting("look_ahead"), both)
    loss.backward()
    assert all(s.x.grad.shape == s.x.shape and s.x.grad.any() for s in sets)
    assert not torch.equal(both[0].of_x.weight[:, :4], both[1].of_x.weight[:, :4]) and metrics[
        "loss"
    ] == pytest.approx(1)


def test_unknown_objective():
    with pytest.raises(ValueError, match="look_ahead"):
        setting("lookahead")
    with pytest.raises(ValueError, match="taus"):
        bank()[0].drift(*[points(3, 4)] * 4, None, setting("distill", [0.1, 1.0]))


def test_audit_tells_a_kernel_from_a_random_field():
    def kernel_field(x, pos, neg, mask_self=True):
        return kernel.field(x, pos, neg, [0.4], axes="separate", mask_self=mask_self)[0]

    x, pos, fresh, p1, p2, p3 = (points(2, 64, 4, seed=i) / 2 + (2 if i else 0) for i in range(6))
    random = SetField(4, taus=(), axes="separate", seed=0).double()
    assert audit.reach(kernel_field, x, pos, fresh) < 0.2
    assert audit.null_ratio(kernel_field, x, p1, p2, p3) < 0.5
    before = {"field.a": torch.ones(2), "field.b": torch.ones(2), "generator.c": torch.ones(2)}
    after = before | {"field.b": torch.tensor([1.0, 1.0 + 1e-7]), "generator.c": torch.zeros(2)}
    assert audit.changed(before, after) == 0.5
    assert abs(audit.reach(lambda x, *_: torch.zeros_like(x), x, pos, fresh) - 1) < 1e-12
    assert audit.reach(random, x, pos, fresh) > 0


def test_loss_is_the_same_for_data_and_noise_and_drift_smallest_for_a_collapse():
    pos, real = points(3, 32, 8) / 2 + 2, points(3, 32, 8, seed=1) / 2 + 2
    collapsed = pos.mean(1, keepdim=True) + 1e-3 * points(3, 32, 8, seed=2)
    cases = {"real": real, "mean": collapsed, "noise": points(3, 32, 8)}
    found = audit.drifts(cases, pos, Setting(data="digits"))
    assert all(3 <= found[f"{case}, loss"] <= 9 for case in cases)  # from T to T^2, T temperatures
    mean, real, noise = (found[f"{case}, drift_norm"] for case in ("mean", "real", "noise"))
    assert mean < real < noise


@pytest.mark.parametrize("axes", ["both", "separate"])
def test_an_untrained_field_is_the_kernel_field_far_from_the_origin_too(axes):
    generator = torch.Generator().manual_seed(0)
    x, pos = (torch.randn(1, n, 8, generator=generator) for n in (30, 40))
    wanted = SetField(8, taus=[0.7], axes=axes, seed=0)(x, pos, x).detach()
    found = SetField(8, taus=[0.7], axes=axes, seed=0)(x + 1e3, pos + 1e3, x + 1e3).detach()
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-3 * float(wanted.abs().max()))


def test_an_audit_of_nothing_is_refused():
    x = torch.randn(1, 20, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="size of the field at x"):
        audit.null_ratio(lambda x, *_, **__: torch.zeros_like(x), x, x, x + 1, x)
    with pytest.raises(ValueError, match="energy distance of x to fresh"):
        audit.reach(lambda x, *_: torch.zeros_like(x), x, x, x)
