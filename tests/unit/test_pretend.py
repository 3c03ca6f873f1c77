"""The pretended GPU keeps torch's rules: what a GPU does is done, what it refuses is refused."""

import copy
import io

import numpy as np
import pretend
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

TOGETHER = "Expected all tensors to be on the same device"


@pytest.fixture
def mode():
    with pretend.gpu() as mode:
        yield mode


@pytest.fixture
def x(mode):
    return torch.arange(6.0, device="cuda").view(2, 3)


@pytest.fixture
def network(mode):
    return nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.GELU(), nn.Dropout(0.1), nn.Linear(4, 2)
    ).to("cuda")


def refuses(words: str, kind: type = RuntimeError):
    return pytest.raises(kind, match=words)


@pytest.mark.parametrize(
    "meet",
    [
        lambda x: x + torch.ones(3),
        lambda x: x @ torch.ones(3, 2),
        lambda x: torch.cat([x, torch.ones(1, 3)]),
        lambda x: torch.stack([x[0, 0], torch.tensor(1.0)]),
        lambda x: x[0] * torch.arange(3),
        lambda x: torch.where(torch.ones(2, 3) > 0, x, 0.0),
        lambda x: torch.ones(2, 3).add_(x),
        lambda x: torch.tensor(0.0).add_(x.sum()),
        lambda x: nn.functional.linear(x, torch.ones(4, 3)),
        lambda x: nn.functional.embedding(torch.tensor([0]), x),
        lambda x: nn.functional.cross_entropy(x, torch.tensor([0, 1])),
        lambda x: torch.func.vmap(lambda row: row + torch.ones(3))(x),
    ],
)
def test_tensors_of_two_devices_do_not_meet(x, meet):
    with refuses(TOGETHER):
        meet(x)


def test_numbers_and_indices_may_stay_on_the_cpu(x):
    assert (x * torch.tensor(2.0)).device == x.device == pretend.GPU
    assert (torch.tensor(2.0, dtype=torch.float64) + x).dtype == torch.float32
    assert x[torch.tensor([1])].tolist() == [[3, 4, 5]] and x[
        torch.tensor([True, False])
    ].tolist() == [[0, 1, 2]]
    x[torch.tensor([0])] = torch.tensor(7.0)
    assert x.cpu()[0].tolist() == [7, 7, 7]
    assert (
        x[[1]].tolist() == [[3, 4, 5]]
        and x[..., [2, 0]].tolist()[1] == [5, 3]
        and x[:, np.array([1])].sum() == 11
    )
    x[:, [1]] = 0
    assert x[1].tolist() == [3, 0, 5]
    with refuses("indices should be"):
        torch.ones(3)[torch.tensor([0], device="cuda")]
    with refuses("indices should be"):
        x[torch.tensor([0])] = torch.ones(1, 3)


def test_moves_and_copies(x):
    assert x.cpu().device == x.to("cpu").device == pretend.CPU and isinstance(x.cpu(), torch.Tensor)
    assert (
        torch.ones(2).to(x).device
        == torch.ones(2).cuda().device
        == x.new_zeros(2).device
        == x.device
    )
    assert torch.ones(2, 3).copy_(x).device == pretend.CPU and x.copy_(torch.ones(2, 3)).is_cuda
    assert x.numpy(force=True).sum() == 6 and float(x.sum()) == x.sum().item() == 6
    with refuses("can't convert cuda:0 device", TypeError):
        x.numpy()
    with refuses("can't convert cuda:0 device", TypeError):
        np.asarray(x)


def test_new_tensors_are_where_they_are_said_to_be(x):
    made = [
        torch.zeros(2, device="cuda"),
        torch.tensor([1.0], device="cuda"),
        torch.as_tensor(np.ones(2), device="cuda"),
    ]
    made += [x.new_tensor([1, 2]), torch.empty_like(x), torch.ones((), device=x.device)]
    assert all(one.device == pretend.GPU for one in made) and x.new_tensor([1]).dtype == x.dtype
    assert torch.zeros_like(x, device="cpu").device == torch.arange(3).device == pretend.CPU
    with torch.device("meta"):
        assert torch.zeros(3).is_meta  # the real one is left alone


