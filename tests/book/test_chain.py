"""The chain from parameter file to page, at the quick profile, in a private copy of the checkout.

The copy keeps the chapter that the front page shows and nothing else, so that this test costs the
same however long the book grows.
"""

import re
import shutil
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from private_checkout import ROOT, copy_checkout, run, succeed

BLOCKS = re.findall(
    r"^```bash\n(.*?)^```", (ROOT / "book/reproduce.md").read_text(encoding="utf-8"), re.M | re.S
)
KEPT = "agop"
SECONDS_TO_DO_NOTHING = 15


@pytest.fixture(scope="module")
def small(checkout: Path) -> Path:
    """The copy, with only one chapter in its table of contents."""
    toc = yaml.safe_load((checkout / "_toc.yml").read_text(encoding="utf-8"))
    for part in toc["parts"]:
        is_text = [
            not (checkout / "book" / f"{page['file']}.py").exists() for page in part["chapters"]
        ]
        part["chapters"] = [
            p
            for p, text in zip(part["chapters"], is_text, strict=True)
            if text or p["file"] == KEPT
        ]
    (checkout / "_toc.yml").write_text(yaml.safe_dump(toc, sort_keys=False), encoding="utf-8")
    return checkout


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that nothing has run in."""
    return copy_checkout(tmp_path_factory.mktemp("pristine"))


@pytest.fixture(scope="module")
def built(small: Path) -> Path:
    succeed("make book PROFILE=quick", small)
    return small


def test_make_book_leads_from_parameters_to_a_page(built: Path) -> None:
    chapter = KEPT
    for name in (
        f"book/{chapter}.ipynb",
        f"data/{chapter}/quick/claims.csv",
        f"data/{chapter}/quick/manifest.json",
    ):
        assert (built / "build/quick" / name).is_file()
    assert list((built / f"build/quick/figures/{chapter}/quick").glob("*.png"))
    assert "<table" in (built / f"build/quick/html/{chapter}.html").read_text(encoding="utf-8")


def test_a_second_run_does_nothing_and_says_where_to_look(built: Path) -> None:
    before = {
        file: file.stat().st_mtime_ns for file in (built / "build").rglob("*") if file.is_file()
    }
    start = time.perf_counter()
    output = succeed("make book PROFILE=quick", built)
    assert time.perf_counter() - start < SECONDS_TO_DO_NOTHING
    assert {
        file: file.stat().st_mtime_ns for file in (built / "build").rglob("*") if file.is_file()
    } == before
    (page,) = re.findall(r"^open (\S+)$", output, re.M)
    assert (built / page).is_file()


def test_the_executed_copy_is_complete_and_the_source_untouched(built: Path) -> None:
    chapter = KEPT
    executed = nbformat.read(built / f"build/quick/book/{chapter}.ipynb", as_version=4)
    assert all(
        cell.execution_count for cell in executed.cells if cell.cell_type == "code" and cell.source
    )
    assert (built / f"book/{chapter}.ipynb").read_bytes() == (
        ROOT / f"book/{chapter}.ipynb"
    ).read_bytes()


def test_trained_networks_are_handed_on(built: Path) -> None:
    file = built / "build/laptop/data/inputs/networks/quick/mul.safetensors"
    succeed(f"snakemake --cores 1 {file.relative_to(built)}", built)
    (original,) = built.glob("build/quick/data/inputs/agop/quick/networks/mul.safetensors")
    assert file.read_bytes() == original.read_bytes()


@pytest.mark.parametrize("chapter", ["si_sgld", "entropy"])
@pytest.mark.parametrize(("profile", "networks"), [("quick", "quick"), ("laptop", "small")])
def test_a_chapter_waits_for_the_networks_that_it_starts_from(
    pristine: Path, chapter: str, profile: str, networks: str
) -> None:
    plan = succeed(f"snakemake -n build/{profile}/book/{chapter}.ipynb", pristine)
    assert f"build/{networks}/book/agop.ipynb" in plan
    assert re.search(
        rf"input:.*build/{profile}/data/inputs/networks/{networks}/add\.safetensors", plan
    )


@pytest.mark.parametrize(
    ("config", "page", "shards", "gpus"),
    [
        ("shards=3", "paper/book/agop", 3, 3),
        ("shards=8", "paper/book/encoder_probe", 2, 2),
        ("shards=1", "paper/book/agop", 0, 1),
        ("shards=8", "quick/book/agop", 0, 0),
    ],
)
def test_a_chapter_fans_out_as_far_as_it_may_and_can(
    pristine: Path, config: str, page: str, shards: int, gpus: int
) -> None:
    plan = succeed(f"snakemake -n --config {config} -- build/{page}.ipynb", pristine)
    assert len(re.findall(r"^rule shard:", plan, re.M)) == shards
    assert len(re.findall(r"^    resources:.* gpu=1\b", plan, re.M)) == gpus


@pytest.mark.parametrize(
    "block", BLOCKS, ids=lambda block: block.strip().splitlines()[-1].replace("/", "-")[:50]
)
def test_the_commands_of_the_page_work(built: Path, block: str) -> None:
    succeed(block, built)


def test_the_page_has_commands() -> None:
    assert len(BLOCKS) >= 3


def test_papermill_documents_every_parameter(built: Path) -> None:
    chapter = KEPT
    output = succeed(f"papermill --help-notebook book/{chapter}.ipynb", built)
    for name in ("profile: str", "workers: int", "shard: list[int]"):
        assert name in output


def test_jupyterlab_has_jupytext_and_the_kernel(built: Path) -> None:
    assert re.search(r"jupytext.*enabled", succeed("jupyter server extension list 2>&1", built))
    assert "python3" in succeed("jupyter kernelspec list", built)


def test_a_bad_parameter_file_is_refused_before_a_kernel_starts(tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path)
    chapter = KEPT
    file = checkout / f"parameters/{chapter}/quick.yaml"
    file.write_text(file.read_text(encoding="utf-8") + "\nworkerz: 2\n", encoding="utf-8")
    done = run(f"snakemake --cores 1 build/quick/book/{chapter}.ipynb", checkout)
    assert done.returncode != 0
    assert re.search(r"workerz.*workers", done.stdout + done.stderr)
    assert "Executing notebook with kernel" not in done.stdout + done.stderr
    log = checkout / f"build/quick/log/{chapter}.ipynb"
    assert log.stat().st_size == 0, "Snakemake creates the file, papermill would have filled it"


def test_make_says_what_to_do_about_a_lock_that_a_crash_left_behind(built: Path) -> None:
    page = built / "build/quick/html/index.html"
    page.unlink()
    lock = built / ".snakemake/locks/0.output.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text(f"{page.relative_to(built)}\n", encoding="utf-8")
    done = run("make book PROFILE=quick", built)
    assert done.returncode != 0
    assert "make unlock" in done.stdout
    succeed("make unlock && make book PROFILE=quick", built)
    assert page.is_file()


def test_a_chapter_begins_with_its_py(built: Path) -> None:
    chapter = KEPT
    notebook = built / f"book/{chapter}.ipynb"
    earlier = notebook.read_bytes()
    notebook.unlink()
    done = run("make book PROFILE=quick", built)
    assert done.returncode != 0
    assert f"book/{chapter}.ipynb" in done.stdout + done.stderr
    succeed(f"make notebooks CHAPTER={chapter}", built)
    assert notebook.is_file()
    source = built / f"book/{chapter}.py"
    broken = source.read_text(encoding="utf-8") + "\n# %%\nraise RuntimeError\n"
    (built / "book/broken.py").write_text(broken, encoding="utf-8")
    assert run("make notebooks CHAPTER=broken", built).returncode != 0
    assert not (built / "book/broken.ipynb").exists(), "only a notebook that has run is kept"
    (built / "book/broken.py").unlink()
    notebook.write_bytes(earlier)


# The last tests break the copy.
def test_a_broken_page_fails_the_build(built: Path) -> None:
    page = built / "book/reproduce.md"
    page.write_text(
        page.read_text(encoding="utf-8") + "\nSee [](no-such-chapter).\n", encoding="utf-8"
    )
    done = run("snakemake --cores 1 quick", built)
    assert done.returncode != 0
    assert "no-such-chapter" in done.stdout + done.stderr
    assert not (built / "build/quick/html/index.html").exists()
    shutil.copyfile(ROOT / "book/reproduce.md", page)


def test_a_failing_notebook_keeps_its_log_and_gives_no_page(built: Path) -> None:
    chapter = KEPT
    notebook = nbformat.read(built / f"book/{chapter}.ipynb", as_version=4)
    last = [cell for cell in notebook.cells if cell.cell_type == "code"][-1]
    last.source = 'raise RuntimeError("the detector is off")'
    nbformat.write(notebook, built / f"book/{chapter}.ipynb")
    done = run(f"snakemake --cores 1 build/quick/book/{chapter}.ipynb", built)
    assert done.returncode != 0
    assert "the detector is off" in (built / f"build/quick/log/{chapter}.ipynb").read_text(
        encoding="utf-8"
    )
    assert not (built / f"build/quick/book/{chapter}.ipynb").exists()


def test_after_a_failure_a_chapter_is_run_again_though_its_old_page_is_there(built: Path) -> None:
    shutil.copyfile(ROOT / f"book/{KEPT}.ipynb", built / f"book/{KEPT}.ipynb")
    succeed("make book PROFILE=quick", built)
    executed = built / f"build/quick/book/{KEPT}.ipynb"
    executed.unlink()  # as Snakemake does with what a failed job leaves
    assert f"output: {executed.relative_to(built)}" in succeed("snakemake -n quick", built)


def test_make_refuses_a_profile_that_is_none(pristine: Path) -> None:
    done = run("make book PROFILE=gelu", pristine)
    assert (
        done.returncode
        and "PROFILE is 'gelu'; expected quick, laptop, evening or paper" in done.stdout
    )


def test_what_a_chapter_leaves_in_inputs_is_not_published(pristine: Path) -> None:
    succeed("snakemake --cores 1 build/published/.copied", pristine)
    assert not (pristine / "build/published/data/inputs").exists()
    (pristine / "data/inputs/agop/quick").mkdir(parents=True)
    (pristine / "data/inputs/agop/quick/weights").touch()
    before = (pristine / "build/published/.copied").stat().st_mtime_ns
    succeed("snakemake --cores 1 build/published/.copied", pristine)
    assert (pristine / "build/published/.copied").stat().st_mtime_ns == before
