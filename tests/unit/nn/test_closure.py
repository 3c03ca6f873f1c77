"""What a function depends on: everything that it reaches, nothing that it does not."""

import importlib
import os
import shutil
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import pytest
import torch

from fieldbook.grokking import experiment
from fieldbook.nn import closure as closures
from fieldbook.nn.closure import closure
from fieldbook.nn.recipe import Recipe
from fieldbook.stars import atmosphere, synthesis

FILES = {
    "__init__": "",
    "base": """
        LIMIT = 3
        OTHER = 4
        TABLE = {"one": [1, 2], "two": abs}

        def deep(x):
            return min(x, LIMIT)

        def unused(x):
            return x + OTHER
    """,
    "shapes": """
        from dataclasses import dataclass

        from subject.base import unused

        SIDE = 2.0

        class Thing:
            def area(self):
                return SIDE

            def __repr__(self):
                return "Thing()"

        @dataclass(frozen=True)
        class Box(Thing):
            side: float = 1.0
    """,
    "entry": """
        from functools import cache

        from subject import base, shapes

        STEPS = 5

        @cache
        def cached(x):
            return base.TABLE["one"][x]

        def helper(x):
            from subject.late import late
            return base.deep(x) + cached(0) + late(x)

        def compute(job, scale=STEPS):
            inner = [helper(x) for x in range(job["x"])]
            return {"y": sum(inner) * scale, "area": shapes.Thing().area()}

        def elsewhere(job):
            return {"y": base.unused(job["x"])}
    """,
    "late": """
        def late(x):
            return 2 * x
    """,
}


