"""A private copy of the checkout in which the book's commands may run without touching anyone's
results."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = ("Makefile", "Snakefile", "_toc.yml", "pyproject.toml", "constraints.txt")
FOLDERS = {
    name: () for name in ("book", ".jupyter", "lib", "parameters", "profiles")
}  # folder -> what is left out
FOLDERS |= {"data": ("inputs", "quick"), "figures": ("quick",)}


def copy_checkout(target: Path) -> Path:
    """The tracked parts that the book is made of, and this interpreter's environment as its
    `.venv`."""
    for name in FILES:
        shutil.copy2(ROOT / name, target / name)
    for name, left_out in FOLDERS.items():
        ignored = shutil.ignore_patterns(
            "__pycache__", "*.egg-info", ".ipynb_checkpoints", "*.lock", *left_out
        )
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    environment = target / ".venv"
    environment.mkdir()
    for item in Path(sys.prefix).iterdir():
        (environment / item.name).symlink_to(item)
    (environment / ".installed").unlink(missing_ok=True)
    (environment / ".installed").touch()
    return target


def environment_of(checkout: Path) -> dict[str, str]:
    """This process's environment, but for a copied checkout, which imports its own library and has
    its own results."""
    private = ("FIELDBOOK_", "PYTEST", "MAKE", "MFLAGS", "PROFILE")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(private)}
    inherited["PYTHONPATH"] = str(checkout / "lib")
    inherited["PATH"] = f"{checkout / '.venv/bin'}:{os.environ['PATH']}"
    return inherited


def run(
    command: str, checkout: Path, timeout: float = 900, **environment: str
) -> subprocess.CompletedProcess:
    """A bash command in a copied checkout."""
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=checkout,
        env=environment_of(checkout) | environment,
        text=True,
        capture_output=True,
        timeout=timeout,
    )


def succeed(command: str, checkout: Path, timeout: float = 900, **environment: str) -> str:
    """`run`, and the end of its output when it fails."""
    done = run(command, checkout, timeout, **environment)
    if done.returncode:
        pytest.fail(f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}", pytrace=False)
    return done.stdout + done.stderr
