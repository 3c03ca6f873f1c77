"""The sixteen configurations of the tick experiments: their schema, and what writes their files.

    python -m fieldbook.scaling.configs FOLDER

writes eleven for scaling (models MS1, MS3, MS4 and data DS1, DS2, each in two stages, and the large
factor model FS1) and five to start from, of which `level1_pretrain` and `level2_finetune` are MS2
and DS3.
"""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import pydantic
import torch
import yaml
from pydantic import Field, PositiveInt

from fieldbook.nn.checkpoints import atomic_write
from fieldbook.nn.checks import Decay, NonNegative, Positive, require
from fieldbook.nn.machine import Precision
from fieldbook.scaling.transformer import PATCH, WINDOW, build, count, flops
from fieldbook.scaling.transforms import columns

Layers = Annotated[int, Field(ge=0, le=48)]
# d_model: layers of each level
SIZES = {16: (1, 1), 32: (1, 1), 64: (1, 1), 128: (1, 1), 256: (2, 2), 512: (4, 4)}
NAMES = {64: "MS1", 128: "MS2", 256: "MS3", 512: "MS4"}
STRICT = {"extra": "forbid", "strict": True}  # no further names, and no text for a number


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class Config:
    """What one run is, beside its seed and the days that make a year.

    Attributes:
        mode: `pretrain` level 1 on short horizons; `finetune` level 2 on its frozen embeddings;
            `end2end`, both at once; `factor`, level 2 on hand-made statistics; `linear`, a linear
            map of patch means.
        parent: the configuration whose level 1 is taken, in mode `finetune`.
        d_model: the width; of the linear map, that of its input.
        n_params: of all that a prediction passes through, the pretraining head included; counted
            unless given.
        years, instruments: of the training data; `epochs`: passes over them.
        batch_size: examples per update; `warmup`: share of the updates; the learning rate falls to
            `lr_min_share`.
    Raises:
        ValueError: an unknown name, a wrong type, a value out of range, or a count that is not the
            network's.
    """

    name: str
    mode: Literal["pretrain", "finetune", "end2end", "factor", "linear"]
    parent: str | None = None
    d_model: PositiveInt
    n_l1: Layers
    n_l2: Layers
    n_params: PositiveInt | None = None
    include_skew_norm: bool = True
    instruments: PositiveInt = 10
    years: PositiveInt = 8
    epochs: PositiveInt = 1
    batch_size: PositiveInt = 32768
    lr: Positive = 1e-3
    lr_min_share: Decay = 0.05
    warmup: Decay = 0.05
    weight_decay: NonNegative = 0.01
    clip: Positive = 1.0
    dropout: Decay = 0.0
    precision: Precision = "bf16"

    def __post_init__(self) -> None:
        fits = (self.mode == "finetune") == (self.parent is not None)
        require(fits, "parent", self.parent, "a name in mode finetune, and in no other")
        size = (self.mode, self.d_model, self.n_l1, self.n_l2)
        n = parameters_of(*size, n_in=self.n_in)
        accepted = f"its count; the network has {n}"
        require(self.n_params in (None, n), "n_params", self.n_params, accepted)
        object.__setattr__(self, "n_params", n)

    @property
    def n_in(self) -> int:
        """Features of a tick."""
        return len(columns(self.include_skew_norm))


def parameters_of(mode: str, d: int, n_l1: int, n_l2: int, *, n_in: int = 52) -> int:
    """Parameters of a mode's network; of `pretrain` and `finetune`, those of both stages."""
    both = ("pretrain", "finetune")
    stages = both if mode in both else (mode,)
    with torch.device("meta"):
        return count(*(build(stage, d, n_l1, n_l2, n_in=n_in) for stage in stages))


def resized(config: Config, d: int, **changes: Any) -> Config:
    """The same run at another width; with a level 1, both levels get the layers of that width."""
    if config.n_l1 and d != config.d_model:
        layers = dict(zip(("n_l1", "n_l2"), SIZES[d], strict=True))
        changes = layers | changes
    return replace(config, d_model=d, n_params=None, **changes)


