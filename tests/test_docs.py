"""What the documents name is there: files, functions in them, modules, and pages they link to."""

from __future__ import annotations

import ast
import functools
import logging
import re
from pathlib import Path

import pytest

from .helpers import ROOT
from .messages import is_printed

# The change log speaks of what was.
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "plugins/*.md", "models/zoo/*/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
)
# In code: a path with a folder that ends as sources do, perhaps with a name in it.
NAMED = re.compile(
    r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|cpp|cu|cuh|h|md|toml|json))(?::([A-Za-z_][\w.]*))?`"
)
FOLDER = re.compile(r"`((?:export|models|plugins|runtime|tests|tools)/(?:[\w-]+/)*)`")
MODULE = re.compile(r"\bcsd((?:\.[a-z_]\w*)+)")
TEST_RUN = re.compile(r"\b(tests/[\w/]+(?:\.\w+)?)\b")
LINK = re.compile(r"\]\(([^)#:\s]+)\)")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def lies_at(page: str, name: str) -> Path | None:
    """Where a page's path leads: from the root, or from the page's own folder."""
    places = (ROOT / name, (ROOT / page).parent / name)
    return next((place for place in places if place.exists()), None)


@functools.cache
def names_in(path: Path) -> frozenset[str]:
    """Names that a Python file defines: `function`, `Class`, `Class.member`, `CONSTANT`."""
    names: set[str] = set()

    def note(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                note(node.body, f"{prefix}{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
            names.update(prefix + t.id for t in targets if isinstance(t, ast.Name))

    note(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return frozenset(names)


def defines(path: Path, name: str) -> bool:
    """Whether a file has a name: of Python, that it defines it."""
    if path.suffix == ".py":
        return name in names_in(path)
    return re.search(rf"\b{re.escape(name)}\b", path.read_text(encoding="utf-8")) is not None


def faults(page: str, text: str) -> list[str]:
    """What a page names that is not there."""
    found: list[str] = []
    for name, member in NAMED.findall(text):
        path = lies_at(page, name)
        if path is None:
            found.append(name)
        elif member and not defines(path, member):
            found.append(f"{name}:{member}")
    found += [name for name in FOLDER.findall(text) if lies_at(page, name) is None]
    found += [name for name in TEST_RUN.findall(text) if not (ROOT / name).exists()]
    found += [name for name in LINK.findall(text) if not ((ROOT / page).parent / name).exists()]
    return found


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page):
    assert faults(page, text_of(page)) == []


@pytest.mark.parametrize("page", PAGES)
def test_the_modules_that_a_page_names_are_there(page):
    """`csd.a.b` is a module, or the last parts are names in one."""
    for dotted in MODULE.findall(text_of(page)):
        parts = dotted.strip(".").split(".")
        if not (ROOT / parts[0]).is_dir():
            continue  # a domain, a file of the user's
        place, rest = ROOT, list(parts)
        while rest and (place / rest[0]).is_dir():
            place /= rest.pop(0)
        if rest:
            module = place / f"{rest[0]}.py"
            if module.is_file():
                place, rest = module, rest[1:]
            else:
                place /= "__init__.py"
        if rest:
            text = place.read_text(encoding="utf-8")
            assert ".".join(rest) in names_in(place) or f'"{rest[0]}"' in text, f"csd{dotted}"


def test_the_page_about_the_architecture_names_what_it_speaks_of():
    named = NAMED.findall(text_of("docs/architecture.md"))
    assert len(named) > 80
    assert sum(bool(member) for _, member in named) > 60


@pytest.mark.parametrize(
    "planted",
    [
        "`runtime/gone.py`", "`runtime/decoding/loop.py:Decoder.gone`", "`runtime/noise.py:gone`",
        "`plugins/kernels/head.cpp:gone_too`", "`runtime/gone/`", "pytest -s tests/gone/test_x.py",
        "[gone](gone.md)",
    ],
)  # fmt: skip
def test_what_is_not_there_is_found(planted):
    page = "docs/architecture.md"
    assert len(faults(page, f"{text_of(page)}\nSee {planted}.\n")) == 1


def quoted_messages() -> list[str]:
    """The messages that the page about troubles quotes: the first cells of its tables."""
    rows = re.findall(r"^\| `([^`]+)` \|", text_of("docs/troubleshooting.md"), re.M)
    return [row.strip() for row in rows]


def test_every_message_that_the_page_about_troubles_quotes_is_printed():
    quoted = quoted_messages()
    assert len(quoted) > 30
    assert [text for text in quoted if not is_printed(text)] == []


def test_a_message_that_is_not_printed_is_found():
    assert not is_printed("bundle … is made of cheese")
    assert is_printed("bundle … lacks …: export it again")


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text_of(page), re.M | re.S)


@pytest.mark.parametrize("page", ["README.md", "docs/python-api.md"])
def test_the_examples_in_python_run(page, zoo_bundle, tmp_path, monkeypatch):
    """Block after block, as a reader types them."""
    (tmp_path / "bundle").symlink_to(zoo_bundle)
    monkeypatch.chdir(tmp_path)
    typed: dict[str, object] = {}
    for block in python_blocks(page):
        exec(compile(block, page, "exec"), typed)
    assert (tmp_path / "grid.png").is_file()


def test_the_example_of_logs_shows_them():
    (block,) = python_blocks("docs/commands.md")
    logger = logging.getLogger("csd")
    before = logger.level
    try:
        exec(compile(block, "docs/commands.md", "exec"), {})
        assert logger.isEnabledFor(logging.INFO)
    finally:
        logger.setLevel(before)


def test_no_other_page_has_examples_in_python():
    """One that is added is run above, that of the page by `tests/tools/page/test_cli.py`."""
    pages = [page for page in PAGES if page.startswith(("README", "docs/"))]
    numbers = {page: len(blocks) for page in pages if (blocks := python_blocks(page))}
    run = {"README.md": 1, "docs/commands.md": 1, "docs/demo.md": 1, "docs/python-api.md": 6}
    assert numbers == run
