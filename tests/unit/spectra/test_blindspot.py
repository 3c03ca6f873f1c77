"""The blind spot in every configuration, the losses at their analytic minimum, foreign
checkpoints."""

import copy
import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fieldbook.nn.lightning import load_lightning
from fieldbook.nn.recipe import Recipe
from fieldbook.nn.training import fit
from fieldbook.spectra.blindspot import BlindSpotUNet, posterior_mean, start_at
from fieldbook.spectra.losses import SELF_SUPERVISED, denoising_loss, gaussian


def spectra(batch=3, pixels=64, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    flux = 1 + 0.1 * torch.randn(batch, pixels, generator=generator, dtype=dtype)
    return flux, 0.1 + 0.1 * torch.rand(batch, pixels, generator=generator, dtype=dtype)


def rows(flux, sigma):
    return lambda index: (flux[index], sigma[index])


def small(seed=0, dtype=torch.float64, **changes):
    """A network in eval mode whose moving averages are not those it was born with."""
    model = BlindSpotUNet(**{"n": 4, "e": 5, "k": 3} | changes, seed=seed).to(dtype)
    with torch.no_grad():
        model(*spectra(seed=seed + 10, dtype=dtype))
    return model.eval()


def jacobian(model, pixels, seed=0, output=0):
    """(output pixel, input pixel) derivatives of mu (0) or sigma_x (1), for one spectrum of a batch
    of two."""
    flux, sigma = spectra(2, pixels, seed, next(model.parameters()).dtype)

    def one(x):
        return model(torch.stack([x, flux[1]]), sigma)[output][0]

    return torch.autograd.functional.jacobian(one, flux[0], vectorize=True)


def reach(model, pixels):
    """Which inputs a path of the network leads to each output: no weight negative, nothing
    nonlinear, no maximum."""
    positive = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in positive.named_parameters():
            p.copy_(torch.full_like(p, 0.01 if name.endswith("bias") else 1.0 / p[0].numel()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fieldbook.spectra.blindspot.F.max_pool2d", nn.functional.avg_pool2d)
        return jacobian(positive, pixels) > 0


# ---- network


def test_parameters_are_counted_as_the_source_does():
    parts = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in BlindSpotUNet().named_children()
    }
    assert parts == {
        "encoders": 522_240,
        "decoders_a": 867_552,
        "decoders_b": 461_952,
        "nin_layers": 37_926,
    }
    assert sum(p.numel() for p in BlindSpotUNet(5, 24, 11).parameters()) == 113_190


def test_latents_have_the_documented_shapes():
    model, (flux, sigma) = BlindSpotUNet().eval(), spectra(2, 4096)
    with torch.no_grad():
        assert model.encode_flux(flux, sigma).shape == (2, 48, 16)
        assert model.encode_flux(flux, sigma, "enc_last", "mean").shape == (2, 48, 16)
        assert model.encode_flux(flux, sigma, direction="concat").shape == (2, 96, 16)


def test_latents_of_the_mirror_image_are_the_other_half_reversed():
    model, (flux, sigma) = small(), spectra(dtype=torch.float64)
    for layer in ("enc_pre_latent", "enc_last"):
        both = model.encode_flux(flux, sigma, layer, "concat")
        mirrored = model.encode_flux(flux.flip(-1), sigma.flip(-1), layer)
        torch.testing.assert_close(
            both, torch.cat([model.encode_flux(flux, sigma, layer), mirrored.flip(-1)], 1)
        )
        torch.testing.assert_close(
            model.encode_flux(flux, sigma, layer, "mean"), sum(both.chunk(2, 1)) / 2
        )
    assert not torch.equal(
        *(model.encode_flux(flux, sigma, layer) for layer in ("enc_pre_latent", "enc_last"))
    )


def test_forward_latents_are_causal():
    model, (flux, sigma) = small(), spectra(dtype=torch.float64)
    changed = flux.clone()
    changed[:, 39] += 1  # first seen, after three shifts, by the latent pixel that covers 40 to 47
    a, b = model.encode_flux(flux, sigma), model.encode_flux(changed, sigma)
    assert torch.equal(a[..., :5], b[..., :5]) and not torch.equal(a[..., 5], b[..., 5])


def test_block_agrees_with_one_dimensional_layers():
    block, x = small().encoders[2], torch.randn(2, 5, 20, dtype=torch.float64)
    peer = nn.Sequential(
        nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(5, 5, 3), nn.BatchNorm1d(5), nn.LeakyReLU(0.1)
    )
    peer[1].load_state_dict(block.conv.state_dict())
    peer[2].load_state_dict(block.bn.state_dict())
    torch.testing.assert_close(block(x.unsqueeze(2)).squeeze(2), peer.double().eval()(x))


# ---- the blind spot


@given(
    n=st.integers(2, 5),
    e=st.integers(1, 6),
    k=st.integers(1, 7),
    extra=st.integers(0, 24),
    sigma=st.booleans(),
    seed=st.integers(0, 1000),
    output=st.integers(0, 1),
)
@settings(max_examples=25, deadline=None)
def test_no_output_sees_its_own_pixel(n, e, k, extra, sigma, seed, output):
    model = small(seed, n=n, e=e, k=k, input_sigma=sigma)
    found = jacobian(model, 2 ** (n - 1) + extra, seed, output)
    assert torch.count_nonzero(found.diagonal()) == 0
    assert torch.count_nonzero(found) > 0 or found.shape[0] == 1


@pytest.mark.parametrize("sizes", [(4, 4, 3), (3, 5, 2), (2, 4, 7)])
@pytest.mark.parametrize("pixels", [24, 37])
def test_all_other_pixels_within_reach_are_seen(sizes, pixels):
    expected = reach(small(n=sizes[0], e=sizes[1], k=sizes[2]), pixels)
    found = sum(
        jacobian(small(s, n=sizes[0], e=sizes[1], k=sizes[2]), pixels, s).abs() for s in range(8)
    )
    assert torch.equal(found > 0, expected)
    near = (torch.arange(pixels)[:, None] - torch.arange(pixels)).abs()
    assert expected[(near > 0) & (near <= sizes[2])].all() and not expected.diagonal().any()


def test_a_deep_network_reaches_all_but_the_pixel_itself():
    assert torch.equal(reach(small(), 40), ~torch.eye(40, dtype=torch.bool))


def test_without_the_shift_the_own_pixel_is_seen():
    assert (jacobian(small(blindspot=False), 32).diagonal() != 0).all()


def test_in_training_mode_batch_norm_leaks():
    def leak(batch):
        model = small().train()
        flux, sigma = spectra(batch, dtype=torch.float64)
        slope = torch.autograd.grad(model(flux.requires_grad_(), sigma)[0][0, 30], flux)[0]
        assert torch.autograd.grad(model.eval()(flux, sigma)[0][0, 30], flux)[0][0, 30] == 0
        return abs(slope[0, 30])

    assert leak(2) > 1e-3  # through the batch's mean and variance
    assert 0 < leak(64) < 0.1 * leak(2)  # to which a pixel adds the less, the more there are


def test_posterior_mean_looks_at_the_pixel():
    mu, sigma_x, noisy, sigma_n = (
        torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (2.0, 3.0, 7.0, 4)
    )
    found = posterior_mean(mu, sigma_x, noisy, sigma_n)
    assert found.item() == pytest.approx((9 * 7 + 16 * 2) / 25)
    assert torch.autograd.grad(found, noisy)[0].item() == pytest.approx(9 / 25)


# ---- what is refused


@pytest.mark.parametrize(
    "change, blamed",
    [
        (lambda x, s: (x[:, :7], s[:, :7]), "at least 2.*= 8"),
        (lambda x, s: (x[0], s[0]), "batch, pixel"),
        (lambda x, s: (x, None), "noise level"),
        (lambda x, s: (x, s[:, 1:]), "shape of sigma"),
        (lambda x, s: (x, 0 * s), "positive"),
        (lambda x, s: (x, s.index_fill(1, torch.tensor([3]), math.nan)), "sigma"),
        (lambda x, s: (x.index_fill(1, torch.tensor([3]), math.inf), s), "x_noisy"),
    ],
)
def test_refuses_input_that_does_not_fit(change, blamed):
    model = small(dtype=torch.float32)
    for call in (model, model.encode_flux):
        with pytest.raises(ValueError, match=blamed):
            call(*change(*spectra()))


def test_refuses_unknown_names_and_too_few_layers():
    with pytest.raises(ValueError, match="n = 1"):
        BlindSpotUNet(n=1)
    model = small(dtype=torch.float32)
    for wrong in ({"layer": "dec_0"}, {"direction": "sideways"}):
        with pytest.raises(ValueError, match=next(iter(wrong.values()))):
            model.encode_flux(*spectra(), **wrong)
    with pytest.raises(ValueError, match="kind = 'l2'"):
        denoising_loss("l2", rows(*spectra()))
    with pytest.raises(ValueError, match="noise_level = 0"):
        denoising_loss("nll", rows(*spectra()), 0)


def test_shortest_spectrum_and_a_network_without_noise_level_work():
    model = small(input_sigma=False, dtype=torch.float32)
    mu, sigma_x = model(spectra(pixels=8)[0])
    assert mu.shape == sigma_x.shape == (3, 8) and (sigma_x > 0).all()


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    one, (two, other) = small(3), (small(3), small(4))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.encoders[0].conv.weight, other.encoders[0].conv.weight)


# ---- losses


def test_only_the_supervised_loss_knows_the_clean_flux():
    flux, sigma = spectra(8)
    model, index = small(dtype=torch.float32), torch.arange(8)
    noise = 2 * sigma * torch.randn(flux.shape, generator=torch.Generator().manual_seed(1))
    expected = model(flux + noise, 2 * sigma)
    for kind in (*SELF_SUPERVISED, "supervised"):
        found = denoising_loss(kind, rows(flux, sigma), 2.0)(
            model, index, torch.Generator().manual_seed(1)
        )
        if kind == "supervised":
            torch.testing.assert_close(found, gaussian(*expected, flux, 0.02 * sigma))
        else:
            torch.testing.assert_close(
                found, SELF_SUPERVISED[kind](*expected, flux + noise, 2 * sigma)
            )


def test_first_guess_has_the_mean_and_spread_of_the_signal():
    flux, sigma = spectra(200)
    noisy = flux + sigma * torch.randn(flux.shape, generator=torch.Generator().manual_seed(5))
    model = BlindSpotUNet(4, 5, 3)
    start_at(model, noisy, sigma)
    mu, _ = model(noisy, sigma)  # in training mode BatchNorm makes it exact
    assert mu.mean().item() == pytest.approx(noisy.mean().item(), abs=1e-5)
    assert mu.std().item() == pytest.approx(flux.std().item(), rel=0.1)
    assert model.nin_layers[-1].bn.bias[1].exp().log1p().item() == pytest.approx(
        flux.std().item() / 3, rel=0.1
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_denoises_better_than_the_identity(precision):
    x = torch.linspace(0, 6, 128)
    phase = torch.rand(200, 1, generator=torch.Generator().manual_seed(0))
    flux, sigma = 1 + 0.3 * torch.sin(x + 6 * phase), torch.full((200, 128), 0.2)
    noisy = flux + sigma * torch.randn(flux.shape, generator=torch.Generator().manual_seed(2))
    model = BlindSpotUNet(3, 8, 5)
    start_at(model, noisy, sigma)
    recipe = Recipe(steps=40, batch_size=16, lr=1e-2, clip=1.0, precision=precision)
    fit(model, denoising_loss("nll", rows(flux, sigma)), len(flux), recipe, progress=False)
    mu, _ = model.eval()(noisy, sigma)
    assert mu.dtype == torch.float32
    assert (mu - flux).std() < 0.5 * (noisy - flux).std()


# ---- checkpoints of another program


def lightning_file(path, weights, **extra):
    torch.save(
        {"state_dict": weights, "epoch": 4, "pytorch-lightning_version": "2.5"} | extra, path
    )
    return path


def lightning_weights(model):
    return {f"model.{name}": t for name, t in model.state_dict().items()}


def test_reads_a_lightning_checkpoint(tmp_path):
    theirs, ours = small(1, dtype=torch.float32), small(2, dtype=torch.float32)
    path = lightning_file(tmp_path / "denoiser.ckpt", lightning_weights(theirs))
    assert {
        "encoders.0.conv.weight",
        "decoders_a.2.bn.running_var",
        "nin_layers.2.conv.bias",
    } <= ours.state_dict().keys()
    load_lightning(ours, path)
    assert all(torch.equal(a, b) for a, b in zip(ours(*spectra()), theirs(*spectra()), strict=True))


def test_lists_all_that_does_not_fit(tmp_path):
    model = small(dtype=torch.float32)
    weights = lightning_weights(model) | {
        "loss.scale": torch.ones(1),
        "model.encoders.0.conv.bias": torch.ones(6),
    }
    del weights["model.decoders_b.0.bn.weight"]
    before = model.encoders[0].conv.weight.clone()
    with pytest.raises(ValueError, match=r"denoiser\.ckpt") as caught:
        load_lightning(model, lightning_file(tmp_path / "denoiser.ckpt", weights))
    for part in (
        "unknown loss.scale",
        "missing model.decoders_b.0.bn.weight",
        "encoders.0.conv.bias is (6,), expected (5,)",
    ):
        assert part in str(caught.value)
    assert torch.equal(before, model.encoders[0].conv.weight)


class Bomb:
    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_runs_no_code_from_a_checkpoint(tmp_path):
    model, bomb = small(dtype=torch.float32), Bomb()
    bomb.folder = str(tmp_path / "exploded")
    path = lightning_file(tmp_path / "bomb.ckpt", lightning_weights(model), hyper_parameters=bomb)
    with pytest.raises(ValueError, match=r"bomb\.ckpt.*not run here"):
        load_lightning(model, path)
    assert not (tmp_path / "exploded").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "exploded").exists()  # it would have


def test_names_a_damaged_foreign_or_absent_file(tmp_path):
    model = small(dtype=torch.float32)
    path = lightning_file(tmp_path / "cut.ckpt", lightning_weights(model))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"cut\.ckpt is damaged"):
        load_lightning(model, path)
    torch.save(lightning_weights(model), tmp_path / "bare.ckpt")
    with pytest.raises(ValueError, match=r"bare\.ckpt has no dictionary 'state_dict'"):
        load_lightning(model, tmp_path / "bare.ckpt")
    with pytest.raises(FileNotFoundError, match=r"absent\.ckpt"):
        load_lightning(model, tmp_path / "absent.ckpt")
