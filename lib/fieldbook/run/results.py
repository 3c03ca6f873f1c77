"""A chapter's results: the manifest that vouches for its tables, and its claims with their
verdicts.

A chapter opens one `Run`, fills tables through `Run.sweep`, and closes with `Run.claims` and
`Run.finish`. A rerun computes the missing rows only; rows of other parameters or of changed code
are set aside, never reused in silence.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from fieldbook.nn.checkpoints import atomic_write
from fieldbook.nn.identity import content_of, digest
from fieldbook.run import paths
from fieldbook.run.provenance import provenance, source_hash
from fieldbook.run.tables import FILLING, Row, Table, sweep

EXECUTION = (
    "workers",
    "shard",
    "train_missing",
)  # how rows are computed, not which; so do those named draw_..
MANIFEST = {"parameters": dict, "sources": str, "status": str, "wall_s": int | float}
MANIFEST |= {"csv_sha256": dict, "filled_by": dict}
CLAIM = ["claim", "source", "ours", "verdict"]
OLDER = "the library has changed"
ALTERED = "{} is not the file that the manifest describes"
VERDICTS = {True: "holds", False: "fails", None: "not tested here"}


def _set_aside(path: Path) -> None:
    """Keep one older generation of a stale file or folder as `<name>.stale`."""
    if path.exists():
        stale = path.with_name(f"{path.name}.stale")
        if stale.is_dir() and not stale.is_symlink():
            shutil.rmtree(stale, ignore_errors=True)
        else:
            stale.unlink(missing_ok=True)
        os.replace(path, stale)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Run:
    """One chapter under one profile: its folders, its parameters, and the manifest that vouches for
    its rows.

    Args:
        chapter: names the folders.
        parameters: checked parameters (`fieldbook.run.parameters.load`), with `profile` among them.
        uses: what determines the rows beside the parameters: library modules, functions of the
            notebook, constants.
        reads: input files that do so too, by name: rows belong to their content. Frozen results do
            without them.
    Attributes:
        folder: of the tables, one per profile: a run with other parameters or sources takes it.
        inputs: of checkpoints and the like, in which no other run ever writes.
    Raises:
        OSError: the results folder cannot be written; names it.
        ValueError: the profile names no folder; or results are frozen and do not belong to these
            parameters.
        RuntimeError: (any method that writes) a later run with other parameters or sources has
            taken the folder.
    """

    def __init__(
        self,
        chapter: str,
        parameters: Row,
        uses: Iterable[Any] = (),
        reads: Mapping[str, Path] | None = None,
    ):
        self.chapter, self.profile = chapter, parameters["profile"]
        self.folder = paths.data(chapter, self.profile).resolve()  # links are followed, and stay
        inputs = paths.inputs(chapter, self.profile).resolve()
        self._started, self._claims = time.monotonic(), {}
        chosen = {
            k: value
            for k, value in parameters.items()
            if k not in EXECUTION and not k.startswith("draw_")
        }
        identity = {"chapter": chapter, "parameters": chosen, "sources": source_hash(uses)}
        if reads and not paths.frozen():
            identity["inputs"] = {name: content_of(path) for name, path in reads.items()}
        self._identity = json.loads(
            json.dumps(identity)
        )  # as a manifest gives it back: tuples are lists there
        self.inputs = inputs / digest(self._identity)
        if paths.frozen():
            self._require_same()
            return
        try:
            inputs.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock():
                for unfinished in self.folder.glob(
                    ".*.tmp"
                ):  # left by a kill: writers hold the lock
                    unfinished.unlink()
                self._begin(inputs)
                self.inputs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            where = error.filename or self.folder
            raise type(error)(
                error.errno,
                f"results cannot be written ({error.strerror}); set FIELDBOOK_RESULTS elsewhere",
                str(where),
            ) from error

    def _begin(self, inputs: Path) -> None:
        """Set aside all of another run; or what was altered, with the tables it is filled by."""
        manifest = self.manifest()
        facts = {"status": "partial", "wall_s": 0.0}
        if problem := self._stale(manifest):
            earlier = [*self.folder.glob("*.csv"), *([inputs] if any(inputs.iterdir()) else [])]
        elif altered := self._altered(manifest):
            problem = ALTERED.format(altered[0])
            facts |= {"wall_s": manifest["wall_s"], "filled_by": manifest.get("filled_by", {})}
            fillers = [name for side in altered for name in facts["filled_by"].get(side, [])]
            earlier = [self.folder / name for name in sorted({*altered, *fillers})]
        else:
            return
        if earlier:
            print(f"setting aside earlier results of {self.chapter} ({problem})", file=sys.stderr)
        for path in earlier:
            _set_aside(path)
        self._write(facts)

    def table(self, name: str, keys: Sequence[str]) -> Table:
        """The table `<name>.csv` of this run."""
        path = self.folder / f"{name}.csv"
        return Table(path, keys, partial(self._writing, path.name))

    def sweep(
        self, name: str, jobs: Sequence[Row], compute: Callable[[Row], Row], **options: Any
    ) -> pd.DataFrame:
        """Fill `<name>.csv`, keyed by what the jobs hold, by `fieldbook.run.tables.sweep` with its
        options."""
        return sweep(
            self.table(name, list(jobs[0])), jobs, compute, **{"description": name, **options}
        )

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """Hold the manifest while a table changes; a complete run is partial until it finishes.

        A table filled within a sweep of another comes back only if that is swept again: noted.
        """
        with self._lock():
            manifest, filling = self._own_manifest(), FILLING.get()
            filled_by = manifest.get("filled_by", {})
            facts = {"status": "partial", "wall_s": manifest["wall_s"], "filled_by": filled_by}
            if manifest["status"] == "complete":
                self._write(facts)
            yield
            fillers = set(filled_by.get(name, ()))
            if not fillers >= {filling} - {name, None}:
                filled_by[name] = sorted(fillers | {filling})
                self._write(facts)

    def claim(
        self, text: str, source: str, ours: str, verdict: bool | None, tested: bool = True
    ) -> None:
        """Note a claim with the truth value that code came to; one that this run cannot test keeps
        its numbers alone.

        A claim of the same text takes the place of an earlier one, so that a cell may be run again.
        """
        known = VERDICTS[bool(verdict) if tested and verdict is not None else None]
        self._claims[text] = {"claim": text, "source": source, "ours": ours, "verdict": known}

    def claims(self) -> pd.DataFrame:
        """Write all claims to `claims.csv` and return them as a frame."""
        frame = pd.DataFrame(self._claims.values(), columns=CLAIM)
        with self._lock():
            if not paths.frozen():
                self._own_manifest()
            atomic_write(
                self.folder / "claims.csv",
                lambda file: file.write(frame.to_csv(index=False).encode()),
            )
        return frame

    def finish(self, **facts: Any) -> pd.DataFrame:
        """Mark the run complete: hash its CSVs into the manifest, with versions, device, revision
        and wall time.

        Args:
            facts: what else was settled at run time, for instance the precision that `auto` became.
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
        tables = sorted(
            path for path in self.folder.glob("*.csv") if path.name != "claims.csv"
        )  # that is derived
        hashes = {path.name: sha256(path) for path in tables}
        if old.get("csv_sha256") != hashes:
            wall_s = round(old["wall_s"] + time.monotonic() - self._started, 1)
            made = {"csv_sha256": hashes, "filled_by": old.get("filled_by", {}), **provenance()}
            self._write({"status": "complete", "wall_s": wall_s, **made, **facts})

    def _lock(self) -> FileLock:
        return FileLock(
            self.folder / ".manifest.lock"
        )  # made anew: a run travels to worker processes, a lock cannot

    def manifest(self) -> dict[str, Any]:
        """The manifest as `read_manifest` gives it."""
        return read_manifest(self.folder)

    def _own_manifest(self) -> dict[str, Any]:
        manifest = self.manifest()
        if any(manifest.get(name) != value for name, value in self._identity.items()):
            remedy = "nothing was written: run this one again, under another `profile` if both are wanted"
            raise RuntimeError(
                f"{self.folder} has been taken by another run or emptied since this one began; {remedy}"
            )
        return manifest

    def _write(self, facts: Row) -> None:
        text = json.dumps({**self._identity, **facts}, indent=1, sort_keys=True) + "\n"
        atomic_write(self.folder / "manifest.json", lambda file: file.write(text.encode()))

    def _stale(self, manifest: Row) -> str | None:
        """Why the rows on disk are not this run's, or None."""
        if not manifest:
            return "there is no readable manifest"
        if manifest["parameters"] != self._identity["parameters"]:
            return _difference(manifest["parameters"], self._identity["parameters"])
        if not paths.frozen() and (old := manifest.get("inputs", {})) != (
            new := self._identity.get("inputs", {})
        ):
            return f"input {next(name for name in {**old, **new} if old.get(name) != new.get(name))} has changed"
        return OLDER if manifest["sources"] != self._identity["sources"] else None

    def _altered(self, manifest: Row) -> list[str]:
        """Tables that are not as a complete run's manifest says; of a partial one, those
        deleted."""
        hashes = manifest.get("csv_sha256")
        if hashes is None:
            sides = manifest.get("filled_by", {})
            return [name for name in sides if not (self.folder / name).exists()]
        files = [file for file in self.folder.glob("*.csv") if file.name != "claims.csv"]
        found = {file.name: sha256(file) for file in files}
        return sorted(name for name in hashes | found if hashes.get(name) != found.get(name))

    def _require_same(self) -> None:
        manifest = self.manifest()
        problem = self._stale(manifest)
        if problem == OLDER:
            print(
                f"note: {self.chapter} was computed by an earlier version of the library",
                file=sys.stderr,
            )
            problem = None
        if problem := problem or next(map(ALTERED.format, self._altered(manifest)), None):
            raise ValueError(
                f"{self.folder}: frozen results are not those asked for: {problem}; recompute and publish"
            )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest in a folder of results; {} if there is none, or it is damaged."""
    try:
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    entries = {"csv_sha256": {}, "filled_by": {}, **found}
    whole = all(isinstance(entries.get(name), kind) for name, kind in MANIFEST.items())
    return found if whole else {}


def _difference(old: Row, new: Row) -> str:
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} was {old.get(name)}, is {new.get(name)}" for name in names)


def ledger(profile: str) -> pd.DataFrame:
    """The claims of every chapter that has finished a profile: chapter, claim, source, ours,
    verdict.

    Raises:
        ValueError: a table of claims is damaged; names it.
    """
    files = sorted(paths.results().glob(f"data/*/{profile}/claims.csv"))
    columns = ["chapter", "claim", "source", "ours", "verdict"]
    frames = [_read_claims(file).assign(chapter=file.parts[-3])[columns] for file in files]
    return pd.concat(frames) if frames else pd.DataFrame(columns=columns)


def _read_claims(file: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise ValueError(
            f"{file} is no table of claims ({error}); run its chapter again"
        ) from error
    if list(frame) != CLAIM or not set(frame.verdict) <= set(VERDICTS.values()):
        expected = f"expected the columns {', '.join(CLAIM)}, the last one of {', '.join(VERDICTS.values())}"
        raise ValueError(f"{file} is no table of claims: {expected}; run its chapter again")
    return frame


def _read_benchmark(file: Path) -> pd.Series:
    try:
        return pd.read_csv(file, sep="\t")[["s", "cpu_time", "max_rss"]].iloc[-1]
    except (ValueError, LookupError) as error:
        raise ValueError(
            f"{file} is no benchmark that Snakemake wrote ({error}); delete it"
        ) from error


def costs(profile: str) -> pd.DataFrame:
    """What every chapter's run took: chapter, minutes, cpu_minutes, memory_gb (of all its
    processes) and device.

    Minutes come from the manifest, which adds up all runs that made the rows; the next two from the
    file that Snakemake's `benchmark` left, and are nan unless that is of one run that made most of
    them.
    """
    rows = []
    for file in sorted(paths.results().glob(f"data/*/{profile}/manifest.json")):
        manifest, chapter = read_manifest(file.parent), file.parts[-3]
        kept = (file.with_name("benchmark.tsv"), paths.results() / "benchmark" / f"{chapter}.tsv")
        measured = next((_read_benchmark(path) for path in kept if path.exists()), None)
        row = {
            "chapter": chapter,
            "minutes": manifest.get("wall_s", math.nan) / 60,
            "device": manifest.get("device", ""),
        }
        if measured is not None and measured.s > 0.8 * 60 * row["minutes"]:
            row |= {"cpu_minutes": measured.cpu_time / 60, "memory_gb": measured.max_rss / 1024}
        rows.append(row)
    return pd.DataFrame(rows, columns=["chapter", "minutes", "cpu_minutes", "memory_gb", "device"])
