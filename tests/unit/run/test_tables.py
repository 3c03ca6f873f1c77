"""Parts, logs and sweeps: rows that survive kills, full disks and other processes."""

import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from fieldbook.nn.checkpoints import atomic_write
from fieldbook.run import tables
from fieldbook.run.tables import Log, Parts, sweep

JOBS = [{"x": x} for x in range(12)]
FORK = multiprocessing.get_context("fork")


def square(job):
    return {"square": job["x"] ** 2 / 7}


def rows_of(folder, jobs=JOBS, compute=square, **options):
    """The rows of a sweep named `t`, in order."""
    found = sweep(Parts(folder), jobs, compute, name="t", **options)
    return [row for part in found for row in part["t"]]


def written(path, rows):
    tables.write_csv(path, rows)
    return path.read_bytes()


def test_a_part_comes_back_as_it_was(tmp_path):
    parts, key = Parts(tmp_path), {"op": "add", "step": 0}
    row = {"loss": 1 / 3, "ok": True, "note": 'a, "b"\nc', "none": None, "inf": float("inf")}
    parts.write(key, {"t": [row], "empty": []})
    assert parts.read(key) == {"t": [row], "empty": []}
    assert parts.read({"op": "add", "step": 1}) is None
    values = {"n": np.int64(3), "x": np.float32(0.5), "y": torch.tensor(2.0), "b": np.bool_(True)}
    parts.write({"op": "sub"}, {"t": [values]})
    assert parts.read({"op": "sub"})["t"] == [{"n": 3, "x": 0.5, "y": 2.0, "b": True}]


@pytest.mark.parametrize("value", [[1], {"a": 1}, np.arange(2), object()])
def test_a_value_that_no_table_holds_is_refused(tmp_path, value):
    with pytest.raises(
        ValueError, match=r"is no number, text, truth value or None|only one element"
    ):
        Parts(tmp_path).write({"x": 1}, {"t": [{"y": value}]})
    assert not list(tmp_path.iterdir())


def test_rows_of_other_columns_are_refused(tmp_path):
    rows = [{"x": 1, "y": 2}, {"x": 2, "z": 2}]
    with pytest.raises(ValueError, match=r"columns are \['x', 'y'\], another row has \['x', 'z'\]"):
        Parts(tmp_path).write({"x": 1}, {"t": rows})
    with pytest.raises(ValueError, match=r"t: columns are \['x', 'y'\]"):
        tables.write_csv(tmp_path / "t.csv", rows)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: text[:20],
        lambda text: text[:-1],
        lambda text: text.replace(b"0.25", b"0.75"),
        lambda text: text + b"\xff",
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b"\n", b"\r\n"),
    ],
    ids=["empty", "torn", "short", "edited", "binary", "bom", "crlf"],
)
def test_a_damaged_or_edited_part_is_made_again_alone(tmp_path, damage):
    jobs, done = JOBS[:3], []

    def compute(job):
        done.append(job["x"])
        return {"y": job["x"] + 0.25}

    before = rows_of(tmp_path, jobs, compute)
    file = Parts(tmp_path).file(jobs[0])
    file.write_bytes(damage(file.read_bytes()))
    if damage(b"a\n0.25") == b"a\r\n0.25":  # as some copy programs do: the same text
        return
    assert rows_of(tmp_path, jobs, compute) == before and done == [0, 1, 2, 0]


NAMES = ["NA", "nan", "None", "01", "1", "1.0", "", 'a,"b"', "c\rd\ne", "ü", "a/b", "..", True]
NAMES += [12345678901, 0.1 + 0.2, 0.3, np.float32(0.5), None, "x" * 300, "目" * 300]


def test_any_key_has_a_part_of_its_own(tmp_path):
    jobs = [{"x": name} for name in NAMES]
    found = rows_of(tmp_path, jobs[::-1], lambda job: {"y": str(job["x"])})
    assert [row["y"] for row in found] == [str(name) for name in NAMES[::-1]]
    assert rows_of(tmp_path, jobs, None) == found[::-1]
    assert {file.parent for file in tmp_path.rglob("*.json")} == {tmp_path}


def test_a_job_that_comes_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the job \{'x': 1\} comes twice in the sweep of t"):
        rows_of(tmp_path, [{"x": 0}, {"x": 1}, {"x": 1}])


def test_a_row_of_another_job_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"computed a row of another job: \{'x': 5\}"):
        rows_of(tmp_path, JOBS[:2], lambda job: {"x": 5})
    assert rows_of(tmp_path, []) == []


