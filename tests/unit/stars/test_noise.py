"""One law of the noise: where it is replaced, everything that is drawn is of the new one."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch

from fieldbook.nn.recipe import Recipe
from fieldbook.spectra import spectroscopy
from fieldbook.spectra.losses import denoising_loss
from fieldbook.stars import noise
from fieldbook.stars.dataset import LabelNorm, Spectra

N, PIXELS, LEVEL, ERROR = 64, 256, 0.5, 0.1


def laplace(like, generator):
    """Noise of variance 1, of which large values are a hundred times as frequent."""
    uniform = torch.rand(like.shape, generator=generator, dtype=torch.float64) - 0.5
    size = -torch.log1p(-2 * uniform.abs()) / 2**0.5
    return (size * uniform.sign()).to(like)


class Spy(torch.nn.Module):
    """Keeps all flux that a network is shown."""

    def __init__(self):
        super().__init__()
        self.weight, self.shown = torch.nn.Parameter(torch.zeros(())), []

    def forward(self, flux, sigma=None):
        self.shown.append(flux.detach().clone())
        found = self.weight * flux
        return found.mean(1) if sigma is None else (found, found + 1)


@pytest.fixture
def flat():
    """Spectra of flux 1 and one error."""
    params = pd.DataFrame({"log_g": np.linspace(1, 5, N)})
    ones = np.ones((N, PIXELS), "f4")
    return Spectra(np.arange(1.0, PIXELS + 1), ones, ERROR * ones, params)


def everything_drawn(spectra):
    """Noisy flux of every path: splits, figures, training and validation, the denoiser."""
    flux, error, generator = *spectra.rows(range(N)), torch.Generator().manual_seed(0)
    yield "validation and test", noise.fixed_noise(spectra, LEVEL, noise.SEED)
    yield "figures and fits", noise.noisy(flux, error, LEVEL, generator)
    spy, denoiser = Spy(), Spy()
    norm = LabelNorm.fit(spectra.params.log_g)
    recipe = Recipe(steps=2, batch_size=N, lr=1e-3, eval_every=2, monitor="val_mae_dex")
    spectroscopy.train(spy, {"train": spectra, "val": spectra}, norm, recipe, noise_level=LEVEL)
    assert len(spy.shown) >= 3
    yield from ((f"transformer, use {i}", shown) for i, shown in enumerate(spy.shown))
    denoising_loss("nll", spectra.rows, LEVEL)(denoiser, torch.arange(N), generator)
    yield "denoiser", denoiser.shown[0]


@pytest.mark.parametrize(("law", "kurtosis"), [(noise.standard_noise, 3), (laplace, 6)])
def test_every_draw_is_of_the_one_law(monkeypatch, flat, law, kurtosis):
    ours = noise.standard_noise
    for module in list(sys.modules.values()):  # wherever it has been imported by name
        if getattr(module, "standard_noise", None) is ours:
            monkeypatch.setattr(module, "standard_noise", law)
    for path, flux in everything_drawn(flat):
        z = (flux.double() - 1) / (LEVEL * ERROR)
        assert float(z.square().mean()) == pytest.approx(1, abs=0.06), path
        assert float(z.pow(4).mean()) == pytest.approx(kurtosis, rel=0.2), path
