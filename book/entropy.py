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
# # How much room is there at each loss, and do the networks there generalise?
#
# Measured is the entropy $S$: the logarithm of how much of parameter space has a training loss.

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
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from scipy.stats import chi2
from torch import nn

from fieldbook.run import figures, ledger, parameters
from fieldbook.run.chapter import start
from fieldbook.samplers import entropy_experiment, landscape
from fieldbook.samplers import wang_landau as wl

par, device, run = start("entropy")

# %%
tables = entropy_experiment.run_all(run, par, parameters.of_profile("agop", par.networks))

# %% jupyter={"source_hidden": true} tags=["hide-input"]
NAME = {"add": "sums", "sub": "differences", "mul": "products", "div": "quotients"}
curves = tables["curves"].assign(loss=10 ** tables["curves"].log10_loss)
falls = -curves.groupby(["op", "seed"], sort=False)[entropy_experiment.ESTIMATES].first()
fall = falls.groupby("op", sort=False).entropy.agg(["mean", "sem", "size"])
by_loss = curves.groupby(["op", "log10_loss"], sort=False)
middle = by_loss[["loss", "entropy", "test_acc_mean"]].mean()
middle["se"] = by_loss.entropy.sem()
runs_of = dict(list(tables["trajectory"].groupby("op", sort=False)))
released = tables["relaxation"]
third = (released.step * 3 // (released.step.max() + 1)).rename("third")
late = released[third == 2].groupby("op", sort=False).mean()
tested = len(par.operations) > 1 and par.steps >= 100


def each(values, errors=None, digits=2):
    """`sums 0.31 ± 0.10, quotients 0.20 ± 0.05`"""
    texts = {op: f"{NAME[op]} {value:.{digits}f}" for op, value in values.items()}
    for op, error in {} if errors is None else errors.items():
        texts[op] += f" ± {error:.{digits}f}" if np.isfinite(error) else " (one run)"
    return ", ".join(texts.values())


def loss_axis(panel, heading):
    """Decades of the train loss."""
    figures.power_ticks(panel, "x")
    panel.xaxis.set_minor_formatter(plt.NullFormatter())
    panel.set(title=heading, xlabel="train loss, nat")


# %% jupyter={"source_hidden": true} tags=["answer", "hide-input"]
ends = f"{falls.entropy.min():.0f} to {falls.entropy.max():.0f} nats"
overlap = tables["runs"].set_index("op").overlap_cooled
run.answer(
    f"From a training loss of {curves.loss.max():.2f} nats down to {curves.loss.min():.3f} the "
    f"entropy falls by hundreds of nats ({each(fall['mean'], fall['sem'], 0)}; mean and standard "
    f"error over {par.seeds} seeds each): low losses have very little room, but how little is "
    f"uncertain, since single seeds fall by {ends}. Whether networks in roomy places generalise "
    "is **not known**: all walkers start from a grokked network and still resemble it (overlap "
    f"{each(overlap)}, where 1 is that network). Memorised networks that move at their own loss "
    f"(about {10 ** late.log10_loss.mean():.1f}, above that range) still fail on most strict test "
    f"pairs after {released.step.max()} moves (accuracy {each(late.test_acc_strict)}), unsettled.",
    tested=tested,
)

# %% jupyter={"source_hidden": true} mystnb={"image": {"alt": "Sampled entropy against training loss per operation, coloured by strict test accuracy, with the training run as crosses above the curve"}} tags=["hide-input"]
ACCURACY = {"cmap": "plasma", "vmin": 0, "vmax": 1}
WIDTH = figures.PAGE if len(par.operations) > 1 else 4.4
LIMITS = 10 ** math.floor(par.low), 10 ** math.ceil(par.high)


def draw_entropy(ax, op, curve):
    """Mean curve with its band, sampled states as dots, the training run as crosses above."""
    line = np.r_[curve.entropy.iloc[0], figures.smooth(curve.entropy, 3)[1:-1], 0.0]
    ax.fill_between(curve.loss, line - 2 * curve.se, line + 2 * curve.se, color="0.9", lw=0)
    ax.plot(curve.loss, line, color="0.4", lw=0.8, ls="-")
    path = runs_of[op][runs_of[op].train_loss.between(*curve.loss.iloc[[0, -1]])]
    at = path.train_loss, np.full(len(path), 120)
    ax.scatter(*at, c=path.test_acc_strict, marker="x", s=14, lw=0.8, label="training", **ACCURACY)
    return ax.scatter(curve.loss, line, c=curve.test_acc_mean, s=18, label="sampled", **ACCURACY)


across = len(par.operations)
figure, axes = plt.subplots(1, across, figsize=(WIDTH, 2.4), sharey=True, squeeze=False)
for ax, op in zip(axes.flat, par.operations, strict=True):
    for _, seed in curves[curves.op == op].groupby("seed"):
        ax.plot(seed.loss, seed.entropy, color="0.7", lw=0.5, ls="-")
    points = draw_entropy(ax, op, middle.loc[op])
    loss_axis(ax, NAME[op])
    ax.set(xlim=LIMITS, ylim=(None, 200))
axes[0, 0].set_ylabel("entropy $S$, nat")
axes[0, 0].legend(loc="lower right")
figure.colorbar(points, ax=axes, label="strict test accuracy", pad=0.01)
figures.letter_panels(axes.flat)
run.figure(figure, "landscape")

# %% [markdown]
# *Entropy around one grokked network per operation, $S = 0$ at the upper wall for each seed. Thin
# lines: seeds. Line and band: their mean over three bins, and two standard errors. Dots: states of
# walkers; crosses, above: the training run. Colour: strict test accuracy, no mirrors and zeros.*
#
# ## Why it is asked
#
# Read a network's parameters as the degrees of freedom of a physical system and its training loss
# $E$ as the energy: the *Boltzmann entropy* tells how many networks there are at each loss. [Zhang
# et al. 2025](https://arxiv.org/abs/2505.11411) sample it for networks that grok ([Power et al.
# 2022](https://arxiv.org/abs/2201.02177)), over training loss and test accuracy together, and
# conclude that no barrier of entropy lies between memorising and generalising, and that at equal
# loss states of high entropy generalise better. [The log](logs.md#grokking) drew such curves from
# the checkpoints of a training run, without a sampler, and wanted them smoother.
#
# ## How an entropy is sampled
#
# Let $z$ be the parameters, $w(z)$ a prior density, and $x = \log_{10} E(z)$. The entropy is
#
# $$ S(x) = \ln \int w(z)\, \delta\bigl(x - \log_{10} E(z)\bigr)\, dz . $$
#
# A walker moves by Langevin dynamics in the potential $\hat S(x) - \ln w(z)$, with a Metropolis
# test ([Horowitz 1991](https://doi.org/10.1016/0370-2693(91)90812-5)). Where it is, $\hat S$ grows
# a little ([Wang and Landau 2001](https://doi.org/10.1103/PhysRevLett.86.2050)), ever less as time
# goes on ([Belardinelli and Pereyra 2007](https://doi.org/10.1103/PhysRevE.75.046701)); once all
# $x$ are visited alike, $\hat S = S$. That is the *histogram*. The same moves give the *mean
# force*, which needs no crossing of the range ([Darve et al.
# 2008](https://doi.org/10.1063/1.2829861)):
#
# $$ \frac{dS}{dx} = \bigl\langle \nabla \cdot y + y \cdot \nabla \ln w \bigr\rangle_x , \qquad y = \frac{\nabla x}{|\nabla x|^2} . $$
#
# Here is the sampler on a whole network, small enough to be checked by counting: 22 parameters, of
# a normal prior with standard deviation 2, that may learn *exclusive or*. The second row counts a
# hundred thousand random networks by their loss; both agree within a few tenths of a nat.

# %%
xor = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]]), torch.tensor([0, 1, 1, 0])
network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
energy = landscape.loss_of(network, torch.tensor(2.0), *xor)  # at weights 2 z
grid = wl.Grid(-0.8, 0.0, 8)
generator = torch.Generator().manual_seed(0)
drawn = torch.randn(100_000, 1, 22, generator=generator)
x = energy(drawn)[0].log10()[:, 0]
walkers = wl.start(energy, drawn[grid.inside(x)][:64].view(2, 32, 22), generator)
found = wl.wang_landau(energy, walkers, grid, generator, steps=1000, h=0.1)
counted = grid.bins(x[grid.inside(x)]).bincount(minlength=8).log()

