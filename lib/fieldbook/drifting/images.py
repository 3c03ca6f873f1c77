"""Small labelled images as tensors: digits from scikit-learn, MNIST and CIFAR-10 from files.
Nothing is downloaded.

torchvision's readers leave MNIST unchecked, want it unpacked, and load any pickle: these parsers
are no longer.
"""

import gzip
import hashlib
import io
import math
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
    "train-images-idx3-ubyte.gz": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
}
CIFAR10 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
"""Files of the data sets as their authors distribute them, and MD5 sums of what they hold,
unpacked."""


class Images(NamedTuple):
    """Training and held-out images (n, channels, height, width) in [-1, 1], with labels (n,)
    int64."""

    train: Tensor
    train_label: Tensor
    test: Tensor
    test_label: Tensor

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.train_label.max()) + 1


def digits(seed: int = 0) -> Images:
    """The 1,797 scanned digits of 8 x 8 pixels that scikit-learn ships: 50 of each class held out,
    1,297 to train.

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
    """MNIST from its four idx files, packed or not, 28 x 28.

    Args:
        folder: holds the files named in `MNIST`; `sums`: MD5 sums of their content, packed or not.
    Raises:
        FileNotFoundError: a file is missing; lists all names.
        ValueError: wrong checksum or magic number, or content that cannot be; names the file.
    Source: LeCun et al. 1998 (doi:10.1109/5.726791).
    """
    paths = [Path(folder) / name for name in MNIST]
    axes = zip(paths, (3, 1, 3, 1), strict=True)
    x, y, x_test, y_test = (_idx(path, _content(path, sums), count) for path, count in axes)
    train = _checked(x[:, None], y, (1, 28, 28), paths[1])
    return Images(*train, *_checked(x_test[:, None], y_test, (1, 28, 28), paths[3]))


def cifar10(folder: Path, sums: Mapping[str, str] = CIFAR10) -> Images:
    """CIFAR-10 from the batches of its Python version, 3 x 32 x 32.

    These files are pickles: opened only if the checksum is right, and of arrays alone.

    Arguments and errors are those of `mnist`, with the names in `CIFAR10`.

    Source: Krizhevsky 2009, Learning multiple layers of features from tiny images.
    """
    images, labels = zip(*(_batch(Path(folder) / name, sums) for name in CIFAR10), strict=True)
    return Images(torch.cat(images[:-1]), torch.cat(labels[:-1]), images[-1], labels[-1])


def _checked(
    x: Tensor, label: Tensor, shape: tuple[int, int, int], path: Path
) -> tuple[Tensor, Tensor]:
    """Bytes as images in [-1, 1], with labels from 0 to 9."""
    if x.dtype != torch.uint8 or x.shape != (len(label), *shape) or not len(label):
        found = f"{len(label)} labels for {tuple(x.shape)} images of {x.dtype}"
        accepted = f"(n, {', '.join(map(str, shape))}) bytes and n labels"
        raise ValueError(f"{path}: {found}; expected {accepted}")
    known = torch.isin(label, torch.arange(10))
    row = int(known.int().argmin())
    if not known[row]:
        raise ValueError(f"{path}: label {label[row].item()} in row {row}; expected 0 to 9")
    return x.float() / 127.5 - 1, label.long()


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1], clamped, to bytes."""
    return (x.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)


def _content(path: Path, sums: Mapping[str, str]) -> bytes:
    """What a file holds, unpacked, if its MD5 sum is as expected."""
    packed = path.is_file() and path.suffix == ".gz"
    file = path if packed else path.with_suffix("")
    if not file.is_file():
        names = f"{', '.join(sums)}, as the authors distribute them"
        raise FileNotFoundError(f"no file {path}; its folder must hold {names}")
    stored = file.read_bytes()
    try:
        content = gzip.decompress(stored) if packed else stored
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no whole gzip file ({error}); fetch it again") from None
    found, also = (
        hashlib.md5(data, usedforsecurity=False).hexdigest() for data in (content, stored)
    )
    if sums[path.name] not in (found, also):
        problem = "it is damaged, or of another data set: fetch it again"
        raise ValueError(f"{file}: MD5 sum {found}, expected {sums[path.name]}; {problem}")
    return content


def _idx(path: Path, raw: bytes, axes: int) -> Tensor:
    """An idx file of unsigned bytes."""
    magic = bytes((0, 0, 8, axes))
    if raw[:4] != magic:
        raise ValueError(
            f"{path}: magic number {raw[:4].hex()}, expected {magic.hex()}: unsigned bytes, {axes} axes"
        )
    header = 4 + 4 * axes
    shape = struct.unpack(f">{axes}I", raw[4:header]) if len(raw) >= header else None
    if shape is None or len(raw) == header or len(raw) - header != math.prod(shape):
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
    content = _content(path, sums)
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        x, label = torch.from_numpy(batch[b"data"]), torch.tensor(batch[b"labels"])
        return _checked(x.view(-1, 3, 32, 32), label, (3, 32, 32), path)
    except Exception as error:  # a damaged pickle fails in many ways
        raise ValueError(f"{path} is no CIFAR-10 batch ({type(error).__name__}: {error})") from None
