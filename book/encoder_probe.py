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
# # What does a denoiser that was trained without labels know about gravity?
#
# Measured is how well a ridge regression reads a star's surface gravity off the latents of a
# network that has only ever been asked to guess pixels from their neighbours.

# %% jupyter={"source_hidden": true} tags=["parameters", "hide-input"]
profile: str = "quick"  # names the output folder
data_dir: str = ""  # folder of HDF5 files in the log's layout; empty to synthesise spectra
checkpoint: str = ""  # Lightning file of a trained denoiser with sigma; empty to train it here
grid: str = "small"  # stars that the synthesiser covers, one of {small, full}
rv_kms: float = 100.0  # largest radial velocity of a synthesised star, km/s, in [0, 300]
n_pretrain: int = 256  # spectra without labels for the denoiser, in [32, inf)
n_train: list[int] = [256]  # spectra with labels for the probes, ascending, each in [32, inf)
n_val: int = 128  # spectra that choose penalties and epochs, in [16, inf)
n_test: int = 256  # spectra that are reported on, in [16, inf)
n_denoised: int = 64  # test spectra that are denoised, in [16, inf)
n_limits: int = 32  # stars for the ceiling, in [8, inf)
noise_level: float = 1.0  # factor on the spectra's errors, in (0, 100]
n_layers: int = 3  # of the encoder after the first one, in [2, 12]
channels: int = 8  # in [1, 1024]
kernel: int = 5  # pixels, in [1, 255]
loss: str = "nll"  # of the denoiser, one of {nll, laplace, huber, supervised}
steps: int = 40  # updates of the denoiser, in [1, inf)
batch_size: int = 8  # spectra per update of the denoiser, in [1, inf)
lr: float = 5e-3  # of the denoiser, in (0, 1]
lr_output: float = 10.0  # factor for scale and offset of its output, in (0, 1000]
precision: str = "auto"  # one of {auto, fp32, bf16, fp16}
poolings: list[str] = [
    "global_mean",
    "mean_max",
    "seg_mean_K8",
]  # distinct, or global_max, flatten, seg_mean_K4
pooling: str = "seg_mean_K8"  # of the comparisons after the table, one of `poolings`
heads: list[str] = ["ridge", "trees", "mlp_1"]  # distinct, or mlp_2, linear
seeds: int = 1  # realisations of the train noise, each with its own heads, in [1, 100]
tune_steps: int = 8  # updates of fine-tuning, in [1, inf)
tune_batch: int = 16  # spectra per update of fine-tuning, in [1, inf)
tune_lr: float = 1e-3  # of the head in fine-tuning, in (0, 1]
tune_encoder: float = 0.3  # factor for the encoder in fine-tuning, in (0, 1]
workers: int = 1  # processes of one thread each; changes no result; in [1, 1024]
shard: list[int] = [0, 1]  # [i, n]: run i of n that share the work; each in [0, inf)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
import os
from functools import partial
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch

from fieldbook.run import figures, ledger
from fieldbook.run.chapter import start
from fieldbook.nn import machine
from fieldbook.spectra import probe_experiment, probes
from fieldbook.spectra.blindspot import BlindSpotUNet

par, device, run = start("encoder_probe")

# %%
tables = probe_experiment.run_all(run, par, device)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
LAST, SEEN = par.n_train[-1], "with sigma"  # of what the encoder sees
ENTERS, LEAVES = probe_experiment.ENTERS, probe_experiment.LEAVES
SOURCES = {
    "error": "error of the pixels, no network",
    "with sigma": "latents of flux and error",
    "without sigma": "latents of flux",
    "flux": "raw flux, no network",
    "untrained": "latents, untrained network",
    "sigma alone": "latents of error, flux constant",
}
colors = ("control", "headline", "test", "null", "train")
COLOR = {name: figures.COLORS[color] for name, color in zip(SOURCES.values(), colors, strict=False)}
probe, example = tables["probe"], tables["spectrum"]
main = probe_experiment.usual(probe, par)
main = main.assign(source=main.source.map(SOURCES))
linear = main[(main["head"] == "ridge") & (main.encoder != "sigma alone")]
ceiling, ceiling_se = probe_experiment.ceiling(tables["ceiling"], par.grid)
score = linear[linear.n_train == LAST].groupby("source").r2.mean()
tested = par.grid == "full" and LAST >= 2048
of_log = tested and LAST >= 100_000  # its labels, without which its scores are not tested