# %% jupyter={"source_hidden": true} tags=["hide-input"]
both = {"sampled": found.entropy.mean(0), "counted": counted.double() - counted.mean()}
both = pd.DataFrame({name: s.tolist() for name, s in both.items()})
both.index = pd.Index([f"{10**x:.2f}" for x in grid.centres().tolist()], name="loss, nat")
both.round(1).T.rename_axis("entropy, nat, mean 0")

# %% [markdown]
# In a transformer with tens of thousands of parameters hundreds of nats must be climbed. There
# $z = \theta / s$, with $s$ the root mean square of each tensor of a grokked network, under a
# standard normal prior that keeps the norm of each tensor near the trained one. Walkers start as
# mixtures of that network and noise at the upper wall, are drawn down by a spring (*cooling*, whose
# mean force is the first $\hat S$), and then diffuse. The upper wall lies below the loss of a
# network that answers nothing, from which none returns. Code:
# [sampler](../lib/fieldbook/samplers/wang_landau.py),
# [landscape](../lib/fieldbook/samplers/landscape.py), [all
# runs](../lib/fieldbook/samplers/entropy_experiment.py), [grokked
# networks](../lib/fieldbook/grokking/networks.py).
#
# ## On known potentials the sampler is right
#
# Marks lie on the lines, with errors within a few tenths of a nat.

