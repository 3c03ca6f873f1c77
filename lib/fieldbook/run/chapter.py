"""One chapter's run: its parameters, its tables, its claims and its figures.

A chapter begins with `start`, fills tables through `Run.sweep`, and closes with `Run.claims` and
`Run.finish`. What is computed belongs to all that it depends on, found by `fieldbook.nn.closure`:
whatever is changed, the tables that depend on it are computed anew and no others, and whoever goes
back finds the earlier rows.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock
from IPython.display import HTML, Markdown

from fieldbook.nn.checkpoints import atomic_write
from fieldbook.nn.closure import EVERYTHING, closure
from fieldbook.nn.identity import content_of, digest
from fieldbook.nn.machine import device
from fieldbook.run import figures, paths, tables
from fieldbook.run.claims import COLUMNS, EVIDENT, ORIGINS, judge
from fieldbook.run.manifest import provenance, read_manifest, sha256
from fieldbook.run.parameters import Parameters, load, meanings
from fieldbook.run.tables import Parts, Row

EXECUTION = ("workers", "shard", "train_missing")  # how rows are computed, not which
DERIVED = "claims.csv"  # from the tables, every time


def start(chapter: str) -> tuple[Parameters, torch.device, "Run"]:
    """What every notebook begins with: its checked parameters, the device, and its run.

    Figures take the book's style, and tables are shown with their long texts.

    Raises:
        ValueError: parameters that are not accepted; or frozen results are of others.
    """
    namespace = sys._getframe(1).f_globals
    par = load(chapter, namespace)
    figures.use_style()
    pd.set_option("display.max_colwidth", None)
    return par, device(), Run(chapter, par, meanings(chapter, namespace))


class Run:
    """One chapter under one set of parameters.

    Args:
        meanings: of the parameters by name, to be shown on the page.
    Attributes:
        folder: of the finished tables and their manifest, one per profile.
        inputs: of the parts that tables are made of, with checkpoints and the like. Those of other
            parameters and earlier code lie beside them.
    Raises:
        OSError: the results folder cannot be written; names it.
        ValueError: the profile names no folder; or results are frozen and do not belong to these
            parameters.
        RuntimeError: (any method that writes) a later run with other parameters has taken the
            folder.
    """

    def __init__(self, chapter: str, par: Parameters, meanings: Mapping[str, str] | None = None):
        self.chapter, self.par, self.profile = chapter, par, par.profile
        self._meanings = meanings or {}
        self.folder = paths.data(chapter, par.profile).resolve()  # links are followed, and stay
        self.inputs = paths.inputs(chapter, par.profile).resolve()
        self._started = time.monotonic()
        self._claims: dict[str, Row] = {}
        self._swept: dict[str, tuple[str, Parts]] = {}  # by table: its sweep and its parts
        self._of_tables: dict[str, str] = {}  # identity by table
        chosen = {key: value for key, value in par.asdict().items() if _determines(key)}
        self._chosen = json.loads(json.dumps(chosen))  # as a manifest gives it back
        if paths.frozen():
            self._require_same()
            return
        try:
            self.inputs.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock():
                self._begin()
        except OSError as error:
            remedy = (
                f"results cannot be written ({error.strerror}); set FIELDBOOK_RESULTS elsewhere"
            )
            where = str(error.filename or self.folder)
            raise type(error)(error.errno, remedy, where) from error

    def _begin(self) -> None:
        """Take the folder. Tables of other parameters go: their parts stay, to be joined again."""
        for unfinished in self.folder.glob(".*.tmp"):  # left by a kill: writers hold the lock
            unfinished.unlink()
        if self.manifest().get("parameters") != self._chosen:
            for table in self.folder.glob("*.csv"):
                table.unlink()
            self._write({"status": "partial", "wall_s": 0.0, "tables": {}})

    def sweep(
        self,
        name: str,
        jobs: Sequence[Row],
        compute: Callable[..., Any],
        *,
        cost: Callable[[Row], float] | None = None,
        reads: Mapping[str, Path] | None = None,
    ) -> pd.DataFrame:
        """Fill the table `name` with a row for each job, computing what is missing.

        Args:
            jobs: distinct; their values lead the rows.
            compute: job -> row, or {table: row or rows}, as `fieldbook.run.tables.sweep` has it.
                It may read parameters (`par.lr`) but not this run: hand it what else it needs.
            cost: of a job, in any unit.
            reads: further input files that determine the rows, by name.
        Returns:
            The table; the others by `frame`.
        """
        if paths.frozen():
            return self._published(name, jobs)
        identity = self._identity(compute, reads or {})
        parts = Parts(self.inputs / f"{name}-{identity}")
        par = self.par
        made = tables.sweep(
            parts, jobs, compute, name=name, cost=cost, workers=par.workers, shard=par.shard
        )
        found = list(made)
        joined: dict[str, list[Row]] = {name: []}
        for part in found:
            for table, rows in part.items():
                joined.setdefault(table, []).extend(rows)
        for table in joined:
            if self._swept.get(table, (name,))[0] != name:
                raise ValueError(f"two sweeps fill {table}: {self._swept[table][0]} and {name}")
            self._swept[table] = (name, parts)
        self._file({table: rows for table, rows in joined.items() if rows}, identity)
        return self.frame(name) if joined[name] else pd.DataFrame()

    def frame(self, name: str) -> pd.DataFrame:
        """A table that a sweep has filled, as it is published."""
        return tables.read_csv(self.folder / f"{name}.csv")

    def files(self, name: str, job: Row) -> Path:
        """The folder that a job of a sweep was given."""
        if paths.frozen():
            raise PermissionError(f"results are frozen, and have no files of {name} {dict(job)}")
        return self._swept[name][1].folder_of(job)

    def place(self, name: str, *things: Any) -> Path:
        """A folder for what several sweeps read, as data: another for other code or values.

        Args:
            things: what determines its content: functions, settings, numbers.
        """
        return self.inputs / f"{name}-{closure(*things, within=self.inputs).digest}"

    def _identity(self, compute: Callable, reads: Mapping[str, Path]) -> str:
        """Of all that a sweep's rows depend on: code, the parameters it mentions, input files."""
        found = closure(compute, watched=(Parameters, Run), within=self.inputs)
        if any(isinstance(one, Run) for one in found.met):
            remedy = "hand it the folders and tables that it needs (`folder`, `run.files(..)`)"
            known = getattr(compute, "__qualname__", compute)
            raise ValueError(f"{known} uses the run itself; {remedy}")
        whole = EVERYTHING in found.words
        read = {
            f"{key} = {value!r}"
            for par in found.met
            for key, value in par.asdict().items()
            if _determines(key) and key != "profile" and (whole or key in found.words)
        }
        files = {name: content_of(path) for name, path in reads.items()}
        return digest(sorted(found.parts), sorted(read), files)

    def _file(self, joined: Mapping[str, Sequence[Row]], identity: str) -> None:
        """Write finished tables, and note in the manifest what they belong to."""
        with self._lock():
            manifest = self._own_manifest()
            for table, rows in joined.items():
                tables.write_csv(self.folder / f"{table}.csv", rows)
            noted = manifest.get("tables", {}) | dict.fromkeys(joined, identity)
            self._of_tables |= dict.fromkeys(joined, identity)
            hashes = manifest.get("csv_sha256", {})
            same = all(hashes.get(f"{t}.csv") == sha256(self.folder / f"{t}.csv") for t in joined)
            if not same or noted != manifest.get("tables"):
                self._write({"status": "partial", "wall_s": manifest["wall_s"], "tables": noted})

    def _published(self, name: str, jobs: Sequence[Row]) -> pd.DataFrame:
        """A frozen table; raises PermissionError if a job has no row there."""
        if not jobs:
            return pd.DataFrame()
        file = self.folder / f"{name}.csv"
        frame = tables.read_csv(file) if file.exists() else pd.DataFrame(columns=list(jobs[0]))
        keys = frame[list(jobs[0])].to_numpy(object)  # of () too, for a job without values
        known = {tuple(map(tables.text, key)) for key in keys}
        missing = [job for job in jobs if tuple(map(tables.text, job.values())) not in known]
        if missing:
            found = f"{len(missing)} rows are missing: {dict(missing[0])}, .."
            raise PermissionError(f"{file}: results are frozen, and {found}")
        return frame

    def answer(self, text: str, tested: bool = True) -> Markdown:
        """The chapter's answer, to stand under its title; of a run too small for it, that it is.

        Args:
            text: Markdown, two or three sentences whose numbers were computed.
            tested: whether this run can answer the question.
        """
        if tested:
            return Markdown(f"**Answer.** {text}")
        small = f"At these parameters (profile *{self.profile}*) the page only shows that it works."
        return Markdown(f"**No answer yet.** {small} Of a run this small one would say: {text}")

    def claim(
        self,
        text: str,
        found: str,
        *,
        of: str,
        section: str,
        source: str = "",
        entry: str = "",
        reason: str = "",
        estimate: Any = None,
        error: Any = None,
        interval: tuple | None = None,
        above: float = -math.inf,
        below: float = math.inf,
        holds: bool | None = None,
        tested: bool = True,
        first: bool = False,
    ) -> None:
        """Note a claim with the verdict that follows from what was measured.

        One that this run cannot test keeps its numbers alone. A claim of the same text takes the
        place of an earlier one, so that a cell may be run again.

        Args:
            text: the claim, with its threshold.
            found: what was measured, with its error and the number of runs.
            of: whose claim it is, one of `fieldbook.run.claims.ORIGINS`.
            section: of this page, with the evidence: its heading as a link has it.
            source, entry: what the source says, and its entry among those of the logs.
            reason: why the threshold is where it is; needed unless that is 0 or 1.
            estimate, error, interval, above, below: as `fieldbook.run.claims.judge` has them.
            holds: instead of them, for what was counted or is exact, hence has no error.
            tested: whether this setting can test the claim at all.
            first: one of the three that matter most.
        """
        if of not in ORIGINS or (of == "log") != bool(entry):
            expected = f"expected one of {', '.join(ORIGINS)}, with an entry if it is of a log"
            raise ValueError(f"of = {of!r}, entry = {entry!r} of {text!r}: {expected}")
        if not {above, below} <= set(EVIDENT) and not reason:
            raise ValueError(f"{text!r} has a threshold without a reason")
        low = high = math.nan
        verdict = "not tested"
        if tested and holds is not None:
            verdict = "holds" if holds else "fails"
        elif tested:
            verdict, low, high = judge(estimate, error, interval=interval, above=above, below=below)
        values = [text, of, source, reason, entry, section, found, low, high, above, below, verdict]
        self._claims[text] = dict(zip(COLUMNS, [*values, first], strict=True))

    def claims(self) -> pd.DataFrame:
        """Write all claims to `claims.csv`, but not over published ones; return them as a frame."""
        frame = pd.DataFrame(self._claims.values(), columns=[*COLUMNS])
        if paths.reads_published():
            return frame
        text = frame.to_csv(index=False).encode()
        with self._lock():
            if not paths.frozen():
                self._own_manifest()
            atomic_write(self.folder / DERIVED, lambda file: file.write(text))
        return frame

    def parameters(self) -> HTML:
        """Each parameter with its value here and its meaning, as a table to be read."""
        values = self.par.asdict().items()
        shown = [(name, str(value), self._meanings.get(name, "")) for name, value in values]
        frame = pd.DataFrame(shown, columns=["parameter", "value", "meaning"])
        return HTML(frame.to_html(index=False, border=0, classes="ledger", justify="left"))

    def figure(self, figure: figures.Figure, name: str) -> None:
        """Write a figure under a name, as PNG and PDF."""
        figures.save(figure, self.chapter, self.profile, name)

    def finish(self, **facts: Any) -> pd.DataFrame:
        """Mark the run complete: hash its CSVs into the manifest, with versions, device, revision
        and wall time.

        Args:
            facts: what else was settled at run time, as the precision that `auto` became.
        Returns:
            Versions, device and wall time of the run that made the rows, to be shown.
        """
        if not paths.frozen():
            with self._lock():
                self._complete(facts)
        made = self.manifest()
        shown = {**made["versions"], "device": made["device"], "wall time, s": made["wall_s"]}
        return pd.Series(shown).to_frame("this run")

    def _complete(self, facts: Row) -> None:
        old = self._own_manifest()
        for table in self.folder.glob("*.csv"):
            if table.stem not in self._of_tables and table.name != DERIVED:
                table.unlink()  # of earlier code, which made other tables
        hashes = {f"{t}.csv": sha256(self.folder / f"{t}.csv") for t in sorted(self._of_tables)}
        if old.get("csv_sha256") != hashes or old.get("tables") != self._of_tables:
            wall_s = round(old["wall_s"] + time.monotonic() - self._started, 1)
            made = {"csv_sha256": hashes, "tables": self._of_tables, **provenance()}
            self._write({"status": "complete", "wall_s": wall_s, **made, **facts})

    def _lock(self) -> FileLock:
        return FileLock(self.folder / ".manifest.lock")

    def manifest(self) -> dict[str, Any]:
        """The manifest as `fieldbook.run.manifest.read_manifest` gives it."""
        return read_manifest(self.folder)

    def _own_manifest(self) -> dict[str, Any]:
        manifest = self.manifest()
        if manifest.get("parameters") != self._chosen:
            remedy = "run this one again, under another `profile` if both are wanted"
            problem = "has been taken by another run or emptied since this one began"
            raise RuntimeError(f"{self.folder} {problem}; nothing was written: {remedy}")
        return manifest

    def _write(self, facts: Row) -> None:
        content = {"chapter": self.chapter, "parameters": self._chosen, **facts}
        text = json.dumps(content, indent=1, sort_keys=True) + "\n"
        atomic_write(self.folder / "manifest.json", lambda file: file.write(text.encode()))

    def _require_same(self) -> None:
        """Raise ValueError unless frozen tables are those that these parameters have made."""
        manifest = self.manifest()
        problem = None
        if not manifest:
            problem = "there is no readable manifest"
        elif manifest["parameters"] != self._chosen:
            problem = _difference(manifest["parameters"], self._chosen)
        else:
            problem = next(self._altered(manifest.get("csv_sha256", {})), None)
        if problem:
            asked = "frozen results are not those asked for"
            raise ValueError(f"{self.folder}: {asked}: {problem}; recompute and publish")

    def _altered(self, hashes: Mapping[str, str]) -> Iterator[str]:
        found = {file.name: sha256(file) for file in self.folder.glob("*.csv")}
        found.pop(DERIVED, None)
        for name in sorted(hashes | found):
            if hashes.get(name) != found.get(name):
                yield f"{name} is not the file that the manifest describes"


def _determines(parameter: str) -> bool:
    return parameter not in EXECUTION and not parameter.startswith("draw_")


def _difference(old: Row, new: Row) -> str:
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} was {old.get(name)}, is {new.get(name)}" for name in names)
