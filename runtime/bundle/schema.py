"""Readers of JSON values: each returns a value that is as wanted, or says which field is not.

A reader is called with a value and with where it stands (`graphs.decoder.files`), and raises
`FieldError`. Tables of readers then say what a document holds (`manifest_checks.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

from ..command.text import shown

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
Reader = Callable[[Any, str], T]

MOST_TEXT = 200
MOST_PATH = 1024
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


class FieldError(ValueError):
    """A field is not as wanted; the message names it and says what was wanted."""

    def __init__(self, where: str, value: Any, wanted: str) -> None:
        super().__init__(f"{where or 'it'} is {shown(value)}, wanted {wanted}")


def text(most: int = MOST_TEXT) -> Reader[str]:
    """A text of printable characters, not empty."""

    def read(value: Any, where: str) -> str:
        if not isinstance(value, str) or not 0 < len(value) <= most or not value.isprintable():
            raise FieldError(where, value, f"1 to {most} printable characters")
        return value

    return read


def matching(pattern: str, wanted: str) -> Reader[str]:
    """A text of a form, which `wanted` describes."""
    compiled = re.compile(pattern)

    def read(value: Any, where: str) -> str:
        if not isinstance(value, str) or compiled.fullmatch(value) is None:
            raise FieldError(where, value, wanted)
        return value

    return read


def one_of(*values: str) -> Reader[str]:
    """One of some texts."""

    def read(value: Any, where: str) -> str:
        if value not in values or not isinstance(value, str):
            raise FieldError(where, value, f"one of {', '.join(values)}")
        return value

    return read


def whole(least: int, most: int) -> Reader[int]:
    """A whole number in a range."""

    def read(value: Any, where: str) -> int:
        if type(value) is not int or not least <= value <= most:
            raise FieldError(where, value, f"a whole number from {least} to {most}")
        return value

    return read


def number(least: float, most: float) -> Reader[float]:
    """A finite number in a range."""

    def read(value: Any, where: str) -> float:
        if type(value) not in (int, float) or not least <= value <= most:
            raise FieldError(where, value, f"a number from {least:g} to {most:g}")
        return float(value)

    return read


def flag(value: Any, where: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise FieldError(where, value, "true or false")
    return value


def optional(reader: Reader[T]) -> Reader[T | None]:
    """What a reader takes, or null."""
    return lambda value, where: None if value is None else reader(value, where)


def list_of(reader: Reader[T], most: int, least: int = 0) -> Reader[tuple[T, ...]]:
    """A list of so many items at least and at most."""

    def read(value: Any, where: str) -> tuple[T, ...]:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise FieldError(where, value, f"a list of {least} to {most} items")
        return tuple(reader(item, f"{where}[{index}]") for index, item in enumerate(value))

    return read


def mapping(key: Reader[K], reader: Reader[T], most: int, least: int = 0) -> Reader[dict[K, T]]:
    """An object of so many entries at least and at most, whose names `key` takes."""

    def read(value: Any, where: str) -> dict[K, T]:
        if not isinstance(value, dict) or not least <= len(value) <= most:
            raise FieldError(where, value, f"an object of {least} to {most} entries")
        entries: dict[K, T] = {}
        for name, item in value.items():
            known = key(name, f"a name in {where}")  # first: the messages of `reader` show it
            entries[known] = reader(item, f"{where}.{name}")
        return entries

    return read


def record(required: Mapping[str, Reader[Any]], **default: Any) -> Reader[dict[str, Any]]:
    """An object with exactly these entries; those with a default may be absent."""

    def read(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise FieldError(where, value, f"an object with {', '.join(required)}")
        inside = f"{where}." if where else ""
        unknown = next((name for name in value if name not in required), None)
        if unknown is not None:
            raise FieldError(f"a name in {where or 'it'}", unknown, ", ".join(required))
        lacking = next((n for n in required if n not in value and n not in default), None)
        if lacking is not None:
            raise FieldError(f"{inside}{lacking}", None, "a value")
        return {
            name: reader(value[name], f"{inside}{name}") if name in value else default[name]
            for name, reader in required.items()
        }

    return read


def relative_name(value: Any, where: str) -> str:
    """Name of a file in a folder: parts with `/` between, none of them `.`, `..` or odd."""
    wanted = "a plain relative name (letters, digits, _ . + -, with / between folders)"
    if not isinstance(value, str) or not 0 < len(value) <= MOST_PATH:
        raise FieldError(where, value, wanted)
    if any(len(part) > 255 or _NAME.fullmatch(part) is None for part in value.split("/")):
        raise FieldError(where, value, wanted)
    return value
