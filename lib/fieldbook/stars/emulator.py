"""A fast stand-in for the synthesiser: a grid of spectra, interpolated and differentiable.

ln(flux / median) of the grid's nodes -> principal components -> cubic splines in each label (a
tensor product) -> cubic B-spline over pixels for the Doppler shift. All steps are linear in the
grid but the last exponential.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from filelock import FileLock
from scipy.interpolate import CubicSpline
from scipy.ndimage import spline_filter1d
from sklearn.decomposition import PCA
from torch import Tensor

from fieldbook.nn.checkpoints import atomic_write
from fieldbook.nn.checks import require
from fieldbook.nn.closure import closure
from fieldbook.nn.identity import digest
from fieldbook.nn.workers import each
from fieldbook.stars.synthesis import (
    LABEL_LIMITS,
    LABELS,
    SPEED_OF_LIGHT,
    STEP,
    synthesize,
    wavelength,
)

MARGIN = 24  # pixels beyond both ends, for Doppler shifts
FASTEST = 300.0  # km/s, what the margin allows
NODES = {
    "T_eff": (3750, 3900, 4075, 4275, 4500, 4800, 5150, 5550, 6000),
    "log_g": (1, 1.75, 2.5, 3.25, 4, 4.5, 5),
    "M_H": (-2.5, -1.9, -1.35, -0.85, -0.4, 0, 0.375, 0.75),
    "a_M": (-0.25, -0.17, -0.07, 0.07, 0.26, 0.5),  # close where C/O nears 1 and oxygen runs out
    "C_M": (0,),
}
SMALL = {"T_eff": (4500, 4800, 5100), "log_g": (2.5, 3.25, 4), "M_H": (-1, -0.6, -0.2)}
SMALL |= {"a_M": (0, 0.3), "C_M": (0,)}


class Emulator:
    """Spectra and their derivatives from labels; build one with `emulator`.

    Attributes:
        nodes: label -> increasing values of the grid; the first and last are the label's range.
        wavelength: (4096,) vacuum A.
    """

    def __init__(self, nodes: Mapping[str, Sequence[float]], arrays: Mapping[str, np.ndarray]):
        self.nodes = {name: tuple(nodes[name]) for name in LABELS}
        self.wavelength = wavelength()
        self._arrays = {"wavelength": torch.as_tensor(self.wavelength)}
        for name, array in arrays.items():
            self._arrays[name] = torch.as_tensor(np.array(array, float))
        for name, values in self.nodes.items():
            self._arrays[f"{name}_nodes"] = torch.tensor(values, dtype=torch.float64)
            if len(values) > 1:
                self._arrays[name] = torch.as_tensor(CubicSpline(values, np.eye(len(values))).c)
        self._copies: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}

    def __repr__(self) -> str:
        return f"Emulator({self.nodes}, {digest(self._arrays)})"

    def __call__(self, labels: Tensor, rv_kms: Tensor | float = 0.0) -> Tensor:
        """Spectra of stars, each of median .5 at rest, to the emulator's accuracy.

        Args:
            labels: (star, 5), columns `LABELS`.
            rv_kms: (star,) or a number, km/s, positive when receding.
        Returns:
            (star, 4096), on the device and in the precision of `labels`; differentiable in both.
        Raises:
            ValueError: a shape is wrong, or a label or velocity is out of range.
        """
        rv_kms = self._checked(labels, rv_kms)
        splines = self._log_flux(self._scores(labels))
        return 0.5 * self._shifted(splines, rv_kms)[:, 0].exp()

    def jacobian(self, labels: Tensor, rv_kms: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        """Spectra, and their derivatives by each label and by the radial velocity.

        Returns:
            (star, 4096) and (star, 4096, 6), the last axis T_eff, log_g, M_H, a_M, C_M, rv_kms. A
            label with a single node has derivative 0.
        """
        rv_kms = self._checked(labels, rv_kms)
        splines = self._log_flux(self._scores(labels))
        derivatives = []
        for i in range(len(LABELS)):
            along = torch.zeros_like(labels)
            along[:, i] = 1
            derivatives.append(torch.func.jvp(self._scores, (labels,), (along,))[1])
        slopes = torch.stack(derivatives, 1) @ self._on(labels)["components"]
        by_label = self._shifted(slopes, rv_kms)
        shifted = partial(self._shifted, splines)
        log_flux, by_rv = torch.func.jvp(shifted, (rv_kms,), (torch.ones_like(rv_kms),))
        flux = 0.5 * log_flux.exp()
        return flux[:, 0], (flux * torch.cat([by_label, by_rv], 1)).mT

    def _on(self, like: Tensor) -> dict[str, Tensor]:
        key = like.device, like.dtype
        if key not in self._copies:
            self._copies[key] = {name: array.to(*key) for name, array in self._arrays.items()}
        return self._copies[key]

    def _log_flux(self, scores: Tensor) -> Tensor:
        """ln(flux / median) as coefficients of B-splines, (star, 1, pixel + 2 MARGIN)."""
        arrays = self._on(scores)
        return (arrays["mean"] + scores @ arrays["components"])[:, None]

    def _shifted(self, splines: Tensor, rv_kms: Tensor) -> Tensor:
        return _shifted(splines, rv_kms, self._on(splines)["wavelength"])

    def _checked(self, labels: Tensor, rv_kms: Tensor | float) -> Tensor:
        fits = labels.dim() == 2 and labels.shape[1] == len(LABELS)
        require(fits, "labels.shape", tuple(labels.shape), "(star, 5)")
        for name, values in zip(LABELS, labels.detach().T, strict=True):
            low, high = self.nodes[name][0], self.nodes[name][-1]
            slack = 1e-6 * max(abs(low), abs(high), 1)
            outside = ~((values >= low - slack) & (values <= high + slack))
            if outside.any():
                found = f"{name} = {float(values[outside][0])}"
                raise ValueError(f"{found}: this emulator reaches from {low} to {high}")
        rv_kms = torch.as_tensor(rv_kms, dtype=labels.dtype, device=labels.device)
        fits = rv_kms.shape in ((), labels.shape[:1])
        require(fits, "rv_kms.shape", tuple(rv_kms.shape), "() or (star,)")
        outside = ~(rv_kms.detach().abs() <= FASTEST)
        if outside.any():
            found = f"rv_kms = {float(rv_kms[outside][0])}"
            raise ValueError(f"{found}: expected at most {FASTEST} either way")
        return rv_kms.expand(len(labels)).clone()

    def _scores(self, labels: Tensor) -> Tensor:
        """Scores of the principal components, (star, component)."""
        arrays = self._on(labels)
        weights = torch.ones_like(labels[:, :1])
        for i, name in enumerate(LABELS):
            if name in arrays:
                cardinal = _cardinal_splines(labels[:, i], arrays[f"{name}_nodes"], arrays[name])
                weights = (weights[:, :, None] * cardinal[:, None, :]).flatten(1)
        return weights @ arrays["scores"]


def _cardinal_splines(x: Tensor, nodes: Tensor, coefficients: Tensor) -> Tensor:
    """Weight of each node in the cubic spline through all of them, (star, node)."""
    piece = torch.searchsorted(nodes[1:-1].contiguous(), x.detach().contiguous())
    t = (x - nodes[piece])[:, None]
    a, b, c, d = (coefficient[piece] for coefficient in coefficients)
    return ((a * t + b) * t + c) * t + d


def _shifted(coefficients: Tensor, rv_kms: Tensor, observed: Tensor) -> Tensor:
    """Cubic B-splines at the wavelengths at which the light was emitted.

    Args:
        coefficients: (star, spline, pixel + 2 MARGIN); `rv_kms`: (star,); `observed`: (pixel,) A.
    Returns:
        (star, spline, pixel).
    """
    redshift = (rv_kms / SPEED_OF_LIGHT)[:, None]
    # in pixels; added to the index only when whole, to keep digits
    shift = -observed / STEP * redshift / (1 + redshift)
    whole = shift.detach().floor()
    t = (shift - whole)[:, None]
    s = 1 - t
    weights = (s**3, 3 * t**3 - 6 * t**2 + 4, 3 * s**3 - 6 * s**2 + 4, t**3)
    first = torch.arange(len(observed), device=observed.device) + MARGIN - 1 + whole.long()
    index = first[:, None].expand(-1, coefficients.shape[1], -1)
    return sum(w * coefficients.gather(2, index + k) for k, w in enumerate(weights)) / 6


def emulator(
    folder: Path,
    nodes: Mapping[str, Sequence[float]] = NODES,
    *,
    components: int = 64,
    workers: int = 1,
) -> Emulator:
    """The emulator of a grid, read from `folder` if it has been built there, else built and kept.

    The name of the file holds a digest of the grid and of what it is made by. It is written whole
    or not at all, and processes that want the same one at once wait for the first.

    Args:
        nodes: label -> increasing values, at least one; a label left out has the nodes of `NODES`.
        components: principal components kept, or one fewer than nodes where those are fewer.
        workers: processes, of one thread each.
    Raises:
        ValueError: unknown label, nodes that don't increase or lie outside the synthesiser's
            limits, a damaged file.
    """
    for name in nodes:
        require(name in LABELS, "nodes", name, f"labels among {', '.join(LABELS)}")
    nodes = {name: tuple(map(float, (NODES | dict(nodes))[name])) for name in LABELS}
    for name, values in nodes.items():
        low, high = LABEL_LIMITS[name]
        inside = len(values) and low <= values[0] and values[-1] <= high
        rising = (np.diff(values) > 0).all()
        accepted = f"increasing values in [{low}, {high}]"
        require(inside and rising, f"nodes[{name!r}]", values, accepted)
    require(max(map(len, nodes.values())) > 1, "nodes", nodes, "two values for one label at least")
    require(components >= 1, "components", components, "at least 1")
    path = Path(folder) / f"emulator-{_fingerprint(nodes, components)}.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.is_file():
                arrays = _compress(grid(nodes, workers), components)
                atomic_write(path, lambda file: file.write(safetensors.numpy.save(arrays)))
    try:
        return Emulator(nodes, safetensors.numpy.load_file(path))
    except safetensors.SafetensorError as error:
        problem = f"{path} is not a readable emulator ({error})"
        raise ValueError(f"{problem}; delete it to build it again") from error


def grid(nodes: Mapping[str, Sequence[float]], workers: int = 1) -> np.ndarray:
    """ln(flux / median) of every node, (node, 4096 + 2 MARGIN), the last label running fastest."""
    stars = list(product(*(nodes[name] for name in LABELS)))
    pieces = [stars[i : i + 16] for i in range(0, len(stars), 16)]
    return np.concatenate(list(each(_log_spectra, [(piece,) for piece in pieces], workers)))


def _compress(log_flux: np.ndarray, components: int) -> dict[str, np.ndarray]:
    """Principal components of a grid, as coefficients of cubic B-splines over pixels."""
    pca = PCA(min(components, len(log_flux) - 1), random_state=0).fit(log_flux)
    arrays = {"scores": pca.transform(log_flux)}
    for name, array in {"mean": pca.mean_, "components": pca.components_}.items():
        arrays[name] = spline_filter1d(array, order=3, axis=-1, mode="mirror")
    # safetensors ignores strides
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _log_spectra(stars: list[tuple[float, ...]]) -> np.ndarray:
    return np.log(2 * np.stack([synthesize(*star, margin=MARGIN) for star in stars]))


def _fingerprint(nodes: Mapping[str, Sequence[float]], components: int) -> str:
    """Digest of a grid, and of all code, constants and tables of this room that make it."""
    return closure(grid, _compress, dict(nodes), components).digest
