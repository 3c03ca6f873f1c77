"""Every rendered page of the published book in a real browser, from the disk, with the network off.

Screenshots of all pages are left in build/screenshots for looking at.
"""

import functools
import re
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
import yaml
from private_checkout import ROOT, succeed

TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
PAGES = [TOC["root"], *(page["file"] for part in TOC["parts"] for page in part["chapters"])]
CHAPTERS = [page for page in PAGES if (ROOT / "book" / f"{page}.py").exists()]
WIDTHS = (1280, 390)

INSPECT = """async () => {
  await document.fonts.ready;
  if (window.MathJax?.startup) await MathJax.startup.promise;
  const problems = [];
  const say = (what, node) => problems.push(what + ': ' + (node.outerHTML ?? node.textContent).slice(0, 160));
  for (const node of document.querySelectorAll('.math'))
    if (node.querySelectorAll('mjx-container').length !== 1) say('formula not typeset', node);
  for (const node of document.querySelectorAll('mjx-merror, [data-mjx-error]')) say('formula in error', node);
  for (const image of document.images)
    if (!image.complete || image.naturalWidth === 0) say('empty image', image);
  const article = document.querySelector('article') ?? document.body;
  const walker = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode;
    if (!text.parentElement.closest('pre, code, script, style, mjx-container')
        && /\\\\\\(|\\\\\\[|\\$\\$|\\$[^\\s$][^$]*\\$/.test(text.textContent)) say('raw TeX', text);
  }
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) problems.push('page scrolls sideways');
  const contained = node => {
    for (let up = node; up && up !== article; up = up.parentElement)
      if (['auto', 'scroll'].includes(getComputedStyle(up).overflowX)
          && up.getBoundingClientRect().right <= width + 1) return true;
    return false;
  };
  for (const node of article.querySelectorAll('*')) {
    const box = node.getBoundingClientRect();
    if (box.width > 1 && box.right > width + 1 && !node.closest('mjx-assistive-mml') && !contained(node))
      say('overflows', node);
  }
  return problems;
}"""


@pytest.fixture(scope="module")
def html(checkout: Path) -> Path:
    succeed("make html", checkout)
    return checkout / "build/published/html"


def visit(browser, address: str, width: int, screenshot: Path | None = None) -> list[str]:
    """What is wrong with a page: console and network errors, formulas, images, layout."""
    problems = []
    offline = address.startswith("file:")  # over http, only this machine answers
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=offline)
    page = context.new_page()
    if not offline:
        page.route(lambda url: not url.startswith((address.rpartition("/")[0], "data:")), lambda route: route.abort())
    page.on("console", lambda message: message.type == "error" and problems.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: problems.append(f"script: {error}"))
    page.on("requestfailed", lambda request: problems.append(f"request failed: {request.url}"))
    page.on("response", lambda reply: reply.status >= 400 and problems.append(f"{reply.status}: {reply.url}"))
    page.goto(address, wait_until="networkidle")
    problems += page.evaluate(INSPECT)
    if screenshot:
        screenshot.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=screenshot, full_page=True)
    context.close()
    return problems


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", [*PAGES, "index", "search", "genindex"])
def test_page_is_whole_offline(browser, html: Path, page: str, width: int) -> None:
    screenshot = ROOT / f"build/screenshots/{page}-{width}.png"
    assert visit(browser, (html / f"{page}.html").as_uri(), width, screenshot) == []


def test_library_pages_are_whole(browser, html: Path) -> None:
    pages = sorted(html.glob("api/*.html"))
    assert len(pages) == sum(file.name != "__init__.py" for file in (ROOT / "lib").rglob("*.py"))
    assert {page.name: found for page in pages if (found := visit(browser, page.as_uri(), 1280))} == {}


@pytest.mark.parametrize("page", [TOC["root"], *CHAPTERS])
def test_page_is_whole_over_http(browser, html: Path, page: str) -> None:
    handler = functools.partial(SimpleHTTPRequestHandler, directory=html)
    handler.log_message = lambda *_: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        problems = visit(browser, f"{base}/{page}.html", 1280)
        server.shutdown()
    assert problems == []


def test_search_finds_a_chapter_from_the_disk(browser, html: Path) -> None:
    page = browser.new_page()
    page.goto((html / "search.html").as_uri() + "?q=gradient")
    page.wait_for_selector("#search-results li a", timeout=10_000)
    page.close()


def test_nothing_is_loaded_from_elsewhere(html: Path) -> None:
    tag = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=[\"'](?:https?:)?//[^>]*>")
    found = {page.name: tags for page in html.glob("*.html") if (tags := tag.findall(page.read_text(encoding="utf-8")))}
    assert not found


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_shows_figures_and_formulas(html: Path, chapter: str) -> None:
    text = (html / f"{chapter}.html").read_text(encoding="utf-8")
    assert re.search(r"<img [^>]*_images/", text)
    assert re.search(r'class="math', text)


def test_front_page_shows_every_claim_with_its_verdict(html: Path) -> None:
    text = (html / f"{TOC['root']}.html").read_text(encoding="utf-8")
    rows = sum(len(pd.read_csv(file)) for file in ROOT.glob("data/*/laptop/claims.csv"))
    assert rows > 0
    assert len(re.findall(r'class="verdict ', text)) == rows