# %% jupyter={"source_hidden": true} tags=["answer", "hide-input"]
size = tables["denoisers"].set_index("encoder").n_params["without sigma"]
run.answer(
    f"Something. With {LAST:,} labelled stars a ridge regression reads R² ="
    f" {score[SOURCES['without sigma']]:.2f} off the latents of a network of {size:,} parameters"
    f" that was shown the noisy flux alone; the noise would allow {ceiling:.2f}. Of two networks"
    f" that see flux and error the trained one gives {score[SOURCES[SEEN]]:.2f}, the untrained one"
    f" {score[SOURCES['untrained']]:.2f}. Whether latents tell more than the flux itself"
    f" ({score[SOURCES['flux']]:.2f}) is **undecided**: both saw one noisy copy of each star, and"
    " further copies may lift either. The log shows its encoder the error of each pixel as well,"
    f" and that error gives {score[SOURCES['error']]:.2f} by itself, without any network.",
    tested=tested,
)

# %% jupyter={"source_hidden": true} mystnb={"image": {"alt": "Test R2 of ridge regression on five sources of features: highest for the error of the pixels, beyond the ceiling of the flux; then latents of flux and error, latents of flux, raw flux, and latents of an untrained network"}} tags=["hide-input"]
figure, ax = plt.subplots(figsize=(figures.PAGE, 2.2))
look = {"x": "r2", "y": "source", "hue": "source", "palette": COLOR, "legend": False}
look |= {"order": list(COLOR), "errorbar": ("se", 2), "linestyle": "none", "ax": ax}
look["err_kws"] = {"lw": 1, "ls": "-", "zorder": 1}
for n in par.n_train[-2:]:
    rows = linear[linear.n_train == n]
    sns.pointplot(rows, markerfacecolor=None if n == LAST else "white", **look)
for place, name in enumerate(COLOR):
    ax.text(score[name], place - 0.3, f"{score[name]:.2f}", ha="center", fontsize=7)
ax.axvline(ceiling, color="k", lw=0.8)
ax.text(ceiling - 0.01, 3.9, "ceiling of the flux", ha="right", fontsize=7)
few = f" (open: {par.n_train[-2]:,})" if len(par.n_train) > 1 else ""
ax.set(xlabel=f"test $R^2$ of ridge regression, {LAST:,} labels{few}", ylabel="", xlim=(None, 1))
ax.set_ylim(len(COLOR) - 0.5, -0.8)
run.figure(figure, "sources")

# %% [markdown]
# *Surface gravity from five sources of features. Bars are two standard errors over draws of the
# noise of the labelled stars; there is one network of each kind. The error of a pixel has no noise
# of its own and may pass the ceiling, which bounds what noisy flux can tell.*
#
# ## Why it is asked
#
# A network that learns to remove noise from stellar spectra needs no labels. To guess a pixel from
# its neighbours it has to find out what kind of star it looks at, so its latents might hold the
# surface gravity $\log g$. [The log](logs.md#encoder) freezes such a denoiser, pools its latents to
# 384 numbers, and reports $R^2 = 0.55$ for ridge regression and $0.47$ for a small network on top,
# from 100,000 stars. It compares with no model that reads the spectrum itself. Here scores stand
# beside the same regression on raw flux, beside an untrained network, and beside the ceiling that
# the noise sets ([Van Trees 1968](https://doi.org/10.1002/0471221090)). One more control matters
# most: the log's encoder is also shown the error of each pixel.
#
# ## Method
#
# A U-Net of causal convolutions runs over the spectrum and over its mirror image; one branch knows
# the pixels left of the $i$-th alone, the other those right of it ([Laine et al.
# 2019](https://arxiv.org/abs/1901.10277)). Joined, they predict a mean $\mu_i$ and a spread $s_i$
# of the clean flux. The loss compares with the noisy flux $y_i$, whose error $\sigma_i$ is known,
#
# $$ \mathcal{L} = -\sum_i \log \mathcal{N}\left(y_i;\; \mu_i,\; s_i^2 + \sigma_i^2\right) . $$
#
# Since the noise of a pixel says nothing about its neighbours, the best answer is the clean flux.
# To copy $y_i$ is impossible: its slope is exactly zero, but for what BatchNorm lets through in
# training. A probe ([spectra.probes](../lib/fieldbook/spectra/probes.py)) freezes such a network
# ([spectra.blindspot](../lib/fieldbook/spectra/blindspot.py)), pools its latents, channels ×
# positions, to a vector, and fits a regression on that. Here the network is not even trained, the
# spectra are 600 noisy copies of one star of this page, and the label is how deep its lines are:

