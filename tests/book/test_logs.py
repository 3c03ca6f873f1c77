"""The list of the five logs: every claim is quoted, numbered, and tested or excused."""

from pathlib import Path

import pytest
import yaml

from fieldbook.run.claims import read_claims
from fieldbook.run.paths import SIZES

ROOT = Path(__file__).resolve().parents[2]
LOGS = yaml.safe_load((ROOT / "book/logs.yaml").read_text(encoding="utf-8"))
CHAPTERS = {"agop", "drifting", "encoder_probe", "entropy", "scaling", "si_sgld", "spectra_vit"}
KEYS = {"key", "title", "did", "chapters", "claims"}
OF_CLAIM = {"id", "quote", "translated", "figure", "origin", "chapter", "same_as", "why_not"}
CLAIMS = [(log, claim) for log in LOGS for claim in log["claims"]]
every_claim = pytest.mark.parametrize(("log", "claim"), CLAIMS, ids=[c["id"] for _, c in CLAIMS])


def test_there_are_five_logs_and_they_are_of_every_chapter() -> None:
    keys = [log["key"] for log in LOGS]
    assert keys == ["grokking", "spectra", "encoder", "scaling", "drifting"]
    assert sorted(name for log in LOGS for name in log["chapters"]) == sorted(CHAPTERS)
    assert all((ROOT / f"book/{name}.py").exists() for name in CHAPTERS)


@pytest.mark.parametrize("log", LOGS, ids=[log["key"] for log in LOGS])
def test_a_log_says_what_it_did_and_numbers_its_claims(log: dict) -> None:
    assert set(log) - {"date", "code"} == KEYS
    texts = [value for name, value in log.items() if name not in ("chapters", "claims")]
    assert all(isinstance(text, str) and text.strip() for text in texts)
    numbered = [f"{log['key']}-{number}" for number in range(1, len(log["claims"]) + 1)]
    assert [claim["id"] for claim in log["claims"]] == numbered
    assert all(any(c.get("chapter") == name for c in log["claims"]) for name in log["chapters"])


@every_claim
def test_a_claim_has_the_keys_that_a_page_needs(log: dict, claim: dict) -> None:
    assert set(claim) <= OF_CLAIM
    texts = [value for name, value in claim.items() if name != "translated"]
    assert all(isinstance(text, str) and text.strip() for text in texts)
    assert claim.get("translated", True) is True
    assert claim["origin"] in ("text", "code", "result", "unknown")
    assert "quote" in claim or (claim["origin"] != "text" and "figure" in claim)


@every_claim
def test_a_claim_is_tested_in_a_chapter_of_its_log_or_excused(log: dict, claim: dict) -> None:
    assert ("chapter" in claim) != ("why_not" in claim)
    assert claim.get("chapter", log["chapters"][0]) in log["chapters"]


@every_claim
def test_what_is_tested_is_on_the_published_ledger(log: dict, claim: dict) -> None:
    if "chapter" in claim:
        folder = ROOT / "data" / claim["chapter"]
        size = next(size for size in SIZES if (folder / size).exists())
        entries = set(read_claims(folder / size / "claims.csv").entry)
        assert claim.get("same_as", claim["id"]) in entries


def test_every_entry_on_the_ledger_is_known() -> None:
    known = {claim["id"] for _, claim in CLAIMS}
    for file in ROOT.glob("data/*/*/claims.csv"):
        assert set(read_claims(file).entry) - {""} <= known


def test_the_file_reads_well() -> None:
    lines = (ROOT / "book/logs.yaml").read_text(encoding="utf-8").splitlines()
    assert max(map(len, lines)) <= 100
