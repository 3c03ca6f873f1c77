"""Counts, tokenizers, positions and pooling by hand, parity with Hugging Face, rollout, and that
everything trains."""

import itertools

import pytest
import torch
from torch import nn

from fieldbook.drifting.compat import importable_torchvision
from fieldbook.nn.layers import seeded
from fieldbook.nn.recipe import Recipe
from fieldbook.nn.training import fit
from fieldbook.spectra.losses import LOSSES, loss
from fieldbook.spectra.preprocess import Affine, standardise
from fieldbook.spectra.vit import (
    POOLINGS,
    POSITIONS,
    TOKENIZERS,
    SpectraViT,
    attention_maps,
    parameter_table,
    rollout,
    start_as_source,
)

TINY = {"n_pixels": 64, "patch": 8, "d_model": 16, "n_layers": 2, "n_heads": 4, "d_hidden": 32}


def tiny(**changes):
    return SpectraViT(**TINY | changes).eval()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- parameters


@pytest.mark.parametrize(
    "position, count", [("learned", 4_809_729), ("rope", 4_743_937), ("none", 4_743_937)]
)
def test_parameters_at_the_size_of_the_seed_experiment(position, count):
    model = SpectraViT(position=position)
    assert (
        sum(w.numel() for w in model.parameters()) == count == parameter_table(model)["total"].sum()
    )


@pytest.mark.parametrize("pooling", POOLINGS)
def test_parameter_table_is_complete(pooling):
    model = tiny(pooling=pooling, n_outputs=3, preprocess=nn.Linear(64, 64))
    table = parameter_table(model).set_index("term")
    assert table["total"].sum() == sum(w.numel() for w in model.parameters())
    assert table.loc["head", "parameters"] == 16 * 3 + 3
    assert ("CLS token" in table.index, "pooling query" in table.index) == (
        pooling == "cls",
        pooling == "attention",
    )


def test_same_seed_same_weights_and_the_global_state_is_left_alone():
    state = torch.random.get_rng_state()
    one, two, other = tiny(seed=3), tiny(seed=3), tiny(seed=4)
    assert torch.equal(state, torch.random.get_rng_state())
    flux = draw(2, 64)
    assert torch.equal(one(flux), two(flux))
    assert not torch.equal(one(flux), other(flux))


# -- tokenizers


def test_tokenizers_are_one_map_and_start_as_a_convolution():
    flux = draw(3, 64)
    models = [tiny(tokenizer=name, pooling="mean", position="none", seed=5) for name in TOKENIZERS]
    with seeded(5):
        peer = nn.Conv1d(1, 16, 8, stride=8)
    for model in models:
        assert torch.equal(model.project.weight, peer.weight[:, 0])
        torch.testing.assert_close(model.embed(flux), peer(flux[:, None]).mT, rtol=0, atol=1e-6)


def test_models_of_all_tokenizers_agree_with_their_gradients():
    flux, found = draw(3, 64), []
    for name in TOKENIZERS:
        model = tiny(tokenizer=name)
        model(flux).square().sum().backward()
        found.append([model(flux).detach(), *(w.grad.flatten() for w in model.parameters())])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-6)


def test_in_the_seed_experiment_a_window_is_drowned_by_its_position():
    flux = 0.5 + 0.1 * draw(64, 256)
    shares = {}
    for name in ("C1D", "SW"):
        model = SpectraViT(n_pixels=256, patch=16, d_model=128, n_layers=1, tokenizer=name).eval()
        start_as_source(model)
        assert model.position.std().item() == pytest.approx(1, abs=0.05)
        assert model.cls.std().item() == pytest.approx(1, abs=0.2)
        tokens = model.embed(flux)[:, 1:].detach()
        shares[name] = float(tokens.var(0).mean() / tokens.var())  # what depends on the star at all
    weight_variance = {"C1D": 1 / 48, "SW": 0.02**2}
    for name, share in shares.items():
        assert share == pytest.approx(16 * weight_variance[name] * 0.01, rel=0.35)
    assert shares["C1D"] > 30 * shares["SW"]


