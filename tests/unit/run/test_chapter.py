import errno
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from types import ModuleType

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from fieldbook.grokking import agop, circulant
from fieldbook.nn.checkpoints import atomic_write
from fieldbook.run import figures, provenance, results, tables


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("FIELDBOOK_RESULTS", str(tmp_path))
    monkeypatch.delenv("FIELDBOOK_FROZEN", raising=False)
    return tmp_path


def run(**parameters):
    return results.Run("agop", {"profile": "test", "p": 7, **parameters}, uses=[circulant])


def square(job):
    return {**job, "square": job["x"] ** 2 / 7}


JOBS = [{"x": x} for x in range(12)]


def test_append_read_and_ignore_known_keys(tmp_path):
    table = tables.Table(tmp_path / "t.csv", ["op", "step"])
    table.append({"op": "add", "step": 0, "loss": 1 / 3, "ok": True, "note": 'a, "b"\nc'})
    table.append({"op": "add", "step": 0, "loss": 9.0, "ok": True, "note": ""})
    table.append({"op": "add", "step": 50, "loss": float("nan"), "ok": False, "note": None})
    frame = table.frame()
    assert frame.loss.tolist()[0] == pytest.approx(1 / 3, abs=1e-10) and frame.step.tolist() == [
        0,
        50,
    ]
    assert (
        frame.note[0] == 'a, "b" c'
        and pd.isna(frame.loss[1])
        and frame.ok.tolist() == [True, False]
    )
    assert table.has({"op": "add", "step": 50}) and not table.has({"op": "sub", "step": 50})
    assert table.missing([{"op": "add", "step": s} for s in (0, 1, 50)]) == [
        {"op": "add", "step": 1}
    ]


def test_a_torn_row_is_dropped_and_written_again(tmp_path):
    table = tables.Table(tmp_path / "t.csv", ["x"])
    table.append(square({"x": 1}))
    whole = table.path.read_bytes()
    table.path.write_bytes(whole + b"2,0.57")
    assert table.missing([{"x": 1}, {"x": 2}]) == [{"x": 2}]
    table.append(square({"x": 2}))
    assert table.path.read_bytes() == whole + b"2,0.5714285714\n"


def test_other_columns_are_refused(tmp_path):
    table = tables.Table(tmp_path / "t.csv", ["x"])
    table.append({"x": 1, "y": 2})
    with pytest.raises(ValueError, match=r"columns are \['x', 'y'\], the new row has \['x', 'z'\]"):
        table.append({"x": 2, "z": 2})
    with pytest.raises(ValueError, match=r"without its key columns \['x'\]"):
        table.has({"y": 2})


def _append_many(path, offset):
    table = tables.Table(path, ["x"])
    for x in range(40):
        table.append({"x": x, "by": offset})


def test_two_processes_neither_lose_nor_double_rows(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_append_many, args=(tmp_path / "t.csv", i)) for i in range(2)
    ]
    [p.start() for p in processes], [p.join() for p in processes]
    assert sorted(tables.Table(tmp_path / "t.csv", ["x"]).frame().x) == list(range(40))


class FullDisk:
    """A file that takes half of what is written and then has no space left."""

    def __init__(self, file):
        self.file = file

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_keeps_the_old_rows(tmp_path, monkeypatch):
    table = tables.Table(tmp_path / "t.csv", ["x"])
    table.append(square({"x": 1}))
    before = table.path.read_bytes()
    monkeypatch.setattr("builtins.open", lambda *a, _open=open, **k: FullDisk(_open(*a, **k)))
    with pytest.raises(OSError, match="row not written") as caught:
        table.append(square({"x": 2}))
    assert caught.value.filename == str(table.path)
    with pytest.raises(OSError, match="before is intact"):
        table.replace(pd.DataFrame({"x": [3]}))
    monkeypatch.undo()
    assert table.path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if "tmp" in p.name] == []


def test_sweep_computes_only_what_is_missing(root):
    table = run().table("t", ["x"])
    frame = tables.sweep(table, JOBS[:5], square)
    assert frame.x.tolist() == [0, 1, 2, 3, 4]

    def refuse(job):
        assert job["x"] >= 5, "computed again"
        return square(job)

    assert tables.sweep(table, JOBS, refuse).x.tolist() == list(range(12))


