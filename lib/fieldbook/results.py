"""Results that survive a kill: keyed CSV tables filled row by row, a manifest beside them, and claims with verdicts.

A chapter opens one `Run`, fills `Table`s through `sweep`, and closes with `Run.claims` and `Run.finish`. A rerun
computes the missing rows only; rows of other parameters or of changed library sources are set aside, never reused in
silence.
"""

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from joblib import Parallel, delayed
from tqdm import tqdm

from fieldbook import paths
from fieldbook.checkpoints import atomic_write
from fieldbook.provenance import provenance, source_hash

EXECUTION = ("workers", "shard")  # parameters that say how rows are computed, not which
MANIFEST = {"parameters": dict, "sources": str, "status": str, "wall_s": int | float, "csv_sha256": dict}
VERDICTS = {True: "holds", False: "fails", None: "not tested here"}
Row = Mapping[str, Any]


# --- files --------------------------------------------------------------------------------------------------------


def _set_aside(path: Path) -> None:
    """Keep one older generation of a stale file or folder as `<name>.stale`."""
    if path.exists():
        stale = path.with_name(f"{path.name}.stale")
        shutil.rmtree(stale, ignore_errors=True) if stale.is_dir() else stale.unlink(missing_ok=True)
        os.replace(path, stale)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- tables -------------------------------------------------------------------------------------------------------


class Table:
    """A CSV whose rows are identified by key columns and appended one by one under a lock, each fsynced.

    Numbers are written with ten significant digits. A row torn by a kill is dropped when the file is next touched; a
    row whose key is there already is ignored, so that a resumed computation may repeat its last step.

    Args:
        writing: makes the context in which the file is changed; a lock beside it unless given.
    Raises:
        ValueError: (any method) the file has been damaged or edited into something else; names it and the remedy.
    """

    def __init__(self, path: Path, keys: Sequence[str], writing: Callable[[], AbstractContextManager] | None = None):
        self.path, self.keys = Path(path), tuple(keys)
        self._writing = writing or partial(FileLock, self.path.with_name(f".{self.path.name}.lock"))

    def frame(self) -> pd.DataFrame:
        """All rows in file order, empty fields as nan; an empty frame with the key columns if there are none."""
        lines, _ = self._read()
        if not lines:
            return pd.DataFrame(columns=list(self.keys))
        return pd.read_csv(io.StringIO("\n".join(lines)), keep_default_na=False, na_values=[""])

    def has(self, key: Row) -> bool:
        """Is there a row with these key values?"""
        return not self.missing([key])

    def missing(self, keys: Iterable[Row]) -> list[Row]:
        """The keys without a row, in the order given."""
        known = set(self._read()[1])
        return [key for key in keys if self.key(key) not in known]

    def append(self, *rows: Row) -> None:
        """Add rows whose keys are new.

        Raises:
            ValueError: columns other than the file's.
            PermissionError: results are frozen.
            OSError: not written, for instance because the disk is full; the file keeps its old rows.
        """
        self._refuse_if_frozen()
        if not rows:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._writing():
            lines, keys = self._read()
            header = next(csv.reader(lines), [str(name) for name in rows[0]])
            new: dict[tuple[str, ...], str] = {}
            for row in rows:
                if header != [str(name) for name in row]:
                    raise ValueError(f"{self.path}: columns are {header}, the new row has {list(row)}")
                new.setdefault(self.key(row), _line(row.values()))
            text = ("" if lines else _line(header)) + "".join(new[key] for key in new if key not in set(keys))
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
                raise OSError(error.errno, f"row not written ({error.strerror})", str(self.path)) from error

    def replace(self, frame: pd.DataFrame) -> None:
        """Put a whole frame in place of the rows, atomically."""
        self._refuse_if_frozen()
        text = "".join(map(_line, [frame.columns, *(record.values() for record in frame.to_dict("records"))]))
        with self._writing():
            atomic_write(self.path, lambda file: file.write(text.encode()))

    def sort(self, order: Sequence[Row]) -> None:
        """Put the rows of these keys first, in this order, so that the bytes do not tell which was appended first."""
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

    def _read(self) -> tuple[list[str], list[tuple[str, ...]]]:
        """Lines as they are on disk, the header first and a torn one left out, and the key of each row."""
        content = self.path.read_bytes() if self.path.exists() else b""
        try:
            lines = content[: content.rfind(b"\n") + 1].decode().split("\n")[:-1]
            header, *rows = list(csv.reader(lines)) or [self.keys]
            places = [header.index(name) for name in self.keys]
            if len(rows) != max(len(lines) - 1, 0) or any(len(row) != len(header) for row in rows):
                raise ValueError("not every line is a row with the header's fields")
        except (ValueError, csv.Error) as error:
            remedy = "restore the file, or delete it to compute it again"
            raise ValueError(f"{self.path} is no table keyed by {', '.join(self.keys)} ({error}); {remedy}") from None
        return lines, [tuple(row[i] for i in places) for row in rows]

    def _sorted(self, order: Sequence[Row]) -> list[str]:
        lines, keys = self._read()
        rank = {self.key(row): position for position, row in enumerate(order)}
        places = [-1, *(rank.get(key, len(rank)) for key in keys)]  # the header stays first
        return [line for _, line in sorted(zip(places, lines, strict=False), key=itemgetter(0))]

    def _refuse_if_frozen(self) -> None:
        if paths.frozen():
            raise PermissionError(f"{self.path}: results are frozen, and this would change them")