def test_a_job_may_fill_several_tables_and_has_a_folder_of_its_own(tmp_path):
    def compute(job, folder):
        folder.mkdir(parents=True)
        (folder / "weights").write_text(str(job["x"]))
        return {"t": {"y": 1}, "curve": [{**job, "step": s} for s in range(2)], "nothing": []}

    parts = Parts(tmp_path)
    first, second = sweep(parts, JOBS[:2], compute, name="t")
    assert first["t"] == [{"x": 0, "y": 1}] and second["curve"][1] == {"x": 1, "step": 1}
    assert (parts.folder_of({"x": 1}) / "weights").read_text() == "1"
    (only,) = sweep(parts, [{"x": 5}], lambda job: [{"k": 0}, {"k": 1}], name="t")
    assert only == {"t": [{"x": 5, "k": 0}, {"x": 5, "k": 1}]}


def test_a_sweep_computes_only_what_is_missing(tmp_path):
    assert [row["x"] for row in rows_of(tmp_path, JOBS[:5])] == [0, 1, 2, 3, 4]

    def refuse(job):
        assert job["x"] >= 5, "computed again"
        return square(job)

    assert [row["x"] for row in rows_of(tmp_path, JOBS, refuse)] == list(range(12))


def test_bytes_do_not_depend_on_workers_or_order(tmp_path):
    one = rows_of(tmp_path / "one")
    rows_of(tmp_path / "two", JOBS[::-1], workers=2)
    two = rows_of(tmp_path / "two")
    assert written(tmp_path / "one.csv", one) == written(tmp_path / "two.csv", two)


def test_dear_jobs_are_begun_first_and_rows_keep_the_order_of_the_jobs(tmp_path):
    begun = []

    def compute(job):
        begun.append(job["x"])
        return square(job)

    rows = rows_of(tmp_path, JOBS, compute, cost=lambda job: job["x"] % 3)
    assert begun == [2, 5, 8, 11, 1, 4, 7, 10, 0, 3, 6, 9]
    assert [row["x"] for row in rows] == list(range(12))


def test_a_shard_begins_with_its_own_jobs_and_leaves_none(tmp_path):
    seen = []

    def compute(job):
        seen.append(job["x"])
        return square(job)

    rows = rows_of(tmp_path, JOBS, compute, shard=(1, 3))
    assert [row["x"] for row in rows] == list(range(12))
    assert seen == [1, 4, 7, 10, 2, 5, 8, 11, 0, 3, 6, 9]
    with pytest.raises(ValueError, match=r"shard = \[3, 3\]"):
        rows_of(tmp_path, shard=(3, 3))


KILLED = """
import sys, time
from fieldbook.run.tables import Parts, sweep
def square(job):
    time.sleep(0.02)
    return {"square": job["x"] ** 2 / 7}
list(sweep(Parts(sys.argv[1]), [{"x": x} for x in range(12)], square, name="t"))
"""


def test_killed_sweeps_end_with_the_same_bytes(tmp_path):
    straight, folder = rows_of(tmp_path / "straight"), tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, folder]
    for kill in range(4):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while len(list(folder.glob("*.json"))) < 2 * kill + 1 and process.poll() is None:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert 1 <= len(list(folder.glob("*.json"))) < 12, "the kills did not hit the sweep"
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    killed = rows_of(folder, JOBS, None)
    assert written(tmp_path / "a.csv", killed) == written(tmp_path / "b.csv", straight)


def _fail_at_two(job):
    if job["x"] == 2:
        raise ZeroDivisionError("oops")
    return square(job)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_failing_job_is_named_and_the_others_are_kept(tmp_path, workers):
    with pytest.raises(ZeroDivisionError, match="oops") as caught:
        rows_of(tmp_path, JOBS[:3], _fail_at_two, workers=workers)
    assert caught.value.__notes__ == ["in the job {'x': 2} of t"]
    kept = [job["x"] for job in JOBS[:3] if Parts(tmp_path).read(job)]
    assert kept == [0, 1] if workers < 2 else {*kept} <= {0, 1}


def _fill(folder, shard, stuck):
    """One shard of a sweep that notes who begins which job, and may hang in one."""

    def compute(job):
        with open(folder / "log", "a") as file:
            file.write(f"{shard[0]} {job['x']}\n")
        while stuck == (shard[0], job["x"]):
            time.sleep(0.01)
        time.sleep(0.02)
        return square(job)

    rows = rows_of(folder / "parts", JOBS, compute, shard=shard)
    assert [row["x"] for row in rows] == list(range(12))


def _begun(folder):
    """(shard, job) in the order of the beginnings."""
    file = folder / "log"
    lines = file.read_text().splitlines() if file.exists() else []
    return [tuple(map(int, line.split())) for line in lines]


def _shards(folder, n, stuck=None):
    return [FORK.Process(target=_fill, args=(folder, (i, n), stuck)) for i in range(n)]


