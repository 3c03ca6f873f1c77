"""The chapters' notebooks: pairs in sync, fully executed, small, and readable by the rules of
CONTRIBUTING.md.

nbval runs them afresh in the same pytest run (`make test`).
"""

import ast
import io
import re
import shutil
import subprocess
import textwrap
import tokenize
from pathlib import Path
from statistics import median

import jupytext
import nbformat
import pytest
import yaml
from docutils.nodes import make_id
from papermill import inspect_notebook

from fieldbook.run.claims import VERDICTS
from fieldbook.run.parameters import specification

ROOT = Path(__file__).resolve().parents[2]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
PAGES = [page["file"] for part in TOC["parts"] for page in part["chapters"]]
CHAPTERS = [page for page in PAGES if (ROOT / "book" / f"{page}.py").exists()]
LIBRARY = (ROOT / "book/library.md").read_text(encoding="utf-8")
MODULE = re.compile(r"^   (fieldbook\.[\w.]+)$", re.MULTILINE)
SHARED = set(MODULE.findall(LIBRARY.partition("## Networks")[2]))  # by all chapters
ABSOLUTE = re.compile(r"(?<![\w.:/~])/(?:home|root|tmp|usr|opt|mnt|work|scratch|data|Users)/\w")


@pytest.fixture(scope="module", params=CHAPTERS)
def chapter(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def notebook(chapter: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "book" / f"{chapter}.ipynb", as_version=4)


HEADING = re.compile(r"^(##?#?) (.*)$", re.MULTILINE)
DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef)
ENDING = [
    "Claims",
    "What the log had wrong, and right",
    "Look for yourself",
    "Limits",
    "Parameters and cost",
]


def prose(notebook: nbformat.NotebookNode) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def plain(cell: nbformat.NotebookNode) -> str:
    """A cell's code, magics left out."""
    return re.sub(r"^[%!].*$", "", cell.source, flags=re.MULTILINE)


def lines(source: str) -> int:
    """Logical lines of code: a call counts once, however many lines its arguments take.

    Counted otherwise, a rule for short code would ask for dense code.
    """
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(token.type == tokenize.NEWLINE for token in tokens)


def parsed(notebook: nbformat.NotebookNode) -> list[ast.AST]:
    """All nodes of all code cells."""
    sources = map(plain, code_cells(notebook))
    return [node for source in sources for node in ast.walk(ast.parse(source))]


def test_every_page_of_the_table_of_contents_is_there() -> None:
    """A notebook beside them that is not listed is somebody's own: no command takes it for ours."""
    assert all((ROOT / f"book/{chapter}.ipynb").exists() for chapter in CHAPTERS)
    assert all((ROOT / f"book/{page}.md").exists() for page in {TOC["root"], *PAGES} - {*CHAPTERS})
    shown = subprocess.run(["make", "-n", "notebooks"], cwd=ROOT, capture_output=True, text=True)
    assert re.findall(r"book/(\w+)\.py", shown.stdout) == CHAPTERS


def test_library_page_lists_every_module_once() -> None:
    files = (
        file.relative_to(ROOT / "lib").with_suffix("") for file in (ROOT / "lib").rglob("*.py")
    )
    modules = [".".join(file.parts) for file in files if file.name != "__init__"]
    assert sorted(MODULE.findall(LIBRARY)) == sorted(modules)


def test_chapter_links_to_the_modules_that_it_calls(notebook: nbformat.NotebookNode) -> None:
    imports = [node for node in parsed(notebook) if isinstance(node, ast.ImportFrom)]
    named = {
        name
        for node in imports
        for name in (node.module, *(f"{node.module}.{a.name}" for a in node.names))
    }
    files = re.findall(r"\]\(\.\./lib/([\w/]+)\.py\)", prose(notebook))
    linked = {file.replace("/", ".") for file in files}
    wanted = named & set(MODULE.findall(LIBRARY)) - SHARED
    assert wanted <= linked <= set(MODULE.findall(LIBRARY)), f"link {wanted - linked}"


def test_links_read_well_everywhere(notebook: nbformat.NotebookNode) -> None:
    """Roles and labels of MyST are raw text in JupyterLab and on GitHub."""
    text = prose(notebook)
    assert not re.findall(r"\{\w+\}`[^`]*`|^\([\w-]+\)=$", text, re.MULTILINE)
    papers = set(re.findall(r"\]\((https?://[^)]*)\)", text))
    known = (ROOT / "book/references.bib").read_text(encoding="utf-8")
    assert not [
        link
        for link in papers
        if link.removeprefix("https://doi.org/").removeprefix("https://arxiv.org/abs/") not in known
    ]


