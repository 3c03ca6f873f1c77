"""What all chapters have found under a profile, and what it took: claims, and costs."""

import math
from pathlib import Path

import pandas as pd

from fieldbook.run import paths
from fieldbook.run.manifest import read_manifest

CLAIM = ["claim", "source", "ours", "verdict"]
VERDICTS = {True: "holds", False: "fails", None: "not tested here"}


def ledger(profile: str) -> pd.DataFrame:
    """The claims of every chapter that has finished a profile: chapter, claim, source, ours,
    verdict.

    Raises:
        ValueError: a table of claims is damaged; names it.
    """
    files = sorted(paths.data_root().glob(f"data/*/{profile}/claims.csv"))
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
        verdicts = ", ".join(VERDICTS.values())
        expected = f"expected the columns {', '.join(CLAIM)}, the last one of {verdicts}"
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
    for file in sorted(paths.data_root().glob(f"data/*/{profile}/manifest.json")):
        manifest = read_manifest(file.parent)
        chapter = file.parts[-3]
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
