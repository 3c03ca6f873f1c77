"""Gains and calibration where they are known, baselines against their own libraries' definition."""

import numpy as np
import pytest
import torch

from fieldbook.spectra.denoising import calibration, pca, savitzky_golay, snr_gain


def noisy_spectra(n=300, pixels=60, seed=0):
    """Spectra in a plane of dimension three, with noise that differs by pixel."""
    generator = torch.Generator().manual_seed(seed)
    shapes = torch.linspace(0, 3, pixels) ** torch.arange(3)[:, None]
    clean = 1 + torch.randn(n, 3, generator=generator) @ shapes / 5
    sigma = 0.1 + 0.1 * torch.rand(n, pixels, generator=generator)
    return clean, sigma, clean + sigma * torch.randn(n, pixels, generator=generator)


def test_gain_of_the_noisy_flux_is_one_and_of_half_the_noise_two():
    clean, sigma, noisy = noisy_spectra()
    torch.testing.assert_close(snr_gain(noisy, noisy, clean, sigma), torch.ones(300))
    torch.testing.assert_close(
        snr_gain((noisy + clean) / 2, noisy, clean, sigma), torch.full((300,), 2.0)
    )


def test_gain_weighs_pixels_by_their_noise():
    clean, sigma = torch.zeros(1, 2), torch.tensor([[1.0, 10.0]])
    noisy, estimate = torch.tensor([[1.0, 10.0]]), torch.tensor([[1.0, 0.0]])
    assert snr_gain(estimate, noisy, clean, sigma).item() == pytest.approx(2**0.5)


def test_calibration_knows_right_from_wrong():
    generator = torch.Generator().manual_seed(1)
    mu, sigma_x, sigma_n = torch.rand(3, 200, 500, generator=generator)
    noisy = mu + (sigma_x**2 + sigma_n**2).sqrt() * torch.randn(200, 500, generator=generator)
    right = calibration(mu, sigma_x, noisy, sigma_n)
    assert right == pytest.approx(
        {"chi2": 1, "coverage_1_sigma": 0.6827, "coverage_2_sigma": 0.9545}, abs=0.01
    )
    assert calibration(mu, 0 * sigma_x, noisy, sigma_n)["chi2"] > 1.5
    assert calibration(mu, 3 * sigma_x, noisy, sigma_n)["coverage_1_sigma"] > 0.8


def test_pca_finds_the_plane_and_no_more():
    (_, _, noisy), (new, level, spoiled) = noisy_spectra(), noisy_spectra(seed=1)
    gain = {
        c: snr_gain(pca(noisy, spoiled, c), spoiled, new, level).median() for c in (1, 3, 25, 60)
    }
    assert gain[3] == pytest.approx(20**0.5, rel=0.15)  # three of sixty dimensions keep their noise
    assert gain[1] < gain[3] > gain[25] > gain[60] == pytest.approx(1, abs=1e-3)
    assert torch.equal(pca(noisy, spoiled, 3), pca(noisy, spoiled, 3))
    for wrong in (0, 61):
        with pytest.raises(ValueError, match=f"components = {wrong}"):
            pca(noisy, spoiled, wrong)


def test_savitzky_golay_keeps_polynomials_and_averages_noise():
    x = torch.linspace(-1, 1, 80, dtype=torch.float64)
    cubic = torch.stack([x**3 - x, 1 + x**2])
    torch.testing.assert_close(savitzky_golay(cubic, 11), cubic)
    window = np.linalg.pinv(np.vander(np.arange(-5, 6), 4))[-1]  # value at 0 of the fitted cubic
    noise = torch.randn(1, 80, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = savitzky_golay(noise, 11)[0, 40].item()
    assert found == pytest.approx(float(noise[0, 35:46].numpy() @ window))
    for wrong in (4, 3, 81):
        with pytest.raises(ValueError, match=f"window = {wrong}"):
            savitzky_golay(cubic, wrong)
