"""A network as a function of one flat vector: many parameter vectors on many examples at once.

The vector holds what is trained: a parameter with `requires_grad = False` stays as it is. Networks
in half precision are computed in float32, since a change of their loss is far below the rounding of
their outputs.
"""

import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from fieldbook.nn.checks import at_least_single, require
from fieldbook.nn.identity import referred

Loss = Callable[[Tensor, Tensor], Tensor]
"""Outputs (n, ..) and targets (n, ..) -> one loss per example (n,)."""


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that take a gradient, by name; ValueError if there are none."""
    found = {name: w for name, w in model.named_parameters() if w.requires_grad}
    remedy = "a network with parameters that require a gradient (`model.requires_grad_()`)"
    require(found, "model", type(model).__name__, remedy)
    return found


def flatten(model: nn.Module) -> Tensor:
    """The trained parameters as one vector (D,), in the order of `named_parameters`."""
    return at_least_single(torch.cat([w.detach().flatten() for w in trained(model).values()]))


def unflatten(model: nn.Module) -> Callable[[Tensor], dict[str, Tensor]]:
    """The inverse of `flatten`: a vector (D,) -> parameters by name."""
    shapes = {name: w.shape for name, w in trained(model).items()}
    sizes = [shape.numel() for shape in shapes.values()]

    def parameters_of(vector: Tensor) -> dict[str, Tensor]:
        parts = zip(shapes.items(), vector.split(sizes), strict=True)
        return {name: part.view(shape) for (name, shape), part in parts}

    return parameters_of


def parameter_slices(model: nn.Module) -> dict[str, Tensor]:
    """Indices of each trained parameter in the flat vector, by name."""
    parts = unflatten(model)(torch.arange(len(flatten(model))))
    return {name: part.flatten() for name, part in parts.items()}


def orbits(model: nn.Module, alone: str = "(?!)") -> list[Tensor]:
    """Indices into the flat vector, a tensor for each module's own parameters: weight with bias.

    Args:
        alone: pattern of names of parameters that are orbits by themselves; none unless given.
    """
    groups: dict[str, list[Tensor]] = {}
    for name, indices in parameter_slices(model).items():
        key = name if re.fullmatch(alone, name) else name.rpartition(".")[0]
        groups.setdefault(key, []).append(indices)
    return [torch.cat(group) for group in groups.values()]


def outputs_of(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """A function (vector (D,), inputs (n, ..)) -> outputs (n, ..), in float32 or wider."""
    parameters_of = unflatten(model)
    half = (torch.bfloat16, torch.float16)
    others = [*model.named_parameters(), *model.named_buffers()]
    fixed = {name: w.detach().float() for name, w in others if w.dtype in half}

    def outputs(vector: Tensor, inputs: Tensor) -> Tensor:
        weights = fixed | parameters_of(vector)
        return torch.func.functional_call(model, weights, (at_least_single(inputs),))

    return outputs


def cross_entropy(outputs: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy (n,), nats, of logits (n, .., C) for classes (n, ..), mean over axes between.

    Raises:
        ValueError: the target's shape is not that of the outputs without their last axis.
    """
    shape = tuple(outputs.shape)
    accepted = f"{shape[:-1]}, as logits {shape} have their classes last"
    fits = target.ndim and target.shape == shape[:-1]
    require(fits, "shape of target", tuple(target.shape), accepted)
    logits = outputs.flatten(0, -2)
    each = nn.functional.cross_entropy(logits, target.flatten().long(), reduction="none")
    return each if target.ndim == 1 else each.view(len(target), -1).mean(1)


def squared_error(outputs: Tensor, target: Tensor) -> Tensor:
    """Half the squared error (n,), summed over an example: -ln of a Gaussian of unit variance.

    Raises:
        ValueError: outputs and target differ in shape.
    """
    accepted = f"{tuple(outputs.shape)}, that of the outputs"
    require(target.shape == outputs.shape, "shape of target", tuple(target.shape), accepted)
    errors = (outputs - target).square() / 2
    return errors.flatten(1).sum(1) if errors.ndim > 1 else errors


