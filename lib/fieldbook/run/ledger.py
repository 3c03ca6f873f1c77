"""What the chapters have found, and what it took: their claims, as tables to be read, and costs."""

import json
import math
from html import escape
from pathlib import Path

import pandas as pd
from IPython.display import HTML

from fieldbook.run import paths
from fieldbook.run.claims import COLUMNS, VERDICTS, read_claims
from fieldbook.run.manifest import read_manifest

SIGNS = dict(zip(VERDICTS, "✓✗?–", strict=True))
WHOSE = {"log": "the log", "paper": "a paper", "theory": "theory", "ours": "this book"}


def largest(chapter: str) -> str | None:
    """The largest profile of which a chapter has claims; None if there is none."""
    root = paths.data_root() / "data" / chapter
    return next((size for size in paths.SIZES if (root / size / "claims.csv").exists()), None)


def ledger(profiles: dict[str, str]) -> pd.DataFrame:
    """The claims of chapters, each under one of its profiles: chapter, profile, and the columns of
    `fieldbook.run.claims`.

    Raises:
        ValueError: a table of claims is damaged; names it.
    """
    frames = [pd.DataFrame(columns=["chapter", "profile", *COLUMNS])]
    for chapter, profile in profiles.items():
        file = paths.data(chapter, profile) / "claims.csv"
        if file.exists():
            frames.append(read_claims(file).assign(chapter=chapter, profile=profile))
    return pd.concat(frames, ignore_index=True)


def counts(claims: pd.DataFrame) -> str:
    """How many claims have which verdict, in words."""
    number = claims.verdict.value_counts()
    return ", ".join(f"{number[verdict]} {verdict}" for verdict in VERDICTS if verdict in number)


def table(claims: pd.DataFrame, page: str = "") -> HTML:
    """Claims as a table of what was claimed, by whom, what was found, and the verdict.

    Each links to the section with its evidence, and to the entry of the log that it comes from.

    Args:
        page: that holds the sections, as `agop.html`; none if it is the same.
    """
    return HTML(
        f'<table class="ledger dataframe"><thead>{_HEAD}</thead>{rows(claims, page)}</table>'
    )


_NAMES = ("claim", "source", "found", "verdict")
_HEAD = f"<tr>{''.join(f'<th>{name}</th>' for name in _NAMES)}</tr>"


def rows(claims: pd.DataFrame, page: str = "") -> str:
    """The body of that table."""
    body = (_row(claim, page) for claim in claims.astype(str).itertuples())
    return f"<tbody>{''.join(body)}</tbody>"


def _row(claim: tuple, page: str) -> str:
    reason = f'<br><small class="reason">{escape(claim.reason)}</small>' if claim.reason else ""
    whose = WHOSE[claim.of]
    if claim.entry:
        whose = f'<a href="logs.html#{claim.entry}">{whose}</a>'
    source = f"{whose}: {escape(claim.source)}" if claim.source else whose
    kind = claim.verdict.replace(" ", "-")
    place = "first" if claim.first == "True" else "rest"
    cells = (
        f'<a href="{page}#{claim.section}">{escape(claim.claim)}</a>{reason}',
        source,
        escape(claim.found),
        chip(claim.verdict),
    )
    labelled = zip(_NAMES, cells, strict=True)
    inside = "".join(f'<td data-label="{name}">{cell}</td>' for name, cell in labelled)
    return f'<tr class="{kind} of-{claim.of} {place}">{inside}</tr>'


def chip(verdict: str) -> str:
    """A verdict with its sign, in HTML."""
    return f'<span class="verdict {verdict.replace(" ", "-")}">{SIGNS[verdict]} {verdict}</span>'


def overview(claims: pd.DataFrame, questions: dict[str, str]) -> HTML:
    """The claims of all chapters in one table, the first three of each shown and the rest folded,
    with boxes that filter by verdict and by whose claim it is; a style sheet alone does both.

    Args:
        questions: chapter -> its question, in the order of the book.
    """
    boxes = [_box(f"show-{verdict.replace(' ', '-')}", verdict) for verdict in VERDICTS]
    boxes += [_box(f"show-of-{of}", f"of {WHOSE[of]}") for of in WHOSE]
    groups = []
    for chapter, question in questions.items():
        own = claims[claims.chapter == chapter]
        page = f"{chapter}.html"
        link = f'<a href="{page}">{escape(question)}</a> <small>{counts(own)}</small>'
        every = f'<label><input type="checkbox" class="more"> all {len(own)}</label>'
        head = f'<tr class="group"><th colspan="4" scope="rowgroup">{link} {every}</th></tr>'
        groups.append(rows(own, page).replace("<tbody>", f"<tbody>{head}", 1))
    head = f"<thead>{_HEAD}</thead>"
    label = 'role="group" aria-label="Claims that are shown"'
    filters = f'<div class="filters" {label}>{"".join(boxes)}</div>'
    return HTML(f'{filters}<table class="ledger folded dataframe">{head}{"".join(groups)}</table>')


def _box(name: str, label: str) -> str:
    return f'<label><input type="checkbox" id="{name}" checked> {label}</label>'


def told(notebook: Path) -> dict[str, str]:
    """What an executed chapter asks and answers: `question`, its title, and `answer`, Markdown.

    Raises:
        ValueError: it has no title or no cell tagged `answer`.
    """
    cells = json.loads(notebook.read_bytes())["cells"]
    title = "".join(cells[0]["source"]).partition("\n")[0].removeprefix("# ")
    tagged = [cell for cell in cells if "answer" in cell["metadata"].get("tags", [])]
    outputs = [output for cell in tagged for output in cell["outputs"]]
    texts = ["".join(one["data"]["text/markdown"]) for one in outputs if "data" in one]
    if not title or len(texts) != 1:
        raise ValueError(f"{notebook}: expected a title and one answer, in a cell tagged `answer`")
    return {"question": title, "answer": texts[0]}


def _read_benchmark(file: Path) -> pd.Series:
    try:
        return pd.read_csv(file, sep="\t")[["s", "cpu_time", "max_rss"]].iloc[-1]
    except (ValueError, LookupError) as error:
        raise ValueError(
            f"{file} is no benchmark that Snakemake wrote ({error}); delete it"
        ) from error


def costs(profiles: dict[str, str]) -> pd.DataFrame:
    """What runs of chapters took: chapter, profile, minutes, cpu_minutes, memory_gb (of all its
    processes) and device.

    Minutes come from the manifest, which adds up all runs that made the rows; the next two from the
    file that Snakemake's `benchmark` left, and are nan unless that is of one run that made most of
    them.
    """
    found = [_cost(chapter, profile) for chapter, profile in profiles.items()]
    columns = ["chapter", "profile", "minutes", "cpu_minutes", "memory_gb", "device"]
    return pd.DataFrame(found, columns=columns)


def _cost(chapter: str, profile: str) -> dict[str, object]:
    folder = paths.data(chapter, profile)
    manifest = read_manifest(folder)
    kept = (folder / "benchmark.tsv", paths.results() / "benchmark" / f"{chapter}.tsv")
    measured = next((_read_benchmark(path) for path in kept if path.exists()), None)
    row = {
        "chapter": chapter,
        "profile": profile,
        "minutes": manifest.get("wall_s", math.nan) / 60,
        "device": manifest.get("device", ""),
    }
    if measured is not None and measured.s > 0.8 * 60 * row["minutes"]:
        row |= {"cpu_minutes": measured.cpu_time / 60, "memory_gb": measured.max_rss / 1024}
    return row
