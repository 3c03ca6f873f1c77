"""Reads weights that a PyTorch Lightning module saved, without running any code that the file may hold."""

from pathlib import Path

import torch
from torch import Tensor, nn

PREFIX = "model."


def load_lightning(model: nn.Module, path: Path) -> None:
    """Load the weights of a Lightning checkpoint, whose module keeps the network as `self.model`.

    The map of keys is this prefix alone: `state_dict` holds `model.<name>` for each name in the network's own state
    dict, in `BlindSpotUNet` `encoders.{i}`, `decoders_a.{i}`, `decoders_b.{i}` and `nin_layers.{i}`, each with
    `.conv.{weight,bias}` and `.bn.{weight,bias,running_mean,running_var,num_batches_tracked}`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds more than tensors and plain values, or does not fit the network: then
            all unknown keys, missing keys and wrong shapes are listed. The network is left as it was.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; correct the path")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways
        raise ValueError(
            f"{path} is damaged or holds more than tensors and plain values, which is not run here ({error}); "
            "save its 'state_dict' alone, where you trust the file"
        ) from error
    weights = saved.get("state_dict") if isinstance(saved, dict) else None
    if not isinstance(weights, dict):
        raise ValueError(f"{path} has no dictionary 'state_dict'; expected a checkpoint of PyTorch Lightning")
    ours = {PREFIX + name: tuple(t.shape) for name, t in model.state_dict().items()}
    theirs = {name: tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for name, t in weights.items()}
    differences = [
        *(f"unknown {name}" for name in theirs.keys() - ours.keys()),
        *(f"missing {name}" for name in ours.keys() - theirs.keys()),
        *(f"{n} is {theirs[n]}, expected {ours[n]}" for n in ours.keys() & theirs.keys() if theirs[n] != ours[n]),
    ]
    if differences:
        raise ValueError(f"{path} does not fit the network:\n  " + "\n  ".join(sorted(differences)))
    model.load_state_dict({name.removeprefix(PREFIX): t for name, t in weights.items()})
