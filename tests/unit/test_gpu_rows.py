"""The comparison of a GPU's tables with the CPU's, without either."""

from pathlib import Path

import gpu_rows
import numpy as np
import pandas as pd
import pytest


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    steps = np.arange(0, 500, 50)
    curves = {
        "operation": "add",
        "step": steps,
        "test_loss": 3 * 0.99**steps,
        "test_acc": 1 - 0.9 * 0.99**steps,
    }
    truth = {"potential": "one", "seed": [0, 1], "entropy": [1.25, 2.5]}
    runs = {
        "op": ["add", "mul"],
        "device": "cpu",
        "acceptance": [0.9, 0.8],
        "wall_s": [1.0, 2.0],
        "lead": [3.0, np.nan],
    }
    for name in ("gpu", "cpu"):
        (tmp_path / name).mkdir()
        for table, columns in {"curves": curves, "truth": truth, "runs": runs}.items():
            pd.DataFrame(columns).to_csv(tmp_path / name / f"{table}.csv", index=False)
    return tmp_path / "gpu", tmp_path / "cpu"


def altered(folder: Path, table: str, change: dict[str, object], rows: slice = slice(None)) -> None:
    file = folder / f"{table}.csv"
    frame = pd.read_csv(file)
    for name, value in change.items():
        frame.loc[frame.index[rows], name] = value
    frame.to_csv(file, index=False)


def found(folders: tuple[Path, Path]) -> list[str]:
    return gpu_rows.differences("entropy", *folders)


def test_the_same_rows_agree_and_so_do_those_of_other_draws(folders: tuple[Path, Path]) -> None:
    assert found(folders) == []
    altered(folders[0], "runs", {"device": "cuda", "wall_s": 1e6, "acceptance": 0.7})
    altered(folders[0], "curves", {"test_loss": 1.0}, slice(3, None))
    assert found(folders) == []


def test_the_order_of_rows_is_free(folders: tuple[Path, Path]) -> None:
    for name in ("curves", "truth"):
        file = folders[0] / f"{name}.csv"
        pd.read_csv(file)[::-1].to_csv(file, index=False)
    assert found(folders) == []


@pytest.mark.parametrize(
    "table, change, rows, said",
    [
        ("runs", {"op": "sub"}, slice(1), "1 keys in common"),
        ("runs", {"acceptance": 3.0}, slice(None), "runs: acceptance: mean 3 on the GPU"),
        ("runs", {"acceptance": np.nan}, slice(1), "missing in 1 rows"),
        ("runs", {"acceptance": np.inf}, slice(None), "no finite number"),
        ("truth", {"entropy": 1.26}, slice(1), "both computed on the CPU"),
        ("curves", {"test_loss": 2.0}, slice(1), "at step 0"),
        ("curves", {"test_acc": -5.0}, slice(None), "test_acc: mean -5"),
        ("curves", {"step": 7}, slice(6), "keys in common"),
    ],
)
def test_an_altered_row_is_noticed(
    folders: tuple[Path, Path], table: str, change: dict[str, object], rows: slice, said: str
) -> None:
    altered(folders[0], table, change, rows)
    assert any(said in line for line in found(folders)), found(folders)


def test_tables_columns_and_rows_that_are_not_there_are_noticed(folders: tuple[Path, Path]) -> None:
    file = folders[0] / "truth.csv"
    frame = pd.read_csv(file)
    frame[:1].to_csv(file, index=False)
    assert any("1 rows on the GPU, 2 on the CPU" in line for line in found(folders))
    frame.drop(columns="entropy").to_csv(file, index=False)
    assert any("columns" in line for line in found(folders))
    file.unlink()
    assert any("tables" in line for line in found(folders))