# %% jupyter={"source_hidden": true} mystnb={"image": {"alt": "Estimated and exact entropies of harmonic potentials and of two wells, and their differences"}} tags=["hide-input"]
truth = tables["truth"].assign(energy=10 ** tables["truth"].log10_energy)
truth["error"] = truth.entropy - truth.exact
MARKS = zip(truth.potential.unique(), "os^D", (*plt.cm.viridis([0.8, 0.5, 0.2]), "k"), strict=True)
figure, (left, right) = plt.subplots(1, 2, figsize=(figures.PAGE, 2.4))
for potential, mark, color in MARKS:
    rows = truth[truth.potential == potential]
    mean = rows.groupby("energy")[["entropy", "exact"]].mean()
    mean -= mean.exact.iloc[-1]
    left.plot(mean.exact, color=color, ls="-", lw=0.8)
    left.plot(mean.entropy, marker=mark, ls="none", color=color)
    look = {"color": color, "marker": mark, "linestyle": "-", "lw": 0.8, "errorbar": ("se", 2)}
    sns.lineplot(rows, x="energy", y="error", ax=right, label=potential, legend=False, **look)
figures.legend_once(right, above=figure, title="potential, and its dimensions where harmonic")
for ax, title in ((left, "entropy $S$, nat"), (right, "estimate minus exact, nat")):
    figures.power_ticks(ax, "x")
    ax.set(title=title, xlabel="energy $E$", ylabel="nat")
figures.letter_panels((left, right))
run.figure(figure, "truth")

# %% [markdown]
# *(a) Lines: exact, 0 at the highest energy; marks: mean of eight seeds, each with eight walkers.
# (b) Bands: two standard errors over the seeds, curves aligned at their means.*
#
# [Potentials](../lib/fieldbook/samplers/potentials.py) of known entropy ask for slopes of $d/2$ in
# $d$ dimensions, and for a second well of which no walker knew. A slope off by 5 %, or half a nat
# at the ridge, would have refuted the sampler. Without $\hat S$ walkers stay where the volume is,
# of which the lowest bin has $10^{-21}$ in 30 dimensions.
#
# ## Entropy falls by hundreds of nats, and seeds disagree on how many
#
# Three estimates agree for one seed, seeds differ by up to a factor of 2.5, no histogram is flat.

