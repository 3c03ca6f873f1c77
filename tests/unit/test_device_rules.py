"""What stays on the device of its inputs, and how often an update waits for it, under a pretended
GPU."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pretend
import pytest
import torch
from torch import nn

from fieldbook.drifting import experiment
from fieldbook.drifting.images import digits
from fieldbook.drifting.judge import judge
from fieldbook.drifting.toys import TOYS
from fieldbook.grokking.agop import agop, agop_sketch
from fieldbook.grokking.modular import residue_class, task
from fieldbook.nn import training
from fieldbook.nn.recipe import Recipe
from fieldbook.samplers import sgmcmc
from fieldbook.samplers import wang_landau as wl
from fieldbook.samplers.potentials import harmonic
from fieldbook.samplers.preconditioners import SAMPLERS, named
from fieldbook.spectra.probes import head


@pytest.fixture
def mode() -> Iterator[pretend.Pretended]:
    with pretend.gpu() as mode:
        yield mode


def waits_per_step(mode: pretend.Pretended, run: Callable[[int], object]) -> float:
    """How many more waits ten steps take than five, each."""
    counts = []
    for steps in (5, 10):
        before = mode.waits
        run(steps)
        counts.append(mode.waits - before)
    return (counts[1] - counts[0]) / 5


@pytest.mark.parametrize("toy", TOYS)
def test_toys_follow_their_generator(mode: pretend.Pretended, toy: str) -> None:
    x = TOYS[toy](6, torch.Generator("cuda").manual_seed(0))
    assert x.is_cuda and torch.equal(x.cpu(), TOYS[toy](6, torch.Generator().manual_seed(0)))


def test_a_sketch_of_the_agop_draws_where_its_generator_is(mode: pretend.Pretended) -> None:
    x = torch.randn(50, 3, device="cuda")
    found = agop_sketch(lambda z: z.square(), x, torch.Generator("cuda").manual_seed(0), k=50)
    assert found.is_cuda and (found - agop(lambda z: z.square(), x)).norm() < 0.5 * found.norm()


def test_the_judge_stays_where_it_is(mode: pretend.Pretended) -> None:
    images = digits()
    found = judge(images, steps=2)
    found.network.to("cuda")
    first, second = (found.measure(images.test[:100], images.test_label[:100]) for _ in range(2))
    assert first == second and all(w.is_cuda for w in found.network.parameters())


def test_tasks_and_heads_follow_their_inputs(mode: pretend.Pretended) -> None:
    values = torch.arange(7, device="cuda")
    assert residue_class(values, 7).tolist() == [0, 1, 1, -1, 1, -1, -1]
    t = task("add", 7, 0.5, 0)
    moved = replace(
        t, **{name: getattr(t, name).to("cuda") for name in ("pairs", "target", "train")}
    )
    assert torch.equal(moved.strict.cpu(), t.strict)
    x = torch.randn(20, 3, device="cuda")
    assert head("mlp_1", x, x[:, 0])(x).is_cuda


def test_an_update_waits_once(mode: pretend.Pretended) -> None:
    x = torch.randn(32, 3, device="cuda")

    def run(steps: int) -> None:
        model = nn.Linear(3, 1).to("cuda")
        recipe = Recipe(steps=steps, batch_size=8, lr=1e-2, ema=0.9, clip=1.0)
        training.fit(
            model, lambda m, i, g: m(x[i.to(g.device)]).square().mean(), 32, recipe, progress=False
        )

    assert waits_per_step(mode, run) == 1


@pytest.mark.parametrize(
    "data, cfg", [("ring", "none"), ("digits", "none"), ("digits", "two_pass")]
)
def test_an_update_of_a_drifting_run_waits_for_nothing(
    mode: pretend.Pretended, data: str, cfg: str
) -> None:
    setting = experiment.Setting(data=data, cfg=cfg, width=8, set_size=2, groups=2, taus=(0.1,))
    reals = experiment.Reals(setting, "cuda")
    model, encoder = experiment.build(setting, reals)
    loss, generator = (
        experiment.loss_of(setting, reals, encoder),
        torch.Generator("cuda").manual_seed(0),
    )
    model.to("cuda")
    assert (
        waits_per_step(mode, lambda steps: [loss(model, 4, generator) for _ in range(steps)]) == 0
    )


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("eps", [1e-3, torch.full((2, 1, 1), 1e-3)])
def test_a_step_of_a_chain_waits_for_nothing(
    mode: pretend.Pretended, name: str, eps: float | torch.Tensor
) -> None:
    w = torch.ones(2, 3, 6, device="cuda")
    eps = eps.to(w.device) if isinstance(eps, torch.Tensor) else eps
    build = named(name, w, w**2, torch.arange(6).split(3), psgld_damping=1e-5)
    generator = torch.Generator("cuda").manual_seed(0)

    def run(steps: int) -> None:
        options = {"eps": eps, "n_beta": 10.0, "gamma": 1.0, "steps": steps}
        list(sgmcmc.chain(lambda w, _: (w.square().sum(-1) / 2, w), w, build, generator, **options))

    assert waits_per_step(mode, run) == 0


@pytest.mark.parametrize("method", ["ramp", "wang_landau"])
def test_a_move_through_the_landscape_waits_for_nothing(
    mode: pretend.Pretended, method: str
) -> None:
    grid, generator = wl.Grid(-1.0, 1.0, 6), torch.Generator("cuda").manual_seed(0)
    w = wl.start(harmonic, torch.ones(2, 3, 4, device="cuda") / 2, generator)
    options = {"h": 0.02, "observe": lambda z: z[..., 0]}

    def run(steps: int) -> wl.Landscape:
        if method == "ramp":
            return wl.ramp(harmonic, w, grid, [0.0] * steps, generator, **options)[0]
        return wl.wang_landau(harmonic, w, grid, generator, steps=steps, first=0.0, **options)

    assert waits_per_step(mode, run) == 0
    found = run(3)
    assert found.walkers.z.is_cuda and not any(part.is_cuda for part in (*found[:5], found.h))
