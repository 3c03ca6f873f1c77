"""Files that are whole or absent: atomic writing, weights as safetensors, checkpoints of a training run."""

import contextlib
import fcntl
import glob
import io
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import safetensors.torch
import torch
from torch import Tensor, nn


def atomic_write(path: Path, writer: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all: under another name, flushed to disk, then renamed onto `path`.

    Unfinished files of the same path that an earlier kill has left are removed.

    Args:
        writer: called with the open binary file, e.g. `lambda file: file.write(data)`.
    Raises:
        OSError: writing failed (disk full, no permission); names the path, whose old content is intact.
    """
    path = Path(path)
    _remove_unfinished(path.parent, f".{glob.escape(path.name)}.*.tmp", age=60.0)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "xb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # says that this process is writing it, until it ends
            writer(file)
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too, survives a power cut
        finally:
            os.close(folder)
    except OSError as error:
        reason = f"could not be written ({error.strerror or error}); what was there before is intact"
        raise OSError(error.errno, reason, str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # already renamed, or a file system that is read-only
            partial.unlink()


def cpu_copy(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters and buffers by name, copied to the CPU; tied weights are copied apart."""
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in model.state_dict().items()}


def save_weights(weights: nn.Module | dict[str, Tensor], path: Path) -> None:
    """Write a model's parameters and buffers (or those of `cpu_copy`) as one safetensors file, atomically.

    Raises:
        OSError: the file could not be written; names the path.
    """
    weights = cpu_copy(weights) if isinstance(weights, nn.Module) else weights
    atomic_write(path, lambda file: file.write(safetensors.torch.save(weights)))


def load_weights(model: nn.Module, path: Path) -> None:
    """Load into a model what `save_weights` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or its names or shapes are not the model's; names the file and the first.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; train the model first, or correct the path")
    try:
        weights = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}); delete it and train again") from error
    theirs, ours = ({name: tuple(t.shape) for name, t in w.items()} for w in (weights, model.state_dict()))
    if name := _first_difference(ours, theirs):
        found, wanted = theirs.get(name, "nothing"), ours.get(name, "nothing")
        raise ValueError(f"{path} does not fit the model: it has {found} for {name!r}, the model has {wanted}")
    model.load_state_dict(weights)


def save_checkpoint(content: dict, identity: dict[str, str], path: Path) -> None:
    """Write nested dicts and lists of tensors and plain values, with the identity of the run, atomically.

    Raises:
        OSError: the file could not be written; names the path, whose old content is intact.
    """
    buffer = io.BytesIO()  # torch.save straight onto a full disk would hide the reason
    torch.save({"identity": identity, "content": content}, buffer)
    atomic_write(path, lambda file: file.write(buffer.getbuffer()))


def load_checkpoint(path: Path, identity: dict[str, str]) -> dict | None:
    """Read what `save_checkpoint` wrote onto the CPU; None if there is no file.

    Unfinished files that a kill has left are removed from the folder. Two processes that train one network there at
    once do not harm each other: both come to the same weights.

    Raises:
        ValueError: the file is damaged, or its identity differs; names the file, the first difference and the remedy.
    """
    path = Path(path)
    _remove_unfinished(path.parent, ".*.tmp")
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        theirs, content = dict(saved["identity"]), dict(saved["content"])
    except Exception as error:  # a damaged file fails in many ways
        raise ValueError(f"{path} is not a readable checkpoint ({error}); delete it to train from the start") from error
    if name := _first_difference(identity, theirs):
        found, wanted = theirs.get(name, "absent"), identity.get(name, "absent")
        remedy = "delete it to train from the start, or choose another folder"
        raise ValueError(f"{path} is of another run: {name} is {found} there, {wanted} here; {remedy}")
    return content


def _remove_unfinished(folder: Path, pattern: str, age: float = 0.0) -> None:
    """Remove what kills have left, not what another process has just made or is writing.

    Args:
        age: seconds since the last change; for files that HDF5 writes, whose own locks come and go.
    """
    for partial in folder.glob(pattern):
        with contextlib.suppress(OSError), open(partial, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(file.fileno())
            if status.st_size and time.time() - status.st_mtime >= age:
                partial.unlink()


def _first_difference(ours: dict, theirs: dict) -> str | None:
    return next((name for name in ours | theirs if ours.get(name) != theirs.get(name)), None)
