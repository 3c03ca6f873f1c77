"""Public samplers and measures on networks that are not ours: each gives its exact answer, or
refuses by name."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from fieldbook.grokking.agop import agop, agop_sketch, residuals, second_moments
from fieldbook.nn import functional
from fieldbook.nn.functional import cross_entropy, squared_error
from fieldbook.samplers import calibration, curvature, estimate, llc, preconditioners, symmetry
from fieldbook.samplers.llc import Sampling
from fieldbook.samplers.sgmcmc import chain

N = 24


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classes(n: int, shape: tuple[int, ...] = (N,)) -> torch.Tensor:
    return torch.randint(n, shape, generator=torch.Generator().manual_seed(1))


class Tied(nn.Module):
    """Tokens in, tokens out, with the embedding's weights as the head's."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(torch.tanh(self.embed(x)))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.inner(x)[0][:, -1])


class Branching(nn.Module):
    """Looks at its own weights on the way, which `vmap` cannot batch."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        first = self.a if self.a.bias.detach().sum().item() > -100 else self.b
        return self.b(torch.tanh(first(x)))


class Attentive(nn.Module):
    """PyTorch's own transformer layer on its fused attention: a class per token."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(x))


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return build()


def convolutional():
    parts = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
    return nn.Sequential(*parts).eval()


def perceptron():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def flat():
    return nn.Sequential(perceptron(), nn.Flatten(0))


NETWORKS = {  # network, inputs, target, loss
    "regression, (n, 1)": (perceptron, draw(N, 3), draw(N, 1, seed=2), squared_error),
    "regression, (n,)": (
        lambda: nn.Sequential(perceptron(), nn.Flatten(0)),
        draw(N, 3),
        draw(N, seed=2),
        squared_error,
    ),
    "images with batch norm": (convolutional, draw(N, 1, 4, 4), classes(3), cross_entropy),
    "tied tokens": (Tied, classes(7), classes(7), cross_entropy),
    "sequences, (n, T, C)": (Tied, classes(7, (N, 4)), classes(7, (N, 4)), cross_entropy),
    "recurrent": (Recurrent, draw(N, 5, 3), classes(3), cross_entropy),
    "branching": (Branching, draw(N, 3), classes(3), cross_entropy),
    "attention, (n, T, C)": (
        lambda: Attentive().eval(),
        draw(N, 4, 8),
        classes(3, (N, 4)),
        cross_entropy,
    ),
}


@pytest.fixture(params=NETWORKS)
def foreign(request):
    build, inputs, target, loss = NETWORKS[request.param]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "computed one by one, as vmap fails")
        warnings.filterwarnings("ignore", "There is a performance drop")
        yield seeded(build), inputs, target, loss


def gradient_by_autograd(model, inputs, target, loss):
    """The reference: mean loss and flat gradient of the trained parameters, by PyTorch alone."""
    mean = loss(model(inputs), target).mean()
    weights = [w for w in model.parameters() if w.requires_grad]
    return mean.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(mean, weights)])


def set_weights(model, vector):
    moved = copy.deepcopy(model)
    nn.utils.vector_to_parameters(vector, [w for w in moved.parameters() if w.requires_grad])
    return moved


def test_losses_and_gradients_are_those_of_autograd(foreign):
    model, inputs, target, loss = foreign
    w = functional.flatten(model)
    stack = torch.stack([w, w + 0.1 * draw(len(w), seed=4)])
    losses, gradients = functional.stacked_losses(model, loss)(stack, inputs, target)
    for vector, found, slope in zip(stack, losses, gradients, strict=True):
        mean, exact = gradient_by_autograd(set_weights(model, vector), inputs, target, loss)
        assert torch.allclose(found.mean(), mean, rtol=1e-5)
        assert torch.allclose(slope, exact, rtol=1e-3, atol=1e-6)


