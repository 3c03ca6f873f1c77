"""Check parameters against a notebook's own parameters cell, before anything runs.

The cell tagged `parameters` is the single source of names, types and defaults: one annotated
assignment a line, with a comment that may state the values accepted::

    p: int = 97                   # modulus, a prime, in [5, 499]
    train_fraction: float = 0.5   # share of the pairs in train, in (0, 1)
    precision: str = "bf16"       # one of {fp32, bf16}
    sizes: list[int] = [1, 2, 3]  # at least 3 values, each in [1, inf)
    burn_in: int = 6              # steps dropped, below `steps`
    seeds: list[int] = [0, 1]     # distinct, each in [0, inf)

A value may be bound to another parameter, or to all values of a list: below, above, one of, or a
divisor of it; the values of a list may be distinct, or ascending. PyYAML reads `1e-4` as a string;
here it becomes a float, in files and inside the notebook alike. What YAML reads otherwise than it
looks (`0500`, `1:30`, `no`) is refused in files, where it is still to be seen.
"""

import argparse
import ast
import difflib
import io
import json
import math
import re
import reprlib
import sys
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from fieldbook.nn.checks import require_prime
from fieldbook.run import paths

_INTERVAL = re.compile(r"\bin ([\[(])\s*([^,\s]+)\s*,\s*([^\])\s]+)\s*([\])])")
_CHOICES = re.compile(r"\bone of \{([^}]*)\}")
_RELATION = re.compile(r"\b(below|above|one of|a divisor of) `(\w+)`")
_HOLDS: dict[str, Callable[[Any, list], bool]] = {
    "below": lambda value, others: value < min(others),
    "above": lambda value, others: value > max(others),
    "one of": lambda value, others: value in others,
    "a divisor of": lambda value, others: all(other % value == 0 for other in others),
}
_WORDS: dict[str, tuple[type, Callable[[Any], bool]]] = {
    "odd": (int, lambda value: value % 2 == 1),
    "distinct": (list, lambda values: len(set(values)) == len(values)),
    "ascending": (list, lambda values: all(low < high for low, high in pairwise(values))),
}
_PLAIN = {  # words of YAML that are read as they look
    "int": re.compile(r"[-+]?(0|[1-9]\d*)"),
    "float": re.compile(r"[-+]?(\d*\.\d*([eE][-+]\d+)?|\.inf|\.nan)", re.IGNORECASE),
    "bool": re.compile("true|false", re.IGNORECASE),
    "null": re.compile("|~|null", re.IGNORECASE),
    "str": re.compile(".*"),
}
_SCALARS = {"int": int, "float": float, "str": str, "bool": bool}


