"""Publication figures in one visual language; the only module of the library that knows
matplotlib."""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from importlib import resources
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator
from matplotlib_inline.backend_inline import set_matplotlib_formats

from fieldbook.nn.checkpoints import atomic_write
from fieldbook.run import paths

COLUMN, PAGE = 3.4, 7.0  # widths of one and two text columns, inches

# The same thing has the same colour on every page.
COLORS = {
    "train": "#56B4E9",
    "test": "#0072B2",
    "headline": "#D55E00",
    "second": "#009E73",
    "control": "#CC79A7",
    "null": "#777777",
}


def use_style() -> None:
    """Apply `fieldbook.mplstyle` and show figures in the notebook; call it once, in its setup cell.

    Nothing of a matplotlibrc, of MPLBACKEND or of IPython's own settings is left.
    """
    shell = get_ipython()
    if hasattr(shell, "kernel"):
        shell.enable_matplotlib("inline")
        # the same backend by its long name, the only one for which ipywidgets shows what it draws
        plt.switch_backend("module://matplotlib_inline.backend_inline")
        set_matplotlib_formats("png", bbox_inches="tight")
    plt.style.use(["default", str(resources.files("fieldbook.run") / "fieldbook.mplstyle")])


def save(figure: Figure, chapter: str, profile: str, name: str) -> None:
    """Write a figure as PNG and PDF, byte for byte the same for the same figure, whose layout is
    settled with that.

    Raises:
        OSError: not writable; names the file.
    """
    folder: Path = paths.figures(chapter, profile)
    for suffix, facts in (
        ("png", {"Software": None}),
        ("pdf", {"CreationDate": None, "Producer": None}),
    ):
        atomic_write(
            folder / f"{name}.{suffix}", partial(figure.savefig, format=suffix, metadata=facts)
        )
        figure.set_layout_engine("none")  # finding it takes as long as drawing: once is enough


def require_shown(build: Path) -> None:
    """Raise ValueError unless each page of a book shows as many figures as its last run has saved.

    Args:
        build: holds the executed `book/*.ipynb`, and `figures/<page>/*`.
    """
    problems = []
    for page in sorted((build / "book").glob("*.ipynb")):
        notebook = json.loads(page.read_bytes())
        facts = notebook["metadata"].get("papermill", {"start_time": "1970-01-01T00:00+00:00"})
        begun = datetime.fromisoformat(facts["start_time"]).timestamp()
        files = (build / "figures" / page.stem).glob("*/*.png")
        saved = sum(file.stat().st_mtime >= begun for file in files)  # others are of an earlier run
        outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
        shown = sum("image/png" in output.get("data", {}) for output in outputs)
        if shown < saved:
            problems.append(f"{page}: shows {shown} of the {saved} figures that it has saved")
    if problems:
        remedy = (
            "call figures.use_style() in the set-up cell, and close no figure where it is saved"
        )
        raise ValueError("\n".join([*problems, remedy]))


def step_curve(frame: pd.DataFrame, name: str, file: Path) -> None:
    """Write a column over its `step` as PNG, to be looked at while rows are still coming."""
    one = frame.sort_values("step")
    figure, axes = plt.subplots(figsize=(COLUMN, 2.2))
    axes.plot(one.step, one[name], marker="o")
    axes.set(xlabel="step", ylabel=name)
    atomic_write(file, partial(figure.savefig, format="png", metadata={"Software": None}))
    plt.close(figure)


def power_ticks(axes: Axes, which: str = "y") -> None:
    """Make an axis logarithmic with ticks written `10^n`, at most seven of them."""
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(base=10, numticks=7))
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: rf"$10^{{{round(np.log10(value))}}}$" if value > 0 else "")
    )


def band(axes: Axes, x: Sequence[float], values: np.ndarray, color: str, **line: object) -> None:
    """Mean over seeds as a line in a soft band from the lowest to the highest seed.

    Args:
        values: (seed, point); nan where a seed has no value. With one seed there is no band.
    """
    values = np.atleast_2d(np.asarray(values, float))
    if len(values) > 1:
        axes.fill_between(
            x, np.nanmin(values, 0), np.nanmax(values, 0), color=color, alpha=0.2, linewidth=0
        )
    axes.plot(x, np.nanmean(values, 0), color=color, **line)


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Centred moving mean over `width` points (odd), shortened at both ends, to lie over the faint
    raw points."""
    values = np.asarray(values, float)
    weights = np.ones(min(width, len(values)))
    return np.convolve(values, weights, "same") / np.convolve(np.ones_like(values), weights, "same")


def curves(
    axes: Axes, frame: pd.DataFrame, looks: Mapping[str, tuple[str, str, str]], **line: object
) -> None:
    """Draw columns of a frame over its `step`, each with its (label, colour name or colour, line
    style)."""
    for name, (label, color, style) in looks.items():
        axes.plot(
            frame.step, frame[name], label=label, color=COLORS.get(color, color), ls=style, **line
        )


def heat_map(
    axes: Axes, frame: pd.DataFrame, names: Sequence[str], flagged: pd.Series, **look: object
) -> QuadMesh:
    """Cells of a logarithmic grid, one per row, as colours; flagged ones hatched.

    Args:
        names: columns for x, y and the colour; `flagged`: (row,) bool.
    """
    x, y, value = names
    grid = frame.pivot(index=y, columns=x, values=value)
    columns = np.log10(grid.columns.to_numpy(float))
    index = np.log10(grid.index.to_numpy(float))
    mesh = axes.pcolormesh(columns, index, grid.to_numpy(float), shading="nearest", **look)
    width, height = (np.ptp(edge) / max(len(edge) - 1, 1) for edge in (columns, index))
    for _, cell in np.log10(frame.loc[flagged, [x, y]].astype(float)).iterrows():
        corner = (cell[x] - width / 2, cell[y] - height / 2)
        axes.add_patch(
            Rectangle(corner, width, height, fill=False, hatch="////", edgecolor="0.45", lw=0)
        )
    axes.grid(False)
    return mesh


def legend_once(axes: Axes, above: Figure | None = None, **options: object) -> None:
    """A legend with one entry per label, however many lines carry it; in one row above a figure if
    given."""
    entries = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    if above is not None:
        row = {"loc": "outside upper center", "ncols": len(entries), "columnspacing": 1.2}
        options = row | options
    (above or axes).legend(entries.values(), entries.keys(), **options)


def letter_panels(axes: Sequence[Axes]) -> None:
    """Put (a), (b), .. before the titles of panels, in reading order."""
    for letter, ax in zip("abcdefghijklmnopqrstuvwxyz", axes, strict=False):
        ax.set_title(f"({letter}) {ax.get_title(loc='left')}".rstrip(), loc="left")


if __name__ == "__main__":
    try:
        require_shown(Path(sys.argv[1]))
    except ValueError as error:
        sys.exit(f"figures are missing: {error}")
