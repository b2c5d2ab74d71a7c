"""JSON as its standard has it: what two readers could take for two things is refused."""

from __future__ import annotations

import json
from typing import Any

from .text import shown


def parse_json(text: str) -> Any:
    """Read JSON as its standard has it: no NaN or Infinity, no name twice in an object.

    Raises:
        ValueError: it is not such JSON, or is nested too deep.
    """
    try:
        return json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{shown(next(n for n in names if names.count(n) > 1))} stands twice")
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
