"""The README states what the published claims say."""

import re
from pathlib import Path

import pytest

from fieldbook.run.claims import read_claims
from fieldbook.run.paths import SIZES

ROOT = Path(__file__).resolve().parents[2]
RESULTS = dict(
    re.findall(
        r"^\| \[(\w+)\]\(book/\1\.ipynb\) \|[^|]*\| (.*) \|$",
        (ROOT / "README.md").read_text(),
        re.M,
    )
)
NUMBER = re.compile(r"(?<![\w.-])\d[\d,]*(?:\.\d+)?(?![\w.]*\w)")


def values(text: str) -> list[str]:
    return [number.replace(",", "").rstrip(".") for number in NUMBER.findall(text)]


def is_rounded(stated: str, value: str) -> bool:
    """Is a number as it stands in the text, 0.45 or some 800, what another one is rounded to?"""
    digits = len(stated.partition(".")[2]) or len(stated.rstrip("0")) - len(stated)
    return round(float(value), digits) == float(stated)


def test_every_chapter_has_a_result() -> None:
    assert sorted(RESULTS) == sorted(file.stem for file in ROOT.glob("book/*.py"))


@pytest.mark.parametrize("chapter", RESULTS)
def test_numbers_are_those_of_the_published_claims(chapter: str) -> None:
    size = next(size for size in SIZES if (ROOT / "data" / chapter / size).exists())
    claims = read_claims(ROOT / "data" / chapter / size / "claims.csv")
    settings = (ROOT / "parameters" / chapter / f"{size}.yaml").read_text(encoding="utf-8")
    known = values("\n".join([*claims.claim, *claims.found, settings]))
    assert not [
        number
        for number in values(RESULTS[chapter])
        if not any(is_rounded(number, k) for k in known)
    ]


def test_another_number_would_be_noticed() -> None:
    assert is_rounded("0.45", "0.451") and is_rounded("800", "816") and is_rounded("2", "2")
    assert (
        not is_rounded("0.45", "0.442")
        and not is_rounded("800", "866")
        and not is_rounded("10.9", "11.22")
    )
    assert values("R² 0.44 from 16,384 spectra, CIFAR-10, d2 and 1.5x") == ["0.44", "16384"]
