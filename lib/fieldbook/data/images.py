"""Small labelled images as tensors: digits from scikit-learn, MNIST and CIFAR-10 from files. Nothing is downloaded."""

import gzip
import hashlib
import io
import pickle
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MNIST = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
CIFAR10 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
"""File names and MD5 sums of the data sets as their authors distribute them."""


class Images(NamedTuple):
    """Training and held-out images (n, channels, height, width) in [-1, 1], with labels (n,) int64."""

    train: Tensor
    train_label: Tensor
    test: Tensor
    test_label: Tensor

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.train_label.max()) + 1


def digits(seed: int = 0) -> Images:
    """The 1,797 scanned digits of 8 x 8 pixels that scikit-learn ships: 50 of each class held out, 1,297 to train.

    Source: Alpaydin & Kaynak 1998 (doi:10.24432/C50P49).
    """
    from sklearn.datasets import load_digits

    loaded = load_digits()
    x = torch.from_numpy(loaded.images).float()[:, None] / 8 - 1
    label = torch.from_numpy(loaded.target).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    held = torch.cat([order[label[order] == c][:50] for c in range(10)])
    train = torch.ones(len(x), dtype=torch.bool).index_fill_(0, held, False)
    return Images(x[train], label[train], x[held], label[held])


def mnist(folder: Path, sums: Mapping[str, str] = MNIST) -> Images:
    """MNIST from its four idx files, 28 x 28.

    Args:
        folder: holds the files named in `MNIST`; `sums`: their MD5 sums.
    Raises:
        FileNotFoundError: a file is missing; lists all names.
        ValueError: wrong checksum or magic number, or a file too short; names it.
    Source: LeCun et al. 1998 (doi:10.1109/5.726791).
    """
    parts = []
    for name, axes in zip(MNIST, (3, 1, 3, 1), strict=True):
        path = Path(folder) / name
        parts.append(_idx(path, _checked(path, sums), axes))
    x, y, x_test, y_test = parts
    return Images(_scaled(x[:, None]), y.long(), _scaled(x_test[:, None]), y_test.long())


def cifar10(folder: Path, sums: Mapping[str, str] = CIFAR10) -> Images:
    """CIFAR-10 from the batches of its Python version, 3 x 32 x 32.

    These files are pickles: they are opened only if the checksum is right, and may contain arrays and nothing else.

    Args, Raises: as in `mnist`, with the names in `CIFAR10`.
    Source: Krizhevsky 2009, Learning multiple layers of features from tiny images.
    """
    images, labels = zip(*(_batch(Path(folder) / name, sums) for name in CIFAR10), strict=True)
    return Images(_scaled(torch.cat(images[:-1])), torch.cat(labels[:-1]), _scaled(images[-1]), labels[-1])


def _scaled(x: Tensor) -> Tensor:
    return x.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1], clamped, to bytes."""
    return (x.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)


def _checked(path: Path, sums: Mapping[str, str]) -> bytes:
    """Content of a file whose MD5 sum is as expected."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {path}; its folder must hold {', '.join(sums)}, as the authors distribute them"
        )
    content = path.read_bytes()
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != sums[path.name]:
        raise ValueError(f"{path}: MD5 sum {found}, expected {sums[path.name]}; the file is damaged: fetch it again")
    return content


def _idx(path: Path, content: bytes, axes: int) -> Tensor:
    """An idx file of unsigned bytes."""
    try:
        raw = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no whole gzip file ({error})") from None
    magic = bytes((0, 0, 8, axes))
    if raw[:4] != magic:
        raise ValueError(f"{path}: magic number {raw[:4].hex()}, expected {magic.hex()}: unsigned bytes, {axes} axes")
    header = 4 + 4 * axes
    shape = struct.unpack(f">{axes}I", raw[4:header]) if len(raw) >= header else None
    if shape is None or len(raw) - header != np.prod(shape, dtype=np.int64):
        raise ValueError(f"{path}: {len(raw)} bytes do not hold the shape {shape} of its header")
    return torch.frombuffer(bytearray(raw[header:]), dtype=torch.uint8).view(shape)


class _ArraysOnly(pickle.Unpickler):
    ALLOWED = frozenset({("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")})

    def find_class(self, module: str, name: str) -> object:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np._core.multiarray._reconstruct
        if (module, name) in self.ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not an array")


def _batch(path: Path, sums: Mapping[str, str]) -> tuple[Tensor, Tensor]:
    content = _checked(path, sums)
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        x, label = torch.from_numpy(batch[b"data"]), torch.tensor(batch[b"labels"])
        return x.view(len(label), 3, 32, 32), label
    except Exception as error:  # a damaged pickle fails in many ways
        raise ValueError(f"{path} is no CIFAR-10 batch ({type(error).__name__}: {error})") from None
