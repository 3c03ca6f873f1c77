import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldbook.run import parameters

ROOT = Path(__file__).resolve().parents[3]
CHAPTERS = sorted(file.stem for file in ROOT.glob("book/*.ipynb"))
CELL = """\
profile: str = "quick"  # output folder
p: int = 97  # modulus, a prime, in [5, 499]
train_fraction: float = 0.5  # share of the pairs in train, in (0, 1)
operations: list[str] = ["add", "sub"]  # each one of {add, sub, mul, div}
lr: float = 1e-3  # learning rate, 1 / step, in (0, inf)
controls: bool = True  # also train the negative controls
seeds: list[int] = [0]  # of weights and split, distinct, each in [0, inf)
sizes: list[int] = [1, 2]  # ascending
width: int = 8  # one of {8, 16}
"""


def notebook(path, cell=CELL, tags=("parameters",)):
    nb = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell, metadata={"tags": list(tags)})]
    )
    nb.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    nbformat.write(nb, path)
    return path


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    return notebook(tmp_path_factory.mktemp("book") / "agop.ipynb")


def test_defaults_pass_and_come_back(book):
    values = parameters.check(book, {})
    assert values["p"] == 97 and values["lr"] == 1e-3 and values["operations"] == ["add", "sub"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train_fracton: 0.5", "train_fracton: unknown parameter; did you mean `train_fraction`"),
        ("zzzzqqq: 1", "zzzzqqq: unknown parameter; known are profile, p"),
        ("p: '97'", "p = '97': input should be a valid integer"),
        ("p: 97.5", "p = 97.5: input should be a valid integer"),
        ("p: true", "p = True: input should be a valid integer"),
        ("p: 4", "p = 4: input should be greater than or equal to 5"),
        ("p: 91", r"p = 91: .*not a prime \(nearest: 89 or 97\)"),
        ("train_fraction: 1.0", "train_fraction = 1.0: input should be less than 1"),
        ("train_fraction: .nan", "train_fraction = nan: input should be a finite number"),
        ("lr: fast", "lr = 'fast': input should be a valid number"),
        ("operations: add", "operations = 'add': input should be a valid list"),
        (
            "operations: [add, pow]",
            r"operations\[1\] = 'pow': input should be 'add', 'sub', 'mul' or 'div'",
        ),
        ("seeds: [0, -1]", r"seeds\[1\] = -1: input should be greater than or equal to 0"),
        ("controls: 1", "controls = 1: input should be a valid boolean"),
        ("p: ", "p = None: input should be a valid integer"),
        ("- p", "expected `name: value` lines, found a list"),
        ("p: [1", "not valid YAML"),
        ("p: 5\np: 97", "given more than once: p$"),
        ("seeds: []", r"seeds = \[\]: list should have at least 1 item"),
        ("seeds: &s [*s]", r"seeds\[0\] = .*: input should be a valid integer"),
        ("seeds: &s [*s]", "line 1 has an anchor; write the value itself"),
        ("p: &p 97\nd: *p", "line 2 has an alias"),
        ("p: !!int '97'", "line 1 has a tag"),
        ("<<: {p: 5}", "a name: `<<` is not read as text; write it in quotes"),
        ("p: 5\n---\np: 97", "not valid YAML: expected a single document"),
        ("p:\t- 5", "not valid YAML: .*character"),
        ("seeds: [{p: 1, p: 2}]", "given more than once: p$"),
        ("seeds: [0, 1, 0]", r"seeds = \[0, 1, 0\]: should be distinct"),
        ("sizes: [1, 3, 2]", r"sizes = \[1, 3, 2\]: should be ascending"),
        ("sizes: [1, 2, 2]", r"sizes = \[1, 2, 2\]: should be ascending"),
        (
            "seeds: [9223372036854775808]",
            r"seeds\[0\] = 9223372036854775808: input should be less than or equal",
        ),
        ("lr: 1" + 400 * "0", "lr = 1000.*: input should be"),
        ("p: 97.0", "p = 97.0: input should be a valid integer"),
        ("width: 16.0", "width = 16.0: .*should be of type int"),
        ("width: true", "width = True: .*should be of type int"),
        ("p: 9e1", "p = '9e1': input should be a valid integer"),
        ("profile: 2024", "profile = 2024: input should be a valid string"),
        ("profile: ~", "profile = None: input should be a valid string"),
        ("p: 1" + 5000 * "0", "not valid YAML: .*limit"),
        (2000 * "[", "not valid YAML"),
    ],
)
def test_a_bad_file_is_refused_by_name(book, tmp_path, capsys, text, message):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    assert parameters.main(["check", str(book), str(file)]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert str(file) in error


def test_every_problem_is_reported_at_once(book):
    with pytest.raises(ValueError) as caught:
        parameters.check(book, {"p": 4, "lr": -1.0, "sedes": [1]})
    assert all(name in str(caught.value) for name in ("p = 4", "lr = -1.0", "did you mean `seeds`"))


RELATED = """
steps: int = 10
burn_in: int = 2  # below `steps`
d_model: int = 8
n_heads: int = 4  # a divisor of `d_model`
sizes: list[int] = [1, 2, 3]  # at least 3 values, each in [1, inf)
held_out: int = 4  # above `sizes`
shown: int = 2  # one of `sizes`
grid: int = 3  # odd
profile: str = "quick"
"""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"burn_in": 10}, r"burn_in = 10: should be below steps = 10"),
        ({"steps": 2}, r"burn_in = 2: should be below steps = 2"),
        ({"n_heads": 3}, r"n_heads = 3: should be a divisor of d_model = 8"),
        ({"sizes": [1, 2]}, r"sizes = \[1, 2\]: list should have at least 3 items"),
        ({"held_out": 3}, r"held_out = 3: should be above sizes = \[1, 2, 3\]"),
        ({"shown": 4}, r"shown = 4: should be one of sizes = \[1, 2, 3\]"),
        ({"grid": 4}, r"grid = 4: .*should be odd"),
        ({"profile": "a/b"}, r"profile = 'a/b': expected the name of one folder"),
    ],
)
def test_parameters_are_held_against_each_other(tmp_path, values, message):
    related = notebook(tmp_path / "x.ipynb", RELATED)
    assert parameters.check(related, {})["held_out"] == 4
    with pytest.raises(ValueError, match=message):
        parameters.check(related, values)


