"""What surrounds a run and must not show in it: backend, style, locale, variables, folders, other
checkouts."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from hashlib import sha256
from pathlib import Path

import nbformat
import pytest
from private_checkout import ROOT, copy_checkout

from fieldbook.run import figures

SHARED = sysconfig.get_paths()["purelib"]
READERS = {"open", "read_text", "write_text", "fdopen"}
NO_TEXT = {"os", "Spectra", "spectra.Spectra"}  # whose `open` opens no text


def start(*command: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
    """A command of somebody whose shell knows nothing of this test run."""
    private = (
        "PYTHON",
        "VIRTUAL_ENV",
        "FIELDBOOK_",
        "MPL",
        "MAKE",
        "MFLAGS",
        "PROFILE",
        "PYTEST",
        "LC_",
        "LANG",
    )
    own = {name: value for name, value in os.environ.items() if not name.startswith(private)}
    return subprocess.run(
        [*map(str, command)], cwd=cwd, env=own | variables, capture_output=True, text=True
    )


def said(done: subprocess.CompletedProcess) -> str:
    return done.stdout + done.stderr


# -- backend and style


PAGE = """\
import matplotlib.pyplot as plt

from fieldbook.run import figures

{style}
figure, axes = plt.subplots()
axes.plot([1, 2], [1.5, 2.5])
figures.save(figure, "page", "quick", "one")
"""


def page(
    build: Path, style: str = "figures.use_style()", **variables: str
) -> tuple[list[str], bytes]:
    """A notebook of one figure, executed by papermill into `build/book`: the images shown, and the
    file saved."""
    cells = [nbformat.v4.new_code_cell(source) for source in PAGE.format(style=style).split("\n\n")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    (build / "book").mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, build / "page.ipynb")
    variables = {"PYTHONPATH": str(ROOT / "lib"), "FIELDBOOK_RESULTS": str(build)} | variables
    command = [
        sys.executable,
        "-m",
        "papermill",
        "page.ipynb",
        "book/page.ipynb",
        "--no-progress-bar",
    ]
    done = start(*command, cwd=build, **variables)
    assert done.returncode == 0, said(done)
    outputs = [
        output
        for cell in nbformat.read(build / "book/page.ipynb", 4).cells
        for output in cell.outputs
    ]
    shown = [
        output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})
    ]
    return shown, (build / "figures/page/quick/one.png").read_bytes()


def test_a_page_has_its_figure_whatever_the_backend_and_the_users_style(tmp_path: Path) -> None:
    plain = page(tmp_path / "plain")
    assert len(plain[0]) == 1
    style = "backend: svg\nlines.linewidth: 9\nfont.size: 30\nfigure.dpi: 30\nsavefig.dpi: 20\n"
    for folder in ("config", "working folder"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "matplotlibrc").write_text(style + "axes.formatter.use_locale: True\n")
    settings = tmp_path / "ipython/profile_default/ipython_config.py"
    settings.parent.mkdir(parents=True)
    settings.write_text(
        "c.InlineBackend.figure_formats = {'svg'}\nc.InlineBackend.rc = {'lines.linewidth': 9}\n"
    )
    configured = {"MPLCONFIGDIR": str(tmp_path / "config"), "IPYTHONDIR": str(tmp_path / "ipython")}
    assert page(tmp_path / "agg", MPLBACKEND="agg", **configured) == plain
    assert page(tmp_path / "working folder", MPLBACKEND="svg") == plain


def test_a_book_whose_page_lacks_a_figure_is_not_built(tmp_path: Path) -> None:
    page(tmp_path, style="", MPLBACKEND="agg")
    with pytest.raises(
        ValueError,
        match=r"page\.ipynb: shows 0 of the 1 figures that it has saved\ncall figures\.use_s",
    ):
        figures.require_shown(tmp_path)
    (tmp_path / "figures/page/quick/of_an_earlier_run.png").touch()
    os.utime(tmp_path / "figures/page/quick/of_an_earlier_run.png", (1, 1))
    page(tmp_path, style="figures.use_style()", MPLBACKEND="agg")  # the remedy
    figures.require_shown(tmp_path)


# -- locale


@pytest.mark.parametrize(
    "file", sorted({*ROOT.glob("lib/**/*.py"), *ROOT.glob("book/*.py")}), ids=lambda f: f.stem
)
def test_every_text_file_is_opened_with_its_encoding(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", getattr(node.func, "id", "")) in READERS
        ):
            owner = ast.unparse(getattr(node.func, "value", ast.Name("")))
            binary = any(re.fullmatch("[rwxa]b", str(getattr(a, "value", ""))) for a in node.args)
            named = any(option.arg == "encoding" for option in node.keywords)
            assert binary or named or owner in NO_TEXT, (
                f"{file.name}:{node.lineno}: {ast.unparse(node)}"
            )


def test_tables_and_claims_are_the_same_bytes_in_a_locale_without_letters(tmp_path: Path) -> None:
    code = """from fieldbook.run.chapter import Run