@torch.no_grad()
def batched(
    function: Callable[..., Any], *tensors: Tensor, size: int = 256, device: Any = None
) -> Any:
    """What a function of rows (n, ..) returns, a tensor or several, from `size` rows at a time.

    Without gradients; in a network's own mode.

    Args:
        device: where each part is moved before the call, None to leave it; what is returned comes
            back to where the first tensor is.
    Raises:
        ValueError: the tensors differ in length.
    """
    lengths = [len(x) for x in tensors]
    require(len(set(lengths)) == 1, "lengths of tensors", lengths, "as many rows in each")
    home, parts = tensors[0].device, []
    for rows in zip(*(x.split(size) for x in tensors), strict=True):
        outputs = function(*(x.to(device or x.device) for x in rows))
        parts.append(tree_map(lambda y: y.to(home), outputs))
    return tree_map(lambda *ys: torch.cat(ys), *parts)


def mapped(f: Callable, in_dims: tuple[int | None, ...]) -> Callable:
    """`torch.func.vmap` of a function, or a loop, with a warning, where that cannot be."""
    batched = torch.func.vmap(f, in_dims=in_dims)
    works = True

    def one_by_one(*arguments: Tensor) -> Any:
        pairs = list(zip(arguments, in_dims, strict=True))
        size = next(len(x) for x, axis in pairs if axis == 0)
        rows = [f(*(x if axis is None else x[i] for x, axis in pairs)) for i in range(size)]
        return tree_map(lambda *parts: torch.stack(parts), *rows)

    def call(*arguments: Tensor) -> Any:
        nonlocal works
        if not works:
            return one_by_one(*arguments)
        try:
            with sdpa_kernel(SDPBackend.MATH):  # which vmap can batch
                return batched(*arguments)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
        rows = one_by_one(*arguments)  # first: if this fails, too, its own words say it better
        works = False
        warnings.warn(f"computed one by one, as vmap fails: {reason}", stacklevel=3)
        return rows

    return call


