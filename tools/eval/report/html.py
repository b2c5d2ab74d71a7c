"""A comparison as one HTML page, read offline and on a phone: all that it shows is in it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from ....runtime.command.files import write_atomically
from ....runtime.labels import class_name
from ...png import data_uri
from ..compare import Comparison, Row
from ..judge import METRICS
from ..store.runs import labels_of, png_of
from .svg import Point, pareto
from .values import FLOOR, lead_name, lead_texts, p_text, pair_texts, shown_value

_STYLE = """
:root{color-scheme:light dark;--line:#8886;--soft:#8882;--run:#2563eb;--front:#16a34a}
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:70rem;padding:1rem;
overflow-wrap:anywhere}
h1{font-size:1.4rem}h2{font-size:1.15rem;margin-top:2rem}
.wide{overflow-x:auto}table{border-collapse:collapse;white-space:nowrap}
th,td{border-bottom:1px solid var(--line);padding:.3rem .6rem;text-align:right}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:Canvas}
.worse{color:#dc2626;font-weight:600}.better{color:#16a34a;font-weight:600}
img{image-rendering:pixelated;width:72px;height:auto;display:block}
td.image{padding:2px;border:0}svg{width:100%;max-width:44rem;height:auto}
svg text{font-size:12px;fill:currentColor}.end{text-anchor:end}.middle{text-anchor:middle}
.frame{fill:none;stroke:var(--line)}.grid{stroke:var(--soft)}
.floor{stroke:currentColor;stroke-dasharray:4 4}.bar{stroke:var(--run);stroke-width:2}
.run{fill:var(--run)}.beside{fill:Canvas;stroke:var(--run);stroke-width:2}
.front{fill:none;stroke:var(--front);stroke-width:2}
details{margin:.5rem 0}pre{overflow-x:auto;background:var(--soft);padding:.5rem}
li{margin:.2rem 0}
"""


def write_page(
    path: Path, comparison: Comparison, connection: sqlite3.Connection, shown: int
) -> None:
    """Write the page.

    Args:
        path: where to.
        comparison: what is in it.
        connection: to the database, for the images.
        shown: rows of images.

    Raises:
        OSError: as for `write_atomically`.
        StoreError: an image is missing.
    """
    page = render(comparison, connection, shown)
    with write_atomically(path) as stream:
        stream.write(page.encode("utf-8", "xmlcharrefreplace"))


def render(comparison: Comparison, connection: sqlite3.Connection, shown: int) -> str:
    """Return the page."""
    first = comparison.rows[0].run
    parts = [
        "<!DOCTYPE html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>csd-eval: {escape(first.name)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(first.name)} and {len(comparison.rows) - 1} others</h1>",
        f"<p>{comparison.count} images each, compared with <b>{escape(first.name)}</b>; real "
        f"images: {escape(comparison.real or 'none')}. ± is half of a 95 % interval.</p>",
    ]
    if comparison.notes:
        notes = "".join(f"<li>{escape(note)}</li>" for note in comparison.notes)
        parts.append(f"<ul>{notes}</ul>")
    parts += [_plot(comparison), *(_space(comparison, title) for title in first_spaces(comparison))]
    parts += [_pairs(comparison), _images(comparison, connection, shown), _settings(comparison)]
    return "".join([*parts, "</body></html>\n"])


def first_spaces(comparison: Comparison) -> list[str]:
    """Titles of the feature spaces, the leading one first."""
    return [*comparison.rows[0].spaces]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class=wide><table><tr>{top}</tr>{body}</table></div>"


def _plot(comparison: Comparison) -> str:
    title = comparison.lead
    name = lead_name(comparison.rows[0], title)
    metric = METRICS[name]
    factor = 100 if metric.percent else 1
    points: list[Point] = []
    for row in comparison.rows:
        estimate = row.spaces[title].figures.values.get(name)
        if estimate is not None and row.seconds > 0:
            low, high = estimate.interval()
            values = (factor * v for v in (estimate.value, low, high))
            points.append(Point(row.run.name, row.seconds, *values, beside=row.beside))
    if not points:
        return ""
    floor = comparison.floor.get(title)
    real = None if floor is None or name not in floor.values else factor * floor.values[name].value
    unit = ", %" if metric.percent else ""
    drawn = pareto(points, title=f"{metric.title}{unit}", lower=metric.lower, floor=real)
    return (
        f"<h2>Speed and {escape(metric.title)}</h2>{drawn}<p>Hollow points are the target at fewer "
        "steps; the green line joins those that none is both faster and better than.</p>"
    )


def _space(comparison: Comparison, title: str) -> str:
    names = [m for m in METRICS if m in comparison.rows[0].spaces[title].figures.values]
    head = [
        "run",
        *(f'<span title="{escape(METRICS[m].about)}">{escape(METRICS[m].title)} '
          f"{'↓' if METRICS[m].lower else '↑'}</span>" for m in names),
        "difference", "verdict", "p, one law",
    ]  # fmt: skip
    rows = [[escape(row.run.name), *(shown_value(row.spaces[title].figures, m) for m in names),
             *_verdict(row, title), p_text(row.spaces[title].p_value)]
            for row in comparison.rows]  # fmt: skip
    if title in comparison.floor:
        figures = (shown_value(comparison.floor[title], m) for m in names)
        rows.append([FLOOR, *figures, "", "", ""])
    lacking = comparison.rows[0].spaces[title].figures.lacking
    missing = "".join(f"<li>{escape(METRICS[m].title)} {escape(why)}</li>"
                      for m, why in lacking.items())  # fmt: skip
    return f"<h2>{escape(title)}</h2>{_table(head, rows)}<ul>{missing}</ul>"


def _verdict(row: Row, title: str) -> tuple[str, str]:
    difference, text = lead_texts(row, title)
    kind = text if text in ("better", "worse") else ""
    return escape(difference), f'<span class="{kind}">{escape(text)}</span>'


def _pairs(comparison: Comparison) -> str:
    head = ["run", "s an image", "batch", "others' cores", "same to the bit", "PSNR", "SSIM"]
    rows = [
        [escape(row.run.name), f"{row.seconds:.4f}", str(row.run.settings.batch),
         "" if row.others is None else f"{row.others:.2f}", *pair_texts(row.pairs)]
        for row in comparison.rows
    ]  # fmt: skip
    return f"<h2>Speed, and pairs of one seed</h2>{_table(head, rows)}"


def _images(comparison: Comparison, connection: sqlite3.Connection, shown: int) -> str:
    if shown == 0:
        return ""
    first = comparison.rows[0].run
    names = first.about.get("class_names") or None
    numbers = comparison.numbers[first.name][:shown]
    labels = labels_of(connection, first, numbers)
    rows: list[str] = []
    for place, (number, label) in enumerate(zip(numbers, labels, strict=True)):
        caption = escape(f"{number} {class_name(label, names)}")
        cells = "".join(
            f"<td class=image>{_image(connection, row, comparison.numbers[row.run.name][place])}"
            "</td>" for row in comparison.rows
        )  # fmt: skip
        rows.append(f"<tr><td>{caption}</td>{cells}</tr>")
    head = "".join(f"<th>{escape(row.run.name)}</th>" for row in comparison.rows)
    return (
        "<h2>Images by number</h2><p>In a row are images of one class, and of one noise where runs "
        f"share it.</p><div class=wide><table><tr><th>image</th>{head}</tr>{''.join(rows)}"
        "</table></div>"
    )


def _image(connection: sqlite3.Connection, row: Row, number: int) -> str:
    source = data_uri(png_of(connection, row.run, number))
    return f'<img alt="{number} of {escape(row.run.name)}" src="{source}">'


def _settings(comparison: Comparison) -> str:
    parts: list[str] = []
    for row in comparison.rows:
        settings, about = row.run.settings, row.run.about
        values = {
            "bundle": settings.bundle, "content_sha256": settings.content_sha256,
            "options": settings.options, "seed": settings.seed, "batch": settings.batch,
            "backend": settings.backend, "precision": settings.precision,
            "versions": settings.versions, "created": row.run.created, **about,
        }  # fmt: skip
        values.pop("class_names", None)
        text = escape(json.dumps(values, indent=1))
        parts.append(f"<details><summary>{escape(row.run.name)}</summary><pre>{text}</pre>"
                     "</details>")  # fmt: skip
    return f"<h2>Options and versions</h2>{''.join(parts)}"
