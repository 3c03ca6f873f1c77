"""What frozen or fine-tuned latents know about a label, with guards against the usual mistakes."""

import contextlib
import hashlib
import itertools
import math
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fieldbook.nn import training
from fieldbook.nn.baselines import boosted_trees, ridge, scores
from fieldbook.nn.checks import at_least_single, numbers, require
from fieldbook.nn.layers import seeded
from fieldbook.nn.recipe import Recipe
from fieldbook.spectra import preprocess
from fieldbook.spectra.blindspot import BlindSpotUNet, Direction, Layer

POOLINGS = {
    "global_mean": lambda x: x.mean(-1),
    "global_max": lambda x: x.amax(-1),
    "mean_max": lambda x: torch.cat([x.mean(-1), x.amax(-1)], 1),
    "flatten": lambda x: x.flatten(1),
}
BATCH = 64  # spectra that an encoder sees at once
HIDDEN_LAYERS = {"linear": 0, "mlp_1": 1, "mlp_2": 2}
Split = tuple[Tensor, Tensor]  # features (n, features) and labels (n,)


class View(NamedTuple):
    """Which features of an encoder a probe sees."""

    layer: Layer = "enc_pre_latent"
    pooling: str = "seg_mean_K8"
    direction: Direction = "forward"


def pool(latents: Tensor, pooling: str) -> Tensor:
    """A vector per spectrum from its latents.

    Args:
        latents: (batch, channel, position).
        pooling: `global_mean`, `global_max`, `mean_max` (both), `flatten`, or `seg_mean_K<k>`: the
            means of k segments, each position in one of them, the lengths differing by one at most.
    Returns:
        (batch, features), channel by channel.
    Raises:
        ValueError: another shape, an unknown pooling, or more segments than positions.
    """
    shape = tuple(latents.shape)
    accepted = "(batch, channel, position), none of them empty"
    require(latents.ndim == 3 and latents.numel(), "shape of latents", shape, accepted)
    latents = at_least_single(latents)
    if pooling in POOLINGS:
        return POOLINGS[pooling](latents)
    match = re.fullmatch(r"seg_mean_K([1-9]\d*)", pooling)
    require(match, "pooling", pooling, f"one of {', '.join(POOLINGS)} or seg_mean_K<segments>")
    segments = int(match[1])
    accepted = f"at most as many segments as positions, {shape[-1]}"
    require(segments <= shape[-1], "pooling", pooling, accepted)
    means = [part.mean(-1) for part in latents.tensor_split(segments, -1)]
    return torch.stack(means, -1).flatten(1)


def features(
    encoder: BlindSpotUNet, noisy: Tensor, sigma: Tensor | None, views: Sequence[View]
) -> list[Tensor]:
    """Features of a frozen encoder, all views in one pass.

    Args:
        noisy, sigma: (n, pixel) on any device, as in `BlindSpotUNet.forward`, whose errors apply.
    Returns:
        for each view (n, features), in float32 on the CPU.
    """
    parts = []
    device = next(encoder.parameters()).device
    wanted = [(view.layer, view.direction) for view in views]
    with frozen(encoder), torch.no_grad():
        for rows in torch.arange(len(noisy)).split(BATCH):
            x, s = (None if t is None else t[rows].to(device) for t in (noisy, sigma))
            found = zip(encoder.latents(x, s, wanted), views, strict=True)
            parts.append([pool(latents, view.pooling).float().cpu() for latents, view in found])
    return [torch.cat(columns) for columns in zip(*parts, strict=True)]


