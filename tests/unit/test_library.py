"""The library's own order: imports run one way, layers are kept, and nothing public is left without
a use."""

import ast
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    ".".join(file.relative_to(ROOT / "lib").with_suffix("").parts): file
    for file in sorted((ROOT / "lib").rglob("*.py"))
    if file.name != "__init__.py"
}
USERS = [
    *ROOT.glob("book/*.py"),
    *ROOT.glob("book/*.md"),
    *ROOT.glob("tests/**/*.py"),
    *ROOT.glob("benchmarks/*.py"),
]
SUBJECTS = ("grokking", "samplers", "stars", "spectra", "scaling", "drifting")
KNOWS = {room: {room, "nn", "run"} for room in SUBJECTS} | {"nn": {"nn"}, "run": {"run", "nn"}}
KNOWS["spectra"] |= {"stars"}
KNOWS["samplers"] |= {"grokking"}  # its experiments sample the networks that grok


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def imports(module: str) -> set[str]:
    """Everything that a module imports, by full name; a function of this library as its module."""
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in names}
    return found


def test_imports_form_no_circle() -> None:
    list(
        TopologicalSorter(
            {module: imports(module) & FILES.keys() for module in FILES}
        ).static_order()
    )


@pytest.mark.parametrize("module", FILES)
def test_imports_run_downwards(module: str) -> None:
    wanted = imports(module)
    assert module == "fieldbook.run.figures" or not [
        name for name in wanted if name.startswith("matplotlib")
    ]
    room = module.split(".")[1]
    assert {name.split(".")[1] for name in wanted & FILES.keys()} <= KNOWS[room]


def test_a_room_is_short_enough_to_be_read() -> None:
    lengths = dict.fromkeys(KNOWS, 0)
    for module, file in FILES.items():
        lengths[module.split(".")[1]] += len(file.read_text(encoding="utf-8").splitlines())
    assert not {room: length for room, length in lengths.items() if length > 3000}


@pytest.mark.parametrize("module", FILES)
def test_everything_public_is_used(module: str) -> None:
    public = [
        node.name
        for node in tree(module).body
        if isinstance(node, ast.FunctionDef) and node.name[0] != "_"
    ]
    others = [
        file.read_text(encoding="utf-8")
        for file in [*USERS, *FILES.values()]
        if file != FILES[module]
    ]
    text = "\n".join(others)
    assert not [
        name for name in public if not re.search(rf"\b{name}\b", text)
    ]  # else it is private, or superfluous