def test_shards_compute_each_job_once_and_all_end_with_all_rows(tmp_path):
    shards = _shards(tmp_path, 3)
    [shard.start() for shard in shards]
    [shard.join() for shard in shards]
    assert [shard.exitcode for shard in shards] == [0, 0, 0]
    assert sorted(x for _, x in _begun(tmp_path)) == list(range(12))
    left = {file.suffix for file in (tmp_path / "parts").iterdir()}
    assert left == {".json"}


def test_other_shards_do_the_jobs_of_a_killed_one(tmp_path):
    shards = _shards(tmp_path, 3, stuck=(0, 3))
    for shard, begun in zip(shards, (2, 3, 12), strict=True):
        shard.start()
        while len(_begun(tmp_path)) < begun:
            time.sleep(0.01)
    time.sleep(0.2)
    alive = [shard.is_alive() for shard in shards]
    assert alive == [True] * 3, "the others wait for the job in progress"
    assert len(_begun(tmp_path)) == 12
    shards[0].kill()
    [shard.join() for shard in shards]
    assert [shard.exitcode for shard in shards] == [-signal.SIGKILL, 0, 0]
    begun = _begun(tmp_path)
    assert (0, 3) in begun and begun[12:] in ([(1, 3)], [(2, 3)])
    found = rows_of(tmp_path / "parts", JOBS, None)
    straight = rows_of(tmp_path / "straight")
    assert written(tmp_path / "a.csv", found) == written(tmp_path / "b.csv", straight)


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


def test_a_full_disk_keeps_earlier_parts_and_tables(tmp_path, monkeypatch):
    parts, table = Parts(tmp_path), tmp_path / "t.csv"
    parts.write({"x": 1}, {"t": [{"y": 1}]})
    before = written(table, [{"x": 1, "y": 1}])
    monkeypatch.setattr("builtins.open", lambda *a, _open=open, **k: FullDisk(_open(*a, **k)))
    monkeypatch.setattr("os.fdopen", lambda *a, _open=os.fdopen, **k: FullDisk(_open(*a, **k)))
    for key in ({"x": 1}, {"x": 2}):
        with pytest.raises(OSError, match="could not be written") as caught:
            parts.write(key, {"t": [{"y": 2}]})
        assert caught.value.filename == str(parts.file(key))
    with pytest.raises(OSError, match="could not be written"):
        tables.write_csv(table, [{"x": 3, "y": 3}])
    monkeypatch.undo()
    assert parts.read({"x": 1}) == {"t": [{"y": 1}]} and parts.read({"x": 2}) is None
    assert table.read_bytes() == before
    assert not [file for file in tmp_path.iterdir() if "tmp" in file.name]


def test_a_disk_that_is_really_full_is_named(tmp_path):
    parts, limit = Parts(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    parts.write({"x": 1}, {"t": [{"y": "a" * 1000}]})
    before = parts.file({"x": 1}).read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limit[1]))
    try:
        with pytest.raises(OSError, match="could not be written"):
            parts.write({"x": 2}, {"t": [{"y": "b" * 2000}]})
        whole = r"could not be written .*\(10000 requested and \d+ written\)|could not be written"
        with pytest.raises(OSError, match=whole):
            atomic_write(tmp_path / "x.npy", lambda file: np.save(file, np.ones(10000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [before]


def test_a_log_keeps_its_rows_in_order_and_replaces(tmp_path):
    log = Log(tmp_path / "rows")
    assert log.rows() == [] and not log.has(0)
    for step in (0, 100, 20):
        log.write({"step": step, "loss": step / 3})
    log.write({"step": 20, "loss": 1.0})
    assert log.rows() == [{"step": s, "loss": v} for s, v in ((0, 0.0), (20, 1.0), (100, 100 / 3))]
    assert log.has(20) and not log.has(21)


def test_a_table_has_ten_digits_and_no_word_is_missing(tmp_path):
    rows = [
        {"name": "NA", "x": 1 / 3, "n": 1, "ok": True, "note": 'a, "b"\nc'},
        {"name": "None", "x": float("nan"), "n": 2, "ok": False, "note": None},
    ]
    path = tmp_path / "t.csv"
    tables.write_csv(path, rows)
    assert path.read_text().splitlines()[1] == 'NA,0.3333333333,1,True,"a, ""b"" c"'
    frame = tables.read_csv(path)
    assert frame.name.tolist() == ["NA", "None"] and frame.ok.tolist() == [True, False]
    assert frame.x[0] == pytest.approx(1 / 3, abs=1e-10) and pd.isna(frame.x[1])
    moment = path.stat().st_mtime_ns
    tables.write_csv(path, rows)
    assert path.stat().st_mtime_ns == moment, "what is the same is not written again"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"t\.csv is no table .*delete it to make it again"):
        tables.read_csv(path)
