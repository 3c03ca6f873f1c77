# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Entropy: how much room there is at each loss
#
# Read the parameters of a network as the degrees of freedom of a physical system and its training
# loss $E$ as the energy. Then a number tells how many networks there are at each loss: the
# **Boltzmann entropy** $S(\log_{10} E)$, the logarithm of the volume of parameter space there.
# Zhang et al. [2025](https://arxiv.org/abs/2505.11411) sample it by *Wang-Landau molecular
# dynamics* and conclude that grokking ([Power et al. 2022](https://arxiv.org/abs/2201.02177)) is
# the slow relaxation of a glass: no entropy barrier lies between memorising and generalising, and
# at equal loss the roomier states generalise better.
#
# This chapter builds that sampler, proves it on potentials with a known entropy, and asks the same
# two questions of small transformers. It also shows what cannot be had instead: a histogram of the
# losses along a training run is cheap, looks similar, and is no entropy.
#
# *What you will see:* [estimate against truth](#known-potentials-first),
# [the entropy of trained networks' landscapes](#the-entropy-of-the-landscapes),
# [memorised networks let loose at their own loss](#memorised-networks-let-loose), and
# [the offline histogram beside the sampled curve](#the-offline-histogram-is-not-an-entropy).
#
# *In the library:* [samplers.landscape](../lib/fieldbook/samplers/landscape.py),
# [grokking.networks](../lib/fieldbook/grokking/networks.py),
# [samplers.potentials](../lib/fieldbook/samplers/potentials.py),
# [samplers.wang_landau](../lib/fieldbook/samplers/wang_landau.py).

# %% [markdown]
# ## Parameters
#
# Every parameter with its unit and accepted values. The defaults are the *quick* profile, which
# trains its one network itself if chapter *agop* has not left it.

# %% jupyter={"source_hidden": true} tags=["parameters", "hide-input"]
profile: str = "quick"  # names the output folder
networks: str = "quick"  # profile of chapter agop whose trained networks are sampled
train_missing: bool = True  # train networks that are not there; otherwise that is an error
operations: list[str] = ["add"]  # distinct, each one of {add, sub, mul, div}
seeds: int = 2  # independent S_hat per operation, in [2, 1000]
walkers: int = 4  # per seed in the Wang-Landau run, in [1, 1000]
low: float = -1.8  # lower wall, log10 of the loss in nats, below `high`, in [-8, 0]
high: float = -0.3  # upper wall, log10 of the loss in nats, in (-8, 0.4]
bins: int = 15  # between the walls, in [4, 1000]
melt: int = 40  # moves at the top, before cooling, in [1, inf)
cool: int = 100  # moves from the top to the bottom, in [40, inf)
steps: int = 30  # Wang-Landau moves per walker, in [1, inf)
relax: int = 60  # moves of a memorised network at its own loss, in [20, inf)
h: float = 7e-3  # time step in whitened coordinates, in (0, 1]
friction: float = 2.0  # rate at which momenta are refreshed, 1 / time, in (0, inf)
record_every: int = 20  # updates between records of the training run, in [1, inf)
truth_steps: int = 2000  # Wang-Landau moves per walker on known potentials, in [100, inf)
workers: int = 2  # processes of one thread each; changes no result; in [1, 1024]
shard: list[int] = [0, 1]  # [i, n]: run i of n that share the work; each in [0, inf)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from fieldbook.run import figures, parameters, paths
from fieldbook.run.chapter import start
from fieldbook.samplers import landscape
from fieldbook.grokking import networks as trained_networks
from fieldbook.nn.seeds import stream
from fieldbook.samplers import potentials
from fieldbook.samplers import wang_landau as wl

par, device, run = start("entropy")