def _text(value: Any) -> str:
    if isinstance(value, torch.Tensor | np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.10g}" if isinstance(value, float) else " ".join(str(value).splitlines())


def _line(values: Iterable[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow([_text(value) for value in values])
    return buffer.getvalue()


# --- runs ---------------------------------------------------------------------------------------------------------


class Run:
    """One chapter under one profile: its folders, its parameters, and the manifest that vouches for its rows.

    Args:
        chapter: names the folders.
        parameters: checked parameters (`fieldbook.parameters.load`), with `profile` among them.
        uses: modules or functions whose sources, with all of fieldbook that they import, determine the rows.
    Raises:
        OSError: the results folder cannot be written; names it.
        ValueError: the profile names no folder; or results are frozen and do not belong to these parameters.
        RuntimeError: (any method that writes) a later run with other parameters or sources has taken the folder.
    """

    def __init__(self, chapter: str, parameters: Row, uses: Iterable[Any] = ()):
        self.chapter, self.profile = chapter, parameters["profile"]
        self.folder, self.inputs = paths.data(chapter, self.profile), paths.inputs(chapter, self.profile)
        self._started = time.monotonic()
        chosen = {name: value for name, value in parameters.items() if name not in EXECUTION}
        identity = {"chapter": chapter, "parameters": chosen, "sources": source_hash(uses)}
        self._identity = json.loads(json.dumps(identity))  # as a manifest gives it back: tuples are lists there
        if paths.frozen():
            self._require_same()
            return
        try:
            self.inputs.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock():
                for unfinished in self.folder.glob(".*.tmp"):  # left by a kill: writers hold the lock
                    unfinished.unlink()
                if problem := self._stale():
                    earlier = [*self.folder.glob("*.csv"), *([self.inputs] if any(self.inputs.iterdir()) else [])]
                    if earlier:
                        print(f"setting aside earlier results of {chapter} ({problem})", file=sys.stderr)
                    for path in earlier:
                        _set_aside(path)
                    self.inputs.mkdir(exist_ok=True)
                    self._write({"status": "partial", "wall_s": 0.0})
        except OSError as error:
            where = error.filename or self.folder
            raise type(error)(
                error.errno,
                f"results cannot be written ({error.strerror}); set FIELDBOOK_RESULTS elsewhere",
                str(where),
            ) from error

    def table(self, name: str, keys: Sequence[str]) -> Table:
        """The table `<name>.csv` of this run."""
        return Table(self.folder / f"{name}.csv", keys, self._writing)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the manifest while a table changes; a complete run is partial again, until its hashes are renewed."""
        with self._lock():
            manifest = self._own_manifest()
            if manifest["status"] == "complete":
                self._write({"status": "partial", "wall_s": manifest["wall_s"]})
            yield

    def claims(self, claims: Sequence[Row]) -> pd.DataFrame:
        """Write `claims.csv` from `claim(...)` rows and return it as a frame."""
        frame = pd.DataFrame(claims, columns=["claim", "source", "ours", "verdict"])
        with self._lock():
            if not paths.frozen():
                self._own_manifest()
            atomic_write(self.folder / "claims.csv", lambda file: file.write(frame.to_csv(index=False).encode()))
        return frame

    def finish(self, **facts: Any) -> dict[str, Any]:
        """Mark the run complete: hash its CSVs into the manifest, with versions, device, revision and wall time.

        Args:
            facts: what else was settled at run time, for instance the precision that `auto` became.
        """
        if paths.frozen():
            return self.manifest()
        with self._lock():
            old = self._own_manifest()
            tables = sorted(path for path in self.folder.glob("*.csv") if path.name != "claims.csv")  # that is derived
            hashes = {path.name: sha256(path) for path in tables}
            if old.get("csv_sha256") == hashes:
                return old
            self._write(
                {
                    "status": "complete",
                    "wall_s": round(old["wall_s"] + time.monotonic() - self._started, 1),
                    "csv_sha256": hashes,
                    **provenance(),
                    **facts,
                }
            )
        return self.manifest()

    def _lock(self) -> FileLock:
        return FileLock(self.folder / ".manifest.lock")  # made anew: a run travels to worker processes, a lock cannot

    def manifest(self) -> dict[str, Any]:
        """The manifest as `read_manifest` gives it."""
        return read_manifest(self.folder)

    def _own_manifest(self) -> dict[str, Any]:
        manifest = self.manifest()
        if any(manifest.get(name) != value for name, value in self._identity.items()):
            remedy = "nothing was written: run this one again, under another `profile` if both are wanted"
            raise RuntimeError(f"{self.folder} has been taken by another run or emptied since this one began; {remedy}")
        return manifest

    def _write(self, facts: Row) -> None:
        text = json.dumps({**self._identity, **facts}, indent=1, sort_keys=True) + "\n"
        atomic_write(self.folder / "manifest.json", lambda file: file.write(text.encode()))

    def _stale(self) -> str | None:
        """Why the rows on disk are not this run's, or None."""
        manifest = self.manifest()
        if not manifest:
            return "there is no readable manifest"
        if manifest["parameters"] != self._identity["parameters"]:
            return _difference(manifest["parameters"], self._identity["parameters"])
        if manifest["sources"] != self._identity["sources"]:
            return "the library has changed"
        for name, digest in manifest.get("csv_sha256", {}).items():
            if not (self.folder / name).exists() or sha256(self.folder / name) != digest:
                return f"{name} is not the file that the manifest describes"
        return None

    def _require_same(self) -> None:
        problem = self._stale()
        if problem == "the library has changed":
            print(f"note: {self.chapter} was computed by an earlier version of the library", file=sys.stderr)
        elif problem:
            raise ValueError(f"{self.folder}: frozen results are not those asked for: {problem}; recompute and publish")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest in a folder of results; {} if there is none, or it is damaged."""
    try:
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    whole = all(isinstance({"csv_sha256": {}, **found}.get(name), kind) for name, kind in MANIFEST.items())
    return found if whole else {}


def _difference(old: Row, new: Row) -> str:
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} was {old.get(name)}, is {new.get(name)}" for name in names)


def claim(text: str, source: str, ours: str, verdict: bool | None) -> dict[str, str]:
    """One row of the claims table; `verdict` is a computed truth value, or None for what this run cannot test."""
    if verdict is not None:
        verdict = bool(verdict)
    return {"claim": text, "source": source, "ours": ours, "verdict": VERDICTS[verdict]}


def ledger(profile: str) -> pd.DataFrame:
    """The claims of every chapter that has finished a profile: chapter, claim, source, ours, verdict."""
    files = sorted(paths.results().glob(f"data/*/{profile}/claims.csv"))
    frames = [pd.read_csv(file, dtype=str, keep_default_na=False).assign(chapter=file.parts[-3]) for file in files]
    columns = ["chapter", "claim", "source", "ours", "verdict"]
    return pd.concat(frames)[columns] if frames else pd.DataFrame(columns=columns)


def sweep(
    table: Table,
    jobs: Sequence[Row],
    compute: Callable[[Row], Row],
    *,
    workers: int = 1,
    shard: Sequence[int] = (0, 1),
    description: str = "",
) -> pd.DataFrame:
    """Fill a table with one row per job, computing only those missing, and return it in the order of the jobs.

    Each row is in the file as soon as it is computed. A job that another process is at is waited for, not repeated.

    Args:
        table: keyed by columns that every job has.
        compute: job -> row (with the job's keys), run in `workers` processes of one thread each.
        shard: (i, n): take every n-th job from the i-th; other jobs are left to other calls on the same table.
    Raises:
        ValueError: a row does not have its job's keys.
        RuntimeError: jobs of other shards have not finished yet; what is missing is named.
        Exception: whatever `compute` raised, with a note that names the job; the rows finished so far are kept.
    """
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"shard = {list(shard)}: expected [i, n] with 0 <= i < n")
    todo = table.missing(list(jobs)[index::count])
    if todo and paths.frozen():
        raise PermissionError(
            f"{table.path}: results are frozen, and {len(todo)} rows are missing: {dict(todo[0])}, .."
        )
    parallel = Parallel(n_jobs=min(workers, len(todo)) or 1, return_as="generator_unordered")
    with tqdm(total=len(todo), desc=description, mininterval=1, disable=not todo) as bar:
        for _ in parallel(delayed(_do)(job, compute, table) for job in todo):
            bar.update()
    if missing := table.missing(jobs):
        raise RuntimeError(f"{table.path}: {len(missing)} of {len(jobs)} rows are left to other shards")
    table.sort(jobs)
    return table.frame()


def _do(job: Row, compute: Callable[[Row], Row], table: Table) -> None:
    """Append one job's row, unless another process has done so by the time that this one may begin."""
    torch.set_num_threads(1)
    digest = hashlib.sha256(repr(table.key(job)).encode()).hexdigest()[:16]
    lock = table.path.with_name(f".{table.path.name}.{digest}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        try:
            if not table.has(job):
                row = compute(job)
                if table.key(row) != table.key(job):
                    raise ValueError(f"{table.path}: computed a row with the key {table.key(row)}")
                table.append(row)
        except Exception as error:
            error.add_note(f"in the job {dict(job)} of {table.path}")
            raise
        lock.unlink(missing_ok=True)  # whoever waits for it will find the row