def test_bytes_do_not_depend_on_workers_or_order(root):
    one, two = run().table("one", ["x"]), run().table("two", ["x"])
    tables.sweep(one, JOBS, square)
    tables.sweep(two, JOBS[::-1], square, workers=2)
    tables.sweep(two, JOBS, square)
    assert one.path.read_bytes() == two.path.read_bytes()


def test_dear_jobs_are_begun_first_and_rows_keep_the_order_of_the_jobs(tmp_path):
    begun = []

    def compute(job):
        begun.append(job["x"])
        return square(job)

    table = tables.Table(tmp_path / "t.csv", ["x"])
    rows = tables.sweep(table, JOBS, compute, cost=lambda job: job["x"] % 3)
    assert begun == [2, 5, 8, 11, 1, 4, 7, 10, 0, 3, 6, 9] and rows.x.tolist() == list(range(12))


def test_a_shard_begins_with_its_own_jobs_and_leaves_none(tmp_path):
    table, seen = tables.Table(tmp_path / "t.csv", ["x"]), []

    def compute(job):
        seen.append(job["x"])
        return square(job)

    assert tables.sweep(table, JOBS, compute, shard=(1, 3)).x.tolist() == list(range(12))
    assert seen == [1, 4, 7, 10, 2, 5, 8, 11, 0, 3, 6, 9]
    with pytest.raises(ValueError, match=r"shard = \[3, 3\]"):
        tables.sweep(table, JOBS, square, shard=(3, 3))


KILLED = """
import time
from fieldbook.run import results, tables
run = results.Run("agop", {"profile": "test", "p": 7})
def square(job):
    time.sleep(0.02)
    return {**job, "square": job["x"] ** 2 / 7}
tables.sweep(run.table("t", ["x"]), [{"x": x} for x in range(12)], square)
run.finish()
"""


def test_killed_sweeps_end_with_the_same_bytes(root, tmp_path):
    table = results.Run("agop", {"profile": "straight", "p": 7}).table("t", ["x"])
    tables.sweep(table, JOBS, square)
    target = root / "data/agop/test/t.csv"
    for kill in range(4):
        process = subprocess.Popen([sys.executable, "-c", KILLED], stderr=subprocess.DEVNULL)
        while (
            not (target.exists() and target.read_text().count("\n") > 2 * kill + 1)
            and process.poll() is None
        ):
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    rows = target.read_text().count("\n")
    assert 3 <= rows < 13, "the kills did not hit the sweep"
    subprocess.run([sys.executable, "-c", KILLED], check=True, stderr=subprocess.DEVNULL)
    assert target.read_bytes() == table.path.read_bytes()


def test_manifest_vouches_for_its_rows(root):
    first = run(workers=1)
    tables.sweep(first.table("t", ["x"]), JOBS, square)
    assert first.manifest()["status"] == "partial"
    first.finish()
    manifest = first.manifest()
    assert manifest["status"] == "complete" and manifest["parameters"] == {
        "profile": "test",
        "p": 7,
    }
    assert manifest["csv_sha256"] == {"t.csv": results.sha256(first.folder / "t.csv")}
    assert {"versions", "device", "git", "wall_s", "sources"} <= set(manifest)
    again = run(workers=2)
    again.finish()
    assert again.table("t", ["x"]).missing(JOBS) == [] and again.manifest() == manifest


def published(root, monkeypatch, uses=()):
    """A finished run with a table of one row, about to be read frozen."""
    one = results.Run("agop", {"profile": "test"}, uses=uses)
    one.table("t", ["x"]).append({"x": 0, "y": 5})
    one.finish()
    monkeypatch.setenv("FIELDBOOK_FROZEN", "1")
    return one


