"""Files that are whole or absent: weights as safetensors, checkpoints of a training run."""

import contextlib
import fcntl
import glob
import io
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import safetensors.torch
import torch
from torch import Tensor, nn

from fieldbook.nn.checks import require

TORCH = "a file of torch.save"


def atomic_write(path: Path, writer: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all: under another name, flushed to disk, then renamed.

    Unfinished files of the same path that an earlier kill has left are removed.

    Args:
        writer: called with the open binary file, e.g. `lambda file: file.write(data)`.
    Raises:
        OSError: writing failed (disk full, no permission); the path's old content is intact.
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
        _sync(path.parent)
    except OSError as error:
        reason = error.strerror or error
        problem = f"could not be written ({reason}); what was there before is intact"
        raise OSError(error.errno, problem, str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # already renamed, or a file system that is read-only
            partial.unlink()


def _sync(folder: Path) -> None:
    """Let a new name, too, survive a power cut, where the file system can do that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def cpu_copy(weights: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters and buffers by name, copied to the CPU; tied weights are copied apart."""
    if isinstance(weights, nn.Module):
        weights = weights.state_dict()
    accepted = "a tensor, as nothing else is kept with weights"
    for name, t in weights.items():
        require(isinstance(t, Tensor), name, type(t).__name__, accepted)
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in weights.items()}


def save_weights(
    weights: nn.Module | Mapping[str, Tensor], path: Path, facts: Mapping | None = None
) -> None:
    """Write parameters and buffers as one safetensors file, atomically.

    Args:
        facts: what is to be known of them, as JSON can hold it, for `read_weights`.
    Raises:
        ValueError: something is no tensor; names it.
        OSError: the file could not be written; names the path.
    """
    metadata = {"facts": json.dumps(facts)} if facts is not None else None
    content = safetensors.torch.save(cpu_copy(weights), metadata)
    atomic_write(path, lambda file: file.write(content))


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors by name and the facts beside them, or {}, of what `save_weights` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another format, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; train the model first, or correct the path")
    try:
        with safetensors.safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118
    except (safetensors.SafetensorError, ValueError) as error:
        kind = kind_of(path)
        remedy = "restore it, or delete it and train again"
        if kind == TORCH:
            new = str(path.with_suffix(".new.safetensors"))
            read = f"torch.load(open({str(path)!r}, 'rb'), weights_only=True)"
            remedy = f"write its tensors anew: `save_weights({read}, {new!r})`, or train again"
        problem = f"{path} is not a readable safetensors file: it is {kind} ({error}); {remedy}"
        raise ValueError(problem) from error


def load_weights(model: nn.Module, path: Path) -> dict:
    """Load into a model what `save_weights` wrote, and return the facts beside it.

    Raises:
        FileNotFoundError, ValueError: as `read_weights`; or it does not fit the model.
    """
    weights, facts = read_weights(path)
    theirs = {name: tuple(t.shape) for name, t in weights.items()}
    ours = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    for name, found, wanted in _differences(theirs, ours, "nothing"):
        problem = f"it has {found} for {name!r}, the model has {wanted}"
        raise ValueError(f"{path} does not fit the model: {problem}")
    model.load_state_dict(weights)
    return facts


def kind_of(path: Path) -> str:
    """What the first bytes of a file say it is."""
    with open(path, "rb") as file:
        head = file.read(9)
    if not head:
        return "empty"
    if head[8:] == b"{":
        return "safetensors, but damaged"
    if head.startswith((b"PK", b"\x80")):
        return TORCH
    return "HDF5" if head.startswith(b"\x89HDF") else "no format that is known here"


def save_checkpoint(content: dict, identity: dict[str, str], path: Path) -> None:
    """Write nested dicts and lists of tensors and plain values, with the run's identity.

    Raises:
        OSError: the file could not be written; its old content is intact.
    """
    buffer = io.BytesIO()  # torch.save straight onto a full disk would hide the reason
    torch.save({"identity": identity, "content": content}, buffer)
    atomic_write(path, lambda file: file.write(buffer.getbuffer()))


def load_checkpoint(path: Path, identity: dict[str, str]) -> dict | None:
    """Read what `save_checkpoint` wrote onto the CPU; None if there is no file.

    Unfinished files that a kill has left are removed from the folder. Two processes that train one
    network there at once do not harm each other: both come to the same weights.

    Raises:
        ValueError: the file is damaged, or its identity differs; names the first difference.
    """
    path = Path(path)
    _remove_unfinished(path.parent, ".*.tmp")
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        theirs = dict(saved["identity"])
        content = dict(saved["content"])
    except (PermissionError, MemoryError):
        raise  # it may be whole
    except Exception as error:  # a damaged file fails in many ways
        problem = f"{path} is not a readable checkpoint ({error})"
        raise ValueError(f"{problem}; delete it to train from the start") from error
    for name, found, wanted in _differences(theirs, identity, "absent"):
        problem = f"{path} is of another run: {name} is {found} there, {wanted} here"
        remedy = "delete it to train from the start, or choose another folder"
        raise ValueError(f"{problem}; {remedy}")
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


def _differences(theirs: dict, ours: dict, absent: str) -> Iterator[tuple[str, object, object]]:
    for name in ours | theirs:
        found = theirs.get(name, absent)
        wanted = ours.get(name, absent)
        if found != wanted:
            yield name, found, wanted
