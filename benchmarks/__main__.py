"""Run every benchmark in turn and write `RESULTS.md`; fails at the end if one of them did.

    python benchmarks [name ..]

Names choose benchmarks; rows of the others are kept from the last run.
"""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pandas as pd
from record import COLUMNS, FOLDER

HERE = Path(__file__).parent
NAMES = sorted(file.stem for file in HERE.glob("[a-z]*.py") if file.stem != "record")
PACKAGES = (
    "torch",
    "numpy",
    "pandas",
    "h5py",
    "lightgbm",
    "scikit-learn",
    "transformers",
    "clean-fid",
)


def machine() -> str:
    """The processor's name and the number of cores, and the GPU if there is one."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    name = next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    gpu = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {os.cpu_count()} cores{gpu}; {platform.system()}, Python {platform.python_version()}"


def run(name: str) -> bool:
    """Run one benchmark in a process of its own, with one thread; did it keep its promises?"""
    (FOLDER / f"{name}.csv").unlink(missing_ok=True)
    print(f"\n== {name}", flush=True)
    environment = os.environ | {
        "FIELDBOOK_BENCH": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    return (
        subprocess.run(
            [sys.executable, HERE / f"{name}.py"], env=environment, check=False
        ).returncode
        == 0
    )


def number(value: float) -> str:
    """Three digits, and no exponent for large counts."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def table() -> str:
    """All rows as Markdown, with the machine and the versions that they were measured with."""
    files = [FOLDER / f"{name}.csv" for name in NAMES]
    rows = pd.concat([pd.read_csv(file, names=COLUMNS) for file in files if file.exists()])
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    head = (
        "| "
        + " | ".join(("benchmark", "what", "ours", "peer", "theirs", "ratio", "promised"))
        + " |"
    )
    lines = [
        f"| {r.benchmark} | {r.what} | {number(r.ours)} {r.unit} | {r.peer} | {number(r.theirs)} {r.unit} "
        f"| {r.ratio:.2f}x | {f'{r.promised:g}x |' if pd.notna(r.promised) else '|'}"
        for r in rows.itertuples()
    ]
    text = "Written by `make bench`. Both sides in one run, medians; a ratio above one means that ours is better."
    body = "\n".join([head, "|" + " --- |" * 7, *lines])
    return f"# Benchmarks\n\n{text}\n\n- {machine()}\n- {versions}\n\n{body}\n"


if __name__ == "__main__":
    chosen = sys.argv[1:] or NAMES
    if unknown := set(chosen) - set(NAMES):
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    failed = [name for name in chosen if not run(name)]
    (HERE / "RESULTS.md").write_text(table(), encoding="utf-8")
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