from fieldbook.run.parameters import Parameters
par = Parameters({"profile": "quick", "σ": 1, "workers": 1, "shard": [0, 1]})
run = Run("agop", par)
run.sweep("t", [{"x": "µ – σ"}], lambda job: {"y": 0.1})
run.claim("α → β", "≈ 0.1", of="ours", source="§2", section="c", holds=True)
run.claims(); run.finish()"""
    (tmp_path / "run.py").write_text(code, encoding="utf-8")
    written = []
    for name, locale in {
        "utf8": {"LC_ALL": "C.UTF-8"},
        "ascii": {
            "LC_ALL": "C",
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
            "PYTHONIOENCODING": "ascii",
        },
    }.items():
        folder = tmp_path / f"{name} für alle"
        variables = {"PYTHONPATH": str(ROOT / "lib"), "FIELDBOOK_RESULTS": str(folder), **locale}
        if name == "ascii":  # twice: what is there is read, too
            start(sys.executable, "run.py", cwd=tmp_path, **variables)
        done = start(sys.executable, "run.py", cwd=tmp_path, **variables)
        assert done.returncode == 0, said(done)
        written.append({file.name: file.read_bytes() for file in folder.rglob("*.csv")})
    assert written[0] == written[1] and set(written[0]) == {"t.csv", "claims.csv"}


# -- line ends


def test_a_clone_holds_the_same_bytes_whatever_git_does_with_line_ends(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a repository")
    held = []
    for setting in ("false", "true"):
        target = tmp_path / setting
        command = ["git", "clone", "-q", "-c", f"core.autocrlf={setting}", ROOT, target]
        subprocess.run(command, check=True, capture_output=True)
        changed = subprocess.run(
            ["git", "status", "--porcelain"], cwd=target, capture_output=True, text=True
        )
        assert changed.stdout == ""
        files = (file for file in target.rglob("*") if file.is_file() and ".git" not in file.parts)
        held.append(
            {file.relative_to(target): sha256(file.read_bytes()).hexdigest() for file in files}
        )
    assert held[0] == held[1] and len(held[0]) > 100


# -- checkouts that were copied or moved, and environments of other ones


def installed(folder: Path) -> Path:
    """A checkout with an environment of its own, as `make` leaves it, without network."""
    folder.mkdir()
    copy_checkout(folder)
    shutil.rmtree(folder / ".venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    packages = next((folder / ".venv/lib").glob("python3*/site-packages"))
    (packages / "base.pth").write_text(f"{SHARED}\n", encoding="utf-8")
    (packages / "fieldbook.pth").write_text(f"{folder / 'lib'}\n", encoding="utf-8")
    (folder / ".venv/.installed").touch()
    return folder


def content(folder: Path) -> dict[Path, bytes]:
    files = (
        file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts
    )
    return {file: file.read_bytes() for file in files if ".venv" not in file.parts}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("checkouts") / "erstes Buch")


@pytest.fixture(scope="module")
def second(first: Path) -> Path:
    return installed(first.parent / "zweites Büchlein")


ENTRIES = {
    "publish": ["fieldbook.run.publish", "laptop"],
    "check": ["fieldbook.run.parameters", "check", "book/agop.ipynb", "parameters/agop/quick.yaml"],
    "notebooks": ["fieldbook.run.notebooks", "book/agop.py"],
    "snakemake": ["snakemake", "--cores", "1", "--", "build/published/.copied"],
    "papermill": ["papermill", "book/agop.ipynb", "out.ipynb", "--no-progress-bar"],
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("inside", [".", "book"])
def test_the_environment_of_another_checkout_is_refused(
    first: Path, second: Path, entry: str, inside: str
) -> None:
    if inside == "book" and entry == "snakemake":
        pytest.skip("Snakemake looks for its file in the working directory")
    before = content(first), content(second)
    active = {
        "PATH": f"{first / '.venv/bin'}:{os.environ['PATH']}",
        "VIRTUAL_ENV": str(first / ".venv"),
    }
    command = [first / ".venv/bin/python", "-m", *ENTRIES[entry]]
    command = [str(part).removeprefix("book/") if inside == "book" else part for part in command]
    done = start(*command, cwd=second / inside, **active)
    assert done.returncode != 0
    assert (
        f"{second} is one checkout of fieldbook, but the library that runs is that of {first}"
        in said(done)
    )
    assert f"source '{second}/.venv/bin/activate'" in said(done)
    (second / inside / "out.ipynb").unlink(missing_ok=True)
    shutil.rmtree(second / ".snakemake", ignore_errors=True)
    assert (content(first), content(second)) == before


def test_the_remedy_for_another_environment_works(first: Path, second: Path) -> None:
    active = {
        "PATH": f"{first / '.venv/bin'}:{os.environ['PATH']}",
        "VIRTUAL_ENV": str(first / ".venv"),
    }
    remedy = f"source '{second}/.venv/bin/activate' && python -m fieldbook.run.paths"
    assert start("bash", "-c", remedy, cwd=second, **active).returncode == 0
    own = start("make", "publish", cwd=second, **active)  # make takes this folder's in any case
    assert f"not published: {second}/build/laptop/data: no results of profile laptop" in said(own)
    borrowed = start("make", "publish", cwd=second, PYTHONPATH=str(first / "lib"))
    assert borrowed.returncode and "unset PYTHONPATH" in said(borrowed)


def test_elsewhere_any_library_may_be_used(first: Path, tmp_path: Path) -> None:
    done = start(
        first / ".venv/bin/python",
        "-c",
        "from fieldbook.run import paths; print(paths.ROOT)",
        cwd=tmp_path,
    )
    assert done.stdout.strip() == str(first)


def test_a_checkout_may_be_worked_on_from_another_by_name(first: Path, second: Path) -> None:
    code = "from fieldbook.run import paths; print(paths.results())"
    command = [first / ".venv/bin/python", "-c", code]
    mine = start(*command, cwd=second, FIELDBOOK_RESULTS=str(first / "build/mine"))
    assert mine.stdout.strip() == str(first / "build/mine")
    other = start(*command, cwd=second, FIELDBOOK_RESULTS=str(second / "build/mine"))
    assert other.returncode and f"the library that runs is that of {first}" in said(other)


TARGETS = ("book", "html", "publish", "notebooks", "lab", "test", "bench", "unlock")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("how", ["copied", "moved"])
def test_make_refuses_an_environment_that_was_made_elsewhere(
    first: Path, tmp_path: Path, target: str, how: str
) -> None:
    before = content(first)
    there = tmp_path / "there"
    subprocess.run(["cp", "-a", first, there], check=True)
    if how == "moved":  # nothing is left where it was
        packages = next((there / ".venv/lib").glob("python3*/site-packages"))
        (packages / "fieldbook.pth").write_text(f"{tmp_path / 'gone/lib'}\n", encoding="utf-8")
    done = start("make", target, cwd=there)
    assert done.returncode != 0
    assert "rm -rf " in said(done) and ".venv" in said(done) and "Traceback" not in said(done)
    assert content(first) == before and not (there / "build").exists()


def test_an_environment_made_elsewhere_is_not_installed_into(first: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    subprocess.run(["cp", "-a", first, there], check=True)
    (there / "constraints.txt").touch()  # as a copy that does not keep times may have it
    os.utime(there / ".venv/.installed", (1, 1))
    done = start("make", "publish", cwd=there, PIP_INDEX_URL="http://127.0.0.1:9")
    assert done.returncode and "rm -rf .venv" in said(done)


def test_a_new_environment_mends_a_moved_checkout(first: Path, tmp_path: Path) -> None:
    there = tmp_path / "zu Hause"
    subprocess.run(["cp", "-a", first, there], check=True)
    flags = "PIP_FLAGS=--no-index --no-deps --no-build-isolation"
    offline = {"PYTHONPATH": SHARED, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    assert "rm -rf" in said(start("make", "publish", "PROFILE=quick", flags, cwd=there, **offline))
    shutil.rmtree(there / ".venv")
    done = start("make", "publish", "PROFILE=quick", flags, cwd=there, **offline)
    assert f"not published: {there}/build/quick/data: no results of profile quick" in said(done)


# -- parameter files, as Snakemake reads them


@pytest.mark.parametrize("profile", ["quick", "laptop"])
def test_snakemake_reads_a_parameter_file_as_the_check_does(
    first: Path, tmp_path: Path, profile: str
) -> None:
    checkout = tmp_path / "c"
    checkout.mkdir()
    copy_checkout(checkout)
    file = checkout / f"parameters/entropy/{profile}.yaml"
    command = [sys.executable, "-m", "snakemake", "-n", "--", f"build/{profile}/book/entropy.ipynb"]
    file.write_text("# all defaults\n", encoding="utf-8")
    plan = start(*command, cwd=checkout, PYTHONPATH=str(checkout / "lib"))
    assert plan.returncode == 0 and "data/inputs/networks/quick/add.safetensors" in said(plan), (
        said(plan)
    )
    for written in ("steps:\t- 1\n", "networks: no\n", "steps: 0500\n", "stepz: 1\n", "- 1\n"):
        file.write_text(written, encoding="utf-8")
        refused = start(*command, cwd=checkout, PYTHONPATH=str(checkout / "lib"))
        assert refused.returncode and f"parameters/entropy/{profile}.yaml" in said(refused)
