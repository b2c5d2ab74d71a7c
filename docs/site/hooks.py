"""What MkDocs does beside its own: pages that lie outside `docs/`, and links to them.

In the repository a link from `docs/models.md` to `../tests/data/README.md` leads to that file. The
site holds such a file as a page of its own, under the same path, and links lead there. A link to a
file that is no page, as one of the sources, fails a strict build: name such a file in backticks.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# The pages outside, as the repository has them. README.md's part is docs/index.md's.
OUTSIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "models/zoo/fashion_mnist/README.md",
    "plugins/README.md",
    "tests/data/README.md",
)
# Where the site has them, so that no name is that of a page of `docs/`.
_PLACE = "repository"
_LINK = re.compile(r"(?<=\]\()([^)#:/\s][^)#:\s]*)(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside of `docs/`."""
    root = Path(config.config_file_path).parent
    for name in OUTSIDE:
        place = f"{_PLACE}/{name}"
        text = (root / name).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into those between pages of the site."""
    return _LINK.sub(lambda link: _led(link[1], page.file.src_uri), markdown)


def _led(link: str, page: str) -> str:
    """A link of a page of the site, given as the repository has it."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(_in_repository(page)), link))
    return posixpath.relpath(_in_site(path), posixpath.dirname(page) or ".")


def _in_repository(page: str) -> str:
    outside = page.removeprefix(f"{_PLACE}/")
    return outside if outside != page else f"docs/{page}"


def _in_site(path: str) -> str:
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{_PLACE}/{path}"
