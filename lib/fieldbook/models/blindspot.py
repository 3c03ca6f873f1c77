"""A 1-D U-Net that denoises a spectrum without looking at the pixel it predicts.

Two branches look left and right, as one batch of a spectrum and its mirror image: causal convolutions, each pooling
and the output shifted by one pixel, so that pixel i of a branch knows only the pixels before i. Trained on the noisy
spectra alone, it cannot learn the identity, and its latents know what neighbours tell about a pixel.
Source: Laine et al. 2019 (arXiv:1901.10277), with two directions in place of their four.
"""

import itertools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fieldbook.models.blocks import seeded
from fieldbook.recipe import require

Layer = Literal["enc_pre_latent", "enc_last"]
Direction = Literal["forward", "mean", "concat"]
LAYERS, DIRECTIONS = ("enc_pre_latent", "enc_last"), ("forward", "mean", "concat")


class CausalBlock(nn.Module):
    """Causal convolution, BatchNorm and LeakyReLU, on (batch, channel, 1, pixel) in channels-last order.

    That order, which only two-dimensional operations know, spares the CPU a third of the time.
    """

    def __init__(self, c_in: int, c_out: int, k: int = 1, *, activation: bool = True):
        super().__init__()
        self.conv, self.bn, self.activation = nn.Conv1d(c_in, c_out, k), nn.BatchNorm2d(c_out), activation

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (self.conv.kernel_size[0] - 1, 0)) if self.conv.kernel_size[0] > 1 else x
        x = self.bn(F.conv2d(x, self.conv.weight.unsqueeze(2), self.conv.bias))
        return F.leaky_relu_(x, 0.1) if self.activation else x


