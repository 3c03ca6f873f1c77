import errno
import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest

from fieldbook.nn.checkpoints import atomic_write
from fieldbook.run.publish import publish

MANIFEST = {"status": "complete", "parameters": {}, "sources": "0", "wall_s": 1.0}


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """A finished profile of two chapters."""
    for chapter in ("agop", "entropy"):
        data, figures = (
            tmp_path / "build" / kind / chapter / "laptop" for kind in ("data", "figures")
        )
        data.mkdir(parents=True)
        figures.mkdir(parents=True)
        (data / "rows.csv").write_text("step,loss\n1,2\n")
        (data / "rows.csv.lock").touch()
        (figures / "loss.png").write_bytes(b"png")
        hashes = {"rows.csv": sha256((data / "rows.csv").read_bytes()).hexdigest()}
        (data / "manifest.json").write_text(json.dumps({**MANIFEST, "csv_sha256": hashes}))
    (tmp_path / "build/data/inputs/agop/laptop").mkdir(parents=True)
    return tmp_path / "build"


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_a_finished_profile_replaces_the_published_one(build: Path, tmp_path: Path) -> None:
    for stale in (
        "data/agop/laptop/old.csv",
        "figures/agop/laptop/old.pdf",
        "data/agop/paper/rows.csv",
    ):
        (tmp_path / "out" / stale).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / stale).touch()
    assert publish("laptop", build, tmp_path / "out") == ["agop", "entropy"]
    each = ("data/{}/laptop/manifest.json", "data/{}/laptop/rows.csv", "figures/{}/laptop/loss.png")
    expected = [name.format(chapter) for chapter in ("agop", "entropy") for name in each]
    assert files(tmp_path / "out") == sorted([*expected, "data/agop/paper/rows.csv"])


def test_costs_and_the_front_page_are_published_too(build: Path, tmp_path: Path) -> None:
    for name in ("benchmark/agop.tsv", "figures/front/laptop/overview.png"):
        (build / name).parent.mkdir(parents=True, exist_ok=True)
        (build / name).write_text(name)
    publish("laptop", build, tmp_path / "out")
    assert (tmp_path / "out/data/agop/laptop/benchmark.tsv").read_text() == "benchmark/agop.tsv"
    assert (tmp_path / "out/figures/front/laptop/overview.png").is_file()
    assert not (tmp_path / "out/data/entropy/laptop/benchmark.tsv").exists()


def damage_rows(folder: Path) -> None:
    (folder / "rows.csv").write_text("step,loss\n1,3\n")


def remove_rows(folder: Path) -> None:
    (folder / "rows.csv").unlink()


def remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def break_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[")


def remove_figures(folder: Path) -> None:
    shutil.rmtree(folder.parents[2] / "figures" / folder.parent.name)


def leave_partial(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace("complete", "partial"))


def add_rows(folder: Path) -> None:
    (folder / "more.csv").write_text("step\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage_rows, "rows.csv: content differs"),
        (remove_rows, "rows.csv: missing"),
        (remove_manifest, "manifest.json: missing"),
        (break_manifest, "manifest.json: status is None, expected 'complete'"),
        (remove_figures, "figures/entropy/laptop: nothing to publish"),
        (leave_partial, "status is 'partial'"),
        (add_rows, "more.csv not listed"),
    ],
)
def test_nothing_is_published_unless_every_chapter_is_finished(
    build: Path, tmp_path: Path, change, message
) -> None:
    change(build / "data/entropy/laptop")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        publish("laptop", build, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_profile_without_results_is_refused(build: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no results of profile paper"):
        publish("paper", build, tmp_path / "out")


@pytest.mark.parametrize("written", range(1, 6))
def test_a_publication_cut_short_leaves_whole_files_and_is_mended_by_another(
    build: Path, tmp_path: Path, monkeypatch, written: int
) -> None:
    publish("laptop", build, tmp_path / "out")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in files(tmp_path / "out")}
    for chapter in ("agop", "entropy"):
        (build / f"figures/{chapter}/laptop/loss.png").rename(
            build / f"figures/{chapter}/laptop/curve.png"
        )
    copied = []

    def fill(target: Path, write) -> None:
        copied.append(target)
        if len(copied) > written:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        atomic_write(target, write)

    monkeypatch.setattr("fieldbook.run.publish.atomic_write", fill)
    with pytest.raises(OSError, match="No space left") as caught:
        publish("laptop", build, tmp_path / "out")
    assert caught.value.filename == str(copied[-1])
    left = {name: (tmp_path / "out" / name).read_bytes() for name in files(tmp_path / "out")}
    assert set(left.values()) <= {*before.values(), b"png"}, "no torn file"
    monkeypatch.undo()
    publish("laptop", build, tmp_path / "out")
    after = {
        name.replace("curve", "loss"): (tmp_path / "out" / name).read_bytes()
        for name in files(tmp_path / "out")
    }
    assert after == before


@pytest.mark.parametrize("profile", ["", "..", "*", "a/b", "../laptop"])
def test_a_profile_is_the_name_of_one_folder(build: Path, tmp_path: Path, profile: str) -> None:
    with pytest.raises(ValueError, match="expected the name of one folder"):
        publish(profile, build, tmp_path / "out")
