"""Links to files of the library, which work in JupyterLab and on GitHub, lead to their pages in the book."""

import re

FILE = re.compile(r"\]\(\.\./lib/([\w/]+)\.py\)")


def to_pages(app, docname: str, source: list[str]) -> None:
    """Let `(../lib/fieldbook/nn/layers.py)` be `(api/fieldbook.nn.layers)`."""
    source[0] = FILE.sub(lambda found: f"](api/{found[1].replace('/', '.')}.rst)", source[0])


def setup(app) -> dict[str, bool]:
    app.connect("source-read", to_pages)
    return {"parallel_read_safe": True}