# %% [markdown]
# ## The method
#
# Let $z$ be the parameters, $w(z)$ a prior density, and $x = \log_{10} E(z)$. The entropy is that
# of $x$,
#
# $$ S(x) = \ln \int w(z)\, \delta\bigl(x - \log_{10} E(z)\bigr)\, dz . $$
#
# It differs from the entropy of $E$ by a Jacobian, $S_x = S_E + \ln E + \mathrm{const}$. For $E =
# |z|^2/2$ in $d$ dimensions $S_E = (d/2 - 1) \ln E$, while $S_x = (d/2) \ln E$: the choice matters
# where $d$ is small, and is forgotten easily.
#
# **Walkers.** A walker moves under Langevin dynamics in the potential $\hat S(x(z)) - \ln w(z)$. If
# $\hat S = S$, it visits all $x$ alike. For a step of length $h$ part of the momentum is refreshed,
# the force kicks, the prior's own motion is followed exactly, and the force kicks again; a
# Metropolis test accepts the move or reverses the momentum ([Horowitz
# 1991](https://doi.org/10.1016/0370-2693(91)90812-5)). It removes the bias of a finite step.
# Proposals beyond the range of $x$ are refused, so that both ends are reflecting walls.
#
# **Histogram.** Where a walker is, $\hat S$ grows by $f$ times a smooth kernel ([Wang and Landau
# 2001](https://doi.org/10.1103/PhysRevLett.86.2050)). The factor $f$ is halved whenever all bins
# have been visited, and is $1/t$ once that is larger, $t$ being the visits per bin; without that
# last rule the error stops falling ([Belardinelli and Pereyra
# 2007](https://doi.org/10.1103/PhysRevE.75.046701)).
#
# **Mean force.** A loss landscape with $10^4$ parameters has hundreds of nats of entropy to climb,
# and a walker that diffuses crosses it slowly. A second estimate needs no crossing. For any vector
# field $y$ with $y \cdot \nabla x = 1$,
#
# $$ \frac{dS}{dx} = \bigl\langle \nabla \cdot y + y \cdot \nabla \ln w \bigr\rangle_x , \qquad y = \frac{\nabla x}{|\nabla x|^2} . $$
#
# The momentum $p$ of a walker is standard normal, hence the divergence is the mean of $p \cdot (y'
# - y)/h$ with $y'$ at the next proposal: the walker itself probes the curvature, and only gradients
# are needed ([Darve et al. 2008](https://doi.org/10.1063/1.2829861)). The momentum must be taken
# *before* the kick; after it, $|p|^2$ is too large by $(h\,\hat S' |\nabla x|)^2/4$, which biases
# the slope by percents.

# %% [markdown]
# ## Known potentials first
#
# The harmonic potential in 4, 10 and 30 dimensions has a straight line as its entropy. The second
# potential has two wells of unequal depth with a ridge between them, and harmonic walls in three
# further dimensions; its entropy follows from a quadrature. No prior is used here, and $\hat S$
# starts from zero. Each potential is sampled by several independent seeds of eight walkers.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
TRUTH_SEEDS, D_WELLS = 8, 4
POTENTIALS = {f"harmonic {d}": (potentials.harmonic, d, 0.45 / math.sqrt(d)) for d in (4, 10, 30)}
POTENTIALS["two wells"] = (potentials.two_wells, D_WELLS, 0.12)
TRUTH_GRID = wl.Grid(-0.5, 1.0, 15)

# %% [markdown]
# All walkers start in the lower well of the last potential, at several energies: of the other well
# they know nothing.


# %%
def one_well(d):
    """Eight walkers per seed at a = 1, (seeds, walkers, d)."""
    z = torch.zeros(TRUTH_SEEDS, 8, d, dtype=torch.float64)
    z[..., 0] = 1.0
    z[..., 1] = torch.linspace(0.9, 3.5, 8)
    return z


# %%
def sample_potential(job):
    """Wang-Landau on a known potential: its summary, and in `truth` its curves."""
    energy, d, step = POTENTIALS[job["potential"]]
    generator = torch.Generator().manual_seed(stream("truth", job["potential"]))
    w = wl.start(energy, one_well(d), generator)
    found = wl.wang_landau(
        energy, w, TRUTH_GRID, generator, steps=par.truth_steps, h=step, first=0.01 * d, flat=True
    )
    return {"truth_runs": truth_summary(found), "truth": curves_of(job["potential"], d, found)}


# %% [markdown]
# Each row holds the curve of one seed and the exact entropy, all with mean zero, since an entropy
# has no origin.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def exact_entropy(potential, d):
    """The entropy that is known, (bins,), mean zero."""
    of = potentials.two_wells_entropy if potential == "two wells" else potentials.harmonic_entropy
    s = of(TRUTH_GRID.centres(), d)
    return s - s.mean()


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def curves_of(potential, d, found):
    """Rows of `truth`, one per seed and bin."""
    force = wl.integrate(TRUTH_GRID, found.force)
    exact = exact_entropy(potential, d)
    return [
        {
            "potential": potential,
            "seed": seed,
            "log10_energy": x,
            "entropy": found.entropy[seed, b],
            "entropy_force": force[seed, b],
            "visits": found.visits[seed, b],
            "exact": exact[b],
        }
        for seed in range(TRUTH_SEEDS)
        for b, x in enumerate(TRUTH_GRID.centres().tolist())
    ]


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def truth_summary(found):
    """Flatness over the seeds' joint histogram, acceptance, last factor."""
    joint = float(wl.flatness(found.visits.sum(0)))
    return {"flatness": joint, "acceptance": found.acceptance, "factor": float(found.factor.max())}


