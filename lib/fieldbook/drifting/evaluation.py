"""What is seen of trained generators: samples, measures with a row for each checkpoint, pictures.

Under the output folder: `measures.csv`, and per checkpoint `artifacts/<name>/` with the samples as
PNG files in `generated/`, `preview.png` and `eval_metadata.json`.
"""

import json
import math
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from fieldbook.drifting import experiment, frechet, kernel
from fieldbook.drifting.distances import nearest, sliced_w2
from fieldbook.drifting.experiment import Checkpoint, Drifter, balanced_labels, restore
from fieldbook.drifting.images import Images, to_uint8
from fieldbook.drifting.judge import Judge
from fieldbook.drifting.toys import TOYS
from fieldbook.nn.checkpoints import atomic_write
from fieldbook.nn.checks import require
from fieldbook.nn.seeds import stream
from fieldbook.run.manifest import sha256
from fieldbook.run.tables import Row, read_csv, text, write_csv


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a checkpoint is sampled and compared; with its name and weights, the key of its row.

    Attributes:
        num_samples: of all classes alike; `alpha`: strength of guidance, in [1, inf).
        ema: sample with the averaged weights.
        dataset_split, fid_mode: of clean-fid's statistics; `fid_mode` None leaves `fid` empty.
    """

    num_samples: int = 500
    batch_size: int = 256
    alpha: float = 1.0
    seed: int = 42
    ema: bool = True
    dataset_split: str = "train"
    fid_mode: frechet.FidMode | None = None

    def __post_init__(self) -> None:
        require(self.num_samples >= 2, "num_samples", self.num_samples, "at least 2")
        require(self.alpha >= 1, "alpha", self.alpha, "at least 1")


KEYS = ("checkpoint", "weights", *(field.name for field in fields(Sampling)))
MEASURES = (
    "fid",
    "kid",
    "fd_heldout",
    "fd_train",
    "precision",
    "recall",
    "density",
    "coverage",
    "accuracy",
    "energy",
    "nearest",
)


def evaluate(
    checkpoints: Path,
    output: Path,
    judge: Judge | None,
    sampling: Sampling = Sampling(),
    *,
    skip_existing: bool = False,
    cleanup_samples: bool = False,
    device: torch.device | str = "cpu",
    draw: Callable[[pd.DataFrame], Any] | None = None,
) -> pd.DataFrame:
    """Evaluate one checkpoint, or all of a folder in the order of steps: a table of measures.

    A row is written as soon as it is known, so that a killed call continues under `skip_existing`.
    Of a folder, a damaged checkpoint is named in a warning and the others are evaluated.

    Args:
        judge: measures the samples; None leaves FID alone.
        skip_existing: keep rows of weights that have been measured in this way, or replace them.
        cleanup_samples: delete the PNG files of the samples once they are measured.
        draw: called with the table after each row, as `partial(figures.step_curve, ..)` may be.
    Raises:
        FileNotFoundError: no checkpoint, or with `fid_mode` no file of clean-fid's.
        ValueError: a single checkpoint is damaged.
    """
    measures = output / "measures.csv"
    rows = _rows(measures)
    folder = Path(checkpoints)
    files = experiment.checkpoints(folder) if folder.is_dir() else [folder]
    if not files:
        raise FileNotFoundError(f"no checkpoint step_*.safetensors in {folder}")
    for file in files:
        try:
            model, saved = restore(file, ema=sampling.ema)
        except ValueError as error:
            if len(files) == 1:
                raise
            warnings.warn(f"not evaluated: {error}", stacklevel=2)
            continue
        key = {"checkpoint": file.name, "weights": sha256(file)[:12], **asdict(sampling)}
        others = [row for row in rows if not _are_alike(row, key)]
        if skip_existing and len(others) < len(rows):
            continue
        place = output / "artifacts" / file.stem
        row = key | _measured(model.to(device), saved, sampling, judge, place)
        about = row | {"features": judge and judge.digest, "setting": vars(saved.setting)}
        _write_json(about, place / "eval_metadata.json")
        if cleanup_samples:
            shutil.rmtree(place / "generated", ignore_errors=True)
        rows = [*others, row]
        write_csv(measures, rows)
        if draw:
            draw(read_csv(measures))
    return read_csv(measures) if rows else pd.DataFrame(columns=KEYS)


def _rows(measures: Path) -> list[Row]:
    """The rows of earlier calls, every value as text: digests are not to be read as numbers."""
    if not measures.exists():
        return []
    return pd.read_csv(measures, dtype=str, keep_default_na=False).to_dict("records")


def _are_alike(row: Row, key: Row) -> bool:
    """Is this a row of the same weights, measured in the same way?"""
    return all(text(row[name]) == text(key[name]) for name in KEYS)


def _measured(
    model: Drifter, saved: Checkpoint, sampling: Sampling, judge: Judge | None, folder: Path
) -> dict[str, Any]:
    """Sample, write the samples, as clean-fid reads them from files, and measure."""
    start = time.perf_counter()
    data = saved.setting.data
    statistics = data, saved.setting.shape[-1], sampling.dataset_split, sampling.fid_mode
    if sampling.fid_mode:
        frechet.fid_files(*statistics)  # before samples are drawn in vain
    label = balanced_labels(sampling.num_samples, saved.setting.classes)
    x = sample(model, label, sampling.alpha, sampling.seed, sampling.batch_size)
    _write_images(x, folder / "generated")
    picture = Image.fromarray(sheet(x))
    atomic_write(folder / "preview.png", lambda file: picture.save(file, "PNG"))
    found: dict[str, Any] = dict.fromkeys(MEASURES, math.nan)
    if judge:
        found |= judge.measure(x, label, sampling.seed)
    if sampling.fid_mode:
        found["fid"] = frechet.fid(folder / "generated", *statistics)
    about = {"name": f"{data}_{saved.setting.field}", "dataset": data}
    about |= {"epoch": saved.epoch, "step": saved.step}
    about["eval_seconds"] = round(time.perf_counter() - start, 3)
    return about | found | {name: saved.metrics[name] for name in experiment.METRICS}


def _write_json(facts: dict[str, Any], path: Path) -> None:
    """Numbers that are not known as null, which JSON has."""
    known = {name: None if value != value else value for name, value in facts.items()}
    content = json.dumps(known, indent=1, default=str).encode()
    atomic_write(path, lambda file: file.write(content))


def _write_images(x: Tensor, folder: Path) -> None:
    """Write images (n, c, h, w) in [-1, 1] as numbered PNG files, in place of those there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, one in enumerate(x):
        Image.fromarray(_pixels(one[None], 1)).save(folder / f"{number:06d}.png")