@pytest.mark.parametrize("library", ["the same", "another"])
@pytest.mark.parametrize("change", ["edited", "deleted", "added"])
def test_frozen_tables_are_those_of_the_manifest_whatever_the_library(
    root, monkeypatch, library, change, capsys
):
    one = published(root, monkeypatch)
    uses = [circulant] if library == "another" else []
    results.Run("agop", {"profile": "test"}, uses=uses)
    assert ("earlier version" in capsys.readouterr().err) == (library == "another")
    name = "u.csv" if change == "added" else "t.csv"
    file = one.folder / name
    file.unlink(missing_ok=True) if change == "deleted" else file.write_text("x,y\n0,6\n")
    with pytest.raises(ValueError, match=rf"{name} is not the file that the manifest describes"):
        results.Run("agop", {"profile": "test"}, uses=uses)


@pytest.mark.parametrize("finished", [True, False])
def test_a_lost_table_costs_itself_and_the_sweep_that_fills_it(root, finished):
    def start():
        one = run()
        side, done = one.table("side", ["x"]), []

        def compute(job):
            done.append(job["x"])
            side.append({**job, "detail": 1})
            return square(job)

        one.sweep("other", JOBS[:2], square)
        one.sweep("t", JOBS[:2], compute)
        return one, done

    one, done = start()
    assert done == [0, 1]
    (one.inputs / "last.pt").write_text("hours")
    if finished:
        one.finish()
    (one.folder / "side.csv").unlink()
    two, done = start()
    assert done == [0, 1] and len(two.table("side", ["x"]).frame()) == 2
    assert (two.inputs / "last.pt").exists() and not (two.folder / "other.csv.stale").exists()
    if finished:
        two.finish()
    (one.folder / "other.csv").unlink()
    assert start()[1] == []


def test_runs_never_share_a_folder_of_inputs(root):
    first = run()
    (first.inputs / "last.pt").write_text("7")
    second = run(p=11)
    (first.inputs / "late").parent.mkdir(parents=True)
    (first.inputs / "late").write_text("still 7")
    assert first.inputs != second.inputs and not list(second.inputs.iterdir())
    assert run(p=11).inputs == second.inputs


def test_links_in_the_place_of_folders_are_followed_and_stay(root, tmp_path_factory):
    disk = tmp_path_factory.mktemp("disk")
    for kind in ("data/agop", "data/inputs/agop"):
        (root / kind).mkdir(parents=True)
        (root / kind / "test").symlink_to(disk / kind)  # to a folder that is not there yet
    for p in (7, 11, 13):
        one = run(p=p)
        (one.inputs / "last.pt").write_text("hours")
        one.table("t", ["x"]).append({"x": p})
    assert one.table("t", ["x"]).frame().x.tolist() == [13]
    assert (root / "data/agop/test").is_symlink() and (disk / "data/agop/t.csv.stale").exists()


def test_an_earlier_generation_that_is_a_link_is_replaced(root, tmp_path_factory):
    first, elsewhere = run(), tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "kept").touch()
    (first.inputs / "last.pt").write_text("hours")
    first.inputs.parent.with_name("test.stale").symlink_to(elsewhere)
    run(p=11)
    assert (elsewhere / "kept").exists() and list(
        first.inputs.parents[1].glob("test.stale/*/last.pt")
    )


def test_new_rows_reopen_a_complete_run(root):
    first = run()
    tables.sweep(first.table("t", ["x"]), JOBS[:3], square)
    first.claim("a", "b", "c", True)
    first.claims()
    first.finish()
    run().table("t", ["x"]).append(square({"x": 3}))  # killed before finish
    assert run().manifest()["status"] == "partial"
    assert len(run().table("t", ["x"]).frame()) == 4
    one = run()
    one.finish()
    assert set(one.manifest()["csv_sha256"]) == {"t.csv"}