# %% [markdown]
# ## The networks
#
# Each network is a two-layer transformer that chapter *agop* has trained on $a \circ b \bmod p$
# until it grokked. Its parameters are *whitened*: $z = \theta / s$, with $s$ the root mean square
# of each tensor of the trained network. The prior on $z$ is standard normal, which keeps the norm
# of every tensor near the trained one. In so many dimensions that is a fixed norm in all but name,
# and it is what makes volumes finite: without it a network could lower its loss for ever by scaling
# up its logits, and rescaling symmetries would make every volume infinite.
#
# A trained network is no typical state of its loss. Three stages lead to one that is closer:
#
# 1. *Heat*: mix the trained network with noise, $z = \cos a\, z^\ast + \sin a\, \xi$, until its
#    loss is near the upper wall, and let it move there.
# 2. *Cool*: draw it down through the range by a spring, measuring the mean force on the way. Its
#    integral is the first $\hat S$.
# 3. *Wang-Landau* from there, with several walkers per seed, taken from all heights of the way
#    down.
#
# The upper wall lies below $E = \ln p$, the loss of a network that answers nothing. There the
# gradient vanishes, the mean force grows beyond bounds, and walkers that reach this plateau do not
# come back. Test accuracy is the *strict* one of chapter *agop*, without mirrored pairs and zeros.

# %%
settings = parameters.of_profile("agop", par.networks)
files = {}
if not paths.frozen():
    files = trained_networks.trained(
        settings, par.operations, workers=par.workers, train_missing=par.train_missing
    )
grid = wl.Grid(par.low, par.high, par.bins)
jobs = [{"op": operation} for operation in par.operations]


# %% [markdown]
# Per operation: a training run is recorded, the landscape sampled, and a memorised network
# released. A killed run continues with the operation that it was at, and ends with the same bytes.


# %%
def record(job, folder):
    """The training path of one operation; leaves its memorised network in the folder."""
    return landscape.record_training(settings, job["op"], folder, par.record_every)


# %%
def explore(job):
    """The entropy of one operation: a summary, and in `landscape` its curves."""
    rows, summary = landscape.sample(
        settings,
        job["op"],
        files[job["op"]],
        grid,
        seeds=par.seeds,
        walkers=par.walkers,
        melt=par.melt,
        cool=par.cool,
        steps=par.steps,
        h=par.h,
        friction=par.friction,
    )
    return {"runs": summary, "landscape": rows}


