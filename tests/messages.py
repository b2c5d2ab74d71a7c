"""The messages that the sources print, as text with `…` where a value is put in."""

from __future__ import annotations

import ast
import functools

from .helpers import ROOT

FOLDERS = ("runtime", "export", "models", "plugins", "tools")
VALUE = "…"


@functools.cache
def messages() -> frozenset[str]:
    """Every text of the sources that is not a docstring's."""
    found: set[str] = set()
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            docs = {
                node.value
                for node in ast.walk(tree)
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            }
            found |= {
                text
                for node in ast.walk(tree)
                if node not in docs and (text := _text(node)) is not None
            }
    return frozenset(found)


def is_printed(quoted: str) -> bool:
    """Whether a text is a part of a message."""
    return any(quoted in message for message in messages())


def _text(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values
        )
    return None
