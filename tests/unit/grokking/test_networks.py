import pytest
import torch

from fieldbook.grokking import experiment, networks
from fieldbook.nn.checkpoints import save_weights
from fieldbook.run import paths, results
from fieldbook.run.tables import Table

TINY = {
    "p": 5,
    "d_model": 8,
    "n_heads": 2,
    "d_hidden": 16,
    "steps": 20,
    "eval_every": 10,
    "batch_size": 8,
}


@pytest.fixture
def settings(monkeypatch, tmp_path):
    monkeypatch.setenv("FIELDBOOK_RESULTS", str(tmp_path))
    small = networks.settings_of("quick") | TINY
    monkeypatch.setattr(networks, "settings_of", lambda profile: small)
    return small


def test_what_is_missing_is_trained_once_and_fits_its_settings(settings):
    files = networks.trained("tiny", ["add", "mul"])
    before = {name: file.stat().st_mtime_ns for name, file in files.items()}
    assert {
        name: file.stat().st_mtime_ns
        for name, file in networks.trained("tiny", ["add", "mul"]).items()
    } == before
    start, end = networks.network_of(settings, 0), networks.load(settings, files["add"])
    assert not torch.equal(start.head.weight, end.head.weight)
    with pytest.raises(ValueError, match="does not fit the model"):
        networks.load(settings | {"d_model": 16}, files["add"])


@pytest.mark.parametrize(
    "change", [{"lr": 0.01}, {"activation": "gelu"}, {"train_fraction": 0.7}, {"seeds": [1]}]
)
def test_networks_of_other_settings_are_trained_again(settings, change):
    before = networks.trained("tiny", ["add"])["add"].read_bytes()
    settings |= change
    with pytest.raises(
        FileNotFoundError,
        match=r"no trained network of these settings and this code at .*add\.safetens",
    ):
        networks.trained("tiny", ["add"], train_missing=False)
    assert networks.trained("tiny", ["add"])["add"].read_bytes() != before
    networks.trained("tiny", ["add"], train_missing=False)


def test_networks_of_other_code_and_of_nobody_are_trained_again(settings, monkeypatch):
    file = networks.trained("tiny", ["add"])["add"]
    code = networks.source_hash
    monkeypatch.setattr(networks, "source_hash", lambda uses: f"later {code(uses)}")
    with pytest.raises(FileNotFoundError):
        networks.trained("tiny", ["add"], train_missing=False)
    monkeypatch.undo()
    save_weights(networks.network_of(settings, 0), file)
    assert not networks._is_of(file, settings, "add")


def test_what_chapter_agop_leaves_is_what_is_looked_for(settings, tmp_path):
    seed = settings["seeds"][0]
    task, recipe = (
        networks.task_of(settings, "add", seed),
        networks.recipe_of(settings, seed, torch.device("cpu")),
    )
    model, table = networks.network_of(settings, seed), Table(tmp_path / "t.csv", ["step"])
    experiment.train(model, task, recipe, table, tmp_path / "run", progress=False)
    file = paths.inputs("networks", "tiny") / "add.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes((tmp_path / "run" / "final.safetensors").read_bytes())
    assert networks.trained("tiny", ["add"], train_missing=False) == {"add": file}


def test_a_missing_network_is_named_with_the_remedy(settings):
    with pytest.raises(
        FileNotFoundError,
        match=r"add\.safetensors; run chapter agop at profile tiny .* train_missing",
    ):
        networks.trained("tiny", ["add"], train_missing=False)


def test_profiles_of_agop_are_settings():
    with pytest.raises(FileNotFoundError, match="no such parameter file"):
        networks.settings_of("huge")
    assert networks.settings_of("small")["p"] == 29


def test_training_stops_a_while_after_grokking():
    recipe = networks.recipe_of(
        networks.settings_of("quick") | {"settle": 100, "eval_every": 50}, 3, torch.device("cpu")
    )
    assert (recipe.monitor, recipe.mode, recipe.patience, recipe.seed) == ("waiting", "max", 2, 3)
    assert networks.waiting(50, 0.5)["waiting"] == 50 and networks.waiting(70, 0.995)["waiting"] < 0


def test_rows_belong_to_the_content_of_what_was_read(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("FIELDBOOK_RESULTS", str(tmp_path))
    file = tmp_path / "weights"

    def rows(content):
        file.write_bytes(content)
        run = results.Run("demo", {"profile": "quick"}, reads={"weights": file})
        table = run.table("t", ["k"])
        found = len(table.frame())
        table.append({"k": found})
        run.finish()
        return found

    assert rows(b"one") == 0 and rows(b"one") == 1
    assert rows(b"two") == 0 and "input weights has changed" in capsys.readouterr().err
    monkeypatch.setenv("FIELDBOOK_FROZEN", "1")
    file.unlink()
    results.Run("demo", {"profile": "quick"}, reads={})
