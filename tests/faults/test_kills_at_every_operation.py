"""A run killed at any one of its file operations, then repeated, ends as one left alone and has
lost nothing."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from fieldbook.run.chapter import Run
from fieldbook.run.parameters import Parameters

EVENTS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "shutil.rmtree"}
JOBS = [{"x": x} for x in (1, 2, 3)]


def go(p):
    run = Run("agop", Parameters({"profile": "test", "p": p, "workers": 1, "shard": [0, 1]}))

    def compute(job, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights.bin").write_bytes(b"%d" % p)
        return {"t": {"y": p * job["x"] / 7}, "side": [{**job, "z": z} for z in range(2)]}

    for jobs in (JOBS[:0:-1], JOBS):  # the second sweep adds to what the first has made
        run.sweep("t", jobs, compute)
    run.claim("a", "b", of="ours", section="c", holds=True)
    run.claims()
    run.finish()


def killed(root, p, at=None):
    """Run to the end in a child process, or to the file operation number `at`; was it killed
    there?"""
    child = os.fork()
    if child == 0:
        os.environ["FIELDBOOK_RESULTS"] = str(root)
        os.environ["FIELDBOOK_FROZEN"] = "0"
        seen = 0

        def count(event, arguments):
            nonlocal seen
            if event in EVENTS and str(root) in str(arguments):
                if seen == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1

        sys.addaudithook(count)
        try:
            go(p)
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def content(root: Path) -> dict[Path, bytes]:
    """Everything but locks, and manifests with their wall times."""
    files = [
        file for file in root.rglob("*") if file.is_file() and file.suffix not in (".lock", ".json")
    ]
    return {file.relative_to(root): file.read_bytes() for file in files}


@pytest.mark.parametrize("earlier", [False, True], ids=["new", "over earlier results"])
def test_a_kill_at_any_file_operation_changes_nothing(tmp_path, earlier):
    start, straight = tmp_path / "start", tmp_path / "straight"
    start.mkdir()
    assert not (earlier and killed(start, 7))
    shutil.copytree(start, straight)
    assert not killed(straight, 11)
    expected, at = content(straight), 0
    while True:
        root = tmp_path / f"killed{at}"
        shutil.copytree(start, root)
        if not killed(root, 11, at):
            break
        assert not killed(root, 11) and content(root) == expected, f"killed at operation {at}"
        at += 3 if earlier else 1
    assert at > 50
