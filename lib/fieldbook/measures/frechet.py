"""Fréchet and kernel distances between features, and how generated samples cover real ones; clean-fid's where it can.

A Fréchet distance is called FID only if its features are Inception's, resized by clean-fid. Nothing is downloaded.
"""

import contextlib
import importlib
import io
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fieldbook.checks import require
from fieldbook.compat import importable_torchvision

FidMode = Literal["clean", "legacy_tensorflow", "legacy_pytorch"]
WEIGHTS = Path("." if platform.system() == "Windows" else "/tmp")  # where clean-fid keeps Inception


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Squared 2-Wasserstein distance between two Gaussians, in double precision.

    The trace of sqrt(C1 C2) is the sum of the roots of the eigenvalues of sqrt(C1) C2 sqrt(C1), which is symmetric: two
    symmetric eigenvalue problems in place of one Schur decomposition.

    Args:
        mean1, mean2: (D,); `cov1`, `cov2`: (D, D).
    Source: Heusel et al. 2017 (arXiv:1706.08500), equation 6.
    """
    mean1, cov1, mean2, cov2 = (t.double() for t in (mean1, cov1, mean2, cov2))
    values, vectors = torch.linalg.eigh(cov1)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.mT
    trace = torch.linalg.eigvalsh(root @ cov2 @ root).clamp_min(0).sqrt().sum()
    return float((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * trace)


def frechet(x: Tensor, y: Tensor) -> float:
    """Fréchet distance between the Gaussians fitted to two sets of features, (N, D) and (M, D); N, M >= 2."""
    require(min(len(x), len(y)) >= 2, "features", (len(x), len(y)), "at least two samples of each")
    return frechet_distance(x.double().mean(0), x.double().T.cov(), y.double().mean(0), y.double().T.cov())


def kid(x: Tensor, y: Tensor, generator: torch.Generator, subsets: int = 100, largest: int = 1000) -> float:
    """Kernel distance with the cubic kernel (x.y / D + 1)^3: mean of unbiased estimates over random subsets.

    Args:
        x: (N, D); `y`: (M, D). One estimate from everything if min(N, M) <= largest and N = M.
        generator: of the subsets, on the CPU.
    Source: Bińkowski et al. 2018 (arXiv:1801.01401), section 3; subsets and cross term as in clean-fid.
    """
    x, y, m = x.double(), y.double(), min(len(x), len(y), largest)
    total = 0.0
    for _ in range(1 if len(x) == len(y) == m else subsets):
        a, b = (z[torch.randperm(len(z), generator=generator)[:m].to(z.device)] for z in (x, y))
        within = sum((k := (z @ z.T / z.shape[1] + 1) ** 3).sum() - k.trace() for z in (a, b))
        total += float(within / (m * (m - 1)) - 2 * ((a @ b.T / x.shape[1] + 1) ** 3).mean())
    return total / (1 if len(x) == len(y) == m else subsets)


def coverage(real: Tensor, fake: Tensor, k: int = 5) -> dict[str, float]:
    """`precision`, `recall`, `density` and `coverage` of generated features among real ones, by k nearest neighbours.

    Source: Kynkäänniemi et al. 2019 (arXiv:1904.06991); Naeem et al. 2020 (arXiv:2002.09797), whose code computes them.
    """
    from prdc import compute_prdc

    with contextlib.redirect_stdout(io.StringIO()):  # it prints the numbers of samples
        found = compute_prdc(real.cpu().numpy(), fake.cpu().numpy(), k)
    return {name: float(value) for name, value in found.items()}


def clean_fid() -> object:
    """The module `cleanfid.fid`, imported when it is needed: it takes torchvision along."""
    importable_torchvision()
    return importlib.import_module("cleanfid.fid")


def inception(mode: FidMode, device: torch.device, weights: Path = WEIGHTS) -> Callable[[Tensor], Tensor]:
    """Inception as clean-fid runs it: images (n, 3, 299, 299) in [0, 255] -> features (n, 2048).

    Raises:
        FileNotFoundError: its weights are missing; names the file and where it comes from.
    """
    clean_fid()
    pytorch = mode == "legacy_pytorch"
    folder = Path(torch.hub.get_dir(), "checkpoints") if pytorch else Path(weights)
    file = folder / ("pt_inception-2015-12-05-6726825d.pth" if pytorch else "inception-2015-12-05.pt")
    if not file.is_file():
        raise FileNotFoundError(f"no Inception weights at {file}; {_SOURCES}")
    if pytorch:
        return importlib.import_module("cleanfid.features").feature_extractor("pytorch_inception", device, False, False)
    network = importlib.import_module("cleanfid.inception_torchscript").InceptionV3W
    return network(str(folder), download=False, resize_inside=mode == "legacy_tensorflow").to(device).eval()


_SOURCES = (
    "nothing is downloaded. `inception-2015-12-05.pt` is the one of StyleGAN's metrics, "
    "`pt_inception-2015-12-05-6726825d.pth` that of pytorch-fid; statistics are those of clean-fid's site"
)


def reference_statistics(
    dataset: str, resolution: int, split: str, mode: FidMode = "clean", folder: Path | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of Inception features of a data set, from clean-fid's file.

    Args:
        folder: of the file; clean-fid's own unless given.
    Raises:
        FileNotFoundError: the file is missing; names it and where it comes from.
    """
    folder = folder or Path(clean_fid().cleanfid.__file__).parent / "stats"
    file = Path(folder) / f"{dataset}_{mode}_{split}_{resolution}.npz".lower()
    if not file.is_file():
        raise FileNotFoundError(f"no reference statistics at {file}; {_SOURCES}")
    with np.load(file) as saved:
        return torch.from_numpy(saved["mu"]), torch.from_numpy(saved["sigma"])