def test_a_relation_to_no_parameter_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="the comment of parameter x binds it to `y`, which is no parameter"
    ):
        parameters.check(notebook(tmp_path / "x.ipynb", "x: int = 1  # below `y`"), {})


@pytest.mark.parametrize(
    ("name", "written", "meaning"),
    [
        ("p", "0141", "97"),
        ("p", "007", "7"),
        ("p", "1:37", "97"),
        ("p", "1_01", "101"),
        ("p", "0x65", "101"),
        ("p", "0b1100101", "101"),
        ("lr", "0:0.5", "0.5"),
        ("lr", "0_0.5", "0.5"),
        ("controls", "no", "false"),
        ("controls", "On", "true"),
        ("seeds", "[0, 010]", "8"),
    ],
)
def test_what_yaml_reads_otherwise_than_it_looks_is_refused_with_its_meaning(
    book, tmp_path, name, written, meaning
):
    file = tmp_path / "mine.yaml"
    file.write_text(f"{name}: {written}")
    with pytest.raises(
        ValueError,
        match=rf"mine\.yaml(.|\n)*\n  {name}.*` is read as {meaning}; write {meaning} for",
    ):
        parameters.check_file(book, file)
    file.write_text(f"{name}: {written.replace('010', meaning) if '[' in written else meaning}")
    value = parameters.check_file(book, file)[name]
    assert (value[-1] if isinstance(value, list) else value) == yaml.safe_load(meaning)


@pytest.mark.parametrize("written", ["no", "0500", "1:30", "2024-01-01", "=", "1_0"])
def test_a_text_that_yaml_reads_as_something_else_wants_quotes(book, tmp_path, written):
    file = tmp_path / "mine.yaml"
    file.write_text(f"profile: {written}")
    with pytest.raises(ValueError, match=r"quotes|not valid YAML"):
        parameters.check_file(book, file)
    file.write_text(f"operations: ['{written}']")
    with pytest.raises(ValueError, match=rf"operations\[0\] = '{written}': input should be 'add'"):
        parameters.check_file(book, file)


@pytest.mark.parametrize(
    "content", ["", "# all defaults\n", "---\n", "\ufeffp: 97\n", "%YAML 1.1\n---\np: 97\n...\n"]
)
def test_files_that_say_nothing_or_say_it_oddly_are_read(book, tmp_path, content):
    file = tmp_path / "mine.yaml"
    file.write_text(content, encoding="utf-8")
    assert parameters.check_file(book, file) == parameters.check(book, {})


def test_a_name_that_cannot_be_printed_here_is_escaped(book, tmp_path):
    file = tmp_path / "σ.yaml"
    file.write_text("p: 97")
    command = [sys.executable, "-m", "fieldbook.run.parameters", "check", book, file]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True
    )
    assert done.returncode == 0 and done.stdout.endswith(b"\\u03c3.yaml\n"), done.stderr


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_list_of_a_chapter_says_whether_it_may_repeat_itself(chapter):
    known = parameters.specification(ROOT / "book" / f"{chapter}.ipynb")
    lists = {
        name: comment for name, (_, default, comment) in known.items() if isinstance(default, list)
    }
    free = {name for name, comment in lists.items() if not re.search("distinct|ascending", comment)}
    assert free == {"shard"}


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.e-4", "+1e-4", ".1e-3"])
def test_floats_that_yaml_reads_as_strings(book, tmp_path, text):
    file = tmp_path / "good.yaml"
    file.write_text(f"lr: {text}")
    assert parameters.check_file(book, file)["lr"] == 1e-4