@pytest.mark.parametrize(
    "spoil", ["parameters", "sources", "edited", "deleted manifest", "broken manifest"]
)
def test_stale_rows_are_set_aside(root, spoil, capsys):
    first = run()
    tables.sweep(first.table("t", ["x"]), JOBS, square)
    (first.inputs / "last.pt").write_text("weights")
    first.finish()
    path = first.folder / "manifest.json"
    if spoil == "edited":
        (first.folder / "t.csv").write_text("x,square\n0,1\n")
    elif spoil == "deleted manifest":
        path.unlink()
    elif spoil == "broken manifest":
        path.write_text("{")
    elif spoil == "sources":
        path.write_text(json.dumps({**first.manifest(), "sources": "0"}))
    second = run(p=11) if spoil == "parameters" else run()
    assert second.table("t", ["x"]).missing(JOBS) == JOBS
    assert (first.folder / "t.csv.stale").exists() and (second.inputs / "last.pt").exists() == (
        spoil == "edited"
    )
    assert second.manifest()["status"] == "partial"
    assert ("p was 7, is 11" in capsys.readouterr().err) == (spoil == "parameters")


def test_frozen_results_are_only_read(root, monkeypatch):
    first = run()
    tables.sweep(first.table("t", ["x"]), JOBS[:6], square)
    first.finish()
    monkeypatch.setenv("FIELDBOOK_FROZEN", "1")
    frozen = run()
    assert len(tables.sweep(frozen.table("t", ["x"]), JOBS[:6], square)) == 6
    with pytest.raises(PermissionError, match="6 rows are missing"):
        tables.sweep(frozen.table("t", ["x"]), JOBS, square)
    with pytest.raises(PermissionError, match="frozen"):
        frozen.table("t", ["x"]).append({"x": 99, "square": 0})
    with pytest.raises(ValueError, match="p was 7, is 11"):
        run(p=11)
    assert frozen.finish().loc["wall time, s", "this run"] == frozen.manifest()["wall_s"]


def test_unwritable_results_are_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FIELDBOOK_RESULTS", str(tmp_path / "file"))
    with pytest.raises(OSError, match="set FIELDBOOK_RESULTS elsewhere") as caught:
        run()
    assert str(tmp_path / "file") in caught.value.filename


