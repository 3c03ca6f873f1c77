"""Readers on files of the real formats written here; and what is wrong with a file is said."""

import gzip
import hashlib
import os
import pickle
import struct

import numpy as np
import pytest
import torch

from fieldbook.drifting import images, toys


def write_mnist(folder, n=7):
    rng, made = np.random.default_rng(0), {}
    for name, shape in zip(images.MNIST, ((n, 28, 28), (n,), (n, 28, 28), (n,)), strict=True):
        array = rng.integers(0, 10, shape, dtype=np.uint8)
        header = struct.pack(">HBB", 0, 8, len(shape)) + struct.pack(f">{len(shape)}I", *shape)
        (folder / name).write_bytes(gzip.compress(header + array.tobytes()))
        made[name] = array
    return made


def write_cifar(folder, n=4):
    rng, made = np.random.default_rng(0), {}
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    for name in list(images.CIFAR10)[:-1]:
        data = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
        labels = rng.integers(0, 10, n).tolist()
        batch = {"data": data, "labels": labels, "batch_label": "one", "filenames": ["x.png"] * n}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
        made[name] = data, labels
    return made


def sums(folder):
    """Of what the files hold, unpacked."""
    found = {}
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        content = gzip.decompress(content) if file.suffix == ".gz" else content
        found[file.name] = hashlib.md5(content).hexdigest()
    return found


def test_mnist(tmp_path):
    made = write_mnist(tmp_path)
    found = images.mnist(tmp_path, sums(tmp_path))
    x, y, _, y_test = made.values()
    assert found.train.shape == (7, 1, 28, 28)
    assert np.array_equal(images.to_uint8(found.train)[:, 0].numpy(), x)
    assert found.train_label.tolist() == y.tolist() and found.test_label.tolist() == y_test.tolist()


def test_cifar10(tmp_path):
    made = write_cifar(tmp_path)
    found = images.cifar10(tmp_path, sums(tmp_path))
    assert found.train.shape == (20, 3, 32, 32) and found.test.shape == (4, 3, 32, 32)
    data, labels = made["data_batch_2"]
    assert np.array_equal(images.to_uint8(found.train[4:8]).numpy(), data.reshape(4, 3, 32, 32))
    assert found.train_label[4:8].tolist() == labels


@pytest.mark.parametrize(
    ("read", "write"), [(images.mnist, write_mnist), (images.cifar10, write_cifar)]
)
def test_missing_and_changed_files(read, write, tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match="MD5"):
        read(tmp_path)  # not the authors' files
    good, first = sums(tmp_path), min(tmp_path.iterdir())
    first.unlink()
    with pytest.raises(FileNotFoundError, match=", ".join(good)):
        read(tmp_path, good)


def packed_again(folder, name):
    (folder / name).write_bytes(
        gzip.compress(gzip.decompress((folder / name).read_bytes()), 1, mtime=7)
    )


def unpacked(folder, name):
    (folder / name).with_suffix("").write_bytes(gzip.decompress((folder / name).read_bytes()))
    (folder / name).unlink()


@pytest.mark.parametrize("change", [packed_again, unpacked])
def test_mnist_is_known_by_its_content_however_packed(tmp_path, change):
    made = write_mnist(tmp_path)
    contents = {name: gzip.decompress((tmp_path / name).read_bytes()) for name in images.MNIST}
    good = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    for name in images.MNIST:
        change(tmp_path, name)
    assert images.mnist(tmp_path, good).train_label.tolist() == list(made.values())[1].tolist()


def other_mnist(part, array):
    """Another array for one of the four files."""
    name = list(images.MNIST)[part]

    def write(folder):
        header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(
            f">{array.ndim}I", *array.shape
        )
        (folder / name).write_bytes(gzip.compress(header + array.astype("u1").tobytes()))

    return write


def other_batch(**changes):
    def write(folder):
        batch = {"data": np.zeros((4, 3072), "u1"), "labels": [0, 1, 2, 3]}
        batch |= changes
        (folder / "data_batch_3").write_bytes(pickle.dumps(batch, protocol=2))

    return write