def test_chapter_has_the_shape_that_a_reader_knows(notebook: nbformat.NotebookNode) -> None:
    """Question, answer, key figure first; claims, the log, a widget, limits and cost last."""
    title = notebook.cells[0].source.partition("\n")[0]
    assert title.startswith("# ") and title.endswith("?")
    cells = code_cells(notebook)
    tags = [cell.metadata.get("tags", []) for cell in cells]
    assert "parameters" in tags[0]
    (answer,) = [place for place, of in enumerate(tags) if "answer" in of]
    assert answer <= 5
    output = next(one for one in cells[answer].outputs if "data" in one)
    assert output.data["text/markdown"].startswith(("**Answer.** ", "**No answer yet.** "))
    assert any("image/png" in one.get("data", {}) for one in cells[answer + 1].outputs)
    found = [text for depth, text in headings(notebook) if depth == 2]
    assert found[-len(ENDING) :] == ENDING


def headings(notebook: nbformat.NotebookNode) -> list[tuple[int, str]]:
    return [(len(marks), text) for marks, text in HEADING.findall(prose(notebook))]


def test_evidence_of_every_claim_stands_on_the_page(notebook: nbformat.NotebookNode) -> None:
    known = {make_id(text) for _, text in headings(notebook)}
    claims = [
        node
        for node in parsed(notebook)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "run.claim"
    ]
    words = [{word.arg: word.value for word in node.keywords} for node in claims]
    wrong = [ast.unparse(word["section"]) for word in words]
    assert not [text for text in wrong if ast.literal_eval(text) not in known]
    assert 1 <= sum("first" in word for word in words) <= 3


def test_folded_code_is_folded_in_jupyterlab_too(notebook: nbformat.NotebookNode) -> None:
    for cell in code_cells(notebook):
        hidden = {"hide-input", "remove-input", "remove-cell"} & {*cell.metadata.get("tags", [])}
        assert bool(hidden) == cell.metadata.get("jupyter", {}).get("source_hidden", False)


def test_functions_are_few_and_read_nothing_that_comes_later(
    chapter: str, notebook: nbformat.NotebookNode
) -> None:
    assert len((ROOT / f"book/{chapter}.py").read_text(encoding="utf-8").splitlines()) <= 600
    trees = [ast.parse(plain(cell)) for cell in code_cells(notebook)]
    assert sum(isinstance(node, DEFINITION) for tree in trees for node in ast.walk(tree)) <= 10
    late = set()
    for place, tree in enumerate(trees):
        earlier = set().union(*map(assigned, trees[: place + 1]))
        later = set().union(*map(assigned, trees[place + 1 :])) - earlier
        bodies = [node for node in ast.walk(tree) if isinstance(node, DEFINITION)]
        names = [node for body in bodies for node in ast.walk(body) if isinstance(node, ast.Name)]
        late |= {name.id for name in names if name.id in later}
    assert not late, f"read by a function, but assigned in a later cell: {', '.join(late)}"


def assigned(tree: ast.AST) -> set[str]:
    """Names that a cell assigns, defines or imports."""
    nodes = list(ast.walk(tree))
    names = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return names | {n.name for n in nodes if isinstance(n, DEFINITION)}


def test_front_page_has_a_panel_for_every_chapter() -> None:
    text = (ROOT / "book" / "intro.md").read_text(encoding="utf-8")
    assert re.search(r"^PANELS = \[(.*)\]$", text, re.MULTILINE)[1].split(", ") == CHAPTERS


def test_every_chapter_has_its_profiles(chapter: str) -> None:
    for profile in ("quick", "laptop", "paper"):
        text = (ROOT / "parameters" / chapter / f"{profile}.yaml").read_text(encoding="utf-8")
        assert text.startswith("# "), (
            f"{chapter}/{profile}.yaml: the first comment states cost and expected result"
        )
        assert yaml.safe_load(text)["profile"] == profile