def test_what_vmap_cannot_batch_is_computed_one_by_one_and_says_so():
    model = seeded(Branching)
    losses_of = functional.stacked_losses(model)
    with pytest.warns(UserWarning, match=r"computed one by one, as vmap fails"):
        losses_of(functional.flatten(model).expand(2, -1), draw(N, 3), classes(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it says so once
        losses_of(functional.flatten(model).expand(2, -1), draw(N, 3), classes(3))


def test_minibatches_are_relative_to_the_networks_own_losses(foreign):
    model, inputs, target, loss = foreign
    state = copy.deepcopy(model.state_dict())
    gradient = llc.minibatch_gradient(model, inputs, target, batch_size=N, seeds=[0, 1], loss=loss)
    w = functional.flatten(model)
    moved = w + 0.1 * draw(2, len(w), seed=5)
    losses, _ = gradient(torch.stack([w.expand(2, -1), moved]), 0)
    assert losses[0].abs().max() < 1e-6
    before = loss(model(inputs), target).mean()
    for found, vector in zip(losses[1], moved, strict=True):
        right = loss(set_weights(model, vector)(inputs), target).mean() - before
        assert torch.allclose(found, right, atol=1e-5)
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


def test_curvature_is_that_of_the_hessian(foreign):
    model, inputs, target, loss = foreign
    model.double()
    inputs, target = (x.double() if x.is_floating_point() else x for x in (inputs, target))
    compute, w = functional.outputs_of(model), functional.flatten(model)
    product = functional.curvature_of(model, inputs, target, loss)
    small, vector = 1e-6, draw(len(w), seed=6).double()

    def slope(at):
        at = at.requires_grad_()
        return torch.autograd.grad(loss(compute(at, inputs), target).mean(), at)[0]

    differences = (slope(w + small * vector) - slope(w - small * vector)) / 2 / small
    assert (product(vector) - differences).norm() < 1e-4 * differences.norm()


def test_fisher_information_is_that_of_its_definition(foreign):
    model, inputs, _, loss = foreign
    found = curvature.fisher_diagonal(
        model, inputs, torch.Generator().manual_seed(0), draws=300, loss=loss
    )
    compute, w = functional.outputs_of(model), functional.flatten(model).requires_grad_()
    exact = torch.zeros_like(w)
    for one in inputs.split(1):
        z = compute(w, one)[0]
        q = (torch.ones_like(z) if loss is squared_error else z.softmax(-1)).detach()
        log_q = z if loss is squared_error else z.log_softmax(-1)
        tokens = 1 if loss is squared_error else z[..., 0].numel()
        for value, weight in zip(log_q.flatten(), q.flatten(), strict=True):
            (g,) = torch.autograd.grad(value, w, retain_graph=True)
            exact += weight * g.square() / tokens / len(inputs)
    assert (found - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("sampler", ["sgld", "rsgld", "si_sgld"])
def test_the_coefficient_is_one_call(foreign, sampler):
    model, inputs, target, loss = foreign
    before, mode = functional.flatten(model), model.training
    how = Sampling(steps=24, burn_in=8, chains=2, batch_size=12)
    found = llc.measure(model, inputs, target, loss=loss, sampler=sampler, how=how)
    assert math.isfinite(found.llc) and found.error > 0 and found.trace.shape == (24, 3, 2)
    assert torch.equal(functional.flatten(model), before) and model.training == mode


def linear(d, n=600):
    """A linear regression at its minimum: regular, so that its coefficient is d / 2."""
    x = draw(n, d)
    y = x @ draw(d, 1, seed=7) + draw(n, 1, seed=8)
    model = nn.Linear(d, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    return model, x, y


@pytest.mark.parametrize("sampler", ["sgld", "rsgld", "si_sgld"])
def test_a_linear_regression_has_half_its_dimension(sampler):
    model, x, y = linear(6)
    how = Sampling(steps=1500, burn_in=300, chains=16, batch_size=600)
    found = llc.measure(model, x, y, loss=squared_error, sampler=sampler, gamma=0.1, how=how)
    assert found.health == "ok"
    assert abs(found.llc - 3) < 2 * found.error and found.error < 0.2


def test_frozen_parameters_are_not_sampled():
    model, x, y = linear(6)
    body = nn.Sequential(nn.Linear(6, 6), model)
    with torch.no_grad():
        body[0].weight.copy_(torch.eye(6))
        body[0].bias.zero_()
    body[0].requires_grad_(False)
    assert functional.flatten(body).shape == (6,)
    how = Sampling(steps=800, burn_in=200, chains=8, batch_size=600)
    found = llc.measure(body, x, y, loss=squared_error, gamma=0.1, how=how)
    assert abs(found.llc - 3) < 3 * found.error
    llc.polish(body, x, y, steps=5, lr=1e-3, loss=squared_error)
    assert torch.equal(body[0].weight, torch.eye(6))
    body.requires_grad_(False)
    with pytest.raises(ValueError, match=r"model = 'Sequential' .* require a gradient"):
        llc.measure(body, x, y, loss=squared_error)
    body.requires_grad_()  # the remedy
    assert functional.flatten(body).shape == (48,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_in_single(dtype):
    model = seeded(convolutional)
    x, y = draw(N, 1, 4, 4).to(dtype), classes(3)
    half = copy.deepcopy(model).to(dtype)
    single = copy.deepcopy(half).float()
    how = Sampling(steps=12, burn_in=4, chains=2, batch_size=12)
    found, right = (
        llc.measure(m, x.to(next(m.parameters()).dtype), y, how=how) for m in (half, single)
    )
    assert found.llc == pytest.approx(right.llc, rel=1e-5) and found.trace.dtype == torch.float64
    assert next(half.parameters()).dtype == dtype
    body, features = half[:4], draw(2000, 1, 4, 4)
    exact = agop(single[:4], features.to(dtype).float())
    assert (agop(body, features.to(dtype)) - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), nn.Dropout(0.5)])
def test_what_is_no_fixed_function_is_refused_and_left_alone(layer):
    model = nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 3)).train()
    x, y = draw(N, 3) + 2, classes(3)
    state, rng = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    calls = {
        "measure": lambda: llc.measure(model, x, y),
        "gradient": lambda: llc.minibatch_gradient(model, x, y, batch_size=4, seeds=[0]),
        "fisher": lambda: curvature.fisher_diagonal(model, x, torch.Generator().manual_seed(0)),
        "curvature": lambda: curvature.largest_curvature(model, x, y, torch.ones(31)),
        "agop": lambda: agop(model, x),
        "agop of a function": lambda: agop(lambda z: model(z), x),
        "sketch": lambda: agop_sketch(model, x, torch.Generator().manual_seed(0)),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match=r"model\.eval\(\)"):
            call()
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert torch.equal(rng, torch.random.get_rng_state())
    model.eval()  # the remedy
    how = Sampling(steps=10, burn_in=2, chains=2, batch_size=8)
    assert math.isfinite(llc.measure(model, x, y, how=how).llc)
    assert agop(model, x).shape == (3, 3)


def test_polishing_takes_the_loss_down_and_leaves_the_mode(foreign):
    model, inputs, target, loss = foreign
    modes = [m.training for m in model.modules()]
    before, _ = curvature.loss_and_gradient_norm(model, inputs, target, loss)
    llc.polish(model, inputs, target, steps=60, lr=2e-2, loss=loss)
    after, _ = curvature.loss_and_gradient_norm(model, inputs, target, loss)
    assert after < 0.95 * before and [m.training for m in model.modules()] == modes


@pytest.mark.parametrize("lr", [1e6, 1e30])
def test_polishing_that_makes_it_worse_leaves_the_weights(lr):
    model, inputs, target, loss = perceptron(), draw(N, 3), draw(N, 1, seed=2), squared_error
    weights = functional.flatten(model)
    with pytest.raises(ValueError, match=r"lr = 1.* smaller learning rate"):
        llc.polish(model, inputs, target, steps=20, lr=lr, loss=loss)
    assert torch.equal(functional.flatten(model), weights)


BAD_TARGETS = {
    "floats": (draw(N, 1), r"dtype of target = torch.float32 .*squared_error"),
    "probabilities": (torch.full((N, 3), 1 / 3), r"dtype of target"),
    "another length": (classes(3, (N - 1,)), r"len\(target\) = 23"),
    "ignored": (
        classes(3).index_fill(0, torch.tensor([3]), -100),
        r"target = \(-100, 2\) .*classes in \[0, 3\)",
    ),
    "beyond": (classes(3) + 1, r"target = \(1, 3\) .*classes in \[0, 3\)"),
    "columns": (classes(3)[:, None], r"shape of target = \(.*, 1\)"),
}


@pytest.mark.parametrize("name", BAD_TARGETS)
def test_targets_that_do_not_fit_are_named(name):
    target, message = BAD_TARGETS[name]
    model = nn.Linear(3, 3)
    for call in (llc.measure, curvature.loss_and_gradient_norm):
        with pytest.raises(ValueError, match=message):
            call(model, draw(N, 3), target)
    with pytest.raises(ValueError, match=message):
        llc.polish(model, draw(N, 3), target, steps=2, lr=1e-3)


def test_outputs_and_losses_that_do_not_fit_are_named():
    x, y = draw(N, 3), classes(3)
    with pytest.raises(ValueError, match=r"type of the output = 'tuple' .*wrap the network"):
        llc.measure(nn.GRU(3, 3, batch_first=True), draw(N, 2, 3), y)
    with pytest.raises(ValueError, match=r"shape of outputs = \(2, 1\) .* C > 1 classes"):
        llc.measure(nn.Linear(3, 1), x, torch.zeros(N, dtype=torch.long))
    with pytest.raises(ValueError, match=r"shape of target = \(2,\) .*\(2, 1\)"):
        llc.measure(nn.Linear(3, 1), x, draw(N), loss=squared_error)
    with pytest.raises(ValueError, match=r"shape of losses = \(\) .* one per example"):
        llc.measure(nn.Linear(3, 3), x, y, loss=nn.functional.cross_entropy)
    with pytest.raises(ValueError, match=r"loss = 'l1' .*squared_error"):
        curvature.fisher_diagonal(nn.Linear(3, 1), x, torch.Generator(), loss=_l1())
    broken = nn.Linear(3, 3)
    with torch.no_grad():
        broken.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"output = .* finite numbers"):
        llc.measure(broken, x, y)