@pytest.mark.parametrize(
    ("read", "write", "change", "words"),
    [
        (
            images.mnist,
            write_mnist,
            other_mnist(1, np.array([0, 1, 2, 10, 4, 5, 6])),
            ["label 10 in row 3", "0 to 9"],
        ),
        (
            images.mnist,
            write_mnist,
            other_mnist(3, np.arange(6)),
            ["t10k-labels", "6 labels for (7, 1, 28, 28)"],
        ),
        (
            images.mnist,
            write_mnist,
            other_mnist(0, np.ones((7, 32, 32))),
            ["(7, 1, 32, 32)", "(7, 1, 28, 28)"],
        ),
        (
            images.mnist,
            write_mnist,
            other_mnist(0, np.ones((0, 28, 28))),
            ["train-images", "no whole idx file"],
        ),
        (
            images.cifar10,
            write_cifar,
            other_batch(labels=[0, 1, -1, 3]),
            ["label -1 in row 10", "0 to 9"],
        ),
        (
            images.cifar10,
            write_cifar,
            other_batch(labels=[0, 1, 2.5, 3]),
            ["label 2.5 in row 10", "0 to 9"],
        ),
        (
            images.cifar10,
            write_cifar,
            other_batch(labels=[0, 1, 2]),
            ["19 labels for (20, 3, 32, 32)"],
        ),
        (images.cifar10, write_cifar, other_batch(data=np.zeros((4, 3072))), ["float64", "bytes"]),
        (
            images.cifar10,
            write_cifar,
            other_batch(data=np.zeros((4, 3071), "u1")),
            ["no CIFAR-10 batches"],
        ),
    ],
)
def test_labels_and_shapes_that_cannot_be_are_refused(tmp_path, read, write, change, words):
    write(tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=str(tmp_path)) as caught:
        read(tmp_path, sums(tmp_path))
    assert not [word for word in words if word not in str(caught.value)], caught.value


def damaged(folder, name, change):
    raw = change(gzip.decompress((folder / name).read_bytes()))
    (folder / name).write_bytes(gzip.compress(raw))
    return sums(folder)


@pytest.mark.parametrize(
    "change",
    [lambda raw: b"\0\0\x0b\x03" + raw[4:], lambda raw: raw[:-5], lambda raw: raw[:9]],
    ids=["magic number", "shape", "header"],
)
def test_damaged_idx_files(change, tmp_path):
    write_mnist(tmp_path)
    good, name = sums(tmp_path), next(iter(images.MNIST))
    others = damaged(tmp_path, name, change)
    with pytest.raises(ValueError, match=f"{name}.*no whole idx file of bytes"):
        images.mnist(tmp_path, others)
    (tmp_path / name).write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=f"{name} is no whole gzip file"):
        images.mnist(tmp_path, good)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("content", [pickle.dumps({"data": 1}), b"short", pickle.dumps(Evil())])
def test_damaged_or_hostile_batches_are_not_opened(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "batches"
    folder.mkdir()
    write_cifar(folder)
    good = sums(folder)
    (folder / "data_batch_3").write_bytes(content)
    with pytest.raises(ValueError, match=r"data_batch_3: MD5 sum"):
        images.cifar10(folder, good)
    assert not (tmp_path / "evil").exists()


def test_digits_are_split_by_class():
    d = images.digits()
    assert len(d.train) == 1297 and d.classes == 10 and d.train.shape[1:] == (1, 8, 8)
    assert d.test_label.bincount().tolist() == [50] * 10
    assert d.train.min() == -1 and d.train.max() == 1
    seen = {x.numpy().tobytes() for x in d.train}
    assert sum(x.numpy().tobytes() in seen for x in d.test) == 0
    assert torch.equal(d.train, images.digits().train) and not torch.equal(
        d.train[:99], images.digits(seed=1).train[:99]
    )


@pytest.mark.parametrize("name", toys.TOYS)
def test_toys_are_standardised(name):
    x = toys.TOYS[name](20_000, torch.Generator().manual_seed(0))
    assert x.shape == (20_000, 2)
    assert x.mean(0).abs().max() < 0.06 and (x.std(0) - 1).abs().max() < 0.05


def test_checkerboard_leaves_half_the_board_empty():
    x = toys.checkerboard(5000, torch.Generator().manual_seed(0)) * (4 / 3) ** 0.5 + 2
    cell = x.floor()
    assert (cell.sum(1) % 2 == 0).all() and len(cell.unique(dim=0)) == 8
