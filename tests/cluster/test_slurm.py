"""The book on a real SLURM of one node: all chapters, killed jobs, a chapter on two GPUs, two ranks
of torchrun.

The commands are those of book/reproduce.md, with the options that so small a cluster needs.
"""

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from one_node import ask, jobs, running, wait_for, why_not
from private_checkout import ROOT, copy_checkout, environment_of, succeed
from safetensors.torch import load_file

SMALL = "--slurm-status-command squeue --slurm-init-seconds-before-status-checks 2 --latency-wait 5 --max-threads 1"
PAGE = (ROOT / "book/reproduce.md").read_text(encoding="utf-8")
SCRIPT = Path(__file__).with_name("data_parallel.py")
PAPER = {
    "profile": "paper",
    "operations": ["add", "mul"],
    "seeds": [0, 1],
    "steps": 400,
    "controls": False,
}


def documented(pattern: str, last: str = "") -> str:
    """The one command of the page that matches, with another last word if one is given."""
    (command,) = re.findall(rf"^\$ ({pattern})$", PAGE, re.MULTILINE)
    command = command.replace("snakemake", f"snakemake {SMALL}")
    return f"{command.rpartition(' ')[0]} {last}" if last else command


def rows(results: Path) -> dict[str, bytes]:
    """The tables of chapter agop."""
    return {file.name: file.read_bytes() for file in results.glob("data/agop/*/*.csv")}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if reason := why_not():
        pytest.skip(reason)
    with running(tmp_path_factory.mktemp("slurm")):
        yield


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def built(slurm: None, checkout: Path) -> Path:
    succeed(documented("snakemake .* quick"), checkout, timeout=1800)
    return checkout


def test_all_chapters_run_as_jobs(built: Path) -> None:
    toc = yaml.safe_load((built / "_toc.yml").read_text(encoding="utf-8"))
    pages = [page["file"] for part in toc["parts"] for page in part["chapters"]]
    chapters = [page for page in pages if (built / f"book/{page}.py").exists()]
    run = jobs()
    assert Counter(job["rule"] for job in run) == {"chapter": len(chapters), "front": 1}
    assert {job["JobState"] for job in run} == {"COMPLETED"}
    assert not [job for job in run if "TresPerJob" in job], "only the profile paper needs GPUs"
    assert all((built / f"build/quick/html/{page}.html").is_file() for page in pages)


def test_killed_and_requeued_jobs_end_with_the_same_rows(built: Path) -> None:
    known, undisturbed = len(jobs()), rows(built / "build/quick")
    assert {"runs.csv", "add_seed0.csv"} <= set(undisturbed)
    succeed(
        "rm -r build/quick/data/agop build/quick/data/inputs/agop build/quick/book/agop.ipynb",
        built,
    )

    def progress() -> int:
        return sum(content.count(b"\n") for content in rows(built / "build/quick").values())

    def current() -> str | None:
        """The job that is at it."""
        return next((job["JobId"] for job in jobs()[known:] if job["JobState"] == "RUNNING"), None)

    command = documented("snakemake .* quick", "build/quick/book/agop.ipynb")
    with subprocess.Popen(command.split(), cwd=built, env=environment_of(built)) as snakemake:
        try:
            wait_for(lambda: progress() > 5, "rows", 120)
            killed = current()
            ask("scancel", "--signal=KILL", "--full", killed)
            wait_for(lambda: current() not in (None, killed), "job in place of the killed one", 120)
            before = progress()
            wait_for(lambda: progress() > before + 5, "more rows", 120)
            ask("scontrol", "requeue", current())
            assert snakemake.wait(timeout=600) == 0
        finally:
            snakemake.terminate()
    first, second = jobs()[known:]
    assert first["JobState"] in ("CANCELLED", "FAILED") and first["Restarts"] == "0"
    assert second["JobState"] == "COMPLETED" and second["Restarts"] == "1"
    assert rows(built / "build/quick") == undisturbed


def test_a_chapter_fans_out_over_gpus(checkout: Path, slurm: None) -> None:
    known = len(jobs())
    (checkout / "parameters/agop/paper.yaml").write_text(
        f"# A small one.\n{yaml.safe_dump(PAPER)}", encoding="utf-8"
    )
    succeed(
        documented("snakemake .* paper", "--config shards=2 -- build/paper/book/agop.ipynb"),
        checkout,
    )
    *shards, collecting = jobs()[known:]
    assert [job["rule"] for job in (*shards, collecting)] == ["shard", "shard", "chapter"]
    assert {job["JobState"] for job in (*shards, collecting)} == {"COMPLETED"}
    assert [job.get("TresPerJob") for job in (*shards, collecting)] == [
        "gres:gpu:1",
        "gres:gpu:1",
        None,
    ]
    assert max(job["StartTime"] for job in shards) < min(job["EndTime"] for job in shards), (
        "not at the same time"
    )

    results = checkout / "build/paper"
    alone = "papermill book/agop.ipynb build/alone.ipynb -f parameters/agop/paper.yaml"
    succeed(alone, checkout, FIELDBOOK_RESULTS=str(checkout / "build/alone"))
    expected = rows(checkout / "build/alone")
    assert expected["runs.csv"].count(b"\n") == 1 + 4
    assert rows(results) == expected
    claims, manifest = (
        results / f"data/agop/paper/{name}" for name in ("claims.csv", "manifest.json")
    )
    assert manifest.stat().st_mtime < claims.stat().st_mtime, "the collecting run has only drawn"


def test_two_ranks_of_torchrun_train_as_one_process(
    tmp_path: Path, slurm: None, checkout: Path
) -> None:
    output = succeed(
        f"{documented('srun .*', str(SCRIPT))} {tmp_path / 'two.safetensors'}", checkout
    )
    assert {"rank 0 of 2", "rank 1 of 2"} <= set(output.splitlines())
    succeed(f"python {SCRIPT} {tmp_path / 'one.safetensors'}", checkout)
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-4, rtol=1e-4)
