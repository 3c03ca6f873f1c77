"""Rows that survive a kill: parts, each in a file that is whole or absent, and the sweep that makes
one part per job."""

import csv
import hashlib
import inspect
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from fieldbook.nn.checkpoints import atomic_write
from fieldbook.nn.workers import each

Row = Mapping[str, Any]
Tables = dict[str, list[Row]]
PATIENCE = 1.0  # seconds that a sweep waits for another process before it looks elsewhere


class Parts:
    """A folder of immutable parts, each a few tables of rows under a key.

    A part is written once, whole, and never changed: nothing can be torn or need repair. One that
    has been damaged or edited counts as absent.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def file(self, key: Row) -> Path:
        """Where the part of a key is: its values are the file's name, as far as they can be."""
        values = "-".join(text(value) for value in key.values())
        name = re.sub(r"[^\w.+-]+", "_", values, flags=re.ASCII)[:80]
        exact = hashlib.sha256(repr(_plain_row(key)).encode()).hexdigest()[:8]
        return self.folder / f"{name}.{exact}.json"

    def folder_of(self, key: Row) -> Path:
        """A folder beside the part, for checkpoints and the like."""
        return self.file(key).with_suffix("")

    def read(self, key: Row) -> Tables | None:
        """The tables of a part; None if there is no whole one."""
        try:
            seal, _, content = self.file(key).read_text(encoding="utf-8").partition("\n")
        except (FileNotFoundError, UnicodeDecodeError):
            return None
        return json.loads(content) if seal == _seal(content) else None

    def write(self, key: Row, tables: Mapping[str, Iterable[Row]]) -> None:
        """Add a part.

        Raises:
            ValueError: a value is neither number, text, truth value nor None; or rows of a table
                differ in their columns.
            OSError: not written, for instance because the disk is full; names the file.
        """
        plain = {name: [_plain_row(row) for row in rows] for name, rows in tables.items()}
        for name, rows in plain.items():
            _require_alike(f"{name} of {dict(key)}", rows)
        written = json.dumps(plain)
        self.folder.mkdir(parents=True, exist_ok=True)
        content = f"{_seal(written)}\n{written}".encode()
        atomic_write(self.file(key), lambda file: file.write(content))


class Log:
    """Rows of a computation that is under way, by their number: what it has measured so far.

    A computation that was killed and continues may write its last rows again.
    """

    def __init__(self, folder: Path):
        self._parts = Parts(folder)

    def has(self, step: int) -> bool:
        """Is there a row of this number?"""
        return self._parts.read({"step": step}) is not None

    def write(self, row: Row) -> None:
        """Add or replace the row whose `step` this is."""
        self._parts.write({"step": row["step"]}, {"rows": [row]})

    def rows(self) -> list[Row]:
        """All rows in the order of their `step`."""
        steps = (int(file.name.split(".")[0]) for file in self._parts.folder.glob("*.json"))
        found = (self._parts.read({"step": step}) for step in sorted(steps))
        return [part["rows"][0] for part in found if part is not None]


def sweep(
    parts: Parts,
    jobs: Sequence[Row],
    compute: Callable[..., Row | Mapping[str, Any]],
    *,
    workers: int = 1,
    shard: Sequence[int] = (0, 1),
    cost: Callable[[Row], float] | None = None,
    name: str = "rows",
) -> Iterator[Tables]:
    """Compute the parts of those jobs that have none, and return all in the order of the jobs.

    A part is there as soon as it is computed. Any number of processes, on all machines that share
    the folder, may work on one sweep: a job that one of them is at is left to it, and taken over if
    that process dies.

    Args:
        compute: job -> its row (without the job's own values, or with them), or {table: row or
            rows}; run in `workers` processes of one thread each. One that has an argument `folder`
            is given a folder of its own, for checkpoints.
        shard: (i, n): begin with every n-th job from the i-th, then help with the rest, so that n
            calls share a sweep.
        cost: of a job, in any unit; the dearest are begun first, so that no worker ends long after
            the others.
        name: of the table that a row alone belongs to.
    Raises:
        ValueError: a job comes twice; a row contradicts its job.
        Exception: whatever `compute` raised, with a note that names the job; the parts finished so
            far are kept.
    """
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"shard = {list(shard)}: expected [i, n] with 0 <= i < n")
    jobs = [dict(job) for job in jobs]
    files = [parts.file(job) for job in jobs]
    if len(set(files)) < len(files):
        twice = next(job for job in jobs if files.count(parts.file(job)) > 1)
        raise ValueError(f"the job {twice} comes twice in the sweep of {name}")
    queue = sorted(jobs, key=cost, reverse=True) if cost else jobs
    todo = [job for k in range(count) for job in queue[(index + k) % count :: count]]
    todo = [job for job in todo if parts.read(job) is None]
    with tqdm(
        total=len(todo), desc=f"computing {name}", unit="job", mininterval=1, disable=not todo
    ) as bar:
        patience = 0.0  # at first none, so that no job waits while others are free
        while todo:
            calls = [(job, compute, parts, name, patience) for job in todo]
            for finished in each(_do, calls, workers, ordered=False):
                bar.update(finished)
            todo = [job for job in todo if parts.read(job) is None]
            patience = PATIENCE
    return (parts.read(job) for job in jobs)


