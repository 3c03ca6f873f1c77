"""Tables that survive a kill: CSVs filled row by row, keyed, locked and fsynced, and the sweep that
fills them."""

import contextlib
import csv
import hashlib
import io
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from fieldbook.nn.checkpoints import atomic_write
from fieldbook.nn.workers import each
from fieldbook.run import paths

Row = Mapping[str, Any]
FILLING: ContextVar[str | None] = ContextVar("FILLING", default=None)
"""The file that the sweep of this moment fills."""
LIKE_A_NUMBER = re.compile(r"[-+]?inf|[-+\d.,'%\seE]*")  # as a spreadsheet may write it
PATIENCE = 1.0  # seconds that a sweep waits for another process before it looks elsewhere


class Table:
    """A CSV whose rows are identified by key columns and appended one by one under a lock, each
    fsynced.

    Keys are compared as values, as 1.00E-05 is 1e-05 after a spreadsheet. Numbers are written with
    ten significant digits. A row torn by a kill is dropped when the file is next touched; one whose
    key is there already is ignored, so that a resumed computation may repeat its last step.

    Args:
        writing: makes the context in which the file is changed; a lock beside it unless given.
    Raises:
        ValueError: (any method) the file has been damaged or edited into something else; names it
            and the remedy.
    """

    def __init__(
        self,
        path: Path,
        keys: Sequence[str],
        writing: Callable[[], AbstractContextManager] | None = None,
    ):
        self.path, self.keys = Path(path), tuple(keys)
        self._writing = writing or partial(FileLock, self.path.with_name(f".{self.path.name}.lock"))

    def frame(self) -> pd.DataFrame:
        """All rows in file order, empty fields as nan; an empty frame with the key columns if there
        are none."""
        lines, _ = self._read()
        if not lines:
            return pd.DataFrame(columns=list(self.keys))
        return pd.read_csv(io.StringIO("\n".join(lines)), keep_default_na=False, na_values=[""])

    def has(self, key: Row) -> bool:
        """Is there a row with these key values?"""
        return not self.missing([key])

    def missing(self, keys: Iterable[Row]) -> list[Row]:
        """The keys without a row, in the order given."""
        keys = list(keys)
        known = set(self._read(keys)[1])
        return [key for key in keys if self.key(key) not in known]

    def append(self, *rows: Row) -> None:
        """Add rows whose keys are new.

        Raises:
            ValueError: columns other than the file's.
            PermissionError: results are frozen.
            OSError: not written, for instance because the disk is full; the file keeps its old
                rows.
        """
        self._refuse_if_frozen()
        if not rows:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._writing():
            lines, keys = self._read(rows)
            header = next(csv.reader(lines), [str(name) for name in rows[0]])
            new: dict[tuple[str, ...], str] = {}
            for row in rows:
                if header != [str(name) for name in row]:
                    raise ValueError(
                        f"{self.path}: columns are {header}, the new row has {list(row)}"
                    )
                new.setdefault(self.key(row), _line(row.values()))
            text = ("" if lines else _line(header)) + "".join(
                new[key] for key in new if key not in set(keys)
            )
            size = sum(len(line.encode()) + 1 for line in lines)
            try:
                with open(self.path, "ab") as file:
                    file.truncate(size)
                    file.write(text.encode())
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.truncate(self.path, size)
                raise OSError(
                    error.errno, f"row not written ({error.strerror})", str(self.path)
                ) from error

    def replace(self, frame: pd.DataFrame) -> None:
        """Put a whole frame in place of the rows, atomically."""
        self._refuse_if_frozen()
        text = "".join(
            map(_line, [frame.columns, *(record.values() for record in frame.to_dict("records"))])
        )
        with self._writing():
            atomic_write(self.path, lambda file: file.write(text.encode()))

    def sort(self, order: Sequence[Row] | None = None) -> None:
        """Put the rows of these keys first, in this order, so that the bytes do not tell which was
        appended first.

        Args:
            order: by the key columns themselves unless given.
        """
        if order is None:
            order = self.frame().sort_values(list(self.keys)).to_dict("records")
        if self._sorted(order) != self._read()[0]:
            self._refuse_if_frozen()
            with self._writing():
                text = "".join(f"{line}\n" for line in self._sorted(order))
                atomic_write(self.path, lambda file: file.write(text.encode()))

    def key(self, row: Row) -> tuple[str, ...]:
        """What identifies a row: its key columns, as they are written."""
        if absent := [name for name in self.keys if name not in row]:
            raise ValueError(f"{self.path}: row without its key columns {absent}")
        return tuple(_text(row[name]) for name in self.keys)

    def _read(self, like: Sequence[Row] = ()) -> tuple[list[str], list[tuple[str, ...]]]:
        """Lines as they are on disk, header first, a torn one left out, and the key of each row.

        Args:
            like: rows whose values say which key columns hold numbers or truth values.
        """
        content = self.path.read_bytes() if self.path.exists() else b""
        try:
            lines = content[: content.rfind(b"\n") + 1].decode().split("\n")[:-1]
            header, *rows = list(csv.reader(lines)) or [self.keys]
            places = [header.index(name) for name in self.keys]
            if len(rows) != max(len(lines) - 1, 0) or any(len(row) != len(header) for row in rows):
                raise ValueError("not every line is a row with the header's fields")
            kinds = [_kind([row.get(name) for row in like]) for name in self.keys]
            columns = [
                _column([row[i] for row in rows], kind)
                for i, kind in zip(places, kinds, strict=True)
            ]
            keys = list(zip(*columns, strict=True))
            if len(set(keys)) < len(keys):
                raise ValueError(f"{', '.join(max(keys, key=keys.count))} comes twice")
        except (ValueError, csv.Error) as error:
            remedy = "restore the file, or delete it to compute it again"
            raise ValueError(
                f"{self.path} is no table keyed by {', '.join(self.keys)} ({error}); {remedy}"
            ) from None
        return lines, keys

    def _sorted(self, order: Sequence[Row]) -> list[str]:
        lines, keys = self._read(order)
        rank = {self.key(row): position for position, row in enumerate(order)}
        places = [-1, *(rank.get(key, len(rank)) for key in keys)]  # the header stays first
        return [line for _, line in sorted(zip(places, lines, strict=False), key=itemgetter(0))]

    def _refuse_if_frozen(self) -> None:
        if paths.frozen():
            raise PermissionError(f"{self.path}: results are frozen, and this would change them")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor | np.generic) else value


