from pathlib import Path

import pytest

from fieldbook.run import paths


@pytest.mark.parametrize("folder", [paths.data, paths.figures, paths.inputs])
def test_a_profile_never_leads_out_of_the_results(monkeypatch, tmp_path: Path, folder) -> None:
    monkeypatch.setenv("FIELDBOOK_RESULTS", str(tmp_path))
    for profile in ("laptop", "paper-2", "v1.5", "grün"):
        assert tmp_path in folder("agop", profile).parents
    for profile in ("", ".", "..", "../up", "a/b", str(tmp_path / "elsewhere")):
        with pytest.raises(ValueError, match="expected the name of one folder"):
            folder("agop", profile)


def test_results_go_to_build_unless_a_folder_is_named(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for written, folder in {
        "": paths.ROOT / "build",
        "  ": paths.ROOT / "build",
        "~": tmp_path / "home",
        "~/mine": tmp_path / "home/mine",
        str(tmp_path / "a space"): tmp_path / "a space",
    }.items():
        monkeypatch.setenv("FIELDBOOK_RESULTS", written)
        assert paths.results() == folder
    monkeypatch.delenv("FIELDBOOK_RESULTS")
    assert paths.results() == paths.ROOT / "build"
    monkeypatch.setenv("FIELDBOOK_FROZEN", "1")  # what is published is read where it is tracked
    assert paths.data("agop", "laptop") == paths.ROOT / "data/agop/laptop"
    assert paths.figures("agop", "laptop") == paths.ROOT / "build/figures/agop/laptop"


def test_an_installed_copy_writes_into_the_working_directory(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(paths, "ROOT", tmp_path / "venv/lib/python3.11")
    monkeypatch.delenv("FIELDBOOK_RESULTS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert paths.results() == tmp_path.resolve()


@pytest.mark.parametrize(
    "written", ["build/mine", ".", "..", "~nobody-of-that-name/mine", "$HOME/mine"]
)
def test_results_are_not_sent_to_a_relative_folder(
    monkeypatch, tmp_path: Path, written: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIELDBOOK_RESULTS", written)
    with pytest.raises(ValueError, match="expected an absolute path") as caught:
        paths.results()
    assert f"FIELDBOOK_RESULTS = {written!r}" in str(caught.value)
    monkeypatch.setenv("FIELDBOOK_RESULTS", str(tmp_path / written))  # the remedy
    assert paths.results() == (tmp_path / written).resolve()


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_results_are_not_sent_to_a_file(monkeypatch, tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FIELDBOOK_RESULTS", str(tmp_path / folder))
    with pytest.raises(NotADirectoryError, match="set FIELDBOOK_RESULTS elsewhere") as caught:
        paths.results()
    assert caught.value.filename == str(tmp_path / "file")


def test_yes_freezes_no_does_not_and_anything_else_is_refused(monkeypatch) -> None:
    monkeypatch.delenv("FIELDBOOK_FROZEN", raising=False)
    assert not paths.frozen()
    for yes, no in [
        ("1", "0"),
        ("true", "false"),
        ("TRUE", "False"),
        ("yes", "no"),
        (" on ", "off"),
        ("1", ""),
    ]:
        monkeypatch.setenv("FIELDBOOK_FROZEN", yes)
        assert paths.frozen()
        monkeypatch.setenv("FIELDBOOK_FROZEN", no)
        assert not paths.frozen()
    for other in ("2", "ja", "-1", "frozen"):
        monkeypatch.setenv("FIELDBOOK_FROZEN", other)
        with pytest.raises(
            ValueError, match=f"FIELDBOOK_FROZEN = '{other}': expected 1, true, yes or on, or 0"
        ):
            paths.frozen()
