"""Worker processes of one thread each, which end when whoever started them is killed."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import torch
from joblib import Parallel, delayed


def each(
    function: Callable[..., Any], calls: Iterable[tuple], workers: int, *, ordered: bool = True
) -> Iterator[Any]:
    """What a function returns for each tuple of arguments, computed by so many processes at once.

    Args:
        calls: arguments of each call; `ordered`: results come in their order, otherwise as soon as
            they are there.
    Raises:
        Exception: whatever the function raised.
    """
    calls = list(calls)
    kind = "generator" if ordered else "generator_unordered"
    return Parallel(min(workers, len(calls)) or 1, return_as=kind)(
        delayed(_one)(function, *call) for call in calls
    )


def _one(function: Callable[..., Any], *arguments: Any) -> Any:
    torch.set_num_threads(1)
    _end_with_parent()
    return function(*arguments)


@cache
def _end_with_parent() -> None:
    """By itself a worker of joblib would live on for minutes."""
    if multiprocessing.current_process().name.startswith("LokyProcess"):
        parent = multiprocessing.parent_process().pid
        threading.Thread(target=_exit_without, args=[parent], daemon=True).start()


def _exit_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
