"""Worker processes: their order, their threads, their errors, and their end."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fieldbook.nn.workers import each

SLEEPERS = """
import os, sys, time
from pathlib import Path
from fieldbook.nn.workers import each

def sleep(folder):
    Path(folder, str(os.getpid())).touch()
    time.sleep(600)

list(each(sleep, [(sys.argv[1],)] * 2, 2))
"""


def late(number: int, seconds: float) -> tuple[int, int]:
    time.sleep(seconds)
    return number, torch.get_num_threads()


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_results_come_in_the_order_of_the_calls_from_one_thread_each(workers: int) -> None:
    assert list(each(late, [(0, 0.2), (1, 0.0), (2, 0.0)], workers)) == [(0, 1), (1, 1), (2, 1)]


def test_without_an_order_they_come_when_they_are_there() -> None:
    assert [number for number, _ in each(late, [(0, 2.0), (1, 0.0)], 2, ordered=False)] == [1, 0]


def test_no_calls_and_errors() -> None:
    assert list(each(late, [], 2)) == []
    with pytest.raises(TypeError, match="late"):
        list(each(late, [(1,)], 2))


def test_workers_end_when_whoever_started_them_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", SLEEPERS, str(tmp_path)])
    try:
        wait(lambda: len(list(tmp_path.iterdir())) == 2)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    workers = [int(file.name) for file in tmp_path.iterdir()]
    wait(lambda: not any(map(alive, workers)))


def wait(reached, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Is there such a process that is more than a zombie?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
