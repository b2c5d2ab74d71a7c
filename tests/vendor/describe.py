"""Print what a package bound by pybind11 has, as JSON: run as a program, in a process of its own.

    {"": {function: [signature, ..]}, class: {member: [signature, ..] or null}, ..}

A signature is `{"parameters": [name, ..], "required": count}`, without `self`; it is read from the
first lines of a docstring, where pybind11 writes it. Members that are not called have null.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from typing import Any


def signatures(function: Any) -> list[dict[str, Any]] | None:
    """The overloads of a function, or None where none is told."""
    if inspect.isfunction(function):
        return [_of_python(function)]
    name = getattr(function, "__name__", "")
    pattern = rf"^(?:\d+\. )?{re.escape(name)}\((.*)\) -> .+$"
    found = re.findall(pattern, getattr(function, "__doc__", None) or "", re.MULTILINE)
    return [_signature(text) for text in found] or None


def _of_python(function: Any) -> dict[str, Any]:
    given = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    required = sum(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in given)
    return {"parameters": [p.name for p in given], "required": required}


def _signature(text: str) -> dict[str, Any]:
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[(<{") - (letter in "])>}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    parts = [part.strip() for part in parts if part.strip()]
    names = [re.split(r"[:=]", part)[0].strip() for part in parts]
    given = [name for name in names if name not in ("self", "/", "*")]
    required = sum(
        "=" not in part for part, name in zip(parts, names, strict=True) if name in given
    )
    return {"parameters": given, "required": required}


def describe(module: Any) -> dict[str, dict[str, Any]]:
    """Return what the top of this file says."""
    out: dict[str, dict[str, Any]] = {"": {}}
    for name, value in vars(module).items():
        if inspect.isclass(value):
            out[name] = {
                member: signatures(held) if callable(held) else None
                for member, held in ((m, getattr(value, m, None)) for m in dir(value))
                if not member.startswith("__") or member == "__init__"
            }
        else:
            out[""][name] = signatures(value) if callable(value) else None
    return out


if __name__ == "__main__":
    named = sys.argv[1]
    if named.startswith("tensorrt_bindings."):  # it imports the package by its public name
        sys.modules["tensorrt"] = importlib.import_module("tensorrt_bindings")
    print(json.dumps(describe(importlib.import_module(named))))