def _text(value: Any) -> str:
    value = _plain(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.10g}" if isinstance(value, float) else " ".join(str(value).splitlines())


def _kind(values: Sequence[Any]) -> type:
    """Whether a column of these values holds numbers or truth values; otherwise texts."""
    kinds = {type(_plain(value)) for value in values if _text(value)}
    return bool if kinds == {bool} else float if kinds and kinds <= {int, float} else str


def _column(texts: list[str], kind: type) -> list[str]:
    """Fields as `_text` writes their values; as they are, if there are other texts among them."""
    if kind is bool and {text.lower() for text in texts} <= {"", "true", "false"}:
        return [text.capitalize() for text in texts]
    if kind is float and all(LIKE_A_NUMBER.fullmatch(text) for text in texts):
        return [_number(text) for text in texts]
    return texts


def _number(text: str) -> str:
    try:
        return str(int(text))
    except ValueError:
        return _text(float(text)) if text else ""


def _line(values: Iterable[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow([_text(value) for value in values])
    return buffer.getvalue()


def sweep(
    table: Table,
    jobs: Sequence[Row],
    compute: Callable[[Row], Row],
    *,
    workers: int = 1,
    shard: Sequence[int] = (0, 1),
    cost: Callable[[Row], float] | None = None,
    description: str = "",
) -> pd.DataFrame:
    """Fill a table with one row per job, computing only those missing, and return it in the order
    of the jobs.

    Each row is in the file as soon as it is computed. Any number of processes, on all machines that
    share the folder, may fill one table: a job that one of them is at is left to it, and taken over
    if that process dies.

    Args:
        table: keyed by columns that every job has.
        compute: job -> row (with the job's keys), run in `workers` processes of one thread each.
        shard: (i, n): begin with every n-th job from the i-th, then help with the rest, so that n
            calls share a table.
        cost: of a job, in any unit; the dearest are begun first, so that no worker ends long after
            the others.
    Raises:
        ValueError: a row does not have its job's keys.
        Exception: whatever `compute` raised, with a note that names the job; the rows finished so
            far are kept.
    """
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"shard = {list(shard)}: expected [i, n] with 0 <= i < n")
    jobs = list(jobs)
    queue = sorted(jobs, key=cost, reverse=True) if cost else jobs
    todo = table.missing(job for k in range(count) for job in queue[(index + k) % count :: count])
    if todo and paths.frozen():
        raise PermissionError(
            f"{table.path}: results are frozen, and {len(todo)} rows are missing: {dict(todo[0])}, .."
        )
    with tqdm(total=len(todo), desc=description, mininterval=1, disable=not todo) as bar:
        patience = 0.0  # at first none, so that no job waits while others are free
        while todo:
            calls = [(job, compute, table, patience) for job in todo]
            for finished in each(_do, calls, workers, ordered=False):
                bar.update(finished)
            todo, patience = table.missing(todo), PATIENCE
    table.sort(jobs)
    return table.frame()


def _do(job: Row, compute: Callable[[Row], Row], table: Table, patience: float) -> bool:
    """Append one job's row, unless it is there; False if another process is at it for all of
    `patience` seconds."""
    digest = hashlib.sha256(repr(table.key(job)).encode()).hexdigest()[:16]
    path = table.path.with_name(f".{table.path.name}.{digest}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(path, timeout=patience, poll_interval=PATIENCE / 2).acquire()
    except Timeout:
        return False
    with lock:
        try:
            if not table.has(job):
                token = FILLING.set(table.path.name)
                try:
                    row = compute(job)
                finally:
                    FILLING.reset(token)
                if table.key(row) != table.key(job):
                    raise ValueError(f"{table.path}: computed a row with the key {table.key(row)}")
                table.append(row)
        except Exception as error:
            error.add_note(f"in the job {dict(job)} of {table.path}")
            raise
        path.unlink(missing_ok=True)  # whoever waits for it will find the row
    return True