class Refused(ValueError):
    """Parameters that are not accepted: a notebook shows the sentences alone, without frames."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class Parameters:
    """A chapter's checked parameters, `par.lr`; they do not change.

    Values of other parameters are asked for by name, as any function may: what a table depends on
    is found by the names that its code mentions.
    """

    def __init__(self, values: Mapping[str, Any]):
        vars(self).update(values)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no parameter is named {name}; known are {', '.join(vars(self))}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"par.{name} is not to be set; par.replace({name}=..) makes a copy")

    def __repr__(self) -> str:
        return f"Parameters({', '.join(f'{key}={value!r}' for key, value in vars(self).items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Parameters) and vars(self) == vars(other)

    __hash__ = None

    def __reduce__(self) -> tuple:
        return Parameters, (self.asdict(),)

    def replace(self, **changes: Any) -> "Parameters":
        """A copy with some values changed; raises AttributeError if there is no such parameter."""
        for name in changes:
            getattr(self, name)
        return Parameters(vars(self) | changes)

    def asdict(self) -> dict[str, Any]:
        """All of them by name."""
        return dict(vars(self))


def specification(notebook: Path) -> dict[str, tuple[Any, Any, str]]:
    """Name -> (type, default, comment) of each parameter of a notebook.

    Raises:
        FileNotFoundError: no such notebook.
        ValueError: no cell is tagged `parameters`, or it holds more than plain values annotated
            with int, float, str, bool or a list of one.
    """
    if not Path(notebook).is_file():
        raise FileNotFoundError(f"{notebook}: no such notebook")
    try:
        cells = json.loads(Path(notebook).read_bytes())["cells"]
        tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
        source = "".join("".join(cell["source"]) for cell in tagged[:1])
    except Exception as error:  # a damaged file fails in many ways
        raise ValueError(f"{notebook}: the parameters cell cannot be read ({error})") from error
    return _specified(source, notebook)


def _specified(source: str, where: Path | str) -> dict[str, tuple[Any, Any, str]]:
    """Of the source of a parameters cell; `where` it is from, for messages."""
    try:
        statements = ast.parse(source).body
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, tokenize.TokenError, ValueError) as error:
        raise ValueError(f"{where}: the parameters cell cannot be read ({error})") from error
    if not statements:
        raise ValueError(f"{where}: no cell tagged `parameters` with annotated assignments")
    comments = {
        token.end[0]: token.string.lstrip("# ")
        for token in tokens
        if token.type == tokenize.COMMENT
    }
    known = {}
    for node in statements:
        if not isinstance(node, ast.AnnAssign) or node.value is None:
            found = f"`{ast.unparse(node)}` among the parameters"
            raise ValueError(f"{where}: {found}; expected `name: type = value`")
        known[ast.unparse(node.target)] = _entry(where, node, comments.get(node.end_lineno, ""))
    return known


def check(notebook: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter of a notebook, with `values` as read from YAML put over its defaults.

    Raises:
        ValueError: one line for each unknown name (with the nearest known one), wrong type or
            value out of range.
    """
    return _checked(notebook, specification(notebook), values)


def _checked(
    where: Path | str, known: Mapping[str, tuple], values: Mapping[str, Any]
) -> dict[str, Any]:
    problems = []
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
            hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(known)}"
            problems.append(f"{name}: unknown parameter; {hint}")
    accepted = {}
    for name, (kind, default, comment) in known.items():
        value = values.get(name, default)
        try:
            accepted[name] = TypeAdapter(kind).validate_python(value, strict=True)
        except ValidationError as error:
            problems += [_sentence(name, item, comment) for item in error.errors()]
    if not problems:
        problems = _broken_rules(known, accepted)
    try:
        paths.one_folder(accepted.get("profile", "quick"))
    except ValueError as error:
        problems.append(str(error))
    if problems:
        lines = [f"{where}: parameters refused", *(f"  {line}" for line in problems)]
        raise Refused("\n".join(lines))
    return accepted


def check_file(notebook: Path, file: Path) -> dict[str, Any]:
    """`check` on a YAML file; its errors name the file."""
    try:
        text = Path(file).read_text(encoding="utf-8")
        values = yaml.safe_load(text)
        misread = _misread(text)
    except FileNotFoundError:
        there = (
            ", ".join(sorted(other.name for other in Path(file).parent.glob("*.yaml"))) or "none"
        )
        raise FileNotFoundError(f"{file}: no such parameter file; there are: {there}") from None
    except OSError:
        raise
    except Exception as error:  # PyYAML stumbles over some tags with errors of every kind
        raise ValueError(f"{file}: not valid YAML: {' '.join(str(error).split()):.400}") from None
    if values is not None and not isinstance(values, dict):
        raise ValueError(f"{file}: expected `name: value` lines, found a {type(values).__name__}")
    try:
        accepted = check(notebook, values or {})
    except ValueError as error:
        raise ValueError("\n  ".join([f"{file} for {error}", *misread])) from None
    if misread:
        raise ValueError("\n  ".join([f"{file}: read otherwise than it looks", *misread]))
    return accepted


