"""Copy a finished profile's results from `build/` to the tracked folders `data/` and `figures/`."""

import argparse
import shutil
import sys
from pathlib import Path

from fieldbook import paths
from fieldbook.results import read_manifest, sha256

KEPT = {"data": ("*.csv", "manifest.json"), "figures": ("*.pdf", "*.png")}


def verify(folder: Path) -> None:
    """Raise ValueError or FileNotFoundError, naming the file, unless a folder's results are finished and intact."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise FileNotFoundError(f"{manifest}: missing, so the results beside it are not finished")
    record = {"csv_sha256": {}, **read_manifest(folder)}
    if record.get("status") != "complete":
        raise ValueError(f"{manifest}: status is {record.get('status')!r}, expected 'complete'; finish the run")
    for name, expected in record["csv_sha256"].items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: missing, though listed in manifest.json")
        if sha256(folder / name) != expected:
            raise ValueError(f"{folder / name}: content differs from its hash in manifest.json")
    if unlisted := {file.name for file in folder.glob("*.csv")} - {*record["csv_sha256"], "claims.csv"}:
        raise ValueError(f"{folder}: {', '.join(sorted(unlisted))} not listed in manifest.json")


def _beside(folder: Path, state: str) -> Path:
    return folder.with_name(f"{folder.name}.{state}.stale")


def _stage(folder: Path, files: dict[str, Path]) -> None:
    """Copy `files`, by their new names, to a folder beside the one they are to replace."""
    incoming = _beside(folder, "new")
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir(parents=True)
    for name, file in files.items():
        shutil.copy(file, incoming / name)


def _swap(folder: Path) -> None:
    """Put the staged folder in place; after a crash the old one may be beside it as `*.old.stale`."""
    outgoing = _beside(folder, "old")
    if folder.exists():
        shutil.rmtree(outgoing, ignore_errors=True)
        folder.rename(outgoing)
    _beside(folder, "new").rename(folder)
    shutil.rmtree(outgoing, ignore_errors=True)


def publish(profile: str, source: Path, target: Path) -> list[str]:
    """Replace a profile's published tables, manifests and figures by those under `source`, all chapters or none.

    Returns:
        The chapters published.
    Raises:
        FileNotFoundError, ValueError: results missing, unfinished or altered; nothing has been touched.
        OSError: the copies could not be written; the published ones are as they were.
    """
    chapters = sorted({folder.parent.name for folder in source.glob(f"data/*/{profile}")} - {"inputs"})
    if not chapters:
        raise FileNotFoundError(f"{source / 'data'}: no results of profile {profile}; compute them first")
    copies: dict[Path, dict[str, Path]] = {}
    for chapter in chapters:
        verify(source / "data" / chapter / profile)
        for kind, patterns in KEPT.items():
            folder = Path(kind, chapter, profile)
            copies[target / folder] = {f.name: f for pattern in patterns for f in (source / folder).glob(pattern)}
            if not copies[target / folder]:
                raise FileNotFoundError(f"{source / folder}: nothing to publish; compute the chapter again")
        if (cost := source / "benchmark" / f"{chapter}.tsv").exists():
            copies[target / "data" / chapter / profile]["benchmark.tsv"] = cost
    if front := {file.name: file for file in sorted((source / "figures/front" / profile).glob("*.p*"))}:
        copies[target / "figures/front" / profile] = front  # drawn from all chapters' rows
    for folder, files in copies.items():
        _stage(folder, files)
    for folder in copies:
        _swap(folder)
    return chapters


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile", help="laptop or paper")
    name = parser.parse_args().profile
    try:
        print("published", name, "of", ", ".join(publish(name, paths.ROOT / "build" / name, paths.ROOT)))
    except (ValueError, OSError) as error:
        sys.exit(f"not published: {error}")
