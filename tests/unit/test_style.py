"""A line says one thing: what the formatter cannot see, in the library and in notebooks."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [*sorted(ROOT.glob("lib/fieldbook/**/*.py")), *sorted(ROOT.glob("book/*.py"))]


def wide(text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        whole = line.startswith(("# %%", "# |", "# $$"))  # tags of a cell, tables, formulas
        if len(line) > 100 and not whole:
            yield f"{number}: {len(line)} columns"
        if "fmt: skip" in line or "fmt: off" in line:
            yield f"{number}: kept from the formatter"


def dense(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            calls = [part for part in node.value.elts if isinstance(part, ast.Call)]
            if calls and isinstance(node.targets[0], ast.Tuple):
                yield f"{node.lineno}: parallel assignment of calls"
        if isinstance(node, ast.Call):
            arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
            if any(isinstance(part, ast.NamedExpr) for a in arguments for part in ast.walk(a)):
                yield f"{node.lineno}: an assignment within an argument"
        if isinstance(node, ast.FunctionDef):
            yield from splatted_once(node)


def splatted_once(function: ast.FunctionDef) -> Iterator[str]:
    """Dictionaries written down only to be unpacked in one place."""
    written, uses, splats = {}, [], []
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    written[target.id] = node.lineno
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            uses.append(node.id)
        if isinstance(node, ast.keyword) and node.arg is None and isinstance(node.value, ast.Name):
            splats.append(node.value.id)
    for name, line in written.items():
        if splats.count(name) == 1 and uses.count(name) == 1:
            yield f"{line}: `{name}` is written only to be unpacked"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_a_line_says_one_thing(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    found = [*wide(text), *dense(ast.parse(text))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "code",
    [
        "a, b = f(), 1",
        "f(x := 1)",
        "def f():\n    options = {'a': 1}\n    return g(**options)",
        "x = 1  # fmt: skip",
        f"x = {'1' * 100}",
    ],
)
def test_what_is_looked_for_is_found(code: str) -> None:
    assert [*wide(code), *dense(ast.parse(code))]


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=lambda c: c[0])
def test_ruff_finds_nothing(command: list[str]) -> None:
    ruff = Path(sys.executable).with_name("ruff")
    done = subprocess.run([ruff, *command, "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