def load(chapter: str, namespace: Mapping[str, Any]) -> Parameters:
    """The checked parameters of a running notebook, from its `globals()`.

    They are checked against the parameters cell that has been run there, be it of a copy or not yet
    saved; outside IPython, against the chapter's notebook on disk.
    """
    known = _running(chapter, namespace)
    values = {name: namespace[name] for name in known if name in namespace}
    return Parameters(_checked(paths.notebook(chapter), known, values))


def meanings(chapter: str, namespace: Mapping[str, Any]) -> dict[str, str]:
    """What each parameter of a running notebook means: the comments of the cell that `load`
    reads."""
    return {name: comment for name, (_, _, comment) in _running(chapter, namespace).items()}


def _running(chapter: str, namespace: Mapping[str, Any]) -> dict[str, tuple[Any, Any, str]]:
    source = _running_cell(namespace.get("In", []))
    if source is None:
        return specification(paths.notebook(chapter))
    return _specified(source, f"notebook {chapter}")


def of_profile(chapter: str, profile: str) -> Parameters:
    """The parameters of a chapter under one of its profiles; raises as `check_file` does."""
    file = paths.ROOT / "parameters" / chapter / f"{profile}.yaml"
    return Parameters(check_file(paths.notebook(chapter), file))


def _running_cell(executed: Sequence[str]) -> str | None:
    """The last of these cells that holds annotated assignments alone, `profile` among them."""
    for source in reversed(executed):
        try:
            statements = ast.parse(source).body
        except (SyntaxError, ValueError):
            continue
        annotated = [node for node in statements if isinstance(node, ast.AnnAssign)]
        names = [ast.unparse(node.target) for node in annotated]
        if "profile" in names and len(annotated) == len(statements):
            return source
    return None


def _broken_rules(known: Mapping[str, tuple], values: Mapping[str, Any]) -> list[str]:
    """A line for each value that is not odd, distinct, below another one, .., as its comment
    says."""
    problems = []
    for name, (_, _, comment) in known.items():
        value = values[name]
        for word, (kind, holds) in _WORDS.items():
            says = isinstance(value, kind) and re.search(rf"\b{word}\b", comment)
            if says and not holds(value):
                problems.append(f"{name} = {value!r}: should be {word} ({comment})")
        for relation, other in _RELATION.findall(comment):
            if other not in values:
                raise ValueError(
                    f"the comment of parameter {name} binds it to `{other}`, which is no parameter"
                )
            bound = values[other]
            if not _HOLDS[relation](value, bound if isinstance(bound, list) else [bound]):
                problems.append(
                    f"{name} = {value!r}: should be {relation} {other} = {bound!r} ({comment})"
                )
    return problems


def _misread(text: str) -> list[str]:
    """A line for each word of a YAML text whose meaning is not the one it looks to have."""
    signs = {yaml.TagToken: "a tag", yaml.AnchorToken: "an anchor", yaml.AliasToken: "an alias"}
    found = [token for token in yaml.scan(text, yaml.SafeLoader) if type(token) in signs]
    if found:  # an alias may stand for what it is part of: not to be walked through
        first = {signs[type(token)]: token.start_mark.line + 1 for token in reversed(found)}
        return [f"line {n} has {sign}; write the value itself" for sign, n in first.items()]
    return list(islice(_misread_node(yaml.compose(text, yaml.SafeLoader), "the file"), 10))


def _misread_node(node: yaml.Node | None, where: str) -> Iterator[str]:
    if isinstance(node, yaml.SequenceNode):
        for place, value in enumerate(node.value):
            yield from _misread_node(value, f"{where}[{place}]")
    elif isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"given more than once: {name:.40}"
        for key, value in node.value:
            yield from _misread_node(key, "a name")
            yield from _misread_node(value, str(key.value)[:40])
    elif node is not None and node.style is None:
        kind = _PLAIN.get(node.tag.removeprefix("tag:yaml.org,2002:"))
        if kind is None:
            yield f"{where}: `{node.value:.40}` is not read as text; write it in quotes"
        elif not kind.fullmatch(node.value):
            meaning = json.dumps(yaml.safe_load(node.value))
            remedy = f"write {meaning:.40} for that, a plain decimal number, or quotes for a text"
            yield f"{where}: `{node.value:.40}` is read as {meaning:.40}; {remedy}"