# %% jupyter={"source_hidden": true} mystnb={"image": {"alt": "The fall of entropy over the range by three estimates and seed, and the visits per bin of each seed"}} tags=["hide-input"]
LOOK = {"entropy": ("histogram", "headline"), "entropy_force": ("mean force", "second")}
LOOK |= {"entropy_cooled": ("mean force while cooling", "null")}
named = {name: label for name, (label, _) in LOOK.items()}
colors = {label: figures.COLORS[color] for label, color in LOOK.values()}
long = falls.rename(columns=named).melt(ignore_index=False, var_name="estimate", value_name="fall")
long = long.reset_index().assign(operation=lambda rows: rows.op.map(NAME))
shared = {"x": "operation", "y": "fall", "hue": "estimate", "palette": colors, "hue_order": colors}
figure, (left, right) = plt.subplots(1, 2, figsize=(figures.PAGE, 2.4))
sns.stripplot(long, ax=left, dodge=True, size=4, jitter=False, alpha=0.6, legend=False, **shared)
bars = {"dodge": 0.53, "linestyle": "none", "markers": "_", "err_kws": {"lw": 1, "ls": "-"}}
sns.pointplot(long, ax=left, errorbar=("se", 2), **bars, **shared)
left.set(title="fall of $S$ over the range", xlabel="", ylabel="nat", ylim=(0, None))
left.legend(title=None, loc="lower right")
share = curves.visits / curves.groupby(["op", "seed"]).visits.transform("mean")
seeds = curves.assign(share=share).groupby(["op", "seed"], sort=False)
for _, seed in seeds:
    right.plot(seed.loss, seed.share, color=figures.COLORS["headline"], ls="-", lw=0.7, alpha=0.7)
right.axhline(1, color="k", ls="--", lw=0.8)
loss_axis(right, "visits per bin, each seed")
right.set(ylabel="over their mean (flat: 1)", xlim=LIMITS)
figures.letter_panels((left, right))
run.figure(figure, "falls")

# %% [markdown]
# *(a) Dots: seeds; bars: mean and two standard errors. (b) A line per seed, in its last stage.*
#
# That the estimates agree is largely built in: the histogram starts from the mean force of cooling,
# and few moves follow to change it. Seeds differ: their walkers need not have come down through the
# same part of the landscape. In the last stage none was in the highest bin, and in two seeds of the
# quotients three and five bins were empty: there $S$ rests on cooling.
#
# Where two phases coexist, $S_E(E)$ is not concave: with $\sigma = dS_x/d\ln E$ the exponent
# $d\ln(\sigma - 1)/d\ln E$ passes 1. The plane of loss and test accuracy was not sampled.
#
# ## Walkers from a grokked network keep more accuracy than from a memorised one
#
# Compare where walkers started, not how much room there is.


# %% jupyter={"source_hidden": true} mystnb={"image": {"alt": "Strict test accuracy against training loss for sampled states, for the training run, and for released memorised networks"}} tags=["hide-input"]
START = [f"walkers from the {kind} network" for kind in ("grokked", "memorised")]
figure, axes = plt.subplots(1, across, figsize=(WIDTH, 2.4), sharey=True, squeeze=False)
for ax, (op, path) in zip(axes.flat, runs_of.items(), strict=True):
    levels = np.geomspace(0.01, path.train_loss.max(), 60)
    passed = landscape.first_passage(path.train_loss, path.test_acc_strict, levels)
    ax.plot(levels, passed, color=figures.COLORS["train"], ls="-", label="training run")
    look = {"color": figures.COLORS["headline"], "marker": "o", "linestyle": "-"}
    shown = {"x": "loss", "y": "test_acc_mean", "errorbar": ("se", 2), "label": START[0]}
    sns.lineplot(curves[curves.op == op], ax=ax, legend=False, **shown, **look)
    look = {"color": figures.COLORS["control"], "marker": "D", "ls": "none"}
    ax.plot(10 ** late.log10_loss[op], late.test_acc_strict[op], label=START[1], **look)
    loss_axis(ax, NAME[op])
    ax.set(ylabel="strict test accuracy", ylim=(-0.02, 1.05))
