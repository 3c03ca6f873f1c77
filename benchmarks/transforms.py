"""Thirteen channels to 52 columns: ours against a straightforward two-pass pandas version, side by
side in one thread.

    python benchmarks/transforms.py

Times are CPU seconds, medians over repeats, both sides on the same days; results must agree to
1e-4.
"""

import statistics
import time

import numpy as np
import pandas as pd
from record import record

from fieldbook.scaling.market import World, generate
from fieldbook.scaling.transforms import CHANNELS, LOGARITHMIC, columns, transform

TICKS, REPEATS, INNER, OUTER = 28_800, 5, 60, 1800


def two_passes(raw: np.ndarray) -> np.ndarray:
    """Rolling moments, then rolling z-scores of them, as one would write it in pandas."""
    x = pd.DataFrame(raw, columns=CHANNELS)
    volumes = [CHANNELS[i] for i in LOGARITHMIC]
    x[volumes] = np.sign(x[volumes]) * np.log1p(x[volumes].abs())
    rolling = x.rolling(INNER)
    parts = []
    for part in (x, rolling.std(), rolling.mean(), rolling.skew()):
        past = part.shift(1).rolling(OUTER, min_periods=60)
        mean, std = past.mean(), past.std()
        flat = ~(std > 1e-6 * np.maximum(mean.abs(), 1e-12))
        parts.append(((part - mean) / std).mask(flat, 0).clip(-5, 5).fillna(0))
    return pd.concat(parts, axis=1).to_numpy(np.float32)


def main() -> None:
    """Print both speeds and the largest difference."""
    days = [generate(World(), instrument, 0, TICKS).raw for instrument in range(REPEATS)]
    sides = {"pandas, two passes": two_passes, "ours": transform}
    times, results = {name: [] for name in sides}, {}
    for day in days:
        for name, side in sides.items():
            start = time.process_time()
            results[name] = side(day)
            times[name].append(time.process_time() - start)
    peer, ours = (np.asarray(results[name]) for name in sides)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    difference = float(np.abs(peer - ours).max())

    print(
        f"{TICKS:,} ticks x {len(CHANNELS)} channels -> {len(columns())} columns, {np.isnan(ours).sum()} NaN"
    )
    for name, value in seconds.items():
        print(f"{name:<20} {value:>7.3f} s {TICKS / value:>12,.0f} ticks per CPU second")
    print(
        f"ratio {seconds['pandas, two passes'] / seconds['ours']:.1f}; largest difference {difference:.1e}"
    )

    peers = {"pandas, two passes": TICKS / seconds["pandas, two passes"]}
    record("ticks transformed", "ticks / CPU s", TICKS / seconds["ours"], peers, rate=True)
    assert difference < 1e-4, "the two differ"
    assert TICKS / seconds["ours"] >= 250_000, "fewer than 250,000 ticks per CPU second"


if __name__ == "__main__":
    main()
