"""Docstrings are plain text with single backticks around code: keep Sphinx from reading |x|, w* or a_ as markup."""

import re

MARKUP = re.compile(r"(`[^`]*`|^\s*\.\. .*$|:\w+:`)|((?<!^)\*|\||(?<=\w)_(?!\w))")


def escape(app, what, name, obj, options, lines: list[str]) -> None:
    """Put a backslash before what would be emphasis, a substitution or a reference; backticks stay."""
    lines[:] = MARKUP.sub(lambda found: found[1] or "\\" + found[2], "\n".join(lines)).split("\n")


def skip(app, what, name, obj, skipped, options) -> bool | None:
    """Leave out the fields of named tuples, which the class's own docstring explains."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app) -> dict[str, bool]:
    """Run before napoleon, which has the default priority of 500 and writes markup of its own."""
    app.connect("autodoc-process-docstring", escape, priority=400)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True}
