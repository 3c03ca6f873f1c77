"""Every rendered page of the published book in a real browser, from the disk, with the network off.

On a desktop in light and then dark, on a phone in dark. Screenshots are left in build/screenshots
for looking at.
"""

import functools
import re
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from private_checkout import ROOT, succeed

from fieldbook.run.claims import read_claims
from fieldbook.run.paths import SIZES

TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
PAGES = [TOC["root"], *(page["file"] for part in TOC["parts"] for page in part["chapters"])]
CHAPTERS = [page for page in PAGES if (ROOT / "book" / f"{page}.py").exists()]
LOOKS = {
    1280: ("light", "dark"),
    390: ("dark",),
}  # width -> what the reader's system prefers, one after the other
FORMULA = (
    "th:has(> p > .math:only-child)"  # a heading that axe calls empty: it does not read MathML
)
PICTURE = r"<img [^>]*_images/"
COLOURS = ("color-contrast", "link-in-text-block")  # the rules of axe that depend on the theme


def largest(chapter: str) -> str:
    """The profile that the book shows of it."""
    return next(size for size in SIZES if (ROOT / f"data/{chapter}/{size}").exists())


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


UNFOLD = """() => {
  for (const fold of document.querySelectorAll('details')) fold.open = true;
}"""

# Looking at colours takes most of the time, most of it for the same again: a row, an item or a piece of code that has
# the classes and colours of an earlier one is taken out before, and the glyphs of a formula become text of its colour.
THIN = """() => {
  for (const formula of document.querySelectorAll('.math')) formula.textContent = formula.textContent;
  const seen = new Set();
  const look = node => {
    const {color, backgroundColor} = getComputedStyle(node);
    return [node.tagName, node.classList.value.replace(/row\\d+/, ''), color, backgroundColor];
  };
  const again = node => {
    const looks = [node.parentElement, node, ...node.querySelectorAll('*')].flatMap(look).join();
    return seen.has(looks) || !seen.add(looks);
  };
  for (const kind of ['.highlight pre span[class]', 'tbody tr, li, .highlight'])
    for (const node of [...document.querySelectorAll(kind)].filter(again))
      node.replaceWith(node.tagName === 'SPAN' ? node.textContent : '');
}"""


@pytest.fixture(scope="module")
def html(checkout: Path) -> Path:
    succeed("make html", checkout)
    return checkout / "build/published/html"


def violations(page, **options) -> list[str]:
    """What axe-core finds on a page as it is, of any impact."""
    # Style sheets may not be read once more under file://, which one rule of best practice would like to.
    options |= {"resultTypes": ["violations"], "preload": False}
    found = Axe().run(page, {"exclude": [FORMULA]}, options).response["violations"]
    return [
        f"{rule['id']} ({rule['impact']}): {node['html'][:160]}: {node['failureSummary']}"
        for rule in found
        for node in rule["nodes"]
    ]


def barriers(page, themes: tuple[str, ...]) -> list[str]:
    """What keeps a reader from reading a page: its structure, then its colours in each theme. Takes
    the page apart."""
    page.evaluate(UNFOLD)
    problems = violations(page, rules={rule: {"enabled": False} for rule in COLOURS})
    page.evaluate(THIN)
    page.add_style_tag(
        content="* { transition: none !important; }"
    )  # colours on their way pass for right
    for theme in themes:
        page.emulate_media(color_scheme=theme)
        page.wait_for_function(
            "theme => document.documentElement.dataset.theme === theme", arg=theme, timeout=5000
        )
        problems += [f"{theme}, {problem}" for problem in violations(page, runOnly=COLOURS)]
    return problems


def visit(
    browser, address: str, width: int, themes: tuple[str, ...] = (), screenshot: Path | None = None
) -> list[str]:
    """What is wrong with a page: console and network errors, formulas, images, layout, and barriers
    in these themes."""
    problems = []
    offline = address.startswith("file:")  # over http, only this machine answers
    scheme = (*themes, "light")[0]
    context = browser.new_context(
        viewport={"width": width, "height": 900}, offline=offline, color_scheme=scheme
    )
    page = context.new_page()
    if not offline:
        page.route(
            lambda url: not url.startswith((address.rpartition("/")[0], "data:")),
            lambda route: route.abort(),
        )
    page.on(
        "console",
        lambda message: message.type == "error" and problems.append(f"console: {message.text}"),
    )
    page.on("pageerror", lambda error: problems.append(f"script: {error}"))
    page.on("requestfailed", lambda request: problems.append(f"request failed: {request.url}"))
    page.on(
        "response",
        lambda reply: reply.status >= 400 and problems.append(f"{reply.status}: {reply.url}"),
    )
    page.goto(address, wait_until="networkidle")
    problems += page.evaluate(INSPECT)
    if screenshot:
        screenshot.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=screenshot, full_page=True)
    if themes:
        problems += barriers(page, themes)
    context.close()
    return problems


@pytest.mark.parametrize("width", LOOKS)
@pytest.mark.parametrize("page", [*PAGES, "index", "search", "genindex", "py-modindex"])
def test_page_is_whole_offline_and_without_barriers(
    browser, html: Path, page: str, width: int
) -> None:
    screenshot = ROOT / f"build/screenshots/{page}-{width}.png"
    assert visit(browser, (html / f"{page}.html").as_uri(), width, LOOKS[width], screenshot) == []