@pytest.mark.parametrize(
    "draw",
    [
        lambda **o: torch.randn(3, **o),
        lambda **o: torch.rand(3, **o),
        lambda **o: torch.randint(2, (3,), **o),
        lambda **o: torch.randperm(3, **o),
    ],
)
def test_a_generator_draws_for_its_own_device_alone(mode, draw):
    there, here = torch.Generator("cuda").manual_seed(1), torch.Generator().manual_seed(1)
    assert there.device.type == "cuda" and here.device.type == "cpu"
    assert torch.equal(draw(generator=there, device="cuda").cpu(), draw(generator=here))
    with refuses("Expected a 'cpu' device type for generator but found 'cuda'"):
        draw(generator=there)
    with refuses("Expected a 'cuda' device type for generator but found 'cpu'"):
        draw(generator=here, device="cuda")


def test_draws_in_place_follow_the_tensor(x):
    assert x.normal_(generator=torch.Generator("cuda")).is_cuda
    with refuses("Expected a 'cuda' device type for generator"):
        x.normal_(generator=torch.Generator())
    with refuses("Expected a 'cpu' device type for generator"):
        torch.bernoulli(torch.ones(3), generator=torch.Generator("cuda"))


def test_modules_move_with_their_parameters_and_back(x, network):
    weight = network[0].weight
    assert (
        network(x).is_cuda
        and weight.is_cuda
        and isinstance(weight, nn.Parameter)
        and weight.is_leaf
    )
    with refuses(TOGETHER):
        network(torch.ones(2, 3))
    assert network.double()[0].weight is weight and weight.dtype == torch.float64 and weight.is_cuda
    assert network.cpu()[0].weight is weight and not weight.is_cuda
    with refuses(TOGETHER):
        network(x.double())


def test_training_saving_and_averaging(x, network):
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    before = network[0].weight.detach().cpu().clone()
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            out = network(x)
        out.float().square().mean().backward()
        parameters = list(network.parameters())
        nn.utils.clip_grads_with_norm_(
            parameters, 1.0, nn.utils.get_total_norm([p.grad for p in parameters])
        )
        optimizer.step()
        average.update_parameters(network)
    assert (
        out.dtype == torch.bfloat16
        and network[0].weight.grad.is_cuda
        and average.module[0].weight.is_cuda
    )
    assert not torch.equal(network[0].weight.cpu(), before)
    buffer = io.BytesIO()
    torch.save({"model": network.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    saved = torch.load(io.BytesIO(buffer.getvalue()), map_location="cpu", weights_only=True)
    other = copy.deepcopy(network)
    other.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    assert not saved["model"]["0.weight"].is_cuda and other[0].weight.is_cuda
    assert optimizer.state[network[0].weight]["exp_avg"].is_cuda
    with torch.random.fork_rng([other[0].weight.device]):
        torch.cuda.default_generators[0].manual_seed(3)


def test_function_transforms(x, network):
    parameters = {name: w.detach() for name, w in network.eval().named_parameters()}

    def total(parameters, row):
        return torch.func.functional_call(network, parameters, (row[None],)).sum()

    each = torch.func.vmap(torch.func.grad(total), in_dims=(None, 0))(parameters, x)
    assert each["0.weight"].shape == (2, 4, 3) and each["0.weight"].is_cuda
    value, slope = torch.func.jvp(network, (x,), (torch.ones_like(x),))
    assert value.is_cuda and slope.is_cuda
    with refuses(TOGETHER):
        torch.func.grad(total)(parameters, torch.ones(3))


def test_waits_for_the_device_are_counted(mode, x):
    (x.exp() @ x.T).cumsum(0).sort()
    assert mode.waits == 0
    for read in (x.sum().item, x.cpu, x.tolist, x.nonzero, lambda: x[x > 2], lambda: bool(x.any())):
        before = mode.waits
        read()
        assert mode.waits == before + 1
    x.to("cuda")
    torch.ones(3).cuda()
    assert mode.waits == 6


def test_nothing_is_left_behind():
    with pretend.gpu():
        x = torch.ones(2, device="cuda")
    assert torch.Generator is pretend.RealGenerator and not isinstance(torch.ones(2), pretend.OnGPU)
    assert (x + 1).is_cuda  # what was made inside stays what it is