def model_sizes() -> pd.DataFrame:
    """Models by width: layers of each level, parameters of both and of level 1, and operations.

    `attention` is what it adds to the rule of 6 N operations per tick, `cost` the operations of
    training level 1 on one patch.
    """
    rows = {}
    for d, layers in SIZES.items():
        with torch.device("meta"):
            level1 = count(build("pretrain", d, *layers))
        weights, attention = flops("pretrain", d, *layers)
        rows[d] = {
            "model": NAMES.get(d, ""),
            "layers": " + ".join(map(str, layers)),
            "parameters": parameters_of("pretrain", d, *layers),
            "of level 1": level1,
            "attention": attention / (2 * PATCH * level1),
            "cost": 3 * (weights + attention),
        }
    return pd.DataFrame(rows).T.infer_objects().rename_axis("width")


def generate() -> list[Config]:
    """All sixteen configurations."""
    size = {"d_model": 128, "n_l1": 1, "n_l2": 1}
    first = Config(name="level1_pretrain", mode="pretrain", **size)
    second = Config(name="level2_finetune", mode="finetune", parent=first.name, dropout=0.1, **size)
    both = Config(name="end2end", mode="end2end", dropout=0.1, **size)
    factor = Config(name="factor", mode="factor", d_model=128, n_l1=0, n_l2=2, dropout=0.1)
    inputs = WINDOW * len(columns())
    linear = Config(name="linear_baseline", mode="linear", d_model=inputs, n_l1=0, n_l2=0)
    configs = [first, second, both, factor, linear]
    cells = {"ms1": (64, 10, 8), "ms3": (256, 10, 8), "ms4": (512, 10, 8)}
    cells |= {"ds1": (128, 2, 2), "ds2": (128, 5, 4)}
    for name, (d, instruments, years) in cells.items():
        amount = {"instruments": instruments, "years": years}
        parent = f"{name}_pretrain"
        configs.append(resized(first, d, name=parent, **amount))
        configs.append(resized(second, d, name=f"{name}_finetune", parent=parent, **amount))
    return [*configs, resized(factor, 256, name="fs1", n_l2=4)]


def text(config: Config) -> str:
    """A configuration as YAML, the same bytes for the same configuration."""
    head = f"# Written by `python -m fieldbook.scaling.configs`. {config.n_params:,} parameters.\n"
    return head + yaml.safe_dump(asdict(config), sort_keys=False)


def write(folder: Path) -> list[Path]:
    """Write all sixteen files."""
    folder = Path(folder)
    for config in generate():
        content = text(config).encode()
        atomic_write(folder / f"{config.name}.yaml", lambda file, data=content: file.write(data))
    return sorted(folder.glob("*.yaml"))


def read(file: Path) -> Config:
    """Read and validate one file.

    Raises:
        ValueError: not YAML, or no valid configuration; names file, field, and what was found.
    """
    try:
        return Config(**yaml.safe_load(Path(file).read_text(encoding="utf-8")))
    except OSError:
        raise
    except Exception as error:  # PyYAML, pydantic and torch refuse in many ways
        raise ValueError(f"{file}: not a valid configuration: {error}") from error


def read_all(folder: Path) -> dict[str, Config]:
    """All configurations of a folder by name; parents must be among them.

    Raises:
        ValueError: a file is not valid or not named as its configuration, or a parent is missing.
    """
    configs = {file.stem: read(file) for file in sorted(Path(folder).glob("*.yaml"))}
    for stem, config in configs.items():
        file = f"{folder}/{stem}.yaml"
        require(config.name == stem, f"name in {file}", config.name, "that of the file")
        known = config.parent in (None, *configs)
        require(known, f"parent in {file}", config.parent, "a configuration of this folder")
    return configs


if __name__ == "__main__":
    print(*write(Path(sys.argv[1])), sep="\n")
