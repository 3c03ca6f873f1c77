"""Where everything lives: the only module that knows folders or reads the environment's variables.

papermill, nbval and JupyterLab run a notebook in different folders: no path is relative.
Whoever works in one checkout with the library of another, of a copied environment or one that is
active from elsewhere, is refused when this module is imported, before anything is read or written.
"""

import errno
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
"""The checkout: holds `book/`, `parameters/`, `data/` and `figures/`."""

RESULTS, FROZEN = "FIELDBOOK_RESULTS", "FIELDBOOK_FROZEN"
SIZES = ("paper", "evening", "laptop")
"""Profiles whose results are published, the largest first."""


def foreign() -> str | None:
    """Why this library must not run in the working directory, and what to do about it; None if it
    may."""
    folders = [Path.cwd(), *Path.cwd().parents]
    here = next(
        (folder for folder in folders if (folder / "lib/fieldbook/run/paths.py").is_file()), ROOT
    )
    if here == ROOT or os.environ.get(RESULTS, "").startswith(
        f"{ROOT}{os.sep}"
    ):  # that one is meant
        return None
    remedy = f"run `source '{here}/.venv/bin/activate'` first (`make` creates that environment)"
    if Path(sys.prefix).resolve() == (here / ".venv").resolve():
        remedy = (
            f"`rm -rf '{here}/.venv'`, which was made for that one, and let `make` create it anew"
        )
    if str(ROOT / "lib") in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        remedy = "unset PYTHONPATH, which names that library"
    problem = f"is one checkout of fieldbook, but the library that runs is that of {ROOT}"
    return f"{here} {problem}: {remedy}"


def results() -> Path:
    """Root under which results are written: `FIELDBOOK_RESULTS`, else `build/` of the checkout.

    Without a checkout, as from an installed wheel, it is the working directory. Only
    `fieldbook.run.publish` writes the checkout's own `data/` and `figures/`.

    Raises:
        ValueError: a relative path, which would be another folder for each tool.
        NotADirectoryError: a file.
    """
    named = os.environ.get(RESULTS, "").strip()
    folder = Path(os.path.expanduser(named)) if named else _default()
    if not folder.is_absolute():
        expected = (
            f"expected an absolute path such as {folder.absolute()}, ~ for the home, or nothing"
        )
        raise ValueError(f"{RESULTS} = {named!r}: {expected}")
    if file := next((above for above in [folder, *folder.parents] if above.is_file()), None):
        reason = f"a file where a folder is expected; set {RESULTS} elsewhere"
        raise NotADirectoryError(errno.ENOTDIR, reason, str(file))
    return folder.resolve()


def _default() -> Path:
    return ROOT / "build" if is_checkout() else Path.cwd()


def is_checkout() -> bool:
    """Is this library that of a checkout, and not an installed copy?"""
    return (ROOT / "book").is_dir() and (ROOT / "lib/fieldbook").is_dir()


def frozen() -> bool:
    """Whether rows may only be read (`FIELDBOOK_FROZEN=1`), of which claims and figures are made.

    Raises:
        ValueError: the variable is neither yes nor no.
    """
    value = os.environ.get(FROZEN, "").strip().lower()
    if value not in ("1", "true", "yes", "on", "0", "false", "no", "off", ""):
        raise ValueError(
            f"{FROZEN} = {value!r}: expected 1, true, yes or on, or 0, false, no, off or nothing"
        )
    return value in ("1", "true", "yes", "on")


def notebook(chapter: str) -> Path:
    """The chapter's notebook; its source is the paired `.py` beside it."""
    return ROOT / "book" / f"{chapter}.ipynb"


def data(chapter: str, profile: str) -> Path:
    """Folder of a chapter's CSVs and manifest."""
    return data_root() / "data" / chapter / one_folder(profile)


def data_root() -> Path:
    """Root under which rows are read: of the results, or of the published ones."""
    return ROOT if reads_published() else results()


def reads_published() -> bool:
    """Are rows the tracked ones: only to be read, and no folder of results named?"""
    return frozen() and not os.environ.get(RESULTS, "").strip()


def figures(chapter: str, profile: str) -> Path:
    """Folder of a chapter's PDF and PNG figures."""
    return results() / "figures" / chapter / one_folder(profile)


def inputs(chapter: str, profile: str) -> Path:
    """Folder of a chapter's checkpoints and synthesised inputs (never tracked)."""
    return results() / "data" / "inputs" / chapter / one_folder(profile)


def one_folder(profile: str) -> str:
    """The profile, unless it would lead out of the results: stale folders are moved, hence must be
    our own.

    Raises:
        ValueError: it is not the name of one folder.
    """
    if not re.fullmatch(r"\w[\w.-]*", profile):
        raise ValueError(
            f"profile = {profile!r}: expected the name of one folder, of letters, digits, _ . -"
        )
    return profile


if _problem := foreign():
    raise (SystemExit if __name__ == "__main__" else RuntimeError)(_problem)
