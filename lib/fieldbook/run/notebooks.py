"""Notebooks from their `.py` sources: convert, execute, and keep only what a diff should show."""

import os
import sys
from hashlib import sha256
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

from fieldbook.nn.checkpoints import atomic_write
from fieldbook.run import paths

METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def regenerate(source: Path) -> Path:
    """Write the executed `.ipynb` beside a percent script, at the default parameters; the old one
    is not read.

    Cell ids follow from the source, progress bars and execution times are left out. While it runs,
    the notebook on disk is the new one without outputs: a chapter checks its parameters against
    that file.

    Returns:
        The notebook's path; if a cell raises, the file is as it was before.
    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
    """
    notebook = jupytext.read(source)
    for index, cell in enumerate(notebook.cells):
        sources = [earlier.source for earlier in notebook.cells[:index]]
        cell["id"] = f"{sha256(cell.source.encode()).hexdigest()[:12]}-{sources.count(cell.source)}"
    notebook.metadata = nbformat.from_dict(METADATA)
    target = source.with_suffix(".ipynb")
    earlier = target.read_bytes() if target.exists() else None
    _write(target, notebook)
    try:
        where = {"metadata": {"path": source.parent}}
        NotebookClient(
            notebook, kernel_name="python3", timeout=600, record_timing=False, resources=where
        ).execute()
    except BaseException:
        target.unlink() if earlier is None else target.write_bytes(earlier)
        raise
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    _write(target, notebook)
    return target


def _write(target: Path, notebook: nbformat.NotebookNode) -> None:
    atomic_write(target, lambda file: file.write(nbformat.writes(notebook).encode() + b"\n"))


if __name__ == "__main__":
    kept = str(paths.ROOT / "build" / "notebooks")  # rows outlive a cell that fails
    os.environ |= {paths.RESULTS: kept, paths.FROZEN: "0"}
    for argument in sys.argv[1:]:
        print(regenerate(Path(argument)))