# %%
generator = torch.Generator().manual_seed(0)
depth = torch.rand(600, generator=generator)
lines = torch.tensor((example.clean / example.clean.max() - 1).to_numpy(np.float32))
noisy = 1 + depth[:, None] * lines + 0.1 * torch.randn(600, len(lines), generator=generator)
network = BlindSpotUNet(n=4, e=16, k=9, input_sigma=False)
(latents,) = probes.features(network, noisy, None, [probes.View(pooling="seg_mean_K8")])
parts = [(latents[rows], depth[rows]) for rows in map(slice, (0, 300, 400), (300, 400, 600))]
print(f"R² = {probes.probe('ridge', *parts)['r2']:.2f} from {latents.shape[1]} features")

# %% [markdown]
# The rest of this page is that, with networks trained on the spectra of chapter
# [spectra_vit](spectra_vit.ipynb): 4,096 pixels in the far red, with radial velocities
# ([spectra.probe_experiment](../lib/fieldbook/spectra/probe_experiment.py)). One network sees flux
# and error, as the log's does, one the flux alone, and one keeps its initial weights. Heads are
# ridge regression, 400 boosted trees and the log's small networks, all on the same features. Unless
# said otherwise latents are those that enter the last layer of the encoder, of one direction.
#
# ## It removes more noise than its rivals
#
# To see: both networks lie above both rivals in every bin, and all fall where the noise is weak,
# since what a method gets wrong by itself stays. Gain is the root-mean-square error of the noisy
# flux over that of the estimate, in units of $\sigma$
# ([spectra.denoising](../lib/fieldbook/spectra/denoising.py)). The estimate joins the blind guess
# with what the own pixel says, weighted by their variances.

# %% jupyter={"source_hidden": true} mystnb={"image": {"alt": "Gain in signal to noise of the methods in bins of signal to noise"}} tags=["hide-input"]
gains = tables["denoise"]
METHODS = {
    "posterior, with sigma": ("network, flux and error", COLOR[SOURCES[SEEN]], "o"),
    "posterior, without sigma": ("network, flux", COLOR[SOURCES["without sigma"]], "s"),
    "components": ("principal components", figures.COLORS["second"], "^"),
    "window": ("smoothing", "#8C6D46", "v"),
}
whole = gains[gains.high - gains.low == gains.high.max()].set_index("method")
binned = gains[(gains.high - gains.low < gains.high.max()) & (gains.n > 1)]
figure, ax = plt.subplots(figsize=(figures.COLUMN * 1.5, 2.3))
for method, (name, color, mark) in METHODS.items():
    rows = binned[binned.method == method]
    look = {"color": color, "marker": mark, "label": name, "ls": "-"}
    ax.errorbar((rows.low + rows.high) / 2, rows.gain, 2 * rows.gain_se, lw=1, **look)
ax.axhline(1, color=figures.COLORS["null"], lw=0.8)
ax.text(2.3, 0.95, "noisy flux", va="top", fontsize=7)
ax.set(xlabel="S/N per pixel", ylabel="gain in S/N", ylim=(0, None))
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
run.figure(figure, "gain")