def fingerprint(module: nn.Module) -> str:
    """Hash of a module's parameters and buffers, moving averages included."""
    digest = hashlib.sha256()
    for name, t in module.state_dict().items():
        digest.update(name.encode())
        digest.update(t.cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """Within the context a module is in eval mode and takes no gradient; then it is as before.

    Raises:
        RuntimeError: its weights or moving averages changed nevertheless.
    """
    before = fingerprint(module)
    modes = {part: part.training for part in module.modules()}
    wanted = {p: p.requires_grad for p in module.parameters()}
    module.eval().requires_grad_(False)
    try:
        yield module
    finally:
        for part, mode in modes.items():
            part.training = mode
        for p, grad in wanted.items():
            p.requires_grad_(grad)
    if fingerprint(module) != before:
        problem = "the frozen encoder changed"
        raise RuntimeError(f"{problem}; is it, or a part of it, among what is trained?")


# -- heads


def head(
    name: str, features: Tensor, labels: Tensor, *, hidden: int = 256, seed: int = 0
) -> nn.Sequential:
    """A small network (batch, features) -> (batch,) that answers in the labels' unit.

    Args:
        name: `linear`; `mlp_1`, one hidden layer with GELU and dropout; `mlp_2`, two of them.
        features: (n, features) and `labels`: (n,) for training, whose means and spreads the head
            keeps.
        seed: of the initial weights.
    Raises:
        ValueError: an unknown name, other shapes, or labels that are not finite or do not differ.
    """
    require(name in HIDDEN_LAYERS, "head", name, f"one of {', '.join(HIDDEN_LAYERS)}")
    features = numbers(features, "features", ndim=2, least=2)
    labels = checked(labels, len(features), "labels")
    widths = [features.shape[1], *[hidden] * HIDDEN_LAYERS[name]]
    layers = [preprocess.standardise(features)]
    with seeded(seed):
        for n_in, n_out in itertools.pairwise(widths):
            layers += [nn.Linear(n_in, n_out), nn.GELU(), nn.Dropout(0.1)]
        layers += [nn.Linear(widths[-1], 1), nn.Flatten(0)]
    spread = labels.std(keepdim=True)
    layers.append(preprocess.Affine(-labels.mean() / spread, spread))  # to the labels' unit
    return nn.Sequential(*layers).to(features.device)


class Probe(nn.Module):
    """An encoder and a head as one network (noisy, sigma) -> (batch,), for fine-tuning."""

    def __init__(self, encoder: BlindSpotUNet, head: nn.Module, view: View):
        super().__init__()
        self.encoder, self.head, self.view = encoder, head, view

    def forward(self, noisy: Tensor, sigma: Tensor | None = None) -> Tensor:
        latents = self.encoder.encode_flux(noisy, sigma, self.view.layer, self.view.direction)
        return self.head(pool(latents, self.view.pooling))


# -- training


def probe_recipe(n: int, *, epochs: int = 100, batch_size: int = 256, **changes: Any) -> Recipe:
    """AdamW whose rate halves on a plateau and which stops early, by the R2 of validation.

    Args:
        n: training examples; `changes`: of the recipe, for instance `lr_scale={"encoder.": 0.1}` to
            fine-tune.
    """
    epoch = math.ceil(n / batch_size)
    defaults = {
        "steps": epochs * epoch,
        "eval_every": epoch,
        "batch_size": batch_size,
        "lr": 1e-3,
        "weight_decay": 1e-4,
        "clip": 0.5,
        "schedule": "plateau",
        "plateau_patience": 5,
        "monitor": "r2",
        "mode": "max",
        "patience": 15,
    }
    return Recipe(**defaults | changes)


def train(
    model: nn.Module,
    inputs: Sequence[Tensor],
    labels: Tensor,
    validation: tuple[Sequence[Tensor], Tensor],
    recipe: Recipe,
    **options: Any,
) -> training.Fit:
    """Train a head on features, or a `Probe` on spectra, and keep the weights that validate best.

    Args:
        model: (*inputs) -> (batch,) in the labels' unit; `inputs`: each (n, ...); `labels`: (n,).
        validation: the same two, for the R2 to watch and for the RMSE and MAE beside it.
        options: of `fieldbook.nn.training.fit`.
    Raises:
        ValueError: labels are absent, not finite, all the same, or not one for each example; or the
            encoder of a `Probe` would be trained and `recipe.lr_scale` does not say so.
    Warns:
        UserWarning: R2 is still negative after three epochs and 50 updates, which names what to
            look for.
    """
    labels = checked(labels, len(inputs[0]), "labels")
    held_out, target = validation
    target = checked(target, len(held_out[0]), "validation labels")
    if isinstance(model, Probe) and any(p.requires_grad for p in model.encoder.parameters()):
        accepted = "a factor for 'encoder.' to fine-tune it; or train within `frozen(encoder)`"
        require("encoder." in recipe.lr_scale, "lr_scale", recipe.lr_scale, accepted)
    unit = labels.var()
    device = next(model.parameters()).device
    every = recipe.eval_every or recipe.steps
    begun = every * max(3, math.ceil(50 / every))  # by then a network has left the mean behind

    def predict(network: nn.Module, rows: Tensor, arrays: Sequence[Tensor]) -> Tensor:
        return network(*(a[rows.to(a.device)].to(device) for a in arrays)).float()

    def loss(network: nn.Module, index: Tensor, _: torch.Generator) -> Tensor:
        right = labels[index.to(labels.device)].to(device)
        return ((predict(network, index, inputs) - right).square() / unit).mean()

    def evaluate(network: nn.Module, step: int) -> dict[str, float]:
        batches = torch.arange(len(target)).split(recipe.batch_size)
        answers = torch.cat([predict(network, rows, held_out) for rows in batches])
        found = scores(target.numpy(force=True), answers.numpy(force=True))
        if step == begun and found["r2"] < 0:
            warnings.warn(
                f"R2 = {found['r2']:.2f} on validation after {step} updates: are the labels those"
                " of these spectra, in the same order and with the same normalisation in both"
                " splits, and is the noise level passed on?",
                stacklevel=2,
            )
        return found

    facts = {"inputs": [*inputs], "labels": labels, "validation": [[*held_out], target]}
    fit = training.fit(model, loss, len(labels), recipe, evaluate=evaluate, facts=facts, **options)
    if fit.best is not None:
        model.load_state_dict(fit.best)
    return fit


def probe(
    kind: str,
    fitting: Split,
    validation: Split,
    test: Split,
    *,
    seed: int = 0,
    recipe: Recipe | None = None,
) -> dict[str, float]:
    """Fit one probe to features and score it on a test split.

    Args:
        kind: `ridge`, `trees`, or a name of `head`, trained by `recipe` or `probe_recipe`.
        fitting, validation, test: features (n, features) and labels (n,); validation chooses the
            penalty or the epoch.
    Returns:
        r2, rmse and mae in the labels' unit, n_features, n_trainable (0 for trees), and seconds.
    Raises:
        ValueError: as `train`, or an unknown kind.
    """
    splits = {"fitting": fitting, "validation": validation, "test": test}
    fitting, validation, test = (_split(split, name) for name, split in splits.items())
    # in double precision, since latents are collinear
    fit64, validation64, test64 = (
        [part.double().numpy() for part in split] for split in (fitting, validation, test)
    )
    x, y = fitting
    start = time.perf_counter()
    if kind == "ridge":
        answers = ridge(*fit64, validation64).predict(test64[0])
        n_trainable = x.shape[1] + 1
    elif kind == "trees":
        answers = boosted_trees(*fit64, seed=seed).predict(test64[0])
        n_trainable = 0
    else:
        model = head(kind, x, y, seed=seed)
        recipe = recipe or probe_recipe(len(x), seed=seed)
        train(model, [x], y, ([validation[0]], validation[1]), recipe, progress=False)
        answers = model.eval()(test[0].to(x.dtype)).numpy(force=True)
        n_trainable = sum(p.numel() for p in model.parameters())
    seconds = time.perf_counter() - start
    sizes = {"n_features": x.shape[1], "n_trainable": n_trainable, "seconds": seconds}
    return scores(test64[1], answers) | sizes


def _split(split: Split, name: str) -> Split:
    """Features and labels as numbers, on the CPU and without a graph."""
    x = numbers(split[0], f"{name} features", ndim=2).detach().cpu()
    return x, checked(split[1], len(x), f"{name} labels").detach().cpu()


def checked(labels: Tensor | None, n: int, name: str) -> Tensor:
    """The labels as `numbers`; ValueError unless there are n which are not all the same."""
    require(labels is not None, name, None, f"{n} labels; are they in the batch?")
    shape = tuple(labels.shape)
    require(shape == (n,), f"shape of {name}", shape, f"({n},), one for each example")
    labels = numbers(labels, name)
    require(labels.min() < labels.max(), name, float(labels[0]), "labels that differ")
    return labels