def test_dtypes_and_lengths_are_looked_at_before_anything_is_sampled():
    model, x, y = nn.Linear(3, 3), draw(N, 3), classes(3)
    how = Sampling(steps=10, burn_in=2, chains=2, batch_size=8)
    found = llc.measure(model, x, y, how=how)
    assert llc.measure(model, x, y.to(torch.uint8), how=how).llc == found.llc
    with pytest.raises(ValueError, match=r"dtype of inputs = torch.float64 .*torch.float32"):
        llc.measure(model, x.double(), y)
    assert math.isfinite(llc.measure(model.double(), x.double(), y, how=how).llc)  # the remedy
    for bad in ({"burn_in": 10}, {"burn_in": -1}, {"chains": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Sampling(**{"steps": 10, "burn_in": 2, "chains": 2, "batch_size": 8} | bad)
    with pytest.raises(ValueError, match=r"burn_in = 5 .*at least 8 fewer than steps = 10"):
        llc.measure(model, x.double(), y, how=Sampling(10, 5, 2, 8))


def _l1():
    def l1(outputs, target):
        return (outputs - target).abs().flatten(1).sum(1)

    return l1


def test_any_loss_of_an_example_can_be_measured():
    model, x, y = perceptron(), draw(N, 3), draw(N, 1, seed=2)
    how = Sampling(steps=12, burn_in=4, chains=2, batch_size=12)
    found = llc.measure(model, x, y, loss=_l1(), how=how, sampler="si_sgld")
    assert math.isfinite(found.llc)


def test_no_default_makes_chains_identical():
    def gradient(w, _):
        return w.square().sum(-1) / 2, w

    options = {"eps": 0.1, "n_beta": 5.0, "gamma": 0.0, "steps": 40}
    for shape in ((16, 3), (1, 16, 3)):
        run = chain(
            gradient,
            torch.zeros(shape),
            preconditioners.sgld(),
            torch.Generator().manual_seed(0),
            **options,
        )
        trace = torch.stack([losses for losses, _ in run]).view(40, 1, 16)
        assert estimate.estimate(trace, n_beta=5.0, burn_in=10)[1] > 0
    with pytest.raises(ValueError, match=r"common_noise = True .*\(cells, chains, D\)"):
        next(
            chain(
                gradient,
                torch.zeros(16, 3),
                preconditioners.sgld(),
                torch.Generator(),
                common_noise=True,
                **options,
            )
        )
    copies = trace[..., :1].expand(-1, -1, 4)
    flags = estimate.health(copies, n_beta=5.0, dimension=30, burn_in=10, ceiling=100.0)
    assert flags == ["identical chains"]


def test_health_says_when_an_estimate_follows_its_settings():
    """A flat direction is held by localisation alone; a soft one has not been gone through by short
    chains."""
    model, x, y = linear(6)
    how = Sampling(steps=600, burn_in=100, chains=8, batch_size=600)
    assert (
        "follows gamma" in llc.measure(model, x, y, loss=squared_error, gamma=200.0, how=how).health
    )
    stiff = x * torch.tensor([100.0, 1, 1, 1, 1, 1])
    with torch.no_grad():
        model.weight[0, 0] /= 100
    soft = llc.measure(model, stiff, y, loss=squared_error, gamma=0.1, how=how)
    assert soft.llc < 1 and "still spreading" in soft.health
    growing = llc.measure(
        model, x * torch.tensor([6.0, 1, 1, 1, 1, 1]), y, loss=squared_error, gamma=0.1, how=how
    )
    assert "follows length" in growing.health


def test_calibration_works_on_a_gradient_function():
    h = torch.tensor([1.0, 2.0, 4.0])
    star = torch.tensor([1.0, -1.0, 0.5])

    def gradient(w, _):
        return ((w - star).square() * h).sum(-1) / 2, (w - star) * h

    how = Sampling(steps=400, burn_in=100, chains=8, batch_size=1)
    found, curve = calibration.calibrate(
        gradient,
        star,
        preconditioners.sgld(),
        how,
        n_beta=50.0,
        relaxation=0.02,
        target=0.5,
        ceiling=100.0,
    )
    exact = sum(50 * k / (50 * k + found["gamma"]) for k in h.tolist()) / 2
    assert exact == pytest.approx(0.5, rel=0.2) and len(curve) == 18
    assert found["eps_limit"] == pytest.approx(4 / (50 * 4 + found["gamma"]), rel=0.02)
    rows = calibration.lengthen(
        gradient,
        star,
        preconditioners.sgld(),
        how,
        eps=found["eps"],
        gamma=found["gamma"],
        n_beta=50.0,
    )
    assert rows[-1]["T"] == 1600 and rows[-1]["llc"] == pytest.approx(exact, rel=0.3)


def test_rescalings_of_other_networks_are_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))
    for call in (
        symmetry.exponents,
        symmetry.rescale,
        lambda m: symmetry.grid_factors(m, [(2.0, 1.0)]),
    ):
        with pytest.raises(ValueError, match=r"model = 'Sequential' .*Grokker"):
            call(model)


