"""The page about one's own network: its blocks run in order, and print what stands beneath them."""

import contextlib
import io
import math
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def blocks() -> list[tuple[str, str]]:
    """(code, what it prints) in the order of the page."""
    found = BLOCK.findall((ROOT / "book/own.md").read_text(encoding="utf-8"))
    pairs = zip(found, [*found[1:], ("python", "")], strict=True)
    return [
        (text, after if kind == "text" else "")
        for (now, text), (kind, after) in pairs
        if now == "python"
    ]


def agrees(printed: str, expected: str, share: float = 0.4) -> bool:
    """The same words, and the same numbers but for what another processor's rounding makes of
    random walks."""
    if NUMBER.sub("#", printed).split() != NUMBER.sub("#", expected).split():
        return False
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(expected), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=share, abs_tol=0.1) for a, b in pairs)


def test_numbers_are_compared_and_words_are_too() -> None:
    assert agrees("a 4.1 ± 0.12: ok", "a 4.0 ± 0.10: ok")
    assert not agrees("a 8.0: ok", "a 4.0: ok")
    assert not agrees("a 4.0: drifting", "a 4.0: ok")
    assert not agrees("a 4.0 5.0: ok", "a 4.0: ok")


def test_the_page_does_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    assert len(blocks()) > 8
    with torch.random.fork_rng():
        for code, expected in blocks():
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(code, "book/own.md", "exec"), names)
            assert agrees(out.getvalue(), expected), (
                f"{code}\nprints\n{out.getvalue()}\nand not\n{expected}"
            )