def _do(job: Row, compute: Callable, parts: Parts, name: str, patience: float) -> bool:
    """Make one job's part, unless it is there; False if another process is at it for all of
    `patience` seconds."""
    parts.folder.mkdir(parents=True, exist_ok=True)
    path = parts.file(job).with_suffix(".lock")
    try:
        lock = FileLock(path, timeout=patience, poll_interval=PATIENCE / 2).acquire()
    except Timeout:
        return False
    with lock:
        if parts.read(job) is None:
            for left in parts.folder.glob(f".{parts.file(job).name}.*.tmp"):
                left.unlink()  # by a kill: who holds the lock is alone at this part
            try:
                private = "folder" in inspect.signature(compute).parameters
                options = {"folder": parts.folder_of(job)} if private else {}
                parts.write(job, _tables(compute(dict(job), **options), job, name))
            except Exception as error:
                error.add_note(f"in the job {dict(job)} of {name}")
                raise
        path.unlink(missing_ok=True)  # whoever waits for it will find the part
    return True


def _tables(found: Any, job: Row, name: str) -> dict[str, list[Row]]:
    """What a job has returned, as {table: rows}; its own rows begin with the job's values."""
    if (
        not found
        or not isinstance(found, Mapping)
        or not all(_are_rows(value) for value in found.values())
    ):
        found = {name: found}
    tables = {}
    for table, rows in found.items():
        rows = [rows] if isinstance(rows, Mapping) else list(rows)
        tables[table] = [{**job, **row} for row in rows] if table == name else rows
        for row in tables[table] if table == name else ():
            if any(text(row[key]) != text(value) for key, value in job.items()):
                raise ValueError(f"computed a row of another job: {row}")
    return tables


def _are_rows(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list | tuple) and all(isinstance(row, Mapping) for row in value)
    )


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as a CSV unless it holds them already; numbers with ten significant digits.

    Raises:
        ValueError: rows differ in their columns.
    """
    _require_alike(path.stem, rows)
    buffer = io.StringIO()
    lines = csv.writer(buffer, lineterminator="\n")
    lines.writerow(rows[0])
    lines.writerows([text(value) for value in row.values()] for row in rows)
    content = buffer.getvalue().encode()
    if not path.exists() or path.read_bytes() != content:
        atomic_write(path, lambda file: file.write(content))


def read_csv(path: Path) -> pd.DataFrame:
    """A table as `write_csv` leaves it; empty fields are nan, and no word is.

    Raises:
        ValueError: it is no table; names it.
    """
    try:
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
        if not isinstance(frame.index, pd.RangeIndex):  # pandas takes what is too much for an index
            raise ValueError("a row is longer than the header")
    except ValueError as error:
        raise ValueError(f"{path} is no table ({error}); delete it to make it again") from error
    return frame


def _require_alike(name: str, rows: Sequence[Row]) -> None:
    first = list(rows[0]) if rows else []
    for row in rows:
        if list(row) != first:
            raise ValueError(f"{name}: columns are {first}, another row has {list(row)}")


def _seal(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _plain_row(row: Row) -> dict[str, Any]:
    return {str(name): _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, torch.Tensor | np.generic) else value
    if not isinstance(value, str | int | float | None):
        raise ValueError(f"{value!r} is no number, text, truth value or None, as a table holds")
    return value


def text(value: Any) -> str:
    """A value as a table holds it."""
    value = _plain(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.10g}" if isinstance(value, float) else " ".join(str(value).splitlines())