figures.legend_once(axes[0, 0], above=figure)
figures.letter_panels(axes.flat)
run.figure(figure, "accuracy")

# %% [markdown]
# *Training run: accuracy when its loss first comes down to a value. Bands: two standard errors over
# seeds. Diamond: two walkers, mean of the last third of their moves.*
#
# Sampled states are far more accurate than the training run at high losses, and seem less so at the
# lowest (one run, a few dozen test pairs). Neither says anything about room: the sampled ones are a
# grokked network with noise, while the training run memorises first and groks later. If high
# entropy made networks generalise, walkers from a memorised network would reach the same accuracy
# at the same loss. That was not sampled over this range; released at a higher loss, they stay near
# where they began. Until both starts meet, an advantage of high entropy is *not tested*.
#
# ## Memorised networks let loose are far from settled
#
# They begin where 99 % of the train pairs turn right, which is at a loss above the sampled range.
# Accuracy hardly moves, while the size of the weights is still coming down.

# %% jupyter={"source_hidden": true} mystnb={"image": {"alt": "Strict test accuracy and mean square of the weights of memorised networks that move at fixed loss"}} tags=["hide-input"]
held = released.assign(operation=released.op.map(NAME))
figure, axes = plt.subplots(1, 2, figsize=(figures.PAGE, 2.2))
for ax, column in zip(axes, ("test_acc_strict", "norm2"), strict=True):
    look = {"color": figures.COLORS["control"], "style": "operation", "errorbar": ("pi", 100)}
    sns.lineplot(held, x="step", y=column, ax=ax, **look)
axes[0].set(title="accuracy", ylabel="strict test accuracy", ylim=(-0.02, 1), xlabel="moves")
axes[1].set(title="size of the weights", ylabel="mean of $z^2$", xlabel="moves", ylim=(0, None))
axes[1].axhline(1, color="k", ls="-", lw=0.8)
axes[1].text(0, 1.1, "typical of the prior", fontsize=7, va="bottom")
axes[0].legend(title=None)
axes[1].get_legend().remove()
figures.letter_panels(axes)
run.figure(figure, "relaxation")

# %% [markdown]
# *Two walkers each, held by a spring at the loss of the memorised network; bands span both.*
#
# Behind a barrier of entropy a memorised network would stay as it is until a rare event. Accuracy
# that grows at once would speak against one; that stays once weights are typical, for one.
#
# ## A histogram of checkpoints is no entropy
#
# Recorded evenly, it runs the wrong way; it spans a few units, and changes with the intervals.


# %% jupyter={"source_hidden": true} mystnb={"image": {"alt": "Offline histograms of one training run, recorded in two ways"}} tags=["hide-input"]
def recordings(path):
    """The same run recorded evenly, and as often at logarithmic intervals (a record may repeat)."""
    later = path[path.step > 0]
    spaced = np.geomspace(1, len(later), len(later)).round().astype(int) - 1
    return later.train_loss.to_list(), later.train_loss.iloc[spaced].to_list()