# %% [markdown]
# *Means over test spectra in bins of S/N, with two standard errors; one network of each kind.
# Widths and numbers of components are those that gain most on validation spectra; smoothing fits
# polynomials in a moving window ([Savitzky and Golay 1964](https://doi.org/10.1021/ac60214a047)).*
# A rival above both networks would have refuted it.
#
# ## In this star the network that sees the error puts lines too shallow and too red
#
# To see: the minima of the orange line lie to the right of those of the clean flux, and higher.

# %% jupyter={"source_hidden": true} mystnb={"image": {"alt": "A spectrum around the calcium triplet in three panels: noisy, denoised by the two networks, and by principal components, each with the clean flux"}} tags=["hide-input"]
PANELS = {
    "Noisy flux": ["noisy flux"],
    "Networks: flux and error (orange), flux alone (blue)": list(METHODS)[:2],
    "Principal components": ["components"],
}
figure, axes = plt.subplots(3, 1, figsize=(figures.PAGE, 3.6), sharex=True, sharey=True)
for ax, (title, shown) in zip(axes, PANELS.items(), strict=True):
    for method in shown:
        color = METHODS.get(method, ("", COLOR[SOURCES["flux"]]))[1]
        ax.plot(example.wavelength, example[method], color=color, lw=0.9, ls="-")
    ax.plot(example.wavelength, example.clean, color="k", lw=0.6, ls="-")
    ax.vlines(probe_experiment.TRIPLET, 0, 1, color="0.5", lw=0.6, ls=":")
    ax.set_title(title, loc="left")
ax.set_ylim(example.clean.min() - 0.12, example.clean.max() + 0.15)
ax.set(xlabel="vacuum wavelength, Å", xlim=example.wavelength.iloc[[0, -1]])
figure.supylabel("flux", fontsize=8)
run.figure(figure, "spectrum")

# %% [markdown]
# *One test star of S/N 8 around the calcium triplet. Dotted: the three lines at rest. Noisy flux,
# and one spike of the principal components, run out of the frame.* How far the minimum of each line
# lies from that of the clean flux, in Å, where one Å is 35 km/s:

# %% jupyter={"source_hidden": true} tags=["hide-input"]
moved = probe_experiment.moved(example).loc[list(METHODS)[:3]]
moved.rename(index={name: METHODS[name][0] for name in moved.index}).round(1)

# %% [markdown]
# The network that sees the error puts lines 2 to 3 Å too red, some 70 to 100 km/s. This star
# approaches, and where its velocity is uncertain a cautious guess leans towards rest, as principal
# components do; but the orange minima lie beyond rest, which caution does not explain. The network
# that sees flux alone is off by more than an Å at one line of three. One star cannot tell an offset
# of a network from bad luck: that needs many stars. Lines at their places would refute the title.
#
# ## Of two networks the trained one tells more of gravity
#
# To see, in the first figure: the untrained network, shown flux and error, is far to the left of
# the same one after training. That speaks for training, not convolutions and pooling as such; one
# network of each kind does not decide. Marks at one place would refute it.
#
# ## Whether latents beat raw flux is undecided
#
# Latents cannot hold more than the flux that they are computed from; they can make it easier to
# find. With one noisy copy of each labelled star they are ahead in the first figure. But the
# network was trained on fresh noise at every update, and the regression on flux was not. In chapter
# [spectra_vit](spectra_vit.ipynb) eight noisy copies of 1,024 labelled stars lift a ridge
# regression on flux by more than the whole difference here. Latents of such copies may rise too;
# neither is measured on this page. Equal copies, and several networks, would decide it.
#
# ## Finer pooling keeps more of gravity
#
# To see: points rise from left to right for every head. A mean over the whole spectrum forgets
# which line was deep, and gravity is a matter of which line.

