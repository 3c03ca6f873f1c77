"""Copy a finished profile's results from `build/` to the tracked folders `data/` and `figures/`."""

import argparse
import sys
from pathlib import Path

from fieldbook.nn.checkpoints import atomic_write
from fieldbook.run import paths
from fieldbook.run.manifest import read_manifest, sha256

KEPT = {"data": ("*.csv", "manifest.json"), "figures": ("*.pdf", "*.png")}


def verify(folder: Path) -> None:
    """Raise ValueError or FileNotFoundError, naming the file, unless a folder's results are
    finished and intact."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise FileNotFoundError(f"{manifest}: missing, so the results beside it are not finished")
    record = {"csv_sha256": {}, **read_manifest(folder)}
    if record.get("status") != "complete":
        raise ValueError(
            f"{manifest}: status is {record.get('status')!r}, expected 'complete'; finish the run"
        )
    for name, expected in record["csv_sha256"].items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: missing, though listed in manifest.json")
        if sha256(folder / name) != expected:
            raise ValueError(f"{folder / name}: content differs from its hash in manifest.json")
    if unlisted := {file.name for file in folder.glob("*.csv")} - {
        *record["csv_sha256"],
        "claims.csv",
    }:
        raise ValueError(f"{folder}: {', '.join(sorted(unlisted))} not listed in manifest.json")


def publish(profile: str, source: Path, target: Path) -> list[str]:
    """Replace a profile's published tables, manifests and figures by those under `source`.

    A copy that was cut short is mended by publishing again; git keeps what was there before.

    Returns:
        The chapters published.
    Raises:
        FileNotFoundError, ValueError: results missing, unfinished or altered; none has been
            touched.
        OSError: a copy could not be written; names it.
    """
    data = source / "data"
    chapters = {folder.parent.name for folder in data.glob(f"*/{paths.one_folder(profile)}")}
    chapters = sorted(chapters - {"inputs"})
    if not chapters:
        raise FileNotFoundError(f"{data}: no results of profile {profile}; compute them first")
    copies: dict[Path, dict[str, Path]] = {}
    for chapter in chapters:
        verify(data / chapter / profile)
        for kind in KEPT:
            copies[target / kind / chapter / profile] = _kept(
                source / kind / chapter / profile, kind
            )
        cost = source / "benchmark" / f"{chapter}.tsv"
        if cost.exists():
            copies[target / "data" / chapter / profile]["benchmark.tsv"] = cost
    front = source / "figures/front" / profile  # drawn from all chapters' rows
    if front.exists():
        copies[target / "figures/front" / profile] = _kept(front, "figures")
    for folder, files in copies.items():
        _replace(folder, files)
    return chapters


def _kept(folder: Path, kind: str) -> dict[str, Path]:
    found = {file.name: file for pattern in KEPT[kind] for file in folder.glob(pattern)}
    if not found:
        raise FileNotFoundError(f"{folder}: nothing to publish; compute the chapter again")
    return found


def _replace(folder: Path, files: dict[str, Path]) -> None:
    """Copy `files` by their new names, each whole or not at all; remove what else the folder
    holds."""
    for name, file in files.items():
        atomic_write(folder / name, lambda copy, file=file: copy.write(file.read_bytes()))
    for other in folder.iterdir():
        if other.name not in files and other.is_file():
            other.unlink()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile", help="laptop or paper")
    name = parser.parse_args().profile
    try:
        print(
            "published",
            name,
            "of",
            ", ".join(publish(name, paths.ROOT / "build" / name, paths.ROOT)),
        )
    except (ValueError, OSError) as error:
        sys.exit(f"not published: {error}")