wide = wl.Grid(-3.0, 0.6, 12)
offline = {op: [wl.offline_histogram(r, wide) for r in recordings(runs_of[op])] for op in runs_of}
figure, axes = plt.subplots(1, across, figsize=(WIDTH, 2.2), sharey=True, squeeze=False)
for ax, op in zip(axes.flat, par.operations, strict=True):
    for counts, label, face in zip(offline[op], ("even", "logarithmic"), (None, "w"), strict=True):
        shown = counts.where(counts.isfinite(), math.nan).numpy()
        look = {"color": figures.COLORS["train"], "marker": "o", "ls": "-", "lw": 0.8, "mfc": face}
        ax.plot(10 ** wide.centres().numpy(), shown, label=label, **look)
    loss_axis(ax, NAME[op])
axes[0, 0].set_ylabel("ln of checkpoints")
figures.legend_once(axes[0, 0], above=figure, title="recorded at intervals that are")
figures.letter_panels(axes.flat)
run.figure(figure, "offline")

# %% [markdown]
# *Logarithm of the checkpoints per bin of the loss, for one training run recorded twice.*
#
# An optimiser placed these weights, and no rule links how long it stays at a loss to how many
# networks have it. Were the count a property of the landscape, both recordings would agree, and
# rise by hundreds as the sampled entropy does.
#
# ## Claims

