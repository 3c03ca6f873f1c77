"""Distances between features against clean-fid, scipy, known values; nothing is ever downloaded."""

import socket

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from fieldbook.drifting import distances, frechet


def features(n, d, seed=0, shift=0.0):
    return (
        torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * (1 + torch.arange(d) / d)
        + shift
    )


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)


@pytest.mark.parametrize(("n", "d"), [(200, 16), (20, 30)])
def test_distance_is_clean_fids(n, d):
    x, y = features(n, d), features(n + 10, d, seed=1, shift=0.3)
    theirs = frechet.clean_fid().fid_from_feats(x.double().numpy(), y.double().numpy())
    assert frechet.frechet(x, y) == pytest.approx(theirs, rel=1e-6, abs=1e-6 if n > d else 1e-3)


def test_distance_of_known_gaussians():
    a, b = torch.diag(torch.tensor([1.0, 4.0])), torch.diag(torch.tensor([9.0, 1.0]))
    zero, one = torch.zeros(2), torch.tensor([1.0, 2.0])
    assert frechet.frechet_distance(zero, a, one, b) == pytest.approx(
        5 + (1 - 3) ** 2 + (2 - 1) ** 2
    )
    c = features(50, 5).T.cov().double()
    d = features(50, 5, seed=2).T.cov().double()
    trace = np.trace(sqrtm((c @ d).numpy())).real
    expected = float(c.trace() + d.trace()) - 2 * trace
    assert frechet.frechet_distance(torch.zeros(5), c, torch.zeros(5), d) == pytest.approx(
        expected, abs=1e-9
    )
    assert frechet.frechet(features(50, 5), features(50, 5)) == pytest.approx(0, abs=1e-6)


def test_kid_is_clean_fids():
    x, y = features(60, 8), features(60, 8, seed=1, shift=0.2)
    generator = torch.Generator().manual_seed(0)
    theirs = frechet.clean_fid().kernel_distance(
        x.double().numpy(), y.double().numpy(), num_subsets=1
    )
    assert frechet.kid(x, y, generator) == pytest.approx(theirs, abs=1e-6)
    few = frechet.kid(x, y, generator, subsets=400, largest=30)
    assert few == pytest.approx(theirs, rel=0.2)  # subsets estimate the same


def test_coverage_of_itself_and_of_nothing():
    x = features(60, 4)
    assert frechet.coverage(x, x) == pytest.approx(
        {"precision": 1, "recall": 1, "coverage": 1, "density": 1}, abs=0.21
    )
    assert frechet.coverage(x, x + 100) == {
        "precision": 0,
        "recall": 0,
        "coverage": 0,
        "density": 0,
    }


def write_folder(folder, seed):
    folder.mkdir()
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number}.png")


def test_injected_extractor_goes_through_clean_fids_resizing(tmp_path, offline):
    write_folder(tmp_path / "a", 0)
    write_folder(tmp_path / "b", 1)

    def extractor(x):
        assert x.shape[1:] == (3, 299, 299) and 1 < x.max() <= 255
        return torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)

    found = [frechet.folder_features(tmp_path / name, extractor) for name in "ab"]
    one, two = (torch.from_numpy(features).double() for features in found)
    module = frechet.clean_fid()
    assert frechet.frechet(one, two) == pytest.approx(
        module.fid_from_feats(one.numpy(), two.numpy()), rel=1e-6, abs=1e-6
    )
    theirs = module.kernel_distance(one.numpy(), two.numpy(), num_subsets=1)
    assert frechet.kid(one, two, torch.Generator().manual_seed(0)) == pytest.approx(
        theirs, rel=1e-6, abs=1e-6
    )


def test_missing_files_are_named_and_not_fetched(tmp_path, offline):
    with pytest.raises(FileNotFoundError) as raised:
        frechet.fid(tmp_path, "cifar10", 32, "train", "clean", tmp_path)
    assert str(tmp_path / "inception-2015-12-05.pt") in str(raised.value)
    assert "cifar10_clean_train_32.npz" in str(raised.value)
    with pytest.raises(FileNotFoundError, match="pt_inception"):
        frechet.fid(tmp_path, "cifar10", 32, "train", "legacy_pytorch")


def test_statistics_are_read(tmp_path, offline, monkeypatch):
    write_folder(tmp_path / "images", 0)

    def extractor(x):
        return torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)

    found = frechet.folder_features(tmp_path / "images", extractor)
    file = tmp_path / "cifar10_clean_test_32.npz"
    np.savez(file, mu=found.mean(0) + np.array([3, 0, 4]), sigma=np.cov(found, rowvar=False))
    monkeypatch.setattr(frechet, "fid_files", lambda *_: (tmp_path, file))
    monkeypatch.setattr(frechet, "inception", lambda *_: extractor)
    distance = frechet.fid(tmp_path / "images", "cifar10", 32, "test", "clean")
    assert distance == pytest.approx(25, rel=1e-3)


def test_energy_distance():
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [4.0]])
    assert float(distances.energy_distance(x, y)) == pytest.approx(2 * (1 + 4 + 1 + 2) / 4 - 2 - 3)
    same = torch.stack(
        [
            distances.energy_distance(features(50, 3, seed=s), features(50, 3, seed=s + 100))
            for s in range(40)
        ]
    )
    assert abs(float(same.mean())) < 3 * float(same.std()) / 40**0.5  # unbiased
    z = x.clone().requires_grad_()
    distances.energy_distance(z, y).backward()
    assert torch.isfinite(z.grad).all() and z.grad.any()
    with pytest.raises(ValueError, match="samples"):
        distances.energy_distance(x[:1], y)


def test_sliced_distance_of_a_shift():
    x, generator = features(500, 2), torch.Generator().manual_seed(0)
    shift = torch.tensor([3.0, 4.0])
    assert distances.sliced_w2(x, x[torch.randperm(500)], generator) == pytest.approx(0, abs=1e-6)
    found = distances.sliced_w2(x, x + shift, torch.Generator().manual_seed(0), directions=2000)
    assert found == pytest.approx(
        5 / 2**0.5, rel=0.05
    )  # a direction in the plane sees half of |shift|^2
    with pytest.raises(ValueError, match="y"):
        distances.sliced_w2(x, x[1:], generator)


def test_nearest():
    x, y = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    assert distances.nearest(x, y).tolist() == [1.0, 0.0]
