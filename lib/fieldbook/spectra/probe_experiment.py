"""What the latents of a denoiser that never sees its pixel know of gravity: the whole experiment.

Denoisers are trained without labels, with the error of each pixel as an input and without. Then
their blindness is measured, the noise that they remove, and the scores of heads on their latents,
beside those on raw flux, on the error alone, and on the latents of a network that was not trained.

Settings are read from `par` by name: `n_layers`, `channels`, `kernel` are the network's, `steps`,
`batch_size`, `lr`, `lr_output`, `loss` its training's, `tune_..` those of fine-tuning.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fieldbook.nn import lightning, machine, training
from fieldbook.nn.baselines import scores
from fieldbook.nn.checkpoints import load_weights, save_weights
from fieldbook.nn.recipe import Recipe
from fieldbook.run import paths
from fieldbook.run.chapter import Run
from fieldbook.spectra import blindspot, denoising, losses, probes, spectroscopy
from fieldbook.spectra.blindspot import BlindSpotUNet, posterior_mean
from fieldbook.spectra.probes import Probe, View, fingerprint
from fieldbook.stars import noise
from fieldbook.stars.dataset import Spectra
from fieldbook.stars.emulator import NODES, SMALL, Emulator

Job = Mapping[str, Any]
Row = dict[str, Any]
Paths = Mapping[tuple, Path]

ENCODERS = {"with sigma": True, "without sigma": False, "untrained": True}  # is the error an input?
TRAINED = ("with sigma", "without sigma")
ENTERS, LEAVES = blindspot.LAYERS  # of the encoder's last layer
MODES = [("shifted", "evaluation", 2), ("not shifted", "evaluation", 2)]
MODES += [("shifted", "training", batch) for batch in (2, 8, 32)]
REACH = 16  # pixels to each side of the one that is predicted
WATCHED = 64  # validation spectra during training
WINDOWS = (5, 9, 15, 21, 31)  # pixels
COMPONENTS = (16, 32, 64)
EDGES = (0, 5, 7, 9, 12, 16, 30)  # of bins of S/N
TRIPLET = (8500.36, 8544.44, 8664.52)  # of calcium, vacuum Angstrom, at rest
NEAR = 6  # Angstrom from rest that a line is looked for
WEIGHTS, FEATURES = "best.safetensors", "features.safetensors"
KEPT = ("r2", "rmse", "mae", "n_features", "n_trainable")
TABLES = ["denoisers", "history_denoiser", "blindspot", "denoise", "calibration", "spectrum"]
TABLES += ["features", "probe", "hashes", "history_frozen", "history_finetuned", "history_scratch"]
TABLES += ["ceiling"]


def run_all(run: Run, par: Any, device: torch.device) -> dict[str, pd.DataFrame]:
    """Train, measure and probe everything; the tables by name, see `TABLES`."""
    sizes = {"train": max(par.n_pretrain, *par.n_train), "val": par.n_val, "test": par.n_test}
    stars, sets = None, {}
    if not paths.frozen():
        stars, sets = spectroscopy.provide(
            sizes, data_dir=par.data_dir, grid=par.grid, rv_kms=par.rv_kms, workers=par.workers
        )
    lab = Lab(par, device, sets)
    reads = spectroscopy.files_of(par.data_dir)
    given = {"checkpoint": Path(par.checkpoint)} if par.checkpoint else {}

    jobs = [{"encoder": name} for name in ENCODERS]
    run.sweep("denoisers", jobs, partial(_denoiser, lab), reads=reads | given)
    weights = _left_by(run, "denoisers", jobs, WEIGHTS)

    modes = [dict(zip(("network", "mode", "batch"), mode, strict=True)) for mode in MODES]
    run.sweep("blindspot", modes, partial(_blindness, lab, weights), reads=reads)
    run.sweep("denoise", [{}], partial(_denoised, lab, weights), reads=reads)

    jobs = _feature_jobs(par)
    run.sweep("features", jobs, partial(_extracted, lab, weights), reads=reads)
    features = _left_by(run, "features", jobs, FEATURES)

    compute = partial(_probed, lab, weights, features)
    run.sweep("probe", _probe_jobs(par), compute, cost=_heaviness, reads=reads)
    run.sweep("ceiling", [{}], partial(_limits, stars, par))
    return {name: run.frame(name) for name in TABLES}


def _left_by(run: Run, table: str, jobs: Sequence[Job], name: str) -> Paths:
    """The file that each job of a sweep has left, by the job's values; none where rows are frozen,
    since nothing is computed then."""
    if paths.frozen():
        return {}
    return {tuple(job.values()): run.files(table, job) / name for job in jobs}


@dataclass(frozen=True)
class Lab:
    """What every job works with.

    Attributes:
        par: settings by name; `sets`: split -> spectra without noise.
    """

    par: Any
    device: torch.device
    sets: Mapping[str, Spectra]

    def noisy(self, split: str, seed: int = 0, n: int | None = None) -> tuple[Tensor, Tensor]:
        """Noisy flux and the standard deviation of its noise, (n, pixel) each.

        Args:
            seed: of the noise of the train split; other splits have the same noise for ever.
        """
        data = self.sets[split][:n]
        drawn = 100 + seed if split == "train" else noise.SEED
        level = self.par.noise_level
        sigma = level * torch.from_numpy(np.array(data.error))
        return noise.fixed_noise(data, level, drawn), sigma

    def clean(self, split: str, n: int) -> Tensor:
        """Flux without noise, (n, pixel)."""
        return torch.from_numpy(np.array(self.sets[split].flux[:n]))

    def gravity(self, split: str, n: int | None = None) -> Tensor:
        """log g of the first stars of a split, (n,)."""
        return torch.tensor(self.sets[split].params.log_g.to_numpy(np.float32)[:n])


# -- denoisers


def _denoiser(lab: Lab, job: Job, folder: Path) -> Row:
    """Make one denoiser: its size, how it validates, and the history of its training."""
    name, par = job["encoder"], lab.par
    history = []
    if name == "untrained":
        _settle(lab, folder)
    elif name == "with sigma" and par.checkpoint:
        model = _network(lab, name)
        lightning.load_lightning(model, Path(par.checkpoint))
        save_weights(model, folder / WEIGHTS)
    else:
        history = _pretrain(lab, name, folder)
    model = _restored(lab, name, folder / WEIGHTS)
    sizes = {"n_params": size_of(model), "n_encoder": size_of(model.encoders)}
    rows = [{**job, **row} for row in history]
    return {"denoisers": sizes | _validate(lab, model, par.steps), "history_denoiser": rows}


def _network(lab: Lab, name: str) -> BlindSpotUNet:
    """A denoiser with initial weights."""
    par = lab.par
    model = BlindSpotUNet(par.n_layers, par.channels, par.kernel, input_sigma=ENCODERS[name])
    return model.to(lab.device)


def _restored(lab: Lab, name: str, file: Path) -> BlindSpotUNet:
    """A denoiser with weights from a file, in evaluation mode."""
    model = _network(lab, name)
    load_weights(model, file)
    return model.eval()


def size_of(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(w.numel() for w in model.parameters())


def _pretrain(lab: Lab, name: str, folder: Path) -> list[Row]:
    """Train a denoiser, or finish what a killed run has begun; its history.

    Fresh noise is drawn for every spectrum at every update. The weights kept are those of least
    loss on validation spectra. Scale and offset of the output learn at a higher rate.
    """
    par = lab.par
    model = _network(lab, name)
    blindspot.start_at(model, *(part.to(lab.device) for part in lab.noisy("train", n=256)))
    data = lab.sets["train"][: par.n_pretrain]
    recipe = Recipe(
        steps=par.steps,
        batch_size=par.batch_size,
        lr=par.lr,
        schedule="cosine",
        warmup=min(20, par.steps),
        clip=1.0,
        lr_scale={"nin_layers.2.bn.": par.lr_output},
        eval_every=max(par.steps // 8, 1),
        monitor="val_nll",
        precision=machine.resolve_precision(par.precision, lab.device),
    )
    fit = training.fit(
        model,
        losses.denoising_loss(par.loss, data.rows, par.noise_level),
        len(data),
        recipe,
        evaluate=partial(_validate, lab),
        checkpoint=folder,
        progress=False,
    )
    return fit.history


@torch.no_grad()
def _settle(lab: Lab, folder: Path) -> None:
    """Leave initial weights with the statistics of 256 spectra, as any network has them."""
    model = _network(lab, "untrained").train()
    for module in model.modules():
        module.momentum = 1.0  # the statistics of one batch, in place of a moving average
    model(*(part.to(lab.device) for part in lab.noisy("train", n=256)))
    save_weights(model, folder / WEIGHTS)


def _validate(lab: Lab, model: BlindSpotUNet, step: int) -> dict[str, float]:
    """Loss on noisy validation spectra, and gain, which needs clean ones and decides nothing."""
    noisy, sigma = lab.noisy("val", n=WATCHED)
    mu, spread = _predict(lab, model, noisy, sigma)
    gain = denoising.snr_gain(mu, noisy, lab.clean("val", WATCHED), sigma)
    nll = losses.gaussian(mu, spread, noisy, sigma)
    return {"val_nll": float(nll), "val_gain": float(gain.mean())}


@torch.no_grad()
def _predict(lab: Lab, model: BlindSpotUNet, noisy: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of the clean flux of each pixel, blind to the pixel, (n, pixel)."""
    batches = zip(noisy.split(32), sigma.split(32), strict=True)
    parts = [model(x.to(lab.device), s.to(lab.device)) for x, s in batches]
    mu, spread = (torch.cat(part).float().cpu() for part in zip(*parts, strict=True))
    return mu, spread


