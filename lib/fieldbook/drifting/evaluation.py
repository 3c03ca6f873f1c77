"""Evaluate the checkpoints of a drifting run: samples, measures, and one row of a table for each.

Under the output folder: `measures.csv`, and per checkpoint `artifacts/<name>/` with the samples as
PNG files in `generated/`, `preview.png` and `eval_metadata.json`.
"""

import json
import math
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from fieldbook.drifting import frechet
from fieldbook.drifting.experiment import METRICS, Checkpoint, Drifter, balanced_labels, restore
from fieldbook.drifting.images import to_uint8
from fieldbook.drifting.judge import Judge
from fieldbook.nn.checkpoints import atomic_write
from fieldbook.nn.checks import require
from fieldbook.nn.seeds import stream
from fieldbook.run.manifest import sha256
from fieldbook.run.tables import Row, read_csv, text, write_csv

KEYS = ("checkpoint", "weights", "num_samples", "alpha", "seed", "ema", "dataset_split", "fid_mode")
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
    *,
    num_samples: int = 500,
    batch_size: int = 256,
    alpha: float = 1.0,
    seed: int = 42,
    ema: bool = True,
    dataset_split: str = "train",
    fid_mode: str | None = None,
    skip_existing: bool = False,
    cleanup_samples: bool = False,
    device: torch.device | str = "cpu",
    draw: Callable[[pd.DataFrame], Any] | None = None,
) -> pd.DataFrame:
    """Evaluate one checkpoint, or every `step_*.safetensors` of a folder in the order of steps.

    A row is written as soon as it is known, so that a killed call continues under `skip_existing`.
    Of a folder, a damaged checkpoint is named in a warning and the others are evaluated.

    Args:
        judge: measures the samples; None leaves FID alone.
        num_samples: of all classes alike; `alpha`: strength of guidance, in [1, inf).
        ema: sample with the averaged weights.
        dataset_split, fid_mode: of clean-fid's statistics; `fid_mode` None leaves `fid` empty.
        skip_existing: keep rows of weights that have been measured in this way, or replace them.
        cleanup_samples: delete the PNG files of the samples once they are measured.
        draw: called with the table after each row, as `partial(figures.step_curve, ..)` may be.
    Returns:
        The whole table.
    Raises:
        FileNotFoundError: no checkpoint, or with `fid_mode` no file of clean-fid's.
        ValueError: a single checkpoint is damaged; or an option is out of range.
    """
    require(num_samples >= 2, "num_samples", num_samples, "at least 2")
    require(alpha >= 1, "alpha", alpha, "at least 1")
    measures, checkpoints = output / "measures.csv", Path(checkpoints)
    rows = _rows(measures)
    files = (
        sorted(checkpoints.glob("step_*.safetensors")) if checkpoints.is_dir() else [checkpoints]
    )
    if not files:
        raise FileNotFoundError(f"no checkpoint step_*.safetensors in {checkpoints}")
    for file in files:
        key = dict(
            zip(
                KEYS,
                (file.name, "", num_samples, alpha, seed, ema, dataset_split, fid_mode),
                strict=True,
            )
        )
        try:
            model, saved = restore(file, ema=ema)
        except ValueError as error:
            if len(files) == 1:
                raise
            warnings.warn(f"not evaluated: {error}", stacklevel=2)
            continue
        key["weights"] = sha256(file)[:12]
        if skip_existing and any(_are_alike(row, key) for row in rows):
            continue
        folder = output / "artifacts" / file.stem
        row = _evaluate_one(
            model.to(device), saved, key, folder, judge, batch_size, write=not cleanup_samples
        )
        rows = [old for old in rows if not _are_alike(old, key)] + [row]
        write_csv(measures, rows)
        if cleanup_samples:
            shutil.rmtree(folder / "generated", ignore_errors=True)
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


def _evaluate_one(
    model: Drifter,
    saved: Checkpoint,
    key: dict[str, Any],
    folder: Path,
    judge: Judge | None,
    batch_size: int,
    *,
    write: bool,
) -> dict[str, Any]:
    """Sample, write samples that are to stay or that clean-fid reads, measure: the row of one
    checkpoint."""
    start, data, mode = time.perf_counter(), saved.setting.data, key["fid_mode"]
    if mode:
        frechet.require_fid(data, saved.shape[-1], key["dataset_split"], mode)
    label = balanced_labels(key["num_samples"], saved.classes)
    x = sample(model, label, key["alpha"], key["seed"], batch_size)
    if write or mode:
        _write_images(x, folder / "generated")
    atomic_write(folder / "preview.png", lambda file: Image.fromarray(sheet(x)).save(file, "PNG"))
    found: dict[str, Any] = dict.fromkeys(MEASURES, math.nan)
    if judge:
        found |= judge.measure(x, label, key["seed"])
    if mode:
        found["fid"] = frechet.fid(
            folder / "generated", data, saved.shape[-1], key["dataset_split"], mode
        )
    facts = {
        **key,
        "name": f"{data}_{saved.setting.field}",
        "dataset": data,
        "epoch": saved.epoch,
        "step": saved.step,
        "batch_size": batch_size,
        "eval_seconds": round(time.perf_counter() - start, 3),
        **found,
        **{name: saved.metrics.get(name, math.nan) for name in METRICS},
    }
    about = facts | {"features": judge and judge.digest, "setting": vars(saved.setting)}
    plain = {name: None if value != value else value for name, value in about.items()}
    content = json.dumps(plain, indent=1, default=str).encode()
    atomic_write(folder / "eval_metadata.json", lambda file: file.write(content))
    return facts


@torch.no_grad()
def sample(model: Drifter, label: Tensor, alpha: float, seed: int, batch_size: int = 256) -> Tensor:
    """Samples of these labels (n,) in batches, (n, *shape) on the CPU; images clamped to [-1,
    1]."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(stream("samples", seed))
    x = torch.cat(
        [model.sample(part.to(device), alpha, generator).cpu() for part in label.split(batch_size)]
    )
    return x.clamp(-1, 1) if x.ndim == 4 else x


def _write_images(x: Tensor, folder: Path) -> None:
    """Write images (n, channels, height, width) in [-1, 1] as numbered PNG files, in place of those
    there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, pixels in enumerate(to_uint8(x).permute(0, 2, 3, 1).numpy()):
        Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(
            folder / f"{number:06d}.png"
        )


def sheet(x: Tensor, rows: int = 10, columns: int = 10) -> np.ndarray:
    """A contact sheet of images (n, c, h, w) in [-1, 1], evenly picked, a class per row: (H, W) or
    (H, W, 3) bytes."""
    chosen = x[torch.linspace(0, len(x) - 1, rows * columns).long()]
    tiles = (
        to_uint8(torch.nn.functional.pad(chosen, (1, 1, 1, 1), value=-1))
        .permute(0, 2, 3, 1)
        .numpy()
    )
    h, w, c = tiles.shape[1:]
    picture = tiles.reshape(rows, columns, h, w, c).swapaxes(1, 2).reshape(rows * h, columns * w, c)
    return picture.squeeze(-1) if c == 1 else picture
