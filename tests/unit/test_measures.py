"""Every public measure: what it is promised not to depend on, and what it refuses, by name.

A measure without an entry in the table fails, and so does one whose promise, however the inputs are
moved, scaled, turned, repeated or put in another order, does not hold.
"""

import importlib
import inspect
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldbook.drifting import distances, frechet
from fieldbook.grokking import circulant
from fieldbook.nn import baselines
from fieldbook.nn.checks import numbers
from fieldbook.scaling import law
from fieldbook.spectra import denoising, information, losses, probes

MODULES = [
    *("grokking.agop", "grokking.circulant", "nn.baselines", "scaling.law"),
    *("spectra.denoising", "spectra.information", "spectra.losses", "spectra.probes"),
    *("drifting.distances", "drifting.frechet", "drifting.judge"),
]
Inputs = dict[str, torch.Tensor]
ELSEWHERE = {
    # test_agop, test_foreign
    "agop": "agop agop_sketch second_moments signs residuals one_hot_blocks",
    "frechet": "clean_fid fid_files inception folder_features fid",  # files: test_frechet
    "judge": "judge",  # a training: test_drifting
    "losses": "gaussian laplace huber denoising_loss",  # at their minimum: test_losses
    "probes": "features fingerprint frozen head probe_recipe train",  # networks: test_probes
}


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def turn(x: torch.Tensor) -> torch.Tensor:
    """Features (n, d), rotated."""
    return x @ torch.linalg.qr(normal(7, x.shape[-1], x.shape[-1])).Q


def changed(change: Callable, *names: str) -> Callable:
    """The change of some inputs that a function of (value, c) makes."""
    return lambda inputs, c: inputs | {name: change(inputs[name], c) for name in names}


def scaled(*names: str, power: float = 1.0) -> Callable:
    return changed(lambda x, c: x * c**power, *names)


def moved(*names: str) -> Callable:
    return changed(lambda x, c: x + math.log10(c) * 1e3, *names)


def reordered(*names: str, axis: int = 0) -> Callable:
    return changed(lambda x, c: x.flip(axis), *names)


def turned(*names: str) -> Callable:
    return changed(lambda x, c: turn(x), *names)


def repeated(*names: str) -> Callable:
    return changed(lambda x, c: torch.cat([x, x]), *names)


def rolled(*axes: int) -> Callable:
    return lambda x, c: x.roll([1] * len(axes), axes)


def same(value: torch.Tensor, c: float) -> torch.Tensor:
    return value


def times(power: float) -> Callable:
    return lambda value, c: value * c**power


def rows(count: int) -> Callable:
    return lambda value, c: value.view(count, -1).flip(0).flatten()


def flipped(value: torch.Tensor, c: float) -> torch.Tensor:
    return value.flip(0)


@dataclass
class Measure:
    """How a measure is called, inputs that it takes, and pairs of a change and what becomes of the
    value."""

    call: Callable
    inputs: Callable[[int], Inputs]
    promises: dict[str, tuple[Callable, Callable]]
    looks: bool = True  # at values; not within training steps
    arrays: bool = True  # takes those of NumPy, too
    examples: int = 8
    tolerance: float = 1e-6
    least: dict[str, int] = field(default_factory=dict)  # samples needed, where it is more than one


def matrix(seed: int) -> Inputs:
    return {"matrix": normal(seed, 7, 7)}


def two(seed: int) -> Inputs:
    return {"x": normal(seed, 30, 4), "y": 1.3 * normal(seed + 100, 36, 4) + 0.4}


def pair(seed: int) -> Inputs:
    return {"x": normal(seed, 30, 4), "y": 1.3 * normal(seed + 100, 30, 4) + 0.4}


def spectra(seed: int) -> Inputs:
    sigma = 0.2 + normal(seed + 1, 6, 20).abs()
    clean, noise = normal(seed, 6, 20), normal(seed + 2, 6, 20)
    estimate = clean + 0.3 * sigma * noise.flip(1)
    return {"estimate": estimate, "noisy": clean + sigma * noise, "clean": clean, "sigma": sigma}


def calibrated(seed: int) -> Inputs:
    x = spectra(seed)
    return {"mu": x["clean"], "sigma_x": x["sigma"] / 2, "noisy": x["noisy"], "sigma_n": x["sigma"]}


def gaussians(seed: int) -> Inputs:
    a, b = normal(seed, 3, 3), normal(seed + 1, 3, 3)
    covs = {"cov1": a @ a.T + torch.eye(3), "cov2": b @ b.T + torch.eye(3)}
    return {"mean1": normal(seed + 2, 3), "mean2": normal(seed + 3, 3)} | covs


