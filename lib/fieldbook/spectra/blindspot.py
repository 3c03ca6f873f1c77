"""A 1-D U-Net that denoises a spectrum without looking at the pixel it predicts.

Two branches look left and right, as one batch of a spectrum and its mirror image: causal
convolutions, each pooling and the output shifted by one pixel, so that pixel i of a branch knows
only the pixels before i. Trained on the noisy spectra alone, it cannot learn the identity, and its
latents know what neighbours tell about a pixel. Source: Laine et al. 2019 (arXiv:1901.10277), with
two directions in place of their four.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fieldbook.nn.blocks import seeded
from fieldbook.nn.checks import require
from fieldbook.stars.noise import standard_noise

Rows = Callable[[Tensor], tuple[Tensor, Tensor]]
Layer = Literal["enc_pre_latent", "enc_last"]
Direction = Literal["forward", "mean", "concat"]
LAYERS, DIRECTIONS = ("enc_pre_latent", "enc_last"), ("forward", "mean", "concat")


class CausalBlock(nn.Module):
    """Causal convolution, BatchNorm and LeakyReLU, on (batch, channel, 1, pixel) in channels-last
    order.

    That order, which only two-dimensional operations know, spares the CPU a third of the time.
    """

    def __init__(self, c_in: int, c_out: int, k: int = 1, *, activation: bool = True):
        super().__init__()
        self.conv, self.bn, self.activation = (
            nn.Conv1d(c_in, c_out, k),
            nn.BatchNorm2d(c_out),
            activation,
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (self.conv.kernel_size[0] - 1, 0)) if self.conv.kernel_size[0] > 1 else x
        x = self.bn(F.conv2d(x, self.conv.weight.unsqueeze(2), self.conv.bias))
        return F.leaky_relu_(x, 0.1) if self.activation else x


class BlindSpotUNet(nn.Module):
    """Gaussian prediction of each pixel's signal from all other pixels, and the encoder's latents.

    Parameters at n = 9, e = 48, k = 25 with the noise level as input: encoders 522,240, decoders_a
    867,552, decoders_b 461,952, nin_layers 37,926. These counts fix what words leave open: the
    noise level is the second input channel, it is part of the skip from the input too, every
    convolution has a bias, and BatchNorm follows all of them, the last one of the head included.
    Only the latter has no LeakyReLU; Softplus makes its second channel positive.

    Args:
        n: convolutions after the first one; all but the last pool by two, so that a pixel of the
            latents covers 2^(n - 1) of the spectrum. `e`: channels; `k`: pixels of a kernel.
        input_sigma: the network sees the noise level beside the flux.
        blindspot: without it the outputs are not shifted, and a prediction sees its own pixel.
        seed: of the initial weights.
    """

    def __init__(
        self,
        n: int = 9,
        e: int = 48,
        k: int = 25,
        *,
        input_sigma: bool = True,
        blindspot: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        require(n >= 2, "n", n, "at least 2, since all but the last of the n layers pool")
        self.input_sigma, self.blindspot = input_sigma, blindspot
        self.shortest, c = 2 ** (n - 1), 1 + input_sigma
        with seeded(seed):
            self.encoders = nn.ModuleList(CausalBlock(e if i else c, e, k) for i in range(n + 1))
            self.decoders_a = nn.ModuleList(
                CausalBlock(e + (e if i < n - 2 else c), e, k) for i in range(n - 1)
            )
            self.decoders_b = nn.ModuleList(CausalBlock(e, e, k) for _ in range(n - 1))
            hidden, last = (
                [CausalBlock(2 * e, 4 * e), CausalBlock(4 * e, 2 * e)],
                CausalBlock(2 * e, 2, activation=False),
            )
            self.nin_layers = nn.ModuleList([*hidden, last])

    def forward(self, x_noisy: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the signal, before its own pixel is looked at.

        Args:
            x_noisy: (batch, pixel) flux; `sigma`: (batch, pixel), standard deviation of its noise.
        Returns:
            mu and sigma_x, each (batch, pixel) in float32 or wider.
        Raises:
            ValueError: fewer than 2^(n - 1) pixels, a value is not finite, or sigma is missing, not
                positive or of another shape. Without `input_sigma` sigma is not used.
        """
        x = self._input(x_noisy, sigma)
        *skips, _, x = self._encode(torch.cat([x, x.flip(-1)]))
        for a, b, skip in zip(self.decoders_a, self.decoders_b, reversed(skips), strict=True):
            up = F.interpolate(x, size=skip.shape[-2:])
            x = b(a(torch.cat([up, skip], 1)))
        left, right = x.chunk(2)
        right, shift = right.flip(-1), int(self.blindspot)
        x = torch.cat([F.pad(left, (shift, -shift)), F.pad(right, (-shift, shift))], 1)
        *hidden, last = self.nin_layers
        for layer in hidden:
            x = layer(x)
        with torch.autocast(
            x.device.type, enabled=False
        ):  # bf16 resolves a continuum of 1 to 0.4 % only
            mu, spread = last(x.to(last.conv.weight.dtype))[:, :, 0].unbind(1)
        return mu, F.softplus(spread)

    def encode_flux(
        self,
        x_noisy: Tensor,
        sigma: Tensor | None = None,
        layer: Layer = "enc_pre_latent",
        direction: Direction = "forward",
    ) -> Tensor:
        """The latents: what enters (`enc_pre_latent`) or leaves (`enc_last`) the last layer of the
        encoder.

        Args:
            x_noisy, sigma: as in `forward`, whose errors apply.
            direction: `forward` knows the pixels to the left; `mean` and `concat` join it with the
                mirrored branch.
        Returns:
            (batch, e or, for `concat`, 2e, pixel // 2^(n - 1)).
        """
        return self.latents(x_noisy, sigma, [(layer, direction)])[0]

    def latents(
        self, x_noisy: Tensor, sigma: Tensor | None, wanted: Sequence[tuple[Layer, Direction]]
    ) -> list[Tensor]:
        """As `encode_flux`, for several layers and directions in one pass; twice the work if one
        needs the mirror."""
        for layer, direction in wanted:
            require(layer in LAYERS, "layer", layer, " or ".join(LAYERS))
            require(direction in DIRECTIONS, "direction", direction, " or ".join(DIRECTIONS))
        x = self._input(x_noisy, sigma)
        both = any(direction != "forward" for _, direction in wanted)
        *_, pre, last = self._encode(torch.cat([x, x.flip(-1)]) if both else x)
        levels = {
            name: z.squeeze(2).split(len(x)) for name, z in zip(LAYERS, (pre, last), strict=True)
        }
        return [_merge(*levels[layer], direction=direction) for layer, direction in wanted]

    def _input(self, x_noisy: Tensor, sigma: Tensor | None) -> Tensor:
        """(batch, 1 or 2, 1, pixel) in channels-last order, checked."""
        shape = tuple(x_noisy.shape)
        require(len(shape) == 2, "shape of x_noisy", shape, "(batch, pixel)")
        require(
            shape[1] >= self.shortest,
            "pixels of x_noisy",
            shape[1],
            f"at least 2^(n - 1) = {self.shortest}",
        )
        require(x_noisy.isfinite().all(), "x_noisy", "NaN or infinity", "finite flux")
        if self.input_sigma:
            require(
                sigma is not None,
                "sigma",
                None,
                "the noise level, which this network was built to see",
            )
            require(
                sigma.shape == x_noisy.shape,
                "shape of sigma",
                tuple(sigma.shape),
                f"that of x_noisy, {shape}",
            )
            require(
                (sigma.isfinite() & (sigma > 0)).all(),
                "sigma",
                "NaN, infinity or <= 0",
                "positive noise levels",
            )
        channels = [x_noisy, sigma] if self.input_sigma else [x_noisy]
        return torch.stack(channels, -1).unsqueeze(1).permute(0, 3, 1, 2)

    def _encode(self, x: Tensor) -> list[Tensor]:
        """The input, the pooled output of each pooling layer, and the output of the last layer."""
        first, *pooling, last = self.encoders
        levels, x = [x], first(x)
        for layer in pooling:
            x = F.max_pool2d(F.pad(layer(x), (1, -1)), (1, 2))
            levels.append(x)
        return [*levels, last(x)]