# %% jupyter={"source_hidden": true} mystnb={"image": {"alt": "Test R2 against pooling, from one mean to segments of the spectrum, for each head and both layers"}} tags=["hide-input"]
POOLS = {"global_mean": "mean", "global_max": "maximum", "mean_max": "mean and\nmaximum"}
POOLS |= {f"seg_mean_K{k}": f"{k}\nsegments" for k in (4, 8, 32)} | {"flatten": "all\npositions"}
HEADS = {"ridge": ("ridge", "k"), "trees": ("trees", "#E69F00"), "linear": ("line", "0.6")}
HEADS |= {"mlp_1": ("network", "#7A5195"), "mlp_2": ("deeper network", "#B6A0CC")}
frozen = probe.query("encoder == @SEEN and frozen and direction == 'forward' and n_train == @LAST")
frozen = frozen.assign(pool=frozen.pooling.map(POOLS), kind=frozen["head"].map(HEADS).str[0])
figure, axes = plt.subplots(1, 2, figsize=(figures.PAGE, 2.5), sharey=True)
options = {"hue": "kind", "palette": dict(HEADS.values()), "linestyle": "none", "dodge": 0.4}
titles = {ENTERS: "Entering the last layer", LEAVES: "Leaving it"}
for ax, (layer, title) in zip(axes, titles.items(), strict=True):
    look = {"errorbar": ("se", 2), "markersize": 3.5, "err_kws": {"lw": 1, "ls": "-"}}
    sns.pointplot(frozen[frozen.layer == layer], x="pool", y="r2", ax=ax, **options, **look)
    ax.set(title=title, xlabel="", ylabel="test $R^2$")
axes[0].get_legend().remove()
axes[1].legend(title="", loc="upper left", bbox_to_anchor=(1, 1), handletextpad=0.2)
figures.letter_panels(axes)
run.figure(figure, "views")

# %% [markdown]
# *Latents of flux and error, means over draws of the noise with two standard errors.* Which layer
# is ahead depends on the pooling: for ridge regression what leaves the last layer is better with
# means and maxima of the whole spectrum, and with segments the other one is, by little. The two
# directions know different things, since each latent position is informed about one side only; the
# log uses one, or both mixed in a way that it does not tell. Small networks are ahead of ridge
# regression everywhere: what the latents know is not laid out along straight lines. Points that
# fall anywhere would have refuted the title.
#
# ## A short fine-tuning changes little
#
# Head and encoder are trained together from a head that had converged on frozen features, since a
# random one would send arbitrary gradients into good features ([Kumar et al.
# 2022](https://arxiv.org/abs/2202.10054)). To see: after fine-tuning the trained encoder scores
# little more than frozen, and far more than an untrained one that was fine-tuned as long.
#
# *Scores stand among the [claims](#claims).* The weights kept are those that validate best; in one
# of three draws those were the weights at the start. So few updates do not say what a long
# fine-tuning would do; a gain beyond its error would have refuted the title.
#
# ## The error of a pixel gives the star away
#
# The error of a pixel contains the photon noise of its own clean flux, and comes without noise of
# its own. An encoder that is shown it is shown a faint but perfect copy of the star. To see: the
# error needs no network, and one head of three reads something when the flux is a constant.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
kinds = [SOURCES[name] for name in ("error", "sigma alone", "with sigma", "without sigma", "flux")]
shown = main[main["head"].isin(["ridge", "trees", "mlp_1"]) & (main.n_train == LAST)]
shown = shown.assign(head=shown["head"].map(HEADS).str[0])
errors = shown.groupby(["source", "head"])[["r2", "mae"]].mean().loc[kinds].rename_axis([None] * 2)
errors.set_axis(["test R²", "mean absolute error, dex"], axis=1).round(2)

# %% [markdown]
# *Means over draws of the noise, of the heads that were tried on each source. To guess the middle
# of all gravities errs by 1 dex.* A constant flux is unlike anything that this encoder was trained
# on: a few test stars land far from all that the ridge regression has seen and spoil its $R^2$,
# while on the average star it errs less than with the flux. Whether the encoder knows gravity
# without flux is undecided: one network, the best of three heads. So is, with one network of each
# kind, whether the error lifts the score of latents (0.41 against 0.36). A result obtained with
# this input is no evidence about observed spectra, whose errors are estimated from the noisy
# counts. An error that tells no more than a guess would have refuted it.
#
# ## Claims
#
# Differences are of pairs with the same draw of noise, and count from 0.01 in $R^2$ and two
# standard errors on. What the log says of its network's scores is tested with its 100,000 labels
# alone, and its pooling of eight segments. A claim with *here* is of this page's network that sees
# flux and error: draws of the noise say how firm a number is for that network, not for others.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
r2 = partial(probe_experiment.r2_of, probe, par)
AS_LOG = {"pooling": "seg_mean_K8" if "seg_mean_K8" in par.poolings else par.pooling}
NOTABLE = {"above": 0.01, "reason": "smaller differences of R² would not matter"}