def stacked_losses(
    model: nn.Module, loss: Loss = cross_entropy
) -> Callable[..., tuple[Tensor, Tensor]]:
    """A function (w, inputs, target, shared=True) -> (losses, gradients) for many vectors at once.

    `w` is (chains, D); inputs and target are (batch, ..) for all chains alike, or with
    `shared=False` (chains, batch, ..). Losses are (chains, batch), gradients those of their means
    (chains, D).
    """
    outputs = outputs_of(model)

    def mean_loss(vector: Tensor, inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        losses = loss(at_least_single(outputs(vector, inputs)), target)
        return losses.mean(), losses

    each = torch.func.grad(mean_loss, has_aux=True)
    alike = mapped(each, (0, None, None))
    apart = mapped(each, (0, 0, 0))

    def stacked(
        w: Tensor, inputs: Tensor, target: Tensor, *, shared: bool = True
    ) -> tuple[Tensor, Tensor]:
        gradients, losses = (alike if shared else apart)(w, inputs, target)
        return losses, gradients

    return stacked


def curvature_of(
    model: nn.Module, inputs: Tensor, target: Tensor, loss: Loss = cross_entropy
) -> Callable[[Tensor], Tensor]:
    """The Hessian of the mean loss at the network's own weights: vector (D,) -> product (D,)."""
    outputs = outputs_of(model)
    w = flatten(model).requires_grad_()
    # fused attention has no second derivative
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        mean = loss(at_least_single(outputs(w, inputs)), target).mean()
        (gradient,) = torch.autograd.grad(mean, w, create_graph=True)
    return lambda vector: torch.autograd.grad(gradient, w, vector, retain_graph=True)[0]


def require_measurable(model: nn.Module, inputs: Tensor, target: Tensor, loss: Loss) -> None:
    """Refuse a loss that is no fixed function of the weights and of one example.

    Raises:
        ValueError: inputs and target differ in length or device; the target is no class index,
            under cross-entropy; the network is random, moves its buffers or lets examples act on
            each other (dropout and batch norm in training mode do); its output is no tensor; a loss
            is not finite or not one number per example.
    """
    compute = outputs_of(model)
    w = flatten(model)
    for name, x in (("inputs", inputs), ("target", target)):
        require(isinstance(x, Tensor), f"type of {name}", type(x).__name__, "a tensor")
        accepted = f"{w.device}, where the network is"
        require(x.device == w.device, f"device of {name}", str(x.device), accepted)
    accepted = f"{len(inputs)}, one for each of the inputs"
    require(len(inputs) == len(target) > 0, "len(target)", len(target), accepted)
    same = not inputs.is_floating_point() or at_least_single(inputs).dtype == w.dtype
    require(same, "dtype of inputs", inputs.dtype, f"{w.dtype}, that of the network's parameters")
    if loss is cross_entropy:
        integer = target.dtype != torch.bool and not torch.is_floating_point(target)
        accepted = "class indices (int64); for other targets pass `loss`, such as squared_error"
        require(integer and not target.is_complex(), "dtype of target", target.dtype, accepted)
    outputs = require_fixed(lambda x: compute(w, x), inputs)
    if loss is cross_entropy:
        classes = outputs.shape[-1]
        several = outputs.ndim > 1 and classes > 1
        accepted = "(n, .., C), C > 1 classes"
        require(several, "shape of outputs", tuple(outputs.shape), accepted)
        ends = (int(target.min()), int(target.max()))
        known = ends[0] >= 0 and ends[1] < classes
        require(known, "target", ends, f"classes in [0, {classes})")
    losses = loss(outputs, target[:2])
    single = losses.shape == target[:2].shape[:1]
    require(single, "shape of losses", tuple(losses.shape), "(n,), one per example")
    require(losses.isfinite().all(), "losses", losses.tolist(), "finite numbers")


@torch.no_grad()
def require_fixed(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Outputs (2, ..) of the first two examples, if each is a fixed function of its own example.

    The global generators and the buffers of the networks that `f` calls are left as they were.

    Raises:
        ValueError: the output is random, depends on the other examples, moves a buffer, is not
            finite, or is no tensor (n, ..).
    """
    buffers = [b for module in _modules(f) for b in module.buffers()]
    before = [b.clone() for b in buffers]
    remedy = "a fixed function of each example; `model.eval()` first stops dropout and batch norm"
    try:
        with torch.random.fork_rng([x.device] if x.is_cuda else []):
            outputs = f(x[:2])
            _require_tensor(outputs, len(x[:2]))
            still = all(torch.equal(b, old) for b, old in zip(buffers, before, strict=True))
            require(still, "buffers", "moved by a forward pass", remedy)
            require(torch.equal(outputs, f(x[:2])), "output", "another one at each pass", remedy)
            alone = f(x[:1])
    finally:
        for b, old in zip(buffers, before, strict=True):
            b.copy_(old)
    slack = 1e-2 * float(outputs.abs().max())  # of half precision, whose kernels differ by batch
    apart = torch.allclose(alone, outputs[:1], atol=slack)
    require(apart, "output", "another one beside other inputs", remedy)
    return at_least_single(outputs)


def _require_tensor(outputs: object, n: int) -> None:
    remedy = "a tensor (n, ..) for n inputs: wrap the network in a module that returns one"
    require(isinstance(outputs, Tensor), "type of the output", type(outputs).__name__, remedy)
    fits = outputs.ndim > 0 and len(outputs) == n
    require(fits, "shape of the output", tuple(outputs.shape), remedy)
    accepted = "finite numbers; half precision overflows early: use `model.float()`"
    require(outputs.isfinite().all(), "output", outputs.flatten()[:3].tolist(), accepted)


def _modules(f: object, depth: int = 3) -> list[nn.Module]:
    """The networks that a function is, belongs to, or refers to."""
    if isinstance(f, nn.Module):
        return [f]
    known = [getattr(f, "__self__", None), *(value for _, value in referred(f))]
    return [module for one in known for module in _modules(one, depth - 1)] if depth else []