# %%
def release(job):
    """Two walkers from a memorised network, held at its loss."""
    return landscape.relax(
        settings,
        job["op"],
        files[job["op"]],
        memorised[job["op"]],
        seeds=2,
        steps=par.relax,
        every=max(par.relax // 20, 1),
        h=2 * par.h,
        friction=par.friction,
    )


# %% [markdown]
# ### Estimate against truth
#
# The table gives for each potential the slope $dS/d\ln E$ (for the harmonic ones, $d/2$ is exact),
# the largest error of the mean curve over the seeds, the mean of (error / standard error)² over the
# bins, and the flatness of the joint histogram: its smallest count over its mean. If the spread
# over seeds is an honest error bar, that mean square is about $(n-1)/(n-3) = 1.4$ for $n = 8$
# seeds.

# %%
known = run.sweep("truth_runs", [{"potential": p} for p in POTENTIALS], sample_potential)
truth = run.frame("truth")
mean_truth = truth.groupby(["potential", "log10_energy"], sort=False).mean()


# %% jupyter={"source_hidden": true} tags=["hide-input"]
CURVES = {"histogram": "entropy", "force": "entropy_force", "exact": "exact"}


def slope_of(curve):
    """Least squares dS/d ln E."""
    return np.polyfit(curve.index * np.log(10), curve, 1)[0]


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def judge(potential):
    """Slopes, errors and calibration of one potential."""
    mean, rows = mean_truth.loc[potential], truth[truth.potential == potential]
    error = mean.entropy - mean.exact
    se = rows.groupby("log10_energy").entropy.sem()
    slopes = {f"slope, {name}": slope_of(mean[column]) for name, column in CURVES.items()}
    worst = error.abs().max()
    return {**slopes, "largest error, nat": worst, "(error / se)²": (error / se).pow(2).mean()}


# %%
judged = pd.DataFrame({name: judge(name) for name in POTENTIALS}).T
judged["flatness"] = known.set_index("potential").flatness
judged.round(2)

# %% jupyter={"source_hidden": true} mystnb={"image": {"alt": "Estimated and exact entropies of harmonic potentials and of two wells, and their differences"}} tags=["hide-input"]
LOOKS = {"harmonic 4": ("test", "o"), "harmonic 10": ("headline", "s")}
LOOKS |= {"harmonic 30": ("second", "^"), "two wells": ("control", "D")}
figure, axes = plt.subplots(1, 3, figsize=(figures.PAGE, 2.5))
for potential, (color, mark) in LOOKS.items():
    mean, ax = mean_truth.loc[potential], axes[int(potential == "two wells")]
    energy = 10.0 ** mean.index.to_numpy()
    ax.plot(energy, mean.exact - mean.exact.iloc[0], color="k", ls="-", lw=0.8)
    marks = {"marker": mark, "ls": "none", "color": figures.COLORS[color], "alpha": 0.8}
    ax.plot(energy, mean.entropy - mean.exact.iloc[0], label=potential, **marks)
    rows = truth[truth.potential == potential]
    errors = (rows.entropy - rows.exact).to_numpy().reshape(TRUTH_SEEDS, -1)
    figures.band(axes[2], energy, errors, figures.COLORS[color], ls="-")
axes[2].axhline(0, color="k", ls="-", lw=0.6)
for ax, title in zip(axes, ("harmonic", "two wells", "estimate - exact"), strict=True):
    figures.power_ticks(ax, "x")
    ax.set(title=title, xlabel="energy $E$", ylabel="entropy $S$, nat")
axes[2].set_ylabel("error, nat")
axes[0].legend()
figures.letter_panels(axes)
run.figure(figure, "truth")

# %% [markdown]
# Marks are the mean of the seeds, lines are exact, and the bands of panel (c) span the seeds. The
# two wells show their structure as a bend, where the second well opens below the ridge: a walker
# cannot know of it without having crossed.
#
# ### Without the bias potential
#
# The same walkers without $\hat S$ stay where the volume is. In thirty dimensions the lowest bin
# has $10^{-22}$ of the volume of the highest, so that no run of any length gets there.

# %%
generator = torch.Generator().manual_seed(0)
free = wl.start(potentials.harmonic, torch.ones(1, 8, 30, dtype=torch.float64) / 4, generator)
unbiased = wl.wang_landau(
    potentials.harmonic, free, TRUTH_GRID, generator, steps=500, h=0.1, first=0.0, flat=True
)
empty = int((unbiased.visits == 0).sum())
left_out = int((mean_truth.visits == 0).sum())
print(f"bins never visited: {empty} of {TRUTH_GRID.count} without, {left_out} with the bias")

# %% [markdown]
# ## The entropy of the landscapes
#
# What was sampled, and how well. *Overlap* is the cosine between the trained network and the
# walkers, after melting and after cooling: 1 for the trained network itself, 0 for an unrelated
# one. *Flatness* is 0 when a bin was never visited in the final stage.

# %%
trajectory = run.sweep("trajectory", jobs, record)
memorised = {}
for job in [] if paths.frozen() else jobs:
    memorised[job["op"]] = run.files("trajectory", job) / "memorised.safetensors"
runs = run.sweep("runs", jobs, explore)
sampled = run.frame("landscape")
relaxation = run.sweep("relaxation", jobs, release)
runs.round(3)

# %% [markdown]
# The tables in the results folder are `landscape.csv`, a row per operation, seed and bin, and
# `landscape_mean.csv`, where the seeds are combined: the standard error is a property of several
# seeds, so that it has no place in a row of one. Before averaging, each seed's curve is shifted to
# mean zero, and at the end all are shifted so that the upper wall has $S = 0$.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def combined(rows):
    """Mean over seeds and its standard error per bin, S = 0 in the highest bin."""
    bins_of = rows[rows.reached.eq(1) | (rows.reached.max() == 0)].groupby("log10_loss")
    out = bins_of[["entropy", "entropy_cooled", "entropy_force", "test_acc_mean"]].mean()
    out["entropy_se"] = bins_of.entropy.sem()
    out["visits"] = bins_of.visits.sum()
    curves = ["entropy", "entropy_cooled", "entropy_force"]
    out[curves] -= out[curves].iloc[-1]
    return out.reset_index()


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def mean_rows(job):
    """The combined curve of one operation."""
    return combined(sampled[sampled.op == job["op"]]).to_dict("records")


# %%
averaged = run.sweep("landscape_mean", jobs, mean_rows)
fall = averaged.groupby("op", sort=False).agg(
    histogram=("entropy", "min"),
    force=("entropy_force", "min"),
    cooled=("entropy_cooled", "min"),
    se=("entropy_se", "max"),
)
fall.round(0)

# %% [markdown]
# The fall of $S$ over the range, in nats, by three estimates: the Wang-Landau histogram, the mean
# force along the same walkers, and the mean force while cooling, from which the histogram started;
# the last column is the largest standard error over the seeds.
#
# In the figure each panel is an operation. The smoothed curve and its band, one standard error over
# the seeds, lie over the faint curves of the seeds; colour on the curve is the strict test accuracy
# of the states visited there. Crosses are the training path, placed at the height of the curve for
# its loss, in the colours of *its* accuracy: the path has no entropy of its own, only a loss.

# %% jupyter={"source_hidden": true} mystnb={"image": {"alt": "Sampled entropy against training loss per operation, coloured by strict test accuracy, with the training path"}} tags=["hide-input"]
SYMBOL = {"add": "$a + b$", "sub": "$a - b$", "mul": r"$a \times b$", "div": r"$a \div b$"}
COLOR = {"cmap": "plasma", "vmin": 0, "vmax": 1}


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_seeds(ax, op, one):
    """Faint curves, those of seeds that did not cool through the range left out."""
    rows = sampled[(sampled.op == op) & (sampled.reached.eq(1) | (sampled.reached.max() == 0))]
    for _, seed in rows.groupby("seed"):
        shifted = seed.entropy - seed.entropy.mean() + one.entropy.mean()
        ax.plot(10**one.log10_loss, shifted, color="0.7", lw=0.5, ls="-")


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_path(ax, op, one):
    """The training path at the height of the curve, a little above it."""
    within = trajectory.train_loss.between(10**par.low, 10**par.high)
    path = trajectory[(trajectory.op == op) & within]
    height = np.interp(np.log10(path.train_loss), one.log10_loss, one.entropy)
    height += 0.12 * np.ptp(one.entropy)
    accuracy = path.test_acc_strict
    ax.scatter(path.train_loss, height, c=accuracy, marker="x", s=9, lw=0.8, **COLOR)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_entropy(ax, op):
    """Curve with band, seeds, and training path of one operation."""
    one = averaged[averaged.op == op]
    loss, se = 10**one.log10_loss, one.entropy_se
    curve = figures.smooth(one.entropy, 3)
    draw_seeds(ax, op, one)
    draw_path(ax, op, one)
    ax.fill_between(loss, curve - se, curve + se, color="0.6", alpha=0.3, lw=0)
    ax.plot(loss, curve, color="0.4", lw=0.8, ls="-")
    return ax.scatter(loss, curve, c=one.test_acc_mean, s=14, zorder=3, **COLOR)


WIDTH = figures.PAGE if len(par.operations) > 1 else 4.4

# %% jupyter={"source_hidden": true} tags=["hide-input"]
across = len(par.operations)
figure, axes = plt.subplots(1, across, figsize=(WIDTH, 2.5), sharey=True, squeeze=False)
for ax, op in zip(axes.flat, par.operations, strict=True):
    points = draw_entropy(ax, op)
    figures.power_ticks(ax, "x")
    ax.xaxis.set_minor_formatter(plt.NullFormatter())
    ax.set(
        title=SYMBOL[op],
        xlabel="train loss, nat",
        xlim=(10 ** math.floor(par.low), 10 ** math.ceil(par.high)),
    )
axes[0, 0].set_ylabel("entropy $S$, nat")
figure.colorbar(points, ax=axes, label="strict test accuracy", pad=0.01)
figures.letter_panels(axes.flat)
run.figure(figure, "landscape")

# %% [markdown]
# The entropy rises by hundreds of nats within the range of losses, and by how many differs from
# seed to seed. Per unit of $\ln E$ the slope at low losses is of the size of a learning
# coefficient, tens to hundreds, and far below half the number of parameters: nearly all directions
# are free.

# %% [markdown]
# ## Memorised networks let loose
#
# If a barrier of entropy separated memorising from generalising, a memorised network that moves
# freely *at the loss it has* would stay as it is until a rare event takes it across. Take the
# training path at its first record with a train accuracy above 99 %, hold $\log_{10} E$ there by a
# spring, and let the walker move under the same prior. Panel (a) shows its strict test accuracy;
# the dashed line is the accuracy of the sampled states at this loss, or at the upper wall if that
# is lower. Panel (b) shows the mean of $z^2$, which is 1 for typical states of the prior and large
# for the memorised network, whose weights are far larger than those of the trained one.

# %% jupyter={"source_hidden": true} mystnb={"image": {"alt": "Strict test accuracy and norm of memorised networks that move at fixed loss"}} tags=["hide-input"]
OP_COLOR = {"add": "test", "sub": "headline", "mul": "second", "div": "control"}
figure, (left, right) = plt.subplots(1, 2, figsize=(figures.PAGE, 2.4))
equilibrium = {}
for op in par.operations:
    one, color = averaged[averaged.op == op], figures.COLORS[OP_COLOR[op]]
    held = relaxation[relaxation.op == op]
    equilibrium[op] = np.interp(
        held.log10_loss.iloc[0], one.log10_loss, one.test_acc_mean.interpolate()
    )
    for ax, column in ((left, "test_acc_strict"), (right, "norm2")):
        table = held.pivot(index="seed", columns="step", values=column)
        figures.band(ax, table.columns, table, color, label=SYMBOL[op], ls="-")
    left.axhline(equilibrium[op], color=color, ls="--", lw=0.7)
left.set(title="accuracy", ylabel="strict test accuracy", ylim=(-0.03, 1), xlabel="moves")
right.set(title="size of the weights", ylabel="mean of $z^2$", xlabel="moves", ylim=(0, None))
left.legend(ncols=2)
figures.letter_panels((left, right))
run.figure(figure, "relaxation")

# %% [markdown]
# ## The offline histogram is not an entropy
#
# Where only the checkpoints of a training run are at hand, as in the research log that this book
# follows, a shortcut offers itself: count how many lie in each bin of $\log_{10} E$ and take the
# logarithm. This *offline* variant looks like the result of Wang-Landau, but the weights it sees
# were placed by an optimiser, and no rule links how long AdamW stays at a loss to how many networks
# have it. Two recordings of one and the same training run show it: at even intervals, and at
# logarithmic ones, as checkpoints often are kept. If the count measured a property of the
# landscape, both would agree.


# %%
def recordings(path):
    """The same run recorded evenly, and as often at logarithmic intervals (a record may repeat)."""
    later = path[path.step > 0]
    spaced = np.geomspace(1, len(later), len(later)).round().astype(int) - 1
    return later.train_loss.to_list(), later.train_loss.iloc[spaced].to_list()


# %%
wide = wl.Grid(-3.0, 0.6, 12)
paths_of = {op: trajectory[trajectory.op == op] for op in par.operations}
offline = {
    op: [wl.offline_histogram(r, wide) for r in recordings(path)] for op, path in paths_of.items()
}


# %% jupyter={"source_hidden": true} mystnb={"image": {"alt": "Offline histograms of one training run, recorded in two ways, beside the sampled entropy"}} tags=["hide-input"]
RECORDED = ("even", "logarithmic"), ("test", "headline"), "os"
shared = {"sharex": True, "sharey": "row", "squeeze": False}
figure, axes = plt.subplots(2, across, figsize=(WIDTH, 3.4), **shared)
for (upper, under), op in zip(axes.T, par.operations, strict=True):
    for counts, label, color, mark in zip(offline[op], *RECORDED, strict=True):
        shown = counts.where(counts.isfinite(), math.nan).numpy()
        look = {"color": figures.COLORS[color], "marker": mark, "ls": "-", "lw": 0.8}
        upper.plot(10 ** wide.centres().numpy(), shown, label=label, **look)
    one = averaged[averaged.op == op]
    under.plot(10**one.log10_loss, one.entropy, color="k", ls="-")
    figures.power_ticks(under, "x")
    upper.set_title(SYMBOL[op])
    under.set(xlabel="train loss, nat", xlim=(1e-3, 4))
axes[0, 0].set_ylabel("ln of checkpoints")
axes[1, 0].set_ylabel("entropy $S$, nat")
title = "checkpoints of one training run, recorded at intervals that are"
figures.legend_once(axes[0, 0], above=figure, title=title)
figures.letter_panels(axes.flat)
run.figure(figure, "offline")

# %% [markdown]
# The upper panels span a few units, whatever the landscape, for the logarithm of a count cannot
# exceed that of the number of checkpoints. The sampled entropy below spans hundreds. Where an
# offline curve is highest depends on when the run was recorded: at low losses, where training ends
# and waits, or at high ones, where a logarithmic schedule looks most often. The sampled entropy is
# lowest where training ends.

# %% [markdown]
# ## Claims
#
# Claims about networks are tested where training memorises before it generalises and where the
# sampler had some time, from the profile *laptop* on.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
tested = len(par.operations) > 1 and par.steps >= 100
PAPER, LOG = "Zhang et al. 2025: ", "offline: checkpoints in place of a sampler"


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def each(values, digits=2):
    """`add 0.31, sub 0.20, ..`"""
    return ", ".join(f"{op} {value:.{digits}f}" for op, value in values.items())


# %% [markdown]
# First the sampler itself.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
slopes = judged.drop("two wells").filter(like="slope")
off = slopes.div(slopes["slope, exact"], axis=0).sub(1).abs().max() * 100
ours = f"histogram within {off.iloc[0]:.1f} %, force within {off.iloc[1]:.1f} %"
text = "the slope of S is found within 5 % on harmonic potentials"
run.claim(text, "exact: d/2", ours, off.max() < 5)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
worst = judged.loc["two wells", "largest error, nat"]
ours = f"largest error {worst:.2f} nat over {np.ptp(mean_truth.loc['two wells'].exact):.1f} nat"
run.claim("two wells are found within 0.5 nat", "exact: quadrature", ours, worst < 0.5)
text = "without the bias potential part of the range is never visited"
ours = f"{empty} of {TRUTH_GRID.count} bins"
run.claim(text, "exact: a volume ratio of 10^-22", ours, empty > 0)

# %% [markdown]
# Then its result on networks. The two estimates share the walkers and nothing else: one counts
# visits, the other measures forces.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
gap = (fall.histogram / fall.force - 1).abs()
text = "histogram and mean force agree within 25 % on networks"
run.claim(text, "not given", f"differences {each(gap)}", gap.max() < 0.25, tested)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
spread = fall.se / fall.histogram.abs()
ends = sampled[sampled.reached.eq(1)].groupby(["op", "seed"]).entropy.agg(["first", "last"])
falls = (ends["last"] - ends["first"]).groupby("op", sort=False).agg(["min", "max"])
each_fall = ", ".join(f"{op} {a:.0f} to {b:.0f} nat" for op, a, b in falls.itertuples())
ours = f"largest standard error over the fall: {each(spread)}; a seed's fall: {each_fall}"
run.claim("S is known within 10 % over the seeds", "not given", ours, spread.max() < 0.1, tested)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
flat = runs.set_index("op").flatness
text = "the histogram of losses is flat (smallest over mean count above 0.5)"
run.claim(text, f"{PAPER}converged", each(flat), flat.min() > 0.5, tested)

# %% [markdown]
# *No entropy barrier*, in two forms. At fixed loss: the accuracy of released memorised networks
# grows, without a time of waiting. And in the loss itself: where two phases coexist, $S_E(E)$ is
# not concave. With $\sigma = dS_x/d\ln E$ concavity means $d\ln(\sigma - 1)/d\ln E < 1$, and a
# steeper rise is a *convex intruder*, the mark of a first-order transition.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
thirds = relaxation.assign(third=relaxation.step * 3 // (relaxation.step.max() + 1))
grown = thirds.groupby(["op", "third"], sort=False).test_acc_strict.mean().unstack("third")
gain = grown[2] - grown[0]
ours = f"last third minus first: {each(gain)}; sampled states have {each(equilibrium)}"
text = "memorised networks generalise at fixed loss (strict accuracy gains 0.05)"
run.claim(text, f"{PAPER}no entropy barrier", ours, (gain > 0.05).all(), tested)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def steepest(op):
    """Largest d ln(sigma - 1) / d ln E of the curve smoothed over five bins."""
    one = averaged[averaged.op == op]
    energy = one.log10_loss.to_numpy() * math.log(10)
    sigma = np.gradient(figures.smooth(one.entropy, 5), energy)
    return np.gradient(np.log(np.maximum(sigma - 1, 1)), energy)[3:-3].max()


# %% jupyter={"source_hidden": true} tags=["hide-input"]
bends = {op: steepest(op) for op in par.operations}
text = "S(E) is concave over the range: no two phases coexist (exponent below 1)"
ours = f"largest exponent {each(bends)}"
run.claim(text, f"{PAPER}no first-order transition", ours, max(bends.values()) < 1, tested)

# %% [markdown]
# *High-entropy states generalise better*: at equal loss, the sampled states are compared with the
# training path at the moment when its loss first comes down to that value. The sampled states are
# those of highest entropy at this loss, and the path is one that an optimiser found.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def advantage(op):
    """Strict accuracy of sampled states minus that of the path, per bin."""
    one, path = averaged[averaged.op == op], paths_of[op]
    there = landscape.first_passage(path.train_loss, path.test_acc_strict, 10**one.log10_loss)
    return pd.Series(one.test_acc_mean.to_numpy() - there, index=one.log10_loss).dropna()


# %% jupyter={"source_hidden": true} tags=["hide-input"]
ahead = {op: advantage(op) for op in par.operations}
for name, first, last in (("above 0.3", math.log10(0.3), 0.0), ("below 0.1", -9.0, -1.0)):
    means = {op: a.loc[first:last].mean() for op, a in ahead.items()}
    text = f"at equal loss ({name}) high-entropy states beat the training path (by 0.05)"
    ours = f"strict accuracy, sampled minus path: {each(means)}"
    run.claim(text, f"{PAPER}high-entropy advantage", ours, min(means.values()) > 0.05, tested)

# %% [markdown]
# Last, the offline way.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
differences = {op: (even - other).abs() for op, (even, other) in offline.items()}
changes = {op: float(d[d.isfinite()].max()) for op, d in differences.items()}
text = "an offline histogram is a property of the landscape (two recordings agree within 0.5)"
run.claim(text, LOG, f"largest change {each(changes)}", max(changes.values()) < 0.5)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def rank_correlation(op):
    """Spearman correlation of the offline histogram with the sampled entropy, over its bins."""
    one = averaged[averaged.op == op]
    counts = offline[op][0][wide.bins(torch.tensor(one.log10_loss.to_numpy()))]
    return pd.Series(counts.numpy()).corr(pd.Series(one.entropy.to_numpy()), method="spearman")


# %% jupyter={"source_hidden": true} tags=["hide-input"]
trends = {op: rank_correlation(op) for op in par.operations}
text = "an offline histogram follows the sampled entropy (rank correlation above 0.5)"
run.claim(text, LOG, each(trends), min(trends.values()) > 0.5, tested)

# %%
claims = run.claims()
claims.set_index("claim").rename_axis(None)

# %% tags=["nbval-check-output", "remove-cell"]
print("\n".join(f"{row.verdict:<16}{row.claim}" for row in claims.itertuples()))

# %% [markdown]
# ## What the offline way gets wrong
#
# - **A histogram over checkpoints is no entropy.** Wang-Landau counts visits of walkers that would
#   be uniform in volume but for $\hat S$, and $\hat S$ is corrected until the count is flat. A
#   training run has neither property. Its count changes by units when the same run is recorded at
#   other intervals, and its order is the wrong way round: an optimiser waits where the loss is low,
#   which is where there is least room.
# - **Its scale is wrong by orders of magnitude.** With $n$ checkpoints the logarithm of a count is
#   at most $\ln n$, a handful of nats, where the landscape spans hundreds.
# - **Smoothing and error bands do not help.** A soft band over several training seeds shows how
#   alike the runs are, not how well an entropy is known.
#
# ## Limits
#
# The numbers for networks are estimates from short runs, and the failed claims above say how short.
# In the final stage a walker diffuses over a part of the range only, so that the histogram of one
# run is not flat; what fixes $S$ is then mostly the mean force, and the gap between the two
# estimates is the honest error, larger than the band over the seeds where all seeds share a bias.
# The runs of the profile *paper* are hundreds of times longer for that reason.
#
# All walkers descend from one trained network, and the overlap shows that they still resemble it:
# heating stops below the plateau on which a network answers nothing, and what is sampled is the
# entropy of that network's own region. Other solutions, permuted copies among them, would add a
# constant if they are alike, and more if they are not. Seeds need not agree either: one that takes
# a steeper branch near the top, with lower accuracy, shifts the mean by more than the band of the
# others, and may bend the averaged curve as two phases would. Where the accuracy of a released
# memorised network grows, some way leads down from one kind of state to the other; that does not
# prove it free of small barriers, and where it does not grow, the run may just be too short: most
# of the way lies beyond the end of the run. Part of it is the decay of the norm, which the prior
# imposes as weight decay does in training.
#
# The prior matters. Another one, for instance that of the initial weights, weighs the same networks
# differently, and its $S$ is another function. The strict test sets are small, a few dozen pairs,
# so that one accuracy is uncertain by several percent. At low losses the training path has grokked
# itself, so that little advantage is left there.

# %% jupyter={"source_hidden": true} tags=["nbval-ignore-output", "hide-input"]
run.finish()