def stars(seed: int) -> Inputs:
    return {"jacobian": normal(seed, 3, 30, 3), "error": 0.5 + normal(seed + 1, 3, 30).abs()}


def templates(seed: int) -> Inputs:
    shapes = normal(seed, 9, 25)
    error = 0.1 + normal(seed + 1, 5, 25).abs()
    return {
        "data": shapes[:5] + 0.1 * error * normal(seed + 2, 5, 25),
        "error": error,
        "templates": shapes,
    }


def line(seed: int) -> Inputs:
    truth, error = normal(seed, 4, 2), 0.1 + normal(seed + 1, 4, 20).abs()
    data = straight(truth)[0] + error * normal(seed + 2, 4, 20)
    return {"data": data, "error": error, "start": torch.zeros(4, 2, dtype=torch.float64)}


def straight(theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    t = torch.linspace(-1, 1, 20, dtype=torch.float64)
    design = torch.stack([torch.ones_like(t), t], 1)
    return theta @ design.T, design.expand(len(theta), 20, 2)


def labelled(seed: int) -> Inputs:
    target = normal(seed, 20)
    return {"target": target, "prediction": target + 0.3 * normal(seed + 1, 20)}


def table(seed: int) -> Inputs:
    x, noise = normal(seed, 60, 3), normal(seed + 1, 60)
    return {"features": x, "target": x @ torch.tensor([1.0, -2.0, 0.5]).double() + 0.1 * noise}


def fit_ridge(features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    model = baselines.ridge(
        features[:40], target[:40], (features[40:], target[40:]), [1e-2, 1.0, 100.0]
    )
    return model.predict(features[40:])


def runs(seed: int) -> Inputs:
    n, d = np.meshgrid(np.geomspace(1e5, 1e9, 4), np.geomspace(1e6, 1e10, 4))
    true = law.Law(1.7, 400.0, 410.0, 0.34 + 0.02 * (seed % 5), 0.28)
    noise = 1 + 1e-3 * normal(seed, 16).numpy()
    n, d = n.ravel(), d.ravel()
    values = {"n": n, "d": d, "loss": true.loss(n, d) * noise}
    return {name: torch.from_numpy(value) for name, value in values.items()}


def fitted(n: torch.Tensor, d: torch.Tensor, loss: torch.Tensor) -> np.ndarray:
    return law.fit_law(n, d, loss).loss(n, d)


def redrawn(n: torch.Tensor, d: torch.Tensor, loss: torch.Tensor) -> list[float]:
    return [one.loss(1e8, 1e9) for one in law.bootstrap(n, d, loss, seed=0, repeats=2)]


def interval(seed: int) -> Inputs:
    return {"residuals": 0.01 * normal(seed, 12)}


def probe(fitting_features: torch.Tensor, fitting_labels: torch.Tensor) -> torch.Tensor:
    split = (fitting_features, fitting_labels)
    row = probes.probe("ridge", split, split, split)
    return torch.tensor([row["r2"], row["rmse"], row["mae"]])


def names_of(x: Inputs, /, **names: str) -> Inputs:
    return {names[name]: value for name, value in x.items()}


EVERY = {
    "center": Measure(
        circulant.center,
        matrix,
        {"constant": (moved("matrix"), same), "scale": (scaled("matrix"), times(1))},
    ),
    "circulant_share": Measure(
        circulant.circulant_share,
        matrix,
        {
            "scale": (scaled("matrix"), same),
            "place on the circle": (changed(rolled(0, 1), "matrix"), same),
        },
    ),
    "expected_share": Measure(
        circulant.expected_share,
        matrix,
        {
            "scale": (scaled("matrix"), same),
            "order of tokens": (
                changed(lambda m, c: m[(p := torch.randperm(7))][:, p], "matrix"),
                same,
            ),
        },
    ),
    "circulant_score": Measure(
        circulant.circulant_score,
        matrix,
        {
            "scale": (scaled("matrix"), same),
            "constant": (moved("matrix"), same),
            "single tokens": (
                changed(lambda m, c: m + c * normal(3, 7) + normal(4, 7, 1), "matrix"),
                same,
            ),
            "place on the circle": (changed(rolled(0, 1), "matrix"), same),
        },
        tolerance=1e-4,
    ),
    "hankel_score": Measure(
        circulant.hankel_score,
        matrix,
        {"scale": (scaled("matrix"), same), "constant": (moved("matrix"), same)},
    ),
    "fourier_energies": Measure(
        circulant.fourier_energies,
        lambda seed: {"embedding": normal(seed, 9, 3)},
        {
            "scale": (scaled("embedding"), times(2)),
            "constant": (moved("embedding"), same),
            "rotation": (turned("embedding"), same),
            "place on the circle": (changed(rolled(0), "embedding"), same),
        },
    ),
    "fourier_concentration": Measure(
        circulant.fourier_concentration,
        lambda seed: {"embedding": normal(seed, 9, 3)},
        {"scale": (scaled("embedding"), same), "constant": (moved("embedding"), same)},
        least={"embedding": 5},
    ),
    "shift_share": Measure(
        lambda logits: circulant.shift_share(logits, torch.arange(12) % 5),
        lambda seed: {"logits": normal(seed, 12, 5)},
        {
            "scale": (scaled("logits"), same),
            "constant of an example": (
                changed(lambda x, c: x + c * normal(2, 12, 1), "logits"),
                same,
            ),
            "place on the circle": (changed(rolled(1), "logits"), same),
        },
        least={"logits": 2},
        tolerance=1e-5,
    ),
    "snr_gain": Measure(
        denoising.snr_gain,
        spectra,
        {
            "unit": (scaled("estimate", "noisy", "clean", "sigma"), same),
            "constant": (moved("estimate", "noisy", "clean"), same),
            "sigma": (scaled("sigma"), same),
            "order of pixels": (reordered("estimate", "noisy", "clean", "sigma", axis=1), same),
        },
    ),
    "calibration": Measure(
        denoising.calibration,
        calibrated,
        {
            "unit": (scaled("mu", "sigma_x", "noisy", "sigma_n"), same),
            "constant": (moved("mu", "noisy"), same),
        },
    ),
    "pca": Measure(
        lambda train, noisy: denoising.pca(train, noisy, 2),
        lambda seed: {"train": normal(seed, 12, 6), "noisy": normal(seed + 1, 5, 6)},
        {
            "unit": (scaled("train", "noisy"), times(1)),
            "order of spectra": (reordered("noisy"), rows(5)),
            "order of training": (reordered("train"), same),
            "repetition": (repeated("train"), same),
        },
        least={"train": 2},
    ),
    "savitzky_golay": Measure(
        lambda noisy: denoising.savitzky_golay(noisy, 5),
        lambda seed: {"noisy": normal(seed, 3, 20)},
        {"unit": (scaled("noisy"), times(1)), "order of spectra": (reordered("noisy"), rows(3))},
    ),
    "near_origin": Measure(
        lambda x, y: (lambda a, b: torch.cdist(a, b))(*distances.near_origin(x, y)),
        two,
        {"place": (moved("x", "y"), same), "unit": (scaled("x", "y"), times(1))},
        looks=False,
        arrays=False,
    ),
    "energy_distance": Measure(
        distances.energy_distance,
        two,
        {
            "place": (moved("x", "y"), same),
            "unit": (scaled("x", "y"), times(1)),
            "rotation": (turned("x", "y"), same),
            "order": (reordered("x"), same),
            "exchange": (lambda z, c: {"x": z["y"], "y": z["x"]}, same),
        },
        least={"x": 2, "y": 2},
    ),
    "sliced_w2": Measure(
        lambda x, y: distances.sliced_w2(x, y, generator()),
        pair,
        {
            "place": (moved("x", "y"), same),
            "unit": (scaled("x", "y"), times(1)),
            "order": (reordered("x"), same),
            "repetition": (repeated("x", "y"), same),
        },
    ),
    "nearest": Measure(
        distances.nearest,
        two,
        {
            "place": (moved("x", "y"), same),
            "unit": (scaled("x", "y"), times(1)),
            "rotation": (turned("x", "y"), same),
            "repetition": (repeated("y"), same),
        },
    ),
    "frechet_distance": Measure(
        frechet.frechet_distance,
        gaussians,
        {
            "place": (moved("mean1", "mean2"), same),
            "exchange": (
                lambda z, c: {
                    f"{name}{i}": z[f"{name}{3 - i}"] for name in ("mean", "cov") for i in (1, 2)
                },
                same,
            ),
        },
    ),
    "frechet": Measure(
        frechet.frechet,
        two,
        {
            "place": (moved("x", "y"), same),
            "unit": (scaled("x", "y"), times(2)),
            "rotation": (turned("x", "y"), same),
            "order": (reordered("x"), same),
        },
        least={"x": 2, "y": 2},
    ),
    "kid": Measure(
        lambda x, y: frechet.kid(x, y, generator()),
        pair,
        {
            "rotation": (turned("x", "y"), same),
            "order": (reordered("x"), same),
            "features given twice": (changed(lambda x, c: torch.cat([x, x], 1), "x", "y"), same),
        },
        least={"x": 2, "y": 2},
    ),
    "coverage": Measure(
        frechet.coverage,
        lambda seed: names_of(two(seed), x="real", y="fake"),
        {
            "place": (moved("real", "fake"), same),
            "unit": (scaled("real", "fake"), same),
            "rotation": (turned("real", "fake"), same),
            "order": (reordered("fake"), same),
        },
        least={"real": 6, "fake": 6},
    ),
    "fisher": Measure(
        information.fisher,
        stars,
        {
            "unit of the parameters": (scaled("jacobian"), times(2)),
            "unit of the error": (scaled("error"), times(-2)),
            "order of pixels": (reordered("jacobian", "error", axis=1), same),
        },
    ),
    "bound": Measure(
        lambda fisher: information.bound(fisher, 1),
        lambda seed: {"fisher": information.fisher(**stars(seed))},
        {
            "unit": (scaled("fisher"), times(-1)),
            "order of the others": (
                changed(lambda f, c: f[:, [2, 1, 0]][:, :, [2, 1, 0]], "fisher"),
                same,
            ),
        },
    ),
    "score_density": Measure(
        lambda jacobian, error: information.score_density(jacobian, error, 0),
        stars,
        {
            "unit": (scaled("jacobian"), times(2)),
            "order of pixels": (
                reordered("jacobian", "error", axis=1),
                lambda value, c: value.view(3, 30).flip(1).flatten(),
            ),
            "unit of another": (
                changed(lambda j, c: j * torch.tensor([1.0, c, 1.0], dtype=j.dtype), "jacobian"),
                same,
            ),
        },
    ),
    "uniform_error": Measure(
        lambda variance: information.uniform_error(variance, 2.0),
        lambda seed: {"variance": normal(seed, 5).abs()},
        {"order": (reordered("variance"), flipped)},
        looks=False,  # infinite noise has an answer; NaN is refused below
    ),
    "best_template": Measure(
        information.best_template,
        templates,
        {
            "unit": (scaled("data", "error", "templates"), same),
            "place": (moved("data", "templates"), same),
            "order of pixels": (reordered("data", "error", "templates", axis=1), same),
        },
    ),
    "maximum_likelihood": Measure(
        lambda data, error, start: (
            information.maximum_likelihood(
                straight,
                data,
                error,
                start,
                lower=torch.full((2,), -9.0),
                upper=torch.full((2,), 9.0),
            ).estimate
        ),
        line,
        {"order of stars": (reordered("data", "error", "start"), rows(4))},
    ),
    "loss": Measure(
        lambda prediction, target: losses.loss("mse")(prediction, target),
        labelled,
        {
            "place": (moved("prediction", "target"), same),
            "unit": (scaled("prediction", "target"), times(2)),
            "order": (reordered("prediction", "target"), same),
        },
        looks=False,
        arrays=False,
    ),
    "pool": Measure(
        lambda latents: probes.pool(latents, "seg_mean_K3"),
        lambda seed: {"latents": normal(seed, 2, 3, 8)},
        {"unit": (scaled("latents"), times(1))},
        looks=False,
        arrays=False,
    ),
    "checked": Measure(
        lambda labels: probes.checked(labels, 20, "labels"),
        lambda seed: {"labels": normal(seed, 20)},
        {"order": (reordered("labels"), flipped)},
        least={"labels": 20},
    ),
    "probe": Measure(
        probe,
        lambda seed: names_of(table(seed), features="fitting_features", target="fitting_labels"),
        {
            "unit": (scaled("fitting_features"), same),
            "place": (moved("fitting_features"), same),
            "label's unit": (scaled("fitting_labels"), lambda v, c: v * torch.tensor([1.0, c, c])),
        },
        arrays=False,
        tolerance=1e-5,
    ),
    "scores": Measure(
        lambda target, prediction: torch.tensor(
            list(baselines.scores(target, prediction).values())
        ),
        labelled,
        {
            "place": (moved("target", "prediction"), same),
            "unit": (scaled("target", "prediction"), lambda v, c: v * torch.tensor([1.0, c, c])),
            "order": (reordered("target", "prediction"), same),
        },
        least={"target": 2},
    ),
    "ridge": Measure(
        fit_ridge,
        table,
        {
            "unit": (scaled("features"), same),
            "place": (moved("features"), same),
            "target's unit": (scaled("target"), times(1)),
            "constant feature": (
                changed(lambda x, c: torch.cat([x, torch.full_like(x[:, :1], c)], 1), "features"),
                same,
            ),
        },
        arrays=False,
        tolerance=1e-5,
    ),
    "boosted_trees": Measure(
        lambda features, target: baselines.boosted_trees(
            features, target, trees=20, share=1.0
        ).predict(numbers(features, "features").numpy(force=True)),
        table,
        {"unit": (changed(lambda x, c: x * 2 ** round(math.log2(c)), "features"), same)},
        least={"features": 2},
        examples=3,
    ),
    "fit_law": Measure(
        fitted,
        runs,
        {
            "unit of n": (scaled("n"), same),
            "unit of d": (scaled("d"), same),
            "unit of the loss": (scaled("loss"), times(1)),
            "order": (reordered("n", "d", "loss"), flipped),
        },
        least={"n": 5},
        examples=3,
        tolerance=2e-3,  # the search stops there
    ),
    "bootstrap": Measure(
        redrawn,
        runs,
        {"unit of the loss": (scaled("loss"), times(1))},
        least={"n": 5},
        examples=2,
        tolerance=2e-3,
    ),
    "prediction_interval": Measure(
        lambda residuals: law.prediction_interval(
            [law.Law(1.0, 10.0, 10.0, 0.3, 0.3)], residuals, 1e3, 1e4, seed=0
        ),
        interval,
        {"repetition of laws": (lambda z, c: z, same)},
    ),
}


def flat(value: object) -> torch.Tensor:
    values = value.values() if isinstance(value, dict) else value
    return (
        torch.as_tensor(np.asarray([*values] if isinstance(values, type({}.values())) else values))
        .double()
        .flatten()
    )


def quiet(measure: Measure, inputs: Inputs) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of laws that in half precision are not determined
        value = measure.call(**inputs)
    return flat(value.detach() if isinstance(value, torch.Tensor) else value)


def public() -> dict[str, str]:
    """Every public function of a module of measures, with its module."""
    found = {}
    for module in MODULES:
        members = vars(importlib.import_module(f"fieldbook.{module}"))
        for name, value in members.items():
            own = inspect.isfunction(value) and value.__module__ == f"fieldbook.{module}"
            if own and not name.startswith("_"):
                found[name] = module
    return found


def test_every_measure_has_its_promises():
    others = {name for names in ELSEWHERE.values() for name in names.split()}
    assert EVERY.keys() | others == public().keys() and not EVERY.keys() & others


PROMISES = [(name, promise) for name, measure in EVERY.items() for promise in measure.promises]


@pytest.mark.parametrize(("name", "promise"), PROMISES)
def test_a_measure_knows_not_what_it_is_promised_not_to_know(name, promise):
    measure = EVERY[name]
    change, expected = measure.promises[promise]

    @given(seed=st.integers(0, 50), power=st.floats(-3, 3))
    @settings(max_examples=measure.examples, deadline=None)
    def holds(seed, power):
        inputs, c = measure.inputs(seed), 10.0**power
        before, after = quiet(measure, inputs), quiet(measure, change(inputs, c))
        wanted = expected(before, c)
        floor = measure.tolerance * float(wanted.abs().max())
        torch.testing.assert_close(after, wanted.double(), rtol=measure.tolerance, atol=floor)

    holds()


ARGUMENTS = [(name, argument) for name, m in EVERY.items() for argument in m.inputs(0)]


def refused(measure: Measure, argument: str, value: object) -> None:
    """The measure names what is wrong with an argument."""
    wanted = re.escape(argument.removesuffix("_features").removesuffix("_labels"))
    with pytest.raises(ValueError, match=wanted):
        measure.call(**measure.inputs(0) | {argument: value})


@pytest.mark.parametrize(("name", "argument"), [pair for pair in ARGUMENTS if EVERY[pair[0]].looks])
@given(place=st.integers(0, 10**6), value=st.sampled_from([math.nan, math.inf, -math.inf]))
@settings(max_examples=4, deadline=None)
def test_what_is_not_finite_is_named(name, argument, place, value):
    spoiled = EVERY[name].inputs(0)[argument].clone()
    spoiled.view(-1)[place % spoiled.numel()] = value
    refused(EVERY[name], argument, spoiled)


@pytest.mark.parametrize(
    ("name", "argument"), [pair for pair in ARGUMENTS if pair[0] != "near_origin"]
)
def test_complex_and_empty_inputs_are_named(name, argument):
    measure, value = EVERY[name], EVERY[name].inputs(0)[argument]
    if name not in ("pool", "uniform_error"):
        refused(measure, argument, value.to(torch.complex128))
    if name != "uniform_error":
        refused(measure, argument, value[:0])


FEW = [
    (name, argument, n) for name, measure in EVERY.items() for argument, n in measure.least.items()
]


@pytest.mark.parametrize(("name", "argument", "least"), FEW)
def test_fewer_samples_than_needed_are_named(name, argument, least):
    inputs = EVERY[name].inputs(0)
    alike = {key: x for key, x in inputs.items() if len(x) == len(inputs[argument])}
    names = "|".join(map(re.escape, alike))
    for count in range(1, least):
        with pytest.raises(ValueError, match=names):
            EVERY[name].call(**inputs | {key: x[:count] for key, x in alike.items()})


@pytest.mark.parametrize("name", EVERY)
def test_values_do_not_depend_on_what_holds_the_numbers(name):
    measure, inputs = EVERY[name], EVERY[name].inputs(1)
    wanted = quiet(measure, inputs)
    holders = [
        lambda x: x.clone().requires_grad_(),
        lambda x: x.repeat_interleave(2, -1)[..., ::2],  # not contiguous
    ]
    if measure.arrays:
        holders += [
            torch.Tensor.numpy,
            lambda x: x.numpy().astype(">f8"),
            lambda x: x.numpy()[::-1].copy()[::-1],
        ]
    for hold in holders:
        torch.testing.assert_close(quiet(measure, {k: hold(x) for k, x in inputs.items()}), wanted)


@pytest.mark.parametrize(
    "name", [name for name in EVERY if name != "near_origin"]
)  # which rounds nothing itself
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_only_where_numbers_come_from(name, dtype):
    """The same as of the rounded numbers in single precision: no sum is kept in half."""
    measure = EVERY[name]
    rounded = {k: x.clamp(-6e4, 6e4).to(dtype) for k, x in measure.inputs(1).items()}
    try:
        wanted = quiet(measure, {k: x.float() for k, x in rounded.items()})
    except ValueError:  # sizes that differ no more: refused in both
        with pytest.raises(ValueError):
            quiet(measure, rounded)
        return
    torch.testing.assert_close(
        quiet(measure, rounded), wanted, rtol=1e-5, atol=1e-6 * float(wanted.abs().max())
    )


def everything_alike() -> dict[str, tuple[Callable, str]]:
    """Samples that say nothing about what is asked, and the name that the refusal begins with."""
    x, ones, order = normal(0, 30, 4), torch.ones(30, 4), torch.arange(30) % 4
    noisy, no_error = torch.ones(2, 9), torch.zeros(2, 9)
    useless = normal(1, 3, 30, 3) * torch.tensor([1.0, 0.0, 1.0])
    twins = normal(1, 3, 30, 3)[..., [0, 1, 1]]
    return {
        "a matrix of zeros": (
            lambda: circulant.circulant_share(torch.zeros(5, 5)),
            "energy of matrix",
        ),
        "a constant matrix": (
            lambda: circulant.circulant_score(torch.full((5, 5), 0.1)),
            "share of the energy of matrix",
        ),
        "effects of single tokens": (
            lambda: circulant.hankel_score(x[:8, :1] + x[9:17, 1]),
            "share of the energy of matrix",
        ),
        "the identity": (
            lambda: circulant.circulant_score(torch.eye(7)),
            "share of the energy of matrix",
        ),
        "tokens that are all one": (
            lambda: circulant.fourier_concentration(0.1 * ones),
            "share of energy of embedding",
        ),
        "three tokens": (lambda: circulant.fourier_concentration(x[:3]), "shape of embedding"),
        "constant logits": (
            lambda: circulant.shift_share(0.1 * ones, order),
            "energy of centred logits",
        ),
        "positions that are no integers": (
            lambda: circulant.shift_share(x, x[:, 0]),
            "dtype of target",
        ),
        "flux without noise": (
            lambda: denoising.snr_gain(noisy / 2, noisy, noisy, noisy),
            "noise of noisy",
        ),
        "a sigma of zero": (lambda: denoising.snr_gain(noisy, noisy / 2, noisy, no_error), "sigma"),
        "no uncertainty at all": (
            lambda: denoising.calibration(noisy, no_error, noisy, no_error),
            "sqrt",
        ),
        "a spectrum repeated": (lambda: denoising.pca(ones, ones, 1), "components = 1"),
        "more components than spectra vary in": (
            lambda: denoising.pca(x[:2].repeat(9, 1), x, 2),
            "components = 2",
        ),
        "an asymmetric covariance": (
            lambda: frechet.frechet_distance(x[0], x[:4], x[1], x[:4]),
            "asymmetry of cov1",
        ),
        "a covariance below zero": (
            lambda: frechet.frechet_distance(x[0], torch.eye(4), x[1], -torch.eye(4)),
            "least eigenvalue of cov2",
        ),
        "samples with other features": (
            lambda: distances.energy_distance(x, x[:, :3]),
            "shape of y",
        ),
        "no neighbour": (lambda: frechet.coverage(x, x, k=0), "k = 0"),
        "a parameter without influence": (
            lambda: information.score_density(useless, ones[:3, :1].expand(3, 30), 0),
            "jacobian",
        ),
        "parameters alike": (
            lambda: information.score_density(twins, ones[:3, :1].expand(3, 30), 0),
            "jacobian",
        ),
        "a variance below zero": (lambda: information.uniform_error(-ones[:, 0], 1.0), "variance"),
        "a variance that is NaN": (
            lambda: information.uniform_error(math.nan * ones[:, 0], 1.0),
            "variance",
        ),
        "a model without an answer": (
            lambda: information.maximum_likelihood(
                lambda t: (straight(t)[0] * math.nan, straight(t)[1]),
                **line(0),
                lower=-x[0, :2].abs(),
                upper=x[0, :2].abs(),
            ),
            "chi-square of model",
        ),
        "constant targets": (lambda: baselines.scores(ones[:, 0], x[:, 0]), "target"),
        "no positive penalty": (lambda: baselines.ridge(x, x[:, 0], (x, x[:, 0]), [0.0]), "alphas"),
        "labels that do not differ": (
            lambda: probes.probe("linear", *[(x, ones[:, 0])] * 3),
            "fitting labels",
        ),
        "latents without positions": (lambda: probes.pool(x, "global_mean"), "shape of latents"),
        "three runs": (
            lambda: law.fit_law([1e6, 1e7, 1e8], [1e8, 1e9, 1e10], [3.0, 2.5, 2.2]),
            "different runs",
        ),
        "a law without a term": (lambda: law.Law(1.0, 0.0, 5.0, 0.3, 0.3).frontier(1e9), "law"),
        "a size of zero": (lambda: law.Law(1.0, 2.0, 5.0, 0.3, 0.3).loss(0.0, 1e9), "n"),
    }


@pytest.mark.parametrize("case", everything_alike())
def test_samples_that_say_nothing_are_named(case):
    call, name = everything_alike()[case]
    with pytest.raises(ValueError, match=rf"^{re.escape(name)}"), warnings.catch_warnings():
        warnings.simplefilter("error")  # a refusal, and nothing of 0 / 0 before it
        call()


def test_numbers_keep_their_graph_and_say_where_one_is_missing():
    x = torch.ones(3, 2, requires_grad=True)
    assert numbers(x, "x").requires_grad and numbers([[1, 2]], "x").dtype == torch.float64
    assert numbers(torch.eye(2).to_sparse(), "x").tolist() == torch.eye(2).tolist()
    for given_, said in (
        ([[1.0, 2.0], [math.nan, math.inf]], r"x\[1, 0\] = nan .*2 NaN or infinite"),
        ([[1.0], [1.0, 2.0]], "x is no array"),
        (["a", "b"], "dtype of x"),
        (torch.zeros(2, 0), r"shape of x = \(2, 0\)"),
        (torch.zeros(2, 3), r"shape of x = \(2, 3\) .* expected \(any, 4\)"),
    ):
        with pytest.raises(ValueError, match=said):
            numbers(given_, "x", shape=(None, 4) if isinstance(given_, torch.Tensor) else None)


def test_copies_are_found_and_covered():
    """A nearest neighbour at rounding's distance, or a ball of radius 0 that is open, would miss
    them."""
    x = (normal(0, 40, 6) + 3e3).float()
    assert distances.nearest(x, torch.cat([normal(1, 30, 6).float(), x])).max() == 0
    once = x[:1].repeat(9, 1)
    assert frechet.coverage(once, once) == pytest.approx(
        {"precision": 1, "recall": 1, "density": 9 / 5, "coverage": 1}
    )
    assert frechet.coverage(once, once + 1) == dict.fromkeys(
        ("precision", "recall", "density", "coverage"), 0
    )
    assert frechet.frechet(once, once) == 0 == float(distances.energy_distance(once, once))


def test_shares_of_neighbours_are_those_of_their_authors():
    from prdc import compute_prdc

    real, fake = normal(0, 50, 3), 0.9 * normal(1, 60, 3) + 0.2
    theirs = compute_prdc(real.numpy(), fake.numpy(), 5)
    assert frechet.coverage(real, fake) == pytest.approx(theirs, rel=1e-6)


def test_one_feature_has_a_distance():
    x, y = normal(0, 200, 1), 2 * normal(1, 300, 1) + 1
    expected = (x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2
    assert frechet.frechet(x, y) == pytest.approx(float(expected))
    assert denoising.pca(x, y, 1).shape == (300, 1)


@pytest.mark.parametrize("offset", [1e3, 1e5])
def test_single_precision_far_from_the_origin(offset):
    """What is left of the digits is used: the same as of the rounded samples in double
    precision."""
    x, y = ((z + offset).float() for z in (normal(0, 200, 16), normal(1, 150, 16) + 0.2))
    for measure in (distances.energy_distance, distances.nearest):
        torch.testing.assert_close(
            measure(x, y).double(), measure(x.double(), y.double()), rtol=1e-4, atol=1e-6
        )
    within = distances.energy_distance(x, y, check=False)  # as in a training step
    assert float(within) == pytest.approx(
        float(distances.energy_distance(x.double(), y.double())), rel=1e-2
    )
    gradient = torch.autograd.grad(
        distances.energy_distance(x.requires_grad_(), y, check=False), x
    )[0]
    z = x.detach().double().requires_grad_()
    exact = torch.autograd.grad(distances.energy_distance(z, y.double()), z)[0]
    torch.testing.assert_close(gradient.double(), exact, rtol=1e-2, atol=1e-5)


def test_sets_about_the_origin_stay_as_they_are():
    x, y = normal(0, 20, 3), normal(1, 30, 3) + 0.5
    assert all(map(torch.equal, distances.near_origin(x, y), (x, y)))


def test_flux_in_small_units():
    # erg per second, square centimetre and angstrom; its square is no number in single precision
    unit = 1e-19
    x = {name: (unit * value).float() for name, value in spectra(0).items()}
    torch.testing.assert_close(
        denoising.snr_gain(**x).double(), denoising.snr_gain(**spectra(0)), rtol=1e-5, atol=0
    )
    x = {name: (unit * value).float() for name, value in calibrated(0).items()}
    assert denoising.calibration(**x) == pytest.approx(
        denoising.calibration(**calibrated(0)), rel=1e-5
    )


def test_an_estimate_that_is_the_clean_flux_gains_without_limit():
    x = spectra(0)
    assert denoising.snr_gain(x["clean"], x["noisy"], x["clean"], x["sigma"]).isinf().all()


def test_uniform_error_at_its_limits():
    variance = torch.tensor([0.0, 1e-30, 1e12, 1e300, math.inf], dtype=torch.float64)
    found = information.uniform_error(variance, 3.0)
    assert found.tolist() == pytest.approx([0, 1e-30, 0.75, 0.75, 0.75], rel=1e-9, abs=0)
    around = information.uniform_error(torch.tensor([0.999, 1.001]).double() * 900 * 9, 3.0)
    assert float(around[1] / around[0]) == pytest.approx(
        1, abs=1e-6
    )  # where one formula takes over


def test_features_that_vary_little_on_a_large_mean_count():
    x, y = normal(0, 60, 2), normal(0, 60, 2)[:, 0]
    moved_far = 1e9 + 0.1 * x  # as times of observation
    found = baselines.ridge(moved_far[:40], y[:40], (moved_far[40:], y[40:])).predict(
        moved_far[40:]
    )
    assert baselines.scores(y[40:], found)["r2"] > 0.99


def test_few_samples_for_trees_are_said_to_be_few():
    x = normal(0, 39, 2)
    with pytest.warns(UserWarning, match="trees of 39 samples"):
        baselines.boosted_trees(x, x[:, 0], trees=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = normal(0, 40, 2)  # as the warning says
        assert (
            np.ptp(
                baselines.boosted_trees(x, x[:, 0], trees=9, share=1.0, bins=255).predict(x.numpy())
            )
            > 0
        )