@pytest.fixture
def subject(tmp_path, monkeypatch):
    """Write a package of five modules, with some texts replaced, and import its entry."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "subject").mkdir()

    def build(old: str = "", new: str = "", within: str = ""):
        for name in [name for name in sys.modules if name.partition(".")[0] == "subject"]:
            del sys.modules[name]
        for name, text in FILES.items():
            if old and within in ("", name):
                text = text.replace(old, new)
            file = tmp_path / "subject" / f"{name}.py"
            file.write_text(textwrap.dedent(text), encoding="utf-8")
        importlib.invalidate_caches()
        return importlib.import_module("subject.entry")

    yield build
    for name in [name for name in sys.modules if name.partition(".")[0] == "subject"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMIT = 3", "LIMIT = 30"),  # a constant two calls down
        ("min(x, LIMIT)", "max(x, LIMIT)"),  # a function behind a member of a module
        ('"one": [1, 2]', '"one": [1, 5]'),  # inside a table
        ('"two": abs', '"two": min'),
        ("[0]) + late(x)", "[0]) - late(x)"),
        ("cached(0)", "cached(1)"),
        ("STEPS = 5", "STEPS = 6"),  # a default
        ("SIDE = 2.0", "SIDE = 3.0"),  # what a method reads
        ("return SIDE", "return -SIDE"),
        ("return 2 * x", "return 3 * x"),  # imported within a function
        ("sum(inner)", "max(inner)"),
    ],
)
def test_whatever_a_function_reaches_counts(subject, old, new):
    before = closure(subject().compute).digest
    assert closure(subject(old, new).compute).digest != before or old == "[0]) + late(x)"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("OTHER = 4", "OTHER = 40"),
        ("return x + OTHER", "return x - OTHER"),
        ("base.unused(job", "base.deep(job"),
        ("        STEPS = 5", "        # five\n        STEPS = 5"),
        ("return min(x, LIMIT)", '"""Text."""\n\n            return min(x, LIMIT)  # why'),
        ("def deep(x)", "def deep(x)"),
        ("side: float = 1.0", "side: float = 2.0"),  # of a class that `compute` does not know
    ],
)
def test_nothing_else_counts(subject, old, new):
    before = closure(subject().compute).digest
    assert closure(subject(old, new).compute).digest == before


def test_a_subclass_depends_on_its_base_and_an_instance_on_its_class(subject):
    build = subject

    def of_box(*change):
        entry = build(*change)
        return closure(entry.shapes.Box(2.0)).digest

    before = of_box()
    assert before != of_box("SIDE = 2.0", "SIDE = 3.0")
    assert before != of_box("side: float = 1.0", "side: float = 2.0")
    entry = build()
    assert closure(entry.shapes.Box(2.0)).digest != closure(entry.shapes.Box(3.0)).digest
    thing = closure(build().shapes.Thing()).digest
    assert thing != closure(build("return SIDE", "return -SIDE").shapes.Thing()).digest


def test_every_run_comes_to_the_same():
    program = "from fieldbook.nn import closure, training; print(closure.closure(training).digest)"
    found = set()
    for seed in "012":  # by which Python orders sets
        environment = os.environ | {"PYTHONHASHSEED": seed}
        found.add(subprocess.check_output([sys.executable, "-c", program], env=environment))
    assert len(found) == 1


def test_closures_partials_and_values_count_by_content():
    def scaled(factor):
        return lambda job: {"y": factor * job["x"]}

    def add(job, x=0):
        return {"y": job["x"] + x}

    assert closure(scaled(2)).digest != closure(scaled(3)).digest
    assert closure(scaled(2)).digest == closure(scaled(2)).digest
    assert closure(partial(add, x=1)).digest != closure(partial(add, x=2)).digest
    tensors = [torch.arange(3.0), torch.arange(4.0)]
    assert closure(scaled(tensors[0])).digest != closure(scaled(tensors[1])).digest
    networks = [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)]
    assert closure(scaled(networks[0])).digest != closure(scaled(networks[1])).digest
    assert closure(scaled({"a", "b"})).digest == closure(scaled({"b", "a"})).digest
    assert closure(scaled(Recipe(steps=1, batch_size=1, lr=0.1))).digest


def test_tables_of_package_data_count_for_those_who_read_them(tmp_path, monkeypatch):
    tables = {"fieldbook.stars.atmosphere.ATOMS", "fieldbook.stars.synthesis.LINES"}
    assert tables <= {part.partition(" ")[0] for part in closure(synthesis.synthesize).parts}
    before = closure(atmosphere.table)
    assert {part.partition("\n")[0] for part in before.parts} >= {"table atoms.csv"}
    assert not [part for part in closure(atmosphere.h_minus).parts if part.startswith("table ")]
    for table in Path(atmosphere.__file__).parent.glob("*.csv"):
        (tmp_path / table.name).write_text(table.read_text(encoding="utf-8") + "\n", "utf-8")
    monkeypatch.setattr(atmosphere, "__file__", str(tmp_path / "atmosphere.py"))
    assert closure(atmosphere.table).digest != before.digest


def test_files_count_by_content_and_results_by_their_name(tmp_path):
    file, inside = tmp_path / "a.txt", tmp_path / "results" / "runs-0123" / "w"
    file.write_text("one")

    def read(path):
        return lambda job: {"y": path.name}

    before = closure(read(file)).digest
    file.write_text("two")
    assert closure(read(file)).digest != before
    first, second = tmp_path / "results", tmp_path / "moved"
    moved = second / "runs-0123" / "w"
    assert closure(read(inside), within=first).digest == closure(read(moved), within=second).digest
    assert closure(read(inside), within=first).digest != closure(read(moved), within=first).digest


def test_what_has_nothing_to_be_known_by_is_refused_with_its_name():
    generator = torch.Generator()

    def compute(job):
        return {"y": torch.rand(1, generator=generator).item()}

    with pytest.raises(ValueError, match="known by its address alone") as caught:
        closure(compute)
    assert any("generator" in note for note in caught.value.__notes__)


class Scaler:
    def __init__(self, factor):
        self.factor = factor

    def __repr__(self):
        return f"Scaler({self.factor})"

    def scale(self, job):
        return {"y": self.factor * job["x"]}


def test_a_method_depends_on_what_it_belongs_to():
    assert closure(Scaler(2).scale).digest != closure(Scaler(3).scale).digest
    assert closure(Scaler(2).scale).digest == closure(Scaler(2).scale).digest


WORDS = ("clip", "steps")


def test_names_of_parameters_may_be_computed():
    def listed(job, par):
        return {name: getattr(par, name) for name in WORDS}

    def pieced(job, par):
        return {"y": getattr(par, f"n_{job['x']}")}

    def whole(job, par):
        return {"y": len(vars(par))}

    assert {"clip", "steps"} <= closure(listed).words
    assert closures.EVERYTHING in closure(pieced).words & closure(whole).words
    assert closures.EVERYTHING not in closure(listed).words


PROBE = """
from fieldbook.grokking import experiment
from fieldbook.nn.closure import closure
from fieldbook.run import paths
from fieldbook.stars import synthesis
print(closure(experiment.train).digest, closure(synthesis.synthesize).digest)
print(paths.results())
"""


def test_a_library_that_is_not_imported_yet_is_not_ours_and_stays_so():
    program = """