# -- blindness


def _blindness(lab: Lab, weights: Paths, job: Job) -> list[Row]:
    """The largest slope at each offset, around the calcium triplet."""
    kind, mode, batch = job.values()
    start = int(np.searchsorted(lab.sets["test"].wave, 8440))
    model = _restored(lab, "with sigma", weights[("with sigma",)]).train(mode == "training")
    model.blindspot = kind == "shifted"
    noisy, sigma = (
        part[:, start : start + 512].to(lab.device) for part in lab.noisy("test", n=batch)
    )
    largest = slopes(model, noisy, sigma).amax(0).tolist()
    return [{"offset": offset, "slope": slope} for offset, slope in enumerate(largest, -REACH)]


def slopes(model: BlindSpotUNet, noisy: Tensor, sigma: Tensor) -> Tensor:
    """|d mu_i / d y_j| of the first spectrum, (eight pixels i, offsets j - i from -16 to 16).

    Args:
        noisy, sigma: (n, pixel), on the model's device.
    """
    x = noisy.detach().clone().requires_grad_()
    mu = model(x, sigma)[0][0]
    at = range(REACH, x.shape[1] - REACH, x.shape[1] // 8)
    rows = [torch.autograd.grad(mu[i], x, retain_graph=True)[0][0] for i in at]
    near = [row[i - REACH : i + REACH + 1] for row, i in zip(rows, at, strict=True)]
    return torch.stack(near).abs().cpu()


# -- denoising


def _denoised(lab: Lab, weights: Paths, job: Job) -> dict[str, list[Row]]:
    """All three tables of denoised test spectra."""
    found, spreads = _estimates(lab, weights)
    return {
        "denoise": _gain_rows(lab, found),
        "calibration": _calibration_rows(lab, found, spreads),
        "spectrum": _spectrum_rows(lab, found, spreads["with sigma"]),
    }


def _estimates(lab: Lab, weights: Paths) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every method's estimate of the test spectra, and the spread that each network gives."""
    noisy, sigma = lab.noisy("test", n=lab.par.n_denoised)
    train, _ = lab.noisy("train", n=lab.par.n_train[-1])

    def projected(flux: Tensor, components: int) -> Tensor:
        return denoising.pca(train, flux, min(components, len(train) // 4))

    found = {
        "noisy flux": noisy,
        "window": _best_of(lab, WINDOWS, denoising.savitzky_golay, noisy),
        "components": _best_of(lab, COMPONENTS, projected, noisy),
    }
    spreads = {}
    for name in TRAINED:
        model = _restored(lab, name, weights[(name,)])
        mu, spreads[name] = _predict(lab, model, noisy, sigma)
        found[f"blind, {name}"] = mu
        found[f"posterior, {name}"] = posterior_mean(mu, spreads[name], noisy, sigma)
    return found, spreads


def _best_of(lab: Lab, options: Sequence[int], denoise: Any, noisy: Tensor) -> Tensor:
    """The option that gains most on validation spectra, applied to noisy ones."""
    watched, _ = lab.noisy("val", n=WATCHED)
    gains = [float(_gain(lab, denoise(watched, o), "val", WATCHED).mean()) for o in options]
    return denoise(noisy, options[int(np.argmax(gains))])


def _gain(lab: Lab, estimate: Tensor, split: str, n: int) -> Tensor:
    """Gain of each spectrum, (n,)."""
    noisy, sigma = lab.noisy(split, n=n)
    return denoising.snr_gain(estimate, noisy, lab.clean(split, n), sigma)


def _gain_rows(lab: Lab, found: Mapping[str, Tensor]) -> list[Row]:
    """Mean gain and its standard error for each method, over all spectra and in bins of S/N."""
    n = lab.par.n_denoised
    snr = lab.sets["test"].params.snr.to_numpy()[:n]
    rows = []
    for method, estimate in found.items():
        gain = _gain(lab, estimate, "test", n).numpy()
        for low, high in [(EDGES[0], EDGES[-1]), *pairwise(EDGES)]:
            part = pd.Series(gain[(snr >= low) & (snr < high)])
            row = {"method": method, "low": low, "high": high, "n": len(part)}
            rows.append({**row, "gain": part.mean(), "gain_se": part.sem()})
    return rows


def _calibration_rows(
    lab: Lab, found: Mapping[str, Tensor], spreads: Mapping[str, Tensor]
) -> list[Row]:
    """Whether pixels scatter as predicted, around noisy and around clean flux."""
    n = lab.par.n_denoised
    noisy, sigma = lab.noisy("test", n=n)
    targets = {"noisy": (noisy, sigma), "clean": (lab.clean("test", n), 0 * sigma)}
    rows = []
    for name, spread in spreads.items():
        for target, (flux, error) in targets.items():
            fit = denoising.calibration(found[f"blind, {name}"], spread, flux, error)
            rows.append({"encoder": name, "target": target, **fit})
    return rows


def _spectrum_rows(lab: Lab, found: Mapping[str, Tensor], spread: Tensor) -> list[Row]:
    """One test spectrum of middling S/N around the calcium triplet, pixel by pixel."""
    test = lab.sets["test"]
    star = int((test.params.snr[: lab.par.n_denoised] - 8).abs().to_numpy().argmin())
    columns = {"wavelength": test.wave, "clean": np.array(test.flux[star])}
    columns |= {name: flux[star].numpy() for name, flux in found.items()}
    frame = pd.DataFrame(columns | {"spread": spread[star].numpy()})
    return frame[frame.wavelength.between(8460, 8700)].to_dict("records")


def moved(example: pd.DataFrame) -> pd.DataFrame:
    """How far, in Angstrom, the minimum of each line of the calcium triplet lies from that of the
    clean flux: a row for each method, of the table `spectrum`."""
    methods = example.set_index("wavelength").drop(columns="spread")
    near = {place: methods[abs(methods.index - place) < NEAR] for place in TRIPLET}
    minima = pd.DataFrame({f"{place:.1f} Å": part.idxmin() for place, part in near.items()})
    return minima - minima.loc["clean"]


# -- features


def _feature_jobs(par: Any) -> list[Job]:
    """One for each encoder and split; for each noise of the train split, which `sigma alone`, the
    trained encoder with a constant in the place of the flux, does not know."""
    parts = [("val", 0), ("test", 0), *(("train", seed) for seed in range(par.seeds))]
    return [
        {"encoder": encoder, "split": split, "seed": seed}
        for encoder in (*ENCODERS, "sigma alone")
        for split, seed in (parts if encoder in ENCODERS else parts[:3])
    ]


def _extracted(lab: Lab, weights: Paths, job: Job, folder: Path) -> Row:
    """Features of one split in a file, and the hash of the encoder that made them."""
    encoder, split, seed = job.values()
    known = "with sigma" if encoder == "sigma alone" else encoder
    model = _restored(lab, known, weights[(known,)])
    noisy, sigma = lab.noisy(split, seed, lab.par.n_train[-1] if split == "train" else None)
    noisy = torch.full_like(noisy, 0.5) if encoder == "sigma alone" else noisy
    views = _views(lab.par, encoder)
    found = probes.features(model, noisy, sigma, views)
    save_weights(dict(zip(map("/".join, views), found, strict=True)), folder / FEATURES)
    return {"spectra": len(noisy), "encoder_hash": fingerprint(model)[:16]}


def _views(par: Any, encoder: str) -> list[View]:
    """Of the encoder with sigma, all layers and poolings of one direction, and all directions of
    one pooling."""
    if encoder != "with sigma":
        return [View(pooling=par.pooling)]
    main = [View(layer, name) for layer in blindspot.LAYERS for name in par.poolings]
    ways = ("mean", "concat")
    return main + [View(layer, par.pooling, way) for layer in blindspot.LAYERS for way in ways]


# -- probes


def _probe_jobs(par: Any) -> list[Job]:
    """All that is compared, at the largest number of labels first."""
    jobs = [
        job
        for layer in blindspot.LAYERS
        for name in par.poolings
        for job in _alike(par, "with sigma", par.heads, layer=layer, pooling=name)
    ]
    for layer in blindspot.LAYERS:
        for way in ("mean", "concat"):
            jobs += _alike(par, "with sigma", ["ridge"], layer=layer, direction=way)
    for encoder in ("without sigma", "untrained"):
        jobs += _alike(par, encoder, ["ridge", "mlp_1"])
    jobs += _alike(par, "none", ["ridge"], layer="flux")
    once = _alike(par, "none", ["ridge"], layer="error")
    once += _alike(par, "sigma alone", ["ridge", "trees", "mlp_1"])
    jobs += [job for job in once if job["seed"] == 0]  # an error has no noise to draw
    for n in par.n_train[:-1]:
        for encoder in ENCODERS:
            jobs += _alike(par, encoder, ["ridge"], n_train=n)
        jobs += _alike(par, "none", ["ridge"], layer="flux", n_train=n)
    for encoder in ("with sigma", "untrained"):
        jobs += _alike(par, encoder, ["mlp_1"], frozen=False)
    return jobs


def _alike(par: Any, encoder: str, heads: Sequence[str], **changes: Any) -> list[Job]:
    """One job for each head and each noise of the train split."""
    place = {"encoder": encoder, "layer": ENTERS, "pooling": par.pooling, "direction": "forward"}
    if encoder == "none":
        place |= {"pooling": "none", "direction": "none"}
    usual = {"head": "", "frozen": True, "seed": 0, "n_train": par.n_train[-1]}
    return [
        {**place, **usual, **changes, "head": name, "seed": seed}
        for name in heads
        for seed in range(par.seeds)
    ]


def _heaviness(job: Job) -> int:
    """Fine-tuning takes longest, then trees and networks, then ridge regression."""
    return 3 * (not job["frozen"]) + (job["head"] != "ridge")


def _probed(lab: Lab, weights: Paths, features: Paths, job: Job, folder: Path) -> Row:
    """A row of `probe`; for fine-tuning with histories and hashes."""
    parts = {split: _vectors(lab, features, job, split) for split in ("train", "val", "test")}
    data = [(x, lab.gravity(split, len(x))) for split, x in parts.items()]
    if not job["frozen"]:
        return _tune(lab, weights, job, data, folder)
    row = probes.probe(job["head"], *data, seed=job["seed"])
    return {name: row[name] for name in KEPT}


def _vectors(lab: Lab, features: Paths, job: Job, split: str) -> Tensor:
    """What a head sees of a split: (n, features)."""
    n = job["n_train"] if split == "train" else None
    if job["encoder"] == "none":
        flux, error = lab.noisy(split, job["seed"], n)
        return error if job["layer"] == "error" else flux
    name = "/".join((job["layer"], job["pooling"], job["direction"]))
    seed = job["seed"] if split == "train" else 0  # only there the noise is drawn several times
    return load_file(features[job["encoder"], split, seed])[name][:n]


def usual(rows: pd.DataFrame, par: Any) -> pd.DataFrame:
    """Rows of the table `probe` of frozen encoders, of one direction of what enters the last layer
    with the pooling of `par`, and of no encoder; `source` is the encoder, or `flux` or `error`."""
    rows = rows[rows.frozen & (rows.layer != LEAVES)]
    rows = rows[rows.pooling.isin([par.pooling, "none"]) & rows.direction.isin(["forward", "none"])]
    return rows.assign(source=rows.encoder.where(rows.encoder != "none", rows.layer))


def r2_of(
    rows: pd.DataFrame, par: Any, encoder: str, head: str = "ridge", **where: Any
) -> pd.Series:
    """Test R2 by seed, of rows of the table `probe`.

    Args:
        where: values of columns; unless they are given, one direction of what enters the last layer
            with the pooling and the largest number of labels of `par`, frozen.
    """
    (job, *_) = _alike(par, encoder, [head], **where)
    rows = rows.set_index("seed")
    for name in set(job) - {"seed"}:
        rows = rows[rows[name] == job[name]]
    return rows.r2


# -- fine-tuning


def _tune(lab: Lab, weights: Paths, job: Job, data: list, folder: Path) -> dict[str, Any]:
    """Scores on the test split after fine-tuning; of the run beside it the history only.

    Encoder and head are trained together, from a head that was trained on frozen features, since a
    random one would send arbitrary gradients into good features (Kumar et al. 2022,
    arXiv:2202.10054). A second run of as many updates keeps the encoder frozen.
    """
    kinds = ("frozen", "finetuned") if job["encoder"] == "with sigma" else ("scratch",)
    found: dict[str, Any] = {"hashes": []}
    for kind in kinds:
        model = _started(lab, weights, job, data)
        before = fingerprint(model.encoder)
        history = _fit_both(lab, model, job, kind == "frozen", folder / kind)
        after = fingerprint(model.encoder)
        found[f"history_{kind}"] = [{"seed": job["seed"], **row} for row in history]
        same = {"before": before[:16], "after": after[:16], "identical": before == after}
        found["hashes"].append({"run": kind, "seed": job["seed"], **same})
    made = scores(lab.gravity("test").numpy(), _answers(lab, model))
    made |= {"n_features": data[0][0].shape[1], "n_trainable": size_of(model)}
    return found | {"probe": {name: made[name] for name in KEPT}}


def _started(lab: Lab, weights: Paths, job: Job, data: list) -> Probe:
    """A network of encoder and head, the head trained on features that stay fixed."""
    view = View(job["layer"], job["pooling"], job["direction"])
    (x, y), (x_val, y_val), _ = data
    model = probes.head(job["head"], x, y, seed=job["seed"])
    recipe = probes.probe_recipe(len(x), seed=job["seed"])
    probes.train(model, [x], y, ([x_val], y_val), recipe, progress=False)
    encoder = _restored(lab, job["encoder"], weights[(job["encoder"],)])
    return Probe(encoder, model.to(lab.device), view)


def _fit_both(lab: Lab, model: Probe, job: Job, frozen: bool, folder: Path) -> list[Row]:
    """Train on spectra, watched on a part of the validation split; the history."""
    par, n, seed = lab.par, job["n_train"], job["seed"]
    recipe = probes.probe_recipe(
        n,
        batch_size=par.tune_batch,
        steps=par.tune_steps,
        eval_every=max(par.tune_steps // 6, 1),
        lr=par.tune_lr,
        schedule="cosine",
        warmup=par.tune_steps // 8,
        patience=None,
        precision=machine.resolve_precision(par.precision, lab.device),
        seed=seed,
        lr_scale={} if frozen else {"encoder.": par.tune_encoder},
    )
    watched = lab.noisy("val", n=4 * WATCHED), lab.gravity("val", 4 * WATCHED)
    spectra = lab.noisy("train", seed, n)
    with probes.frozen(model.encoder) if frozen else contextlib.nullcontext():
        fit = probes.train(
            model,
            spectra,
            lab.gravity("train", n),
            watched,
            recipe,
            checkpoint=folder,
            progress=False,
        )
    return fit.history


@torch.no_grad()
def _answers(lab: Lab, model: Probe) -> np.ndarray:
    """Gravity of the test stars, (n,)."""
    batches = zip(*(part.split(64) for part in lab.noisy("test")), strict=True)
    parts = [model.eval()(x.to(lab.device), s.to(lab.device)).float().cpu() for x, s in batches]
    return torch.cat(parts).numpy()


# -- the ceiling


def _limits(stars: Emulator, par: Any, job: Job) -> list[Row]:
    """Bounds on log g, star by star."""
    rows = spectroscopy.limits(stars, par.n_limits, seed=1, rv_kms=par.rv_kms)
    return rows.rename_axis("star").reset_index().to_dict("records")


def ceiling(limits: pd.DataFrame, grid: str) -> tuple[float, float]:
    """The R2 that no estimator exceeds which sees the noisy flux alone, and its standard error.

    Args:
        limits: the table `ceiling`; `grid`: that the stars are drawn from, `full` or `small`.
    """
    gravities = (NODES if grid == "full" else SMALL)["log_g"]
    prior = (gravities[-1] - gravities[0]) ** 2 / 12
    return 1 - limits.least.mean() / prior, limits.least.sem() / prior
