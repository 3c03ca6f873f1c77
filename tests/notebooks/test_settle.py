"""An executed notebook has one parameters cell, with the values that it was run with."""

import ast
from pathlib import Path

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from fieldbook.run.notebooks import settle
from fieldbook.run.parameters import specification

CELL = """p: int = 23  # modulus, in [5, 499]
lr: float = 5e-3  # Schrittweite η, in (0, 1]
names: list[str] = ["ä", "b"]  # distinct
long: list[int] = [
    1,
    2,
]  # each in [0, inf)
on: bool = True"""


@pytest.mark.parametrize(
    "values", [{}, {"p": 97}, {"p": 7, "lr": 1e-4, "names": ["c # d"], "long": [3], "on": False}]
)
def test_values_take_the_place_of_defaults_and_comments_stay(tmp_path: Path, values: dict) -> None:
    source, target = tmp_path / "a.ipynb", tmp_path / "b.ipynb"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cell = new_code_cell(CELL, metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[cell], metadata=kernel), source)
    papermill.execute_notebook(source, target, values, prepare_only=True, progress_bar=False)
    settle(target, target)
    (settled,) = nbformat.read(target, 4).cells
    before, after = specification(source), specification(target)
    assert {name: entry[1] for name, entry in after.items()} == {
        name: values.get(name, entry[1]) for name, entry in before.items()
    }
    assert [entry[2] for entry in after.values()] == [entry[2] for entry in before.values()]
    assert settled.metadata.tags == ["parameters"] and len(ast.parse(settled.source).body) == 5