@torch.no_grad()
def sample(model: Drifter, label: Tensor, alpha: float, seed: int, batch_size: int = 256) -> Tensor:
    """Samples of labels (n,) in batches, (n, *shape) on the CPU; images clamped to [-1, 1]."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(stream("samples", seed))
    parts = [part.to(device) for part in label.split(batch_size)]
    x = torch.cat([model.sample(part, alpha, generator).cpu() for part in parts])
    return x.clamp(-1, 1) if x.ndim == 4 else x


def sheet(x: Tensor, rows: int = 10, columns: int = 10) -> np.ndarray:
    """A contact sheet of images (n, c, h, w) in [-1, 1], evenly picked, row by row; bytes."""
    chosen = x[torch.linspace(0, len(x) - 1, rows * columns).long()]
    return _pixels(torch.nn.functional.pad(chosen, (1, 1, 1, 1), value=-1), rows)


def _pixels(x: Tensor, rows: int) -> np.ndarray:
    """Images (n, c, h, w) in rows side by side, as bytes (H, W) or (H, W, 3)."""
    tiles = rearrange(to_uint8(x), "(row column) c h w -> (row h) (column w) c", row=rows)
    return tiles.squeeze(-1).numpy()


def sample_rows(
    folder: Path, per_class: int = 6, device: torch.device | str = "cpu"
) -> list[dict[str, object]]:
    """Images of each class from every checkpoint: `step`, `sample`, and `pixels` as hexadecimal."""
    rows = []
    for path in experiment.checkpoints(folder):
        model, saved = restore(path)
        label = balanced_labels(per_class * saved.setting.classes, saved.setting.classes)
        rows += _pixel_rows(sample(model.to(device), label, 1.0, 3), saved.step)
    return rows


def real_rows(images: Images, per_class: int = 6) -> list[dict[str, object]]:
    """The first training images of each class, as `sample_rows` gives generated ones, at step 0."""
    members = [(images.train_label == c).nonzero()[:per_class, 0] for c in range(images.classes)]
    return _pixel_rows(images.train[torch.cat(members)], 0)


def _pixel_rows(x: Tensor, step: int) -> list[dict[str, object]]:
    texts = [pixels.numpy().tobytes().hex() for pixels in to_uint8(x)]
    return [{"step": step, "sample": i, "pixels": text} for i, text in enumerate(texts)]


def picture(rows: pd.DataFrame, shape: tuple[int, ...], per_class: int = 6) -> np.ndarray:
    """Contact sheet of one checkpoint's `sample_rows`, a class per column; bytes."""
    content = bytes.fromhex("".join(rows.sort_values("sample").pixels))
    x = torch.tensor(np.frombuffer(content, np.uint8)).view(-1, *shape) / 127.5 - 1
    x = rearrange(x, "(label sample) c h w -> (sample label) c h w", sample=per_class)
    return sheet(x, rows=per_class, columns=len(x) // per_class)


def toy_distances(model: Drifter, toy: str, n: int = 2048, draws: int = 5) -> dict[str, float]:
    """How n generated points compare with real ones, beside other real ones.

    Returns:
        Sliced Wasserstein distance to real points, `w2`, and of real ones, `floor`, with `_sd`
        over draws; `stray`, the share that is farther from its nearest of 4 n real points than 99 %
        of real points are.
    """
    found = []
    for repeat in range(draws):
        generator = torch.Generator().manual_seed(stream("toy", repeat))
        real, other = (TOYS[toy](n, generator) for _ in range(2))
        made = sample(model, torch.zeros(n, dtype=torch.long), 1.0, repeat)
        gap, usual = (nearest(x, TOYS[toy](4 * n, generator)) for x in (made, other))
        stray = float((gap > usual.quantile(0.99)).double().mean())
        found.append([*(sliced_w2(x, real, generator) for x in (made, other)), stray])
    w2, floor, stray = np.mean(found, 0)
    w2_sd, floor_sd, _ = np.std(found, 0, ddof=1)
    return {"w2": w2, "floor": floor, "w2_sd": w2_sd, "floor_sd": floor_sd, "stray": stray}


def toy_points(model: Drifter, toy: str, n: int = 600) -> list[dict[str, object]]:
    """Points (x, y): `data`, `generated`, `early` half-way there, and its `field`, (u, v)."""
    real = TOYS[toy](n, torch.Generator().manual_seed(stream("points", toy)))
    made = sample(model, torch.zeros(n, dtype=torch.long), 1.0, 7)
    axis = torch.linspace(-2, 2, 15)
    grid = torch.cartesian_prod(axis, axis)
    early = made / 2
    v, _ = kernel.field(grid, real, early, [0.1], axes="y", relative=True, mask_self=False)
    rows = []
    for kind, at in {"data": real, "generated": made, "early": early, "field": grid}.items():
        arrows = v[0] if kind == "field" else torch.zeros_like(at)
        for point, (x, y, u, w) in enumerate(torch.cat([at, arrows], 1).tolist()):
            rows.append({"toy": toy, "kind": kind, "point": point, "x": x, "y": y, "u": u, "v": w})
    return rows
