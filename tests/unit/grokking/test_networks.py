import pytest
import torch

from fieldbook.grokking import experiment, networks
from fieldbook.nn.checkpoints import save_weights
from fieldbook.run import parameters, paths

TINY = {
    "profile": "tiny",
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
    return parameters.of_profile("agop", "quick").replace(**TINY)


def test_what_is_missing_is_trained_once_and_fits_its_settings(settings):
    files = networks.trained(settings, ["add", "mul"])
    before = {name: file.stat().st_mtime_ns for name, file in files.items()}
    assert {
        name: file.stat().st_mtime_ns
        for name, file in networks.trained(settings, ["add", "mul"]).items()
    } == before
    start, end = networks.network_of(settings, 0), networks.load(settings, files["add"])
    assert not torch.equal(start.head.weight, end.head.weight)
    with pytest.raises(ValueError, match="does not fit the model"):
        networks.load(settings.replace(d_model=16), files["add"])


@pytest.mark.parametrize(
    "change", [{"lr": 0.01}, {"activation": "gelu"}, {"train_fraction": 0.7}, {"seeds": [1]}]
)
def test_networks_of_other_settings_are_trained_again(settings, change):
    before = networks.trained(settings, ["add"])["add"].read_bytes()
    settings = settings.replace(**change)
    with pytest.raises(
        FileNotFoundError,
        match=r"no trained network of these settings and this code at .*add\.safetens",
    ):
        networks.trained(settings, ["add"], train_missing=False)
    assert networks.trained(settings, ["add"])["add"].read_bytes() != before
    networks.trained(settings, ["add"], train_missing=False)


def test_networks_of_other_code_and_of_nobody_are_trained_again(settings, monkeypatch):
    file = networks.trained(settings, ["add"])["add"]
    monkeypatch.setattr(networks, "fit", lambda *given, **options: None)
    with pytest.raises(FileNotFoundError):
        networks.trained(settings, ["add"], train_missing=False)
    monkeypatch.undo()
    save_weights(networks.network_of(settings, 0), file)
    assert not networks._is_of(file, networks._facts(settings, "add"))


def test_what_chapter_agop_leaves_is_what_is_looked_for(settings, tmp_path):
    seed = settings.seeds[0]
    task = networks.task_of(settings, "add", seed)
    recipe = networks.recipe_of(settings, seed, torch.device("cpu"))
    model = networks.network_of(settings, seed)
    experiment.train(model, task, recipe, tmp_path / "run", progress=False)
    networks.hand_over(tmp_path / "run", "tiny", "add")
    file = paths.inputs("networks", "tiny") / "add.safetensors"
    assert networks.trained(settings, ["add"], train_missing=False) == {"add": file}


def test_a_missing_network_is_named_with_the_remedy(settings):
    with pytest.raises(
        FileNotFoundError,
        match=r"add\.safetensors; run chapter agop at profile tiny .* train_missing",
    ):
        networks.trained(settings, ["add"], train_missing=False)


def test_profiles_of_agop_are_settings():
    with pytest.raises(FileNotFoundError, match="no such parameter file"):
        parameters.of_profile("agop", "huge")
    assert parameters.of_profile("agop", "small").p == 29


def test_training_stops_a_while_after_grokking():
    settings = parameters.of_profile("agop", "quick").replace(settle=100, eval_every=50)
    recipe = networks.recipe_of(settings, 3, torch.device("cpu"))
    assert (recipe.monitor, recipe.mode, recipe.patience, recipe.seed) == ("waiting", "max", 2, 3)
    assert networks.waiting(50, 0.5)["waiting"] == 50 and networks.waiting(70, 0.995)["waiting"] < 0