def test_claims_and_ledger(root):
    one = run()
    one.claim("it groks", "yes", "no", False)
    one.claim("it leads", "n/a", "no", np.bool_(False))
    one.claim("at 1e5 steps", "yes", "", None)
    one.claim("with three seeds", "yes", "one", True, tested=False)
    one.claim("it groks", "yes", "yes", True)  # as in a cell that is run again
    assert one.claims().verdict.tolist() == ["holds", "fails", "not tested here", "not tested here"]
    ledger = results.ledger("test")
    assert ledger.chapter.tolist() == ["agop"] * 4 and list(ledger) == [
        "chapter",
        "claim",
        "source",
        "ours",
        "verdict",
    ]
    assert results.ledger("paper").empty


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write modules of another fieldbook, and hash what uses the first."""
    monkeypatch.setattr(provenance, "LIBRARY", tmp_path)

    def hashed(**modules):
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        return results.source_hash([ModuleType(f"fieldbook.{next(iter(modules))}")])

    return hashed


def test_source_hash_follows_imports_and_ignores_prose(package):
    base = package(one="from fieldbook import two\n", two="def f():\n    return 1\n")
    prose = {
        "one": "from fieldbook import two  # a comment\n",
        "two": 'def f():\n    """Text."""\n\n    return 1\n',
    }
    assert base == package(**prose)
    assert base != package(one="from fieldbook import two\n", two="def f():\n    return 2\n")


def test_source_hash_sees_the_tables_that_a_module_reads(package, tmp_path):
    def hashes():
        return package(reader="from importlib.resources import files\n"), package(other="x = 1\n")

    before = hashes()
    (tmp_path / "lines.csv").write_text("wavelength\n1\n", encoding="utf-8")
    after = hashes()
    assert after[0] != before[0] and after[1] == before[1]


def test_a_module_without_source_is_refused(package):
    with pytest.raises(ValueError, match=r"fieldbook\.absent has no source"):
        results.source_hash([ModuleType("fieldbook.absent")])


def test_source_hash_sees_functions_and_constants_of_a_notebook(tmp_path):
    def hashed(*lines, constant=1):
        file = (
            tmp_path / f"cell{len(list(tmp_path.iterdir()))}.py"
        )  # inspect reads a function from its file
        file.write_text("\n".join(lines))
        namespace = {"__name__": "__main__"}
        exec(compile(file.read_text(), file, "exec"), namespace)
        return results.source_hash([circulant, namespace["f"], constant])

    base = hashed("def f(job):", "    return job + 1")
    assert base == hashed("def f(job):", '    """Text."""', "    return job + 1  # a comment")
    assert base != hashed("def f(job):", "    return job + 2")
    assert base != hashed("def f(job):", "    return job + 1", constant=2)
    assert base != results.source_hash([circulant])


def test_drawing_parameters_do_not_make_rows_stale(root):
    first = run(draw_log_steps=False, workers=1)
    tables.sweep(first.table("t", ["x"]), JOBS, square)
    first.finish()
    assert run(draw_log_steps=True, workers=2).table("t", ["x"]).missing(JOBS) == []


def test_source_hash_of_real_modules():
    assert results.source_hash([agop]) != results.source_hash([circulant])
    assert results.source_hash([agop, circulant]) == results.source_hash([circulant, agop])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace(b"\n", b"\r\n"), None),
        (lambda text: text + b"\xff,3\n", "can't decode byte 0xff"),
        (lambda text: b"\xef\xbb\xbf" + text, "'x' is not in list"),
        (lambda text: text + b"2,3,4\n", "not every line is a row"),
        (lambda text: text + b'"2\n3",4\n', "not every line is a row"),
        (lambda text: b"", None),
        (lambda text: text[:4], None),
        (lambda text: text[:3], None),
        (lambda text: text + "2,ü".encode()[:-1], None),
    ],
    ids=[
        "crlf",
        "binary",
        "bom",
        "too long",
        "two lines",
        "empty",
        "header",
        "torn header",
        "torn character",
    ],
)
def test_a_damaged_file_is_refused_or_mended_and_loses_no_row(tmp_path, damage, message):
    table = tables.Table(tmp_path / "t.csv", ["x"])
    table.append({"x": 0, "y": 5}, {"x": 1, "y": 5})
    table.path.write_bytes(before := damage(table.path.read_bytes()))
    if message:
        for use in (table.frame, lambda: table.append({"x": 7, "y": 5}), lambda: table.sort(JOBS)):
            with pytest.raises(
                ValueError,
                match=rf"t\.csv is no table keyed by x .*{message}.*; restore the file, or",
            ):
                use()
        assert table.path.read_bytes() == before
    else:
        kept = table.frame().x.tolist()
        table.append({"x": 7, "y": 5})
        assert table.frame().x.tolist() == [*kept, 7] and len(kept) in (0, 2)


def test_one_append_checks_and_keys_each_of_its_rows(tmp_path):
    table = tables.Table(tmp_path / "t.csv", ["x"])
    table.append()
    table.append({"x": 1, "y": 2}, {"x": 1, "y": 3})
    assert table.frame().y.tolist() == [2]
    with pytest.raises(ValueError, match=r"the new row has \['y', 'x'\]"):
        table.append({"x": 2, "y": 2}, {"y": 3, "x": 3})
    assert table.frame().x.tolist() == [1]


@pytest.mark.parametrize(
    ("old", "new"),
    [("1e-05", "1.00E-05"), ("0.1,", "0.10,"), ("0.1,", "1E-1,"), ("True", "TRUE"), ("7,", "7.0,")],
)
def test_keys_that_a_spreadsheet_writes_otherwise_are_the_same(tmp_path, old, new):
    table, jobs = tables.Table(tmp_path / "t.csv", ["lr", "big", "n"]), []
    jobs += [
        {"lr": 0.1, "big": np.bool_(True), "n": 7},
        {"lr": 1e-5, "big": False, "n": np.int64(8)},
    ]
    table.append(*({**job, "y": 5.0} for job in jobs[::-1]))
    table.path.write_text(table.path.read_text().replace(old, new))
    table.append({**jobs[0], "y": -1.0}, {**jobs[1], "y": -1.0})
    frame = tables.sweep(table, jobs, None)
    assert frame.y.tolist() == [5, 5] and frame.lr.tolist() == [0.1, 1e-5]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace("0.1,", '"0,1",'), "'0,1'"),
        (lambda text: text.replace("0.1,", "10%,"), "'10%'"),
        (lambda text: text.replace(",", ";"), "'lr' is not in list"),
        (lambda text: text + "0.10,6\n", "0.1 comes twice"),
    ],
    ids=["decimal comma", "percent", "semicolons", "twice"],
)
def test_a_spreadsheet_s_keys_that_are_no_numbers_are_refused(tmp_path, edit, message):
    table = tables.Table(tmp_path / "t.csv", ["lr"])
    table.append({"lr": 0.1, "y": 5.0}, {"lr": 1e-5, "y": 6.0})
    table.path.write_text(edit(table.path.read_text()))
    with pytest.raises(
        ValueError,
        match=rf"t\.csv is no table keyed by lr .*{message}.*delete it to compute it again",
    ):
        tables.sweep(table, [{"lr": 0.1}, {"lr": 1e-5}], None)
    table.path.unlink()  # the remedy
    assert tables.sweep(table, [{"lr": 0.1}], lambda job: {**job, "y": 5.0}).y.tolist() == [5]


NAMES = [
    "NA",
    "nan",
    "None",
    "01",
    "1",
    "1.0",
    "",
    'a,"b"',
    "c\rd\ne",
    "ü",
    True,
    12345678901,
    0.1 + 0.2,
    np.float32(0.5),
]


def test_any_key_survives_sorting(tmp_path):
    table = tables.Table(tmp_path / "t.csv", ["x"])
    jobs = [{"x": name} for name in NAMES]

    def compute(job):
        return {**job, "y": np.float32("nan")}

    tables.sweep(table, jobs[::-1], compute)
    frame = tables.sweep(table, jobs, None)
    assert len(frame) == len(NAMES) and frame.y.isna().all() and table.missing(jobs) == []
    assert frame.x.tolist()[:5] == NAMES[:5] and table.has({"x": 0.3}) and table.has({"x": 0.5})


def test_without_an_order_rows_are_sorted_by_their_keys(tmp_path):
    table = tables.Table(tmp_path / "t.csv", ["name", "x"])
    table.append(
        *({"name": n, "x": x, "y": 0} for n, x in (("b", 10.0), ("a", 2.5), ("b", 2.0), ("a", 0.1)))
    )
    table.sort()
    assert table.frame()[["name", "x"]].to_numpy().tolist() == [
        ["a", 0.1],
        ["a", 2.5],
        ["b", 2.0],
        ["b", 10.0],
    ]


def _fail_at_two(job):
    if job["x"] == 2:
        raise ZeroDivisionError("oops")
    return square(job)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_failing_job_is_named_and_the_others_are_kept(tmp_path, workers):
    table = tables.Table(tmp_path / "t.csv", ["x"])
    with pytest.raises(ZeroDivisionError, match="oops") as caught:
        tables.sweep(table, JOBS[:3], _fail_at_two, workers=workers)
    assert caught.value.__notes__ == [f"in the job {{'x': 2}} of {table.path}"]
    kept = table.frame().x.tolist()
    assert kept == [0, 1] if workers < 2 else {*kept} <= {0, 1}


def test_a_row_of_another_job_is_refused(tmp_path):
    table = tables.Table(tmp_path / "t.csv", ["x"])
    with pytest.raises(ValueError, match=r"computed a row with the key \('5',\)"):
        tables.sweep(table, JOBS[:2], lambda job: {"x": 5})
    assert table.frame().empty and tables.sweep(table, [], None).empty


FORK = multiprocessing.get_context("fork")


def _fill(folder, shard, stuck):
    """One shard of a sweep that notes who begins which job; it hangs in one, if it is the one to."""

    def compute(job):
        with open(folder / "log", "a") as file:
            file.write(f"{shard[0]} {job['x']}\n")
        while stuck == (shard[0], job["x"]):
            time.sleep(0.01)
        time.sleep(0.02)
        return square(job)

    frame = tables.sweep(tables.Table(folder / "t.csv", ["x"]), JOBS, compute, shard=shard)
    assert frame.x.tolist() == list(range(12))


def _begun(folder):
    """(shard, job) in the order of the beginnings."""
    file = folder / "log"
    return (
        [tuple(map(int, line.split())) for line in file.read_text().splitlines()]
        if file.exists()
        else []
    )


def _shards(folder, n, stuck=None):
    return [FORK.Process(target=_fill, args=(folder, (i, n), stuck)) for i in range(n)]


def test_shards_compute_each_job_once_and_all_end_with_all_rows(tmp_path):
    shards = _shards(tmp_path, 3)
    [shard.start() for shard in shards], [shard.join() for shard in shards]
    assert [shard.exitcode for shard in shards] == [0, 0, 0]
    assert sorted(x for _, x in _begun(tmp_path)) == list(range(12))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".t.csv.lock", "log", "t.csv"]


def test_other_shards_do_the_jobs_of_a_killed_one(tmp_path):
    shards = _shards(tmp_path, 3, stuck=(0, 3))
    for shard, begun in zip(shards, (2, 3, 12), strict=True):
        shard.start()
        while len(_begun(tmp_path)) < begun:
            time.sleep(0.01)
    time.sleep(0.2)
    assert [shard.is_alive() for shard in shards] == [True] * 3, (
        "the others wait for the job in progress"
    )
    assert len(_begun(tmp_path)) == 12
    shards[0].kill()
    [shard.join() for shard in shards]
    assert [shard.exitcode for shard in shards] == [-signal.SIGKILL, 0, 0]
    begun = _begun(tmp_path)
    assert (0, 3) in begun and begun[12:] in ([(1, 3)], [(2, 3)])
    table = tables.Table(tmp_path / "straight.csv", ["x"])
    tables.sweep(table, JOBS, square)
    assert (tmp_path / "t.csv").read_bytes() == table.path.read_bytes()


def _whole_run(shard):
    each = run(shard=shard)
    each.sweep("t", JOBS, square, shard=shard)
    each.sweep("u", JOBS[::-1], square, shard=shard)
    figure, axes = plt.subplots(figsize=(1, 1))
    axes.plot(each.table("u", ["x"]).frame().square)
    figures.save(figure, "agop", "test", "squares")
    each.claim("a", "b", "c", True)
    each.claims()
    each.finish(shard=shard)


def _contents(root):
    return {
        p.name: p.read_bytes() for p in root.rglob("*.*") if p.suffix in (".csv", ".png", ".pdf")
    }


def test_shards_that_end_together_leave_whole_files(root, tmp_path_factory, monkeypatch):
    shards = [FORK.Process(target=_whole_run, args=((i, 4),)) for i in range(4)]
    [shard.start() for shard in shards], [shard.join() for shard in shards]
    assert [shard.exitcode for shard in shards] == [0] * 4
    together, manifest = _contents(root), run().manifest()
    run().finish()
    assert manifest["status"] == "complete" and run().manifest() == manifest, (
        "collecting changes nothing"
    )
    assert not list(root.rglob("*.tmp")) and not list(root.rglob("*.stale"))
    monkeypatch.setenv("FIELDBOOK_RESULTS", str(tmp_path_factory.mktemp("alone")))
    _whole_run((0, 1))
    assert together == _contents(run().folder.parents[2])


def test_a_full_disk_is_named_and_keeps_the_old_rows(tmp_path):
    table, limit = (
        tables.Table(tmp_path / "t.csv", ["x"]),
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )
    table.append({"x": 1, "y": "a" * 1000})
    before = table.path.read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limit[1]))
    try:
        with pytest.raises(OSError, match="row not written"):
            table.append({"x": 2, "y": "b" * 1000})
        with pytest.raises(
            OSError, match=r"could not be written \(10000 requested and \d+ written\)"
        ):
            atomic_write(tmp_path / "x.npy", lambda file: np.save(file, np.ones(10000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert table.path.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == [
        ".t.csv.lock",
        "t.csv",
    ]


def test_a_run_whose_folder_was_taken_writes_nothing(root):
    first, second = run(), run(p=11)
    second.table("t", ["x"]).append({"x": 11})
    writes = [lambda: first.table("t", ["x"]).append({"x": 7}), first.claims, first.finish]
    for write in writes:
        with pytest.raises(RuntimeError, match="taken by another run or emptied since"):
            write()
    second.finish()
    assert (
        second.table("t", ["x"]).frame().x.tolist() == [11]
        and run(p=11).manifest()["status"] == "complete"
    )


def test_finish_waits_for_rows_being_written(root, monkeypatch):
    first = run()
    first.table("t", ["x"]).append({"x": 1})
    with first._writing("t.csv"):
        process = multiprocessing.get_context("fork").Process(target=first.finish)
        process.start()
        process.join(timeout=0.3)
        assert process.is_alive()
        (first.folder / "t.csv").write_text("x\n1\n2\n")
    process.join()
    assert run().table("t", ["x"]).frame().x.tolist() == [1, 2]


@pytest.mark.parametrize(
    "text",
    ["[1]", "3", "null", '{"parameters": 3}', '{"csv_sha256": [1]}', '{"wall_s": "1"}', "\udcff"],
)
def test_a_manifest_of_the_wrong_shape_is_none(root, text):
    first = run()
    first.table("t", ["x"]).append({"x": 1})
    path = first.folder / "manifest.json"
    merged = json.dumps({**first.manifest(), **json.loads(text)}) if text.startswith("{") else text
    path.write_bytes(merged.encode(errors="surrogateescape"))
    assert run().manifest()["status"] == "partial" and (first.folder / "t.csv.stale").exists()


def test_a_fresh_run_sets_nothing_aside(root, capsys):
    first = run()
    assert capsys.readouterr().err == "" and not list(root.rglob("*.stale"))
    (first.folder / ".t.csv.0.tmp").write_text("left by a kill")
    run()
    assert not list(root.rglob("*.tmp"))


@pytest.mark.parametrize("profile", ["", ".", "..", "../up", "a/b"])
def test_a_profile_is_the_name_of_one_folder(root, profile):
    with pytest.raises(ValueError, match="expected the name of one folder"):
        run(profile=profile)
    assert not list(root.iterdir())


def test_without_git_a_run_still_finishes(root, monkeypatch):
    monkeypatch.setenv("PATH", "")
    one = run()
    one.finish()
    assert one.manifest()["git"] == {"revision": None, "dirty": None}


@pytest.mark.parametrize("place", ["data/agop/test/benchmark.tsv", "benchmark/agop.tsv"])
@pytest.mark.parametrize(
    "seconds, known", [(590, True), (20, False)], ids=["the run", "a later one that found its rows"]
)
def test_costs_are_those_of_the_run_that_made_the_rows(root, place, seconds, known):
    one = run()
    one.finish()
    manifest = one.folder / "manifest.json"
    manifest.write_text(
        json.dumps(json.loads(manifest.read_text()) | {"wall_s": 600.0, "device": "cpu"})
    )
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).write_text(f"s\tmax_rss\tcpu_time\n{seconds}\t2048.0\t1080.0\n")
    (row,) = results.costs("test").to_dict("records")
    assert (row["chapter"], row["minutes"], row["device"]) == ("agop", 10.0, "cpu")
    measured = [row["cpu_minutes"], row["memory_gb"]]
    assert measured == [18.0, 2.0] if known else np.isnan(measured).all()


@pytest.mark.parametrize("text", ["", "s\tmax_rss\tcpu_time\n", "s\n1\n"])
def test_a_benchmark_that_holds_nothing_is_named_with_a_remedy(root, text):
    one = run()
    one.finish()
    file = one.folder / "benchmark.tsv"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"benchmark\.tsv is no benchmark.*delete it"):
        results.costs("test")
    file.unlink()
    assert len(results.costs("test")) == 1


def test_claims_keep_words_that_pandas_reads_as_missing(root):
    one = run()
    one.claim("it groks", "n/a", "None", True)
    one.claims()
    assert results.ledger("test")[["source", "ours"]].to_numpy().tolist() == [["n/a", "None"]]