def test_a_good_file_passes(book, tmp_path):
    file = tmp_path / "good.yaml"
    file.write_text("p: 113\nseeds: [0, 1]\ntrain_fraction: 0.3\n")
    assert parameters.main(["check", str(book), str(file)]) == 0


def test_missing_files_are_named(book, tmp_path, capsys):
    assert parameters.main(["check", str(book), str(tmp_path / "no.yaml")]) == 1
    assert "no.yaml: no such parameter file" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match=r"no\.ipynb"):
        parameters.check(tmp_path / "no.ipynb", {})


def test_a_notebook_without_parameters_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no cell tagged `parameters`"):
        parameters.check(notebook(tmp_path / "x.ipynb", tags=()), {})


def test_an_annotation_that_cannot_be_checked_is_refused(tmp_path):
    with pytest.raises(ValueError, match="parameter x is annotated 'dict'"):
        parameters.check(notebook(tmp_path / "x.ipynb", "x: dict = {}"), {})


def test_lines_are_read_as_python_reads_them(tmp_path):
    cell = "x: int = 1  # y = 2, below `z`\nsizes: list[int] = [  # not this\n    1,\n    2,\n]  # but this\nz: int = 3"
    known = parameters.specification(notebook(tmp_path / "x.ipynb", cell))
    assert [(name, default, comment) for name, (_, default, comment) in known.items()] == [
        ("x", 1, "y = 2, below `z`"),
        ("sizes", [1, 2], "but this"),
        ("z", 3, ""),
    ]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("%matplotlib inline\np: int = 1", "the parameters cell cannot be read .invalid syntax"),
        (
            "p: int = 1\na, b = 1, 2",
            r"`a, b = \(1, 2\)` among the parameters; expected `name: type = value`",
        ),
        ("p: int", "`p: int` among the parameters; expected"),
        ("import os\np: int = 1", "`import os` among the parameters; expected"),
        ("p: float = math.pi", "parameter p: default or comment cannot be read"),
        (
            "p: int = 1  # as in [a, b] of the paper",
            "parameter p: .*could not convert string to float: 'a'",
        ),
        ("p: int = 1  # one of {a, b}", "parameter p: .*invalid literal"),
    ],
)
def test_a_cell_that_cannot_be_read_is_named(tmp_path, cell, message):
    with pytest.raises(ValueError, match=rf"x\.ipynb: {message}"):
        parameters.check(notebook(tmp_path / "x.ipynb", cell), {})


@pytest.mark.parametrize("content", ["{", "", "[]", "{}", "\udcff"])
def test_a_damaged_notebook_is_named(tmp_path, content):
    path = tmp_path / "x.ipynb"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"x\.ipynb: the parameters cell cannot be read"):
        parameters.check(path, {})


def test_any_name_and_any_prose_will_do(tmp_path):
    cell = 'model_dump: int = 1\n_p: int = 2\nwhere: str = "a"  # in [0, 1]'
    assert parameters.check(notebook(tmp_path / "x.ipynb", cell), {}) == {
        "model_dump": 1,
        "_p": 2,
        "where": "a",
    }


def test_load_reads_a_namespace(book, monkeypatch):
    monkeypatch.setattr(parameters.paths, "notebook", lambda chapter: book)
    found = parameters.load("agop", {"p": 23, "lr": "1e-4", "unrelated": object()})
    assert found.asdict() == parameters.check(book, {"p": 23, "lr": 1e-4})
    assert found.replace(p=29).p == 29 and found.p == 23
    with pytest.raises(AttributeError, match=r"par\.replace\(p=\.\.\) makes a copy"):
        found.p = 29
    with pytest.raises(AttributeError, match="no parameter is named q; known are"):
        found.replace(q=1)
    with pytest.raises(ValueError, match="p = 24"):
        parameters.load("agop", {"p": 24})


yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=2)
    ),
    max_leaves=4,
)


@given(
    st.dictionaries(
        st.sampled_from(["p", "lr", "seeds", "operations", "controls", "x"]) | st.text(),
        yaml_values,
    )
)
@settings(max_examples=60, deadline=None)
def test_no_input_escapes_as_another_error(book, values):
    try:
        accepted = parameters.check(book, values)
    except ValueError:
        return
    assert 5 <= accepted["p"] <= 499 and 0 < accepted["train_fraction"] < 1 and accepted["lr"] > 0