def _merge(left: Tensor, right: Tensor | None = None, *, direction: Direction) -> Tensor:
    if direction == "forward":
        return left
    right = right.flip(-1)
    return (left + right) / 2 if direction == "mean" else torch.cat([left, right], 1)


def posterior_mean(mu: Tensor, sigma_x: Tensor, noisy: Tensor, sigma_n: Tensor) -> Tensor:
    """The signal given its own noisy pixel as well: mean of N(mu, sigma_x^2) times N(noisy,
    sigma_n^2).

    Args:
        mu, sigma_x: (...) of the prediction; `noisy`, `sigma_n`: (...), a pixel and its noise. A
            mixture by design: this does look at the pixel that `mu` is blind to.
    Source: Laine et al. 2019 (arXiv:1901.10277), section 3, for Gaussian noise.
    """
    weight = sigma_x**2 / (sigma_x**2 + sigma_n**2)
    return torch.lerp(mu, noisy, weight)


def gaussian(mu: Tensor, sigma_x: Tensor, noisy: Tensor, sigma_n: Tensor) -> Tensor:
    """Negative log-likelihood of the noisy pixel, whose variance is sigma_x^2 + sigma_n^2 (Laine et
    al., section 3).

    Args:
        mu, sigma_x: (...) from the network; `noisy`, `sigma_n`: (...), as in `posterior_mean`.
    Returns:
        0-d mean over the pixels, as in the other losses.
    """
    variance = (
        sigma_x**2 + sigma_n**2
    )  # F.gaussian_nll_loss would ask the device whether it is negative
    return (0.5 * (variance.log() + (mu - noisy) ** 2 / variance)).mean()


