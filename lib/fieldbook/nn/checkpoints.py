"""Files that are whole or absent: atomic writing, weights as safetensors, checkpoints of a training
run."""

import contextlib
import fcntl
import glob
import io
import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import safetensors.torch
import torch
from torch import Tensor, nn

from fieldbook.nn.checks import require

TORCH = "a file of torch.save"


def atomic_write(path: Path, writer: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all: under another name, flushed to disk, then renamed onto
    `path`.

    Unfinished files of the same path that an earlier kill has left are removed.

    Args:
        writer: called with the open binary file, e.g. `lambda file: file.write(data)`.
    Raises:
        OSError: writing failed (disk full, no permission); names the path, whose old content is
            intact.
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
        reason = (
            f"could not be written ({error.strerror or error}); what was there before is intact"
        )
        raise OSError(error.errno, reason, str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # already renamed, or a file system that is read-only
            partial.unlink()


def _sync(folder: Path) -> None:
    """Let a new name, too, survive a power cut, where the file system can do that to a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def cpu_copy(weights: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters and buffers by name, copied to the CPU; tied weights are copied apart."""
    copied = {}
    for name, t in (weights.state_dict() if isinstance(weights, nn.Module) else weights).items():
        require(
            isinstance(t, Tensor),
            name,
            type(t).__name__,
            "a tensor, as nothing else is kept with weights",
        )
        copied[name] = t.detach().to("cpu", copy=True).contiguous()
    return copied


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
        ValueError: it is of another format, or damaged; names the file and the remedy.
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
            new = str(
                path.with_suffix(
                    ".safetensors" if path.suffix != ".safetensors" else ".new.safetensors"
                )
            )
            code = (
                f"save_weights(torch.load(open({str(path)!r}, 'rb'), weights_only=True), {new!r})"
            )
            remedy = f"write its tensors anew: `{code}`, or delete it and train again"
        raise ValueError(
            f"{path} is not a readable safetensors file: it is {kind} ({error}); {remedy}"
        ) from error


def load_weights(model: nn.Module, path: Path) -> dict:
    """Load into a model what `save_weights` wrote, and return the facts beside it.

    Raises:
        FileNotFoundError, ValueError: as `read_weights`; or it does not fit the model.
    """
    weights, facts = read_weights(path)
    theirs, ours = (
        {name: tuple(t.shape) for name, t in w.items()} for w in (weights, model.state_dict())
    )
    if name := _first_difference(ours, theirs):
        found, wanted = theirs.get(name, "nothing"), ours.get(name, "nothing")
        raise ValueError(
            f"{path} does not fit the model: it has {found} for {name!r}, the model has {wanted}"
        )
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
    kinds = {b"PK": TORCH, b"\x80": TORCH, b"\x89HDF": "HDF5"}
    return next(
        (kind for start, kind in kinds.items() if head.startswith(start)),
        "no format that is known here",
    )


def save_checkpoint(content: dict, identity: dict[str, str], path: Path) -> None:
    """Write nested dicts and lists of tensors and plain values, with the identity of the run,
    atomically.

    Raises:
        OSError: the file could not be written; names the path, whose old content is intact.
    """
    buffer = io.BytesIO()  # torch.save straight onto a full disk would hide the reason
    torch.save({"identity": identity, "content": content}, buffer)
    atomic_write(path, lambda file: file.write(buffer.getbuffer()))


def load_checkpoint(path: Path, identity: dict[str, str]) -> dict | None:
    """Read what `save_checkpoint` wrote onto the CPU; None if there is no file.

    Unfinished files that a kill has left are removed from the folder. Two processes that train one
    network there at once do not harm each other: both come to the same weights.

    Raises:
        ValueError: the file is damaged, or its identity differs; names the file, the first
            difference and the remedy.
    """
    path = Path(path)
    _remove_unfinished(path.parent, ".*.tmp")
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        theirs, content = dict(saved["identity"]), dict(saved["content"])
    except (PermissionError, MemoryError):
        raise  # it may be whole
    except Exception as error:  # a damaged file fails in many ways
        raise ValueError(
            f"{path} is not a readable checkpoint ({error}); delete it to train from the start"
        ) from error
    if name := _first_difference(identity, theirs):
        found, wanted = theirs.get(name, "absent"), identity.get(name, "absent")
        remedy = "delete it to train from the start, or choose another folder"
        raise ValueError(
            f"{path} is of another run: {name} is {found} there, {wanted} here; {remedy}"
        )
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
