"""The manifest beside a chapter's tables: which parameters, code and machine made them."""

import hashlib
import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fieldbook.run import paths

KINDS = {"parameters": dict, "status": str, "wall_s": int | float, "csv_sha256": dict}


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest in a folder of results; {} if there is none, or it is damaged."""
    try:
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    entries = {"csv_sha256": {}, **found}
    whole = all(isinstance(entries.get(name), kind) for name, kind in KINDS.items())
    return found if whole else {}


def provenance() -> dict[str, Any]:
    """Versions, device and git revision of this process."""
    versions = {"python": platform.python_version()}
    for name in ("fieldbook", "torch", "numpy", "pandas", "scipy"):
        versions[name] = metadata.version(name)
    device = f"cpu ({torch.backends.cpu.get_cpu_capability()})"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    changes = _git("status", "--porcelain", "--", "lib", "book")
    dirty = None if changes is None else bool(changes)
    git = {"revision": _git("rev-parse", "HEAD"), "dirty": dirty}
    return {"versions": versions, "device": device, "git": git}


def _git(*arguments: str) -> str | None:
    """What git prints in fieldbook's own checkout; None without git, or outside of one."""
    if not paths.is_checkout():
        return None
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=paths.ROOT, capture_output=True, encoding="utf-8", check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
