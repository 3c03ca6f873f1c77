"""Notebooks from their `.py` sources: convert, execute, and keep only what a diff should show."""

import ast
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
NEEDED = "# To run this: `make lab` in a checkout of fieldbook, or its library installed."


def _regenerate(source: Path) -> Path:
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


def settle(executed: Path, target: Path) -> None:
    """Copy a notebook that papermill has executed, with its values in the one parameters cell.

    papermill leaves the defaults as they are and puts a cell with other values after them: whoever
    reads or edits the first of the two would be misled.
    """
    notebook = nbformat.read(executed, as_version=4)
    tagged = {tag: cell for cell in notebook.cells for tag in cell.metadata.get("tags", [])}
    injected = tagged.get("injected-parameters")
    if injected is not None:
        cell = tagged["parameters"]
        cell.source = f"{NEEDED}\n{_with_values(cell.source, injected.source)}"
        notebook.cells.remove(injected)
    _write(target, notebook)


def _with_values(source: str, injected: str) -> str:
    """A parameters cell whose defaults are replaced by assigned values; its comments stay."""
    nodes = [node for node in ast.parse(injected).body if isinstance(node, ast.Assign)]
    values = {ast.unparse(node.targets[0]): ast.unparse(node.value) for node in nodes}
    lines = source.splitlines()
    for node in reversed(ast.parse(source).body):
        name = ast.unparse(node.target)
        value = node.value
        if name in values:
            before = lines[node.lineno - 1].encode()[: value.col_offset].decode()
            after = lines[value.end_lineno - 1].encode()[value.end_col_offset :].decode()
            lines[node.lineno - 1 : node.end_lineno] = [before + values[name] + after]
    return "\n".join(lines)


def _write(target: Path, notebook: nbformat.NotebookNode) -> None:
    atomic_write(target, lambda file: file.write(nbformat.writes(notebook).encode() + b"\n"))


if __name__ == "__main__":
    if sys.argv[1] == "settle":
        settle(Path(sys.argv[2]), Path(sys.argv[3]))
        sys.exit()
    kept = str(paths.ROOT / "build" / "notebooks")  # rows outlive a cell that fails
    os.environ |= {paths.RESULTS: kept, paths.FROZEN: "0"}
    for argument in sys.argv[1:]:
        print(_regenerate(Path(argument)))
