"""Values of strangers in messages: of bounded length, and without control characters."""

from __future__ import annotations

import re
from typing import Any

MOST_SHOWN = 60
# What colours a terminal: of libraries that write their errors for one.
_COLOURS = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


def shown(value: Any, most: int = MOST_SHOWN) -> str:
    """Return a value as Python writes it, cut to `most` characters; nothing in it is unprintable.

    `repr` escapes every character that a terminal would act on, those of text direction included.
    """
    try:
        text = repr(value)
    except Exception:  # a number of more digits than Python prints; deep lists; a stranger's class
        text = f"<{type(value).__name__}>"
    if not text.isprintable():  # an array of several lines
        return plain(text, most)
    return text if len(text) <= most else text[: most - 3] + "..."


def plain(text: str, most: int = 300) -> str:
    """Return a text on one line, cut to `most` characters, with control characters escaped.

    Sequences that colour a terminal are left out.
    """
    text = _COLOURS.sub("", text)
    safe = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    return safe if len(safe) <= most else safe[: most - 3] + "..."
