"""Text of messages: one line of bounded length, without control characters, whoever wrote it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import CsdError

# Characters of a message. Its cause stands at the beginning, its remedy at the end.
MAX_MESSAGE = 800
# Of a word of a message that is long: most often it is a value that was given.
MAX_WORD = 160
MOST_SHOWN = 60
_LONG_WORD = re.compile(rf"\S{{{MAX_WORD + 1},}}")
# What colours a terminal: of libraries that write their errors for one.
_COLOUR = re.compile("\x1b\\[[0-9;]*m")


def one_line(text: str, most: int = MAX_MESSAGE) -> str:
    """Make a message safe to print. One that is already stays as it is.

    What sets colours is left out, other control characters are escaped. Of a message that is long,
    words are cut first, then its middle.
    """
    text = _safe(text)
    if len(text) > most // 2:
        text = _LONG_WORD.sub(lambda match: _cut(match[0], MAX_WORD, "..."), text)
    return text if len(text) <= most else _cut(text, most, " ... ")


def plain(text: str, most: int = 300) -> str:
    """As `one_line`, of a part of a message: its end is cut."""
    safe = _safe(text)
    return safe if len(safe) <= most else safe[: most - 3] + "..."


def first_line(error: BaseException, most: int = 200) -> str:
    """The first line of what an error says that is not empty, or its type; its end is cut."""
    try:
        lines = (plain(line, most) for line in str(error).splitlines())
        return next(filter(None, lines), type(error).__name__)
    except Exception:  # a stranger's class
        return type(error).__name__


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


def listed(names: Sequence[str], last: str = "and") -> str:
    """Names in a sentence: `a`, `a and b`, `a, b and c`."""
    *most, end = names
    return f"{', '.join(most)} {last} {end}" if most else end


def check_text(path: Path, who: str, kind: type[CsdError]) -> None:
    """Check that a path is text, for a library that takes no other.

    Args:
        path: absolute or not.
        who: takes it, to begin the message.
        kind: of the error.

    Raises:
        CsdError: a name in it is not UTF-8.
    """
    odd = next((part for part in path.absolute().parts if not _is_text(part)), None)
    if odd is not None:
        raise kind(f"{who} takes no path that is not UTF-8, as {path}: rename {odd}")


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # bytes that are no characters
        return False
    return True


def _safe(text: str) -> str:
    text = " ".join(_COLOUR.sub("", text).split())
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


def _cut(text: str, most: int, mark: str) -> str:
    half = (most - len(mark)) // 2
    return f"{text[:half].rstrip()}{mark}{text[-half:].lstrip()}"
