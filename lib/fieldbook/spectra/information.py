"""How well a label can be known from noisy data: Fisher information, its bounds, and a fit.

Data d = f(theta) + error * N(0, 1) in each pixel, the errors known. Then I(theta) = J^T diag(1 /
error^2) J with J = df/dtheta, and no unbiased estimator of theta_g has a variance below inv(I)_gg
when the others are unknown too (Cramer 1946, Rao 1945). An estimator that knows the labels'
distribution is biased towards its centre and may pass this bound where the data say little; van
Trees's inequality (1968, vol. I, eq. 2.206; Gill & Levit 1995) holds for it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fieldbook.nn.checks import numbers, positive, require

Model = Callable[[Tensor], tuple[Tensor, Tensor]]
POINTS = 801  # of the quadrature over measurements


def fisher(jacobian: Tensor, error: Tensor) -> Tensor:
    """Fisher information J^T diag(1 / error^2) J of independent Gaussian pixels.

    Args:
        jacobian: (star, pixel, parameter); `error`: (star, pixel), positive.
    Returns:
        (star, parameter, parameter) float64.
    Raises:
        ValueError: shapes don't match, or an error is not positive.
    """
    scaled = _in_errors(jacobian, error)
    return scaled.mT @ scaled


def bound(fisher: Tensor, parameter: int, prior_variance: Tensor | None = None) -> Tensor:
    """Least variance of one parameter when the others are unknown: inv(I + diag(1/v))_gg.

    Without a prior this is the Cramer-Rao bound. With one it is van Trees's at the star; averaging
    the bound over stars gives the error to expect, inserting the average of I gives the strict
    inequality, which is lower.

    A uniform distribution has no information in van Trees's sense, as its density jumps at the
    ends. Pass its variance, width^2 / 12: the Gaussian of that variance has the least information
    of all priors with it, 1/v, and in a linear model the largest error, which the best linear
    estimator attains whatever the prior. `uniform_error` is the error of the best one.

    Args:
        fisher: (star, parameter, parameter); `parameter`: g, counted from 0.
        prior_variance: (parameter,), positive; infinity where nothing is known beforehand.
    Returns:
        (star,) float64, unit of the parameter squared.
    Raises:
        ValueError: the information is singular: a parameter has no influence, or two have the same;
            names the star.
    """
    fisher = numbers(fisher, "fisher", ndim=3)
    k = fisher.shape[-1]
    require(fisher.shape[1] == k, "shape of fisher", tuple(fisher.shape), "(star, k, k)")
    require(0 <= parameter < k, "parameter", parameter, f"in [0, {k})")
    information = fisher.double()
    if prior_variance is not None:
        v = positive(prior_variance, "prior_variance", shape=(k,), finite=False)
        information = information + torch.diag(1 / v.to(information))
    sizes = information.diagonal(dim1=-2, dim2=-1)
    # of the correlations, as units apart by 1e3 would cost digits
    size = sizes.sqrt()
    factor, failed = torch.linalg.cholesky_ex(information / (size[:, :, None] * size[:, None, :]))
    singular = (failed > 0) | ~(factor.diagonal(dim1=-2, dim2=-1).amin(-1) > 1e-7)
    _require_known(singular, "fisher", sizes)
    unit = torch.zeros_like(factor[..., :1])
    unit[:, parameter] = 1
    column = torch.cholesky_solve(unit, factor)
    return column[:, parameter, 0] / size[:, parameter] ** 2


def score_density(jacobian: Tensor, error: Tensor, parameter: int) -> Tensor:
    """What each pixel tells of one parameter when the others are unknown, in sum 1 / `bound`.

    The derivative by the parameter, less its projection on those by the others, both in units of
    the error, squared: what another parameter could imitate does not count.

    Args:
        jacobian: (star, pixel, parameter); `error`: (star, pixel); `parameter`: counted from 0.
    Returns:
        (star, pixel) float64, per unit of the parameter squared.
    Raises:
        ValueError: as `fisher`, or as `bound`: a parameter has no influence of its own.
    """
    scaled = _in_errors(jacobian, error)
    pixels, k = scaled.shape[1:]
    require(0 <= parameter < k, "parameter", parameter, f"in [0, {k})")
    require(pixels >= k, "pixels of jacobian", pixels, f"at least as many as parameters, {k}")
    size = scaled.norm(dim=1, keepdim=True)
    others_first = [*(i for i in range(k) if i != parameter), parameter]
    basis, upper = torch.linalg.qr((scaled / size)[..., others_first])
    own = upper.diagonal(dim1=-2, dim2=-1)
    _require_known(~(own.abs().amin(-1) > 1e-7), "jacobian", size[:, 0])
    return (basis[..., -1] * own[:, -1:] * size[:, 0, parameter, None]).square()


def _in_errors(jacobian: Tensor, error: Tensor) -> Tensor:
    """Derivatives in units of the error, float64."""
    jacobian = numbers(jacobian, "jacobian", ndim=3)
    error = positive(error, "error")
    shapes = [tuple(jacobian.shape), tuple(error.shape)]
    accepted = "(star, pixel, parameter), (star, pixel)"
    require(shapes[0][:2] == shapes[1], "shapes of jacobian and error", shapes, accepted)
    return (jacobian / error[..., None]).double()


def _require_known(singular: Tensor, name: str, sizes: Tensor) -> None:
    if singular.any():
        star = int(singular.nonzero()[0])
        raise ValueError(
            f"{name}[{star}] is singular, with sizes {sizes[star].tolist()}; expected parameters"
            " that all have an influence: leave the others out, or give a prior_variance"
        )


def uniform_error(variance: Tensor, width: float) -> Tensor:
    """Least mean squared error of a uniform label from one measurement with Gaussian noise.

    With `variance` = `bound` (others' priors given, none for the label itself) this is the
    linearised problem's least error; 1 - mean(uniform_error) / (width^2 / 12) is then the R2 that
    no estimator passes.

    The variance of a truncated Gaussian is written out, as `scipy.stats.truncnorm.var` takes 770
    times as long for 500 stars, and the same values.

    Args:
        variance: (star,) of the noise; `width`: of the label's distribution.
    Returns:
        (star,) E[(x - E[x | x + noise])^2], from 0 to width^2 / 12, which infinite noise leaves.
    """
    require(0 < width < math.inf, "width", width, "a positive number")
    variance = numbers(variance, "variance", ndim=1, finite=False).double()
    require((variance >= 0).all(), "variance", variance.tolist(), "0 or more")
    linear = width**2 / 12 / (1 + width**2 / 12 / variance)  # the best linear estimator's
    ratio = variance.sqrt() / width
    s = ratio.clamp(1e-9, 1e3)[:, None]
    y = torch.linspace(0, 1, POINTS, dtype=torch.float64, device=variance.device)
    y = -8 * s + (1 + 16 * s) * y  # where the measurement of x in [0, 1] may fall
    low, high = (0 - y) / s, (1 - y) / s
    log_mass = _log_normal_mass(low, high)
    a, b = ((-0.5 * z**2 - 0.9189385332 - log_mass).exp() for z in (low, high))
    posterior = s**2 * (1 + low * a - high * b - (a - b) ** 2)
    density = log_mass.exp()
    total = torch.trapezoid(density, y, dim=-1)
    found = torch.trapezoid(posterior.clamp(min=0) * density, y, dim=-1) / total
    # no estimator gains on the linear one where noise is all or nothing, and digits would cancel
    return torch.where((ratio > 1e-9) & (ratio < 30), width**2 * found, linear)


def _log_normal_mass(low: Tensor, high: Tensor) -> Tensor:
    """ln of the standard normal's mass in [low, high], without cancellation in either tail."""
    mirrored = low > 0
    upper = torch.special.log_ndtr(torch.where(mirrored, -low, high))
    lower = torch.special.log_ndtr(torch.where(mirrored, -high, low))
    return upper + torch.log(-torch.expm1(lower - upper))


def best_template(data: Tensor, error: Tensor, templates: Tensor) -> Tensor:
    """The template with the least chi-square, by matched filter, for each star.

    Args:
        data, error: (star, pixel); `templates`: (template, pixel).
    Returns:
        (star,) int64.
    """
    templates = numbers(templates, "templates", ndim=2).double()
    data = numbers(data, "data", shape=(None, templates.shape[1]))
    weight = positive(error, "error", shape=data.shape).double() ** -2
    centre = templates.mean(0)  # chi-squares of large numbers would differ by rounding
    templates, data = templates - centre, data - centre
    return (weight @ (templates**2).T - 2 * (weight * data) @ templates.T).argmin(1)


class Fit(NamedTuple):
    """Estimates (star, parameter), their chi-square (star,), and whether each has settled."""

    estimate: Tensor
    chi2: Tensor
    converged: Tensor


def maximum_likelihood(
    model: Model,
    data: Tensor,
    error: Tensor,
    start: Tensor,
    *,
    lower: Tensor,
    upper: Tensor,
    steps: int = 50,
    tolerance: float = 1e-3,
) -> Fit:
    """Fit every star's parameters within a box by damped Gauss-Newton steps, all stars at once.

    `scipy.optimize` fits one star at a time, which would call a network thousands of times.

    Args:
        model: (star, parameter) -> prediction (star, pixel), jacobian (star, pixel, parameter).
        data, error: (star, pixel); `start`: (star, parameter); `lower`, `upper`: (parameter,).
        tolerance: chi-square that the next step could still gain where a fit counts as converged.
    Raises:
        ValueError: the model's prediction at the start is not finite.
    Source: Levenberg 1944, Marquardt 1963, with Marquardt's scaling of the damping.
    """
    require(bool((lower < upper).all()), "lower", lower.tolist(), f"below upper = {upper.tolist()}")
    data = numbers(data, "data", ndim=2)
    error = positive(error, "error", shape=data.shape)
    start = numbers(start, "start", shape=(len(data), len(lower)))
    theta = start.double().clamp(lower, upper)
    state = [theta, *_expand(model, theta, data, error)]
    chi2, gradient, curvature = state[1:]
    numbers(chi2, "chi-square of model(start)")
    damping = torch.full_like(theta[:, :1], 1e-2)
    converged = torch.zeros(len(theta), dtype=torch.bool, device=theta.device)
    for _ in range(steps):
        at_wall = ((theta <= lower) & (gradient < 0)) | ((theta >= upper) & (gradient > 0))
        downhill = gradient.masked_fill(at_wall, 0)
        move = torch.linalg.solve(_damped(curvature, damping, at_wall), downhill)
        converged |= ((move * downhill).sum(-1) < tolerance) & (damping[:, 0] < 1)
        if converged.all():
            break
        trial = (theta + move).clamp(lower, upper)
        tried = [trial, *_expand(model, trial, data, error)]
        better = tried[1] < chi2
        for old, new in zip(state, tried, strict=True):  # theta, chi2, gradient, curvature
            old[better] = new[better]
        damping = torch.where(better[:, None], damping / 5, damping * 4).clamp(1e-9, 1e9)
    return Fit(theta, chi2, converged)


def _damped(curvature: Tensor, damping: Tensor, at_wall: Tensor) -> Tensor:
    """The matrix of a step, which leaves alone what is at a wall or has no influence."""
    size = curvature.diagonal(dim1=-2, dim2=-1)
    size = size.where(size > 0, 1.0)
    kept = curvature.masked_fill(at_wall[:, :, None] | at_wall[:, None, :], 0)
    return kept + torch.diag_embed(torch.where(at_wall, size, damping * size))


def _expand(
    model: Model, theta: Tensor, data: Tensor, error: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """chi-square, -1/2 its gradient, and 1/2 its Gauss-Newton curvature."""
    prediction, jacobian = model(theta)
    residual = ((data - prediction) / error).double()
    scaled = (jacobian / error[..., None]).double()
    gradient = torch.einsum("npk,np->nk", scaled, residual)
    return residual.square().sum(-1), gradient, scaled.mT @ scaled
