"""Verdicts against what two standard errors say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbook.run.claims import COLUMNS, VERDICTS, judge, read_claims

NUMBER = st.floats(-10, 10)
SIZE = st.floats(0.001, 5)


@pytest.mark.parametrize(
    "estimate, error, expected",
    [(1.0, 0.4, "holds"), (1.0, 0.6, "undecided"), (-1.0, 0.6, "undecided"), (-1.0, 0.4, "fails")],
)
def test_two_standard_errors_decide(estimate, error, expected):
    assert judge(estimate, error, above=0.0)[0] == expected
    assert judge(-estimate, error, below=0.0)[0] == expected
    ends = ([estimate - 2 * error], [estimate + 2 * error])
    assert judge(estimate, interval=ends, above=0.0)[0] == expected


@pytest.mark.parametrize(
    "estimate, expected",
    [(0.0, "holds"), (0.95, "undecided"), (1.05, "undecided"), (1.3, "fails"), (-1.3, "fails")],
)
def test_a_tolerance_has_two_thresholds(estimate, expected):
    assert judge(estimate, 0.1, above=-1.0, below=1.0)[0] == expected


def test_one_run_has_no_error_and_decides_nothing():
    assert judge(5.0, np.nan, above=0.0)[0] == "undecided"
    assert judge(np.nan, 0.1, above=0.0)[0] == "undecided"
    assert judge([5.0, 6.0], [0.1, np.nan], above=0.0)[0] == "undecided"
    assert judge([5.0, -6.0], [np.nan, 0.1], above=0.0)[0] == "fails"


def test_of_several_the_worst_decides():
    assert judge([1.0, 2.0], 0.1, above=0.0) == ("holds", 0.8, 1.2)
    assert judge([1.0, -1.0, 0.1], 0.1, above=0.0) == ("fails", -1.2, -0.8)
    assert judge([1.0, 0.1], 0.1, above=0.0)[0] == "undecided"


@given(estimate=NUMBER, error=SIZE, threshold=NUMBER)
def test_an_interval_that_holds_the_threshold_decides_nothing(estimate, error, threshold):
    verdict, low, high = judge(estimate, error, above=threshold)
    assert (verdict == "undecided") == (low <= threshold <= high)
    opposite = {"holds": "fails", "fails": "holds", "undecided": "undecided"}
    assert judge(estimate, error, below=threshold)[0] == opposite[verdict]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"above": -np.inf}, "expected a threshold"),
        ({"below": -1.0}, "two in order"),
        ({"error": None}, "expected the standard error"),
        ({"interval": ([0.0], [1.0])}, "not both"),
        ({"estimate": []}, "no estimate"),
    ],
)
def test_what_cannot_be_judged_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        judge(**({"estimate": 1.0, "error": 0.1, "above": 0.0} | change))


def test_a_table_with_other_columns_or_verdicts_is_refused(tmp_path):
    file = tmp_path / "claims.csv"
    file.write_text(",".join(COLUMNS) + "\n")
    assert read_claims(file).empty and len(VERDICTS) == 4
    file.write_text("claim,verdict\na,holds\n")
    with pytest.raises(
        ValueError, match=r"claims\.csv is no table of claims: expected the columns"
    ):
        read_claims(file)