# -- positions and pooling


def shuffled_patches(flux, patch=8):
    order = torch.randperm(flux.shape[1] // patch, generator=torch.Generator().manual_seed(1))
    return flux.unflatten(1, (-1, patch))[:, order].flatten(1)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("position", POSITIONS)
def test_order_of_patches_matters_only_with_positions(position, pooling):
    model, flux = tiny(position=position, pooling=pooling), draw(4, 64)
    if position == "learned":
        nn.init.normal_(model.position)  # at .02 the order hardly matters yet
    same = torch.allclose(model(flux), model(shuffled_patches(flux)), atol=1e-5)
    assert same is (position == "none")


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_by_hand(pooling):
    model, flux = tiny(pooling=pooling), draw(4, 64)
    if pooling == "attention":
        start = model(flux)
        torch.testing.assert_close(start, model.head(encoded(model, flux).mean(1))[:, 0])
        nn.init.normal_(model.query, generator=torch.Generator().manual_seed(0))
    x = encoded(model, flux)
    if pooling == "attention":
        scores = torch.exp(x @ model.query / 4)
        pooled = (scores[..., None] * x).sum(1) / scores.sum(1, keepdim=True)
    else:
        pooled = x[:, 0] if pooling == "cls" else x.mean(1)
    assert x.shape[1] == model.n_patches + (pooling == "cls")
    torch.testing.assert_close(model(flux), model.head(pooled)[:, 0])
    torch.testing.assert_close((model.pool_weights(x)[..., None] * x).sum(1), pooled)


def encoded(model, flux):
    x = model.embed(flux)
    for block in model.blocks:
        x = block(x, turns=model.turns)
    return model.norm(x)


def test_dropout_in_training_alone():
    model, flux = tiny(dropout=0.5), draw(4, 64)
    assert torch.equal(model(flux), model(flux))
    model.train()
    assert not torch.equal(model(flux), model(flux))


@pytest.mark.parametrize("position", POSITIONS)
def test_bfloat16_stays_close_and_adds_up_in_single_precision(position):
    model, flux = tiny(position=position, pooling="mean"), draw(4, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.embed(flux).dtype == torch.float32
        rounded = model(flux)
    torch.testing.assert_close(rounded.float(), model(flux), rtol=0, atol=0.03)


def test_preprocess_comes_first_and_is_stored_with_the_weights():
    flux = draw(50, 64) * 3 + 5
    model, bare = tiny(preprocess=standardise(flux)), tiny()
    torch.testing.assert_close(model(flux), bare((flux - flux.mean(0)) / flux.std(0)))
    assert {"preprocess.mean", "preprocess.matrix"} <= model.state_dict().keys()


# -- the peer

importable_torchvision()
transformers = pytest.importorskip("transformers")


def peer(attention, model, dropout=0.0):
    """Hugging Face's ViTModel on images of one row, with the weights of `model`."""
    config = transformers.ViTConfig(
        image_size=(1, 64),
        patch_size=(1, 8),
        num_channels=1,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        hidden_dropout_prob=dropout,
        layer_norm_eps=1e-5,
        attn_implementation=attention,
    )
    vit = transformers.ViTModel(config, add_pooling_layer=False).eval()
    vit.load_state_dict(
        renamed({name: w.detach() for name, w in model.named_parameters() if "head" not in name})
    )
    return vit


def renamed(tensors):
    """Our parameters, or their gradients, under the peer's names and in its shapes."""
    found = {
        "embeddings.cls_token": tensors["cls"][None, None],
        "embeddings.position_embeddings": tensors["position"][None],
        "embeddings.patch_embeddings.projection.weight": tensors["project.weight"][:, None, None],
        "embeddings.patch_embeddings.projection.bias": tensors["project.bias"],
    }
    parts = {
        "attn_norm": "layernorm_before",
        "ffn_norm": "layernorm_after",
        "attn.query": "attention.q_proj",
        "attn.key": "attention.k_proj",
        "attn.value": "attention.v_proj",
        "attn.out": "attention.o_proj",
        "ffn.up": "mlp.fc1",
        "ffn.down": "mlp.fc2",
    }
    for kind in ("weight", "bias"):
        found[f"layernorm.{kind}"] = tensors[f"norm.{kind}"]
        for layer in range(2):
            for ours, theirs in parts.items():
                found[f"layers.{layer}.{theirs}.{kind}"] = tensors[f"blocks.{layer}.{ours}.{kind}"]
    return found


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_parity_with_hugging_face(attention):
    model, flux = tiny(), draw(5, 64)
    for w in model.parameters():  # biases and norms too, which start at 0 and 1
        nn.init.normal_(w, std=0.3, generator=torch.Generator().manual_seed(w.numel()))
    vit = peer(attention, model)
    theirs = model.head(vit(flux[:, None, None]).last_hidden_state[:, 0])[:, 0]
    torch.testing.assert_close(model(flux), theirs, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(theirs.square().sum(), vit.parameters())
    theirs = {name: g for (name, _), g in zip(vit.named_parameters(), gradients, strict=True)}
    names = [name for name, _ in model.named_parameters() if "head" not in name]
    weights = [model.get_parameter(name) for name in names]
    ours = renamed(
        dict(zip(names, torch.autograd.grad(model(flux).square().sum(), weights), strict=True))
    )
    torch.testing.assert_close(
        ours, theirs, rtol=1e-5, atol=1e-5 * max(g.abs().max() for g in gradients).item()
    )


def test_the_total_of_the_seed_experiment_is_that_of_the_peer_with_its_pooler():
    config = transformers.ViTConfig(
        image_size=(1, 4096),
        patch_size=(1, 16),
        num_channels=1,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=8,
        intermediate_size=1024,
    )
    with torch.device("meta"):
        with_pooler, without = (
            transformers.ViTModel(config, add_pooling_layer=p) for p in (True, False)
        )
    head = 257
    assert sum(w.numel() for w in with_pooler.parameters()) + head == 4_875_521
    assert sum(w.numel() for w in without.parameters()) + head == 4_809_729


# -- attention rollout


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("position", POSITIONS)
def test_attention_maps_give_back_the_forward_pass(position, pooling):
    model, flux = tiny(position=position, pooling=pooling), draw(3, 64)
    maps, pooled = attention_maps(model, flux)
    x = model.embed(flux)
    for attention, block in zip(maps, model.blocks, strict=True):
        v = block.attn.value(block.attn_norm(x)).unflatten(-1, (4, 4)).transpose(1, 2)
        x = x + block.attn.out((attention @ v).transpose(1, 2).flatten(-2))
        x = x + block.ffn(block.ffn_norm(x))
    torch.testing.assert_close(
        model.head((pooled[..., None] * model.norm(x)).sum(1))[:, 0], model(flux)
    )
    with pytest.raises(ValueError, match="eval"):
        attention_maps(model.train(), flux)


def test_rollout_is_the_sum_over_all_paths():
    layers, n = 3, 3
    maps, pooled = draw(layers, 2, 4, n, n).softmax(-1), draw(2, n).softmax(-1)
    flow = [0.5 * torch.eye(n) + 0.5 * a for a in maps.mean(2)]
    expected = torch.zeros(2, n)
    for path in itertools.product(range(n), repeat=layers + 1):  # from the input up
        weight = pooled[:, path[-1]]
        for layer in range(layers):
            weight = weight * flow[layer][:, path[layer + 1], path[layer]]
        expected[:, path[0]] += weight
    torch.testing.assert_close(rollout(maps, pooled), expected)
    torch.testing.assert_close(expected.sum(1), torch.ones(2))


def test_rollout_finds_the_patch_that_is_looked_at():
    maps = torch.zeros(2, 1, 1, 4, 4)
    maps[..., 2] = 1  # everyone looks at token 2, in both layers
    found = rollout(maps, torch.tensor([[1.0, 0, 0, 0]]))
    torch.testing.assert_close(found, torch.tensor([[0.25, 0, 0.75, 0]]))


# -- it trains


def lines(n, seed):
    """Spectra with an absorption line, whose depth is the label, an emission line, whose height is
    not, and noise."""
    generator = torch.Generator().manual_seed(seed)
    depth = torch.rand(n, 2, generator=generator)
    pixel = torch.arange(64)
    profiles = torch.stack([torch.exp(-(((pixel - at) / 1.5) ** 2)) for at in (20, 45)])
    flux = (
        0.5
        + (depth * torch.tensor([-0.5, 0.5])) @ profiles
        + 0.02 * torch.randn(n, 64, generator=generator)
    )
    error = 0.05 + 0.3 * torch.rand(n, generator=generator)
    label = (depth[:, 0] - 0.5) * 12**0.5
    return flux, label, label + error * torch.randn(n, generator=generator), error


def train(loss_name="mse", **changes):
    """Losses before and after a short training, those of the best constant, and the error on unseen
    labels."""
    classes = loss_name == "cross_entropy"
    flux, true, target, error = lines(512, 0)
    new, new_true, _, _ = lines(256, 1)
    if classes:
        edges = torch.linspace(-1.2, 1.2, 5)[1:-1]  # 4 bins
        target, new_true = torch.bucketize(true, edges), torch.bucketize(new_true, edges)
    scaled = Affine(torch.tensor(0.5), torch.tensor([10.0]))
    error = error if loss_name.startswith("heteroscedastic") else None
    model = tiny(n_layers=1, n_outputs=4 if classes else 1, preprocess=scaled, **changes)
    function = loss(loss_name)

    def loss_fn(m, i, _):
        return function(m(flux[i]), target[i], None if error is None else error[i])

    def evaluate(m, _):
        out = {"loss": loss_fn(m, torch.arange(512), None)}
        right = m(new).argmax(-1) == new_true if classes else (m(new) - new_true).square()
        return out | {"score": right.float().mean()}

    recipe = Recipe(steps=90, batch_size=32, lr=1e-2, schedule="cosine", eval_every=90)
    history = fit(model, loss_fn, 512, recipe, evaluate=evaluate, progress=False).history
    return history[0]["loss"], history[-1]["loss"], history[-1]["score"]


ARCHITECTURES = list(itertools.product(TOKENIZERS, POSITIONS, POOLINGS))


@pytest.mark.parametrize("tokenizer, position, pooling", ARCHITECTURES)
def test_every_architecture_trains(tokenizer, position, pooling):
    start, end, squared_error = train(tokenizer=tokenizer, position=position, pooling=pooling)
    assert end < 0.5 * start
    assert squared_error < 0.4  # a constant has 1, the variance of the labels


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains(name, pooling):
    start, end, score = train(name, pooling=pooling)
    assert end < 0.75 * start
    assert (
        score > 0.5 if name == "cross_entropy" else score < 0.4
    )  # the largest class has a quarter


# -- what is not accepted


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"patch": 7}, "patch = 7.*n_pixels = 64"),
        ({"patch": 128}, "patch = 128"),
        ({"patch": 0}, "patch = 0"),
        ({"n_heads": 3}, "n_heads = 3.*d_model = 16"),
        ({"n_layers": 0}, "n_layers = 0"),
        ({"tokenizer": "conv"}, "tokenizer = 'conv'.*C1D, SW, linear"),
        ({"position": "sine"}, "position = 'sine'.*learned, rope, none"),
        ({"pooling": "max"}, "pooling = 'max'.*cls, mean, attention"),
        ({"position": "rope", "n_heads": 16}, "d_head = 1"),
    ],
)
def test_errors_name_the_parameter(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


@pytest.mark.parametrize("shape", [(2, 63), (64,), (2, 1, 64)])
def test_wrong_length_is_named(shape):
    with pytest.raises(ValueError, match=r"flux = .*\(batch, 64\)"):
        tiny()(torch.zeros(shape))