def test_preconditioners_name_orbits_that_leave_gaps_or_do_not_move():
    w = torch.tensor([1.0, 2.0, 0.0])
    with pytest.raises(ValueError, match=r"orbits = '2 indices' .* 0 \.\. 2 once"):
        preconditioners.si_sgld(w, [torch.tensor([0, 1])])
    with pytest.warns(
        UserWarning, match=r"zero in orbits \[1\]: 1 coordinates will not be sampled"
    ):
        preconditioners.si_sgld(w, [torch.tensor([0, 1]), torch.tensor([2])])
    _, update = preconditioners.rsgld(w, [torch.tensor([0, 1]), torch.tensor([2])])
    metric, _ = update(None, w, w)
    assert metric.preconditioner.isfinite().all() and metric.preconditioner[2] == 0


AGOP = {
    "scalar": lambda z: z @ torch.tensor([1.0, -2.0, 0.5]),
    "column": lambda z: z @ torch.tensor([[1.0], [-2.0], [0.5]]),
    "two axes": lambda z: (
        z @ torch.tensor([[1.0, 0, 1, 0], [-2, 1, 0, 0], [0.5, 0, 0, 3]])
    ).unflatten(1, (2, 2)),
}


@pytest.mark.parametrize("name", AGOP)
def test_agop_of_any_output(name):
    f, x = AGOP[name], draw(40, 3)
    jacobian = torch.func.jacrev(lambda one: f(one[None])[0].flatten())(x[0]).view(-1, 3)
    exact = jacobian.T @ jacobian
    assert torch.allclose(agop(f, x), exact, atol=1e-5)
    draws = [agop_sketch(f, x, torch.Generator().manual_seed(s), k=8) for s in range(50)]
    assert (torch.stack(draws).mean(0) - exact).norm() < 0.1 * exact.norm()