def laplace(mu: Tensor, sigma_x: Tensor, noisy: Tensor, sigma_n: Tensor) -> Tensor:
    """As `gaussian`, for a Laplace distribution of the same variance, which outliers draw less."""
    scale = ((sigma_x**2 + sigma_n**2) / 2).sqrt()
    return ((noisy - mu).abs() / scale + scale.log()).mean()


def huber(mu: Tensor, sigma_x: Tensor, noisy: Tensor, sigma_n: Tensor) -> Tensor:
    """Huber's loss of the residual in units of the noise; it leaves sigma_x untrained."""
    return F.huber_loss((noisy - mu) / sigma_n, torch.zeros_like(mu))


SELF_SUPERVISED = {"nll": gaussian, "laplace": laplace, "huber": huber}


def denoising_loss(kind: str, rows: Rows, noise_level: float = 1.0) -> Callable[..., Tensor]:
    """A loss for `fieldbook.nn.training.fit` that draws the noise of each spectrum anew.

    Args:
        kind: `nll`, `laplace` or `huber`, which compare with the noisy flux alone; or `supervised`,
            the Gaussian likelihood of the clean flux, which a telescope does not deliver.
        rows: index (batch,) -> clean flux and its error, each (batch, pixel); for instance
            `Spectra.rows`.
        noise_level: standard deviation of the noise, and what the network is told of it, in units
            of the error.
    Raises:
        ValueError: an unknown kind, or a noise level that is not positive.
    """
    require(
        kind in (*SELF_SUPERVISED, "supervised"),
        "kind",
        kind,
        f"{', '.join(SELF_SUPERVISED)} or supervised",
    )
    require(noise_level > 0, "noise_level", noise_level, "a positive number")

    def loss(model: BlindSpotUNet, index: Tensor, generator: torch.Generator) -> Tensor:
        clean, sigma = (t.to(generator.device) for t in rows(index))
        sigma = noise_level * sigma
        noisy = torch.addcmul(clean, sigma, standard_noise(clean, generator))
        mu, sigma_x = model(noisy, sigma)
        if kind == "supervised":
            return gaussian(
                mu, sigma_x, clean, 0.01 * sigma
            )  # a floor: a perfect prediction has no finite optimum
        return SELF_SUPERVISED[kind](mu, sigma_x, noisy, sigma)

    return loss


@torch.no_grad()
def start_at(model: BlindSpotUNet, noisy: Tensor, sigma: Tensor) -> None:
    """Set the network's last BatchNorm so that its first guesses have the mean and the spread of
    the signal.

    A network that starts at 0 +- 1 spends its first thousand updates on walking to a continuum of 1
    +- 0.1. Its sigma_x starts at a third of the spread, since a factor of e takes one over the
    learning rate updates.

    Args:
        noisy, sigma: (n, pixel) training spectra and noise levels, on the model's device.
    """
    spread = (noisy.var() - (sigma**2).mean()).clamp(min=1e-4 * noisy.var()).sqrt()
    last = model.nin_layers[-1].bn
    last.weight[0] = spread
    last.bias.copy_(
        torch.stack([noisy.mean(), torch.expm1(spread / 3).log()])
    )  # softplus inverts the second