# %% jupyter={"source_hidden": true} tags=["hide-input"]
fits = truth.groupby(["potential", "seed"], sort=False)[["entropy", "entropy_force", "exact"]]
slopes = fits.apply(
    lambda rows: pd.Series(np.polyfit(np.log(truth.energy.unique()), rows, 1)[0], list(rows))
)
slopes = slopes.div(slopes.exact, axis=0).drop(columns="exact").drop("two wells")
slopes = slopes.groupby("potential", sort=False)
off = 100 * (slopes.mean() - 1).abs().max()
run.claim(
    "the slope of S is found within 5 % on harmonic potentials",
    f"histogram within {off.entropy:.1f} %, mean force within {off.entropy_force:.1f} % (8 seeds)",
    of="theory",
    source="exact: d/2",
    section="on-known-potentials-the-sampler-is-right",
    reason="a slope is half a number of dimensions: 5 % tells 20 from 21",
    estimate=slopes.mean().to_numpy().ravel(),
    error=slopes.sem().to_numpy().ravel(),
    above=0.95,
    below=1.05,
)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
wells = truth[truth.potential == "two wells"].groupby("energy").error
worst = wells.mean().abs().max()
run.claim(
    "two wells are found within 0.5 nat",
    f"largest error {worst:.2f} nat, at most {wells.sem().max():.2f} of standard error (8 seeds)",
    of="theory",
    source="exact: quadrature",
    section="on-known-potentials-the-sampler-is-right",
    reason="volumes right within a factor of 1.6",
    estimate=wells.mean(),
    error=wells.sem(),
    above=-0.5,
    below=0.5,
)
empty = int((tables["unbiased"].visits == 0).sum())
run.claim(
    "without the bias potential part of the range is never visited",
    f"{empty} of {truth.energy.nunique()} bins never visited, in 30 dimensions; with it, none",
    of="theory",
    source="exact: a volume ratio of 10^-21",
    section="on-known-potentials-the-sampler-is-right",
    holds=empty > 0 and truth.visits.min() > 0,
)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
ratio = (falls.entropy / falls.entropy_force).groupby("op", sort=False)
run.claim(
    "histogram and mean force agree within 25 % on networks",
    f"fall by the one over that by the other: {each(ratio.mean(), ratio.sem())}; largely built in, "
    "as the histogram starts from the mean force of cooling",
    of="ours",
    section="entropy-falls-by-hundreds-of-nats-and-seeds-disagree-on-how-many",
    tested=False,
)
relative = fall["sem"] / fall["mean"]
spread = [np.sqrt((fall["size"] - 1) / chi2.ppf(q, fall["size"] - 1)) for q in (0.975, 0.025)]
run.claim(
    "the fall of S is known within 10 % (standard error over the seeds of the sampler)",
    f"standard error over the fall: {each(relative)}; single seeds fall by {ends}",
    of="ours",
    section="entropy-falls-by-hundreds-of-nats-and-seeds-disagree-on-how-many",
    reason="less would not tell operations apart; the interval is that of a spread of so few seeds",
    estimate=relative,
    interval=tuple(relative * factor for factor in spread),
    below=0.1,
    tested=tested,
    first=True,
)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
rarest = seeds.share.min()
unseen = (curves.visits == 0).groupby([curves.op, curves.seed], sort=False).sum()
run.claim(
    "the histogram of losses is flat for every seed (smallest over mean count above 0.5)",
    f"so in {(rarest > 0.5).sum()} of {len(rarest)} seeds; largest {rarest.max():.2f}; of "
    f"{par.bins} bins {unseen.min()} to {unseen.max()} never visited",
    of="ours",
    section="entropy-falls-by-hundreds-of-nats-and-seeds-disagree-on-how-many",
    reason="a usual mark of convergence; Zhang et al. report converged curves",
    holds=bool((rarest > 0.5).all()),
    tested=tested,
)
curves["smooth"] = curves.groupby(["op", "seed"]).entropy.transform(figures.smooth, width=5)
bends = curves.groupby(["op", "seed"], sort=False)[["log10_loss", "smooth"]]
bends = bends.apply(lambda one: pd.Series(landscape.bending(*one.to_numpy().T)[3:-3]))
bends = bends.groupby("op", sort=False)
largest = each(bends.mean().max(axis=1))
run.claim(
    "S(E) is concave over the range: no two phases coexist (exponent below 1 at every loss)",
    f"largest mean exponent {largest}; standard errors up to {bends.sem().max(axis=None):.2f}",
    of="ours",
    source="after Zhang et al. 2025: no first-order transition, over loss and test accuracy",
    section="entropy-falls-by-hundreds-of-nats-and-seeds-disagree-on-how-many",
    estimate=bends.mean().to_numpy().ravel(),
    error=bends.sem().to_numpy().ravel(),
    below=1.0,
    tested=tested,
)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
means = released.groupby(["op", "seed", third], sort=False).test_acc_strict.mean().unstack()
gain = (means[2] - means[0]).groupby("op", sort=False)
text = f"last third minus first: {each(gain.mean(), gain.sem())}; not settled: mean of z squared is"
run.claim(
    "memorised networks generalise at fixed loss (strict accuracy gains 0.05)",
    f"{text} still {each(late.norm2, digits=1)}, where 1 is typical",
    of="paper",
    source="Zhang et al. 2025: no entropy barrier",
    section="memorised-networks-let-loose-are-far-from-settled",
    reason="two to three test pairs of the few dozen",
    estimate=gain.mean(),
    error=gain.sem(),
    above=0.05,
    tested=tested and bool((late.norm2 < 1.1).all()),
)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
there = [
    landscape.first_passage(runs_of[op].train_loss, runs_of[op].test_acc_strict, one.loss)
    for op, one in curves.groupby("op", sort=False)
]
ahead = curves.assign(ahead=curves.test_acc_mean - np.concatenate(there)).dropna(subset="ahead")
lowest = ahead[ahead.loss == curves.loss.min()].groupby("op", sort=False).ahead.mean()
for name, chosen in (("above 0.3", ahead.loss > 0.3), ("below 0.1", ahead.loss < 0.1)):
    per_seed = ahead[chosen].groupby(["op", "seed"], sort=False).ahead.mean()
    per_op = per_seed.groupby("op", sort=False)
    found = f"walkers from the grokked network minus path: {each(per_op.mean(), per_op.sem())}"
    if name == "below 0.1":
        found += f"; at the lowest loss {each(lowest)}"
    run.claim(
        f"at equal loss ({name}) high-entropy states beat the training path (by 0.05)",
        f"{found}; no walker started elsewhere, so that this is the start, not the entropy",
        of="paper",
        source="Zhang et al. 2025: high-entropy advantage",
        section="walkers-from-a-grokked-network-keep-more-accuracy-than-from-a-memorised-one",
        tested=False,
        first=name == "above 0.3",
    )