class BlindSpotUNet(nn.Module):
    """Gaussian prediction of each pixel's signal from all other pixels, and the encoder's latents.

    Parameters at n = 9, e = 48, k = 25 with the noise level as input: encoders 522,240, decoders_a 867,552, decoders_b
    461,952, nin_layers 37,926. These counts fix what words leave open: the noise level is the second input channel, it
    is part of the skip from the input too, every convolution has a bias, and BatchNorm follows all of them, the last
    one of the head included. Only the latter has no LeakyReLU; Softplus makes its second channel positive.

    Args:
        n: convolutions after the first one; all but the last pool by two, so that a pixel of the latents covers
            2^(n - 1) of the spectrum. `e`: channels; `k`: pixels of a kernel.
        input_sigma: the network sees the noise level beside the flux.
        blindspot: without it the outputs are not shifted, and a prediction sees its own pixel.
        seed: of the initial weights.
    """

    def __init__(
        self, n: int = 9, e: int = 48, k: int = 25, *, input_sigma: bool = True, blindspot: bool = True, seed: int = 0
    ):
        super().__init__()
        require(n >= 2, "n", n, "at least 2, since all but the last of the n layers pool")
        self.input_sigma, self.blindspot = input_sigma, blindspot
        self.shortest, c = 2 ** (n - 1), 1 + input_sigma
        with seeded(seed):
            self.encoders = nn.ModuleList(CausalBlock(e if i else c, e, k) for i in range(n + 1))
            self.decoders_a = nn.ModuleList(CausalBlock(e + (e if i < n - 2 else c), e, k) for i in range(n - 1))
            self.decoders_b = nn.ModuleList(CausalBlock(e, e, k) for _ in range(n - 1))
            widths = itertools.pairwise((2 * e, 4 * e, 2 * e, 2))
            self.nin_layers = nn.ModuleList(CausalBlock(i, o, activation=o > 2) for i, o in widths)

    def forward(self, x_noisy: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the signal, before its own pixel is looked at.

        Args:
            x_noisy: (batch, pixel) flux; `sigma`: (batch, pixel), standard deviation of its noise.
        Returns:
            mu and sigma_x, each (batch, pixel) in float32 or wider.
        Raises:
            ValueError: fewer than 2^(n - 1) pixels, a value is not finite, or sigma is missing, not positive or of
                another shape. Without `input_sigma` sigma is not used.
        """
        x = self._branches(self._input(x_noisy, sigma))
        *skips, latent, x = self._encode(x)
        for a, b, skip in zip(self.decoders_a, self.decoders_b, reversed(skips), strict=True):
            up = F.interpolate(x, size=skip.shape[-2:])
            x = b(a(torch.cat([up, skip], 1)))
        left, right = x.chunk(2)
        right, shift = right.flip(-1), int(self.blindspot)
        x = torch.cat([F.pad(left, (shift, -shift)), F.pad(right, (-shift, shift))], 1)
        for layer in self.nin_layers:
            x = layer(x)
        mu, spread = x[:, :, 0].to(torch.promote_types(x.dtype, torch.float32)).unbind(1)
        return mu, F.softplus(spread)

    def encode_flux(
        self, x_noisy: Tensor, sigma: Tensor | None = None, layer: Layer = "enc_pre_latent",
        direction: Direction = "forward",
    ) -> Tensor:  # fmt: skip
        """The latents: what enters (`enc_pre_latent`) or leaves (`enc_last`) the last layer of the encoder.

        Args:
            x_noisy, sigma: as in `forward`, whose errors apply.
            direction: `forward` knows the pixels to the left; `mean` and `concat` join it with the mirrored branch.
        Returns:
            (batch, e or, for `concat`, 2e, pixel // 2^(n - 1)).
        """
        return self.latents(x_noisy, sigma, both=direction != "forward")[layer, direction]

    def latents(
        self, x_noisy: Tensor, sigma: Tensor | None = None, *, both: bool = True
    ) -> dict[tuple[Layer, Direction], Tensor]:
        """All that `encode_flux` offers, in one pass; without `both` the forward direction alone, in half the time."""
        x, found = self._input(x_noisy, sigma), {}
        for layer, z in zip(LAYERS, self._encode(self._branches(x) if both else x)[-2:], strict=True):
            forward = found[layer, "forward"] = z[: len(x), :, 0]
            if both:
                mirrored = z[len(x) :, :, 0].flip(-1)
                found[layer, "mean"] = (forward + mirrored) / 2
                found[layer, "concat"] = torch.cat([forward, mirrored], 1)
        return found

    def _input(self, x_noisy: Tensor, sigma: Tensor | None) -> Tensor:
        """(batch, 1 or 2, 1, pixel) in channels-last order, checked."""
        shape = tuple(x_noisy.shape)
        require(len(shape) == 2, "shape of x_noisy", shape, "(batch, pixel)")
        require(shape[1] >= self.shortest, "pixels of x_noisy", shape[1], f"at least 2^(n - 1) = {self.shortest}")
        require(x_noisy.isfinite().all(), "x_noisy", "NaN or infinity", "finite flux")
        if self.input_sigma:
            require(sigma is not None, "sigma", None, "the noise level, which this network was built to see")
            require(sigma.shape == x_noisy.shape, "shape of sigma", tuple(sigma.shape), f"that of x_noisy, {shape}")
            require((sigma.isfinite() & (sigma > 0)).all(), "sigma", "NaN, infinity or <= 0", "positive noise levels")
        channels = [x_noisy, sigma] if self.input_sigma else [x_noisy]
        return torch.stack(channels, -1).unsqueeze(1).permute(0, 3, 1, 2)

    def _branches(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.flip(-1)])

    def _encode(self, x: Tensor) -> list[Tensor]:
        """The input, the pooled output of each pooling layer, and the output of the last layer."""
        first, *pooling, last = self.encoders
        levels, x = [x], first(x)
        for layer in pooling:
            x = F.max_pool2d(F.pad(layer(x), (1, -1)), (1, 2))
            levels.append(x)
        return [*levels, last(x)]


def posterior_mean(mu: Tensor, sigma_x: Tensor, noisy: Tensor, sigma_n: Tensor) -> Tensor:
    """The signal given its own noisy pixel as well: mean of N(mu, sigma_x^2) times N(noisy, sigma_n^2).

    Args:
        mu, sigma_x: (...) of the prediction; `noisy`, `sigma_n`: (...), a pixel and its noise. A mixture by design:
            this does look at the pixel that `mu` is blind to.
    Source: Laine et al. 2019 (arXiv:1901.10277), equation 4, for Gaussian noise.
    """
    weight = sigma_x**2 / (sigma_x**2 + sigma_n**2)
    return torch.lerp(mu, noisy, weight)