def folder_features(
    folder: Path, extractor: Callable[[Tensor], Tensor], mode: FidMode = "clean", batch_size: int = 128
) -> Tensor:
    """Features of all images in a folder, resized by clean-fid; (n, D), in the order of the file names.

    Args:
        extractor: `inception(mode, device)`, or any function of images (n, 3, 299, 299) in [0, 255].
    """
    options = {"num_workers": 0, "device": torch.device("cpu"), "mode": mode, "verbose": False}
    return torch.from_numpy(clean_fid().get_folder_features(str(folder), extractor, batch_size=batch_size, **options))


def require_fid(dataset: str, resolution: int, split: str, mode: FidMode = "clean", weights: Path = WEIGHTS) -> None:
    """Check, before samples are drawn, that `fid` will find its two files.

    Raises:
        FileNotFoundError: names every one that is missing.
    """
    missing = []
    for look in (
        lambda: inception(mode, torch.device("cpu"), weights),
        lambda: reference_statistics(dataset, resolution, split, mode),
    ):
        try:
            look()
        except FileNotFoundError as error:
            missing.append(str(error))
    if missing:
        raise FileNotFoundError("; ".join(missing))


def fid(
    folder: Path, dataset: str, resolution: int, split: str, mode: FidMode = "clean", device: str = "cpu",
    weights: Path = WEIGHTS,
) -> float:  # fmt: skip
    """Fréchet Inception distance of a folder of images to a data set, by clean-fid's resizing, network and statistics.

    Raises:
        FileNotFoundError: Inception's weights or the statistics are missing; names both and where they go.
    Source: Parmar et al. 2022 (arXiv:2104.11222).
    """
    require_fid(dataset, resolution, split, mode, weights)
    network = inception(mode, torch.device(device), weights)
    features = folder_features(folder, lambda x: network(x.to(device)), mode)
    mean, cov = reference_statistics(dataset, resolution, split, mode)
    return float(
        clean_fid().frechet_distance(
            features.numpy().mean(0), np.cov(features.numpy(), rowvar=False), mean.numpy(), cov.numpy()
        )
    )