def test_pair_is_in_sync(chapter: str, notebook: nbformat.NotebookNode) -> None:
    source = jupytext.read(ROOT / "book" / f"{chapter}.py")
    expected = [
        (cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in source.cells
    ]
    found = [
        (cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells
    ]
    assert found == expected, "run `make notebooks`"


@pytest.mark.parametrize("started_in", [".", "book"])
def test_saving_in_jupyterlab_writes_both_files(
    chapter: str, started_in: str, tmp_path: Path
) -> None:
    shutil.copytree(
        ROOT / "book",
        tmp_path / "book",
        ignore=shutil.ignore_patterns("_vendor", ".ipynb_checkpoints"),
    )
    source = tmp_path / "book" / f"{chapter}.py"
    before = source.read_text(encoding="utf-8")
    manager = jupytext.TextFileContentsManager(root_dir=str(tmp_path / started_in))
    path = source.with_suffix(".ipynb").relative_to(tmp_path / started_in).as_posix()
    model = manager.get(path)
    manager.save(model, path)
    assert source.read_text(encoding="utf-8") == before
    model["content"].cells[0].source += "\n\nAnd a remark."
    manager.save(model, path)
    assert source.read_text(encoding="utf-8").replace("#\n# And a remark.\n", "") == before


def test_every_cell_was_executed_in_order_without_error(notebook: nbformat.NotebookNode) -> None:
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [
        output for cell in cells for output in cell.outputs if output.output_type == "error"
    ]


def test_diffs_stay_quiet(chapter: str, notebook: nbformat.NotebookNode) -> None:
    assert (ROOT / "book" / f"{chapter}.ipynb").stat().st_size < 500_000
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    known = {
        "tags",
        "mystnb",
        "jupyter",
        "lines_to_next_cell",
    }  # the last is jupytext's, to write the same .py back
    assert not [cell.id for cell in notebook.cells if set(cell.metadata) - known]
    assert not [
        output
        for cell in code_cells(notebook)
        for output in cell.outputs
        if output.get("name") == "stderr"
    ]


def test_parameters_cell_is_tagged(notebook: nbformat.NotebookNode) -> None:
    cells = [cell for cell in code_cells(notebook) if "parameters" in cell.metadata.get("tags", [])]
    assert len(cells) == 1
    names = {
        node.target.id
        for node in ast.parse(cells[0].source).body
        if isinstance(node, ast.AnnAssign)
    }
    assert {"profile", "workers", "shard"} <= names
    assert len(names) == len(ast.parse(cells[0].source).body), "only annotated assignments"


def test_every_parameter_is_documented_for_papermill_too(chapter: str) -> None:
    path = ROOT / "book" / f"{chapter}.ipynb"
    known, shown = specification(path), inspect_notebook(str(path))
    assert not [name for name, (_, _, comment) in known.items() if not comment], (
        "a parameter without a comment"
    )
    assert {name: entry["help"] for name, entry in shown.items()} == {
        name: entry[2] for name, entry in known.items()
    }


def test_no_classes_and_only_short_functions(notebook: nbformat.NotebookNode) -> None:
    assert not [node.name for node in parsed(notebook) if isinstance(node, ast.ClassDef)]
    long = []
    for source in map(plain, code_cells(notebook)):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                own = "\n".join(source.splitlines()[node.lineno - 1 : node.end_lineno]) + "\n"
                if lines(textwrap.dedent(own)) > 10:
                    long.append(node.name)
    assert not long, f"functions of more than 10 lines: {', '.join(long)}"


def test_verdicts_are_printed_for_nbval_to_compare(notebook: nbformat.NotebookNode) -> None:
    (cell,) = [
        cell
        for cell in code_cells(notebook)
        if "nbval-check-output" in cell.metadata.get("tags", [])
    ]
    (output,) = cell.outputs
    rows = output.text.splitlines()
    assert rows and all(row.startswith(VERDICTS) for row in rows)


def test_cells_are_short_and_explained(notebook: nbformat.NotebookNode) -> None:
    cells = code_cells(notebook)
    sizes = [lines(plain(cell) + "\n") for cell in cells]
    words = sum(len(cell.source.split()) for cell in notebook.cells if cell.cell_type == "markdown")
    assert max(len(cell.source.splitlines()) for cell in cells) <= 40
    assert median(sizes) <= 8
    assert words >= 4 * sum(sizes), f"{words} words of prose for {sum(sizes)} lines of code"


def test_no_absolute_paths(notebook: nbformat.NotebookNode) -> None:
    texts = [cell.source for cell in notebook.cells]
    for output in (output for cell in code_cells(notebook) for output in cell.outputs):
        texts.append(output.get("text", ""))
        texts += [
            str(value)
            for kind, value in output.get("data", {}).items()
            if not kind.startswith("image/")
        ]
    assert not [match for text in texts if (match := ABSOLUTE.search(text))]
