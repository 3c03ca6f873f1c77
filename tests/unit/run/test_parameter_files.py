"""Every parameter file that is shipped fits its chapter; the quick one says what the notebook
says."""

from pathlib import Path

import pytest

from fieldbook.run import parameters, paths

FILES = sorted((paths.ROOT / "parameters").glob("*/*.yaml"))
CHAPTERS = sorted({file.parent.name for file in FILES})


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_a_file_is_accepted_and_says_first_what_it_costs(file: Path) -> None:
    accepted = parameters.check_file(paths.notebook(file.parent.name), file)
    own_set = accepted["profile"] == file.stem or file.stem not in ("quick", "laptop", "paper")
    assert own_set, f"{file.name} names the profile {accepted['profile']}"
    first, _, rest = file.read_text(encoding="utf-8").partition("\n")
    assert first.startswith("# ") and len(first) > 20 and rest.strip()


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_quick_is_the_notebook_s_own(chapter: str) -> None:
    notebook = paths.notebook(chapter)
    quick = parameters.check_file(notebook, paths.ROOT / f"parameters/{chapter}/quick.yaml")
    assert quick == parameters.check(notebook, {})


def test_no_chapter_is_without_its_files() -> None:
    sources = {file.stem for file in (paths.ROOT / "book").glob("*.py")}
    assert sources == set(CHAPTERS)
    for chapter in CHAPTERS:
        names = {file.stem for file in FILES if file.parent.name == chapter}
        assert names >= {"quick", "laptop", "paper"}