def _entry(notebook: Path | str, node: ast.AnnAssign, comment: str) -> tuple[Any, Any, str]:
    name = ast.unparse(node.target)
    written = ast.unparse(node.annotation)
    annotation = re.fullmatch(r"(?:(list)\[)?(int|float|str|bool)\]?", written)
    if annotation is None:
        expected = "expected int, float, str, bool or a list of one"
        raise ValueError(f"{notebook}: parameter {name} is annotated {written!r}: {expected}")
    try:
        kind = _constrained(_SCALARS[annotation[2]], comment)
        default = ast.literal_eval(node.value)
    except (ValueError, SyntaxError) as error:
        raise ValueError(
            f"{notebook}: parameter {name}: default or comment cannot be read ({error})"
        ) from error
    least = re.search(r"\bat least (\d+) values\b", comment)
    several = Annotated[list[kind], Field(min_length=int(least[1]) if least else 1)]
    return (several if annotation[1] else kind), default, comment


def _constrained(kind: type, comment: str) -> Any:
    """The pydantic type of a scalar and what its comment says of its values."""
    if choices := _CHOICES.search(comment):
        known = Literal[tuple(kind(choice.strip()) for choice in choices[1].split(","))]
        return Annotated[known, BeforeValidator(partial(_of_kind, kind))]
    held = {int: [Field(ge=-(2**63), le=2**63 - 1)], float: [Field(allow_inf_nan=False)]}
    constraints: list[Any] = held.get(kind, [])  # what a table and a tensor can hold
    if kind in (int, float) and (interval := _INTERVAL.search(comment)):
        opening, low, high, closing = interval.groups()
        bounds = {
            "ge" if opening == "[" else "gt": float(low),
            "le" if closing == "]" else "lt": float(high),
        }
        constraints.append(
            Field(**{key: bound for key, bound in bounds.items() if math.isfinite(bound)})
        )
    if re.search(r"\ba prime\b", comment):
        constraints.append(AfterValidator(_prime))
    if kind is float:
        constraints.append(BeforeValidator(_number))
    return Annotated[kind, *constraints] if constraints else kind


def _of_kind(kind: type, value: Any) -> Any:
    """A choice is found by `==`, which holds for 16.0 and 16."""
    if type(value) is not kind:
        raise ValueError(f"should be of type {kind.__name__}")
    return value


def _prime(value: int) -> int:
    require_prime(value, "value")
    return value


def _number(value: Any) -> Any:
    """PyYAML follows YAML 1.1, in which `1e-4` has no dot and is a string."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value):
        return float(value)
    return value


def _sentence(name: str, item: Mapping[str, Any], comment: str) -> str:
    where = f"{name}[{item['loc'][0]}]" if item["loc"] else name
    said = item["msg"].removeprefix("Value error, ")
    said = said[0].lower() + said[1:]
    if item["type"] == "bool_type" and item["input"] in ("true", "false"):
        said += "; papermill takes `-p name True` or `-y 'name: true'`"
    return f"{where} = {reprlib.repr(item['input'])}: {said} ({comment})"


def main(arguments: list[str] | None = None) -> int:
    """`python -m fieldbook.run.parameters check NOTEBOOK FILE...`: exit 0 when every file fits the
    notebook."""
    parser = argparse.ArgumentParser(
        prog="python -m fieldbook.run.parameters", description=main.__doc__
    )
    parser.add_argument("command", choices=["check"])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args(arguments)
    sys.stdout.reconfigure(errors="backslashreplace")  # a path need not fit the locale
    failed = 0
    for file in options.files:
        try:
            check_file(options.notebook, file)
            print(f"ok: {file}")
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