# %% jupyter={"source_hidden": true} tags=["hide-input"]
differences = {op: (even - other).abs() for op, (even, other) in offline.items()}
changes = pd.Series({op: float(d[d.isfinite()].max()) for op, d in differences.items()})
run.claim(
    "an offline histogram is a property of the landscape (two recordings agree within 0.5)",
    f"largest change {each(changes)}",
    of="log",
    entry="grokking-2",
    source="a curve from the checkpoints of a training run, in place of a sampler",
    section="a-histogram-of-checkpoints-is-no-entropy",
    reason="counts within a factor of 1.6",
    holds=bool((changes < 0.5).all()),
)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
trends = {}
for op, one in middle.reset_index().groupby("op", sort=False):
    places = wide.bins(torch.tensor(one.log10_loss.to_numpy()))
    counts = [pd.Series(counted[places].numpy(), one.index) for counted in offline[op]]
    trends[op] = [one.entropy.corr(count, method="spearman") for count in counts]
trends = pd.DataFrame(trends, ["even", "logarithmic"]).T
run.claim(
    "an offline histogram follows the sampled entropy (rank correlation above 0.5)",
    f"{each(trends.even)} (one run each); at logarithmic intervals {each(trends.logarithmic)}",
    of="log",
    entry="grokking-1",
    source="its curve was to be smoothed and its error band softened",
    section="a-histogram-of-checkpoints-is-no-entropy",
    reason="half of full agreement",
    estimate=trends.even.mean(),
    error=trends.even.sem(),
    above=0.5,
    tested=tested,
    first=True,
)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
ledger.table(run.claims())

# %% jupyter={"source_hidden": true} tags=["nbval-check-output", "remove-cell"]
print("\n".join(f"{row.verdict:<16}{row.claim}" for row in run.claims().itertuples()))

# %% [markdown]
# ## What the log had wrong, and right
#
# - *Wrong: a histogram over checkpoints is no entropy.* Wang-Landau corrects $\hat S$ until visits
#   are even. A training run waits where the loss is low, which is where there is least room.
# - *Wrong: its scale.* With $n$ checkpoints the logarithm of a count is at most $\ln n$, a handful
#   of nats, where the landscape spans hundreds.
# - *Right: the figure.* Ticks at powers of ten, a smoothed curve and a soft band make it readable.
#   A band over training runs shows how alike these are, not how well an entropy is known.
#
# ## Look for yourself
#
# In JupyterLab, choose an operation and an estimate, and see each seed with its accuracies.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
if "JPY_SESSION_NAME" in os.environ:  # set by JupyterLab alone
    from ipywidgets import interact

    @interact(operation=[NAME[op] for op in par.operations], estimate=list(colors))
    def show_seeds(operation, estimate):
        figure, ax = plt.subplots(figsize=(4.4, 2.6))
        chosen = curves[curves.op.map(NAME) == operation].rename(columns=named)
        for _, seed in chosen.groupby("seed"):
            ax.plot(seed.loss, seed[estimate], color="0.7", lw=0.8, ls="-")
            points = ax.scatter(seed.loss, seed[estimate], c=seed.test_acc_mean, s=14, **ACCURACY)
        figure.colorbar(points, label="strict test accuracy")
        loss_axis(ax, operation)
        ax.set(ylabel="entropy $S$, nat", xlim=LIMITS)
        plt.show()


# %% [markdown]
# ## Limits
#
# - *One start.* All walkers descend from one trained network per operation, one sample. What is
#   sampled is that network's own region, under one prior; other solutions would add to it.
# - *Short runs.* In the last stage a walker crosses a part of the range only, so that what fixes
#   $S$ is mostly the mean force. Strict test sets are a few dozen pairs.
#
# ## Parameters and cost

# %% jupyter={"source_hidden": true} tags=["hide-input"]
run.parameters()

# %% jupyter={"source_hidden": true} tags=["nbval-ignore-output", "hide-input"]
run.finish()
