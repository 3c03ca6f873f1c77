"""What things are known by: code without prose, values by content, files through links."""

import os
import re
import subprocess
import sys
import types
from functools import partial
from glob import glob
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fieldbook.nn import closure, identity
from fieldbook.scaling.patches import Layout

LIBRARY = Path(identity.__file__).parents[1]
BARE = '''
def f(x):
    s = f"{x!r:>{4}} # {'a'}"
    t = ("one"
         "two")
    u = """a

  # no comment
"""
    return s, t, u
'''
DRESSED = '''
# A comment.


def f(x):
    """Doc."""  # and a comment

    s = f"{x!r:>{4}} # {'a'}"  # ü
    t = ("one"  # first
         # second
         "two")
    "a text that does nothing"
    u = """a

  # no comment
"""
    return s, t, u
'''


def test_prose_does_not_count():
    assert identity.code(DRESSED) == identity.code(BARE)


@pytest.mark.parametrize(
    ("old", "new"), [("a\n\n", "a\n"), ("  # no", " # no"), ("two", "2"), ("4", "5"), ("# {", "{")]
)
def test_what_is_in_a_text_counts(old, new):
    assert identity.code(BARE.replace(old, new)) != identity.code(BARE)


OTHERS = glob(str(Path.home() / ".pyenv/versions/3.1[1-9]*/bin/python3"))


@pytest.mark.skipif(not OTHERS, reason="no second Python of 3.11 or newer")
def test_every_python_cuts_the_library_alike(tmp_path):
    program = tmp_path / "cut.py"
    program.write_text(
        "import sys, types, hashlib, pathlib\nsys.modules['torch'] = types.ModuleType('torch')\n"
        f"sys.path.insert(0, {str(LIBRARY.parent)!r})\nfrom fieldbook.nn.identity import code\n"
        f"files = sorted(pathlib.Path({str(LIBRARY)!r}).rglob('*.py'))\n"
        "print(hashlib.sha256(''.join(code(f.read_text(encoding='utf-8')) for f in files).encode()).hexdigest())\n"
    )
    found = [
        subprocess.run([p, program], capture_output=True, text=True)
        for p in (sys.executable, *OTHERS)
    ]
    assert {done.returncode for done in found} == {0}, [done.stderr[-300:] for done in found]
    assert len({done.stdout for done in found}) == 1


class Bare:
    pass


def test_values_are_known_by_their_content():
    frame = pd.DataFrame({"a": [1.0, 2.0]})
    values = [
        None,
        True,
        1,
        1.5,
        "1",
        (1, 2),
        {"a": 1},
        np.arange(3),
        np.arange(3.0),
        torch.arange(3.0),
        torch.zeros(2),
        torch.zeros(2, dtype=torch.bfloat16),
        frame,
        frame * 2,
        {1, 2},
        partial(max, 1),
        partial(max, 2),
        len,
        torch.relu,
        Layout(2, 1, 1, 1),
        Layout(2, 2, 1, 1),
        np.zeros(5000),
        np.eye(1, 5000, 2500)[0],
        lambda x: x,
        lambda x: 2 * x,
    ]
    texts = [identity.described(value) for value in values]
    assert len(set(texts)) == len(texts)
    assert identity.described(np.float64(0.1)) == identity.described(0.1)
    assert identity.described({"b", "a"}) == identity.described({"a", "b"})


@pytest.mark.parametrize("value", [Bare(), [Bare()], {"a": Bare()}, torch.Generator()])
def test_what_is_known_by_its_address_alone_is_refused(value):
    with pytest.raises(ValueError, match=r"known by its address alone.*pass what determines it"):
        closure.closure(value)


def test_a_module_of_one_s_own_counts_by_its_source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def hashed(text):
        (tmp_path / "mine.py").write_text(text)
        module = types.ModuleType("mine")
        module.__file__ = str(tmp_path / "mine.py")
        monkeypatch.setitem(sys.modules, "mine", module)
        return closure.closure(module).digest

    base = hashed("x = 1\n")
    assert base == hashed("x = 1  # one\n") and base != hashed("x = 2\n")
    assert hashed("from fieldbook.drifting import toys\n") != hashed(
        "from fieldbook.grokking import modular\n"
    )
    with pytest.raises(ValueError, match=r"source of <module 'none'> cannot be read"):
        closure.closure(types.ModuleType("none"))


def test_instances_count_by_their_values():
    one, two = (closure.closure(Layout(2, days, 1, 1)).digest for days in (1, 2))
    assert one != two


def test_a_file_is_known_by_its_content_through_links(tmp_path):
    file, link = tmp_path / "a", tmp_path / "b"
    file.write_bytes(b"one")
    link.symlink_to(file)
    before = identity.content_of(link)
    os.utime(file, (1, 1))
    assert identity.content_of(link) == before == identity.content_of(file)
    file.write_bytes(b"two")
    assert identity.content_of(link) != before


@pytest.mark.parametrize("place", [0, 5_000, 9_925])
def test_a_large_file_is_known_by_size_time_and_a_sample(tmp_path, monkeypatch, place):
    monkeypatch.setattr(identity, "LARGE", 1000)
    monkeypatch.setattr(identity, "BLOCK", 10)
    file = tmp_path / "a"
    file.write_bytes(bytes(10_000))
    os.utime(file, (1, 1))
    before = identity.content_of(file)
    assert re.search(r" 10000 1000000000$", before)
    with open(file, "r+b") as handle:
        handle.seek(place)
        handle.write(b"x")
    assert identity.content_of(file) != before
