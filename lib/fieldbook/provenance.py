"""Which code, on which machine, made a result."""

import ast
import hashlib
import inspect
import platform
import subprocess
import textwrap
from collections.abc import Iterable
from importlib import metadata
from typing import Any

import torch

from fieldbook import paths

PLUMBING = {
    f"fieldbook.{name}"
    for name in ("checkpoints", "figures", "parameters", "paths", "provenance", "results", "tables", "workers")
}


def provenance() -> dict[str, Any]:
    """Versions, device and git revision of this process."""
    cuda = torch.cuda.is_available()
    packages = ("fieldbook", "torch", "numpy", "pandas", "scipy")
    return {
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
        "device": torch.cuda.get_device_name() if cuda else f"cpu ({torch.backends.cpu.get_cpu_capability()})",
        "git": {
            "revision": _git("rev-parse", "HEAD"),
            "dirty": None if (changes := _git("status", "--porcelain", "--", "lib", "book")) is None else bool(changes),
        },
    }


def _git(*arguments: str) -> str | None:
    """What git prints; None without git, or outside a repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=paths.ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def source_hash(uses: Iterable[Any]) -> str:
    """Hash of the code that makes rows; comments and docstrings do not count.

    Args:
        uses: modules of fieldbook, taken with all of fieldbook that they import but for the plumbing that only moves
            rows and files, and with the tables (CSV) beside a module that reads package data; functions of a notebook;
            any other value by its repr.
    """
    parts: dict[str, str] = {}
    waiting = []
    for use in uses:
        module = use.__name__ if inspect.ismodule(use) else getattr(use, "__module__", None) or ""
        if module.startswith("fieldbook."):
            waiting.append(module)
        else:
            code = _normalised(textwrap.dedent(inspect.getsource(use)))[0] if inspect.isfunction(use) else repr(use)
            parts[f"use {len(parts)}"] = code
    while waiting:
        name = waiting.pop()
        file = paths.ROOT / "lib" / f"{name.replace('.', '/')}.py"
        if name in parts or name in PLUMBING or not name.startswith("fieldbook.") or not file.exists():
            continue
        parts[name], imported = _normalised(file.read_text(encoding="utf-8"))
        if "importlib.resources" in imported:
            parts |= {f"table {table.name}": table.read_text(encoding="utf-8") for table in file.parent.glob("*.csv")}
        waiting += imported
    return hashlib.sha256("\n".join(f"{name}\n{parts[name]}" for name in sorted(parts)).encode()).hexdigest()[:16]


def _normalised(code: str) -> tuple[str, list[str]]:
    """Code without comments and docstrings, and the modules it may import."""
    tree, imported = ast.parse(code), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom) and node.module:
            imported += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_text(body[0]):
            node.body = body[1:] or [ast.Pass()]
    return ast.unparse(tree), imported


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
