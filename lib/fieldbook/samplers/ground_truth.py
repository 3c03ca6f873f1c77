"""What each Langevin sampler makes of losses whose learning coefficient is known exactly.

Samplers that carry their divergence Gamma, or need none, find the truth. The other two sample
exp(..) / P to the extent that P follows the point: `psgld`, with P = 1 / |g| when its average is
short, then returns the number of coordinates whatever the singularity, and `si_div`, P = 1 / |w|^2,
an excess of the order of the draws' variance over |w*|^2; its P diverges besides, so that a draw
near w = 0 throws the chain far away.
"""

import math
from functools import partial

import torch
from torch import Tensor

from fieldbook.samplers import llc, preconditioners, problems, sgmcmc
from fieldbook.samplers.problems import Problem, Setting

PROBLEMS = {
    "quadratic": problems.quadratic,
    "monomials": problems.monomial,
    "normal crossing": problems.normal_crossing,
    "reduced rank": partial(problems.linear_network, [3, 2, 2]),
    "deep linear": partial(problems.linear_network, [3, 2, 2, 3]),
}
PROPER = ("sgld", "rsgld", "si_sgld", "si_adaptive")  # they sample the density they state


def build(sampler: str, problem: Problem) -> preconditioners.Preconditioner:
    """A sampler for a problem, by name.

    The damping of `rsgld` is 1 (an orbit's mean Fisher information), as it alone sets P where that
    information vanishes; that of `psgld` is a tenth of the largest typical gradient, as its chains
    start where the gradient is 0.
    """
    damping = 0.1 * float(_typical_gradient(problem).max())
    return preconditioners.named(
        sampler, problem.w_star, problem.fisher, problem.orbits, psgld_damping=damping
    )


def run(
    problem: Problem,
    preconditioner: preconditioners.Preconditioner,
    *,
    step: float,
    steps: int,
    chains: int,
    seed: int,
) -> tuple[Setting, Tensor]:
    """Independent chains from w*; a quarter of the steps is burn-in.

    Args:
        step: eps P a in the stiffest direction, a = n_beta curvature + gamma A, with P at w* (for
            `psgld`, at a typical gradient); 0.1 biases a Gaussian direction by 2.5 percent.
    Returns:
        the setting, and the losses (steps, chains).
    Raises:
        ValueError: `step` is 4 or more, where Euler's scheme is unstable.
    """
    init, update = preconditioner
    metric, _ = update(init(problem.w_star), problem.w_star, _typical_gradient(problem))
    p, a = (x.to(problem.w_star).expand_as(problem.w_star) for x in metric[:2])
    stiffness = p * (problem.n_beta * problem.curvature + problem.gamma * a)
    eps = step / float(stiffness.max())
    sgmcmc.require_stable(eps, stiffness)
    start, generator = problem.w_star.expand(chains, -1), torch.Generator().manual_seed(seed)
    points = sgmcmc.chain(
        problem.gradient,
        start,
        preconditioner,
        generator,
        eps=eps,
        n_beta=problem.n_beta,
        gamma=problem.gamma,
        steps=steps,
        common_noise=False,
    )
    return Setting(p, a, eps, steps, steps // 4), torch.stack([losses for losses, _ in points])


def compare(
    problem: Problem,
    sampler: str,
    *,
    step: float = 0.08,
    steps: int = 4000,
    chains: int = 400,
    seed: int = 0,
) -> dict[str, float | str | bool]:
    """One row of the table: the estimate next to the truth.

    The tolerance is three standard errors, no more than a tenth of the truth, and the bias of the
    step size in the stiffest direction, step/4 of the truth, or none where the truth includes it.
    Arguments as in `run`.
    """
    setting, trace = run(
        problem, build(sampler, problem), step=step, steps=steps, chains=chains, seed=seed
    )
    truth, truth_se = problem.truth(setting)
    estimate, se = (
        float(x)
        for x in llc.estimate(trace[:, None], n_beta=problem.n_beta, burn_in=setting.burn_in)
    )
    tolerance = min(3 * math.hypot(se, truth_se), 0.1 * truth) + problem.step_bias * step * truth
    return {
        "problem": problem.name,
        "sampler": sampler,
        "n_beta": problem.n_beta,
        "gamma": problem.gamma,
        "eps": setting.eps,
        "steps": steps,
        "chains": chains,
        "lambda": problem.coefficient,
        "multiplicity": problem.multiplicity,
        "truth": truth,
        "truth_se": truth_se,
        "estimate": estimate,
        "se": se,
        "tolerance": tolerance,
        "within": abs(estimate - truth) <= tolerance,
    }


def _typical_gradient(problem: Problem) -> Tensor:
    """Root mean square of each derivative: n_beta E[(dL/dw)^2] = E[d^2 L/dw^2] under exp(-n_beta
    L)."""
    return (problem.curvature / problem.n_beta).sqrt()
