"""A chapter in JupyterLab, in a real browser: open, run all, see a figure, save both files of the
pair."""

import json
import os
import re
import secrets
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Page, expect

CHAPTER = "agop"
TRACKER = "@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
# Folded cells show no prompt: the model is asked which number the last one has.
LAST_WAS_RUN = """count => window.jupyterapp.shell.currentWidget.content.widgets
  .filter(cell => cell.model.type === 'code').at(-1).model.executionCount === count"""
SECONDS = 400  # for a run of a chapter at quick, on a machine that is busy with other tests


@pytest.fixture(scope="module")
def lab(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab on the copied book, as `make lab` starts it, with a format string
    for the path."""
    settings = tmp_path_factory.mktemp("settings")
    (settings / TRACKER).parent.mkdir(parents=True)
    (settings / TRACKER).write_text(
        json.dumps({"windowingMode": "none"})
    )  # all cells in the page, not those in view
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(8)
    flags = f"--no-browser --allow-root --port {port} --IdentityProvider.token={token} --expose-app-in-browser"
    private = {
        "PYTHONPATH": str(checkout / "lib"),
        "PATH": f"{checkout / '.venv/bin'}:{os.environ['PATH']}",
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTERLAB_WORKSPACES_DIR": str(settings / "workspaces"),
        "FIELDBOOK_RESULTS": str(checkout),
        "PYTHONWARNINGS": "ignore",
    }
    with (settings / "log.txt").open("w") as log:
        command = ["make", "lab", f"LAB_FLAGS={flags}"]
        server = subprocess.Popen(
            command, cwd=checkout, env=os.environ | private, stdout=log, stderr=log
        )
        address = f"http://127.0.0.1:{port}/lab{{}}?reset&token={token}"
        try:
            wait_for(f"http://127.0.0.1:{port}/api?token={token}", settings / "log.txt")
            yield address
        finally:
            server.terminate()
            server.wait(30)


def wait_for(address: str, log: Path) -> None:
    for _ in range(120):
        try:
            urllib.request.urlopen(address, timeout=5)
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"JupyterLab does not answer\n{log.read_text()[-2000:]}")


@pytest.fixture
def page(browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    yield context.new_page()
    context.close()


def wait_for_kernel(page: Page) -> None:
    """Until the notebook is open and its kernel has started: an earlier `Run All` would ask which
    one to take."""
    expect(page.locator(".jp-Notebook .jp-Cell").first).to_be_visible(timeout=60_000)
    page.wait_for_function(
        "() => window.jupyterapp.shell.currentWidget.sessionContext?.session?.kernel?.status === 'idle'",
        timeout=60_000,
    )


def turn_a_knob(page: Page) -> None:
    """Another choice in "Look for yourself" draws another figure."""
    knob = page.locator(".jupyter-widgets select").last
    picture = page.locator(".jupyter-widgets img").last
    before = picture.get_attribute("src")
    options = knob.locator("option").count()
    chosen = knob.evaluate("one => one.selectedIndex")
    knob.select_option(index=(chosen + 1) % options)
    expect(picture).not_to_have_attribute("src", before, timeout=20_000)


@pytest.mark.parametrize("chapter", [CHAPTER, "entropy"])
def test_run_all_draws_figures_and_saving_keeps_the_pair(
    page: Page, lab: str, checkout: Path, chapter: str
) -> None:
    notebook, source = (checkout / "book" / f"{chapter}.{suffix}" for suffix in ("ipynb", "py"))
    before = source.read_text(encoding="utf-8")
    empty = nbformat.read(notebook, 4)
    cells = [cell for cell in empty.cells if cell.cell_type == "code"]
    for cell in cells:  # of what is committed
        cell.outputs, cell.execution_count = [], None
    nbformat.write(empty, notebook)
    page.goto(lab.format(f"/tree/{notebook.name}"))
    wait_for_kernel(page)
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
    page.wait_for_function(LAST_WAS_RUN, arg=len(cells), timeout=SECONDS * 1000)
    figures = page.locator(".jp-OutputArea-output img")
    assert figures.count() >= 3
    assert all(
        figures.nth(i).evaluate("image => image.naturalWidth > 0") for i in range(figures.count())
    )
    turn_a_knob(page)
    page.keyboard.press("Control+s")
    expect(page.locator(".jp-mod-dirty")).to_have_count(0, timeout=20_000)

    saved = [cell for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in saved] == list(range(1, len(cells) + 1))
    assert not [
        output for cell in saved for output in cell.outputs if output.output_type == "error"
    ]
    assert (checkout / f"data/{chapter}/quick/claims.csv").is_file()
    assert source.read_text(encoding="utf-8") == before
    assert nbformat.read(notebook, 4).metadata == empty.metadata


def test_a_notebook_opens_folded_and_quiet(page: Page, lab: str) -> None:
    page.goto(lab.format(f"/tree/{CHAPTER}.ipynb"))
    wait_for_kernel(page)
    folded = page.locator(".jp-Notebook .jp-Placeholder")
    assert folded.count() >= 5  # code that is folded on the page
    text = page.locator(".jp-Notebook").inner_text()
    assert "{cite}" not in text and "{ref}" not in text
    assert page.locator(".Toastify__toast").all_inner_texts() == []  # no news from the web


def test_the_script_opens_as_a_notebook_and_saves_the_other_file(
    page: Page, lab: str, checkout: Path
) -> None:
    notebook, source = (checkout / "book" / f"{CHAPTER}.{suffix}" for suffix in ("ipynb", "py"))
    page.goto(lab.format(""))
    page.locator(".jp-DirListing-item", has_text=re.compile(f"^{source.name}")).click(
        button="right"
    )
    for item in ("Open With", "Notebook"):
        page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{item}$")).click()
    wait_for_kernel(page)
    cell = page.locator(".jp-Notebook .jp-MarkdownCell").first
    cell.dblclick()
    cell.locator(".cm-content").press("Control+End")
    page.keyboard.type("A remark.")
    page.keyboard.press("Control+s")
    expect(page.locator(".jp-mod-dirty")).to_have_count(0, timeout=20_000)
    assert "A remark." in source.read_text(encoding="utf-8")
    assert "A remark." in nbformat.read(notebook, 4).cells[0].source
