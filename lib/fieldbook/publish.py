"""Copy a finished profile's results from `build/` to the tracked folders `data/` and `figures/`."""

import argparse
import json
import shutil
import sys
from pathlib import Path

from fieldbook import paths
from fieldbook.results import sha256

KEPT = {"data": ("*.csv", "manifest.json"), "figures": ("*.pdf", "*.png")}


def verify(folder: Path) -> None:
    """Raise ValueError or FileNotFoundError, naming the file, unless a folder's results are finished and intact."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise FileNotFoundError(f"{manifest}: missing, so the results beside it are not finished")
    record = json.loads(manifest.read_text(encoding="utf-8"))
    if record.get("status") != "complete":
        raise ValueError(f"{manifest}: status is {record.get('status')!r}, expected 'complete'")
    for name, expected in record["csv_sha256"].items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: missing, though listed in manifest.json")
        if sha256(folder / name) != expected:
            raise ValueError(f"{folder / name}: content differs from its hash in manifest.json")
    if unlisted := {file.name for file in folder.glob("*.csv")} - {*record["csv_sha256"], "claims.csv"}:
        raise ValueError(f"{folder}: {', '.join(sorted(unlisted))} not listed in manifest.json")


def replace(folder: Path, files: list[Path]) -> None:
    """Put copies of `files` in place of a folder; after a crash the old one may be beside it as `*.stale`."""
    incoming, outgoing = (folder.with_name(f"{folder.name}.{state}.stale") for state in ("new", "old"))
    for leftover in (incoming, outgoing):
        shutil.rmtree(leftover, ignore_errors=True)
    incoming.mkdir(parents=True)
    for file in files:
        shutil.copy(file, incoming)
    if folder.exists():
        folder.rename(outgoing)
    incoming.rename(folder)
    shutil.rmtree(outgoing, ignore_errors=True)


def publish(profile: str, source: Path, target: Path) -> list[str]:
    """Replace a profile's published tables, manifests and figures by those under `source`, all chapters or none.

    Returns:
        The chapters published.
    Raises:
        FileNotFoundError, ValueError: results missing, unfinished or altered; nothing has been touched.
    """
    chapters = sorted({folder.parent.name for folder in source.glob(f"data/*/{profile}")} - {"inputs"})
    if not chapters:
        raise FileNotFoundError(f"{source / 'data'}: no results of profile {profile}; compute them first")
    for chapter in chapters:
        verify(source / "data" / chapter / profile)
    for chapter in chapters:
        for kind, patterns in KEPT.items():
            files = [file for pattern in patterns for file in (source / kind / chapter / profile).glob(pattern)]
            replace(target / kind / chapter / profile, files)
    return chapters


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile", help="laptop or paper")
    name = parser.parse_args().profile
    try:
        print("published", name, "of", ", ".join(publish(name, paths.ROOT / "build" / name, paths.ROOT)))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"not published: {error}")
