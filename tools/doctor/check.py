"""A finding: what was looked at, how it is, and what mends it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ...runtime.command.text import one_line

OK, NOTE, PROBLEM = "ok", "note", "problem"
STATES = (OK, NOTE, PROBLEM)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        area: what it belongs to, as `processor`.
        name: of the thing.
        state: `ok`; `note`, where something is not as it could be and nothing depends on it; or
            `problem`, where csd or the bundle does not run because of it.
        finding: what was found, one line.
        reason: why it is not as it should be, or empty.
        remedy: what mends it, or empty.
    """

    area: str
    name: str
    state: str
    finding: str
    reason: str = ""
    remedy: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return it as JSON values."""
        return {
            "area": self.area,
            "name": self.name,
            "state": self.state,
            "finding": self.finding,
            "reason": self.reason,
            "remedy": self.remedy,
        }


def report_lines(checks: Iterable[Check]) -> Iterator[str]:
    """The checks for people: a heading for each area, a line for each check, remedies below."""
    checks = [*checks]
    width = max((len(check.name) for check in checks), default=0)
    area = None
    for check in checks:
        if check.area != area:
            if area is not None:
                yield ""
            area = check.area
            yield area
        yield one_line_of(f"  {check.state:7}  {check.name:{width}}  ", check.finding)
        indent = " " * (width + 13)
        if check.reason:
            yield one_line_of(f"{indent}because ", check.reason)
        if check.remedy:
            yield one_line_of(f"{indent}mend it: ", check.remedy)


def one_line_of(start: str, text: str) -> str:
    """A line that begins with `start`, whose spaces stay, and goes on with text of strangers."""
    return start + one_line(text)


def split_message(text: str) -> tuple[str, str]:
    """Take an error's one line apart: the reason, and what mends it after the last colon.

    A remedy may hold a colon itself, after an `, or`; what stands in brackets or quotes is passed
    over.
    """
    places = _colons(text)
    if not places:
        return text, ""
    at = places.pop()
    while places and ", or " in text[places[-1] : at]:
        at = places.pop()
    return text[:at], text[at + 2 :]


def _colons(text: str) -> list[int]:
    """Where `: ` stands outside of brackets and double quotes."""
    depth, found = 0, list[int]()
    quoted = False
    for at, character in enumerate(text):
        if character == '"':
            quoted = not quoted
        elif character in "([":
            depth += 1
        elif character in ")]":
            depth = max(0, depth - 1)
        elif character == ":" and not depth and not quoted and text[at + 1 : at + 2] == " ":
            found.append(at)
    return found
