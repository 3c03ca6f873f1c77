"""Reads weights that a PyTorch Lightning module saved, without running code of the file's."""

import pickle
import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from fieldbook.nn.checkpoints import TORCH, kind_of

PREFIX = "model."


def load_lightning(model: nn.Module, path: Path) -> None:
    """Load the weights of a Lightning checkpoint, whose module keeps the network as `self.model`.

    `state_dict` holds `model.<name>` for each name in the network's own state dict, in
    `BlindSpotUNet` `encoders.{i}`, `decoders_a.{i}`, `decoders_b.{i}` and `nin_layers.{i}`, each
    with `.conv` and `.bn`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of another format, damaged, holds more than tensors and plain
            values, or does not fit the network, which is left as it was; lists all differences.
    """
    path = Path(path)
    saved = _read(path)
    weights = saved.get("state_dict") if isinstance(saved, dict) else None
    if not isinstance(weights, dict):
        expected = f"{{'state_dict': {{'{PREFIX}<name>': tensor, ..}}, ..}}, of PyTorch Lightning"
        raise ValueError(f"{path} has no dictionary 'state_dict'; expected {expected}")
    ours = {PREFIX + name: tuple(t.shape) for name, t in model.state_dict().items()}
    theirs = {name: _shape(value) for name, value in weights.items()}
    differences = [f"unknown {name}" for name in theirs.keys() - ours.keys()]
    for name, wanted in ours.items():
        if name not in theirs:
            differences.append(f"missing {name}")
        elif theirs[name] != wanted:
            differences.append(f"{name} is {theirs[name]}, expected {wanted}")
    if differences:
        raise ValueError("\n  ".join([f"{path} does not fit the network:", *sorted(differences)]))
    model.load_state_dict({name.removeprefix(PREFIX): t for name, t in weights.items()})


def _shape(value: object) -> object:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _read(path: Path) -> object:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; correct the path")
    if (kind := kind_of(path)) != TORCH:
        problem = f"is no checkpoint of PyTorch Lightning: it is {kind}; expected {TORCH}"
        raise ValueError(f"{path} {problem}")
    try:
        with open(path, "rb") as file:  # by its name, torch would take it for what it is called
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global) (\S+\.\S+)", str(error))
    except Exception:  # a damaged file fails in many ways
        found = None
    if not found or not zipfile.is_zipfile(path) or zipfile.ZipFile(path).testzip():
        raise ValueError(f"{path} is damaged; copy it again from where it was written")
    new = str(path.with_suffix(".plain.ckpt"))
    code = f'torch.load(open({str(path)!r}, "rb"), weights_only=False)["state_dict"]'
    remedy = f'run `torch.save({{"state_dict": {code}}}, {new!r})` and load {new}'
    more = f"holds more than tensors and plain values ({found.group(1)}), which is not run here"
    raise ValueError(f"{path} {more}; where you trust the file, {remedy}")
