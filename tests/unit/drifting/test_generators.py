"""Generators answer to their conditions and are made from their seed alone."""

import pytest
import torch

from fieldbook.drifting.encoder import Autoencoder
from fieldbook.drifting.generators import DiTGenerator, MLPGenerator, Styles
from fieldbook.drifting.setting import Setting


def make(kind):
    codebook = 4 if kind == "styled" else 0
    setting = Setting(data="digits", width=16, depth=1, noise_dim=5, codebook=codebook)
    return DiTGenerator(setting) if kind == "dit" else MLPGenerator(setting)


@pytest.mark.parametrize("kind", ["mlp", "styled", "dit"])
def test_every_input_matters_and_every_parameter_learns(kind):
    model = make(kind)
    noise, label, alpha = (
        torch.randn(4, model.noise_dim),
        torch.tensor([0, 1, 2, 10]),
        torch.tensor([1.0, 1.0, 2.0, 4.0]),
    )
    x = model(noise, label, alpha)
    assert x.shape == (4, *model.shape)
    others = [
        (noise.flip(0), label, alpha),
        (noise, label.flip(0), alpha),
        (noise, label, alpha + 1),
    ]
    assert all(not torch.allclose(x, model(*other)) for other in others)
    x.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert torch.equal(x, make(kind)(noise, label, alpha))


@pytest.mark.parametrize("kind", ["styled", "dit"])
def test_styles_come_from_the_noise_and_use_the_codebook(kind):
    model = make(kind)
    noise = torch.randn(2, model.noise_dim)
    style = noise.clone()
    style[:, -1] = -style[:, -1]
    label, alpha = torch.zeros(2, dtype=torch.long), torch.ones(2)
    assert not torch.allclose(model(noise, label, alpha), model(style, label, alpha))
    extreme = torch.full_like(noise, 50.0)  # the last code, and not one beyond it
    assert torch.isfinite(model(extreme, label, alpha)).all()


def test_codes_are_equally_likely():
    style = Styles(8, 2, spread=1.0)
    vectors = style(torch.randn(8000, 1, generator=torch.Generator().manual_seed(0)))
    _, counts = vectors.unique(dim=0, return_counts=True)
    assert len(counts) == 8 and ((counts - 1000).abs() < 150).all()  # 5 standard deviations


def test_patches_go_back_where_they_came_from():
    model = make("dit")
    with torch.no_grad():  # a transformer that hands its input on
        for block in model.blocks:
            (
                block.attn.out.weight.zero_(),
                block.attn.out.bias.zero_(),
                block.ffn.down.weight.zero_(),
                block.ffn.down.bias.zero_(),
            )
        model.position.zero_()
        a = model(
            noise := torch.randn(1, model.noise_dim),
            torch.zeros(1, dtype=torch.long),
            torch.ones(1),
        )
        noise[0, :4] += 1  # pixels of the first patch
        b = model(noise, torch.zeros(1, dtype=torch.long), torch.ones(1))
    changed = (a != b)[0].any(0)
    assert changed[:4, :4].any() and not changed[4:].any() and not changed[:, 4:].any()


def test_patch_must_divide():
    with pytest.raises(ValueError, match="patch"):
        DiTGenerator(Setting(data="digits", patch=3))


def test_encoder_has_features_at_every_scale():
    encoder = Autoencoder((1, 8, 8), seed=0)
    x = torch.randn(3, 1, 8, 8)
    assert [f.shape for f in encoder.features(x)] == [(3, 64), (3, 256), (3, 128)]
    loss = encoder.loss(x, torch.Generator().manual_seed(0))
    loss.backward()
    assert loss.ndim == 0 and all(p.grad.any() for p in encoder.parameters())


@pytest.mark.parametrize("data", ["digits", "mnist", "cifar10"])
def test_a_setting_knows_the_dimensions_of_its_encoders_features(data):
    setting = Setting(data=data, encoder=True)
    features = Autoencoder(setting.shape, seed=0).features(torch.zeros(1, *setting.shape))
    assert [f.shape[1] for f in features] == setting.dims
