"""Which code, on which machine, made a result."""

import ast
import hashlib
import inspect
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fieldbook.nn.identity import code, described
from fieldbook.run import paths

LIBRARY = Path(__file__).resolve().parents[1]
PLUMBING = {"fieldbook.nn.checkpoints", "fieldbook.nn.identity", "fieldbook.nn.workers"}
PLUMBING |= {
    f"fieldbook.run.{name}"
    for name in ("figures", "parameters", "paths", "provenance", "results", "tables")
}


def provenance() -> dict[str, Any]:
    """Versions, device and git revision of this process."""
    cuda = torch.cuda.is_available()
    packages = ("fieldbook", "torch", "numpy", "pandas", "scipy")
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in packages},
        },
        "device": torch.cuda.get_device_name()
        if cuda
        else f"cpu ({torch.backends.cpu.get_cpu_capability()})",
        "git": {
            "revision": _git("rev-parse", "HEAD"),
            "dirty": None
            if (changes := _git("status", "--porcelain", "--", "lib", "book")) is None
            else bool(changes),
        },
    }


def _git(*arguments: str) -> str | None:
    """What git prints; None without git, or outside a repository."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=paths.ROOT, capture_output=True, encoding="utf-8", check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def source_hash(uses: Iterable[Any]) -> str:
    """Hash of the code that makes rows, under every Python; comments and docstrings do not count.

    Args:
        uses: modules of fieldbook, with all of fieldbook that they import but for the plumbing
            that only moves rows and files, and with the tables (CSV) beside a module that reads
            package data; any other thing as `fieldbook.nn.identity.described` tells it.
    Raises:
        ValueError: there is no source, or a value has nothing to be known by.
    """
    parts: dict[str, str] = {}
    waiting = []
    for use in uses:
        module = use.__name__ if inspect.ismodule(use) else getattr(use, "__module__", None) or ""
        if ours := module.startswith("fieldbook."):
            if not _file_of(module):
                raise ValueError(
                    f"{module} has no source in {LIBRARY}; install fieldbook with its .py files"
                )
            waiting.append(module)
        if not ours or not (
            inspect.isroutine(use) or inspect.isclass(use) or inspect.ismodule(use)
        ):
            own = parts[f"use {len(parts)}"] = described(use)
            waiting += _imported(own) if inspect.ismodule(use) else []
    while waiting:
        name = waiting.pop()
        file = _file_of(name)
        if name in parts or name in PLUMBING or file is None:
            continue
        source = file.read_text(encoding="utf-8")
        parts[name], imported = code(source), _imported(source)
        if "importlib.resources" in imported:
            tables = sorted(file.parent.glob("*.csv"))
            parts |= {f"table {table.name}": table.read_text(encoding="utf-8") for table in tables}
        waiting += imported
    return hashlib.sha256(
        "\n".join(f"{name}\n{parts[name]}" for name in sorted(parts)).encode()
    ).hexdigest()[:16]


def _file_of(name: str) -> Path | None:
    """The file of a module of fieldbook, without importing it; None if there is none."""
    top, *rest = name.split(".")
    place = LIBRARY.joinpath(*rest)
    files = (place.with_suffix(".py"), place / "__init__.py")
    return next((file for file in files if top == "fieldbook" and file.is_file()), None)


def _imported(source: str) -> list[str]:
    """The modules that a source may import."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found
