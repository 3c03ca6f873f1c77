"""Links that work in JupyterLab and on GitHub, to files, lead to pages in the book."""

import re
from pathlib import Path

FILE = re.compile(r"\]\(\.\./lib/([\w/]+)\.py\)")
PAGE = re.compile(r"\]\((\w+)\.md(#[\w-]+)?\)")


def to_pages(app, docname: str, source: list[str]) -> None:
    """Let `(../lib/fieldbook/nn/layers.py)` be `(api/fieldbook.nn.layers.rst)`, and a page that was
    executed be its notebook."""

    def page(found: re.Match) -> str:
        executed = (Path(app.srcdir) / f"{found[1]}.ipynb").exists()
        return f"]({found[1]}.{'ipynb' if executed else 'md'}{found[2] or ''})"

    text = FILE.sub(lambda found: f"](api/{found[1].replace('/', '.')}.rst)", source[0])
    source[0] = PAGE.sub(page, text)


def setup(app) -> dict[str, bool]:
    app.connect("source-read", to_pages)
    app.set_html_assets_policy("always")  # formulas may stand in outputs alone, as in the cards
    return {"parallel_read_safe": True}
