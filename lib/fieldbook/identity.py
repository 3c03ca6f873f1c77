"""What things are, so that results are tied to all of it: code without its prose, values, files by their content."""

import ast
import hashlib
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Mapping, Set
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

LARGE = 2**26  # bytes of a file that is read whole
BLOCKS, BLOCK = 64, 2**16  # of a larger one, evenly spread


def digest(*values: Any) -> str:
    """Twelve hexadecimal digits that belong to these values, as `described` tells them."""
    return hashlib.sha256(described(values).encode()).hexdigest()[:12]


def code(source: str) -> str:
    """Source text without comments, texts that are statements, and blank lines: alike under every Python."""
    lines, commented, kept = source.split("\n"), set(), set()
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
            raw[first - 1 : last] = [raw[first - 1][: node.col_offset] + tail, *[b""] * (last - first)]
            kept -= set(range(first, last + 1))
    rows = enumerate((line.decode() for line in raw), 1)
    return "\n".join(line for row, line in rows if line.strip() or row in kept - commented)


def described(value: Any) -> str:
    """A text that differs if the value does, and is the same in every process: arrays by content, functions by code.

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
        remedy = "pass what determines it: numbers, texts, arrays, functions, or a dataclass of those"
        raise ValueError(f"{text} is known by its address alone, which the next run does not have; {remedy}")
    return text


def _source(thing: Any) -> str:
    """The code of a function, a class or a module.

    Raises:
        ValueError: there is none to be read; names it.
    """
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
        content = np.ascontiguousarray(value)
    return f"{tuple(value.shape)} {value.dtype} {hashlib.sha256(content).hexdigest()}"


def content_of(path: Path) -> str:
    """What tells a file from any other, through links: its digest; of a large one size, time and a sample of blocks."""
    status, found = Path(path).stat(), hashlib.sha256()
    with open(path, "rb") as file:
        if status.st_size <= LARGE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        step = (status.st_size - BLOCK) // (BLOCKS - 1)
        for place in accumulate([step] * (BLOCKS - 1), initial=0):
            file.seek(place)
            found.update(file.read(BLOCK))
    return f"{found.hexdigest()} {status.st_size} {status.st_mtime_ns}"