PAIR, SINGLE = "one network of each kind", "one network against none"


def of(entry="", source=""):
    """A claim's words for one of the log's, which takes as many labels as it had, or of ours."""
    logged = {"of": "log", "entry": entry, "source": source, "tested": of_log}
    return logged if entry else {"of": "ours", "tested": tested}


def compared(more, less, lone=""):
    """A claim's words for "more exceeds less"; a lone run of either has no known error."""
    gap = more - less
    error = np.nan if lone else gap.sem()
    spread = f"({lone})" if lone else f"± {error:.3f}, {len(gap)} draws"
    shown = f"{more.mean():.3f} against {less.mean():.3f}; difference {gap.mean():.3f} {spread}"
    return {"found": shown, "estimate": gap.mean(), "error": error} | NOTABLE


# %% jupyter={"source_hidden": true} tags=["hide-input"]
blind = tables["blindspot"].query("offset == 0")
own = blind.slope.tolist()
run.claim(
    "the derivative of a blind prediction by its own pixel is exactly 0",
    f"{own[0]:.0e}; without the shift {own[1]:.1e}",
    section="method",
    of="theory",
    holds=own[0] == 0 and own[1] > 0,
)
run.claim(
    "BatchNorm leaks in training, less in larger batches",
    ", ".join(f"{row.slope:.1e} at {row.batch}" for row in blind[2:].itertuples()),
    section="method",
    of="theory",
    holds=own[2] > own[3] > own[4] > 0,
)
n_encoder = probe_experiment.size_of(BlindSpotUNet(n=9, e=48, k=25).encoders)
n_head = probe_experiment.size_of(probes.head("mlp_1", torch.rand(9, 384), torch.rand(9)))
told = {"of": "log", "entry": "encoder-7", "source": "~500K and ~100K"}
run.claim(
    "the log's encoder has about 500,000 parameters and its head about 100,000 (within 5 %)",
    f"{n_encoder:,} and {n_head:,}",
    section="method",
    **told,
    reason="one digit with a ~ tells no more than that",
    holds=abs(n_encoder / 5e5 - 1) < 0.05 and abs(n_head / 1e5 - 1) < 0.05,
)
hashes = tables["hashes"].query("run == 'frozen'")
run.claim(
    "a frozen encoder is bit for bit the same after its head was trained",
    f"{len(hashes)} runs",
    section="a-short-fine-tuning-changes-little",
    of="ours",
    holds=bool(hashes.identical.all()),
)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
ours = whole.loc["posterior, without sigma"]
for rival in ("window", "components"):
    theirs = whole.loc[rival]
    run.claim(
        f"the network without the error raises S/N more than {METHODS[rival][0]}",
        f"{ours.gain:.2f} ± {ours.gain_se:.2f} against {theirs.gain:.2f} ± {theirs.gain_se:.2f}",
        section="it-removes-more-noise-than-its-rivals",
        of="ours",
        estimate=ours.gain - theirs.gain,
        error=np.hypot(ours.gain_se, theirs.gain_se),
        above=0,
        tested=tested,
    )
