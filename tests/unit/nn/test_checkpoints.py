"""Files that are whole or absent, weights with facts beside them, and files that are something
else."""

import errno
import os
import re
import stat

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from fieldbook.nn.checkpoints import (
    atomic_write,
    load_checkpoint,
    load_weights,
    read_weights,
    save_checkpoint,
    save_weights,
)
from fieldbook.nn.lightning import load_lightning


def network():
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def code_in(error):
    """The code that a message offers, run as it stands."""
    return re.search(r"`(.*)`", str(error.value), re.S).group(1)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EPERM, errno.EACCES])
@pytest.mark.parametrize("call", ["open", "fsync"])
def test_a_folder_that_cannot_be_synced_is_no_error_after_the_act(
    tmp_path, monkeypatch, code, call
):
    real = getattr(os, call)

    def refusing(thing, *arguments):
        if os.path.isdir(thing) if call == "open" else stat.S_ISDIR(os.fstat(thing).st_mode):
            raise OSError(code, os.strerror(code))
        return real(thing, *arguments)

    monkeypatch.setattr(os, call, refusing)
    atomic_write(tmp_path / "deep" / "x", lambda file: file.write(b"whole"))
    monkeypatch.undo()
    assert (tmp_path / "deep" / "x").read_bytes() == b"whole" and len(
        list((tmp_path / "deep").iterdir())
    ) == 1


def test_a_file_that_cannot_be_synced_is_an_error_and_the_old_one_stays(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"old")

    def failing(handle):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="before is intact"):
        atomic_write(tmp_path / "x", lambda file: file.write(b"new"))
    assert (tmp_path / "x").read_bytes() == b"old"


def test_facts_are_kept_beside_weights_and_do_not_change_them(tmp_path):
    save_weights(network(), tmp_path / "a")
    assert load_weights(network(), tmp_path / "a") == {}
    save_weights(network().state_dict(), tmp_path / "b", {"step": 3, "sizes": [1, 2]})
    weights, facts = read_weights(tmp_path / "b")
    assert facts == {"step": 3, "sizes": [1, 2]} and weights.keys() == network().state_dict().keys()


def test_what_is_no_tensor_is_refused_by_name(tmp_path):
    class Counting(nn.Linear):
        def get_extra_state(self):
            return {"calls": 3}

    with pytest.raises(ValueError, match="_extra_state = 'dict'"):
        save_weights(Counting(2, 2), tmp_path / "w")
    with pytest.raises(ValueError, match="epoch = 'int'"):
        save_weights({"a": torch.ones(2), "epoch": 4}, tmp_path / "w")
    assert not list(tmp_path.iterdir())


def hdf5(path):
    with h5py.File(path, "w") as file:
        file["x"] = np.ones(3)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_bytes(b""), "it is empty"),
        (hdf5, "it is HDF5"),
        (lambda path: path.write_text("accuracy,0.9\n"), "it is no format that is known here"),
        (lambda path: torch.save(network().state_dict(), path), "it is a file of torch.save"),
    ],
    ids=["empty", "HDF5", "words", "torch"],
)
@pytest.mark.parametrize("load", [load_weights, load_lightning])
def test_another_format_is_named(tmp_path, make, said, load):
    path = tmp_path / "weights.pt"
    make(path)
    if load is load_lightning and "torch" in said:
        said = "no dictionary 'state_dict'; expected {'state_dict': {'model.<name>'"
    with pytest.raises(ValueError, match=rf"weights\.pt .*{re.escape(said)}") as error:
        load(network(), path)
    assert "damaged" not in str(error.value)


def test_safetensors_are_no_lightning_checkpoint_and_damaged_ones_no_weights(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(network(), path)
    with pytest.raises(ValueError, match="no checkpoint of PyTorch Lightning: it is safetensors"):
        load_lightning(network(), path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(
        ValueError, match=r"it is safetensors, but damaged .*; restore it, or delete it and train"
    ):
        load_weights(network(), path)


def test_the_remedy_for_tensors_of_torch_save_works(tmp_path):
    theirs, ours, path = network(), network(), tmp_path / "epoch 3.safetensors"
    torch.save(theirs.state_dict(), path)
    with pytest.raises(ValueError, match="write its tensors anew") as error:
        load_weights(ours, path)
    exec(code_in(error), {"torch": torch, "save_weights": save_weights})
    load_weights(ours, tmp_path / "epoch 3.new.safetensors")
    assert torch.equal(ours[0].weight, theirs[0].weight)


class Hyper:
    """A class of the other program, which a file of weights must not need."""


def test_the_remedy_for_a_lightning_checkpoint_with_objects_works(tmp_path):
    theirs, ours, path = network(), network(), tmp_path / "it's.ckpt"
    weights = {f"model.{name}": t for name, t in theirs.state_dict().items()}
    torch.save({"state_dict": weights, "hyper_parameters": Hyper()}, path)
    with pytest.raises(
        ValueError, match=r"test_checkpoints\.Hyper\), which is not run here; where"
    ) as error:
        load_lightning(ours, path)
    exec(code_in(error), {"torch": torch})
    load_lightning(ours, tmp_path / "it's.plain.ckpt")
    assert torch.equal(ours[0].weight, theirs[0].weight)


def test_a_flipped_byte_is_damage_and_not_code(tmp_path):
    path = tmp_path / "epoch.ckpt"
    torch.save({"state_dict": {}, "words": "hello " * 50}, path)
    content = bytearray(path.read_bytes())
    content[content.index(b"hello") - 5] ^= 0xFF  # within the pickle
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"epoch\.ckpt is damaged; copy it again"):
        load_lightning(network(), path)


def test_a_checkpoint_that_may_not_be_read_is_not_to_be_deleted(tmp_path, monkeypatch):
    save_checkpoint({"a": 1}, {}, tmp_path / "last.pt")

    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "last.pt"))

    monkeypatch.setattr(torch, "load", denied)
    with pytest.raises(PermissionError):
        load_checkpoint(tmp_path / "last.pt", {})


def test_metadata_of_other_programs_is_no_fault(tmp_path):
    safetensors.torch.save_file(network().state_dict(), tmp_path / "w", {"format": "pt"})
    assert load_weights(network(), tmp_path / "w") == {}
