"""What each Langevin sampler makes of losses whose learning coefficient is known exactly.

Samplers that carry their divergence Gamma, or need none, find the truth. The other two sample
exp(..) / P to the extent that P follows the point: `psgld`, with P = 1 / |g| when its average is
short, then returns the number of coordinates whatever the singularity, and `si_div`, P = 1 / |w|^2,
an excess of the order of the draws' variance over |w*|^2; its P diverges besides, so that a draw
near w = 0 throws the chain far away.
"""

import math

import torch
from torch import Tensor

from fieldbook.samplers import llc, preconditioners, sgmcmc
from fieldbook.samplers.known import Problem, Setting


def build(sampler: str, problem: Problem) -> preconditioners.Preconditioner:
    """A sampler for a problem, by name.

    The damping of `rsgld` is 1 (an orbit's mean Fisher information), as it alone sets P where that
    information vanishes; that of `psgld` is a tenth of the largest typical gradient, as its chains
    start where the gradient is 0.
    """
    damping = 0.1 * float(_typical_gradient(problem).max())
    at = problem.w_star, problem.fisher, problem.orbits
    return preconditioners.named(sampler, *at, psgld_damping=damping)


def run(
    problem: Problem,
    preconditioner: preconditioners.Preconditioner,
    *,
    step: float,
    steps: int,
    chains: int,
    seed: int,
) -> tuple[Setting, Tensor]:
    """Independent chains from w*, a quarter of the steps burn-in: setting, losses (steps, chains).

    Args:
        step: eps P a in the stiffest direction, a = n_beta curvature + gamma A, with P at w* (for
            `psgld`, at a typical gradient); 0.1 biases a Gaussian direction by 2.5 percent.
    Raises:
        ValueError: `step` is 4 or more, where Euler's scheme is unstable.
    """
    p, a, _ = llc.first_metric(preconditioner, problem.w_star, _typical_gradient(problem))
    stiffness = p * (problem.n_beta * problem.curvature + problem.gamma * a)
    eps = step / float(stiffness.max())
    sgmcmc.require_stable(eps, stiffness)
    points = sgmcmc.chain(
        problem.gradient,
        problem.w_star.expand(chains, -1),
        preconditioner,
        torch.Generator().manual_seed(seed),
        eps=eps,
        n_beta=problem.n_beta,
        gamma=problem.gamma,
        steps=steps,
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
) -> dict[str, float | bool]:
    """One row of the table: the estimate next to the truth.

    The tolerance is three standard errors, no more than a tenth of the truth, and the bias of the
    step size in the stiffest direction, step/4 of the truth, or none where the truth includes it.
    Arguments as in `run`.
    """
    preconditioner = build(sampler, problem)
    setting, trace = run(problem, preconditioner, step=step, steps=steps, chains=chains, seed=seed)
    truth, truth_se = problem.truth(setting)
    found = llc.estimate(trace[:, None], n_beta=problem.n_beta, burn_in=setting.burn_in)
    estimate, se = (float(x) for x in found)
    tolerance = min(3 * math.hypot(se, truth_se), 0.1 * truth) + problem.step_bias * step * truth
    return {
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
    """Root mean square of each derivative: n_beta E[(dL/dw)^2] = E[d^2 L/dw^2] in equilibrium."""
    return (problem.curvature / problem.n_beta).sqrt()
