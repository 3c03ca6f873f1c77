"""Small labelled images as tensors: digits from scikit-learn, MNIST and CIFAR-10 from files.

torchvision reads the files, those alone whose content has the authors' checksum. Nothing is
downloaded.
"""

import gzip
import hashlib
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from fieldbook.drifting.compat import importable_torchvision

SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
"""Of an image (channels, height, width), by data set; each has ten classes."""

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
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
"""Files as their authors distribute them, and MD5 sums of what they hold, unpacked."""


class Images(NamedTuple):
    """Training and held-out images (n, c, h, w) in [-1, 1], with labels (n,) int64."""

    train: Tensor
    train_label: Tensor
    test: Tensor
    test_label: Tensor

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.train_label.max()) + 1


def digits(seed: int = 0) -> Images:
    """The 1,797 digits of 8 x 8 pixels of scikit-learn: 50 of each class held out, 1,297 to train.

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
        folder: holds the files named in `MNIST`; `sums`: MD5 sums of their content, unpacked.
    Raises:
        FileNotFoundError: a file is missing; lists all names.
        ValueError: wrong checksum, or content that cannot be; names the file.
    Source: LeCun et al. 1998 (doi:10.1109/5.726791).
    """
    paths = [Path(folder, name) for name in MNIST]
    x, label, x_test, label_test = (_idx(path, _content(path, sums)) for path in paths)
    train = _checked("mnist", x[:, None], label, paths[1])
    return Images(*train, *_checked("mnist", x_test[:, None], label_test, paths[3]))


def _idx(path: Path, content: bytes) -> Tensor:
    """The bytes in an idx file, which torchvision wants to find unpacked."""
    importable_torchvision()
    from torchvision.datasets import mnist

    read = mnist.read_image_file if "images" in path.name else mnist.read_label_file
    with tempfile.NamedTemporaryFile() as unpacked:
        unpacked.write(content)
        unpacked.flush()
        try:
            return read(unpacked.name)
        except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no whole idx file of bytes ({error!r})") from None


def cifar10(folder: Path, sums: Mapping[str, str] = CIFAR10) -> Images:
    """CIFAR-10 from the files of its Python version, 3 x 32 x 32.

    They are pickles, which can do anything: opened only if the checksum is right. Arguments and
    errors are those of `mnist`, with the names in `CIFAR10`.

    Source: Krizhevsky 2009, Learning multiple layers of features from tiny images.
    """
    importable_torchvision()
    from torchvision import datasets

    for name in CIFAR10:
        _content(Path(folder, name), sums)  # torchvision would not say which file is wrong

    class Batches(datasets.CIFAR10):
        base_folder = ""
        train_list = tuple((name, sums[name]) for name in list(CIFAR10)[:5])
        test_list = (("test_batch", sums["test_batch"]),)
        meta = datasets.CIFAR10.meta | {"md5": sums["batches.meta"]}

    parts = []
    for train in (True, False):
        try:
            part = Batches(folder, train=train)
            label = torch.tensor(part.targets)
        except Exception as error:  # a pickle of other things fails in many ways
            raise ValueError(f"{folder} holds no CIFAR-10 batches ({error!r})") from None
        x = rearrange(torch.from_numpy(part.data), "n h w c -> n c h w").contiguous()
        parts += _checked("cifar10", x, label, folder)
    return Images(*parts)


def _content(path: Path, sums: Mapping[str, str]) -> bytes:
    """What a file holds, unpacked, if its MD5 sum is as expected."""
    file = path if path.is_file() else path.with_suffix("")
    if not file.is_file():
        names = f"{', '.join(sums)}, as the authors distribute them"
        raise FileNotFoundError(f"no file {path}; its folder must hold {names}")
    content = file.read_bytes()
    try:
        content = gzip.decompress(content) if file.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no whole gzip file ({error}); fetch it again") from None
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if sums[path.name] != found:
        problem = "it is damaged, or of another data set: fetch it again"
        raise ValueError(f"{file}: MD5 sum {found}, expected {sums[path.name]}; {problem}")
    return content


def _checked(data: str, x: Tensor, label: Tensor, path: Path) -> tuple[Tensor, Tensor]:
    """Bytes as images in [-1, 1], with labels from 0 to 9."""
    shape = (len(label), *SHAPES[data])
    if x.dtype != torch.uint8 or x.shape != shape or not len(label):
        found = f"{len(label)} labels for {tuple(x.shape)} images of {x.dtype}"
        raise ValueError(f"{path}: {found}; expected {shape} bytes")
    known = torch.isin(label, torch.arange(10))
    row = int(known.int().argmin())
    if not known[row]:
        raise ValueError(f"{path}: label {label[row].item()} in row {row}; expected 0 to 9")
    return x.float() / 127.5 - 1, label.long()


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1], clamped, to bytes."""
    return (x.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
