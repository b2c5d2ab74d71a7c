"""Which files this process opens: an audit hook, which stays, and is asked for a while."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

_opened: list[str] | None = None
_hooked = False


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], str | bytes):
        _opened.append(os.path.abspath(os.fsdecode(arguments[0])))


@contextlib.contextmanager
def opened_files() -> Iterator[list[str]]:
    """Yield a list that gets the path of every file that Python opens meanwhile."""
    global _opened, _hooked
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    _opened = found = []
    try:
        yield found
    finally:
        _opened = None
