"""Results that survive a kill: keyed CSV tables filled row by row, a manifest beside them, and claims with verdicts.

A chapter opens one `Run`, fills `Table`s through `sweep`, and closes with `Run.claims` and `Run.finish`. A rerun
computes the missing rows only; rows of other parameters or of changed library sources are set aside, never reused in
silence.
"""

import ast
import csv
import hashlib
import io
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock
from joblib import Parallel, delayed
from tqdm import tqdm

from fieldbook import paths
from fieldbook.checkpoints import atomic_write

PLUMBING = {f"fieldbook.{name}" for name in ("checkpoints", "figures", "parameters", "paths", "results")}
EXECUTION = ("workers", "shard")  # parameters that say how rows are computed, not which
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
    """

    def __init__(self, path: Path, keys: Sequence[str], before_write: Callable[[], None] = lambda: None):
        self.path, self.keys, self._before_write = Path(path), tuple(keys), before_write
        self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))

    def frame(self) -> pd.DataFrame:
        """All rows in file order; an empty frame with the key columns if there are none."""
        lines = self._lines()
        if not lines:
            return pd.DataFrame(columns=list(self.keys))
        return pd.read_csv(io.StringIO("".join(lines)))

    def has(self, key: Row) -> bool:
        """Is there a row with these key values?"""
        return self._key(key) in self._known(self._lines())

    def missing(self, keys: Iterable[Row]) -> list[Row]:
        """The keys without a row, in the order given."""
        known = self._known(self._lines())
        return [key for key in keys if self._key(key) not in known]

    def append(self, *rows: Row) -> None:
        """Add rows whose keys are new.

        Raises:
            ValueError: columns other than the file's.
            PermissionError: results are frozen.
            OSError: not written, for instance because the disk is full; the file keeps its old rows.
        """
        if paths.frozen():
            raise PermissionError(f"{self.path}: results are frozen, and row {self._key(rows[0])} is not among them")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._before_write()
        with self._lock:
            lines = self._lines()
            if lines and (header := next(csv.reader(lines[:1]))) != [str(name) for name in rows[0]]:
                raise ValueError(f"{self.path}: columns are {header}, the new row has {list(rows[0])}")
            known = self._known(lines)
            new = [row for row in rows if self._key(row) not in known]
            text = ("" if lines else _line(rows[0])) + "".join(_line(row.values()) for row in new)
            size = sum(len(line.encode()) for line in lines)
            with open(self.path, "r+b" if self.path.exists() else "w+b") as file:
                try:
                    file.truncate(size)
                    file.seek(size)
                    file.write(text.encode())
                    file.flush()
                    os.fsync(file.fileno())
                except OSError as error:
                    file.truncate(size)
                    raise OSError(error.errno, f"row not written ({error.strerror})", str(self.path)) from error

    def replace(self, frame: pd.DataFrame) -> None:
        """Put a whole frame in place of the rows, atomically."""
        if paths.frozen():
            raise PermissionError(f"{self.path}: results are frozen")
        self._before_write()
        records = frame.to_dict("records")
        text = _line(frame.columns) + "".join(_line(record.values()) for record in records)
        with self._lock:
            atomic_write(self.path, lambda file: file.write(text.encode()))

    def _lines(self) -> list[str]:
        if not self.path.exists():
            return []
        *lines, _torn = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        return [f"{line}\n" for line in lines]

    def _key(self, row: Row) -> tuple[str, ...]:
        if absent := [name for name in self.keys if name not in row]:
            raise ValueError(f"{self.path}: row without its key columns {absent}")
        return tuple(_text(row[name]) for name in self.keys)

    def _known(self, lines: list[str]) -> set[tuple[str, ...]]:
        return {self._key(row) for row in csv.DictReader(lines)}


def _text(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        value = value.item()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.10g}" if isinstance(value, float) else " ".join(str(value).split("\n"))


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
        ValueError: results are frozen and do not belong to these parameters.
    """

    def __init__(self, chapter: str, parameters: Row, uses: Iterable[Any] = ()):
        self.chapter, self.profile = chapter, parameters["profile"]
        self.folder, self.inputs = paths.data(chapter, self.profile), paths.inputs(chapter, self.profile)
        self._started, self._path = time.monotonic(), self.folder / "manifest.json"
        self._identity = {
            "chapter": chapter,
            "parameters": {name: value for name, value in parameters.items() if name not in EXECUTION},
            "sources": source_hash(uses),
        }
        if paths.frozen():
            self._require_same()
            return
        try:
            self.inputs.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock():
                if problem := self._stale():
                    print(f"setting aside earlier results of {chapter} ({problem})", file=sys.stderr)
                    for path in [*self.folder.glob("*.csv"), self.inputs]:
                        _set_aside(path)
                    self.inputs.mkdir()
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
        return Table(self.folder / f"{name}.csv", keys, self._reopen)

    def _reopen(self) -> None:
        """A complete run that gets new rows is partial again, until its hashes are renewed."""
        with self._lock():
            manifest = self.manifest()
            if manifest.get("status") == "complete":
                self._write({"status": "partial", "wall_s": manifest["wall_s"]})

    def claims(self, claims: Sequence[Row]) -> pd.DataFrame:
        """Write `claims.csv` from `claim(...)` rows and return it as a frame."""
        frame = pd.DataFrame(claims, columns=["claim", "source", "ours", "verdict"])
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
            old = self.manifest()
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
        """The manifest as it stands on disk; {} if there is none or it cannot be read."""
        try:
            return json.loads(self._path.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return {}

    def _write(self, facts: Row) -> None:
        text = json.dumps({**self._identity, **facts}, indent=1, sort_keys=True) + "\n"
        atomic_write(self._path, lambda file: file.write(text.encode()))

    def _stale(self) -> str | None:
        """Why the rows on disk are not this run's, or None."""
        manifest = self.manifest()
        if not {"parameters", "sources"} <= set(manifest):
            return "there is no manifest"
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
    frames = [pd.read_csv(file, dtype=str).assign(chapter=file.parts[-3]) for file in files]
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

    Args:
        table: keyed by columns that every job has.
        compute: job -> row (with the job's keys), run in `workers` processes of one thread each.
        shard: (i, n): take every n-th job from the i-th; other jobs are left to other calls on the same table.
    Raises:
        RuntimeError: jobs of other shards have not finished yet; what is missing is named.
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
        for row in parallel(delayed(_single_threaded)(compute, job) for job in todo):
            table.append(row)
            bar.update()
    if missing := table.missing(jobs):
        raise RuntimeError(f"{table.path}: {len(missing)} of {len(jobs)} rows are left to other shards")
    return _in_order(table, jobs)


def _single_threaded(compute: Callable[[Row], Row], job: Row) -> Row:
    torch.set_num_threads(1)
    return compute(job)


def _in_order(table: Table, jobs: Sequence[Row]) -> pd.DataFrame:
    """Rewrite the table in job order, so that the bytes do not depend on which job finished first."""
    frame = table.frame()
    rank = {table._key(job): position for position, job in enumerate(jobs)}
    order = [rank.get(table._key(row), len(rank)) for row in frame.to_dict("records")]
    frame = frame.iloc[pd.Series(order).argsort(kind="stable")].reset_index(drop=True)
    if order != sorted(order):
        table.replace(frame)
    return frame


# --- provenance ---------------------------------------------------------------------------------------------------


def provenance() -> dict[str, Any]:
    """Versions, device and git revision of this process."""
    cuda = torch.cuda.is_available()
    packages = ("fieldbook", "torch", "numpy", "pandas", "scipy")
    return {
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
        "device": torch.cuda.get_device_name() if cuda else f"cpu ({torch.backends.cpu.get_cpu_capability()})",
        "git": {
            "revision": _git("rev-parse", "HEAD"),
            "dirty": bool(_git("status", "--porcelain", "--", "lib", "book")),
        },
    }


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=paths.ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def source_hash(uses: Iterable[Any]) -> str:
    """Hash of the code of modules and of the fieldbook modules they import.

    Comments, docstrings and the plumbing that only moves rows and files do not count.
    """
    waiting = [getattr(use, "__module__", None) or use.__name__ for use in uses]
    trees: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        file = paths.ROOT / "lib" / f"{name.replace('.', '/')}.py"
        if name in trees or name in PLUMBING or not name.startswith("fieldbook.") or not file.exists():
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and _is_text(body[0]):
                node.body = body[1:] or [ast.Pass()]
        trees[name] = ast.unparse(tree)
    return hashlib.sha256("\n".join(f"{name}\n{trees[name]}" for name in sorted(trees)).encode()).hexdigest()[:16]


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
