"""The sixteen configurations of the tick experiments: their schema, and the generator that writes
them.

    python -m fieldbook.scaling.configs [folder]

writes eleven for scaling (models MS1, MS3, MS4 and data DS1, DS2, each in two stages, and the large
factor model FS1) and five to start from, of which `level1_pretrain` and `level2_finetune` are MS2
and DS3.
"""

import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import torch
import yaml
from pydantic import Field, PositiveInt

from fieldbook.nn.checkpoints import atomic_write
from fieldbook.nn.checks import Decay, NonNegative, Positive
from fieldbook.nn.machine import Precision
from fieldbook.run import paths
from fieldbook.scaling.transformer import WINDOW, build, count
from fieldbook.scaling.transforms import columns

Layers = Annotated[int, Field(ge=0, le=48)]
SIZES = {
    16: (1, 1),
    32: (1, 1),
    64: (1, 1),
    128: (1, 1),
    256: (2, 2),
    512: (4, 4),
}  # d_model: layers of each level
NAMES = {64: "MS1", 128: "MS2", 256: "MS3", 512: "MS4"}
FIXED = ("name", "mode", "d_model", "n_l1", "n_l2", "n_params")


@pydantic.dataclasses.dataclass(
    frozen=True, kw_only=True, config={"extra": "forbid", "strict": True}
)
class Config:
    """What one run is, beside its seed and the days that make a year.

    Attributes:
        mode: `pretrain` level 1 on short horizons; `finetune` level 2 on its frozen embeddings;
            `end2end`, both at once; `factor`, level 2 on hand-made statistics; `linear`, a linear
            map of patch means.
        d_model: the width; of the linear map, that of its input.
        parent: the configuration whose level 1 is taken, in mode `finetune`.
        n_params: of all that a prediction passes through, the pretraining head included; checked
            against the network.
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
    n_params: PositiveInt
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
        if (self.mode == "finetune") != (self.parent is not None):
            raise ValueError(
                f"parent = {self.parent!r}: expected a name in mode finetune, and in no other"
            )
        size = (self.mode, self.d_model, self.n_l1, self.n_l2)
        if self.n_params != (
            counted := parameters_of(*size, include_skew_norm=self.include_skew_norm)
        ):
            raise ValueError(
                f"n_params = {self.n_params} of {self.name}: the network has {counted}"
            )


def parameters_of(
    mode: str, d: int, n_l1: int, n_l2: int, *, include_skew_norm: bool = True
) -> int:
    """Parameters of the network that a mode trains, or of both stages of `pretrain` and
    `finetune`."""
    stages = ("pretrain", "finetune") if mode in ("pretrain", "finetune") else (mode,)
    with torch.device("meta"):
        return count(
            *(
                build(stage, d, n_l1, n_l2, n_features=len(columns(include_skew_norm)))
                for stage in stages
            )
        )


def _configure(name: str, mode: str, d: int, n_l1: int, n_l2: int, **other: Any) -> Config:
    """A configuration with its parameters counted."""
    n = parameters_of(mode, d, n_l1, n_l2, include_skew_norm=other.get("include_skew_norm", True))
    return Config(name=name, mode=mode, d_model=d, n_l1=n_l1, n_l2=n_l2, n_params=n, **other)


def resized(config: Config, d: int, **other: Any) -> Config:
    """The same run at another width, with other changes; with a level 1, both levels get the layers
    of that width."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    if config.n_l1 and d != config.d_model:
        values["n_l1"], values["n_l2"] = SIZES[d]
    values |= {"d_model": d, **other}
    size = [values[name] for name in FIXED[:-1]]
    return _configure(*size, **{name: value for name, value in values.items() if name not in FIXED})


def generate() -> list[Config]:
    """All sixteen configurations."""
    base = [
        _configure("level1_pretrain", "pretrain", 128, 1, 1),
        _configure("level2_finetune", "finetune", 128, 1, 1, parent="level1_pretrain", dropout=0.1),
        _configure("end2end", "end2end", 128, 1, 1, dropout=0.1),
        _configure("factor", "factor", 128, 0, 2, dropout=0.1),
        _configure("linear_baseline", "linear", WINDOW * len(columns()), 0, 0),
    ]
    models = {f"ms{k}": {"d": d} for k, d in ((1, 64), (3, 256), (4, 512))}
    data = {
        f"ds{k}": {"d": 128, "instruments": i, "years": y} for k, i, y in ((1, 2, 2), (2, 5, 4))
    }
    scaling = []
    for name, changes in (models | data).items():
        scaling.append(resized(base[0], name=f"{name}_pretrain", **changes))
        scaling.append(
            resized(base[1], name=f"{name}_finetune", parent=f"{name}_pretrain", **changes)
        )
    return base + scaling + [_configure("fs1", "factor", 256, 0, 4, dropout=0.1)]


def text(config: Config) -> str:
    """A configuration as YAML, the same bytes for the same configuration."""
    head = f"# Written by `python -m fieldbook.scaling.configs`. {config.n_params:,} parameters.\n"
    return head + yaml.safe_dump(asdict(config), sort_keys=False)


def write(folder: Path) -> list[Path]:
    """Write all sixteen files."""
    folder = Path(folder)
    for config in generate():
        atomic_write(
            folder / f"{config.name}.yaml", lambda file, c=config: file.write(text(c).encode())
        )
    return sorted(folder.glob("*.yaml"))


def read(file: Path) -> Config:
    """Read and validate one file.

    Raises:
        ValueError: not YAML, or not a valid configuration; names the file, the field, and what was
            found.
    """
    try:
        return Config(**yaml.safe_load(Path(file).read_text(encoding="utf-8")))
    except OSError:
        raise
    except (
        Exception
    ) as error:  # PyYAML, pydantic and torch refuse what is not a configuration in many ways
        raise ValueError(f"{file}: not a valid configuration: {error}") from error


def read_all(folder: Path | None = None) -> dict[str, Config]:
    """All configurations of a folder by name, by default those of the book; parents must be among
    them.

    Raises:
        ValueError: a file is not valid, is not named after its configuration, or its parent is
            missing.
    """
    folder = folder or paths.ROOT / "parameters" / "scaling" / "configs"
    configs = {file.stem: read(file) for file in sorted(Path(folder).glob("*.yaml"))}
    for stem, config in configs.items():
        if stem != config.name or config.parent not in (None, *configs):
            raise ValueError(
                f"{folder}/{stem}.yaml: name {config.name!r}, parent {config.parent!r}: not in the folder"
            )
    return configs


if __name__ == "__main__":
    target = sys.argv[1] if len(sys.argv) > 1 else paths.ROOT / "parameters" / "scaling" / "configs"
    print(*write(target), sep="\n")