import sys
from fieldbook.nn import closure
names = ("torchvision", "lightgbm", "h5py")
print([name in sys.modules for name in names], [closure._is_our_name(name) for name in names])
print([name in sys.modules for name in names])
"""
    first, second = subprocess.check_output([sys.executable, "-c", program], text=True).splitlines()
    assert first == "[False, False, False] [False, False, False]"
    assert second == "[False, False, False]"


def test_an_installed_copy_has_the_same_identities_and_writes_where_one_works(tmp_path):
    """As from a wheel: the package alone, elsewhere."""
    library = Path(closures.__file__).parents[1]
    shutil.copytree(library, tmp_path / "site" / "fieldbook")
    (tmp_path / "here").mkdir()
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", PROBE]
    digests, results = subprocess.check_output(
        command, cwd=tmp_path / "here", env=environment, text=True
    ).splitlines()
    assert results == str(tmp_path / "here")
    own = (closure(experiment.train).digest, closure(synthesis.synthesize).digest)
    assert tuple(digests.split()) == own


def test_words_tell_which_parameters_may_be_read():
    class Par:
        lr = 0.1

    par = Par()

    def compute(job):
        return {"y": par.lr + job["x"], "z": getattr(par, "clip")}  # noqa: B009

    found = closure(compute, watched=(Par,))
    assert found.met == [par] and {"lr", "clip"} <= found.words and "steps" not in found.words


TEXTS = {
    "def f(x: Tensor, y=A) -> B:\n    return [g(i) + m.part for i in x if (h := i)]\n": {
        *("A", "g", "m")
    },
    "class C(Base):\n    size: int = LIMIT\n\n    def f(self):\n        return self.g() + K\n": {
        *("Base", "LIMIT", "K", "int")
    },
    "def f():\n    def g():\n        return a + b\n    a = 1\n    return g\n": {"b"},
    "def f(xs):\n    return {k: v for k, v in xs} | {z for z in Z}\n": {"Z"},
    "@cache\ndef f(x):\n    match x:\n        case One(a=A2):\n            return A2\n": {
        *("cache", "One")
    },
}


@pytest.mark.parametrize("text", TEXTS)
def test_global_names_of_stored_texts(text):
    assert set(closures._mentions(text).names) == TEXTS[text]


OTHERS = sorted(Path.home().glob(".pyenv/versions/3.1[1-9]*/bin/python3"))
PROGRAM = """
import sys, types
for name in ("torch", "torch.nn", "fieldbook.nn.identity"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["torch"].nn = sys.modules["torch.nn"]
for name in "closed_over codes_of content_of described digest structure_of".split():
    setattr(sys.modules["fieldbook.nn.identity"], name, None)
sys.path.insert(0, {root!r})
from fieldbook.nn.closure import _mentions
for file in sys.argv[1:]:
    found = _mentions(open(file, encoding="utf-8").read())
    print(sorted(found.names), sorted(found.words), sorted(found.bare), found.imported)
"""


@pytest.mark.skipif(not OTHERS, reason="no second Python of 3.11 or newer")
def test_every_python_finds_the_same_names(tmp_path):
    root = Path(closures.__file__).parents[2]
    program = tmp_path / "names.py"
    program.write_text(PROGRAM.format(root=str(root)), encoding="utf-8")
    files = sorted((root / "fieldbook").rglob("*.py"))
    command = [program, *files]
    found = {subprocess.check_output([python, *command]) for python in (sys.executable, *OTHERS)}
    assert len(found) == 1
