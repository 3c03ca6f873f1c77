"""Fréchet and kernel distances between features, and how generated samples cover real ones.

A Fréchet distance is called FID only if its features are Inception's, resized by clean-fid. Nothing
is downloaded.
"""

import importlib
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fieldbook.drifting.compat import importable_torchvision
from fieldbook.nn.checks import numbers, require

FidMode = Literal["clean", "legacy_tensorflow", "legacy_pytorch"]
WEIGHTS = Path("." if platform.system() == "Windows" else "/tmp")  # where clean-fid keeps Inception


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Squared 2-Wasserstein distance between two Gaussians, in double precision.

    The trace of sqrt(C1 C2) is the sum of the roots of the eigenvalues of sqrt(C1) C2 sqrt(C1),
    which is symmetric: two symmetric eigenvalue problems in place of clean-fid's Schur
    decomposition, 4 times as fast for 64 features, 25 times for 2,048.

    Args:
        mean1, mean2: (D,); `cov1`, `cov2`: (D, D), symmetric.
    Source: Heusel et al. 2017 (arXiv:1706.08500), equation 6.
    """
    mean1 = numbers(mean1, "mean1", ndim=1).double()
    d = len(mean1)
    mean2 = numbers(mean2, "mean2", shape=(d,)).double()
    cov1, cov2 = (_covariance(cov, name, d) for cov, name in ((cov1, "cov1"), (cov2, "cov2")))
    values, vectors = torch.linalg.eigh(cov1)
    root = vectors * _not_negative(values, "cov1").sqrt() @ vectors.mT
    trace = _not_negative(torch.linalg.eigvalsh(root @ cov2 @ root), "cov2").sqrt().sum()
    found = float((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * trace)
    return max(found, 0.0)  # below it by rounding


def _covariance(cov: Tensor, name: str, d: int) -> Tensor:
    cov = numbers(cov, name, shape=(d, d)).double()
    skew = float((cov - cov.mT).abs().max())
    require(skew <= 1e-4 * cov.abs().max(), f"asymmetry of {name}", skew, "a symmetric matrix")
    return cov


def _not_negative(values: Tensor, name: str) -> Tensor:
    """Eigenvalues (d,), ascending, of a covariance matrix, or of its product with another."""
    accepted = "a covariance matrix, whose eigenvalues are not negative"
    least = f"least eigenvalue of {name}"
    require(values[0] >= -1e-4 * values[-1].abs(), least, float(values[0]), accepted)
    return values.clamp_min(0)


def frechet(x: Tensor, y: Tensor) -> float:
    """Fréchet distance between the Gaussians fitted to features (N, D) and (M, D); N, M >= 2."""
    x, y = _features("x", x, "y", y, 2)
    square = (x.shape[1], x.shape[1])  # of one feature, torch makes a number
    covs = [z.T.cov().reshape(square) for z in (x, y)]
    return frechet_distance(x.mean(0), covs[0], y.mean(0), covs[1])


def kid(
    x: Tensor, y: Tensor, generator: torch.Generator, subsets: int = 100, largest: int = 1000
) -> float:
    """Kernel distance with the kernel (x.y / D + 1)^3: mean of unbiased estimates over subsets.

    Not clean-fid's, which draws its subsets from NumPy's global generator, the caller's.

    Args:
        x: (N, D); `y`: (M, D); N, M >= 2. One estimate from everything if N = M <= largest.
        generator: of the random subsets.
    Source: Bińkowski et al. 2018 (arXiv:1801.01401), section 3; subsets and cross term as in
    clean-fid.
    """
    x, y = _features("x", x, "y", y, 2)
    require(subsets >= 1, "subsets", subsets, "at least 1")
    require(largest >= 2, "largest", largest, "at least 2")
    m = min(len(x), len(y), largest)
    found = []
    for _ in range(1 if len(x) == len(y) == m else subsets):
        a, b = (_subset(z, m, generator) for z in (x, y))
        of_a, of_b, between = ((p @ q.T / p.shape[1] + 1) ** 3 for p, q in ((a, a), (b, b), (a, b)))
        within = of_a.sum() - of_a.trace() + of_b.sum() - of_b.trace()
        found.append(float(within / (m * (m - 1)) - 2 * between.mean()))
    return sum(found) / len(found)


def _subset(x: Tensor, m: int, generator: torch.Generator) -> Tensor:
    order = torch.randperm(len(x), generator=generator, device=generator.device)
    return x[order[:m].to(x.device)]


def coverage(real: Tensor, fake: Tensor, k: int = 5) -> dict[str, float]:
    """`precision`, `recall`, `density` and `coverage` of generated features among real ones.

    All by balls about each sample that reach its k-th nearest neighbour of the same set. Balls are
    closed, so that copies lie in the ball of their original even where it has no radius.

    Args:
        real: (N, D); `fake`: (M, D); N, M > k.
    Source: Kynkäänniemi et al. 2019 (arXiv:1904.06991); Naeem et al. 2020 (arXiv:2002.09797).
    """
    require(k >= 1, "k", k, "at least 1 neighbour")
    real, fake = _features("real", real, "fake", fake, k + 1)
    exact = {"compute_mode": "donot_use_mm_for_euclid_dist"}
    radii = [torch.cdist(z, z, **exact).kthvalue(k + 1).values for z in (real, fake)]
    apart = torch.cdist(real, fake, **exact)
    by_real, by_fake = apart <= radii[0][:, None], apart <= radii[1]
    found = {
        "precision": by_real.any(0),
        "recall": by_fake.any(1),
        "density": by_real.sum(0).double() / k,
        "coverage": by_real.any(1),
    }
    return {name: float(value.double().mean()) for name, value in found.items()}


def _features(name: str, x: Tensor, other: str, y: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Two samples (N, D) and (M, D), `least` of each, in double precision."""
    x = numbers(x, name, ndim=2, least=least)
    y = numbers(y, other, shape=(None, x.shape[1]), least=least)
    return x.detach().double(), y.detach().double()


