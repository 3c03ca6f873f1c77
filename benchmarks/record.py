"""Rows for `RESULTS.md`: what each benchmark measured of ours and of its peers, in one file a
benchmark."""

import csv
import os
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "build" / "bench"
COLUMNS = ("benchmark", "what", "unit", "ours", "peer", "theirs", "ratio", "promised")


def record(
    what: str,
    unit: str,
    ours: float,
    peers: dict[str, float],
    promised: dict[str, float] | None = None,
    *,
    rate: bool = False,
) -> None:
    """Note how many times better ours is than each peer, when run by `python benchmarks`.

    Args:
        what: is measured, at which size; `unit`: of `ours` and of each peer's value, a time or a
            size unless `rate`.
        promised: the least ratio that the benchmark accepts, by peer.
    """
    if "FIELDBOOK_BENCH" not in os.environ:
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{Path(sys.argv[0]).stem}.csv"
    with path.open("a", newline="", encoding="utf-8") as file:
        for peer, theirs in peers.items():
            ratio = ours / theirs if rate else theirs / ours
            row = (path.stem, what, unit, ours, peer, theirs, ratio, (promised or {}).get(peer, ""))
            csv.writer(file).writerow(row)
