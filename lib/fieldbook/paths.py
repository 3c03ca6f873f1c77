"""Where everything lives: the only module that knows folders or reads `FIELDBOOK_RESULTS`.

papermill, nbval and JupyterLab run a notebook with different working directories, so no path in the book is relative.
"""

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout: holds `book/`, `parameters/`, `data/` and `figures/`."""


def results() -> Path:
    """Root under which results are written: `FIELDBOOK_RESULTS`, or the checkout itself."""
    return Path(os.environ.get("FIELDBOOK_RESULTS", ROOT)).resolve()


def frozen() -> bool:
    """True when rows may only be read (`FIELDBOOK_FROZEN=1`): how published results are rendered.

    Claims and figures, which follow from the rows, are drawn up again all the same.
    """
    return os.environ.get("FIELDBOOK_FROZEN", "0") == "1"


def notebook(chapter: str) -> Path:
    """The chapter's notebook; its source is the paired `.py` beside it."""
    return ROOT / "book" / f"{chapter}.ipynb"


def data(chapter: str, profile: str) -> Path:
    """Folder of a chapter's CSVs and manifest."""
    return results() / "data" / chapter / one_folder(profile)


def figures(chapter: str, profile: str) -> Path:
    """Folder of a chapter's PDF and PNG figures."""
    return results() / "figures" / chapter / one_folder(profile)


def inputs(chapter: str, profile: str) -> Path:
    """Folder of a chapter's checkpoints and synthesised inputs (never tracked)."""
    return results() / "data" / "inputs" / chapter / one_folder(profile)


def one_folder(profile: str) -> str:
    """The profile, unless it would lead out of the results: stale folders are moved, hence must be our own.

    Raises:
        ValueError: it is not the name of one folder.
    """
    if not re.fullmatch(r"\w[\w.-]*", profile):
        raise ValueError(f"profile = {profile!r}: expected the name of one folder, of letters, digits, _ . -")
    return profile
