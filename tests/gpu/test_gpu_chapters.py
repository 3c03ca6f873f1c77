"""Every chapter at quick on the GPU and, at the same time, on the CPU: the same tables with the
same rows."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import gpu_rows
import pytest
import torch

from fieldbook.run import paths

CHAPTERS = sorted(file.stem for file in (paths.ROOT / "book").glob("*.py"))
SHARED = """
from fieldbook.grokking.networks import trained
from fieldbook.run.parameters import of_profile
for profile in ("quick", "gelu"):
    trained(of_profile("agop", profile), ["add"])
"""
AT_ONCE = 4  # notebooks with two processes each


def environment(device: str, results: Path) -> dict[str, str]:
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    return (
        os.environ | {"FIELDBOOK_RESULTS": str(results / device), "OMP_NUM_THREADS": "1"} | hidden
    )


def execute(device: str, chapter: str, results: Path, before: Future | None) -> None:
    if before is not None:
        before.result()
    command = [
        sys.executable,
        "-m",
        "papermill",
        f"book/{chapter}.ipynb",
        str(results / device / f"{chapter}.ipynb"),
    ]
    options = {
        "cwd": paths.ROOT,
        "env": environment(device, results),
        "capture_output": True,
        "text": True,
    }
    done = subprocess.run([*command, "--no-progress-bar"], **options)
    assert done.returncode == 0, f"{chapter} on the {device}: {done.stderr[-3000:]}"


def share_networks(results: Path) -> None:
    """Train the networks that two chapters sample once, on the CPU, so that both devices sample the
    same ones."""
    subprocess.run([sys.executable, "-c", SHARED], env=environment("cpu", results), check=True)
    for profile in ("quick", "gelu"):
        folder = Path("data/inputs/networks") / profile
        (results / "cuda" / folder).mkdir(parents=True)
        for file in (results / "cpu" / folder).glob("*.safetensors"):
            (results / "cuda" / folder / file.name).write_bytes(file.read_bytes())


@pytest.fixture(scope="module")
def runs(
    gpu: torch.device, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict]]:
    results = tmp_path_factory.mktemp("results")
    for device in ("cuda", "cpu"):
        (results / device).mkdir()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        networks = pool.submit(share_networks, results)
        jobs = sorted(
            CHAPTERS, key=lambda chapter: chapter in ("entropy", "si_sgld")
        )  # those wait for the networks
        needs = {
            chapter: networks if chapter in ("entropy", "si_sgld") else None for chapter in jobs
        }
        pairs = [(device, chapter) for chapter in jobs for device in ("cuda", "cpu")]
        yield (
            results,
            {pair: pool.submit(execute, *pair, results, needs[pair[1]]) for pair in pairs},
        )


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_leaves_the_rows_of_the_cpu(chapter: str, runs: tuple[Path, dict]) -> None:
    results, waiting = runs
    for device in ("cpu", "cuda"):
        waiting[device, chapter].result()
    folders = [results / device / "data" / chapter / "quick" for device in ("cuda", "cpu")]
    assert not (found := gpu_rows.differences(chapter, *folders)), "\n".join(found)