chi2 = tables["calibration"].pivot(index="encoder", columns="target", values="chi2")
where = "{:.3f} and {:.3f} with and without the error; around the clean flux {:,.0f} and {:,.0f}"
run.claim(
    "its predicted variance is right around noisy pixels (reduced chi-square within 5 %)",
    where.format(*chi2.noisy, *chi2.clean),
    section="it-removes-more-noise-than-its-rivals",
    of="theory",
    source="1",
    reason="a variance is right to 5 % if its standard deviation is to 2.5 %",
    estimate=chi2.noisy.to_numpy(),
    error=np.sqrt(2 / (par.n_denoised * 4096)),
    above=0.95,
    below=1.05,
    tested=tested,
)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
finer = [r2(SEEN, pooling=name) for name in par.poolings]
steps = [after - before for before, after in pairwise(finer)]
names = [POOLS[name].replace("\n", " ") for name in par.poolings]
found = ", ".join(f"{n} {x.mean():.3f}" for n, x in zip(names, finer, strict=True))
gains = {"estimate": [x.mean() for x in steps], "error": [x.sem() for x in steps]} | NOTABLE
two = {"finer pooling keeps more": of("encoder-21", "0.311, 0.406, 0.552")}
for text, words in (two | {"here finer pooling keeps more": of()}).items():
    run.claim(text, found, section="finer-pooling-keeps-more-of-gravity", **gains, **words)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
ridge, trees, network, deeper = (r2(SEEN, h, **AS_LOG) for h in HEADS if h != "linear")
both, single = (r2(SEEN, direction=way) for way in ("concat", "forward"))
leaving = r2(SEEN, layer=LEAVES, **AS_LOG)
enters = "ridge reads more off what enters the last layer than off what leaves it"
worse = "on the same features the small network does worse than ridge"
epochs = "0.470 (after four epochs) against 0.552"
for number, said, claim, one, other in [
    ("encoder-38", "0.552 against 0.475", enters, ridge, leaving),
    ("", "", "here both directions tell a ridge more than one", both, single),
    ("encoder-44", epochs, worse, ridge, network),
    ("", "", f"here {worse}", ridge, network),
    ("", "", "here boosted trees do worse than ridge on the same features", ridge, trees),
    ("encoder-34", "open", "a second hidden layer reads more than one", deeper, network),
]:
    words = of(number, said) | compared(one, other)
    run.claim(claim, section="finer-pooling-keeps-more-of-gravity", **words)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
tuned, cold = (r2(name, "mlp_1", frozen=False) for name in (SEEN, "untrained"))
gains = "fine-tuning improves on the frozen encoder with the same head"
for text, words in {gains: of("encoder-33", "open"), f"here {gains}": of()}.items():
    words |= compared(tuned, r2(SEEN, "mlp_1"))
    run.claim(text, section="a-short-fine-tuning-changes-little", **words)
run.claim(
    "fine-tuning a trained encoder ends above fine-tuning an untrained one",
    section="a-short-fine-tuning-changes-little",
    **compared(tuned, cold, PAIR),
    **of(),
)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
plain = r2("without sigma")
flux = r2("none", layer="flux")
run.claim(
    "a network's latents tell a ridge more after training than before",
    section="of-two-networks-the-trained-one-tells-more-of-gravity",
    **compared(r2(SEEN), r2("untrained"), PAIR),
    **of(),
    first=True,
)
run.claim(
    "latents with the error tell a ridge more than raw flux",
    section="whether-latents-beat-raw-flux-is-undecided",
    **compared(r2(SEEN), flux, SINGLE),
    **of("encoder-41", "0.552 against 0.475"),
)
run.claim(
    "latents without the error tell a ridge more than raw flux, at equal numbers of labels",
    section="whether-latents-beat-raw-flux-is-undecided",
    **compared(plain, flux, SINGLE),
    **of(),
    first=True,
)
blind_to_error = max([plain, r2("without sigma", "mlp_1"), flux], key=np.mean)
run.claim(
    "no model that sees the flux alone passes the ceiling",
    f"{blind_to_error.mean():.3f} at best; ceiling {ceiling:.3f} ± {ceiling_se:.3f}",
    section="of-two-networks-the-trained-one-tells-more-of-gravity",
    of="theory",
    estimate=ceiling - blind_to_error.mean(),
    error=np.hypot(ceiling_se, blind_to_error.sem()),
    above=0,
    tested=tested,
)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
others = probe[(probe.n_train == LAST) & (probe.layer != "error")]
others = others.groupby(["encoder", "layer", "pooling", "direction", "head", "frozen"]).r2
alone = score[SOURCES["error"]]
of_stars = 2 * np.sqrt(max(alone, 0)) * (1 - alone) / np.sqrt(par.n_test)
run.claim(
    "the error alone tells gravity better than the ceiling of the flux allows",
    f"{alone:.3f} against {ceiling:.3f} ± {ceiling_se:.3f}; best probe {others.mean().max():.3f}",
    section="the-error-of-a-pixel-gives-the-star-away",
    estimate=alone - ceiling,
    error=np.hypot(ceiling_se, of_stars),
    **NOTABLE,
    **of(),
    first=True,
)
run.claim(
    "an encoder that is shown the error tells a ridge more than one that is not",
    section="the-error-of-a-pixel-gives-the-star-away",
    **compared(r2(SEEN), plain, PAIR),
    **of(),
)
blank = main[main.encoder == "sigma alone"].set_index("head").r2
run.claim(
    "and still tells gravity when it sees no flux (R² above 0.1)",
    ", ".join(f"{head} {found:.2f}" for head, found in blank.items()) + "; one network, one draw",
    section="the-error-of-a-pixel-gives-the-star-away",
    reason="the best of three heads on the test stars may be that good by luck",
    estimate=blank.max(),
    error=np.nan,
    above=0.1,
    **of(),
)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
ledger.table(run.claims())

