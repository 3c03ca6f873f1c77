"""What results are tied to: code without its prose, values and files by their content."""

import ast
import contextlib
import hashlib
import inspect
import io
import re
import sys
import textwrap
import tokenize
from collections.abc import Iterator, Mapping, Set
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any

import torch

LARGE = 2**26  # bytes of a file that is read whole
BLOCKS, BLOCK = 64, 2**16  # of a larger one, evenly spread
OTHERS = {"numpy", "torch", *sys.stdlib_module_names}  # whose constants are no choice of the caller


def digest(*values: Any) -> str:
    """Twelve hexadecimal digits that belong to these values, as `described` tells them."""
    return hashlib.sha256(described(values).encode()).hexdigest()[:12]


def code(source: str) -> str:
    """Source without comments, docstrings and blank lines: alike under every Python."""
    lines = source.split("\n")
    commented: set[int] = set()
    kept: set[int] = set()
    tree = ast.parse(source)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip()
            commented.add(row)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr):
            kept |= set(range(node.lineno, node.end_lineno + 1))  # in a text blank lines count
    raw = [line.encode() for line in lines]  # as the tree counts bytes
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str):
            first, last = node.lineno, node.end_lineno
            tail = raw[last - 1][node.end_col_offset :]
            head = raw[first - 1][: node.col_offset]
            raw[first - 1 : last] = [head + tail, *[b""] * (last - first)]
            kept -= set(range(first, last + 1))
    rows = enumerate((line.decode() for line in raw), 1)
    return "\n".join(line for row, line in rows if line.strip() or row in kept - commented)


def described(value: Any) -> str:
    """A text that tells a value from others: arrays by content, functions by code.

    Raises:
        ValueError: it is known by its address alone.
    """
    if isinstance(value, float):
        return float.__repr__(value)  # of NumPy's, too
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{described(k)}: {described(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(described, value))}]"
    if isinstance(value, Set):
        return f"{{{', '.join(sorted(map(described, value)))}}}"
    if isinstance(value, partial):
        return described([value.func, value.args, value.keywords])
    if inspect.isfunction(value) or inspect.ismodule(value) or inspect.isclass(value):
        return _source(value)
    if inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}"
    if hasattr(value, "to_csv"):
        return value.to_csv()
    if hasattr(value, "detach") or hasattr(value, "__array__"):
        return _array(value)
    if hasattr(value, "__dataclass_fields__"):
        return f"{type(value).__qualname__}{described(vars(value))}"
    text = repr(value)
    if re.search(r" at 0x[0-9a-f]+", text):
        problem = f"{text} is known by its address alone, which the next run does not have"
        remedy = "pass what determines it: numbers, texts, arrays, functions, a dataclass of those"
        raise ValueError(f"{problem}; {remedy}")
    return text


def _source(thing: Any) -> str:
    """The code of a function, a class or a module; raises ValueError where there is none."""
    try:
        source = textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError) as error:
        remedy = "define it in a file or in a cell"
        raise ValueError(f"the source of {thing!r} cannot be read ({error}); {remedy}") from error
    try:
        return code(source)
    except (SyntaxError, tokenize.TokenError):  # the line of a lambda, say
        return source


def _array(value: Any) -> str:
    if hasattr(value, "detach"):  # of torch, which has types that NumPy lacks
        flat = value.detach().cpu().contiguous().flatten()
        content = flat.view(torch.uint8).numpy() if flat.numel() else b""
    else:
        import numpy as np

        value = np.asarray(value)
        if value.dtype == object:
            return described(value.tolist())
        content = np.ascontiguousarray(value).reshape(-1).view(np.uint8) if value.size else b""
    found = hashlib.sha256()
    for start in _places(len(content)):
        found.update(content[start : start + BLOCK])
    return f"{tuple(value.shape)} {value.dtype} {found.hexdigest()}"


def _places(size: int) -> range:
    """Where blocks begin: all of them, or of a large thing some, evenly spread."""
    return range(0, size, BLOCK if size <= LARGE else size // BLOCKS)


def content_of(path: Path) -> str:
    """Digest of a file, through links; of a large one, of some blocks, with its size and time."""
    status = Path(path).stat()
    found = hashlib.sha256()
    with open(path, "rb") as file:
        for start in _places(status.st_size):
            file.seek(start)
            found.update(file.read(BLOCK))
    if status.st_size <= LARGE:
        return found.hexdigest()
    return f"{found.hexdigest()} {status.st_size} {status.st_mtime_ns}"


def structure_of(model: "torch.nn.Module") -> dict[str, str]:
    """A network beside its trained weights: the class and settings of each module, constants."""
    found = {}
    for name, module in model.named_modules():
        public = {k: v for k, v in vars(module).items() if k[0] != "_" and k != "training"}
        settings = {name: _told(value) for name, value in public.items()}
        found[f"module {name or 'itself'}"] = f"{type(module).__qualname__} {settings}"
    frozen = {name: w for name, w in model.named_parameters() if not w.requires_grad}
    constants = {**dict(model.named_buffers()), **frozen}
    return found | {f"initial {name}": described(tensor) for name, tensor in constants.items()}


def constants_of(function: Any, seen: Set[Any] = frozenset()) -> dict[str, str]:
    """The arrays and fractions that a function refers to, or a function it refers to, by name.

    Other things are left out: counters and lists change from call to call, weights are trained.
    """
    found = {}
    for name, value in referred(function):
        dataclass = not inspect.isclass(value) and getattr(value, "__dataclass_params__", None)
        array = hasattr(value, "__array__") and not getattr(value, "requires_grad", False)
        ours = inspect.isfunction(value) and value.__module__.partition(".")[0] not in OTHERS
        if isinstance(value, float) or array or (dataclass and dataclass.frozen):
            found[name] = _told(value)
        elif ours and value not in seen:
            found = constants_of(value, {*seen, function, value}) | found
    return found


def referred(function: Any) -> Iterator[tuple[str, Any]]:
    """Name and value of what a function's code can see: arrays by default, its closure, globals."""
    function = getattr(function, "__func__", function)
    if not inspect.isfunction(function):
        return
    parameters = inspect.signature(function).parameters.values()
    yield from ((p.name, p.default) for p in parameters if hasattr(p.default, "__array__"))
    yield from closed_over(function).items()
    visible = function.__globals__
    names = set().union(*(one.co_names for one in codes_of(function)))
    yield from ((name, visible[name]) for name in sorted(names) if name in visible)


def closed_over(function: Any) -> dict[str, Any]:
    """What a function has taken from the functions around it, by name."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # it is empty
            found[name] = cell.cell_contents
    return found


def codes_of(function: Any) -> list[CodeType]:
    """The compiled code of a function, and of all functions within it."""
    found = [function.__code__]
    for one in found:
        found += [constant for constant in one.co_consts if isinstance(constant, CodeType)]
    return found


def _told(value: Any) -> str:
    """As `described`; what has no content by its class, as a device has not."""
    try:
        return described(value) if not isinstance(value, torch.device) else "device"
    except ValueError:
        return getattr(value, "__qualname__", type(value).__qualname__)