def test_agop_names_what_it_cannot_differentiate():
    x = draw(40, 3)
    holed = x.clone()
    holed[3, 1] = math.nan
    cases = {
        r"dtype of x = torch.int64 .*embeddings": lambda: agop(nn.Embedding(5, 2), classes(5)),
        r"output of f .*differentiable": lambda: agop(torch.no_grad()(lambda z: z * 2), x),
        r"x\[3, 1\] = nan": lambda: agop(
            lambda z: z, x.index_put((torch.tensor(3), torch.tensor(1)), torch.tensor(math.nan))
        ),
        r"at least 1": lambda: agop(lambda z: z, x[:0]),
        r"k = 0": lambda: agop_sketch(lambda z: z, x, torch.Generator(), k=0),
        r"batch = 0": lambda: agop(lambda z: z, x, batch=0),
        r"overflow": lambda: agop(lambda z: 60000 * z * z, 4 * x.half()),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message):
            call()
    assert torch.equal(
        agop(lambda z: torch.cat([z[:, :1], 0 * z[:, :1]], 1), x),
        torch.diag(torch.tensor([1.0, 0, 0])),
    )


def test_residuals_name_targets_that_are_no_classes():
    x, f = draw(40, 3), nn.Linear(3, 4)
    with pytest.raises(ValueError, match=r"target .*classes in \[0, 4\)"):
        second_moments(f, x, [residuals(classes(7, (40,)))])
    with pytest.raises(ValueError, match=r"target"):
        second_moments(f, x, [residuals(draw(40))])