# -- FID: clean-fid's files, network and resizing


def clean_fid() -> object:
    """The module `cleanfid.fid`, imported when it is needed: it takes torchvision along."""
    importable_torchvision()
    return importlib.import_module("cleanfid.fid")


def fid_files(
    dataset: str, size: int, split: str, mode: FidMode, weights: Path = WEIGHTS
) -> tuple[Path, Path]:
    """Inception's weights and the statistics of a data set, where clean-fid looks for them.

    Args:
        size: width of an image in pixels; `weights`: folder of Inception.
    Raises:
        FileNotFoundError: names each one that is missing, and where it comes from.
    """
    network = Path(weights, "inception-2015-12-05.pt")
    if mode == "legacy_pytorch":
        network = Path(torch.hub.get_dir(), "checkpoints", "pt_inception-2015-12-05-6726825d.pth")
    folder = Path(clean_fid().cleanfid.__file__).parent / "stats"
    statistics = folder / f"{dataset}_{mode}_{split}_{size}.npz".lower()
    files = {"Inception weights": network, "reference statistics": statistics}
    missing = [f"no {what} at {file}" for what, file in files.items() if not file.is_file()]
    if missing:
        sources = (
            "nothing is downloaded. `inception-2015-12-05.pt` is the one of StyleGAN's metrics, "
            "`pt_inception-2015-12-05-6726825d.pth` that of pytorch-fid; statistics are those of "
            "clean-fid's site"
        )
        raise FileNotFoundError(f"{'; '.join(missing)}; {sources}")
    return network, statistics


def inception(mode: FidMode, file: Path) -> Callable[[Tensor], Tensor]:
    """Inception as clean-fid runs it: images (n, 3, 299, 299) in [0, 255] -> features (n, 2048)."""
    if mode == "legacy_pytorch":
        module = importlib.import_module("cleanfid.features")
        return module.feature_extractor("pytorch_inception", torch.device("cpu"), False, False)
    module = importlib.import_module("cleanfid.inception_torchscript")
    resize = mode == "legacy_tensorflow"
    return module.InceptionV3W(str(file.parent), download=False, resize_inside=resize).eval()


def folder_features(
    folder: Path, extractor: Callable[[Tensor], Tensor], mode: FidMode = "clean"
) -> np.ndarray:
    """Features (n, D) of all images in a folder, resized by clean-fid, in the order of the names.

    Args:
        extractor: of `inception`, or any function of images (n, 3, 299, 299) in [0, 255].
    """
    return clean_fid().get_folder_features(
        str(folder), extractor, num_workers=0, device=torch.device("cpu"), mode=mode, verbose=False
    )


def fid(
    folder: Path, dataset: str, size: int, split: str, mode: FidMode, weights: Path = WEIGHTS
) -> float:
    """Fréchet Inception distance of a folder of images to a data set, all of it clean-fid's.

    Raises:
        FileNotFoundError: as `fid_files`.
    Source: Parmar et al. 2022 (arXiv:2104.11222).
    """
    file, statistics = fid_files(dataset, size, split, mode, weights)
    found = folder_features(folder, inception(mode, file), mode)
    with np.load(statistics) as saved:
        mean, cov = saved["mu"], saved["sigma"]
    ours = found.mean(0), np.cov(found, rowvar=False)
    return float(clean_fid().frechet_distance(*ours, mean, cov))
