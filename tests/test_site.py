"""The documents as a site: built strictly, whole by itself, and a broken link fails the build."""

from __future__ import annotations

import logging
import runpy
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

from .helpers import ROOT

# What a browser asks for by itself, without a click: of each tag the attributes that name it.
ASSETS = {
    "img": ("src",), "script": ("src",), "link": ("href",), "iframe": ("src",), "source": ("src",),
    "object": ("data",), "video": ("src",), "audio": ("src",),
}  # fmt: skip


@dataclass(frozen=True)
class Html:
    """Of a page: where its links lead, what it asks for, and which anchors it has."""

    links: list[str]
    assets: list[str]
    anchors: set[str]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found = Html([], [], set())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.found.anchors.update(values[name] for name in ("id", "name") if name in values)
        if tag == "a" and "href" in values:
            self.found.links.append(values["href"])
        moves = tag == "link" and values.get("rel") in ("next", "prev", "canonical")
        if not moves:
            named = [values[name] for name in ASSETS.get(tag, ()) if name in values]
            self.found.assets.extend(named)


def read(path: Path) -> Html:
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader.found


def built(out: Path, root: Path = ROOT) -> dict[Path, Html]:
    """Build the site of a checkout into `out` and read its pages."""
    config = load_config(str(root / "mkdocs.yml"), site_dir=str(out))
    assert config.strict
    config.plugins.run_event("startup", command="build", dirty=False)
    build(config)
    # The page for what is not there names all from the root of a server.
    return {path: read(path) for path in out.rglob("*.html") if path.name != "404.html"}


def is_elsewhere(link: str) -> bool:
    parts = urlsplit(link)
    return bool(parts.netloc) or parts.scheme not in ("", "data")


def unresolved(pages: dict[Path, Html]) -> list[str]:
    """Links and assets of pages that lead to no file or anchor of the site."""
    lost: list[str] = []
    for path, page in pages.items():
        for link in [*page.links, *page.assets]:
            if is_elsewhere(link) or urlsplit(link).scheme:
                continue
            parts = urlsplit(link)
            place = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = pages[place].anchors if place in pages else set()
            anchor = unquote(parts.fragment)
            if not place.is_file() or (anchor and anchor not in anchors):
                lost.append(f"{path.name}: {link}")
    return lost


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[Path, Html]:
    return built(tmp_path_factory.mktemp("site").resolve())


def test_every_document_is_a_page_and_every_link_and_anchor_resolves(pages):
    names = {path.stem for path in pages}
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} | {"CHANGELOG"} <= names
    assert sum(len(page.links) for page in pages.values()) > 1000
    assert unresolved(pages) == []


def test_a_page_asks_for_nothing_from_elsewhere(pages):
    assets = [link for page in pages.values() for link in page.assets]
    assert len(assets) > 50
    assert [link for link in assets if is_elsewhere(link)] == []
    (home,) = {path.parent for path in pages if path.name == "concepts.html"}
    sheets = list(home.rglob("*.css"))
    assert sheets
    # The theme's script asks for another one where a page has such a picture.
    assert not any('class="mermaid"' in path.read_text(encoding="utf-8") for path in pages)
    for sheet in sheets:
        text = sheet.read_text(encoding="utf-8")
        assert "@import" not in text, sheet
        assert not any(f"url({quote}http" in text for quote in ("", "'", '"')), sheet


def test_lists_and_tables_are_set_as_such(pages):
    """Python-Markdown wants an empty line before them, and makes one paragraph of them else."""
    for path in pages:
        for paragraph in path.read_text(encoding="utf-8").split("<p>")[1:]:
            lines = paragraph.split("</p>")[0].splitlines()
            assert not [line for line in lines if line.startswith(("- ", "| ", "1. "))], path


def test_pictures_are_drawn_here_and_say_what_they_show():
    for path in (ROOT / "docs" / "images").glob("*.svg"):
        picture = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        parts = {part.tag.rpartition("}")[2]: part for part in picture.iter()}
        assert parts["title"].text
        assert parts["desc"].text
        assert not {"image", "script", "foreignObject"} & set(parts), path


PLANTED = ("gone.md", "cli.md#gone", "../plugins/gone.md", "../pyproject.toml", "/cli.html")


def test_a_broken_link_fails_the_build(tmp_path, caplog):
    hidden = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=hidden)
    for path in (ROOT / "mkdocs.yml", *(ROOT / name for name in outside())):
        (tmp_path / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    with (tmp_path / "docs" / "privacy.md").open("a", encoding="utf-8") as page:
        page.write("\n" + " ".join(f"[gone]({link})" for link in PLANTED) + "\n")
    with caplog.at_level(logging.WARNING, "mkdocs"), pytest.raises(Abort, match="strict mode"):
        built(tmp_path / "site", tmp_path)
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == len(PLANTED), warnings
    assert all("privacy.md" in warning for warning in warnings)


def outside() -> tuple[str, ...]:
    """The pages beside `docs/`, as the hooks have them."""
    return runpy.run_path(str(ROOT / "docs" / "site" / "hooks.py"))["OUTSIDE"]
