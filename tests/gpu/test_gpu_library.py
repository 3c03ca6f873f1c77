"""What the library does on a GPU, beside the same on the CPU."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fieldbook.drifting import evaluation, experiment
from fieldbook.drifting.generators import DiTGenerator, MLPGenerator
from fieldbook.drifting.toys import TOYS
from fieldbook.grokking.agop import agop, agop_sketch
from fieldbook.grokking.grokker import Grokker
from fieldbook.nn import training
from fieldbook.nn.recipe import Recipe
from fieldbook.samplers import sgmcmc
from fieldbook.samplers import wang_landau as wl
from fieldbook.samplers.potentials import harmonic
from fieldbook.samplers.preconditioners import sgld
from fieldbook.spectra.blindspot import BlindSpotUNet
from fieldbook.spectra.vit import SpectraViT

WAVE = torch.linspace(0, 6, 64)


def grokker() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Grokker(p=7, d_model=16, n_heads=2, n_layers=2, d_hidden=32, seed=0), (
        torch.tensor([[1, 2], [6, 0]]),
    )


def vit() -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = SpectraViT(
        n_pixels=64, patch=8, d_model=16, n_layers=2, n_heads=2, d_hidden=32, dropout=0.0, seed=0
    )
    return model, (WAVE.sin().expand(3, 64) + torch.arange(3.0)[:, None],)


def blindspot() -> tuple[nn.Module, tuple[Tensor, ...]]:
    x = 1 + 0.1 * WAVE.sin().expand(3, 64)
    return BlindSpotUNet(3, 8, 5), (x, 0.1 + 0 * x)


def mlp() -> tuple[nn.Module, tuple[Tensor, ...]]:
    setting = experiment.Setting(data="ring", width=16, depth=2, noise_dim=4)
    model = MLPGenerator(setting)
    return model, (WAVE.view(16, 4).sin(), torch.zeros(16, dtype=torch.long), torch.ones(16))


def dit() -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = DiTGenerator(experiment.Setting(data="digits", width=16, depth=2))
    noise = torch.linspace(-1, 1, 2 * model.noise_dim).view(2, -1)
    noise[:, 64:] = 0.3  # far from where another style is chosen
    return model, (noise, torch.tensor([0, 2]), torch.ones(2))


@pytest.fixture(autouse=True)
def all_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.backends.cudnn, "allow_tf32", False
    )  # convolutions otherwise keep ten bits


@pytest.mark.parametrize("make", [grokker, vit, blindspot, mlp, dit])
def test_networks_answer_as_on_the_cpu(gpu: torch.device, make: Callable) -> None:
    model, inputs = make()
    model.eval()
    answers = []
    for device in ("cpu", gpu):
        found = model.to(device)(*(x.to(device) for x in inputs))
        found = torch.stack(found) if isinstance(found, tuple) else found
        slopes = torch.autograd.grad(
            found.square().sum(), list(model.parameters()), allow_unused=True
        )
        answers.append([part.detach().cpu() for part in (found, *slopes) if part is not None])
    for ours, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-3, atol=1e-4 * (1 + theirs.abs().max().item())
        )


@pytest.mark.parametrize("toy", TOYS)
def test_toys_have_zero_mean_and_unit_spread(gpu: torch.device, toy: str) -> None:
    x = TOYS[toy](20_000, torch.Generator(gpu).manual_seed(0))
    assert x.is_cuda and x.mean(0).abs().max() < 0.05 and (x.std() - 1).abs() < 0.15


def test_a_sketch_of_the_agop_nears_it(gpu: torch.device) -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).to(gpu).requires_grad_(False)
    x = torch.randn(3000, 5, generator=torch.Generator(gpu).manual_seed(1), device=gpu)
    found, exact = agop_sketch(model, x, torch.Generator(gpu).manual_seed(0), k=8), agop(model, x)
    assert found.is_cuda and (found - exact).norm() < 0.1 * exact.norm()
    torch.testing.assert_close(exact.cpu(), agop(model.cpu(), x.cpu()), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"data": "ring"}, {"data": "digits", "cfg": "two_pass", "field": "learned"}]
)
def test_a_drifting_run_trains_stops_and_samples(
    gpu: torch.device, options: dict, tmp_path: Path
) -> None:
    setting = experiment.Setting(**options, steps=6, eval_every=3, width=16, set_size=8, warmup=2)
    experiment.train(setting, tmp_path, device=str(gpu))
    (last,) = tmp_path.glob("step_0000006.safetensors")
    model, _ = experiment.restore(last)
    label = experiment.balanced_labels(40, setting.classes)
    x = evaluation.sample(model.to(gpu), label, 1.0, 0)
    assert x.device.type == "cpu" and x.isfinite().all() and len(x) == 40


def test_a_chain_samples_its_target(gpu: torch.device) -> None:
    """L = |w|^2 / 2 and gamma = 0: n_beta E[L] = d / 2, but for a step of eps n_beta / 4 = 1 % of
    it."""
    d, options = 6, {"eps": 4e-3, "n_beta": 10.0, "gamma": 0.0, "steps": 2000}
    generator = torch.Generator(gpu).manual_seed(0)
    start = torch.zeros(256, d, device=gpu)
    chain = sgmcmc.chain(
        lambda w, _: (w.square().sum(-1) / 2, w), start, sgld(), generator, **options
    )
    means = 10.0 * torch.stack([losses for losses, _ in chain])[1000:].mean(0)
    assert means.is_cuda and (means.mean() - d / 2).abs() < 4 * means.std() / 16 + 0.05 * d / 2


def test_the_entropy_of_a_harmonic_well(gpu: torch.device) -> None:
    d, grid, generator = 10, wl.Grid(-0.5, 1.0, 10), torch.Generator(gpu).manual_seed(0)
    z = torch.randn(4, 8, d, generator=generator, device=gpu, dtype=torch.float64)
    w = wl.start(harmonic, 3 * z / z.norm(dim=-1, keepdim=True), generator)
    found = wl.wang_landau(harmonic, w, grid, generator, steps=1500, h=0.12, flat=True, first=0.1)
    slope = (found.entropy[:, -1] - found.entropy[:, 0]) / (grid.centres()[-1] - grid.centres()[0])
    assert (slope.mean() / torch.tensor(10.0).log() - d / 2).abs() < 0.2 * d / 2


def fit(
    device: torch.device | str, precision: str = "fp32", folder: Path | None = None, last: int = 40
) -> training.Fit:
    """Train a small network on a device, up to an evaluation that ends the process, and tell how it
    went."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 8, generator=generator).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 1)).to(device)
    recipe = Recipe(
        steps=40, batch_size=32, lr=1e-2, eval_every=10, precision=precision, ema=0.8, seed=0
    )

    def loss(network: nn.Module, index: Tensor, _: torch.Generator) -> Tensor:
        rows = x[index.to(x.device)]
        return (network(rows).float()[:, 0] - rows[:, 0].sin()).square().mean()

    def evaluate(network: nn.Module, step: int) -> dict[str, float]:
        if step > last:
            raise KeyboardInterrupt
        return {"mse": float((network(x).float()[:, 0] - x[:, 0].sin()).square().mean())}

    return training.fit(
        model, loss, 256, recipe, evaluate=evaluate, checkpoint=folder, progress=False
    )


@pytest.mark.parametrize("precision, close", [("fp32", 1e-3), ("bf16", 0.1), ("fp16", 0.5)])
def test_training_goes_as_on_the_cpu(gpu: torch.device, precision: str, close: float) -> None:
    """In fp16 the first updates are skipped, until the scale of the loss has come down."""
    ours, theirs = fit(gpu, precision), fit("cpu")
    expected = [row["mse"] for row in theirs.history]
    assert [row["mse"] for row in ours.history] == pytest.approx(
        expected, rel=close, abs=0.1 * close
    )


@pytest.mark.parametrize("first, second", [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_checkpoint_of_one_device_is_continued_on_the_other(
    gpu: torch.device, first: str, second: str, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(first, folder=tmp_path, last=20)
    resumed, whole = fit(second, folder=tmp_path), fit("cpu")
    assert [row["step"] for row in resumed.history] == [0, 10, 20, 30, 40]
    assert resumed.history[-1]["mse"] == pytest.approx(whole.history[-1]["mse"], rel=1e-2)
