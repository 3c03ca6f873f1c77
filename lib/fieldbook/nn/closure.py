"""What a function's results depend on, beside its arguments: found by following its code.

A function depends on its own code, on whatever that refers to (functions, classes, constants, what
it closes over, tables of package data) and so on, as far as the code is ours. Libraries are known
by name alone. Everything is read from the text of the code without comments and docstrings, so that
the answer is the same under every Python, in a checkout and from an installed wheel.
"""

import ast
import functools
import importlib.resources
import importlib.util
import inspect
import sys
import sysconfig
import textwrap
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, get_origin

import torch
from torch import nn

from fieldbook.nn.identity import closed_over, codes_of, content_of, described, digest, structure_of

PLUMBING = ("run", "nn.checkpoints", "nn.closure", "nn.identity", "nn.workers")
"""What moves rows and files, and determines none of their numbers."""
PLAIN = str | int | float | complex | bytes | None
EVERYTHING = "asdict"  # the word that stands for all parameters


@dataclass
class Closure:
    """All that results depend on.

    Attributes:
        parts: a text for each thing, with its name.
        words: attributes and words in quotes that the code mentions, of which some may name
            parameters.
        met: values of the types that were asked for.
    """

    parts: set[str] = field(default_factory=set)
    words: set[str] = field(default_factory=set)
    met: list[Any] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits."""
        return digest(sorted(self.parts))


def closure(*things: Any, watched: tuple[type, ...] = (), within: Path | None = None) -> Closure:
    """Follow functions, classes, modules and values to all that they depend on.

    Args:
        watched: types whose values are only collected, in `met`.
        within: a folder of results; paths in it are known by their names there, other files by
            their content.
    Raises:
        ValueError: there is no source, or a value has nothing to be known by; names where it was
            met.
    """
    found = Closure()
    waiting = [("given", thing) for thing in things]
    seen = {}
    while waiting:
        name, value = waiting.pop()
        if id(value) in seen:
            continue
        if not isinstance(value, PLAIN):  # equal numbers may be one object under one Python only
            seen[id(value)] = value  # kept, so that no other thing takes its place in memory
        if isinstance(value, watched):
            found.met.append(value)
            continue
        try:
            waiting += _follow(name, value, found, within)
        except ValueError as error:
            error.add_note(f"met as `{name}`")
            raise
    return found


def _follow(name: str, value: Any, found: Closure, within: Path | None) -> list[tuple[str, Any]]:
    """Note one thing; return what it refers to."""
    if inspect.ismethod(value):
        return [(name, value.__func__), (name, value.__self__)]
    value = inspect.unwrap(value) if callable(value) else value
    if isinstance(value, functools.partial):
        return [(name, part) for part in (value.func, value.args, value.keywords)]
    if inspect.isroutine(value) or inspect.isclass(value) or inspect.ismodule(value):
        if not _is_ours(value):
            found.parts.add(f"{name} {value.__name__}")  # where it lies differs between versions
            return []
        return _follow_code(value, found)
    if isinstance(value, Path):
        found.parts.add(f"{name} {_place(value, within)}")
        return []
    if isinstance(value, Mapping | list | tuple | Set):
        of_class = [(name, type(value))] if hasattr(value, "_fields") else []
        return of_class + _follow_items(name, value, found)
    if isinstance(value, torch.device) or get_origin(value) is not None:
        return []  # where, or of what type: not what
    if isinstance(value, nn.Module):
        found.parts.add(f"{name} {structure_of(value)} {described(value.state_dict())}")
        return [(name, type(module)) for module in value.modules()]
    if hasattr(value, "__dataclass_fields__"):
        inner = [(f"{name}.{key}", part) for key, part in vars(value).items()]
        return [(name, type(value)), *inner]
    if isinstance(value, str):
        found.words.add(value)
    found.parts.add(f"{name} {described(value)}")
    return [(name, type(value))] if _is_ours(type(value)) else []


def _follow_items(name: str, value: Any, found: Closure) -> list[tuple[str, Any]]:
    """A container: its plain values in their order, the others one by one."""
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    if isinstance(value, Set):
        pairs = ((0, item) for item in value)
    inner, texts = [], []
    for key, item in pairs:
        plain = isinstance(item, PLAIN)
        found.words |= {word for word in (key, item) if isinstance(word, str)}
        texts.append(f"{key!r}: {described(item)}" if plain else f"{key!r}: ..")
        if not plain:
            inner.append((f"{name}[{key!r}]", item))
    order = sorted(texts) if isinstance(value, Set) else texts
    found.parts.add(f"{name} {type(value).__name__} {', '.join(order)}")
    return inner


def _follow_code(value: Any, found: Closure) -> list[tuple[str, Any]]:
    """A function, class or module of ours: its text, and what that refers to."""
    found.parts.add(f"{_name_of(value)}\n{_source(value)}")
    mentions = _mentions_of(value)
    found.words |= mentions.words
    if mentions.computed_names and not _module_of(value).startswith("fieldbook."):
        found.words.add(EVERYTHING)
    if inspect.isfunction(value):
        scope = value.__globals__
        closed = closed_over(value)
    else:
        scope = vars(value if inspect.ismodule(value) else sys.modules[_module_of(value)])
        closed = {}
    referred = list(_inherited(value))
    for name in sorted(mentions.names):
        target = closed.get(name, scope.get(name, _ABSENT))
        if target is importlib.resources.files:
            found.parts |= set(_package_data(value))
        elif inspect.ismodule(target) and _is_ours(target) and name not in mentions.bare:
            referred += _members(target, mentions.members.get(name, ()))
        elif target is not _ABSENT and target is not value:
            referred.append((f"{_module_of(value)}.{name}", target))
    for module, name in mentions.imported:
        referred += _imported(module, name)
    return referred


_ABSENT = object()


@dataclass(frozen=True)
class _Mentions:
    """What a text of code mentions: global names, members of those, and words."""

    names: frozenset[str]
    members: Mapping[str, frozenset[str]]
    bare: frozenset[str]  # names that are used otherwise than for a member of theirs
    words: frozenset[str]
    imported: tuple[tuple[str, str], ...] = ()
    computed_names: bool = False  # asks for attributes whose names the text does not tell


@functools.cache
def _mentions_of(value: Any) -> _Mentions:
    if getattr(value, "__name__", "") == "<lambda>":  # whose source is the statement around it
        return _mentions_of_code(value)
    return _mentions(inspect.getsource(value)) or _mentions_of_code(value)


@functools.lru_cache(maxsize=4096)
def _mentions(source: str) -> _Mentions | None:
    """What a text mentions; None if it is no whole statement, as that of a lambda."""
    try:
        tree = ast.parse(textwrap.dedent(source))
    except SyntaxError:
        return None
    names = set(_global_names(tree))
    members: dict[str, set[str]] = {}
    bare = set()
    words = set()
    imported = []
    owners = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            words.add(node.attr)
            if isinstance(node.value, ast.Name):
                members.setdefault(node.value.id, set()).add(node.attr)
                owners.add(id(node.value))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words.add(node.value)
        elif isinstance(node, ast.ImportFrom):
            imported += [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            imported += [(alias.name, "") for alias in node.names]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and id(node) not in owners:
            bare.add(node.id)
    frozen = {name: frozenset(found) for name, found in members.items()}
    computed = any(_computes_a_name(node) for node in ast.walk(tree))
    sets = (frozenset(bare), frozenset(words), tuple(imported), computed)
    return _Mentions(frozenset(names), frozen, *sets)


def _computes_a_name(node: ast.AST) -> bool:
    """Is this `vars(..)`, or a `getattr` of a name that is put together?"""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return False
    told = node.func.id == "getattr" and isinstance(node.args[1], ast.Constant | ast.Name)
    return node.func.id in ("getattr", "vars") and not told


def _global_names(node: ast.AST, bound: Set[str] = frozenset()) -> Iterator[str]:
    """Names that a piece of code reads and does not itself bind; types of arguments left out.

    The compiler's own tables (`symtable`) differ between versions of Python in comprehensions.
    """
    if isinstance(node, ast.Name):
        if isinstance(node.ctx, ast.Load) and node.id not in bound:
            yield node.id
        return
    inner, outer = _scopes(node)
    for part in outer:
        yield from _global_names(part, bound)
    if inner:
        bound = bound | set(_bound_in(node))
    for part in inner:
        yield from _global_names(part, bound)


Nodes = list[ast.AST]


def _scopes(node: ast.AST) -> tuple[Nodes, Nodes]:
    """Parts of a node that are read in a scope of its own, and those read around it."""
    if isinstance(node, FUNCTIONS):
        arguments = node.args
        outer = [*arguments.defaults, *filter(None, arguments.kw_defaults)]
        if isinstance(node, ast.Lambda):
            return [node.body], outer
        return node.body, [*node.decorator_list, *outer]
    if isinstance(node, COMPREHENSIONS):
        first = node.generators[0].iter
        return [part for part in _children(node) if part is not first], [first]
    return [], list(_children(node))


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def _children(node: ast.AST) -> Iterator[ast.AST]:
    for part in ast.iter_child_nodes(node):
        if isinstance(part, ast.comprehension):
            yield from ast.iter_child_nodes(part)
        else:
            yield part


def _bound_in(scope: ast.AST) -> Iterator[str]:
    """Names that a function or a comprehension binds."""
    if isinstance(scope, COMPREHENSIONS):
        for generator in scope.generators:
            yield from _stored(generator.target)
        return
    arguments = scope.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    yield from (one.arg for one in [*every, arguments.vararg, arguments.kwarg] if one)
    body = [scope.body] if isinstance(scope, ast.Lambda) else scope.body
    for statement in body:
        yield from _stored(statement)


def _stored(node: ast.AST) -> Iterator[str]:
    """Names that are bound here, those within inner functions left out."""
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        yield node.id
    elif isinstance(node, ast.alias):
        yield (node.asname or node.name).partition(".")[0]
    elif isinstance(node, ast.MatchAs | ast.MatchStar | ast.ExceptHandler) and node.name:
        yield node.name
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
        return
    elif isinstance(node, ast.Lambda):
        return
    if isinstance(node, COMPREHENSIONS):  # only what `:=` binds is seen outside
        for part in ast.walk(node):
            if isinstance(part, ast.NamedExpr):
                yield part.target.id
        return
    for part in ast.iter_child_nodes(node):
        yield from _stored(part)


def _mentions_of_code(value: Any) -> _Mentions:
    """Of a lambda, as compiled: there globals and attributes are not told apart."""
    codes = codes_of(value)
    names = frozenset(name for one in codes for name in (*one.co_names, *one.co_freevars))
    texts = {constant for one in codes for constant in one.co_consts if isinstance(constant, str)}
    computed = bool(names & {"getattr", "vars"})
    return _Mentions(names, {}, names, names | texts, computed_names=computed)


@functools.cache
def _source(value: Any) -> str:
    """Code of a function, class or module, without its prose.

    Raises:
        ValueError: there is none.
    """
    return described(value)


def _inherited(value: Any) -> Iterator[tuple[str, Any]]:
    if inspect.isclass(value):
        yield from (("base", base) for base in value.__mro__[1:] if _is_ours(base))
    elif inspect.ismodule(value):
        for name, member in vars(value).items():
            code_of_its_own = inspect.isroutine(member) or inspect.isclass(member)
            if code_of_its_own and member.__module__ == value.__name__:
                yield name, member


def _members(module: ModuleType, names: Set[str] | tuple) -> list[tuple[str, Any]]:
    members = ((name, getattr(module, name, _ABSENT)) for name in sorted(names))
    found = ((f"{module.__name__}.{name}", member) for name, member in members)
    return [(name, member) for name, member in found if member is not _ABSENT]


def _imported(module: str, name: str) -> list[tuple[str, Any]]:
    """What an import within a function brings in, if it is ours."""
    if not module or not _is_our_name(module):
        return []
    where = importlib.import_module(module)
    found = getattr(where, name, None) if name else where
    return [
        (name or module, importlib.import_module(f"{module}.{name}") if found is None else found)
    ]


def _package_data(value: Any) -> Iterator[str]:
    """The tables (CSV) beside a module that reads package data."""
    folder = Path(sys.modules[value.__module__].__file__).parent
    for table in sorted(folder.glob("*.csv")):
        yield f"table {table.name}\n{table.read_text(encoding='utf-8')}"


def _module_of(value: Any) -> str:
    return value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None) or ""


def _name_of(value: Any) -> str:
    return value.__name__ if inspect.ismodule(value) else f"{value.__module__}.{value.__qualname__}"


def _is_ours(value: Any) -> bool:
    """Does this thing's code count: fieldbook's but its plumbing, a notebook's, the user's?"""
    module = _module_of(value)
    return bool(module) and _is_our_name(module)


@functools.cache
def _is_our_name(module: str) -> bool:
    top, _, rest = module.partition(".")
    if top == "fieldbook":
        return not any(rest == name or rest.startswith(f"{name}.") for name in PLUMBING)
    if module == "__main__":  # a notebook
        return True
    if top in sys.stdlib_module_names:
        return False
    if top in sys.modules:
        file = getattr(sys.modules[top], "__file__", None)
        if file is None:
            return False
    else:  # nothing is imported to be looked at
        spec = importlib.util.find_spec(top)
        if spec is None:  # made by hand
            return True
        file = spec.origin or next(iter(spec.submodule_search_locations or ()), "")
    installed = {sysconfig.get_path(kind) for kind in ("purelib", "platlib", "stdlib")}
    return not any(Path(file).is_relative_to(folder) for folder in installed)


def _place(path: Path, within: Path | None) -> str:
    if within is not None and path.is_relative_to(within):
        return str(path.relative_to(within))
    return content_of(path) if path.is_file() else str(path)
