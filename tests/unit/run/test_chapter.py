"""A chapter's run: what its tables belong to, and what its manifest vouches for."""

import json
import linecache
import multiprocessing
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from fieldbook.run import ledger, paths, tables
from fieldbook.run.chapter import Run, start
from fieldbook.run.manifest import sha256
from fieldbook.run.parameters import Parameters

JOBS = [{"x": x} for x in range(6)]
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("FIELDBOOK_RESULTS", str(tmp_path))
    monkeypatch.delenv("FIELDBOOK_FROZEN", raising=False)
    return tmp_path


def run(**values):
    given = {"profile": "test", "p": 7, "lr": 0.1, "workers": 1, "shard": [0, 1]}
    return Run("agop", Parameters(given | values))


def square(job):
    return {"square": job["x"] ** 2 / 7}


class Counted:
    """A computation that counts its calls; what it is known by is `compute`."""

    def __init__(self, par, text="return {'y': job['x'] + LIMIT}", **names):
        self.calls = []
        source = textwrap.dedent(f"""
            def compute(job):
                calls(job["x"])
                {text}
        """)
        file = f"<cell {abs(hash((source, id(self))))}>"
        linecache.cache[file] = (len(source), None, source.splitlines(True), file)
        self.scope = {"__name__": "__main__", "calls": _Silent(self.calls), "par": par}
        self.scope |= {"LIMIT": 1, **names}
        exec(compile(source, file, "exec"), self.scope)
        self.compute = self.scope["compute"]


