import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from fieldbook.run import figures


@pytest.fixture(autouse=True)
def style():
    with mpl.rc_context():
        figures.use_style()
        yield
    plt.close("all")


def drawing():
    figure, ax = plt.subplots()
    ax.plot([0, 1], [1, 10], label="$a$")
    figures.power_ticks(ax)
    ax.legend()
    return figure


def test_the_same_figure_gives_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("FIELDBOOK_RESULTS", str(tmp_path))
    content = []
    for _ in range(2):
        figures.save(drawing(), "agop", "test", "one")
        content.append(
            {file.name: file.read_bytes() for file in (tmp_path / "figures/agop/test").iterdir()}
        )
    assert content[0] == content[1] and set(content[0]) == {"one.pdf", "one.png"}
    assert b"/Type3" not in content[0]["one.pdf"], "journals refuse Type 3 fonts"


def test_an_unwritable_folder_is_named(tmp_path, monkeypatch):
    (tmp_path / "figures").write_text("")  # a file where a folder is expected
    monkeypatch.setenv("FIELDBOOK_RESULTS", str(tmp_path))
    with pytest.raises(OSError) as caught:
        figures.save(drawing(), "agop", "test", "one")
    assert "one.png" in str(caught.value)


@pytest.mark.parametrize("which", ["x", "y"])
def test_power_ticks_are_few_and_written_as_powers(which):
    figure, ax = plt.subplots()
    values = np.logspace(-12, 3, 20)
    ax.plot(values, values)
    figures.power_ticks(ax, which)
    figure.canvas.draw()
    axis = ax.xaxis if which == "x" else ax.yaxis
    labels = [text.get_text() for text in axis.get_ticklabels() if text.get_text()]
    assert axis.get_scale() == "log" and 3 <= len(labels) <= 9
    assert all(label.startswith("$10^{") for label in labels)


def test_band_spans_the_seeds_and_ignores_what_is_missing():
    _, ax = plt.subplots()
    figures.band(ax, [0, 1, 2], np.array([[0, 1, 2], [2, 3, np.nan]]), "C0")
    (line,), (area,) = ax.lines, ax.collections
    assert line.get_ydata().tolist() == [1, 2, 2]
    assert (
        area.get_paths()[0].get_extents().ymin == 0 and area.get_paths()[0].get_extents().ymax == 3
    )
    assert area.get_alpha() < 0.5


def test_one_seed_has_no_band():
    _, ax = plt.subplots()
    figures.band(ax, [0, 1], np.array([1.0, 2.0]), "C0")
    assert not ax.collections


def test_smooth_keeps_constants_and_averages_the_middle():
    assert np.allclose(figures.smooth(np.full(9, 3.0), 5), 3)
    assert figures.smooth(np.arange(9.0), 3).tolist() == [0.5, 1, 2, 3, 4, 5, 6, 7, 7.5]


def test_curves_and_one_legend_entry_per_label():
    figure, ax = plt.subplots()
    frame = pd.DataFrame({"step": [0, 1], "a": [0, 1], "b": [1, 0]})
    for _ in range(2):
        figures.curves(ax, frame, {"a": ("first", "train", "-"), "b": ("second", "0.5", "--")})
    figures.legend_once(ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["first", "second"]
    assert mpl.colors.to_hex(ax.lines[0].get_color()) == figures.COLORS["train"].lower()
    figures.legend_once(ax, above=figure)
    assert len(figure.legends) == 1


def test_panels_are_lettered_in_order():
    _, axes = plt.subplots(1, 2)
    axes[0].set_title("one", loc="left")
    figures.letter_panels(axes)
    assert [ax.get_title(loc="left") for ax in axes] == ["(a) one", "(b)"]


def test_colours_are_told_apart_in_grey():
    """Print and most colour blindness leave lightness: neighbours in the cycle differ in it or in
    line style."""
    cycle = list(mpl.rcParams["axes.prop_cycle"])
    assert len({str(entry["linestyle"]) for entry in cycle[:6]}) == 6


def test_a_window_wider_than_the_curve_keeps_its_length() -> None:
    assert (
        figures.smooth([1.0, 2.0, 3.0], 9).tolist()
        == figures.smooth([1.0, 2.0, 3.0], 3).tolist()
        == [1.5, 2.0, 2.5]
    )


def test_a_heat_map_shows_each_cell_where_it_belongs_and_hatches_the_flagged():
    _, ax = plt.subplots()
    factors = [0.1, 1.0, 10.0]
    frame = pd.DataFrame(
        [{"a": a, "b": b, "z": 100 * a + b} for a in factors for b in factors]
    ).sample(frac=1, random_state=0)
    mesh = figures.heat_map(
        ax, frame, ["a", "b", "z"], (frame.a == 10) & (frame.b == 0.1), vmin=0, vmax=1
    )
    assert mesh.get_array().reshape(3, 3)[2].tolist() == [20.0, 110.0, 1010.0], (
        "rows are b = 10, columns a"
    )
    (patch,) = ax.patches
    assert (patch.get_hatch(), patch.get_x(), patch.get_y()) == ("////", 0.5, -1.5)