def test_library_pages_are_whole_and_without_barriers(browser, html: Path) -> None:
    pages = sorted(html.glob("api/*.html"))
    assert len(pages) == sum(file.name != "__init__.py" for file in (ROOT / "lib").rglob("*.py"))
    longest = max(
        html.glob("_modules/fieldbook/**/*.html"), key=lambda page: page.stat().st_size
    )  # a source of them
    found = {
        page.name: visit(browser, page.as_uri(), 1280, ("dark",)) for page in [*pages, longest]
    }
    assert {name: problems for name, problems in found.items() if problems} == {}


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
    page.keyboard.press("Control+k")  # the search of every page opens over it
    assert barriers(page, LOOKS[1280]) == []
    page.close()


def test_where_a_link_leads_is_marked_without_barriers(browser, html: Path) -> None:
    name = "fieldbook.nn.training"
    address = (html / f"api/{name}.html").as_uri() + f"#{name}.fit"
    assert visit(browser, address, 1280, LOOKS[1280]) == []


def test_nothing_is_loaded_from_elsewhere(html: Path) -> None:
    tag = re.compile(
        r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=[\"'](?:https?:)?//[^>]*>"
    )
    found = {
        page.name: tags
        for page in html.glob("*.html")
        if (tags := tag.findall(page.read_text(encoding="utf-8")))
    }
    assert not found


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_shows_figures_and_formulas(html: Path, chapter: str) -> None:
    text = (html / f"{chapter}.html").read_text(encoding="utf-8")
    published = list(ROOT.glob(f"figures/{chapter}/{largest(chapter)}/*.png"))
    assert len(re.findall(PICTURE, text)) == len(published) > 0
    assert re.search(r'class="math', text)


MEASURE = """() => {
  const bottom = node => node.getBoundingClientRect().bottom + window.scrollY;
  const answer = document.querySelector('.tag_answer .cell_output');
  const figure = document.querySelector('article .cell_output img');
  const code = [...document.querySelectorAll('article .cell_input')].filter(one => !one.closest('details:not([open])'));
  return {
    answer: bottom(answer), figure: bottom(figure),
    code: code.reduce((sum, one) => sum + one.offsetHeight, 0) / document.querySelector('article').scrollHeight,
  };
}"""


@pytest.mark.parametrize("width, first_screen", [(1280, 1200), (390, 2400)])
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_answer_and_key_figure_come_first(
    browser, html: Path, chapter: str, width: int, first_screen: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto((html / f"{chapter}.html").as_uri(), wait_until="networkidle")
    found = page.evaluate(MEASURE)
    page.close()
    assert found["answer"] < found["figure"] <= first_screen
    assert found["code"] <= 0.25


def claims_of(chapter: str) -> pd.DataFrame:
    return read_claims(ROOT / f"data/{chapter}/{largest(chapter)}/claims.csv")


def test_front_page_shows_every_claim_with_its_verdict(browser, html: Path) -> None:
    claims = pd.concat(map(claims_of, CHAPTERS))
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto((html / f"{TOC['root']}.html").as_uri(), wait_until="networkidle")
    assert page.locator("table.folded .verdict").count() == len(claims) > 0
    assert page.locator(".cards img").count() == len(CHAPTERS)
    assert page.evaluate("document.documentElement.scrollHeight") <= 4000
    page.close()


def test_ledger_unfolds_and_filters_without_a_script(browser, html: Path) -> None:
    claims = pd.concat(map(claims_of, CHAPTERS))
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((html / f"{TOC['root']}.html").as_uri())
    shown = page.locator("table.folded tr:visible .verdict")
    assert shown.count() == sum(claims["first"] == "True") <= 3 * len(CHAPTERS)
    page.locator("table.folded .more").first.check()
    first = claims_of(CHAPTERS[0])
    rest = pd.concat(map(claims_of, CHAPTERS[1:]))
    assert shown.count() == len(first) + sum(rest["first"] == "True")
    for box in ("#show-holds", "#show-of-ours"):
        page.locator(box).uncheck()
    assert shown.count() == sum((claims.verdict != "holds") & (claims.of != "ours"))
    context.close()


def test_links_of_the_ledger_lead_somewhere(html: Path) -> None:
    for page in (TOC["root"], "logs", *CHAPTERS):
        text = (html / f"{page}.html").read_text(encoding="utf-8")
        tables = re.findall(r'<table class="ledger.*?</table>', text, re.DOTALL)
        links = {link for table in tables for link in re.findall(r'href="([^"]*)"', table)}
        for file, _, anchor in (link.partition("#") for link in links):
            target = (html / (file or f"{page}.html")).read_text(encoding="utf-8")
            assert not anchor or f'id="{anchor}"' in target, f"{page}: {file}#{anchor}"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_no_interval_that_holds_its_threshold_decides(chapter: str) -> None:
    claims = claims_of(chapter)
    number = claims[["low", "high", "above", "below"]].apply(pd.to_numeric)
    inside = (number.low <= number.above) & (number.above <= number.high)
    inside |= (number.low <= number.below) & (number.below <= number.high)
    assert not inside.any() or set(claims.verdict[inside]) == {"undecided"}