class _Silent(dict):
    """Notes a call, and is known by nothing."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def __call__(self, x):
        self.calls.append(x)


def sweep(one, name="t", jobs=JOBS, **change):
    """A sweep; returns its frame and the jobs that were computed."""
    counted = Counted(one.par, **change)
    return one.sweep(name, jobs, counted.compute), counted.calls


def test_a_second_run_computes_nothing_and_every_change_what_depends_on_it(root):
    every = list(range(6))
    assert sweep(run())[1] == every
    assert sweep(run())[1] == []
    assert sweep(run(), LIMIT=2)[1] == every  # a constant
    assert sweep(run(), text="return {'y': job['x'] * LIMIT}")[1] == every  # the code
    assert sweep(run(lr=0.2))[1] == []  # a parameter that the code does not mention
    reads = "return {'y': par.lr}"
    assert sweep(run(), "u", text=reads)[1] == every
    assert sweep(run(p=11), "u", text=reads)[1] == []
    assert sweep(run(lr=0.2), "u", text=reads)[1] == every
    assert sweep(run(workers=2, shard=[0, 2]), "u", text=reads)[1] == []
    assert sweep(run(lr=0.2), "v", text="return {'y': len(par.asdict())}")[1] == every
    assert sweep(run(lr=0.2, p=11), "v", text="return {'y': len(par.asdict())}")[1] == every
    assert sweep(run())[1] == []  # back to the first: its rows are found


def test_rows_of_other_parameters_come_back(root):
    text = "return {'y': par.p}"
    for p, computed in ((7, 6), (11, 6), (7, 0), (11, 0)):
        one = run(p=p)
        frame, calls = sweep(one, text=text)
        one.finish()
        assert frame.y.tolist() == [p] * 6 and len(calls) == computed
        assert one.frame("t").y.tolist() == [p] * 6


def test_a_job_that_uses_the_run_is_refused(root):
    one = run()
    with pytest.raises(ValueError, match=r"compute uses the run itself; hand it the folders"):
        sweep(one, text="return {'y': str(run.inputs)}", run=one)


def test_paths_of_earlier_jobs_carry_what_they_depend_on(root):
    def chain(limit):
        one = run()
        sweep(one, "first", text="return {'y': LIMIT}", LIMIT=limit)
        place = one.files("first", JOBS[0])
        return sweep(one, "second", text="return {'y': place.name}", place=place)[1]

    assert [len(chain(limit)) for limit in (1, 1, 2, 1)] == [6, 0, 6, 0]


def test_two_sweeps_do_not_fill_one_table(root):
    one = run()
    sweep(one, "t", text="return {'t': {'y': 1}, 'side': [{'z': 1}]}")
    with pytest.raises(ValueError, match="two sweeps fill side: t and u"):
        sweep(one, "u", text="return {'u': {'y': 1}, 'side': [{'z': 2}]}")
    assert one.frame("side").z.tolist() == [1] * 6


def test_input_files_count_by_their_content(root):
    file = root / "input.txt"
    file.write_text("one")
    one = run()
    counted = Counted(one.par)

    def again():
        counted.calls.clear()
        one.sweep("t", JOBS, counted.compute, reads={"file": file})
        return len(counted.calls)

    assert [again(), again()] == [6, 0]
    file.write_text("two")
    assert again() == 6


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("change", ["deleted", "edited", "manifest", "torn manifest"])
def test_what_is_deleted_or_edited_is_joined_again(root, finished, change):
    one = run()
    sweep(one, "other")
    before, _ = sweep(one)
    if finished:
        one.finish()
    file, manifest = one.folder / "t.csv", one.folder / "manifest.json"
    if change == "deleted":
        file.unlink()
    elif change == "edited":
        file.write_text("x,y\n0,6\n")
    else:
        manifest.unlink() if change == "manifest" else manifest.write_text("{")
    two = run()
    after, calls = sweep(two)
    assert calls == [] and after.equals(before) and sweep(two, "other")[1] == []
    two.finish()
    assert two.manifest()["csv_sha256"]["t.csv"] == sha256(file)


def test_tables_of_earlier_code_are_not_kept_among_the_finished_ones(root):
    one = run()
    sweep(one, "old")
    one.finish()
    two = run()
    sweep(two, "new")
    two.finish()
    assert sorted(file.name for file in two.folder.glob("*.csv")) == ["new.csv"]
    three = run()
    assert sweep(three, "old")[1] == []


def test_manifest_vouches_for_its_rows(root):
    first = run()
    sweep(first)
    assert first.manifest()["status"] == "partial"
    first.finish(precision="bf16")
    manifest = first.manifest()
    assert manifest["status"] == "complete" and manifest["precision"] == "bf16"
    assert manifest["parameters"] == {"profile": "test", "p": 7, "lr": 0.1}
    assert manifest["csv_sha256"] == {"t.csv": sha256(first.folder / "t.csv")}
    assert {"versions", "device", "git", "wall_s", "tables"} <= set(manifest)
    again = run(workers=2)
    sweep(again)
    again.finish()
    assert again.manifest() == manifest


def test_new_rows_reopen_a_complete_run(root):
    first = run()
    sweep(first, jobs=JOBS[:3])
    first.claim("a", "b", of="ours", section="c", holds=True)
    first.claims()
    first.finish()
    second = run()
    sweep(second, jobs=JOBS)  # killed before finish
    assert run().manifest()["status"] == "partial"
    third = run()
    assert len(sweep(third, jobs=JOBS)[0]) == 6
    third.finish()
    assert set(third.manifest()["csv_sha256"]) == {"t.csv"}


def frozen(root, monkeypatch):
    """A finished run, about to be read frozen."""
    one = run()
    sweep(one, jobs=JOBS[:3])
    one.finish()
    monkeypatch.setenv("FIELDBOOK_FROZEN", "1")
    return one


@pytest.mark.parametrize("change", ["edited", "deleted", "added", "manifest"])
def test_frozen_tables_are_those_of_the_manifest(root, monkeypatch, change):
    one = frozen(root, monkeypatch)
    name = "u.csv" if change == "added" else "t.csv"
    file = one.folder / ("manifest.json" if change == "manifest" else name)
    if change in ("deleted", "manifest"):
        file.unlink()
    else:
        file.write_text("x,y\n0,6\n")
    problem = rf"{name} is not the file that the manifest describes"
    with pytest.raises(
        ValueError, match="no readable manifest" if change == "manifest" else problem
    ):
        run()


def test_frozen_results_are_only_read(root, monkeypatch):
    frozen(root, monkeypatch)
    before = {file: file.stat().st_mtime_ns for file in root.rglob("*") if file.suffix != ".lock"}
    one = run()
    frame, calls = sweep(one, jobs=JOBS[:3], LIMIT=99)  # whatever the code now is
    assert len(frame) == 3 and calls == []
    with pytest.raises(PermissionError, match="3 rows are missing"):
        sweep(one)
    with pytest.raises(PermissionError, match="frozen"):
        one.files("t", JOBS[0])
    with pytest.raises(ValueError, match="p was 7, is 11"):
        run(p=11)
    assert one.sweep("nothing", [], square).empty
    assert one.finish().loc["wall time, s", "this run"] == one.manifest()["wall_s"]
    after = {file: file.stat().st_mtime_ns for file in root.rglob("*") if file.suffix != ".lock"}
    assert after == before


def test_published_results_are_read_where_they_are_tracked_and_nothing_is_written_there(
    root, monkeypatch
):
    frozen(root, monkeypatch)
    monkeypatch.delenv("FIELDBOOK_RESULTS")
    monkeypatch.setattr(paths, "ROOT", root)
    one = run()
    one.claim("a", "b", of="ours", section="c", holds=True)
    before = sorted(root.rglob("*"))
    assert one.claims().verdict.tolist() == ["holds"] and len(one.frame("t")) == 3
    assert sorted(root.rglob("*")) == before and ledger.costs(
        {"agop": "test"}
    ).chapter.tolist() == ["agop"]


def test_a_sweep_without_jobs_or_rows_is_empty(root):
    one = run()
    assert one.sweep("t", [], square).empty
    assert one.sweep("u", JOBS[:1], lambda job: {"side": [{"z": 1}]}).empty
    assert one.frame("side").z.tolist() == [1]


def test_frozen_rows_are_found_however_a_key_is_written(root, monkeypatch):
    jobs = [{"lr": 1e-5, "n": 3, "name": "NA"}, {"lr": 0.1, "n": 4, "name": "01"}]
    one = run()
    one.sweep("t", jobs, lambda job: {"y": 1})
    one.finish()
    monkeypatch.setenv("FIELDBOOK_FROZEN", "1")
    assert len(run().sweep("t", jobs, None)) == 2


def test_links_in_the_place_of_folders_are_followed_and_stay(root, tmp_path_factory):
    disk = tmp_path_factory.mktemp("disk")
    for kind in ("data/agop", "data/inputs/agop"):
        (root / kind).mkdir(parents=True)
        (root / kind / "test").symlink_to(disk / kind)  # to a folder that is not there yet
    for p in (7, 11):
        assert sweep(run(p=p), text="return {'y': par.p}")[0].y.tolist() == [p] * 6
    assert (root / "data/agop/test").is_symlink() and (disk / "data/agop/t.csv").exists()


def test_unwritable_results_are_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FIELDBOOK_RESULTS", str(tmp_path / "file"))
    with pytest.raises(OSError, match="set FIELDBOOK_RESULTS elsewhere") as caught:
        run()
    assert str(tmp_path / "file") in caught.value.filename


def _whole_run(shard):
    one = run(shard=list(shard))
    one.sweep("t", JOBS, square)
    found = one.sweep("u", JOBS[::-1], square)
    figure, axes = plt.subplots(figsize=(1, 1))
    axes.plot(found.square)
    one.figure(figure, "squares")
    one.claim("a", "b", of="ours", section="c", holds=True)
    one.claims()
    one.finish(shard=shard)


def _contents(folder):
    kinds = (".csv", ".png", ".pdf")
    return {file.name: file.read_bytes() for file in folder.rglob("*.*") if file.suffix in kinds}


def test_shards_that_end_together_leave_whole_files(root, tmp_path_factory, monkeypatch):
    shards = [FORK.Process(target=_whole_run, args=((i, 4),)) for i in range(4)]
    [shard.start() for shard in shards]
    [shard.join() for shard in shards]
    assert [shard.exitcode for shard in shards] == [0] * 4
    together, manifest = _contents(root), run().manifest()
    _whole_run((0, 1))
    assert manifest["status"] == "complete"
    assert run().manifest() == manifest | {"shard": manifest["shard"]}, "nothing has changed"
    assert not list(root.rglob("*.tmp"))
    monkeypatch.setenv("FIELDBOOK_RESULTS", str(tmp_path_factory.mktemp("alone")))
    _whole_run((0, 1))
    assert together == _contents(paths.results())


def test_a_run_whose_folder_was_taken_writes_no_table_and_loses_no_row(root):
    first, second = run(), run(p=11)
    frame, _ = sweep(second, text="return {'y': par.p}")
    for write in (lambda: sweep(first, text="return {'y': par.p}"), first.claims, first.finish):
        with pytest.raises(RuntimeError, match="taken by another run or emptied since"):
            write()
    second.finish()
    assert second.frame("t").equals(frame) and run(p=11).manifest()["status"] == "complete"
    third = run()
    assert sweep(third, text="return {'y': par.p}")[1] == []


@pytest.mark.parametrize(
    "text",
    ["[1]", "3", "null", '{"parameters": 3}', '{"csv_sha256": [1]}', '{"wall_s": "1"}', "\udcff"],
)
def test_a_manifest_of_the_wrong_shape_is_none(root, text):
    first = run()
    sweep(first)
    path = first.folder / "manifest.json"
    merged = json.dumps({**first.manifest(), **json.loads(text)}) if text.startswith("{") else text
    path.write_bytes(merged.encode(errors="surrogateescape"))
    assert run().manifest()["status"] == "partial" and sweep(run())[1] == []


def test_what_a_kill_has_left_is_cleared_away(root):
    first = run()
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
    sweep(one)
    one.finish()
    assert one.manifest()["git"] == {"revision": None, "dirty": None}


def test_start_takes_the_parameters_of_the_running_cell(root):
    cell = 'profile: str = "mine"  # a folder\nboost: int = 3  # in [1, 9]\nworkers: int = 1\n'
    cell += "shard: list[int] = [0, 1]"
    scope = {"In": ["", cell, "boost = 5", "x: int = 2"], "start": start}
    exec(cell, scope)
    exec("boost = 5\npar, device, run = start('agop')", scope)
    assert scope["par"].boost == 5 and scope["run"].profile == "mine"
    with pytest.raises(ValueError, match=r"boost = 50: input should be less than or equal to 9"):
        exec("boost = 50\nstart('agop')", scope)


OURS = {"of": "ours", "section": "the-score"}


def test_claims_and_ledger(root):
    one = run()
    one.claim("it groks", "no", **OURS, holds=False)
    one.claim("it leads", "no", **OURS, holds=np.bool_(False))
    one.claim("by 50 updates", "3 ± 2", **OURS, estimate=3.0, error=2.0, above=0.0, first=True)
    one.claim("with three seeds", "one", **OURS, holds=True, tested=False)
    one.claim("it groks", "yes", **OURS, holds=True)  # as in a cell that is run again
    verdicts = ["holds", "fails", "undecided", "not tested"]
    assert one.claims().verdict.tolist() == verdicts
    found = ledger.ledger({"agop": "test", "entropy": "test"})
    assert found.chapter.tolist() == ["agop"] * 4 and found.verdict.tolist() == verdicts
    assert found[["low", "high", "above", "first"]].to_numpy().tolist()[2] == [
        "-1.0",
        "7.0",
        "0.0",
        "True",
    ]
    assert ledger.counts(found) == "1 holds, 1 fails, 1 undecided, 1 not tested"
    assert ledger.ledger({"agop": "paper"}).empty


def test_a_claim_says_whose_it_is_and_why_its_threshold(root):
    one = run()
    for wrong in ({"of": "mine"}, {"of": "log"}, {"entry": "grokking-1"}):
        with pytest.raises(ValueError, match="expected one of log, paper, theory, ours"):
            one.claim("a", "b", **OURS | wrong, holds=True)
    with pytest.raises(ValueError, match="threshold without a reason"):
        one.claim("a", "b", **OURS, estimate=1.0, error=0.0, above=0.05)


def test_claims_keep_words_that_pandas_reads_as_missing(root):
    one = run()
    one.claim("it groks", "None", **OURS, source="n/a", holds=True)
    one.claims()
    found = ledger.ledger({"agop": "test"})
    assert found[["source", "found"]].to_numpy().tolist() == [["n/a", "None"]]


def test_a_table_of_claims_links_to_the_evidence_and_to_the_log(root):
    one = run()
    one.claim("p < q", "1", of="log", entry="grokking-1", section="the-score", holds=True)
    for claims in (one.claims(), ledger.ledger({"agop": "test"})):
        text = ledger.table(claims, "agop.html").data
        for part in ('"agop.html#the-score">p &lt; q<', '"logs.html#grokking-1"', "✓ holds"):
            assert part in text


@pytest.mark.parametrize("place", ["data/agop/test/benchmark.tsv", "benchmark/agop.tsv"])
@pytest.mark.parametrize(
    "seconds, known", [(590, True), (20, False)], ids=["the run", "a later one that found its rows"]
)
def test_costs_are_those_of_the_run_that_made_the_rows(root, place, seconds, known):
    one = run()
    one.finish()
    manifest = one.folder / "manifest.json"
    slow = json.loads(manifest.read_text()) | {"wall_s": 600.0, "device": "cpu"}
    manifest.write_text(json.dumps(slow))
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).write_text(f"s\tmax_rss\tcpu_time\n{seconds}\t2048.0\t1080.0\n")
    (row,) = ledger.costs({"agop": "test"}).to_dict("records")
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
        ledger.costs({"agop": "test"})
    file.unlink()
    assert len(ledger.costs({"agop": "test"})) == 1


def test_a_frame_is_the_published_table(root):
    one = run()
    frame, _ = sweep(one, text="return {'y': 1 / 3}")
    assert frame.equals(pd.read_csv(one.folder / "t.csv")) and frame.y[0] == 0.3333333333
    assert tables.read_csv(one.folder / "t.csv").equals(one.frame("t"))
