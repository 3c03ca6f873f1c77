"""The kernel field against a transcription of Alg. 2, its identities, what normalisation hides."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fieldbook.drifting import kernel
from fieldbook.drifting.loss import Sets, draw_alpha, drifting_loss, guidance_weight
from fieldbook.drifting.setting import Setting


def points(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def field(x, pos, neg, tau, weight=None, **options):
    """The kernel field at one temperature."""
    v, _ = kernel.field(x, pos, neg, [tau], weight, **options)
    return v[0]


def softmax(logit, axis):
    e = torch.exp(logit - logit.amax(axis, keepdim=True))
    return e / e.sum(axis, keepdim=True)


def algorithm_2(x, pos, neg, tau):
    """Line by line, with every difference written out."""
    d_pos = (x[:, None] - pos[None]).square().sum(-1).sqrt()
    d_neg = (x[:, None] - neg[None]).square().sum(-1).sqrt()
    d_neg = d_neg + 1e6 * torch.eye(len(x), len(neg), dtype=x.dtype)
    logit = torch.cat((-d_pos / tau, -d_neg / tau), 1)
    a = torch.sqrt(softmax(logit, 1) * softmax(logit, 0))
    a_pos, a_neg = a[:, : len(pos)], a[:, len(pos) :]
    w_pos = a_pos * a_neg.sum(1, keepdim=True)
    w_neg = a_neg * a_pos.sum(1, keepdim=True)
    return w_pos @ pos - w_neg @ neg


@pytest.mark.parametrize("tau", [0.02, 0.2, 2.0])
@pytest.mark.parametrize(("n", "p", "u", "d"), [(50, 40, 0, 7), (3, 5, 4, 2), (30, 60, 9, 64)])
def test_field_is_algorithm_2(tau, n, p, u, d):
    x, pos = points(n, d), points(p, d, seed=1) + 0.3
    neg = torch.cat((x, points(u, d, seed=2)))
    assert torch.allclose(
        field(x, pos, neg, tau), algorithm_2(x, pos, neg, tau), rtol=0, atol=1e-10
    )


def test_blocks_and_groups_and_several_temperatures_change_nothing(monkeypatch):
    x, pos = points(3, 20, 4), points(3, 15, 4, seed=1)
    whole, _ = kernel.field(x, pos, x, [0.1, 1.0])
    monkeypatch.setattr(kernel, "BLOCK", 70)
    assert torch.allclose(kernel.field(x, pos, x, [0.1, 1.0])[0], whole, atol=1e-14)
    for group in range(3):
        for place, tau in enumerate((0.1, 1.0)):
            one = algorithm_2(x[group], pos[group], x[group], tau)
            assert torch.allclose(whole[place, group], one, atol=1e-10)


def equations_8_to_10(x, pos, neg, tau):
    k_pos, k_neg = (torch.exp(-(x[:, None] - y).norm(dim=-1) / tau) for y in (pos, neg))
    shift = [
        (k[..., None] * (y - x[:, None])).mean(1) / k.mean(1)[:, None]
        for k, y in ((k_pos, pos), (k_neg, neg))
    ]
    mass = k_pos.sum(1) / (k_pos.sum(1) + k_neg.sum(1))
    return shift[0] - shift[1], mass[:, None]


@given(st.floats(0.2, 3.0), st.integers(0, 50))
def test_row_softmax_is_a_rescaled_mean_shift(tau, seed):
    x, pos, neg = points(9, 3, seed=seed), points(7, 3, seed=seed + 1), points(11, 3, seed=seed + 2)
    shift, a = equations_8_to_10(x, pos, neg, tau)
    separate = field(x, pos, neg, tau, axes="separate", mask_self=False)
    rows = field(x, pos, neg, tau, axes="y", mask_self=False)
    assert torch.allclose(separate, shift, atol=1e-10)
    assert torch.allclose(rows, a * (1 - a) * shift, atol=1e-10)


@pytest.mark.parametrize("axes", ["both", "y", "separate"])
@pytest.mark.parametrize("kind", ["laplace", "gauss"])
def test_antisymmetric_only_with_equal_forces(axes, kind):
    x, p, q = points(10, 3), points(8, 3, seed=1), points(6, 3, seed=2)
    options = {"axes": axes, "kernel": kind, "mask_self": False}
    there, back = field(x, p, q, 0.5, **options), field(x, q, p, 0.5, **options)
    assert torch.allclose(there, -back, atol=1e-12)
    assert field(x, p, p, 0.5, **options).abs().max() < 1e-12
    pulled = field(x, p, q, 0.5, pull=1.5, **options)
    assert not torch.allclose(pulled, -field(x, q, p, 0.5, pull=1.5, **options), atol=1e-3)
    assert (
        field(x, p, p, 0.5, pull=1.5, **options).abs().max() > 1e-3
    )  # equal distributions still drift


def test_attraction_is_a_mean_shift():
    x, p, q = points(10, 3), points(8, 3, seed=1), points(6, 3, seed=2)
    one, more = (field(x, p, q, 0.5, axes="separate", pull=f, mask_self=False) for f in (1.0, 1.5))
    towards = field(x, p, x[:, :], 0.5, axes="separate", push=1e-9, mask_self=False)
    assert torch.allclose(more - one, 0.5 * towards, atol=1e-6)


def test_weights_count_copies():
    x, pos, extra = points(6, 3), points(5, 3, seed=1), points(2, 3, seed=2)
    for axes in ("both", "y", "separate"):
        copies = field(x, pos, torch.cat((x, extra, extra[:1])), 0.5, axes=axes)
        weight = torch.tensor([1.0] * 6 + [2.0, 1.0], dtype=torch.float64)
        assert torch.allclose(
            field(x, pos, torch.cat((x, extra)), 0.5, weight, axes=axes), copies, atol=1e-12
        )
        weight[-2:] = 0
        none = field(x, pos, torch.cat((x, extra)), 0.5, weight, axes=axes)
        assert torch.allclose(none, field(x, pos, x, 0.5, axes=axes), atol=1e-12)


def test_one_sample_has_nobody_to_flee():
    x, pos = points(1, 3), points(4, 3, seed=1)
    assert torch.isfinite(field(x, pos, x, 0.1)).all()
    with pytest.raises(ValueError, match="neg"):
        field(points(3, 2), pos[:, :2], points(2, 2), 0.1)
    with pytest.raises(ValueError, match="axes"):
        field(x, pos, x, 0.1, axes="x")


def test_statistics_leave_out_the_masked_pairs():
    x, pos = points(6, 3), points(5, 3, seed=1)
    _, stats = kernel.field(x, pos, x, [0.1])
    own = ~torch.eye(6, dtype=torch.bool)
    d = torch.cat(((x[:, None] - pos).norm(dim=-1).flatten(), (x[:, None] - x).norm(dim=-1)[own]))
    assert float(stats.mean) == pytest.approx(float(d.mean()))
    assert float(stats.variance) == pytest.approx(float(d.var(correction=0)))


@given(st.floats(0.01, 100), st.integers(0, 20))
def test_relative_temperatures_know_no_scale(factor, seed):
    x, pos = points(8, 5, seed=seed), points(8, 5, seed=seed + 1)
    one = field(x, pos, x, 0.1, relative=True)
    assert torch.allclose(
        field(factor * x, factor * pos, factor * x, 0.1, relative=True), factor * one, rtol=1e-6
    )


def test_floor_is_a_smallest_affinity():
    x, far = points(5, 3), points(5, 3, seed=1) + 100
    assert field(x, far, x, 0.5).abs().max() < 1e-12  # nothing is near
    assert field(x, far, x, 0.5, floor=1e-6).abs().max() > 1e-12


def test_half_precision_is_computed_in_single():
    x, pos = points(8, 5, dtype=torch.float32), points(8, 5, seed=1, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(field(x, pos, x, 0.1), field(x, pos, x, 0.1))
        inside = field(x, pos, x, 0.1)
    assert torch.equal(inside, field(x, pos, x, 0.1))


# -- the loss


def test_loss_moves_x_along_the_field_and_hides_its_size():
    x = points(2, 12, 5).requires_grad_()
    pos = points(2, 12, 5, seed=1)
    one_tau = Setting(data="digits", taus=[0.2])
    loss, metrics = drifting_loss([Sets(x, pos)], one_tau)
    loss.backward()
    v = field(x.detach(), pos, x.detach(), 0.2, relative=True)
    assert loss.item() == pytest.approx(1.0, rel=1e-5)  # whatever the samples are
    cosine = torch.nn.functional.cosine_similarity(-x.grad.flatten(), v.flatten(), dim=0)
    assert float(cosine) == pytest.approx(1.0, abs=1e-5)
    near = drifting_loss([Sets(pos + 0.01 * x.detach(), pos)], one_tau)
    assert (
        float(near[0]) == pytest.approx(1.0, rel=1e-5)
        and near[1]["drift_norm"] < metrics["drift_norm"]
    )


def test_guidance():
    alpha = torch.tensor([1.0, 2.0])
    assert guidance_weight(alpha, 33, 16).tolist() == [0.0, 2.0]
    with pytest.raises(ValueError, match="alpha"):
        guidance_weight(alpha - 0.1, 33, 16)
    drawn = draw_alpha(100_000, torch.Generator().manual_seed(0), 4.0).double()
    assert drawn.min() >= 1 and drawn.max() <= 4
    for a in (1.5, 2.0, 3.0):  # density ~ alpha^-3 on [1, 4]
        assert float((drawn < a).double().mean()) == pytest.approx(
            (1 - a**-2) / (1 - 4**-2), abs=0.005
        )


def test_unconditional_negatives_of_weight_zero_do_nothing():
    x, pos, extra = points(2, 6, 3), points(2, 6, 3, seed=1), points(2, 4, 3, seed=2)
    setting = Setting(data="digits")
    plain = drifting_loss([Sets(x.clone().requires_grad_(), pos)], setting)[1]
    guided = drifting_loss([Sets(x.clone().requires_grad_(), pos, extra, torch.zeros(2))], setting)[
        1
    ]
    assert float(guided["loss"]) == pytest.approx(float(plain["loss"]), rel=1e-5)
    weighty = drifting_loss([Sets(x.clone().requires_grad_(), pos, extra, torch.ones(2))], setting)[
        1
    ]
    assert float(weighty["loss"]) != pytest.approx(float(plain["loss"]), rel=1e-3)


def three(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, n, 8, generator=generator) + shift
        for n, shift in ((30, 0.0), (40, 0.5), (30, 0.0))
    ]


@pytest.mark.parametrize("axes", ["both", "y", "separate"])
def test_a_field_knows_neither_place_nor_unit(axes):
    x, pos, _ = three()
    wanted = field(x, pos, x, 0.2, axes=axes, relative=True)
    far = field(x + 1e3, pos + 1e3, x + 1e3, 0.2, axes=axes, relative=True)
    torch.testing.assert_close(far, wanted, rtol=1e-2, atol=1e-3 * float(wanted.abs().max()))
    for unit in (1e-6, 1e6, 1e9):  # what is masked stays farther than all others
        found = field(unit * x, unit * pos, unit * x, 0.2, axes=axes, relative=True)
        torch.testing.assert_close(
            found / unit, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max())
        )


def test_a_weight_of_zero_is_no_negative_at_all():
    x, pos, neg = three()
    far = torch.cat((neg, pos), -2)  # much nearer to x's goal than what counts
    weight = torch.cat((torch.ones(2, 30), torch.zeros(2, 40)), -1)
    found = field(x, pos, far, 1e-3, weight, axes="separate", mask_self=False)
    torch.testing.assert_close(found, field(x, pos, neg, 1e-3, axes="separate", mask_self=False))


def test_identical_features_do_not_drift():
    x = torch.full((1, 5, 3), 0.1)
    assert not kernel.field(x, x, x, (0.05, 0.2), relative=True)[0].any()
    loss, metrics = drifting_loss([Sets(x.clone().requires_grad_(), x)], Setting(data="digits"))
    assert loss == 0 == metrics["drift_norm"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: guidance_weight(torch.ones(2), 8, 0), "n_unconditional = 0"),
        (lambda: draw_alpha(2, torch.Generator(), 0.5), "largest = 0.5"),
    ],
)
def test_guidance_has_limits(call, said):
    with pytest.raises(ValueError, match=said):
        call()
