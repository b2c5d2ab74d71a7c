"""How a command is called: `csd generate` where it was reached as that, else `csd-generate`."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

_through_front: ContextVar[bool] = ContextVar("through_front", default=False)
# A command's own name; csd-edge is the distribution, and csd-8 somebody's run.
_NAME = re.compile(r"\bcsd-(?!edge\b)(?=[a-z])")


@contextmanager
def through_front() -> Generator[None]:
    """Spell the names of commands, within, as subcommands of `csd`."""
    token = _through_front.set(True)
    try:
        yield
    finally:
        _through_front.reset(token)


def spelled(text: str) -> str:
    """Return a text with the names of commands as the user calls them."""
    return _NAME.sub("csd ", text) if _through_front.get() else text
