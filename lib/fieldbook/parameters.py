"""Check parameters against a notebook's own parameters cell, before anything runs.

The cell tagged `parameters` is the single source of names, types and defaults: one annotated assignment a line, with a
comment that may state the values accepted,

    p: int = 97                  # modulus, a prime, in [5, 499]
    train_fraction: float = 0.5  # share of the pairs in train, in (0, 1)
    precision: str = "bf16"      # one of {fp32, bf16}

papermill shows that comment in `--help-notebook` but checks nothing, and PyYAML reads `1e-4` as a string; here such a
string becomes the float it was meant to be, in files (`check`) and inside the notebook (`load`) alike.
"""

import argparse
import ast
import difflib
import math
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import nbformat
import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from fieldbook import paths

_INTERVAL = re.compile(r"\bin ([\[(])\s*([^,\s]+)\s*,\s*([^\])\s]+)\s*([\])])")
_CHOICES = re.compile(r"\bone of \{([^}]*)\}")
_SCALARS = {"int": int, "float": float, "str": str, "bool": bool}


def specification(notebook: Path) -> dict[str, tuple[Any, Any, str]]:
    """Name -> (type, default, comment) of each parameter of a notebook, as papermill reads them.

    Raises:
        FileNotFoundError: no such notebook.
        ValueError: no cell is tagged `parameters`, or an annotation other than int, float, str, bool or a list of one.
    """
    from papermill import inspect_notebook  # costs a second to import

    if not Path(notebook).is_file():
        raise FileNotFoundError(f"{notebook}: no such notebook")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # papermill warns of a missing cell; the error below says it better
        found = inspect_notebook(str(notebook))
    if not found:
        raise ValueError(f"{notebook}: no cell tagged `parameters` with annotated assignments")
    if lost := [name for name in _assigned(notebook) if name not in found]:
        raise ValueError(f"{notebook}: papermill cannot read parameter {lost[0]}; is there an `=` in its comment?")
    return {
        name: (_type(notebook, name, entry), ast.literal_eval(entry["default"]), entry["help"])
        for name, entry in found.items()
    }


def check(notebook: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a notebook with `values` put over its defaults.

    Args:
        notebook: an `.ipynb` with a parameters cell.
        values: some or all of its parameters, as read from YAML.
    Returns:
        Every parameter by name, floats written as `1e-4` converted.
    Raises:
        ValueError: one line for each unknown name (with the nearest known one), wrong type or value out of range.
    """
    known = specification(notebook)
    problems = []
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
            hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(known)}"
            problems.append(f"{name}: unknown parameter; {hint}")
    fields = {name: (kind, Field(default=default)) for name, (kind, default, _) in known.items()}
    model = create_model("Parameters", __config__=ConfigDict(strict=True, validate_default=True), **fields)
    try:
        accepted = model(**{name: value for name, value in values.items() if name in known})
    except ValidationError as error:
        problems += [_sentence(item, known) for item in error.errors()]
    if problems:
        raise ValueError("\n".join([f"{notebook}: parameters refused", *(f"  {line}" for line in problems)]))
    return accepted.model_dump()


def check_file(notebook: Path, file: Path) -> dict[str, Any]:
    """`check` on a YAML file; its errors name the file."""
    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: no such parameter file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    if values is not None and not isinstance(values, dict):
        raise ValueError(f"{file}: expected `name: value` lines, found a {type(values).__name__}")
    try:
        return check(notebook, values or {})
    except ValueError as error:
        raise ValueError(f"{file} for {error}") from None


def load(chapter: str, namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The checked parameters of a running notebook, from its `globals()`.

    In JupyterLab and under plain papermill nothing has checked them before the kernel started; this does.
    """
    notebook = paths.notebook(chapter)
    return check(notebook, {name: namespace[name] for name in specification(notebook) if name in namespace})


def _assigned(notebook: Path) -> list[str]:
    """Names that the parameters cell assigns, as Python reads it."""
    cells = nbformat.read(notebook, as_version=4).cells
    source = next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    nodes = (node for node in ast.parse(source).body if isinstance(node, ast.Assign | ast.AnnAssign))
    return [node.target.id if isinstance(node, ast.AnnAssign) else node.targets[0].id for node in nodes]


def _type(notebook: Path, name: str, entry: Mapping[str, str]) -> Any:
    annotation = re.fullmatch(r"(?:(list)\[)?(int|float|str|bool)\]?", entry["inferred_type_name"])
    if annotation is None:
        raise ValueError(
            f"{notebook}: parameter {name} is annotated {entry['inferred_type_name']!r}: "
            "expected int, float, str, bool or a list of one"
        )
    kind = _constrained(_SCALARS[annotation[2]], entry["help"])
    return list[kind] if annotation[1] else kind


def _constrained(kind: type, comment: str) -> Any:
    """The pydantic type of a scalar and what its comment says of its values."""
    if choices := _CHOICES.search(comment):
        return Literal[tuple(kind(choice.strip()) for choice in choices[1].split(","))]
    constraints: list[Any] = [Field(allow_inf_nan=False)] if kind is float else []
    if interval := _INTERVAL.search(comment):
        opening, low, high, closing = interval.groups()
        bounds = {"ge" if opening == "[" else "gt": float(low), "le" if closing == "]" else "lt": float(high)}
        constraints.append(Field(**{key: bound for key, bound in bounds.items() if math.isfinite(bound)}))
    if re.search(r"\ba prime\b", comment):
        constraints.append(AfterValidator(_prime))
    if kind is float:
        constraints.append(BeforeValidator(_number))
    return Annotated[kind, *constraints] if constraints else kind


def _prime(value: int) -> int:
    from fieldbook.data.modular import require_prime

    require_prime(value, "value")
    return value


def _number(value: Any) -> Any:
    """PyYAML follows YAML 1.1, in which `1e-4` has no dot and is a string."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def _sentence(item: Mapping[str, Any], known: Mapping[str, tuple[Any, Any, str]]) -> str:
    name, *index = item["loc"]
    where = f"{name}[{index[0]}]" if index else name
    return f"{where} = {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]} ({known[name][2]})"


def main(arguments: list[str] | None = None) -> int:
    """`python -m fieldbook.parameters check NOTEBOOK FILE...`: exit 0 when every file fits the notebook."""
    parser = argparse.ArgumentParser(prog="python -m fieldbook.parameters", description=main.__doc__)
    parser.add_argument("command", choices=["check"])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args(arguments)
    failed = False
    for file in options.files:
        try:
            check_file(options.notebook, file)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