# %% jupyter={"source_hidden": true} tags=["nbval-check-output", "remove-cell"]
print("\n".join(f"{row.verdict:<16}{row.claim}" for row in run.claims().itertuples()))

# %% [markdown]
# ## What the log had wrong, and right
#
# Right: its network has the size that it tells. In a smaller one, too, finer pooling keeps more,
# and latents know something about gravity without labels. Wrong, or missing:
#
# - **The comparison of heads** sets the validation score of a network after four epochs of a run
#   that had not stopped against the test score of a finished ridge regression, and trees on another
#   layer and another pooling. Nothing follows about heads.
# - **The missing row:** ridge regression on raw flux, 0.475 at as many stars in a related log.
# - **The error as an input:** what it adds to 0.552 would not be there in an observation.
# - **The splits** bear one another's names; the denoiser may have seen the test spectra.
#
# ## Look for yourself
#
# In JupyterLab, choose a method and a part of the spectrum: the estimate over the noisy flux (grey)
# and the clean one (black).

# %% jupyter={"source_hidden": true} tags=["hide-input"]
if "JPY_SESSION_NAME" in os.environ:  # set by JupyterLab alone
    from ipywidgets import interact

    @interact(method={row[0]: name for name, row in METHODS.items()}, middle=(8480, 8680, 20))
    def show_part(method, middle=8540):
        part = example[(example.wavelength - middle).abs() < 20]
        ax = plt.subplots(figsize=(figures.PAGE, 2.5))[1]
        ax.plot(part.wavelength, part["noisy flux"], color=figures.COLORS["null"], lw=0.5)
        ax.plot(part.wavelength, part.clean, color="k", ls="-")
        ax.plot(part.wavelength, part[method], color=METHODS[method][1], ls="-")
        ax.set(xlabel="vacuum wavelength, Å", ylabel="flux")


# %% [markdown]
# ## Limits
#
# The spectra are synthetic, of magnitudes 20.5 to 22.5 and with radial velocities, where the log's
# are of magnitude 21.5 and at rest: scores do not carry over, signs and orders may. At *laptop* the
# denoiser is 36 times smaller than the log's, has seen fewer than five thousand spectra, and is
# probed with 2,048 labels, not 100,000. **There is one network of each kind, and one set of
# labelled and of test stars**, which errors over draws of the noise do not cover. The predicted
# spread is far too narrow for a few pixels. *paper*, the log's setting, has not been run.
#
# ## Parameters and cost

# %% jupyter={"source_hidden": true} tags=["hide-input"]
run.parameters()

# %% jupyter={"source_hidden": true} tags=["nbval-ignore-output", "hide-input"]
run.finish(precision=machine.resolve_precision(par.precision, device))
